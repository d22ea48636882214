//! Counts what each `ClusterSPIFFEID` selects, and says why one is not applied. Trusts the reflection; changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::super::derive::identities;
use super::super::facts::Labels;
use super::super::status::Verdict;
use super::Reflection;

impl Reflection {
    /// What became of each object, by UID. Nothing before all was read: the counts would be wrong.
    pub(in crate::kubernetes) fn verdicts(&self) -> BTreeMap<String, Verdict> {
        let state = self.read();
        if !state.is_heard() {
            return BTreeMap::new();
        }
        let mut verdicts: BTreeMap<_, _> = state
            .judged
            .iter()
            .map(|(uid, (of, problem))| (uid.clone(), Verdict::of(of, problem.clone())))
            .collect();
        let none = Labels::new();
        let mut namespaces: BTreeSet<(&str, &str)> = BTreeSet::new();
        let live = state.pods.values().filter(|pod| pod.barred.is_none());
        for pod in live {
            let labels = state.namespaces.get(&pod.namespace).unwrap_or(&none);
            for rule in state
                .rules
                .values()
                .filter(|rule| rule.matches(pod, labels))
            {
                if let Some(verdict) = verdicts.get_mut(&rule.of.uid) {
                    verdict.pods += 1;
                    let is_new = namespaces.insert((&rule.of.uid, &pod.namespace));
                    verdict.namespaces += usize::from(is_new);
                }
            }
            let Some(node) = state.nodes.get(&pod.node_name) else {
                continue;
            };
            let outcome = identities(
                &self.setting,
                &self.nobody,
                pod,
                node,
                labels,
                &state.in_order,
            );
            for failure in outcome.failures {
                if let Some(verdict) = verdicts.get_mut(&failure.rule.of.uid) {
                    verdict.render_failures += 1;
                }
            }
        }
        verdicts
    }
}
