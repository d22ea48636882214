//! Why a verdict is what it is: every rule that was tried, and each condition that failed.
//! Trusts the same functions that decided; it asks them again one by one.
//! Never goes to the caller: what a stranger learns from it would help him. It is for logs and for operators.

use std::fmt;

use crate::compile::{CompiledPolicy, CompiledRule};
use crate::decide::{self, Effect, Reason, Verdict, decide};
use crate::facts::Facts;
use crate::validate::{Action, Operation, Source};

/// The verdict and every rule that was tried for it.
#[derive(Debug, Clone)]
pub struct Explanation<'p> {
    /// The verdict, the same as [`decide()`] gives.
    pub verdict: Verdict<'p>,
    /// The rules in the order in which they were asked.
    pub tried: Vec<Tried<'p>>,
}

/// One rule and what kept it from matching.
#[derive(Debug, Clone)]
pub struct Tried<'p> {
    /// The policy.
    pub policy: &'p str,
    /// The rule.
    pub rule: &'p str,
    /// What a match does.
    pub action: Action,
    /// The conditions that failed, of the alternative that came nearest; none: the rule matched.
    pub failed: Vec<Failed>,
}

/// A condition that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The field of the policy, in Istio's words: `principals`, `notPaths`.
    pub field: &'static str,
    /// What the request had.
    pub had: String,
    /// What the rule asks for, at most a few of the values.
    pub wanted: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} is not in [{}]",
            self.field, self.had, self.wanted
        )
    }
}

impl<'p> Explanation<'p> {
    /// The ALLOW rule that came nearest to matching: the fewest failed conditions, the first of equals.
    #[must_use]
    pub fn nearest(&self) -> Option<&Tried<'p>> {
        self.tried
            .iter()
            .filter(|t| t.action == Action::Allow && !t.failed.is_empty())
            .min_by_key(|t| t.failed.len())
    }

    /// One sentence for a log line.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Verdict {
            effect,
            reason,
            policy,
            rule,
        } = self.verdict;
        let (policy, rule) = (policy.map_or("", |p| p), rule.map_or("", |r| r));
        match (effect, reason) {
            (Effect::Allow, _) => format!("allowed by policy {policy} rule {rule}"),
            (_, Reason::DenyRule) => format!("denied by policy {policy} rule {rule}"),
            (_, Reason::NotReady) => "no policy was read yet".to_owned(),
            _ => match self.nearest() {
                None => "no rule allows it".to_owned(),
                Some(near) => {
                    let failed: Vec<String> = near.failed.iter().map(ToString::to_string).collect();
                    format!(
                        "no rule allows it; nearest is policy {} rule {}: {}",
                        near.policy,
                        near.rule,
                        failed.join("; ")
                    )
                }
            },
        }
    }
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.sentence())?;
        for tried in &self.tried {
            let action = match tried.action {
                Action::Allow => "ALLOW",
                Action::Deny => "DENY",
            };
            let matched = if tried.failed.is_empty() {
                "matched"
            } else {
                "no match"
            };
            writeln!(
                f,
                "  {action} {} rule {}: {matched}",
                tried.policy, tried.rule
            )?;
            for failed in &tried.failed {
                writeln!(f, "    {failed}")?;
            }
        }
        Ok(())
    }
}

/// Decides again and tells every rule that was tried.
#[must_use]
pub fn explain<'p>(policy: &'p CompiledPolicy, facts: &Facts<'_>) -> Explanation<'p> {
    let verdict = decide(policy, facts);
    let mut tried = Vec::new();
    for rule in policy.deny().iter().chain(policy.allow()) {
        let failed = why_not(rule, facts);
        let matched = failed.is_empty();
        tried.push(Tried {
            policy: &rule.policy,
            rule: &rule.name,
            action: rule.action,
            failed,
        });
        if matched {
            break;
        }
    }
    Explanation { verdict, tried }
}

fn why_not(rule: &CompiledRule, facts: &Facts<'_>) -> Vec<Failed> {
    let mut failed = fewest(
        rule.from
            .iter()
            .map(|source| why_not_source(source, rule.action, facts)),
    );
    failed.extend(fewest(
        rule.to
            .iter()
            .map(|operation| why_not_operation(operation, rule.action, facts)),
    ));
    failed
}

/// Of several alternatives, what failed in the one that came nearest; nothing if one of them matched.
fn fewest(alternatives: impl Iterator<Item = Vec<Failed>>) -> Vec<Failed> {
    alternatives.min_by_key(Vec::len).unwrap_or_default()
}

fn why_not_source(source: &Source, action: Action, facts: &Facts<'_>) -> Vec<Failed> {
    let had = facts
        .peer
        .map_or_else(|| "no identity".to_owned(), ToString::to_string);
    let domain = facts.peer.map_or_else(
        || "no identity".to_owned(),
        |p| p.trust_domain().to_string(),
    );
    let mut check = Checks::default();
    let each = |f: &dyn Fn(&mut Source)| {
        let mut alone = Source::default();
        f(&mut alone);
        decide::source_matches(&alone, action, facts)
    };
    check.field(
        "principals",
        &had,
        &source.principals,
        each(&|s| s.principals.clone_from(&source.principals)),
    );
    check.field(
        "notPrincipals",
        &had,
        &source.not_principals,
        each(&|s| s.not_principals.clone_from(&source.not_principals)),
    );
    check.field(
        "trustDomains",
        &domain,
        &source.trust_domains,
        each(&|s| s.trust_domains.clone_from(&source.trust_domains)),
    );
    check.field(
        "notTrustDomains",
        &domain,
        &source.not_trust_domains,
        each(&|s| s.not_trust_domains.clone_from(&source.not_trust_domains)),
    );
    check.failed
}

fn why_not_operation(operation: &Operation, action: Action, facts: &Facts<'_>) -> Vec<Failed> {
    let mut check = Checks::default();
    let each = |f: &dyn Fn(&mut Operation)| {
        let mut alone = Operation::default();
        f(&mut alone);
        decide::operation_matches(&alone, action, facts)
    };
    let port = facts.port.to_string();
    check.field(
        "ports",
        &port,
        &operation.ports,
        each(&|o| o.ports.clone_from(&operation.ports)),
    );
    check.field(
        "notPorts",
        &port,
        &operation.not_ports,
        each(&|o| o.not_ports.clone_from(&operation.not_ports)),
    );
    let none = "a connection without HTTP";
    let (method, host, path) = facts
        .http
        .as_ref()
        .map_or((none, none, none), |h| (h.method, h.host, h.path.as_str()));
    check.field(
        "methods",
        method,
        &operation.methods,
        each(&|o| o.methods.clone_from(&operation.methods)),
    );
    check.field(
        "notMethods",
        method,
        &operation.not_methods,
        each(&|o| o.not_methods.clone_from(&operation.not_methods)),
    );
    check.field(
        "hosts",
        host,
        &operation.hosts,
        each(&|o| o.hosts.clone_from(&operation.hosts)),
    );
    check.field(
        "notHosts",
        host,
        &operation.not_hosts,
        each(&|o| o.not_hosts.clone_from(&operation.not_hosts)),
    );
    check.field(
        "paths",
        path,
        &operation.paths,
        each(&|o| o.paths.clone_from(&operation.paths)),
    );
    check.field(
        "notPaths",
        path,
        &operation.not_paths,
        each(&|o| o.not_paths.clone_from(&operation.not_paths)),
    );
    check.failed
}

#[derive(Default)]
struct Checks {
    failed: Vec<Failed>,
}

impl Checks {
    fn field<T: fmt::Display>(
        &mut self,
        field: &'static str,
        had: &str,
        wanted: &[T],
        holds: bool,
    ) {
        const SHOWN: usize = 5;
        if wanted.is_empty() || holds {
            return;
        }
        let mut list: Vec<String> = wanted.iter().take(SHOWN).map(ToString::to_string).collect();
        if wanted.len() > SHOWN {
            list.push(format!("and {} more", wanted.len() - SHOWN));
        }
        self.failed.push(Failed {
            field,
            had: had.chars().take(256).collect(),
            wanted: list.join(", "),
        });
    }
}
