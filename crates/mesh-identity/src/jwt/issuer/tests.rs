//! Tests of `issuer.rs`.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::test_util::{jwt::JwtSigner, now};

const ISSUER: &str = "https://login.test";

fn claims() -> Value {
    let now = now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    json!({ "iss": ISSUER, "sub": "ann", "aud": ["bank", "shop"], "iat": now, "exp": now + 300, "groups": ["g"] })
}

fn keys(signer: &JwtSigner) -> Vec<JwtAuthority> {
    let domain: crate::TrustDomain = "td".parse().unwrap();
    let jwks = signer.bundles("td").get(&domain).unwrap().to_jwks_json();
    crate::read_jwks(&jwks).unwrap()
}

fn verify(header: &Value, claims: &Value, audiences: &[String]) -> Result<IssuedToken, JwtError> {
    let signer = JwtSigner::new("k1");
    let expected = Expected {
        issuer: ISSUER,
        audiences,
    };
    verify_issued(
        &signer.sign(header, claims),
        &keys(&signer),
        expected,
        now(),
    )
}

fn with(name: &str, value: Value) -> Result<IssuedToken, JwtError> {
    let mut said = claims();
    said[name] = value;
    verify(&JwtSigner::new("k1").header(), &said, &["bank".to_owned()])
}

#[test]
fn a_token_of_the_issuer_for_one_of_our_audiences_is_good() {
    let token = with("x", json!(1)).unwrap();
    assert_eq!(
        (&*token.subject, token.claims["groups"][0].as_str()),
        ("ann", Some("g"))
    );
    let header = json!({ "alg": "ES256", "typ": "at+jwt", "x5t": "ignored", "jku": "https://evil.test/jwks" });
    assert!(
        verify(&header, &claims(), &[]).is_ok(),
        "one key needs no name"
    );
}

#[test]
fn mesh_c1_60_what_a_token_must_not_be() {
    let header = |change: Value| {
        let mut header = JwtSigner::new("k1").header();
        for (name, value) in change.as_object().unwrap() {
            header[name] = value.clone();
        }
        verify(&header, &claims(), &[]).unwrap_err()
    };
    assert_eq!(header(json!({ "alg": "none" })), JwtError::Algorithm);
    assert_eq!(header(json!({ "alg": "HS256" })), JwtError::Algorithm);
    assert_eq!(header(json!({ "alg": "RS256" })), JwtError::KeyKind);
    assert_eq!(
        header(json!({ "kid": "../../etc/passwd" })),
        JwtError::UnknownKey
    );
    assert_eq!(header(json!({ "kid": 7 })), JwtError::NoKeyId);
    assert!(matches!(
        header(json!({ "crit": ["exp"] })),
        JwtError::HeaderParameter(_)
    ));
    assert_eq!(with("exp", Value::Null).unwrap_err(), JwtError::Date("exp"));
    assert_eq!(with("exp", json!(1)).unwrap_err(), JwtError::Expired);
    assert_eq!(
        with("nbf", json!(9_999_999_999_u64)).unwrap_err(),
        JwtError::NotYetValid
    );
    assert_eq!(with("aud", json!("other")).unwrap_err(), JwtError::Audience);
    assert_eq!(with("aud", json!([])).unwrap_err(), JwtError::NoAudience);
    assert_eq!(
        with("iss", json!("https://login.test/")).unwrap_err(),
        JwtError::Issuer
    );
    assert_eq!(with("sub", json!("")).unwrap_err(), JwtError::NoSubject);
    let signer = JwtSigner::new("k1");
    let expected = Expected {
        issuer: ISSUER,
        audiences: &[],
    };
    let twice = claims().to_string().replacen('{', "{\"sub\":\"eve\",", 1);
    let token = signer.sign_text(&signer.header().to_string(), &twice);
    assert_eq!(
        verify_issued(&token, &keys(&signer), expected, now()).unwrap_err(),
        JwtError::Json
    );
    let stranger = JwtSigner::new("k1").sign(&signer.header(), &claims());
    assert_eq!(
        verify_issued(&stranger, &keys(&signer), expected, now()).unwrap_err(),
        JwtError::Signature
    );
    let good = signer.sign(&signer.header(), &claims());
    assert_eq!(issuer_of(&good).as_deref(), Some(ISSUER));
    assert!(
        verify_issued(
            &good,
            &keys(&signer),
            expected,
            now() + Duration::from_secs(400)
        )
        .is_err()
    );
    assert_eq!(issuer_of("a.b"), None);
}

#[test]
fn a_key_set_leaves_out_what_signs_nothing_and_is_refused_when_a_key_is_damaged() {
    let signer = JwtSigner::new("k1");
    let domain: crate::TrustDomain = "td".parse().unwrap();
    let jwks = signer.bundles("td").get(&domain).unwrap().to_jwks_json();
    let mut set: Value = serde_json::from_slice(&jwks).unwrap();
    let own = set["keys"][0].clone();
    let read = |set: &Value| crate::read_jwks(set.to_string().as_bytes());
    for (name, value) in [("use", "enc"), ("kty", "oct")] {
        let mut other = own.clone();
        other[name] = value.into();
        other["kid"] = "k2".into();
        set["keys"].as_array_mut().unwrap().push(other);
    }
    assert_eq!(read(&set).unwrap().len(), 1);
    let mut doubled = set.clone();
    doubled["keys"].as_array_mut().unwrap().push(own.clone());
    assert!(read(&doubled).is_err());
    set["keys"][0]["x"] = "AAAA".into();
    assert!(read(&set).is_err() && crate::read_jwks(b"[]").is_err());
}
