//! Authorities of other kinds than the usual one: what they sign verifies here and by openssl, and they live side by side.

use std::fs;
use std::process::Command;

use mesh_identity::jwt::verify_jwt_svid;

use super::profile::pem;
use super::*;

const BY_P256: &str = "1.2.840.10045.4.3.2";
const BY_P384: &str = "1.2.840.10045.4.3.3";
const BY_RSA: &str = "1.2.840.113549.1.1.11";

async fn open(rig: &Rig, kind: KeyType, now: SystemTime) -> Arc<Authority> {
    let mut settings = settings(rig.folder.path());
    settings.key_types = KeyTypes {
        x509: kind,
        jwt: kind,
    };
    let opened = Authority::open(settings, rig.stores.journal.clone(), now).await;
    opened.expect("opened")
}

fn unopened() -> (TempDir, Stores) {
    (TempDir::new().expect("a folder"), Stores::memory(&domain()))
}

fn signature_algorithm(leaf: &SignedLeaf) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.chain[0]).expect("a certificate");
    parsed.signature_algorithm.algorithm.to_id_string()
}

fn token(authority: &Authority, now: SystemTime) -> SignedToken {
    let template = TokenTemplate {
        spiffe_id: template("/pay").spiffe_id,
        audience: vec!["bank".into()],
        ttl: Duration::from_secs(60),
        with_token_id: false,
    };
    authority.sign_token(&template, now).expect("signed")
}

/// `alg` of a token that verifies.
fn algorithm_of(token: &SignedToken, bundles: &BundleSet, now: SystemTime) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let text = token.token.expose();
    verify_jwt_svid(text, bundles, &["bank"], now).expect("it verifies");
    let header = text.split('.').next().expect("a header");
    let header = URL_SAFE_NO_PAD.decode(header).expect("base64");
    let header: serde_json::Value = serde_json::from_slice(&header).expect("JSON");
    header["alg"].as_str().expect("a name").to_owned()
}

/// What openssl says of a leaf below a root, strictly; `None` if it is not on this machine.
fn openssl_accepts(folder: &Path, root: &[u8], leaf: &[u8]) -> Option<bool> {
    let file = |name: &str, der: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, pem(der)).expect("written");
        path
    };
    let (root, leaf) = (file("root.pem", root), file("leaf.pem", leaf));
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-x509_strict", "-check_ss_sig"]);
    verify.args(["-attime", "1800000001", "-CAfile"]);
    let verdict = verify.arg(root).arg(leaf).output().ok()?;
    Some(verdict.status.success())
}

#[tokio::test]
async fn authorities_of_every_kind_sign_certificates_and_tokens_that_all_verifiers_accept() {
    for (kind, by, alg) in [
        (KeyType::EcP256, BY_P256, "ES256"),
        (KeyType::EcP384, BY_P384, "ES384"),
        (KeyType::Rsa2048, BY_RSA, "RS256"),
        (KeyType::Rsa4096, BY_RSA, "RS256"),
    ] {
        let (folder, stores) = unopened();
        let mut settings = settings(folder.path());
        settings.key_types = KeyTypes {
            x509: kind,
            jwt: kind,
        };
        let authority = Authority::open(settings, stores.journal.clone(), at(0)).await;
        let authority = authority.expect("opened");
        let bundles = bundle_of(&authority);
        let leaf = authority.sign_leaf(&template("/pay"), &spki(), at(1));
        let leaf = leaf.expect("signed");
        assert_eq!(signature_algorithm(&leaf), by);
        assert!(verified(&leaf, &bundles, at(1)), "{kind:?}");
        assert_eq!(
            algorithm_of(&token(&authority, at(1)), &bundles, at(1)),
            alg
        );
        let root = authority.bundle().borrow().x509_authorities[0].der.clone();
        match openssl_accepts(folder.path(), &root, &leaf.chain[0]) {
            Some(accepted) => assert!(accepted, "openssl refuses {kind:?}"),
            None => println!("skipped: there is no openssl on this machine"),
        }
    }
}

#[tokio::test]
async fn another_configured_kind_is_that_of_the_next_authority_and_all_live_in_one_journal() {
    let rig = Rig::new().await;
    let first = rig.sign("/pay", at(1));
    let first_token = token(&rig.authority, at(250));

    // What exists stays what it is; the next one is of the new kind.
    let authority = open(&rig, KeyType::EcP384, at(240)).await;
    let second = authority.sign_leaf(&template("/pay"), &spki(), at(250));
    assert_eq!(signature_algorithm(&second.expect("signed")), BY_P256);
    authority.advance(at(301)).await.expect("prepared");
    assert_eq!(authority.status().borrow().len(), 4);

    // A prepared one too, until an operator replaces it or it takes its turn.
    let authority = open(&rig, KeyType::Rsa2048, at(310)).await;
    authority.advance(at(501)).await.expect("activated");
    let third = authority.sign_leaf(&template("/pay"), &spki(), at(501));
    let third = third.expect("signed");
    assert_eq!(signature_algorithm(&third), BY_P384);
    let prepared = authority.prepare(AuthorityKind::X509, at(502)).await;
    let prepared = prepared.expect("prepared").authority_id;
    let activated = authority.activate(AuthorityKind::X509, &prepared).await;
    activated.expect("activated");

    let again = open(&rig, KeyType::EcP256, at(510)).await;
    assert_eq!(*again.bundle().borrow(), *authority.bundle().borrow());
    let fourth = again.sign_leaf(&template("/pay"), &spki(), at(510));
    let fourth = fourth.expect("signed");
    assert_eq!(signature_algorithm(&fourth), BY_RSA);
    let bundles = bundle_of(&again);
    assert!(verified(&third, &bundles, at(510)) && verified(&fourth, &bundles, at(510)));
    let still = at(55);
    assert!(verified(&first, &bundles, still));
    assert_eq!(algorithm_of(&first_token, &bundles, at(300)), "ES256");
    assert_eq!(
        algorithm_of(&token(&again, at(510)), &bundles, at(510)),
        "ES384"
    );
}
