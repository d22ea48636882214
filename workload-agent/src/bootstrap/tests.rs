//! Tokens and bundles.

use mesh_identity::{TrustDomain, test_util::Made};
use mesh_runtime::telemetry::Secret;
use serde_json::{Value, json};

use super::*;
use crate::config::X509PopOptions;

fn identity(root: &Made) -> Proven {
    let leaf = root.leaf("spiffe://dev.test/spire/agent/join_token/x");
    let identity = AgentIdentity {
        svid: leaf.svid(),
        key: Zeroizing::new(leaf.key_pkcs8()),
        reattestable: true,
    };
    Proven {
        identity,
        bundle: root.bundle("dev.test").with_sequence(7),
    }
}

fn own() -> TrustDomain {
    "dev.test".parse().unwrap()
}

#[test]
fn debug_output_shows_no_key_and_no_token() {
    let proven = identity(&Made::root("dev.test"));
    assert!(!format!("{:?}", proven.identity).contains("key"));
    let proof = Proof::JoinToken(Secret::new("s3cret".into()));
    assert!(!format!("{proof:?}").contains("s3cret"));
}

#[test]
fn a_token_file_holds_exactly_one_word() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let proof = Proof::JoinTokenFile(path.clone());
    assert!(matches!(
        proof.evidence(),
        Err(BootstrapError::TokenFile { .. })
    ));
    for (text, good) in [
        ("abc\n", true),
        ("  abc  ", true),
        ("", false),
        ("\n", false),
        ("a b", false),
        ("a\nb", false),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(proof.evidence().is_ok(), good, "{text:?}");
    }
}

#[test]
fn the_bundle_is_read_in_the_form_that_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Made::root("dev.test").bundle("dev.test");
    let path = dir.path().join("bundle");
    let options = |format| ServerOptions {
        trust_bundle: path.clone(),
        trust_bundle_format: format,
        ..Default::default()
    };
    std::fs::write(&path, bundle.to_pem()).unwrap();
    let read = read_bundle(&options(BundleFormat::Pem), &own()).unwrap();
    assert_eq!(read.x509_authorities(), bundle.x509_authorities());
    assert!(matches!(
        read_bundle(&options(BundleFormat::Spiffe), &own()),
        Err(BootstrapError::Bundle { .. })
    ));
    std::fs::write(&path, bundle.to_spiffe_json()).unwrap();
    assert!(read_bundle(&options(BundleFormat::Spiffe), &own()).is_ok());
}

/// A certificate of an outside authority with a key of this kind, in three files.
fn certificate(dir: &std::path::Path, algorithm: &'static rcgen::SignatureAlgorithm) -> Proof {
    let params = rcgen::CertificateParams::default();
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    Proof::X509Pop(X509PopOptions {
        certificate_file: file("cert.pem", certificate.pem()),
        private_key_file: file("key.pem", key.serialize_pem()),
        intermediates_file: Some(file("more.pem", certificate.pem())),
    })
}

fn fault(result: Result<Vec<u8>, BootstrapError>) -> PossessionError {
    match result {
        Err(BootstrapError::Possession(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_challenge_for_the_key_is_answered_and_nothing_else_is_signed() {
    let dir = tempfile::tempdir().unwrap();
    let proof = certificate(dir.path(), &rcgen::PKCS_ECDSA_P256_SHA256);
    let evidence = proof.evidence().unwrap();
    assert_eq!(evidence.data.r#type, "x509pop");
    let shown: Value = serde_json::from_slice(&evidence.data.payload).unwrap();
    assert_eq!(shown["certificates"].as_array().unwrap().len(), 2);
    let nonce = |length: usize| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(vec![1; length])
    };
    let ask = |challenge: Value| evidence.answer(challenge.to_string().as_bytes());
    let answered = ask(json!({ "rsa_signature": null, "ecdsa_signature": { "nonce": nonce(32) } }));
    let again = ask(json!({ "ecdsa_signature": { "nonce": nonce(32) } })).unwrap();
    let [answered, again] =
        [answered.unwrap(), again].map(|answer| serde_json::from_slice::<Value>(&answer).unwrap());
    assert!(answered["rsa_signature"].is_null());
    for part in ["nonce", "r", "s"] {
        assert!(answered["ecdsa_signature"][part].is_string());
        assert_ne!(
            answered["ecdsa_signature"][part],
            again["ecdsa_signature"][part]
        );
    }
    for challenge in [
        json!({}),
        json!([]),
        json!({ "rsa_signature": { "nonce": nonce(32) } }),
        json!({ "ecdsa_signature": { "nonce": nonce(31) } }),
        json!({ "ecdsa_signature": { "nonce": "%" } }),
        json!({ "ecdsa_signature": { "nonce": nonce(32) }, "rsa_signature": { "nonce": nonce(32) } }),
    ] {
        assert!(matches!(fault(ask(challenge)), PossessionError::Challenge));
    }
    let token = Proof::JoinToken(Secret::new("s3cret".into()));
    let refused = token.evidence().unwrap().answer(b"{}");
    assert!(matches!(refused, Err(BootstrapError::Challenge)));
}

#[test]
fn a_certificate_that_proves_nothing_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let p384 = certificate(dir.path(), &rcgen::PKCS_ECDSA_P384_SHA384);
    let challenge =
        json!({ "ecdsa_signature": { "nonce": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" } });
    let refused = p384
        .evidence()
        .unwrap()
        .answer(challenge.to_string().as_bytes());
    assert!(matches!(fault(refused), PossessionError::KeyKind));

    let proof = certificate(dir.path(), &rcgen::PKCS_ECDSA_P256_SHA256);
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(dir.path().join("key.pem"), other).unwrap();
    let refused = proof.evidence().map(|_| Vec::new());
    assert!(
        matches!(fault(refused), PossessionError::Unusable(_)),
        "another's key"
    );
    std::fs::remove_file(dir.path().join("key.pem")).unwrap();
    let refused = proof.evidence().map(|_| Vec::new());
    let PossessionError::File { path, .. } = fault(refused) else {
        panic!("the file is gone");
    };
    assert!(path.ends_with("key.pem"));
}
