//! Decides which identities exist and which of them an agent may have for its node.
//! Trusts the store's view, and brings itself up to the newest revision before each answer.
//! Never answers from a state older than one that was acknowledged to anybody.

mod derived;
mod entries;
mod index;
mod query;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use mesh_identity::{DnsName, Entry, EntryId, SpiffeId, TrustDomain};
use mesh_runtime::errors::Coded;
use tokio::sync::watch;

use self::derived::NoFacts;
use self::index::Index;
use crate::store::{ChangeSet, Changes, Node, StoreError, StoredBundle};

pub use self::derived::{Derivation, Derived, Standing};
pub use self::entries::{CreateError, CreateRefused, EntryBook, UpdateRefused};
pub use self::query::{
    AgentFilter, EntryFilter, Match, Page, PageError, Paged, ROOM, agents_page, cut,
};

/// The entries, agents and bundles of now, indexed for the questions that agents ask. Share it by `Arc`.
pub struct Registry {
    changes: Arc<dyn Changes>,
    newest: watch::Receiver<u64>,
    derivation: Arc<dyn Derivation>,
    index: RwLock<Index>,
    /// One at a time brings the index up to date.
    refresh: tokio::sync::Mutex<()>,
}

/// An entry that the agent which asked may have. Made only by [`Registry::authorize`].
#[derive(Clone, Debug)]
pub struct AuthorizedEntry(Arc<Entry>);

impl AuthorizedEntry {
    /// The identity that it gives.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// Further names for the certificate.
    pub fn dns_names(&self) -> &[DnsName] {
        &self.0.dns_names
    }

    /// How long a JWT-SVID shall live, if the entry says so.
    pub fn jwt_svid_ttl(&self) -> Option<Duration> {
        self.0.jwt_svid_ttl
    }

    /// Whether its JWT-SVIDs have names of their own (`jti`).
    pub fn with_token_id(&self) -> bool {
        self.0.jwt_svid_include_jti
    }

    /// What tells it from other identities of the same workload.
    pub fn hint(&self) -> &str {
        &self.0.hint
    }

    /// How long an X509-SVID shall live, if the entry says so.
    pub fn x509_svid_ttl(&self) -> Option<Duration> {
        self.0.x509_svid_ttl
    }
}

/// What one agent may serve at one revision.
#[derive(Clone, Debug, Default)]
pub struct AgentView {
    /// The store's revision.
    pub revision: u64,
    /// The agent's record; none if it is gone.
    pub node: Option<Arc<Node>>,
    /// Its entries.
    pub entries: BTreeMap<EntryId, Arc<Entry>>,
    /// Our own bundle, and those of the trust domains that its entries federate with.
    pub bundles: BTreeMap<TrustDomain, Arc<StoredBundle>>,
    /// Whether entries that are not stored are among them.
    pub standing: Standing,
}

impl Registry {
    /// A registry over a store alone. It reads everything once.
    pub async fn open(changes: Arc<dyn Changes>) -> Result<Arc<Self>, StoreError> {
        Self::with(changes, NoFacts::new()).await
    }

    /// A registry over a store and a source of identities that are not stored.
    pub async fn with(
        changes: Arc<dyn Changes>,
        derivation: Arc<dyn Derivation>,
    ) -> Result<Arc<Self>, StoreError> {
        let newest = changes.newest();
        let all = changes.everything().await?;
        let mut index = Index::default();
        index.apply(all);
        Ok(Arc::new(Self {
            changes,
            newest,
            derivation,
            index: RwLock::new(index),
            refresh: tokio::sync::Mutex::new(()),
        }))
    }

    /// Brings the index to the newest revision. Cheap when nothing changed.
    pub async fn refresh(&self) -> Result<u64, StoreError> {
        let newest = *self.newest.borrow();
        if self.read().revision() >= newest {
            return Ok(newest);
        }
        let _one = self.refresh.lock().await;
        let have = self.read().revision();
        if have >= newest {
            return Ok(have);
        }
        let change = match self.changes.since(have).await? {
            Some(change) => change,
            None => {
                let all = self.changes.everything().await?;
                let mut index = Index::default();
                index.apply(all);
                let revision = index.revision();
                *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
                return Ok(revision);
            }
        };
        let revision = change.revision;
        self.index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(change);
        Ok(revision)
    }

    /// The store's newest revision, as it moves.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    /// The store's epoch.
    pub fn epoch(&self) -> &str {
        self.changes.epoch()
    }

    /// Whether an agent may have an entry. Call [`Registry::refresh`] first.
    pub fn authorize(&self, agent: &Node, id: &EntryId) -> Result<AuthorizedEntry, NotAuthorized> {
        if let Some(stored) = self.read().authorized(agent, id) {
            return Ok(AuthorizedEntry(stored));
        }
        let derived = match self.derivation.of(agent) {
            Derived::Known { mut entries, .. } => entries.remove(id),
            Derived::Waiting => return Err(NotAuthorized::NotYet { id: id.clone() }),
            Derived::Nothing => None,
        };
        // Whether it exists is not told: agents must not learn of others' entries.
        derived
            .map(AuthorizedEntry)
            .ok_or_else(|| NotAuthorized::NotYours { id: id.clone() })
    }

    /// Everything that an agent may serve. Call [`Registry::refresh`] first.
    pub fn view(&self, agent: &SpiffeId) -> AgentView {
        let index = self.read();
        let view = index.view(agent);
        self.with_derived(&index, view)
    }

    /// Adds what is not stored. A stored entry keeps its name.
    fn with_derived(&self, index: &Index, mut view: AgentView) -> AgentView {
        let derived = match &view.node {
            Some(node) => self.derivation.of(node),
            None => Derived::Nothing,
        };
        view.standing = match derived {
            Derived::Nothing => Standing::Nothing,
            Derived::Waiting => Standing::Waiting,
            Derived::Known {
                generation,
                entries,
            } => {
                for (id, entry) in entries {
                    index.add_bundles(&entry, &mut view.bundles);
                    view.entries.entry(id).or_insert(entry);
                }
                Standing::At(generation)
            }
        };
        view
    }

    /// Whether what is not stored may be another for an agent than in a view with this standing.
    pub fn derived_may_have_changed(&self, agent: &SpiffeId, standing: Standing) -> bool {
        let index = self.read();
        match (index.live(agent), standing) {
            (None, Standing::Nothing) => false,
            (None, _) => true,
            (Some(node), Standing::At(since)) => self.derivation.may_have_changed(node, since),
            (Some(node), Standing::Waiting) => self.derivation.of(node) != Derived::Waiting,
            (Some(node), Standing::Nothing) => self.derivation.of(node) != Derived::Nothing,
        }
    }

    /// The generation of the facts that identities are derived from, as it moves.
    pub fn facts(&self) -> watch::Receiver<u64> {
        self.derivation.generation()
    }

    /// The view of an agent if it may be another than at a revision, else the revision up to which it is the same.
    /// Call [`Registry::refresh`] first.
    pub fn view_after(&self, agent: &SpiffeId, since: u64) -> Result<AgentView, u64> {
        let index = self.read();
        match index.may_have_changed(agent, since) {
            true => Ok(self.with_derived(&index, index.view(agent))),
            false => Err(index.revision()),
        }
    }

    /// What changed after a revision for an agent, if that can be told from the changes alone.
    pub async fn changed_since(
        &self,
        view: &AgentView,
        revision: u64,
    ) -> Result<Option<ChangeSet>, StoreError> {
        let Some(change) = self.changes.since(revision).await? else {
            return Ok(None);
        };
        Ok(self.read().can_tell(view, &change).then_some(change))
    }

    /// Whether an identity has an admin entry.
    pub fn is_admin(&self, id: &SpiffeId) -> bool {
        self.read().is_admin(id) || self.derivation.is_admin(id)
    }

    /// How many entries and agents there are.
    pub fn counts(&self) -> (usize, usize) {
        self.read().counts()
    }

    fn read(&self) -> impl Deref<Target = Index> + '_ {
        let guard: RwLockReadGuard<'_, Index> =
            self.index.read().unwrap_or_else(PoisonError::into_inner);
        guard
    }
}

/// Why an agent may not have an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAuthorized {
    /// It is not this agent's, or it does not exist.
    #[error("entry {id} not found or not authorized")]
    NotYours {
        /// Which.
        id: EntryId,
    },
    /// It is not stored, and the facts that it may follow from are not all there.
    #[error("entry {id} cannot be judged before the cluster has been read")]
    NotYet {
        /// Which.
        id: EntryId,
    },
}

impl Coded for NotAuthorized {
    fn code(&self) -> &'static str {
        match self {
            Self::NotYours { .. } => "FNL1220",
            Self::NotYet { .. } => "FNL1161",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

#[cfg(test)]
mod scale;
