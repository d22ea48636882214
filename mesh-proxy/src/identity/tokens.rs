//! The keys of JWT-SVIDs: sets of the SPIFFE Workload API, each frame taken whole or refused.
//! Trusts the socket's owner for which trust domains this workload may believe.
//! Never asks before a policy believes a trust domain's tokens, and never keeps keys that a frame no longer has, or that were withdrawn.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_identity::{JwtAuthority, TrustDomain};
use mesh_runtime::tasks::Stop;
use proto::spiffe::workload::{JwtBundlesRequest, JwtBundlesResponse};
use tonic::{Response, Status, Streaming};

use super::stream::{Client, Follower, Link, ask};
use super::{FrameError, IdentityError};
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
    pub(crate) link: Link,
    pub(crate) bundles: JwtBundles,
    pub(crate) policies: Policies,
}

impl KeySource {
    /// Follows until stopped, from the first policy on that believes a trust domain.
    pub(crate) async fn run(mut self, stop: Stop) -> Result<(), Infallible> {
        let mut changes = self.policies.subscribe();
        let wanted = changes.wait_for(|_| {
            let in_force = self.policies.current();
            in_force.policy.believed_domains().next().is_some()
        });
        // Otherwise stopped, or the program ends.
        let is_wanted = matches!(stop.unless_stopped(wanted).await, Some(Ok(_)));
        if is_wanted {
            let link = self.link.clone();
            link.follow(&mut self, "workload-api-keys", &stop).await;
        }
        Ok(())
    }
}

impl Follower for KeySource {
    type Frame = JwtBundlesResponse;

    async fn open(mut client: Client) -> Result<Response<Streaming<JwtBundlesResponse>>, Status> {
        client.fetch_jwt_bundles(ask(JwtBundlesRequest {})).await
    }

    fn take(&mut self, frame: JwtBundlesResponse) -> Result<(), FrameError> {
        let all = read(frame)?;
        tracing::info!(domains = all.len(), "keys of JWT-SVIDs");
        self.bundles.replace(all);
        Ok(())
    }

    /// Whoever may not see the keys any more believes nobody's tokens.
    fn failed(&mut self, error: &IdentityError) {
        if error.is_withdrawal() {
            self.bundles.replace(BTreeMap::new());
            tracing::warn!("the keys of JWT-SVIDs were withdrawn: every one of them is refused");
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

    #[test]
    fn wapi_34_keys_that_are_withdrawn_are_given_up_and_those_of_a_server_that_is_away_are_not() {
        let keys = JwtSigner::new("k").bundle("dev.test").to_jwks_json();
        let mut source = KeySource {
            link: Link {
                socket: "/nowhere".into(),
                clock: mesh_runtime::clock::Clock::system(),
                metrics: crate::metrics::ProxyMetrics::new(
                    &mesh_runtime::metrics::Metrics::new("mesh_proxy"),
                    None,
                ),
            },
            bundles: JwtBundles::default(),
            policies: Policies::not_ready(),
        };
        source.take(frame(&[("spiffe://dev.test", &keys)])).unwrap();
        let has = |source: &KeySource| source.bundles.get(&"dev.test".parse().unwrap()).is_some();
        source.failed(&IdentityError::Ended);
        source.failed(&IdentityError::Answer(Box::new(Status::unavailable(""))));
        assert!(has(&source));
        let no = Status::permission_denied("");
        source.failed(&IdentityError::Answer(Box::new(no)));
        assert!(!has(&source));
    }
}
