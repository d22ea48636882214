//! Entries and ids in files, in the JSON of SPIRE's commands. Read whole or refused, with the place of the mistake.

use std::path::Path;

use mesh_identity::{DnsName, Selector, SpiffeId, TrustDomain};
use serde::Deserialize;

use super::super::CommandError;
use super::super::args::{read_json, trust_domain};
use crate::api::client::NewEntry;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    entries: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ids {
    ids: Vec<String>,
}

/// The names are those that SPIRE writes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    spiffe_id: SpiffeId,
    parent_id: SpiffeId,
    selectors: Vec<WrittenSelector>,
    #[serde(default)]
    entry_id: String,
    #[serde(default)]
    x509_svid_ttl: i32,
    #[serde(default)]
    jwt_svid_ttl: i32,
    #[serde(default)]
    federates_with: Vec<String>,
    #[serde(default)]
    dns_names: Vec<DnsName>,
    #[serde(default)]
    hint: String,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    downstream: bool,
    #[serde(default)]
    store_svid: bool,
    #[serde(default, rename = "entryExpiry")]
    entry_expiry: i64,
    #[serde(default)]
    additional_attributes: Attributes,
    /// The server's; an exported file has them, and they are passed over as in SPIRE.
    #[serde(default, rename = "revision_number")]
    _revision_number: i64,
    #[serde(default, rename = "created_at")]
    _created_at: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSelector {
    r#type: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Attributes {
    disable_x509_svid_prefetch: bool,
    jwt_svid_include_jti: bool,
}

/// The entries of a file.
pub(super) fn entries(path: &Path) -> Result<Vec<NewEntry>, CommandError> {
    let file: Entries = read_json(path)?;
    let entries = file.entries.into_iter().enumerate().map(|(at, written)| {
        new_entry(written)
            .map_err(|problem| CommandError::in_file(path, format!("entries[{at}].{problem}")))
    });
    entries.collect()
}

/// The ids of a file.
pub(super) fn ids(path: &Path) -> Result<Vec<String>, CommandError> {
    read_json::<Ids>(path).map(|file| file.ids)
}

fn new_entry(written: Written) -> Result<NewEntry, String> {
    let selectors = written.selectors.iter().map(|selector| {
        Selector::new(&selector.r#type, &selector.value)
            .map_err(|error| format!("selectors: {error}"))
    });
    let federates_with = written
        .federates_with
        .iter()
        .map(|domain| trust_domain(domain).map_err(|error| format!("federates_with: {error}")));
    Ok(NewEntry {
        id: written.entry_id,
        selectors: selectors.collect::<Result<_, _>>()?,
        federates_with: federates_with.collect::<Result<Vec<TrustDomain>, _>>()?,
        x509_svid_ttl: written.x509_svid_ttl,
        jwt_svid_ttl: written.jwt_svid_ttl,
        dns_names: written.dns_names,
        hint: written.hint,
        admin: written.admin,
        downstream: written.downstream,
        store_svid: written.store_svid,
        expires_at: written.entry_expiry,
        disable_x509_svid_prefetch: written.additional_attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: written.additional_attributes.jwt_svid_include_jti,
        ..NewEntry::new(written.spiffe_id, written.parent_id)
    })
}
