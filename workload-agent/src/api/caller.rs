//! Decides who a caller is and what is noted of it: facts by the kernel, a record of what it gets, a number for what it is refused.
//! Trusts the attestor. Never tells a caller without an identity more than a code and a number.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_identity::Selector;
use mesh_runtime::{
    audit::{Action, Actor, AuditLog, Decision, Object, Outcome, Record},
    clock::Clock,
    errors::ErrorChain,
    tasks::Stop,
};
use tokio::time::Instant;
use tonic::{Request, Status};

use super::{PerUid, Place, correlation_id, peer::Peer};
use crate::{
    attestor::{AttestError, Attestor, Credentials, Wanted, known::Sight},
    config::LimitOptions,
    metrics::Metrics,
    tokens::Tokens,
    vault::Vault,
};

/// What each door that gives out identities works with.
#[derive(Debug)]
pub struct Parts {
    pub(super) vault: Arc<Vault>,
    pub(super) attestor: Attestor,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) streams: PerUid,
    pub(super) denials: Denials,
    pub(super) audit: Option<AuditLog>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) stop: Stop,
}

impl Parts {
    /// Serves what the vault holds. With an audit log, no identity is given out unrecorded. Streams end when `stop` comes.
    pub fn new(
        vault: Arc<Vault>,
        attestor: Attestor,
        clock: Clock,
        metrics: Metrics,
        audit: Option<AuditLog>,
        tokens: Arc<Tokens>,
        stop: Stop,
    ) -> Self {
        Self {
            vault,
            attestor,
            clock,
            metrics,
            streams: PerUid::new(LimitOptions::default().streams_per_uid),
            denials: Denials::default(),
            audit,
            tokens,
            stop,
        }
    }

    /// With another limit than the usual one for the open streams and calls of one uid, over all its connections and every door.
    #[must_use]
    pub fn with_streams_per_uid(mut self, most: usize) -> Self {
        self.streams = PerUid::new(most);
        self
    }

    /// Who called, and a place among the calls of its uid.
    pub(super) fn caller<T>(
        self: &Arc<Self>,
        request: &Request<T>,
    ) -> Result<(Caller, Place), Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the connection has no peer"))?;
        let place = self.streams.take(peer.uid());
        let place = place.ok_or_else(|| Status::unavailable("too many calls of this uid"))?;
        Ok((Caller::new(Arc::clone(self), peer), place))
    }
}

/// Nothing is known of a process that nobody has looked at.
static NO_FACTS: BTreeSet<Selector> = BTreeSet::new();

/// The process at the other end.
pub(super) struct Caller {
    pub(super) parts: Arc<Parts>,
    pub(super) peer: Peer,
    sight: Option<Sight>,
}

impl Caller {
    /// A process that nothing is known of yet.
    pub(super) fn new(parts: Arc<Parts>, peer: Peer) -> Self {
        Self {
            parts,
            peer,
            sight: None,
        }
    }

    /// What is known of it.
    pub(super) fn facts(&self) -> &BTreeSet<Selector> {
        self.sight.as_ref().map_or(&NO_FACTS, Sight::facts)
    }

    /// When [`Caller::keep_up`] has to be called again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.sight.as_ref().map(Sight::due)
    }

    /// Attests the process again if its facts may not hold any more. Whether they may be others now.
    pub(super) async fn keep_up(&mut self, wanted: Wanted) -> Result<bool, Status> {
        match &self.sight {
            Some(sight) if sight.counts(wanted) => Ok(false),
            _ => self.look_since(wanted, Sight::recently()).await,
        }
    }

    /// Attests the process.
    pub(super) async fn look(&mut self, wanted: Wanted) -> Result<(), Status> {
        self.look_since(wanted, Instant::now()).await.map(drop)
    }

    /// Attests the process, unless that was done at `since` or later for another of its calls. Whether its facts may be others now.
    pub(super) async fn look_since(
        &mut self,
        wanted: Wanted,
        since: Instant,
    ) -> Result<bool, Status> {
        let credentials = Credentials::Socket {
            uid: self.peer.uid(),
            gid: self.peer.gid(),
        };
        let (attestor, process) = (&self.parts.attestor, self.peer.process());
        if let Some(sight) = attestor.known(process, credentials, wanted, since) {
            return Ok(self.saw(sight));
        }
        let started = Instant::now();
        let found = attestor.attest(process, credentials, wanted, since).await;
        self.parts
            .metrics
            .attested(started.elapsed(), found.as_ref().err().map(label));
        match found {
            Ok(sight) => Ok(self.saw(sight)),
            Err(AttestError::Gone) => Err(gone()),
            Err(error) => {
                self.parts.metrics.no_identity("attestor_error");
                tracing::warn!(pid = self.peer.process().pid(), uid = self.peer.uid(), error = %ErrorChain(&error),
                    "a caller could not be attested");
                Err(Status::unavailable("the caller could not be attested"))
            }
        }
    }

    fn saw(&mut self, sight: Sight) -> bool {
        let before = self.sight.replace(sight);
        !before.is_some_and(|before| self.sight.iter().all(|now| now.is_of_the_look_of(&before)))
    }

    /// Records identities that this process is given: ID and serial number or name of each. They are begun together, so that
    /// they become durable together.
    pub(super) async fn record_given(
        &self,
        given: impl Iterator<Item = (&str, &str)>,
    ) -> Result<(), Status> {
        let Some(log) = &self.parts.audit else {
            return Ok(());
        };
        let records = given.map(|(id, serial)| {
            let mut record = self.record(log);
            record
                .object(Object::new("svid").id(id).serial(serial))
                .decision(Decision::allow());
            record.finish(Outcome::Success, None)
        });
        futures::future::try_join_all(records.collect::<Vec<_>>())
            .await
            .map(drop)
            .map_err(|error| {
                tracing::error!(error = %ErrorChain(&error), "no identity is given out unrecorded");
                Status::unavailable("the agent cannot write its audit record")
            })
    }

    fn record(&self, log: &AuditLog) -> Record {
        let mut actor = Actor::workload("")
            .authn("uds")
            .process(self.peer.uid(), Some(self.peer.process().pid()));
        let path = self.facts().iter().find_map(|fact| {
            (fact.kind() == "unix")
                .then(|| fact.value().strip_prefix("path:"))
                .flatten()
        });
        if let Some(path) = path {
            actor = actor.exe(path);
        }
        log.begin(Action("identity.fetch"), actor)
    }

    /// The caller learns a code and a number; what is missing is for the administrator, who finds the number in the log.
    pub(super) fn no_identity(&self, method: &'static str) -> Status {
        let (id, pid) = (correlation_id(), self.peer.process().pid());
        self.parts.metrics.no_identity("no_match");
        if let Some(log) = &self.parts.audit {
            let mut record = self.record(log);
            record
                .decision(Decision::deny("no entry matches"))
                .request_id(id.as_str());
            record.finish_later(Outcome::Denied, Some(crate::NO_IDENTITY));
        }
        if self
            .parts
            .denials
            .may_log(self.peer.uid(), self.parts.clock.monotonic())
        {
            tracing::info!(code = crate::NO_IDENTITY, correlation_id = %id, pid, uid = self.peer.uid(), method,
            "no identity for this process; `workload-agent explain --pid {pid}` shows why");
        }
        Status::permission_denied(format!(
            "no identity issued [{}] correlation id {id}",
            crate::NO_IDENTITY
        ))
    }
}

/// How many refusals of one uid are logged within [`LOG_WINDOW`]; the metric counts them all.
const LOGGED_REFUSALS: u32 = 20;
/// See [`LOGGED_REFUSALS`].
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// Keeps a process that asks again and again from filling the log.
#[derive(Debug, Default)]
pub(super) struct Denials(Mutex<HashMap<u32, (Instant, u32)>>);

impl Denials {
    pub(super) fn may_log(&self, uid: u32, now: Instant) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() > 1024 {
            seen.retain(|_, (since, _)| now.duration_since(*since) < LOG_WINDOW);
        }
        let (since, count) = seen.entry(uid).or_insert((now, 0));
        if now.duration_since(*since) >= LOG_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= LOGGED_REFUSALS
    }
}

pub(super) fn gone() -> Status {
    Status::permission_denied("the process that opened this connection has ended")
}

pub(super) fn stopping() -> Status {
    Status::unavailable("the agent is stopping")
}

pub(super) fn label(error: &AttestError) -> &'static str {
    match error {
        AttestError::Gone => "gone",
        AttestError::Restless => "restless",
        AttestError::Unreadable(_) => "unreadable",
        AttestError::TooSlow => "too_slow",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_one_uid_do_not_fill_the_log_and_do_not_hide_those_of_another() {
        let (denials, start) = (Denials::default(), Instant::now());
        let logged = (0..1000).filter(|_| denials.may_log(1, start)).count();
        assert_eq!(logged, LOGGED_REFUSALS as usize);
        assert!(denials.may_log(2, start));
        assert!(denials.may_log(1, start + LOG_WINDOW));
    }
}
