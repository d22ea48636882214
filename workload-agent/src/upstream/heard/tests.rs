//! Which updates and answers are taken.

use mesh_identity::test_util::Made;
use proto::convert::CarriedBundle;

use super::*;

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
    let mut state = Heard::new("dev.test".parse().unwrap());
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
    let mut state = Heard::new("dev.test".parse().unwrap());
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
    let mut state = Heard::new("dev.test".parse().unwrap());
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

#[test]
fn answers_replace_everything_and_say_whether_they_are_news() {
    let mut state = Heard::new("dev.test".parse().unwrap());
    state.apply(update(5, true, true)).unwrap();
    let bundles: Bundles = state
        .bundles()
        .map(|bundle| (bundle.trust_domain().clone(), Arc::clone(bundle)))
        .collect();
    assert!(!state.replace(Entries::new(), bundles.clone()).unwrap());
    assert!(state.position().is_none(), "no stream goes on from here");
    let other = Made::root("far.test").bundle("far.test");
    let mut more = bundles.clone();
    more.insert("far.test".parse().unwrap(), Arc::new(other));
    assert!(state.replace(Entries::new(), more.clone()).unwrap());
    more.remove(&"dev.test".parse().unwrap());
    assert!(matches!(
        state.replace(Entries::new(), more),
        Err(UpdateError::NoBundle(_))
    ));
    assert_eq!(state.bundles().count(), 2, "what is held stays");
}
