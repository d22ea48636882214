//! What is in force at a door, for people: each rule with its policy and what a match does, in the order of the file.
//! Trusts `compile.rs`.
//! Never shows less than what is asked: rules in shadow mode and of AUDIT policies are in it too.

use crate::compile::{CompiledPolicy, CompiledRule};
use crate::model::{Action, Mode};

/// A rule in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed<'p> {
    /// `namespace/name` of its policy.
    pub policy: &'p str,
    /// Its name.
    pub rule: &'p str,
    /// What a match does.
    pub action: Action,
    /// Whether it counts.
    pub mode: Mode,
}

impl<'p> From<&'p CompiledRule> for Listed<'p> {
    fn from(rule: &'p CompiledRule) -> Self {
        Self {
            policy: &rule.policy,
            rule: &rule.name,
            action: rule.action,
            mode: rule.mode,
        }
    }
}

impl CompiledPolicy {
    /// All rules of this door: DENY before ALLOW, those that decide before those that only tell, AUDIT last.
    pub fn inventory(&self) -> impl Iterator<Item = Listed<'_>> {
        let (enforced, shadow) = (self.enforced(), self.shadow());
        [&enforced.deny, &enforced.allow, &shadow.deny, &shadow.allow]
            .into_iter()
            .chain([self.audit()])
            .flat_map(|rules| rules.iter().map(Listed::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Door, PolicySet, Protocol};

    #[test]
    fn every_rule_is_listed_also_one_that_decides_nothing() {
        let document = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {{ {spec} }}\n"
            )
        };
        let text = document("open", "rules: [ { name: a } ]")
            + &document(
                "closed",
                "action: DENY, rules: [ { name: b, to: [ { operation: { methods: [PUT] } } ] } ]",
            )
            + &document("seen", "action: AUDIT, rules: [ { name: c } ]")
            + &document(
                "later",
                "action: DENY, mode: Shadow, rules: [ { name: d } ]",
            );
        let set = PolicySet::from_yaml(&text).unwrap();
        let policy = CompiledPolicy::new(&set, Door::of_unknown(Protocol::Http));
        let all: Vec<_> = policy.inventory().collect();
        let names: Vec<_> = all.iter().map(|rule| (rule.policy, rule.rule)).collect();
        assert_eq!(
            names,
            [
                ("shop/closed", "b"),
                ("shop/open", "a"),
                ("shop/later", "d"),
                ("shop/seen", "c")
            ]
        );
        assert_eq!((all[2].action, all[2].mode), (Action::Deny, Mode::Shadow));
    }
}
