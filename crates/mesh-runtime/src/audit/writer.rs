//! Decides when a record is durable: one thread takes what has gathered, writes it, flushes once, then tells the callers.
//! Trusts the disk only after its flush; after a failed write the file is cut back, so that no half record stays.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::errors::ErrorChain;

use super::canonical::{canonical, tame};
use super::checkpoint::Checkpoint;
use super::disk::{Disk, Opened};
use super::merkle::leaf;
use super::sealer::Sealer;
use super::verify::Head;
use super::{Action, AuditError, Counts, Entry, OwnRecords, Receipt, report_write_failure};

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
