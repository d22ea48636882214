//! What is written comes back whole or not at all.

use std::os::unix::fs::PermissionsExt;

use mesh_identity::{
    BundleSet, Entry, Selector, SpiffeId, TrustDomain,
    test_util::{self, Made, jwt::JwtSigner},
};

use super::*;
use crate::{
    identity::{AgentIdentity, Proven},
    vault::{HeldSvid, Roster, Standing, SvidKey, Vault},
};

const AGENT: &str = "spiffe://dev.test/spire/agent/join_token/x";

fn own() -> TrustDomain {
    "dev.test".parse().unwrap()
}

fn agent() -> SpiffeId {
    AGENT.parse().unwrap()
}

fn open(dir: &Path) -> StateDir {
    StateDir::open(dir, None).unwrap()
}

fn identity(root: &Made) -> Proven {
    let leaf = root.leaf(AGENT);
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

fn keep_identity(state: &StateDir, proven: &Proven) {
    state
        .keep_identity(&proven.identity, &proven.bundle)
        .unwrap();
}

fn entry(id: &str, path: &str) -> Arc<Entry> {
    Arc::new(Entry {
        id: id.parse().unwrap(),
        spiffe_id: format!("spiffe://dev.test{path}").parse().unwrap(),
        parent_id: agent(),
        selectors: ["unix:uid:1000".parse::<Selector>().unwrap()].into(),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: ["far.test".parse().unwrap()].into(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: vec!["pay.test".parse().unwrap()],
        revision: 3,
        store_svid: false,
        hint: "a".into(),
        created_at: test_util::now(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    })
}

fn held(entry: &Arc<Entry>, root: &Made) -> HeldSvid {
    let leaf = root.leaf(entry.spiffe_id.as_str());
    HeldSvid {
        entry: Arc::clone(entry),
        svid: leaf.svid(),
        key: SvidKey::from_pkcs8(leaf.key_pkcs8()),
        renew_at: test_util::now(),
    }
}

/// A vault with one entry, its SVID, the own bundle and a foreign one; and all of it kept.
fn kept(state: &StateDir, root: &Made, tainted: bool) -> Vault {
    let own_bundle = root.bundle("dev.test").with_sequence(7);
    let roots = own_bundle.x509_authorities().to_vec().into_iter();
    let own_bundle = mesh_identity::Bundle::new(own(), roots.map(|r| r.with_tainted(tainted)))
        .unwrap()
        .with_sequence(7)
        .with_jwt_authorities([JwtSigner::new("k").authority().with_tainted(tainted)])
        .unwrap();
    let bundles: BundleSet = [own_bundle, Made::root("far.test").bundle("far.test")]
        .into_iter()
        .collect();
    let (pay, vault) = (entry("pay", "/pay"), Vault::new(own()));
    vault.replace(Roster::new([Arc::clone(&pay)]), bundles, test_util::now());
    vault.keep(vec![held(&pay, root)]);
    state.keep_node(&agent(), &vault.view()).unwrap();
    vault
}

#[test]
fn a_kept_identity_comes_back_whole() {
    mesh_tls::install_default_provider();
    let dir = tempfile::tempdir().unwrap();
    let state = open(&dir.path().join("data"));
    assert!(state.identity(&own()).unwrap().is_none());
    let proven = identity(&Made::root("dev.test"));
    keep_identity(&state, &proven);
    // Another run reads the same key.
    let state = open(&dir.path().join("data"));
    let back = state.identity(&own()).unwrap().unwrap();
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
fn ag_23_the_files_are_private_and_one_that_is_not_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let state = open(&data);
    let root = Made::root("dev.test");
    keep_identity(&state, &identity(&root));
    kept(&state, &root, false);
    for name in ["agent-identity.sealed", "node-state.sealed", "sealing.key"] {
        let mode = fs::metadata(data.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o640)).unwrap();
    }
    assert!(matches!(
        state.identity(&own()),
        Err(StateError::NotPrivate { .. })
    ));
    assert!(state.node(&own(), &agent(), test_util::now()).is_none());
    assert!(matches!(
        StateDir::open(&data, None),
        Err(StateError::NotPrivate { .. })
    ));
    let others = dir.path().join("open");
    fs::create_dir(&others).unwrap();
    fs::set_permissions(&others, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        StateDir::open(&others, None),
        Err(StateError::NotPrivate { .. })
    ));
}

#[test]
fn no_key_lies_readable_on_the_disk() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let dir = tempfile::tempdir().unwrap();
    let state = open(dir.path());
    let (root, vault) = (Made::root("dev.test"), Vault::new(own()));
    let pay = entry("pay", "/pay");
    vault.replace(
        Roster::new([Arc::clone(&pay)]),
        [root.bundle("dev.test")].into_iter().collect(),
        test_util::now(),
    );
    let svid = held(&pay, &root);
    let key = svid.key.expose().to_vec();
    let text = STANDARD.encode(&key).into_bytes();
    vault.keep(vec![svid]);
    state.keep_node(&agent(), &vault.view()).unwrap();
    for file in fs::read_dir(dir.path()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        for secret in [&key[key.len() - 40..], &text[text.len() - 40..], b"/pay"] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret));
        }
    }
}

#[test]
fn what_is_damaged_foreign_or_sealed_elsewhere_is_set_aside_and_counts_as_absent() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (state, root) = (open(dir.path()), Made::root("dev.test"));
    let file = |name: &str| dir.path().join(name);
    let refused = |name: &str, how: &str| {
        assert!(!file(name).exists(), "{name} {how}");
        fs::remove_file(file(&format!("{name}.refused"))).unwrap();
    };
    keep_identity(&state, &identity(&root));
    kept(&state, &root, false);
    let node = |state: &StateDir| state.node(&own(), &agent(), test_util::now());
    for name in ["agent-identity.sealed", "node-state.sealed"] {
        let whole = fs::read(file(name)).unwrap();
        let absent = |how: &str| {
            match name {
                "node-state.sealed" => assert!(node(&state).is_none(), "{how}"),
                _ => assert!(state.identity(&own()).unwrap().is_none(), "{how}"),
            }
            refused(name, how);
        };
        for end in [0, 1, 30, whole.len() / 2, whole.len() - 1] {
            fs::write(file(name), &whole[..end]).unwrap();
            fs::set_permissions(file(name), fs::Permissions::from_mode(0o600)).unwrap();
            absent(&format!("cut at {end}"));
        }
        for at in [0, 35, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(file(name), bytes).unwrap();
            fs::set_permissions(file(name), fs::Permissions::from_mode(0o600)).unwrap();
            absent(&format!("flipped at {at}"));
        }
        // A file of another agent's directory.
        let other = open(elsewhere.path());
        keep_identity(&other, &identity(&root));
        kept(&other, &root, false);
        fs::copy(elsewhere.path().join(name), file(name)).unwrap();
        absent("from elsewhere");
        // One file in the place of the other.
        keep_identity(&state, &identity(&root));
        kept(&state, &root, false);
        let swapped = match name {
            "node-state.sealed" => "agent-identity.sealed",
            _ => "node-state.sealed",
        };
        fs::copy(file(swapped), file(name)).unwrap();
        absent("in the place of the other");
    }
    keep_identity(&state, &identity(&root));
    let other = "other.test".parse().unwrap();
    assert!(state.identity(&other).unwrap().is_none());
    refused("agent-identity.sealed", "for another trust domain");
    kept(&state, &root, false);
    let another = "spiffe://dev.test/spire/agent/join_token/y"
        .parse()
        .unwrap();
    assert!(state.node(&own(), &another, test_util::now()).is_none());
    refused("node-state.sealed", "for another agent");
}

#[test]
fn a_key_that_is_none_is_set_aside_with_what_it_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let root = Made::root("dev.test");
    keep_identity(&open(dir.path()), &identity(&root));
    for bytes in [&b""[..], &[7; 31], &[7; 33]] {
        fs::write(dir.path().join(KEY_FILE), bytes).unwrap();
        let state = open(dir.path());
        assert!(state.identity(&own()).unwrap().is_none());
        keep_identity(&state, &identity(&root));
        assert!(open(dir.path()).identity(&own()).unwrap().is_some());
    }
    // A lost key is the same.
    fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
    assert!(open(dir.path()).identity(&own()).unwrap().is_none());
}

#[test]
fn the_key_may_lie_elsewhere_and_a_symlink_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, key) = (dir.path().join("data"), dir.path().join("memory.key"));
    let root = Made::root("dev.test");
    keep_identity(
        &StateDir::open(&data, Some(&key)).unwrap(),
        &identity(&root),
    );
    assert!(key.exists() && !data.join(KEY_FILE).exists());
    let linked = dir.path().join("linked.key");
    std::os::unix::fs::symlink(&key, &linked).unwrap();
    assert!(matches!(
        StateDir::open(&data, Some(&linked)),
        Err(StateError::System { .. })
    ));
}

#[test]
fn the_node_comes_back_with_entries_bundles_and_marks() {
    for tainted in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (state, root) = (open(dir.path()), Made::root("dev.test"));
        let before = kept(&state, &root, tainted).view();
        let back = state.node(&own(), &agent(), test_util::now()).unwrap();
        let vault = Vault::new(own());
        vault.restore(back, test_util::now());
        let after = vault.view();
        assert_eq!(after.bundles(), before.bundles());
        let id = "pay".parse().unwrap();
        assert_eq!(
            after.roster().unwrap().get(&id),
            before.roster().unwrap().get(&id)
        );
        let (was, is) = (before.held(&id).unwrap(), after.held(&id).unwrap());
        assert_eq!(
            (is.key.expose(), &is.svid, &is.entry),
            (was.key.expose(), &was.svid, &was.entry)
        );
        assert_eq!(after.is_distrusted(&id), tainted);
        // Served to who shows the selectors, and to nobody else.
        let who = |uid: &str| {
            let facts = [uid.parse::<Selector>().unwrap()].into();
            after.standing(&facts, test_util::now())
        };
        assert!(matches!(who("unix:uid:1000"), Standing::Ready(_)));
        assert!(matches!(who("unix:uid:1001"), Standing::NoIdentity));
    }
}

#[test]
fn what_a_peer_would_refuse_now_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (state, root) = (open(dir.path()), Made::root("dev.test"));
    let vault = kept(&state, &root, false);
    let id = "pay".parse().unwrap();
    let end = vault.view().held(&id).unwrap().svid.not_after();
    let back = state
        .node(&own(), &agent(), end + std::time::Duration::from_secs(1))
        .unwrap();
    assert_eq!((back.entries.len(), back.svids.len()), (1, 0), "expired");
    let start = vault.view().held(&id).unwrap().svid.not_before();
    let early = start - std::time::Duration::from_secs(3600);
    let back = state.node(&own(), &agent(), early).unwrap();
    assert_eq!(back.svids.len(), 0, "the clock has gone back");
    // Its authority left the bundle.
    let other = [Made::root("dev.test").bundle("dev.test")];
    let view = vault.view();
    let entries = view.roster().unwrap().iter().cloned().collect::<Vec<_>>();
    vault.replace(
        Roster::new(entries),
        other.into_iter().collect(),
        test_util::now(),
    );
    state.keep_node(&agent(), &vault.view()).unwrap();
    let back = state.node(&own(), &agent(), test_util::now()).unwrap();
    assert_eq!(back.svids.len(), 0, "distrusted");
}

#[test]
fn what_the_ca_has_said_is_not_replaced_by_what_was_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (state, root) = (open(dir.path()), Made::root("dev.test"));
    let vault = kept(&state, &root, false);
    let back = state.node(&own(), &agent(), test_util::now()).unwrap();
    vault.withdraw_all();
    vault.restore(back, test_util::now());
    assert!(vault.view().roster().unwrap().is_empty());
}
