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

use super::certificate::{NewAuthority, Signer};
use super::facts::facts;
use super::keys::{CaKey, SealingKey, generate, new_key_id};
use super::slots::{Slot, SlotKey, SlotState, Slots, Step};
use super::times::Times;
use super::token::TokenSigner;
use super::upstream::{Intermediate, UpstreamAuthority};
use crate::store::StoreError;

use super::{Authority, AuthorityError, AuthorityKind, AuthoritySettings, BACKDATE, Book, journal};

/// How long to wait after a step that failed. What is active goes on signing meanwhile.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// How long at most, when it failed again and again.
const TRY_AGAIN_AT_LAST: Duration = Duration::from_secs(60);

/// The code of an authority that should have a successor and has none.
const NO_SUCCESSOR: &str = "FNL1067";

/// An authority that should have a successor and has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// What it signs.
    pub kind: AuthorityKind,
    /// Its id.
    pub authority_id: String,
    /// When it ends, and with it all that it signed.
    pub ends: SystemTime,
    /// Whether the successor should sign already.
    pub urgent: bool,
}

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
    let mut pause = TRY_AGAIN;
    while !stop.is_cancelled() {
        turned_by_hand.mark_unchanged();
        let next = match authority.advance_with(&*followers, clock.now()).await {
            Ok(next) => {
                pause = TRY_AGAIN;
                next
            }
            Err(error) => {
                tracing::error!(code = error.code(), error = %ErrorChain(&error), "the authority could not be rotated");
                alarm(&authority, clock.now()).await;
                let next = clock.now() + pause;
                pause = (pause * 2).min(TRY_AGAIN_AT_LAST);
                next
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

/// Says how much time is left: twice, in other words, the longer nothing is done.
async fn alarm(authority: &Authority, now: SystemTime) {
    for Overdue {
        kind,
        authority_id,
        ends,
        urgent,
    } in authority.overdue(now).await
    {
        let left = ends.duration_since(now).unwrap_or_default();
        match urgent {
            true => {
                tracing::error!(
                    code = NO_SUCCESSOR,
                    ?kind,
                    authority = authority_id,
                    ?left,
                    "an authority ends soon and has no successor: SVIDs get shorter, then there will be none"
                );
            }
            false => {
                tracing::warn!(
                    code = NO_SUCCESSOR,
                    ?kind,
                    authority = authority_id,
                    ?left,
                    "an authority has lived for half of its time and has no successor"
                );
            }
        }
    }
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

/// What became of the steps of both kinds.
pub(super) struct Taken {
    /// Whether anything was changed.
    pub(super) any: bool,
    /// The first that could not be taken.
    pub(super) all: Result<(), AuthorityError>,
}

/// Takes one step of each kind in memory. That one of them fails does not keep the other from being taken.
pub(super) async fn take(
    book: &mut Book,
    steps: Steps,
    settings: &AuthoritySettings,
    sealing: &SealingKey,
    now: SystemTime,
) -> Taken {
    let x509 = new_x509(settings, sealing, now);
    let x509 = take_one(&mut book.x509, steps.x509, now, x509).await;
    let jwt = new_jwt(settings, sealing, now);
    let jwt = take_one(&mut book.jwt, steps.jwt, now, jwt).await;
    let changed = |step, taken: &Result<(), _>| !matches!(step, Step::Wait(_)) && taken.is_ok();
    Taken {
        any: changed(steps.x509, &x509) || changed(steps.jwt, &jwt),
        all: x509.and(jwt),
    }
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
        let taken = take(book, steps, settings, sealing, now).await;
        if let Err(error) = taken.all {
            // Who can sign starts, and goes on trying; who cannot does not.
            if !(book.x509.signs_at(now) && book.jwt.signs_at(now)) {
                return Err(error);
            }
            tracing::error!(code = error.code(), error = %ErrorChain(&error), "the next authority could not be made at start");
            return Ok(());
        }
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
    let (trust_domain, lifetime) = (&settings.trust_domain, settings.lifetime);
    let (certificate, signer, above) = match &settings.upstream {
        None => {
            let key = CaKey::from_pkcs8(&pkcs8).map_err(failed)?;
            let NewAuthority {
                certificate,
                signer,
            } = Signer::self_signed(trust_domain, key, lifetime, now)?;
            (certificate, signer, None)
        }
        Some(UpstreamAuthority::Disk(files)) => {
            let Intermediate {
                certificate,
                signer,
                above,
            } = files.sign(trust_domain, &pkcs8, lifetime, now).await?;
            (certificate, signer, Some(Arc::new(above)))
        }
    };
    let facts = facts(&certificate).map_err(failed)?;
    let sealed = journal::seal_x509(
        sealing,
        trust_domain,
        &certificate,
        above.as_deref(),
        &pkcs8,
    )?;
    Ok(Slot {
        state: SlotState::Prepared,
        authority_id: facts.authority_id,
        times: facts.times,
        tainted: false,
        shown: certificate.to_vec(),
        above,
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
        above: None,
        public_key,
        key: Some(SlotKey {
            signer: Arc::new(signer),
            sealed,
        }),
    })
}
