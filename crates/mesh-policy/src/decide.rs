//! Facts to verdict: DENY, then ALLOW, then no. Pure, total, without allocation.
//! Trusts that the facts are canonical and the peer proven.
//! Never allows because something is missing: an absent fact satisfies no ALLOW and excuses from no DENY.

use std::fmt;
use std::sync::Arc;

use crate::compile::{CompiledPolicy, CompiledRule};
use crate::facts::{Facts, HttpFacts};
use crate::validate::{Action, Operation, Source};

/// The answer, and which rule gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'p> {
    /// Allow or deny.
    pub effect: Effect,
    /// Why.
    pub reason: Reason,
    /// The policy that matched, if one did.
    pub policy: Option<&'p Arc<str>>,
    /// The rule of that policy.
    pub rule: Option<&'p Arc<str>>,
}

impl Verdict<'_> {
    /// Whether the answer is yes.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.effect == Effect::Allow
    }
}

/// Allow or deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Yes.
    Allow,
    /// No.
    Deny,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// Why the answer is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A rule of an ALLOW policy matched and none of a DENY policy did.
    AllowRule,
    /// A rule of a DENY policy matched.
    DenyRule,
    /// No rule matched, and what is not allowed is denied.
    NoRule,
    /// No policy set was read yet.
    NotReady,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowRule => "allow_rule",
            Self::DenyRule => "deny_rule",
            Self::NoRule => "no_rule",
            Self::NotReady => "not_ready",
        })
    }
}

/// Decides one connection (`facts.http` is `None`) or one request.
#[must_use]
pub fn decide<'p>(policy: &'p CompiledPolicy, facts: &Facts<'_>) -> Verdict<'p> {
    let by = |effect, reason, rule: &'p CompiledRule| Verdict {
        effect,
        reason,
        policy: Some(&rule.policy),
        rule: Some(&rule.name),
    };
    if !policy.is_ready() {
        return Verdict {
            effect: Effect::Deny,
            reason: Reason::NotReady,
            policy: None,
            rule: None,
        };
    }
    if let Some(rule) = policy.deny().iter().find(|rule| rule.matches(facts)) {
        return by(Effect::Deny, Reason::DenyRule, rule);
    }
    match policy.allow().iter().find(|rule| rule.matches(facts)) {
        Some(rule) => by(Effect::Allow, Reason::AllowRule, rule),
        None => Verdict {
            effect: Effect::Deny,
            reason: Reason::NoRule,
            policy: None,
            rule: None,
        },
    }
}

impl CompiledRule {
    pub(crate) fn matches(&self, facts: &Facts<'_>) -> bool {
        (self.from.is_empty()
            || self
                .from
                .iter()
                .any(|source| source_matches(source, self.action, facts)))
            && (self.to.is_empty()
                || self
                    .to
                    .iter()
                    .any(|operation| operation_matches(operation, self.action, facts)))
    }
}

/// All fields of a source, AND; the values of a field, OR.
pub(crate) fn source_matches(source: &Source, action: Action, facts: &Facts<'_>) -> bool {
    let Some(peer) = facts.peer else {
        // No identity: no positive condition holds. A `not` holds for a DENY, so that it denies, and does
        // not hold for an ALLOW, so that it does not let a stranger in.
        return action == Action::Deny
            && source.principals.is_empty()
            && source.trust_domains.is_empty();
    };
    let domain = peer.trust_domain();
    (source.principals.is_empty() || source.principals.iter().any(|p| p.matches(peer)))
        && (source.trust_domains.is_empty() || source.trust_domains.iter().any(|d| d == domain))
        && !source.not_principals.iter().any(|p| p.matches(peer))
        && !source.not_trust_domains.iter().any(|d| d == domain)
}

pub(crate) fn operation_matches(operation: &Operation, action: Action, facts: &Facts<'_>) -> bool {
    ports_match(operation, facts)
        && match &facts.http {
            Some(http) => http_matches(operation, action, http),
            // Istio's rule for HTTP fields on a TCP connection: an ALLOW never matches, a DENY keeps its other fields.
            None => action == Action::Deny || !operation.has_http_fields(),
        }
}

pub(crate) fn ports_match(operation: &Operation, facts: &Facts<'_>) -> bool {
    (operation.ports.is_empty() || operation.ports.contains(&facts.port))
        && !operation.not_ports.contains(&facts.port)
}

fn http_matches(operation: &Operation, action: Action, http: &HttpFacts<'_>) -> bool {
    methods_match(operation, http)
        && paths_match(operation, action, http)
        && hosts_match(operation, http)
}

pub(crate) fn methods_match(operation: &Operation, http: &HttpFacts<'_>) -> bool {
    (operation.methods.is_empty() || operation.methods.iter().any(|m| m.matches(http.method)))
        && !operation.not_methods.iter().any(|m| m.matches(http.method))
}

pub(crate) fn hosts_match(operation: &Operation, http: &HttpFacts<'_>) -> bool {
    (operation.hosts.is_empty() || operation.hosts.iter().any(|h| h.matches(http.host)))
        && !operation.not_hosts.iter().any(|h| h.matches(http.host))
}

pub(crate) fn paths_match(operation: &Operation, action: Action, http: &HttpFacts<'_>) -> bool {
    let path = http.path.as_str();
    // Where a match makes the policy stricter, `/admin` and `/admin/` are one path.
    let wide = action == Action::Deny;
    (operation.paths.is_empty() || operation.paths.iter().any(|p| p.matches(path, wide)))
        && !operation.not_paths.iter().any(|p| p.matches(path, !wide))
}

#[cfg(test)]
mod tests;
