//! Decides who may come in at the admin socket, and what administrators are told there: why a process gets an identity or none.
//! Trusts root, the agent's own uid and the uids of the configuration, by the kernel's word. Never issues or changes anything.

use std::{sync::Arc, time::SystemTime};

use mesh_runtime::{clock::Clock, errors::ErrorChain};
use proto::{
    convert::selectors_to_wire,
    finial::explain::v1::{
        self as wire,
        explain_server::{Explain, ExplainServer},
    },
    spire::api::types,
};
use tokio::{sync::watch, time::Instant};
use tonic::{Request, Response, Status};

use super::{LARGEST_REQUEST, Refused, peer::Peer};
use crate::{
    attestor::{
        AttestError, Attestor, Credentials, Wanted,
        process::{NoProcess, Process},
    },
    explain::{self, Explanation},
    upstream::{LinkStatus, Upstream},
    vault::Vault,
};

/// Who may come in.
#[derive(Clone, Debug)]
pub struct AdminPermit {
    uids: Arc<[u32]>,
}

impl AdminPermit {
    /// Root, the agent's own uid, and these.
    pub fn new(allowed: &[u32]) -> Self {
        let own = nix::unistd::geteuid().as_raw();
        Self {
            uids: allowed.iter().copied().chain([0, own]).collect(),
        }
    }

    pub(crate) fn admit(&self, peer: &Peer) -> Result<(), Refused> {
        if self.uids.contains(&peer.uid()) {
            Ok(())
        } else {
            Err(Refused::NotForYou(peer.uid()))
        }
    }
}

/// What the admin socket knows of the agent's own identity and its link; both come with the first attestation.
#[derive(Clone, Debug, Default)]
pub struct SelfView {
    /// The agent's ID.
    pub id: Option<mesh_identity::SpiffeId>,
    /// Whether the CA is there.
    pub link: LinkStatus,
    /// The agent's side of its CA.
    pub upstream: Option<Arc<Upstream>>,
}

impl SelfView {
    /// The agent's own SVID of this moment.
    pub(super) fn svid(&self) -> Option<mesh_identity::X509Svid> {
        self.upstream.as_ref().map(|upstream| upstream.svid())
    }
}

/// The service.
#[derive(Clone, Debug)]
pub struct AdminApi {
    vault: Arc<Vault>,
    attestor: Attestor,
    own: watch::Receiver<SelfView>,
    clock: Clock,
}

impl AdminApi {
    /// Explains with what the Workload API uses.
    pub fn new(
        vault: Arc<Vault>,
        attestor: Attestor,
        own: watch::Receiver<SelfView>,
        clock: Clock,
    ) -> Self {
        Self {
            vault,
            attestor,
            own,
            clock,
        }
    }

    /// As a tonic service.
    pub fn into_service(self) -> ExplainServer<Self> {
        ExplainServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }
}

#[tonic::async_trait]
impl Explain for AdminApi {
    async fn explain_process(
        &self,
        request: Request<wire::ExplainProcessRequest>,
    ) -> Result<Response<wire::ExplainProcessResponse>, Status> {
        let pid = request.into_inner().pid;
        if pid <= 0 {
            return Err(Status::invalid_argument("pid must be a positive number"));
        }
        let gone = || Status::not_found(format!("there is no process {pid}"));
        let process = Process::open(pid).map_err(|error| match error {
            NoProcess::Gone => gone(),
            error => Status::unavailable(ErrorChain(&error).to_string()),
        })?;
        let found =
            self.attestor
                .attest(&process, Credentials::Current, Wanted::ALL, Instant::now());
        let sight = found.await.map_err(|error| match error {
            AttestError::Gone => gone(),
            error => Status::unavailable(ErrorChain(&error).to_string()),
        })?;
        let (view, own, now) = (
            self.vault.view(),
            self.own.borrow().clone(),
            self.clock.now(),
        );
        let explanation = explain::explain(
            sight.attestation().clone(),
            view.roster().map(|roster| &**roster),
            own.id.as_ref(),
            now,
        );
        let synced_at = if own.link.connected && view.roster().is_some() {
            Some(now)
        } else {
            own.link.last_heard
        };
        Ok(Response::new(to_wire(
            explanation,
            synced_at.filter(|_| view.roster().is_some()),
        )))
    }
}

fn to_wire(
    explanation: Explanation,
    synced_at: Option<SystemTime>,
) -> wire::ExplainProcessResponse {
    let since_1970 = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .ok()
            .and_then(|d| i64::try_from(d.as_secs()).ok())
    };
    let selector = |selector: &mesh_identity::Selector| types::Selector::from(selector);
    wire::ExplainProcessResponse {
        selectors: selectors_to_wire(&explanation.attestation.facts),
        failed_attestors: explanation
            .attestation
            .failed
            .into_iter()
            .map(|failed| wire::FailedAttestor {
                name: failed.name.to_owned(),
                reason: failed.reason,
            })
            .collect(),
        matching_entries: explanation
            .matching
            .iter()
            .map(|(id, spiffe_id)| wire::MatchingEntry {
                id: id.to_string(),
                spiffe_id: Some(spiffe_id.into()),
            })
            .collect(),
        closest_entry: explanation.closest.map(|closest| wire::ClosestEntry {
            id: closest.id.to_string(),
            spiffe_id: Some((&closest.spiffe_id).into()),
            selectors: closest
                .selectors
                .iter()
                .map(|(fact, present)| wire::ComparedSelector {
                    selector: Some(selector(fact)),
                    present: *present,
                })
                .collect(),
        }),
        synced_at: synced_at.and_then(since_1970).unwrap_or(0),
        entry_count: explanation.entry_count as u64,
        fix_command: explanation.fix,
    }
}
