//! What readers see: entries, agents and bundles in memory, with the order in which they changed.
//! Holds only what is durable, since events arrive here after the sync; so no reader ever acts on what could be lost.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use mesh_identity::{Entry, EntryId, SpiffeId, TrustDomain};
use tokio::sync::watch;

use super::codec::{decode, unreadable};
use super::engine::{FORGOTTEN, Pages, REVISION, Table};
use super::records::{BundleRow, CounterRow, EntryRow, NodeRow, RelationshipRow, TombstoneRow};
use super::{ChangeSet, Node, Relationship, StoreError, StoredBundle};

/// How many removals are remembered, so that an agent that was away can still be told what went.
pub(super) const TOMBSTONES: usize = 10_000;

/// A change as readers will see it.
pub(super) enum Event {
    Entry(Arc<Entry>),
    Node(Arc<Node>),
    OwnBundle(Arc<StoredBundle>),
    ForeignBundle(Arc<StoredBundle>),
    Relationship(Arc<Relationship>),
    NoRelationship(TrustDomain),
    Gone(u64, Gone),
    /// Tombstones up to this revision were thrown away.
    Forgotten(u64),
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    Entry(EntryId),
    Node(SpiffeId),
    Bundle(TrustDomain),
}

/// The object that has a revision.
enum At {
    Entry(EntryId),
    Node(SpiffeId),
    OwnBundle,
    ForeignBundle(TrustDomain),
    Gone(Gone),
}

#[derive(Default)]
pub(super) struct View {
    pub(super) entries: BTreeMap<EntryId, Arc<Entry>>,
    pub(super) nodes: BTreeMap<SpiffeId, Arc<Node>>,
    pub(super) own_bundle: Option<Arc<StoredBundle>>,
    pub(super) foreign_bundles: BTreeMap<TrustDomain, Arc<StoredBundle>>,
    /// No agent hears of these, so they are not in the order of changes.
    pub(super) relationships: BTreeMap<TrustDomain, Arc<Relationship>>,
    order: BTreeMap<u64, At>,
    tombstones: usize,
    forgotten: u64,
    pub(super) revision: u64,
}

impl View {
    /// Reads the whole view from the rows.
    pub(super) fn load(pages: &dyn Pages) -> Result<Self, StoreError> {
        let mut view = Self::default();
        let counter = |key: &[u8]| -> Result<u64, StoreError> {
            let row = pages.get(&Table::Meta.key(key))?;
            row.map_or(Ok(0), |row| {
                decode::<CounterRow>(&row).map(|counter| counter.0)
            })
        };
        view.revision = counter(REVISION)?;
        view.forgotten = counter(FORGOTTEN)?;
        let mut events = Vec::new();
        each(pages, Table::Entry, |_, row| {
            events.push(Event::Entry(Arc::new(decode::<EntryRow>(row)?.try_into()?)));
            Ok(())
        })?;
        each(pages, Table::Node, |_, row| {
            events.push(Event::Node(Arc::new(decode::<NodeRow>(row)?.try_into()?)));
            Ok(())
        })?;
        each(pages, Table::OwnBundle, |_, row| {
            events.push(Event::OwnBundle(Arc::new(
                decode::<BundleRow>(row)?.try_into()?,
            )));
            Ok(())
        })?;
        each(pages, Table::ForeignBundle, |_, row| {
            events.push(Event::ForeignBundle(Arc::new(
                decode::<BundleRow>(row)?.try_into()?,
            )));
            Ok(())
        })?;
        each(pages, Table::Relationship, |_, row| {
            events.push(Event::Relationship(Arc::new(
                decode::<RelationshipRow>(row)?.try_into()?,
            )));
            Ok(())
        })?;
        each(pages, Table::Tombstone, |key, row| {
            let revision = key.try_into().map(u64::from_be_bytes);
            let revision = revision
                .map_err(|_| unreadable::<TombstoneRow>("its key is no revision".into()))?;
            events.push(Event::Gone(
                revision,
                decode::<TombstoneRow>(row)?.try_into()?,
            ));
            Ok(())
        })?;
        view.apply(events, view.revision);
        Ok(view)
    }

    pub(super) fn apply(&mut self, events: Vec<Event>, revision: u64) {
        for event in events {
            self.apply_one(event);
        }
        self.revision = revision;
    }

    fn apply_one(&mut self, event: Event) {
        match event {
            Event::Entry(entry) => {
                self.order
                    .insert(entry.revision, At::Entry(entry.id.clone()));
                let (at, old) = (entry.revision, self.entries.insert(entry.id.clone(), entry));
                self.unlist(at, old.map(|old| old.revision));
            }
            Event::Node(node) => {
                self.order.insert(node.revision, At::Node(node.id.clone()));
                let (at, old) = (node.revision, self.nodes.insert(node.id.clone(), node));
                self.unlist(at, old.map(|old| old.revision));
            }
            Event::OwnBundle(bundle) => {
                self.order.insert(bundle.revision, At::OwnBundle);
                let (at, old) = (bundle.revision, self.own_bundle.replace(bundle));
                self.unlist(at, old.map(|old| old.revision));
            }
            Event::ForeignBundle(bundle) => {
                self.order.insert(
                    bundle.revision,
                    At::ForeignBundle(bundle.trust_domain.clone()),
                );
                let (at, old) = (
                    bundle.revision,
                    self.foreign_bundles
                        .insert(bundle.trust_domain.clone(), bundle),
                );
                self.unlist(at, old.map(|old| old.revision));
            }
            Event::Relationship(relationship) => {
                let domain = relationship.trust_domain.clone();
                self.relationships.insert(domain, relationship);
            }
            Event::NoRelationship(domain) => {
                self.relationships.remove(&domain);
            }
            Event::Gone(revision, gone) => {
                let old = match &gone {
                    Gone::Entry(id) => self.entries.remove_if_older(id, revision),
                    Gone::Node(id) => self.nodes.remove_if_older(id, revision),
                    Gone::Bundle(domain) => self.foreign_bundles.remove_if_older(domain, revision),
                };
                self.unlist(revision, old);
                self.order.insert(revision, At::Gone(gone));
                self.tombstones += 1;
            }
            Event::Forgotten(upto) => {
                let kept = self.order.split_off(&(upto + 1));
                for (revision, at) in std::mem::replace(&mut self.order, kept) {
                    if matches!(at, At::Gone(_)) {
                        self.tombstones -= 1;
                    } else {
                        self.order.insert(revision, at);
                    }
                }
                self.forgotten = self.forgotten.max(upto);
            }
        }
    }

    /// An object is listed once, at its newest revision.
    fn unlist(&mut self, new: u64, old: Option<u64>) {
        if let Some(old) = old.filter(|old| *old != new) {
            self.order.remove(&old);
        }
    }

    /// Revisions of tombstones beyond the number that we keep, oldest first; empty while there is slack.
    pub(super) fn tombstones_to_forget(&self) -> Vec<u64> {
        if self.tombstones <= TOMBSTONES + TOMBSTONES / 10 {
            return Vec::new();
        }
        let gone = self
            .order
            .iter()
            .filter(|(_, at)| matches!(at, At::Gone(_)));
        gone.map(|(revision, _)| *revision)
            .take(self.tombstones - TOMBSTONES)
            .collect()
    }

    pub(super) fn since(&self, revision: u64) -> Option<ChangeSet> {
        if revision > self.revision || revision < self.forgotten {
            return None;
        }
        let mut changes = ChangeSet {
            revision: self.revision,
            ..ChangeSet::default()
        };
        for at in self.order.range(revision + 1..).map(|(_, at)| at) {
            match at {
                At::Entry(id) => changes.entries.extend(self.entries.get(id).cloned()),
                At::Node(id) => changes.nodes.extend(self.nodes.get(id).cloned()),
                At::OwnBundle => changes.own_bundle.clone_from(&self.own_bundle),
                At::ForeignBundle(domain) => {
                    changes
                        .foreign_bundles
                        .extend(self.foreign_bundles.get(domain).cloned());
                }
                // What was made again after its removal is there, not gone.
                At::Gone(Gone::Entry(id)) if !self.entries.contains_key(id) => {
                    changes.removed_entries.push(id.clone());
                }
                At::Gone(Gone::Node(id)) if !self.nodes.contains_key(id) => {
                    changes.removed_nodes.push(id.clone())
                }
                At::Gone(Gone::Bundle(domain)) if !self.foreign_bundles.contains_key(domain) => {
                    changes.removed_trust_domains.push(domain.clone());
                }
                At::Gone(_) => {}
            }
        }
        Some(changes)
    }

    pub(super) fn everything(&self) -> ChangeSet {
        let mut all = ChangeSet {
            revision: self.revision,
            ..ChangeSet::default()
        };
        all.entries = self.entries.values().cloned().collect();
        all.entries.sort_by_key(|entry| entry.revision);
        all.nodes = self.nodes.values().cloned().collect();
        all.nodes.sort_by_key(|node| node.revision);
        all.own_bundle.clone_from(&self.own_bundle);
        all.foreign_bundles = self.foreign_bundles.values().cloned().collect();
        all.foreign_bundles.sort_by_key(|bundle| bundle.revision);
        all
    }
}

/// Removal that leaves a newer object alone: a tombstone read at start may be older than what has its id now.
trait RemoveIfOlder<K> {
    fn remove_if_older(&mut self, key: &K, than: u64) -> Option<u64>;
}

impl<K: Ord, V: Revised> RemoveIfOlder<K> for BTreeMap<K, Arc<V>> {
    fn remove_if_older(&mut self, key: &K, than: u64) -> Option<u64> {
        let revision = self.get(key)?.revision();
        if revision > than {
            return None;
        }
        self.remove(key);
        Some(revision)
    }
}

trait Revised {
    fn revision(&self) -> u64;
}
impl Revised for Entry {
    fn revision(&self) -> u64 {
        self.revision
    }
}
impl Revised for Node {
    fn revision(&self) -> u64 {
        self.revision
    }
}
impl Revised for StoredBundle {
    fn revision(&self) -> u64 {
        self.revision
    }
}

impl From<&Gone> for TombstoneRow {
    fn from(gone: &Gone) -> Self {
        match gone {
            Gone::Entry(id) => Self::Entry(id.to_string()),
            Gone::Node(id) => Self::Node(id.to_string()),
            Gone::Bundle(domain) => Self::Bundle(domain.to_string()),
        }
    }
}

impl TryFrom<TombstoneRow> for Gone {
    type Error = StoreError;

    fn try_from(row: TombstoneRow) -> Result<Self, StoreError> {
        let bad = |error: &dyn std::fmt::Display| unreadable::<TombstoneRow>(error.to_string());
        Ok(match row {
            TombstoneRow::Entry(id) => Self::Entry(id.parse().map_err(|error| bad(&error))?),
            TombstoneRow::Node(id) => Self::Node(id.parse().map_err(|error| bad(&error))?),
            TombstoneRow::Bundle(domain) => {
                Self::Bundle(domain.parse().map_err(|error| bad(&error))?)
            }
        })
    }
}

/// Visits a table's rows and stops at the first that cannot be read.
/// Visits the rows of a table, with their keys inside it.
pub(super) fn each(
    pages: &dyn Pages,
    table: Table,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut failed = Ok(());
    pages.scan(&[table as u8], &mut |key, row| {
        failed = visit(&key[1..], row);
        if failed.is_ok() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    failed
}

/// The view as readers and the one writer share it.
pub(super) struct SharedView {
    epoch: String,
    trust_domain: TrustDomain,
    view: RwLock<View>,
    newest: watch::Sender<u64>,
}

impl SharedView {
    pub(super) fn new(epoch: String, trust_domain: TrustDomain, view: View) -> Self {
        let newest = watch::Sender::new(view.revision);
        Self {
            epoch,
            trust_domain,
            view: RwLock::new(view),
            newest,
        }
    }

    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Shows what has just become durable, then wakes who waits for it.
    pub(super) fn publish(&self, events: Vec<Event>, revision: u64) {
        self.view
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(events, revision);
        self.newest
            .send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
    }
}
