//! Decides the names of all metrics of this program (`workload_agent_…`) and counts for the parts.
//! Trusts the parts to pass fixed words as labels; never puts an identity, a path or a stranger's text into a label.

use std::time::{Duration, SystemTime};

use mesh_runtime::metrics::{self, Counter, Family, Gauge, Histogram, exponential_buckets};

type Labels = Vec<(&'static str, String)>;

/// The counters. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: metrics::Metrics,
    ready: Gauge,
    last_sync: Gauge,
    svid_expiration: Family<Labels, Gauge>,
    svids_cached: Family<Labels, Gauge>,
    rotations: Family<Labels, Counter>,
    attestations: Family<Labels, Counter>,
    attestation_duration: Histogram,
    streams: Family<Labels, Gauge>,
    requests: Family<Labels, Counter>,
    no_identity: Family<Labels, Counter>,
    updates: Family<Labels, Counter>,
    refused_connections: Family<Labels, Counter>,
    state_writes: Family<Labels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Self {
        let registry = metrics::Metrics::new("workload_agent");
        let durations = Histogram::new(exponential_buckets(0.000_05, 3.0, 12));
        let new = Self {
            ready: registry.gauge("workload_agent_ready", "1 when identities can be served"),
            last_sync: registry.gauge(
                "workload_agent_last_sync_timestamp_seconds",
                "When the last update of the CA was applied",
            ),
            svid_expiration: Family::default(),
            svids_cached: Family::default(),
            rotations: Family::default(),
            attestations: Family::default(),
            attestation_duration: durations,
            streams: Family::default(),
            requests: Family::default(),
            no_identity: Family::default(),
            updates: Family::default(),
            refused_connections: Family::default(),
            state_writes: Family::default(),
            registry,
        };
        let registry = &new.registry;
        registry.register(
            "workload_agent_svid_expiration_timestamp_seconds",
            "When the agent's own SVID expires",
            new.svid_expiration.clone(),
        );
        registry.register(
            "workload_agent_svids_cached",
            "SVIDs held for workloads",
            new.svids_cached.clone(),
        );
        registry.register(
            "workload_agent_svid_rotations",
            "Renewals of SVIDs",
            new.rotations.clone(),
        );
        registry.register(
            "workload_agent_workload_attestations",
            "Attestations of callers",
            new.attestations.clone(),
        );
        registry.register(
            "workload_agent_workload_attestation_duration_seconds",
            "Time of one attestation",
            new.attestation_duration.clone(),
        );
        registry.register(
            "workload_agent_api_streams",
            "Open streams",
            new.streams.clone(),
        );
        registry.register(
            "workload_agent_api_requests",
            "Calls by method and gRPC code",
            new.requests.clone(),
        );
        registry.register(
            "workload_agent_no_identity",
            "Callers that got no identity",
            new.no_identity.clone(),
        );
        registry.register(
            "workload_agent_feed_updates",
            "Updates from the CA",
            new.updates.clone(),
        );
        registry.register(
            "workload_agent_refused_connections",
            "Connections closed before any call",
            new.refused_connections.clone(),
        );
        registry.register(
            "workload_agent_state_writes",
            "Writes of what a restart goes on with",
            new.state_writes.clone(),
        );
        new
    }

    /// The registry, for the admin port.
    pub fn registry(&self) -> &metrics::Metrics {
        &self.registry
    }

    pub(crate) fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    pub(crate) fn synced(&self, now: SystemTime, applied: bool) {
        if applied {
            self.last_sync.set(seconds(now));
        }
        let result = if applied { "applied" } else { "refused" };
        self.updates
            .get_or_create(&vec![("result", result.into())])
            .inc();
    }

    pub(crate) fn agent_svid(&self, expires: SystemTime) {
        self.svid_expiration
            .get_or_create(&vec![("kind", "agent".into())])
            .set(seconds(expires));
    }

    pub(crate) fn cached(&self, count: usize) {
        self.svids_cached
            .get_or_create(&vec![("type", "x509".into())])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn agent_renewed(&self, done: bool) {
        let result = if done { "ok" } else { "failed" };
        self.rotations
            .get_or_create(&vec![("type", "agent".into()), ("result", result.into())])
            .inc();
    }

    pub(crate) fn rotated(&self, done: bool) {
        let result = if done { "ok" } else { "failed" };
        self.rotations
            .get_or_create(&vec![("type", "x509".into()), ("result", result.into())])
            .inc();
    }

    pub(crate) fn attested(&self, took: Duration, failure: Option<&'static str>) {
        let result = if failure.is_none() { "ok" } else { "failed" };
        let labels = vec![
            ("attestor", "unix".into()),
            ("result", result.into()),
            ("reason", failure.unwrap_or_default().into()),
        ];
        self.attestations.get_or_create(&labels).inc();
        self.attestation_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn no_identity(&self, reason: &'static str) {
        self.no_identity
            .get_or_create(&vec![("reason", reason.into())])
            .inc();
    }

    pub(crate) fn called(&self, method: &'static str, code: tonic::Code) {
        self.requests
            .get_or_create(&vec![
                ("method", method.into()),
                ("code", format!("{code:?}")),
            ])
            .inc();
    }

    pub(crate) fn refused_connection(&self, reason: &'static str) {
        self.refused_connections
            .get_or_create(&vec![("reason", reason.into())])
            .inc();
    }

    pub(crate) fn state_kept(&self, done: bool) {
        let result = if done { "ok" } else { "failed" };
        self.state_writes
            .get_or_create(&vec![("result", result.into())])
            .inc();
    }

    /// Counts a stream as long as the value lives.
    pub(crate) fn stream(&self, api: &'static str) -> OpenStream {
        let gauge = self
            .streams
            .get_or_create(&vec![("api", api.into())])
            .clone();
        gauge.inc();
        OpenStream(gauge)
    }
}

/// One open stream.
#[derive(Debug)]
pub(crate) struct OpenStream(Gauge);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
