//! What we put in a token: the profile of a JWT-SVID (JWT-SVID 2 and 3; spiffe.md C.6), signed by whatever its authority is.
//! Takes names and audiences from a template; its caller proved them.
//! Never signs outside its own validity, and never for longer than its own end.

use std::time::{Duration, SystemTime};

use mesh_identity::SpiffeId;
use mesh_identity::jwt::{Claims, SigningInput};
use mesh_runtime::telemetry::Secret;

use super::SignError;
use super::keys::{Pkcs8, TokenKey, new_token_id};
use super::times::{Times, whole_seconds};

/// What a token shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTemplate {
    /// Whom it names: a member of our trust domain, with a path.
    pub spiffe_id: SpiffeId,
    /// For whom it is made; empty ones are dropped and one must be left.
    pub audience: Vec<String>,
    /// How long it should live; it never outlives the authority.
    pub ttl: Duration,
    /// Whether it has a name of its own (`jti`).
    pub with_token_id: bool,
}

/// How many audiences a token may have, unless the configuration says otherwise.
pub const MOST_AUDIENCES: usize = 16;

/// What holds for every token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSettings {
    /// What it says of its issuer (`iss`), for verifiers that ask for it.
    pub issuer: Option<String>,
    /// The most audiences. Whoever of them receives a token can use it towards all the others (JWT-SVID 3.2), so they are few.
    pub most_audiences: usize,
}

impl Default for TokenSettings {
    fn default() -> Self {
        Self {
            issuer: None,
            most_audiences: MOST_AUDIENCES,
        }
    }
}

/// A signed token.
#[derive(Debug)]
pub struct SignedToken {
    /// The token in compact form. Whoever holds it is taken for the workload.
    pub token: Secret<String>,
    /// Which authority signed: its key id.
    pub authority_id: String,
    /// Its own name, if it has one.
    pub token_id: Option<String>,
    /// When it was made.
    pub issued_at: SystemTime,
    /// End of validity.
    pub expires_at: SystemTime,
}

/// A JWT authority that can sign.
pub(super) struct TokenSigner {
    key_id: String,
    times: Times,
    key: TokenKey,
}

impl TokenSigner {
    pub(super) fn new(key_id: String, times: Times, pkcs8: &Pkcs8) -> Result<Self, String> {
        Ok(Self {
            key_id,
            times,
            key: TokenKey::from_pkcs8(pkcs8)?,
        })
    }

    /// Its public key as a SubjectPublicKeyInfo.
    pub(super) fn public_key(&self) -> Vec<u8> {
        self.key.public_key()
    }

    pub(super) fn sign(
        &self,
        template: &TokenTemplate,
        settings: &TokenSettings,
        now: SystemTime,
    ) -> Result<SignedToken, SignError> {
        let audience = template.audience.iter().filter(|value| !value.is_empty());
        let (asked, most) = (audience.count(), settings.most_audiences);
        if asked > most {
            return Err(SignError::Audiences { asked, most });
        }
        if now < self.times.not_before || now >= self.times.not_after {
            return Err(SignError::NoAuthority);
        }
        let failed = |reason: &str| SignError::Failed {
            reason: reason.into(),
        };
        let token_id = match template.with_token_id {
            true => Some(new_token_id().ok_or_else(|| failed("no random numbers"))?),
            false => None,
        };
        let end = now
            .checked_add(template.ttl)
            .map_or(self.times.not_after, |end| end.min(self.times.not_after));
        let (issued_at, expires_at) = (whole_seconds(now), whole_seconds(end));
        if expires_at <= now {
            return Err(SignError::NoTime);
        }
        let claims = Claims {
            id: &template.spiffe_id,
            audience: &template.audience,
            issued_at,
            expires_at,
            issuer: settings.issuer.as_deref(),
            token_id: token_id.as_deref(),
        };
        let input = SigningInput::new(self.key.algorithm(), &self.key_id, &claims)?;
        let signature = self.key.sign(input.as_bytes());
        let signature = signature.ok_or_else(|| failed("the key did not sign"))?;
        Ok(SignedToken {
            token: Secret::new(input.with_signature(&signature)),
            authority_id: self.key_id.clone(),
            token_id,
            issued_at,
            expires_at,
        })
    }
}
