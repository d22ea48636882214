//! An authority in files above ours: chains, what is refused, how long it lives, what happens when the files are gone, and how a
//! root is replaced.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use base64::Engine as _;
use mesh_identity::test_util::{Made, Spec};
use mesh_runtime::errors::Coded;

use super::profile::pem;
use super::*;

const DOMAIN: &str = "example.test";

/// Files of an upstream authority, a store, and what was asked of them.
struct Upstream {
    folder: TempDir,
    stores: Stores,
}

fn certificates(all: &[&Made]) -> String {
    all.iter().map(|made| pem(&made.der)).collect()
}

impl Upstream {
    /// The first certificate of the chain signs, with its own key.
    fn new(chain: &[&Made], bundle: &[&Made]) -> Self {
        let upstream = Self {
            folder: TempDir::new().expect("a folder"),
            stores: Stores::memory(&domain()),
        };
        upstream.put(chain, bundle);
        upstream
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, chain: &[&Made], bundle: &[&Made]) {
        let key = base64::engine::general_purpose::STANDARD.encode(chain[0].key_pkcs8());
        let key = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
        fs::write(self.path("ca.key"), key).expect("written");
        fs::set_permissions(self.path("ca.key"), Permissions::from_mode(0o600)).expect("set");
        fs::write(self.path("ca.pem"), certificates(chain)).expect("written");
        fs::write(self.path("roots.pem"), certificates(bundle)).expect("written");
    }

    fn settings(&self) -> AuthoritySettings {
        let roots = self.path("roots.pem");
        let named = fs::read(&roots).is_ok_and(|text| !text.is_empty());
        AuthoritySettings {
            upstream: Some(UpstreamAuthority::Disk(DiskUpstream {
                certificate: self.path("ca.pem"),
                key: self.path("ca.key"),
                bundle: named.then_some(roots),
            })),
            ..settings(self.folder.path())
        }
    }

    async fn try_open(&self, now: SystemTime) -> Result<Arc<Authority>, AuthorityError> {
        Authority::open(self.settings(), self.stores.journal.clone(), now).await
    }

    async fn open(&self, now: SystemTime) -> Arc<Authority> {
        self.try_open(now).await.expect("opened")
    }
}

fn sign(authority: &Authority, now: SystemTime) -> SignedLeaf {
    let leaf = authority.sign_leaf(&template("/pay"), &spki(), now);
    leaf.expect("signed")
}

/// Roots of the bundle and whether each is tainted.
fn roots(authority: &Authority) -> Vec<(String, bool)> {
    let bundle = authority.bundle().borrow().to_bundle().expect("a bundle");
    let roots = bundle.x509_authorities().iter();
    roots
        .map(|root| (root.subject_key_id().to_owned(), root.is_tainted()))
        .collect()
}

fn id(root: &Made) -> String {
    root.authority().subject_key_id().to_owned()
}

fn authority(name: &str) -> Spec {
    Spec::authority(DOMAIN, name)
}

#[tokio::test]
async fn ours_is_an_intermediate_whose_chains_peers_and_openssl_accept_below_the_root_of_the_files()
{
    let root = Made::root(DOMAIN);
    let between = root.intermediate(DOMAIN, "between");
    for (chain, bundle, length) in [
        (&[&root][..], &[][..], 2),
        (&[&root], &[&root], 2),
        (&[&between], &[&root], 3),
        (&[&between, &root], &[], 3),
    ] {
        let upstream = Upstream::new(chain, bundle);
        let authority = upstream.open(at(0)).await;
        assert_eq!(roots(&authority), [(id(&root), false)]);
        let status = authority.status().borrow()[0].clone();
        assert_eq!(status.upstream_id, Some(id(&root)));
        let leaf = sign(&authority, at(1));
        assert_eq!(leaf.chain.len(), length, "the root is not shown");
        assert_eq!(
            (&leaf.authority_id, &leaf.root_id),
            (&status.authority_id, &id(&root))
        );
        assert!(verified(&leaf, &bundle_of(&authority), at(1)));

        let file = |name: &str, ders: &[CertificateDer<'_>]| {
            let text: String = ders.iter().map(|der| pem(der)).collect();
            fs::write(upstream.path(name), text).expect("written");
            upstream.path(name)
        };
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-x509_strict", "-attime", "1800000002", "-CAfile"]);
        verify.arg(file("root.pem", std::slice::from_ref(&root.der)));
        verify
            .arg("-untrusted")
            .arg(file("above.pem", &leaf.chain[1..]));
        match verify.arg(file("leaf.pem", &leaf.chain[..1])).output() {
            Ok(told) => assert!(told.status.success(), "{told:?}"),
            Err(_) => println!("skipped: there is no openssl on this machine"),
        }
    }
}

#[tokio::test]
async fn files_that_cannot_sign_for_us_are_refused_each_with_its_own_reason_and_nothing_is_stored()
{
    let root = Made::root(DOMAIN);
    let other = Made::root(DOMAIN);
    let long_ago = |spec: Spec| spec.valid(at(0) - LIFE * 2, at(0) - LIFE);
    let expired = Made::root_with(long_ago(authority("expired")));
    let foreign = Made::root("other.test");
    let leaf = root.leaf("spiffe://example.test/web");
    let without_room = Made::root_with(Spec {
        path_len: Some(0),
        ..authority("without room")
    });
    let below_it = without_room.intermediate(DOMAIN, "below");
    let ending = Made::root_with(authority("ending").valid(at(0) - LIFE, at(5)));
    let anonymous = Made::root_with(Spec {
        key_ids: false,
        ..authority("anonymous")
    });
    let cases: [(&str, &[&Made], &[&Made], &str); 10] = [
        ("an expired root", &[&expired], &[], "FNL1066"),
        (
            "an intermediate below an expired root",
            &[&expired.intermediate(DOMAIN, "i")],
            &[&expired],
            "FNL1066",
        ),
        (
            "an expired intermediate",
            &[&root.sign(long_ago(authority("i")))],
            &[&root],
            "FNL1066",
        ),
        (
            "a root of another trust domain",
            &[&foreign],
            &[],
            "FNL1066",
        ),
        (
            "an intermediate of another trust domain",
            &[&root.intermediate("other.test", "i")],
            &[&root],
            "FNL1066",
        ),
        (
            "no room below a path length",
            &[&below_it],
            &[&without_room],
            "FNL1066",
        ),
        ("a leaf", &[&leaf], &[&root], "FNL1066"),
        (
            "another root than the one above",
            &[&root.intermediate(DOMAIN, "i")],
            &[&other],
            "FNL1066",
        ),
        ("an end in five seconds", &[&ending], &[], "FNL1066"),
        (
            "no root at all",
            &[&root.intermediate(DOMAIN, "i")],
            &[],
            "FNL1064",
        ),
    ];
    for (what, chain, bundle, code) in cases {
        let upstream = Upstream::new(chain, bundle);
        let refused = upstream.try_open(at(0)).await.map(|_| ());
        let refused = refused.expect_err(what);
        assert!(
            matches!(refused, AuthorityError::Upstream(_)),
            "{what}: {refused:?}"
        );
        assert_eq!(refused.code(), code, "{what}: {refused:?}");
        assert_eq!(upstream.stores.journal.read().await.expect("read"), None);
    }
    let spoilt = async |spoil: &dyn Fn(&Upstream)| {
        let upstream = Upstream::new(&[&root], &[]);
        spoil(&upstream);
        let refused = upstream.try_open(at(0)).await.map(|_| ());
        refused.expect_err("refused").code()
    };
    let write = |upstream: &Upstream, name: &str, text: &str| {
        fs::write(upstream.path(name), text).expect("written");
    };
    let mode = |upstream: &Upstream, mode| {
        fs::set_permissions(upstream.path("ca.key"), Permissions::from_mode(mode)).expect("set");
    };
    assert_eq!(
        spoilt(&|u| fs::remove_file(u.path("ca.key")).expect("removed")).await,
        "FNL1063"
    );
    assert_eq!(
        spoilt(&|u| fs::remove_file(u.path("ca.pem")).expect("removed")).await,
        "FNL1063"
    );
    assert_eq!(spoilt(&|u| write(u, "ca.pem", "no PEM")).await, "FNL1064");
    assert_eq!(spoilt(&|u| write(u, "ca.key", "no PEM")).await, "FNL1064");
    assert_eq!(spoilt(&|u| u.put(&[&anonymous], &[])).await, "FNL1064");
    assert_eq!(
        spoilt(&|u| write(u, "ca.pem", &certificates(&[&other]))).await,
        "FNL1065"
    );
    for open in [0o644, 0o604, 0o620] {
        assert_eq!(spoilt(&|u| mode(u, open)).await, "FNL1064", "{open:o}");
    }
    let upstream = Upstream::new(&[&root], &[]);
    mode(&upstream, 0o440);
    upstream.open(at(0)).await;
}

#[tokio::test]
async fn ca_22_an_authority_does_not_outlive_what_is_above_it() {
    let ending = Made::root_with(authority("ending").valid(at(0) - LIFE, at(300)));
    let upstream = Upstream::new(&[&ending.intermediate(DOMAIN, "i")], &[&ending]);
    let authority = upstream.open(at(0)).await;
    assert_eq!(authority.status().borrow()[0].not_after, at(300));
    let long = LeafTemplate {
        ttl: LIFE,
        ..template("/pay")
    };
    let leaf = authority.sign_leaf(&long, &spki(), at(0)).expect("signed");
    assert_eq!(leaf.not_after, at(300));
}

#[tokio::test]
async fn ca_21_the_keys_above_are_never_certified_as_leaves() {
    let root = Made::root(DOMAIN);
    let between = root.intermediate(DOMAIN, "between");
    let authority = Upstream::new(&[&between], &[&root]).open(at(0)).await;
    for key in [root.spki(), between.spki()] {
        let refused = authority.sign_leaf(&template("/pay"), &key, at(0));
        assert_eq!(refused.unwrap_err(), SignError::OwnKey);
    }
}

#[tokio::test]
async fn ca_55_while_the_files_are_gone_what_is_active_signs_on_and_the_alarm_comes_at_a_half_and_at_a_sixth()
 {
    let root = Made::root(DOMAIN);
    let upstream = Upstream::new(&[&root], &[]);
    let authority = upstream.open(at(0)).await;
    let first = sign(&authority, at(0)).authority_id;
    fs::remove_file(upstream.path("ca.key")).expect("removed");
    assert_eq!(authority.overdue(at(290)).await, []);
    for second in [301, 400, 501, 590] {
        let refused = authority.advance(at(second)).await.unwrap_err();
        assert_eq!(refused.code(), "FNL1063");
        assert_eq!(sign(&authority, at(second)).authority_id, first);
        let [overdue] = &authority.overdue(at(second)).await[..] else {
            panic!("one is overdue")
        };
        assert_eq!((overdue.kind, overdue.ends), (AuthorityKind::X509, at(600)));
        assert_eq!(overdue.urgent, second > 500, "at {second}");
    }
    // The other kind is not held up, neither now nor at a restart.
    let jwt = states(&authority, AuthorityKind::Jwt);
    assert_eq!(jwt, [SlotState::Old, SlotState::Active]);
    let authority = upstream.open(at(591)).await;
    assert_eq!(sign(&authority, at(591)).authority_id, first);
    assert!(
        upstream.try_open(at(601)).await.is_err(),
        "nothing is left to sign with"
    );

    upstream.put(&[&root], &[]);
    authority.advance(at(595)).await.expect("prepared");
    assert_eq!(authority.overdue(at(595)).await, []);
    authority.advance(at(601)).await.expect("activated");
    let second = sign(&authority, at(602));
    assert_ne!(second.authority_id, first);
    assert!(verified(&second, &bundle_of(&authority), at(602)));
}

#[tokio::test]
async fn ca_52_ca_53_a_root_is_replaced_in_the_files_tainted_and_revoked_and_each_lasts() {
    let (first, second) = (Made::root(DOMAIN), Made::root(DOMAIN));
    let upstream = Upstream::new(&[&first], &[&first]);
    let authority = upstream.open(at(0)).await;
    let before = sign(&authority, at(0));
    // Both roots are in the file, as on the day of a change.
    let below = second.intermediate(DOMAIN, "below");
    upstream.put(&[&below], &[&first, &second]);
    let prepared = authority.prepare(AuthorityKind::X509, at(1)).await;
    let prepared = prepared.expect("prepared");
    assert_eq!(prepared.upstream_id, Some(id(&second)));
    let (old, new) = (id(&first), id(&second));
    assert_eq!(
        roots(&authority),
        [(old.clone(), false), (new.clone(), false)]
    );

    for (root, code) in [
        (&*old, "FNL1038"),
        (&new, "FNL1038"),
        ("00", "FNL1037"),
        ("", "FNL1037"),
    ] {
        let refused = authority.taint_upstream(root).await.unwrap_err();
        assert_eq!(refused.code(), code, "{root}: {refused}");
    }
    let activated = authority
        .activate(AuthorityKind::X509, &prepared.authority_id)
        .await;
    activated.expect("activated");
    let after = sign(&authority, at(2));
    let local = authority
        .taint(AuthorityKind::X509, &before.authority_id)
        .await;
    assert!(matches!(local, Err(TurnError::UpstreamSigns)));
    let untainted = authority.revoke_upstream(&old).await;
    assert!(matches!(untainted, Err(TurnError::NotTainted)));

    authority.taint_upstream(&old).await.expect("tainted");
    assert_eq!(
        roots(&authority),
        [(old.clone(), true), (new.clone(), false)]
    );
    let again = authority.taint_upstream(&old).await;
    assert!(matches!(again, Err(TurnError::TaintedBefore)));
    let authority = upstream.open(at(3)).await;
    let tainted = |leaf: &SignedLeaf| {
        let proven = verify_x509_svid(&leaf.chain, &bundle_of(&authority), at(3));
        proven.expect("it still verifies").authority_tainted
    };
    assert!(tainted(&before) && !tainted(&after));

    authority.revoke_upstream(&old).await.expect("revoked");
    let authority = upstream.open(at(4)).await;
    assert_eq!(roots(&authority), [(new, false)]);
    let bundles = bundle_of(&authority);
    assert!(!verified(&before, &bundles, at(4)) && verified(&after, &bundles, at(4)));
    assert!(verified(&sign(&authority, at(4)), &bundles, at(4)));
}

#[tokio::test]
async fn an_authority_that_signed_itself_gives_way_to_one_below_the_files_and_can_be_tainted() {
    let root = Made::root(DOMAIN);
    let upstream = Upstream::new(&[&root], &[]);
    let alone = AuthoritySettings {
        upstream: None,
        ..upstream.settings()
    };
    let itself = Authority::open(alone, upstream.stores.journal.clone(), at(0)).await;
    let before = sign(&itself.expect("opened"), at(0));
    assert_eq!(before.authority_id, before.root_id);
    let authority = upstream.open(at(1)).await;
    assert_eq!(sign(&authority, at(1)).authority_id, before.authority_id);
    let prepared = authority.prepare(AuthorityKind::X509, at(2)).await;
    let prepared = prepared.expect("prepared").authority_id;
    let activated = authority.activate(AuthorityKind::X509, &prepared).await;
    activated.expect("activated");
    authority
        .taint_upstream(&before.root_id)
        .await
        .expect("tainted");
    assert_eq!(
        roots(&authority),
        [(before.root_id.clone(), true), (id(&root), false)]
    );
    authority
        .revoke_upstream(&before.root_id)
        .await
        .expect("revoked");
    assert_eq!(roots(&authority), [(id(&root), false)]);
}

#[tokio::test]
async fn a_journal_from_before_there_was_anything_above_is_read() {
    let rig = Rig::new().await;
    let mut journal = rig
        .stores
        .journal
        .read()
        .await
        .expect("read")
        .expect("written");
    // What was added is the list of what is above: one authority, nothing above it.
    assert!(journal.ends_with(&[1, 0]));
    journal.truncate(journal.len() - 2);
    journal[0] = 2;
    let content = rig
        .authority
        .slots
        .lock()
        .await
        .content(&settings(rig.folder.path()));
    rig.stores
        .journal
        .write(journal, content)
        .await
        .expect("written");
    let again = rig.open_again(at(1)).await.expect("opened");
    assert_eq!(*again.status().borrow(), *rig.authority.status().borrow());
}
