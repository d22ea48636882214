//! Keeps the trust bundle where pods can mount it: a ConfigMap, and a ClusterTrustBundle where the API server has that kind.
//! Trusts the authority's bundle, which holds a new root before anything is signed by it. Never takes what others wrote there.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use mesh_identity::{Bundle, BundleError};
use mesh_runtime::clock::Clock;
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::Repetition;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::config::PublishConfig;
use crate::store::StoredBundle;

/// Written again, so that what somebody else made of it does not last.
const AGAIN: Duration = Duration::from_secs(300);

/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The field manager, and the owner of what is written.
const MANAGER: &str = "ca-server";

/// The name begins with the signer's, with a colon for the slash.
const CLUSTER_TRUST_BUNDLE: &str = "mesh.finial.dev:spiffe:bundle";
const SIGNER: &str = "mesh.finial.dev/spiffe";

/// Why the bundle is not where it should be.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    /// Our own bundle makes no sense.
    #[error("our own bundle cannot be read")]
    Bundle(#[from] BundleError),
    /// The API server refused, or is away.
    #[error("{0} could not be written")]
    Write(&'static str, #[source] kube::Error),
    /// No answer.
    #[error("{0} could not be written: no answer in time")]
    TooSlow(&'static str),
}

/// Where one cluster's bundle goes.
#[derive(Clone)]
pub(super) struct Publisher {
    pub(super) client: kube::Client,
    pub(super) to: PublishConfig,
    pub(super) limit: Duration,
}

impl Publisher {
    /// Publishes each state of the bundle until it is asked to stop.
    pub(super) async fn run(
        self,
        mut bundle: watch::Receiver<Arc<StoredBundle>>,
        clock: Clock,
        stop: Stop,
    ) -> Result<(), std::convert::Infallible> {
        let quiet = Repetition::new("publish-bundle");
        loop {
            let stored = bundle.borrow_and_update().clone();
            let pause = match self.publish(&stored).await {
                Ok(()) => {
                    quiet.succeeded();
                    AGAIN
                }
                Err(error) => {
                    let _said = quiet.failed(&error);
                    RETRY
                }
            };
            let next = async {
                tokio::select! {
                    changed = bundle.changed() => changed.is_ok(),
                    () = clock.sleep(pause) => true,
                }
            };
            if stop.unless_stopped(next).await != Some(true) {
                return Ok(());
            }
        }
    }

    async fn publish(&self, stored: &StoredBundle) -> Result<(), PublishError> {
        let bundle = stored.to_bundle()?;
        let to = &self.to;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &to.namespace);
        let map = config_map(to, &bundle);
        self.write(
            "the ConfigMap",
            maps.patch(&to.config_map, &applied(), &Patch::Apply(&map)),
        )
        .await?;
        if !to.cluster_trust_bundle {
            return Ok(());
        }
        for version in ["v1", "v1beta1"] {
            let kind = GroupVersionKind::gvk("certificates.k8s.io", version, "ClusterTrustBundle");
            let kind = ApiResource::from_gvk_with_plural(&kind, "clustertrustbundles");
            let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
            let object = Patch::Apply(cluster_trust_bundle(version, &bundle));
            let by = applied();
            let written = all.patch(CLUSTER_TRUST_BUNDLE, &by, &object);
            match self.write("the ClusterTrustBundle", written).await {
                // Applying makes what is missing: the kind itself is not there.
                Err(PublishError::Write(_, kube::Error::Api(status))) if status.code == 404 => {}
                done => return done,
            }
        }
        Ok(())
    }

    async fn write<T>(
        &self,
        what: &'static str,
        written: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<(), PublishError> {
        match tokio::time::timeout(self.limit, written).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(PublishError::Write(what, error)),
            Err(_) => Err(PublishError::TooSlow(what)),
        }
    }
}

/// What we own is ours whoever wrote it last.
fn applied() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

fn labels(bundle: &Bundle) -> Value {
    json!({ "spiffe.io/trust-domain": bundle.trust_domain().as_str() })
}

fn config_map(to: &PublishConfig, bundle: &Bundle) -> Value {
    let spiffe = String::from_utf8_lossy(&bundle.to_spiffe_json()).into_owned();
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": to.config_map, "labels": labels(bundle) },
        "data": { "bundle.crt": bundle.to_pem(), "bundle.spiffe": spiffe },
    })
}

fn cluster_trust_bundle(version: &str, bundle: &Bundle) -> Value {
    json!({
        "apiVersion": format!("certificates.k8s.io/{version}"),
        "kind": "ClusterTrustBundle",
        "metadata": { "name": CLUSTER_TRUST_BUNDLE, "labels": labels(bundle) },
        "spec": { "signerName": SIGNER, "trustBundle": bundle.to_pem() },
    })
}
