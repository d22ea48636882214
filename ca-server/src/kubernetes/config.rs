//! Decides what an operator can set about the pods of a cluster.

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
