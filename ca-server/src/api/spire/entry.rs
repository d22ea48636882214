//! `spire.api.server.entry.v1`: entries for administrators, and each agent's own for it.

pub(super) mod filter;
mod mask;
mod sync;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use mesh_identity::{Entry, EntryId, EntryIdError};
use mesh_runtime::audit::Object;
use prost::Message;
use proto::spire::api::server::entry::v1 as wire;
use proto::spire::api::types;
use tonic::{Code, Request, Response, Status, Streaming};

use self::mask::masked;
pub(super) use self::mask::updated;
use super::super::{Call, Parts, Refusal};
use super::item::{at_a_time, begin, finish};
use super::{ok, seconds};
use crate::registry::{CreateRefused, Standing, UpdateRefused};

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
        let mut record = begin(&self.parts, call, "entry.create");
        let outcome = match read_new(wire, seconds(now)) {
            Err(refusal) => Err(Created::Refused(refusal)),
            Ok(entry) => {
                record.object(about(&entry));
                match self.parts.book.create(entry).await {
                    Ok(entry) => Ok(entry),
                    Err(CreateRefused::AlreadyExists(entry)) => Err(Created::Already(entry)),
                    Err(CreateRefused::Error(error)) => Err(Created::Refused(
                        Refusal::from(error).within("failed to create entry"),
                    )),
                }
            }
        };
        if let Ok(entry) | Err(Created::Already(entry)) = &outcome {
            record.object(about(entry));
        }
        let refused = match &outcome {
            Ok(_) => None,
            Err(Created::Already(_)) => Some(already_exists()),
            Err(Created::Refused(refusal)) => Some(refusal.clone()),
        };
        finish(record, refused.as_ref())
            .await
            .map_err(Created::Refused)?;
        outcome
    }

    async fn update(
        &self,
        call: &Call,
        wire: types::Entry,
        mask: Option<&types::EntryMask>,
    ) -> Result<Arc<Entry>, Refusal> {
        let mut record = begin(&self.parts, call, "entry.update");
        let outcome = match wire.id.parse::<EntryId>() {
            // No entry has an id that none can have.
            Err(_) => Err(UpdateRefused::NotFound),
            Ok(id) => {
                record.object(Object::new("entry").id(id.as_str()));
                self.parts
                    .book
                    .update(&id, |old| updated(old, &wire, mask).map_err(Refusal::from))
                    .await
            }
        };
        let outcome = outcome.map_err(|refused| match refused {
            UpdateRefused::NotFound => not_found().saying("failed to update entry"),
            UpdateRefused::AlreadyExists(other) => {
                record.object(about(&other));
                already_exists().within("failed to update entry")
            }
            UpdateRefused::Change(refusal) => refusal.within("failed to convert entry"),
            UpdateRefused::Error(error) => Refusal::from(error).within("failed to update entry"),
        });
        if let Ok(entry) = &outcome {
            record.object(about(entry));
        }
        finish(record, outcome.as_ref().err()).await?;
        outcome
    }

    async fn delete(&self, call: &Call, id: &str) -> Result<(), Refusal> {
        let mut record = begin(&self.parts, call, "entry.delete");
        let outcome = match entry_id(id, "missing entry ID") {
            Err(refusal) => Err(refusal),
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
        finish(record, outcome.as_ref().err()).await?;
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
        let view = registry.view(&agent.id);
        if view.standing == Standing::Waiting {
            // An answer without them would take them away.
            return Err(call.refuse(Refusal::new(
                "FNL1162",
                Code::Unavailable,
                "the entries of this agent are not known before the cluster has been read",
            )));
        }
        Ok(view.entries.into_values().collect())
    }
}

/// New entries seldom have an id yet. Two with one id, or that say the same, are made in their order; all others together,
/// so that a batch waits for the disk once.
fn created_at_a_time(entries: &[types::Entry]) -> usize {
    let ids = entries.iter().map(|entry| entry.id.as_str());
    let named = ids.filter(|id| !id.is_empty());
    let place = |id: &Option<types::Spiffeid>| {
        let id = id.as_ref();
        id.map(|id| (id.trust_domain.to_ascii_lowercase(), id.path.clone()))
    };
    let meant = entries.iter().map(|entry| {
        let selectors = entry.selectors.iter();
        let selectors: BTreeSet<_> = selectors.map(|s| (&s.r#type, &s.value)).collect();
        (place(&entry.spiffe_id), place(&entry.parent_id), selectors)
    });
    at_a_time(named).min(at_a_time(meant))
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

/// An id that an entry can have; SPIRE says the same of one that none can have as of one that none has.
fn entry_id(id: &str, missing: &str) -> Result<EntryId, Refusal> {
    if id.is_empty() {
        return Err(Refusal::from(EntryIdError::Empty).saying(missing));
    }
    id.parse().map_err(|_| not_found())
}

fn already_exists() -> Refusal {
    Refusal::new(
        "FNL1254",
        Code::AlreadyExists,
        "similar entry already exists",
    )
}

fn not_found() -> Refusal {
    Refusal::new("FNL1255", Code::NotFound, "entry not found")
}

/// The fields that the server gives are the server's: revision and time of creation, and the id if none was chosen.
pub(super) fn read_new(mut wire: types::Entry, now: i64) -> Result<Entry, Refusal> {
    if wire.id.is_empty() {
        wire.id = uuid::Uuid::new_v4().to_string();
    }
    wire.revision_number = 0;
    wire.created_at = now;
    Entry::try_from(&wire).map_err(|error| Refusal::from(error).within("failed to convert entry"))
}

#[tonic::async_trait]
impl wire::entry_server::Entry for Service {
    async fn count_entries(
        &self,
        request: Request<wire::CountEntriesRequest>,
    ) -> Result<Response<wire::CountEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let filter = filter::count(request.get_ref(), &self.parts.trust_domain)
            .map_err(|refusal| call.refuse(refusal))?;
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
        let (filter, page) = filter::list(request.get_ref(), &self.parts.trust_domain)
            .map_err(|refusal| call.refuse(refusal))?;
        let mask = request.get_ref().output_mask.as_ref();
        let paged = self.parts.book.page(&filter, &page, |entry| {
            let entry = masked(entry, mask);
            let size = entry.encoded_len();
            (entry, size)
        });
        let paged = paged.await.map_err(|error| call.refuse(error))?;
        Ok(Response::new(wire::ListEntriesResponse {
            entries: paged.items,
            next_page_token: paged.next,
        }))
    }

    async fn get_entry(
        &self,
        request: Request<wire::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let id = entry_id(&request.id, "missing ID").map_err(|refusal| call.refuse(refusal))?;
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
        let at_a_time = created_at_a_time(&request.entries);
        let results = futures::stream::iter(request.entries)
            .map(|entry| self.create(&call, entry))
            .buffered(at_a_time)
            .map(|outcome| match outcome {
                Ok(entry) => wire::batch_create_entry_response::Result {
                    status: Some(ok()),
                    entry: Some(masked(&entry, mask.as_ref())),
                },
                Err(Created::Already(entry)) => wire::batch_create_entry_response::Result {
                    status: Some(already_exists().item()),
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
        request: Request<wire::BatchUpdateEntryRequest>,
    ) -> Result<Response<wire::BatchUpdateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let (input, output) = (request.input_mask.as_ref(), request.output_mask.as_ref());
        let at_a_time = at_a_time(request.entries.iter().map(|entry| entry.id.as_str()));
        let results = futures::stream::iter(request.entries)
            .map(|entry| self.update(&call, entry, input))
            .buffered(at_a_time)
            .map(|outcome| match outcome {
                Ok(entry) => wire::batch_update_entry_response::Result {
                    status: Some(ok()),
                    entry: Some(masked(&entry, output)),
                },
                Err(refusal) => wire::batch_update_entry_response::Result {
                    status: Some(refusal.item()),
                    entry: None,
                },
            })
            .collect()
            .await;
        Ok(Response::new(wire::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<wire::BatchDeleteEntryRequest>,
    ) -> Result<Response<wire::BatchDeleteEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let ids = request.into_inner().ids;
        let at_a_time = at_a_time(ids.iter().map(String::as_str));
        let results = futures::stream::iter(ids)
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
            .buffered(at_a_time)
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

    type SyncAuthorizedEntriesStream = sync::SyncStream;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<wire::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<sync::SyncStream>, Status> {
        let call = Call::of(&request)?;
        let mut asks = request.into_inner();
        let invalid = |why: &str| call.refuse(Refusal::new("FNL1256", Code::InvalidArgument, why));
        let Some(first) = asks.message().await? else {
            return Err(invalid("no request was sent"));
        };
        if !first.ids.is_empty() {
            return Err(invalid(
                "specifying IDs on initial request is not supported",
            ));
        }
        let mask = first.output_mask;
        if mask.as_ref().is_some_and(|mask| !mask.revision_number) {
            return Err(invalid("revision number cannot be masked"));
        }
        let entries = self.authorized(&call).await?;
        Ok(Response::new(sync::answers(entries, mask, asks)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_entries_without_ids_are_made_together_unless_two_say_the_same() {
        let named = |id: &str, path: &str| types::Entry {
            id: id.into(),
            spiffe_id: Some(types::Spiffeid {
                trust_domain: "dev.test".into(),
                path: path.into(),
            }),
            ..Default::default()
        };
        assert!(created_at_a_time(&[named("", "/a"), named("", "/b")]) > 1);
        assert_eq!(created_at_a_time(&[named("", "/a"), named("", "/a")]), 1);
        assert_eq!(created_at_a_time(&[named("x", "/a"), named("x", "/b")]), 1);
    }
}
