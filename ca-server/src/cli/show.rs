//! How answers are printed: aligned lines for people, JSON with fixed keys for programs. No fact is only in one of them.

use std::time::{Duration, SystemTime};

use mesh_identity::{Bundle, Entry};
use mesh_runtime::cli::Output;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::client::{ListedAgent, ListedRelationship};

pub(super) fn token(token: &str, expires_at: SystemTime, output: Output) -> String {
    match output {
        Output::Json => line(&json!({ "token": token, "expiresAt": rfc3339(expires_at) })),
        // As SPIRE's command prints it, so that scripts that cut it go on working.
        Output::Table => format!("Token: {token}\n"),
    }
}

pub(super) fn entry(entry: &Entry, output: Output) -> String {
    match output {
        Output::Json => line(&entry_json(entry)),
        Output::Table => entry_text(entry),
    }
}

pub(super) fn entries(entries: &[Entry], output: Output) -> String {
    match output {
        Output::Json => line(&json!({
            "entries": entries.iter().map(entry_json).collect::<Vec<_>>()
        })),
        Output::Table => {
            let all: Vec<_> = entries.iter().map(entry_text).collect();
            format!(
                "Found {}\n{}",
                counted(all.len(), "entry", "entries"),
                all.join("\n")
            )
        }
    }
}

pub(super) fn deleted(id: &str, output: Output) -> String {
    match output {
        Output::Json => line(&json!({ "deleted": id })),
        Output::Table => format!("Deleted entry with ID: {id}\n"),
    }
}

pub(super) fn all_deleted(ids: &[&str], output: Output) -> String {
    match output {
        Output::Json => line(&json!({ "deleted": ids })),
        Output::Table => {
            let rows: String = ids
                .iter()
                .map(|id| format!("Deleted entry with ID: {id}\n"))
                .collect();
            format!("{rows}Deleted {}\n", counted(ids.len(), "entry", "entries"))
        }
    }
}

pub(super) fn count(count: i32, one: &str, many: &str, output: Output) -> String {
    match output {
        Output::Json => line(&json!({ "count": count })),
        Output::Table => format!("{count} {}\n", if count == 1 { one } else { many }),
    }
}

/// What happened to which things of one kind.
pub(super) fn done(kind: &str, word: &str, names: &[&str], output: Output) -> String {
    match output {
        Output::Json => line(&json!({ word: names })),
        Output::Table if names.is_empty() => format!("no {kind} {word}\n"),
        Output::Table => names
            .iter()
            .map(|name| format!("{kind} {word}: {name}\n"))
            .collect(),
    }
}

/// The documents of the SPIFFE standard, by trust domain.
pub(super) fn bundles(bundles: &[Bundle]) -> String {
    let document = |bundle: &Bundle| {
        serde_json::from_slice::<Value>(&bundle.to_spiffe_json())
            .expect("a bundle is written as JSON")
    };
    let bundles: serde_json::Map<_, _> = bundles
        .iter()
        .map(|bundle| (bundle.trust_domain().to_string(), document(bundle)))
        .collect();
    line(&json!({ "bundles": bundles }))
}

pub(super) fn relationships(relationships: &[ListedRelationship], output: Output) -> String {
    let profile = |relationship: &ListedRelationship| match relationship.endpoint_id {
        Some(_) => "https_spiffe",
        None => "https_web",
    };
    match output {
        Output::Json => line(&json!({
            "relationships": relationships
                .iter()
                .map(|relationship| json!({
                    "trustDomain": relationship.trust_domain,
                    "bundleEndpointUrl": relationship.url,
                    "bundleEndpointProfile": profile(relationship),
                    "endpointSpiffeId": relationship.endpoint_id,
                }))
                .collect::<Vec<_>>()
        })),
        Output::Table => {
            let one = "federation relationship";
            let found = counted(relationships.len(), one, "federation relationships");
            let all: Vec<_> = relationships
                .iter()
                .map(|relationship| {
                    let mut text = rows(&[
                        ("Trust domain", relationship.trust_domain.clone()),
                        ("Bundle endpoint", relationship.url.clone()),
                        ("Profile", profile(relationship).to_owned()),
                    ]);
                    if let Some(id) = &relationship.endpoint_id {
                        text += &rows(&[("Endpoint ID", id.clone())]);
                    }
                    text
                })
                .collect();
            format!("Found {found}\n{}", all.join("\n"))
        }
    }
}

pub(super) fn agent(agent: &ListedAgent, output: Output) -> String {
    match output {
        Output::Json => line(&agent_json(agent)),
        Output::Table => agent_text(agent),
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

pub(super) fn agents(agents: &[ListedAgent], output: Output) -> String {
    match output {
        Output::Json => line(&json!({
            "agents": agents.iter().map(agent_json).collect::<Vec<_>>()
        })),
        Output::Table => {
            let all: Vec<_> = agents.iter().map(agent_text).collect();
            let found = counted(all.len(), "attested agent", "attested agents");
            format!("Found {found}\n{}", all.join("\n"))
        }
    }
}

fn entry_json(entry: &Entry) -> Value {
    json!({
        "id": entry.id.as_str(),
        "spiffeId": entry.spiffe_id.as_str(),
        "parentId": entry.parent_id.as_str(),
        "selectors": entry.selectors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "x509SvidTtl": entry.x509_svid_ttl.map(|ttl| ttl.as_secs()),
        "jwtSvidTtl": entry.jwt_svid_ttl.map(|ttl| ttl.as_secs()),
        "dnsNames": entry.dns_names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        "federatesWith": entry.federates_with.iter().map(|domain| domain.as_str()).collect::<Vec<_>>(),
        "admin": entry.admin,
        "downstream": entry.downstream,
        "storeSvid": entry.store_svid,
        "disableX509SvidPrefetch": entry.disable_x509_svid_prefetch,
        "jwtSvidIncludeJti": entry.jwt_svid_include_jti,
        "hint": entry.hint,
        "revision": entry.revision,
        "createdAt": rfc3339(entry.created_at),
        "expiresAt": entry.expires_at.map(rfc3339),
    })
}

fn entry_text(entry: &Entry) -> String {
    let mut text = rows(&[
        ("Entry ID", entry.id.to_string()),
        ("SPIFFE ID", entry.spiffe_id.to_string()),
        ("Parent ID", entry.parent_id.to_string()),
        ("Revision", entry.revision.to_string()),
        ("X509-SVID TTL", ttl(entry.x509_svid_ttl)),
        ("JWT-SVID TTL", ttl(entry.jwt_svid_ttl)),
        ("Created", rfc3339(entry.created_at)),
    ]);
    for selector in &entry.selectors {
        text += &rows(&[("Selector", selector.to_string())]);
    }
    for name in &entry.dns_names {
        text += &rows(&[("DNS name", name.to_string())]);
    }
    for domain in &entry.federates_with {
        text += &rows(&[("FederatesWith", domain.to_string())]);
    }
    for (name, is) in [
        ("Admin", entry.admin),
        ("Downstream", entry.downstream),
        ("Store SVID", entry.store_svid),
        ("No prefetch", entry.disable_x509_svid_prefetch),
        ("JWT-SVID jti", entry.jwt_svid_include_jti),
    ] {
        if is {
            text += &rows(&[(name, "true".to_owned())]);
        }
    }
    if !entry.hint.is_empty() {
        text += &rows(&[("Hint", mesh_runtime::errors::untrusted(&entry.hint))]);
    }
    if let Some(end) = entry.expires_at {
        text += &rows(&[("Expires", rfc3339(end))]);
    }
    text
}

fn ttl(ttl: Option<Duration>) -> String {
    ttl.map_or("default".to_owned(), |ttl| ttl.as_secs().to_string())
}

fn agent_json(agent: &ListedAgent) -> Value {
    json!({
        "id": agent.id,
        "attestationType": agent.attestation_type,
        "expiresAt": rfc3339(agent.expires_at),
        "serial": agent.serial,
        "banned": agent.banned,
        "canReattest": agent.can_reattest,
        "version": agent.version,
        "selectors": agent.selectors,
    })
}

fn agent_text(agent: &ListedAgent) -> String {
    let mut text = rows(&[
        ("SPIFFE ID", agent.id.clone()),
        ("Attestation type", agent.attestation_type.clone()),
        ("Expires", rfc3339(agent.expires_at)),
        ("Serial number", agent.serial.clone()),
        ("Can re-attest", agent.can_reattest.to_string()),
        ("Banned", agent.banned.to_string()),
        ("Version", agent.version.clone()),
    ]);
    for selector in &agent.selectors {
        text += &rows(&[("Selector", selector.clone())]);
    }
    text
}

pub(super) fn rows(rows: &[(&str, String)]) -> String {
    rows.iter()
        .map(|(name, value)| format!("{name:<17}: {value}\n"))
        .collect()
}

pub(super) fn line(value: &Value) -> String {
    format!("{value:#}\n")
}

pub(super) fn rfc3339(moment: SystemTime) -> String {
    let moment = OffsetDateTime::from(moment)
        .replace_nanosecond(0)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(&Rfc3339).unwrap_or_default()
}
