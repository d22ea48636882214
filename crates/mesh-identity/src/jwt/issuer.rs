//! Decides whether a token of an ordinary issuer (RFC 7519, as OpenID providers make them) is good for us now.
//! Trusts only the keys that it is given for that issuer.
//! Never believes the header about keys, never accepts `crit`, an algorithm without a key, or a token without an end.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::{
    JwtAlgorithm, JwtAuthority, JwtError, LEEWAY, MAX_JWT_BYTES, audience, decode, numeric_date,
    object,
};

/// What a token has to say.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Its `iss`, byte by byte.
    pub issuer: &'a str,
    /// One of these has to be in its `aud`; empty: any.
    pub audiences: &'a [String],
}

/// A token that its issuer signed. The only way to one is [`verify_issued`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct IssuedToken {
    /// Who made it.
    pub issuer: String,
    /// Of whom it speaks; never empty.
    pub subject: String,
    /// For whom it was made; may be empty.
    pub audience: Vec<String>,
    /// Until when it is valid, without leeway.
    pub expires_at: SystemTime,
    /// All its claims as they were signed.
    pub claims: Map<String, Value>,
}

/// What a token says about its issuer, unproven: only to choose by whose keys it has to be verified.
#[must_use]
pub fn issuer_of(token: &str) -> Option<String> {
    unproven(token, "iss")
}

/// What a token says of whom it speaks, unproven: only to choose by whose keys a JWT-SVID has to be verified, which may have no `iss`.
#[must_use]
pub fn subject_of(token: &str) -> Option<String> {
    unproven(token, "sub")
}

fn unproven(token: &str, claim: &str) -> Option<String> {
    if token.len() > MAX_JWT_BYTES {
        return None;
    }
    let claims = object(token.split('.').nth(1)?).ok()?;
    claims.get(claim)?.as_str().map(str::to_owned)
}

/// Verifies a token in compact form by the keys of its issuer, at a moment.
///
/// # Errors
/// The first reason found; what costs nothing is looked at first, the signature last.
pub fn verify_issued(
    token: &str,
    keys: &[JwtAuthority],
    expected: Expected<'_>,
    now: SystemTime,
) -> Result<IssuedToken, JwtError> {
    if token.len() > MAX_JWT_BYTES {
        return Err(JwtError::TooLarge(token.len()));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::NotCompact)?;
    let (header, payload) = signed.split_once('.').ok_or(JwtError::NotCompact)?;
    if payload.contains('.') {
        return Err(JwtError::NotCompact);
    }
    let (algorithm, key_id) = read_header(&object(header)?)?;
    let claims = object(payload)?;
    let signature = decode(signature)?;

    let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
    if text("iss") != Some(expected.issuer) {
        return Err(JwtError::Issuer);
    }
    let subject = text("sub")
        .filter(|subject| !subject.is_empty())
        .ok_or(JwtError::NoSubject)?
        .to_owned();
    let date = |claim| match claims.get(claim) {
        None => Ok(None),
        Some(value) => numeric_date(value).map(Some).ok_or(JwtError::Date(claim)),
    };
    let expires_at = date("exp")?.ok_or(JwtError::Date("exp"))?;
    if now >= expires_at + LEEWAY {
        return Err(JwtError::Expired);
    }
    let begins = date("nbf")?.into_iter().chain(date("iat")?).max();
    if begins.is_some_and(|begins| begins > now + LEEWAY) {
        return Err(JwtError::NotYetValid);
    }
    let audience = match claims.get("aud") {
        None => Vec::new(),
        there => audience(there).ok_or(JwtError::NoAudience)?,
    };
    let ours = expected.audiences.is_empty()
        || audience
            .iter()
            .any(|value| expected.audiences.contains(value));
    if !ours {
        return Err(JwtError::Audience);
    }
    let key = match &key_id {
        Some(id) => keys.iter().find(|key| key.key_id() == id),
        // Without a name there must be nothing to choose from.
        None if keys.len() == 1 => keys.first(),
        None => return Err(JwtError::NoKeyId),
    };
    key.ok_or(JwtError::UnknownKey)?
        .verify(algorithm, signed.as_bytes(), &signature)?;
    Ok(IssuedToken {
        issuer: expected.issuer.to_owned(),
        subject,
        audience,
        expires_at,
        claims,
    })
}

/// Algorithm and key ID. Other parameters may be there and are not looked at, least of all those that bring keys;
/// `crit` would say that one of them must be understood (RFC 7515 4.1.11).
fn read_header(header: &Map<String, Value>) -> Result<(JwtAlgorithm, Option<String>), JwtError> {
    let algorithm = header
        .get("alg")
        .and_then(Value::as_str)
        .and_then(|name| name.parse().ok())
        .ok_or(JwtError::Algorithm)?;
    if header.contains_key("crit") {
        return Err(JwtError::HeaderParameter("crit".to_owned()));
    }
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) if !id.is_empty() => Some(id.clone()),
        Some(_) => return Err(JwtError::NoKeyId),
    };
    Ok((algorithm, key_id))
}

#[cfg(test)]
mod tests;
