//! `spire.api.server.trustdomain.v1`: the relationships with other trust domains, for administrators.

pub(super) mod convert;

use std::sync::Arc;

use futures::StreamExt;
use mesh_identity::TrustDomain;
use mesh_runtime::audit::Object;
use mesh_runtime::errors::untrusted;
use prost::Message;
use proto::spire::api::server::trustdomain::v1 as wire;
use proto::spire::api::types;
use tonic::{Code, Request, Response, Status};

use self::convert::{domain, masked, read, shown, updated};
use super::super::{Call, Parts, Refusal};
use super::item::{at_a_time, begin, finish};
use super::{bundle, ok};
use crate::federation::NotUpdated;
use crate::registry::{Page, cut};
use crate::store::Relationship;

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// A relationship with the bundle of its trust domain as it is now.
    async fn with_bundle(
        &self,
        relationship: &Relationship,
    ) -> Result<types::FederationRelationship, Refusal> {
        let bundle = self.parts.bundles.get(&relationship.trust_domain).await?;
        let bundle = bundle.map(|stored| bundle::shown(&stored)).transpose()?;
        Ok(shown(relationship, bundle))
    }

    async fn create(
        &self,
        call: &Call,
        wire: types::FederationRelationship,
    ) -> Result<types::FederationRelationship, Refusal> {
        let mut record = begin(&self.parts, call, "federation.create");
        record.object(about(&wire.trust_domain));
        let outcome = self.store(&wire).await;
        finish(record, outcome.as_ref().err()).await?;
        outcome
    }

    async fn store(
        &self,
        wire: &types::FederationRelationship,
    ) -> Result<types::FederationRelationship, Refusal> {
        let (relationship, bundle) = read(wire)
            .map_err(|refusal| refusal.within("failed to convert federation relationship"))?;
        if relationship.trust_domain == self.parts.trust_domain {
            return Err(Refusal::new(
                "FNL1269",
                Code::InvalidArgument,
                "unable to create federation relationship for server trust domain",
            ));
        }
        let created = self.parts.federation.create(relationship, bundle).await;
        let stored = created?.ok_or_else(|| {
            Refusal::new(
                "FNL1272",
                Code::AlreadyExists,
                "failed to create federation relationship: it exists already",
            )
        })?;
        self.with_bundle(&stored).await
    }

    async fn update(
        &self,
        call: &Call,
        wire: types::FederationRelationship,
        mask: Option<&types::FederationRelationshipMask>,
    ) -> Result<types::FederationRelationship, Refusal> {
        let mut record = begin(&self.parts, call, "federation.update");
        record.object(about(&wire.trust_domain));
        let outcome = self.change(&wire, mask).await;
        finish(record, outcome.as_ref().err()).await?;
        outcome
    }

    async fn change(
        &self,
        wire: &types::FederationRelationship,
        mask: Option<&types::FederationRelationshipMask>,
    ) -> Result<types::FederationRelationship, Refusal> {
        let convert =
            |refusal: Refusal| refusal.within("failed to convert federation relationship");
        let domain = domain(&wire.trust_domain).map_err(convert)?;
        let stored = self
            .parts
            .federation
            .update(&domain, |old| updated(old, wire, mask))
            .await
            .map_err(|refused| match refused {
                NotUpdated::NotFound => {
                    not_found().saying("failed to update federation relationship")
                }
                NotUpdated::Change(refusal) => convert(refusal),
                NotUpdated::Store(error) => error.into(),
            })?;
        self.with_bundle(&stored).await
    }

    async fn delete(&self, call: &Call, name: &str) -> Result<TrustDomain, Refusal> {
        let mut record = begin(&self.parts, call, "federation.delete");
        record.object(about(name));
        let outcome = self.remove(name).await;
        finish(record, outcome.as_ref().err()).await?;
        outcome
    }

    async fn remove(&self, name: &str) -> Result<TrustDomain, Refusal> {
        let domain = domain(name).map_err(|refusal| match name.is_empty() {
            true => refusal.saying("missing trust domain"),
            false => refusal,
        })?;
        match self.parts.federation.delete(&domain).await? {
            Some(_) => Ok(domain),
            None => Err(not_found()),
        }
    }
}

fn about(name: &str) -> Object {
    Object::new("federation").name(untrusted(name))
}

fn not_found() -> Refusal {
    Refusal::new(
        "FNL1273",
        Code::NotFound,
        "federation relationship not found",
    )
}

#[tonic::async_trait]
impl wire::trust_domain_server::TrustDomain for Service {
    async fn list_federation_relationships(
        &self,
        request: Request<wire::ListFederationRelationshipsRequest>,
    ) -> Result<Response<wire::ListFederationRelationshipsResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let page = Page::new(ask.page_size, &ask.page_token).map_err(|error| call.refuse(error))?;
        let all = self.parts.federation.list().await;
        let mut whole = Vec::new();
        for relationship in all.map_err(|error| call.refuse(error))? {
            let wire = self.with_bundle(&relationship).await;
            whole.push(Arc::new(wire.map_err(|refusal| call.refuse(refusal))?));
        }
        let paged = cut(
            whole.into_iter(),
            &page,
            |wire| wire.trust_domain.as_str(),
            |wire| {
                let wire = masked(wire.clone(), ask.output_mask.as_ref());
                let size = wire.encoded_len();
                (wire, size)
            },
        );
        Ok(Response::new(wire::ListFederationRelationshipsResponse {
            federation_relationships: paged.items,
            next_page_token: paged.next,
        }))
    }

    async fn get_federation_relationship(
        &self,
        request: Request<wire::GetFederationRelationshipRequest>,
    ) -> Result<Response<types::FederationRelationship>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        call.about(about(&ask.trust_domain));
        let found =
            async {
                let domain = domain(&ask.trust_domain)?;
                let relationship =
                    self.parts.federation.get(&domain).await?.ok_or_else(|| {
                        not_found().saying("federation relationship does not exist")
                    })?;
                self.with_bundle(&relationship).await
            };
        let found = found.await.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(masked(found, ask.output_mask.as_ref())))
    }

    async fn batch_create_federation_relationship(
        &self,
        request: Request<wire::BatchCreateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchCreateFederationRelationshipResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let mask = ask.output_mask.as_ref();
        let at_a_time = at_a_time(names(&ask.federation_relationships));
        let results = futures::stream::iter(ask.federation_relationships)
            .map(|relationship| self.create(&call, relationship))
            .buffered(at_a_time)
            .map(|outcome| {
                let (status, federation_relationship) = answer(outcome, mask);
                wire::batch_create_federation_relationship_response::Result {
                    status: Some(status),
                    federation_relationship,
                }
            })
            .collect()
            .await;
        Ok(Response::new(
            wire::BatchCreateFederationRelationshipResponse { results },
        ))
    }

    async fn batch_update_federation_relationship(
        &self,
        request: Request<wire::BatchUpdateFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchUpdateFederationRelationshipResponse>, Status> {
        let call = Call::of(&request)?;
        let ask = request.into_inner();
        let (input, output) = (ask.input_mask.as_ref(), ask.output_mask.as_ref());
        let at_a_time = at_a_time(names(&ask.federation_relationships));
        let results = futures::stream::iter(ask.federation_relationships)
            .map(|relationship| self.update(&call, relationship, input))
            .buffered(at_a_time)
            .map(|outcome| {
                let (status, federation_relationship) = answer(outcome, output);
                wire::batch_update_federation_relationship_response::Result {
                    status: Some(status),
                    federation_relationship,
                }
            })
            .collect()
            .await;
        Ok(Response::new(
            wire::BatchUpdateFederationRelationshipResponse { results },
        ))
    }

    async fn batch_delete_federation_relationship(
        &self,
        request: Request<wire::BatchDeleteFederationRelationshipRequest>,
    ) -> Result<Response<wire::BatchDeleteFederationRelationshipResponse>, Status> {
        let call = Call::of(&request)?;
        let mut results = Vec::new();
        for name in request.into_inner().trust_domains {
            let (status, trust_domain) = match self.delete(&call, &name).await {
                Ok(domain) => (ok(), domain.to_string()),
                Err(refusal) => (refusal.item(), name),
            };
            results.push(
                wire::batch_delete_federation_relationship_response::Result {
                    status: Some(status),
                    trust_domain,
                },
            );
        }
        Ok(Response::new(
            wire::BatchDeleteFederationRelationshipResponse { results },
        ))
    }

    async fn refresh_bundle(
        &self,
        request: Request<wire::RefreshBundleRequest>,
    ) -> Result<Response<()>, Status> {
        let call = Call::of(&request)?;
        let name = request.into_inner().trust_domain;
        call.about(about(&name));
        let domain = domain(&name).map_err(|refusal| call.refuse(refusal))?;
        match self.parts.federation.refresh(&domain).await {
            Ok(Some(_)) => Ok(Response::new(())),
            Ok(None) => Err(call.refuse(
                not_found().saying(&format!("no relationship with trust domain \"{domain}\"")),
            )),
            Err(error) => Err(call.refuse(Refusal::from(error))),
        }
    }
}

fn names(relationships: &[types::FederationRelationship]) -> impl ExactSizeIterator<Item = &str> {
    relationships
        .iter()
        .map(|relationship| relationship.trust_domain.as_str())
}

fn answer(
    outcome: Result<types::FederationRelationship, Refusal>,
    mask: Option<&types::FederationRelationshipMask>,
) -> (types::Status, Option<types::FederationRelationship>) {
    match outcome {
        Ok(relationship) => (ok(), Some(masked(relationship, mask))),
        Err(refusal) => (refusal.item(), None),
    }
}
