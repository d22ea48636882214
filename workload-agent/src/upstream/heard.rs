//! Decides what the CA's words add up to: updates of the stream and answers to questions end in the same state.
//! Trusts that what it gets was read whole. Never takes a part of an update, never stays without our own root.

use std::{collections::BTreeMap, sync::Arc};

use mesh_identity::{Bundle, Entry, EntryId, SpiffeId, TrustDomain};
use proto::convert::{
    WireError,
    feed::{Position, Update},
};

/// Why an update is refused.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A part of it cannot be read.
    #[error("the update cannot be read")]
    Unreadable(#[source] WireError),
    /// It is a change to something we do not hold.
    #[error("a change to revision {got} does not follow what is held ({held})")]
    NoBase {
        /// What came.
        got: u64,
        /// What we have.
        held: String,
    },
    /// Our own trust domain would have no root.
    #[error("the update leaves {0} without a trust bundle")]
    NoBundle(TrustDomain),
}

/// The entries by their names.
pub(super) type Entries = BTreeMap<EntryId, Arc<Entry>>;
/// The bundles by their trust domains.
pub(super) type Bundles = BTreeMap<TrustDomain, Arc<Bundle>>;

/// What the CA has said so far.
#[derive(Debug)]
pub(super) struct Heard {
    own: TrustDomain,
    /// Whose position it is: another agent ID has other entries.
    agent: Option<SpiffeId>,
    position: Option<Position>,
    entries: Entries,
    bundles: Bundles,
}

impl Heard {
    pub(super) fn new(own: TrustDomain) -> Self {
        Self {
            own,
            agent: None,
            position: None,
            entries: BTreeMap::new(),
            bundles: BTreeMap::new(),
        }
    }

    /// Where the stream goes on.
    pub(super) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    pub(super) fn entry(&self, id: &EntryId) -> Option<&Arc<Entry>> {
        self.entries.get(id)
    }

    pub(super) fn bundles(&self) -> impl Iterator<Item = &Arc<Bundle>> {
        self.bundles.values()
    }

    pub(super) fn bundle(&self, domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        self.bundles.get(domain)
    }

    /// Another agent ID has other entries: nothing of before counts.
    pub(super) fn forget_position_of_another(&mut self, agent: &SpiffeId) {
        if self.agent.as_ref() != Some(agent) {
            self.agent = Some(agent.clone());
            self.position = None;
        }
    }

    /// Takes one update of the stream: all of it or nothing.
    pub(super) fn apply(&mut self, update: Update) -> Result<(), UpdateError> {
        if !update.snapshot {
            // The same revision again is how a server says that there is nothing new.
            let held = match &self.position {
                Some(held)
                    if held.epoch == update.at.epoch && held.revision <= update.at.revision =>
                {
                    None
                }
                Some(held) => Some(format!("revision {} of {}", held.revision, held.epoch)),
                None => Some("nothing".into()),
            };
            if let Some(held) = held {
                return Err(UpdateError::NoBase {
                    got: update.at.revision,
                    held,
                });
            }
        }
        let removed = update.removed_bundles.contains(&self.own);
        let own = update
            .bundles
            .iter()
            .map(|carried| &carried.bundle)
            .find(|bundle| *bundle.trust_domain() == self.own);
        let rooted = match own {
            Some(bundle) => !bundle.x509_authorities().is_empty(),
            None => !update.snapshot && !removed && self.bundles.contains_key(&self.own),
        };
        if !rooted {
            return Err(UpdateError::NoBundle(self.own.clone()));
        }
        if update.snapshot {
            self.entries.clear();
            self.bundles.clear();
        }
        for id in &update.removed_entries {
            self.entries.remove(id);
        }
        for domain in &update.removed_bundles {
            self.bundles.remove(domain);
        }
        self.entries.extend(
            update
                .entries
                .into_iter()
                .map(|entry| (entry.id.clone(), Arc::new(entry))),
        );
        let bundles = update
            .bundles
            .into_iter()
            .map(|carried| Arc::new(carried.bundle));
        self.bundles
            .extend(bundles.map(|bundle| (bundle.trust_domain().clone(), bundle)));
        self.position = Some(update.at);
        Ok(())
    }

    /// Takes the answers to one round of questions, and says whether they are any news. A stream cannot go on from here.
    pub(super) fn replace(
        &mut self,
        entries: Entries,
        bundles: Bundles,
    ) -> Result<bool, UpdateError> {
        let own = bundles.get(&self.own);
        if own.is_none_or(|own| own.x509_authorities().is_empty()) {
            return Err(UpdateError::NoBundle(self.own.clone()));
        }
        let news = self.entries != entries || self.bundles != bundles;
        (self.entries, self.bundles, self.position) = (entries, bundles, None);
        Ok(news)
    }
}

#[cfg(test)]
mod tests;
