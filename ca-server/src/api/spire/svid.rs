//! `spire.api.server.svid.v1`: what agents ask for their workloads, and administrators for whomever they say.

use std::time::Duration;

use mesh_identity::{EntryId, SpiffeId, TrustDomain};
use mesh_runtime::audit::Decision;
use proto::spire::api::server::svid::v1 as wire;
use proto::spire::api::types::{self, X509svid};
use tonic::{Code, Request, Response, Status};

use super::super::permit::Limit;
use super::super::{Call, Parts, Refusal, over_the_limit};
use super::{item, not_served, ok, seconds};
use crate::issuance::{Ask, IssuedToken, MintRequest, is_reserved};

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// Ends a call that never reached the issuer, which writes the records of the others.
    fn refuse(&self, call: &Call, action: &'static str, refusal: Refusal) -> Status {
        let mut record = item::begin(&self.parts, call, action);
        record.decision(Decision::deny(refusal.why()));
        record.finish_later(refusal.outcome(), Some(refusal.code));
        call.refuse(refusal)
    }
}

/// SPIRE's words; whether the entry exists is not told.
const NOT_THEIRS: &str = "entry not found or not authorized";

/// Seconds; zero is the server's default.
fn ttl(seconds: i32) -> Result<Option<Duration>, Refusal> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(missing("ttl cannot be negative")),
    }
}

fn audience(values: Vec<String>) -> Result<Vec<String>, Refusal> {
    match values.iter().any(|value| !value.is_empty()) {
        true => Ok(values),
        false => Err(missing("at least one audience is required")),
    }
}

/// An ID that a token may be made for: of a workload of our trust domain.
fn workload_id(wire: Option<&types::Spiffeid>, own: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let invalid = |why: &str| missing(&format!("invalid SPIFFE ID: {why}"));
    let id = super::required_id("id", wire).map_err(|refusal| invalid(refusal.why()))?;
    match id.is_member_of(own) && !id.is_path_less() && !is_reserved(&id) {
        true => Ok(id),
        false => Err(invalid(&format!(
            "{id} does not name a workload of trust domain {own}"
        ))),
    }
}

fn jwt_svid(token: IssuedToken) -> types::Jwtsvid {
    let signed = token.signed;
    types::Jwtsvid {
        token: signed.token.expose().clone(),
        id: Some((&token.id).into()),
        expires_at: seconds(signed.expires_at),
        issued_at: seconds(signed.issued_at),
        hint: token.hint,
    }
}

/// One item, read or refused.
fn read(params: wire::NewX509svidParams) -> Result<Ask, Refusal> {
    if params.entry_id.is_empty() {
        return Err(missing("missing entry ID"));
    }
    if params.csr.is_empty() {
        return Err(missing("missing CSR"));
    }
    Ok(Ask {
        entry_id: params.entry_id.parse::<EntryId>()?,
        csr: params.csr,
    })
}

fn missing(what: &str) -> Refusal {
    Refusal::new("FNL1252", Code::InvalidArgument, what)
}

#[tonic::async_trait]
impl wire::svid_server::Svid for Service {
    async fn batch_new_x509svid(
        &self,
        request: Request<wire::BatchNewX509svidRequest>,
    ) -> Result<Response<wire::BatchNewX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let agent = call.agent()?;
        let params = request.into_inner().params;
        if params.is_empty() {
            return Err(call.refuse(missing("missing parameters")));
        }
        if params.len() > self.parts.most_certificates {
            return Err(call.refuse(Refusal::new(
                "FNL1253",
                Code::InvalidArgument,
                format!(
                    "at most {} certificates in one request",
                    self.parts.most_certificates
                ),
            )));
        }
        let count = u32::try_from(params.len()).unwrap_or(u32::MAX);
        if !self
            .parts
            .limits
            .wait(Limit::Sign, call.payer(), count)
            .await
        {
            return Err(call.refuse(over_the_limit(&self.parts, Limit::Sign)));
        }
        self.parts
            .registry
            .refresh()
            .await
            .map_err(|error| call.refuse(error))?;
        let (mut places, mut asks) = (Vec::with_capacity(params.len()), Vec::new());
        for params in params {
            places.push(match read(params) {
                Ok(ask) => {
                    asks.push(ask);
                    None
                }
                Err(refusal) => Some(refusal),
            });
        }
        let mut issued = self
            .parts
            .issuer
            .issue(&agent, &call.who, asks)
            .await
            .into_iter();
        let results = places.into_iter().map(|refused| {
            let outcome = match refused {
                Some(refusal) => Err(refusal),
                None => issued
                    .next()
                    .expect("one answer for each ask")
                    .map_err(Refusal::from),
            };
            match outcome {
                Ok(svid) => wire::batch_new_x509svid_response::Result {
                    status: Some(ok()),
                    svid: Some(X509svid::from(&svid)),
                },
                Err(refusal) => wire::batch_new_x509svid_response::Result {
                    status: Some(refusal.item()),
                    svid: None,
                },
            }
        });
        Ok(Response::new(wire::BatchNewX509svidResponse {
            results: results.collect(),
        }))
    }

    async fn mint_x509svid(
        &self,
        request: Request<wire::MintX509svidRequest>,
    ) -> Result<Response<wire::MintX509svidResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        if ask.csr.is_empty() {
            return Err(self.refuse(&call, "svid.mint", missing("missing CSR")));
        }
        let ttl = ttl(ask.ttl).map_err(|refusal| self.refuse(&call, "svid.mint", refusal))?;
        let mint = MintRequest::parse(&ask.csr, &self.parts.trust_domain)
            .map_err(|error| self.refuse(&call, "svid.mint", error.into()))?;
        let minted = self.parts.issuer.mint(&call.who, &mint, ttl).await;
        let svid = minted.map_err(|error| call.refuse(error))?;
        Ok(Response::new(wire::MintX509svidResponse {
            svid: Some(X509svid::from(&svid)),
        }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<wire::MintJwtsvidRequest>,
    ) -> Result<Response<wire::MintJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let refuse = |refusal| self.refuse(&call, "svid.mint", refusal);
        let id = workload_id(ask.id.as_ref(), &self.parts.trust_domain).map_err(refuse)?;
        let ttl = ttl(ask.ttl).map_err(refuse)?;
        let audience = audience(ask.audience).map_err(refuse)?;
        let issuer = &self.parts.issuer;
        let minted = issuer.mint_token(&call.who, id, audience, ttl).await;
        let token = minted.map_err(|error| call.refuse(error))?;
        Ok(Response::new(wire::MintJwtsvidResponse {
            svid: Some(jwt_svid(token)),
        }))
    }

    async fn mint_witsvid(
        &self,
        _: Request<wire::MintWitsvidRequest>,
    ) -> Result<Response<wire::MintWitsvidResponse>, Status> {
        Err(not_served())
    }

    async fn new_jwtsvid(
        &self,
        request: Request<wire::NewJwtsvidRequest>,
    ) -> Result<Response<wire::NewJwtsvidResponse>, Status> {
        let call = Call::of(&request)?;
        let agent = call.agent()?;
        let ask = request.into_inner();
        let limits = &self.parts.limits;
        if !limits.wait(Limit::Sign, call.payer(), 1).await {
            let refusal = over_the_limit(&self.parts, Limit::Sign);
            return Err(self.refuse(&call, "svid.issue", refusal));
        }
        let fresh = self.parts.registry.refresh().await;
        fresh.map_err(|error| self.refuse(&call, "svid.issue", error.into()))?;
        let entry_id = ask.entry_id.parse::<EntryId>().map_err(|error| {
            // No entry has such a name, and that is all SPIRE says.
            let refusal = Refusal::from(error);
            let not_found = Refusal::new(refusal.code, Code::NotFound, NOT_THEIRS);
            self.refuse(&call, "svid.issue", not_found)
        })?;
        let audience =
            audience(ask.audience).map_err(|refusal| self.refuse(&call, "svid.issue", refusal))?;
        let issuer = &self.parts.issuer;
        let issued = issuer
            .issue_token(&agent, &call.who, &entry_id, audience)
            .await;
        let token = issued.map_err(|error| call.refuse(error))?;
        Ok(Response::new(wire::NewJwtsvidResponse {
            svid: Some(jwt_svid(token)),
        }))
    }

    async fn batch_new_witsvid(
        &self,
        _: Request<wire::BatchNewWitsvidRequest>,
    ) -> Result<Response<wire::BatchNewWitsvidResponse>, Status> {
        Err(not_served())
    }

    async fn new_downstream_x509ca(
        &self,
        _: Request<wire::NewDownstreamX509caRequest>,
    ) -> Result<Response<wire::NewDownstreamX509caResponse>, Status> {
        Err(not_served())
    }
}
