//! Which identities a pod gets, from which rule, and when it gets none.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::super::facts::Barred;
use super::super::rule::RuleName;
use super::*;

const DEFAULT: &str = "spiffe://example.org/ns/shop/sa/cashier";

fn setting() -> Setting {
    Setting {
        trust_domain: "example.org".parse().unwrap(),
        cluster: "prod".into(),
        cluster_domain: "cluster.local".into(),
    }
}

fn pod() -> PodFacts {
    PodFacts {
        namespace: "shop".into(),
        name: "web-1".into(),
        uid: "6b2a6f0c-0b4c-4b5e-9d43-3f2f7a1c9e10".into(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        service_account: "cashier".into(),
        node_name: "node-1".into(),
        created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        barred: None,
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        name: "node-1".into(),
        uid: "77".into(),
        labels: Labels::new(),
    }
}

fn rule(name: &str, spec: Value) -> Arc<Rule> {
    let of = RuleName {
        name: name.into(),
        uid: name.into(),
        created_at: SystemTime::UNIX_EPOCH,
        generation: 1,
    };
    Arc::new(Rule::parse(of, spec, &setting().trust_domain).unwrap())
}

fn gives(pod: &PodFacts, rules: &[Arc<Rule>]) -> Outcome {
    let agent = "spiffe://example.org/spire/agent/k8s_psat/prod/77"
        .parse()
        .unwrap();
    let namespace = [("team".to_owned(), "sales".to_owned())].into();
    identities(&setting(), &agent, pod, &node(), &namespace, rules)
}

fn ids(outcome: &Outcome) -> Vec<&str> {
    outcome
        .entries
        .iter()
        .map(|entry| entry.spiffe_id.as_str())
        .collect()
}

#[test]
fn the_default_rule_gives_namespace_and_service_account_to_what_no_other_rule_matches() {
    let default = Arc::new(Rule::default());
    assert_eq!(
        ids(&gives(&pod(), std::slice::from_ref(&default))),
        [DEFAULT]
    );
    let own = rule(
        "own",
        json!({ "spiffeIDTemplate": "spiffe://example.org/own" }),
    );
    assert_eq!(
        ids(&gives(&pod(), &[own, default.clone()])),
        ["spiffe://example.org/own"]
    );
    let other = rule(
        "other",
        json!({ "spiffeIDTemplate": "spiffe://example.org/other", "podSelector": { "matchLabels": { "app": "db" } } }),
    );
    assert_eq!(ids(&gives(&pod(), &[other, default])), [DEFAULT]);
}

#[test]
fn a_rule_that_matches_and_cannot_be_rendered_gives_nothing_and_no_fallback_either() {
    let broken = rule(
        "broken",
        json!({ "spiffeIDTemplate": "spiffe://example.org/{{ .PodMeta.Labels.none }}" }),
    );
    let outcome = gives(&pod(), &[broken, Arc::new(Rule::default())]);
    assert!(outcome.entries.is_empty());
    assert_eq!(outcome.failures.len(), 1);
    assert_eq!(outcome.failures[0].rule.of.name, "broken");
}

#[test]
fn what_would_not_be_an_entry_of_ours_is_a_failure() {
    for (field, value) in [
        ("spiffeIDTemplate", json!("spiffe://other.org/x")),
        (
            "spiffeIDTemplate",
            json!("spiffe://example.org/spire/server"),
        ),
        ("spiffeIDTemplate", json!("https://example.org/x")),
        ("spiffeIDTemplate", json!("spiffe://example.org")),
        ("dnsNameTemplates", json!(["not a name"])),
        ("workloadSelectorTemplates", json!(["no-colon"])),
        ("hint", json!("x".repeat(2000))),
    ] {
        let mut spec = json!({ "spiffeIDTemplate": "spiffe://example.org/x" });
        spec[field] = value.clone();
        let outcome = gives(&pod(), &[rule("r", spec)]);
        assert!(
            outcome.entries.is_empty() && outcome.failures.len() == 1,
            "{field}: {value}"
        );
    }
}

#[test]
fn an_entry_is_for_the_pod_alone_below_the_agent_of_its_node() {
    let full = rule(
        "full",
        json!({
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Name }}",
            "workloadSelectorTemplates": ["k8s:ns:{{ .PodMeta.Namespace }}", "unix:uid:0"],
            "dnsNameTemplates": ["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.{{ .ClusterDomain }}", "web-1.shop.cluster.local"],
            "ttl": "60s", "hint": "h", "federatesWith": ["other.org"], "admin": true, "downstream": true,
        }),
    );
    let outcome = gives(&pod(), &[full]);
    let entry = &outcome.entries[0];
    assert_eq!(entry.parent_id.path(), "/spire/agent/k8s_psat/prod/77");
    let selectors: Vec<_> = entry.selectors.iter().map(Selector::as_str).collect();
    assert_eq!(
        selectors,
        [
            "k8s:ns:shop",
            "k8s:pod-uid:6b2a6f0c-0b4c-4b5e-9d43-3f2f7a1c9e10",
            "unix:uid:0"
        ]
    );
    let names: Vec<_> = entry.dns_names.iter().map(DnsName::as_str).collect();
    assert_eq!(names, ["web-1.shop.cluster.local"]);
    assert_eq!(entry.x509_svid_ttl, Some(Duration::from_secs(60)));
    assert!(entry.admin && entry.downstream);
    assert_eq!(entry.created_at, pod().created_at);
}

#[test]
fn the_same_identity_of_two_rules_is_given_once_by_the_one_that_goes_first() {
    let spec =
        |hint: &str| json!({ "spiffeIDTemplate": "spiffe://example.org/same", "hint": hint });
    let outcome = gives(
        &pod(),
        &[rule("a", spec("first")), rule("b", spec("second"))],
    );
    assert_eq!((outcome.entries.len(), outcome.masked), (1, 1));
    assert_eq!(outcome.entries[0].hint, "first");
}

#[test]
fn a_pod_that_is_over_ends_or_came_from_a_kubelet_has_no_identity() {
    for barred in [
        Barred::Mirror,
        Barred::NoServiceAccount,
        Barred::Terminating,
        Barred::Over,
    ] {
        let pod = PodFacts {
            barred: Some(barred),
            ..pod()
        };
        assert!(
            gives(&pod, &[Arc::new(Rule::default())]).entries.is_empty(),
            "{barred:?}"
        );
    }
}

#[test]
fn an_entrys_name_stays_while_it_says_the_same_and_changes_with_whatever_it_says() {
    let spec = json!({ "spiffeIDTemplate": "spiffe://example.org/x" });
    let name =
        |spec: &Value, pod: &PodFacts| gives(pod, &[rule("r", spec.clone())]).entries[0].id.clone();
    let first = name(&spec, &pod());
    let relabelled = PodFacts {
        labels: Labels::new(),
        ..pod()
    };
    assert_eq!(first, name(&spec, &relabelled));
    let mut names: BTreeSet<_> = [first].into();
    for (field, value) in [
        ("spiffeIDTemplate", json!("spiffe://example.org/y")),
        ("ttl", json!("60s")),
        ("jwtTtl", json!("60s")),
        ("hint", json!("h")),
        ("admin", json!(true)),
        ("downstream", json!(true)),
        ("federatesWith", json!(["other.org"])),
        ("dnsNameTemplates", json!(["a.org"])),
        ("workloadSelectorTemplates", json!(["unix:uid:0"])),
    ] {
        let mut spec = spec.clone();
        spec[field] = value;
        assert!(names.insert(name(&spec, &pod())), "{field}");
    }
    let again = PodFacts {
        uid: "7b2a6f0c-0b4c-4b5e-9d43-3f2f7a1c9e10".into(),
        ..pod()
    };
    assert!(
        names.insert(name(&spec, &again)),
        "a pod that was made again"
    );
}
