//! Facts to verdict: DENY, then ALLOW, then no. Pure, total, without allocation.
//! Trusts that the facts are canonical and the peer proven.
//! Never allows because something is missing: an absent fact satisfies no ALLOW and excuses from no DENY.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::{CompiledPolicy, CompiledRule, RuleList};
use crate::facts::{Facts, Headers, HttpFacts};
use crate::model::{Action, Check, Test};
use crate::pattern::{Cidr, Text, kubernetes_names};

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
    /// The AUDIT rule that wants it recorded, if one does.
    pub audit: Option<Hit<'p>>,
    /// What the policies in shadow mode would have changed, if anything.
    pub shadow: Option<Shadow<'p>>,
}

/// A rule that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit<'p> {
    /// The policy.
    pub policy: &'p Arc<str>,
    /// The rule of that policy.
    pub rule: &'p Arc<str>,
}

/// The other answer, if the policies in shadow mode were enforced, and the rule that would have given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow<'p> {
    /// The answer.
    pub effect: Effect,
    /// The rule.
    pub by: Hit<'p>,
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
    let none = |reason| Verdict {
        effect: Effect::Deny,
        reason,
        policy: None,
        rule: None,
        audit: None,
        shadow: None,
    };
    if !policy.is_ready() {
        return none(Reason::NotReady);
    }
    let enforced = policy.enforced();
    let by = |effect, reason, rule: &'p CompiledRule| Verdict {
        effect,
        reason,
        policy: Some(&rule.policy),
        rule: Some(&rule.name),
        audit: None,
        shadow: None,
    };
    let verdict = if let Some(rule) = first(&enforced.deny, facts) {
        by(Effect::Deny, Reason::DenyRule, rule)
    } else if let Some(rule) = first(&enforced.allow, facts) {
        by(Effect::Allow, Reason::AllowRule, rule)
    } else {
        none(Reason::NoRule)
    };
    Verdict {
        audit: first(policy.audit(), facts).map(hit),
        shadow: shadow(policy, facts, verdict.reason),
        ..verdict
    }
}

/// What the policies in shadow mode would change: a DENY among them takes away, an ALLOW gives where nothing denies.
fn shadow<'p>(policy: &'p CompiledPolicy, facts: &Facts<'_>, reason: Reason) -> Option<Shadow<'p>> {
    let shadow = policy.shadow();
    let (effect, rule) = match reason {
        Reason::AllowRule => (Effect::Deny, first(&shadow.deny, facts)),
        Reason::NoRule if first(&shadow.deny, facts).is_none() => {
            (Effect::Allow, first(&shadow.allow, facts))
        }
        _ => return None,
    };
    Some(Shadow {
        effect,
        by: hit(rule?),
    })
}

fn hit(rule: &CompiledRule) -> Hit<'_> {
    Hit {
        policy: &rule.policy,
        rule: &rule.name,
    }
}

fn first<'p>(rules: &'p RuleList, facts: &Facts<'_>) -> Option<&'p CompiledRule> {
    rules
        .candidates(facts.peer)
        .find(|rule| rule.matches(facts))
}

impl CompiledRule {
    pub(crate) fn matches(&self, facts: &Facts<'_>) -> bool {
        let all = |checks: &Vec<Check>| checks.iter().all(|c| c.holds(self.action, facts));
        (self.from.is_empty() || self.from.iter().any(all))
            && (self.to.is_empty() || self.to.iter().any(all))
            && all(&self.when)
    }
}

/// What is known about one thing that a check asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    No,
    /// There is no such fact: no identity, no token, headers that nobody kept.
    Absent,
    /// The connection carries no HTTP.
    NoHttp,
}

impl From<bool> for Known {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Check {
    /// Whether the condition holds for a rule of this action.
    ///
    /// An absent fact satisfies no positive condition. It satisfies a `not…` where a match makes the policy stricter
    /// (DENY) or records (AUDIT), and not where it would let someone in (ALLOW). An HTTP condition on a connection
    /// without HTTP is left out for a DENY and never holds for an ALLOW, which is Istio's rule.
    pub(crate) fn holds(&self, action: Action, facts: &Facts<'_>) -> bool {
        let strict = action != Action::Allow;
        match self.test.asks(strict != self.negated, facts) {
            Known::Yes => !self.negated,
            Known::No => self.negated,
            Known::Absent => self.negated && strict,
            Known::NoHttp => strict,
        }
    }
}

impl Test {
    /// `wide`: a match makes the policy stricter, so that every form counts in which an application could read it.
    fn asks(&self, wide: bool, facts: &Facts<'_>) -> Known {
        let any = |values: &[Text], text: Option<&str>| match text {
            Some(text) => values.iter().any(|v| v.matches(text)).into(),
            None => Known::Absent,
        };
        let block = |blocks: &[Cidr], address: Option<IpAddr>| match address {
            Some(address) => blocks.iter().any(|b| b.contains(address)).into(),
            None => Known::Absent,
        };
        let names = facts.peer.and_then(kubernetes_names);
        match self {
            Self::Principal(values) => match facts.peer {
                Some(peer) => values.iter().any(|v| v.matches(peer)).into(),
                None => Known::Absent,
            },
            Self::TrustDomain(values) => match facts.peer {
                Some(peer) => values.contains(peer.trust_domain()).into(),
                None => Known::Absent,
            },
            Self::Namespace(values) => any(values, names.map(|(namespace, _)| namespace)),
            Self::ServiceAccount(values) => match names {
                Some((namespace, account)) => {
                    values.iter().any(|v| v.matches(namespace, account)).into()
                }
                None => Known::Absent,
            },
            Self::PeerAddress(blocks) => block(blocks, facts.peer_address),
            Self::RemoteAddress(blocks) => block(blocks, facts.remote_address),
            Self::DestinationAddress(blocks) => block(blocks, facts.address),
            Self::Port(ports) => ports.contains(&facts.port).into(),
            Self::Sni(values) => any(values, facts.sni),
            _ => match &facts.http {
                Some(http) => self.asks_http(wide, http),
                None => Known::NoHttp,
            },
        }
    }

    fn asks_http(&self, wide: bool, http: &HttpFacts<'_>) -> Known {
        let token = |ask: &dyn Fn(&crate::facts::Token) -> bool| match http.token {
            Some(token) => ask(token).into(),
            None => Known::Absent,
        };
        let one_of = |values: &[Text], texts: &[String]| {
            texts
                .iter()
                .any(|text| values.iter().any(|v| v.matches(text)))
        };
        match self {
            Self::Method(values) => values.iter().any(|v| v.matches(http.method)).into(),
            Self::Host(values) => values
                .iter()
                .any(|v| v.matches(http.host, http.host_port, wide))
                .into(),
            Self::Path(values) => values
                .iter()
                .any(|v| v.matches(http.path.as_str(), wide))
                .into(),
            Self::Header(name, values) => match http.headers {
                Some(headers) => header_matches(headers, name, values, wide).into(),
                None => Known::Absent,
            },
            Self::RequestPrincipal(values) => {
                token(&|t| values.iter().any(|v| v.matches(&t.principal)))
            }
            Self::Audience(values) => token(&|t| one_of(values, &t.audiences)),
            Self::Presenter(values) => token(&|t| {
                t.presenter
                    .as_deref()
                    .is_some_and(|p| values.iter().any(|v| v.matches(p)))
            }),
            Self::Claim(path, values) => token(&|t| {
                t.claims
                    .iter()
                    .filter(|(own, _)| own.iter().map(String::as_str).eq(path.iter().map(|p| &**p)))
                    .any(|(_, texts)| one_of(values, texts))
            }),
            _ => Known::Absent,
        }
    }
}

/// A header that comes twice, or as a list, has several values. Where a match makes the policy stricter any of them is
/// enough; where it lets someone in all of them have to match, because nobody knows which one the application reads.
fn header_matches(headers: &dyn Headers, name: &str, values: &[Text], wide: bool) -> bool {
    let matches = |bytes: &[u8]| {
        std::str::from_utf8(bytes).is_ok_and(|text| values.iter().any(|v| v.matches(text)))
    };
    let (mut seen, mut any, mut all) = (false, false, true);
    headers.each(name, &mut |line| {
        seen = true;
        let parts = || line.split(|b| *b == b',').map(<[u8]>::trim_ascii);
        // A value that is written out with its comma in the policy is meant as a whole.
        let whole = std::str::from_utf8(line).is_ok_and(|text| {
            values
                .iter()
                .any(|v| matches!(v, Text::Exact(own) if **own == *text))
        });
        any |= whole || matches(line) || parts().any(matches);
        all &= whole || parts().all(matches);
    });
    if wide { any } else { seen && all }
}

#[cfg(test)]
mod tests;
