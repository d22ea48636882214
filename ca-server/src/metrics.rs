//! All metric names of this server in one place. Labels come from fixed sets, never from a stranger's text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_identity::{TrustDomain, X509Svid};
use mesh_runtime::errors::Coded;
use mesh_runtime::metrics::{Counter, Family, Gauge, Histogram, exponential_buckets};
use tonic::Code;

use crate::authority::{AuthorityKind, SlotState, SlotStatus};
use crate::federation::{RefreshError, Refreshed};
use crate::issuance::{IssueError, IssuedToken};

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of this server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: mesh_runtime::metrics::Metrics,
    issued: Family<Labels<1>, Counter>,
    issuance_denied: Family<Labels<2>, Counter>,
    issuance_duration: Histogram,
    attestations: Family<Labels<2>, Counter>,
    authorities: Family<Vec<(&'static str, String)>, Gauge>,
    agents: Gauge,
    agents_connected: Gauge,
    entries: Gauge,
    lacking: Gauge,
    tainted: Family<Vec<(&'static str, String)>, Gauge>,
    backup: Gauge,
    ratelimited: Family<Labels<1>, Counter>,
    feed_refused: Counter,
    refreshes: Family<Labels<1>, Counter>,
    refreshed_at: Family<Vec<(&'static str, String)>, Gauge>,
    handled: Family<Labels<2>, Counter>,
    handling: Family<Labels<1>, Histogram, fn() -> Histogram>,
}

fn call_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 4.0, 8))
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Self {
        let registry = mesh_runtime::metrics::Metrics::new("ca_server");
        let metrics = Self {
            issued: Family::default(),
            issuance_denied: Family::default(),
            issuance_duration: Histogram::new(exponential_buckets(0.0001, 4.0, 8)),
            attestations: Family::default(),
            authorities: Family::default(),
            agents: registry.gauge("ca_server_agents", "Agents that are known"),
            agents_connected: registry.gauge(
                "ca_server_agents_connected",
                "Agents with an open feed stream",
            ),
            entries: registry.gauge("ca_server_entries", "Registration entries"),
            lacking: registry.gauge(
                "ca_server_authority_agents_lacking",
                "Agents that have not acknowledged a new authority whose turn has come",
            ),
            tainted: Family::default(),
            backup: registry.gauge(
                "ca_server_backup_last_success_timestamp_seconds",
                "When the last backup was taken since this start, seconds since 1970",
            ),
            ratelimited: Family::default(),
            feed_refused: registry.counter(
                "ca_server_feed_updates_refused",
                "Updates that an agent refused",
            ),
            refreshes: Family::default(),
            refreshed_at: Family::default(),
            handled: Family::default(),
            handling: Family::new_with_constructor(call_seconds),
            registry: registry.clone(),
        };
        registry.register(
            "ca_server_svids_issued",
            "SVIDs issued",
            metrics.issued.clone(),
        );
        registry.register(
            "ca_server_issuance_denied",
            "SVIDs that were asked for and not issued",
            metrics.issuance_denied.clone(),
        );
        registry.register(
            "ca_server_issuance_duration_seconds",
            "Time of one issuing request, all its SVIDs and their records included",
            metrics.issuance_duration.clone(),
        );
        registry.register(
            "ca_server_node_attestations",
            "Nodes that tried to prove themselves",
            metrics.attestations.clone(),
        );
        registry.register(
            "ca_server_authority_expiration_timestamp_seconds",
            "End of an authority of this server, seconds since 1970",
            metrics.authorities.clone(),
        );
        registry.register(
            "ca_server_authority_tainted_svids",
            "X509-SVIDs of a tainted authority that have not ended and whose holder was given no later one",
            metrics.tainted.clone(),
        );
        registry.register(
            "ca_server_ratelimited",
            "Calls over their budget",
            metrics.ratelimited.clone(),
        );
        registry.register(
            "ca_server_federation_refreshes",
            "Attempts to refresh the bundle of another trust domain",
            metrics.refreshes.clone(),
        );
        registry.register(
            "ca_server_federation_refreshed_timestamp_seconds",
            "When the bundle of a trust domain was last fetched and good, seconds since 1970",
            metrics.refreshed_at.clone(),
        );
        registry.register(
            "ca_server_rpcs_handled",
            "RPCs by method and status",
            metrics.handled.clone(),
        );
        registry.register(
            "ca_server_rpc_handling_seconds",
            "Time until an RPC is answered",
            metrics.handling.clone(),
        );
        metrics
    }

    /// For the admin port, and for the families of other crates.
    pub fn registry(&self) -> &mesh_runtime::metrics::Metrics {
        &self.registry
    }

    /// An attempt to refresh a bundle. Trust domains are those that administrators named.
    pub(crate) fn federation(
        &self,
        domain: &TrustDomain,
        outcome: &Result<Refreshed, RefreshError>,
        now: SystemTime,
    ) {
        let result = match outcome {
            Ok(Refreshed::Updated) => "updated",
            Ok(Refreshed::Unchanged) => "unchanged",
            Err(error) => error.code(),
        };
        self.refreshes.get_or_create(&[("result", result)]).inc();
        if outcome.is_ok() {
            let labels = vec![("trust_domain", domain.to_string())];
            let since = now
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            self.refreshed_at
                .get_or_create(&labels)
                .set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn issuance(&self, answers: &[Result<X509Svid, IssueError>], took: Duration) {
        self.issuance_duration.observe(took.as_secs_f64());
        let done = answers.iter().filter(|answer| answer.is_ok()).count();
        self.issued
            .get_or_create(&[("type", "x509")])
            .inc_by(done as u64);
        for error in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            self.issuance_denied
                .get_or_create(&[("type", "x509"), ("reason", error.code())])
                .inc();
        }
    }

    pub(crate) fn token(&self, answer: &Result<IssuedToken, IssueError>) {
        match answer {
            Ok(_) => self.issued.get_or_create(&[("type", "jwt")]).inc(),
            Err(error) => self
                .issuance_denied
                .get_or_create(&[("type", "jwt"), ("reason", error.code())])
                .inc(),
        };
    }

    /// A node tried to prove itself: `result` is `success` or the code of the refusal.
    pub(crate) fn attestation(&self, attestor: &'static str, result: &'static str) {
        self.attestations
            .get_or_create(&[("attestor", attestor), ("result", result)])
            .inc();
    }

    /// So many agents are waited for before a new authority signs.
    pub(crate) fn lacking(&self, agents: usize) {
        self.lacking.set(i64::try_from(agents).unwrap_or(i64::MAX));
    }

    /// A backup was taken.
    pub(crate) fn backup(&self, now: SystemTime) {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.backup.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// A call went over the budget of this name.
    pub(crate) fn rate_limited(&self, budget: &'static str) {
        self.ratelimited.get_or_create(&[("scope", budget)]).inc();
    }

    pub(crate) fn feed_refused(&self) {
        self.feed_refused.inc();
    }

    /// A handler answered.
    pub(crate) fn call(&self, method: &'static str, code: Code, took: Duration) {
        self.refused(method, code);
        self.handling
            .get_or_create(&[("method", method)])
            .observe(took.as_secs_f64());
    }

    /// A call was answered before it reached a handler.
    pub(crate) fn refused(&self, method: &'static str, code: Code) {
        self.handled
            .get_or_create(&[("method", method), ("code", name(code))])
            .inc();
    }

    pub(crate) fn authorities(&self, slots: &[SlotStatus]) {
        self.authorities.clear();
        for slot in slots {
            let labels = vec![
                ("kind", kind(slot.kind).to_owned()),
                ("state", state(slot.state).to_owned()),
                ("authority_id", slot.authority_id.clone()),
            ];
            let end = slot.not_after.duration_since(SystemTime::UNIX_EPOCH);
            let end = end.map_or(0, |since| {
                i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
            });
            self.authorities.get_or_create(&labels).set(end);
        }
    }

    /// What is left of each tainted authority.
    pub(crate) fn tainted<'a>(&self, left: impl IntoIterator<Item = (&'a str, usize)>) {
        self.tainted.clear();
        for (authority, svids) in left {
            let labels = vec![("authority_id", authority.to_owned())];
            let svids = i64::try_from(svids).unwrap_or(i64::MAX);
            self.tainted.get_or_create(&labels).set(svids);
        }
    }

    pub(crate) fn sizes(&self, entries: usize, agents: usize, connected: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.entries.set(number(entries));
        self.agents.set(number(agents));
        self.agents_connected.set(number(connected));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What an authority signs, in metrics and records.
pub(crate) fn kind(kind: AuthorityKind) -> &'static str {
    match kind {
        AuthorityKind::X509 => "x509",
        AuthorityKind::Jwt => "jwt",
    }
}

/// SPIRE's words for the states of an authority.
pub(crate) fn state(state: SlotState) -> &'static str {
    match state {
        SlotState::Prepared => "prepared",
        SlotState::Active => "active",
        SlotState::Old => "old",
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
