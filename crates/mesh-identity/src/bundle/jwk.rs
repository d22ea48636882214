//! Decides how a root's public key is written as JWK parameters (RFC 7518 6, RFC 8037), and which keys we support at all.
//! Trusts that the SubjectPublicKeyInfo was cut out of a readable certificate.
//! Never handles a private key.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::der::{Reader, tag};

/// A public key, in the parts that a JWK names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    Ec {
        curve: &'static str,
        x: String,
        y: String,
    },
    Rsa {
        n: String,
        e: String,
    },
    Ed25519 {
        x: String,
    },
}

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x2b, 0x81, 4, 0, 34];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

impl Key {
    /// The key of a SubjectPublicKeyInfo, or `None` if it is of a kind that we cannot verify with.
    pub(super) fn of(spki: &[u8]) -> Option<Self> {
        let mut parts = Reader::new(spki).expect(tag::SEQUENCE, "").ok()?.inside();
        let mut algorithm = parts.expect(tag::SEQUENCE, "").ok()?.inside();
        let bits = parts.expect(tag::BIT_STRING, "").ok()?.value;
        parts.end("").ok()?;
        let key = bits.strip_prefix(&[0])?;
        let oid = algorithm.expect(tag::OID, "").ok()?.value;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match oid {
            EC_PUBLIC_KEY => {
                let (curve, size) = match algorithm.expect(tag::OID, "").ok()?.value {
                    P256 => ("P-256", 32),
                    P384 => ("P-384", 48),
                    _ => return None,
                };
                let point = key
                    .strip_prefix(&[4])
                    .filter(|point| point.len() == 2 * size)?;
                let (x, y) = point.split_at(size);
                Some(Self::Ec {
                    curve,
                    x: encode(x),
                    y: encode(y),
                })
            }
            RSA => {
                let mut numbers = Reader::new(key).expect(tag::SEQUENCE, "").ok()?.inside();
                let n = positive(numbers.expect(tag::INTEGER, "").ok()?.value)?;
                let e = positive(numbers.expect(tag::INTEGER, "").ok()?.value)?;
                numbers.end("").ok()?;
                let bits = n.len() * 8 - usize::try_from(n[0].leading_zeros()).ok()?;
                (2048..=8192).contains(&bits).then(|| Self::Rsa {
                    n: encode(n),
                    e: encode(e),
                })
            }
            ED25519 if key.len() == 32 => Some(Self::Ed25519 { x: encode(key) }),
            _ => None,
        }
    }
}

/// The bytes of a positive DER integer without its sign byte.
fn positive(value: &[u8]) -> Option<&[u8]> {
    match value {
        [0, rest @ ..] => rest.first().is_some_and(|b| b & 0x80 != 0).then_some(rest),
        [first, ..] if first & 0x80 == 0 => Some(value),
        _ => None,
    }
}
