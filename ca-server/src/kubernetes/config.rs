//! Decides what an operator can set about the pods of a cluster and what is published there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `workloads` section of a cluster: its pods get identities by rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadsConfig {
    /// A pod that no ClusterSPIFFEID selects gets `ns/<namespace>/sa/<service account>`.
    pub default_rule: bool,
    /// The `className` of the ClusterSPIFFEIDs that this server serves.
    pub class_name: String,
    /// ClusterSPIFFEIDs without a class are served too.
    pub watch_classless: bool,
    /// The cluster's DNS domain, for templates.
    pub cluster_domain: String,
}

impl Default for WorkloadsConfig {
    fn default() -> Self {
        Self {
            default_rule: false,
            class_name: String::new(),
            watch_classless: false,
            cluster_domain: "cluster.local".into(),
        }
    }
}

/// The `publishBundle` section of a cluster: the trust bundle, for pods to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PublishConfig {
    /// The namespace of the ConfigMap: that of the agents, which can mount only what lies beside them.
    pub namespace: String,
    /// The name of the ConfigMap. Its keys are `bundle.crt` (PEM, as SPIRE's) and `bundle.spiffe` (JSON).
    pub config_map: String,
    /// Publish a ClusterTrustBundle too, where the API server has that kind.
    pub cluster_trust_bundle: bool,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self {
            namespace: "spire".into(),
            config_map: "spire-bundle".into(),
            cluster_trust_bundle: true,
        }
    }
}
