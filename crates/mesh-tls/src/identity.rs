//! Decides whether an SVID, a key and bundles make an identity that a peer with the same bundles would accept now.
//! Trusts nothing: the chain is verified as at the other end of a handshake, and the key is compared with the leaf.
//! Never holds half an identity; there is no way around the check.

use std::{fmt, sync::Arc, time::SystemTime};

use mesh_identity::{BundleSet, SpiffeId, X509Svid, verify};
use rustls::sign::CertifiedKey;

use crate::{PrivateKey, provider};

/// What we show to peers and what we check them against. Immutable: a change is a new one, swapped in whole.
/// Key and chain are parsed once, here, so that a handshake parses neither.
pub struct TlsIdentity {
    svid: X509Svid,
    certified: Arc<CertifiedKey>,
    bundles: Arc<BundleSet>,
}

impl TlsIdentity {
    /// Checks the three together, as a peer would see them at that moment. The key may be given whole, by reference or in an `Arc`.
    pub fn new(
        svid: X509Svid,
        key: impl AsRef<PrivateKey>,
        bundles: BundleSet,
        now: SystemTime,
    ) -> Result<Self, TlsIdentityError> {
        verify::verify_x509_svid(svid.chain(), &bundles, now)
            .map_err(TlsIdentityError::NotAccepted)?;
        let signing = key.as_ref().signing();
        // A key that tells no public half could not be compared, so it does not match.
        let matches = signing
            .public_key()
            .is_some_and(|public| *public == *svid.spki());
        if !matches {
            return Err(TlsIdentityError::OtherKey(svid.id().clone()));
        }
        let offered = provider::provider()
            .signature_verification_algorithms
            .supported_schemes();
        if signing.choose_scheme(&offered).is_none() {
            return Err(TlsIdentityError::NoScheme);
        }
        let certified = Arc::new(CertifiedKey::new(
            svid.chain().to_vec(),
            Arc::clone(signing),
        ));
        Ok(Self {
            svid,
            certified,
            bundles: Arc::new(bundles),
        })
    }

    /// The same SVID and key with other bundles, without asking whether these bundles still accept our own SVID.
    ///
    /// For one case only: trust is withdrawn (an authority of ours was removed) before a new SVID has come. Then peers must be judged
    /// by the new bundles at once, and whether they still accept us is theirs to say.
    #[must_use]
    pub fn with_bundles(&self, bundles: BundleSet) -> Self {
        Self {
            svid: self.svid.clone(),
            certified: Arc::clone(&self.certified),
            bundles: Arc::new(bundles),
        }
    }

    /// Who we are.
    pub fn id(&self) -> &SpiffeId {
        self.svid.id()
    }

    /// The chain that we show.
    pub fn svid(&self) -> &X509Svid {
        &self.svid
    }

    /// What peers are checked against.
    pub fn bundles(&self) -> &BundleSet {
        &self.bundles
    }

    /// Until when our SVID is valid.
    pub fn not_after(&self) -> SystemTime {
        self.svid.not_after()
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains: Vec<_> = self
            .bundles
            .iter()
            .map(|bundle| bundle.trust_domain())
            .collect();
        f.debug_struct("TlsIdentity")
            .field("svid", &self.svid)
            .field("bundles", &domains)
            .finish_non_exhaustive()
    }
}

/// Why an SVID, a key and bundles make no identity.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsIdentityError {
    /// A peer that holds the same bundles would refuse the SVID now.
    #[error("a peer would refuse our own X509-SVID")]
    NotAccepted(#[source] verify::VerifyError),
    /// The key is not the one that the leaf certifies.
    #[error("the private key does not belong to the X509-SVID of {0}")]
    OtherKey(SpiffeId),
    /// The key signs, but in no way that TLS 1.3 peers accept.
    #[error("the private key has no signature scheme that TLS 1.3 peers accept")]
    NoScheme,
}

impl TlsIdentityError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAccepted(_) => "FNL0402",
            Self::OtherKey(_) => "FNL0403",
            Self::NoScheme => "FNL0404",
        }
    }
}
