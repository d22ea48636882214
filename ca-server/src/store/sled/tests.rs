//! The embedded store: the suite of all stores, and what only a store on disk can get wrong.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::store::conformance::{self, create, domain, entry};
use crate::store::{CreatedEntry, Stores};

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
    let content = crate::store::BundleContent {
        x509_authorities: vec![vec![1; 700]],
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
        let content = crate::store::BundleContent {
            x509_authorities: vec![n.to_be_bytes().repeat(10_000)],
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
