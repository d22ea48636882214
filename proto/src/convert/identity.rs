//! SPIFFE IDs, trust domain names and selectors.
//! It trusts nothing; each part goes through the domain's parser.
//! It never normalises: a name that is not exactly right is refused.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_identity::{Selector, SpiffeId, TrustDomain};

use super::error::{Reason, WireError};
use crate::spire::api::types;

impl TryFrom<&types::Spiffeid> for SpiffeId {
    type Error = WireError;

    fn try_from(wire: &types::Spiffeid) -> Result<Self, WireError> {
        let domain = plain_domain("trust_domain", &wire.trust_domain)?;
        SpiffeId::from_parts(&domain, &wire.path).map_err(|e| WireError::new("path", e))
    }
}

impl From<&SpiffeId> for types::Spiffeid {
    fn from(id: &SpiffeId) -> Self {
        Self {
            trust_domain: id.trust_domain().as_str().to_owned(),
            path: id.path().to_owned(),
        }
    }
}

impl TryFrom<&types::Selector> for Selector {
    type Error = WireError;

    fn try_from(wire: &types::Selector) -> Result<Self, WireError> {
        Selector::new(&wire.r#type, &wire.value).map_err(|e| WireError::new("", e))
    }
}

impl From<&Selector> for types::Selector {
    fn from(selector: &Selector) -> Self {
        Self {
            r#type: selector.kind().to_owned(),
            value: selector.value().to_owned(),
        }
    }
}

/// Reads a list as the set that it stands for; `field` is its name in the message.
pub fn selectors_from_wire(
    field: &str,
    wire: &[types::Selector],
) -> Result<BTreeSet<Selector>, WireError> {
    let read = |(i, s): (usize, &types::Selector)| {
        Selector::try_from(s).map_err(|e| e.within_item(field, i))
    };
    wire.iter().enumerate().map(read).collect()
}

/// Writes a set as an ordered list.
pub fn selectors_to_wire<'a>(
    selectors: impl IntoIterator<Item = &'a Selector>,
) -> Vec<types::Selector> {
    selectors.into_iter().map(types::Selector::from).collect()
}

/// Reads a field that names a trust domain: `dev.test`, or `spiffe://dev.test` as SPIRE's clients also send it.
pub fn trust_domain_from_wire(field: &str, wire: &str) -> Result<TrustDomain, WireError> {
    if wire.starts_with("spiffe://") {
        return domain_of_id(field, wire);
    }
    plain_domain(field, wire)
}

/// Reads a key that must be the SPIFFE ID of a trust domain.
pub(super) fn domain_of_id(field: &str, wire: &str) -> Result<TrustDomain, WireError> {
    let id: SpiffeId = wire
        .parse()
        .map_err(|e: mesh_identity::SpiffeIdError| WireError::new(field, e))?;
    match id.path().is_empty() {
        true => Ok(id.trust_domain().clone()),
        false => Err(WireError::new(field, Reason::HasPath(id))),
    }
}

/// An ID that must be there.
pub(super) fn required_id(
    field: &str,
    wire: Option<&types::Spiffeid>,
) -> Result<SpiffeId, WireError> {
    let wire = wire.ok_or_else(|| WireError::new(field, Reason::Missing))?;
    SpiffeId::try_from(wire).map_err(|e| e.within(field))
}

/// Seconds since 1970, never before.
pub(super) fn moment(field: &str, seconds: i64) -> Result<SystemTime, WireError> {
    let since =
        u64::try_from(seconds).map_err(|_| WireError::new(field, Reason::Negative(seconds)))?;
    UNIX_EPOCH
        .checked_add(Duration::from_secs(since))
        .ok_or_else(|| WireError::new(field, Reason::Time(seconds)))
}

/// Whole seconds since 1970; a moment before it is 1970.
pub(super) fn seconds_of(moment: SystemTime) -> i64 {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn plain_domain(field: &str, wire: &str) -> Result<TrustDomain, WireError> {
    wire.parse()
        .map_err(|e: mesh_identity::TrustDomainError| WireError::new(field, e))
}
