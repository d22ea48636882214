//! Decides what a security-relevant act leaves behind: one record, written and flushed before the act is answered.
//! Trusts its callers to begin before they decide; never lets a record be lost silently: unfinished ones say "aborted".
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use mesh_runtime::{audit::{Action, Actor, AuditLog, Object, Outcome}, clock::Clock};
//! # let dir = std::env::temp_dir().join(format!("audit-doc-{}", std::process::id()));
//! let log = AuditLog::open(&dir, "ca-server", &Clock::system()).unwrap();
//! let mut record = log.begin(Action("svid.issue"), Actor::agent("spiffe://dev.test/spire/agent/x"));
//! record.object(Object::new("entry").id("web").serial("41:9c"));
//! let receipt = record.finish(Outcome::Success, None).await;   // an error means: refuse the act
//! assert_eq!(receipt.unwrap().seq, 2);                         // seq 1 is log.start
//! log.close().await.unwrap();                                  // writes log.stop
//! mesh_runtime::audit::verify(&[dir.join("audit.jsonl")]).unwrap();
//! # std::fs::remove_dir_all(dir).unwrap(); }
//! ```
//!
//! A file is a hash chain: `prev` of each line is the SHA-256 of the line before it, so an edit, removal or reordering
//! in the middle shows. A log that is opened with [`AuditLog::open_signed`] is a Merkle tree besides, whose root is signed again
//! and again by a key of its own: who has not got the key cannot rewrite what was signed. See [`Ledger`] for reading it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use crate::clock::Clock;
use crate::errors::{Coded, ErrorChain};
use crate::metrics::Metrics;
use crate::telemetry::traces;

mod canonical;
mod checkpoint;
mod content;
mod disk;
mod export;
mod ledger;
pub mod merkle;
mod note;
mod proof;
mod sealer;
mod seals;
mod verify;
mod writer;

pub use checkpoint::{BadCheckpoint, Checkpoint};
pub use content::{Action, Actor, Decision, Object, Origin, Outcome};
pub use disk::Memory;
pub use export::{ExportError, Exported, Period};
pub use ledger::{Ledger, LedgerError, Wanted};
pub use note::{KeyError, PublicKey};
pub use proof::{Proof, ProofError};
pub use sealer::{CHECKPOINTS_FILE, KEY_FILE, PUBLIC_KEY_FILE};
pub use seals::{Sealed, Seals};
pub use verify::{
    BadRecord, Expect, Flaw, Head, Start, Torn, Verified, VerifyError, verify, verify_against,
};

use content::{Entry, Trace, rfc3339};
use disk::{FileDisk, Opened};
use writer::Command;

/// The name of the file in the log's directory.
pub const FILE_NAME: &str = "audit.jsonl";

/// The size at which a file is closed and the next one begun.
const LARGEST_FILE: u64 = 64 * 1024 * 1024;

/// Records that may wait for the writer; beyond it, callers wait.
const QUEUE: usize = 1024;

/// What the log records about itself.
#[derive(Clone, Debug)]
struct OwnRecords {
    program: String,
    clock: Clock,
}

impl OwnRecords {
    fn record(&self, action: Action) -> Entry {
        let mut entry = Entry::new(&self.clock, action, Actor::system(self.program.as_str()));
        (entry.outcome, entry.code) = (Outcome::Success, None);
        entry.object = Some(Object::new("log").name(FILE_NAME));
        entry
    }
}

/// Where a record stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its id, for people.
    pub id: String,
    /// Its number in the log.
    pub seq: u64,
}

/// Why a record is not in the log, or the log not open.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// The directory or file cannot be opened.
    #[error("cannot open the audit log in {}", .0.display())]
    Open(PathBuf, #[source] Arc<std::io::Error>),
    /// Another process writes there.
    #[error("the audit log in {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// What is already there has been changed; nothing is appended to it.
    #[error("the audit log in {} has been changed", .0.display())]
    Damaged(PathBuf, #[source] Arc<BadRecord>),
    /// What is already there is not what was signed; nothing is appended to it.
    #[error("the audit log in {} is not what was signed", .0.display())]
    Checkpoint(PathBuf, #[source] Arc<BadCheckpoint>),
    /// The key that signs checkpoints cannot be used.
    #[error("the key of the audit log, {}, cannot be used", .0.display())]
    Key(PathBuf, #[source] Arc<KeyError>),
    /// The log has no key.
    #[error("the audit log is not signed")]
    NotSigned,
    /// The record could not be made durable.
    #[error("the audit record could not be written")]
    Write(#[source] Arc<std::io::Error>),
    /// The log has been closed.
    #[error("the audit log is closed")]
    Closed,
}

impl Coded for AuditError {
    fn code(&self) -> &'static str {
        match self {
            Self::Open(..) => "FNL0201",
            Self::InUse(_) => "FNL0202",
            Self::Damaged(..) => "FNL0203",
            Self::Checkpoint(_, bad) => bad.code(),
            Self::Key(_, error) => error.code(),
            Self::NotSigned => "FNL0213",
            Self::Write(_) => "FNL0204",
            Self::Closed => "FNL0205",
        }
    }
}

/// An open audit log. Cheap to clone; the file is closed when the last clone is gone or by [`AuditLog::close`].
#[derive(Clone, Debug)]
pub struct AuditLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    queue: mpsc::Sender<Command>,
    /// Aborted records that met a full queue: a drop cannot wait, and may not lose its record.
    overflow: Arc<Mutex<VecDeque<Command>>>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    written: AtomicU64,
    failed: AtomicU64,
    /// The number of the last record, which is the size of the tree.
    records: AtomicU64,
    /// How many of them the newest checkpoint covers, and when it was signed, in seconds since 1970.
    covered: AtomicU64,
    signed_at: AtomicU64,
    /// Checkpoints that could not be written.
    unsigned: AtomicU64,
    /// Whether the file was, when it was last looked at, the one that was written.
    intact: AtomicBool,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            written: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            records: AtomicU64::new(0),
            covered: AtomicU64::new(0),
            signed_at: AtomicU64::new(0),
            unsigned: AtomicU64::new(0),
            intact: AtomicBool::new(true),
        }
    }
}

impl Counts {
    fn signed(&self, size: u64, clock: &Clock) {
        if self.covered.swap(size, Ordering::Relaxed) != size {
            let since_1970 = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.signed_at
                .store(since_1970.as_secs(), Ordering::Relaxed);
        }
    }
}

impl AuditLog {
    /// Opens or continues the log in `dir`, which is made if it is not there. Blocks: call it while starting.
    /// A torn last line (power loss) is moved aside and reported in the `log.start` record. At 64 MiB the file is closed
    /// with a `log.rotate` record and renamed to `audit-<number of its last record>.jsonl`; see [`files`].
    ///
    /// # Errors
    /// When the directory cannot be written, another process writes there, or the log has been changed.
    pub fn open(dir: &Path, program: &str, clock: &Clock) -> Result<Self, AuditError> {
        Self::open_with(dir, program, clock, LARGEST_FILE, None)
    }

    /// As [`AuditLog::open`], and the records' tree is signed: when the log is opened and closed, after each 1000 records,
    /// and by [`AuditLog::checkpoint`]. The key lies beside the log, mode 0600; it is made, under the name `origin`, where
    /// none ever signed. At 64 MiB the list of checkpoints is closed with the file, which leaves `audit-<number>.tree` behind.
    ///
    /// # Errors
    /// Those of [`AuditLog::open`]; when the key cannot be used; when the records are not those that were signed.
    pub fn open_signed(
        dir: &Path,
        program: &str,
        clock: &Clock,
        origin: &str,
    ) -> Result<Self, AuditError> {
        Self::open_with(dir, program, clock, LARGEST_FILE, Some(origin))
    }

    fn open_with(
        dir: &Path,
        program: &str,
        clock: &Clock,
        largest_file: u64,
        origin: Option<&str>,
    ) -> Result<Self, AuditError> {
        let opened = FileDisk::open(dir, largest_file, origin)?;
        Self::start(opened, program, clock)
            .map_err(|cause| AuditError::Open(dir.to_owned(), Arc::new(cause)))
    }

    /// A log in memory, written by the same thread in the same form: for tests, which can also make it fail.
    pub fn memory(program: &str, clock: &Clock) -> (Self, Memory) {
        let memory = Memory::default();
        let opened = Opened {
            disk: Box::new(memory.clone()),
            head: Head::genesis(),
            torn: None,
            sealer: None,
        };
        let log = Self::start(opened, program, clock);
        (
            log.expect("memory takes everything until told otherwise"),
            memory,
        )
    }

    fn start(mut opened: Opened, program: &str, clock: &Clock) -> std::io::Result<Self> {
        let (queue, commands) = mpsc::channel(QUEUE);
        let overflow = Arc::new(Mutex::new(VecDeque::new()));
        let counts = Arc::new(Counts::default());
        let own = OwnRecords {
            program: program.to_owned(),
            clock: clock.clone(),
        };
        let mut started = own.record(Action("log.start"));
        started.decision = opened.torn.take().map(|torn| {
            let reason = format!("a torn last line of {} bytes was moved aside", torn.bytes);
            Decision::default().reason(reason)
        });
        writer::start(
            opened,
            started,
            own,
            commands,
            Arc::clone(&overflow),
            Arc::clone(&counts),
        )?;
        Ok(Self {
            shared: Arc::new(Shared {
                clock: clock.clone(),
                queue,
                overflow,
                counts,
            }),
        })
    }

    /// Begins the record of an act, before it is decided.
    pub fn begin(&self, action: Action, actor: Actor) -> Record {
        let mut record = Record {
            entry: Some(Box::new(Entry::new(&self.shared.clock, action, actor))),
            log: self.clone(),
        };
        if let Some((trace, span)) = traces::current() {
            record.trace(trace, span);
        }
        record
    }

    /// Writes `log.stop` after everything before it and closes the file. Later records are refused.
    ///
    /// # Errors
    /// When the last records cannot be written.
    pub async fn close(&self) -> Result<(), AuditError> {
        let (done, closed) = oneshot::channel();
        self.shared
            .queue
            .send(Command::Close(done))
            .await
            .map_err(|_| AuditError::Closed)?;
        closed.await.map_err(|_| AuditError::Closed)?
    }

    /// Signs what has come since the last checkpoint, waits until that is durable, and tells the newest one. Whoever keeps it
    /// elsewhere can prove later that nothing before it was changed.
    ///
    /// # Errors
    /// When it cannot be written, or the log has no key.
    pub async fn checkpoint(&self) -> Result<Checkpoint, AuditError> {
        let (done, sealed) = oneshot::channel();
        self.shared
            .queue
            .send(Command::Seal(done))
            .await
            .map_err(|_| AuditError::Closed)?;
        sealed.await.map_err(|_| AuditError::Closed)?
    }

    /// Registers `<prefix>_audit_tree_size`, `<prefix>_audit_unsigned_records`, `<prefix>_audit_last_checkpoint_timestamp_seconds`,
    /// `<prefix>_audit_checkpoint_failures_total` and `<prefix>_audit_chain_intact`, for a log that is signed.
    pub fn register_checkpoints(&self, metrics: &Metrics, prefix: &str) {
        type Read = fn(&Counts) -> u64;
        let gauges: [(&str, &str, Read); 4] = [
            ("tree_size", "Records in the audit log's tree", |counts| {
                counts.records.load(Ordering::Relaxed)
            }),
            (
                "unsigned_records",
                "Audit records that no checkpoint covers yet",
                |counts| {
                    let covered = counts.covered.load(Ordering::Relaxed);
                    counts
                        .records
                        .load(Ordering::Relaxed)
                        .saturating_sub(covered)
                },
            ),
            (
                "last_checkpoint_timestamp_seconds",
                "When the newest checkpoint was signed",
                |counts| counts.signed_at.load(Ordering::Relaxed),
            ),
            (
                "chain_intact",
                "1 while the audit log is the file that was written; 0 once it was not",
                |counts| counts.intact.load(Ordering::Relaxed).into(),
            ),
        ];
        for (name, help, read) in gauges {
            let counts = Arc::clone(&self.shared.counts);
            metrics.register_gauge(&format!("{prefix}_audit_{name}"), help, move || {
                read(&counts)
            });
        }
        let counts = Arc::clone(&self.shared.counts);
        metrics.register_counts(
            &format!("{prefix}_audit_checkpoint_failures"),
            "Checkpoints of the audit log that could not be written",
            move || counts.unsigned.load(Ordering::Relaxed),
        );
    }

    /// Registers `<prefix>_audit_records_total` and `<prefix>_audit_write_failures_total`.
    pub fn register(&self, metrics: &Metrics, prefix: &str) {
        metrics.register_counts(
            &format!("{prefix}_audit_records"),
            "Audit records written",
            {
                let counts = Arc::clone(&self.shared.counts);
                move || counts.written.load(Ordering::Relaxed)
            },
        );
        metrics.register_counts(
            &format!("{prefix}_audit_write_failures"),
            "Audit records that could not be written",
            {
                let counts = Arc::clone(&self.shared.counts);
                move || counts.failed.load(Ordering::Relaxed)
            },
        );
    }

    /// Records that could not be written so far.
    pub fn write_failures(&self) -> u64 {
        self.shared.counts.failed.load(Ordering::Relaxed)
    }

    /// Hands a record over without waiting.
    fn send_now(&self, entry: Box<Entry>) {
        let command = Command::Record(entry, None);
        match self.shared.queue.try_send(command) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(command)) => {
                self.shared
                    .overflow
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_back(command);
                // The writer may have emptied the queue in between and sleep; if it is full again, it is awake.
                self.shared.queue.try_send(Command::Wake).ok();
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.shared.counts.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(error = %AuditError::Closed, "an audit record came after the log was closed");
            }
        }
    }
}

/// A record that has begun. Dropped without [`Record::finish`] (an early return, a cancelled call, a panic) it is
/// written as a failure with the code `aborted`.
#[derive(Debug)]
#[must_use = "finish it, or it says \"aborted\""]
pub struct Record {
    entry: Option<Box<Entry>>,
    log: AuditLog,
}

impl Record {
    fn with(&mut self, change: impl FnOnce(&mut Entry)) -> &mut Self {
        if let Some(entry) = &mut self.entry {
            change(entry);
        }
        self
    }

    /// The id that the record will have, for the answer and the log.
    pub fn id(&self) -> &str {
        self.entry.as_ref().map_or("", |entry| entry.id.as_str())
    }

    /// Says who acted, when that is known only after the record began.
    pub fn actor(&mut self, actor: Actor) -> &mut Self {
        self.with(|entry| entry.actor = actor)
    }

    /// Says where the call came from.
    pub fn origin(&mut self, origin: Origin) -> &mut Self {
        self.with(|entry| entry.origin = Some(origin))
    }

    /// Says what is acted on.
    pub fn object(&mut self, object: Object) -> &mut Self {
        self.with(|entry| entry.object = Some(object))
    }

    /// Says why it was decided so.
    pub fn decision(&mut self, decision: Decision) -> &mut Self {
        self.with(|entry| entry.decision = Some(decision))
    }

    /// Ties the record to a trace; one that is begun within a span of a trace is tied to that.
    pub fn trace(&mut self, trace_id: impl Into<String>, span_id: impl Into<String>) -> &mut Self {
        self.with(|entry| {
            entry.trace = Some(Trace {
                trace_id: trace_id.into(),
                span_id: span_id.into(),
            })
        })
    }

    /// Ties the record to a request.
    pub fn request_id(&mut self, id: impl Into<String>) -> &mut Self {
        self.with(|entry| entry.request_id = Some(id.into()))
    }

    /// Ties the record to that of a batch.
    pub fn parent_id(&mut self, id: impl Into<String>) -> &mut Self {
        self.with(|entry| entry.parent_id = Some(id.into()))
    }

    /// Writes the record and waits until it is durable. On an error the caller must refuse what it was about to do.
    /// When this call is cancelled before the record is handed over, the record says "aborted".
    ///
    /// # Errors
    /// When the record cannot be made durable.
    pub async fn finish(
        mut self,
        outcome: Outcome,
        code: Option<&'static str>,
    ) -> Result<Receipt, AuditError> {
        let log = self.log.clone();
        let Ok(place) = log.shared.queue.reserve().await else {
            // Nobody takes records any more; drop has nothing to add but the count.
            return Err(AuditError::Closed);
        };
        let Some(mut entry) = self.entry.take() else {
            return Err(AuditError::Closed);
        };
        (entry.outcome, entry.code, entry.time) = (outcome, code, log.shared.clock.now());
        let (done, written) = oneshot::channel();
        let appended = crate::span!("audit append", finial.audit.id = %entry.id);
        place.send(Command::Record(entry, Some(done)));
        let written = written.instrument(appended).await;
        written.map_err(|_| AuditError::Closed)?
    }

    /// Hands the record over without waiting until it is durable: for denials on a hot path, where nothing is granted.
    pub fn finish_later(mut self, outcome: Outcome, code: Option<&'static str>) {
        if let Some(mut entry) = self.entry.take() {
            (entry.outcome, entry.code, entry.time) = (outcome, code, self.log.shared.clock.now());
            self.log.send_now(entry);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(mut entry) = self.entry.take() {
            entry.time = self.log.shared.clock.now();
            self.log.send_now(entry);
        }
    }
}

/// The files of the log in `dir` in the order in which they continue each other.
///
/// # Errors
/// When the directory cannot be read.
pub fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = disk::closed_files(dir)?;
    let current = dir.join(FILE_NAME);
    if current.exists() {
        files.push(current);
    }
    Ok(files)
}

/// The number in the name of a closed file: that of its last record.
fn closed_number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let number = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    let digits = number.len() == 20 && number.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| number.parse().ok())?
}

fn report_write_failure(error: &std::io::Error) {
    tracing::error!(error = %ErrorChain(error), "audit records could not be written");
}

#[cfg(test)]
mod tests;
