//! Decides whether a token is a JWT-SVID for us now: JWT-SVID 3 and 4 on top of RFC 7515 and RFC 7519, signatures by ring.
//! Trusts only the JWT authorities in the bundle of the trust domain that `sub` names, each checked when the bundle was loaded.
//! Never believes the header about keys, never takes an algorithm that the authority's key is not for, never keeps the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use crate::{BundleSet, SpiffeId, SpiffeIdError, TrustDomain};

mod algorithm;
mod authority;
mod issue;
mod issuer;
mod strict;

pub use algorithm::JwtAlgorithm;
pub use authority::{JwtAuthority, JwtAuthorityError, MAX_KEY_ID_BYTES};
pub use issue::{Claims, IssueError, SigningInput};
pub use issuer::{Expected, IssuedToken, issuer_of, subject_of, verify_issued};

/// Largest token that is read, in bytes; what servers accept as one header field ends there.
pub const MAX_JWT_BYTES: usize = 16 * 1024;

/// How far clocks may disagree: a token counts for so long after `exp`, and so long before `nbf` and `iat`. SPIRE's value.
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The last second of the year 9999; no honest date lies behind it.
const LAST_SECOND: u64 = 253_402_300_799;

/// What a token has proven. The only way to one is [`verify_jwt_svid`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JwtSvid {
    /// Who the caller is.
    pub id: SpiffeId,
    /// For whom the token was made; never empty.
    pub audience: Vec<String>,
    /// Until when it is valid, without leeway.
    pub expires_at: SystemTime,
    /// When it was made, if it says so.
    pub issued_at: Option<SystemTime>,
    /// The key ID of the authority that signed it.
    pub key_id: String,
    /// Whether that authority is marked as tainted.
    pub authority_tainted: bool,
    /// All its claims as they were signed.
    pub claims: Map<String, Value>,
}

/// Verifies a token in compact form, made for at least one of our audiences, at a moment.
///
/// What costs nothing is looked at first: the algorithm before any other member of the header, the signature last.
pub fn verify_jwt_svid<A: AsRef<str>>(
    token: &str,
    bundles: &BundleSet,
    audience: &[A],
    now: SystemTime,
) -> Result<JwtSvid, JwtError> {
    if token.len() > MAX_JWT_BYTES {
        return Err(JwtError::TooLarge(token.len()));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::NotCompact)?;
    let (header, payload) = signed.split_once('.').ok_or(JwtError::NotCompact)?;
    if payload.contains('.') {
        return Err(JwtError::NotCompact);
    }
    let header = Header::read(&object(header)?)?;
    let claims = object(payload)?;
    let signature = decode(signature)?;

    let said = Said::read(&claims)?;
    if now >= said.expires_at + LEEWAY {
        return Err(JwtError::Expired);
    }
    let begins = said.not_before.into_iter().chain(said.issued_at).max();
    if begins.is_some_and(|begins| begins > now + LEEWAY) {
        return Err(JwtError::NotYetValid);
    }
    let ours = |value: &String| audience.iter().any(|own| own.as_ref() == value);
    if !said.audience.iter().any(ours) {
        return Err(JwtError::Audience);
    }

    let domain = said.id.trust_domain();
    let bundle = bundles
        .get(domain)
        .ok_or_else(|| JwtError::NoBundle(domain.clone()))?;
    let authority = bundle
        .jwt_authority(&header.key_id)
        .filter(|authority| authority.is_valid_at(now))
        .ok_or(JwtError::UnknownAuthority(domain.clone()))?;
    authority.verify(header.algorithm, signed.as_bytes(), &signature)?;
    Ok(JwtSvid {
        id: said.id,
        audience: said.audience,
        expires_at: said.expires_at,
        issued_at: said.issued_at,
        key_id: header.key_id,
        authority_tainted: authority.is_tainted(),
        claims,
    })
}

/// Base64url without padding and without stray bits, as RFC 7515 demands; nothing is not a part.
fn decode(part: &str) -> Result<Vec<u8>, JwtError> {
    match URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(JwtError::NotCompact),
    }
}

fn object(part: &str) -> Result<Map<String, Value>, JwtError> {
    strict::object(&decode(part)?).ok_or(JwtError::Json)
}

/// The header of a JWT-SVID: JWT-SVID 2 allows these members and no other.
struct Header {
    algorithm: JwtAlgorithm,
    key_id: String,
}

impl Header {
    fn read(header: &Map<String, Value>) -> Result<Self, JwtError> {
        let algorithm = header
            .get("alg")
            .and_then(Value::as_str)
            .and_then(|name| name.parse().ok())
            .ok_or(JwtError::Algorithm)?;
        if let Some(other) = header
            .keys()
            .find(|name| !matches!(name.as_str(), "alg" | "kid" | "typ"))
        {
            let name = other.chars().filter(|c| !c.is_control()).take(40).collect();
            return Err(JwtError::HeaderParameter(name));
        }
        if !matches!(
            header.get("typ").map(Value::as_str),
            None | Some(Some("JWT" | "JOSE"))
        ) {
            return Err(JwtError::Type);
        }
        let key_id = match header.get("kid").and_then(Value::as_str) {
            Some(id) if !id.is_empty() => id.to_owned(),
            _ => return Err(JwtError::NoKeyId),
        };
        Ok(Self { algorithm, key_id })
    }
}

/// The registered claims that decide.
struct Said {
    id: SpiffeId,
    audience: Vec<String>,
    expires_at: SystemTime,
    not_before: Option<SystemTime>,
    issued_at: Option<SystemTime>,
}

impl Said {
    fn read(claims: &Map<String, Value>) -> Result<Self, JwtError> {
        let subject = claims
            .get("sub")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let id: SpiffeId = subject.parse().map_err(JwtError::Subject)?;
        if id.is_path_less() {
            return Err(JwtError::SubjectWithoutPath);
        }
        let date = |claim| match claims.get(claim) {
            None => Ok(None),
            Some(value) => numeric_date(value).map(Some).ok_or(JwtError::Date(claim)),
        };
        Ok(Self {
            audience: audience(claims.get("aud")).ok_or(JwtError::NoAudience)?,
            expires_at: date("exp")?.ok_or(JwtError::Date("exp"))?,
            not_before: date("nbf")?,
            issued_at: date("iat")?,
            id,
        })
    }
}

/// One text, or a list of at least one; none of them empty (RFC 7519 4.1.3, JWT-SVID 3.2).
fn audience(claim: Option<&Value>) -> Option<Vec<String>> {
    let values = match claim? {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many
            .iter()
            .map(|value| value.as_str().map(str::to_owned))
            .collect::<Option<_>>()?,
        _ => return None,
    };
    (!values.is_empty() && values.iter().all(|value| !value.is_empty())).then_some(values)
}

/// A NumericDate (RFC 7519 2), which may have a fraction; it is dropped.
fn numeric_date(value: &Value) -> Option<SystemTime> {
    let seconds = match value.as_u64() {
        Some(seconds) => seconds,
        None => {
            let number = value.as_f64().filter(|n| (0.0..1e12).contains(n))?;
            Duration::from_secs_f64(number).as_secs()
        }
    };
    (seconds <= LAST_SECOND).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Why a token proves nothing. Nothing of the token is quoted but the name of a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// More bytes than [`MAX_JWT_BYTES`].
    #[error("the token has {0} bytes; at most {MAX_JWT_BYTES} are read")]
    TooLarge(usize),
    /// Not three parts of base64url between two dots.
    #[error("the token is not a JWS in compact form")]
    NotCompact,
    /// Header or claims are no JSON object, or a member occurs twice.
    #[error("header or claims of the token are not a JSON object with each member once")]
    Json,
    /// `alg` is missing or none that we accept.
    #[error(
        "the token's algorithm is not accepted; RS, PS and ES with 256, 384 or 512 bits are, save ES512"
    )]
    Algorithm,
    /// A header parameter that JWT-SVIDs do not have.
    #[error("the token's header has the parameter {0:?}; only alg, kid and typ are accepted")]
    HeaderParameter(String),
    /// `typ` is another.
    #[error("the token's typ is neither JWT nor JOSE")]
    Type,
    /// No `kid`.
    #[error("the token's header names no key (kid)")]
    NoKeyId,
    /// `sub` is no SPIFFE ID.
    #[error("the token's sub is not a SPIFFE ID")]
    Subject(#[source] SpiffeIdError),
    /// `sub` names a trust domain and no workload.
    #[error("the token's sub is a SPIFFE ID without a path")]
    SubjectWithoutPath,
    /// `aud` is missing, empty or no text.
    #[error("the token has no audience (aud), or one that is not text")]
    NoAudience,
    /// `iss` is missing, or another than the one that was expected.
    #[error("the token's issuer (iss) is not the one that is expected")]
    Issuer,
    /// `sub` is missing or empty.
    #[error("the token names no subject (sub)")]
    NoSubject,
    /// The issuer's key set holds no such key.
    #[error("the token names a key that its issuer does not have")]
    UnknownKey,
    /// A date is missing or no date.
    #[error("the token's {0} is missing or not a date")]
    Date(&'static str),
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It was made for others.
    #[error("the token was made for another audience")]
    Audience,
    /// There is no bundle for its trust domain.
    #[error("there is no bundle for trust domain {0}, so none of its identities is trusted")]
    NoBundle(TrustDomain),
    /// The bundle of its trust domain holds no such key that is valid now.
    #[error("the token names a key that trust domain {0} does not have, or has no longer")]
    UnknownAuthority(TrustDomain),
    /// The named key is of another kind than the algorithm.
    #[error("the token's algorithm does not fit the key that it names")]
    KeyKind,
    /// The signature is not that of the named key.
    #[error("the token's signature does not fit the key that it names")]
    Signature,
}

impl JwtError {
    /// The code of this error in `docs/errors`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) | Self::NotCompact | Self::Json => "FNL0340",
            Self::Algorithm | Self::HeaderParameter(_) | Self::Type | Self::NoKeyId => "FNL0341",
            Self::Subject(_)
            | Self::SubjectWithoutPath
            | Self::NoAudience
            | Self::Date(_)
            | Self::Issuer
            | Self::NoSubject => "FNL0342",
            Self::Expired | Self::NotYetValid => "FNL0343",
            Self::Audience => "FNL0344",
            Self::NoBundle(_) | Self::UnknownAuthority(_) | Self::UnknownKey => "FNL0345",
            Self::KeyKind | Self::Signature => "FNL0346",
        }
    }
}

#[cfg(test)]
mod tests;
