//! Entries by id, parent and identity, and who reaches which: the parent chain and the node aliases of SPIRE.
//! Trusts each change set to follow the one before. Never walks a circle twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mesh_identity::{Entry, EntryId, SpiffeId, TrustDomain};

use super::AgentView;
use crate::store::{ChangeSet, Node, StoredBundle};

#[derive(Default)]
pub(super) struct Index {
    revision: u64,
    entries: BTreeMap<EntryId, Arc<Entry>>,
    by_parent: HashMap<SpiffeId, BTreeSet<EntryId>>,
    by_identity: HashMap<SpiffeId, BTreeSet<EntryId>>,
    /// Entries below `/spire/server`: they make names for nodes.
    aliases: BTreeSet<EntryId>,
    /// Entries whose parent is neither an agent nor the server.
    nested: usize,
    nodes: HashMap<SpiffeId, Arc<Node>>,
    own_bundle: Option<Arc<StoredBundle>>,
    foreign_bundles: BTreeMap<TrustDomain, Arc<StoredBundle>>,
    touched: Touched,
}

/// Whom the changes concerned, so that a change to one node's entries costs the other nodes a look and not a new view.
/// Where that cannot be said of one name, it concerns everybody.
#[derive(Default)]
struct Touched {
    /// The last revision that may have concerned any node.
    everybody: u64,
    /// The last revision that concerned the nodes of this name: an agent's ID, or that of an alias.
    by_name: HashMap<SpiffeId, u64>,
}

/// Names that are remembered beyond those in use.
const SPARE_NAMES: usize = 1024;

/// Whether a parent is a node or the server: then what lies below it depends on no other entry.
fn is_root(parent: &SpiffeId) -> bool {
    parent.path().starts_with("/spire/agent/") || parent.path() == "/spire/server"
}

impl Index {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.entries.len(), self.nodes.len())
    }

    pub(super) fn apply(&mut self, change: ChangeSet) {
        let revision = change.revision;
        if change.own_bundle.is_some()
            || !change.foreign_bundles.is_empty()
            || !change.removed_trust_domains.is_empty()
            || !change.removed_nodes.is_empty()
        {
            self.touched.everybody = revision;
        }
        for node in &change.nodes {
            self.touched.by_name.insert(node.id.clone(), revision);
        }
        for id in &change.removed_nodes {
            self.touched.by_name.remove(id);
        }
        self.forget_old_names(revision);
        for id in &change.removed_entries {
            self.remove(id, revision);
        }
        for entry in change.entries {
            self.remove(&entry.id, revision);
            self.insert(entry, revision);
        }
        for id in &change.removed_nodes {
            self.nodes.remove(id);
        }
        for node in change.nodes {
            self.nodes.insert(node.id.clone(), node);
        }
        if let Some(bundle) = change.own_bundle {
            self.own_bundle = Some(bundle);
        }
        for domain in &change.removed_trust_domains {
            self.foreign_bundles.remove(domain);
        }
        for bundle in change.foreign_bundles {
            self.foreign_bundles
                .insert(bundle.trust_domain.clone(), bundle);
        }
        self.revision = revision;
    }

    fn insert(&mut self, entry: Arc<Entry>, revision: u64) {
        self.touch(&entry, revision);
        let id = entry.id.clone();
        self.by_parent
            .entry(entry.parent_id.clone())
            .or_default()
            .insert(id.clone());
        self.by_identity
            .entry(entry.spiffe_id.clone())
            .or_default()
            .insert(id.clone());
        if entry.is_node_alias() {
            self.aliases.insert(id.clone());
        }
        self.nested += usize::from(!is_root(&entry.parent_id));
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: &EntryId, revision: u64) {
        let Some(entry) = self.entries.remove(id) else {
            return;
        };
        self.touch(&entry, revision);
        drop_from(&mut self.by_parent, &entry.parent_id, id);
        drop_from(&mut self.by_identity, &entry.spiffe_id, id);
        self.aliases.remove(id);
        self.nested -= usize::from(!is_root(&entry.parent_id));
    }

    /// An entry came or goes. It concerns the nodes of its parent's name, if that names nodes only and nothing is below the
    /// entry; an alias, and what stands in a chain, concerns everybody.
    fn touch(&mut self, entry: &Entry, revision: u64) {
        let parent = &entry.parent_id;
        let leaf = !entry.is_node_alias() && !self.by_parent.contains_key(&entry.spiffe_id);
        if leaf && self.names_nodes_only(parent) {
            self.touched.by_name.insert(parent.clone(), revision);
        } else {
            self.touched.everybody = revision;
        }
    }

    /// Names without nodes and entries are not kept for ever: those that are forgotten concern everybody once.
    fn forget_old_names(&mut self, revision: u64) {
        let in_use = self.by_parent.len() + self.nodes.len();
        if self.touched.by_name.len() > 2 * in_use + SPARE_NAMES {
            self.touched.by_name.clear();
            self.touched.everybody = revision;
        }
    }

    /// Whether an ID is reached from nodes directly and through no other entry.
    fn names_nodes_only(&self, id: &SpiffeId) -> bool {
        match self.by_identity.get(id) {
            Some(holders) => holders.is_subset(&self.aliases),
            None => is_root(id),
        }
    }

    /// Whether what an agent may serve can be another than at a revision.
    pub(super) fn may_have_changed(&self, agent: &SpiffeId, since: u64) -> bool {
        let after = |name: &SpiffeId| {
            let touched = self.touched.by_name.get(name);
            touched.is_some_and(|&revision| revision > since)
        };
        self.touched.everybody > since
            || after(agent)
            || self
                .nodes
                .get(agent)
                .is_none_or(|node| self.names_of(node).any(after))
    }

    /// The names of a node: its own and those of the aliases that match its selectors.
    fn names_of<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a SpiffeId> {
        let aliases = self.aliases.iter().filter_map(|id| self.entries.get(id));
        let matching = aliases.filter(|alias| alias.matches(&node.selectors));
        std::iter::once(&node.id).chain(matching.map(|alias| &alias.spiffe_id))
    }

    /// Downwards: everything below the names of a node.
    fn below(&self, node: &Node) -> BTreeMap<EntryId, Arc<Entry>> {
        let mut found = BTreeMap::new();
        let mut seen: HashSet<&SpiffeId> = HashSet::new();
        let mut open: Vec<&SpiffeId> = self.names_of(node).collect();
        while let Some(parent) = open.pop() {
            if !seen.insert(parent) {
                continue;
            }
            let children = self.by_parent.get(parent).into_iter().flatten();
            for entry in children.filter_map(|id| self.entries.get(id)) {
                found.insert(entry.id.clone(), entry.clone());
                open.push(&entry.spiffe_id);
            }
        }
        found
    }

    /// Upwards: whether an entry is below one of a node's names. The same set as [`Index::below`].
    pub(super) fn authorized(&self, node: &Node, id: &EntryId) -> Option<Arc<Entry>> {
        let entry = self.entries.get(id)?;
        if entry.parent_id == node.id {
            return Some(entry.clone());
        }
        let names: HashSet<&SpiffeId> = self.names_of(node).collect();
        let mut seen: HashSet<&SpiffeId> = HashSet::new();
        let mut open = vec![&entry.parent_id];
        while let Some(parent) = open.pop() {
            if names.contains(parent) {
                return Some(entry.clone());
            }
            if seen.insert(parent) {
                let holders = self.by_identity.get(parent).into_iter().flatten();
                // An alias names nodes; what lies below it is reached only through a node that it matches.
                open.extend(
                    holders
                        .filter_map(|id| self.entries.get(id))
                        .filter(|holder| !holder.is_node_alias())
                        .map(|holder| &holder.parent_id),
                );
            }
        }
        None
    }

    pub(super) fn view(&self, agent: &SpiffeId) -> AgentView {
        let node = self.live(agent).cloned();
        let entries = node
            .as_ref()
            .map(|node| self.below(node))
            .unwrap_or_default();
        let mut bundles: BTreeMap<_, _> = self
            .own_bundle
            .iter()
            .map(|own| (own.trust_domain.clone(), own.clone()))
            .collect();
        // A foreign bundle goes only to nodes with a workload that is entitled to it (T-35).
        for entry in entries.values() {
            self.add_bundles(entry, &mut bundles);
        }
        AgentView {
            revision: self.revision,
            node,
            entries,
            bundles,
            ..AgentView::default()
        }
    }

    /// An agent that is known and not banned.
    pub(super) fn live(&self, agent: &SpiffeId) -> Option<&Arc<Node>> {
        self.nodes.get(agent).filter(|node| !node.banned)
    }

    /// Adds the bundles that an entry entitles to.
    pub(super) fn add_bundles(
        &self,
        entry: &Entry,
        bundles: &mut BTreeMap<TrustDomain, Arc<StoredBundle>>,
    ) {
        for domain in &entry.federates_with {
            if let Some(bundle) = self.foreign_bundles.get(domain) {
                bundles.insert(domain.clone(), bundle.clone());
            }
        }
    }

    /// Whether what an agent lost by a change can be told from the change. Where parents form chains, an entry can
    /// come or go for an agent without a change of its own; then only a snapshot is exact. The same is true of foreign bundles.
    pub(super) fn can_tell(&self, view: &AgentView, change: &ChangeSet) -> bool {
        let agent = view.node.as_ref().map(|node| &node.id);
        let node_changed = change.nodes.iter().any(|node| Some(&node.id) == agent)
            || change.removed_nodes.iter().any(|id| Some(id) == agent);
        let entries_changed = !change.entries.is_empty() || !change.removed_entries.is_empty();
        !node_changed
            && (self.nested == 0 || !entries_changed)
            && (self.foreign_bundles.is_empty() && change.removed_trust_domains.is_empty()
                || !entries_changed)
    }

    pub(super) fn is_admin(&self, id: &SpiffeId) -> bool {
        let entries = self.by_identity.get(id).into_iter().flatten();
        entries
            .filter_map(|id| self.entries.get(id))
            .any(|entry| entry.admin)
    }
}

fn drop_from(map: &mut HashMap<SpiffeId, BTreeSet<EntryId>>, key: &SpiffeId, id: &EntryId) {
    if let Some(ids) = map.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            map.remove(key);
        }
    }
}
