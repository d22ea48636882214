//! Decides which token a process gets: one that is kept, until half of its life is over, else a new one from the CA.
//! Trusts nothing that comes back: a token is looked at as a verifier would before it is kept or handed on.
//! Never gives a token to another entry or for another audience than it was made for, never keeps more than a fixed number.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

use futures::future::BoxFuture;
use mesh_identity::{
    BundleSet, Entry, EntryId, SpiffeId,
    jwt::{JwtError, JwtSvid, verify_jwt_svid},
};
use mesh_runtime::{clock::Clock, errors::ErrorChain, telemetry::Secret};
use tokio::time::Instant;

use crate::rotation::{Random, renew_at};

/// Tokens that are kept; beyond it the one that was not used for longest goes.
const MOST_KEPT: usize = 1000;

/// Whoever makes tokens.
pub trait MakeToken: Send + Sync {
    /// A token in compact form for an entry and these audiences.
    fn make<'a>(
        &'a self,
        entry: &'a EntryId,
        audience: &'a [String],
    ) -> BoxFuture<'a, Result<Secret<String>, TokenError>>;
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The agent has not proved itself yet.
    #[error("the agent is not connected to its CA yet")]
    NotConnected,
    /// The CA did not answer, or said no.
    #[error("the CA gave no token")]
    NotMade(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A verifier would refuse what came.
    #[error("a verifier would refuse the CA's token")]
    Unverified(#[source] JwtError),
    /// It names somebody else.
    #[error("the CA's token is for {got}, not for {wanted}")]
    OtherId {
        /// What was asked for.
        wanted: SpiffeId,
        /// What came.
        got: SpiffeId,
    },
}

/// A token, checked.
pub struct Token {
    text: Secret<String>,
    svid: JwtSvid,
    name: String,
    revision: u64,
    renew_at: SystemTime,
}

impl Token {
    /// The token, for the one answer that carries it to its owner.
    pub fn expose(&self) -> &str {
        self.text.expose()
    }

    /// What it says.
    pub fn svid(&self) -> &JwtSvid {
        &self.svid
    }

    /// What the record calls it: its own name if it has one, else the key that signed it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is for the entry as it is now and a verifier accepts it still.
    fn is_good(&self, entry: &Entry, bundles: &BundleSet, now: SystemTime) -> bool {
        let authority = bundles
            .get(self.svid.id.trust_domain())
            .and_then(|bundle| bundle.jwt_authority(&self.svid.key_id));
        self.revision == entry.revision
            && self.svid.id == entry.spiffe_id
            && now < self.svid.expires_at
            && authority.is_some_and(|authority| authority.is_valid_at(now))
    }

    /// Whether it needs no successor yet. One by a tainted authority does at once.
    fn is_fresh(&self, bundles: &BundleSet, now: SystemTime) -> bool {
        let authority = bundles
            .get(self.svid.id.trust_domain())
            .and_then(|bundle| bundle.jwt_authority(&self.svid.key_id));
        now < self.renew_at && authority.is_some_and(|authority| !authority.is_tainted())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.svid.id)
            .finish_non_exhaustive()
    }
}

type Key = (EntryId, BTreeSet<String>);

/// The tokens of this node.
#[derive(Default)]
pub struct Tokens {
    maker: OnceLock<Arc<dyn MakeToken>>,
    kept: Mutex<HashMap<Key, (Arc<Token>, Instant)>>,
    random: Random,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// Says who makes tokens, once it is known. The first one stays.
    pub fn connect(&self, maker: Arc<dyn MakeToken>) {
        self.maker.set(maker).ok();
    }

    /// A token of an entry for these audiences. If the CA is away, one that is kept goes on as long as it is valid.
    pub async fn get(
        &self,
        entry: &Entry,
        audience: &[String],
        bundles: &BundleSet,
        clock: &Clock,
    ) -> Result<Arc<Token>, TokenError> {
        let audience: BTreeSet<String> = audience
            .iter()
            .filter(|value| !value.is_empty())
            .cloned()
            .collect();
        let key = (entry.id.clone(), audience);
        let kept = self
            .kept(&key, clock.monotonic())
            .filter(|token| token.is_good(entry, bundles, clock.now()));
        if let Some(token) = &kept
            && token.is_fresh(bundles, clock.now())
        {
            return Ok(Arc::clone(token));
        }
        match self.make(entry, &key.1, bundles, clock.now()).await {
            Ok(token) => {
                let token = Arc::new(token);
                self.keep(key, Arc::clone(&token), clock.monotonic());
                Ok(token)
            }
            Err(error) => match kept.filter(|token| token.is_good(entry, bundles, clock.now())) {
                Some(token) => {
                    tracing::debug!(error = %ErrorChain(&error), "a token could not be renewed and goes on");
                    Ok(token)
                }
                None => Err(error),
            },
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn make(
        &self,
        entry: &Entry,
        audience: &BTreeSet<String>,
        bundles: &BundleSet,
        now: SystemTime,
    ) -> Result<Token, TokenError> {
        let maker = self.maker.get().ok_or(TokenError::NotConnected)?;
        let audience: Vec<String> = audience.iter().cloned().collect();
        let text = maker.make(&entry.id, &audience).await?;
        // Each audience has to be in it, not only one of them.
        let mut verdict = verify_jwt_svid(text.expose(), bundles, &audience, now);
        if let Ok(svid) = &verdict
            && !audience.iter().all(|value| svid.audience.contains(value))
        {
            verdict = Err(JwtError::Audience);
        }
        let svid = verdict.map_err(TokenError::Unverified)?;
        if svid.id != entry.spiffe_id {
            return Err(TokenError::OtherId {
                wanted: entry.spiffe_id.clone(),
                got: svid.id,
            });
        }
        let own_name = svid.claims.get("jti").and_then(serde_json::Value::as_str);
        Ok(Token {
            name: own_name.unwrap_or(&svid.key_id).to_owned(),
            text,
            revision: entry.revision,
            renew_at: renew_at(now, svid.expires_at, &self.random),
            svid,
        })
    }

    fn kept(&self, key: &Key, now: Instant) -> Option<Arc<Token>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (token, used) = kept.get_mut(key)?;
        *used = now;
        Some(Arc::clone(token))
    }

    fn keep(&self, key: Key, token: Arc<Token>, now: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT && !kept.contains_key(&key) {
            let oldest = kept.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                kept.remove(&oldest);
            }
        }
        kept.insert(key, (token, now));
    }
}

#[cfg(test)]
mod tests;
