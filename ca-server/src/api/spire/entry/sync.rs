//! What `SyncAuthorizedEntries` sends: everything at once when it is little, else revisions first and then what the agent lacks.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use mesh_identity::Entry;
use prost::Message;
use proto::spire::api::server::entry::v1 as wire;
use proto::spire::api::types;
use tonic::{Status, Streaming};

use super::super::seconds;
use super::mask::masked;
use crate::registry::ROOM;

/// Entries in one page, as in SPIRE.
const SYNC_PAGE: usize = 500;

/// One message of the answer.
pub(super) type Answer = Result<wire::SyncAuthorizedEntriesResponse, Status>;

/// The answer.
pub(crate) type SyncStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

/// All entries of an agent, which are in the order of their ids.
pub(super) fn answers(
    entries: Vec<Arc<Entry>>,
    mask: Option<types::EntryMask>,
    asks: Streaming<wire::SyncAuthorizedEntriesRequest>,
) -> SyncStream {
    if entries.len() <= SYNC_PAGE {
        let mut pages = pages(entries.iter().map(|entry| masked(entry, mask.as_ref())));
        if pages.len() == 1 {
            return Box::pin(tokio_stream::iter(pages.pop().map(Ok)));
        }
    }
    // More: the ids with their revisions first, then in full what the agent lacks.
    let chunks = entries.chunks(SYNC_PAGE);
    let last = chunks.len() - 1;
    let sparse: Vec<_> = chunks
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
        let answers = match ask {
            Ok(ask) => in_full(&entries, &ask.ids, mask.as_ref()),
            Err(status) => vec![Err(status)],
        };
        futures::stream::iter(answers)
    });
    Box::pin(futures::stream::iter(sparse).chain(full))
}

fn revision(entry: &Entry) -> wire::EntryRevision {
    wire::EntryRevision {
        id: entry.id.as_str().to_owned(),
        revision_number: i64::try_from(entry.revision).unwrap_or(i64::MAX),
        created_at: seconds(entry.created_at),
    }
}

/// The entries of one request in pages; ids that are not the agent's are passed over, as in SPIRE.
fn in_full(entries: &[Arc<Entry>], ids: &[String], mask: Option<&types::EntryMask>) -> Vec<Answer> {
    let found = ids.iter().filter_map(|id| {
        let at = entries.binary_search_by(|entry| entry.id.as_str().cmp(id.as_str()));
        at.ok().map(|at| masked(&entries[at], mask))
    });
    pages(found).into_iter().map(Ok).collect()
}

/// At least one page; each holds at most [`SYNC_PAGE`] entries, and no more bytes than every client reads.
fn pages(entries: impl Iterator<Item = types::Entry>) -> Vec<wire::SyncAuthorizedEntriesResponse> {
    let mut pages = vec![wire::SyncAuthorizedEntriesResponse::default()];
    let mut room = ROOM;
    for entry in entries {
        let size = entry.encoded_len();
        let page = pages.last_mut().expect("there is one from the start");
        if page.entries.len() < SYNC_PAGE && (size <= room || page.entries.is_empty()) {
            page.entries.push(entry);
            room = room.saturating_sub(size);
        } else {
            page.more = true;
            pages.push(wire::SyncAuthorizedEntriesResponse {
                entries: vec![entry],
                ..Default::default()
            });
            room = ROOM.saturating_sub(size);
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: usize) -> types::Entry {
        types::Entry {
            hint: "x".repeat(bytes),
            ..Default::default()
        }
    }

    #[test]
    fn t_30_a_page_of_a_sync_is_cut_by_its_size_also() {
        let pages = pages((0..100).map(|_| entry(ROOM / 8)));
        assert!(pages.len() >= 100 / 8);
        assert!(pages.iter().all(|page| page.encoded_len() < 4 << 20));
        let all: usize = pages.iter().map(|page| page.entries.len()).sum();
        assert_eq!(all, 100);
        let (last, before) = pages.split_last().unwrap();
        assert!(!last.more && before.iter().all(|page| page.more));
    }

    #[test]
    fn a_page_of_a_sync_has_no_more_entries_than_spires() {
        let pages = pages((0..1_001).map(|_| entry(1)));
        let sizes: Vec<usize> = pages.iter().map(|page| page.entries.len()).collect();
        assert_eq!(sizes, [500, 500, 1]);
        assert_eq!(super::pages(std::iter::empty()).len(), 1);
    }
}
