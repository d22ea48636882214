//! Identities that are not stored: they follow from facts of now, such as the pods of a node, whenever an agent asks.
//! Trusts whoever derives them to give an agent only what is of its own node. Never knows what the facts are.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_identity::{Entry, EntryId, SpiffeId};
use tokio::sync::watch;

use crate::store::Node;

/// Where identities come from besides the store.
pub trait Derivation: Send + Sync {
    /// What an agent may serve now, besides its stored entries.
    fn of(&self, agent: &Node) -> Derived;

    /// Whether that may be another than at a generation.
    fn may_have_changed(&self, agent: &Node, since: u64) -> bool;

    /// Whether an identity has an admin entry.
    fn is_admin(&self, id: &SpiffeId) -> bool;

    /// The generation of the facts, as it moves.
    fn generation(&self) -> watch::Receiver<u64>;
}

/// What is derived for one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Derived {
    /// Nothing is ever derived for it.
    Nothing,
    /// The facts are not all there yet: what it holds must neither be confirmed nor taken away.
    Waiting,
    /// These, at a generation of the facts.
    Known {
        /// Of the facts.
        generation: u64,
        /// Below the agent, by name.
        entries: BTreeMap<EntryId, Arc<Entry>>,
    },
}

/// Where a view stands towards the facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is ever derived for the agent.
    #[default]
    Nothing,
    /// Derived entries are not in the view, and may exist.
    Waiting,
    /// They are in it, as of this generation.
    At(u64),
}

/// A server without facts.
pub(super) struct NoFacts {
    generation: watch::Sender<u64>,
}

impl NoFacts {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            generation: watch::Sender::new(0),
        })
    }
}

impl Derivation for NoFacts {
    fn of(&self, _: &Node) -> Derived {
        Derived::Nothing
    }

    fn may_have_changed(&self, _: &Node, _: u64) -> bool {
        false
    }

    fn is_admin(&self, _: &SpiffeId) -> bool {
        false
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
