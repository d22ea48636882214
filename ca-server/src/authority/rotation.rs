//! Decides nothing: takes the steps that `slots::next_step` names, and the loop that obeys it.
//! Each step is durable, in journal and bundle, before anyone sees it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use mesh_identity::SpiffeId;
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Coded, ErrorChain};
use mesh_runtime::tasks::Stop;

use super::certificate::{NewAuthority, Signer, facts};
use super::keys::{CaKey, SealingKey, generate, new_key_id};
use super::slots::{Slot, SlotKey, SlotState, Slots, Step, Times};
use super::token::TokenSigner;
use crate::store::StoreError;

use super::{Authority, AuthorityError, AuthoritySettings, BACKDATE, Book, journal};

/// How long to wait after a step that failed. What is active goes on signing meanwhile.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// How long to wait until those who lack a prepared authority are asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Who follows our bundle by acknowledging it.
pub trait Followers: Send + Sync {
    /// The agents that live and have not yet acknowledged our bundle as of this revision.
    fn lacking(
        &self,
        revision: u64,
        now: SystemTime,
    ) -> BoxFuture<'_, Result<Vec<SpiffeId>, StoreError>>;
}

/// Nobody: every step is taken by its time alone.
pub struct NoFollowers;

impl Followers for NoFollowers {
    fn lacking(&self, _: u64, _: SystemTime) -> BoxFuture<'_, Result<Vec<SpiffeId>, StoreError>> {
        async { Ok(Vec::new()) }.boxed()
    }
}

/// Rotates until stopped. Spawn it once, as a task with a name.
pub async fn run(
    authority: Arc<Authority>,
    followers: Arc<dyn Followers>,
    clock: Clock,
    stop: Stop,
) -> Result<(), AuthorityError> {
    let mut turned_by_hand = authority.status();
    while !stop.is_cancelled() {
        turned_by_hand.mark_unchanged();
        let next = match authority.advance_with(&*followers, clock.now()).await {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(code = error.code(), error = %ErrorChain(&error), "the authority could not be rotated");
                clock.now() + TRY_AGAIN
            }
        };
        // Our own steps are seen here too; the next look at them costs nothing.
        let wait = async {
            tokio::select! {
                () = clock.sleep_until(next) => {}
                Ok(()) = turned_by_hand.changed() => {}
            }
        };
        if stop.unless_stopped(wait).await.is_none() {
            break;
        }
    }
    Ok(())
}

/// What is due for each kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    x509: Step,
    jwt: Step,
}

impl Steps {
    /// How long to wait, if nothing is due for either.
    pub(super) fn pause(self) -> Option<Duration> {
        match (self.x509, self.jwt) {
            (Step::Wait(one), Step::Wait(other)) => Some(one.min(other)),
            _ => None,
        }
    }
}

impl Steps {
    /// Whether a turn is due that may still wait.
    pub(super) fn may_wait(self, book: &Book, now: SystemTime) -> bool {
        (self.x509 == Step::Activate && book.x509.turn_may_wait(now))
            || (self.jwt == Step::Activate && book.jwt.turn_may_wait(now))
    }

    /// The same without the turns that may wait.
    pub(super) fn held_back(mut self, book: &Book, now: SystemTime) -> Self {
        if self.x509 == Step::Activate && book.x509.turn_may_wait(now) {
            self.x509 = Step::Wait(ASK_AGAIN);
        }
        if self.jwt == Step::Activate && book.jwt.turn_may_wait(now) {
            self.jwt = Step::Wait(ASK_AGAIN);
        }
        self
    }
}

pub(super) fn due(book: &Book, now: SystemTime) -> Steps {
    Steps {
        x509: book.x509.next_step(now),
        jwt: book.jwt.next_step(now),
    }
}

/// Takes one step of each kind in memory.
pub(super) async fn take(
    book: &mut Book,
    steps: Steps,
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    let x509 = new_x509(settings, sealing, now);
    take_one(&mut book.x509, steps.x509, now, x509).await?;
    let jwt = new_jwt(settings, sealing, now);
    take_one(&mut book.jwt, steps.jwt, now, jwt).await
}

async fn take_one<S>(
    slots: &mut Slots<S>,
    step: Step,
    now: SystemTime,
    make: impl Future<Output = Result<Slot<S>, AuthorityError>>,
) -> Result<(), AuthorityError> {
    match step {
        Step::Prepare => slots.prepare(make.await?),
        Step::Activate => slots.activate(),
        Step::Retire => slots.retire(now),
        Step::Wait(_) => {}
    }
    Ok(())
}

/// Takes all steps that are due at start, when nobody has seen anything yet.
pub(super) async fn catch_up(
    book: &mut Book,
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    loop {
        // Whether the agents know a prepared authority, they can only say later.
        let steps = due(book, now).held_back(book, now);
        if steps.pause().is_some() {
            return Ok(());
        }
        take(book, steps, settings, sealing, now).await?;
    }
}

/// A new X.509 authority, prepared.
pub(super) async fn new_x509(
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Result<Slot<Signer>, AuthorityError> {
    let failed = |reason| AuthorityError::Make { reason };
    let pkcs8 = generate(settings.key_types.x509).await?;
    let key = CaKey::from_pkcs8(&pkcs8).map_err(failed)?;
    let NewAuthority {
        certificate,
        signer,
    } = Signer::self_signed(&settings.trust_domain, key, settings.lifetime, now)?;
    let facts = facts(&certificate).map_err(failed)?;
    let sealed = journal::seal_x509(sealing, &settings.trust_domain, &certificate, &pkcs8)?;
    Ok(Slot {
        state: SlotState::Prepared,
        authority_id: facts.authority_id,
        times: facts.times,
        tainted: false,
        shown: certificate.to_vec(),
        public_key: facts.public_key,
        key: Some(SlotKey {
            signer: Arc::new(signer),
            sealed,
        }),
    })
}

/// A new JWT authority, prepared. It has the times that a certificate would have.
pub(super) async fn new_jwt(
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Result<Slot<TokenSigner>, AuthorityError> {
    let failed = |reason| AuthorityError::Make { reason };
    let pkcs8 = generate(settings.key_types.jwt).await?;
    let key_id = new_key_id().ok_or_else(|| failed("no random numbers".into()))?;
    let times = Times {
        not_before: now - BACKDATE,
        not_after: now + settings.lifetime,
    }
    .in_whole_seconds();
    let signer = TokenSigner::new(key_id.clone(), times, &pkcs8).map_err(failed)?;
    let public_key = signer.public_key();
    let sealed = journal::seal_jwt(
        sealing,
        &settings.trust_domain,
        &key_id,
        times,
        &public_key,
        &pkcs8,
    )?;
    Ok(Slot {
        state: SlotState::Prepared,
        authority_id: key_id,
        times,
        tainted: false,
        shown: public_key.clone(),
        public_key,
        key: Some(SlotKey {
            signer: Arc::new(signer),
            sealed,
        }),
    })
}
