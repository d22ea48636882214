//! Private keys that sign: of which kinds they are, how they are made, and how each kind signs certificates and tokens.
//! Trusts ring for the arithmetic. A key's kind is read from the key itself, so that authorities of several kinds live side by side.

use mesh_identity::jwt::JwtAlgorithm;
use mesh_tls::{RsaSize, new_rsa_key};
use rcgen::PublicKeyData;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING,
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::AuthorityError;

/// The kind of a key that signs, in SPIRE's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyType {
    /// ECDSA on P-256 with SHA-256.
    #[default]
    #[serde(rename = "ec-p256")]
    EcP256,
    /// ECDSA on P-384 with SHA-384.
    #[serde(rename = "ec-p384")]
    EcP384,
    /// RSA of 2048 bits with SHA-256.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// RSA of 4096 bits with SHA-256.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

/// A new key's PKCS#8, on its way to being sealed.
pub(in super::super) type Pkcs8 = Zeroizing<Vec<u8>>;

/// A new key that signs certificates or tokens. Its PKCS#8 is for making the signer and for sealing, and for nothing else.
pub(in super::super) async fn generate(kind: KeyType) -> Result<Pkcs8, AuthorityError> {
    let made = match kind {
        KeyType::EcP256 => ec(&ECDSA_P256_SHA256_ASN1_SIGNING),
        KeyType::EcP384 => ec(&ECDSA_P384_SHA384_ASN1_SIGNING),
        KeyType::Rsa2048 => rsa(RsaSize::Bits2048).await,
        KeyType::Rsa4096 => rsa(RsaSize::Bits4096).await,
    };
    made.ok_or_else(|| AuthorityError::Make {
        reason: "no key could be made".into(),
    })
}

fn ec(algorithm: &'static EcdsaSigningAlgorithm) -> Option<Pkcs8> {
    let document = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).ok()?;
    Some(Zeroizing::new(document.as_ref().to_vec()))
}

/// Primes are looked for beside what serves: it can take seconds.
async fn rsa(size: RsaSize) -> Option<Pkcs8> {
    tokio::task::spawn_blocking(move || new_rsa_key(size))
        .await
        .ok()?
}

/// How ECDSA signatures are written: as certificates have them, or as tokens have them.
#[derive(Clone, Copy)]
enum Form {
    Der,
    Fixed,
}

enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Pair {
    /// A key of any of our kinds; each refuses the PKCS#8 of the others.
    fn from_pkcs8(pkcs8: &Pkcs8, form: Form) -> Result<Self, String> {
        let (p256, p384) = match form {
            Form::Der => (
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                &ECDSA_P384_SHA384_ASN1_SIGNING,
            ),
            Form::Fixed => (
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                &ECDSA_P384_SHA384_FIXED_SIGNING,
            ),
        };
        let ec = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &SystemRandom::new());
        if let Ok(pair) = ec(p256) {
            return Ok(Self::P256(pair));
        }
        if let Ok(pair) = ec(p384) {
            return Ok(Self::P384(pair));
        }
        let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(
            |_| "the key is neither EC P-256, EC P-384 nor RSA of 2048 to 4096 bits, in PKCS#8",
        )?;
        Ok(Self::Rsa(pair))
    }

    /// The bits of its public key, as a SubjectPublicKeyInfo holds them.
    fn public_bits(&self) -> &[u8] {
        match self {
            Self::P256(pair) | Self::P384(pair) => pair.public_key().as_ref(),
            Self::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::P256(_) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384(_) => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
        }
    }

    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::P256(pair) | Self::P384(pair) => {
                Some(pair.sign(&random, message).ok()?.as_ref().to_vec())
            }
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .ok()?;
                Some(signature)
            }
        }
    }
}

impl PublicKeyData for Pair {
    fn der_bytes(&self) -> &[u8] {
        self.public_bits()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm()
    }
}

/// A private key that signs certificates.
pub(in super::super) struct CaKey(Pair);

impl CaKey {
    pub(in super::super) fn from_pkcs8(pkcs8: &Pkcs8) -> Result<Self, String> {
        Pair::from_pkcs8(pkcs8, Form::Der).map(Self)
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_bits()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl rcgen::SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message).ok_or(rcgen::Error::RingUnspecified)
    }
}

/// A private key that signs tokens: its ECDSA signatures are r and s, as RFC 7518 3.4 wants them.
pub(in super::super) struct TokenKey(Pair);

impl TokenKey {
    pub(in super::super) fn from_pkcs8(pkcs8: &Pkcs8) -> Result<Self, String> {
        Pair::from_pkcs8(pkcs8, Form::Fixed).map(Self)
    }

    /// Its public key as a SubjectPublicKeyInfo.
    pub(in super::super) fn public_key(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// What its signatures are called in a token.
    pub(in super::super) fn algorithm(&self) -> JwtAlgorithm {
        match &self.0 {
            Pair::P256(_) => JwtAlgorithm::Es256,
            Pair::P384(_) => JwtAlgorithm::Es384,
            Pair::Rsa(_) => JwtAlgorithm::Rs256,
        }
    }

    pub(in super::super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.0.sign(message)
    }
}
