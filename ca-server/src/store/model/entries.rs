//! Registration entries: unique by parent, SPIFFE ID and selectors, and each change numbered.

use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_identity::{Entry, EntryId};

use super::{Store, bury};
use crate::store::codec::sha256;
use crate::store::engine::{Engine, Table, Tx};
use crate::store::records::EntryRow;
use crate::store::view::{Event, Gone};
use crate::store::{CreatedEntry, Entries, StoreError, StoreFuture, UpdatedEntry};

/// The key under which an entry's (parent, SPIFFE ID, selectors) is unique.
fn triple(entry: &Entry) -> [u8; 32] {
    let (parent, id) = (entry.parent_id.to_string(), entry.spiffe_id.to_string());
    let selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
    let mut parts = vec![parent.as_bytes(), id.as_bytes()];
    parts.extend(selectors.iter().map(String::as_bytes));
    sha256(&parts)
}

pub(super) fn entry(tx: &Tx<'_>, id: &[u8]) -> Result<Option<Entry>, StoreError> {
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

pub(super) fn store_entry(tx: &mut Tx<'_>, mut new: Entry) -> Result<Arc<Entry>, StoreError> {
    new.revision = tx.next_revision()?;
    let id = new.id.to_string();
    tx.put(Table::Entry, id.as_bytes(), &EntryRow::from(&new))?;
    tx.put_plain(Table::EntryTriple, &triple(&new), id.as_bytes());
    let new = Arc::new(new);
    tx.show(Event::Entry(new.clone()));
    Ok(new)
}

pub(super) fn delete_entry(
    tx: &mut Tx<'_>,
    id: &EntryId,
) -> Result<Option<Arc<Entry>>, StoreError> {
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
