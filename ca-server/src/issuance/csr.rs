//! Decides whether a certificate request proves possession of a key that we certify.
//! Trusts nothing in it: names, extensions and attributes are never read.
//! Never hands on anything but the public key.

use mesh_runtime::errors::{Blame, Coded};
use ring::digest::{SHA256, digest};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The longest request that is read. One with an RSA-4096 key has less than 2 KiB.
pub const LONGEST_CSR: usize = 16 * 1024;

/// The sizes of RSA keys that we certify, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A public key whose owner has signed the request that it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedCsr {
    spki: Vec<u8>,
    spki_hash: [u8; 32],
    request_hash: [u8; 32],
}

impl VerifiedCsr {
    /// Reads a request in DER.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > LONGEST_CSR {
            return Err(CsrError::TooLong(der.len()));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::TrailingBytes(rest.len()));
        }
        let spki = &request.certification_request_info.subject_pki;
        accepted_key(spki)?;
        request
            .verify_signature()
            .map_err(|_| CsrError::NoPossession)?;
        Ok(Self {
            spki: spki.raw.to_vec(),
            spki_hash: sha256(spki.raw),
            request_hash: sha256(der),
        })
    }

    /// The public key, as DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the public key.
    pub fn spki_hash(&self) -> [u8; 32] {
        self.spki_hash
    }

    /// SHA-256 of the request: what may be recorded of it.
    pub fn request_hash(&self) -> [u8; 32] {
        self.request_hash
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// Judged before the signature is: the cost of a verification grows with a stranger's key.
fn accepted_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<(), CsrError> {
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki
            .algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => Ok(()),
            _ => Err(CsrError::Curve),
        };
    }
    if *algorithm == OID_SIG_ED25519 {
        return Ok(());
    }
    if *algorithm != OID_PKCS1_RSAENCRYPTION {
        return Err(CsrError::KeyType);
    }
    match spki.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let bits = bits(key.modulus);
            if !RSA_BITS.contains(&bits) {
                return Err(CsrError::RsaSize(bits));
            }
            // 65537 is what everybody uses; small exponents are a weakness and large ones a burden on each verifier.
            if key
                .exponent
                .iter()
                .skip_while(|byte| **byte == 0)
                .ne(&[1, 0, 1])
            {
                return Err(CsrError::RsaExponent);
            }
            Ok(())
        }
        _ => Err(CsrError::Malformed),
    }
}

fn bits(number: &[u8]) -> usize {
    let number = match number.iter().position(|byte| *byte != 0) {
        Some(start) => &number[start..],
        None => return 0,
    };
    number.len() * 8 - number[0].leading_zeros() as usize
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Nothing we would read.
    #[error("the certificate request has {0} bytes; at most {LONGEST_CSR} are read")]
    TooLong(usize),
    /// Not a request in DER.
    #[error("the certificate request is not PKCS#10 in DER")]
    Malformed,
    /// More than one thing.
    #[error("{0} bytes follow the certificate request")]
    TrailingBytes(usize),
    /// An algorithm that we do not certify.
    #[error("the key is neither P-256, P-384, Ed25519 nor RSA")]
    KeyType,
    /// An elliptic curve that we do not certify.
    #[error("the key's curve is neither P-256 nor P-384")]
    Curve,
    /// Too weak, or a burden on verifiers.
    #[error("an RSA key has {min} to {max} bits; this one has {0}", min = RSA_BITS.start(), max = RSA_BITS.end())]
    RsaSize(usize),
    /// Not 65537.
    #[error("the public exponent of an RSA key must be 65537")]
    RsaExponent,
    /// The request is not signed by the key in it.
    #[error("the certificate request is not signed by the key in it")]
    NoPossession,
}

impl CsrError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        Blame::Caller
    }
}

impl Coded for CsrError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "FNL1201",
            Self::Malformed => "FNL1202",
            Self::TrailingBytes(_) => "FNL1203",
            Self::KeyType => "FNL1204",
            Self::Curve => "FNL1205",
            Self::RsaSize(_) => "FNL1206",
            Self::RsaExponent => "FNL1207",
            Self::NoPossession => "FNL1208",
        }
    }
}

#[cfg(test)]
mod tests;
