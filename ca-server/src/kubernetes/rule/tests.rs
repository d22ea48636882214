//! Objects as users have them, and each way in which one is not understood.

use serde_json::{Value, json};

use super::*;

fn parse(spec: Value) -> Result<Rule, RuleError> {
    let of = RuleName {
        name: "r".into(),
        uid: "1".into(),
        created_at: SystemTime::UNIX_EPOCH,
        generation: 1,
    };
    Rule::parse(of, spec, &"example.org".parse().unwrap())
}

const ID: &str = "spiffe://{{ .TrustDomain }}/x";

#[test]
fn every_field_of_the_kind_is_read() {
    let rule = parse(json!({
        "spiffeIDTemplate": ID,
        "podSelector": { "matchLabels": { "app": "web" } },
        "namespaceSelector": { "matchExpressions": [{ "key": "team", "operator": "Exists" }] },
        "dnsNameTemplates": ["{{ .PodMeta.Name }}.example.org"],
        "workloadSelectorTemplates": ["unix:uid:0"],
        "ttl": "1h30m0s",
        "jwtTtl": "300s",
        "federatesWith": ["other.org"],
        "className": "c",
        "admin": true,
        "downstream": true,
        "autoPopulateDNSNames": false,
        "fallback": true,
        "hint": "internal",
    }))
    .unwrap();
    assert_eq!(rule.ttl, Some(Duration::from_secs(5400)));
    assert_eq!(rule.jwt_ttl, Some(Duration::from_secs(300)));
    assert_eq!(
        (rule.dns_names.len(), rule.workload_selectors.len()),
        (1, 1)
    );
    assert_eq!(rule.federates_with.len(), 1);
    assert!(rule.admin && rule.downstream && rule.fallback);
    assert_eq!(rule.hint, "internal");
    assert!(rule.pods.is_some() && rule.namespaces.is_some());
}

#[test]
fn what_is_not_understood_refuses_the_whole_object_and_names_the_field() {
    let with = |field: &str, value: Value| {
        let mut spec = json!({ "spiffeIDTemplate": ID });
        spec[field] = value;
        mesh_runtime::errors::ErrorChain(&parse(spec).unwrap_err()).to_string()
    };
    for (field, value) in [
        ("spiffeIDTemplate", json!("{{ if }}")),
        ("dnsNameTemplates", json!(["{{ .X }}"])),
        ("workloadSelectorTemplates", json!(["{{"])),
        ("ttl", json!("an hour")),
        ("ttl", json!("500ms")),
        ("jwtTtl", json!("-5s")),
        ("federatesWith", json!(["example.org"])),
        ("federatesWith", json!(["Not A Domain"])),
        ("autoPopulateDNSNames", json!(true)),
        (
            "podSelector",
            json!({ "matchExpressions": [{ "key": "a", "operator": "In" }] }),
        ),
        (
            "namespaceSelector",
            json!({ "matchExpressions": [{ "key": "a", "operator": "Exists", "values": ["b"] }] }),
        ),
        ("ofALaterVersion", json!(1)),
    ] {
        let said = with(field, value);
        assert!(said.contains(field), "{field}: {said}");
    }
    assert!(matches!(parse(json!({})), Err(RuleError::Spec(_))));
    assert!(matches!(
        parse(json!({ "spiffeIDTemplate": ID, "admin": "yes" })),
        Err(RuleError::Spec(_))
    ));
    let many = vec!["unix:uid:0"; MOST + 1];
    assert!(matches!(
        parse(json!({ "spiffeIDTemplate": ID, "workloadSelectorTemplates": many })),
        Err(RuleError::TooMany(_))
    ));
}

#[test]
fn durations_are_those_of_go() {
    for (text, expected) in [
        ("1h30m", Some(5400)),
        ("90s", Some(90)),
        ("1500ms", None),
        ("2000ms", Some(2)),
        ("1h0m0s", Some(3600)),
        ("1", None),
        ("h", None),
        ("", None),
        ("1d", None),
        ("-1h", None),
        ("99999999999999999999h", None),
        ("18446744073709551615h", None),
    ] {
        let read = duration("ttl", Some(text))
            .ok()
            .flatten()
            .map(|ttl| ttl.as_secs());
        assert_eq!(read, expected, "{text:?}");
    }
    assert!(matches!(duration("ttl", Some("0s")), Ok(None)));
    assert!(matches!(duration("ttl", Some("0")), Ok(None)));
}
