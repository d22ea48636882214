//! Decides what is kept of a pod and of a node: the few fields that identities are made of.
//! Trusts the API server for its objects. Never keeps annotations, environment or volumes: ten thousand pods have to fit.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// Marks what a kubelet wrote into the API by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels.
pub(super) type Labels = BTreeMap<String, String>;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) labels: Labels,
    pub(super) service_account: String,
    /// Empty as long as it is not scheduled.
    pub(super) node_name: String,
    pub(super) created_at: SystemTime,
    /// Why it gets no identity, whatever the rules say.
    pub(super) barred: Option<Barred>,
}

/// Why a pod gets no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barred {
    /// A kubelet can write such a one in any namespace, with any labels (N10).
    Mirror,
    /// Only mirror pods have none (N10).
    NoServiceAccount,
    /// It is being deleted (N9).
    Terminating,
    /// It succeeded or failed (N9).
    Over,
}

impl PodFacts {
    /// The facts of a pod; none if it lacks a name, as nothing does that the API server sends.
    pub(super) fn of(pod: Pod) -> Option<Self> {
        let meta = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let phase = pod.status.and_then(|status| status.phase);
        let service_account = spec.service_account_name.unwrap_or_default();
        let is_mirror = meta
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(MIRROR));
        let barred = match phase.as_deref() {
            _ if is_mirror => Some(Barred::Mirror),
            _ if service_account.is_empty() => Some(Barred::NoServiceAccount),
            Some("Succeeded" | "Failed") => Some(Barred::Over),
            _ if meta.deletion_timestamp.is_some() => Some(Barred::Terminating),
            _ => None,
        };
        Some(Self {
            created_at: created_at(&meta),
            namespace: meta.namespace?,
            name: meta.name?,
            uid: meta.uid?,
            labels: meta.labels.unwrap_or_default(),
            service_account,
            node_name: spec.node_name.unwrap_or_default(),
            barred,
        })
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) uid: String,
    /// Those that the node cannot write itself.
    pub(super) labels: Labels,
}

impl NodeFacts {
    /// The facts of a node.
    pub(super) fn of(meta: ObjectMeta) -> Option<Self> {
        let mut labels = meta.labels.unwrap_or_default();
        labels.retain(|key, _| is_beyond_the_node(key));
        Some(Self {
            name: meta.name?,
            uid: meta.uid?,
            labels,
        })
    }
}

/// Whether a node label is one that the kubelet of the node cannot set (K11).
pub(super) fn is_beyond_the_node(label: &str) -> bool {
    label.starts_with("node-restriction.kubernetes.io/")
}

/// When an object was made.
pub(super) fn created_at(meta: &ObjectMeta) -> SystemTime {
    meta.creation_timestamp
        .as_ref()
        .map_or(SystemTime::UNIX_EPOCH, |Time(at)| (*at).into())
}
