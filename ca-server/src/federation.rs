//! Decides which other trust domains we federate with, when their bundles are asked for again, and what of an answer is kept
//! (SPIFFE Federation 5). Trusts that the caller may write relationships. Never fetches from anywhere that an administrator did
//! not name, never goes back to an older bundle, and keeps the last good one whatever the other side does.

mod fetch;
mod judge;
mod poll;
mod url;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mesh_identity::{Bundle, BundleError, BundleSet, TrustDomain};
use mesh_runtime::audit::{Action, Actor, AuditError, AuditLog, Decision, Object, Outcome};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Coded, ErrorChain};
use tokio::sync::Notify;

pub use self::fetch::{Endpoint, Fetch, FetchError, Https};
use self::judge::{Verdict, interval, judge};
pub use self::poll::run;
pub use self::url::{EndpointUrl, EndpointUrlError};
use crate::metrics::Metrics;
use crate::store::{
    Bundles, EndpointProfile, Relationship, Relationships, Replaced, ReplacedRelationship,
    StoreError, StoredBundle,
};

/// The relationships, behind their rules. Share it by `Arc`.
pub struct Federation {
    own: TrustDomain,
    relationships: Arc<dyn Relationships>,
    bundles: Arc<dyn Bundles>,
    fetch: Arc<dyn Fetch>,
    audit: AuditLog,
    metrics: Metrics,
    clock: Clock,
    health: Mutex<BTreeMap<TrustDomain, Health>>,
    /// A relationship came, changed or went.
    changed: Notify,
}

/// How a relationship does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// When a usable bundle was fetched last.
    pub good_at: Option<SystemTime>,
    /// Why the newest attempt failed, if it did.
    pub failing: Option<String>,
    /// When the next attempt is due.
    pub due_at: SystemTime,
    /// Of which state of the relationship this is told.
    revision: u64,
}

/// What came of a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// A newer bundle is stored.
    Updated,
    /// It is the one that we have.
    Unchanged,
}

/// How an update ended without a change.
#[derive(Debug)]
pub enum NotUpdated<E> {
    /// There is no such relationship.
    NotFound,
    /// The change itself was refused.
    Change(E),
    /// The store refused.
    Store(StoreError),
}

/// The surroundings of a federation.
pub struct Around {
    /// Our own trust domain.
    pub own: TrustDomain,
    /// Where relationships are kept.
    pub relationships: Arc<dyn Relationships>,
    /// Where bundles are kept.
    pub bundles: Arc<dyn Bundles>,
    /// Asks endpoints.
    pub fetch: Arc<dyn Fetch>,
    /// The record.
    pub audit: AuditLog,
    /// The numbers.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
}

impl Federation {
    /// A federation in its surroundings.
    pub fn new(around: Around) -> Self {
        Self {
            own: around.own,
            relationships: around.relationships,
            bundles: around.bundles,
            fetch: around.fetch,
            audit: around.audit,
            metrics: around.metrics,
            clock: around.clock,
            health: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// One.
    pub async fn get(&self, domain: &TrustDomain) -> Result<Option<Arc<Relationship>>, StoreError> {
        self.relationships.get(domain).await
    }

    /// All, in the order of their trust domains.
    pub async fn list(&self) -> Result<Vec<Arc<Relationship>>, StoreError> {
        self.relationships.list().await
    }

    /// Begins one, with the bundle to begin with where one is given. None: there is one already.
    pub async fn create(
        &self,
        relationship: Relationship,
        bundle: Option<StoredBundle>,
    ) -> Result<Option<Arc<Relationship>>, StoreError> {
        let replaced = self
            .relationships
            .replace(relationship, None, bundle)
            .await?;
        self.changed.notify_one();
        match replaced {
            ReplacedRelationship::Done(new) => Ok(Some(new)),
            ReplacedRelationship::Other(_) => Ok(None),
        }
    }

    /// Reads one, changes and stores it; begins again if somebody else changed it in between.
    pub async fn update<E>(
        &self,
        domain: &TrustDomain,
        change: impl Fn(&Relationship) -> Result<(Relationship, Option<StoredBundle>), E>,
    ) -> Result<Arc<Relationship>, NotUpdated<E>> {
        let mut old = self
            .relationships
            .get(domain)
            .await
            .map_err(NotUpdated::Store)?;
        loop {
            let present = old.ok_or(NotUpdated::NotFound)?;
            let (new, bundle) = change(&present).map_err(NotUpdated::Change)?;
            let replaced = self
                .relationships
                .replace(new, Some(present.revision), bundle);
            match replaced.await.map_err(NotUpdated::Store)? {
                ReplacedRelationship::Done(new) => {
                    self.changed.notify_one();
                    return Ok(new);
                }
                // Whoever was faster has made progress, so this ends.
                ReplacedRelationship::Other(now) => old = now,
            }
        }
    }

    /// Ends one; it is returned. The bundle stays until it is removed, for entries may federate with its trust domain.
    pub async fn delete(
        &self,
        domain: &TrustDomain,
    ) -> Result<Option<Arc<Relationship>>, StoreError> {
        let gone = self.relationships.delete(domain).await?;
        self.changed.notify_one();
        Ok(gone)
    }

    /// How a relationship does; none before the first attempt.
    pub fn health(&self, domain: &TrustDomain) -> Option<Health> {
        self.all_health().get(domain).cloned()
    }

    /// Fetches the bundle of one trust domain now. None: there is no relationship with it.
    pub async fn refresh(&self, domain: &TrustDomain) -> Result<Option<Refreshed>, RefreshError> {
        let Some(relationship) = self.relationships.get(domain).await? else {
            return Ok(None);
        };
        let outcome = self.fetch_and_keep(&relationship).await;
        self.note(&relationship, &outcome).await;
        outcome.map(Some)
    }

    async fn fetch_and_keep(&self, relationship: &Relationship) -> Result<Refreshed, RefreshError> {
        let url: EndpointUrl = relationship.bundle_endpoint_url.parse()?;
        let endpoint = match &relationship.profile {
            EndpointProfile::HttpsWeb => Endpoint::Web,
            EndpointProfile::HttpsSpiffe { endpoint_id } => Endpoint::Spiffe {
                id: endpoint_id.clone(),
                bundles: self.trust_for(endpoint_id.trust_domain()).await?,
            },
        };
        let document = self.fetch.fetch(&url, &endpoint).await?;
        // Whatever the document says, it is of the trust domain that we asked for (FED-22); roots of another are refused.
        let got = Bundle::from_spiffe_json(relationship.trust_domain.clone(), &document)?;
        let mut have = self.bundles.get(&relationship.trust_domain).await?;
        loop {
            match judge(have.as_deref(), &got) {
                Verdict::Same => return Ok(Refreshed::Unchanged),
                Verdict::Older { have, got } => return Err(RefreshError::Older { have, got }),
                Verdict::OtherContent(sequence) => {
                    return Err(RefreshError::OtherContent(sequence));
                }
                Verdict::Newer => {}
            }
            let expected = have.as_ref().map(|have| have.revision);
            let replaced = self.bundles.replace(StoredBundle::from(&got), expected);
            match replaced.await? {
                Replaced::Done(_) => return Ok(Refreshed::Updated),
                Replaced::Other(now) => have = now,
            }
        }
    }

    /// What an endpoint of a trust domain is verified with: the newest bundle that we have of it (FED-31).
    async fn trust_for(&self, domain: &TrustDomain) -> Result<BundleSet, RefreshError> {
        let stored = match *domain == self.own {
            true => self.bundles.own().await?,
            false => self.bundles.get(domain).await?,
        };
        let stored = stored.ok_or_else(|| RefreshError::NoTrust(domain.clone()))?;
        Ok(std::iter::once(stored.to_bundle()?).collect())
    }

    /// Health, metrics and record of an attempt. Nothing is recorded of what changed nothing.
    async fn note(&self, relationship: &Relationship, outcome: &Result<Refreshed, RefreshError>) {
        let domain = &relationship.trust_domain;
        let now = self.clock.now();
        let bundle = self.bundles.get(domain).await.ok().flatten();
        let pause = interval(bundle.as_deref(), outcome.is_ok());
        {
            let mut all = self.all_health();
            let before = all.get(domain).and_then(|health| health.good_at);
            all.insert(
                domain.clone(),
                Health {
                    good_at: if outcome.is_ok() { Some(now) } else { before },
                    failing: outcome
                        .as_ref()
                        .err()
                        .map(|error| ErrorChain(error).to_string()),
                    due_at: now + pause,
                    revision: relationship.revision,
                },
            );
        }
        self.changed.notify_one();
        self.metrics.federation(domain, outcome, now);
        let code = match outcome {
            Ok(Refreshed::Unchanged) => return,
            Ok(Refreshed::Updated) => None,
            Err(error) if error.is_suspicious() => Some(error.code()),
            Err(_) => return,
        };
        let mut record = self
            .audit
            .begin(Action("bundle.refresh"), Actor::system("ca-server"));
        record.object(Object::new("bundle").name(domain.as_str()));
        let how = match outcome {
            Ok(_) => Outcome::Success,
            Err(error) => {
                record.decision(Decision::deny(ErrorChain(error).to_string()));
                Outcome::Denied
            }
        };
        if let Err(error) = record.finish(how, code).await {
            let error: AuditError = error;
            tracing::error!(code = error.code(), error = %ErrorChain(&error), "a refreshed bundle could not be recorded");
        }
    }

    /// When a relationship is due: a new or changed one at once.
    fn due_at(&self, relationship: &Relationship) -> SystemTime {
        match self.all_health().get(&relationship.trust_domain) {
            Some(health) if health.revision == relationship.revision => health.due_at,
            _ => SystemTime::UNIX_EPOCH,
        }
    }

    /// Forgets how relationships did that are gone.
    fn keep_health_of(&self, relationships: &[Arc<Relationship>]) {
        let there = |domain: &TrustDomain| {
            relationships
                .binary_search_by(|relationship| relationship.trust_domain.cmp(domain))
                .is_ok()
        };
        self.all_health().retain(|domain, _| there(domain));
    }

    fn all_health(&self) -> std::sync::MutexGuard<'_, BTreeMap<TrustDomain, Health>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a bundle was not refreshed. The one that we have stays.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The URL is unusable.
    #[error(transparent)]
    Url(#[from] EndpointUrlError),
    /// We cannot verify the endpoint.
    #[error("there is no bundle of trust domain {0} to verify the endpoint with")]
    NoTrust(TrustDomain),
    /// It could not be fetched.
    #[error("the bundle could not be fetched")]
    Fetch(#[from] FetchError),
    /// It is no bundle of that trust domain.
    #[error("what the endpoint serves is not a bundle of its trust domain")]
    NotABundle(#[from] BundleError),
    /// A replay, or a restored server.
    #[error("the endpoint serves sequence number {got}, older than {have}, which we have")]
    Older {
        /// Ours.
        have: u64,
        /// The endpoint's.
        got: u64,
    },
    /// Two contents with one number: one of them is wrong.
    #[error("the endpoint serves another content under sequence number {0}, which we have")]
    OtherContent(u64),
    /// The store did not answer.
    #[error("the bundle could not be stored")]
    Store(#[from] StoreError),
}

impl RefreshError {
    /// Whether an honest endpoint never does this.
    fn is_suspicious(&self) -> bool {
        matches!(
            self,
            Self::Older { .. } | Self::OtherContent(_) | Self::NotABundle(_)
        )
    }
}

impl Coded for RefreshError {
    fn code(&self) -> &'static str {
        match self {
            Self::Url(error) => error.code(),
            Self::NoTrust(_) => "FNL1276",
            Self::Fetch(error) => error.code(),
            Self::NotABundle(error) => error.code(),
            Self::Older { .. } => "FNL1277",
            Self::OtherContent(_) => "FNL1278",
            Self::Store(error) => error.code(),
        }
    }
}

#[cfg(test)]
mod tests;
