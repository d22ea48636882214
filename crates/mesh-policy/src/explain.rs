//! Why a verdict is what it is: every rule that was tried, and each condition that failed.
//! Trusts the same functions that decided; it asks them again one by one.
//! Never goes to the caller: what a stranger learns from it would help him. It is for logs and for operators.

use std::fmt;

use crate::compile::{CompiledPolicy, CompiledRule};
use crate::decide::{Effect, Reason, Verdict, decide};
use crate::facts::Facts;
use crate::model::{Action, Check, Mode, Test};
use crate::pattern::kubernetes_names;

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
    /// Whether it counts.
    pub mode: Mode,
    /// The conditions that failed, of the alternative that came nearest; none: the rule matched.
    pub failed: Vec<Failed>,
}

/// A condition that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The field of the policy, in Istio's words: `principals`, `notPaths`, `request.headers[x-role]`.
    pub field: String,
    /// Whether the rule asks that it is *not* one of the values.
    pub negated: bool,
    /// What the request had.
    pub had: String,
    /// What the rule asks for, at most a few of the values.
    pub wanted: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.negated { "is" } else { "is not" };
        write!(
            f,
            "{}: {} {word} in [{}]",
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
            .filter(|t| {
                t.action == Action::Allow && t.mode == Mode::Enforce && !t.failed.is_empty()
            })
            .min_by_key(|t| t.failed.len())
    }

    /// The rules that came nearest, at most `most` of them: one that matched first, then by the number of failed conditions.
    #[must_use]
    pub fn closest(&self, most: usize) -> Vec<&Tried<'p>> {
        let mut tried: Vec<&Tried<'p>> = self.tried.iter().collect();
        tried.sort_by_key(|t| t.failed.len());
        tried.truncate(most);
        tried
    }

    /// One sentence for a log line.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Verdict {
            effect,
            reason,
            policy,
            rule,
            ..
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
            let (action, mode) = (
                tried.action,
                if tried.mode == Mode::Shadow {
                    " (shadow)"
                } else {
                    ""
                },
            );
            let matched = if tried.failed.is_empty() {
                "matched"
            } else {
                "no match"
            };
            writeln!(
                f,
                "  {action}{mode} {} rule {}: {matched}",
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
    // Those that decided, up to the one that did; then those that only tell.
    for rule in policy
        .enforced()
        .deny
        .iter()
        .chain(policy.enforced().allow.iter())
    {
        tried.push(Tried::of(rule, facts));
        if tried.last().is_some_and(|t| t.failed.is_empty()) {
            break;
        }
    }
    let shadow = policy.shadow();
    let silent = shadow
        .deny
        .iter()
        .chain(shadow.allow.iter())
        .chain(policy.audit().iter());
    tried.extend(silent.map(|rule| Tried::of(rule, facts)));
    Explanation { verdict, tried }
}

impl<'p> Tried<'p> {
    fn of(rule: &'p CompiledRule, facts: &Facts<'_>) -> Self {
        Self {
            policy: &rule.policy,
            rule: &rule.name,
            action: rule.action,
            mode: rule.mode,
            failed: why_not(rule, facts),
        }
    }
}

fn why_not(rule: &CompiledRule, facts: &Facts<'_>) -> Vec<Failed> {
    let broken = |checks: &Vec<Check>| -> Vec<Failed> {
        checks
            .iter()
            .filter(|check| !check.holds(rule.action, facts))
            .map(|check| Failed::of(check, facts))
            .collect()
    };
    let mut failed = fewest(rule.from.iter().map(broken));
    failed.extend(fewest(rule.to.iter().map(broken)));
    failed.extend(broken(&rule.when));
    failed
}

/// Of several alternatives, what failed in the one that came nearest; nothing if one of them matched.
fn fewest(alternatives: impl Iterator<Item = Vec<Failed>>) -> Vec<Failed> {
    alternatives.min_by_key(Vec::len).unwrap_or_default()
}

impl Failed {
    fn of(check: &Check, facts: &Facts<'_>) -> Self {
        Self {
            field: check.field.clone().into_owned(),
            negated: check.negated,
            had: had(&check.test, facts).chars().take(256).collect(),
            wanted: check.test.wanted(),
        }
    }
}

/// What the request had. Of a header and of a token's claims only whether there was one: they may be secrets.
fn had(test: &Test, facts: &Facts<'_>) -> String {
    const NO_IDENTITY: &str = "no identity";
    let http = |ask: &dyn Fn(&crate::facts::HttpFacts<'_>) -> String| {
        facts
            .http
            .as_ref()
            .map_or_else(|| "a connection without HTTP".to_owned(), ask)
    };
    let address = |address: Option<std::net::IpAddr>| {
        address.map_or_else(|| "no known address".to_owned(), |a| a.to_string())
    };
    let names = facts.peer.and_then(kubernetes_names);
    match test {
        Test::Principal(_) => facts
            .peer
            .map_or_else(|| NO_IDENTITY.to_owned(), ToString::to_string),
        Test::TrustDomain(_) => facts
            .peer
            .map_or_else(|| NO_IDENTITY.to_owned(), |p| p.trust_domain().to_string()),
        Test::Namespace(_) => names.map_or_else(
            || "an identity without namespace".to_owned(),
            |(namespace, _)| namespace.to_owned(),
        ),
        Test::ServiceAccount(_) => names.map_or_else(
            || "an identity without service account".to_owned(),
            |(namespace, account)| format!("{namespace}/{account}"),
        ),
        Test::PeerAddress(_) => address(facts.peer_address),
        Test::RemoteAddress(_) => address(facts.remote_address),
        Test::DestinationAddress(_) => address(facts.address),
        Test::Port(_) => facts.port.to_string(),
        Test::Sni(_) => facts.sni.unwrap_or("no server name").to_owned(),
        Test::Method(_) => http(&|h| h.method.to_owned()),
        Test::Host(_) => http(&|h| match h.host_port {
            Some(port) => format!("{}:{port}", h.host),
            None => h.host.to_owned(),
        }),
        Test::Path(_) => http(&|h| h.path.as_str().to_owned()),
        Test::Header(name, _) => http(&|h| {
            let mut lines = 0_usize;
            match h.headers {
                Some(headers) => headers.each(name, &mut |_| lines += 1),
                None => return "headers that nobody kept".to_owned(),
            }
            match lines {
                0 => "no such header".to_owned(),
                1 => "its value".to_owned(),
                _ => format!("one of its {lines} values"),
            }
        }),
        Test::RequestPrincipal(_) => http(&|h| {
            h.token
                .map_or_else(|| "no token".to_owned(), |t| t.principal.clone())
        }),
        Test::Audience(_) | Test::Presenter(_) | Test::Claim(..) => http(&|h| {
            h.token
                .map_or("no token", |_| "what the token says")
                .to_owned()
        }),
    }
}
