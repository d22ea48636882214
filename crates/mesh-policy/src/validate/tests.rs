//! Every mistake in a document is found at once, each at its place, and nothing near a good document passes.
//! Trusts only that YAML itself is parsed by serde-saphyr.
//! Never takes half of a document.

use super::*;

const GOOD: &str = r#"
apiVersion: mesh.finial.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: allow-shop, namespace: payments }
spec:
  action: ALLOW
  rules:
    - name: charge
      from: [ { source: { principals: ["spiffe://dev.test/shop", "dev.test/ns/prod/*"] } } ]
      to: [ { operation: { methods: [POST], paths: ["/charge", "/v1/*", "/users/{*}/keys"], ports: [8080, "8081"], hosts: ["*.pay.test"] } } ]
    - from: [ { source: { notPrincipals: ["*"], trustDomains: [dev.test] } } ]
---
# An empty document is left out.
---
apiVersion: mesh.finial.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: nothing }
spec: {}
"#;

fn problems(text: &str) -> Vec<String> {
    PolicySet::from_yaml(text)
        .expect_err("the text has a problem")
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// A policy with `rules` as its only moving part.
fn with_rules(rules: &str) -> String {
    format!(
        "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: p }}\nspec:\n  rules:\n{rules}"
    )
}

fn one_problem(rules: &str) -> String {
    let mut found = problems(&with_rules(rules));
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

#[test]
fn a_good_file_is_read_with_all_of_its_documents() {
    let set = PolicySet::from_yaml(GOOD).unwrap();
    let names: Vec<_> = set.policies().iter().map(ValidPolicy::name).collect();
    assert_eq!(names, ["payments/allow-shop", "nothing"]);
    assert_eq!(
        set.policies()[0].rule_names().collect::<Vec<_>>(),
        ["charge", "2"]
    );
    assert_eq!(set.policies()[1].rule_names().count(), 0);
}

#[test]
fn json_is_read_too() {
    let json = r#"{"apiVersion":"mesh.finial.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"p"},"spec":{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin*"]}}]}]}}"#;
    assert_eq!(
        PolicySet::from_yaml(json).unwrap().policies()[0].action(),
        Action::Deny
    );
}

#[test]
fn an_empty_file_is_a_valid_set_of_nothing() {
    assert!(PolicySet::from_yaml("").unwrap().policies().is_empty());
    assert!(
        PolicySet::from_yaml("# nothing\n")
            .unwrap()
            .policies()
            .is_empty()
    );
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let text = "apiVersion: mesh.finial.dev/v2\nkind: AuthorizationPolicy\nmetadata: { name: Bad_Name }\nspec:\n  acton: ALLOW\n  rules:\n    - from:\n        - source:\n            principal: [a]\n            principals: [\"*/sa/x\", 7]\n      to:\n        - operation: { ports: [0], methods: [get], paths: [\"/a/../b\"] }\n";
    let found = problems(text);
    let starts = |prefix: &str| {
        assert!(
            found.iter().any(|p| p.starts_with(prefix)),
            "{prefix} is not in {found:#?}"
        )
    };
    starts("line 1, column 13: apiVersion: one of mesh.finial.dev/v1alpha1");
    starts("line 3, column 19: metadata.name: a name has");
    starts("line 5, column 3: spec: unknown field `acton`; did you mean `action`? [FNL0502]");
    starts(
        "line 9, column 13: spec.rules[0].from[0].source: unknown field `principal`; did you mean `principals`?",
    );
    starts(
        "line 10, column 36: spec.rules[0].from[0].source.principals[1]: text is wanted here, not a number",
    );
    starts("line 12, column 32: spec.rules[0].to[0].operation.ports[0]: a port is a number");
    starts(
        "line 12, column 46: spec.rules[0].to[0].operation.methods[0]: `get`: a method is a token in capital letters",
    );
    starts(
        "line 12, column 60: spec.rules[0].to[0].operation.paths[0]: `/a/../b`: no request can have this path",
    );
    assert_eq!(found.len(), 8, "{found:#?}");
}

#[test]
fn the_report_shows_the_line_and_a_caret() {
    let text = "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: p }\nspec:\n  rule: []\n";
    let report = PolicySet::from_yaml(text)
        .unwrap_err()
        .render("policy.yaml", text);
    assert_eq!(
        report,
        "error[FNL0502]: unknown field `rule`\n  --> policy.yaml:5:3\n   |\n 5 |   rule: []\n   |   ^^^^ did you mean `rules`?\n   = at spec\n"
    );
}

#[test]
fn mesh_c1_52_what_could_widen_a_policy_refuses_it() {
    for (rules, message) in [
        ("    - null", "a map is wanted here, not nothing"),
        ("    - from: []", "an empty list"),
        (
            "    - from: [ { source: { principals: [] } } ]",
            "an empty list",
        ),
        ("    - from: [ { source: {} } ]", "an empty condition"),
        ("    - to: [ { operation: {} } ]", "an empty condition"),
        ("    - from: [ {} ]", "the field `source` is missing"),
        (
            "    - from: [ { source: null } ]",
            "a map is wanted here, not nothing",
        ),
        (
            "    - from: [ { source: { principals: null } } ]",
            "a list is wanted here, not nothing",
        ),
        (
            "    - from: [ { source: { namespace: [a] } } ]",
            "did you mean `namespaces`?",
        ),
        ("    - when: []", "an empty list"),
        (
            "    - when: [ { key: source.ip } ]",
            "the field `values` is missing",
        ),
        (
            "    - when: [ { key: source.ip, values: [] } ]",
            "an empty list",
        ),
        (
            "    - when: [ { key: source.user, values: [a] } ]",
            "not a condition that is known",
        ),
        (
            "    - when: [ { key: \"request.headers[:path]\", values: [a] } ]",
            "have fields of their own in `to`",
        ),
        (
            "    - when: [ { key: \"request.auth.claims[a][]\", values: [a] } ]",
            "not a condition that is known",
        ),
        (
            "    - when: [ { key: \"experimental.envoy.filters.network.mysql_proxy[db.t]\", values: [a] } ]",
            "not a condition that is known",
        ),
        (
            "    - from: [ { source: { serviceAccounts: [curl] } } ]",
            "a name alone needs a policy that says its namespace",
        ),
        (
            "    - from: [ { source: { ipBlocks: [10.0.0.0/33] } } ]",
            "not an address",
        ),
        (
            "    - from: [ { source: { ipBlocks: [\"fe80::1%eth0\"] } } ]",
            "not an address",
        ),
    ] {
        let problem = one_problem(rules);
        assert!(problem.contains(message), "{rules}: {problem}");
    }
}

#[test]
fn mesh_c1_52_unknown_actions_kinds_and_selectors_refuse_the_file() {
    let text = |spec: &str| {
        format!(
            "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: p }}\nspec: {spec}\n"
        )
    };
    for spec in [
        "{ action: AUDIT }",
        "{ action: CUSTOM, rules: [ {} ] }",
        "{ action: allow }",
        "{ action: null }",
        "{ selector: {} }",
        "{ selector: { matchLabels: {} } }",
        "{ selector: { matchLabels: { app: x } }, targetRefs: [ { kind: Service, name: x } ] }",
        "{ targetRefs: [ { kind: Pod, name: x } ] }",
        "{ targetRefs: [ { kind: Service, name: x, namespace: other } ] }",
        "{ mode: Permissive }",
        "{ provider: { name: x } }",
        "[]",
        "null",
        "{ action: DENY }",
        "{ rules: [] }",
    ] {
        assert_eq!(problems(&text(spec)).len(), 1, "{spec}");
    }
    assert!(problems("kind: AuthorizationPolicy\n").len() == 3);
    assert!(problems("just text\n")[0].contains("a map is wanted here"));
}

#[test]
fn mesh_c1_55_a_name_that_no_caller_can_have_is_refused() {
    let principal = |p: &str| {
        one_problem(&format!(
            "    - from: [ {{ source: {{ principals: [\"{p}\"] }} }} ]"
        ))
    };
    assert!(principal("spiffe://td/*/sa/*").contains("one wildcard"));
    assert!(principal("*/ns/*").contains("one wildcard"));
    assert!(principal("spiffe://td").contains("a trust domain alone"));
    assert!(principal("spiffe://TD/a").contains("not a SPIFFE ID"));
    assert!(principal("https://td/a").contains("not a SPIFFE ID"));
    assert!(principal("td//a*").contains("no ID begins or ends like this"));
    assert!(principal("td/ns/%61*").contains("no ID begins or ends like this"));
    assert!(principal("").contains("empty"));
}

#[test]
fn istio_s_group_is_read_and_a_foreign_one_is_not() {
    let text = |version: &str| {
        format!(
            "apiVersion: {version}\nkind: AuthorizationPolicy\nmetadata: {{ name: p, uid: x, resourceVersion: \"7\", managedFields: [] }}\nspec: {{}}\nstatus: {{ conditions: [] }}\n"
        )
    };
    for good in [
        API_VERSION,
        "security.istio.io/v1",
        "security.istio.io/v1beta1",
    ] {
        assert!(PolicySet::from_yaml(&text(good)).is_ok(), "{good}");
    }
    assert!(problems(&text("security.istio.io/v1alpha1"))[0].contains("FNL0505"));
}

#[test]
fn broken_yaml_names_its_place_and_prints_nothing_of_the_file() {
    let found = problems("a: [1\nb: secret-value\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("line "), "{found:?}");
    assert!(!found[0].contains("secret-value"), "{found:?}");
}

#[test]
fn duplicate_keys_anchors_and_merge_keys_are_refused() {
    for text in ["a: 1\na: 2\n", "a: &x 1\nb: *x\n", "a: {<<: {b: 1}}\n"] {
        let found = problems(text);
        assert!(found[0].ends_with("[FNL0501]"), "{text}: {found:?}");
    }
}

#[test]
fn mesh_c1_39_depth_and_size_are_bounded() {
    assert!(problems(&"[".repeat(10_000))[0].contains("FNL0501"));
    assert!(problems(&"#".repeat(document::LARGEST_FILE + 1))[0].contains("FNL0509"));
}

#[test]
fn names_are_used_once() {
    let one = "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: p }\nspec: {}\n";
    assert!(problems(&format!("{one}---\n{one}"))[0].contains("already on line 1"));
    let rule = "    - name: r\n      from: [ { source: { principals: [\"*\"] } } ]\n";
    assert!(one_problem(&format!("{rule}{rule}")).contains("both named `r`"));
}

#[test]
fn what_is_printed_of_a_file_never_acts_on_the_terminal() {
    for text in [
        "spec: \u{202e}evil\n",
        "a: \u{7f}\u{85}\n",
        "%\u{1b}[2J>%",
        "kind: AuthorizationPolicy\n\u{9b}31m: x\n",
    ] {
        let shown = PolicySet::from_yaml(text)
            .expect_err("it is no policy")
            .render("policy.yaml", text);
        assert!(
            !shown
                .chars()
                .any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'),
            "{shown:?}"
        );
    }
}
