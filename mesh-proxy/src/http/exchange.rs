//! One request and its answer, as it is remembered: exactly one access-log line and one count, whatever happens.
//! Trusts the decision that it is given.
//! Never says that it went well unless somebody said so: dropped unfinished, it says "aborted".

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use http::header::CONTENT_TYPE;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use mesh_policy::CanonicalHost;
use mesh_runtime::clock::Clock;
use mesh_runtime::span;
use tokio::time::Instant;
use tracing::Span;
use tracing::field::Empty;

use super::body::Received;
use super::grpc::Messages;
use super::stall::Stalls;
use super::trace::{self, Trace};
use crate::connections::Cut;
use crate::decide::{Decided, DecisionId, Denied, Permit, reason_label};
use crate::metrics::{Edge, Ending, ProxyMetrics, RequestCounters, Sizes};
use crate::record::{Judged, Line, Recorder};

/// What all requests of one connection have in common.
#[derive(Debug)]
pub(crate) struct Side {
    /// `inbound` or `outbound`.
    pub(crate) direction: &'static str,
    pub(crate) door: Arc<str>,
    pub(crate) source: Arc<str>,
    pub(crate) destination: Arc<str>,
    edge: Edge,
    pub(crate) peer: SocketAddr,
    /// The peer's certificate and what was negotiated, on the side of the connection where there is TLS.
    pub(crate) tls: Option<TlsFacts>,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) clock: Clock,
    /// Its unfinished answers.
    pub(crate) stalls: Stalls,
    host: Mutex<Option<Host>>,
    counters: Mutex<Vec<Counted>>,
    /// The minute in which a request of this connection was last reported as allowed.
    reported: AtomicU64,
}

#[derive(Debug, Clone)]
pub(crate) struct TlsFacts {
    pub(crate) serial: Arc<str>,
    pub(crate) cipher: &'static str,
    pub(crate) group: &'static str,
}

#[derive(Debug)]
struct Counted {
    ending: Ending,
    counters: RequestCounters,
}

/// A host in every form that is needed, made once per connection and host.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    raw: Box<[u8]>,
    pub(crate) name: Arc<str>,
    pub(crate) port: Option<u16>,
    pub(crate) authority: Authority,
    pub(crate) header: HeaderValue,
}

impl Side {
    #[expect(
        clippy::too_many_arguments,
        reason = "one call per direction; a builder would say the same twice"
    )]
    pub(crate) fn new(
        direction: &'static str,
        door: Arc<str>,
        source: Arc<str>,
        destination: Arc<str>,
        edge: Edge,
        peer: SocketAddr,
        tls: Option<TlsFacts>,
        recorder: Recorder,
        metrics: ProxyMetrics,
        clock: Clock,
    ) -> Self {
        Self {
            direction,
            door,
            source,
            destination,
            edge,
            peer,
            tls,
            recorder,
            metrics,
            clock,
            stalls: Stalls::default(),
            host: Mutex::new(None),
            counters: Mutex::new(Vec::new()),
            reported: AtomicU64::new(0),
        }
    }

    /// The canonical host; a connection that always names the same one pays for it once.
    pub(crate) fn host(&self, raw: &[u8]) -> Result<Host, mesh_policy::HostRefusal> {
        let mut known = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = &*known
            && *host.raw == *raw
        {
            return Ok(host.clone());
        }
        let text = std::str::from_utf8(raw).map_err(|_| mesh_policy::HostRefusal::Character)?;
        let canonical = CanonicalHost::parse(text)?;
        let shown = canonical.to_string();
        let authority =
            Authority::try_from(shown.as_str()).map_err(|_| mesh_policy::HostRefusal::Character)?;
        let header =
            HeaderValue::from_str(&shown).map_err(|_| mesh_policy::HostRefusal::Character)?;
        let host = Host {
            raw: raw.into(),
            name: canonical.name().into(),
            port: canonical.port(),
            authority,
            header,
        };
        *known = Some(host.clone());
        Ok(host)
    }

    fn counters(&self, ending: Ending) -> RequestCounters {
        let mut all = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|known| known.ending == ending) {
            return known.counters.clone();
        }
        let counters = self.metrics.traffic().requests(&self.edge, ending);
        if all.len() < 32 {
            all.push(Counted {
                ending,
                counters: counters.clone(),
            });
        }
        counters
    }
}

/// One request and its answer.
pub(crate) struct Exchange {
    side: Arc<Side>,
    pub(crate) id: DecisionId,
    began: Instant,
    time: SystemTime,
    method: Method,
    path: PathAndQuery,
    host: Option<Arc<str>>,
    version: Version,
    grpc: bool,
    decided: Option<Decided>,
    denied: bool,
    status: u16,
    grpc_status: Option<u16>,
    code: Option<&'static str>,
    flag: &'static str,
    why: Option<String>,
    sent: u64,
    messages: Messages,
    received: Option<Arc<Received>>,
    /// The trace that it came with, and our span in it.
    trace: Option<Trace>,
    span: Span,
    done: bool,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    pub(crate) fn begin(side: &Arc<Side>, time: SystemTime, parts: &http::request::Parts) -> Self {
        let grpc = super::refusal::is_grpc(&parts.headers);
        let (trace, span) = (Trace::read(&parts.headers), span_of(side, parts, grpc));
        if let Some(trace) = &trace {
            trace.continued_by(&span, &parts.headers);
        }
        Self {
            id: side.recorder.next_id(time),
            began: side.clock.monotonic(),
            time,
            method: parts.method.clone(),
            path: parts
                .uri
                .path_and_query()
                .cloned()
                .unwrap_or_else(|| PathAndQuery::from_static("/")),
            host: None,
            version: parts.version,
            grpc,
            decided: None,
            denied: false,
            status: 0,
            grpc_status: None,
            code: None,
            flag: "-",
            why: None,
            sent: 0,
            messages: Messages::default(),
            received: None,
            trace,
            span,
            done: false,
            side: Arc::clone(side),
        }
    }

    pub(crate) fn side(&self) -> &Arc<Side> {
        &self.side
    }

    /// Whoever is asked next belongs to the same trace.
    pub(crate) fn pass_on_trace(&self, headers: &mut HeaderMap) {
        trace::pass_on(headers, self.trace.as_ref(), &self.span);
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.grpc
    }

    pub(crate) fn host(&mut self, name: &Arc<str>) {
        self.host = Some(Arc::clone(name));
    }

    pub(crate) fn allowed(&mut self, permit: &Permit) {
        let decided = permit.decided();
        self.decided = Some(decided.clone());
        let minute = self
            .time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
            / 60;
        let asked = Asked {
            method: &self.method,
            path: &self.path,
        };
        let judged = Judged {
            id: self.id,
            source: &self.side.source,
            peer: self.side.peer,
            decided,
            asked: &asked,
        };
        self.side.recorder.aside(&judged);
        // Once per connection and minute here, once per caller, policy and minute there.
        if self.side.reported.swap(minute, Ordering::Relaxed) != minute {
            self.side.recorder.allowed(&judged, self.time);
        }
    }

    pub(crate) fn denied(&mut self, denied: &Denied, code: &'static str) {
        let decided = &denied.decided;
        self.decided = Some(decided.clone());
        self.denied = true;
        let asked = Asked {
            method: &self.method,
            path: &self.path,
        };
        self.side.recorder.denied(
            &Judged {
                id: self.id,
                source: &self.side.source,
                peer: self.side.peer,
                decided,
                asked: &asked,
            },
            code,
            denied,
            self.time,
        );
    }

    pub(crate) fn receives(&mut self, received: Option<Arc<Received>>) {
        self.received = received;
    }

    pub(crate) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        if let Some(received) = &self.received {
            received.answered();
        }
        self.grpc_from(headers);
    }

    pub(crate) fn refused(&mut self, refusal: &super::refusal::Refusal) {
        self.status = refusal.status().as_u16();
        self.code = Some(refusal.why.code());
        self.flag = refusal.why.flag();
        self.why = Some(
            refusal
                .logged
                .clone()
                .unwrap_or_else(|| refusal.told.to_string()),
        );
    }

    pub(crate) fn sent(&mut self, data: &[u8]) {
        self.sent += data.len() as u64;
        if self.grpc {
            self.messages.pass(data);
        }
    }

    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        self.grpc_from(trailers);
    }

    fn grpc_from(&mut self, headers: &HeaderMap) {
        if self.grpc
            && let Some(status) = headers.get("grpc-status")
        {
            self.grpc_status = status.to_str().ok().and_then(|s| s.parse().ok());
        }
    }

    pub(crate) fn broken(&mut self, error: &hyper::Error) {
        self.code = Some("FNL3025");
        self.flag = "UC";
        self.why = Some(format!("the body broke off: {error}"));
    }

    pub(crate) fn cut(mut self, cut: Cut) {
        self.code = Some(cut.code());
        self.flag = "DENY";
        self.why = Some(cut.to_string());
        self.side.metrics.cut(cut.code());
        self.side.recorder.cut(
            &self.side.source,
            self.side.peer,
            cut.code(),
            &cut.to_string(),
        );
        self.finish();
    }

    pub(crate) fn finish(mut self) {
        self.done = true;
        self.write();
    }

    fn write(&self) {
        let side = &self.side;
        let took = side.clock.monotonic().saturating_duration_since(self.began);
        let received = self.received.as_deref();
        let grpc = self.grpc.then_some(self.grpc_status);
        let ending = Ending::new(self.status, self.flag, grpc);
        let sizes = Sizes {
            request_bytes: received.map_or(0, Received::bytes),
            request_messages: received.map_or(0, Received::messages),
            response_bytes: self.sent,
            response_messages: self.messages.count(),
        };
        side.counters(ending).count(took, sizes);
        self.tell_span();
        if let Some(decided) = &self.decided {
            let word = if self.denied { "deny" } else { "allow" };
            side.metrics
                .decision_counter(word, reason_label(decided.reason), decided.policy.as_ref())
                .inc();
            side.metrics.shadowed(decided.aside.as_deref());
        }
        if side.recorder.wants_lines() {
            side.recorder
                .line(|line| self.compose(line, took.as_micros()));
        }
    }

    /// How it ended, in the span: our own words and numbers, nothing of the request.
    fn tell_span(&self) {
        if self.span.is_disabled() {
            return;
        }
        self.span.record("http.response.status_code", self.status);
        if let Some(status) = self.grpc_status {
            self.span.record("rpc.response.status_code", status);
        }
        if let Some(code) = self.code {
            self.span.record("error.type", code);
        }
        // What a caller did wrong is no error of this side.
        if self.status >= 500 || (self.status == 0 && self.code.is_some()) {
            self.span.record("otel.status_code", "ERROR");
        }
        if let Some(decided) = &self.decided {
            let word = if self.denied { "deny" } else { "allow" };
            self.span.record("finial.policy.decision", word);
            self.span
                .record("finial.policy.reason", reason_label(decided.reason));
            if let (Some(policy), Some(rule)) = (&decided.policy, &decided.rule) {
                self.span.record("finial.policy.name", &**policy);
                self.span.record("finial.policy.rule", &**rule);
            }
        }
    }

    fn compose(&self, line: &mut Line<'_>, micros: u128) {
        let side = &self.side;
        line.time("time", self.time);
        line.text("direction", side.direction);
        line.text("door", &side.door);
        line.bytes("decision", &self.id.text());
        if let Some(trace) = &self.trace {
            line.plain("trace_id", &format_args!("{:032x}", trace.id()));
        }
        if let Some(decided) = &self.decided {
            line.text("effect", if self.denied { "deny" } else { "allow" });
            line.text("reason", reason_label(decided.reason));
            if let (Some(policy), Some(rule)) = (&decided.policy, &decided.rule) {
                line.text("policy", policy);
                line.text("rule", rule);
            }
            line.text("policy_rev", &decided.revision);
            line.aside(decided.aside.as_deref());
        }
        line.text("source", &side.source);
        line.text("destination", &side.destination);
        line.plain("peer", &side.peer);
        line.text("method", self.method.as_str());
        // Without the query: it carries what nobody wants in a log.
        line.text("path", self.path.path());
        if let Some(host) = &self.host {
            line.text("host", host);
        }
        line.text("protocol", protocol_name(self.version, self.grpc));
        line.number("status", self.status.into());
        if let Some(grpc) = self.grpc_status {
            line.number("grpc_status", grpc.into());
        }
        line.text("flags", self.flag);
        if let Some(code) = self.code {
            line.text("error", code);
        }
        if let Some(why) = &self.why {
            line.text("why", why);
        }
        line.number(
            "bytes_received",
            self.received.as_deref().map_or(0, Received::bytes),
        );
        line.number("bytes_sent", self.sent);
        line.number("duration_us", u64::try_from(micros).unwrap_or(u64::MAX));
        if let Some(tls) = &side.tls {
            line.text("tls_cipher", tls.cipher);
            line.text("tls_group", tls.group);
            line.text("peer_serial", &tls.serial);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.done {
            // Whoever waited went away, or we did.
            self.code = self.code.or(Some("aborted"));
            if self.flag == "-" {
                self.flag = "DC";
            }
            self.write();
        }
    }
}

/// The span of a request, with the names of OpenTelemetry's conventions for HTTP. A stranger's text never becomes a name.
fn span_of(side: &Side, parts: &http::request::Parts, grpc: bool) -> Span {
    let (kind, inbound) = match side.direction {
        "inbound" => ("server", true),
        _ => ("client", false),
    };
    let method = known_method(&parts.method);
    let span = span!(
        "request",
        otel.name = method,
        otel.kind = kind,
        otel.status_code = Empty,
        http.request.method = method,
        http.response.status_code = Empty,
        rpc.system.name = Empty,
        rpc.response.status_code = Empty,
        "error.type" = Empty,
        finial.source.principal = &*side.source,
        finial.destination.principal = &*side.destination,
        finial.svid.serial = Empty,
        finial.policy.decision = Empty,
        finial.policy.reason = Empty,
        finial.policy.name = Empty,
        finial.policy.rule = Empty,
    );
    if grpc {
        span.record("rpc.system.name", "grpc");
    }
    if let Some(tls) = side.tls.as_ref().filter(|_| inbound) {
        span.record("finial.svid.serial", &*tls.serial);
    }
    span
}

/// The method, if it is one that everybody knows.
fn known_method(method: &Method) -> &'static str {
    const KNOWN: [&str; 8] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "QUERY",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == method.as_str())
        .unwrap_or("_OTHER")
}

fn protocol_name(version: Version, grpc: bool) -> &'static str {
    match (grpc, version) {
        (true, _) => "grpc",
        (_, Version::HTTP_2) => "HTTP/2",
        (_, Version::HTTP_10) => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

struct Asked<'a> {
    method: &'a Method,
    path: &'a PathAndQuery,
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path.path())
    }
}

/// Whether a content type was sent twice, which two programs could read differently.
pub(crate) fn doubled_content_type(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_TYPE).iter().nth(1).is_some()
}
