//! What a status means, and which updates are taken.

use mesh_identity::test_util::Made;
use proto::convert::{CarriedBundle, permission_denied};
use types::permission_denied_details::Reason;

use super::*;

#[test]
fn t_40_the_reason_of_a_denial_decides_between_attesting_again_and_stopping() {
    let cases = [
        (Reason::AgentBanned, Verdict::Banned),
        (Reason::AgentExpired, Verdict::AttestAgain),
        (Reason::AgentNotAttested, Verdict::AttestAgain),
        (Reason::AgentNotActive, Verdict::AttestAgain),
        (Reason::AgentMustReattest, Verdict::AttestAgain),
        (Reason::Unknown, Verdict::No),
    ];
    for (reason, wanted) in cases {
        assert_eq!(
            verdict(&permission_denied("no", reason)),
            wanted,
            "{reason:?}"
        );
    }
    assert_eq!(
        verdict(&Status::permission_denied("without a detail")),
        Verdict::No
    );
    assert_eq!(verdict(&Status::unavailable("")), Verdict::Later);
    assert_eq!(verdict(&Status::invalid_argument("")), Verdict::No);
    // Garbage in the details is no reason.
    let garbage = Status::with_details(Code::PermissionDenied, "", vec![0xff; 64].into());
    assert_eq!(verdict(&garbage), Verdict::No);
}

fn update(revision: u64, snapshot: bool, with_bundle: bool) -> Update {
    let mut update = Update::empty(
        Position {
            epoch: "e".into(),
            revision,
        },
        snapshot,
    );
    if with_bundle {
        update.bundles.push(CarriedBundle::from(
            Made::root("dev.test").bundle("dev.test"),
        ));
    }
    update
}

#[test]
fn a_change_needs_the_state_that_it_changes() {
    let mut state = FeedState::new("dev.test".parse().unwrap());
    assert!(matches!(
        state.apply(update(2, false, true)),
        Err(UpdateError::NoBase { got: 2, .. })
    ));
    state.apply(update(5, true, true)).unwrap();
    state.apply(update(6, false, false)).unwrap();
    assert!(
        matches!(
            state.apply(update(5, false, false)),
            Err(UpdateError::NoBase { .. })
        ),
        "never back"
    );
    // The same revision again says that there is nothing new.
    state.apply(update(6, false, false)).unwrap();
    let mut foreign = update(9, false, false);
    foreign.at.epoch = "f".into();
    assert!(matches!(
        state.apply(foreign),
        Err(UpdateError::NoBase { .. })
    ));
    assert_eq!(
        state.position,
        Some(Position {
            epoch: "e".into(),
            revision: 6
        })
    );
}

#[test]
fn an_update_without_our_own_root_is_refused_and_changes_nothing() {
    let mut state = FeedState::new("dev.test".parse().unwrap());
    state.apply(update(5, true, true)).unwrap();
    assert!(matches!(
        state.apply(update(6, true, false)),
        Err(UpdateError::NoBundle(_))
    ));
    let mut removing = update(6, false, false);
    removing.removed_bundles.push("dev.test".parse().unwrap());
    assert!(matches!(
        state.apply(removing),
        Err(UpdateError::NoBundle(_))
    ));
    assert_eq!(state.bundles.len(), 1);
}

#[test]
fn another_agent_id_starts_from_nothing() {
    let mut state = FeedState::new("dev.test".parse().unwrap());
    state.forget_position_of_another(
        &"spiffe://dev.test/spire/agent/join_token/a"
            .parse()
            .unwrap(),
    );
    state.apply(update(5, true, true)).unwrap();
    state.forget_position_of_another(
        &"spiffe://dev.test/spire/agent/join_token/a"
            .parse()
            .unwrap(),
    );
    assert!(state.position.is_some());
    state.forget_position_of_another(
        &"spiffe://dev.test/spire/agent/join_token/b"
            .parse()
            .unwrap(),
    );
    assert!(state.position.is_none());
}
