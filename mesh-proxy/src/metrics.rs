//! The proxy's own metrics (ux D.3); those of traffic, under Istio's names, are in `traffic`.
//! Trusts label values to be ours or proven: SPIFFE IDs of peers, never a path, a host or a header.
//! Never leaves a label empty and never grows without bound.

mod traffic;

use std::sync::Arc;
use std::time::SystemTime;

use mesh_policy::{Effect, Reason};
use mesh_runtime::metrics::{Counter, Family, Gauge, Metrics};
use prometheus_client::encoding::EncodeLabelSet;

use crate::config::Workload;
use crate::decide::{Aside, effect_label, reason_label};

pub(crate) use traffic::{Edge, Ending, RequestCounters, Sizes, TcpCounters, Traffic};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    direction: &'static str,
    decision: &'static str,
    reason: &'static str,
    policy: Arc<str>,
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    role: &'static str,
    result: &'static str,
    cipher: &'static str,
    group: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

/// All families. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ProxyMetrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    traffic: Traffic,
    decisions: Family<DecisionLabels, Counter>,
    handshakes: Family<HandshakeLabels, Counter>,
    connections: Family<DirectionLabels, Gauge>,
    cut: Family<CodeLabels, Counter>,
    retries: Counter,
    identity_expiry: Gauge,
    identity_updates: Counter,
    identity_failures: Family<CodeLabels, Counter>,
    policy_applied: Gauge,
    policy_rejected: Counter,
    policy_unenforceable: Gauge,
    records_lost: Family<KindLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

impl ProxyMetrics {
    pub(crate) fn new(registry: &Metrics, workload: Option<Workload>) -> Self {
        let inner = Inner {
            traffic: Traffic::new(registry, workload),
            decisions: Family::default(),
            handshakes: Family::default(),
            connections: Family::default(),
            cut: Family::default(),
            retries: registry.counter("mesh_proxy_retries", "Requests sent again on a fresh connection because the first one never carried them"),
            identity_expiry: registry.gauge("mesh_proxy_identity_expiry_timestamp_seconds", "End of the SVID in use"),
            identity_updates: registry.counter("mesh_proxy_identity_updates", "SVIDs taken from the Workload API"),
            identity_failures: Family::default(),
            policy_applied: registry.gauge("mesh_proxy_config_last_applied_timestamp_seconds", "When the policy in force was read"),
            policy_rejected: registry.counter("mesh_proxy_config_rejected", "Policy files refused; the last good one stays"),
            policy_unenforceable: registry.gauge("mesh_proxy_policy_unenforceable_rules", "Rules in force that this door cannot enforce as written"),
            records_lost: Family::default(),
        };
        registry.register(
            "mesh_proxy_authorization_decisions",
            "Decisions",
            inner.decisions.clone(),
        );
        registry.register(
            "mesh_proxy_tls_handshakes",
            "TLS handshakes",
            inner.handshakes.clone(),
        );
        registry.register(
            "mesh_proxy_connections",
            "Open connections",
            inner.connections.clone(),
        );
        registry.register(
            "mesh_proxy_cut",
            "Connections and streams ended by policy, expiry or withdrawn trust",
            inner.cut.clone(),
        );
        registry.register(
            "mesh_proxy_identity_failures",
            "Failures on the way to an SVID",
            inner.identity_failures.clone(),
        );
        registry.register(
            "mesh_proxy_records_lost",
            "Records that could not be written in time",
            inner.records_lost.clone(),
        );
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Requests and connections, under Istio's names.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.inner.traffic
    }

    pub(crate) fn decision_counter(
        &self,
        decision: &'static str,
        reason: &'static str,
        policy: Option<&Arc<str>>,
    ) -> Counter {
        let policy = policy.map_or_else(|| "none".into(), Arc::clone);
        self.inner
            .decisions
            .get_or_create(&DecisionLabels {
                direction: "inbound",
                decision,
                reason,
                policy,
                mode: "enforce",
            })
            .clone()
    }

    /// Counts what a policy in shadow mode would have decided otherwise.
    pub(crate) fn shadowed(&self, aside: Option<&Aside>) {
        let Some((effect, policy, _)) = aside.and_then(|aside| aside.shadow.as_ref()) else {
            return;
        };
        let reason = match effect {
            Effect::Allow => Reason::AllowRule,
            Effect::Deny => Reason::DenyRule,
        };
        self.inner
            .decisions
            .get_or_create(&DecisionLabels {
                direction: "inbound",
                decision: effect_label(*effect),
                reason: reason_label(reason),
                policy: Arc::clone(policy),
                mode: "shadow",
            })
            .inc();
    }

    pub(crate) fn handshake(
        &self,
        role: &'static str,
        result: &'static str,
        session: Option<&mesh_tls::Session>,
    ) {
        let (cipher, group) =
            session.map_or(("unknown", "unknown"), |s| (s.cipher, s.key_exchange));
        self.inner
            .handshakes
            .get_or_create(&HandshakeLabels {
                role,
                result,
                cipher,
                group,
            })
            .inc();
    }

    /// Counts a connection as open until the guard is dropped.
    pub(crate) fn open(&self, direction: &'static str) -> OpenGuard {
        let gauge = self
            .inner
            .connections
            .get_or_create(&DirectionLabels { direction })
            .clone();
        gauge.inc();
        OpenGuard(gauge)
    }

    pub(crate) fn cut(&self, code: &'static str) {
        self.inner.cut.get_or_create(&CodeLabels { code }).inc();
    }

    pub(crate) fn retried(&self) {
        self.inner.retries.inc();
    }

    pub(crate) fn identity_updated(&self, not_after: SystemTime) {
        self.inner.identity_updates.inc();
        self.inner.identity_expiry.set(seconds(not_after));
    }

    pub(crate) fn identity_failed(&self, code: &'static str) {
        self.inner
            .identity_failures
            .get_or_create(&CodeLabels { code })
            .inc();
    }

    pub(crate) fn policy_applied(&self, now: SystemTime, unenforceable: usize) {
        self.inner.policy_applied.set(seconds(now));
        self.inner
            .policy_unenforceable
            .set(i64::try_from(unenforceable).unwrap_or(i64::MAX));
    }

    pub(crate) fn policy_rejected(&self) {
        self.inner.policy_rejected.inc();
    }

    pub(crate) fn record_lost(&self, kind: &'static str) {
        self.inner
            .records_lost
            .get_or_create(&KindLabels { kind })
            .inc();
    }
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct OpenGuard(Gauge);

impl Drop for OpenGuard {
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
