//! Decides how a cluster's API server is reached: by a kubeconfig file, or by what a pod is given.
//! Trusts that file. Never reads the environment's kubeconfig, behind which another cluster may be.

use kube::config::{KubeConfigOptions, Kubeconfig};
use mesh_runtime::errors::Coded;

use crate::config::K8sPsatConfig;

/// A cluster cannot be reached as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig, or the files of the pod that this server runs in.
    #[error("the configuration for reaching cluster `{cluster}` cannot be used")]
    Unusable {
        /// Which.
        cluster: String,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Coded for ClusterError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unusable { .. } => "FNL1120",
        }
    }
}

/// How the client of a cluster shall be.
pub(crate) async fn config(settings: &K8sPsatConfig) -> Result<kube::Config, ClusterError> {
    let mut config = match &settings.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| unusable(settings, error))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|error| unusable(settings, error))?
        }
        None => kube::Config::incluster().map_err(|error| unusable(settings, error))?,
    };
    config.connect_timeout = Some(settings.timeout.get());
    Ok(config)
}

/// The client; nothing is asked yet.
pub(crate) fn client(
    settings: &K8sPsatConfig,
    config: kube::Config,
) -> Result<kube::Client, ClusterError> {
    kube::Client::try_from(config).map_err(|error| unusable(settings, error))
}

fn unusable(
    settings: &K8sPsatConfig,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClusterError {
    ClusterError::Unusable {
        cluster: settings.cluster.clone(),
        cause: cause.into(),
    }
}
