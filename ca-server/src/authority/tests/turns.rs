//! How authorities take turns: prepared, active, old, gone. Decided by a pure function, kept by the journal.

use futures::FutureExt;
use mesh_runtime::clock::Clock;
use mesh_runtime::tasks::StopSource;
use proptest::prelude::*;

use super::*;
use crate::store::{StoreError, StoreFuture};

fn times(from: u64, to: u64) -> Times {
    Times {
        not_before: at(from),
        not_after: at(to),
    }
}

fn wait(seconds: u64) -> Step {
    Step::Wait(Duration::from_secs(seconds))
}

#[test]
fn the_first_authority_is_prepared_and_signs_at_once() {
    assert_eq!(next_step(None, None, &[], at(0)), Step::Prepare);
    assert_eq!(
        next_step(None, Some(times(0, 600)), &[], at(0)),
        Step::Activate
    );
    assert_eq!(next_step(Some(times(0, 600)), None, &[], at(0)), wait(300));
}

#[test]
fn the_next_one_is_prepared_at_half_and_active_at_five_sixths_of_a_life() {
    let active = Some(times(0, 600));
    assert_eq!(next_step(active, None, &[], at(299)), wait(1));
    assert_eq!(next_step(active, None, &[], at(300)), Step::Prepare);
    let prepared = Some(times(300, 900));
    assert_eq!(next_step(active, prepared, &[], at(300)), wait(200));
    assert_eq!(next_step(active, prepared, &[], at(500)), Step::Activate);
    let (active, old) = (prepared, [times(0, 600)]);
    assert_eq!(next_step(active, None, &old, at(500)), wait(100));
    assert_eq!(next_step(active, None, &old, at(600)), Step::Prepare);
    assert_eq!(
        next_step(active, Some(times(600, 1200)), &old, at(600)),
        Step::Retire
    );
}

#[test]
fn one_that_was_prepared_late_is_first_made_known_and_waits_at_most_for_the_end_of_the_active_one()
{
    let active = Some(times(0, 600));
    assert_eq!(
        next_step(active, Some(times(510, 1110)), &[], at(520)),
        wait(50)
    );
    assert_eq!(
        next_step(active, Some(times(510, 1110)), &[], at(570)),
        Step::Activate
    );
    assert_eq!(
        next_step(active, Some(times(580, 1180)), &[], at(590)),
        wait(10)
    );
    assert_eq!(
        next_step(active, Some(times(580, 1180)), &[], at(600)),
        Step::Activate
    );
}

#[test]
fn a_long_life_is_not_prepared_for_more_than_thirty_days_ahead() {
    let day = 24 * 3600;
    let year = times(0, 365 * day);
    assert_eq!(
        (year.prepare_at(), year.activate_at()),
        (at(335 * day), at(358 * day))
    );
}

#[test]
fn after_a_long_sleep_the_prepared_one_takes_over_and_what_has_expired_goes() {
    assert_eq!(
        next_step(Some(times(0, 600)), Some(times(300, 900)), &[], at(700)),
        Step::Activate
    );
    assert_eq!(
        next_step(
            Some(times(300, 900)),
            Some(times(600, 1200)),
            &[times(0, 600)],
            at(700)
        ),
        Step::Retire
    );
    assert_eq!(
        next_step(Some(times(0, 600)), Some(times(300, 900)), &[], at(1000)),
        Step::Prepare
    );
}

proptest! {
    /// Whatever the pauses between two looks: one signer, never expired after the step, trusted before it signs
    /// (unless there was none), and no root leaves the bundle before its end.
    #[test]
    fn turns_are_safe_whenever_we_look(life in 12_u64..100_000, pauses in prop::collection::vec(0_u64..60_000, 1..60)) {
        #[derive(Clone, Copy, Debug)]
        struct Model { state: SlotState, times: Times, trusted_since: u64 }
        let mut slots: Vec<Model> = Vec::new();
        let mut now = 0;
        for pause in pauses {
            now += pause;
            for _ in 0..20 {
                let of = |state| slots.iter().filter(move |slot| slot.state == state).map(|slot| slot.times);
                let old: Vec<Times> = of(SlotState::Old).collect();
                let active = of(SlotState::Active).next();
                match next_step(active, of(SlotState::Prepared).next(), &old, at(now)) {
                    Step::Prepare => {
                        slots.retain(|slot| {
                            let drop = slot.state == SlotState::Prepared;
                            assert!(!drop || slot.times.not_after <= at(now), "dropped a living prepared one");
                            !drop
                        });
                        slots.push(Model { state: SlotState::Prepared, times: times(now, now + life), trusted_since: now });
                    }
                    Step::Activate => for slot in &mut slots {
                        match slot.state {
                            SlotState::Active => slot.state = SlotState::Old,
                            SlotState::Prepared => {
                                slot.state = SlotState::Active;
                                let cold = active.is_none_or(|active| active.not_after <= at(now));
                                let heard = Duration::from_secs(now - slot.trusted_since);
                                prop_assert!(cold || heard >= Duration::from_secs(life) / 12, "signs before it is trusted");
                            }
                            SlotState::Old => {}
                        }
                    },
                    Step::Retire => {
                        let before = slots.len();
                        slots.retain(|slot| slot.state == SlotState::Active || slot.times.not_after > at(now));
                        prop_assert!(slots.len() < before, "retired nothing");
                    }
                    Step::Wait(pause) => {
                        prop_assert!(pause > Duration::ZERO);
                        break;
                    }
                }
            }
            let active: Vec<_> = slots.iter().filter(|slot| slot.state == SlotState::Active).collect();
            prop_assert_eq!(active.len(), 1);
            prop_assert!(active[0].times.not_after > at(now));
            prop_assert!(slots.iter().filter(|slot| slot.state == SlotState::Prepared).count() <= 1);
            prop_assert!(slots.iter().all(|slot| slot.times.not_after > at(now)), "an expired root is published");
        }
    }
}

#[tokio::test]
async fn ca_51_every_svid_verifies_against_every_bundle_of_its_life_across_five_turns() {
    let rig = Rig::new().await;
    let mut issued: Vec<SignedLeaf> = Vec::new();
    let mut sequences = Vec::new();
    let mut signers = std::collections::BTreeSet::new();
    let ttl = settings(rig.folder.path()).longest_svid();
    assert_eq!(ttl, Duration::from_secs(100));
    for second in (0..3_000).step_by(5) {
        let now = at(second);
        let before = bundle_of(&rig.authority);
        rig.authority.advance(now).await.expect("advanced");
        let bundles = rig.bundle();
        let leaf = rig
            .authority
            .sign_leaf(
                &LeafTemplate {
                    ttl,
                    ..template("/pay")
                },
                &spki(),
                now,
            )
            .expect("signed");
        // A verifier that has not heard of this very step trusts the leaf all the same.
        assert!(
            verified(&leaf, &before, now) && verified(&leaf, &bundles, now),
            "at {second}"
        );
        assert_eq!(leaf.not_after, now + ttl, "cut short at {second}");
        signers.insert(leaf.authority_id.clone());
        issued.push(leaf);
        issued.retain(|leaf| leaf.not_after > now);
        assert!(
            issued.iter().all(|leaf| verified(leaf, &bundles, now)),
            "at {second}"
        );
        sequences.push(rig.authority.bundle().borrow().sequence);
        assert!(states(&rig.authority, AuthorityKind::X509).len() <= 3);
    }
    assert!(signers.len() >= 6, "{} authorities signed", signers.len());
    assert!(sequences.is_sorted());
}

#[tokio::test]
async fn tdb_03_tdb_04_the_sequence_rises_exactly_when_the_bundle_changes_also_over_restarts() {
    let rig = Rig::new().await;
    let look = |authority: &Authority| authority.bundle().borrow().clone();
    let mut last = look(&rig.authority);
    assert_eq!(last.sequence, 1);
    for second in (0..2_000).step_by(50) {
        let authority = rig.open_again(at(second)).await.expect("opened");
        authority.advance(at(second)).await.expect("advanced");
        let now = look(&authority);
        assert_eq!(
            now.sequence > last.sequence,
            now.x509_authorities != last.x509_authorities,
            "at {second}"
        );
        assert!(now.sequence >= last.sequence);
        last = now;
    }
    assert!(last.sequence > 5);
}

#[tokio::test]
async fn the_key_of_an_old_authority_is_dropped() {
    let rig = Rig::new().await;
    rig.authority.advance(at(301)).await.expect("prepared");
    rig.authority.advance(at(501)).await.expect("activated");
    let slots = rig.authority.slots.lock().await;
    let x509 = slots.x509.0.iter();
    let x509: Vec<_> = x509.map(|slot| (slot.state, slot.key.is_some())).collect();
    let jwt = slots.jwt.0.iter();
    let jwt: Vec<_> = jwt.map(|slot| (slot.state, slot.key.is_some())).collect();
    assert_eq!(x509, [(SlotState::Old, false), (SlotState::Active, true)]);
    assert_eq!(jwt, x509);
}

/// A journal that fails when it is told to.
struct Failing {
    inner: Arc<dyn Journal>,
    fails: std::sync::atomic::AtomicBool,
}

impl Journal for Failing {
    fn read(&self) -> StoreFuture<'_, Option<Vec<u8>>> {
        self.inner.read()
    }

    fn write(&self, journal: Vec<u8>, bundle: BundleContent) -> StoreFuture<'_, Arc<StoredBundle>> {
        if self.fails.load(std::sync::atomic::Ordering::Relaxed) {
            return async {
                Err(StoreError::Stopped {
                    reason: "test".into(),
                })
            }
            .boxed();
        }
        self.inner.write(journal, bundle)
    }
}

#[tokio::test]
async fn a_step_that_is_not_stored_did_not_happen_and_signing_goes_on() {
    let folder = TempDir::new().expect("a folder");
    let inner = Stores::memory(&domain()).journal;
    let journal = Arc::new(Failing {
        inner,
        fails: false.into(),
    });
    let authority = Authority::open(settings(folder.path()), journal.clone(), at(0))
        .await
        .expect("opened");
    let before = authority.bundle().borrow().clone();
    let first = authority
        .sign_leaf(&template("/pay"), &spki(), at(0))
        .expect("signed");

    journal
        .fails
        .store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(
        authority.advance(at(301)).await,
        Err(AuthorityError::Store(_))
    ));
    assert_eq!(*authority.bundle().borrow(), before);
    let second = authority
        .sign_leaf(&template("/pay"), &spki(), at(400))
        .expect("signed");
    assert_eq!(second.authority_id, first.authority_id);

    journal
        .fails
        .store(false, std::sync::atomic::Ordering::Relaxed);
    let turn = at(0) + LIFE - (LIFE + BACKDATE) / 6;
    assert_eq!(authority.advance(at(401)).await.expect("prepared"), turn);
    assert_eq!(authority.bundle().borrow().x509_authorities.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_loop_prepares_activates_and_retires_by_the_clock() {
    let rig = Rig::new().await;
    let clock = Clock::manual(at(0));
    let stop = StopSource::new();
    let task = tokio::spawn(run(
        rig.authority.clone(),
        Arc::new(NoFollowers),
        clock.clone(),
        stop.stop(),
    ));
    let mut seen = Vec::new();
    for _ in 0..70 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let states = states(&rig.authority, AuthorityKind::X509);
        assert_eq!(states, self::states(&rig.authority, AuthorityKind::Jwt));
        if seen.last() != Some(&states) {
            seen.push(states);
        }
    }
    use SlotState::{Active, Old, Prepared};
    let turns = [vec![Active], vec![Active, Prepared], vec![Old, Active]];
    assert_eq!(seen[..3], turns);
    assert_eq!(*seen.last().expect("looked"), [Active, Prepared]);
    stop.trigger();
    assert!(task.await.expect("ran").is_ok());
}

/// Followers of whom one lacks every bundle until it is told to catch up.
#[derive(Default)]
struct OneLags(std::sync::Mutex<u64>);

impl Followers for OneLags {
    fn lacking(
        &self,
        revision: u64,
        _: SystemTime,
    ) -> futures::future::BoxFuture<'_, Result<Vec<SpiffeId>, StoreError>> {
        let holds = *self.0.lock().expect("not poisoned");
        let agent = "spiffe://dev.test/spire/agent/a".parse().expect("an ID");
        let lacking = if holds < revision {
            vec![agent]
        } else {
            Vec::new()
        };
        std::future::ready(Ok(lacking)).boxed()
    }
}

#[tokio::test]
async fn a_new_authority_signs_only_when_every_agent_has_acknowledged_it() {
    use SlotState::{Active, Old, Prepared};
    let (rig, fleet) = (Rig::new().await, OneLags::default());
    let advance = async |seconds| {
        let next = rig.authority.advance_with(&fleet, at(seconds)).await;
        next.expect("advanced")
    };
    advance(301).await;
    let next = advance(501).await;
    assert!(next <= at(502), "it asks again soon");
    let waits = [Active, Prepared];
    assert_eq!(states(&rig.authority, AuthorityKind::X509), waits);
    assert_eq!(states(&rig.authority, AuthorityKind::Jwt), waits);
    assert_eq!(rig.authority.lacking().borrow().len(), 1);

    *fleet.0.lock().expect("not poisoned") = rig.authority.bundle().borrow().revision;
    advance(502).await;
    let turned = [Old, Active];
    assert_eq!(states(&rig.authority, AuthorityKind::X509), turned);
    assert_eq!(states(&rig.authority, AuthorityKind::Jwt), turned);
    assert!(rig.authority.lacking().borrow().is_empty());
}

#[tokio::test]
async fn an_agent_that_never_acknowledges_does_not_end_everybodys_identities() {
    use SlotState::{Active, Old, Prepared};
    let (rig, fleet) = (Rig::new().await, OneLags::default());
    for (seconds, expected) in [
        (301, [Active, Prepared]),
        (501, [Active, Prepared]),
        (545, [Active, Prepared]),
        (552, [Old, Active]),
    ] {
        let next = rig.authority.advance_with(&fleet, at(seconds)).await;
        next.expect("advanced");
        assert_eq!(
            states(&rig.authority, AuthorityKind::X509),
            expected,
            "{seconds}"
        );
    }
}

#[tokio::test]
async fn at_start_no_turn_is_taken_before_the_agents_can_speak() {
    use SlotState::{Active, Old, Prepared};
    let rig = Rig::new().await;
    rig.authority.advance(at(301)).await.expect("prepared");
    for (seconds, expected) in [(501, [Active, Prepared]), (552, [Old, Active])] {
        let again = Authority::open(
            settings(rig.folder.path()),
            rig.stores.journal.clone(),
            at(seconds),
        );
        let again = again.await.expect("opened");
        assert_eq!(states(&again, AuthorityKind::X509), expected, "{seconds}");
    }
}
