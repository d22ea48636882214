//! The states of an authority and what comes next: prepared (in the bundle, not signing) → active (signing) →
//! old (not signing, still in the bundle) → gone when it has expired. Pure: time is an argument.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use super::certificate::Signer;
use super::keys::Sealed;
use super::{BACKDATE, SlotStatus};

/// However long an authority lives, the next one need not be prepared earlier than this before its end,
const EARLIEST_PREPARATION: Duration = Duration::from_secs(30 * 24 * 3600);
/// nor take over earlier than this.
const EARLIEST_ACTIVATION: Duration = Duration::from_secs(7 * 24 * 3600);

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

/// When an authority begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Start of its certificate.
    pub not_before: SystemTime,
    /// End of its certificate.
    pub not_after: SystemTime,
}

impl Times {
    /// When its successor is to be prepared: half of its life, at most 30 days, before its end.
    pub fn prepare_at(&self) -> SystemTime {
        self.not_after - (self.life() / 2).min(EARLIEST_PREPARATION)
    }

    /// When its successor is to take over: a sixth of its life, at most 7 days, before its end.
    pub fn activate_at(&self) -> SystemTime {
        self.not_after - activation_margin(self.life())
    }

    /// When this one, prepared, takes over from the active one: when its turn has come and it has been in the bundle
    /// long enough for everyone to hear of it. Prepared too late for both, it waits until the active one ends.
    fn takes_over_at(&self, active: &Self) -> SystemTime {
        let known_to_all = self.not_before + BACKDATE + activation_margin(self.life()) / 2;
        active.activate_at().max(known_to_all).min(active.not_after)
    }

    fn life(&self) -> Duration {
        self.not_after
            .duration_since(self.not_before)
            .unwrap_or_default()
    }

    fn has_ended(&self, now: SystemTime) -> bool {
        self.not_after <= now
    }
}

/// What is left of an authority's life when its successor takes over.
pub(super) fn activation_margin(lifetime: Duration) -> Duration {
    (lifetime / 6).min(EARLIEST_ACTIVATION)
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

/// One authority.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) state: SlotState,
    pub(super) authority_id: String,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) times: Times,
    /// Its public key, as a SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
    /// Its private key; gone once it is old, for it will never sign again.
    pub(super) key: Option<SlotKey>,
}

/// A private key as it is used and as it rests.
#[derive(Clone)]
pub(super) struct SlotKey {
    pub(super) signer: Arc<Signer>,
    pub(super) sealed: Sealed,
}

/// All authorities: at most one active and one prepared.
#[derive(Clone, Default)]
pub(super) struct Slots(pub(super) Vec<Slot>);

impl Slots {
    fn in_state(&self, state: SlotState) -> impl Iterator<Item = &Slot> {
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

    /// Adds an authority as the prepared one, in place of one that has expired unused.
    pub(super) fn prepare(&mut self, slot: Slot) {
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

    pub(super) fn active_signer(&self) -> Option<Arc<Signer>> {
        self.in_state(SlotState::Active)
            .find_map(|slot| slot.key.as_ref())
            .map(|key| key.signer.clone())
    }

    /// The bundle's certificates, in the order in which they were prepared.
    pub(super) fn certificates(&self) -> Vec<Vec<u8>> {
        self.0
            .iter()
            .map(|slot| slot.certificate.to_vec())
            .collect()
    }

    pub(super) fn public_keys(&self) -> Vec<Vec<u8>> {
        self.0.iter().map(|slot| slot.public_key.clone()).collect()
    }

    pub(super) fn statuses(&self) -> Vec<SlotStatus> {
        let status = |slot: &Slot| SlotStatus {
            authority_id: slot.authority_id.clone(),
            state: slot.state,
            not_before: slot.times.not_before,
            not_after: slot.times.not_after,
        };
        self.0.iter().map(status).collect()
    }
}
