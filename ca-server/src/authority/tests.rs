//! The authority: what it issues (decoded by x509-parser and by the machine's openssl), how it rests, how it rotates.

mod append;
mod by_hand;
mod kinds;
mod profile;
mod rest;
mod tokens;
mod turns;
mod upstream;

use std::path::Path;
use std::time::UNIX_EPOCH;

use mesh_identity::verify::verify_x509_svid;
use mesh_identity::{BundleSet, X509Svid};
use tempfile::TempDir;

use super::*;
use crate::store::Stores;

pub(super) const LIFE: Duration = Duration::from_secs(600);

pub(super) fn domain() -> TrustDomain {
    "example.test".parse().expect("a trust domain")
}

pub(super) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

/// An authority over a store in memory, with its key file in a folder of its own.
pub(super) struct Rig {
    pub(super) folder: TempDir,
    pub(super) stores: Stores,
    pub(super) authority: Arc<Authority>,
}

pub(super) fn settings(folder: &Path) -> AuthoritySettings {
    AuthoritySettings {
        lifetime: LIFE,
        refresh_hint: Duration::from_secs(5),
        ..AuthoritySettings::new(domain(), folder.join("sealing.key"))
    }
}

impl Rig {
    pub(super) async fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let stores = Stores::memory(&domain());
        let authority = Authority::open(settings(folder.path()), stores.journal.clone(), at(0));
        Self {
            authority: authority.await.expect("opened"),
            folder,
            stores,
        }
    }

    pub(super) async fn open_again(
        &self,
        now: SystemTime,
    ) -> Result<Arc<Authority>, AuthorityError> {
        Authority::open(
            settings(self.folder.path()),
            self.stores.journal.clone(),
            now,
        )
        .await
    }

    pub(super) fn sign(&self, path: &str, now: SystemTime) -> SignedLeaf {
        self.authority
            .sign_leaf(&template(path), &spki(), now)
            .expect("signed")
    }

    pub(super) fn bundle(&self) -> BundleSet {
        bundle_of(&self.authority)
    }
}

pub(super) fn bundle_of(authority: &Authority) -> BundleSet {
    let mut bundles = BundleSet::new();
    bundles.insert(authority.bundle().borrow().to_bundle().expect("a bundle"));
    bundles
}

/// The states of the authorities of one kind, in the order in which they were prepared.
pub(super) fn states(authority: &Authority, kind: AuthorityKind) -> Vec<SlotState> {
    let status = authority.status();
    let status = status.borrow();
    let of_kind = status.iter().filter(|slot| slot.kind == kind);
    of_kind.map(|slot| slot.state).collect()
}

pub(super) fn template(path: &str) -> LeafTemplate {
    LeafTemplate {
        spiffe_id: SpiffeId::from_parts(&domain(), path).expect("a path"),
        dns_names: Vec::new(),
        subject: Vec::new(),
        ttl: Duration::from_secs(60),
        not_before_backdate: BACKDATE,
    }
}

/// A new workload key's public half.
pub(super) fn spki() -> Vec<u8> {
    rcgen::PublicKeyData::subject_public_key_info(&rcgen::KeyPair::generate().expect("a key"))
}

pub(super) fn verified(leaf: &SignedLeaf, bundles: &BundleSet, now: SystemTime) -> bool {
    let parsed = X509Svid::parse(leaf.chain.clone()).expect("a profile-true SVID");
    assert_eq!(parsed.serial(), leaf.serial);
    verify_x509_svid(&leaf.chain, bundles, now).is_ok()
}
