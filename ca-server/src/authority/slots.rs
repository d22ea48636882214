//! The states of an authority and what comes next: prepared (in the bundle, not signing) → active (signing) →
//! old (not signing, still in the bundle), perhaps tainted → gone when it has expired or was revoked. Pure: time is an argument.
//! The same for X.509 and JWT authorities, which differ only in what signs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::above::Above;
use super::certificate::Signer;
use super::keys::Sealed;
use super::times::Times;
use super::{AuthorityKind, Overdue, SlotStatus};
use crate::store::StoredRoot;

/// What an authority does at present. SPIRE's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SlotState {
    /// In the bundle so that everybody trusts it before it signs.
    Prepared,
    /// Signing.
    Active,
    /// In the bundle for what it has signed.
    Old,
}

/// What the rotation does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the next authority and add it to the bundle.
    Prepare,
    /// Let the prepared one sign.
    Activate,
    /// Drop what has expired from the bundle.
    Retire,
    /// Nothing, for this long.
    Wait(Duration),
}

/// What is due, by the times of the active, the prepared and the old authorities.
pub fn next_step(
    active: Option<Times>,
    prepared: Option<Times>,
    old: &[Times],
    now: SystemTime,
) -> Step {
    let alive = |times: &Times| !times.has_ended(now);
    let until = |moment: SystemTime| moment.duration_since(now).unwrap_or_default();
    let due = match (active.filter(alive), prepared.filter(alive)) {
        (None, Some(_)) => return Step::Activate,
        (None, None) => return Step::Prepare,
        (Some(active), None) if active.prepare_at() <= now => return Step::Prepare,
        (Some(active), Some(prepared)) if prepared.takes_over_at(&active) <= now => {
            return Step::Activate;
        }
        (Some(active), None) => active.prepare_at(),
        (Some(active), Some(prepared)) => prepared.takes_over_at(&active),
    };
    let ends = old.iter().chain(&prepared).map(|times| times.not_after);
    match ends.min() {
        Some(end) if end <= now => Step::Retire,
        Some(end) => Step::Wait(until(due).min(until(end))),
        None => Step::Wait(until(due)),
    }
}

/// One authority, whose signer is an `S`.
pub(super) struct Slot<S> {
    pub(super) state: SlotState,
    pub(super) authority_id: String,
    pub(super) times: Times,
    /// Whether all that it signed is to be replaced. Only an old one can be.
    pub(super) tainted: bool,
    /// Its certificate, or its public key. The bundle shows it, unless something is above it.
    pub(super) shown: Vec<u8>,
    /// What is above it, if it does not sign itself.
    pub(super) above: Option<Arc<Above>>,
    /// Its public key, as a SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
    /// Its private key; gone once it is old, for it will never sign again.
    pub(super) key: Option<SlotKey<S>>,
}

/// A private key as it is used and as it rests.
pub(super) struct SlotKey<S> {
    pub(super) signer: Arc<S>,
    pub(super) sealed: Sealed,
}

impl<S> Clone for Slot<S> {
    fn clone(&self) -> Self {
        Self {
            state: self.state,
            authority_id: self.authority_id.clone(),
            times: self.times,
            tainted: self.tainted,
            shown: self.shown.clone(),
            above: self.above.clone(),
            public_key: self.public_key.clone(),
            key: self.key.as_ref().map(|key| SlotKey {
                signer: key.signer.clone(),
                sealed: key.sealed.clone(),
            }),
        }
    }
}

/// All authorities of one kind: at most one active and one prepared.
pub(super) struct Slots<S>(pub(super) Vec<Slot<S>>);

impl<S> Clone for Slots<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Default for Slots<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S> Slots<S> {
    fn in_state(&self, state: SlotState) -> impl Iterator<Item = &Slot<S>> {
        self.0.iter().filter(move |slot| slot.state == state)
    }

    pub(super) fn next_step(&self, now: SystemTime) -> Step {
        let times = |state| self.in_state(state).map(|slot| slot.times);
        let old: Vec<Times> = times(SlotState::Old).collect();
        next_step(
            times(SlotState::Active).next(),
            times(SlotState::Prepared).next(),
            &old,
            now,
        )
    }

    /// Whether a turn that is due may still wait for those who lack the prepared one: what is active can sign meanwhile.
    pub(super) fn turn_may_wait(&self, now: SystemTime) -> bool {
        let mut active = self.in_state(SlotState::Active);
        active.any(|slot| now < slot.times.latest_turn())
    }

    /// Whether one of them can sign.
    pub(super) fn signs_at(&self, now: SystemTime) -> bool {
        let mut active = self.in_state(SlotState::Active);
        active.any(|slot| !slot.times.has_ended(now))
    }

    /// Adds an authority as the prepared one, in place of one that never signed anything.
    pub(super) fn prepare(&mut self, slot: Slot<S>) {
        self.0.retain(|slot| slot.state != SlotState::Prepared);
        self.0.push(slot);
    }

    /// The prepared one signs from now on, and the key of the former one is dropped.
    pub(super) fn activate(&mut self) {
        for slot in &mut self.0 {
            match slot.state {
                SlotState::Active => {
                    slot.state = SlotState::Old;
                    slot.key = None;
                }
                SlotState::Prepared => slot.state = SlotState::Active,
                SlotState::Old => {}
            }
        }
    }

    /// Drops what has expired, except the active one: only a successor ends it.
    pub(super) fn retire(&mut self, now: SystemTime) {
        self.0
            .retain(|slot| slot.state == SlotState::Active || !slot.times.has_ended(now));
    }

    /// Marks an old one.
    pub(super) fn taint(&mut self, authority_id: &str) {
        for slot in &mut self.0 {
            slot.tainted |= slot.authority_id == authority_id && slot.state == SlotState::Old;
        }
    }

    /// Drops an old one before its end.
    pub(super) fn revoke(&mut self, authority_id: &str) {
        self.0
            .retain(|slot| slot.state != SlotState::Old || slot.authority_id != authority_id);
    }

    pub(super) fn active_signer(&self) -> Option<Arc<S>> {
        self.in_state(SlotState::Active)
            .find_map(|slot| slot.key.as_ref())
            .map(|key| key.signer.clone())
    }

    /// Those of all slots and of what is above them.
    pub(super) fn public_keys(&self) -> impl Iterator<Item = Vec<u8>> {
        let above = self.0.iter().filter_map(|slot| slot.above.as_ref());
        let above = above.flat_map(|above| above.public_keys());
        let own = self.0.iter().map(|slot| slot.public_key.clone());
        own.chain(above)
    }

    /// The active one, if its successor should be there and is not.
    pub(super) fn overdue(&self, kind: AuthorityKind, now: SystemTime) -> Option<Overdue> {
        let mut prepared = self.in_state(SlotState::Prepared);
        let slot = self.in_state(SlotState::Active).next()?;
        let late =
            slot.times.prepare_at() <= now && !prepared.any(|slot| now < slot.times.not_after);
        late.then(|| Overdue {
            kind,
            authority_id: slot.authority_id.clone(),
            ends: slot.times.not_after,
            urgent: slot.times.activate_at() <= now,
        })
    }

    pub(super) fn statuses(&self, kind: AuthorityKind) -> impl Iterator<Item = SlotStatus> {
        self.0.iter().map(move |slot| SlotStatus {
            kind,
            authority_id: slot.authority_id.clone(),
            upstream_id: slot.above.as_ref().map(|above| above.root_id.clone()),
            state: slot.state,
            tainted: slot.tainted,
            not_before: slot.times.not_before,
            not_after: slot.times.not_after,
        })
    }
}

impl Slots<Signer> {
    /// The roots that our bundle shows, in the order in which they came. One is tainted if an authority below it is.
    pub(super) fn roots(&self) -> Vec<StoredRoot> {
        let mut roots: Vec<StoredRoot> = Vec::new();
        let mut show =
            |der: &[u8], tainted: bool| match roots.iter_mut().find(|root| root.der == der) {
                Some(root) => root.tainted |= tainted,
                None => roots.push(StoredRoot {
                    der: der.to_vec(),
                    tainted,
                }),
            };
        for slot in &self.0 {
            match &slot.above {
                None => show(&slot.shown, slot.tainted),
                Some(above) => {
                    for root in &above.roots {
                        let signed = root.subject_key_id() == above.root_id;
                        show(root.der(), slot.tainted && signed);
                    }
                }
            }
        }
        roots
    }

    /// Drops the old ones below a root, and the root itself wherever else it is shown.
    pub(super) fn revoke_root(&mut self, root_id: &str) {
        let root_of = |slot: &Slot<Signer>| match &slot.above {
            Some(above) => above.root_id == root_id,
            None => slot.authority_id == root_id,
        };
        self.0
            .retain(|slot| slot.state != SlotState::Old || !root_of(slot));
        for slot in &mut self.0 {
            if let Some(above) = &mut slot.above {
                *above = Arc::new(above.without(root_id));
            }
        }
    }
}
