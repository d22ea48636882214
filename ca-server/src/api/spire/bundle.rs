//! `spire.api.server.bundle.v1`: our own bundle, for anybody, and those of other trust domains, for administrators and for the
//! agents that have a workload which federates with them.

mod federated;
mod mask;

use std::sync::Arc;

use futures::StreamExt;
use mesh_runtime::audit::Object;
use mesh_runtime::errors::untrusted;
use prost::Message;
use proto::convert::CarriedBundle;
use proto::spire::api::server::bundle::v1 as wire;
use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use proto::spire::api::types;
use tonic::{Code, Request, Response, Status};

pub(super) use self::federated::shown;
use self::federated::{Write, foreign, not_found};
use self::mask::masked;
use super::super::caller::Caller;
use super::super::{Call, Parts, Refusal};
use super::item::at_a_time;
use super::{not_served, ok, unserved};
use crate::issuance::IssueError;
use crate::registry::{Page, cut};
use crate::store::{StoredBundle, Users};

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    async fn all(&self, call: &Call) -> Result<Vec<Arc<StoredBundle>>, Status> {
        let all = self.parts.bundles.list().await;
        all.map_err(|error| call.refuse(error))
    }

    /// Writes the bundles of a batch; one answer each, in their order.
    async fn write(
        &self,
        call: &Call,
        bundles: Vec<types::Bundle>,
        how: Write,
        mask: Option<types::BundleMask>,
    ) -> Vec<(types::Status, Option<types::Bundle>)> {
        let at_a_time = at_a_time(bundles.iter().map(|bundle| bundle.trust_domain.as_str()));
        futures::stream::iter(bundles)
            .map(|bundle| federated::write(&self.parts, call, bundle, how))
            .buffered(at_a_time)
            .map(|outcome| match outcome {
                Ok(bundle) => (ok(), Some(masked(bundle, mask.as_ref()))),
                Err(refusal) => (refusal.item(), None),
            })
            .collect()
            .await
    }
}

#[tonic::async_trait]
impl wire::bundle_server::Bundle for Service {
    async fn count_bundles(
        &self,
        request: Request<wire::CountBundlesRequest>,
    ) -> Result<Response<wire::CountBundlesResponse>, Status> {
        let call = Call::of(&request)?;
        // Our own is one of them, as in SPIRE.
        let count = self.all(&call).await?.len() + 1;
        Ok(Response::new(wire::CountBundlesResponse {
            count: i32::try_from(count).unwrap_or(i32::MAX),
        }))
    }

    async fn get_bundle(
        &self,
        request: Request<wire::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let stored = self.parts.authority.bundle().borrow().clone();
        let bundle = stored
            .to_bundle()
            .map_err(|error| call.refuse(IssueError::from(error)))?;
        let mask = request.into_inner().output_mask;
        Ok(Response::new(masked((&bundle).into(), mask.as_ref())))
    }

    async fn append_bundle(
        &self,
        request: Request<wire::AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let own = &self.parts.trust_domain;
        call.about(Object::new("bundle").name(own.as_str()));
        let ask = request.into_inner();
        if !ask.wit_authorities.is_empty() {
            let says = "WIT authorities are not served by this version of ca-server";
            return Err(call.refuse(unserved(says)));
        }
        let new = CarriedBundle::try_from(types::Bundle {
            trust_domain: own.as_str().to_owned(),
            x509_authorities: ask.x509_authorities,
            jwt_authorities: ask.jwt_authorities,
            ..Default::default()
        })
        .map_err(|error| call.refuse(Refusal::from(error).within("failed to convert authority")))?;
        let now = self.parts.clock.now();
        let appended = self.parts.authority.append(&new.bundle, now).await;
        let appended = appended.map_err(|error| call.refuse(error))?;
        let bundle = shown(&appended).map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(masked(bundle, ask.output_mask.as_ref())))
    }

    async fn publish_jwt_authority(
        &self,
        _: Request<wire::PublishJwtAuthorityRequest>,
    ) -> Result<Response<wire::PublishJwtAuthorityResponse>, Status> {
        Err(not_served())
    }

    async fn publish_wit_authority(
        &self,
        _: Request<wire::PublishWitAuthorityRequest>,
    ) -> Result<Response<wire::PublishWitAuthorityResponse>, Status> {
        Err(not_served())
    }

    async fn list_federated_bundles(
        &self,
        request: Request<wire::ListFederatedBundlesRequest>,
    ) -> Result<Response<wire::ListFederatedBundlesResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let page = Page::new(ask.page_size, &ask.page_token).map_err(|error| call.refuse(error))?;
        let all = self.all(&call).await?.into_iter();
        let paged = cut(
            all,
            &page,
            |stored| stored.trust_domain.as_str(),
            |stored| {
                let bundle = shown(stored).map(|bundle| masked(bundle, ask.output_mask.as_ref()));
                let size = bundle.as_ref().map_or(0, Message::encoded_len);
                (bundle, size)
            },
        );
        let bundles = paged.items.into_iter().collect::<Result<_, _>>();
        Ok(Response::new(wire::ListFederatedBundlesResponse {
            bundles: bundles.map_err(|refusal: Refusal| call.refuse(refusal))?,
            next_page_token: paged.next,
        }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<wire::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        call.about(Object::new("bundle").name(untrusted(&ask.trust_domain)));
        let domain = foreign(&self.parts, &ask.trust_domain, || {
            "getting a federated bundle for the server's own trust domain is not allowed".into()
        })
        .map_err(|refusal| call.refuse(refusal))?;
        let stored = match &call.caller {
            // Which trust domains we know is not told to a node whose workloads federate with none of them.
            Caller::Agent(agent) => {
                let registry = &self.parts.registry;
                registry
                    .refresh()
                    .await
                    .map_err(|error| call.refuse(error))?;
                registry.view(&agent.id).bundles.get(&domain).cloned()
            }
            _ => {
                let bundle = self.parts.bundles.get(&domain).await;
                bundle.map_err(|error| call.refuse(error))?
            }
        };
        let bundle = stored
            .ok_or_else(not_found)
            .and_then(|stored| shown(&stored))
            .map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(masked(bundle, ask.output_mask.as_ref())))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<wire::BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchCreateFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let answers = self
            .write(&call, ask.bundle, Write::Create, ask.output_mask)
            .await;
        let results = answers.into_iter().map(|(status, bundle)| {
            wire::batch_create_federated_bundle_response::Result {
                status: Some(status),
                bundle,
            }
        });
        Ok(Response::new(wire::BatchCreateFederatedBundleResponse {
            results: results.collect(),
        }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<wire::BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchUpdateFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let how = Write::Update(ask.input_mask);
        let answers = self.write(&call, ask.bundle, how, ask.output_mask).await;
        let results = answers.into_iter().map(|(status, bundle)| {
            wire::batch_update_federated_bundle_response::Result {
                status: Some(status),
                bundle,
            }
        });
        Ok(Response::new(wire::BatchUpdateFederatedBundleResponse {
            results: results.collect(),
        }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<wire::BatchSetFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchSetFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let answers = self
            .write(&call, ask.bundle, Write::Set, ask.output_mask)
            .await;
        let results = answers.into_iter().map(|(status, bundle)| {
            wire::batch_set_federated_bundle_response::Result {
                status: Some(status),
                bundle,
            }
        });
        Ok(Response::new(wire::BatchSetFederatedBundleResponse {
            results: results.collect(),
        }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<wire::BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<wire::BatchDeleteFederatedBundleResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let users = match Mode::try_from(ask.mode) {
            Ok(Mode::Restrict) => Users::Restrict,
            Ok(Mode::Delete) => Users::Delete,
            Ok(Mode::Dissociate) => Users::Dissociate,
            Err(_) => {
                return Err(call.refuse(Refusal::new(
                    "FNL1268",
                    Code::InvalidArgument,
                    "failed to parse deletion mode: mode is not one of the three",
                )));
            }
        };
        // One after the other: an entry may federate with several of them.
        let mut results = Vec::new();
        for trust_domain in ask.trust_domains {
            let outcome = federated::delete(&self.parts, &call, &trust_domain, users).await;
            results.push(wire::batch_delete_federated_bundle_response::Result {
                status: Some(outcome.map_or_else(|refusal| refusal.item(), |()| ok())),
                trust_domain,
            });
        }
        Ok(Response::new(wire::BatchDeleteFederatedBundleResponse {
            results,
        }))
    }
}
