//! Decides what a JWT authority is: a key ID and a public key that JWT-SVIDs can be signed with, and whether a signature is its.
//! Trusts the bundle that holds it about whose it is.
//! Never verifies by an algorithm of another kind of key: the key says what is possible, the token only chooses among it.

use std::{sync::Arc, time::SystemTime};

use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};

use super::{JwtAlgorithm, JwtError};
use crate::bundle::jwk::{Curve, Key};

/// Longest key ID, in bytes.
pub const MAX_KEY_ID_BYTES: usize = 255;

/// One key of a trust domain that verifies its JWT-SVIDs. Cheap to clone.
#[derive(Clone)]
pub struct JwtAuthority {
    named: Arc<Named>,
    expires_at: Option<SystemTime>,
    tainted: bool,
}

struct Named {
    key_id: String,
    key: Key,
}

impl JwtAuthority {
    /// Checks a key in the form of a SubjectPublicKeyInfo: EC P-256, P-384 or P-521, or RSA from 2048 to 8192 bits.
    pub fn from_spki(key_id: &str, spki: &[u8]) -> Result<Self, JwtAuthorityError> {
        Self::of_key(key_id, Key::of(spki).ok_or(JwtAuthorityError::Key)?)
    }

    pub(crate) fn of_key(key_id: &str, key: Key) -> Result<Self, JwtAuthorityError> {
        if matches!(key, Key::Ed25519 { .. }) {
            return Err(JwtAuthorityError::Key);
        }
        let printable = key_id.chars().all(|c| !c.is_control());
        if key_id.is_empty() || key_id.len() > MAX_KEY_ID_BYTES || !printable {
            return Err(JwtAuthorityError::KeyId);
        }
        Ok(Self {
            named: Arc::new(Named {
                key_id: key_id.to_owned(),
                key,
            }),
            expires_at: None,
            tainted: false,
        })
    }

    /// The same authority, known to end then. A JWK does not say when its key ends; our own store does.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: Option<SystemTime>) -> Self {
        self.expires_at = expires_at;
        self
    }

    /// The same authority, marked or not.
    #[must_use]
    pub fn with_tainted(mut self, tainted: bool) -> Self {
        self.tainted = tainted;
        self
    }

    /// What `kid` in a header says.
    pub fn key_id(&self) -> &str {
        &self.named.key_id
    }

    /// When it ends, if that is known.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Whether it still verifies at that moment.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.expires_at.is_none_or(|end| now <= end)
    }

    /// Whether tokens signed by it are to be replaced. It still verifies.
    pub fn is_tainted(&self) -> bool {
        self.tainted
    }

    /// The public key as a SubjectPublicKeyInfo in DER.
    pub fn to_spki(&self) -> Vec<u8> {
        self.named.key.to_spki()
    }

    pub(crate) fn key(&self) -> &Key {
        &self.named.key
    }

    /// Whether key ID and key are the same, whatever else is known about them.
    pub(crate) fn same_key(&self, other: &Self) -> bool {
        self.named.key_id == other.named.key_id && self.named.key == other.named.key
    }

    /// Whether it signed this; RFC 7518 3.3 to 3.5.
    pub(super) fn verify(
        &self,
        algorithm: JwtAlgorithm,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), JwtError> {
        use JwtAlgorithm::*;
        let verdict = match (&self.named.key, algorithm) {
            (
                Key::Ec {
                    curve: Curve::P256,
                    point,
                },
                Es256,
            ) => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                .verify(signed, signature),
            (
                Key::Ec {
                    curve: Curve::P384,
                    point,
                },
                Es384,
            ) => UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                .verify(signed, signature),
            (Key::Rsa { n, e }, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512) => {
                let parameters = match algorithm {
                    Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    _ => &signature::RSA_PSS_2048_8192_SHA512,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature)
            }
            _ => return Err(JwtError::KeyKind),
        };
        verdict.map_err(|_| JwtError::Signature)
    }
}

impl std::fmt::Debug for JwtAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtAuthority")
            .field("key_id", &self.named.key_id)
            .field("expires_at", &self.expires_at)
            .field("tainted", &self.tainted)
            .finish_non_exhaustive()
    }
}

/// Equal if key ID, key, end and mark are.
impl PartialEq for JwtAuthority {
    fn eq(&self, other: &Self) -> bool {
        self.same_key(other) && self.expires_at == other.expires_at && self.tainted == other.tainted
    }
}

impl Eq for JwtAuthority {}

/// Why a key cannot be a JWT authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtAuthorityError {
    /// The key ID is missing, too long or not text that can be shown.
    #[error(
        "the key ID is empty, longer than {MAX_KEY_ID_BYTES} bytes, or holds control characters"
    )]
    KeyId,
    /// A key of an unsupported kind, or none at all.
    #[error(
        "the key is unreadable or of an unsupported kind; supported are EC P-256, P-384 and P-521, RSA from 2048 to 8192 bits"
    )]
    Key,
}

impl JwtAuthorityError {
    /// The code of this error in `docs/errors`.
    pub(crate) const CODE: &'static str = "FNL0347";

    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        Self::CODE
    }
}
