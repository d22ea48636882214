//! When an open connection has to end although both sides would go on: its policy, its peer's trust or its time is over.
//! Trusts the peer's certificate as it was at the handshake, and asks again whenever policy or bundles change.
//! Never begins anything on a connection whose certificates are about to end, and lets a running stream outlive them only while
//! both sides have proven themselves again.

mod registry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mesh_identity::SpiffeId;

use mesh_runtime::clock::Clock;
use mesh_tls::{IdentityCell, Peer, TlsIdentity};
use tokio::sync::watch;

pub(crate) use registry::{Entry, Registry};

/// Why a connection was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    /// The policy in force does not allow it any more.
    #[error("the policy in force no longer allows it")]
    Policy,
    /// No bundle in use leads to the peer's certificate any more.
    #[error("the peer's trust was withdrawn")]
    Trust,
    /// The peer's certificate or ours has ended.
    #[error("a certificate of this connection has expired")]
    Expired,
    /// Nothing happened for too long.
    #[error("nothing happened for too long")]
    Idle,
    /// Its caller sends frames that say nothing.
    #[error("too many frames that carry nothing")]
    Flood,
    /// Its caller takes nothing of what he asked for.
    #[error("an answer was not read for too long")]
    Stalled,
    /// The program ends.
    #[error("the proxy ends")]
    Drain,
}

impl Cut {
    /// The stable code.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Policy => "FNL3031",
            Self::Trust => "FNL3032",
            Self::Expired => "FNL3033",
            Self::Idle => "FNL3034",
            Self::Drain => "FNL3035",
            Self::Flood => "FNL3038",
            Self::Stalled => "FNL3039",
        }
    }

    /// Istio's response flag: whom a decision ended, or just an end.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Policy | Self::Trust | Self::Expired => "DENY",
            Self::Idle | Self::Stalled => "UT",
            Self::Flood => "DPE",
            Self::Drain => "-",
        }
    }
}

/// The two moments at which a connection's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    /// From here on nothing new begins on it.
    pub(crate) retire: SystemTime,
    /// Here it is closed.
    pub(crate) end: SystemTime,
}

impl Life {
    /// Of a connection that was made now. `early` is the part of its life by which it retires before the end:
    /// the side that sends requests takes a larger one, so that it goes before the other has to send it away.
    pub(crate) fn new(now: SystemTime, peer: SystemTime, own: SystemTime, early: f64) -> Self {
        const LONGEST: Duration = Duration::from_secs(60);
        let end = peer.min(own);
        let left = end.duration_since(now).unwrap_or_default();
        let early = left.mul_f64(early).min(LONGEST);
        Self {
            retire: end.checked_sub(early).unwrap_or(end),
            end,
        }
    }
}

/// Until when each peer has proven itself, by the latest certificate of any of its handshakes. Clones are handles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proofs {
    until: Arc<Mutex<HashMap<SpiffeId, SystemTime>>>,
}

impl Proofs {
    /// A handshake proved this identity until then.
    pub(crate) fn note(&self, id: &SpiffeId, until: SystemTime, now: SystemTime) {
        const MANY: usize = 4096;
        let mut all = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(id) {
            *known = until.max(*known);
            return;
        }
        if all.len() >= MANY {
            all.retain(|_, until| *until > now);
        }
        // Whoever finds no place has no later proof, and its streams end with its first certificate.
        if all.len() < MANY {
            all.insert(id.clone(), until);
        }
    }

    fn until(&self, id: &SpiffeId) -> Option<SystemTime> {
        self.until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .copied()
    }
}

/// Ends when a connection may no longer carry what began on it: its certificates have ended, and not both sides have since proven
/// themselves again with newer ones.
pub(crate) async fn expired(
    life: Life,
    peer: &SpiffeId,
    proofs: &Proofs,
    cell: &IdentityCell,
    clock: &Clock,
) {
    let mut end = life.end;
    loop {
        clock.sleep_until(end).await;
        end = proven(life, peer, proofs, cell);
        if end <= clock.now() {
            return;
        }
    }
}

/// Until when both sides of a connection have proven themselves, on it or on a newer one.
pub(crate) fn proven(
    life: Life,
    peer: &SpiffeId,
    proofs: &Proofs,
    cell: &IdentityCell,
) -> SystemTime {
    let newer = proofs
        .until(peer)
        .map(|until| until.min(cell.current().not_after()));
    newer.map_or(life.end, |newer| newer.max(life.end))
}

/// The roots by which the peer of one connection is judged, from before its handshake on: no change is missed in between.
#[derive(Debug)]
pub(crate) struct Trust {
    seen: Arc<TlsIdentity>,
    changes: watch::Receiver<Arc<TlsIdentity>>,
}

impl Trust {
    /// To be taken before the handshake.
    pub(crate) fn watch(cell: &IdentityCell) -> Self {
        let mut changes = cell.subscribe();
        let seen = Arc::clone(&changes.borrow_and_update());
        Self { seen, changes }
    }

    /// Ends when the peer's certificate no longer leads to a root that we hold.
    pub(crate) async fn withdrawn(mut self, peer: &Peer, clock: &Clock) {
        loop {
            if self.changes.changed().await.is_err() {
                return std::future::pending().await; // the cell is gone, and the program with it
            }
            let newest = Arc::clone(&self.changes.borrow_and_update());
            // The usual rotation brings the same roots with a new leaf, and nothing has to be verified again.
            let unchanged = same_roots(&self.seen, &newest, peer);
            self.seen = newest;
            // A stream may outlive the certificate (see `expired`), but not the root that it leads to.
            let then = clock.now().min(peer.not_after - Duration::from_secs(1));
            if !unchanged && peer.verify_again(self.seen.bundles(), then).is_err() {
                return;
            }
        }
    }
}

fn same_roots(before: &TlsIdentity, after: &TlsIdentity, peer: &Peer) -> bool {
    let domain = peer.id.trust_domain();
    match (before.bundles().get(domain), after.bundles().get(domain)) {
        (Some(a), Some(b)) => {
            let roots = |bundle: &mesh_identity::Bundle| {
                bundle
                    .x509_authorities()
                    .iter()
                    .map(|root| root.der().to_vec())
                    .collect::<Vec<_>>()
            };
            Arc::ptr_eq(a, b) || roots(a) == roots(b)
        }
        _ => false,
    }
}
