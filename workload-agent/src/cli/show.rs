//! Decides how answers look: tables for people, JSON for programs, the comparison of ux.md B.4 for `explain`.
//! Trusts values that were parsed; never shows a private key, except into the file that its owner asked for.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use mesh_runtime::{
    cli::Output,
    errors::{Report, untrusted},
};
use proto::{
    convert::workload::X509Context, finial::explain::v1 as wire, spiffe::workload,
    spire::api::types,
};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::NO_IDENTITY;

/// Tokens are what was asked for; they are shown whole.
pub(super) fn tokens(svids: &[workload::Jwtsvid], output: Output) -> String {
    match output {
        Output::Json => {
            let svids = svids.iter().map(
                |svid| json!({ "spiffeId": svid.spiffe_id, "svid": svid.svid, "hint": svid.hint }),
            );
            format!("{}\n", json!({ "svids": svids.collect::<Vec<_>>() }))
        }
        Output::Table => svids
            .iter()
            .map(|svid| {
                let id = untrusted(&svid.spiffe_id);
                // Whole, unlike other texts: a token that is cut is none.
                let token: String = svid.svid.chars().filter(char::is_ascii_graphic).collect();
                match svid.hint.as_str() {
                    "" => format!("{id}\n  {token}\n"),
                    hint => format!("{id}  hint {}\n  {token}\n", untrusted(hint)),
                }
            })
            .collect(),
    }
}

/// Whose token it is, and what it says.
pub(super) fn proven(answer: &workload::ValidateJwtsvidResponse, output: Output) -> String {
    let fields = answer.claims.iter().flat_map(|claims| &claims.fields);
    let claims: serde_json::Map<_, _> = fields
        .map(|(name, value)| (name.clone(), json_of(value)))
        .collect();
    match output {
        Output::Json => format!(
            "{}\n",
            json!({ "spiffeId": answer.spiffe_id, "claims": claims })
        ),
        Output::Table => {
            let mut text = format!("the token is valid\n{}\n", untrusted(&answer.spiffe_id));
            for (name, value) in &claims {
                text.push_str(&format!(
                    "  {} {}\n",
                    untrusted(name),
                    untrusted(&value.to_string())
                ));
            }
            text
        }
    }
}

fn json_of(value: &prost_types::Value) -> serde_json::Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        // The wire has floats only; whole numbers, as dates are, are shown as such.
        Some(Kind::NumberValue(number)) => {
            let text = number.to_string();
            text.parse::<i64>()
                .map_or_else(|_| json!(number), |whole| json!(whole))
        }
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(json_of).collect(),
        Some(Kind::StructValue(members)) => members
            .fields
            .iter()
            .map(|(name, value)| (name.clone(), json_of(value)))
            .collect(),
    }
}

pub(super) fn context(context: &X509Context, output: Output, written: Option<&Path>) -> String {
    match output {
        Output::Json => {
            let svids: Vec<_> = context
                .identities()
                .iter()
                .map(|identity| {
                    json!({
                        "spiffeId": identity.svid.id().as_str(),
                        "serial": identity.svid.serial(),
                        "notBefore": absolute(identity.svid.not_before()),
                        "notAfter": absolute(identity.svid.not_after()),
                        "hint": identity.hint,
                        "chain": identity.svid.to_pem(),
                    })
                })
                .collect();
            let bundles: serde_json::Map<_, _> = context
                .bundles()
                .iter()
                .map(|bundle| (bundle.trust_domain().to_string(), json!({ "x509Authorities": bundle.x509_authorities().len(), "pem": bundle.to_pem() })))
                .collect();
            format!("{}\n", json!({ "svids": svids, "bundles": bundles }))
        }
        Output::Table => {
            let mut text = String::new();
            for identity in context.identities() {
                text.push_str(&format!(
                    "{}  serial {}  expires {}{}\n",
                    identity.svid.id(),
                    identity.svid.serial(),
                    absolute(identity.svid.not_after()),
                    if identity.hint.is_empty() {
                        String::new()
                    } else {
                        format!("  hint {}", untrusted(&identity.hint))
                    }
                ));
            }
            for bundle in context.bundles().iter() {
                text.push_str(&format!(
                    "bundle {}  {} X.509 authorities\n",
                    bundle.trust_domain(),
                    bundle.x509_authorities().len()
                ));
            }
            if let Some(dir) = written {
                text.push_str(&format!("written to {}\n", dir.display()));
            }
            text
        }
    }
}

fn absolute(time: SystemTime) -> String {
    // Certificates have whole seconds; years beyond 9999 do not occur in them.
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

pub(super) fn explanation(
    pid: i32,
    answer: &wire::ExplainProcessResponse,
    output: Output,
) -> String {
    match output {
        Output::Json => explanation_json(pid, answer),
        Output::Table if !answer.matching_entries.is_empty() => {
            let mut text = format!(
                "process {pid} gets {} {}\n",
                answer.matching_entries.len(),
                if answer.matching_entries.len() == 1 {
                    "identity"
                } else {
                    "identities"
                }
            );
            for entry in &answer.matching_entries {
                text.push_str(&format!(
                    "  {}  (entry {})\n",
                    id(entry.spiffe_id.as_ref()),
                    untrusted(&entry.id)
                ));
            }
            text.push_str("facts\n");
            for fact in &answer.selectors {
                text.push_str(&format!("  {}\n", selector(fact)));
            }
            text + &failed(answer)
        }
        Output::Table => explanation_text(pid, answer),
    }
}

/// The difference, side by side.
fn explanation_text(pid: i32, answer: &wire::ExplainProcessResponse) -> String {
    let fact = |name: &str| {
        let wanted = format!("{name}:");
        answer.selectors.iter().find_map(|s| {
            (s.r#type == "unix")
                .then(|| s.value.strip_prefix(&wanted))
                .flatten()
        })
    };
    let mut report = Report::new(NO_IDENTITY, "no identity for this process").line(format!(
        "  pid {pid}  {}  uid {}",
        fact("path")
            .map(untrusted)
            .unwrap_or_else(|| "(path unknown)".into()),
        fact("uid").unwrap_or("?")
    ));
    let mut rows: Vec<(String, String, &str)> = Vec::new();
    let mut heading = "no entry to compare with".to_owned();
    if let Some(closest) = &answer.closest_entry {
        let present = closest.selectors.iter().filter(|s| s.present).count();
        heading = format!(
            "entry {} (closest, {present} of {})",
            untrusted(&closest.id),
            closest.selectors.len()
        );
        for compared in &closest.selectors {
            let Some(wanted) = &compared.selector else {
                continue;
            };
            let (seen, verdict) = match compared.present {
                true => (selector(wanted), "ok"),
                false => match counterparts(wanted, answer).as_slice() {
                    [] => ("(not found)".to_owned(), "missing"),
                    seen => (seen.join(" "), "differs"),
                },
            };
            rows.push((seen, selector(wanted), verdict));
        }
    }
    let left = rows
        .iter()
        .map(|row| row.0.chars().count())
        .chain([8])
        .max()
        .unwrap_or(8);
    let middle = rows
        .iter()
        .map(|row| row.1.chars().count())
        .chain([heading.chars().count()])
        .max()
        .unwrap_or(8);
    report = report
        .line("  |")
        .line(format!("  | {:left$}   {heading}", "attested"));
    for (seen, wanted, verdict) in &rows {
        report = report.line(format!("  | {seen:left$}   {wanted:middle$}   {verdict}"));
    }
    if rows.is_empty() {
        for fact in &answer.selectors {
            report = report.line(format!("  | {}", selector(fact)));
        }
    }
    report = report.line("  |");
    for failed in &answer.failed_attestors {
        report = report.note(format!(
            "{} could not be found out: {}",
            untrusted(&failed.name),
            untrusted(&failed.reason)
        ));
    }
    report = report.note(match (answer.synced_at, answer.entry_count) {
        (0, _) => "the agent has not heard from its ca-server yet, so it knows no entries".to_owned(),
        (at, count) => format!("the agent was in step with its ca-server at {} and holds {count} entries; none matches", at_second(at)),
    });
    if let Some(closest) = &answer.closest_entry {
        report = report.note(format!(
            "the fix adds an entry for this process; if entry {id} was meant for it, remove that one: ca-server entry delete --entry-id {id}",
            id = untrusted(&closest.id)
        ));
    }
    report.fix(answer.fix_command.clone()).render()
}

fn explanation_json(pid: i32, answer: &wire::ExplainProcessResponse) -> String {
    let value = json!({
        "pid": pid,
        "code": if answer.matching_entries.is_empty() { Some(NO_IDENTITY) } else { None },
        "selectors": answer.selectors.iter().map(selector).collect::<Vec<_>>(),
        "failedAttestors": answer.failed_attestors.iter().map(|f| json!({ "name": f.name, "reason": f.reason })).collect::<Vec<_>>(),
        "matchingEntries": answer.matching_entries.iter()
            .map(|e| json!({ "id": e.id, "spiffeId": id(e.spiffe_id.as_ref()) })).collect::<Vec<_>>(),
        "closestEntry": answer.closest_entry.as_ref().map(|c| json!({
            "id": c.id,
            "spiffeId": id(c.spiffe_id.as_ref()),
            "selectors": c.selectors.iter()
                .map(|s| json!({ "selector": s.selector.as_ref().map(selector), "present": s.present })).collect::<Vec<_>>(),
        })),
        "syncedAt": (answer.synced_at > 0).then(|| at_second(answer.synced_at)),
        "entryCount": answer.entry_count,
        "fix": answer.fix_command,
    });
    format!("{value}\n")
}

fn failed(answer: &wire::ExplainProcessResponse) -> String {
    answer
        .failed_attestors
        .iter()
        .map(|f| {
            format!(
                "not found out: {}: {}\n",
                untrusted(&f.name),
                untrusted(&f.reason)
            )
        })
        .collect()
}

/// What the process shows in place of a fact that it lacks.
fn counterparts(wanted: &types::Selector, answer: &wire::ExplainProcessResponse) -> Vec<String> {
    let name = |s: &types::Selector| s.value.split(':').next().map(str::to_owned);
    answer
        .selectors
        .iter()
        .filter(|s| s.r#type == wanted.r#type && name(s) == name(wanted))
        .map(selector)
        .collect()
}

fn selector(selector: &types::Selector) -> String {
    untrusted(&format!("{}:{}", selector.r#type, selector.value))
}

fn id(id: Option<&types::Spiffeid>) -> String {
    id.map(|id| untrusted(&format!("spiffe://{}{}", id.trust_domain, id.path)))
        .unwrap_or_default()
}

fn at_second(seconds: i64) -> String {
    u64::try_from(seconds)
        .map(|s| absolute(SystemTime::UNIX_EPOCH + Duration::from_secs(s)))
        .unwrap_or_default()
}
