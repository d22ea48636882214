//! Turns by hand: what is allowed in which state, for both kinds, and that they last.

use super::*;

const KINDS: [AuthorityKind; 2] = [AuthorityKind::X509, AuthorityKind::Jwt];

fn of(authority: &Authority, kind: AuthorityKind, state: SlotState) -> SlotStatus {
    let status = authority.status();
    let status = status.borrow();
    let mut of_kind = status.iter().filter(|slot| slot.kind == kind);
    let found = of_kind.find(|slot| slot.state == state);
    found.expect("one in that state").clone()
}

/// Ids and marks in the bundle, of one kind.
fn published(authority: &Authority, kind: AuthorityKind) -> Vec<(String, bool)> {
    let bundle = authority.bundle().borrow().to_bundle().expect("a bundle");
    let roots = bundle.x509_authorities().iter();
    let keys = bundle.jwt_authorities().iter();
    match kind {
        AuthorityKind::X509 => roots
            .map(|root| (root.subject_key_id().to_owned(), root.is_tainted()))
            .collect(),
        AuthorityKind::Jwt => keys
            .map(|key| (key.key_id().to_owned(), key.is_tainted()))
            .collect(),
    }
}

#[tokio::test]
async fn ca_52_ca_53_prepare_activate_taint_revoke_each_shows_in_the_bundle_and_survives_a_restart()
{
    for kind in KINDS {
        let rig = Rig::new().await;
        let first = of(&rig.authority, kind, SlotState::Active);
        let prepared = rig.authority.prepare(kind, at(1)).await.expect("prepared");
        assert_eq!((prepared.kind, prepared.state), (kind, SlotState::Prepared));
        assert_eq!(published(&rig.authority, kind).len(), 2);

        let id = prepared.authority_id.as_str();
        let active = rig.authority.activate(kind, id).await.expect("activated");
        assert_eq!(active.state, SlotState::Active);
        let signed_by = match kind {
            AuthorityKind::X509 => rig.sign("/pay", at(2)).authority_id,
            AuthorityKind::Jwt => {
                let template = TokenTemplate {
                    spiffe_id: template("/pay").spiffe_id,
                    audience: vec!["bank".into()],
                    ttl: Duration::from_secs(5),
                    with_token_id: false,
                };
                let token = rig.authority.sign_token(&template, at(2));
                token.expect("signed").authority_id
            }
        };
        assert_eq!(signed_by, id);

        let old = first.authority_id.as_str();
        let tainted = rig.authority.taint(kind, old).await.expect("tainted");
        assert!(tainted.tainted && tainted.state == SlotState::Old);
        let marks = [(old.to_owned(), true), (id.to_owned(), false)];
        assert_eq!(published(&rig.authority, kind), marks);
        let again = rig.open_again(at(3)).await.expect("opened");
        assert_eq!(published(&again, kind), marks);
        assert_eq!(*again.status().borrow(), *rig.authority.status().borrow());

        let before = again.bundle().borrow().sequence;
        let revoked = again.revoke(kind, old).await.expect("revoked");
        assert_eq!(revoked.authority_id, old);
        assert_eq!(published(&again, kind), [(id.to_owned(), false)]);
        assert_eq!(again.bundle().borrow().sequence, before + 1);
        let last = rig.open_again(at(4)).await.expect("opened");
        assert_eq!(published(&last, kind), [(id.to_owned(), false)]);
        let other = KINDS.into_iter().find(|other| *other != kind).expect("two");
        assert_eq!(
            published(&last, other).len(),
            1,
            "the other kind was left alone"
        );
    }
}

#[tokio::test]
async fn ca_53_a_turn_that_the_state_does_not_allow_is_refused_and_changes_nothing() {
    for kind in KINDS {
        let rig = Rig::new().await;
        let authority = &rig.authority;
        let active = of(authority, kind, SlotState::Active).authority_id;
        let before = authority.bundle().borrow().clone();
        for id in ["", "no-such", &active.to_uppercase()] {
            for refused in [
                authority.activate(kind, id).await,
                authority.taint(kind, id).await,
                authority.revoke(kind, id).await,
            ] {
                assert!(matches!(refused, Err(TurnError::NoId | TurnError::Unknown)));
            }
        }
        let refused = authority.activate(kind, &active).await;
        assert!(matches!(
            refused,
            Err(TurnError::NotPrepared(SlotState::Active))
        ));
        assert!(matches!(
            authority.taint(kind, &active).await,
            Err(TurnError::Active)
        ));
        assert!(matches!(
            authority.revoke(kind, &active).await,
            Err(TurnError::Active)
        ));
        assert_eq!(*authority.bundle().borrow(), before);

        let prepared = authority.prepare(kind, at(1)).await.expect("prepared");
        let id = prepared.authority_id.as_str();
        assert!(matches!(
            authority.taint(kind, id).await,
            Err(TurnError::NotOld)
        ));
        assert!(matches!(
            authority.revoke(kind, id).await,
            Err(TurnError::NotOld)
        ));
        authority.activate(kind, id).await.expect("activated");
        let refused = authority.revoke(kind, &active).await;
        assert!(matches!(refused, Err(TurnError::NotTainted)));
        let refused = authority.activate(kind, &active).await;
        assert!(matches!(
            refused,
            Err(TurnError::NotPrepared(SlotState::Old))
        ));
        authority.taint(kind, &active).await.expect("tainted");
        let refused = authority.taint(kind, &active).await;
        assert!(matches!(refused, Err(TurnError::TaintedBefore)));
        // An id of one kind names nothing of the other.
        let other = KINDS.into_iter().find(|other| *other != kind).expect("two");
        assert!(matches!(
            authority.revoke(other, &active).await,
            Err(TurnError::Unknown)
        ));
    }
}

#[tokio::test]
async fn preparing_again_replaces_the_one_that_signed_nothing() {
    for kind in KINDS {
        let rig = Rig::new().await;
        let one = rig.authority.prepare(kind, at(1)).await.expect("prepared");
        let two = rig.authority.prepare(kind, at(2)).await.expect("prepared");
        assert_ne!(one.authority_id, two.authority_id);
        assert_eq!(
            states(&rig.authority, kind),
            [SlotState::Active, SlotState::Prepared]
        );
        let refused = rig.authority.activate(kind, &one.authority_id).await;
        assert!(matches!(refused, Err(TurnError::Unknown)));
    }
}

#[tokio::test]
async fn the_rotation_goes_on_from_where_the_hand_left_it() {
    let rig = Rig::new().await;
    for kind in KINDS {
        let prepared = rig
            .authority
            .prepare(kind, at(100))
            .await
            .expect("prepared");
        let id = prepared.authority_id.as_str();
        rig.authority.activate(kind, id).await.expect("activated");
    }
    // The new ones live until 700, so their successors are due at 400, less the backdated start's half.
    let next = rig.authority.advance(at(101)).await.expect("nothing due");
    assert_eq!(next, at(395));
    rig.authority.advance(at(396)).await.expect("prepared");
    for kind in KINDS {
        use SlotState::{Active, Old, Prepared};
        assert_eq!(states(&rig.authority, kind), [Old, Active, Prepared]);
    }
}
