//! Tests of `jwt.rs` and its pages.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    Bundle,
    test_util::{
        BAD_IDS, GOOD_IDS, KeyKind, Made,
        jwt::{JwtSigner, claims},
        now,
    },
};

const ID: &str = "spiffe://td/pay";

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn verify(token: &str, signer: &JwtSigner) -> Result<JwtSvid, JwtError> {
    verify_jwt_svid(token, &signer.bundles("td"), &["bank"], now())
}

/// A token whose header has these members more, or in place of its own.
fn with_header(change: &Value) -> Result<JwtSvid, JwtError> {
    let signer = JwtSigner::new("k1");
    let mut header = signer.header();
    merge(&mut header, change);
    verify(&signer.sign(&header, &claims(ID, "bank")), &signer)
}

/// A token whose claims have these members more, or in place of its own; null takes one out.
fn with_claims(change: &Value) -> Result<JwtSvid, JwtError> {
    let signer = JwtSigner::new("k1");
    let mut said = claims(ID, "bank");
    merge(&mut said, change);
    verify(&signer.sign(&signer.header(), &said), &signer)
}

fn merge(object: &mut Value, change: &Value) {
    let members = object.as_object_mut().unwrap();
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => members.remove(name),
            value => members.insert(name.clone(), value.clone()),
        };
    }
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// A token written by our issuing side.
fn issued(signer: &JwtSigner, claims: &Claims<'_>) -> String {
    let input = SigningInput::new(JwtAlgorithm::Es256, "k1", claims).unwrap();
    let signature = signer.raw_signature(input.as_bytes());
    input.with_signature(&signature)
}

fn template<'a>(id: &'a SpiffeId, audience: &'a [String]) -> Claims<'a> {
    Claims {
        id,
        audience,
        issued_at: now(),
        expires_at: now() + Duration::from_secs(300),
        issuer: None,
        token_id: None,
    }
}

// --- issuing

#[test]
fn jwt_1_jwt_3_jwt_5_jwt_7_jwt_22_an_issued_token_is_compact_and_says_what_it_must_and_nothing_else()
 {
    let (signer, id) = (JwtSigner::new("k1"), ID.parse().unwrap());
    let audience = ["bank".to_owned(), String::new(), "shop".to_owned()];
    let token = issued(&signer, &template(&id, &audience));
    assert_eq!(token.split('.').count(), 3);
    assert!(
        !token.contains(['=', '+', '/']),
        "base64url without padding"
    );
    assert_eq!(
        part(&token, 0),
        json!({"alg": "ES256", "kid": "k1", "typ": "JWT"})
    );
    let iat = seconds(now());
    assert_eq!(
        part(&token, 1),
        json!({"sub": ID, "aud": ["bank", "shop"], "iat": iat, "exp": iat + 300})
    );
    let text = URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1).unwrap())
        .unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains(&format!("\"exp\":{},", iat + 300)),
        "an integer: {text}"
    );
    let proven = verify(&token, &signer).unwrap();
    assert_eq!(
        (proven.id, proven.audience),
        (id, vec!["bank".to_owned(), "shop".to_owned()])
    );
    assert_eq!(proven.expires_at, now() + Duration::from_secs(300));
    assert_eq!(
        (proven.issued_at, proven.key_id.as_str()),
        (Some(now()), "k1")
    );
}

#[test]
fn jwt_20_an_issuer_and_a_token_id_are_written_when_given() {
    let (signer, id) = (JwtSigner::new("k1"), ID.parse().unwrap());
    let audience = ["bank".to_owned()];
    let token = issued(
        &signer,
        &Claims {
            issuer: Some("https://td.example"),
            token_id: Some("n-1"),
            ..template(&id, &audience)
        },
    );
    let said = part(&token, 1);
    assert_eq!(
        (&said["iss"], &said["jti"]),
        (&json!("https://td.example"), &json!("n-1"))
    );
    verify(&token, &signer).unwrap();
}

#[test]
fn jwt_8_a_token_without_an_audience_a_path_or_a_life_is_not_made() {
    let id = ID.parse().unwrap();
    let root = "spiffe://td".parse().unwrap();
    let (none, empty, one) = ([], [String::new()], ["bank".to_owned()]);
    let refused =
        |claims: &Claims<'_>| SigningInput::new(JwtAlgorithm::Es256, "k1", claims).unwrap_err();
    assert_eq!(refused(&template(&id, &none)), IssueError::NoAudience);
    assert_eq!(refused(&template(&id, &empty)), IssueError::NoAudience);
    assert_eq!(refused(&template(&root, &one)), IssueError::WithoutPath);
    for expires_at in [
        now(),
        now() - Duration::from_secs(1),
        UNIX_EPOCH - Duration::from_secs(1),
    ] {
        let claims = Claims {
            expires_at,
            ..template(&id, &one)
        };
        assert_eq!(refused(&claims), IssueError::Lifetime);
    }
}

#[test]
fn a_token_that_no_verifier_would_read_is_not_made() {
    let id = ID.parse().unwrap();
    let mut longest = 0;
    for length in [8_000, 10_000, 11_000, 12_000, 20_000] {
        let audience = ["a".repeat(length)];
        match SigningInput::new(JwtAlgorithm::Rs256, "k1", &template(&id, &audience)) {
            Ok(input) => longest = input.with_signature(&[0; 1024]).len(),
            Err(refused) => assert_eq!(refused, IssueError::TooLarge),
        }
    }
    assert!(longest > 0 && longest <= MAX_JWT_BYTES);
}

// --- form

#[test]
fn jwt_2_ca_62_the_json_form_and_every_other_form_is_refused() {
    let signer = JwtSigner::new("k1");
    let token = signer.token(ID, "bank");
    let parts: Vec<_> = token.split('.').collect();
    let flattened = json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]});
    let general = json!({"payload": parts[1], "signatures": [{"protected": parts[0], "signature": parts[2]}]});
    for wrong in [
        flattened.to_string(),
        general.to_string(),
        String::new(),
        ".".into(),
        "..".into(),
        parts[0].into(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{token}."),
        format!("{token}.{}", parts[2]),
        format!("{}..{}", parts[0], parts[2]),
        format!(" {token}"),
        format!("{token}\n"),
        format!("Bearer {token}"),
        format!("{token}="),
        token.replace('.', ".."),
    ] {
        assert_eq!(
            verify(&wrong, &signer),
            Err(JwtError::NotCompact),
            "{wrong}"
        );
    }
    verify(&token, &signer).unwrap();
}

#[test]
fn a_second_spelling_of_a_signature_is_refused() {
    let signer = JwtSigner::new("k1");
    let token = signer.token(ID, "bank");
    let (rest, last) = token.split_at(token.len() - 1);
    // 64 bytes leave four bits of the last character unused; they must be zero (RFC 4648 3.5).
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let other = alphabet
        .chars()
        .nth(alphabet.find(last).unwrap() + 1)
        .unwrap();
    assert_eq!(
        verify(&format!("{rest}{other}"), &signer),
        Err(JwtError::NotCompact)
    );
}

#[test]
fn a_token_larger_than_what_is_read_is_refused_before_it_is_looked_at() {
    let signer = JwtSigner::new("k1");
    let dots = ".".repeat(MAX_JWT_BYTES + 1);
    assert_eq!(
        verify(&dots, &signer),
        Err(JwtError::TooLarge(MAX_JWT_BYTES + 1))
    );
    assert_eq!(verify(&dots[1..], &signer), Err(JwtError::NotCompact));
}

#[test]
fn ca_62_a_member_twice_is_refused_in_header_and_claims_at_any_depth() {
    let signer = JwtSigner::new("k1");
    let (header, said) = (signer.header().to_string(), claims(ID, "bank").to_string());
    let with = |object: &str, member: &str| format!("{},{member}}}", &object[..object.len() - 1]);
    for (header, said) in [
        (with(&header, r#""alg":"ES256""#), said.clone()),
        (with(&header, r#""kid":"k2""#), said.clone()),
        (header.clone(), with(&said, r#""sub":"spiffe://td/admin""#)),
        (header.clone(), with(&said, r#""aud":["bank"]"#)),
        (header.clone(), with(&said, r#""exp":9999999999"#)),
        (
            header.clone(),
            with(&said, r#""\u0073ub":"spiffe://td/admin""#),
        ),
        (header.clone(), with(&said, r#""x":{"a":1,"a":1}"#)),
        (header.clone(), with(&said, r#""x":[{"a":1,"a":1}]"#)),
    ] {
        let token = signer.sign_text(&header, &said);
        assert_eq!(
            verify(&token, &signer),
            Err(JwtError::Json),
            "{header} {said}"
        );
    }
    let token = signer.sign_text(&header, &with(&said, r#""x":{"a":1,"b":[{"a":1}]}"#));
    verify(&token, &signer).unwrap();
}

#[test]
fn header_and_claims_are_json_objects_and_nothing_else() {
    let signer = JwtSigner::new("k1");
    let (header, said) = (signer.header().to_string(), claims(ID, "bank").to_string());
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(4_000), "]".repeat(4_000));
    for wrong in [
        "",
        "null",
        "[]",
        "1",
        "\"\"",
        "{",
        "{}{}",
        "{} x",
        "{'a':1}",
        "\u{feff}{}",
        deep.as_str(),
    ] {
        for token in [
            signer.sign_text(wrong, &said),
            signer.sign_text(&header, wrong),
        ] {
            let refused = verify(&token, &signer).unwrap_err();
            assert!(
                matches!(refused, JwtError::Json | JwtError::NotCompact),
                "{wrong:.20}: {refused}"
            );
        }
    }
}

// --- header

#[test]
fn jwt_4_ca_60_none_hmac_and_every_other_algorithm_is_refused_before_anything_else() {
    for alg in [
        json!("none"),
        json!("None"),
        json!("NONE"),
        json!("nOnE"),
        json!(""),
        json!("HS256"),
        json!("HS384"),
        json!("HS512"),
        json!("EdDSA"),
        json!("Ed25519"),
        json!("ES256K"),
        json!("ES512"),
        json!("es256"),
        json!("ES256 "),
        json!("RSA-OAEP"),
        json!("RS1"),
        json!("PS1"),
        json!(256),
        json!(["ES256"]),
        json!({}),
        json!(null),
    ] {
        // Everything else about the token is wrong too: the algorithm is what is looked at first.
        let signer = JwtSigner::new("k1");
        let mut header = json!({"alg": alg, "crit": ["x"], "typ": "at+jwt"});
        assert_eq!(
            verify(&signer.sign(&header, &json!({})), &signer),
            Err(JwtError::Algorithm),
            "{alg}"
        );
        header.as_object_mut().unwrap().remove("alg");
        assert_eq!(
            verify(&signer.sign(&header, &json!({})), &signer),
            Err(JwtError::Algorithm)
        );
    }
}

#[test]
fn jwt_4_the_public_key_is_no_hmac_secret_and_an_empty_signature_is_none() {
    let signer = JwtSigner::new("k1");
    let (header, said) = (
        json!({"alg": "HS256", "kid": "k1", "typ": "JWT"}),
        claims(ID, "bank"),
    );
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&said));
    for secret in [signer.public_key().to_vec(), signer.authority().to_spki()] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        let tag = ring::hmac::sign(&key, signed.as_bytes());
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert_eq!(verify(&token, &signer), Err(JwtError::Algorithm));
    }
    let token = signer.token(ID, "bank");
    let (signed, _) = token.rsplit_once('.').unwrap();
    assert_eq!(
        verify(&format!("{signed}."), &signer),
        Err(JwtError::NotCompact)
    );
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]); // CVE-2022-21449
    assert_eq!(
        verify(&format!("{signed}.{zeros}"), &signer),
        Err(JwtError::Signature)
    );
}

#[test]
fn jwt_4_an_algorithm_of_another_kind_than_the_key_is_refused() {
    for kind in [KeyKind::P256, KeyKind::P384] {
        let signer = JwtSigner::of_kind("k1", kind);
        for alg in JwtAlgorithm::ALL {
            let mut header = signer.header();
            let own = header["alg"] == alg.as_str();
            header["alg"] = json!(alg.as_str());
            let verdict = verify(&signer.sign(&header, &claims(ID, "bank")), &signer);
            assert_eq!(verdict.is_ok(), own, "{}", alg.as_str());
            assert!(own || verdict == Err(JwtError::KeyKind));
        }
    }
}

#[test]
fn jwt_3_ca_60_a_header_parameter_that_jwt_svids_do_not_have_is_refused_by_name() {
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"});
    for (name, value) in [
        ("jku", json!("https://evil.example/jwks")),
        ("jwk", jwk),
        ("x5u", json!("https://evil.example")),
        ("x5c", json!(["AA"])),
        ("x5t", json!("AA")),
        ("x5t#S256", json!("AA")),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("cty", json!("JWT")),
        ("zip", json!("DEF")),
        ("enc", json!("A128GCM")),
        ("exp", json!(1)),
        ("Kid", json!("k1")),
        ("ALG", json!("none")),
        ("typ ", json!("JWT")),
        ("", json!(1)),
    ] {
        let refused = with_header(&json!({ name: value })).unwrap_err();
        assert_eq!(refused, JwtError::HeaderParameter(name.to_owned()));
    }
    let long = "\u{1b}x".repeat(500);
    assert_eq!(
        with_header(&json!({ long: 1 })),
        Err(JwtError::HeaderParameter("x".repeat(40)))
    );
}

#[test]
fn jwt_6_typ_is_jwt_or_jose_or_absent() {
    for typ in [json!("JWT"), json!("JOSE"), Value::Null] {
        with_header(&json!({ "typ": typ })).unwrap();
    }
    for typ in [
        json!("wit+jwt"),
        json!("at+jwt"),
        json!("jwt"),
        json!("jose"),
        json!("JOSE+JSON"),
        json!("application/jwt"),
        json!(""),
        json!("JWT "),
        json!(1),
        json!(["JWT"]),
        json!(false),
    ] {
        assert_eq!(
            with_header(&json!({ "typ": typ })),
            Err(JwtError::Type),
            "{typ}"
        );
    }
    let signer = JwtSigner::new("k1");
    let header = r#"{"alg":"ES256","kid":"k1","typ":null}"#;
    let token = signer.sign_text(header, &claims(ID, "bank").to_string());
    assert_eq!(verify(&token, &signer), Err(JwtError::Type));
}

#[test]
fn jwt_5_a_token_that_names_no_key_is_refused() {
    for kid in [Value::Null, json!(""), json!(1), json!(["k1"])] {
        assert_eq!(
            with_header(&json!({ "kid": kid })),
            Err(JwtError::NoKeyId),
            "{kid}"
        );
    }
    for kid in ["k2", "K1", "k1 ", "../k1"] {
        let unknown = Err(JwtError::UnknownAuthority("td".parse().unwrap()));
        assert_eq!(with_header(&json!({ "kid": kid })), unknown, "{kid}");
    }
}

// --- claims

#[test]
fn jwt_7_po_20_sub_is_a_spiffe_id_by_the_same_table_as_everywhere() {
    for id in GOOD_IDS {
        let (signer, id) = (JwtSigner::new("k1"), id.parse::<SpiffeId>().unwrap());
        let bundles = signer.bundles(id.trust_domain().as_str());
        let verdict = verify_jwt_svid(
            &signer.token(id.as_str(), "bank"),
            &bundles,
            &["bank"],
            now(),
        );
        if id.is_path_less() {
            assert_eq!(verdict, Err(JwtError::SubjectWithoutPath), "{id}");
        } else {
            assert_eq!(verdict.unwrap().id, id);
        }
    }
    for id in BAD_IDS {
        let refused = with_claims(&json!({ "sub": id })).unwrap_err();
        assert!(matches!(refused, JwtError::Subject(_)), "{id:?}: {refused}");
    }
    for sub in [
        Value::Null,
        json!(1),
        json!([ID]),
        json!({"id": ID}),
        json!(true),
    ] {
        assert!(
            matches!(
                with_claims(&json!({ "sub": sub })),
                Err(JwtError::Subject(_))
            ),
            "{sub}"
        );
    }
}

#[test]
fn jwt_8_ca_61_a_token_without_an_audience_is_refused() {
    for aud in [
        Value::Null,
        json!([]),
        json!(""),
        json!([""]),
        json!(["bank", ""]),
        json!({}),
        json!({"bank": 1}),
        json!(1),
        json!(["bank", 1]),
        json!([["bank"]]),
        json!(true),
    ] {
        assert_eq!(
            with_claims(&json!({ "aud": aud })),
            Err(JwtError::NoAudience),
            "{aud}"
        );
    }
    for aud in [json!("bank"), json!(["bank"]), json!(["shop", "bank"])] {
        with_claims(&json!({ "aud": aud })).unwrap();
    }
}

#[test]
fn jwt_9_a_token_for_others_is_refused_and_audiences_compare_byte_by_byte() {
    for aud in [
        json!("shop"),
        json!(["Bank"]),
        json!(["bank "]),
        json!(["bank/"]),
        json!(["ban", "bankk"]),
    ] {
        assert_eq!(
            with_claims(&json!({ "aud": aud })),
            Err(JwtError::Audience),
            "{aud}"
        );
    }
    let signer = JwtSigner::new("k1");
    let token = signer.token(ID, "bank");
    let bundles = signer.bundles("td");
    let ask = |own: &[&str]| verify_jwt_svid(&token, &bundles, own, now());
    assert_eq!(ask(&[]), Err(JwtError::Audience));
    assert_eq!(ask(&[""]), Err(JwtError::Audience));
    ask(&["shop", "bank"]).unwrap();
}

#[test]
fn jwt_11_ca_61_a_token_without_a_right_exp_is_refused() {
    for exp in [
        Value::Null,
        json!("1780272300"),
        json!(-1),
        json!(-0.5),
        json!(1e30),
        json!(253_402_300_800_u64),
        json!(u64::MAX),
        json!([1_780_272_300]),
        json!({}),
        json!(true),
    ] {
        assert_eq!(
            with_claims(&json!({ "exp": exp })),
            Err(JwtError::Date("exp")),
            "{exp}"
        );
    }
    let signer = JwtSigner::new("k1");
    for exp in ["1e400", "NaN", "Infinity", "0x7fffffff", "01780272300"] {
        let said = format!(r#"{{"sub":"{ID}","aud":["bank"],"exp":{exp}}}"#);
        let token = signer.sign_text(&signer.header().to_string(), &said);
        assert_eq!(verify(&token, &signer), Err(JwtError::Json), "{exp}");
    }
    with_claims(&json!({"exp": 253_402_300_799_u64})).unwrap();
}

#[test]
fn jwt_12_a_token_counts_until_the_leeway_after_exp_and_not_a_second_more() {
    let (exp, leeway) = (seconds(now()), LEEWAY.as_secs());
    with_claims(&json!({"exp": exp, "iat": null})).unwrap();
    with_claims(&json!({"exp": exp - leeway + 1, "iat": null})).unwrap();
    for exp in [
        json!(exp - leeway),
        json!(exp - leeway - 1),
        json!(0),
        json!(0.0),
    ] {
        assert_eq!(
            with_claims(&json!({"exp": exp, "iat": null})),
            Err(JwtError::Expired),
            "{exp}"
        );
    }
}

#[test]
fn jwt_12_a_token_of_the_future_is_not_valid_yet() {
    let (now, leeway) = (seconds(now()), LEEWAY.as_secs());
    for claim in ["nbf", "iat"] {
        with_claims(&json!({ claim: now + leeway })).unwrap();
        with_claims(&json!({ claim: 0 })).unwrap();
        assert_eq!(
            with_claims(&json!({ claim: now + leeway + 1 })),
            Err(JwtError::NotYetValid),
            "{claim}"
        );
        for wrong in [json!("1"), json!(-1), json!(1e30), json!([])] {
            assert_eq!(
                with_claims(&json!({ claim: wrong })),
                Err(JwtError::Date(claim)),
                "{wrong}"
            );
        }
    }
}

#[test]
fn jwt_22_a_fraction_of_a_second_by_others_is_read_and_dropped() {
    let exp = seconds(now()) + 100;
    let proven = with_claims(&json!({"exp": exp as f64 + 0.9})).unwrap();
    assert_eq!(proven.expires_at, now() + Duration::from_secs(100));
}

#[test]
fn jwt_20_other_claims_pass_and_are_handed_on() {
    let proven = with_claims(&json!({"jti": "n-1", "roles": ["a", {"b": null}]})).unwrap();
    assert_eq!(proven.claims["roles"], json!(["a", {"b": null}]));
    assert_eq!(proven.claims["sub"], json!(ID));
    assert_eq!(proven.claims["jti"], json!("n-1"));
}

// --- keys

#[test]
fn jwt_13_ca_62_a_key_of_another_trust_domain_proves_nothing() {
    let (ours, theirs) = (JwtSigner::new("k1"), JwtSigner::new("k1"));
    let bundles: BundleSet = [ours.bundle("td"), theirs.bundle("other")]
        .into_iter()
        .collect();
    let ask = |token: String| verify_jwt_svid(&token, &bundles, &["bank"], now());
    ask(ours.token(ID, "bank")).unwrap();
    ask(theirs.token("spiffe://other/pay", "bank")).unwrap();
    assert_eq!(ask(theirs.token(ID, "bank")), Err(JwtError::Signature));
    assert_eq!(
        ask(ours.token("spiffe://other/pay", "bank")),
        Err(JwtError::Signature)
    );
    let third = ask(ours.token("spiffe://third/pay", "bank"));
    assert_eq!(third, Err(JwtError::NoBundle("third".parse().unwrap())));
}

#[test]
fn jwt_18_ca_62_only_keys_of_the_use_jwt_svid_are_picked() {
    let signer = JwtSigner::new("k1");
    let mut document: Value =
        serde_json::from_slice(&signer.bundle("td").to_spiffe_json()).unwrap();
    let token = signer.token(ID, "bank");
    let ask = |document: &Value| {
        let bundle =
            Bundle::from_spiffe_json("td".parse().unwrap(), document.to_string().as_bytes());
        verify_jwt_svid(
            &token,
            &[bundle.unwrap()].into_iter().collect(),
            &["bank"],
            now(),
        )
    };
    ask(&document).unwrap();
    for usage in ["wit-svid", "sig", "JWT-SVID", "jwt-svid ", ""] {
        document["keys"][0]["use"] = json!(usage);
        assert_eq!(
            ask(&document),
            Err(JwtError::UnknownAuthority("td".parse().unwrap())),
            "{usage}"
        );
    }
    document["keys"][0]["use"] = json!("x509-svid"); // without x5c it is ignored
    assert_eq!(
        ask(&document),
        Err(JwtError::UnknownAuthority("td".parse().unwrap()))
    );
}

#[test]
fn jwt_18_wapi_30_a_key_of_an_x509_root_signs_no_token() {
    let root = Made::root("td");
    let signer = JwtSigner::new(root.authority().subject_key_id());
    let verdict = verify_jwt_svid(
        &signer.token(ID, "bank"),
        &root.bundles("td"),
        &["bank"],
        now(),
    );
    assert_eq!(
        verdict,
        Err(JwtError::UnknownAuthority("td".parse().unwrap()))
    );
}

#[test]
fn jwt_19_tdb_9_a_bundle_without_a_jwt_authority_verifies_no_token() {
    let signer = JwtSigner::new("k1");
    let bundles = [Bundle::new("td".parse().unwrap(), []).unwrap()]
        .into_iter()
        .collect();
    let verdict = verify_jwt_svid(&signer.token(ID, "bank"), &bundles, &["bank"], now());
    assert_eq!(
        verdict,
        Err(JwtError::UnknownAuthority("td".parse().unwrap()))
    );
}

#[test]
fn ca_64_an_old_key_verifies_while_the_bundle_holds_it_and_until_its_end() {
    let (old, new) = (JwtSigner::new("old"), JwtSigner::new("new"));
    let ending = |end| old.authority().with_expiry(Some(end)).with_tainted(true);
    let ask = |end| {
        let bundle = old
            .bundle("td")
            .with_jwt_authorities([ending(end), new.authority()])
            .unwrap();
        verify_jwt_svid(
            &old.token(ID, "bank"),
            &[bundle].into_iter().collect(),
            &["bank"],
            now(),
        )
    };
    assert!(ask(now()).unwrap().authority_tainted);
    let over = ask(now() - Duration::from_secs(1));
    assert_eq!(over, Err(JwtError::UnknownAuthority("td".parse().unwrap())));
}

#[test]
fn a_changed_byte_anywhere_proves_nothing() {
    let signer = JwtSigner::new("k1");
    let token = signer.token(ID, "bank");
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(verify(&changed, &signer).is_err(), "byte {at}");
    }
}

#[test]
fn no_error_quotes_the_token() {
    let signer = JwtSigner::new("k1");
    let secret = "c2VjcmV0";
    for token in [
        format!("{secret}.{secret}.{secret}"),
        signer.sign(&json!({"alg": secret}), &json!({})),
        signer.sign(&signer.header(), &json!({"sub": secret})),
        signer.token(ID, secret),
    ] {
        let mut error: &dyn std::error::Error = &verify(&token, &signer).unwrap_err();
        loop {
            assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
            match error.source() {
                Some(source) => error = source,
                None => break,
            }
        }
    }
}

proptest! {
    #[test]
    fn ca_63_what_we_issue_we_accept_and_read_the_same(
        path in "(/[A-Za-z0-9._-]{1,12}x){1,4}",
        audience in proptest::collection::vec("\\PC{1,20}", 1..4),
        life in 1..100_000_u64,
    ) {
        let signer = JwtSigner::new("k1");
        let id: SpiffeId = format!("spiffe://td{path}").parse().unwrap();
        let expires_at = now() + Duration::from_secs(life);
        let token = issued(&signer, &Claims { expires_at, ..template(&id, &audience) });
        let own = &audience[audience.len() - 1];
        let proven = verify_jwt_svid(&token, &signer.bundles("td"), &[own], now()).unwrap();
        prop_assert_eq!(proven.id, id);
        prop_assert_eq!(proven.audience, audience);
        prop_assert_eq!(proven.expires_at, expires_at);
    }

    #[test]
    fn ca_63_no_text_panics(token in "\\PC{0,200}", header in "\\PC{0,80}", claims in "\\PC{0,80}") {
        let signer = JwtSigner::new("k1");
        prop_assert!(verify(&token, &signer).is_err());
        prop_assert!(verify(&signer.sign_text(&header, &claims), &signer).is_err());
    }

    #[test]
    fn ca_63_a_claim_of_any_value_is_refused_or_keeps_its_meaning(
        name in prop_oneof![Just("sub"), Just("aud"), Just("exp"), Just("nbf"), Just("iat")],
        number in any::<f64>(), text in "\\PC{0,12}",
    ) {
        for value in [json!(number), json!(text), json!([text]), json!({"a": text})] {
            if let Ok(proven) = with_claims(&json!({ name: value })) {
                prop_assert!(proven.expires_at + LEEWAY > now());
                prop_assert!(proven.audience.contains(&"bank".to_owned()));
                prop_assert_eq!(proven.id.trust_domain().as_str(), "td");
            }
        }
    }
}
