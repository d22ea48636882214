//! Registration entries.
//! It trusts the domain's parsers for each name; `Entry::validate` (what may exist in a trust domain) is the caller's next step.
//! It never invents a value: an entry without an ID is refused, so whoever creates one gives it an ID first.

use std::time::Duration;

use mesh_identity::{DnsName, Entry, EntryId};

use super::{
    error::{Reason, WireError},
    identity::{
        moment, required_id, seconds_of, selectors_from_wire, selectors_to_wire,
        trust_domain_from_wire,
    },
};
use crate::spire::api::types;

impl TryFrom<&types::Entry> for Entry {
    type Error = WireError;

    fn try_from(wire: &types::Entry) -> Result<Self, WireError> {
        let attributes = wire.additional_attributes.unwrap_or_default();
        Ok(Self {
            id: entry_id("id", &wire.id)?,
            spiffe_id: required_id("spiffe_id", wire.spiffe_id.as_ref())?,
            parent_id: required_id("parent_id", wire.parent_id.as_ref())?,
            selectors: selectors_from_wire("selectors", &wire.selectors)?,
            x509_svid_ttl: ttl("x509_svid_ttl", wire.x509_svid_ttl)?,
            jwt_svid_ttl: ttl("jwt_svid_ttl", wire.jwt_svid_ttl)?,
            federates_with: wire
                .federates_with
                .iter()
                .enumerate()
                .map(|(i, name)| {
                    trust_domain_from_wire("", name).map_err(|e| e.within_item("federates_with", i))
                })
                .collect::<Result<_, _>>()?,
            admin: wire.admin,
            downstream: wire.downstream,
            expires_at: match wire.expires_at {
                0 => None,
                seconds => Some(moment("expires_at", seconds)?),
            },
            dns_names: wire
                .dns_names
                .iter()
                .enumerate()
                .map(|(i, name)| {
                    name.parse::<DnsName>()
                        .map_err(|e| WireError::new("", e).within_item("dns_names", i))
                })
                .collect::<Result<_, _>>()?,
            revision: u64::try_from(wire.revision_number).map_err(|_| {
                WireError::new("revision_number", Reason::Negative(wire.revision_number))
            })?,
            store_svid: wire.store_svid,
            hint: wire.hint.clone(),
            created_at: moment("created_at", wire.created_at)?,
            disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
            jwt_svid_include_jti: attributes.jwt_svid_include_jti,
        })
    }
}

impl From<&Entry> for types::Entry {
    fn from(entry: &Entry) -> Self {
        let attributes = types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
            jwt_svid_include_jti: entry.jwt_svid_include_jti,
        };
        Self {
            id: entry.id.as_str().to_owned(),
            spiffe_id: Some((&entry.spiffe_id).into()),
            parent_id: Some((&entry.parent_id).into()),
            selectors: selectors_to_wire(&entry.selectors),
            x509_svid_ttl: ttl_seconds(entry.x509_svid_ttl),
            federates_with: entry
                .federates_with
                .iter()
                .map(|d| d.as_str().to_owned())
                .collect(),
            admin: entry.admin,
            downstream: entry.downstream,
            expires_at: entry.expires_at.map_or(0, seconds_of),
            dns_names: entry
                .dns_names
                .iter()
                .map(|n| n.as_str().to_owned())
                .collect(),
            revision_number: i64::try_from(entry.revision).unwrap_or(i64::MAX),
            store_svid: entry.store_svid,
            jwt_svid_ttl: ttl_seconds(entry.jwt_svid_ttl),
            hint: entry.hint.clone(),
            created_at: seconds_of(entry.created_at),
            // SPIRE leaves the message out when nothing in it is set.
            additional_attributes: (attributes != types::entry::AdditionalAttributes::default())
                .then_some(attributes),
        }
    }
}

/// Reads an entry ID that must be there.
pub(super) fn entry_id(field: &str, wire: &str) -> Result<EntryId, WireError> {
    if wire.is_empty() {
        return Err(WireError::new(field, Reason::Missing));
    }
    wire.parse()
        .map_err(|e: mesh_identity::EntryIdError| WireError::new(field, e))
}

fn ttl(field: &str, seconds: i32) -> Result<Option<Duration>, WireError> {
    match u64::try_from(seconds) {
        Ok(0) => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds))),
        Err(_) => Err(WireError::new(field, Reason::Negative(seconds.into()))),
    }
}

/// At least one second, for zero would mean the server's default.
fn ttl_seconds(ttl: Option<Duration>) -> i32 {
    ttl.map_or(0, |ttl| {
        i32::try_from(ttl.as_secs()).unwrap_or(i32::MAX).max(1)
    })
}
