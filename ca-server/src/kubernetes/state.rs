//! Decides what of a cluster concerns which node: the objects as last heard, trimmed, and whom each change touches.
//! Trusts the watches for the order of one kind. Never answers before all kinds were read once, never forgets while a watch is away.

mod verdicts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use mesh_identity::SpiffeId;
use mesh_runtime::errors::{Coded, ErrorChain};
use tokio::sync::watch;

use super::derive::{Setting, identities};
use super::facts::{Labels, NodeFacts, PodFacts};
use super::rule::{Rule, RuleError, RuleName};
use crate::registry::Derived;
use crate::store::Node;

/// One cluster as it was last heard.
pub(super) struct Reflection {
    setting: Setting,
    /// The parent of entries that are only counted.
    nobody: SpiffeId,
    /// The rule for what no other rule matches.
    default: Option<Arc<Rule>>,
    state: RwLock<State>,
    generation: watch::Sender<u64>,
}

/// What a watch says of its kind.
pub(super) enum Change<T> {
    /// New, or changed.
    Set(T),
    /// Gone, by its key.
    Gone(String),
    /// All there are.
    All(Vec<T>),
}

/// The kinds, each of which must have been read once.
#[derive(Default)]
struct Heard {
    pods: bool,
    nodes: bool,
    namespaces: bool,
    rules: bool,
}

#[derive(Default)]
struct State {
    heard: Heard,
    /// By UID: a pod that was made again under its name is another one.
    pods: HashMap<String, Arc<PodFacts>>,
    pods_of_node: HashMap<String, BTreeSet<String>>,
    nodes: HashMap<String, NodeFacts>,
    namespaces: HashMap<String, Labels>,
    /// The newest form of each that was understood.
    rules: BTreeMap<String, Arc<Rule>>,
    /// The newest form of each, and what is wrong with it.
    judged: BTreeMap<String, (RuleName, Option<String>)>,
    /// The same in the order of preference.
    in_order: Vec<Arc<Rule>>,
    touched: Touched,
}

/// Whom the changes concerned, by generation.
#[derive(Default)]
struct Touched {
    everybody: u64,
    by_node: HashMap<String, u64>,
}

/// Whom a change concerns.
enum Concerns {
    Nobody,
    Nodes(BTreeSet<String>),
    Everybody,
}

impl Reflection {
    pub(super) fn new(
        setting: Setting,
        with_default: bool,
        generation: watch::Sender<u64>,
    ) -> Self {
        let default = with_default.then(|| Arc::new(Rule::default()));
        let state = State {
            in_order: default.iter().cloned().collect(),
            ..State::default()
        };
        let nobody = SpiffeId::from_parts(&setting.trust_domain, "/spire/agent");
        Self {
            nobody: nobody.expect("a path of ours"),
            setting,
            default,
            state: RwLock::new(state),
            generation,
        }
    }

    pub(super) fn setting(&self) -> &Setting {
        &self.setting
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Concerns) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let before = state.is_heard();
        let concerns = match change(&mut state) {
            // Whoever waited for the last kind can be answered now.
            _ if !before && state.is_heard() => Concerns::Everybody,
            concerns => concerns,
        };
        if matches!(concerns, Concerns::Nobody) {
            return;
        }
        self.generation.send_modify(|generation| {
            *generation += 1;
            match concerns {
                Concerns::Nobody => {}
                Concerns::Everybody => {
                    state.touched.everybody = *generation;
                    state.touched.by_node.clear();
                }
                Concerns::Nodes(names) => {
                    let stamped = names.into_iter().map(|name| (name, *generation));
                    state.touched.by_node.extend(stamped);
                }
            }
        });
    }

    pub(super) fn pods(&self, change: Change<PodFacts>) {
        self.change(|state| {
            let mut nodes = BTreeSet::new();
            match change {
                Change::Set(pod) => state.set_pod(pod, &mut nodes),
                Change::Gone(uid) => state.remove_pod(&uid, &mut nodes),
                Change::All(pods) => {
                    state.heard.pods = true;
                    let there: BTreeSet<_> = pods.iter().map(|pod| pod.uid.clone()).collect();
                    let gone: Vec<_> = state
                        .pods
                        .keys()
                        .filter(|uid| !there.contains(*uid))
                        .cloned()
                        .collect();
                    for uid in gone {
                        state.remove_pod(&uid, &mut nodes);
                    }
                    for pod in pods {
                        state.set_pod(pod, &mut nodes);
                    }
                }
            }
            match nodes.is_empty() {
                true => Concerns::Nobody,
                false => Concerns::Nodes(nodes),
            }
        });
    }

    pub(super) fn nodes(&self, change: Change<NodeFacts>) {
        self.change(|state| {
            let before = state.nodes.clone();
            match change {
                Change::Set(node) => drop(state.nodes.insert(node.name.clone(), node)),
                Change::Gone(name) => drop(state.nodes.remove(&name)),
                Change::All(nodes) => {
                    state.heard.nodes = true;
                    state.nodes = nodes
                        .into_iter()
                        .map(|node| (node.name.clone(), node))
                        .collect();
                }
            }
            Concerns::everybody_if(before != state.nodes)
        });
    }

    pub(super) fn namespaces(&self, change: Change<(String, Labels)>) {
        self.change(|state| {
            let changed = match change {
                Change::Set((name, labels)) => {
                    state.namespaces.insert(name, labels.clone()) != Some(labels)
                }
                Change::Gone(name) => state.namespaces.remove(&name).is_some(),
                Change::All(all) => {
                    state.heard.namespaces = true;
                    let new = all.into_iter().collect();
                    let changed = state.namespaces != new;
                    state.namespaces = new;
                    changed
                }
            };
            Concerns::everybody_if(changed)
        });
    }

    /// Rules, each read or refused. One that was understood and is edited into what is not keeps its last good form.
    pub(super) fn rules(&self, change: Change<(RuleName, Result<Rule, RuleError>)>) {
        self.change(|state| {
            let (before, judged) = (state.rules.clone(), state.judged.clone());
            match change {
                Change::Set(read) => state.set_rule(read),
                Change::Gone(uid) => {
                    state.rules.remove(&uid);
                    state.judged.remove(&uid);
                }
                Change::All(all) => {
                    state.heard.rules = true;
                    let there: BTreeSet<_> = all.iter().map(|(of, _)| of.uid.clone()).collect();
                    state.rules.retain(|uid, _| there.contains(uid));
                    state.judged.retain(|uid, _| there.contains(uid));
                    for read in all {
                        state.set_rule(read);
                    }
                }
            }
            let changed = before != state.rules;
            if changed {
                state.in_order = state.rules.values().chain(&self.default).cloned().collect();
                state
                    .in_order
                    .sort_by(|one, other| one.preference().cmp(&other.preference()));
            }
            match changed {
                true => Concerns::Everybody,
                // No agent's concern, but people are told.
                false if judged != state.judged => Concerns::Nodes(BTreeSet::new()),
                false => Concerns::Nobody,
            }
        });
    }

    /// The kind is not installed: there are no rules, which is known too. Those of before are kept, since the watch would have
    /// said that they go.
    pub(super) fn no_rules(&self) {
        self.change(|state| {
            state.heard.rules = true;
            Concerns::Nobody
        });
    }

    /// What the pods of an agent's node have.
    pub(super) fn of(&self, agent: &Node) -> Derived {
        let state = self.read();
        if !state.is_heard() {
            return Derived::Waiting;
        }
        let generation = *self.generation.borrow();
        let mut entries = BTreeMap::new();
        if let Some((node, pods)) = state.node_of(agent) {
            let none = Labels::new();
            for pod in pods {
                let namespace = state.namespaces.get(&pod.namespace).unwrap_or(&none);
                let outcome = identities(
                    &self.setting,
                    &agent.id,
                    pod,
                    node,
                    namespace,
                    &state.in_order,
                );
                for failure in &outcome.failures {
                    tracing::debug!(rule = failure.rule.of.name, namespace = pod.namespace, pod = pod.name, error = %ErrorChain(&failure.why), "a rule gives a pod no identity");
                }
                entries.extend(
                    outcome
                        .entries
                        .into_iter()
                        .map(|entry| (entry.id.clone(), Arc::new(entry))),
                );
            }
        }
        Derived::Known {
            generation,
            entries,
        }
    }

    pub(super) fn may_have_changed(&self, agent: &Node, since: u64) -> bool {
        let state = self.read();
        let node = agent.kubernetes.as_ref().map(|facts| &facts.node_name);
        let touched = node.and_then(|name| state.touched.by_node.get(name));
        state.touched.everybody > since || touched.is_some_and(|at| *at > since)
    }

    /// Whether a rule for administrators gives a pod this identity.
    pub(super) fn is_admin(&self, id: &SpiffeId) -> bool {
        let state = self.read();
        let none = Labels::new();
        state.is_heard()
            && state.in_order.iter().any(|rule| rule.admin)
            && state.pods.values().any(|pod| {
                let (Some(node), namespace) = (
                    state.nodes.get(&pod.node_name),
                    state.namespaces.get(&pod.namespace),
                ) else {
                    return false;
                };
                // Whose node it is does not matter for what the identity may do.
                let outcome = identities(
                    &self.setting,
                    id,
                    pod,
                    node,
                    namespace.unwrap_or(&none),
                    &state.in_order,
                );
                outcome
                    .entries
                    .iter()
                    .any(|entry| entry.admin && entry.spiffe_id == *id)
            })
    }

    /// The generation of the facts, as it moves.
    pub(super) fn facts(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The UID that a node of this name has now; none if there is no such node, or the nodes were not read yet.
    pub(super) fn node_uid(&self, name: &str) -> Option<String> {
        self.read().nodes.get(name).map(|node| node.uid.clone())
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize) {
        let state = self.read();
        (state.pods_of_node.len(), state.touched.by_node.len())
    }
}

impl State {
    fn is_heard(&self) -> bool {
        let Heard {
            pods,
            nodes,
            namespaces,
            rules,
        } = self.heard;
        pods && nodes && namespaces && rules
    }

    /// The agent's node as it is now, and its pods: none if the node was deleted, or made again under its name.
    fn node_of(&self, agent: &Node) -> Option<(&NodeFacts, impl Iterator<Item = &Arc<PodFacts>>)> {
        let facts = agent.kubernetes.as_ref()?;
        let node = self
            .nodes
            .get(&facts.node_name)
            .filter(|node| node.uid == facts.node_uid)?;
        let pods = self
            .pods_of_node
            .get(&facts.node_name)
            .into_iter()
            .flatten();
        Some((node, pods.filter_map(|uid| self.pods.get(uid))))
    }

    fn set_pod(&mut self, pod: PodFacts, nodes: &mut BTreeSet<String>) {
        if self.pods.get(&pod.uid).is_some_and(|old| **old == pod) {
            return;
        }
        self.remove_pod(&pod.uid, nodes);
        if !pod.node_name.is_empty() {
            nodes.insert(pod.node_name.clone());
            self.pods_of_node
                .entry(pod.node_name.clone())
                .or_default()
                .insert(pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), Arc::new(pod));
    }

    fn remove_pod(&mut self, uid: &str, nodes: &mut BTreeSet<String>) {
        let Some(old) = self.pods.remove(uid) else {
            return;
        };
        if let Some(pods) = self.pods_of_node.get_mut(&old.node_name) {
            pods.remove(uid);
            if pods.is_empty() {
                self.pods_of_node.remove(&old.node_name);
            }
            nodes.insert(old.node_name.clone());
        }
    }

    fn set_rule(&mut self, (of, read): (RuleName, Result<Rule, RuleError>)) {
        let problem = match read {
            Ok(rule) => {
                self.rules.insert(of.uid.clone(), Arc::new(rule));
                None
            }
            Err(error) => {
                let kept = self.rules.contains_key(&of.uid);
                tracing::warn!(code = error.code(), rule = of.name, kept, error = %ErrorChain(&error), "a ClusterSPIFFEID is not applied; the last form that was understood stays in force, if there is one");
                Some(ErrorChain(&error).to_string())
            }
        };
        self.judged.insert(of.uid.clone(), (of, problem));
    }
}

impl Concerns {
    fn everybody_if(changed: bool) -> Self {
        match changed {
            true => Self::Everybody,
            false => Self::Nobody,
        }
    }
}

#[cfg(test)]
mod tests;
