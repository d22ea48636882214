//! `spire.api.server.entry.v1`: entries for administrators, and each agent's own for it.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use mesh_identity::{Entry, EntryId};
use mesh_runtime::audit::{Action, Decision, Object, Outcome};
use proto::convert::trust_domain_from_wire;
use proto::spire::api::server::entry::v1 as wire;
use proto::spire::api::types;
use proto::spire::api::types::federates_with_match::MatchBehavior;
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::{Call, Parts, Refusal};
use super::{bad_filter, not_served, ok, required_id, seconds, selector_match};
use crate::registry::{CreateRefused, EntryFilter, Match, Page, entries_page};

/// Entries in one page of `SyncAuthorizedEntries`, as in SPIRE.
const SYNC_PAGE: usize = 500;

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    async fn create(&self, call: &Call, wire: types::Entry) -> Result<Arc<Entry>, Created> {
        let now = self.parts.clock.now();
        let mut record = self
            .parts
            .audit
            .begin(Action("entry.create"), call.who.actor.clone());
        record.origin(call.who.origin.clone());
        let outcome = match read_new(wire, seconds(now)) {
            Err(refusal) => Err(Created::Refused(refusal)),
            Ok(entry) => {
                record.object(about(&entry));
                match self.parts.book.create(entry).await {
                    Ok(entry) => Ok(entry),
                    Err(CreateRefused::AlreadyExists(entry)) => Err(Created::Already(entry)),
                    Err(CreateRefused::Error(error)) => Err(Created::Refused(error.into())),
                }
            }
        };
        let written = match &outcome {
            Ok(entry) => {
                record.object(about(entry));
                record.finish(Outcome::Success, None).await
            }
            Err(Created::Already(entry)) => {
                record.object(about(entry));
                record.finish(Outcome::Failure, Some("FNL1254")).await
            }
            Err(Created::Refused(refusal)) => {
                record.decision(Decision::deny(refusal.why()));
                record.finish(refusal.outcome(), Some(refusal.code)).await
            }
        };
        written.map_err(|error| Created::Refused(error.into()))?;
        outcome
    }

    async fn delete(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        let mut record = self
            .parts
            .audit
            .begin(Action("entry.delete"), call.who.actor.clone());
        record.origin(call.who.origin.clone());
        let outcome = match id.parse::<EntryId>() {
            Err(error) => Err(Refusal::from(error)),
            Ok(id) => {
                record.object(Object::new("entry").id(id.as_str()));
                match self.parts.book.delete(&id).await {
                    Ok(Some(entry)) => {
                        record.object(about(&entry));
                        Ok(())
                    }
                    Ok(None) => Err(not_found()),
                    Err(error) => Err(error.into()),
                }
            }
        };
        let (how, code) = match &outcome {
            Ok(()) => (Outcome::Success, None),
            Err(refusal) => (refusal.outcome(), Some(refusal.code)),
        };
        record.finish(how, code).await?;
        outcome
    }

    /// The entries of the agent that calls, in the order of their ids.
    async fn authorized(&self, call: &Call) -> Result<Vec<Arc<Entry>>, Status> {
        let agent = call.agent()?;
        let registry = &self.parts.registry;
        registry
            .refresh()
            .await
            .map_err(|error| call.refuse(error))?;
        Ok(registry.view(&agent.id).entries.into_values().collect())
    }
}

/// How a creation ended without a new entry.
enum Created {
    Already(Arc<Entry>),
    Refused(Refusal),
}

fn about(entry: &Entry) -> Object {
    Object::new("entry")
        .id(entry.id.as_str())
        .name(entry.spiffe_id.as_str())
}

fn not_found() -> Refusal {
    Refusal::new("FNL1255", Code::NotFound, "entry not found")
}

/// The fields that the server gives are the server's: revision and time of creation, and the id if none was chosen.
fn read_new(mut wire: types::Entry, now: i64) -> Result<Entry, Refusal> {
    if wire.id.is_empty() {
        wire.id = uuid::Uuid::new_v4().to_string();
    }
    wire.revision_number = 0;
    wire.created_at = now;
    Ok(Entry::try_from(&wire)?)
}

fn masked(entry: &Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let full = types::Entry::from(entry);
    let Some(mask) = mask else { return full };
    types::Entry {
        id: full.id,
        spiffe_id: full.spiffe_id.filter(|_| mask.spiffe_id),
        parent_id: full.parent_id.filter(|_| mask.parent_id),
        selectors: kept(mask.selectors, full.selectors),
        x509_svid_ttl: kept(mask.x509_svid_ttl, full.x509_svid_ttl),
        jwt_svid_ttl: kept(mask.jwt_svid_ttl, full.jwt_svid_ttl),
        federates_with: kept(mask.federates_with, full.federates_with),
        admin: mask.admin && full.admin,
        downstream: mask.downstream && full.downstream,
        expires_at: kept(mask.expires_at, full.expires_at),
        dns_names: kept(mask.dns_names, full.dns_names),
        revision_number: kept(mask.revision_number, full.revision_number),
        store_svid: mask.store_svid && full.store_svid,
        hint: kept(mask.hint, full.hint),
        created_at: kept(mask.created_at, full.created_at),
        additional_attributes: full
            .additional_attributes
            .filter(|_| mask.additional_attributes),
    }
}

fn kept<T: Default>(keep: bool, value: T) -> T {
    if keep { value } else { T::default() }
}

/// The two filters of SPIRE have the same fields and different types.
macro_rules! filter {
    ($wire:expr) => {{
        match $wire {
            None => EntryFilter::default(),
            Some(wire) => EntryFilter {
                spiffe_id: id("by_spiffe_id", wire.by_spiffe_id.as_ref())?,
                parent_id: id("by_parent_id", wire.by_parent_id.as_ref())?,
                selectors: selector_match(wire.by_selectors.as_ref())?,
                federates_with: federates_with(wire.by_federates_with.as_ref())?,
                hint: wire.by_hint.clone(),
                downstream: wire.by_downstream,
            },
        }
    }};
}

fn id(
    field: &str,
    wire: Option<&types::Spiffeid>,
) -> Result<Option<mesh_identity::SpiffeId>, Refusal> {
    wire.map(|wire| required_id(field, Some(wire))).transpose()
}

fn federates_with(
    wire: Option<&types::FederatesWithMatch>,
) -> Result<
    Option<(
        std::collections::BTreeSet<mesh_identity::TrustDomain>,
        Match,
    )>,
    Refusal,
> {
    let Some(wire) = wire else { return Ok(None) };
    let domains = wire
        .trust_domains
        .iter()
        .map(|name| trust_domain_from_wire("by_federates_with.trust_domains", name))
        .collect::<Result<std::collections::BTreeSet<_>, _>>()?;
    if domains.is_empty() {
        return Err(bad_filter("by_federates_with: an empty trust domain set"));
    }
    let how = match MatchBehavior::try_from(wire.r#match) {
        Ok(MatchBehavior::MatchExact) => Match::Exact,
        Ok(MatchBehavior::MatchSubset) => Match::Subset,
        Ok(MatchBehavior::MatchSuperset) => Match::Superset,
        Ok(MatchBehavior::MatchAny) => Match::Any,
        Err(_) => return Err(bad_filter("by_federates_with.match is not one of the four")),
    };
    Ok(Some((domains, how)))
}

fn list_filter(request: &wire::ListEntriesRequest) -> Result<(EntryFilter, Page), Refusal> {
    let filter = filter!(request.filter.as_ref());
    Ok((
        filter,
        Page::new(request.page_size, request.page_token.clone())?,
    ))
}

fn count_filter(request: &wire::CountEntriesRequest) -> Result<EntryFilter, Refusal> {
    Ok(filter!(request.filter.as_ref()))
}

type SyncStream =
    Pin<Box<dyn Stream<Item = Result<wire::SyncAuthorizedEntriesResponse, Status>> + Send>>;

#[tonic::async_trait]
impl wire::entry_server::Entry for Service {
    async fn count_entries(
        &self,
        request: Request<wire::CountEntriesRequest>,
    ) -> Result<Response<wire::CountEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let filter = count_filter(request.get_ref()).map_err(|refusal| call.refuse(refusal))?;
        let all = self
            .parts
            .book
            .list()
            .await
            .map_err(|error| call.refuse(error))?;
        let count = all.iter().filter(|entry| filter.wants(entry)).count();
        Ok(Response::new(wire::CountEntriesResponse {
            count: i32::try_from(count).unwrap_or(i32::MAX),
        }))
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let (filter, page) =
            list_filter(request.get_ref()).map_err(|refusal| call.refuse(refusal))?;
        let all = self
            .parts
            .book
            .list()
            .await
            .map_err(|error| call.refuse(error))?;
        let paged = entries_page(all, &filter, &page);
        let mask = request.get_ref().output_mask.as_ref();
        Ok(Response::new(wire::ListEntriesResponse {
            entries: paged
                .items
                .iter()
                .map(|entry| masked(entry, mask))
                .collect(),
            next_page_token: paged.next,
        }))
    }

    async fn get_entry(
        &self,
        request: Request<wire::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let id: EntryId = request
            .id
            .parse()
            .map_err(|error: mesh_identity::EntryIdError| call.refuse(error))?;
        call.about(Object::new("entry").id(id.as_str()));
        let entry = self
            .parts
            .book
            .get(&id)
            .await
            .map_err(|error| call.refuse(error))?
            .ok_or_else(|| call.refuse(not_found()))?;
        Ok(Response::new(masked(&entry, request.output_mask.as_ref())))
    }

    async fn batch_create_entry(
        &self,
        request: Request<wire::BatchCreateEntryRequest>,
    ) -> Result<Response<wire::BatchCreateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let mask = request.output_mask;
        // In order, but many at a time: each waits for the disk, and one sync serves them all.
        let results = futures::stream::iter(request.entries)
            .map(|entry| self.create(&call, entry))
            .buffered(64)
            .map(|outcome| match outcome {
                Ok(entry) => wire::batch_create_entry_response::Result {
                    status: Some(ok()),
                    entry: Some(masked(&entry, mask.as_ref())),
                },
                Err(Created::Already(entry)) => wire::batch_create_entry_response::Result {
                    status: Some(types::Status {
                        code: Code::AlreadyExists as i32,
                        message: "similar entry already exists".into(),
                    }),
                    entry: Some(masked(&entry, mask.as_ref())),
                },
                Err(Created::Refused(refusal)) => wire::batch_create_entry_response::Result {
                    status: Some(refusal.item()),
                    entry: None,
                },
            })
            .collect()
            .await;
        Ok(Response::new(wire::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        _: Request<wire::BatchUpdateEntryRequest>,
    ) -> Result<Response<wire::BatchUpdateEntryResponse>, Status> {
        Err(not_served())
    }

    async fn batch_delete_entry(
        &self,
        request: Request<wire::BatchDeleteEntryRequest>,
    ) -> Result<Response<wire::BatchDeleteEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let results = futures::stream::iter(request.into_inner().ids)
            .map(|id| async {
                let outcome = self.delete(&call, &id).await;
                wire::batch_delete_entry_response::Result {
                    status: Some(match outcome {
                        Ok(()) => ok(),
                        Err(refusal) => refusal.item(),
                    }),
                    id,
                }
            })
            .buffered(64)
            .collect()
            .await;
        Ok(Response::new(wire::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<wire::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<wire::GetAuthorizedEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let entries = self.authorized(&call).await?;
        let mask = request.get_ref().output_mask.as_ref();
        Ok(Response::new(wire::GetAuthorizedEntriesResponse {
            entries: entries.iter().map(|entry| masked(entry, mask)).collect(),
        }))
    }

    type SyncAuthorizedEntriesStream = SyncStream;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<wire::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<SyncStream>, Status> {
        let call = Call::of(&request)?;
        let mut asks = request.into_inner();
        let invalid = |why: &str| call.refuse(Refusal::new("FNL1256", Code::InvalidArgument, why));
        let Some(first) = asks.message().await? else {
            return Err(invalid("no request was sent"));
        };
        if !first.ids.is_empty() {
            return Err(invalid(
                "specifying IDs on the initial request is not supported",
            ));
        }
        let mask = first.output_mask;
        if mask.as_ref().is_some_and(|mask| !mask.revision_number) {
            return Err(invalid("revision number cannot be masked"));
        }
        let entries = self.authorized(&call).await?;
        if entries.len() <= SYNC_PAGE {
            let all = wire::SyncAuthorizedEntriesResponse {
                entries: entries
                    .iter()
                    .map(|entry| masked(entry, mask.as_ref()))
                    .collect(),
                ..Default::default()
            };
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(all)))));
        }
        // More: the ids with their revisions first, then in full what the agent lacks.
        let pages = entries.chunks(SYNC_PAGE);
        let last = pages.len() - 1;
        let sparse: Vec<_> = pages
            .enumerate()
            .map(|(number, page)| {
                Ok(wire::SyncAuthorizedEntriesResponse {
                    entry_revisions: page.iter().map(|entry| revision(entry)).collect(),
                    more: number < last,
                    ..Default::default()
                })
            })
            .collect();
        let full = asks.flat_map(move |ask| {
            let pages = match ask {
                Ok(ask) => in_full(&entries, &ask.ids, mask.as_ref()),
                Err(status) => vec![Err(status)],
            };
            futures::stream::iter(pages)
        });
        Ok(Response::new(Box::pin(
            futures::stream::iter(sparse).chain(full),
        )))
    }
}

fn revision(entry: &Entry) -> wire::EntryRevision {
    wire::EntryRevision {
        id: entry.id.as_str().to_owned(),
        revision_number: i64::try_from(entry.revision).unwrap_or(i64::MAX),
        created_at: seconds(entry.created_at),
    }
}

/// The entries of one request in pages; ids that are not the agent's are passed over, as in SPIRE.
fn in_full(
    entries: &[Arc<Entry>],
    ids: &[String],
    mask: Option<&types::EntryMask>,
) -> Vec<Result<wire::SyncAuthorizedEntriesResponse, Status>> {
    let found: Vec<_> = ids
        .iter()
        .filter_map(|id| {
            entries
                .binary_search_by(|entry| entry.id.as_str().cmp(id.as_str()))
                .ok()
        })
        .map(|at| masked(&entries[at], mask))
        .collect();
    if found.is_empty() {
        return vec![Ok(Default::default())];
    }
    let pages = found.chunks(SYNC_PAGE);
    let last = pages.len() - 1;
    pages
        .enumerate()
        .map(|(number, page)| {
            Ok(wire::SyncAuthorizedEntriesResponse {
                entries: page.to_vec(),
                more: number < last,
                ..Default::default()
            })
        })
        .collect()
}
