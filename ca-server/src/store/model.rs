//! What each call of the store's traits does to its rows, whatever engine holds them.
//! Every change is one transaction: all of its rows become durable together, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use mesh_identity::{Entry, EntryId, SpiffeId, TrustDomain};
use mesh_runtime::span;
use tokio::sync::watch;
use tracing::Instrument;

use super::codec::{decode, sha256};
use super::engine::{Engine, ISSUED, Table, Tx, Work};
use super::records::{
    BundleRow, CounterRow, EntryRow, IssuedRow, IssuedRows, JournalRow, NodeRow, RelationshipRow,
    TokenRow, TombstoneRow,
};
use super::view::{Event, Gone};
use super::{
    Attested, BundleContent, Bundles, ChangeSet, Changes, CreatedEntry, DeletedBundle, Entries,
    Issued, IssuedRecord, Journal, JtiUse, NewToken, Node, Nodes, Relationship, Relationships,
    RenewedSerial, Replaced, ReplacedRelationship, Snapshots, Spent, SpentJti, StoreError,
    StoreFuture, StoreHealth, StoredBundle, Tokens, UpdatedEntry, Users, backup,
};

/// The store over an engine.
pub(super) struct Store<E> {
    engine: E,
}

impl<E: Engine> Store<E> {
    pub(super) fn over(engine: E) -> Arc<Self> {
        Arc::new(Self { engine })
    }

    fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.submit(false, work)
    }

    fn removal<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        self.submit(true, work)
    }

    fn submit<T: Send + 'static>(
        &self,
        only_removes: bool,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let written = span!("datastore write");
        async move {
            let (job, answer) = Work::job(only_removes, work);
            self.engine.submit(job).await?;
            answer.await.unwrap_or_else(|_| {
                Err(StoreError::Stopped {
                    reason: Arc::from("the writer is gone"),
                })
            })
        }
        .instrument(written)
        .boxed()
    }

    fn seen<T: Send + 'static>(&self, value: T) -> StoreFuture<'_, T> {
        async move { Ok(value) }.boxed()
    }
}

// --- entries

/// The key under which an entry's (parent, SPIFFE ID, selectors) is unique.
fn triple(entry: &Entry) -> [u8; 32] {
    let (parent, id) = (entry.parent_id.to_string(), entry.spiffe_id.to_string());
    let selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
    let mut parts = vec![parent.as_bytes(), id.as_bytes()];
    parts.extend(selectors.iter().map(String::as_bytes));
    sha256(&parts)
}

fn entry(tx: &Tx<'_>, id: &[u8]) -> Result<Option<Entry>, StoreError> {
    tx.get::<EntryRow>(Table::Entry, id)?
        .map(Entry::try_from)
        .transpose()
}

/// The entry that has this triple already.
fn twin(tx: &Tx<'_>, triple: &[u8; 32]) -> Result<Option<Entry>, StoreError> {
    match tx.get_plain(Table::EntryTriple, triple)? {
        Some(id) => entry(tx, &id),
        None => Ok(None),
    }
}

fn store_entry(tx: &mut Tx<'_>, mut new: Entry) -> Result<Arc<Entry>, StoreError> {
    new.revision = tx.next_revision()?;
    let id = new.id.to_string();
    tx.put(Table::Entry, id.as_bytes(), &EntryRow::from(&new))?;
    tx.put_plain(Table::EntryTriple, &triple(&new), id.as_bytes());
    let new = Arc::new(new);
    tx.show(Event::Entry(new.clone()));
    Ok(new)
}

fn bury(tx: &mut Tx<'_>, gone: Gone) -> Result<(), StoreError> {
    let revision = tx.next_revision()?;
    tx.put(
        Table::Tombstone,
        &revision.to_be_bytes(),
        &TombstoneRow::from(&gone),
    )?;
    tx.show(Event::Gone(revision, gone));
    Ok(())
}

fn delete_entry(tx: &mut Tx<'_>, id: &EntryId) -> Result<Option<Arc<Entry>>, StoreError> {
    let key = id.to_string();
    let Some(old) = entry(tx, key.as_bytes())? else {
        return Ok(None);
    };
    tx.remove(Table::Entry, key.as_bytes());
    tx.remove(Table::EntryTriple, &triple(&old));
    bury(tx, Gone::Entry(id.clone()))?;
    Ok(Some(Arc::new(old)))
}

impl<E: Engine> Entries for Store<E> {
    fn create(&self, new: Entry) -> StoreFuture<'_, CreatedEntry> {
        self.change(move |tx| {
            if let Some(existing) = twin(tx, &triple(&new))? {
                return Ok(CreatedEntry::AlreadyExists(Arc::new(existing)));
            }
            if let Some(existing) = entry(tx, new.id.to_string().as_bytes())? {
                return Ok(CreatedEntry::IdTaken(Arc::new(existing)));
            }
            store_entry(tx, new).map(CreatedEntry::New)
        })
    }

    fn get(&self, id: &EntryId) -> StoreFuture<'_, Option<Arc<Entry>>> {
        self.seen(self.engine.view().read().entries.get(id).cloned())
    }

    fn list(&self) -> StoreFuture<'_, Vec<Arc<Entry>>> {
        self.seen(
            self.engine
                .view()
                .read()
                .entries
                .values()
                .cloned()
                .collect(),
        )
    }

    fn after(&self, id: Option<&str>, most: usize) -> StoreFuture<'_, Vec<Arc<Entry>>> {
        let start = id.map_or(Bound::Unbounded, Bound::Excluded);
        let view = self.engine.view().read();
        let rest = view.entries.range::<str, _>((start, Bound::Unbounded));
        let found = rest.map(|(_, entry)| entry.clone()).take(most).collect();
        drop(view);
        self.seen(found)
    }

    fn update(&self, new: Entry) -> StoreFuture<'_, UpdatedEntry> {
        self.change(move |tx| {
            let Some(old) = entry(tx, new.id.to_string().as_bytes())? else {
                return Ok(UpdatedEntry::NotFound);
            };
            if old.revision != new.revision {
                return Ok(UpdatedEntry::Changed(Arc::new(old)));
            }
            if let Some(other) = twin(tx, &triple(&new))?.filter(|other| other.id != new.id) {
                return Ok(UpdatedEntry::AlreadyExists(Arc::new(other)));
            }
            tx.remove(Table::EntryTriple, &triple(&old));
            store_entry(tx, new).map(UpdatedEntry::Done)
        })
    }

    fn delete(&self, id: &EntryId) -> StoreFuture<'_, Option<Arc<Entry>>> {
        let id = id.clone();
        self.removal(move |tx| delete_entry(tx, &id))
    }

    fn delete_expired(&self, now: SystemTime) -> StoreFuture<'_, Vec<Arc<Entry>>> {
        let is_expired = move |entry: &Entry| entry.expires_at.is_some_and(|end| end <= now);
        let view = self.engine.view().read();
        let expired: Vec<EntryId> = view
            .entries
            .values()
            .filter(|entry| is_expired(entry))
            .map(|entry| entry.id.clone())
            .collect();
        drop(view);
        if expired.is_empty() {
            return self.seen(Vec::new());
        }
        self.removal(move |tx| {
            let mut gone = Vec::new();
            for id in &expired {
                // It may have been changed since we looked.
                if entry(tx, id.to_string().as_bytes())?.is_some_and(|entry| is_expired(&entry)) {
                    gone.extend(delete_entry(tx, id)?);
                }
            }
            Ok(gone)
        })
    }
}

// --- agents

fn node(tx: &Tx<'_>, id: &SpiffeId) -> Result<Option<Node>, StoreError> {
    tx.get::<NodeRow>(Table::Node, id.as_str().as_bytes())?
        .map(Node::try_from)
        .transpose()
}

fn store_node(tx: &mut Tx<'_>, new: Node) -> Result<Arc<Node>, StoreError> {
    tx.put(
        Table::Node,
        new.id.as_str().as_bytes(),
        &NodeRow::from(&new),
    )?;
    let new = Arc::new(new);
    tx.show(Event::Node(new.clone()));
    Ok(new)
}

impl<E: Engine> Store<E> {
    /// Changes a stored agent, if there is one and `edit` wants to.
    fn edit_node(
        &self,
        id: &SpiffeId,
        edit: impl FnOnce(&mut Node, &mut Tx<'_>) -> Result<bool, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, Option<Arc<Node>>> {
        let id = id.clone();
        self.change(move |tx| {
            let Some(mut found) = node(tx, &id)? else {
                return Ok(None);
            };
            if edit(&mut found, tx)? {
                store_node(tx, found).map(Some)
            } else {
                Ok(None)
            }
        })
    }
}

impl<E: Engine> Nodes for Store<E> {
    fn attest(&self, mut new: Node) -> StoreFuture<'_, Attested> {
        self.change(move |tx| {
            let previous = node(tx, &new.id)?.map(Arc::new);
            new.revision = match &previous {
                Some(previous) if previous.banned => return Ok(Attested::Banned(previous.clone())),
                // What others derive from an agent is unchanged: no news for anybody.
                Some(previous) if previous.selectors == new.selectors && !new.banned => {
                    previous.revision
                }
                _ => tx.next_revision()?,
            };
            Ok(Attested::Stored {
                node: store_node(tx, new)?,
                previous,
            })
        })
    }

    fn get(&self, id: &SpiffeId) -> StoreFuture<'_, Option<Arc<Node>>> {
        self.seen(self.engine.view().read().nodes.get(id).cloned())
    }

    fn list(&self) -> StoreFuture<'_, Vec<Arc<Node>>> {
        self.seen(self.engine.view().read().nodes.values().cloned().collect())
    }

    fn renew(
        &self,
        id: &SpiffeId,
        presented: &str,
        renewed: RenewedSerial,
    ) -> StoreFuture<'_, Option<Arc<Node>>> {
        let presented = presented.to_owned();
        self.edit_node(id, move |node, _| {
            if node.banned || !node.has_serial(&presented) {
                return Ok(false);
            }
            if node.serial != presented {
                node.use_renewed();
            }
            node.renewed = Some(renewed);
            Ok(true)
        })
    }

    fn promote(&self, id: &SpiffeId, serial: &str) -> StoreFuture<'_, Option<Arc<Node>>> {
        let serial = serial.to_owned();
        self.edit_node(id, move |node, _| {
            if node.banned || !node.has_serial(&serial) {
                return Ok(false);
            }
            if node.serial != serial {
                node.use_renewed();
            }
            Ok(true)
        })
    }

    fn set_banned(&self, id: &SpiffeId, banned: bool) -> StoreFuture<'_, Option<Arc<Node>>> {
        self.edit_node(id, move |node, tx| {
            if node.banned != banned {
                node.banned = banned;
                node.revision = tx.next_revision()?;
            }
            if banned {
                node.serial.clear();
                node.renewed = None;
            }
            Ok(true)
        })
    }

    fn set_agent_version(
        &self,
        id: &SpiffeId,
        version: &str,
    ) -> StoreFuture<'_, Option<Arc<Node>>> {
        let version = version.to_owned();
        self.edit_node(id, move |node, _| {
            node.agent_version = version;
            Ok(true)
        })
    }

    fn delete(&self, id: &SpiffeId) -> StoreFuture<'_, Option<Arc<Node>>> {
        let id = id.clone();
        self.removal(move |tx| {
            let Some(old) = node(tx, &id)? else {
                return Ok(None);
            };
            tx.remove(Table::Node, id.as_str().as_bytes());
            bury(tx, Gone::Node(id))?;
            Ok(Some(Arc::new(old)))
        })
    }
}

impl Node {
    /// Whether a certificate with this serial is one that the agent may use now.
    pub fn has_serial(&self, serial: &str) -> bool {
        !serial.is_empty()
            && (self.serial == serial
                || self
                    .renewed
                    .as_ref()
                    .is_some_and(|renewed| renewed.serial == serial))
    }

    fn use_renewed(&mut self) {
        if let Some(renewed) = self.renewed.take() {
            self.serial = renewed.serial;
            self.expires_at = renewed.expires_at;
        }
    }
}

// --- tokens

impl<E: Engine> Tokens for Store<E> {
    fn create(&self, token: NewToken) -> StoreFuture<'_, bool> {
        self.change(move |tx| {
            if tx.contains(Table::Token, &token.hash)? {
                return Ok(false);
            }
            tx.put(Table::Token, &token.hash, &TokenRow::from(&token))?;
            Ok(true)
        })
    }

    fn spend(&self, hash: [u8; 32], now: SystemTime) -> StoreFuture<'_, Spent> {
        self.change(move |tx| {
            let Some(mut row) = tx.get::<TokenRow>(Table::Token, &hash)? else {
                return Ok(Spent::Unknown);
            };
            if row.used_at.is_some() {
                return Ok(Spent::Used);
            }
            if row.expires_at <= now {
                return Ok(Spent::Expired);
            }
            row.used_at = Some(now);
            tx.put(Table::Token, &hash, &row)?;
            Ok(Spent::Good {
                agent_id: row.alias()?,
            })
        })
    }

    fn spend_jti(&self, use_: JtiUse) -> StoreFuture<'_, SpentJti> {
        self.change(
            move |tx| match tx.get::<JtiUse>(Table::Jti, use_.jti.as_bytes())? {
                None => {
                    tx.put(Table::Jti, use_.jti.as_bytes(), &use_)?;
                    Ok(SpentJti::First)
                }
                Some(earlier) if earlier.spki_hash == use_.spki_hash => {
                    Ok(SpentJti::SameKeyAgain(earlier))
                }
                Some(earlier) => Ok(SpentJti::OtherKey(earlier)),
            },
        )
    }

    fn rebind_jti(&self, jti: &str, from: [u8; 32], to: JtiUse) -> StoreFuture<'_, bool> {
        let jti = jti.to_owned();
        self.change(move |tx| {
            let earlier = tx.get::<JtiUse>(Table::Jti, jti.as_bytes())?;
            if earlier.is_none_or(|earlier| earlier.spki_hash != from) || to.jti != jti {
                return Ok(false);
            }
            tx.put(Table::Jti, jti.as_bytes(), &to)?;
            Ok(true)
        })
    }

    fn prune(&self, now: SystemTime) -> StoreFuture<'_, u64> {
        self.removal(move |tx| {
            let mut pruned = 0;
            for key in tx.durable_keys(Table::Token, |_, row| {
                ControlFlow::Continue(decode::<TokenRow>(row).is_ok_and(|row| row.expires_at < now))
            })? {
                tx.remove(Table::Token, &key);
                pruned += 1;
            }
            let ended = |row: &JtiUse| row.expires_at < now;
            for key in tx.durable_keys(Table::Jti, |_, row| {
                ControlFlow::Continue(decode::<JtiUse>(row).is_ok_and(|row| ended(&row)))
            })? {
                // It may have been tied to another key, with a later end, in this very group.
                if tx
                    .get::<JtiUse>(Table::Jti, &key)?
                    .is_some_and(|row| ended(&row))
                {
                    tx.remove(Table::Jti, &key);
                    pruned += 1;
                }
            }
            Ok(pruned)
        })
    }
}

// --- bundles and the authority's journal

/// There is one own bundle and one journal.
const ONLY: &[u8] = b"";

impl<E: Engine> Bundles for Store<E> {
    fn own(&self) -> StoreFuture<'_, Option<Arc<StoredBundle>>> {
        self.seen(self.engine.view().read().own_bundle.clone())
    }

    fn get(&self, trust_domain: &TrustDomain) -> StoreFuture<'_, Option<Arc<StoredBundle>>> {
        self.seen(
            self.engine
                .view()
                .read()
                .foreign_bundles
                .get(trust_domain)
                .cloned(),
        )
    }

    fn list(&self) -> StoreFuture<'_, Vec<Arc<StoredBundle>>> {
        self.seen(
            self.engine
                .view()
                .read()
                .foreign_bundles
                .values()
                .cloned()
                .collect(),
        )
    }

    fn put(&self, new: StoredBundle) -> StoreFuture<'_, Arc<StoredBundle>> {
        self.change(move |tx| {
            let old = foreign_bundle(tx, &new.trust_domain)?;
            store_foreign_bundle(tx, new, old)
        })
    }

    fn replace(&self, new: StoredBundle, expected: Option<u64>) -> StoreFuture<'_, Replaced> {
        self.change(move |tx| {
            let old = foreign_bundle(tx, &new.trust_domain)?;
            if old.as_ref().map(|old| old.revision) != expected {
                return Ok(Replaced::Other(old.map(Arc::new)));
            }
            store_foreign_bundle(tx, new, old).map(Replaced::Done)
        })
    }

    fn delete(&self, trust_domain: &TrustDomain, users: Users) -> StoreFuture<'_, DeletedBundle> {
        let domain = trust_domain.clone();
        let view = self.engine.view().read();
        let seen: Vec<EntryId> = view
            .entries
            .values()
            .filter(|entry| entry.federates_with.contains(&domain))
            .map(|entry| entry.id.clone())
            .collect();
        drop(view);
        self.removal(move |tx| {
            let Some(bundle) = foreign_bundle(tx, &domain)? else {
                return Ok(DeletedBundle::NotFound);
            };
            // They may have been changed since we looked. One that came since then names a trust domain without a
            // bundle afterwards, which means that its workload sees nothing of it.
            let mut using = Vec::new();
            for id in &seen {
                let entry = entry(tx, id.to_string().as_bytes())?;
                using.extend(entry.filter(|entry| entry.federates_with.contains(&domain)));
            }
            if users == Users::Restrict && !using.is_empty() {
                return Ok(DeletedBundle::InUse(using.len()));
            }
            for entry in &using {
                release(tx, entry, &domain, users)?;
            }
            tx.remove(Table::ForeignBundle, domain.to_string().as_bytes());
            bury(tx, Gone::Bundle(domain))?;
            Ok(DeletedBundle::Done {
                bundle: Arc::new(bundle),
                users: using.into_iter().map(Arc::new).collect(),
            })
        })
    }
}

fn foreign_bundle(tx: &Tx<'_>, domain: &TrustDomain) -> Result<Option<StoredBundle>, StoreError> {
    tx.get::<BundleRow>(Table::ForeignBundle, domain.to_string().as_bytes())?
        .map(StoredBundle::try_from)
        .transpose()
}

/// Takes a new revision only if something differs.
fn store_foreign_bundle(
    tx: &mut Tx<'_>,
    mut new: StoredBundle,
    old: Option<StoredBundle>,
) -> Result<Arc<StoredBundle>, StoreError> {
    if let Some(old) = old {
        new.revision = old.revision;
        if old == new {
            return Ok(Arc::new(old));
        }
    }
    new.revision = tx.next_revision()?;
    let key = new.trust_domain.to_string();
    tx.put(Table::ForeignBundle, key.as_bytes(), &BundleRow::from(&new))?;
    let new = Arc::new(new);
    tx.show(Event::ForeignBundle(new.clone()));
    Ok(new)
}

/// An entry that federates with a trust domain whose bundle goes.
fn release(
    tx: &mut Tx<'_>,
    entry: &Entry,
    domain: &TrustDomain,
    users: Users,
) -> Result<(), StoreError> {
    if users == Users::Delete {
        delete_entry(tx, &entry.id)?;
        return Ok(());
    }
    let mut apart = entry.clone();
    apart.federates_with.remove(domain);
    store_entry(tx, apart)?;
    Ok(())
}

// --- federation relationships

fn relationship(tx: &Tx<'_>, domain: &TrustDomain) -> Result<Option<Relationship>, StoreError> {
    tx.get::<RelationshipRow>(Table::Relationship, domain.to_string().as_bytes())?
        .map(Relationship::try_from)
        .transpose()
}

impl<E: Engine> Relationships for Store<E> {
    fn get(&self, trust_domain: &TrustDomain) -> StoreFuture<'_, Option<Arc<Relationship>>> {
        let view = self.engine.view().read();
        self.seen(view.relationships.get(trust_domain).cloned())
    }

    fn list(&self) -> StoreFuture<'_, Vec<Arc<Relationship>>> {
        let view = self.engine.view().read();
        self.seen(view.relationships.values().cloned().collect())
    }

    fn replace(
        &self,
        mut new: Relationship,
        expected: Option<u64>,
        bundle: Option<StoredBundle>,
    ) -> StoreFuture<'_, ReplacedRelationship> {
        self.change(move |tx| {
            let domain = new.trust_domain.clone();
            let old = relationship(tx, &domain)?;
            if old.as_ref().map(|old| old.revision) != expected {
                return Ok(ReplacedRelationship::Other(old.map(Arc::new)));
            }
            if let Some(bundle) = bundle {
                let known = foreign_bundle(tx, &domain)?;
                store_foreign_bundle(tx, bundle, known)?;
            }
            new.revision = tx.next_revision()?;
            tx.put(
                Table::Relationship,
                domain.to_string().as_bytes(),
                &RelationshipRow::from(&new),
            )?;
            let new = Arc::new(new);
            tx.show(Event::Relationship(new.clone()));
            Ok(ReplacedRelationship::Done(new))
        })
    }

    fn delete(&self, trust_domain: &TrustDomain) -> StoreFuture<'_, Option<Arc<Relationship>>> {
        let domain = trust_domain.clone();
        self.removal(move |tx| {
            let Some(old) = relationship(tx, &domain)? else {
                return Ok(None);
            };
            tx.remove(Table::Relationship, domain.to_string().as_bytes());
            tx.show(Event::NoRelationship(domain));
            Ok(Some(Arc::new(old)))
        })
    }
}

impl<E: Engine> Journal for Store<E> {
    fn read(&self) -> StoreFuture<'_, Option<Vec<u8>>> {
        async move {
            let row = self.engine.pages().get(&Table::Journal.key(ONLY))?;
            row.map(|row| decode::<JournalRow>(&row).map(|row| row.0))
                .transpose()
        }
        .boxed()
    }

    fn write(
        &self,
        journal: Vec<u8>,
        content: BundleContent,
    ) -> StoreFuture<'_, Arc<StoredBundle>> {
        let trust_domain = self.engine.view().trust_domain().clone();
        self.change(move |tx| {
            tx.put(Table::Journal, ONLY, &JournalRow(journal))?;
            let old = tx
                .get::<BundleRow>(Table::OwnBundle, ONLY)?
                .map(StoredBundle::try_from)
                .transpose()?;
            let mut new = StoredBundle {
                trust_domain,
                x509_authorities: content.x509_authorities,
                jwt_authorities: content.jwt_authorities,
                sequence: old.as_ref().map_or(0, |old| old.sequence),
                refresh_hint: Some(content.refresh_hint),
                revision: old.as_ref().map_or(0, |old| old.revision),
            };
            if let Some(old) = old.filter(|old| *old == new) {
                return Ok(Arc::new(old));
            }
            new.sequence += 1;
            new.revision = tx.next_revision()?;
            tx.put(Table::OwnBundle, ONLY, &BundleRow::from(&new))?;
            let new = Arc::new(new);
            tx.show(Event::OwnBundle(new.clone()));
            Ok(new)
        })
    }
}

// --- certificates

/// Sorts by end, so that pruning reads only what it removes.
fn end_key(end: SystemTime, serial: &str) -> Vec<u8> {
    let mut key = seconds(end).to_be_bytes().to_vec();
    key.extend_from_slice(serial.as_bytes());
    key
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// How many calls' certificates one transaction forgets: bounds how long others wait behind it.
const FORGET_AT_ONCE: usize = 2_000;

fn count_issued(tx: &mut Tx<'_>, change: impl FnOnce(u64) -> u64) -> Result<(), StoreError> {
    let count = tx
        .get::<CounterRow>(Table::Meta, ISSUED)?
        .map_or(0, |count| count.0);
    tx.put(Table::Meta, ISSUED, &CounterRow(change(count)))
}

/// Forgets some of the certificates that have ended, the oldest first; answers how many, and whether there may be more.
fn forget_issued(tx: &mut Tx<'_>, now: SystemTime) -> Result<(u64, bool), StoreError> {
    let (mut left, mut forgotten, mut unreadable) = (FORGET_AT_ONCE, 0, None);
    let ended = tx.durable_keys(Table::Issued, |key, row| {
        let end = key.first_chunk::<8>().map(|end| u64::from_be_bytes(*end));
        if left == 0 || end.is_some_and(|end| end >= seconds(now)) {
            return ControlFlow::Break(());
        }
        match decode::<IssuedRows>(row) {
            Ok(rows) => forgotten += rows.0.len() as u64,
            Err(error) => {
                unreadable = Some(error);
                return ControlFlow::Break(());
            }
        }
        left -= 1;
        ControlFlow::Continue(true)
    })?;
    if let Some(error) = unreadable {
        return Err(error);
    }
    for key in &ended {
        tx.remove(Table::Issued, key);
    }
    if forgotten > 0 {
        count_issued(tx, |count| count.saturating_sub(forgotten))?;
    }
    Ok((forgotten, left == 0))
}

impl<E: Engine> Store<E> {
    /// Shows every certificate that is remembered, by the time when they end.
    fn each_issued(
        &self,
        mut show: impl FnMut(IssuedRow) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut failed = None;
        let mut take = |row: &[u8]| {
            decode::<IssuedRows>(row)?
                .0
                .into_iter()
                .try_for_each(&mut show)
        };
        self.engine
            .pages()
            .scan(&Table::Issued.key(&[]), &mut |_, row| match take(row) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })?;
        failed.map_or(Ok(()), Err)
    }
}

/// One call's certificates are one row, by the time when the last of them ends: what is written most often is written at one end
/// of the tree, and what has ended lies together. A serial is asked for by people only, so nothing is kept to find it fast.
impl<E: Engine> Issued for Store<E> {
    fn record(&self, certificates: Vec<IssuedRecord>) -> StoreFuture<'_, ()> {
        self.change(move |tx| {
            let end = certificates.iter().map(|one| one.not_after).max();
            let (Some(end), Some(first)) = (end, certificates.first()) else {
                return Ok(());
            };
            let rows = IssuedRows(certificates.iter().map(IssuedRow::from).collect());
            tx.put(Table::Issued, &end_key(end, &first.serial), &rows)?;
            count_issued(tx, |count| count + certificates.len() as u64)
        })
    }

    fn find(&self, serials: BTreeSet<String>) -> StoreFuture<'_, Vec<IssuedRecord>> {
        async move {
            let mut found = Vec::new();
            self.each_issued(|row| {
                if serials.contains(&row.serial) {
                    found.push(row.try_into()?);
                }
                Ok(())
            })?;
            Ok(found)
        }
        .boxed()
    }

    fn held(
        &self,
        authorities: BTreeSet<String>,
        now: SystemTime,
    ) -> StoreFuture<'_, Vec<IssuedRecord>> {
        async move {
            let mut newest: BTreeMap<_, IssuedRow> = BTreeMap::new();
            self.each_issued(|row| {
                let held = newest.entry(row.holder());
                let held = held.or_insert_with(|| row.clone());
                if held.issued_at <= row.issued_at {
                    *held = row;
                }
                Ok(())
            })?;
            let by_them = newest.into_values();
            by_them
                .filter(|row| authorities.contains(&row.authority_id) && now < row.not_after)
                .map(IssuedRecord::try_from)
                .collect()
        }
        .boxed()
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        async move {
            let row = self.engine.pages().get(&Table::Meta.key(ISSUED))?;
            row.map_or(Ok(0), |row| decode::<CounterRow>(&row).map(|count| count.0))
        }
        .boxed()
    }

    fn prune(&self, now: SystemTime) -> StoreFuture<'_, u64> {
        async move {
            let mut forgotten = 0;
            loop {
                let (some, more) = self.removal(move |tx| forget_issued(tx, now)).await?;
                forgotten += some;
                if !more {
                    return Ok(forgotten);
                }
            }
        }
        .boxed()
    }
}

// --- history

impl<E: Engine> Changes for Store<E> {
    fn epoch(&self) -> &str {
        self.engine.view().epoch()
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.engine.view().newest()
    }

    fn since(&self, revision: u64) -> StoreFuture<'_, Option<ChangeSet>> {
        self.seen(self.engine.view().read().since(revision))
    }

    fn everything(&self) -> StoreFuture<'_, ChangeSet> {
        self.seen(self.engine.view().read().everything())
    }

    fn health(&self) -> watch::Receiver<StoreHealth> {
        self.engine.health()
    }
}

// --- backup

impl<E: Engine> Snapshots for Store<E> {
    fn snapshot(&self, mut into: Box<dyn Write + Send>, now: SystemTime) -> StoreFuture<'_, ()> {
        let trust_domain = self.engine.view().trust_domain().clone();
        self.change(move |tx| backup::write(tx.durable(), &trust_domain, now, &mut into))
    }
}
