//! What an agent is given as a cluster changes, and whom each change concerns.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::*;
use crate::registry::tests::{node as stored_node, own};
use crate::store::KubernetesFacts;

fn pod(name: &str, node: &str) -> PodFacts {
    PodFacts {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        labels: Labels::new(),
        service_account: name.into(),
        node_name: node.into(),
        created_at: UNIX_EPOCH,
        barred: None,
    }
}

fn node(name: &str, uid: &str) -> NodeFacts {
    NodeFacts {
        name: name.into(),
        uid: uid.into(),
        labels: Labels::new(),
    }
}

fn agent(node: &str, uid: &str) -> Node {
    Node {
        kubernetes: Some(KubernetesFacts {
            cluster: "prod".into(),
            namespace: "mesh".into(),
            service_account: "agent".into(),
            pod_name: "agent".into(),
            pod_uid: "p".into(),
            node_name: node.into(),
            node_uid: uid.into(),
        }),
        ..stored_node(&format!("/spire/agent/k8s_psat/prod/{uid}"), &[])
    }
}

fn rule(name: &str, age: u64, spec: Value) -> (RuleName, Result<Rule, RuleError>) {
    let of = RuleName {
        name: name.into(),
        uid: format!("uid-{name}"),
        created_at: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age),
        generation: 1,
    };
    (of.clone(), Rule::parse(of, spec, &own()))
}

fn reflection(with_default: bool) -> Reflection {
    let setting = Setting {
        trust_domain: own(),
        cluster: "prod".into(),
        cluster_domain: "cluster.local".into(),
    };
    Reflection::new(setting, with_default, watch::Sender::new(0))
}

/// Two nodes with a pod each.
fn heard() -> Reflection {
    let cluster = reflection(true);
    cluster.nodes(Change::All(vec![node("a", "1"), node("b", "2")]));
    cluster.namespaces(Change::All(vec![("shop".into(), Labels::new())]));
    cluster.rules(Change::All(Vec::new()));
    cluster.pods(Change::All(vec![pod("web", "a"), pod("pay", "b")]));
    cluster
}

fn ids(cluster: &Reflection, agent: &Node) -> Vec<String> {
    let Derived::Known { entries, .. } = cluster.of(agent) else {
        panic!("not known");
    };
    let mut paths: Vec<_> = entries
        .values()
        .map(|entry| entry.spiffe_id.path().to_owned())
        .collect();
    paths.sort();
    paths
}

fn generation(cluster: &Reflection) -> u64 {
    *cluster.generation.borrow()
}

#[test]
fn k2_an_agent_is_given_the_pods_of_its_own_node_and_no_others() {
    let cluster = heard();
    assert_eq!(ids(&cluster, &agent("a", "1")), ["/ns/shop/sa/web"]);
    assert_eq!(ids(&cluster, &agent("b", "2")), ["/ns/shop/sa/pay"]);
    assert!(ids(&cluster, &agent("c", "3")).is_empty());
}

#[test]
fn a_node_that_was_made_again_under_its_name_is_another_node() {
    let cluster = heard();
    let before = generation(&cluster);
    cluster.nodes(Change::Set(node("a", "9")));
    assert!(cluster.may_have_changed(&agent("a", "1"), before));
    assert!(ids(&cluster, &agent("a", "1")).is_empty());
    assert_eq!(ids(&cluster, &agent("a", "9")), ["/ns/shop/sa/web"]);
    cluster.nodes(Change::Gone("a".into()));
    assert!(ids(&cluster, &agent("a", "9")).is_empty());
}

#[test]
fn nothing_is_said_before_every_kind_was_read_and_all_agents_hear_of_the_last() {
    let cluster = reflection(true);
    let agent = agent("a", "1");
    cluster.pods(Change::All(vec![pod("web", "a")]));
    cluster.nodes(Change::All(vec![node("a", "1")]));
    cluster.namespaces(Change::All(Vec::new()));
    assert_eq!(cluster.of(&agent), Derived::Waiting);
    let before = generation(&cluster);
    cluster.no_rules();
    assert!(cluster.may_have_changed(&agent, before));
    assert_eq!(ids(&cluster, &agent), ["/ns/shop/sa/web"]);
}

#[test]
fn a_pod_concerns_its_own_node_alone_and_one_that_did_not_change_concerns_nobody() {
    let cluster = heard();
    let (a, b) = (agent("a", "1"), agent("b", "2"));
    let before = generation(&cluster);
    cluster.pods(Change::Set(pod("web", "a")));
    assert_eq!(generation(&cluster), before);
    cluster.pods(Change::Set(pod("new", "a")));
    assert!(cluster.may_have_changed(&a, before) && !cluster.may_have_changed(&b, before));
    let before = generation(&cluster);
    cluster.pods(Change::Gone("uid-new".into()));
    assert!(cluster.may_have_changed(&a, before) && !cluster.may_have_changed(&b, before));
    assert_eq!(ids(&cluster, &a), ["/ns/shop/sa/web"]);
    cluster.pods(Change::Gone("uid-unknown".into()));
    let before = generation(&cluster);
    cluster.pods(Change::Set(pod("waits", "")));
    assert_eq!(generation(&cluster), before);
}

#[test]
fn a_list_that_is_read_anew_takes_away_what_it_does_not_name() {
    let cluster = heard();
    let before = generation(&cluster);
    cluster.pods(Change::All(vec![pod("web", "a"), pod("more", "a")]));
    assert_eq!(
        ids(&cluster, &agent("a", "1")),
        ["/ns/shop/sa/more", "/ns/shop/sa/web"]
    );
    assert!(ids(&cluster, &agent("b", "2")).is_empty());
    assert!(cluster.may_have_changed(&agent("b", "2"), before));
    let before = generation(&cluster);
    cluster.pods(Change::All(vec![pod("more", "a"), pod("web", "a")]));
    cluster.nodes(Change::All(vec![node("b", "2"), node("a", "1")]));
    cluster.namespaces(Change::All(vec![("shop".into(), Labels::new())]));
    cluster.rules(Change::All(Vec::new()));
    assert_eq!(
        generation(&cluster),
        before,
        "a list that says the same is no news"
    );
}

#[test]
fn what_is_gone_leaves_nothing_behind() {
    let cluster = heard();
    let kept = cluster.sizes();
    for round in 0..50 {
        cluster.pods(Change::Set(pod(&format!("p{round}"), &format!("n{round}"))));
        cluster.pods(Change::Gone(format!("uid-p{round}")));
    }
    assert_eq!(cluster.sizes().0, kept.0);
    cluster.nodes(Change::Gone("b".into()));
    assert_eq!(
        cluster.sizes().1,
        0,
        "what concerns everybody makes single nodes needless"
    );
}

#[test]
fn rules_go_by_age_and_one_that_is_edited_into_nonsense_keeps_its_last_form() {
    let cluster = heard();
    let a = agent("a", "1");
    let spec = |hint: &str| json!({ "spiffeIDTemplate": "spiffe://dev.test/rule", "hint": hint });
    cluster.rules(Change::Set(rule("young", 9, spec("young"))));
    cluster.rules(Change::Set(rule("old", 1, spec("old"))));
    let hint = || match cluster.of(&a) {
        Derived::Known { entries, .. } => entries.values().next().unwrap().hint.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        (ids(&cluster, &a), hint()),
        (vec!["/rule".to_owned()], "old".to_owned())
    );
    let before = generation(&cluster);
    cluster.rules(Change::Set(rule(
        "old",
        1,
        json!({ "spiffeIDTemplate": "{{ nonsense }}" }),
    )));
    assert_eq!(hint(), "old");
    assert!(!cluster.may_have_changed(&a, before), "no agent's concern");
    cluster.rules(Change::Gone("uid-old".into()));
    assert_eq!(hint(), "young");
    cluster.rules(Change::Gone("uid-young".into()));
    assert_eq!(ids(&cluster, &a), ["/ns/shop/sa/web"]);
}

#[test]
fn an_identity_is_an_administrator_as_long_as_a_pod_has_it_by_a_rule_for_administrators() {
    let cluster = heard();
    let id = "spiffe://dev.test/ns/shop/sa/web".parse().unwrap();
    assert!(!cluster.is_admin(&id));
    cluster.rules(Change::Set(rule("admin", 1, json!({
        "spiffeIDTemplate": "spiffe://dev.test/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}", "admin": true,
    }))));
    assert!(cluster.is_admin(&id));
    assert!(!cluster.is_admin(&"spiffe://dev.test/other".parse().unwrap()));
    cluster.pods(Change::Gone("uid-web".into()));
    assert!(!cluster.is_admin(&id));
}

#[test]
fn a_rule_selects_by_the_labels_of_the_namespace_as_they_are_now() {
    let cluster = heard();
    cluster.rules(Change::Set(rule("sales", 1, json!({
        "spiffeIDTemplate": "spiffe://dev.test/sales", "namespaceSelector": { "matchLabels": { "team": "sales" } },
    }))));
    let a = agent("a", "1");
    assert_eq!(ids(&cluster, &a), ["/ns/shop/sa/web"]);
    let before = generation(&cluster);
    cluster.namespaces(Change::Set((
        "shop".into(),
        [("team".to_owned(), "sales".to_owned())].into(),
    )));
    assert!(cluster.may_have_changed(&a, before));
    assert_eq!(ids(&cluster, &a), ["/sales"]);
}

#[test]
fn people_are_told_what_each_object_selects_and_what_is_wrong_with_it() {
    let cluster = heard();
    let before = generation(&cluster);
    cluster.rules(Change::Set(rule(
        "labels",
        1,
        json!({ "spiffeIDTemplate": "spiffe://dev.test/{{ .PodMeta.Labels.none }}" }),
    )));
    cluster.rules(Change::Set(rule(
        "nonsense",
        1,
        json!({ "spiffeIDTemplate": "{{ nonsense }}" }),
    )));
    assert_eq!(
        generation(&cluster),
        before + 2,
        "a refusal is news for people"
    );
    let verdicts = cluster.verdicts();
    let labels = &verdicts["uid-labels"];
    assert_eq!(
        (labels.namespaces, labels.pods, labels.render_failures),
        (1, 2, 2)
    );
    assert_eq!(labels.problem, None);
    let nonsense = &verdicts["uid-nonsense"];
    let problem = nonsense.problem.as_deref().unwrap();
    assert!(
        problem.contains("spiffeIDTemplate") && problem.contains("nonsense"),
        "{problem}"
    );
    assert_eq!(nonsense.pods, 0);
    cluster.rules(Change::Gone("uid-nonsense".into()));
    cluster.rules(Change::All(Vec::new()));
    assert!(cluster.verdicts().is_empty());
}
