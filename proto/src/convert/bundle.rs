//! Trust bundles. X.509 roots and JWT keys become the domain's [`Bundle`]; WIT keys are carried as they came, for the domain has no type for them.
//! It trusts the domain's parser for each root and key.
//! It never takes part of a bundle: one bad root or key refuses all.

use std::time::Duration;

use mesh_identity::{Bundle, BundleError, JwtAuthority, JwtAuthorityError, X509Authority};

use super::{
    error::{Reason, WireError},
    identity::{moment, seconds_of, trust_domain_from_wire},
};
use crate::spire::api::types;

/// A bundle with everything that the wire says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct CarriedBundle {
    /// Trust domain, X.509 roots, JWT keys, sequence number, refresh hint.
    pub bundle: Bundle,
    /// WIT keys, unread.
    pub wit_authorities: Vec<types::WitKey>,
}

impl From<Bundle> for CarriedBundle {
    fn from(bundle: Bundle) -> Self {
        Self {
            bundle,
            wit_authorities: Vec::new(),
        }
    }
}

impl TryFrom<types::Bundle> for CarriedBundle {
    type Error = WireError;

    fn try_from(wire: types::Bundle) -> Result<Self, WireError> {
        let domain = trust_domain_from_wire("trust_domain", &wire.trust_domain)?;
        let hint = u64::try_from(wire.refresh_hint)
            .map_err(|_| WireError::new("refresh_hint", Reason::Negative(wire.refresh_hint)))?;
        let roots = wire
            .x509_authorities
            .into_iter()
            .enumerate()
            .map(|(i, root)| {
                X509Authority::try_from(root).map_err(|e| e.within_item("x509_authorities", i))
            });
        let keys = wire.jwt_authorities.into_iter().enumerate();
        let keys = keys
            .map(|(i, key)| jwt_authority(i, key).map_err(|e| e.within_item("jwt_authorities", i)));
        let mut bundle = Bundle::new(domain, roots.collect::<Result<Vec<_>, _>>()?)
            .map_err(|e| WireError::new("x509_authorities", e))?
            .with_jwt_authorities(keys.collect::<Result<Vec<_>, _>>()?)
            .map_err(|e| WireError::new("jwt_authorities", e))?
            .with_refresh_hint((hint > 0).then(|| Duration::from_secs(hint)));
        if wire.sequence_number > 0 {
            bundle = bundle.with_sequence(wire.sequence_number);
        }
        Ok(Self {
            bundle,
            wit_authorities: wire.wit_authorities,
        })
    }
}

impl From<&CarriedBundle> for types::Bundle {
    fn from(carried: &CarriedBundle) -> Self {
        Self {
            wit_authorities: carried.wit_authorities.clone(),
            ..Self::from(&carried.bundle)
        }
    }
}

/// Without WIT keys.
impl From<&Bundle> for types::Bundle {
    fn from(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().as_str().to_owned(),
            x509_authorities: bundle
                .x509_authorities()
                .iter()
                .map(types::X509Certificate::from)
                .collect(),
            jwt_authorities: bundle
                .jwt_authorities()
                .iter()
                .map(types::JwtKey::from)
                .collect(),
            refresh_hint: bundle
                .refresh_hint()
                .map_or(0, |h| i64::try_from(h.as_secs()).unwrap_or(i64::MAX)),
            sequence_number: bundle.sequence(),
            ..Self::default()
        }
    }
}

fn jwt_authority(position: usize, wire: types::JwtKey) -> Result<JwtAuthority, WireError> {
    let key = JwtAuthority::from_spki(&wire.key_id, &wire.public_key).map_err(|source| {
        let field = match source {
            JwtAuthorityError::KeyId => "key_id",
            JwtAuthorityError::Key => "public_key",
        };
        WireError::new(field, BundleError::JwtKey { position, source })
    })?;
    let expires_at = match wire.expires_at {
        0 => None,
        seconds => Some(moment("expires_at", seconds)?),
    };
    Ok(key.with_expiry(expires_at).with_tainted(wire.tainted))
}

impl From<&JwtAuthority> for types::JwtKey {
    fn from(key: &JwtAuthority) -> Self {
        Self {
            public_key: key.to_spki(),
            key_id: key.key_id().to_owned(),
            expires_at: key.expires_at().map_or(0, seconds_of),
            tainted: key.is_tainted(),
        }
    }
}

impl TryFrom<types::X509Certificate> for X509Authority {
    type Error = WireError;

    fn try_from(wire: types::X509Certificate) -> Result<Self, WireError> {
        let root = X509Authority::parse(wire.asn1).map_err(|e| WireError::new("asn1", e))?;
        Ok(root.with_tainted(wire.tainted))
    }
}

impl From<&X509Authority> for types::X509Certificate {
    fn from(root: &X509Authority) -> Self {
        Self {
            asn1: root.der().to_vec(),
            tainted: root.is_tainted(),
        }
    }
}
