//! Decides what leaves a log as evidence: the records of a period, and beside them whatever proves offline that they are all of it.
//! Trusts the ledger for the files. A directory gets its name when it is whole; what lies outside the period leaves as hashes only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use super::checkpoint::{Checkpoint, hash, hash_lines};
use super::ledger::{Ledger, LedgerError};
use super::merkle::{Hash, Tree, leaf};
use super::sealer::{CHECKPOINTS_FILE, PUBLIC_KEY_FILE, tree_file, tree_text};
use super::{FILE_NAME, rfc3339};
use crate::clock::Clock;
use crate::errors::Coded;

/// Hashes of the records after the last one of an export, up to the checkpoint that covers it.
pub(super) const FOLLOWING_FILE: &str = "audit.following";
/// What an export says of itself.
const MANIFEST_FILE: &str = "manifest.json";

const LONGEST_MANIFEST: u64 = 1024 * 1024;
const LONGEST_FOLLOWING: u64 = 64 * 1024 * 1024;

/// A part of a log: everything between the first record that is not before `from` and the last one before `until`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Period {
    /// From this moment on.
    pub from: Option<SystemTime>,
    /// Before this moment.
    pub until: Option<SystemTime>,
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The number of the first record.
    pub first: u64,
    /// The number of the last record.
    pub last: u64,
    /// Up to this record they are under a checkpoint.
    pub signed: u64,
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The log cannot be read.
    #[error("the log cannot be exported")]
    Ledger(#[from] LedgerError),
    /// The directory cannot be written.
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// There is no record in the period.
    #[error("the log has no record in this period")]
    Empty,
}

impl Coded for ExportError {
    fn code(&self) -> &'static str {
        match self {
            Self::Ledger(error) => error.code(),
            Self::Write(..) => "FNL0223",
            Self::Empty => "FNL0224",
        }
    }
}

impl Ledger {
    /// Hands the records of a period to `each`, in their order.
    ///
    /// # Errors
    /// When the log cannot be read, or `each` cannot go on.
    pub fn within(
        &self,
        period: &Period,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Exported, ExportError> {
        let (first, last) = self.span(period)?;
        let mut failed = None;
        self.records(&mut |number, line| {
            if number >= first
                && let Err(error) = each(line)
            {
                failed = Some(error);
            }
            Ok(number < last && failed.is_none())
        })?;
        match failed {
            Some(error) => Err(ExportError::Write(PathBuf::from("-"), error)),
            None => Ok(self.exported(first, last)),
        }
    }

    /// Writes the records of a period, the tree before them, the checkpoints, and hashes up to the checkpoint that covers
    /// the last of them into a new directory, which [`Ledger::open`] reads as a log.
    ///
    /// # Errors
    /// When the log cannot be read, the directory is there already or cannot be written.
    pub fn export(
        &self,
        period: &Period,
        to: &Path,
        clock: &Clock,
    ) -> Result<Exported, ExportError> {
        let failed = |error| ExportError::Write(to.to_owned(), error);
        if to.symlink_metadata().is_ok() {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let (Some(name), parent) = (to.file_name(), to.parent()) else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let parent = parent
            .filter(|p| *p != Path::new(""))
            .unwrap_or(Path::new("."));
        // Its name is nobody's to guess until it is whole.
        let unfinished = parent.join(format!(".{}.{}", name.display(), crate::ids::ulid(clock)));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&unfinished)
            .map_err(failed)?;
        let done = self.fill(period, &unfinished, clock).and_then(|exported| {
            std::fs::rename(&unfinished, to)
                .and_then(|()| File::open(parent)?.sync_all())
                .map_err(failed)?;
            Ok(exported)
        });
        if done.is_err() {
            // What could not be finished may not be removable either.
            std::fs::remove_dir_all(&unfinished).ok();
        }
        done
    }

    fn fill(&self, period: &Period, dir: &Path, clock: &Clock) -> Result<Exported, ExportError> {
        let (first, last) = self.span(period)?;
        let covering = self.covering(last);
        let end = covering.map_or(last, Checkpoint::size);
        let failed = |error| ExportError::Write(dir.to_owned(), error);
        let mut files = Files::new(dir);
        let mut tree = self.before()?.clone();
        let mut before: Option<Tree> = (tree.size() + 1 == first).then(|| tree.clone());
        let mut following: Vec<Hash> = Vec::new();
        let mut records = files.create(FILE_NAME).map_err(failed)?;
        let mut broken = None;
        self.records(&mut |number, line| {
            let leaf = leaf(line);
            if number < first {
                tree.push(leaf);
                if number + 1 == first {
                    before = Some(tree.clone());
                }
            } else if number > last {
                following.push(leaf);
            } else if let Err(error) = records.line(line) {
                broken = Some(error);
            }
            Ok(number < end && broken.is_none())
        })?;
        if let Some(error) = broken {
            return Err(failed(error));
        }
        files.done(records).map_err(failed)?;
        let within = |c: &&Checkpoint| c.size() + 1 >= first && c.size() <= end;
        let checkpoints: String = self
            .checkpoints()
            .iter()
            .filter(within)
            .map(ToString::to_string)
            .collect();
        let before = before.unwrap_or_default();
        let exported = self.exported(first, last);
        let head = json!({
            "v": 1,
            "origin": self.key().name(),
            "first": first,
            "last": last,
            "signed": exported.signed,
            "from": period.from.map(rfc3339),
            "until": period.until.map(rfc3339),
            "exported": rfc3339(clock.now()),
        });
        let mut write = || -> io::Result<()> {
            if first > 1 {
                files.write(&tree_file(first - 1), &tree_text(&before))?;
            }
            files.write(CHECKPOINTS_FILE, &checkpoints)?;
            files.write(PUBLIC_KEY_FILE, &format!("{}\n", self.key()))?;
            files.write(FOLLOWING_FILE, &hash_lines(&following))?;
            files.manifest(head.clone())
        };
        write().map_err(failed)?;
        Ok(exported)
    }

    /// The first checkpoint that covers a record.
    fn covering(&self, number: u64) -> Option<&Checkpoint> {
        self.checkpoints().iter().find(|c| c.size() >= number)
    }

    fn exported(&self, first: u64, last: u64) -> Exported {
        let newest = self.checkpoints().last().map_or(0, Checkpoint::size);
        Exported {
            first,
            last,
            signed: newest.min(last),
        }
    }

    /// The numbers of the first and the last record of a period.
    fn span(&self, period: &Period) -> Result<(u64, u64), ExportError> {
        let (from, until) = (period.from.map(rfc3339), period.until.map(rfc3339));
        let (mut first, mut last) = (None, None);
        self.records(&mut |number, line| {
            let record: Value = serde_json::from_slice(line).unwrap_or_default();
            let time = record["time"].as_str().unwrap_or_default();
            // Times of one form and width sort as texts do.
            if from.as_deref().is_none_or(|from| time >= from) {
                first.get_or_insert(number);
            }
            if until.as_deref().is_none_or(|until| time < until) {
                last = Some(number);
            }
            Ok(true)
        })?;
        match (first, last) {
            (Some(first), Some(last)) if first <= last => Ok((first, last)),
            _ => Err(ExportError::Empty),
        }
    }
}

/// The files of an export, and their digests.
struct Files<'d> {
    dir: &'d Path,
    digests: BTreeMap<String, String>,
}

struct OneFile {
    name: String,
    out: BufWriter<File>,
    digest: Context,
}

impl OneFile {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.add(line)?;
        self.add(b"\n")
    }

    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

impl<'d> Files<'d> {
    fn new(dir: &'d Path) -> Self {
        Self {
            dir,
            digests: BTreeMap::new(),
        }
    }

    fn create(&self, name: &str) -> io::Result<OneFile> {
        Ok(OneFile {
            name: name.to_owned(),
            out: BufWriter::new(File::create_new(self.dir.join(name))?),
            digest: Context::new(&SHA256),
        })
    }

    fn done(&mut self, file: OneFile) -> io::Result<()> {
        let OneFile {
            name,
            mut out,
            digest,
        } = file;
        out.flush()?;
        out.get_ref().sync_all()?;
        self.digests.insert(name, hex(digest));
        Ok(())
    }

    fn write(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut file = self.create(name)?;
        file.add(text.as_bytes())?;
        self.done(file)
    }

    fn manifest(&mut self, mut head: Value) -> io::Result<()> {
        head["files"] = json!(self.digests);
        self.write(MANIFEST_FILE, &format!("{head:#}\n"))?;
        File::open(self.dir)?.sync_all()
    }
}

fn hex(digest: Context) -> String {
    let digest = digest.finish();
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Compares the files of an export with its manifest; a log has none, and `false` says so. The manifest only finds damage early and by name: what
/// was changed on purpose is found by the checkpoints.
pub(super) fn check_manifest(dir: &Path) -> Result<bool, LedgerError> {
    let path = dir.join(MANIFEST_FILE);
    let mut text = String::new();
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened
            .and_then(|file| file.take(LONGEST_MANIFEST).read_to_string(&mut text))
            .map_err(|error| LedgerError::Read(path.clone(), error))?,
    };
    let manifest: Value =
        serde_json::from_str(&text).map_err(|_| LedgerError::Manifest(path.clone()))?;
    let files = manifest["files"]
        .as_object()
        .ok_or(LedgerError::Manifest(path))?;
    for (name, digest) in files {
        let file = dir.join(name);
        // A name leads nowhere else.
        if name.contains('/') || digest_of(&file)? != digest.as_str().unwrap_or_default() {
            return Err(LedgerError::Manifest(file));
        }
    }
    Ok(true)
}

fn digest_of(path: &Path) -> Result<String, LedgerError> {
    let read = |error| LedgerError::Read(path.to_owned(), error);
    let mut file = File::open(path).map_err(read)?;
    let (mut digest, mut bytes) = (Context::new(&SHA256), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut bytes).map_err(read)? {
            0 => return Ok(hex(digest)),
            count => digest.update(&bytes[..count]),
        }
    }
}

/// Reads the hashes after the last record; none where there is no such file.
pub(super) fn read_following(path: &Path) -> io::Result<Vec<Hash>> {
    let mut text = String::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?.take(LONGEST_FOLLOWING).read_to_string(&mut text)?,
    };
    let hashes: Option<Vec<Hash>> = text.lines().map(hash).collect();
    hashes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a line is no hash"))
}
