//! Decides how the asking road is walked, for SPIRE's servers, which do not push: entries by revision, then bundles, again and again.
//! Trusts the connection. Never lets one entry or foreign bundle that cannot be read hold up the others: it is left out, and said so.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use mesh_identity::{Bundle, Entry, EntryId, TrustDomain};
use mesh_runtime::{errors::ErrorChain, telemetry::Repetition};
use proto::{
    convert::CarriedBundle,
    spire::api::{
        server::{
            bundle::v1::{self as bundle_wire, bundle_client::BundleClient},
            entry::v1::{self as entry_wire, entry_client::EntryClient},
        },
        types,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{
    RoadEnd, Upstream,
    heard::{Bundles, Entries, Heard, UpdateError},
};

/// How long one round of questions may take.
const ROUND_WITHIN: Duration = Duration::from_secs(30);
/// Entries asked for in one message, as SPIRE's agent does.
const PAGE: usize = 500;
/// The largest answer: a page of large entries.
const LARGEST: usize = 16 * 1024 * 1024;

/// Why a round came to nothing.
enum Failed {
    Call(Status),
    Refused(UpdateError),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Call(status)
    }
}

impl Upstream {
    /// Asks until that fails. What is held stays in use meanwhile.
    pub(super) async fn poll(
        &self,
        channel: Channel,
        state: &mut Heard,
        quiet: &Repetition,
    ) -> RoadEnd {
        let clock = &self.bootstrap.clock;
        let mut first = true;
        loop {
            let round = tokio::time::timeout(ROUND_WITHIN, self.round(&channel, state));
            let round = round.await.unwrap_or_else(|_| {
                Err(Status::deadline_exceeded("no answer within the time limit").into())
            });
            self.metrics.synced(clock.now(), round.is_ok());
            let news = match round {
                Ok(news) => news,
                Err(Failed::Call(status)) => return RoadEnd::Silent(Box::new(status)),
                Err(Failed::Refused(error)) => return RoadEnd::Refused(error),
            };
            if first {
                tracing::info!(
                    every = ?self.bootstrap.options.sync_interval,
                    "the server does not push; it is asked at intervals"
                );
                first = false;
                self.connected();
            }
            self.heard(true);
            quiet.succeeded();
            // The vault may hold what a restart kept, so the first answer is handed on whatever it is.
            if news || self.vault.view().roster().is_none() {
                self.publish(state);
            }
            let every = self.bootstrap.options.sync_interval.get();
            clock.sleep(self.random.around(every, 0.1)).await;
        }
    }

    /// One round: whether it brought anything new.
    async fn round(&self, channel: &Channel, state: &mut Heard) -> Result<bool, Failed> {
        let own = &self.bootstrap.remote.trust_domain;
        let entries = entries(channel.clone(), state).await?;
        let mut client = BundleClient::new(channel.clone()).max_decoding_message_size(LARGEST);
        let ask = bundle_wire::GetBundleRequest { output_mask: None };
        let answer = client.get_bundle(ask).await?.into_inner();
        let bundle = read_bundle(answer, own).map_err(Failed::Refused)?;
        let mut bundles: Bundles = [(own.clone(), newer(state, bundle))].into();
        let foreign: BTreeSet<&TrustDomain> = entries
            .values()
            .flat_map(|entry| &entry.federates_with)
            .filter(|domain| *domain != own)
            .collect();
        for domain in foreign {
            let ask = bundle_wire::GetFederatedBundleRequest {
                trust_domain: domain.to_string(),
                output_mask: None,
            };
            let answer = match client.get_federated_bundle(ask).await {
                Ok(answer) => answer.into_inner(),
                // The server has none, or has one no more.
                Err(status) if status.code() == Code::NotFound => continue,
                Err(status) => return Err(status.into()),
            };
            match read_bundle(answer, domain) {
                Ok(bundle) => drop(bundles.insert(domain.clone(), newer(state, bundle))),
                Err(error) => {
                    tracing::warn!(%domain, error = %ErrorChain(&error), "a foreign bundle cannot be read; the one before stays in use");
                    let held = state.bundle(domain).map(Arc::clone);
                    bundles.extend(held.map(|held| (domain.clone(), held)));
                }
            }
        }
        state.replace(entries, bundles).map_err(Failed::Refused)
    }
}

/// The one that is held, if it is the same: what did not change keeps its place in memory.
fn newer(state: &Heard, bundle: Bundle) -> Arc<Bundle> {
    match state.bundle(bundle.trust_domain()) {
        Some(held) if **held == bundle => Arc::clone(held),
        _ => Arc::new(bundle),
    }
}

fn read_bundle(wire: types::Bundle, domain: &TrustDomain) -> Result<Bundle, UpdateError> {
    let bundle = CarriedBundle::try_from(wire)
        .map_err(UpdateError::Unreadable)?
        .bundle;
    match bundle.trust_domain() == domain {
        true => Ok(bundle),
        false => Err(UpdateError::NoBundle(domain.clone())),
    }
}

/// All entries of this agent. A server with many sends their revisions first; only those that are new are asked for.
async fn entries(channel: Channel, state: &Heard) -> Result<Entries, Status> {
    let (asks, rest) = mpsc::channel(1);
    let mut client = EntryClient::new(channel).max_decoding_message_size(LARGEST);
    let first = entry_wire::SyncAuthorizedEntriesRequest::default();
    // There is room for one, and the receiver lives in this function until the call takes it.
    asks.try_send(first)
        .map_err(|_| Status::internal("the call ended before it began"))?;
    let mut answers = client
        .sync_authorized_entries(ReceiverStream::new(rest))
        .await?
        .into_inner();
    let mut page = next(&mut answers).await?;
    let mut entries = Entries::new();
    if page.entry_revisions.is_empty() {
        collect(&mut entries, state, page.entries);
        return Ok(entries);
    }
    let mut wanted: Vec<String> = Vec::new();
    let mut seen: HashSet<EntryId> = HashSet::new();
    loop {
        for revision in std::mem::take(&mut page.entry_revisions) {
            let Some(id) = read_id(&revision.id) else {
                continue;
            };
            if !seen.insert(id.clone()) {
                continue;
            }
            match state.entry(&id).filter(|held| is_same(held, &revision)) {
                Some(held) => drop(entries.insert(id, Arc::clone(held))),
                None => wanted.push(revision.id),
            }
        }
        if !page.more {
            break;
        }
        page = next(&mut answers).await?;
    }
    for ids in wanted.chunks(PAGE) {
        let ask = entry_wire::SyncAuthorizedEntriesRequest {
            ids: ids.to_vec(),
            ..Default::default()
        };
        if asks.send(ask).await.is_err() {
            return Err(Status::unavailable("the server ended the call early"));
        }
        loop {
            let page = next(&mut answers).await?;
            collect(&mut entries, state, page.entries);
            if !page.more {
                break;
            }
        }
    }
    Ok(entries)
}

async fn next(
    answers: &mut Streaming<entry_wire::SyncAuthorizedEntriesResponse>,
) -> Result<entry_wire::SyncAuthorizedEntriesResponse, Status> {
    let ended = || Status::unavailable("the server ended the call early");
    answers.message().await?.ok_or_else(ended)
}

/// An entry that was deleted and made again under its old name begins with revision 0 again.
fn is_same(held: &Entry, revision: &entry_wire::EntryRevision) -> bool {
    let created = held
        .created_at
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(held.revision) == Ok(revision.revision_number)
        && i64::try_from(created) == Ok(revision.created_at)
}

fn collect(entries: &mut Entries, state: &Heard, wire: Vec<types::Entry>) {
    for wire in wire {
        match Entry::try_from(&wire) {
            Ok(entry) => {
                let entry = match state.entry(&entry.id) {
                    Some(held) if **held == entry => Arc::clone(held),
                    _ => Arc::new(entry),
                };
                entries.insert(entry.id.clone(), entry);
            }
            // It only ever adds an identity, so leaving it out takes nothing from anybody else.
            Err(error) => {
                let id = mesh_runtime::errors::untrusted_within(&wire.id, 64);
                tracing::warn!(entry = %id, error = %ErrorChain(&error), "an entry cannot be read and is left out");
            }
        }
    }
}

fn read_id(text: &str) -> Option<EntryId> {
    let id = text.parse::<EntryId>();
    if let Err(error) = &id {
        let name = mesh_runtime::errors::untrusted_within(text, 64);
        tracing::warn!(entry = %name, error = %ErrorChain(error), "an entry's name cannot be read; it is left out");
    }
    id.ok()
}
