//! Decides which identity is the current one, for every handshake in the process that shares the cell.
//! Trusts that a [`TlsIdentity`] was checked when it was made, since it cannot be made otherwise.
//! Never shows a mixture of two identities; a refused one leaves the last good one in place.

use std::{fmt, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use mesh_identity::{BundleSet, X509Svid};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::{PrivateKey, TlsIdentity, TlsIdentityError};

/// The one place where the current identity lies. Clones are handles on the same place.
/// Open connections keep what they were made with; each new handshake reads the cell afresh.
#[derive(Clone)]
pub struct IdentityCell {
    inner: Arc<Inner>,
}

struct Inner {
    /// What handshakes read: no lock.
    current: ArcSwap<TlsIdentity>,
    /// What those who wait for a change listen to. Its lock orders publishers.
    changes: watch::Sender<Arc<TlsIdentity>>,
}

impl IdentityCell {
    /// A cell that starts with an identity; an empty one does not exist.
    pub fn new(identity: TlsIdentity) -> Self {
        let identity = Arc::new(identity);
        let (changes, _) = watch::channel(Arc::clone(&identity));
        Self {
            inner: Arc::new(Inner {
                current: ArcSwap::new(identity),
                changes,
            }),
        }
    }

    /// Swaps the identity, whole. The next handshake uses it, in either direction.
    pub fn publish(&self, identity: TlsIdentity) {
        self.modify(|_| Arc::new(identity));
    }

    /// Checks and swaps. If the check fails, the identity in use stays and the reason is returned.
    pub fn try_publish(
        &self,
        svid: X509Svid,
        key: impl AsRef<PrivateKey>,
        bundles: BundleSet,
        now: SystemTime,
    ) -> Result<(), TlsIdentityError> {
        self.publish(TlsIdentity::new(svid, key, bundles, now)?);
        Ok(())
    }

    /// Swaps the bundles alone, at once and without a condition; see [`TlsIdentity::with_bundles`].
    pub fn replace_bundles(&self, bundles: BundleSet) {
        self.modify(|current| Arc::new(current.with_bundles(bundles)));
    }

    /// The identity in use now.
    pub fn current(&self) -> Arc<TlsIdentity> {
        self.inner.current.load_full()
    }

    /// Learns of each change; the value seen is the newest.
    pub fn subscribe(&self) -> watch::Receiver<Arc<TlsIdentity>> {
        self.inner.changes.subscribe()
    }

    /// What a handshake shows now.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(self.inner.current.load().certified())
    }

    /// Lends the bundles of now to a handshake.
    pub(crate) fn with_bundles<T>(&self, judge: impl FnOnce(&BundleSet) -> T) -> T {
        judge(self.inner.current.load().bundles())
    }

    fn modify(&self, change: impl FnOnce(&TlsIdentity) -> Arc<TlsIdentity>) {
        self.inner.changes.send_modify(|seen| {
            let next = change(seen);
            self.inner.current.store(Arc::clone(&next));
            *seen = next;
        });
    }
}

impl fmt::Debug for IdentityCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdentityCell")
            .field(&self.current())
            .finish()
    }
}
