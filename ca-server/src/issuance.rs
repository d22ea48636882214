//! Story 1: authorised entry + proven key → signed identity → record → answer. The steps are in this order in the code.
//! Trusts the registry for who may have what and the authority for the signature.
//! Never hands out a certificate that was not looked at again, remembered durably and written to the audit record.

mod csr;
mod mint;
mod template;
mod token;
mod verify;

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use futures::future::join_all;
use mesh_identity::{BundleError, BundleSet, EntryId, SpiffeId, X509Svid};
use mesh_runtime::audit::{
    Action, Actor, AuditError, AuditLog, Decision, Object, Origin, Outcome, Record,
};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Blame, Coded, ErrorChain};
use mesh_runtime::span;

use crate::attestation::AttestedNode;
use crate::authority::{Authority, SignError};
use crate::metrics::Metrics;
use crate::registry::{NotAuthorized, Registry};
use crate::store::{Issued, IssuedRecord, Node, StoreError, StoredBundle};

pub use self::csr::{CsrError, LONGEST_CSR, VerifiedCsr};
pub use self::mint::{MintError, MintRequest, is_reserved};
pub use self::template::Lives;
pub use self::token::IssuedToken;
pub use self::verify::NotWhatWeMeant;

/// One certificate that an agent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// For which entry.
    pub entry_id: EntryId,
    /// The request that proves possession of the key, in DER.
    pub csr: Vec<u8>,
}

/// Issues identities. Share it by `Arc`.
pub struct Issuer {
    authority: Arc<Authority>,
    registry: Arc<Registry>,
    issued: Arc<dyn Issued>,
    audit: AuditLog,
    lives: Lives,
    clock: Clock,
    metrics: Metrics,
    /// What a peer verifies with: our bundle, parsed once for each of its states.
    trust: ArcSwap<Trust>,
}

struct Trust {
    stored: Arc<StoredBundle>,
    bundles: BundleSet,
}

/// Who asks, for the record.
#[derive(Clone, Debug, Default)]
pub struct Attribution {
    /// Who.
    pub actor: Actor,
    /// From where.
    pub origin: Origin,
}

/// A certificate that was signed, seen again and not yet recorded.
struct Signed {
    svid: X509Svid,
    record: IssuedRecord,
}

impl Signed {
    /// What the record says was made.
    fn object(&self) -> Object {
        let object = Object::new("svid")
            .name(self.svid.id().as_str())
            .serial(self.svid.serial());
        match &self.record.entry_id {
            Some(entry) => object.id(entry.as_str()),
            None => object,
        }
    }
}

impl Issuer {
    /// An issuer over its parts.
    pub fn new(
        authority: Arc<Authority>,
        registry: Arc<Registry>,
        issued: Arc<dyn Issued>,
        audit: AuditLog,
        lives: Lives,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, IssueError> {
        let stored = authority.bundle().borrow().clone();
        let trust = ArcSwap::from_pointee(Trust::of(stored)?);
        Ok(Self {
            authority,
            registry,
            issued,
            audit,
            lives,
            clock,
            metrics,
            trust,
        })
    }

    /// Issues X509-SVIDs to an agent for workloads of its node: one answer per ask, in their order.
    pub async fn issue(
        &self,
        agent: &Node,
        caller: &Attribution,
        asks: Vec<Ask>,
    ) -> Vec<Result<X509Svid, IssueError>> {
        let started = self.clock.monotonic();
        let mut outcomes = Vec::with_capacity(asks.len());
        let mut records = Vec::with_capacity(asks.len());
        for (done, ask) in asks.iter().enumerate() {
            // Each takes some hundred microseconds of pure arithmetic; others must get their turn between.
            if done % 8 == 7 {
                tokio::task::yield_now().await;
            }
            let mut record = self.audit.begin(Action("svid.issue"), caller.actor.clone());
            record.origin(caller.origin.clone());
            record.object(Object::new("entry").id(ask.entry_id.as_str()));
            records.push(record);
            outcomes.push(self.try_issue(agent, ask));
        }
        let to_remember: Vec<IssuedRecord> = outcomes
            .iter()
            .flatten()
            .map(|signed| signed.record.clone())
            .collect();
        if !to_remember.is_empty()
            && let Err(error) = self.issued.record(to_remember).await
        {
            tracing::error!(code = error.code(), error = %ErrorChain(&error), "certificates could not be remembered and were not handed out");
            for outcome in &mut outcomes {
                if outcome.is_ok() {
                    *outcome = Err(IssueError::Store(error.clone()));
                }
            }
        }
        let finished = records
            .into_iter()
            .zip(outcomes)
            .map(|(mut record, outcome)| async {
                match outcome {
                    Ok(signed) => {
                        record.object(signed.object());
                        record.finish(Outcome::Success, None).await?;
                        Ok(signed.svid)
                    }
                    Err(error) => {
                        error.refuse(record);
                        Err(error)
                    }
                }
            });
        let answers = join_all(finished).await;
        self.metrics.issuance(&answers, started.elapsed());
        answers
    }

    fn try_issue(&self, agent: &Node, ask: &Ask) -> Result<Signed, IssueError> {
        let now = self.clock.now();
        let entry = self.registry.authorize(agent, &ask.entry_id)?;
        let csr = VerifiedCsr::parse(&ask.csr)?;
        let template = template::workload(&entry, &self.lives);
        self.sign(
            &template,
            &csr,
            Some(ask.entry_id.clone()),
            Some(agent.id.clone()),
            now,
        )
    }

    /// Issues the SVID of an agent that has proved itself. The caller stores the agent with it and finishes the record.
    pub async fn issue_agent(
        &self,
        node: &AttestedNode,
        csr: &VerifiedCsr,
    ) -> Result<X509Svid, IssueError> {
        self.issue_infrastructure(&node.id, csr, Some(node.id.clone()))
            .await
    }

    /// Issues the next SVID of an agent that shows its present one.
    pub async fn renew_agent(
        &self,
        id: &SpiffeId,
        csr: &VerifiedCsr,
    ) -> Result<X509Svid, IssueError> {
        self.issue_infrastructure(id, csr, Some(id.clone())).await
    }

    /// Issues the SVID that this server itself shows.
    pub async fn issue_server(
        &self,
        id: &SpiffeId,
        csr: &VerifiedCsr,
    ) -> Result<X509Svid, IssueError> {
        self.issue_infrastructure(id, csr, None).await
    }

    async fn issue_infrastructure(
        &self,
        id: &SpiffeId,
        csr: &VerifiedCsr,
        agent: Option<SpiffeId>,
    ) -> Result<X509Svid, IssueError> {
        let template = template::infrastructure(id, &self.lives);
        let signed = self.sign(&template, csr, None, agent, self.clock.now())?;
        self.issued.record(vec![signed.record]).await?;
        Ok(signed.svid)
    }

    fn sign(
        &self,
        template: &crate::authority::LeafTemplate,
        csr: &VerifiedCsr,
        entry_id: Option<EntryId>,
        agent_id: Option<SpiffeId>,
        now: SystemTime,
    ) -> Result<Signed, IssueError> {
        let _signing = span!("sign x509-svid", finial.svid.id = %template.spiffe_id).entered();
        let leaf = self.authority.sign_leaf(template, csr.spki(), now)?;
        let trust = self.trust()?;
        let svid = verify::as_peer_would(&leaf, template, csr.spki(), &trust.bundles, now)
            .inspect_err(|error| {
                tracing::error!(id = %template.spiffe_id, error = %ErrorChain(error), "what was signed was not handed out");
            })?;
        Ok(Signed {
            record: IssuedRecord {
                serial: leaf.serial,
                spiffe_id: template.spiffe_id.clone(),
                entry_id,
                agent_id,
                authority_id: leaf.authority_id,
                not_after: leaf.not_after,
                issued_at: now,
            },
            svid,
        })
    }

    /// Our own bundle as peers hold it.
    fn trust(&self) -> Result<Arc<Trust>, IssueError> {
        let stored = self.authority.bundle().borrow().clone();
        let trust = self.trust.load_full();
        if Arc::ptr_eq(&trust.stored, &stored) {
            return Ok(trust);
        }
        let trust = Arc::new(Trust::of(stored)?);
        self.trust.store(trust.clone());
        Ok(trust)
    }

    /// Our own bundle, as a set for verifying.
    pub fn bundles(&self) -> Result<BundleSet, IssueError> {
        Ok(self.trust()?.bundles.clone())
    }
}

impl Trust {
    fn of(stored: Arc<StoredBundle>) -> Result<Self, IssueError> {
        let bundle = stored.to_bundle()?;
        Ok(Self {
            bundles: std::iter::once(bundle).collect(),
            stored,
        })
    }
}

/// Why no identity was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Not this agent's entry, or no entry.
    #[error(transparent)]
    NotAuthorized(#[from] NotAuthorized),
    /// The request proves nothing.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The authority refused.
    #[error("the certificate or token was not signed")]
    Sign(#[from] SignError),
    /// The result was not what we meant.
    #[error("the certificate or token was signed wrongly and thrown away")]
    NotWhatWeMeant(#[from] NotWhatWeMeant),
    /// It could not be remembered.
    #[error("the certificate could not be remembered and was thrown away")]
    Store(#[from] StoreError),
    /// It could not be written to the audit record.
    #[error(
        "the certificate or token could not be written to the audit record and was thrown away"
    )]
    Audit(#[from] AuditError),
    /// Our own bundle makes no sense.
    #[error("our own bundle cannot be read")]
    Bundle(#[from] BundleError),
}

impl IssueError {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::NotAuthorized(NotAuthorized::NotYours { .. }) => Blame::Caller,
            Self::NotAuthorized(NotAuthorized::NotYet { .. }) => Blame::Dependency,
            Self::Csr(error) => error.blame(),
            Self::Sign(error) => error.blame(),
            Self::NotWhatWeMeant(_) | Self::Bundle(_) => Blame::Us,
            Self::Store(error) => error.blame(),
            Self::Audit(_) => Blame::Dependency,
        }
    }

    /// Finishes the record of what was refused. Nothing is granted, so nobody has to wait for the disk.
    fn refuse(&self, mut record: Record) {
        record.decision(Decision::deny(ErrorChain(self).to_string()));
        record.finish_later(self.outcome(), Some(self.code()));
    }

    fn outcome(&self) -> Outcome {
        match self.blame() {
            Blame::Caller => Outcome::Denied,
            Blame::Us | Blame::Dependency => Outcome::Failure,
        }
    }
}

impl Coded for IssueError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotAuthorized(error) => error.code(),
            Self::Csr(error) => error.code(),
            Self::Sign(error) => error.code(),
            Self::NotWhatWeMeant(_) => "FNL1210",
            Self::Store(error) => error.code(),
            Self::Audit(error) => error.code(),
            Self::Bundle(error) => error.code(),
        }
    }
}

#[cfg(test)]
mod tests;
