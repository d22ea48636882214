//! Decides which entries may be stored: SPIRE's rules for fields, and that a federated bundle exists.
//! Trusts that the caller may write entries. Never stores an entry that an agent would have to refuse.

use std::sync::Arc;

use mesh_identity::{Entry, EntryError, EntryId, TrustDomain};
use mesh_runtime::errors::{Blame, Coded};

use super::query::{EntryFilter, Page, Paged, Sheet};
use crate::store::{Bundles, CreatedEntry, Entries, StoreError, UpdatedEntry};

/// How many entries are read at once for a page.
const PART: usize = 512;

/// The stored entries, behind their rules.
#[derive(Clone)]
pub struct EntryBook {
    own: TrustDomain,
    entries: Arc<dyn Entries>,
    bundles: Arc<dyn Bundles>,
}

/// How a creation ended without a new entry.
#[derive(Debug)]
pub enum CreateRefused {
    /// The same entry is there already: this one.
    AlreadyExists(Arc<Entry>),
    /// It may not be stored.
    Error(CreateError),
}

/// How an update ended without a change.
#[derive(Debug)]
pub enum UpdateRefused<E> {
    /// There is no such entry.
    NotFound,
    /// It would become the same as this one.
    AlreadyExists(Arc<Entry>),
    /// The change itself was refused.
    Change(E),
    /// What came out may not be stored.
    Error(CreateError),
}

impl EntryBook {
    /// A book over a store.
    pub fn new(own: TrustDomain, entries: Arc<dyn Entries>, bundles: Arc<dyn Bundles>) -> Self {
        Self {
            own,
            entries,
            bundles,
        }
    }

    /// Checks and stores a new entry.
    pub async fn create(&self, entry: Entry) -> Result<Arc<Entry>, CreateRefused> {
        self.check(&entry).await.map_err(CreateRefused::Error)?;
        match self.entries.create(entry).await {
            Ok(CreatedEntry::New(entry)) => Ok(entry),
            Ok(CreatedEntry::AlreadyExists(entry)) => Err(CreateRefused::AlreadyExists(entry)),
            Ok(CreatedEntry::IdTaken(entry)) => {
                Err(CreateRefused::Error(CreateError::IdTaken(entry.id.clone())))
            }
            Err(error) => Err(CreateRefused::Error(error.into())),
        }
    }

    /// Reads an entry, changes it, checks and stores it; begins again if somebody else changed it in between.
    pub async fn update<E>(
        &self,
        id: &EntryId,
        change: impl Fn(&Entry) -> Result<Entry, E>,
    ) -> Result<Arc<Entry>, UpdateRefused<E>> {
        let failed = |error: CreateError| UpdateRefused::Error(error);
        let mut old = self
            .entries
            .get(id)
            .await
            .map_err(|error| failed(error.into()))?
            .ok_or(UpdateRefused::NotFound)?;
        loop {
            let new = change(&old).map_err(UpdateRefused::Change)?;
            self.check(&new).await.map_err(failed)?;
            match self.entries.update(new).await {
                Ok(UpdatedEntry::Done(entry)) => return Ok(entry),
                Ok(UpdatedEntry::NotFound) => return Err(UpdateRefused::NotFound),
                Ok(UpdatedEntry::AlreadyExists(other)) => {
                    return Err(UpdateRefused::AlreadyExists(other));
                }
                // Whoever was faster has made progress, so this ends.
                Ok(UpdatedEntry::Changed(now)) => old = now,
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    async fn check(&self, entry: &Entry) -> Result<(), CreateError> {
        entry.validate(&self.own)?;
        for domain in &entry.federates_with {
            if self.bundles.get(domain).await?.is_none() {
                return Err(CreateError::NoBundle(domain.clone()));
            }
        }
        Ok(())
    }

    /// Removes an entry; it is returned.
    pub async fn delete(&self, id: &EntryId) -> Result<Option<Arc<Entry>>, StoreError> {
        self.entries.delete(id).await
    }

    /// One entry.
    pub async fn get(&self, id: &EntryId) -> Result<Option<Arc<Entry>>, StoreError> {
        self.entries.get(id).await
    }

    /// All stored entries, in the order of their ids.
    pub async fn list(&self) -> Result<Vec<Arc<Entry>>, StoreError> {
        self.entries.list().await
    }

    /// A page of the entries that are wanted; `make` says how each looks outside, and how many bytes that has.
    /// The list is read in parts, so that a page costs what is on it and not what there is.
    pub async fn page<W>(
        &self,
        filter: &EntryFilter,
        page: &Page,
        make: impl Fn(&Entry) -> (W, usize),
    ) -> Result<Paged<W>, StoreError> {
        let mut sheet = Sheet::new(page);
        let mut last: Option<Arc<Entry>> = None;
        loop {
            let after = last.as_ref().map(|entry| entry.id.as_str());
            let part = self.entries.after(after.or(page.after()), PART).await?;
            for entry in part.iter().filter(|entry| filter.wants(entry)) {
                if sheet.put(entry.id.as_str(), || make(entry)).is_break() {
                    return Ok(sheet.end());
                }
            }
            last = match part.into_iter().next_back() {
                Some(entry) => Some(entry),
                None => return Ok(sheet.end()),
            };
        }
    }

    /// The trust domain that all entries belong to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.own
    }
}

/// Why an entry is not stored.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It is not well formed.
    #[error(transparent)]
    Invalid(#[from] EntryError),
    /// It federates with a trust domain that we know nothing of.
    #[error("federates_with: there is no bundle of trust domain {0}")]
    NoBundle(TrustDomain),
    /// Another entry has its id.
    #[error("another entry has the id {0}")]
    IdTaken(EntryId),
    /// The store refused.
    #[error("the entry could not be stored")]
    Store(#[from] StoreError),
}

impl CreateError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Store(error) => error.blame(),
            _ => Blame::Caller,
        }
    }
}

impl Coded for CreateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Invalid(error) => error.code(),
            Self::NoBundle(_) => "FNL1221",
            Self::IdTaken(_) => "FNL1222",
            Self::Store(error) => error.code(),
        }
    }
}
