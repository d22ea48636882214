//! Decides what a private key is: PKCS#8 in DER, of a kind that can sign a TLS 1.3 handshake.
//! Trusts the caller that nobody else keeps a copy.
//! Never prints, clones or serialises the key, and overwrites it when dropped.

use std::{fmt, sync::Arc};

use rustls::sign::SigningKey;
use zeroize::Zeroizing;

use crate::provider;

/// A private key. Share it with an `Arc`; there is no `Clone`.
pub struct PrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    signing: Arc<dyn SigningKey>,
}

impl PrivateKey {
    /// Takes a key in PKCS#8 DER. Refused bytes are overwritten too.
    pub fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, KeyError> {
        let pkcs8 = Zeroizing::new(pkcs8);
        // The cause stays here on purpose: what a parser says about a key may quote it.
        let signing = provider::signing_key(&pkcs8).map_err(|_| KeyError)?;
        Ok(Self { pkcs8, signing })
    }

    /// The PKCS#8 DER, for the one place that hands it to its owner or to disk.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(crate) fn signing(&self) -> &Arc<dyn SigningKey> {
        &self.signing
    }
}

impl AsRef<Self> for PrivateKey {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?}, redacted)", self.signing.algorithm())
    }
}

/// The bytes are no PKCS#8 private key of a supported kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a PKCS#8 private key of a supported kind (EC P-256 or P-384, Ed25519, RSA)")]
pub struct KeyError;

impl KeyError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        "FNL0401"
    }
}

#[cfg(test)]
mod tests;
