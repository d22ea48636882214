//! What the agents tell us, in memory: who is connected, which revision each was sent and has applied or refused.
//! Trusts an agent's word about itself only, for operators to see. Never grants anything because of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_identity::SpiffeId;

use crate::store::Node;

/// How long an agent of SPIRE may be silent and still count as alive. It polls every 5 s.
pub const SILENCE: Duration = Duration::from_secs(15);

/// What is known of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Open feed streams.
    pub streams: u32,
    /// Whether it ever had one: then its streams alone tell whether it lives.
    pub follows: bool,
    /// The newest revision that was sent.
    pub sent: u64,
    /// The newest revision that it said it holds.
    pub applied: u64,
    /// The newest revision that it refused, and why.
    pub refused: Option<(u64, String)>,
    /// The bundle sequence number that it said it serves.
    pub bundle_sequence: u64,
    /// When it said something last.
    pub heard_at: Option<SystemTime>,
}

/// All reports. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    reports: Arc<Mutex<BTreeMap<SpiffeId, Report>>>,
}

/// One open feed stream; dropping it says that it has ended.
#[derive(Debug)]
pub struct Connected {
    fleet: Fleet,
    agent: SpiffeId,
}

impl Fleet {
    /// A fleet of which nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// An agent has opened a stream.
    pub fn connect(&self, agent: &SpiffeId, now: SystemTime) -> Connected {
        self.note(agent, now, |report| {
            report.streams += 1;
            report.follows = true;
        });
        Connected {
            fleet: self.clone(),
            agent: agent.clone(),
        }
    }

    /// An agent made a call.
    pub fn heard(&self, agent: &SpiffeId, now: SystemTime) {
        self.note(agent, now, |_| {});
    }

    /// Whether an agent lives, as far as we can tell: it has an open stream, or it is one of SPIRE's, which have none,
    /// and made a call within [`SILENCE`].
    pub fn is_live(&self, agent: &SpiffeId, now: SystemTime) -> bool {
        self.report(agent).is_some_and(|report| {
            let heard = report.heard_at.is_some_and(|at| now < at + SILENCE);
            report.streams > 0 || (!report.follows && heard)
        })
    }

    /// What is known of one agent.
    pub fn report(&self, agent: &SpiffeId) -> Option<Report> {
        self.lock().get(agent).cloned()
    }

    /// How many agents have an open stream.
    pub fn connected(&self) -> usize {
        self.lock()
            .values()
            .filter(|report| report.streams > 0)
            .count()
    }

    /// An agent said which bundle it serves.
    pub fn serves_bundle(&self, agent: &SpiffeId, sequence: u64, now: SystemTime) {
        self.note(agent, now, |report| report.bundle_sequence = sequence);
    }

    /// Those of the agents that live, by the end of their SVIDs, and have not acknowledged a revision. One of SPIRE's cannot; one that
    /// was not heard of since this server's start may be ours and is named.
    pub fn lacking<'a>(
        &self,
        agents: impl IntoIterator<Item = &'a Node>,
        revision: u64,
        now: SystemTime,
    ) -> Vec<SpiffeId> {
        let reports = self.lock();
        let lives = |agent: &&Node| {
            let ends = agent.renewed.as_ref().map(|renewed| renewed.expires_at);
            !agent.banned && agent.expires_at.max(ends.unwrap_or(agent.expires_at)) > now
        };
        let lacks = |agent: &&Node| match reports.get(&agent.id) {
            None => true,
            Some(report) => report.follows && report.applied < revision,
        };
        let agents = agents.into_iter().filter(lives).filter(lacks);
        agents.map(|agent| agent.id.clone()).collect()
    }

    /// An agent is gone for good.
    pub fn forget(&self, agent: &SpiffeId) {
        self.lock().remove(agent);
    }

    fn note(&self, agent: &SpiffeId, now: SystemTime, change: impl FnOnce(&mut Report)) {
        let mut reports = self.lock();
        let report = reports.entry(agent.clone()).or_default();
        change(report);
        report.heard_at = Some(now);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SpiffeId, Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    /// The agent was sent a revision.
    pub fn sent(&self, revision: u64) {
        if let Some(report) = self.fleet.lock().get_mut(&self.agent) {
            report.sent = revision;
        }
    }

    /// The agent holds a revision.
    pub fn applied(&self, revision: u64, now: SystemTime) {
        self.fleet.note(&self.agent, now, |report| {
            report.applied = revision;
            report.refused = None;
        });
    }

    /// The agent refused a revision and kept what it had.
    pub fn refused(&self, revision: u64, reason: String, now: SystemTime) {
        self.fleet.note(&self.agent, now, |report| {
            report.refused = Some((revision, reason));
        });
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(report) = self.fleet.lock().get_mut(&self.agent) {
            report.streams = report.streams.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn agent() -> SpiffeId {
        "spiffe://dev.test/spire/agent/x/1".parse().unwrap()
    }

    #[test]
    fn an_agent_that_follows_lives_as_long_as_its_stream() {
        let fleet = Fleet::new();
        assert!(!fleet.is_live(&agent(), UNIX_EPOCH));
        let stream = fleet.connect(&agent(), UNIX_EPOCH);
        assert!(fleet.is_live(&agent(), UNIX_EPOCH + SILENCE * 100));
        drop(stream);
        assert!(!fleet.is_live(&agent(), UNIX_EPOCH));
    }

    #[test]
    fn an_agent_that_polls_lives_until_it_was_silent_for_some_time() {
        let fleet = Fleet::new();
        fleet.heard(&agent(), UNIX_EPOCH);
        assert!(fleet.is_live(&agent(), UNIX_EPOCH + SILENCE / 2));
        assert!(!fleet.is_live(&agent(), UNIX_EPOCH + SILENCE));
    }

    #[test]
    fn a_refusal_is_remembered_until_the_next_success() {
        let fleet = Fleet::new();
        let stream = fleet.connect(&agent(), UNIX_EPOCH);
        stream.refused(3, "no room".into(), UNIX_EPOCH);
        assert_eq!(
            fleet.report(&agent()).unwrap().refused,
            Some((3, "no room".into()))
        );
        stream.applied(4, UNIX_EPOCH);
        let report = fleet.report(&agent()).unwrap();
        assert_eq!((report.refused, report.applied), (None, 4));
    }

    #[test]
    fn who_lacks_a_revision_is_every_living_agent_that_did_not_acknowledge_it() {
        let fleet = Fleet::new();
        let node = |name: &str| crate::registry::tests::node(&format!("/spire/agent/{name}"), &[]);
        let (holds, behind, spire, unheard) = (node("a"), node("b"), node("c"), node("d"));
        let banned = Node {
            banned: true,
            ..node("e")
        };
        let ended = Node {
            expires_at: UNIX_EPOCH,
            ..node("f")
        };
        fleet.connect(&holds.id, UNIX_EPOCH).applied(7, UNIX_EPOCH);
        // Its stream has ended, but its SVID lives.
        fleet.connect(&behind.id, UNIX_EPOCH).applied(6, UNIX_EPOCH);
        fleet.heard(&spire.id, UNIX_EPOCH);
        let all = [&holds, &behind, &spire, &unheard, &banned, &ended];
        let now = UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(fleet.lacking(all, 7, now), [behind.id, unheard.id]);
    }
}
