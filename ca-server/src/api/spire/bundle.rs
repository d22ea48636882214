//! `spire.api.server.bundle.v1`: our own bundle, for anybody.

use proto::spire::api::server::bundle::v1 as wire;
use proto::spire::api::types;
use tonic::{Request, Response, Status};

use super::super::{Call, Parts};
use super::not_served;
use crate::issuance::{IssueError, to_bundle};

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }
}

fn masked(mut bundle: types::Bundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    if let Some(mask) = mask {
        if !mask.x509_authorities {
            bundle.x509_authorities.clear();
        }
        if !mask.jwt_authorities {
            bundle.jwt_authorities.clear();
        }
        if !mask.wit_authorities {
            bundle.wit_authorities.clear();
        }
        if !mask.refresh_hint {
            bundle.refresh_hint = 0;
        }
        if !mask.sequence_number {
            bundle.sequence_number = 0;
        }
    }
    bundle
}

macro_rules! not_served {
    ($($method:ident: $request:ident => $response:ty),* $(,)?) => {
        #[tonic::async_trait]
        impl wire::bundle_server::Bundle for Service {
            async fn get_bundle(
                &self,
                request: Request<wire::GetBundleRequest>,
            ) -> Result<Response<types::Bundle>, Status> {
                let call = Call::of(&request)?;
                let stored = self.parts.authority.bundle().borrow().clone();
                let bundle = to_bundle(&stored)
                    .map_err(|error| call.refuse(IssueError::from(error)))?;
                let mask = request.into_inner().output_mask;
                Ok(Response::new(masked((&bundle).into(), mask.as_ref())))
            }

            $(async fn $method(&self, _: Request<wire::$request>) -> Result<Response<$response>, Status> {
                Err(not_served())
            })*
        }
    };
}

not_served! {
    count_bundles: CountBundlesRequest => wire::CountBundlesResponse,
    append_bundle: AppendBundleRequest => types::Bundle,
    publish_jwt_authority: PublishJwtAuthorityRequest => wire::PublishJwtAuthorityResponse,
    publish_wit_authority: PublishWitAuthorityRequest => wire::PublishWitAuthorityResponse,
    list_federated_bundles: ListFederatedBundlesRequest => wire::ListFederatedBundlesResponse,
    get_federated_bundle: GetFederatedBundleRequest => types::Bundle,
    batch_create_federated_bundle: BatchCreateFederatedBundleRequest => wire::BatchCreateFederatedBundleResponse,
    batch_update_federated_bundle: BatchUpdateFederatedBundleRequest => wire::BatchUpdateFederatedBundleResponse,
    batch_set_federated_bundle: BatchSetFederatedBundleRequest => wire::BatchSetFederatedBundleResponse,
    batch_delete_federated_bundle: BatchDeleteFederatedBundleRequest => wire::BatchDeleteFederatedBundleResponse,
}
