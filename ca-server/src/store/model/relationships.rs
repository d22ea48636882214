//! Relationships with other trust domains.

use std::sync::Arc;

use mesh_identity::TrustDomain;

use super::Store;
use super::bundles::{foreign_bundle, store_foreign_bundle};
use crate::store::engine::{Engine, Table, Tx};
use crate::store::records::RelationshipRow;
use crate::store::view::Event;
use crate::store::{
    Relationship, Relationships, ReplacedRelationship, StoreError, StoreFuture, StoredBundle,
};

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
