//! Decides when a record is durable: one thread takes what has gathered, writes it, flushes once, then tells the callers.
//! Trusts the disk only after its flush; after a failed write the file is cut back, so that no half record stays.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::canonical::{canonical, tame};
use super::verify::{BadRecord, Chain, Expect, Failure, Head, Start, Torn, Verified};
use super::{
    Action, AuditError, Counts, Entry, FILE_NAME, OwnRecords, Receipt, report_write_failure,
};

/// Records per flush at most: bounds the memory of one write and the wait of its first record.
const LARGEST_GROUP: usize = 512;

type Answer = oneshot::Sender<Result<Receipt, AuditError>>;

#[derive(Debug)]
pub(super) enum Command {
    Record(Box<Entry>, Option<Answer>),
    /// Look at the overflow.
    Wake,
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
}

pub(super) struct FileDisk {
    dir: PathBuf,
    file: File,
    largest: u64,
    /// Held for as long as the file is written.
    _lock: File,
}

pub(super) struct Opened {
    pub(super) disk: FileDisk,
    pub(super) head: Head,
    pub(super) torn: Option<Torn>,
}

impl FileDisk {
    pub(super) fn open(dir: &Path, largest: u64) -> Result<Opened, AuditError> {
        let open = |cause: io::Error| AuditError::Open(dir.to_owned(), Arc::new(cause));
        let mut made = std::fs::DirBuilder::new();
        made.recursive(true).mode(0o700).create(dir).map_err(open)?;
        let lock = options().open(dir.join("audit.lock")).map_err(open)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AuditError::InUse(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(open(error)),
        }
        let damaged = |bad: BadRecord| AuditError::Damaged(dir.to_owned(), Arc::new(bad));
        let refused = |failure: Failure| match failure {
            Failure::Io(error) => open(error),
            Failure::Bad(bad) => damaged(bad),
        };
        // The newest closed file tells where the current one must go on; older ones may have been moved away.
        let newest = closed_files(dir).map_err(open)?.pop();
        let start = match newest {
            None => Start::Genesis,
            Some(path) => {
                let expect = Expect {
                    start: Start::Anywhere,
                    ..Expect::default()
                };
                let verified = read(&path, &expect, false)
                    .map_err(open)?
                    .map_err(refused)?;
                Start::After(verified.map_err(damaged)?.head)
            }
        };
        let path = dir.join(FILE_NAME);
        let file = options().open(&path).map_err(open)?;
        // The file's name must be as durable as its content.
        sync_dir(dir).map_err(open)?;
        let expect = Expect {
            start,
            ..Expect::default()
        };
        let verified = read(&path, &expect, true).map_err(open)?.map_err(refused)?;
        let verified = verified.map_err(damaged)?;
        if let Some(torn) = &verified.torn {
            set_aside(&file, dir, torn, verified.head.seq + 1).map_err(open)?;
        }
        let disk = Self {
            dir: dir.to_owned(),
            file,
            largest,
            _lock: lock,
        };
        Ok(Opened {
            disk,
            head: verified.head,
            torn: verified.torn,
        })
    }
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

type Read = Result<Result<Verified, BadRecord>, Failure>;

fn read(path: &Path, expect: &Expect, last: bool) -> io::Result<Read> {
    let mut chain = Chain::new(expect);
    let reader = io::BufReader::with_capacity(256 * 1024, File::open(path)?);
    Ok(match chain.file(path, reader, last) {
        Ok(()) => Ok(chain.end(path)),
        Err(failure) => Err(failure),
    })
}

/// The closed files in the order of their records.
pub(super) fn closed_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("audit-")?.strip_suffix(".jsonl"));
        if number.is_some_and(|n| n.len() == 20 && n.bytes().all(|b| b.is_ascii_digit())) {
            files.push(entry.path());
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
}

/// Writes the first record and starts the thread.
pub(super) fn start(
    disk: Box<dyn Disk>,
    head: Head,
    started: Entry,
    own: OwnRecords,
    commands: mpsc::Receiver<Command>,
    overflow: Arc<Mutex<VecDeque<Command>>>,
    counts: Arc<Counts>,
) -> io::Result<()> {
    let length = disk.length()?;
    let mut writer = Writer {
        disk,
        head,
        length,
        dirty: false,
        own,
        counts,
    };
    writer.append(&[Box::new(started)])?;
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
        let ended = self.append(&[stopped]).map(drop).map_err(|error| {
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
        for command in commands {
            match command {
                Command::Record(entry, answer) => {
                    entries.push(entry);
                    answers.push(answer);
                }
                Command::Wake => {}
                Command::Close(done) => close = Some(done),
            }
        }
        if entries.is_empty() {
            return close;
        }
        self.next_file_if_full();
        match self.append(&entries) {
            Ok(receipts) => {
                self.counts
                    .written
                    .fetch_add(receipts.len() as u64, Ordering::Relaxed);
                for (answer, receipt) in answers.into_iter().zip(receipts) {
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
                for answer in answers.into_iter().flatten() {
                    answer.send(Err(AuditError::Write(Arc::clone(&error)))).ok();
                }
            }
        }
        close
    }

    /// Goes on in the next file when this one is large enough. When that fails it goes on in this one, which is only large.
    fn next_file_if_full(&mut self) {
        if self.length < self.disk.largest() {
            return;
        }
        let rotated = Box::new(self.own.record(Action("log.rotate")));
        let turned = self
            .append(&[rotated])
            .and_then(|_| self.disk.next_file(self.head.seq));
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
        for entry in entries {
            let mut value = serde_json::to_value(entry)?;
            tame(&mut value);
            value["seq"] = (head.seq + 1).into();
            value["prev"] = head.hash.as_str().into();
            let line = canonical(&value)
                .ok_or_else(|| io::Error::other("a value is outside the range of the record"))?;
            head = Head::after(head.seq + 1, line.as_bytes());
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
        Ok(receipts)
    }
}
