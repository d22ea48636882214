//! Relationships: wire → values and back, refused in SPIRE's words.

use mesh_identity::{SpiffeId, TrustDomain};
use proto::convert::{CarriedBundle, trust_domain_from_wire};
use proto::spire::api::types;
use proto::spire::api::types::federation_relationship::BundleEndpointProfile;
use tonic::Code;

use super::super::super::Refusal;
use crate::federation::EndpointUrl;
use crate::store::{EndpointProfile, Relationship, StoredBundle};

/// A relationship with the bundle to begin with, read whole.
pub(in super::super) fn read(
    wire: &types::FederationRelationship,
) -> Result<(Relationship, Option<StoredBundle>), Refusal> {
    let trust_domain = domain(&wire.trust_domain)?;
    let url: EndpointUrl = wire.bundle_endpoint_url.parse().map_err(Refusal::from)?;
    let bundle = match &wire.trust_domain_bundle {
        None => None,
        Some(bundle) => Some(first_bundle(bundle.clone(), &trust_domain)?),
    };
    let relationship = Relationship {
        trust_domain,
        bundle_endpoint_url: url.to_string(),
        profile: profile(wire.bundle_endpoint_profile.as_ref())?,
        revision: 0,
    };
    Ok((relationship, bundle))
}

/// A relationship as an update leaves it: the fields that the mask names are the update's, the others stay.
pub(in super::super) fn updated(
    old: &Relationship,
    new: &types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> Result<(Relationship, Option<StoredBundle>), Refusal> {
    let mut wire = shown(old, None);
    let all = mask.is_none();
    if all || mask.is_some_and(|mask| mask.bundle_endpoint_url) {
        wire.bundle_endpoint_url
            .clone_from(&new.bundle_endpoint_url);
    }
    if all || mask.is_some_and(|mask| mask.bundle_endpoint_profile) {
        wire.bundle_endpoint_profile
            .clone_from(&new.bundle_endpoint_profile);
    }
    if all || mask.is_some_and(|mask| mask.trust_domain_bundle) {
        wire.trust_domain_bundle
            .clone_from(&new.trust_domain_bundle);
    }
    read(&wire)
}

fn profile(wire: Option<&BundleEndpointProfile>) -> Result<EndpointProfile, Refusal> {
    match wire {
        Some(BundleEndpointProfile::HttpsWeb(_)) => Ok(EndpointProfile::HttpsWeb),
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            let endpoint_id: SpiffeId = profile.endpoint_spiffe_id.parse().map_err(|error| {
                malformed(format!("failed to parse endpoint SPIFFE ID: {error}"))
            })?;
            Ok(EndpointProfile::HttpsSpiffe { endpoint_id })
        }
        None => Err(malformed(
            "unsupported bundle endpoint profile type: none is set".into(),
        )),
    }
}

fn first_bundle(wire: types::Bundle, domain: &TrustDomain) -> Result<StoredBundle, Refusal> {
    let carried = CarriedBundle::try_from(wire)
        .map_err(|error| Refusal::from(error).within("failed to parse bundle"))?;
    let of = carried.bundle.trust_domain();
    match of == domain {
        true => Ok(StoredBundle::from(&carried.bundle)),
        false => Err(malformed(format!(
            "trust domain bundle (\"{of}\") must match the trust domain of the federation relationship (\"{domain}\")"
        ))),
    }
}

/// The name of a trust domain.
pub(super) fn domain(name: &str) -> Result<TrustDomain, Refusal> {
    trust_domain_from_wire("trust_domain", name)
        .map_err(|error| Refusal::from(error).within("failed to parse trust domain"))
}

/// A relationship for the wire, with the bundle of its trust domain as it is now.
pub(super) fn shown(
    relationship: &Relationship,
    bundle: Option<types::Bundle>,
) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain: relationship.trust_domain.to_string(),
        bundle_endpoint_url: relationship.bundle_endpoint_url.clone(),
        bundle_endpoint_profile: Some(match &relationship.profile {
            EndpointProfile::HttpsWeb => BundleEndpointProfile::HttpsWeb(types::HttpsWebProfile {}),
            EndpointProfile::HttpsSpiffe { endpoint_id } => {
                BundleEndpointProfile::HttpsSpiffe(types::HttpsspiffeProfile {
                    endpoint_spiffe_id: endpoint_id.to_string(),
                })
            }
        }),
        trust_domain_bundle: bundle,
    }
}

/// The fields that a mask names; without one, all.
pub(super) fn masked(
    mut wire: types::FederationRelationship,
    mask: Option<&types::FederationRelationshipMask>,
) -> types::FederationRelationship {
    if let Some(mask) = mask {
        if !mask.bundle_endpoint_url {
            wire.bundle_endpoint_url.clear();
        }
        if !mask.bundle_endpoint_profile {
            wire.bundle_endpoint_profile = None;
        }
        if !mask.trust_domain_bundle {
            wire.trust_domain_bundle = None;
        }
    }
    wire
}

fn malformed(why: String) -> Refusal {
    Refusal::new("FNL1271", Code::InvalidArgument, why)
}
