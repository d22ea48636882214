//! What a valid policy file says that its author may not have meant.
//! Trusts `validate.rs`: nothing here makes a file invalid.
//! Never guesses at intent: each finding names what the text lets through.

use std::fmt;

use crate::model::{Action, Check, Mode, Rule, Test, ValidPolicy};
use crate::pattern::{Principal, Text};
use crate::validate::PolicySet;

/// Something that may not have been meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A stable short name, such as `prefix-inside-a-name`.
    pub name: &'static str,
    /// The policy.
    pub policy: String,
    /// The rule.
    pub rule: String,
    /// What the text lets through.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            policy,
            rule,
            message,
        } = self;
        write!(f, "warning[{name}]: policy {policy} rule {rule}: {message}")
    }
}

/// All findings, in the order of the file.
#[must_use]
pub fn lint(set: &PolicySet) -> Vec<Finding> {
    let mut found = Vec::new();
    for policy in set.policies() {
        for rule in &policy.rules {
            let mut say = |name, message: String| {
                found.push(Finding {
                    name,
                    policy: policy.name.clone(),
                    rule: rule.name.clone(),
                    message,
                });
            };
            names(rule, &mut say);
            if policy.action == Action::Allow && policy.mode == Mode::Enforce {
                callers(policy, rule, &mut say);
            }
        }
    }
    found
}

fn names(rule: &Rule, say: &mut impl FnMut(&'static str, String)) {
    for check in rule.checks() {
        let Test::Principal(principals) = &check.test else {
            continue;
        };
        for principal in principals {
            match principal {
                Principal::Alike(Text::Prefix(begin)) if !begin.ends_with('/') => say(
                    "prefix-inside-a-name",
                    format!(
                        "`{begin}*` also matches names that merely begin so, such as `{begin}-other`"
                    ),
                ),
                Principal::Alike(Text::Suffix(end)) => say(
                    "every-trust-domain",
                    format!("`*{end}` matches in every trust domain that is federated with"),
                ),
                _ => {}
            }
        }
    }
}

fn callers(policy: &ValidPolicy, rule: &Rule, say: &mut impl FnMut(&'static str, String)) {
    let asks_who = |check: &Check| {
        matches!(
            check.test,
            Test::Principal(_)
                | Test::TrustDomain(_)
                | Test::Namespace(_)
                | Test::ServiceAccount(_)
                | Test::RequestPrincipal(_)
        )
    };
    if rule.checks().next().is_none() {
        say(
            "everyone-everything",
            format!(
                "{} everyone everything, also callers without an identity where those are let in",
                policy.action
            ),
        );
        return;
    }
    if !rule.checks().any(asks_who) {
        say("anyone", "it does not ask who the caller is".to_owned());
    }
    let domain = |check: &Check| matches!(check.test, Test::Principal(_) | Test::TrustDomain(_));
    for source in &rule.from {
        let by_namespace = source
            .iter()
            .any(|check| matches!(check.test, Test::Namespace(_) | Test::ServiceAccount(_)));
        if by_namespace && !source.iter().any(domain) {
            say(
                "every-trust-domain",
                "a namespace or service account of this name counts in every trust domain that is federated with; add trustDomains".to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_of(action: &str, rule: &str) -> Vec<&'static str> {
        let text = format!(
            "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: p, namespace: shop }}\nspec: {{ action: {action}, rules: [ {rule} ] }}\n"
        );
        let set = PolicySet::from_yaml(&text).unwrap();
        lint(&set).into_iter().map(|finding| finding.name).collect()
    }

    #[test]
    fn mesh_c1_55_lint_warns_of_what_a_pattern_lets_through_too() {
        let source = |source: &str| format!("{{ from: [ {{ source: {{ {source} }} }} ] }}");
        for (action, rule, names) in [
            ("ALLOW", "{}".to_owned(), &["everyone-everything"][..]),
            ("DENY", "{}".to_owned(), &[]),
            (
                "ALLOW",
                "{ to: [ { operation: { methods: [GET] } } ] }".to_owned(),
                &["anyone"],
            ),
            (
                "ALLOW",
                source("principals: [td/ns/prod*]"),
                &["prefix-inside-a-name"],
            ),
            (
                "ALLOW",
                source("principals: [\"td/ns/prod/*\", td/x, \"*\"]"),
                &[],
            ),
            (
                "DENY",
                source("principals: [\"*/sa/x\"]"),
                &["every-trust-domain"],
            ),
            (
                "ALLOW",
                source("namespaces: [prod]"),
                &["every-trust-domain"],
            ),
            (
                "ALLOW",
                source("namespaces: [prod], trustDomains: [td]"),
                &[],
            ),
            ("ALLOW", source("requestPrincipals: [\"*\"]"), &[]),
        ] {
            assert_eq!(names_of(action, &rule), names, "{action} {rule}");
        }
    }
}
