//! Decides what a log is written to and where its last run left it: a directory that one program holds, or memory for tests.
//! Trusts a log only once chain, tree and checkpoints agree. Sets a torn last line aside and never drops it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::checkpoint::{BadCheckpoint, Checkpoint};
use super::merkle::Tree;
use super::sealer::{Found, Sealer, read_tree};
use super::seals::Seals;
use super::verify::{Chain, Expect, Failure, Head, Start, Torn, Verified, verify_against};
use super::{AuditError, FILE_NAME, closed_number};

/// What a log is written to.
pub(super) trait Disk: Send {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    fn flush(&mut self) -> io::Result<()>;
    fn cut(&mut self, length: u64) -> io::Result<()>;
    fn length(&self) -> io::Result<u64>;
    /// The length at which the next file is begun.
    fn largest(&self) -> u64 {
        u64::MAX
    }
    /// Closes the file under a name with the number of its last record, and begins the next one.
    fn next_file(&mut self, last: u64) -> io::Result<()> {
        let _: u64 = last;
        Ok(())
    }
    /// Whether the log is still the file that is written, and as long as what was written.
    fn is_intact(&self, length: u64) -> io::Result<bool> {
        Ok(self.length()? == length)
    }
}

/// A log that is ready to be continued.
pub(super) struct Opened {
    pub(super) disk: Box<dyn Disk>,
    pub(super) head: Head,
    /// What a power cut had left of a last line.
    pub(super) torn: Option<Torn>,
    pub(super) sealer: Option<Sealer>,
}

pub(super) struct FileDisk {
    dir: PathBuf,
    file: File,
    largest: u64,
    /// Held for as long as the file is written.
    _lock: File,
}

impl FileDisk {
    /// With an origin the log's tree is signed by a key of its own, under this name.
    pub(super) fn open(
        dir: &Path,
        largest: u64,
        origin: Option<&str>,
    ) -> Result<Opened, AuditError> {
        let open = |cause: io::Error| AuditError::Open(dir.to_owned(), Arc::new(cause));
        let mut made = std::fs::DirBuilder::new();
        made.recursive(true).mode(0o700).create(dir).map_err(open)?;
        let lock = options().open(dir.join("audit.lock")).map_err(open)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(open(error)),
        }
        let refused = |failure: Failure| match failure {
            Failure::Io(error) => open(error),
            Failure::Bad(bad) => AuditError::Damaged(dir.to_owned(), Arc::new(bad)),
            Failure::Checkpoint(bad) => AuditError::Checkpoint(dir.to_owned(), Arc::new(bad)),
        };
        let found = origin.map(|origin| Found::look(dir, origin)).transpose()?;
        // The newest closed file tells where the current one must go on; older ones may have been moved away.
        let closed = closed_files(dir).map_err(open)?;
        let start = match closed.last() {
            None => Start::Genesis,
            Some(path) => {
                let expect = Expect {
                    start: Start::Anywhere,
                    ..Expect::default()
                };
                Start::After(read(path, &expect, false).map_err(refused)?.head)
            }
        };
        let seals = match &found {
            None => None,
            Some(found) => Some(seals(dir, &closed, found).map_err(refused)?),
        };
        let path = dir.join(FILE_NAME);
        let file = options().open(&path).map_err(open)?;
        // The file's name must be as durable as its content.
        sync_dir(dir).map_err(open)?;
        let expect = Expect {
            start,
            seals,
            ..Expect::default()
        };
        let verified = read(&path, &expect, true).map_err(refused)?;
        if let Some(torn) = &verified.torn {
            set_aside(&file, dir, torn, verified.head.seq + 1).map_err(open)?;
        }
        let sealer = match (found, verified.sealed) {
            (Some(found), Some(sealed)) => Some(found.open(dir, sealed.tree)?),
            _ => None,
        };
        let disk = Self {
            dir: dir.to_owned(),
            file,
            largest,
            _lock: lock,
        };
        Ok(Opened {
            disk: Box::new(disk),
            head: verified.head,
            torn: verified.torn,
            sealer,
        })
    }
}

/// What the current file is compared with: the tree at the end of the closed ones, and the newest checkpoints.
fn seals(dir: &Path, closed: &[PathBuf], found: &Found) -> Result<Seals, Failure> {
    let last = closed
        .last()
        .and_then(|path| closed_number(path))
        .unwrap_or(0);
    let before = match read_tree(dir, last) {
        Some(tree) => tree,
        // A log from before there were trees: all of it is read once.
        None => tree_of(closed).ok_or(Failure::Checkpoint(BadCheckpoint::Start(last + 1)))?,
    };
    let newest = found.checkpoints.last().map(Checkpoint::size);
    if newest.is_some_and(|newest| newest < before.size()) {
        return Err(Failure::Checkpoint(BadCheckpoint::None));
    }
    Ok(Seals {
        before,
        checkpoints: found.checkpoints.clone(),
        following: Vec::new(),
    })
}

fn tree_of(files: &[PathBuf]) -> Option<Tree> {
    let expect = Expect {
        seals: Some(Seals::default()),
        ..Expect::default()
    };
    Some(verify_against(files, &expect).ok()?.sealed?.tree)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    options
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn read(path: &Path, expect: &Expect, last: bool) -> Result<Verified, Failure> {
    let mut chain = Chain::new(expect);
    let reader = io::BufReader::with_capacity(256 * 1024, File::open(path)?);
    chain.file(path, reader, last)?;
    chain.end(path)
}

/// The closed files in the order of their records.
pub(super) fn closed_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if closed_number(&path).is_some() {
            files.push(path);
        }
    }
    // Numbers of one width sort as texts do.
    files.sort();
    Ok(files)
}

/// Keeps the bytes of a torn line beside the log, then cuts them off it.
fn set_aside(file: &File, dir: &Path, torn: &Torn, seq: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut bytes = vec![
        0;
        usize::try_from(length - torn.at)
            .unwrap_or(0)
            .min(1024 * 1024)
    ];
    file.read_exact_at(&mut bytes, torn.at)?;
    let aside: PathBuf = dir.join(format!("{FILE_NAME}.torn-before-{seq}"));
    std::fs::write(&aside, &bytes)?;
    File::open(&aside)?.sync_all()?;
    file.set_len(torn.at)?;
    file.sync_all()
}

impl Disk for FileDisk {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        self.file.sync_all()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.metadata().map(|m| m.len())
    }

    fn largest(&self) -> u64 {
        self.largest
    }

    fn next_file(&mut self, last: u64) -> io::Result<()> {
        let current = self.dir.join(FILE_NAME);
        std::fs::rename(&current, self.dir.join(format!("audit-{last:020}.jsonl")))?;
        self.file = options().open(&current)?;
        sync_dir(&self.dir)
    }

    fn is_intact(&self, length: u64) -> io::Result<bool> {
        let (ours, named) = (
            self.file.metadata()?,
            std::fs::metadata(self.dir.join(FILE_NAME))?,
        );
        Ok(ours.ino() == named.ino() && ours.dev() == named.dev() && ours.len() == length)
    }
}

/// A log's content in memory, for tests.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    inner: Arc<Mutex<MemoryDisk>>,
}

#[derive(Debug, Default)]
struct MemoryDisk {
    bytes: Vec<u8>,
    flushes: usize,
    failing: bool,
}

impl Memory {
    fn locked(&self) -> std::sync::MutexGuard<'_, MemoryDisk> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The records so far.
    pub fn records(&self) -> Vec<Value> {
        self.text()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The records of one action.
    pub fn of(&self, action: &str) -> Vec<Value> {
        self.records()
            .into_iter()
            .filter(|record| record["action"] == action)
            .collect()
    }

    /// The lines as they would be in the file.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.locked().bytes).into_owned()
    }

    /// Makes every write fail from now on, or work again.
    pub fn fail(&self, failing: bool) {
        self.locked().failing = failing;
    }

    /// How often the log was flushed.
    pub fn flushes(&self) -> usize {
        self.locked().flushes
    }
}

impl Disk for Memory {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut disk = self.locked();
        let at = usize::try_from(at).map_err(io::Error::other)?;
        if disk.failing {
            // As a full disk does: a part is there, the rest is not.
            disk.bytes.extend_from_slice(&bytes[..bytes.len() / 2]);
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.bytes.truncate(at);
        disk.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut disk = self.locked();
        disk.flushes += 1;
        if disk.failing {
            Err(io::Error::other("flush failed"))
        } else {
            Ok(())
        }
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut disk = self.locked();
        if disk.failing {
            return Err(io::Error::other("cut failed"));
        }
        disk.bytes
            .truncate(usize::try_from(length).map_err(io::Error::other)?);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.locked().bytes.len() as u64)
    }
}
