//! Decides for how long what was found about a process counts: all its connections share one look, and a glance renews it.
//! Trusts that a process which looks the same at a glance has the same facts. Never answers with what was seen before the moment that
//! the asker names, nor with what was found under other credentials.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_identity::Selector;
use tokio::time::Instant;

use super::{Attestation, Credentials, Wanted, glance::Glance};

/// How long facts count without another glance at their process.
const GLANCE_EVERY: Duration = Duration::from_secs(4);
/// How long a glance is enough. What it does not show are the names in the node's user database.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What is known of a process, and when that was last seen to be so. Clones share it.
#[derive(Clone, Debug)]
pub struct Sight {
    found: Arc<Found>,
    at: Instant,
}

#[derive(Debug)]
struct Found {
    attestation: Attestation,
    credentials: Credentials,
    wanted: Wanted,
    glance: Glance,
    looked: Instant,
}

impl Sight {
    /// What a look that began at this moment found.
    pub(super) fn new(
        attestation: Attestation,
        credentials: Credentials,
        wanted: Wanted,
        glance: Glance,
        at: Instant,
    ) -> Self {
        let found = Found {
            attestation,
            credentials,
            wanted,
            glance,
            looked: at,
        };
        Self {
            found: Arc::new(found),
            at,
        }
    }

    /// The proven facts.
    pub fn facts(&self) -> &BTreeSet<Selector> {
        &self.found.attestation.facts
    }

    /// The proven facts, and what could not be found.
    pub fn attestation(&self) -> &Attestation {
        &self.found.attestation
    }

    /// Whether both are of one look: the facts are the same.
    pub fn is_of_the_look_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.found, &other.found)
    }

    /// Whether whoever wants these facts may go by it at this moment.
    pub fn counts(&self, wanted: Wanted) -> bool {
        self.found.wanted.covers(wanted) && Instant::now() < self.due()
    }

    /// When the process has to be looked at again.
    pub fn due(&self) -> Instant {
        self.at + GLANCE_EVERY
    }

    /// For whoever finds that the time has come: others may have looked a moment ago.
    pub fn recently() -> Instant {
        let now = Instant::now();
        now.checked_sub(GLANCE_EVERY / 2).unwrap_or(now)
    }

    /// The glance with which another one has to agree, if that is enough for it to count again.
    pub(super) fn glance(&self) -> Option<&Glance> {
        (self.found.looked.elapsed() < LOOK_EVERY).then_some(&self.found.glance)
    }

    /// Seen to be so still, at this moment.
    pub(super) fn again(&self, at: Instant) -> Self {
        Self {
            found: Arc::clone(&self.found),
            at,
        }
    }
}

/// What is remembered of one process, and whose turn it is to look.
#[derive(Debug, Default)]
pub(super) struct Memory {
    last: Mutex<Option<Sight>>,
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Memory {
    /// What was found last under these credentials, if it has all that is wanted.
    pub(super) fn of(&self, credentials: Credentials, wanted: Wanted) -> Option<Sight> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |sight: &&Sight| {
            sight.found.credentials == credentials && sight.found.wanted.covers(wanted)
        };
        last.as_ref().filter(found).cloned()
    }

    /// The same, if it was seen at `since` or later.
    pub(super) fn since(
        &self,
        credentials: Credentials,
        wanted: Wanted,
        since: Instant,
    ) -> Option<Sight> {
        self.of(credentials, wanted)
            .filter(|sight| sight.at >= since)
    }

    pub(super) fn keep(&self, sight: &Sight) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(sight.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attestor::{Attestor, k8s::K8sAttestor, process::Process, unix::UnixAttestor};

    const SOCKET: Credentials = Credentials::Socket { uid: 7, gid: 8 };

    fn attestor() -> Attestor {
        Attestor::new(UnixAttestor::new(1 << 30), K8sAttestor::on_this_node())
    }

    fn itself() -> Process {
        Process::open(std::process::id().try_into().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn one_look_answers_all_who_asked_before_it_began_and_nobody_who_asks_later() {
        let (attestor, process) = (attestor(), itself());
        let asked = Instant::now();
        let ask = || attestor.attest(&process, SOCKET, Wanted::default(), asked);
        let sights = futures::future::try_join_all((0..50).map(|_| ask())).await;
        let sights = sights.unwrap();
        assert!(sights.iter().all(|sight| sight.at == sights[0].at));
        let later = Instant::now();
        let next = attestor.attest(&process, SOCKET, Wanted::default(), later);
        let next = next.await.unwrap();
        assert!(
            next.at >= later && Arc::ptr_eq(&next.found, &sights[0].found),
            "a glance"
        );
    }

    #[tokio::test]
    async fn what_was_found_under_other_credentials_or_without_a_wanted_fact_does_not_count() {
        let (attestor, process) = (attestor(), itself());
        let long_ago = Instant::now();
        let ask = |credentials, wanted| attestor.attest(&process, credentials, wanted, long_ago);
        let first = ask(SOCKET, Wanted::default()).await.unwrap();
        let has = |sight: &Sight, name: &str| {
            sight
                .facts()
                .iter()
                .any(|fact| fact.value().starts_with(name))
        };
        assert!(has(&first, "uid:7") && !has(&first, "sha256:"));
        let other = Credentials::Socket { uid: 9, gid: 8 };
        assert!(has(&ask(other, Wanted::default()).await.unwrap(), "uid:9"));
        assert!(has(&ask(SOCKET, Wanted::ALL).await.unwrap(), "sha256:"));
        assert!(!first.counts(Wanted::ALL) && first.counts(Wanted::default()));
    }

    #[tokio::test]
    async fn facts_have_to_be_looked_at_again_after_a_while() {
        let (attestor, process) = (attestor(), itself());
        let first = attestor.attest(&process, SOCKET, Wanted::default(), Instant::now());
        let first = first.await.unwrap();
        let ago = |time| Instant::now().checked_sub(time).unwrap();
        let old = first.again(ago(GLANCE_EVERY));
        assert!(first.counts(Wanted::default()) && !old.counts(Wanted::default()));

        let aged = |looked| {
            let glance = Glance::at(&process).unwrap();
            let (attestation, wanted) = (first.attestation().clone(), Wanted::default());
            process
                .memory()
                .keep(&Sight::new(attestation, SOCKET, wanted, glance, looked));
            attestor.attest(&process, SOCKET, Wanted::default(), Instant::now())
        };
        let young = aged(ago(LOOK_EVERY / 2)).await.unwrap();
        assert!(young.found.looked < young.at, "a glance was enough");
        let fresh = aged(ago(LOOK_EVERY)).await.unwrap();
        assert_eq!(
            fresh.found.looked, fresh.at,
            "a glance shows too little by now"
        );
    }
}
