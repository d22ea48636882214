//! `spire.api.server.svid.v1`: what agents ask for their workloads.

use mesh_identity::EntryId;
use proto::spire::api::server::svid::v1 as wire;
use proto::spire::api::types::X509svid;
use tonic::{Code, Request, Response, Status};

use super::super::permit::Limit;
use super::super::{Call, Parts, Refusal, over_the_limit};
use super::{not_served, ok};
use crate::issuance::Ask;

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
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
        _: Request<wire::MintX509svidRequest>,
    ) -> Result<Response<wire::MintX509svidResponse>, Status> {
        Err(not_served())
    }

    async fn mint_jwtsvid(
        &self,
        _: Request<wire::MintJwtsvidRequest>,
    ) -> Result<Response<wire::MintJwtsvidResponse>, Status> {
        Err(not_served())
    }

    async fn mint_witsvid(
        &self,
        _: Request<wire::MintWitsvidRequest>,
    ) -> Result<Response<wire::MintWitsvidResponse>, Status> {
        Err(not_served())
    }

    async fn new_jwtsvid(
        &self,
        _: Request<wire::NewJwtsvidRequest>,
    ) -> Result<Response<wire::NewJwtsvidResponse>, Status> {
        Err(not_served())
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
