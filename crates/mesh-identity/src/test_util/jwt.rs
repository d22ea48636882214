//! Makes tokens for tests, right ones and deliberately wrong ones.
//! Trusts its caller completely: header and claims are signed as they are given.
//! Never compiled into a program.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        KeyPair as _,
    },
};
use serde_json::{Value, json};

use super::{KeyKind, now};
use crate::{
    Bundle, BundleSet, JwtAuthority,
    bundle::jwk::{Curve, Key},
};

/// A key that signs tokens.
pub struct JwtSigner {
    key_id: String,
    curve: Curve,
    pair: EcdsaKeyPair,
}

impl JwtSigner {
    /// A new key on P-256.
    pub fn new(key_id: &str) -> Self {
        Self::of_kind(key_id, KeyKind::P256)
    }

    /// A new key; EC only.
    pub fn of_kind(key_id: &str, kind: KeyKind) -> Self {
        let (curve, algorithm) = match kind {
            KeyKind::P256 => (Curve::P256, &ECDSA_P256_SHA256_FIXED_SIGNING),
            KeyKind::P384 => (Curve::P384, &ECDSA_P384_SHA384_FIXED_SIGNING),
            KeyKind::Ed25519 => panic!("JWT-SVIDs are not signed by Ed25519"),
        };
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("ring makes keys");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random)
            .expect("ring reads its keys");
        Self {
            key_id: key_id.to_owned(),
            curve,
            pair,
        }
    }

    /// What verifies its tokens.
    pub fn authority(&self) -> JwtAuthority {
        let key = Key::Ec {
            curve: self.curve,
            point: self.public_key().to_vec(),
        };
        JwtAuthority::of_key(&self.key_id, key).expect("the key is of a kind that we know")
    }

    /// The public point, without compression.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// A bundle with this authority alone.
    pub fn bundle(&self, domain: &str) -> Bundle {
        let domain = domain.parse().expect("a trust domain");
        Bundle::new(domain, [])
            .and_then(|bundle| bundle.with_jwt_authorities([self.authority()]))
            .expect("one authority fits")
    }

    /// A set with that bundle alone.
    pub fn bundles(&self, domain: &str) -> BundleSet {
        [self.bundle(domain)].into_iter().collect()
    }

    /// The header of a right token.
    pub fn header(&self) -> Value {
        let alg = match self.curve {
            Curve::P256 => "ES256",
            _ => "ES384",
        };
        json!({"alg": alg, "kid": self.key_id, "typ": "JWT"})
    }

    /// A right token for this ID and audience, valid for five minutes from [`now`] on.
    pub fn token(&self, id: &str, audience: &str) -> String {
        self.sign(&self.header(), &claims(id, audience))
    }

    /// Signs a header and claims, whatever they are.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs two texts as header and claims, whatever they are.
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signature = self.raw_signature(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The bare signature of these bytes.
    pub fn raw_signature(&self, signed: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(&SystemRandom::new(), signed);
        signature.expect("ring signs").as_ref().to_vec()
    }
}

/// The claims of a right token.
pub fn claims(id: &str, audience: &str) -> Value {
    let now = now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("it lies behind 1970")
        .as_secs();
    json!({"sub": id, "aud": [audience], "exp": now + 300, "iat": now})
}
