//! Backups: what comes back, what must not, and that no changed byte passes.

use std::io::Write;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::store::conformance::{at, certificate, domain, entry};
use crate::store::{BundleContent, NewToken, Spent, Stores, token_hash};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn taken(stores: &Stores, now: SystemTime) -> Vec<u8> {
    let into = Shared::default();
    let snapshot = stores.snapshots.snapshot(Box::new(into.clone()), now);
    snapshot.await.expect("taken");
    let content = into.0.lock().unwrap();
    content.clone()
}

fn read(bytes: &[u8]) -> Result<Backup, BackupError> {
    Backup::read(bytes, Path::new("backup"))
}

/// A store with a row of every kind, one of them larger than a piece.
async fn filled(stores: &Stores) {
    for n in 0..50 {
        let created = stores.entries.create(entry(&format!("e{n}"))).await;
        created.expect("created");
    }
    let gone = "e7".parse().expect("an id");
    stores.entries.delete(&gone).await.expect("deleted");
    let many = (0..200).map(|n| certificate(&format!("{n:040x}"), 90));
    stores.issued.record(many.collect()).await.expect("stored");
    let token = NewToken {
        hash: token_hash("secret"),
        expires_at: at(900),
        agent_id: None,
    };
    stores.tokens.create(token).await.expect("created");
    let content = BundleContent {
        x509_authorities: vec![vec![7; 9_000].into()],
        jwt_authorities: Vec::new(),
        refresh_hint: Duration::from_secs(60),
    };
    let journal = b"journal".to_vec();
    stores.journal.write(journal, content).await.expect("kept");
}

#[tokio::test]
async fn st_17_a_restored_store_holds_the_same_and_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old");
    let stores = Stores::open_sled(&old, &domain(), SledSettings::default())
        .await
        .unwrap();
    filled(&stores).await;
    let before = stores.changes.everything().await.unwrap();
    let bytes = taken(&stores, at(100)).await;
    let backup = read(&bytes).unwrap();
    assert_eq!(
        (
            backup.facts().entries,
            backup.facts().certificates,
            backup.facts().revision
        ),
        (49, 200, before.revision)
    );

    let new = folder.path().join("new");
    backup.restore(&new, &domain(), at(100 + 60)).unwrap();
    let again = Stores::open_sled(&new, &domain(), SledSettings::default())
        .await
        .unwrap();
    let after = again.changes.everything().await.unwrap();
    assert_eq!(after.entries, before.entries);
    assert_eq!(after.nodes, before.nodes);
    let (bundle, was) = (after.own_bundle.unwrap(), before.own_bundle.unwrap());
    assert_eq!(bundle.x509_authorities, was.x509_authorities);
    assert_eq!(bundle.sequence, was.sequence + SEQUENCE_LEAP + 60);
    assert_eq!(after.revision, before.revision + LEAP);
    assert_ne!(again.changes.epoch(), stores.changes.epoch());
    assert_eq!(again.issued.count().await.unwrap(), 200);
    assert_eq!(
        again.journal.read().await.unwrap(),
        Some(b"journal".to_vec())
    );
    // It may have been spent since.
    assert_eq!(
        again
            .tokens
            .spend(token_hash("secret"), at(101))
            .await
            .unwrap(),
        Spent::Unknown
    );
    let created = again.entries.create(entry("new")).await;
    created.expect("it takes changes");
}

#[tokio::test]
async fn a_restore_replaces_no_store_and_takes_no_other_trust_domain() {
    let folder = tempfile::tempdir().unwrap();
    let stores = Stores::memory(&domain());
    filled(&stores).await;
    let bytes = taken(&stores, at(0)).await;
    let there = folder.path().join("there");
    std::fs::write(&there, "").unwrap();
    assert!(matches!(
        read(&bytes).unwrap().restore(&there, &domain(), at(0)),
        Err(BackupError::StoreExists(_))
    ));
    let free = folder.path().join("free");
    let other = "other.test".parse().unwrap();
    assert!(matches!(
        read(&bytes).unwrap().restore(&free, &other, at(0)),
        Err(BackupError::OtherTrustDomain { .. })
    ));
    assert!(!free.exists());
}

#[tokio::test]
async fn a_backup_cut_off_anywhere_or_followed_by_anything_is_refused() {
    let stores = Stores::memory(&domain());
    filled(&stores).await;
    let mut bytes = taken(&stores, at(0)).await;
    for end in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        assert!(read(&bytes[..end]).is_err(), "{end}");
    }
    bytes.push(0);
    assert!(matches!(read(&bytes), Err(BackupError::Damaged { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_changed_byte_of_a_backup_passes(place in any::<prop::sample::Index>(), by in 1_u8..) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut bytes = runtime.block_on(async {
            let stores = Stores::memory(&domain());
            stores.entries.create(entry("e")).await.unwrap();
            taken(&stores, at(0)).await
        });
        let place = place.index(bytes.len());
        bytes[place] ^= by;
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let with_magic = [MAGIC.as_slice(), &bytes].concat();
        prop_assert!(read(&with_magic).is_err());
        prop_assert!(read(&bytes).is_err());
    }
}
