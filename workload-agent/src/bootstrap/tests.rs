//! Tokens and bundles.

use mesh_identity::test_util::Made;

use super::*;

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
