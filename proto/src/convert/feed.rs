//! The feed between a server and its agents: updates, where to resume, and the agent's verdict.
//! It trusts the stream's peer to be who the caller says, and nothing about what it sends.
//! It never yields half an update: parts are collected until the last one is there, within a limit.

use std::collections::BTreeSet;

use mesh_identity::{Entry, EntryId, TrustDomain};
use prost::Message;

use super::{
    bundle::CarriedBundle,
    entry::entry_id,
    error::{Reason, WireError},
    identity::trust_domain_from_wire,
};
use crate::{
    finial::feed::v1::{self as wire, follow_request},
    spire::api::types,
};

/// Messages are cut near this size, well below the 4 MiB that gRPC accepts by default.
pub const PART_BYTES: usize = 1024 * 1024;
/// Most entries, bundles and removals together that a reader holds of one update.
pub const MAX_ITEMS: usize = 1_000_000;
const MAX_EPOCH_BYTES: usize = 64;
const MAX_REASON_BYTES: usize = 4096;
const MAX_VERSION_BYTES: usize = 255;

/// A place in the feed. Revisions of different epochs cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Names one life of the server's revision counter.
    pub epoch: String,
    /// Rises with every change.
    pub revision: u64,
}

/// What an agent sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromAgent {
    /// Opens the stream.
    Hello {
        /// The last update that was applied; `None` on the first contact.
        resume: Option<Position>,
        /// Version of the agent program.
        agent_version: String,
    },
    /// The verdict on one revision.
    Ack {
        /// Which one.
        revision: u64,
        /// What became of it.
        verdict: Verdict,
    },
}

/// What became of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The agent holds it now.
    Applied,
    /// The agent kept the state it had, for this reason.
    Refused(String),
}

impl TryFrom<wire::FollowRequest> for FromAgent {
    type Error = WireError;

    fn try_from(request: wire::FollowRequest) -> Result<Self, WireError> {
        match request.message {
            None => Err(WireError::new("message", Reason::Missing)),
            Some(follow_request::Message::Hello(hello)) => {
                at_most("hello.server_epoch", &hello.server_epoch, MAX_EPOCH_BYTES)?;
                at_most(
                    "hello.agent_version",
                    &hello.agent_version,
                    MAX_VERSION_BYTES,
                )?;
                let (epoch, revision) = (hello.server_epoch, hello.resume_after);
                if epoch.is_empty() && revision > 0 {
                    return Err(WireError::new("hello.server_epoch", Reason::Missing));
                }
                let resume = (!epoch.is_empty()).then_some(Position { epoch, revision });
                Ok(Self::Hello {
                    resume,
                    agent_version: hello.agent_version,
                })
            }
            Some(follow_request::Message::Ack(ack)) => {
                at_most(
                    "ack.refused_because",
                    &ack.refused_because,
                    MAX_REASON_BYTES,
                )?;
                let verdict = match ack.refused_because.is_empty() {
                    true => Verdict::Applied,
                    false => Verdict::Refused(ack.refused_because),
                };
                Ok(Self::Ack {
                    revision: ack.revision,
                    verdict,
                })
            }
        }
    }
}

/// A reason longer than a reader takes is cut.
impl From<FromAgent> for wire::FollowRequest {
    fn from(message: FromAgent) -> Self {
        let message = match message {
            FromAgent::Hello {
                resume,
                agent_version,
            } => {
                let (server_epoch, resume_after) =
                    resume.map_or_else(Default::default, |p| (p.epoch, p.revision));
                follow_request::Message::Hello(wire::Hello {
                    server_epoch,
                    resume_after,
                    agent_version,
                })
            }
            FromAgent::Ack { revision, verdict } => {
                let mut refused_because = match verdict {
                    Verdict::Applied => String::new(),
                    Verdict::Refused(reason) if reason.is_empty() => "no reason given".to_owned(),
                    Verdict::Refused(reason) => reason,
                };
                let end = (0..=MAX_REASON_BYTES)
                    .rev()
                    .find(|end| refused_because.is_char_boundary(*end));
                refused_because.truncate(end.unwrap_or(0));
                follow_request::Message::Ack(wire::Ack {
                    revision,
                    refused_because,
                })
            }
        };
        Self {
            message: Some(message),
        }
    }
}

/// One change of what an agent holds, complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Where the agent is once it is applied.
    pub at: Position,
    /// Whether it replaces everything that the agent holds; else it is a change to the revision before.
    pub snapshot: bool,
    /// Entries that appear or change.
    pub entries: Vec<Entry>,
    /// Entries that are gone; none in a snapshot.
    pub removed_entries: Vec<EntryId>,
    /// Bundles that appear or change.
    pub bundles: Vec<CarriedBundle>,
    /// Trust domains whose bundle is gone; none in a snapshot.
    pub removed_bundles: Vec<TrustDomain>,
}

impl Update {
    /// An update that changes nothing yet.
    pub fn empty(at: Position, snapshot: bool) -> Self {
        Self {
            at,
            snapshot,
            entries: Vec::new(),
            removed_entries: Vec::new(),
            bundles: Vec::new(),
            removed_bundles: Vec::new(),
        }
    }

    /// Writes the update as one or more messages, in the order in which they are to be sent.
    pub fn to_wire(&self) -> Vec<wire::FeedUpdate> {
        let mut parts = Parts::new(self);
        for bundle in &self.bundles {
            let bundle = types::Bundle::from(bundle);
            parts.room_for(bundle.encoded_len()).bundles.push(bundle);
        }
        for domain in &self.removed_bundles {
            parts
                .room_for(domain.as_str().len())
                .removed_trust_domains
                .push(domain.as_str().to_owned());
        }
        for id in &self.removed_entries {
            parts
                .room_for(id.as_str().len())
                .removed_entry_ids
                .push(id.as_str().to_owned());
        }
        for entry in &self.entries {
            let entry = types::Entry::from(entry);
            parts
                .room_for(entry.encoded_len())
                .upserted_entries
                .push(entry);
        }
        parts.finish()
    }
}

/// Messages of one revision, each near [`PART_BYTES`] at most.
struct Parts {
    empty: wire::FeedUpdate,
    full: Vec<wire::FeedUpdate>,
    current: wire::FeedUpdate,
    bytes: usize,
}

impl Parts {
    /// Tag and length in front of an item, at most.
    const OVERHEAD: usize = 8;

    fn new(update: &Update) -> Self {
        let empty = wire::FeedUpdate {
            server_epoch: update.at.epoch.clone(),
            revision: update.at.revision,
            snapshot: update.snapshot,
            ..Default::default()
        };
        Self {
            current: empty.clone(),
            empty,
            full: Vec::new(),
            bytes: 0,
        }
    }

    fn room_for(&mut self, bytes: usize) -> &mut wire::FeedUpdate {
        if self.bytes > 0 && self.bytes + bytes + Self::OVERHEAD > PART_BYTES {
            let mut full = std::mem::replace(&mut self.current, self.empty.clone());
            full.more = true;
            self.full.push(full);
            self.bytes = 0;
        }
        self.bytes += bytes + Self::OVERHEAD;
        &mut self.current
    }

    fn finish(mut self) -> Vec<wire::FeedUpdate> {
        self.full.push(self.current);
        self.full
    }
}

/// Collects the parts of an update. After a refusal it holds nothing: the stream is of no more use.
#[derive(Debug, Default)]
pub struct Assembly {
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    update: Update,
    entries: BTreeSet<EntryId>,
    domains: BTreeSet<TrustDomain>,
}

impl Assembly {
    /// Takes one message; yields the update with its last part. Every entry is also validated for `own`,
    /// the trust domain of the agent.
    pub fn add(
        &mut self,
        part: wire::FeedUpdate,
        own: &TrustDomain,
    ) -> Result<Option<Update>, WireError> {
        at_most("server_epoch", &part.server_epoch, MAX_EPOCH_BYTES)?;
        if part.server_epoch.is_empty() {
            return Err(WireError::new("server_epoch", Reason::Missing));
        }
        let at = Position {
            epoch: part.server_epoch.clone(),
            revision: part.revision,
        };
        let mut pending = match self.pending.take() {
            None => Pending {
                update: Update::empty(at, part.snapshot),
                entries: BTreeSet::new(),
                domains: BTreeSet::new(),
            },
            Some(pending) if pending.update.at != at => {
                return Err(WireError::new("revision", Reason::OtherRevision));
            }
            Some(pending) if pending.update.snapshot != part.snapshot => {
                return Err(WireError::new("snapshot", Reason::OtherRevision));
            }
            Some(pending) => pending,
        };
        let more = part.more;
        pending.take(part, own)?;
        match more {
            true => {
                self.pending = Some(pending);
                Ok(None)
            }
            false => Ok(Some(pending.update)),
        }
    }
}

impl Pending {
    fn take(&mut self, part: wire::FeedUpdate, own: &TrustDomain) -> Result<(), WireError> {
        let update = &mut self.update;
        let items = part.upserted_entries.len() + part.removed_entry_ids.len() + part.bundles.len();
        if self.entries.len() + self.domains.len() + items + part.removed_trust_domains.len()
            > MAX_ITEMS
        {
            return Err(WireError::new("", Reason::TooMany(MAX_ITEMS)));
        }
        if update.snapshot && !part.removed_entry_ids.is_empty() {
            return Err(WireError::new("removed_entry_ids", Reason::NotInSnapshot));
        }
        if update.snapshot && !part.removed_trust_domains.is_empty() {
            return Err(WireError::new(
                "removed_trust_domains",
                Reason::NotInSnapshot,
            ));
        }
        for (i, entry) in part.upserted_entries.iter().enumerate() {
            let entry = read_entry(entry, own).map_err(|e| e.within_item("upserted_entries", i))?;
            once(&mut self.entries, &entry.id).map_err(|e| e.within_item("upserted_entries", i))?;
            update.entries.push(entry);
        }
        for (i, id) in part.removed_entry_ids.iter().enumerate() {
            let id = entry_id("", id)
                .and_then(|id| once(&mut self.entries, &id).map(|()| id))
                .map_err(|e| e.within_item("removed_entry_ids", i))?;
            update.removed_entries.push(id);
        }
        for (i, bundle) in part.bundles.into_iter().enumerate() {
            let bundle = CarriedBundle::try_from(bundle)
                .and_then(|b| one_bundle(&mut self.domains, b.bundle.trust_domain()).map(|()| b))
                .map_err(|e| e.within_item("bundles", i))?;
            update.bundles.push(bundle);
        }
        for (i, name) in part.removed_trust_domains.iter().enumerate() {
            let domain = trust_domain_from_wire("", name)
                .and_then(|d| one_bundle(&mut self.domains, &d).map(|()| d))
                .map_err(|e| e.within_item("removed_trust_domains", i))?;
            update.removed_bundles.push(domain);
        }
        Ok(())
    }
}

fn read_entry(wire: &types::Entry, own: &TrustDomain) -> Result<Entry, WireError> {
    let entry = Entry::try_from(wire)?;
    entry.validate(own).map_err(|e| WireError::new("", e))?;
    Ok(entry)
}

fn once(seen: &mut BTreeSet<EntryId>, id: &EntryId) -> Result<(), WireError> {
    match seen.insert(id.clone()) {
        true => Ok(()),
        false => Err(WireError::new("", Reason::SecondEntry(id.clone()))),
    }
}

fn one_bundle(seen: &mut BTreeSet<TrustDomain>, domain: &TrustDomain) -> Result<(), WireError> {
    match seen.insert(domain.clone()) {
        true => Ok(()),
        false => Err(WireError::new("", Reason::SecondBundle(domain.clone()))),
    }
}

fn at_most(field: &str, text: &str, bytes: usize) -> Result<(), WireError> {
    match text.len() <= bytes {
        true => Ok(()),
        false => Err(WireError::new(field, Reason::TooLong(bytes))),
    }
}
