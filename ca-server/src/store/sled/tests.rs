//! The embedded store: the suite of all stores, and what only a store on disk can get wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::conformance::{self, create, domain, entry};
use crate::store::{BundleContent, CreatedEntry, JtiUse, NewToken, StoredBundle, Stores, Users};

fn place() -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("store");
    (folder, path)
}

async fn open_at(path: &Path) -> Stores {
    Stores::open_sled(path, &domain(), SledSettings::default())
        .await
        .expect("opened")
}

async fn refusal(path: &Path) -> StoreError {
    let settings = SledSettings {
        lock_wait: Duration::from_millis(100),
        ..SledSettings::default()
    };
    match Stores::open_sled(path, &domain(), settings).await {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

conformance::suite!(async || {
    let (folder, path) = place();
    (open_at(&path).await, folder)
});

#[tokio::test]
async fn everything_is_there_after_opening_again() {
    let (_folder, path) = place();
    let stores = open_at(&path).await;
    let a = create(&stores, "a").await;
    create(&stores, "b").await;
    stores.entries.delete(&a.id).await.expect("deleted");
    stores
        .nodes
        .attest(conformance::node("n"))
        .await
        .expect("stored");
    let content = BundleContent {
        x509_authorities: vec![vec![1; 700].into()],
        jwt_authorities: Vec::new(),
        refresh_hint: Duration::from_secs(1),
    };
    stores
        .journal
        .write(vec![7; 9_000], content)
        .await
        .expect("written");
    let (before, epoch) = (
        stores.changes.everything().await.expect("read"),
        stores.changes.epoch().to_owned(),
    );
    let since = stores.changes.since(1).await.expect("read");
    drop(stores);
    let stores = open_at(&path).await;
    assert_eq!(stores.changes.everything().await.expect("read"), before);
    assert_eq!(stores.changes.since(1).await.expect("read"), since);
    assert_eq!(
        since.expect("known").removed_entries,
        std::slice::from_ref(&a.id)
    );
    assert_eq!(stores.changes.epoch(), epoch);
    assert_eq!(
        stores.journal.read().await.expect("read"),
        Some(vec![7; 9_000])
    );
    assert_eq!(create(&stores, "a").await.revision, before.revision + 1);
}

#[tokio::test]
async fn st_03_the_lock_of_another_process_is_waited_for_and_then_named() {
    let (_folder, path) = place();
    let stores = open_at(&path).await;
    assert!(matches!(refusal(&path).await, StoreError::Locked { .. }));
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(stores);
    };
    let (second, ()) = tokio::join!(open_at(&path), release);
    create(&second, "a").await;
}

#[tokio::test]
async fn st_05_below_the_reserve_changes_are_refused_and_removals_pass() {
    let (_folder, path) = place();
    let stores = open_at(&path).await;
    let a = create(&stores, "a").await;
    drop(stores);
    let settings = SledSettings {
        free_space_reserve: u64::MAX,
        ..SledSettings::default()
    };
    let stores = Stores::open_sled(&path, &domain(), settings)
        .await
        .expect("opened");
    let refused = stores.entries.create(entry("b")).await;
    assert!(matches!(refused, Err(StoreError::NearlyFull { .. })));
    assert_eq!(*stores.changes.health().borrow(), StoreHealth::NearlyFull);
    assert_eq!(
        stores.entries.list().await.expect("reads go on"),
        std::slice::from_ref(&a)
    );
    assert!(
        stores
            .entries
            .delete(&a.id)
            .await
            .expect("removed")
            .is_some()
    );
}

#[tokio::test]
async fn st_09_a_truncated_empty_or_misplaced_store_is_refused_and_left_alone() {
    let (folder, path) = place();
    let stores = open_at(&path).await;
    create(&stores, "a").await;
    drop(stores);

    fs::write(path.join("db"), b"").expect("truncated");
    assert!(matches!(refusal(&path).await, StoreError::Unusable { .. }));
    assert_eq!(fs::read(path.join("db")).expect("readable"), b"");

    fs::remove_file(path.join("db")).expect("removed");
    assert!(matches!(refusal(&path).await, StoreError::Unusable { .. }));

    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("made");
    assert!(matches!(refusal(&empty).await, StoreError::Unusable { .. }));
    assert_eq!(fs::read_dir(&empty).expect("readable").count(), 0);

    let file = folder.path().join("file");
    fs::write(&file, b"x").expect("written");
    assert!(matches!(refusal(&file).await, StoreError::Unusable { .. }));

    let link = folder.path().join("link");
    symlink(&path, &link).expect("linked");
    assert!(matches!(refusal(&link).await, StoreError::Unusable { .. }));
}

#[tokio::test]
async fn st_09_the_store_of_another_trust_domain_is_refused() {
    let (_folder, path) = place();
    create(&open_at(&path).await, "a").await;
    let other = "another.test".parse().expect("a trust domain");
    let refused = Stores::open_sled(&path, &other, SledSettings::default()).await;
    assert!(matches!(
        refused.map(|_| ()),
        Err(StoreError::OtherTrustDomain { .. })
    ));
    assert_eq!(
        open_at(&path)
            .await
            .entries
            .list()
            .await
            .expect("read")
            .len(),
        1
    );
}

#[tokio::test]
async fn st_08_a_flipped_bit_is_refused_or_harmless_never_wrong_data() {
    let (folder, path) = place();
    let stores = open_at(&path).await;
    for n in 0..50 {
        create(&stores, &format!("e{n}")).await;
    }
    let good = stores.changes.everything().await.expect("read");
    drop(stores);
    let log = fs::read(path.join("db")).expect("readable");
    let used = log.iter().rposition(|byte| *byte != 0).expect("content");
    // One flip in five lies behind the content.
    let range = (used + used / 4).min(log.len());
    let (mut refused, mut right) = (0, 0);
    for round in 0..60 {
        let copy = folder.path().join(format!("copy{round}"));
        copy_folder(&path, &copy);
        let mut broken = log.clone();
        broken[range * round / 60] ^= 1 << (round % 8);
        fs::write(copy.join("db"), broken).expect("written");
        match Stores::open_sled(&copy, &domain(), SledSettings::default()).await {
            Err(_) => refused += 1,
            Ok(stores) => {
                assert_eq!(
                    stores.changes.everything().await.expect("read"),
                    good,
                    "round {round}: opened with wrong or missing data"
                );
                right += 1;
            }
        }
    }
    println!("flipped bits: {refused} refused, {right} with all data, of 60");
}

#[tokio::test]
async fn nothing_lands_in_files_that_our_sync_does_not_reach() {
    let (_folder, path) = place();
    let stores = open_at(&path).await;
    for n in 0..40_u32 {
        let content = BundleContent {
            x509_authorities: vec![n.to_be_bytes().repeat(10_000).into()],
            jwt_authorities: Vec::new(),
            refresh_hint: Duration::from_secs(1),
        };
        stores
            .journal
            .write(n.to_be_bytes().repeat(10_000), content)
            .await
            .expect("written");
        let long = mesh_identity::Entry {
            hint: "h".repeat(4_000),
            ..entry(&format!("e{n}"))
        };
        assert!(matches!(
            stores.entries.create(long).await,
            Ok(CreatedEntry::New(_))
        ));
    }
    drop(stores);
    assert_eq!(
        fs::read_dir(path.join("blobs")).expect("readable").count(),
        0
    );
}

#[derive(Clone, Debug)]
enum Call {
    Create(u8, u8),
    Update(u8, u8),
    Delete(u8),
    Attest(u8, u8),
    Ban(u8, bool),
    Evict(u8),
    Token(u8),
    Spend(u8),
    Jti(u8, u8),
    Bundle(u8, u16),
    Unbundle(u8),
    Journal(u16),
    Record(u8),
    Prune(u8),
    OpenAgain,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let few = 0_u8..4;
    let call = prop_oneof![
        4 => (few.clone(), few.clone()).prop_map(|(id, hint)| Call::Create(id, hint)),
        3 => (few.clone(), any::<u8>()).prop_map(|(id, hint)| Call::Update(id, hint)),
        2 => few.clone().prop_map(Call::Delete),
        3 => (few.clone(), few.clone()).prop_map(|(id, selector)| Call::Attest(id, selector)),
        1 => (few.clone(), any::<bool>()).prop_map(|(id, banned)| Call::Ban(id, banned)),
        1 => few.clone().prop_map(Call::Evict),
        1 => few.clone().prop_map(Call::Token),
        1 => few.clone().prop_map(Call::Spend),
        2 => (few.clone(), few.clone()).prop_map(|(jti, key)| Call::Jti(jti, key)),
        2 => (few.clone(), 0_u16..9_000).prop_map(|(id, size)| Call::Bundle(id, size)),
        1 => few.clone().prop_map(Call::Unbundle),
        2 => (0_u16..20_000).prop_map(Call::Journal),
        1 => few.clone().prop_map(Call::Record),
        1 => few.prop_map(Call::Prune),
        1 => Just(Call::OpenAgain),
    ];
    prop::collection::vec(call, 1..60)
}

/// Makes a call and tells all that it answered.
async fn make(stores: &Stores, call: &Call) -> String {
    let id = |n: &u8| conformance::id(&format!("/spire/agent/n{n}"));
    let other = |n: &u8| {
        format!("other{n}.test")
            .parse::<TrustDomain>()
            .expect("a trust domain")
    };
    match call {
        Call::Create(n, hint) => {
            let new = mesh_identity::Entry {
                hint: hint.to_string(),
                ..entry(&format!("e{n}"))
            };
            format!("{:?}", stores.entries.create(new).await)
        }
        Call::Update(n, hint) => {
            let read = stores
                .entries
                .get(&format!("e{n}").parse().expect("an id"))
                .await
                .expect("read");
            let Some(read) = read else {
                return "nothing to update".into();
            };
            let new = mesh_identity::Entry {
                hint: hint.to_string(),
                spiffe_id: conformance::id(&format!("/w{}", hint % 3)),
                ..(*read).clone()
            };
            format!("{:?}", stores.entries.update(new).await)
        }
        Call::Delete(n) => format!(
            "{:?}",
            stores
                .entries
                .delete(&format!("e{n}").parse().expect("an id"))
                .await
        ),
        Call::Attest(n, selector) => {
            let selectors = [format!("x:{selector}").parse().expect("a selector")].into();
            let node = crate::store::Node {
                selectors,
                ..conformance::node(&format!("n{n}"))
            };
            format!("{:?}", stores.nodes.attest(node).await)
        }
        Call::Ban(n, banned) => format!("{:?}", stores.nodes.set_banned(&id(n), *banned).await),
        Call::Evict(n) => format!("{:?}", stores.nodes.delete(&id(n)).await),
        Call::Token(n) => {
            let token = NewToken {
                hash: [*n; 32],
                expires_at: conformance::at(u64::from(*n)),
                agent_id: None,
            };
            format!("{:?}", stores.tokens.create(token).await)
        }
        Call::Spend(n) => format!(
            "{:?}",
            stores.tokens.spend([*n; 32], conformance::at(2)).await
        ),
        Call::Jti(jti, key) => {
            let use_ = JtiUse {
                jti: jti.to_string(),
                spki_hash: [*key; 32],
                expires_at: conformance::at(u64::from(*key)),
                holder: key.to_string(),
            };
            format!("{:?}", stores.tokens.spend_jti(use_).await)
        }
        Call::Bundle(n, size) => {
            let bundle = StoredBundle {
                trust_domain: other(n),
                x509_authorities: vec![vec![*n; usize::from(*size)].into()],
                jwt_authorities: Vec::new(),
                sequence: u64::from(*size),
                refresh_hint: None,
                revision: 0,
            };
            format!("{:?}", stores.bundles.put(bundle).await)
        }
        Call::Unbundle(n) => format!(
            "{:?}",
            stores.bundles.delete(&other(n), Users::Delete).await
        ),
        Call::Journal(size) => {
            let content = BundleContent {
                x509_authorities: vec![vec![7; usize::from(*size) / 8].into()],
                jwt_authorities: Vec::new(),
                refresh_hint: Duration::ZERO,
            };
            format!(
                "{:?}",
                stores
                    .journal
                    .write(vec![7; usize::from(*size)], content)
                    .await
            )
        }
        Call::Record(n) => {
            let records = vec![conformance::certificate(&n.to_string(), u64::from(*n))];
            format!(
                "{:?}",
                stores
                    .issued
                    .record(records)
                    .await
                    .map_err(|error| error.to_string())
            )
        }
        Call::Prune(n) => {
            let now = conformance::at(u64::from(*n));
            format!(
                "{:?} {:?}",
                stores.tokens.prune(now).await,
                stores.issued.prune(now).await
            )
        }
        Call::OpenAgain => String::new(),
    }
}

async fn state(stores: &Stores) -> String {
    let mut text = format!("{:?}", stores.changes.everything().await);
    let newest = *stores.changes.newest().borrow();
    for revision in 0..=newest {
        text += &format!("\n{:?}", stores.changes.since(revision).await);
    }
    text + &format!(
        "\n{:?} {:?}",
        stores.journal.read().await,
        stores.issued.count().await
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn st_25_the_same_calls_give_the_same_answers_on_both_stores_also_after_opening_again(calls in calls()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (_folder, path) = place();
            let memory = Stores::memory(&domain());
            let mut disk = open_at(&path).await;
            for call in &calls {
                if matches!(call, Call::OpenAgain) {
                    drop(disk);
                    disk = open_at(&path).await;
                }
                assert_eq!(make(&memory, call).await, make(&disk, call).await, "{call:?}");
            }
            let expected = state(&memory).await;
            assert_eq!(state(&disk).await, expected);
            drop(disk);
            assert_eq!(state(&open_at(&path).await).await, expected);
        });
    }
}

/// Does nothing unless it was started by the test below, on a small disk of its own.
#[tokio::test]
#[ignore = "the child process of the test below"]
async fn a_small_disk_for_the_test_below() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how a test tells its own child process what to do"
    )]
    let Some(disk) = std::env::var_os("FINIAL_SMALL_DISK").map(PathBuf::from) else {
        return;
    };
    let resize = |size: &str| {
        let remount = format!("remount,size={size}");
        let done = std::process::Command::new("mount")
            .args(["-o", &remount])
            .arg(&disk)
            .status()
            .expect("mount runs");
        assert!(done.success());
    };
    let fill = async |stores: &Stores, name: &str| {
        let mut acknowledged = Vec::new();
        loop {
            let next = format!("{name}-{}", acknowledged.len());
            let big = mesh_identity::Entry {
                hint: "h".repeat(1_000),
                ..entry(&next)
            };
            match stores.entries.create(big).await {
                Ok(CreatedEntry::New(made)) => acknowledged.push(made),
                Ok(other) => panic!("{other:?}"),
                Err(error) => return (acknowledged, error),
            }
        }
    };

    // With a reserve: refused before the disk is full, and good again as soon as there is room.
    let path = disk.join("guarded");
    let settings = SledSettings {
        free_space_reserve: 2 << 20,
        ..SledSettings::default()
    };
    let stores = Stores::open_sled(&path, &domain(), settings)
        .await
        .expect("opened");
    let (acknowledged, error) = fill(&stores, "a").await;
    assert!(matches!(error, StoreError::NearlyFull { .. }), "{error}");
    assert_eq!(
        stores.entries.list().await.expect("reads go on").len(),
        acknowledged.len()
    );
    resize("40m");
    create(&stores, "again").await;
    drop(stores);

    // Without one: the disk is full, the store stops, and with room again everything acknowledged is there.
    resize("12m");
    let path = disk.join("unguarded");
    let settings = SledSettings {
        free_space_reserve: 0,
        ..SledSettings::default()
    };
    let stores = Stores::open_sled(&path, &domain(), settings)
        .await
        .expect("opened");
    let (acknowledged, error) = fill(&stores, "b").await;
    assert!(matches!(error, StoreError::Stopped { .. }), "{error}");
    assert!(matches!(
        *stores.changes.health().borrow(),
        StoreHealth::Stopped(_)
    ));
    assert_eq!(
        stores.entries.list().await.expect("reads go on").len(),
        acknowledged.len()
    );
    drop(stores);
    resize("40m");
    let stores = open_at(&path).await;
    for entry in &acknowledged {
        assert_eq!(
            stores.entries.get(&entry.id).await.expect("read").as_ref(),
            Some(entry)
        );
    }
    println!(
        "the small disk was full after {} entries",
        acknowledged.len()
    );
}

#[test]
fn st_05_a_full_disk_loses_nothing_and_needs_no_repair() {
    let folder = TempDir::new().expect("a folder");
    let disk = folder.path();
    let mounted = std::process::Command::new("unshare")
        .args([
            "-rm",
            "sh",
            "-c",
            "mount -t tmpfs -o size=8m none \"$0\" && exec \"$@\"",
        ])
        .arg(disk)
        .arg(std::env::current_exe().expect("our own path"))
        .args([
            "store::sled::tests::a_small_disk_for_the_test_below",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env("FINIAL_SMALL_DISK", disk)
        .output();
    let output = match mounted {
        Ok(output) => output,
        Err(error) => {
            return println!(
                "skipped: no `unshare` on this machine ({error}); Debian: apt-get install util-linux"
            );
        }
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if !said.contains("running 1 test") {
        return println!(
            "skipped: this machine lets nobody mount a tmpfs in a namespace of their own: {said}"
        );
    }
    assert!(
        output.status.success() && said.contains("the small disk was full"),
        "{said}"
    );
}

#[tokio::test]
async fn an_unfinished_first_start_is_begun_again() {
    let (folder, path) = place();
    let unfinished = folder.path().join("store.unfinished");
    fs::create_dir(&unfinished).expect("made");
    fs::write(unfinished.join("db"), b"half").expect("written");
    create(&open_at(&path).await, "a").await;
    assert!(!unfinished.exists());
}

#[tokio::test]
async fn a_queued_change_is_finished_when_the_store_is_dropped() {
    let (_folder, path) = place();
    let stores = open_at(&path).await;
    let entries = stores.entries.clone();
    let waiting = tokio::spawn(async move { entries.create(entry("a")).await });
    drop(stores);
    assert!(matches!(
        waiting.await.expect("ran"),
        Ok(CreatedEntry::New(_))
    ));
    assert_eq!(
        open_at(&path)
            .await
            .entries
            .list()
            .await
            .expect("read")
            .len(),
        1
    );
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for item in fs::read_dir(from).expect("readable") {
        let item = item.expect("readable");
        let target = to.join(item.file_name());
        if item.file_type().expect("known").is_dir() {
            copy_folder(&item.path(), &target);
        } else {
            fs::copy(item.path(), target).expect("copied");
        }
    }
}
