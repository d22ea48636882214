//! Decides whether a join token is good: known, not used, not void by time. It is used up by the asking.
//! Trusts the store for "exactly once". Never stores or logs the token before it is void.

use std::collections::BTreeSet;

use mesh_identity::{SpiffeId, SpiffeIdError, TrustDomain};
use mesh_runtime::errors::Coded;

use super::{AttestedNode, Surroundings};
use crate::store::{Spent, StoreError, token_hash};

/// The longest token: it becomes one segment of a SPIFFE ID.
const LONGEST: usize = 255;

pub(super) struct JoinTokens {
    around: Surroundings,
}

/// The SPIFFE ID of an agent that joins by a token.
pub fn agent_id(own: &TrustDomain, token: &str) -> Result<SpiffeId, SpiffeIdError> {
    SpiffeId::from_parts(own, &format!("/spire/agent/join_token/{token}"))
}

impl JoinTokens {
    pub(super) fn new(around: Surroundings) -> Self {
        Self { around }
    }

    pub(super) async fn attest(&self, evidence: &[u8]) -> Result<AttestedNode, JoinTokenRefused> {
        let token = std::str::from_utf8(evidence).map_err(|_| JoinTokenRefused::Malformed)?;
        if token.is_empty() || token.len() > LONGEST || token.contains('/') {
            return Err(JoinTokenRefused::Malformed);
        }
        let id =
            agent_id(&self.around.trust_domain, token).map_err(|_| JoinTokenRefused::Malformed)?;
        let spent = self
            .around
            .tokens
            .spend(token_hash(token), self.around.clock.now())
            .await?;
        match spent {
            Spent::Good { agent_id } => Ok(AttestedNode {
                id,
                kind: "join_token",
                selectors: BTreeSet::new(),
                can_reattest: false,
                kubernetes: None,
                alias: agent_id,
                evidence_id: String::new(),
            }),
            Spent::Unknown => Err(JoinTokenRefused::Unknown),
            Spent::Used => Err(JoinTokenRefused::Used),
            Spent::Expired => Err(JoinTokenRefused::Expired),
        }
    }
}

/// Why a join token was refused. The caller is told no more than SPIRE tells; the record says which.
#[derive(Debug, thiserror::Error)]
pub enum JoinTokenRefused {
    /// It cannot be one of ours.
    #[error("the join token is malformed")]
    Malformed,
    /// We did not make it.
    #[error("the join token does not exist")]
    Unknown,
    /// It was used before.
    #[error("the join token has been used")]
    Used,
    /// It is void by time.
    #[error("the join token has expired")]
    Expired,
    /// The store did not answer.
    #[error("the join token could not be looked up")]
    Store(#[from] StoreError),
}

impl Coded for JoinTokenRefused {
    fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "FNL1110",
            Self::Unknown => "FNL1111",
            Self::Used => "FNL1112",
            Self::Expired => "FNL1113",
            Self::Store(error) => error.code(),
        }
    }
}
