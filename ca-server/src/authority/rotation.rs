//! Decides nothing: takes the steps that `slots::next_step` names, and the loop that obeys it.
//! Each step is durable, in journal and bundle, before anyone sees it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Coded, ErrorChain};
use mesh_runtime::tasks::Stop;

use super::certificate::{NewAuthority, Signer, facts};
use super::keys::{CaKey, SealingKey};
use super::slots::{Slot, SlotKey, SlotState, Slots, Step};
use super::{Authority, AuthorityError, AuthoritySettings, journal};

/// How long to wait after a step that failed. What is active goes on signing meanwhile.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Rotates until stopped. Spawn it once, as a task with a name.
pub async fn run(
    authority: Arc<Authority>,
    clock: Clock,
    stop: Stop,
) -> Result<(), AuthorityError> {
    while !stop.is_cancelled() {
        let next = match authority.advance(clock.now()).await {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(code = error.code(), error = %ErrorChain(&error), "the authority could not be rotated");
                clock.now() + TRY_AGAIN
            }
        };
        if stop.unless_stopped(clock.sleep_until(next)).await.is_none() {
            break;
        }
    }
    Ok(())
}

/// Takes one step in memory.
pub(super) fn take(
    slots: &mut Slots,
    step: Step,
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    match step {
        Step::Prepare => slots.prepare(new_slot(settings, sealing, now)?),
        Step::Activate => slots.activate(),
        Step::Retire => slots.retire(now),
        Step::Wait(_) => {}
    }
    Ok(())
}

/// Takes all steps that are due at start, when nobody has seen anything yet.
pub(super) fn catch_up(
    slots: &mut Slots,
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    loop {
        match slots.next_step(now) {
            Step::Wait(_) => return Ok(()),
            step => take(slots, step, settings, sealing, now)?,
        }
    }
}

fn new_slot(
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Result<Slot, AuthorityError> {
    let (key, pkcs8) = CaKey::generate()?;
    let NewAuthority {
        certificate,
        signer,
    } = Signer::self_signed(&settings.trust_domain, key, settings.lifetime, now)?;
    let facts = facts(&certificate).map_err(|reason| AuthorityError::Make { reason })?;
    let sealed = journal::seal(sealing, &settings.trust_domain, &certificate, &pkcs8)?;
    Ok(Slot {
        state: SlotState::Prepared,
        authority_id: facts.authority_id,
        times: facts.times,
        public_key: facts.public_key,
        certificate,
        key: Some(SlotKey {
            signer: Arc::new(signer),
            sealed,
        }),
    })
}
