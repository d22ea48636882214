//! Decides which other trust domains we federate with, and from where their bundles come (SPIFFE Federation 5).
//! Trusts that the caller may write relationships. Never fetches from anywhere that an administrator did not name.

mod url;

use std::sync::Arc;

use mesh_identity::TrustDomain;

pub use self::url::{EndpointUrl, EndpointUrlError};
use crate::store::{Relationship, Relationships, ReplacedRelationship, StoreError, StoredBundle};

/// The relationships, behind their rules.
pub struct Federation {
    relationships: Arc<dyn Relationships>,
}

/// How an update ended without a change.
#[derive(Debug)]
pub enum NotUpdated<E> {
    /// There is no such relationship.
    NotFound,
    /// The change itself was refused.
    Change(E),
    /// The store refused.
    Store(StoreError),
}

impl Federation {
    /// The relationships of a store.
    pub fn new(relationships: Arc<dyn Relationships>) -> Self {
        Self { relationships }
    }

    /// One.
    pub async fn get(&self, domain: &TrustDomain) -> Result<Option<Arc<Relationship>>, StoreError> {
        self.relationships.get(domain).await
    }

    /// All, in the order of their trust domains.
    pub async fn list(&self) -> Result<Vec<Arc<Relationship>>, StoreError> {
        self.relationships.list().await
    }

    /// Begins one, with the bundle to begin with where one is given. None: there is one already.
    pub async fn create(
        &self,
        relationship: Relationship,
        bundle: Option<StoredBundle>,
    ) -> Result<Option<Arc<Relationship>>, StoreError> {
        match self
            .relationships
            .replace(relationship, None, bundle)
            .await?
        {
            ReplacedRelationship::Done(new) => Ok(Some(new)),
            ReplacedRelationship::Other(_) => Ok(None),
        }
    }

    /// Reads one, changes and stores it; begins again if somebody else changed it in between.
    pub async fn update<E>(
        &self,
        domain: &TrustDomain,
        change: impl Fn(&Relationship) -> Result<(Relationship, Option<StoredBundle>), E>,
    ) -> Result<Arc<Relationship>, NotUpdated<E>> {
        let mut old = self
            .relationships
            .get(domain)
            .await
            .map_err(NotUpdated::Store)?;
        loop {
            let present = old.ok_or(NotUpdated::NotFound)?;
            let (new, bundle) = change(&present).map_err(NotUpdated::Change)?;
            let replaced = self
                .relationships
                .replace(new, Some(present.revision), bundle);
            match replaced.await.map_err(NotUpdated::Store)? {
                ReplacedRelationship::Done(new) => return Ok(new),
                // Whoever was faster has made progress, so this ends.
                ReplacedRelationship::Other(now) => old = now,
            }
        }
    }

    /// Ends one; it is returned. The bundle stays until it is removed, for entries may federate with its trust domain.
    pub async fn delete(
        &self,
        domain: &TrustDomain,
    ) -> Result<Option<Arc<Relationship>>, StoreError> {
        self.relationships.delete(domain).await
    }
}
