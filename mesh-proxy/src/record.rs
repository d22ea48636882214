//! What is remembered of each request and connection: one access-log line, and an audit record for what is security-relevant.
//! Trusts nothing that comes from outside to be printable: it is escaped and cut to a length.
//! Never makes traffic wait for a disk: lines and records go through bounded buffers, and what does not fit is counted.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_runtime::audit::{Action, Actor, AuditLog, Decision, Object, Origin, Outcome};
use mesh_runtime::tasks::Stop;
use tokio::sync::mpsc;

use crate::decide::{Aside, Decided, DecisionId, DecisionIds, Denied, effect_label, reason_label};
use crate::explanations::Explanations;
use crate::metrics::ProxyMetrics;

/// Access-log bytes that may wait for the disk.
const MOST_WAITING: usize = 4 * 1024 * 1024;
/// The longest time that a line waits for others before it is written.
const GATHER: Duration = Duration::from_millis(20);
/// Audit records that may wait.
const MOST_RECORDS: usize = 4096;
/// Longest piece of outside text in a line.
const LONGEST_TEXT: usize = 512;
/// Pairs of caller and policy whose first request of the minute is remembered.
const MOST_PAIRS: usize = 4096;

/// How a caller without identity is named; no SPIFFE ID is.
pub(crate) const ANONYMOUS: &str = "unknown";

/// Writes records. Clones are handles.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lines: Option<Arc<Lines>>,
    audit: Option<mpsc::Sender<Event>>,
    metrics: ProxyMetrics,
    ids: DecisionIds,
    allowed: Mutex<HashMap<Pair, Allowed>>,
    explanations: Explanations,
}

/// A caller and the policy that allowed him.
type Pair = (Arc<str>, Arc<str>);

/// How often a caller was allowed by a policy in this minute.
#[derive(Debug)]
struct Allowed {
    minute: u64,
    count: u64,
}

/// Where access-log lines wait.
#[derive(Debug, Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    closed: bool,
}

/// An audit record on its way.
#[derive(Debug)]
struct Event {
    action: Action,
    actor: Actor,
    origin: Option<Origin>,
    object: Object,
    decision: Option<Decision>,
    outcome: Outcome,
    code: Option<&'static str>,
}

/// What the two records of one decision have in common.
pub(crate) struct Judged<'a> {
    pub(crate) id: DecisionId,
    pub(crate) source: &'a Arc<str>,
    pub(crate) peer: SocketAddr,
    pub(crate) decided: &'a Decided,
    /// What was asked for: `GET /path` or `tcp 5432`.
    pub(crate) asked: &'a dyn std::fmt::Display,
}

impl Recorder {
    /// With a place for lines (`None`: no access log) and a log for records. The writers run until the returned parts end.
    pub(crate) fn new(
        out: Option<Box<dyn std::io::Write + Send>>,
        audit: Option<AuditLog>,
        metrics: ProxyMetrics,
    ) -> std::io::Result<(Self, AccessWriter, Option<AuditWriter>)> {
        let lines = out.is_some().then(Arc::<Lines>::default);
        let thread = match (out, &lines) {
            (Some(out), Some(lines)) => {
                let lines = Arc::clone(lines);
                Some(
                    std::thread::Builder::new()
                        .name("access-log".to_owned())
                        .spawn(move || write_lines(&lines, out))?,
                )
            }
            _ => None,
        };
        let (sender, writer) = match audit {
            Some(log) => {
                let (sender, events) = mpsc::channel(MOST_RECORDS);
                (
                    Some(sender),
                    Some(AuditWriter {
                        log,
                        events,
                        metrics: metrics.clone(),
                    }),
                )
            }
            None => (None, None),
        };
        let access = AccessWriter {
            lines: lines.clone(),
            thread,
        };
        let inner = Inner {
            lines,
            audit: sender,
            metrics,
            ids: DecisionIds::new(),
            allowed: Mutex::new(HashMap::new()),
            explanations: Explanations::default(),
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            access,
            writer,
        ))
    }

    pub(crate) fn next_id(&self, now: SystemTime) -> DecisionId {
        self.inner.ids.next(now)
    }

    /// Whether lines are wanted, so that nobody composes one for nothing.
    pub(crate) fn wants_lines(&self) -> bool {
        self.inner.lines.is_some()
    }

    /// Adds one line. `compose` writes it, without line feed, straight into the buffer.
    pub(crate) fn line(&self, compose: impl FnOnce(&mut Line<'_>)) {
        let Some(lines) = &self.inner.lines else {
            return;
        };
        let mut waiting = lines.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.bytes.len() > MOST_WAITING {
            drop(waiting);
            self.inner.metrics.record_lost("access");
            return;
        }
        let was_empty = waiting.bytes.is_empty();
        waiting.bytes.push(b'{');
        let mut line = Line {
            bytes: &mut waiting.bytes,
            first: true,
        };
        compose(&mut line);
        waiting.bytes.extend_from_slice(b"}\n");
        drop(waiting);
        if was_empty {
            lines.arrived.notify_one();
        }
    }

    /// The last denials, with the rules that came nearest.
    pub(crate) fn explanations(&self) -> &Explanations {
        &self.inner.explanations
    }

    /// An audit record for what an AUDIT policy wants recorded.
    pub(crate) fn aside(&self, judged: &Judged<'_>) {
        let Some((policy, rule)) = judged
            .decided
            .aside
            .as_deref()
            .and_then(|aside| aside.audit.as_ref())
        else {
            return;
        };
        let mut decision = describe(judged.decided, Decision::allow());
        decision.policy = Some(policy.to_string());
        decision.rule = Some(rule.to_string());
        decision.mode = Some("audit".to_owned());
        decision.effect = Some(match judged.decided.reason {
            mesh_policy::Reason::AllowRule => "allow".to_owned(),
            _ => "deny".to_owned(),
        });
        self.send(Event {
            action: Action("authz.audit"),
            actor: workload(judged.source),
            origin: Some(Origin::tcp(judged.peer)),
            object: Object::new("request")
                .id(judged.id.to_string())
                .name(short(judged.asked)),
            decision: Some(decision),
            outcome: Outcome::Success,
            code: None,
        });
    }

    /// An audit record for a denial, and its explanation for whoever asks by its number.
    pub(crate) fn denied(
        &self,
        judged: &Judged<'_>,
        code: &'static str,
        denied: &Denied,
        now: SystemTime,
    ) {
        self.aside(judged);
        self.inner
            .explanations
            .keep(judged, &short(judged.asked), code, denied, now);
        let mut decision = describe(judged.decided, Decision::deny(&denied.why));
        decision.effect = Some("deny".to_owned());
        self.send(Event {
            action: Action("authz.deny"),
            actor: workload(judged.source),
            origin: Some(Origin::tcp(judged.peer)),
            object: Object::new("request")
                .id(judged.id.to_string())
                .name(short(judged.asked)),
            decision: Some(decision),
            outcome: Outcome::Denied,
            code: Some(code),
        });
    }

    /// An audit record for the first request of a minute that a policy allowed a caller, with the number of the minute before.
    pub(crate) fn allowed(&self, judged: &Judged<'_>, now: SystemTime) {
        let (Some(policy), Some(_)) = (&judged.decided.policy, &self.inner.audit) else {
            return;
        };
        let minute = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
            / 60;
        let before = {
            let mut pairs = self
                .inner
                .allowed
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if pairs.len() >= MOST_PAIRS {
                pairs.retain(|_, seen| seen.minute == minute);
            }
            if pairs.len() >= MOST_PAIRS {
                drop(pairs);
                self.inner.metrics.record_lost("audit");
                return;
            }
            let seen = pairs
                .entry((Arc::clone(judged.source), Arc::clone(policy)))
                .or_insert(Allowed {
                    minute: 0,
                    count: 0,
                });
            if seen.minute == minute {
                seen.count += 1;
                return;
            }
            let before = seen.count;
            *seen = Allowed { minute, count: 1 };
            before
        };
        let mut decision = describe(judged.decided, Decision::allow());
        decision.reason = (before > 0)
            .then(|| format!("first of this minute; {before} in the minute it was last seen"));
        self.send(Event {
            action: Action("authz.allow"),
            actor: workload(judged.source),
            origin: Some(Origin::tcp(judged.peer)),
            object: Object::new("request")
                .id(judged.id.to_string())
                .name(short(judged.asked)),
            decision: Some(decision),
            outcome: Outcome::Success,
            code: None,
        });
    }

    /// An audit record for a connection that was ended although its peer wanted to go on.
    pub(crate) fn cut(&self, source: &Arc<str>, peer: SocketAddr, code: &'static str, why: &str) {
        self.send(Event {
            action: Action("connection.cut"),
            actor: workload(source),
            origin: Some(Origin::tcp(peer)),
            object: Object::new("connection"),
            decision: Some(Decision::deny(why)),
            outcome: Outcome::Denied,
            code: Some(code),
        });
    }

    pub(crate) fn policy_applied(&self, file: &Path, before: &str, after: &str) {
        self.policy_event(
            file,
            Some(before),
            Some(after),
            Outcome::Success,
            None,
            None,
        );
    }

    pub(crate) fn policy_refused(
        &self,
        file: &Path,
        in_force: &str,
        code: &'static str,
        why: &str,
    ) {
        self.policy_event(
            file,
            Some(in_force),
            None,
            Outcome::Failure,
            Some(code),
            Some(why),
        );
    }

    fn policy_event(
        &self,
        file: &Path,
        before: Option<&str>,
        after: Option<&str>,
        outcome: Outcome,
        code: Option<&'static str>,
        why: Option<&str>,
    ) {
        let mut object = Object::new("policy").name(short(&file.display()));
        object.before = before.map(str::to_owned);
        object.after = after.map(str::to_owned);
        self.send(Event {
            action: Action("policy.apply"),
            actor: Actor::system("mesh-proxy"),
            origin: None,
            object,
            decision: why.map(|why| Decision::default().reason(short(&why))),
            outcome,
            code,
        });
    }

    fn send(&self, event: Event) {
        if let Some(audit) = &self.inner.audit
            && audit.try_send(event).is_err()
        {
            self.inner.metrics.record_lost("audit");
        }
    }
}

/// Who asked, as an audit record says it.
fn workload(source: &str) -> Actor {
    let authn = if source == ANONYMOUS { "none" } else { "mtls" };
    Actor::workload(source.to_owned()).authn(authn)
}

fn describe(decided: &Decided, mut decision: Decision) -> Decision {
    decision.policy = decided.policy.as_deref().map(str::to_owned);
    decision.rule = decided.rule.as_deref().map(str::to_owned);
    decision.policy_rev = Some(decided.revision.to_string());
    decision.mode = Some("enforce".to_owned());
    if decision.reason.is_none() {
        decision.reason = Some(reason_label(decided.reason).to_owned());
    }
    decision
}

fn short(text: &dyn std::fmt::Display) -> String {
    text.to_string().chars().take(LONGEST_TEXT).collect()
}

/// One JSON object that is being written. Keys are ours and need no escape; values may come from anyone.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    bytes: &'a mut Vec<u8>,
    first: bool,
}

impl Line<'_> {
    fn key(&mut self, key: &str) {
        if !self.first {
            self.bytes.push(b',');
        }
        self.first = false;
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.extend_from_slice(b"\":");
    }

    /// Text, escaped and cut.
    pub(crate) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        self.bytes.push(b'"');
        let mut cut = value.len().min(LONGEST_TEXT);
        while !value.is_char_boundary(cut) {
            cut -= 1;
        }
        let value = &value[..cut];
        if value
            .bytes()
            .all(|b| (0x20..0x7f).contains(&b) && b != b'"' && b != b'\\')
        {
            self.bytes.extend_from_slice(value.as_bytes());
        } else {
            let mut escaped = String::with_capacity(value.len() + 16);
            for c in value.chars() {
                match c {
                    '"' => escaped.push_str("\\\""),
                    '\\' => escaped.push_str("\\\\"),
                    ' '..='~' => escaped.push(c),
                    // Everything else as \u: no terminal and no log viewer finds a control sequence in it.
                    _ => {
                        for unit in c.encode_utf16(&mut [0; 2]) {
                            let _infallible = write!(escaped, "\\u{unit:04x}");
                        }
                    }
                }
            }
            self.bytes.extend_from_slice(escaped.as_bytes());
        }
        self.bytes.push(b'"');
    }

    /// What the policies say that do not decide.
    pub(crate) fn aside(&mut self, aside: Option<&Aside>) {
        let Some(aside) = aside else { return };
        if let Some((effect, policy, rule)) = &aside.shadow {
            self.text("shadow", effect_label(*effect));
            self.text("shadow_policy", policy);
            self.text("shadow_rule", rule);
        }
        if let Some((policy, rule)) = &aside.audit {
            self.text("audit_policy", policy);
            self.text("audit_rule", rule);
        }
    }

    pub(crate) fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        let _infallible = write!(self.bytes, "{value}");
    }

    /// A value whose own text needs no escape.
    pub(crate) fn plain(&mut self, key: &str, value: &dyn std::fmt::Display) {
        self.key(key);
        let _infallible = write!(self.bytes, "\"{value}\"");
    }

    pub(crate) fn bytes(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.bytes.push(b'"');
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'"');
    }

    pub(crate) fn time(&mut self, key: &str, time: SystemTime) {
        self.key(key);
        let since = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, rest) = (second / 3600, second / 60 % 60, second % 60);
        let micros = since.subsec_micros();
        let _infallible = write!(
            self.bytes,
            "\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{rest:02}.{micros:06}Z\""
        );
    }
}

/// Year, month and day of a number of days since 1970-01-01, in the proleptic Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The thread that writes lines.
#[derive(Debug)]
pub(crate) struct AccessWriter {
    lines: Option<Arc<Lines>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl AccessWriter {
    /// Writes what still waits and ends the thread.
    pub(crate) fn close(self) {
        if let Some(lines) = self.lines {
            lines
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .closed = true;
            lines.arrived.notify_one();
        }
        if let Some(thread) = self.thread
            && thread.join().is_err()
        {
            tracing::error!("the access log ended with a panic");
        }
    }
}

fn write_lines(lines: &Lines, mut out: Box<dyn std::io::Write + Send>) {
    let mut taken = Vec::new();
    let mut failing = false;
    loop {
        let closed = {
            let mut waiting = lines.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            while waiting.bytes.is_empty() && !waiting.closed {
                waiting = lines
                    .arrived
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            waiting.closed
        };
        if !closed {
            // Lines that come now go out together: one wake-up and one write for all of them.
            std::thread::sleep(GATHER);
        }
        std::mem::swap(
            &mut taken,
            &mut lines
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .bytes,
        );
        let written = out.write_all(&taken).and_then(|()| out.flush());
        match written {
            Err(error) if !failing => {
                failing = true;
                tracing::error!(code = "FNL3070", %error, "the access log cannot be written");
            }
            Ok(()) if failing => {
                failing = false;
                tracing::info!("the access log is written again");
            }
            _ => {}
        }
        taken.clear();
        if closed {
            return;
        }
    }
}

/// The task that writes audit records.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    log: AuditLog,
    events: mpsc::Receiver<Event>,
    metrics: ProxyMetrics,
}

impl AuditWriter {
    /// Writes until stopped, then what still waits.
    pub(crate) async fn run(mut self, stop: Stop) -> Result<(), std::convert::Infallible> {
        while let Some(Some(event)) = stop.unless_stopped(self.events.recv()).await {
            self.write(event).await;
        }
        self.events.close();
        while let Some(event) = self.events.recv().await {
            self.write(event).await;
        }
        if let Err(error) = self.log.close().await {
            tracing::error!(error = %mesh_runtime::errors::ErrorChain(&error), "the audit log did not close");
        }
        Ok(())
    }

    async fn write(&self, event: Event) {
        let mut record = self.log.begin(event.action, event.actor);
        record.object(event.object);
        if let Some(origin) = event.origin {
            record.origin(origin);
        }
        if let Some(decision) = event.decision {
            record.decision(decision);
        }
        if let Err(error) = record.finish(event.outcome, event.code).await {
            self.metrics.record_lost("audit");
            tracing::error!(error = %mesh_runtime::errors::ErrorChain(&error), "an audit record could not be written");
        }
    }
}

#[cfg(test)]
mod tests;
