//! Tests of `authentication.rs`.

use super::*;
use crate::{CompiledPolicy, Door, PolicySet, Protocol, Workload};

fn document(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec: {spec}\n"
    )
}

fn peer(name: &str, namespace: &str, spec: &str) -> String {
    document("PeerAuthentication", name, namespace, spec)
}

fn problem(text: &str) -> String {
    PolicySet::from_yaml(text).unwrap_err().to_string()
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn posture(text: &str, port: u16) -> Posture {
    let workload = Workload {
        namespace: "shop".to_owned(),
        root_namespace: Some("root".to_owned()),
        labels: vec![("app".to_owned(), "pay".to_owned())],
        services: Vec::new(),
    };
    let set = PolicySet::from_yaml(text).unwrap();
    let door = Door {
        protocol: Protocol::Http,
        workload: Some(&workload),
    };
    CompiledPolicy::new(&set, door).posture(port)
}

#[test]
fn without_a_document_and_before_the_first_policy_plaintext_is_never_let_in() {
    assert_eq!(posture("", 80), Posture::default());
    assert_eq!(CompiledPolicy::not_ready().posture(80), Posture::default());
    assert!(!Posture::default().admits_plaintext(at(0)));
}

#[test]
fn permissive_needs_an_end_date_and_ends_there() {
    assert!(
        problem(&peer("p", "shop", "{ mtls: { mode: PERMISSIVE } }"))
            .contains("say until when: spec.permissiveUntil")
    );
    assert!(problem(&peer("p", "shop", "{ mtls: { mode: DISABLE } }")).contains("one of STRICT"));
    let found = posture(
        &peer(
            "p",
            "shop",
            "{ mtls: { mode: PERMISSIVE }, permissiveUntil: \"2026-12-31T00:00:00Z\" }",
        ),
        80,
    );
    let end = at(1_798_675_200);
    assert_eq!(found.plaintext_until, Some(end));
    assert!(found.admits_plaintext(end - Duration::from_secs(1)) && !found.admits_plaintext(end));
}

#[test]
fn the_nearest_document_counts_and_of_two_equally_near_the_stricter() {
    let permissive = |name: &str, namespace: &str, more: &str| {
        peer(
            name,
            namespace,
            &format!("{{ mtls: {{ mode: PERMISSIVE }}, permissiveUntil: \"2030-01-01\"{more} }}"),
        )
    };
    let strict = |name: &str, namespace: &str, more: &str| {
        peer(
            name,
            namespace,
            &format!("{{ mtls: {{ mode: STRICT }}{more} }}"),
        )
    };
    let pay = ", selector: { matchLabels: { app: pay } }";
    let other = ", selector: { matchLabels: { app: other } }";
    for (what, text, open) in [
        ("mesh", permissive("a", "root", ""), true),
        ("another namespace", permissive("a", "other", ""), false),
        (
            "namespace over mesh",
            strict("a", "root", "") + &permissive("b", "shop", ""),
            true,
        ),
        (
            "mesh under namespace",
            strict("b", "shop", "") + &permissive("a", "root", ""),
            false,
        ),
        (
            "workload over namespace",
            permissive("a", "shop", "") + &strict("b", "shop", pay),
            false,
        ),
        (
            "another workload",
            permissive("a", "shop", "") + &strict("b", "shop", other),
            true,
        ),
        (
            "equally near",
            permissive("a", "shop", "") + &strict("b", "shop", ""),
            false,
        ),
        (
            "port",
            strict(
                "a",
                "shop",
                ", portLevelMtls: { 80: { mode: PERMISSIVE } }, permissiveUntil: \"2030-01-01\"",
            ),
            true,
        ),
        (
            "unset",
            permissive("a", "root", "") + &peer("b", "shop", "{ mtls: { mode: UNSET } }"),
            true,
        ),
    ] {
        assert_eq!(posture(&text, 80).plaintext_until.is_some(), open, "{what}");
    }
    let ports = strict(
        "a",
        "shop",
        ", portLevelMtls: { \"80\": { mode: PERMISSIVE } }, permissiveUntil: \"2030-01-01\"",
    );
    assert!(posture(&ports, 81).plaintext_until.is_none());
    let quantum = peer("a", "root", "{ requirePostQuantum: true }") + &permissive("b", "shop", "");
    assert!(posture(&quantum, 80).post_quantum);
    let lifted = quantum
        + &peer(
            "c",
            "shop",
            "{ selector: { matchLabels: { app: pay } }, requirePostQuantum: false }",
        );
    assert!(!posture(&lifted, 80).post_quantum);
}

#[test]
fn a_proxy_that_knows_no_workload_takes_the_strict_ones_of_those_that_select() {
    let pay = "selector: { matchLabels: { app: pay } }";
    let compiled = |text: &str| {
        let set = PolicySet::from_yaml(text).unwrap();
        CompiledPolicy::new(&set, Door::of_unknown(Protocol::Http))
    };
    let open = compiled(&peer(
        "p",
        "shop",
        &format!("{{ {pay}, mtls: {{ mode: PERMISSIVE }}, permissiveUntil: \"2030-01-01\" }}"),
    ));
    assert!(open.posture(80).plaintext_until.is_none());
    assert_eq!(open.unenforceable().len(), 1);
    let strict = compiled(&peer(
        "p",
        "shop",
        &format!("{{ {pay}, requirePostQuantum: true }}"),
    ));
    assert!(strict.posture(80).post_quantum);
}

#[test]
fn a_date_is_a_day_or_a_second_in_utc_and_nothing_else() {
    assert_eq!(moment("1970-01-01"), Some(at(0)));
    assert_eq!(moment("2000-02-29T23:59:59Z"), Some(at(951_868_799)));
    assert_eq!(moment("2024-03-01"), Some(at(1_709_251_200)));
    for bad in [
        "",
        "2026",
        "2026-02-29",
        "2026-13-01",
        "2026-1-1",
        "2026-01-01T00:00:00",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00+01:00",
        "1969-12-31",
        "+026-01-01",
    ] {
        assert_eq!(moment(bad), None, "{bad}");
    }
}

#[test]
fn mesh_c1_59_keys_stand_in_the_document_or_in_a_file_and_no_address_is_asked_for_them() {
    let request = |rule: &str| {
        document(
            "RequestAuthentication",
            "r",
            "shop",
            &format!("{{ jwtRules: [ {rule} ] }}"),
        )
    };
    let text = request(
        "{ issuer: \"https://login.test\", audiences: [bank], jwksUri: \"file:///etc/keys.json\", fromHeaders: [ { name: X-Token, prefix: \"T \" } ], forwardOriginalToken: true }",
    );
    let set = PolicySet::from_yaml(&text).unwrap();
    let compiled = CompiledPolicy::new(&set, Door::of_unknown(Protocol::Http));
    let [rule] = compiled.jwt_rules() else {
        panic!("one rule")
    };
    assert_eq!(
        (&*rule.issuer, &*rule.audiences[0], rule.forward),
        ("https://login.test", "bank", true)
    );
    assert_eq!(rule.headers, [("x-token".to_owned(), "T ".to_owned())]);
    assert!(matches!(&rule.keys, KeySource::File(path) if path == "/etc/keys.json"));
    for (rule, told) in [
        ("{ issuer: a }", "one of `jwks` and `jwksUri`"),
        (
            "{ issuer: a, jwks: \"{}\", jwksUri: \"file:///x\" }",
            "one of `jwks` and `jwksUri`",
        ),
        ("{ issuer: a, jwks: \"{}\" }", "FNL0506"),
        ("{ issuer: a, jwks: '{\"keys\": []}' }", "no key in it"),
        (
            "{ issuer: a, jwksUri: \"http://169.254.169.254/keys\" }",
            "file:///",
        ),
        ("{ issuer: a, jwksUri: \"file://keys\" }", "file:///"),
        (
            "{ jwksUri: \"file:///x\" }",
            "the field `issuer` is missing",
        ),
        (
            "{ issuer: a, jwksUri: \"file:///x\", fromParams: [t] }",
            "unknown field `fromParams`",
        ),
        (
            "{ issuer: a, jwksUri: \"file:///x\", fromHeaders: [ { name: \"a b\" } ] }",
            "not the name of a header",
        ),
        (
            "{ issuer: a, jwksUri: \"file:///x\" }, { issuer: a, jwksUri: \"file:///y\" }",
            "another rule names too",
        ),
    ] {
        let found = problem(&request(rule));
        assert!(found.contains(told), "{rule}: {found}");
    }
}
