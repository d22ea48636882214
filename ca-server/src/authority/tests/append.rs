//! Authorities of others in our bundle: how they come, stay and go, and what they never do.

use mesh_identity::test_util::{Made, Spec};
use mesh_identity::{Bundle, JwtAuthority};
use mesh_runtime::errors::Coded as _;

use super::*;

/// A root of somebody else for our trust domain that lives from 0 to `end`.
fn root(name: &str, end: u64) -> Made {
    Made::root_with(Spec::authority(domain().as_str(), name).valid(at(0), at(end)))
}

fn key(id: &str, end: Option<u64>) -> JwtAuthority {
    let key = JwtAuthority::from_spki(id, &spki()).expect("a key");
    key.with_expiry(end.map(at))
}

fn offered(roots: &[&Made], keys: &[JwtAuthority]) -> Bundle {
    let roots = roots.iter().map(|root| root.authority());
    let bundle = Bundle::new(domain(), roots).expect("a bundle");
    bundle
        .with_jwt_authorities(keys.iter().cloned())
        .expect("keys")
}

/// How many authorities of each kind the bundle shows.
fn counts(authority: &Authority) -> (usize, usize) {
    let bundle = authority.bundle().borrow().clone();
    (bundle.x509_authorities.len(), bundle.jwt_authorities.len())
}

#[tokio::test]
async fn appended_authorities_are_published_survive_a_restart_and_count_once() {
    let rig = Rig::new().await;
    let before = rig.authority.bundle().borrow().sequence;
    let (one, token_key) = (root("one", 400), key("other", Some(400)));
    let new = offered(&[&one], &[token_key]);
    let bundle = rig.authority.append(&new, at(1)).await.expect("appended");
    assert_eq!(bundle.sequence, before + 1);
    assert_eq!(counts(&rig.authority), (2, 2));

    // A leaf below it is one of ours from now on, and ours still are.
    let leaf = one.leaf("spiffe://example.test/theirs");
    let chain = [leaf.der.clone()];
    assert!(verify_x509_svid(&chain, &rig.bundle(), at(2)).is_ok());
    let own = rig.sign("/ours", at(2));
    assert!(verified(&own, &rig.bundle(), at(2)));
    let taken = rig
        .authority
        .sign_leaf(&template("/pay"), &one.spki(), at(2));
    assert_eq!(taken, Err(SignError::OwnKey), "no leaf may have its key");

    let again = rig.open_again(at(3)).await.expect("opened");
    assert_eq!(*again.bundle().borrow(), bundle);
    let same = again.append(&new, at(4)).await.expect("known");
    assert_eq!(same, bundle, "what is known changes nothing");
}

#[tokio::test]
async fn appended_authorities_leave_when_they_end_and_the_rotation_is_not_disturbed() {
    let rig = Rig::new().await;
    let new = offered(&[&root("one", 100)], &[key("other", Some(200))]);
    rig.authority.append(&new, at(1)).await.expect("appended");
    let next = rig.authority.advance(at(2)).await.expect("nothing due");
    assert_eq!(next, at(100), "the first end is the next step");
    rig.authority.advance(at(100)).await.expect("retired");
    assert_eq!(counts(&rig.authority), (1, 2));
    rig.authority.advance(at(200)).await.expect("retired");
    assert_eq!(counts(&rig.authority), (1, 1));
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        assert_eq!(states(&rig.authority, kind), [SlotState::Active]);
    }
}

#[tokio::test]
async fn an_appended_authority_never_signs_and_is_tainted_then_revoked_like_an_old_one() {
    let rig = Rig::new().await;
    let new = offered(&[&root("one", 400)], &[key("other", Some(400))]);
    let id = new.x509_authorities()[0].subject_key_id().to_owned();
    rig.authority.append(&new, at(1)).await.expect("appended");
    for (kind, id) in [
        (AuthorityKind::X509, id.as_str()),
        (AuthorityKind::Jwt, "other"),
    ] {
        let refused = rig.authority.activate(kind, id).await;
        assert!(matches!(
            refused,
            Err(TurnError::NotPrepared(SlotState::Old))
        ));
        let refused = rig.authority.revoke(kind, id).await;
        assert!(matches!(refused, Err(TurnError::NotTainted)));
        let tainted = rig.authority.taint(kind, id).await.expect("tainted");
        assert!(tainted.tainted);
        rig.authority.revoke(kind, id).await.expect("revoked");
    }
    assert_eq!(counts(&rig.authority), (1, 1));
}

#[tokio::test]
async fn what_cannot_be_named_ended_or_held_is_refused_whole() {
    let rig = Rig::new().await;
    let before = rig.authority.bundle().borrow().clone();
    let own = before.jwt_authorities[0].key_id.clone();
    let good = root("good", 400);
    let nameless = Made::root_with(Spec {
        key_ids: false,
        ..Spec::authority(domain().as_str(), "nameless").valid(at(0), at(400))
    });
    let many: Vec<_> = (0..128)
        .map(|n| key(&format!("key{n}"), Some(400)))
        .collect();
    for (offer, code) in [
        (offered(&[], &[]), "FNL1069"),
        (offered(&[&good, &nameless], &[]), "FNL1078"),
        (offered(&[&good, &root("over", 10)], &[]), "FNL1078"),
        (offered(&[&good], &[key("endless", None)]), "FNL1078"),
        (offered(&[&good], &[key(&own, Some(400))]), "FNL1078"),
        (offered(&[&good], &many), "FNL1079"),
    ] {
        let refused = rig.authority.append(&offer, at(10)).await;
        assert_eq!(refused.expect_err(code).code(), code);
        assert_eq!(*rig.authority.bundle().borrow(), before);
    }
}
