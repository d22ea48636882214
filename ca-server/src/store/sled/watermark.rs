//! How far we have acknowledged, in a small file beside the log. sled cuts its log at the first damaged record, as it
//! must after a crash, and so a single flipped bit would silently take back everything behind it: this notices.
//! Written after the sync and not synced itself, so it is never ahead of what is durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::store::codec::sha256;

const NAME: &str = "acknowledged";

pub(super) struct Watermark(File);

impl Watermark {
    /// Opens it and reads the mark. Without a readable one (older than the store's first group, or damaged itself)
    /// there is nothing to compare with.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Option<u64>)> {
        let options = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .clone();
        let file = options.open(directory.join(NAME))?;
        let mut record = [0; 16];
        let mark = match file.read_exact_at(&mut record, 0) {
            Ok(()) => parse(&record),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(error),
        };
        Ok((Self(file), mark))
    }

    pub(super) fn set(&self, group: u64) -> io::Result<()> {
        self.0.write_all_at(&record(group), 0)
    }
}

fn record(group: u64) -> [u8; 16] {
    let mut record = [0; 16];
    record[..8].copy_from_slice(&group.to_be_bytes());
    record[8..].copy_from_slice(&sha256(&[&group.to_be_bytes()])[..8]);
    record
}

fn parse(bytes: &[u8; 16]) -> Option<u64> {
    let group = u64::from_be_bytes(*bytes.first_chunk()?);
    (record(group) == *bytes).then_some(group)
}
