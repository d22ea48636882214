//! What the agents tell us, in memory: who is connected, which revision each was sent and has applied or refused.
//! Trusts an agent's word about itself only, for operators to see. Never grants anything because of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use mesh_identity::SpiffeId;

/// What is known of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Open feed streams.
    pub streams: u32,
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
        self.note(agent, now, |report| report.streams += 1);
        Connected {
            fleet: self.clone(),
            agent: agent.clone(),
        }
    }

    /// Whether an agent has an open stream.
    pub fn is_connected(&self, agent: &SpiffeId) -> bool {
        self.report(agent).is_some_and(|report| report.streams > 0)
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
