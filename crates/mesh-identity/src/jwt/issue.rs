//! Decides what a JWT-SVID says: header and claims, written here, signed elsewhere (JWT-SVID 2 and 3).
//! Trusts its caller about who may have the token and for how long.
//! Never holds a key, never writes a date that is no integer, a member twice or a header parameter that verifiers must not meet.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

use super::{JwtAlgorithm, MAX_JWT_BYTES};
use crate::SpiffeId;

/// What a token is to say.
#[derive(Debug, Clone)]
pub struct Claims<'a> {
    /// Whose it is (`sub`).
    pub id: &'a SpiffeId,
    /// For whom it is made (`aud`). Empty values are dropped, and one must be left.
    pub audience: &'a [String],
    /// When it is made (`iat`).
    pub issued_at: SystemTime,
    /// Until when it is valid (`exp`); a part of a second is dropped.
    pub expires_at: SystemTime,
    /// Who makes it (`iss`), for verifiers that ask for it.
    pub issuer: Option<&'a str>,
    /// A name of its own (`jti`).
    pub token_id: Option<&'a str>,
}

/// Header and claims in the form that is signed (RFC 7515 5.1).
#[derive(Debug)]
pub struct SigningInput(String);

impl SigningInput {
    /// Writes header and claims of a token that the authority of this key ID is going to sign.
    pub fn new(
        algorithm: JwtAlgorithm,
        key_id: &str,
        claims: &Claims<'_>,
    ) -> Result<Self, IssueError> {
        if claims.id.is_path_less() {
            return Err(IssueError::WithoutPath);
        }
        let audience: Vec<&str> = claims
            .audience
            .iter()
            .map(String::as_str)
            .filter(|value| !value.is_empty())
            .collect();
        if audience.is_empty() {
            return Err(IssueError::NoAudience);
        }
        let (iat, exp) = (seconds(claims.issued_at)?, seconds(claims.expires_at)?);
        if exp <= iat {
            return Err(IssueError::Lifetime);
        }
        let header = Header {
            alg: algorithm.as_str(),
            kid: key_id,
            typ: "JWT",
        };
        let payload = Payload {
            aud: audience,
            exp,
            iat,
            iss: claims.issuer,
            jti: claims.token_id,
            sub: claims.id.as_str(),
        };
        let text = format!("{}.{}", encode(&header), encode(&payload));
        // What nobody reads must not be made; the longest signature here is that of RSA with 8192 bits.
        if text.len() + 1 + 1024 * 4 / 3 > MAX_JWT_BYTES {
            return Err(IssueError::TooLarge);
        }
        Ok(Self(text))
    }

    /// What to sign.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The token in compact form. For ECDSA the signature is r and s, each of full size (RFC 7518 3.4).
    pub fn with_signature(self, signature: &[u8]) -> String {
        format!("{}.{}", self.0, URL_SAFE_NO_PAD.encode(signature))
    }
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    kid: &'a str,
    typ: &'static str,
}

#[derive(Serialize)]
struct Payload<'a> {
    aud: Vec<&'a str>,
    exp: u64,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<&'a str>,
    sub: &'a str,
}

fn encode(part: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).expect("strings and numbers always make JSON"))
}

fn seconds(time: SystemTime) -> Result<u64, IssueError> {
    let since = time.duration_since(UNIX_EPOCH);
    since
        .map(|since| since.as_secs())
        .map_err(|_| IssueError::Lifetime)
}

/// Why a token is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// No audience, or empty ones only.
    #[error("a JWT-SVID needs at least one audience")]
    NoAudience,
    /// The ID names a trust domain and no workload.
    #[error("a JWT-SVID needs a SPIFFE ID with a path")]
    WithoutPath,
    /// It would end before it begins, or before 1970.
    #[error("the JWT-SVID would not live for a second")]
    Lifetime,
    /// Larger than what verifiers read.
    #[error(
        "the JWT-SVID would be larger than {MAX_JWT_BYTES} bytes; ask for fewer or shorter audiences"
    )]
    TooLarge,
}
