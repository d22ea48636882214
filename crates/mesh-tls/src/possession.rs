//! Decides whether somebody holds the key of a certificate, outside of any handshake: a signature over a message, made and judged.
//! Trusts nothing but the signature; whose the certificate is, and whether it is good, others decide.
//! Never signs with a key of a kind that the other side could not judge.

use rustls::SignatureScheme;

use crate::WebIdentity;
use crate::provider;

/// A signature by the key of a certificate, in the parts that protocols want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Possession {
    /// RSASSA-PSS with SHA-256, the salt as long as the digest.
    Rsa(Vec<u8>),
    /// ECDSA on P-256 with SHA-256; both numbers without leading zeros.
    Ecdsa {
        /// The first number.
        r: Vec<u8>,
        /// The second.
        s: Vec<u8>,
    },
}

impl WebIdentity {
    /// The certificates, leaf first, in DER.
    pub fn chain(&self) -> impl Iterator<Item = &[u8]> {
        self.0.cert.iter().map(AsRef::as_ref)
    }

    /// Signs a message. `None` if the key is neither RSA nor on P-256: SHA-256 is what the protocols want, and the library signs with
    /// it on no other curve.
    pub fn prove(&self, message: &[u8]) -> Option<Possession> {
        let scheme = [
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::ECDSA_NISTP256_SHA256,
        ];
        let signer = self.0.key.choose_scheme(&scheme)?;
        let signature = signer.sign(message).ok()?;
        match signer.scheme() {
            SignatureScheme::RSA_PSS_SHA256 => Some(Possession::Rsa(signature)),
            _ => {
                let (r, s) = numbers(&signature)?;
                Some(Possession::Ecdsa { r, s })
            }
        }
    }
}

/// Whether this RSA key of 2048 to 8192 bits (an `RSAPublicKey` in DER) made this signature: RSASSA-PSS, SHA-256, with a salt as long as
/// the digest or as long as fits, which is what Go makes when nobody says otherwise.
pub fn rsa_pss_sha256_fits(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    provider::rsa_pss_sha256(public_key, message, signature)
}

/// The two numbers of an ECDSA signature on a curve of at most 384 bits (RFC 3279, 2.2.3).
fn numbers(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let [0x30, length, rest @ ..] = der else {
        return None;
    };
    if usize::from(*length) != rest.len() {
        return None;
    }
    let (r, rest) = number(rest)?;
    let (s, rest) = number(rest)?;
    rest.is_empty().then_some((r, s))
}

fn number(der: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let [0x02, length, rest @ ..] = der else {
        return None;
    };
    let (number, rest) = rest.split_at_checked(usize::from(*length))?;
    let start = number.iter().position(|byte| *byte != 0)?;
    Some((number[start..].to_vec(), rest))
}

#[cfg(test)]
mod tests;
