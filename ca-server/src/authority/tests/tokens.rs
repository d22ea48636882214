//! Tokens: what they say, how long they live, and that verifiers accept them across turns and restarts.

use mesh_identity::jwt::{JwtSvid, verify_jwt_svid};

use super::*;

fn token_template(path: &str) -> TokenTemplate {
    TokenTemplate {
        spiffe_id: SpiffeId::from_parts(&domain(), path).expect("a path"),
        audience: vec!["bank".into()],
        ttl: Duration::from_secs(60),
        with_token_id: false,
    }
}

fn sign(authority: &Authority, now: SystemTime) -> SignedToken {
    let signed = authority.sign_token(&token_template("/pay"), now);
    signed.expect("signed")
}

fn proven(token: &SignedToken, bundles: &BundleSet, now: SystemTime) -> Option<JwtSvid> {
    verify_jwt_svid(token.token.expose(), bundles, &["bank"], now).ok()
}

#[tokio::test]
async fn jwt_7_jwt_8_a_token_says_what_its_template_says_and_verifies_by_our_bundle() {
    let rig = Rig::new().await;
    let token = sign(&rig.authority, at(5));
    let svid = proven(&token, &rig.bundle(), at(5)).expect("it verifies");
    assert_eq!(svid.id.as_str(), "spiffe://example.test/pay");
    assert_eq!(svid.audience, ["bank"]);
    assert_eq!((svid.expires_at, svid.issued_at), (at(65), Some(at(5))));
    assert_eq!((svid.key_id, token.token_id), (token.authority_id, None));
    assert!(!svid.claims.contains_key("jti") && !svid.claims.contains_key("iss"));
    assert!(
        !format!("{:?}", token.token).contains("ey"),
        "no token in logs"
    );
}

#[tokio::test]
async fn jwt_20_a_token_has_a_name_of_its_own_if_its_entry_asks_for_it() {
    let rig = Rig::new().await;
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let template = TokenTemplate {
            with_token_id: true,
            ..token_template("/pay")
        };
        let token = rig.authority.sign_token(&template, at(0)).expect("signed");
        let svid = proven(&token, &rig.bundle(), at(0)).expect("it verifies");
        let name = token.token_id.expect("a name");
        assert_eq!(svid.claims["jti"], *name);
        assert_eq!(name.len(), 22, "16 bytes in base64url");
        assert!(names.insert(name));
    }
}

#[tokio::test]
async fn jwt_20_every_token_names_the_issuer_that_is_configured() {
    let folder = TempDir::new().expect("a folder");
    let mut settings = settings(folder.path());
    settings.tokens.issuer = Some("https://oidc.example.test".into());
    let journal = Stores::memory(&domain()).journal.clone();
    let authority = Authority::open(settings, journal, at(0)).await;
    let authority = authority.expect("opened");
    let svid = proven(&sign(&authority, at(5)), &bundle_of(&authority), at(5));
    let claims = svid.expect("it verifies").claims;
    assert_eq!(claims["iss"], "https://oidc.example.test");
}

#[tokio::test]
async fn jwt_10_a_token_for_more_audiences_than_the_cap_is_not_signed() {
    let rig = Rig::new().await;
    let asked = |count: usize| {
        let mut template = token_template("/pay");
        template.audience = (0..count).map(|n| format!("service-{n}")).collect();
        // Empty ones are dropped, so they do not count either.
        template.audience.push(String::new());
        rig.authority.sign_token(&template, at(0)).map(|_| ())
    };
    assert_eq!(asked(MOST_AUDIENCES), Ok(()));
    let (asked, most) = (asked(MOST_AUDIENCES + 1), MOST_AUDIENCES);
    assert_eq!(
        asked,
        Err(SignError::Audiences {
            asked: most + 1,
            most
        })
    );
}

#[tokio::test]
async fn key_ids_are_32_letters_and_digits_and_the_bundle_names_key_end_and_id() {
    let rig = Rig::new().await;
    let stored = rig.authority.bundle().borrow().clone();
    let [key] = &stored.jwt_authorities[..] else {
        panic!("one JWT authority")
    };
    assert_eq!(key.key_id.len(), 32);
    assert!(key.key_id.bytes().all(|b| b.is_ascii_alphanumeric()));
    assert_eq!((key.expires_at, key.tainted), (Some(at(0) + LIFE), false));
    let bundle = stored.to_bundle().expect("a bundle");
    assert_eq!(bundle.jwt_authorities().len(), 1);
    let own = rig
        .authority
        .sign_leaf(&template("/pay"), &key.public_key, at(0));
    assert_eq!(
        own.unwrap_err(),
        SignError::OwnKey,
        "no leaf for a token key"
    );
}

#[tokio::test]
async fn jwt_21_a_token_never_outlives_its_authority_and_is_refused_when_nothing_is_left() {
    let rig = Rig::new().await;
    let long = TokenTemplate {
        ttl: Duration::MAX,
        ..token_template("/pay")
    };
    let token = rig.authority.sign_token(&long, at(0)).expect("signed");
    assert_eq!(token.expires_at, at(0) + LIFE);
    for ttl in [Duration::ZERO, Duration::from_millis(999)] {
        let short = TokenTemplate {
            ttl,
            ..token_template("/pay")
        };
        let refused = rig.authority.sign_token(&short, at(0)).map(|_| ());
        assert_eq!(refused, Err(SignError::NoTime));
    }
    let refused = rig.authority.sign_token(&token_template("/pay"), at(600));
    assert_eq!(refused.map(|_| ()), Err(SignError::NoAuthority));
}

#[tokio::test]
async fn a_token_for_strangers_for_nobody_or_for_the_trust_domain_itself_is_not_signed() {
    let rig = Rig::new().await;
    let refused = |change: &dyn Fn(&mut TokenTemplate)| {
        let mut template = token_template("/pay");
        change(&mut template);
        let signed = rig.authority.sign_token(&template, at(0));
        signed.map(|_| ()).expect_err("refused")
    };
    let stranger = refused(&|t| t.spiffe_id = "spiffe://other.test/pay".parse().expect("an ID"));
    assert!(matches!(stranger, SignError::NotOurs { .. }));
    for change in [
        (&|t: &mut TokenTemplate| t.audience.clear()) as &dyn Fn(&mut TokenTemplate),
        &|t| t.audience = vec![String::new()],
        &|t| t.spiffe_id = domain().id(),
        &|t| t.audience = vec!["a".repeat(20_000)],
    ] {
        assert!(matches!(refused(change), SignError::Claims(_)));
    }
}

#[tokio::test]
async fn ca_64_every_token_verifies_against_every_bundle_of_its_life_across_turns_and_restarts() {
    let rig = Rig::new().await;
    let mut authority = rig.authority.clone();
    let mut issued: Vec<SignedToken> = Vec::new();
    let mut signers = std::collections::BTreeSet::new();
    for second in (0..2_000).step_by(10) {
        let now = at(second);
        let before = bundle_of(&authority);
        if second % 70 == 0 {
            authority = rig.open_again(now).await.expect("opened");
        }
        authority.advance(now).await.expect("advanced");
        let bundles = bundle_of(&authority);
        let token = sign(&authority, now);
        // A verifier that has not heard of this very step trusts the token all the same.
        assert!(proven(&token, &before, now).is_some(), "at {second}");
        assert_eq!(token.expires_at, at(second + 60), "cut short at {second}");
        signers.insert(token.authority_id.clone());
        issued.push(token);
        issued.retain(|token| token.expires_at > now);
        let all = issued
            .iter()
            .all(|token| proven(token, &bundles, now).is_some());
        assert!(all, "at {second}");
    }
    assert!(signers.len() >= 4, "{} authorities signed", signers.len());
}
