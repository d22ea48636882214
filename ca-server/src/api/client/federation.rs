//! What an administrator asks of the relationships with other trust domains.

use mesh_identity::{Bundle, TrustDomain};
use mesh_runtime::errors::untrusted;
use proto::spire::api::server::trustdomain::v1 as wire;
use proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use proto::spire::api::types;
use proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use tonic::transport::Channel;

use super::{AdminClient, ClientError, PAGE, all, item};

/// A relationship as an administrator writes it.
#[derive(Clone, Debug)]
pub struct NewRelationship {
    /// With whom.
    pub trust_domain: TrustDomain,
    /// Where their bundle is.
    pub url: String,
    /// Who must answer there; `None`: whoever the Web's certificate authorities vouch for.
    pub endpoint_id: Option<String>,
    /// The bundle to begin with.
    pub bundle: Option<Bundle>,
}

/// A relationship as it is listed.
#[derive(Clone, Debug)]
pub struct ListedRelationship {
    /// With whom.
    pub trust_domain: String,
    /// Where their bundle is.
    pub url: String,
    /// Who must answer there; `None`: whoever the Web's certificate authorities vouch for.
    pub endpoint_id: Option<String>,
}

/// The fate of each item of a batch, in the order of the request.
type Fates = Vec<Result<ListedRelationship, ClientError>>;

impl NewRelationship {
    fn to_wire(&self) -> types::FederationRelationship {
        let profile = match &self.endpoint_id {
            None => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
            Some(id) => BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: id.clone(),
            }),
        };
        types::FederationRelationship {
            trust_domain: self.trust_domain.to_string(),
            bundle_endpoint_url: self.url.clone(),
            trust_domain_bundle: self.bundle.as_ref().map(Into::into),
            bundle_endpoint_profile: Some(profile),
        }
    }
}

impl AdminClient {
    fn trust_domain_client(&self) -> TrustDomainClient<Channel> {
        TrustDomainClient::new(self.channel.clone())
    }

    /// All relationships.
    pub async fn relationships(&self) -> Result<Vec<ListedRelationship>, ClientError> {
        let mut found = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = wire::ListFederationRelationshipsRequest {
                output_mask: None,
                page_size: PAGE,
                page_token,
            };
            let mut client = self.trust_domain_client();
            let page = client
                .list_federation_relationships(request)
                .await?
                .into_inner();
            found.extend(page.federation_relationships.into_iter().map(read));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(found);
            }
        }
    }

    /// One relationship.
    pub async fn relationship(
        &self,
        domain: &TrustDomain,
    ) -> Result<ListedRelationship, ClientError> {
        let request = wire::GetFederationRelationshipRequest {
            trust_domain: domain.to_string(),
            output_mask: None,
        };
        let mut client = self.trust_domain_client();
        Ok(read(
            client
                .get_federation_relationship(request)
                .await?
                .into_inner(),
        ))
    }

    /// Makes relationships; each has its own fate.
    pub async fn create_relationships(
        &self,
        new: &[NewRelationship],
    ) -> Result<Fates, ClientError> {
        let request = wire::BatchCreateFederationRelationshipRequest {
            federation_relationships: new.iter().map(NewRelationship::to_wire).collect(),
            output_mask: None,
        };
        let mut client = self.trust_domain_client();
        let answer = client.batch_create_federation_relationship(request).await?;
        let results = answer.into_inner().results.into_iter();
        let fates = results.map(|result| {
            item(result.status).map(|()| read(result.federation_relationship.unwrap_or_default()))
        });
        all(fates.collect(), new.len())
    }

    /// Replaces relationships, each by one with the same trust domain.
    pub async fn update_relationships(
        &self,
        new: &[NewRelationship],
    ) -> Result<Fates, ClientError> {
        let request = wire::BatchUpdateFederationRelationshipRequest {
            federation_relationships: new.iter().map(NewRelationship::to_wire).collect(),
            input_mask: None,
            output_mask: None,
        };
        let mut client = self.trust_domain_client();
        let answer = client.batch_update_federation_relationship(request).await?;
        let results = answer.into_inner().results.into_iter();
        let fates = results.map(|result| {
            item(result.status).map(|()| read(result.federation_relationship.unwrap_or_default()))
        });
        all(fates.collect(), new.len())
    }

    /// Ends a relationship. The bundle stays.
    pub async fn delete_relationship(&self, domain: &TrustDomain) -> Result<(), ClientError> {
        let request = wire::BatchDeleteFederationRelationshipRequest {
            trust_domains: vec![domain.to_string()],
        };
        let mut client = self.trust_domain_client();
        let answer = client.batch_delete_federation_relationship(request).await?;
        let result = answer.into_inner().results.into_iter().next();
        item(result.and_then(|result| result.status))
    }

    /// Fetches the bundle of a trust domain now.
    pub async fn refresh_bundle(&self, domain: &TrustDomain) -> Result<(), ClientError> {
        let request = wire::RefreshBundleRequest {
            trust_domain: domain.to_string(),
        };
        self.trust_domain_client().refresh_bundle(request).await?;
        Ok(())
    }
}

fn read(wire: types::FederationRelationship) -> ListedRelationship {
    ListedRelationship {
        trust_domain: untrusted(&wire.trust_domain),
        url: untrusted(&wire.bundle_endpoint_url),
        endpoint_id: match wire.bundle_endpoint_profile {
            Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
                Some(untrusted(&profile.endpoint_spiffe_id))
            }
            Some(BundleEndpointProfile::HttpsWeb(_)) | None => None,
        },
    }
}
