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
//! in the middle shows. Its owner can still rewrite the whole end; only somebody else who keeps the head can tell that.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::errors::{Coded, ErrorChain};
use crate::metrics::Metrics;

mod canonical;
mod verify;
mod writer;

pub use verify::{
    BadRecord, Expect, Flaw, Head, Start, Torn, Verified, VerifyError, verify, verify_against,
};
pub use writer::Memory;

use writer::{Command, Disk, FileDisk};

/// The name of the file in the log's directory.
pub const FILE_NAME: &str = "audit.jsonl";

/// The size at which a file is closed and the next one begun.
const LARGEST_FILE: u64 = 64 * 1024 * 1024;

/// Records that may wait for the writer; beyond it, callers wait.
const QUEUE: usize = 1024;

/// A stable dotted verb: `svid.issue`, `entry.create`, `authz.deny`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Action(pub &'static str);

/// How an act ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Success,
    /// It was allowed and could not be done.
    Failure,
    /// It was not allowed.
    Denied,
}

/// Who acted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Actor {
    /// `user`, `workload`, `agent` or `system`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The SPIFFE ID when there is one.
    pub id: String,
    /// `oidc`, `mtls`, `uds`, `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authn: Option<&'static str>,
    /// Whether a second factor was shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfa: Option<bool>,
    /// A session's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// User id by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Process id by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Path of the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
}

impl Actor {
    /// A person.
    pub fn user(id: impl Into<String>) -> Self {
        Self {
            kind: "user",
            id: id.into(),
            ..Self::default()
        }
    }

    /// A workload.
    pub fn workload(id: impl Into<String>) -> Self {
        Self {
            kind: "workload",
            id: id.into(),
            ..Self::default()
        }
    }

    /// An agent.
    pub fn agent(id: impl Into<String>) -> Self {
        Self {
            kind: "agent",
            id: id.into(),
            ..Self::default()
        }
    }

    /// The program itself, or a task of it.
    pub fn system(id: impl Into<String>) -> Self {
        Self {
            kind: "system",
            id: id.into(),
            ..Self::default()
        }
    }

    /// How it proved itself.
    #[must_use]
    pub fn authn(mut self, how: &'static str) -> Self {
        self.authn = Some(how);
        self
    }

    /// What the kernel says about a local caller.
    #[must_use]
    pub fn process(mut self, uid: u32, pid: Option<i32>) -> Self {
        (self.uid, self.pid) = (Some(uid), pid);
        self
    }

    /// The executable of a local caller.
    #[must_use]
    pub fn exe(mut self, path: impl Into<String>) -> Self {
        self.exe = Some(path.into());
        self
    }
}

macro_rules! text_fields {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Serialize)]
        pub struct $name {
            $($(#[$field_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<String>,)*
        }

        impl $name {
            $($(#[$field_doc])* #[must_use] pub fn $field(mut self, value: impl Into<String>) -> Self {
                self.$field = Some(value.into());
                self
            })*
        }
    };
}

text_fields! {
    /// Where the call came from.
    Origin {
        /// Address of the peer.
        ip,
        /// Port of the peer.
        port,
        /// Node it came through.
        node,
        /// Unix socket it came to.
        socket,
        /// Program that passed it on.
        via,
    }
}

impl Origin {
    /// A peer on the network.
    pub fn tcp(peer: SocketAddr) -> Self {
        Self::default()
            .ip(peer.ip().to_canonical().to_string())
            .port(peer.port().to_string())
    }

    /// A caller at a local socket.
    pub fn unix(socket: impl AsRef<Path>) -> Self {
        Self::default().socket(socket.as_ref().display().to_string())
    }
}

text_fields! {
    /// What was acted on.
    Object {
        /// Kind: `entry`, `svid`, `bundle`, `agent`, `token`, `policy`, `config`.
        kind,
        /// Name, or SPIFFE ID.
        name,
        /// Kubernetes namespace.
        namespace,
        /// Id.
        id,
        /// Serial number of a certificate.
        serial,
        /// Hash of the object before.
        before,
        /// Hash of the object after.
        after,
    }
}

impl Object {
    /// An object of a kind.
    pub fn new(kind: impl Into<String>) -> Self {
        Self::default().kind(kind)
    }
}

text_fields! {
    /// Why it was decided so.
    Decision {
        /// `allow` or `deny`.
        effect,
        /// Policy's name.
        policy,
        /// Policy's revision.
        policy_rev,
        /// Rule in the policy.
        rule,
        /// The reason in words.
        reason,
        /// `enforce`, `shadow`, `permissive`.
        mode,
        /// Digest of what was decided on.
        inputs_digest,
    }
}

impl Decision {
    /// It was allowed.
    pub fn allow() -> Self {
        Self::default().effect("allow")
    }

    /// It was denied, and why.
    pub fn deny(reason: impl Into<String>) -> Self {
        Self::default().effect("deny").reason(reason)
    }
}

/// A record's content, before its place in the chain is known.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    v: u32,
    id: String,
    #[serde(serialize_with = "as_rfc3339")]
    time: SystemTime,
    actor: Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<Object>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Trace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Trace {
    trace_id: String,
    span_id: String,
}

impl Entry {
    fn new(clock: &Clock, action: Action, actor: Actor) -> Self {
        Self {
            v: 1,
            id: crate::ids::ulid(clock),
            time: clock.now(),
            actor,
            origin: None,
            action: action.0,
            object: None,
            // Failure until somebody says otherwise (architecture B10, C12).
            outcome: Outcome::Failure,
            code: Some("aborted"),
            decision: None,
            trace: None,
            request_id: None,
            parent_id: None,
        }
    }
}

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

fn as_rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let t = time::OffsetDateTime::from(*time);
    serializer.collect_str(&format_args!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.microsecond()
    ))
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

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    failed: AtomicU64,
}

impl AuditLog {
    /// Opens or continues the log in `dir`, which is made if it is not there. Blocks: call it while starting.
    /// A torn last line (power loss) is moved aside and reported in the `log.start` record. At 64 MiB the file is closed
    /// with a `log.rotate` record and renamed to `audit-<number of its last record>.jsonl`; see [`files`].
    ///
    /// # Errors
    /// When the directory cannot be written, another process writes there, or the log has been changed.
    pub fn open(dir: &Path, program: &str, clock: &Clock) -> Result<Self, AuditError> {
        Self::open_with(dir, program, clock, LARGEST_FILE)
    }

    fn open_with(
        dir: &Path,
        program: &str,
        clock: &Clock,
        largest_file: u64,
    ) -> Result<Self, AuditError> {
        let opened = FileDisk::open(dir, largest_file)?;
        Self::start(
            Box::new(opened.disk),
            opened.head,
            opened.torn,
            program,
            clock,
        )
        .map_err(|cause| AuditError::Open(dir.to_owned(), Arc::new(cause)))
    }

    /// A log in memory, written by the same thread in the same form: for tests, which can also make it fail.
    pub fn memory(program: &str, clock: &Clock) -> (Self, Memory) {
        let memory = Memory::default();
        let log = Self::start(
            Box::new(memory.clone()),
            Head::genesis(),
            None,
            program,
            clock,
        );
        (
            log.expect("memory takes everything until told otherwise"),
            memory,
        )
    }

    fn start(
        disk: Box<dyn Disk>,
        head: Head,
        torn: Option<Torn>,
        program: &str,
        clock: &Clock,
    ) -> std::io::Result<Self> {
        let (queue, commands) = mpsc::channel(QUEUE);
        let overflow = Arc::new(Mutex::new(VecDeque::new()));
        let counts = Arc::new(Counts::default());
        let own = OwnRecords {
            program: program.to_owned(),
            clock: clock.clone(),
        };
        let mut started = own.record(Action("log.start"));
        started.decision = torn.map(|torn| {
            let reason = format!("a torn last line of {} bytes was moved aside", torn.bytes);
            Decision::default().reason(reason)
        });
        writer::start(
            disk,
            head,
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
        Record {
            entry: Some(Box::new(Entry::new(&self.shared.clock, action, actor))),
            log: self.clone(),
        }
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

    /// Ties the record to a trace.
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
        place.send(Command::Record(entry, Some(done)));
        written.await.map_err(|_| AuditError::Closed)?
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
    let mut files = writer::closed_files(dir)?;
    let current = dir.join(FILE_NAME);
    if current.exists() {
        files.push(current);
    }
    Ok(files)
}

fn report_write_failure(error: &std::io::Error) {
    tracing::error!(error = %ErrorChain(error), "audit records could not be written");
}

#[cfg(test)]
mod tests;
