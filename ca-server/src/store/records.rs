//! The rows as they lie in the store, apart from our types, so that a change of a type cannot change the format unseen.
//! Trusts nothing: what comes back is parsed again and refused if it does not parse.

use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use mesh_identity::Entry;
use serde::{Deserialize, Serialize};

use super::codec::{Row, unreadable};
use super::{
    EndpointProfile, IssuedRecord, JtiUse, KubernetesFacts, NewToken, Node, Relationship,
    RenewedSerial, StoreError, StoredBundle, StoredJwtKey, StoredRoot,
};

macro_rules! row {
    ($type:ty, $what:literal, $schema:literal) => {
        impl Row for $type {
            const WHAT: &'static str = $what;
            const SCHEMA: u8 = $schema;
        }
    };
}

fn parse<R: Row, T: FromStr<Err: Display>>(text: &str) -> Result<T, StoreError> {
    text.parse()
        .map_err(|error: T::Err| unreadable::<R>(error.to_string()))
}

fn parse_all<R: Row, T: FromStr<Err: Display>, C: FromIterator<T>>(
    texts: &[String],
) -> Result<C, StoreError> {
    texts.iter().map(|text| parse::<R, T>(text)).collect()
}

fn texts<T: Display>(values: impl IntoIterator<Item = T>) -> Vec<String> {
    values.into_iter().map(|value| value.to_string()).collect()
}

/// What the store says about itself.
#[derive(Serialize, Deserialize)]
pub(super) struct MetaRow {
    pub(super) format: u16,
    pub(super) epoch: String,
    pub(super) trust_domain: String,
}
row!(MetaRow, "store header", 1);

/// A number that only rises.
#[derive(Serialize, Deserialize)]
pub(super) struct CounterRow(pub(super) u64);
row!(CounterRow, "counter", 1);

#[derive(Serialize, Deserialize)]
pub(super) struct EntryRow {
    id: String,
    spiffe_id: String,
    parent_id: String,
    selectors: Vec<String>,
    x509_svid_ttl: Option<Duration>,
    jwt_svid_ttl: Option<Duration>,
    federates_with: Vec<String>,
    admin: bool,
    downstream: bool,
    expires_at: Option<SystemTime>,
    dns_names: Vec<String>,
    revision: u64,
    store_svid: bool,
    hint: String,
    created_at: SystemTime,
    disable_x509_svid_prefetch: bool,
    jwt_svid_include_jti: bool,
}
row!(EntryRow, "entry", 1);

impl From<&Entry> for EntryRow {
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.id.to_string(),
            spiffe_id: entry.spiffe_id.to_string(),
            parent_id: entry.parent_id.to_string(),
            selectors: texts(&entry.selectors),
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            federates_with: texts(&entry.federates_with),
            admin: entry.admin,
            downstream: entry.downstream,
            expires_at: entry.expires_at,
            dns_names: texts(&entry.dns_names),
            revision: entry.revision,
            store_svid: entry.store_svid,
            hint: entry.hint.clone(),
            created_at: entry.created_at,
            disable_x509_svid_prefetch: entry.disable_x509_svid_prefetch,
            jwt_svid_include_jti: entry.jwt_svid_include_jti,
        }
    }
}

impl TryFrom<EntryRow> for Entry {
    type Error = StoreError;

    fn try_from(row: EntryRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse::<EntryRow, _>(&row.id)?,
            spiffe_id: parse::<EntryRow, _>(&row.spiffe_id)?,
            parent_id: parse::<EntryRow, _>(&row.parent_id)?,
            selectors: parse_all::<EntryRow, _, _>(&row.selectors)?,
            x509_svid_ttl: row.x509_svid_ttl,
            jwt_svid_ttl: row.jwt_svid_ttl,
            federates_with: parse_all::<EntryRow, _, _>(&row.federates_with)?,
            admin: row.admin,
            downstream: row.downstream,
            expires_at: row.expires_at,
            dns_names: parse_all::<EntryRow, _, _>(&row.dns_names)?,
            revision: row.revision,
            store_svid: row.store_svid,
            hint: row.hint,
            created_at: row.created_at,
            disable_x509_svid_prefetch: row.disable_x509_svid_prefetch,
            jwt_svid_include_jti: row.jwt_svid_include_jti,
        })
    }
}

/// What remains of something that was removed; the revision is its key.
#[derive(Serialize, Deserialize)]
pub(super) enum TombstoneRow {
    Entry(String),
    Node(String),
    Bundle(String),
}
row!(TombstoneRow, "tombstone", 1);

#[derive(Serialize, Deserialize)]
pub(super) struct NodeRow {
    id: String,
    attestation_type: String,
    selectors: Vec<String>,
    serial: String,
    expires_at: SystemTime,
    renewed: Option<RenewedSerial>,
    can_reattest: bool,
    banned: bool,
    kubernetes: Option<KubernetesFacts>,
    agent_version: String,
    attested_at: SystemTime,
    revision: u64,
}
row!(NodeRow, "agent", 1);

impl From<&Node> for NodeRow {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.to_string(),
            attestation_type: node.attestation_type.clone(),
            selectors: texts(&node.selectors),
            serial: node.serial.clone(),
            expires_at: node.expires_at,
            renewed: node.renewed.clone(),
            can_reattest: node.can_reattest,
            banned: node.banned,
            kubernetes: node.kubernetes.clone(),
            agent_version: node.agent_version.clone(),
            attested_at: node.attested_at,
            revision: node.revision,
        }
    }
}

impl TryFrom<NodeRow> for Node {
    type Error = StoreError;

    fn try_from(row: NodeRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse::<NodeRow, _>(&row.id)?,
            attestation_type: row.attestation_type,
            selectors: parse_all::<NodeRow, _, _>(&row.selectors)?,
            serial: row.serial,
            expires_at: row.expires_at,
            renewed: row.renewed,
            can_reattest: row.can_reattest,
            banned: row.banned,
            kubernetes: row.kubernetes,
            agent_version: row.agent_version,
            attested_at: row.attested_at,
            revision: row.revision,
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct TokenRow {
    pub(super) expires_at: SystemTime,
    pub(super) agent_id: Option<String>,
    pub(super) used_at: Option<SystemTime>,
}
row!(TokenRow, "join token", 1);

impl From<&NewToken> for TokenRow {
    fn from(token: &NewToken) -> Self {
        Self {
            expires_at: token.expires_at,
            agent_id: token.agent_id.as_ref().map(ToString::to_string),
            used_at: None,
        }
    }
}

impl TokenRow {
    pub(super) fn alias(&self) -> Result<Option<mesh_identity::SpiffeId>, StoreError> {
        self.agent_id.as_deref().map(parse::<Self, _>).transpose()
    }
}

row!(JtiUse, "used token id", 1);

#[derive(Serialize, Deserialize)]
pub(super) struct BundleRow {
    trust_domain: String,
    x509_authorities: Vec<StoredRoot>,
    jwt_authorities: Vec<StoredJwtKey>,
    pub(super) sequence: u64,
    refresh_hint: Option<Duration>,
    revision: u64,
}
row!(BundleRow, "bundle", 2);

impl From<&StoredBundle> for BundleRow {
    fn from(bundle: &StoredBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain.to_string(),
            x509_authorities: bundle.x509_authorities.clone(),
            jwt_authorities: bundle.jwt_authorities.clone(),
            sequence: bundle.sequence,
            refresh_hint: bundle.refresh_hint,
            revision: bundle.revision,
        }
    }
}

impl TryFrom<BundleRow> for StoredBundle {
    type Error = StoreError;

    fn try_from(row: BundleRow) -> Result<Self, StoreError> {
        Ok(Self {
            trust_domain: parse::<BundleRow, _>(&row.trust_domain)?,
            x509_authorities: row.x509_authorities,
            jwt_authorities: row.jwt_authorities,
            sequence: row.sequence,
            refresh_hint: row.refresh_hint,
            revision: row.revision,
        })
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct RelationshipRow {
    trust_domain: String,
    bundle_endpoint_url: String,
    /// None: known by the public Web PKI.
    endpoint_id: Option<String>,
    revision: u64,
}
row!(RelationshipRow, "federation relationship", 1);

impl From<&Relationship> for RelationshipRow {
    fn from(relationship: &Relationship) -> Self {
        Self {
            trust_domain: relationship.trust_domain.to_string(),
            bundle_endpoint_url: relationship.bundle_endpoint_url.clone(),
            endpoint_id: match &relationship.profile {
                EndpointProfile::HttpsWeb => None,
                EndpointProfile::HttpsSpiffe { endpoint_id } => Some(endpoint_id.to_string()),
            },
            revision: relationship.revision,
        }
    }
}

impl TryFrom<RelationshipRow> for Relationship {
    type Error = StoreError;

    fn try_from(row: RelationshipRow) -> Result<Self, StoreError> {
        Ok(Self {
            trust_domain: parse::<RelationshipRow, _>(&row.trust_domain)?,
            bundle_endpoint_url: row.bundle_endpoint_url,
            profile: match row.endpoint_id {
                None => EndpointProfile::HttpsWeb,
                Some(id) => EndpointProfile::HttpsSpiffe {
                    endpoint_id: parse::<RelationshipRow, _>(&id)?,
                },
            },
            revision: row.revision,
        })
    }
}

/// The authority's journal; its inside is the authority's own business.
#[derive(Serialize, Deserialize)]
pub(super) struct JournalRow(pub(super) Vec<u8>);
row!(JournalRow, "authority journal", 1);

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct IssuedRow {
    pub(super) serial: String,
    spiffe_id: String,
    entry_id: Option<String>,
    agent_id: Option<String>,
    pub(super) authority_id: String,
    pub(super) not_after: SystemTime,
    pub(super) issued_at: SystemTime,
}

impl IssuedRow {
    /// Who holds it: it takes the place of what the same one was given before.
    pub(super) fn holder(&self) -> (Option<String>, Option<String>, String) {
        let Self {
            agent_id, entry_id, ..
        } = self;
        (agent_id.clone(), entry_id.clone(), self.spiffe_id.clone())
    }
}

/// What one call was given.
#[derive(Serialize, Deserialize)]
pub(super) struct IssuedRows(pub(super) Vec<IssuedRow>);
row!(IssuedRows, "certificate records", 1);

impl From<&IssuedRecord> for IssuedRow {
    fn from(record: &IssuedRecord) -> Self {
        Self {
            serial: record.serial.clone(),
            spiffe_id: record.spiffe_id.to_string(),
            entry_id: record.entry_id.as_ref().map(ToString::to_string),
            agent_id: record.agent_id.as_ref().map(ToString::to_string),
            authority_id: record.authority_id.clone(),
            not_after: record.not_after,
            issued_at: record.issued_at,
        }
    }
}

impl TryFrom<IssuedRow> for IssuedRecord {
    type Error = StoreError;

    fn try_from(row: IssuedRow) -> Result<Self, StoreError> {
        Ok(Self {
            serial: row.serial,
            spiffe_id: parse::<IssuedRows, _>(&row.spiffe_id)?,
            entry_id: row
                .entry_id
                .as_deref()
                .map(parse::<IssuedRows, _>)
                .transpose()?,
            agent_id: row
                .agent_id
                .as_deref()
                .map(parse::<IssuedRows, _>)
                .transpose()?,
            authority_id: row.authority_id,
            not_after: row.not_after,
            issued_at: row.issued_at,
        })
    }
}
