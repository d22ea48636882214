//! Tokens, bundles and the file that keeps the identity.

use std::os::unix::fs::PermissionsExt;

use mesh_identity::test_util::{self, Made};

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
fn a_kept_identity_comes_back_whole() {
    mesh_tls::install_default_provider();
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(&dir.path().join("data")).unwrap();
    assert!(state.load(&own()).unwrap().is_none());
    let proven = identity(&Made::root("dev.test"));
    state.save(&proven.identity, &proven.bundle).unwrap();
    let back = state.load(&own()).unwrap().unwrap();
    assert_eq!(
        (back.identity.svid.clone(), back.bundle.clone()),
        (proven.identity.svid.clone(), proven.bundle.clone())
    );
    assert_eq!(*back.identity.key, *proven.identity.key);
    assert!(back.identity.reattestable);
    let mut bundles = BundleSet::new();
    bundles.insert(back.bundle);
    back.identity.for_tls(bundles, test_util::now()).unwrap();
}

#[test]
fn ag_23_the_file_is_private_and_one_that_is_not_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(&dir.path().join("data")).unwrap();
    let proven = identity(&Made::root("dev.test"));
    state.save(&proven.identity, &proven.bundle).unwrap();
    let file = dir.path().join("data/agent-identity.json");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        state.load(&own()),
        Err(StateError::NotPrivate { .. })
    ));
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        StateDir::open(&open),
        Err(StateError::NotPrivate { .. })
    ));
}

#[test]
fn a_damaged_or_foreign_file_means_attesting_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let proven = identity(&Made::root("dev.test"));
    state.save(&proven.identity, &proven.bundle).unwrap();
    let file = dir.path().join("agent-identity.json");
    let whole = std::fs::read(&file).unwrap();
    for end in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..end]).unwrap();
        assert!(state.load(&own()).unwrap().is_none(), "cut at {end}");
    }
    std::fs::write(&file, &whole).unwrap();
    assert!(
        state
            .load(&"other.test".parse().unwrap())
            .unwrap()
            .is_none()
    );
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
