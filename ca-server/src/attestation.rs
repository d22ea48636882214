//! Decides whether a node is what it says it is: evidence → `AttestedNode`, or a refusal with a reason of its own.
//! Trusts a join token once, a cluster's API server for its own pods and nodes, and configured roots for the keys below them.
//! Never believes what an agent says about itself.

mod join_token;
mod k8s;
mod x509pop;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use mesh_identity::{Selector, SpiffeId, TrustDomain};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Blame, Coded};
use mesh_runtime::span;
use tracing::Instrument;

use crate::config::NodeAttestor;
use crate::fleet::Fleet;
use crate::issuance::VerifiedCsr;
use crate::store::{KubernetesFacts, Nodes, StoreError, Tokens};

pub use self::join_token::{JoinTokenRefused, agent_id as join_token_agent_id};
pub use self::k8s::{Cluster, ClusterError, K8sRefused};
pub use self::x509pop::{Challenged, RootsError, X509PopRefused};

/// The longest evidence that is read. A service-account token has 1 to 2 KiB.
pub const LONGEST_EVIDENCE: usize = 32 * 1024;

/// A node that has proved itself just now. Made only here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestedNode {
    /// The agent's SPIFFE ID.
    pub id: SpiffeId,
    /// `join_token`, `k8s_psat` or `x509pop`.
    pub kind: &'static str,
    /// What was found out about the node.
    pub selectors: BTreeSet<Selector>,
    /// Whether it attests again instead of renewing.
    pub can_reattest: bool,
    /// What the cluster said.
    pub kubernetes: Option<KubernetesFacts>,
    /// A name that it shall have besides its own.
    pub alias: Option<SpiffeId>,
    /// What ties the record to the evidence: the credential's id, never the credential.
    pub evidence_id: String,
}

/// The ways in which nodes may prove themselves here.
pub struct Attestors {
    join_token: Option<join_token::JoinTokens>,
    clusters: BTreeMap<String, Cluster>,
    x509pop: Option<x509pop::X509Pop>,
}

/// What the attestors need besides their configuration.
#[derive(Clone)]
pub struct Surroundings {
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Things that may be used once.
    pub tokens: Arc<dyn Tokens>,
    /// The agents that are known.
    pub nodes: Arc<dyn Nodes>,
    /// Which of them are connected.
    pub fleet: Fleet,
    /// The time.
    pub clock: Clock,
}

impl Attestors {
    /// The attestors of a configuration.
    pub async fn open(
        configured: &[NodeAttestor],
        around: &Surroundings,
    ) -> Result<Self, AttestorsError> {
        let mut attestors = Self {
            join_token: None,
            clusters: BTreeMap::new(),
            x509pop: None,
        };
        for one in configured {
            match one {
                NodeAttestor::JoinToken(_) => {
                    attestors.join_token = Some(join_token::JoinTokens::new(around.clone()));
                }
                NodeAttestor::K8sPsat(cluster) => {
                    let opened = Cluster::open(cluster, around.clone()).await?;
                    attestors.clusters.insert(cluster.cluster.clone(), opened);
                }
                NodeAttestor::X509Pop(roots) => {
                    attestors.x509pop = Some(x509pop::X509Pop::open(roots, around.clone())?);
                }
            }
        }
        Ok(attestors)
    }

    /// Judges the evidence of a node. The key in the request has been proven; the evidence is tied to it where it can be.
    pub async fn attest(
        &self,
        kind: &str,
        evidence: &[u8],
        csr: &VerifiedCsr,
    ) -> Result<Attestation, AttestError> {
        bounded(evidence)?;
        self.judge(kind, evidence, csr)
            .instrument(span!("attest node"))
            .await
    }

    async fn judge(
        &self,
        kind: &str,
        evidence: &[u8],
        csr: &VerifiedCsr,
    ) -> Result<Attestation, AttestError> {
        match (kind, &self.join_token, &self.x509pop) {
            ("join_token", Some(tokens), _) => {
                Ok(Attestation::Proven(tokens.attest(evidence).await?.into()))
            }
            ("x509pop", _, Some(roots)) => {
                Ok(Attestation::Challenged(roots.challenge(evidence)?.into()))
            }
            ("k8s_psat", _, _) if !self.clusters.is_empty() => {
                let ask = k8s::Evidence::parse(evidence)?;
                let cluster = self
                    .clusters
                    .get(ask.cluster())
                    .ok_or(K8sRefused::UnknownCluster)?;
                Ok(Attestation::Proven(cluster.attest(ask, csr).await?.into()))
            }
            _ => Err(AttestError::UnknownKind),
        }
    }
}

/// Reads bytes as the evidence of a node, in each way in which a node may attest, as far as that goes without a call.
pub(crate) fn read_for_fuzzing(bytes: &[u8], own: &TrustDomain) {
    k8s::read_for_fuzzing(bytes);
    x509pop::read_for_fuzzing(bytes, own);
}

/// Evidence that was judged.
pub enum Attestation {
    /// The node is what it says.
    Proven(Box<AttestedNode>),
    /// It has to answer first.
    Challenged(Box<Challenged>),
}

/// What a node says is read up to a bound, first word and answer alike.
pub fn bounded(said: &[u8]) -> Result<&[u8], AttestError> {
    match said.len() > LONGEST_EVIDENCE {
        true => Err(AttestError::TooLong(said.len())),
        false => Ok(said),
    }
}

/// Why a way to attest cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum AttestorsError {
    /// A cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The roots of an outside authority.
    #[error(transparent)]
    Roots(#[from] RootsError),
}

impl Coded for AttestorsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Cluster(error) => error.code(),
            Self::Roots(error) => error.code(),
        }
    }
}

/// Why a node was not believed.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// Nothing we would read.
    #[error("the evidence has {0} bytes; at most {LONGEST_EVIDENCE} are read")]
    TooLong(usize),
    /// A way that is not configured.
    #[error("this way of attestation is not configured")]
    UnknownKind,
    /// A join token.
    #[error(transparent)]
    JoinToken(#[from] JoinTokenRefused),
    /// A service-account token.
    #[error(transparent)]
    K8s(#[from] K8sRefused),
    /// A certificate of an outside authority.
    #[error(transparent)]
    X509Pop(#[from] X509PopRefused),
    /// The agent is banned.
    #[error("agent {0} is banned")]
    Banned(SpiffeId),
    /// The store did not answer.
    #[error("the agent could not be stored")]
    Store(#[from] StoreError),
}

impl AttestError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::K8s(error) => error.blame(),
            Self::JoinToken(JoinTokenRefused::Store(error)) | Self::Store(error) => error.blame(),
            Self::X509Pop(X509PopRefused::Random) => Blame::Us,
            _ => Blame::Caller,
        }
    }
}

impl Coded for AttestError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooLong(_) => "FNL1101",
            Self::UnknownKind => "FNL1102",
            Self::JoinToken(error) => error.code(),
            Self::K8s(error) => error.code(),
            Self::X509Pop(error) => error.code(),
            Self::Banned(_) => "FNL1103",
            Self::Store(error) => error.code(),
        }
    }
}

/// Seconds since 1970.
fn seconds(moment: SystemTime) -> u64 {
    moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
