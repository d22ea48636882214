//! Decides what an agent is told next: a snapshot, then numbered changes, from the registry's view of it.
//! Trusts the agent's word about where it stands only within one epoch, and only where the change log can prove the rest.
//! Never queues old states for a slow reader: it gets the newest one when it reads again.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_identity::{Entry, EntryId, SpiffeId, TrustDomain};

use crate::registry::{AgentView, Registry, Standing};
use crate::store::{StoreError, StoredBundle};

/// Where an agent says it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The epoch of the store that it heard.
    pub epoch: String,
    /// The last revision that it applied.
    pub revision: u64,
}

/// One change of what an agent holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Where the agent is afterwards.
    pub revision: u64,
    /// Whether it replaces everything.
    pub snapshot: bool,
    /// New and changed entries.
    pub entries: Vec<Arc<Entry>>,
    /// Entries that are gone.
    pub removed_entries: Vec<EntryId>,
    /// New and changed bundles.
    pub bundles: Vec<Arc<StoredBundle>>,
    /// Trust domains whose bundle is gone.
    pub removed_bundles: Vec<TrustDomain>,
}

impl Step {
    fn is_empty(&self) -> bool {
        !self.snapshot
            && self.entries.is_empty()
            && self.removed_entries.is_empty()
            && self.bundles.is_empty()
            && self.removed_bundles.is_empty()
    }
}

/// What one stream has told its agent.
pub struct Follower {
    registry: Arc<Registry>,
    agent: SpiffeId,
    told: Option<Told>,
}

/// Object by object, the revision that the agent holds.
#[derive(Default)]
struct Told {
    /// The revision up to which the agent's view is known to be this.
    up_to: u64,
    /// Where it stands towards what is not stored.
    standing: Standing,
    entries: BTreeMap<EntryId, u64>,
    bundles: BTreeMap<TrustDomain, u64>,
}

impl Told {
    fn of(view: &AgentView) -> Self {
        let entries = view.entries.values();
        let bundles = view.bundles.values();
        Self {
            up_to: view.revision,
            standing: view.standing,
            entries: entries.map(|e| (e.id.clone(), e.revision)).collect(),
            bundles: bundles
                .map(|b| (b.trust_domain.clone(), b.revision))
                .collect(),
        }
    }
}

impl Follower {
    /// A follower that has told nothing yet.
    pub fn new(registry: Arc<Registry>, agent: SpiffeId) -> Self {
        Self {
            registry,
            agent,
            told: None,
        }
    }

    /// The first step: a change from where the agent stands if that can be told exactly, else a snapshot. None as long as what
    /// belongs into a snapshot is not known: the agent keeps what it holds.
    pub async fn first(&mut self, resume: Option<Position>) -> Result<Option<Step>, StoreError> {
        self.registry.refresh().await?;
        let view = self.registry.view(&self.agent);
        let resume = resume.filter(|position| position.epoch == self.registry.epoch());
        let change = match resume {
            // No log tells what was derived when the agent was here last.
            Some(position)
                if position.revision <= view.revision
                    && !matches!(view.standing, Standing::At(_)) =>
            {
                self.registry
                    .changed_since(&view, position.revision)
                    .await?
            }
            _ => None,
        };
        if change.is_none() && view.standing == Standing::Waiting {
            return Ok(None);
        }
        self.told = Some(Told::of(&view));
        let Some(change) = change else {
            return Ok(Some(snapshot(view)));
        };
        let (stay, gone): (Vec<_>, Vec<_>) = change
            .entries
            .into_iter()
            .partition(|entry| view.entries.contains_key(&entry.id));
        let changed_bundles = change.own_bundle.into_iter().chain(change.foreign_bundles);
        Ok(Some(Step {
            revision: view.revision,
            snapshot: false,
            entries: stay
                .iter()
                .filter_map(|entry| view.entries.get(&entry.id).cloned())
                .collect(),
            removed_entries: gone
                .into_iter()
                .map(|entry| entry.id.clone())
                .chain(change.removed_entries)
                .filter(|id| !view.entries.contains_key(id))
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect(),
            bundles: changed_bundles
                .filter_map(|bundle| view.bundles.get(&bundle.trust_domain).cloned())
                .collect(),
            removed_bundles: change.removed_trust_domains,
        }))
    }

    /// The next step after [`Follower::first`]; none if nothing changed for this agent.
    pub async fn next(&mut self) -> Result<Option<Step>, StoreError> {
        self.registry.refresh().await?;
        let mut told = self.told.take().unwrap_or_default();
        let derived = self
            .registry
            .derived_may_have_changed(&self.agent, told.standing);
        let view = match self.registry.view_after(&self.agent, told.up_to) {
            Ok(view) => view,
            Err(_) if derived => self.registry.view(&self.agent),
            Err(revision) => {
                told.up_to = revision;
                self.told = Some(told);
                return Ok(None);
            }
        };
        let new = Told::of(&view);
        if told.standing == Standing::Waiting && view.standing != Standing::Waiting {
            // The agent may hold derived entries of an earlier stream; now it is known which of them there still are.
            self.told = Some(new);
            return Ok(Some(snapshot(view)));
        }
        let step = Step {
            revision: view.revision,
            snapshot: false,
            entries: view
                .entries
                .into_values()
                .filter(|entry| told.entries.get(&entry.id) != Some(&entry.revision))
                .collect(),
            removed_entries: missing(&told.entries, &new.entries),
            bundles: view
                .bundles
                .into_values()
                .filter(|bundle| told.bundles.get(&bundle.trust_domain) != Some(&bundle.revision))
                .collect(),
            removed_bundles: missing(&told.bundles, &new.bundles),
        };
        self.told = Some(new);
        Ok((!step.is_empty()).then_some(step))
    }
}

/// Everything that an agent may serve.
fn snapshot(view: AgentView) -> Step {
    Step {
        revision: view.revision,
        snapshot: true,
        entries: view.entries.into_values().collect(),
        bundles: view.bundles.into_values().collect(),
        ..Step::default()
    }
}

fn missing<K: Ord + Clone>(old: &BTreeMap<K, u64>, new: &BTreeMap<K, u64>) -> Vec<K> {
    old.keys()
        .filter(|key| !new.contains_key(*key))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests;
