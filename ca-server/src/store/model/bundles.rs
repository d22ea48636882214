//! Our own bundle with the journal it is derived from, and the bundles of other trust domains.

use std::sync::Arc;

use futures::FutureExt;
use mesh_identity::{Entry, EntryId, TrustDomain};

use super::entries::{delete_entry, entry, store_entry};
use super::{Store, bury};
use crate::store::codec::decode;
use crate::store::engine::{Engine, Table, Tx};
use crate::store::records::{BundleRow, JournalRow};
use crate::store::view::{Event, Gone};
use crate::store::{
    BundleContent, Bundles, DeletedBundle, Journal, Replaced, StoreError, StoreFuture,
    StoredBundle, Users,
};

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

pub(super) fn foreign_bundle(
    tx: &Tx<'_>,
    domain: &TrustDomain,
) -> Result<Option<StoredBundle>, StoreError> {
    tx.get::<BundleRow>(Table::ForeignBundle, domain.to_string().as_bytes())?
        .map(StoredBundle::try_from)
        .transpose()
}

/// Takes a new revision only if something differs.
pub(super) fn store_foreign_bundle(
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
