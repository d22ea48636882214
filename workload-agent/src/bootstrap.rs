//! Decides how this node is attested, and keeps the result: what proves the node becomes the agent's SVID.
//! Trusts the configured bundle on first contact, and only a server with the ID `/spire/server` in it.
//! Never shows a token or key, never uses an answer that a peer would refuse.

mod proof;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_identity::{Bundle, BundleError, BundleSet, SpiffeId, TrustDomain};
use mesh_runtime::{clock::Clock, errors::Coded};
use proto::{
    convert::{IssuedX509Svid, WireError},
    spire::api::{
        server::agent::v1::{
            self as wire, agent_client::AgentClient, attest_agent_request, attest_agent_response,
        },
        types,
    },
};
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::{
    config::{BundleFormat, ServerOptions},
    identity::{AgentIdentity, Proven},
    rotation::{self, SvidFault},
    state::{StateDir, StateError},
    upstream::{self, Remote},
};

use self::proof::Evidence;
pub use self::proof::{PossessionError, Proof};

/// How long the CA may take to decide.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why this node has no identity.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The configured bundle cannot be read.
    #[error("the trust bundle {} cannot be read", path.display())]
    BundleFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The configured bundle is no bundle.
    #[error("{} is not a trust bundle", path.display())]
    Bundle {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: BundleError,
    },
    /// The token cannot be read.
    #[error("the token {} cannot be read", path.display())]
    TokenFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The token file does not hold one token.
    #[error("the token {} is empty or holds blanks", path.display())]
    Token {
        /// Which file.
        path: PathBuf,
    },
    /// The certificate that proves this node, or its key.
    #[error("the certificate of this node cannot be used as proof")]
    Possession(#[from] PossessionError),
    /// The CA cannot be reached, or is not the one we trust.
    #[error("the ca-server at {address} does not answer")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        cause: Box<tonic::Status>,
    },
    /// The CA said no.
    #[error("the ca-server refused this node: {}", cause.message())]
    Refused {
        /// Its words.
        #[source]
        cause: Box<tonic::Status>,
    },
    /// The CA said that this node is banned.
    #[error("the ca-server has banned this node")]
    Banned,
    /// The CA wants an exchange that our way to attest does not have.
    #[error("the ca-server asks for something that this way to attest does not have")]
    Challenge,
    /// The CA's answer cannot be read.
    #[error("the ca-server's answer cannot be read")]
    Answer(#[source] WireError),
    /// The answer lacks a part.
    #[error("the ca-server's answer has no SVID")]
    NoSvid,
    /// The SVID is not one for an agent.
    #[error("the ca-server named this node {0}, which is no agent's ID")]
    NotAnAgent(SpiffeId),
    /// The SVID is not what was asked for.
    #[error("the agent's SVID cannot be used")]
    Svid(#[source] SvidFault),
    /// A peer would refuse the SVID.
    #[error("the agent's SVID cannot be used for mutual TLS")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The SVID cannot be kept.
    #[error("the agent's identity cannot be kept")]
    State(#[source] StateError),
}

impl BootstrapError {
    /// Whether the same attempt may succeed later without anybody doing anything.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

impl Coded for BootstrapError {
    fn code(&self) -> &'static str {
        match self {
            Self::BundleFile { .. } | Self::Bundle { .. } => "FNL2020",
            Self::TokenFile { .. } | Self::Token { .. } => "FNL2021",
            Self::Possession(_) => "FNL2031",
            Self::Unreachable { .. } => "FNL2022",
            Self::Refused { .. } => "FNL2023",
            Self::Banned => "FNL2024",
            Self::Challenge
            | Self::Answer(_)
            | Self::NoSvid
            | Self::NotAnAgent(_)
            | Self::Svid(_)
            | Self::Unusable(_) => "FNL2025",
            Self::State(cause) => cause.code(),
        }
    }
}

/// Reads the bundle that the first contact is checked against.
pub fn read_bundle(options: &ServerOptions, own: &TrustDomain) -> Result<Bundle, BootstrapError> {
    let path = &options.trust_bundle;
    let bytes = std::fs::read(path).map_err(|cause| BootstrapError::BundleFile {
        path: path.clone(),
        cause,
    })?;
    let bundle = match options.trust_bundle_format {
        BundleFormat::Pem => Bundle::from_pem(own.clone(), &bytes),
        BundleFormat::Spiffe => Bundle::from_spiffe_json(own.clone(), &bytes),
    };
    bundle.map_err(|cause| BootstrapError::Bundle {
        path: path.clone(),
        cause,
    })
}

/// Everything that first contact needs.
#[derive(Debug)]
pub struct Bootstrap {
    pub(crate) remote: Arc<Remote>,
    pub(crate) proof: Proof,
    pub(crate) options: ServerOptions,
    pub(crate) state: StateDir,
    pub(crate) clock: Clock,
}

impl Bootstrap {
    /// The identity of the last run, if it can still be used.
    pub fn resume(&self) -> Result<Option<Proven>, BootstrapError> {
        let Some(kept) = self
            .state
            .identity(&self.remote.trust_domain)
            .map_err(BootstrapError::State)?
        else {
            return Ok(None);
        };
        let mut bundles = BundleSet::new();
        bundles.insert(kept.bundle.clone());
        let tls = kept.identity.for_tls(bundles, self.clock.now());
        match tls.map_err(BootstrapError::Unusable) {
            Ok(_) => Ok(Some(kept)),
            Err(error) => {
                tracing::info!(id = %kept.identity.id(), reason = %mesh_runtime::errors::ErrorChain(&error),
                    "the identity of the last run cannot be used any more; attesting again");
                Ok(None)
            }
        }
    }

    /// Proves this node to the CA. The identity is kept before it is used: a join token works only once.
    pub async fn attest(&self) -> Result<Proven, BootstrapError> {
        let bundle = read_bundle(&self.options, &self.remote.trust_domain)?;
        let mut bundles = BundleSet::new();
        bundles.insert(bundle.clone());
        let (key, csr) = rotation::make_key(None).map_err(BootstrapError::Svid)?;
        let evidence = self.proof.evidence()?;
        let channel = self.remote.channel(upstream::bootstrap_tls(
            &self.remote,
            bundles.clone(),
            &self.clock,
        ));
        let answered = self.exchange(channel, csr, &evidence);
        let result = match tokio::time::timeout(ANSWER_WITHIN, answered).await {
            Ok(result) => result?,
            Err(_) => {
                return Err(self.told(tonic::Status::deadline_exceeded(
                    "no answer within the time limit",
                )));
            }
        };
        let svid = result.svid.ok_or(BootstrapError::NoSvid)?;
        let identity = accept(svid, &key, &bundles, result.reattestable, self.clock.now())?;
        let proven = Proven { identity, bundle };
        self.state
            .keep_identity(&proven.identity, &proven.bundle)
            .map_err(BootstrapError::State)?;
        tracing::info!(id = %proven.identity.id(), "this node is attested");
        Ok(proven)
    }

    /// Renews the identity with the one that is in use.
    pub(crate) async fn renew(
        &self,
        old: &AgentIdentity,
        channel: Channel,
        bundle: &Bundle,
    ) -> Result<Proven, BootstrapError> {
        let (key, csr) = rotation::make_key(None).map_err(BootstrapError::Svid)?;
        let mut ask = tonic::Request::new(wire::RenewAgentRequest {
            params: Some(wire::AgentX509svidParams { csr }),
        });
        ask.set_timeout(ANSWER_WITHIN);
        let answer = AgentClient::new(channel)
            .renew_agent(ask)
            .await
            .map_err(|status| self.told(status))?
            .into_inner();
        let mut bundles = BundleSet::new();
        bundles.insert(bundle.clone());
        let svid = answer.svid.ok_or(BootstrapError::NoSvid)?;
        let identity = accept(svid, &key, &bundles, old.reattestable, self.clock.now())?;
        let proven = Proven {
            identity,
            bundle: bundle.clone(),
        };
        self.state
            .keep_identity(&proven.identity, &proven.bundle)
            .map_err(BootstrapError::State)?;
        Ok(proven)
    }

    async fn exchange(
        &self,
        channel: Channel,
        csr: Vec<u8>,
        evidence: &Evidence,
    ) -> Result<attest_agent_response::Result, BootstrapError> {
        let ask = |step| wire::AttestAgentRequest { step: Some(step) };
        // The request side stays open until the answer is here: a server may see its end as the agent giving up.
        let (asks, rest) = tokio::sync::mpsc::channel(2);
        let first = attest_agent_request::Params {
            data: Some(evidence.data.clone()),
            params: Some(wire::AgentX509svidParams { csr }),
        };
        let sent = asks.try_send(ask(attest_agent_request::Step::Params(first)));
        debug_assert!(sent.is_ok(), "the channel has room");
        let stream = tokio_stream::wrappers::ReceiverStream::new(rest);
        let answers = AgentClient::new(channel).attest_agent(stream).await;
        let mut answers = answers.map_err(|status| self.told(status))?.into_inner();
        // At most one question: nobody needs more, and a server could ask for ever.
        for questions in 0..2 {
            let answer = answers
                .message()
                .await
                .map_err(|status| self.told(status))?;
            match answer.and_then(|answer| answer.step) {
                Some(attest_agent_response::Step::Result(result)) => return Ok(result),
                Some(attest_agent_response::Step::Challenge(challenge)) if questions == 0 => {
                    let answer = evidence.answer(&challenge)?;
                    let step = attest_agent_request::Step::ChallengeResponse(answer);
                    let sent = asks.try_send(ask(step));
                    debug_assert!(sent.is_ok(), "the channel has room for both");
                }
                Some(attest_agent_response::Step::Challenge(_)) => break,
                None => return Err(BootstrapError::NoSvid),
            }
        }
        Err(BootstrapError::Challenge)
    }

    fn told(&self, status: tonic::Status) -> BootstrapError {
        match upstream::verdict(&status) {
            upstream::Verdict::Banned => BootstrapError::Banned,
            upstream::Verdict::Later => BootstrapError::Unreachable {
                address: self.remote.address.clone(),
                cause: Box::new(status),
            },
            upstream::Verdict::AttestAgain | upstream::Verdict::No => BootstrapError::Refused {
                cause: Box::new(status),
            },
        }
    }
}

fn accept(
    svid: types::X509svid,
    key: &rcgen::KeyPair,
    bundles: &BundleSet,
    reattestable: bool,
    now: SystemTime,
) -> Result<AgentIdentity, BootstrapError> {
    let svid = IssuedX509Svid::try_from(svid)
        .map_err(BootstrapError::Answer)?
        .svid;
    if !svid.id().path().starts_with("/spire/agent/") {
        return Err(BootstrapError::NotAnAgent(svid.id().clone()));
    }
    rotation::check_svid(&svid, svid.id(), key, bundles, now).map_err(BootstrapError::Svid)?;
    Ok(AgentIdentity {
        svid,
        key: Zeroizing::new(key.serialize_der()),
        reattestable,
    })
}

#[cfg(test)]
mod tests;
