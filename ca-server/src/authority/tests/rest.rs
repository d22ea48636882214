//! How the authority rests: sealed in the store, opened again by the same key file and by nothing else.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use base64::Engine as _;

use super::slots::Slot;
use super::*;
use crate::store::SledSettings;

#[tokio::test]
async fn a_restart_finds_the_same_authority_and_the_same_bundle() {
    let rig = Rig::new().await;
    rig.authority.advance(at(301)).await.expect("prepared");
    let before = rig.sign("/pay", at(310));
    let again = rig.open_again(at(320)).await.expect("opened");
    let after = again
        .sign_leaf(&template("/pay"), &spki(), at(320))
        .expect("signed");
    assert_eq!(before.authority_id, after.authority_id);
    assert_eq!(*again.bundle().borrow(), *rig.authority.bundle().borrow());
    assert_eq!(*again.status().borrow(), *rig.authority.status().borrow());
    assert_ne!(before.serial, after.serial);
    assert!(verified(&after, &rig.bundle(), at(320)));
}

#[tokio::test]
async fn ca_30_the_sealing_key_is_made_for_us_alone_and_any_other_mode_is_refused() {
    let rig = Rig::new().await;
    let file = settings(rig.folder.path()).sealing_key;
    assert_eq!(fs::metadata(&file).expect("made").mode() & 0o7777, 0o600);
    assert_eq!(
        fs::read_dir(rig.folder.path()).expect("readable").count(),
        1
    );
    for mode in [0o640, 0o604, 0o660, 0o644, 0o601] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).expect("set");
        let refused = rig.open_again(at(1)).await.map(|_| ());
        assert!(
            matches!(refused, Err(AuthorityError::OpenToOthers { .. })),
            "{mode:o}"
        );
    }
    fs::set_permissions(&file, Permissions::from_mode(0o400)).expect("set");
    assert!(rig.open_again(at(1)).await.is_ok());
}

#[tokio::test]
async fn ca_32_a_missing_wrong_or_broken_sealing_key_is_a_clear_failure_and_makes_no_new_key() {
    let rig = Rig::new().await;
    let file = settings(rig.folder.path()).sealing_key;
    let good = fs::read(&file).expect("readable");
    let journal = rig.stores.journal.read().await.expect("read");

    fs::remove_file(&file).expect("removed");
    let refused = rig.open_again(at(1)).await.map(|_| ());
    assert!(matches!(
        refused,
        Err(AuthorityError::SealingKeyMissing { .. })
    ));
    assert!(!file.exists());

    let write = |text: &[u8]| {
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("set");
    };
    for bad in [
        &b""[..],
        b"x",
        &good[1..],
        &[good.as_slice(), b"00"].concat(),
        &[b'g'; 64],
    ] {
        write(bad);
        let refused = rig.open_again(at(1)).await.map(|_| ());
        assert!(matches!(
            refused,
            Err(AuthorityError::SealingKeyMalformed { .. })
        ));
    }
    write(&[b'0'; 64]);
    let refused = rig.open_again(at(1)).await.map(|_| ());
    assert!(matches!(refused, Err(AuthorityError::CannotUnseal { .. })));

    write(&good);
    assert_eq!(rig.stores.journal.read().await.expect("read"), journal);
    assert!(rig.open_again(at(1)).await.is_ok());
}

#[tokio::test]
async fn ca_32_any_changed_byte_of_the_journal_is_noticed() {
    let rig = Rig::new().await;
    let journal = rig
        .stores
        .journal
        .read()
        .await
        .expect("read")
        .expect("written");
    let content = BundleContent {
        x509_authorities: Vec::new(),
        jwt_authorities: Vec::new(),
        refresh_hint: Duration::ZERO,
    };
    for place in (0..journal.len()).step_by(3) {
        let mut changed = journal.clone();
        changed[place] ^= 4;
        rig.stores
            .journal
            .write(changed, content.clone())
            .await
            .expect("written");
        assert!(rig.open_again(at(1)).await.is_err(), "byte {place}");
    }
    for length in [0, 1, journal.len() / 2, journal.len() - 1] {
        rig.stores
            .journal
            .write(journal[..length].to_vec(), content.clone())
            .await
            .expect("written");
        assert!(rig.open_again(at(1)).await.is_err(), "{length} bytes");
    }
}

#[tokio::test]
async fn ca_32_sealed_keys_swapped_between_authorities_do_not_open() {
    let rig = Rig::new().await;
    rig.authority.advance(at(301)).await.expect("prepared");
    let slots = rig.authority.slots.lock().await.clone();
    fn swap<S>(one: &mut Slot<S>, other: &mut Slot<S>) {
        let (one, other) = (one.key.as_mut(), other.key.as_mut());
        std::mem::swap(
            &mut one.expect("a key").sealed,
            &mut other.expect("a key").sealed,
        );
    }
    let content = slots.content(&settings(rig.folder.path()));
    let refused = async |slots: &Book| {
        let journal = journal::encode(slots).expect("encoded");
        let written = rig.stores.journal.write(journal, content.clone()).await;
        written.expect("written");
        let refused = rig.open_again(at(302)).await.map(|_| ());
        matches!(refused, Err(AuthorityError::CannotUnseal { .. }))
    };
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let mut swapped = slots.clone();
        match kind {
            AuthorityKind::X509 => {
                let [one, other] = &mut swapped.x509.0[..] else {
                    panic!("two")
                };
                swap(one, other);
            }
            AuthorityKind::Jwt => {
                let [one, other] = &mut swapped.jwt.0[..] else {
                    panic!("two")
                };
                swap(one, other);
            }
        }
        assert!(refused(&swapped).await, "{kind:?}");
    }
    // Nor does a key move to another key id, or between the kinds.
    let mut renamed = slots.clone();
    renamed.jwt.0[0].authority_id = "another".into();
    assert!(refused(&renamed).await);
    let mut moved = slots.clone();
    let x509 = moved.x509.0[0].key.as_ref().expect("a key").sealed.clone();
    moved.jwt.0[0].key.as_mut().expect("a key").sealed = x509;
    assert!(refused(&moved).await);
    assert!(!refused(&slots).await, "what was written last is whole");
}

#[tokio::test]
async fn ca_31_st_18_the_key_is_nowhere_in_the_stores_files() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("store");
    let stores = Stores::open_sled(&path, &domain(), SledSettings::default())
        .await
        .expect("opened");
    let settings = settings(folder.path());
    let authority = Authority::open(settings.clone(), stores.journal.clone(), at(0))
        .await
        .expect("opened");
    authority.advance(at(301)).await.expect("prepared");

    let sealing = SealingKey::load(&settings.sealing_key, false).expect("read");
    let mut secrets = Vec::new();
    for pkcs8 in journal::unsealed_for_test(&*authority.slots.lock().await, &sealing, &domain()) {
        // P-256 in PKCS#8: the scalar follows the octet string header 04 20.
        let scalar = pkcs8
            .windows(2)
            .position(|bytes| bytes == [4, 0x20])
            .expect("a scalar")
            + 2;
        secrets.push(pkcs8[scalar..scalar + 32].to_vec());
    }
    assert_eq!(secrets.len(), 4, "two of each kind");
    drop((authority, stores));

    let mut forms = Vec::new();
    for secret in &secrets {
        let mut limbs = secret.clone();
        limbs.reverse();
        forms.extend([limbs, facts::hex(secret).into_bytes()]);
        // base64 of the middle, in each of its three alignments.
        for skip in 0..3 {
            forms.push(
                base64::engine::general_purpose::STANDARD_NO_PAD
                    .encode(&secret[skip..skip + 27])
                    .into_bytes(),
            );
        }
        forms.push(secret.clone());
    }
    forms.push(fs::read(&settings.sealing_key).expect("readable")[..64].to_vec());
    let mut searched = 0;
    let mut folders = vec![path];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(folder).expect("readable") {
            let item = item.expect("readable").path();
            if item.is_dir() {
                folders.push(item);
                continue;
            }
            let content = fs::read(&item).expect("readable");
            searched += content.len();
            for form in &forms {
                assert!(
                    !content.windows(form.len()).any(|bytes| bytes == form),
                    "found in {}",
                    item.display()
                );
            }
        }
    }
    assert!(searched > 4_000, "the store was searched");
}

#[tokio::test]
async fn a_lifetime_that_leaves_no_time_to_rotate_is_refused() {
    let folder = TempDir::new().expect("a folder");
    let stores = Stores::memory(&domain());
    let short = AuthoritySettings {
        lifetime: Duration::from_secs(9),
        ..settings(folder.path())
    };
    let refused = Authority::open(short, stores.journal.clone(), at(0))
        .await
        .map(|_| ());
    assert!(matches!(refused, Err(AuthorityError::ShortLife { .. })));
    assert_eq!(stores.journal.read().await.expect("read"), None);
}
