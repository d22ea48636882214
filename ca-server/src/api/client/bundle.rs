//! What an administrator asks of the bundles: our own, and those of other trust domains.

use mesh_identity::{Bundle, TrustDomain};
use proto::convert::CarriedBundle;
use proto::spire::api::server::bundle::v1 as wire;
use proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::types;
use tonic::transport::Channel;

use super::{AdminClient, ClientError, PAGE, item};
use crate::store::Users;

impl AdminClient {
    fn bundle_client(&self) -> BundleClient<Channel> {
        BundleClient::new(self.channel.clone())
    }

    /// Our own bundle.
    pub async fn bundle(&self) -> Result<Bundle, ClientError> {
        let request = wire::GetBundleRequest { output_mask: None };
        read(self.bundle_client().get_bundle(request).await?.into_inner())
    }

    /// How many bundles there are, our own among them.
    pub async fn count_bundles(&self) -> Result<i32, ClientError> {
        let request = wire::CountBundlesRequest {};
        Ok(self
            .bundle_client()
            .count_bundles(request)
            .await?
            .into_inner()
            .count)
    }

    /// The bundles of other trust domains.
    pub async fn foreign_bundles(&self) -> Result<Vec<Bundle>, ClientError> {
        let mut bundles = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = wire::ListFederatedBundlesRequest {
                output_mask: None,
                page_size: PAGE,
                page_token,
            };
            let page = self
                .bundle_client()
                .list_federated_bundles(request)
                .await?
                .into_inner();
            for bundle in page.bundles {
                bundles.push(read(bundle)?);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(bundles);
            }
        }
    }

    /// The bundle of one other trust domain.
    pub async fn foreign_bundle(&self, domain: &TrustDomain) -> Result<Bundle, ClientError> {
        let request = wire::GetFederatedBundleRequest {
            trust_domain: domain.to_string(),
            output_mask: None,
        };
        read(
            self.bundle_client()
                .get_federated_bundle(request)
                .await?
                .into_inner(),
        )
    }

    /// Makes a bundle, or replaces it.
    pub async fn set_bundle(&self, bundle: &Bundle) -> Result<(), ClientError> {
        let request = wire::BatchSetFederatedBundleRequest {
            bundle: vec![bundle.into()],
            output_mask: None,
        };
        let answer = self
            .bundle_client()
            .batch_set_federated_bundle(request)
            .await?;
        let result = answer.into_inner().results.into_iter().next();
        item(result.and_then(|result| result.status))
    }

    /// Removes a bundle, and does to the entries that federate with it what is said.
    pub async fn delete_bundle(
        &self,
        domain: &TrustDomain,
        users: Users,
    ) -> Result<(), ClientError> {
        let mode = match users {
            Users::Restrict => Mode::Restrict,
            Users::Delete => Mode::Delete,
            Users::Dissociate => Mode::Dissociate,
        };
        let request = wire::BatchDeleteFederatedBundleRequest {
            trust_domains: vec![domain.to_string()],
            mode: mode.into(),
        };
        let answer = self
            .bundle_client()
            .batch_delete_federated_bundle(request)
            .await?;
        let result = answer.into_inner().results.into_iter().next();
        item(result.and_then(|result| result.status))
    }
}

fn read(wire: types::Bundle) -> Result<Bundle, ClientError> {
    CarriedBundle::try_from(wire)
        .map(|carried| carried.bundle)
        .map_err(|error| ClientError::Unreadable(error.to_string()))
}
