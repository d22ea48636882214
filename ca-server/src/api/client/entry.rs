//! What an administrator asks of the entries.

use mesh_identity::{DnsName, Entry, Selector, SpiffeId, TrustDomain};
use proto::convert::selectors_to_wire;
use proto::spire::api::server::entry::v1 as wire;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::types;
use proto::spire::api::types::entry::AdditionalAttributes;
use proto::spire::api::types::federates_with_match::MatchBehavior;
use tonic::transport::Channel;

use super::{AdminClient, ClientError, PAGE, all, item, selector_match};
use crate::registry::{EntryFilter, Match};

/// An entry as an administrator writes it.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Its id; empty: the server chooses.
    pub id: String,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Below what.
    pub parent_id: SpiffeId,
    /// For which processes.
    pub selectors: Vec<Selector>,
    /// How long X509-SVIDs live, in seconds; 0: the server's default.
    pub x509_svid_ttl: i32,
    /// How long JWT-SVIDs live, in seconds; 0: the server's default.
    pub jwt_svid_ttl: i32,
    /// Foreign trust domains whose bundles the workload sees.
    pub federates_with: Vec<TrustDomain>,
    /// Further names.
    pub dns_names: Vec<DnsName>,
    /// The hint.
    pub hint: String,
    /// Whether the holder is an administrator.
    pub admin: bool,
    /// Whether the holder may ask for an intermediate CA.
    pub downstream: bool,
    /// Whether the SVID goes to a store.
    pub store_svid: bool,
    /// When the entry may be pruned, in seconds since 1970; 0: never.
    pub expires_at: i64,
    /// Whether agents make the SVID only when it is asked for.
    pub disable_x509_svid_prefetch: bool,
    /// Whether JWT-SVIDs get a `jti`.
    pub jwt_svid_include_jti: bool,
}

impl NewEntry {
    /// An entry with nothing but its two names; it needs a selector before a server takes it.
    pub fn new(spiffe_id: SpiffeId, parent_id: SpiffeId) -> Self {
        Self {
            id: String::new(),
            spiffe_id,
            parent_id,
            selectors: Vec::new(),
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Vec::new(),
            dns_names: Vec::new(),
            hint: String::new(),
            admin: false,
            downstream: false,
            store_svid: false,
            expires_at: 0,
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }

    fn to_wire(&self) -> types::Entry {
        types::Entry {
            id: self.id.clone(),
            spiffe_id: Some((&self.spiffe_id).into()),
            parent_id: Some((&self.parent_id).into()),
            selectors: selectors_to_wire(&self.selectors),
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            federates_with: self
                .federates_with
                .iter()
                .map(ToString::to_string)
                .collect(),
            dns_names: self.dns_names.iter().map(ToString::to_string).collect(),
            hint: self.hint.clone(),
            admin: self.admin,
            downstream: self.downstream,
            store_svid: self.store_svid,
            expires_at: self.expires_at,
            additional_attributes: Some(AdditionalAttributes {
                disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
                jwt_svid_include_jti: self.jwt_svid_include_jti,
            }),
            ..types::Entry::default()
        }
    }
}

/// The fate of each item of a batch, in the order of the request.
type Fates<T> = Vec<Result<T, ClientError>>;

impl AdminClient {
    fn entry_client(&self) -> EntryClient<Channel> {
        EntryClient::new(self.channel.clone())
    }

    /// Creates an entry.
    pub async fn create_entry(&self, new: &NewEntry) -> Result<Entry, ClientError> {
        let fates = self.create_entries(std::slice::from_ref(new)).await?;
        one(fates)
    }

    /// Creates entries; each has its own fate.
    pub async fn create_entries(&self, new: &[NewEntry]) -> Result<Fates<Entry>, ClientError> {
        let request = wire::BatchCreateEntryRequest {
            entries: new.iter().map(NewEntry::to_wire).collect(),
            output_mask: None,
        };
        let answer = self.entry_client().batch_create_entry(request).await?;
        let results = answer.into_inner().results.into_iter();
        let fates = results.map(|result| item(result.status).and_then(|()| read(result.entry)));
        all(fates.collect(), new.len())
    }

    /// Replaces entries, each by one with the same id.
    pub async fn update_entries(&self, new: &[NewEntry]) -> Result<Fates<Entry>, ClientError> {
        let request = wire::BatchUpdateEntryRequest {
            entries: new.iter().map(NewEntry::to_wire).collect(),
            input_mask: None,
            output_mask: None,
        };
        let answer = self.entry_client().batch_update_entry(request).await?;
        let results = answer.into_inner().results.into_iter();
        let fates = results.map(|result| item(result.status).and_then(|()| read(result.entry)));
        all(fates.collect(), new.len())
    }

    /// Removes an entry.
    pub async fn delete_entry(&self, id: &str) -> Result<(), ClientError> {
        one(self.delete_entries(&[id.to_owned()]).await?)
    }

    /// Removes entries; each has its own fate.
    pub async fn delete_entries(&self, ids: &[String]) -> Result<Fates<()>, ClientError> {
        let request = wire::BatchDeleteEntryRequest { ids: ids.to_vec() };
        let answer = self.entry_client().batch_delete_entry(request).await?;
        let results = answer.into_inner().results.into_iter();
        all(
            results.map(|result| item(result.status)).collect(),
            ids.len(),
        )
    }

    /// One entry.
    pub async fn entry(&self, id: &str) -> Result<Entry, ClientError> {
        let request = wire::GetEntryRequest {
            id: id.to_owned(),
            output_mask: None,
        };
        read(Some(
            self.entry_client().get_entry(request).await?.into_inner(),
        ))
    }

    /// The entries that a filter wants.
    pub async fn entries(&self, filter: &EntryFilter) -> Result<Vec<Entry>, ClientError> {
        let mut entries = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = wire::ListEntriesRequest {
                filter: Some(wire::list_entries_request::Filter {
                    by_spiffe_id: filter.spiffe_id.as_ref().map(Into::into),
                    by_parent_id: filter.parent_id.as_ref().map(Into::into),
                    by_selectors: selectors(filter),
                    by_federates_with: federates_with(filter),
                    by_hint: filter.hint.clone(),
                    by_downstream: filter.downstream,
                }),
                output_mask: None,
                page_size: PAGE,
                page_token,
            };
            let page = self
                .entry_client()
                .list_entries(request)
                .await?
                .into_inner();
            for entry in page.entries {
                entries.push(read(Some(entry))?);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(entries);
            }
        }
    }

    /// How many entries a filter wants.
    pub async fn count_entries(&self, filter: &EntryFilter) -> Result<i32, ClientError> {
        let request = wire::CountEntriesRequest {
            filter: Some(wire::count_entries_request::Filter {
                by_spiffe_id: filter.spiffe_id.as_ref().map(Into::into),
                by_parent_id: filter.parent_id.as_ref().map(Into::into),
                by_selectors: selectors(filter),
                by_federates_with: federates_with(filter),
                by_hint: filter.hint.clone(),
                by_downstream: filter.downstream,
            }),
        };
        Ok(self
            .entry_client()
            .count_entries(request)
            .await?
            .into_inner()
            .count)
    }
}

fn selectors(filter: &EntryFilter) -> Option<types::SelectorMatch> {
    let (selectors, how) = filter.selectors.as_ref()?;
    Some(selector_match(selectors, *how))
}

fn federates_with(filter: &EntryFilter) -> Option<types::FederatesWithMatch> {
    let (domains, how) = filter.federates_with.as_ref()?;
    let how = match how {
        Match::Exact => MatchBehavior::MatchExact,
        Match::Subset => MatchBehavior::MatchSubset,
        Match::Superset => MatchBehavior::MatchSuperset,
        Match::Any => MatchBehavior::MatchAny,
    };
    Some(types::FederatesWithMatch {
        trust_domains: domains.iter().map(ToString::to_string).collect(),
        r#match: how.into(),
    })
}

fn read(wire: Option<types::Entry>) -> Result<Entry, ClientError> {
    let wire = wire.ok_or_else(|| ClientError::Unreadable("no entry".into()))?;
    Entry::try_from(&wire).map_err(|error| ClientError::Unreadable(error.to_string()))
}

fn one<T>(mut fates: Fates<T>) -> Result<T, ClientError> {
    fates.pop().expect("one result for one item")
}
