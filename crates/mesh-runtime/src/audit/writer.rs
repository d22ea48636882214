//! Decides when a record is durable: one thread takes what has gathered, writes it, flushes once, then tells the callers.
//! Trusts the disk only after its flush; after a failed write the file is cut back, so that no half record stays.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::errors::ErrorChain;

use super::canonical::{canonical, tame};
use super::checkpoint::{BadCheckpoint, Checkpoint};
use super::merkle::{Tree, leaf};
use super::sealer::{Found, Sealer, read_tree};
use super::seals::Seals;
use super::verify::{Chain, Expect, Failure, Head, Start, Torn, Verified, verify_against};
use super::{
    Action, AuditError, Counts, Entry, FILE_NAME, OwnRecords, Receipt, closed_number,
    report_write_failure,
};

/// Records per flush at most: bounds the memory of one write and the wait of its first record.
pub(super) const LARGEST_GROUP: usize = 512;

type Answer = oneshot::Sender<Result<Receipt, AuditError>>;

#[derive(Debug)]
pub(super) enum Command {
    Record(Box<Entry>, Option<Answer>),
    /// Look at the overflow.
    Wake,
    /// Sign what has come.
    Seal(oneshot::Sender<Result<Checkpoint, AuditError>>),
    Close(oneshot::Sender<Result<(), AuditError>>),
}

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

struct Writer {
    disk: Box<dyn Disk>,
    head: Head,
    /// The length up to which everything is durable.
    length: u64,
    /// After a failure there may be rubbish beyond `length`.
    dirty: bool,
    own: OwnRecords,
    counts: Arc<Counts>,
    sealer: Option<Sealer>,
}

/// Writes the first record and starts the thread.
pub(super) fn start(
    opened: Opened,
    started: Entry,
    own: OwnRecords,
    commands: mpsc::Receiver<Command>,
    overflow: Arc<Mutex<VecDeque<Command>>>,
    counts: Arc<Counts>,
) -> io::Result<()> {
    let Opened {
        disk, head, sealer, ..
    } = opened;
    let length = disk.length()?;
    let mut writer = Writer {
        disk,
        head,
        length,
        dirty: false,
        own,
        counts,
        sealer,
    };
    writer.append(&[Box::new(started)])?;
    writer.seal(Durable::Now)?;
    let run = move || writer.run(commands, &overflow);
    std::thread::Builder::new()
        .name("audit".to_owned())
        .spawn(run)?;
    Ok(())
}

impl Writer {
    fn run(mut self, mut commands: mpsc::Receiver<Command>, overflow: &Mutex<VecDeque<Command>>) {
        let mut close = None;
        while close.is_none() {
            let Some(first) = commands.blocking_recv() else {
                break;
            };
            let mut group = vec![first];
            while group.len() < LARGEST_GROUP
                && let Ok(next) = commands.try_recv()
            {
                group.push(next);
            }
            group.extend(
                overflow
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .drain(..),
            );
            close = self.group(group);
        }
        // Whatever came while closing is still written; after that the queue refuses.
        commands.close();
        let mut rest = Vec::new();
        while let Ok(next) = commands.try_recv() {
            rest.push(next);
        }
        rest.extend(
            overflow
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain(..),
        );
        let also = self.group(rest);
        let stopped = Box::new(self.own.record(Action("log.stop")));
        let ended = self
            .append(&[stopped])
            .and_then(|_| self.seal(Durable::Now));
        let ended = ended.map_err(|error| {
            report_write_failure(&error);
            AuditError::Write(Arc::new(error))
        });
        // The lock goes before the caller is told, so that it can open the log again at once.
        drop(self.disk);
        for waiting in [close, also].into_iter().flatten() {
            waiting.send(ended.clone()).ok();
        }
    }

    /// Writes a group and answers its callers; returns the wish to close, if one was in it.
    fn group(&mut self, commands: Vec<Command>) -> Option<oneshot::Sender<Result<(), AuditError>>> {
        let (mut entries, mut answers, mut close) = (Vec::new(), Vec::new(), None);
        let mut seals = Vec::new();
        for command in commands {
            match command {
                Command::Record(entry, answer) => {
                    entries.push(entry);
                    answers.push(answer);
                }
                Command::Wake => {}
                Command::Seal(done) => seals.push(done),
                Command::Close(done) => close = Some(done),
            }
        }
        // What had to wait beside the queue may be more than one group.
        let mut answers = answers.into_iter();
        for part in entries.chunks(LARGEST_GROUP) {
            self.write(part, answers.by_ref().take(part.len()));
        }
        for done in seals {
            done.send(self.asked_to_seal()).ok();
        }
        close
    }

    fn write(
        &mut self,
        entries: &[Box<Entry>],
        answers: impl ExactSizeIterator<Item = Option<Answer>>,
    ) {
        self.next_file_if_full();
        match self.append(entries) {
            Ok(receipts) => {
                self.counts
                    .written
                    .fetch_add(receipts.len() as u64, Ordering::Relaxed);
                for (answer, receipt) in answers.zip(receipts) {
                    // A caller that went away does not need its receipt.
                    answer.map(|answer| answer.send(Ok(receipt)).ok());
                }
            }
            Err(error) => {
                self.counts
                    .failed
                    .fetch_add(answers.len() as u64, Ordering::Relaxed);
                report_write_failure(&error);
                let error = Arc::new(error);
                for answer in answers.flatten() {
                    answer.send(Err(AuditError::Write(Arc::clone(&error)))).ok();
                }
            }
        }
        // Nobody waits for it any more.
        if self.sealer.as_ref().is_some_and(Sealer::is_due) {
            self.seal(Durable::Later).ok();
        }
    }

    /// Signs on request, and looks whether the file is still the one that was written.
    fn asked_to_seal(&mut self) -> Result<Checkpoint, AuditError> {
        let intact = self.dirty || self.disk.is_intact(self.length).unwrap_or(false);
        if !intact && self.counts.intact.swap(false, Ordering::Relaxed) {
            tracing::error!(
                "the audit log is not the file any more that was written, or not as long"
            );
        }
        let failed = |error| AuditError::Write(Arc::new(error));
        self.seal(Durable::Now).map_err(failed)?;
        let newest = self.sealer.as_ref().map(|sealer| sealer.newest().clone());
        newest.ok_or(AuditError::NotSigned)
    }

    /// Signs the tree, where the log has a key.
    fn seal(&mut self, durable: Durable) -> io::Result<()> {
        let Some(sealer) = &mut self.sealer else {
            return Ok(());
        };
        let sealed = sealer.seal().and_then(|_| match durable {
            Durable::Now => sealer.flush(),
            Durable::Later => Ok(()),
        });
        self.counts.signed(sealer.newest().size(), &self.own.clock);
        sealed.inspect_err(|error| {
            self.counts.unsigned.fetch_add(1, Ordering::Relaxed);
            tracing::error!(error = %ErrorChain(error), "a checkpoint of the audit log could not be written");
        })
    }

    /// Goes on in the next file when this one is large enough. When that fails it goes on in this one, which is only large.
    fn next_file_if_full(&mut self) {
        if self.length < self.disk.largest() {
            return;
        }
        let rotated = Box::new(self.own.record(Action("log.rotate")));
        let turned = self
            .append(&[rotated])
            .and_then(|_| self.sealer.as_mut().map_or(Ok(()), Sealer::turn))
            .and_then(|()| self.disk.next_file(self.head.seq));
        match turned {
            Ok(()) => self.length = 0,
            Err(error) => report_write_failure(&error),
        }
    }

    /// All of the entries are durable, or none of them is in the chain.
    fn append(&mut self, entries: &[Box<Entry>]) -> io::Result<Vec<Receipt>> {
        if self.dirty {
            self.disk.cut(self.length)?;
            self.dirty = false;
        }
        let (mut head, mut bytes, mut receipts) = (self.head.clone(), Vec::new(), Vec::new());
        let mut leaves = Vec::new();
        for entry in entries {
            let mut value = serde_json::to_value(entry)?;
            tame(&mut value);
            value["seq"] = (head.seq + 1).into();
            value["prev"] = head.hash.as_str().into();
            let line = canonical(&value)
                .ok_or_else(|| io::Error::other("a value is outside the range of the record"))?;
            head = Head::after(head.seq + 1, line.as_bytes());
            if self.sealer.is_some() {
                leaves.push(leaf(line.as_bytes()));
            }
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
            receipts.push(Receipt {
                id: entry.id.clone(),
                seq: head.seq,
            });
        }
        self.dirty = true;
        self.disk.write_at(&bytes, self.length)?;
        self.disk.flush()?;
        self.dirty = false;
        self.length += bytes.len() as u64;
        self.head = head;
        if let Some(sealer) = &mut self.sealer {
            leaves.into_iter().for_each(|leaf| sealer.push(leaf));
            self.counts.records.store(sealer.size(), Ordering::Relaxed);
        }
        Ok(receipts)
    }
}

/// When a checkpoint must be on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durable {
    Now,
    /// When the kernel likes: a power cut loses it, and the next start signs the same records again.
    Later,
}
