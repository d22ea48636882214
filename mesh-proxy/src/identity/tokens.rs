//! The keys of JWT-SVIDs: sets of the SPIFFE Workload API, each frame taken whole or refused.
//! Trusts the socket's owner for which trust domains this workload may believe.
//! Never asks before a policy believes a trust domain's tokens, and never keeps keys that a frame no longer has.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_identity::{JwtAuthority, TrustDomain};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Coded as _;
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::Repetition;
use proto::spiffe::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use proto::spiffe::workload::{JwtBundlesRequest, JwtBundlesResponse};
use tonic::metadata::MetadataValue;

use super::{
    FIRST_PAUSE, FrameError, IdentityError, LARGEST_FRAME, LONGEST_PAUSE, SECURITY_HEADER, connect,
};
use crate::metrics::ProxyMetrics;
use crate::policy::Policies;

/// The keys of one trust domain, as they came, and what is in them.
type Keys = (Arc<str>, Vec<JwtAuthority>);

/// The keys of all trust domains that this workload may believe. Clones are handles.
#[derive(Clone, Debug, Default)]
pub(crate) struct JwtBundles {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: Mutex<BTreeMap<TrustDomain, Keys>>,
    version: AtomicU64,
}

impl JwtBundles {
    /// Changes with each frame.
    pub(crate) fn version(&self) -> u64 {
        self.inner.version.load(Ordering::Acquire)
    }

    pub(crate) fn get(&self, domain: &TrustDomain) -> Option<Keys> {
        let known = self.inner.known.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        known.get(domain).cloned()
    }

    fn replace(&self, all: BTreeMap<TrustDomain, Keys>) {
        *self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = all;
        self.inner.version.fetch_add(1, Ordering::Release);
    }
}

/// Follows the Workload API's stream of keys.
pub(crate) struct KeySource {
    pub(crate) socket: PathBuf,
    pub(crate) bundles: JwtBundles,
    pub(crate) policies: Policies,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) clock: Clock,
}

impl KeySource {
    /// Follows until stopped, from the first policy on that believes a trust domain; reconnects with a growing pause.
    pub(crate) async fn run(self, stop: Stop) -> Result<(), Infallible> {
        let mut changes = self.policies.subscribe();
        let wanted = changes.wait_for(|_| {
            let in_force = self.policies.current();
            in_force.policy.believed_domains().next().is_some()
        });
        match stop.unless_stopped(wanted).await {
            Some(Ok(_)) => {}
            // Stopped, or the program ends.
            Some(Err(_)) | None => return Ok(()),
        }
        let trouble = Repetition::new("workload-api-keys");
        let mut pause = FIRST_PAUSE;
        loop {
            let followed = self.follow(&trouble, &mut pause);
            let Some(error) = stop.unless_stopped(followed).await else {
                return Ok(());
            };
            trouble.failed(&error);
            self.metrics.identity_failed(error.code());
            if stop.unless_stopped(self.clock.sleep(pause)).await.is_none() {
                return Ok(());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One connection, until it fails.
    async fn follow(&self, trouble: &Repetition, pause: &mut std::time::Duration) -> IdentityError {
        let channel = match connect(&self.socket).await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let mut client =
            SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(LARGEST_FRAME);
        let mut request = tonic::Request::new(JwtBundlesRequest {});
        let headers = request.metadata_mut();
        headers.insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        let mut frames = match client.fetch_jwt_bundles(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return IdentityError::Answer(Box::new(status)),
        };
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return IdentityError::Ended,
                Err(status) => return IdentityError::Answer(Box::new(status)),
            };
            match read(frame) {
                Ok(all) => {
                    tracing::info!(domains = all.len(), "keys of JWT-SVIDs");
                    self.bundles.replace(all);
                    trouble.succeeded();
                    *pause = FIRST_PAUSE;
                }
                // The next frame may be good; the keys in use stay.
                Err(error) => {
                    let error = IdentityError::Frame(error);
                    self.metrics.identity_failed(error.code());
                    trouble.failed(&error);
                }
            }
        }
    }
}

fn read(frame: JwtBundlesResponse) -> Result<BTreeMap<TrustDomain, Keys>, FrameError> {
    let mut all = BTreeMap::new();
    for (name, json) in frame.bundles {
        let domain = super::domain_of(&name)?;
        let keys = mesh_identity::read_jwks(&json).map_err(|cause| FrameError::Bundle {
            domain: domain.to_string(),
            cause,
        })?;
        let text = String::from_utf8_lossy(&json).into();
        all.insert(domain, (text, keys));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use mesh_identity::test_util::jwt::JwtSigner;

    use super::*;

    fn frame(bundles: &[(&str, &[u8])]) -> JwtBundlesResponse {
        let bundles = bundles.iter();
        JwtBundlesResponse {
            bundles: bundles
                .map(|(name, json)| ((*name).to_owned(), json.to_vec()))
                .collect(),
        }
    }

    #[test]
    fn a_frame_of_keys_is_taken_whole_or_refused() {
        let keys = JwtSigner::new("k").bundle("dev.test").to_jwks_json();
        let own = ("spiffe://dev.test", keys.as_slice());
        let all = read(frame(&[own, ("spiffe://other.test", b"{\"keys\":[]}")])).unwrap();
        let count = |name: &str| all[&name.parse::<TrustDomain>().unwrap()].1.len();
        assert_eq!((count("dev.test"), count("other.test")), (1, 0));
        for bad in [
            ("spiffe://Other.test", keys.as_slice()),
            ("spiffe://other.test", b"{"),
        ] {
            assert!(read(frame(&[own, bad])).is_err(), "{}", bad.0);
        }
        let bundles = JwtBundles::default();
        bundles.replace(all);
        bundles.replace(BTreeMap::new());
        assert_eq!(bundles.version(), 2);
        assert!(
            bundles.get(&"dev.test".parse().unwrap()).is_none(),
            "withdrawn"
        );
    }
}
