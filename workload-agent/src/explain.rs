//! Decides what an administrator is told about a process: facts seen, entries that match, the closest one, and what mends it.
//! Trusts its arguments; pure. Never proposes a command that would give an identity to more processes than before.

use std::{collections::BTreeSet, time::SystemTime};

use mesh_identity::{EntryId, Selector, SpiffeId};

use crate::{attestor::Attestation, vault::Roster};

/// Why a process gets an identity, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was found about it.
    pub attestation: Attestation,
    /// The entries it is entitled to.
    pub matching: Vec<(EntryId, SpiffeId)>,
    /// The entry that lacks the fewest facts, when none matches.
    pub closest: Option<Closest>,
    /// How many entries there are for this node.
    pub entry_count: usize,
    /// The command that would give this process an identity; empty when it has one.
    pub fix: String,
}

/// An entry that does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closest {
    /// Its id.
    pub id: EntryId,
    /// The identity it gives.
    pub spiffe_id: SpiffeId,
    /// Its selectors, each with whether the process has that fact.
    pub selectors: Vec<(Selector, bool)>,
}

/// Compares a process with the entries of this node.
pub fn explain(
    attestation: Attestation,
    roster: Option<&Roster>,
    agent: Option<&SpiffeId>,
    now: SystemTime,
) -> Explanation {
    let facts = &attestation.facts;
    let matching: Vec<_> = roster
        .map(|roster| roster.matching(facts, now))
        .unwrap_or_default()
        .into_iter()
        .map(|entry| (entry.id.clone(), entry.spiffe_id.clone()))
        .collect();
    let closest = if matching.is_empty() {
        roster.and_then(|roster| closest(facts, roster))
    } else {
        None
    };
    let fix = if matching.is_empty() {
        fix(facts, closest.as_ref(), agent)
    } else {
        String::new()
    };
    Explanation {
        matching,
        closest,
        entry_count: roster.map_or(0, Roster::len),
        fix,
        attestation,
    }
}

fn closest(facts: &BTreeSet<Selector>, roster: &Roster) -> Option<Closest> {
    let entry = roster.iter().min_by_key(|entry| {
        let missing = entry.selectors.difference(facts).count();
        // Among those that lack as many, the one that shares most.
        (
            missing,
            std::cmp::Reverse(entry.selectors.len() - missing),
            &entry.id,
        )
    })?;
    let selectors = entry
        .selectors
        .iter()
        .map(|selector| (selector.clone(), facts.contains(selector)))
        .collect();
    Some(Closest {
        id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.clone(),
        selectors,
    })
}

/// An entry of its own for this process, rather than a change to one that others may use. It names every selector of the
/// closest entry, with this process's facts in place of those that differ.
fn fix(facts: &BTreeSet<Selector>, closest: Option<&Closest>, agent: Option<&SpiffeId>) -> String {
    let selectors: Vec<Selector> = match closest {
        Some(closest) if closest.selectors.iter().any(|(_, present)| *present) => {
            let mended = closest.selectors.iter().map(|(selector, present)| {
                if *present {
                    Some(selector.clone())
                } else {
                    counterpart(selector, facts)
                }
            });
            mended.collect::<Option<Vec<_>>>().unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let selectors = if selectors.is_empty() {
        default_selectors(facts)
    } else {
        selectors
    };
    let id = match closest {
        Some(closest) if closest.selectors.iter().any(|(_, present)| *present) => {
            closest.spiffe_id.to_string()
        }
        _ => agent.map_or_else(
            || "spiffe://TRUST-DOMAIN/NAME".into(),
            |agent| format!("{}/NAME", agent.trust_domain().id()),
        ),
    };
    let parent = agent.map_or_else(|| "AGENT-ID".into(), SpiffeId::to_string);
    let mut command = format!(
        "ca-server entry create --parent-id {} --spiffe-id {}",
        quoted(&parent),
        quoted(&id)
    );
    for selector in &selectors {
        command.push_str(&format!(" --selector {}", quoted(selector.as_str())));
    }
    command
}

/// The fact of the same kind, if there is just one: `unix:gid:1001` for `unix:gid:2000`.
fn counterpart(selector: &Selector, facts: &BTreeSet<Selector>) -> Option<Selector> {
    let name = selector.value().split(':').next()?;
    let mut same = facts.iter().filter(|fact| {
        fact.kind() == selector.kind() && fact.value().split(':').next() == Some(name)
    });
    match (same.next(), same.next()) {
        (Some(fact), None) => Some(fact.clone()),
        _ => None,
    }
}

fn default_selectors(facts: &BTreeSet<Selector>) -> Vec<Selector> {
    let wanted = |fact: &&Selector| {
        fact.kind() == "unix"
            && (fact.value().starts_with("uid:") || fact.value().starts_with("path:"))
    };
    facts.iter().filter(wanted).cloned().collect()
}

/// As a POSIX shell reads it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests;
