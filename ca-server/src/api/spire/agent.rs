//! `spire.api.server.agent.v1`: how nodes get in, stay in and are shut out.

pub(super) mod filter;
mod mask;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt as _};
use mesh_identity::{Entry, Selector, SpiffeId, X509Svid};
use mesh_runtime::audit::{Action, Decision, Object, Outcome, Record};
use prost::Message;
use proto::spire::api::server::agent::v1 as wire;
use proto::spire::api::types;
use tonic::{Code, Request, Response, Status, Streaming};

use self::mask::masked;
use super::super::caller::{Connection, NotACaller};
use super::super::permit::Limit;
use super::super::{Call, Parts, Refusal, over_the_limit};
use super::{required_id, seconds};
use crate::attestation::{
    AttestError, Attestation, AttestedNode, Challenged, bounded, join_token_agent_id,
};
use crate::issuance::VerifiedCsr;
use crate::registry::{CreateRefused, agents_page};
use crate::store::{Attested, NewToken, Node, RenewedSerial, token_hash};

/// How long a node may take to send its evidence.
const EVIDENCE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest version that is remembered, as in SPIRE.
const LONGEST_VERSION: usize = 255;

/// The service.
#[derive(Clone)]
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// The first message: it proves the node, or leads to a challenge.
    async fn judge(
        &self,
        asks: &mut Streaming<wire::AttestAgentRequest>,
        record: &mut Record,
    ) -> Result<(Attestation, VerifiedCsr), Refusal> {
        let (kind, evidence, csr) = read(next(asks).await?)?;
        record.object(Object::new("agent").name(mesh_runtime::errors::untrusted(&kind)));
        // N4: possession first, so that nothing single-use is spent on a request that cannot be answered.
        let csr = VerifiedCsr::parse(&csr)?;
        let judged = self.parts.attestors.attest(&kind, &evidence, &csr).await?;
        if let Attestation::Challenged(challenged) = &judged {
            record.object(Object::new("agent").name(challenged.id().as_str()));
        }
        Ok((judged, csr))
    }

    /// The second message, where there is one.
    async fn proven(
        &self,
        challenged: Challenged,
        asks: &mut Streaming<wire::AttestAgentRequest>,
    ) -> Result<AttestedNode, Refusal> {
        use wire::attest_agent_request::Step;
        match next(asks).await?.and_then(|request| request.step) {
            Some(Step::ChallengeResponse(answer)) => {
                let proven = challenged.prove(bounded(&answer)?);
                Ok(proven.map_err(AttestError::from)?)
            }
            Some(Step::Params(_)) => Err(malformed("the challenge was not answered")),
            None => Err(malformed("missing challenge response")),
        }
    }

    async fn admit(
        &self,
        node: AttestedNode,
        csr: &VerifiedCsr,
        record: &mut Record,
    ) -> Result<(X509Svid, AttestedNode), Refusal> {
        record.object(
            Object::new("agent")
                .name(node.id.as_str())
                .id(node.evidence_id.clone()),
        );
        let known = self.parts.nodes.get(&node.id).await?;
        if known.is_some_and(|known| known.banned) {
            return Err(AttestError::Banned(node.id).into());
        }
        let svid = self.parts.issuer.issue_agent(&node, csr).await?;
        let stored = self.parts.nodes.attest(self.row(&node, &svid)).await?;
        if let Attested::Banned(_) = stored {
            return Err(AttestError::Banned(node.id).into());
        }
        if let Some(alias) = &node.alias {
            self.name(&node, alias).await?;
        }
        Ok((svid, node))
    }

    /// The record first, then the answer.
    async fn conclude(
        &self,
        call: &Call,
        outcome: Result<(X509Svid, AttestedNode), Refusal>,
        mut record: Record,
    ) -> Result<wire::AttestAgentResponse, Status> {
        let (attestor, result) = match &outcome {
            Ok((_, node)) => (node.kind, "success"),
            Err(refusal) => ("unknown", refusal.code),
        };
        self.parts.metrics.attestation(attestor, result);
        match outcome {
            Ok((svid, node)) => {
                record.object(
                    Object::new("agent")
                        .name(node.id.as_str())
                        .id(node.evidence_id.clone())
                        .serial(svid.serial()),
                );
                record
                    .finish(Outcome::Success, None)
                    .await
                    .map_err(|error| call.refuse(error))?;
                let result = wire::attest_agent_response::Result {
                    svid: Some(types::X509svid::from(&svid)),
                    reattestable: node.can_reattest,
                };
                Ok(wire::AttestAgentResponse {
                    step: Some(wire::attest_agent_response::Step::Result(result)),
                })
            }
            Err(refusal) => {
                record.decision(Decision::deny(refusal.why()));
                // The reason of a refused node must be there when somebody looks for it.
                record
                    .finish(refusal.outcome(), Some(refusal.code))
                    .await
                    .map_err(|error| call.refuse(error))?;
                Err(call.refuse(refusal))
            }
        }
    }

    fn row(&self, node: &AttestedNode, svid: &X509Svid) -> Node {
        Node {
            id: node.id.clone(),
            attestation_type: node.kind.to_owned(),
            selectors: node.selectors.clone(),
            serial: svid.serial().to_owned(),
            expires_at: svid.not_after(),
            renewed: None,
            can_reattest: node.can_reattest,
            banned: false,
            kubernetes: node.kubernetes.clone(),
            agent_version: String::new(),
            attested_at: self.parts.clock.now(),
            revision: 0,
        }
    }

    /// The name that a join token was made with: an entry below the agent, as SPIRE makes it.
    async fn name(&self, node: &AttestedNode, alias: &SpiffeId) -> Result<(), Refusal> {
        let selector = Selector::new("spiffe_id", node.id.as_str())
            .map_err(|error| Refusal::new("FNL1258", Code::Internal, error.to_string()))?;
        let entry = alias_entry(alias, &node.id, selector, self.parts.clock.now());
        match self.parts.book.create(entry).await {
            Ok(_) | Err(CreateRefused::AlreadyExists(_)) => Ok(()),
            Err(CreateRefused::Error(error)) => Err(error.into()),
        }
    }

    async fn renew(&self, call: &Call, csr: &[u8]) -> Result<X509Svid, Refusal> {
        let not_an_agent = || Refusal::new("FNL1259", Code::PermissionDenied, "only for agents");
        let super::super::caller::Caller::Agent(agent) = &call.caller else {
            return Err(not_an_agent());
        };
        let Connection::Tcp {
            peer: Some(peer), ..
        } = &call.connection
        else {
            return Err(not_an_agent());
        };
        if !self.parts.limits.wait(Limit::Sign, call.payer(), 1).await {
            return Err(over_the_limit(&self.parts, Limit::Sign));
        }
        if agent.can_reattest {
            return Err(NotACaller::AgentMustReattest.into());
        }
        if csr.is_empty() {
            return Err(malformed("missing CSR"));
        }
        let csr = VerifiedCsr::parse(csr)?;
        let svid = self.parts.issuer.renew_agent(&agent.id, &csr).await?;
        let renewed = RenewedSerial {
            serial: svid.serial().to_owned(),
            expires_at: svid.not_after(),
        };
        let nodes = &self.parts.nodes;
        match nodes.renew(&agent.id, &peer.serial, renewed).await? {
            Some(_) => Ok(svid),
            None => Err(NotACaller::overtaken(&**nodes, &agent.id).await.into()),
        }
    }

    async fn agents(&self, call: &Call) -> Result<Vec<Arc<Node>>, Status> {
        let all = self.parts.nodes.list().await;
        all.map_err(|error| call.refuse(error))
    }

    /// The agent that an administrator's call names.
    fn named(&self, call: &Call, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, Status> {
        let id = required_id("id", wire)
            .map_err(|refusal| call.refuse(refusal.within("invalid agent ID")))?;
        call.about(Object::new("agent").name(id.as_str()));
        let ours = id.is_member_of(&self.parts.trust_domain);
        match ours && id.path().starts_with("/spire/agent/") {
            true => Ok(id),
            false => Err(call.refuse(malformed(
                "invalid agent ID: id is not that of an agent of this trust domain",
            ))),
        }
    }
}

fn alias_entry(alias: &SpiffeId, parent: &SpiffeId, selector: Selector, now: SystemTime) -> Entry {
    Entry {
        id: uuid::Uuid::new_v4()
            .to_string()
            .parse()
            .expect("a UUID is an entry id"),
        spiffe_id: alias.clone(),
        parent_id: parent.clone(),
        selectors: [selector].into(),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: Default::default(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision: 0,
        store_svid: false,
        hint: String::new(),
        created_at: now,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

/// What the node says next, if it does so in time.
async fn next(
    asks: &mut Streaming<wire::AttestAgentRequest>,
) -> Result<Option<wire::AttestAgentRequest>, Refusal> {
    tokio::time::timeout(EVIDENCE_TIMEOUT, asks.message())
        .await
        .map_err(|_| malformed("no evidence was sent in time"))?
        .map_err(|status| Refusal::new("FNL1257", status.code(), status.message()))
}

/// Type, payload and CSR; all three are needed.
fn read(first: Option<wire::AttestAgentRequest>) -> Result<(String, Vec<u8>, Vec<u8>), Refusal> {
    use wire::attest_agent_request::Step;
    let params = match first.and_then(|request| request.step) {
        Some(Step::Params(params)) => params,
        Some(Step::ChallengeResponse(_)) => return Err(malformed("no challenge was sent")),
        None => return Err(malformed("missing params")),
    };
    let data = params
        .data
        .ok_or_else(|| malformed("missing attestation data"))?;
    let csr = params
        .params
        .ok_or_else(|| malformed("missing X509-SVID parameters"))?
        .csr;
    if data.r#type.is_empty() {
        return Err(malformed("missing attestation data type"));
    }
    if data.payload.is_empty() {
        return Err(malformed("missing attestation data payload"));
    }
    if csr.is_empty() {
        return Err(malformed("missing CSR"));
    }
    Ok((data.r#type, data.payload, csr))
}

fn malformed(what: &str) -> Refusal {
    Refusal::new("FNL1260", Code::InvalidArgument, what)
}

fn not_found() -> Refusal {
    Refusal::new("FNL1261", Code::NotFound, "agent not found")
}

type AttestStream = Pin<Box<dyn Stream<Item = Result<wire::AttestAgentResponse, Status>> + Send>>;

#[tonic::async_trait]
impl wire::agent_server::Agent for Service {
    type AttestAgentStream = AttestStream;

    async fn attest_agent(
        &self,
        request: Request<Streaming<wire::AttestAgentRequest>>,
    ) -> Result<Response<AttestStream>, Status> {
        let call = Call::of(&request)?;
        let mut asks = request.into_inner();
        let mut record = self
            .parts
            .audit
            .begin(Action("node.attest"), call.who.actor.clone());
        record.origin(call.who.origin.clone());
        let outcome = match self.judge(&mut asks, &mut record).await {
            Ok((Attestation::Challenged(challenged), csr)) => {
                let ask = wire::attest_agent_response::Step::Challenge(challenged.document());
                let ask = wire::AttestAgentResponse { step: Some(ask) };
                let service = self.clone();
                // Whoever does not wait for the end leaves a record that says so.
                let end = async move {
                    let outcome = match service.proven(*challenged, &mut asks).await {
                        Ok(node) => service.admit(node, &csr, &mut record).await,
                        Err(refusal) => Err(refusal),
                    };
                    service.conclude(&call, outcome, record).await
                };
                let answers = futures::stream::iter([Ok(ask)]).chain(futures::stream::once(end));
                return Ok(Response::new(Box::pin(answers)));
            }
            Ok((Attestation::Proven(node), csr)) => self.admit(*node, &csr, &mut record).await,
            Err(refusal) => Err(refusal),
        };
        let answer = self.conclude(&call, outcome, record).await?;
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(answer)))))
    }

    async fn renew_agent(
        &self,
        request: Request<wire::RenewAgentRequest>,
    ) -> Result<Response<wire::RenewAgentResponse>, Status> {
        let call = Call::of(&request)?;
        let csr = request
            .into_inner()
            .params
            .ok_or_else(|| call.refuse(malformed("params cannot be nil")))?
            .csr;
        let mut record = self
            .parts
            .audit
            .begin(Action("agent.renew"), call.who.actor.clone());
        record.origin(call.who.origin.clone());
        match self.renew(&call, &csr).await {
            Ok(svid) => {
                record.object(
                    Object::new("agent")
                        .name(svid.id().as_str())
                        .serial(svid.serial()),
                );
                record
                    .finish(Outcome::Success, None)
                    .await
                    .map_err(|error| call.refuse(error))?;
                Ok(Response::new(wire::RenewAgentResponse {
                    svid: Some(types::X509svid::from(&svid)),
                }))
            }
            Err(refusal) => {
                record.decision(Decision::deny(refusal.why()));
                record.finish_later(refusal.outcome(), Some(refusal.code));
                Err(call.refuse(refusal))
            }
        }
    }

    async fn post_status(
        &self,
        request: Request<wire::PostStatusRequest>,
    ) -> Result<Response<wire::PostStatusResponse>, Status> {
        let call = Call::of(&request)?;
        let agent = call.agent()?;
        let status = request.into_inner();
        if status.agent_version.len() > LONGEST_VERSION {
            return Err(call.refuse(malformed("agent version is too long (max 255 characters)")));
        }
        if !status.agent_version.is_empty() && status.agent_version != agent.agent_version {
            self.parts
                .nodes
                .set_agent_version(&agent.id, &status.agent_version)
                .await
                .map_err(|error| call.refuse(error))?;
        }
        if status.current_bundle_serial > 0 {
            self.parts.fleet.serves_bundle(
                &agent.id,
                status.current_bundle_serial,
                self.parts.clock.now(),
            );
        }
        Ok(Response::new(wire::PostStatusResponse {}))
    }

    async fn create_join_token(
        &self,
        request: Request<wire::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let ttl = match u64::try_from(ask.ttl) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => return Err(call.refuse(malformed("ttl is required, you must provide one"))),
        };
        let token = match ask.token.is_empty() {
            true => uuid::Uuid::new_v4().to_string(),
            false => ask.token,
        };
        let agent = join_token_agent_id(&self.parts.trust_domain, &token)
            .ok()
            .filter(|_| !token.contains('/') && token.len() <= 255)
            .ok_or_else(|| {
                call.refuse(malformed("the token cannot be a segment of a SPIFFE ID"))
            })?;
        let alias = match &ask.agent_id {
            None => None,
            Some(wire) => {
                let alias =
                    required_id("agent_id", Some(wire)).map_err(|refusal| call.refuse(refusal))?;
                let selector = Selector::new("spiffe_id", agent.as_str())
                    .map_err(|_| call.refuse(malformed("agent_id is too long")))?;
                // The rules of an entry, asked now and not when the node comes.
                alias_entry(&alias, &agent, selector, self.parts.clock.now())
                    .validate(&self.parts.trust_domain)
                    .map_err(|error| call.refuse(crate::registry::CreateError::from(error)))?;
                call.about(Object::new("token").name(alias.as_str()));
                Some(alias)
            }
        };
        let expires_at = self.parts.clock.now() + ttl;
        let new = NewToken {
            hash: token_hash(&token),
            expires_at,
            agent_id: alias,
        };
        match self.parts.tokens.create(new).await {
            Ok(true) => Ok(Response::new(types::JoinToken {
                value: token,
                expires_at: seconds(expires_at),
            })),
            Ok(false) => Err(call.refuse(Refusal::new(
                "FNL1262",
                Code::AlreadyExists,
                "this join token exists already",
            ))),
            Err(error) => Err(call.refuse(error)),
        }
    }

    async fn count_agents(
        &self,
        request: Request<wire::CountAgentsRequest>,
    ) -> Result<Response<wire::CountAgentsResponse>, Status> {
        let call = Call::of(&request)?;
        let filter = filter::count(request.get_ref()).map_err(|refusal| call.refuse(refusal))?;
        let all = self.agents(&call).await?;
        let count = all.iter().filter(|node| filter.wants(node)).count();
        Ok(Response::new(wire::CountAgentsResponse {
            count: i32::try_from(count).unwrap_or(i32::MAX),
        }))
    }

    async fn list_agents(
        &self,
        request: Request<wire::ListAgentsRequest>,
    ) -> Result<Response<wire::ListAgentsResponse>, Status> {
        let call = Call::of(&request)?;
        let (filter, page) =
            filter::list(request.get_ref()).map_err(|refusal| call.refuse(refusal))?;
        let all = self.agents(&call).await?;
        let mask = request.get_ref().output_mask.as_ref();
        let paged = agents_page(all, &filter, &page, |node| {
            let agent = masked(node, mask);
            let size = agent.encoded_len();
            (agent, size)
        });
        Ok(Response::new(wire::ListAgentsResponse {
            agents: paged.items,
            next_page_token: paged.next,
        }))
    }

    async fn get_agent(
        &self,
        request: Request<wire::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        let call = Call::of(&request)?;
        let id = self.named(&call, request.get_ref().id.as_ref())?;
        let node = self
            .parts
            .nodes
            .get(&id)
            .await
            .map_err(|error| call.refuse(error))?
            .ok_or_else(|| call.refuse(not_found()))?;
        Ok(Response::new(masked(
            &node,
            request.get_ref().output_mask.as_ref(),
        )))
    }

    async fn delete_agent(
        &self,
        request: Request<wire::DeleteAgentRequest>,
    ) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let id = self.named(&call, request.get_ref().id.as_ref())?;
        self.parts
            .nodes
            .delete(&id)
            .await
            .map_err(|error| call.refuse(error))?
            .ok_or_else(|| call.refuse(not_found()))?;
        self.parts.fleet.forget(&id);
        // The name that came with its join token goes with it.
        let all = self
            .parts
            .book
            .list()
            .await
            .map_err(|error| call.refuse(error))?;
        let is_alias = |entry: &&Arc<Entry>| {
            entry.parent_id == id
                && entry.selectors.len() == 1
                && entry
                    .selectors
                    .iter()
                    .all(|s| s.kind() == "spiffe_id" && s.value() == id.as_str())
        };
        for alias in all.iter().filter(is_alias) {
            self.parts
                .book
                .delete(&alias.id)
                .await
                .map_err(|error| call.refuse(error))?;
        }
        Ok(Response::new(()))
    }

    async fn ban_agent(
        &self,
        request: Request<wire::BanAgentRequest>,
    ) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let id = self.named(&call, request.get_ref().id.as_ref())?;
        self.parts
            .nodes
            .set_banned(&id, true)
            .await
            .map_err(|error| call.refuse(error))?
            .ok_or_else(|| call.refuse(not_found()))?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests;
