//! A verdict for every combination that matters: deny before allow, nothing without a rule, unknown means no.
//! Trusts the parser for the policies that it is given as text.
//! Never reads a clock or a file.

use mesh_identity::SpiffeId;
use proptest::prelude::*;

use super::*;
use crate::compile::{Door, Protocol};
use crate::explain::explain;
use crate::facts::CanonicalPath;
use crate::validate::PolicySet;

const HTTP: Door<'static> = Door {
    protocol: Protocol::Http,
    workload: None,
};
const TCP: Door<'static> = Door {
    protocol: Protocol::Tcp,
    workload: None,
};

fn policy(action: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {} }}\nspec:\n  action: {action}\n  rules:\n{rules}\n",
        action.to_lowercase()
    )
}

fn compiled(yaml: &str, door: Door<'_>) -> CompiledPolicy {
    CompiledPolicy::new(&PolicySet::from_yaml(yaml).unwrap(), door)
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn http<'a>(peer: Option<&'a SpiffeId>, method: &'a str, path: &'a str) -> Facts<'a> {
    Facts::new(peer, 8080).with(HttpFacts::new(
        method,
        "pay.test",
        CanonicalPath::parse(path).unwrap(),
    ))
}

fn tcp(peer: Option<&SpiffeId>, port: u16) -> Facts<'_> {
    Facts::new(peer, port)
}

/// The set that the security tests of mesh.md C1 use.
fn c1() -> CompiledPolicy {
    compiled(
        &(policy(
            "ALLOW",
            "    - from: [ { source: { principals: [td/client-a] } } ]\n      to: [ { operation: { methods: [GET], paths: [\"/public*\"] } } ]",
        ) + &policy(
            "DENY",
            "    - to: [ { operation: { paths: [\"/admin*\"] } } ]",
        )),
        HTTP,
    )
}

#[test]
fn deny_comes_before_allow_and_the_default_is_deny() {
    let (a, b, c1) = (id("spiffe://td/client-a"), id("spiffe://td/client-b"), c1());
    let allowed = decide(&c1, &http(Some(&a), "GET", "/public/x"));
    assert_eq!(
        (
            allowed.effect,
            allowed.policy.map(|p| &**p),
            allowed.rule.map(|r| &**r)
        ),
        (Effect::Allow, Some("allow"), Some("1"))
    );
    let denied = decide(&c1, &http(Some(&a), "GET", "/admin"));
    assert_eq!(
        (denied.reason, denied.policy.map(|p| &**p)),
        (Reason::DenyRule, Some("deny"))
    );
    for facts in [
        http(Some(&b), "GET", "/public/x"),
        http(Some(&a), "POST", "/public/x"),
        http(Some(&a), "GET", "/other"),
        http(None, "GET", "/public/x"),
    ] {
        assert_eq!(decide(&c1, &facts).reason, Reason::NoRule);
    }
}

#[test]
fn po_17_before_a_policy_and_with_an_empty_one_everything_is_denied() {
    let a = id("spiffe://td/client-a");
    assert_eq!(
        decide(&CompiledPolicy::not_ready(), &http(Some(&a), "GET", "/")).reason,
        Reason::NotReady
    );
    assert_eq!(
        decide(&compiled("", HTTP), &http(Some(&a), "GET", "/")).reason,
        Reason::NoRule
    );
}

#[test]
fn mesh_c1_53_http_fields_on_tcp_are_reported_and_err_to_the_strict_side() {
    let a = id("spiffe://td/a");
    let both = "    - from: [ { source: { principals: [td/a] } } ]\n      to: [ { operation: { methods: [GET] } } ]";
    let allow = compiled(&policy("ALLOW", both), TCP);
    assert_eq!(allow.unenforceable().len(), 1);
    assert!(!decide(&allow, &tcp(Some(&a), 1)).is_allowed());
    let anyone = policy(
        "ALLOW",
        "    - from: [ { source: { principals: [\"*\"] } } ]",
    );
    let deny = compiled(&(anyone + &policy("DENY", both)), TCP);
    assert!(!decide(&deny, &tcp(Some(&a), 1)).is_allowed());
    assert!(decide(&deny, &tcp(Some(&id("spiffe://td/b")), 1)).is_allowed());
    assert!(
        compiled(&policy("ALLOW", both), HTTP)
            .unenforceable()
            .is_empty()
    );
}

#[test]
fn mesh_c1_54_values_are_literal() {
    let set = compiled(
        &policy(
            "ALLOW",
            "    - from: [ { source: { principals: [\"a.b/ns/x/sa/y\"] } } ]",
        ),
        HTTP,
    );
    assert!(!decide(&set, &http(Some(&id("spiffe://axb/ns/x/sa/y")), "GET", "/")).is_allowed());
    assert!(decide(&set, &http(Some(&id("spiffe://a.b/ns/x/sa/y")), "GET", "/")).is_allowed());
}

#[test]
fn mesh_c1_55_a_prefix_ends_at_a_segment_and_presence_needs_an_identity() {
    let below = compiled(
        &policy(
            "ALLOW",
            "    - from: [ { source: { principals: [\"spiffe://td/ns/prod/*\"] } } ]",
        ),
        HTTP,
    );
    let may = |policy: &CompiledPolicy, peer: &str| {
        decide(policy, &http(Some(&id(peer)), "GET", "/")).is_allowed()
    };
    assert!(may(&below, "spiffe://td/ns/prod/x"));
    for other in [
        "spiffe://td/ns/prod-evil/x",
        "spiffe://td/ns/prod",
        "spiffe://td.evil/ns/prod/x",
    ] {
        assert!(!may(&below, other), "{other}");
    }
    let anyone = compiled(
        &policy(
            "ALLOW",
            "    - from: [ { source: { principals: [\"*\"] } } ]",
        ),
        HTTP,
    );
    assert!(may(&anyone, "spiffe://other/x"));
    assert!(!decide(&anyone, &http(None, "GET", "/")).is_allowed());
}

#[test]
fn mesh_c1_56_no_identity_counts_as_not_for_a_deny_and_never_for_an_allow() {
    let rule = "    - from: [ { source: { notPrincipals: [td/a] } } ]";
    let anything = policy("ALLOW", "    - to: [ { operation: { methods: [\"*\"] } } ]");
    let deny = compiled(&(anything + &policy("DENY", rule)), HTTP);
    assert_eq!(
        decide(&deny, &http(None, "GET", "/")).reason,
        Reason::DenyRule
    );
    assert!(decide(&deny, &http(Some(&id("spiffe://td/a")), "GET", "/")).is_allowed());
    assert!(
        !decide(
            &compiled(&policy("ALLOW", rule), HTTP),
            &http(None, "GET", "/")
        )
        .is_allowed()
    );
}

#[test]
fn where_it_makes_the_policy_stricter_a_slash_at_the_end_makes_no_difference() {
    let a = id("spiffe://td/a");
    let anything = policy(
        "ALLOW",
        "    - from: [ { source: { principals: [\"*\"] } } ]",
    );
    let deny = compiled(
        &(anything
            + &policy(
                "DENY",
                "    - to: [ { operation: { paths: [/admin, /keys/, \"/x/{*}\"] } } ]",
            )),
        HTTP,
    );
    for path in ["/admin", "/admin/", "/keys", "/keys/", "/x/y", "/x/y/"] {
        assert!(
            !decide(&deny, &http(Some(&a), "GET", path)).is_allowed(),
            "{path}"
        );
    }
    assert!(decide(&deny, &http(Some(&a), "GET", "/administrator")).is_allowed());
    let allow = compiled(
        &policy(
            "ALLOW",
            "    - to: [ { operation: { paths: [/ok, \"/t/*\"], notPaths: [/t/admin] } } ]",
        ),
        HTTP,
    );
    assert!(decide(&allow, &http(Some(&a), "GET", "/ok")).is_allowed());
    for path in ["/ok/", "/t/admin", "/t/admin/", "/t"] {
        assert!(
            !decide(&allow, &http(Some(&a), "GET", path)).is_allowed(),
            "{path}"
        );
    }
}

#[test]
fn fields_are_and_values_are_or_and_nots_exclude() {
    let a = id("spiffe://td/a");
    let set = compiled(
        &policy(
            "ALLOW",
            "    - to: [ { operation: { methods: [GET, HEAD], notPaths: [\"*/secret\"], ports: [8080], hosts: [\"*.test\"], notHosts: [x.test] } } ]\n    - from: [ { source: { trustDomains: [td], notTrustDomains: [other] } } ]\n      to: [ { operation: { methods: [PUT], notPorts: [9] } } ]",
        ),
        HTTP,
    );
    for (method, path, allowed) in [
        ("GET", "/a", true),
        ("HEAD", "/a", true),
        ("POST", "/a", false),
        ("GET", "/a/secret", false),
        ("get", "/a", false),
        ("PUT", "/a", true),
    ] {
        assert_eq!(
            decide(&set, &http(Some(&a), method, path)).is_allowed(),
            allowed,
            "{method} {path}"
        );
    }
    let mut facts = http(Some(&a), "GET", "/a");
    facts.port = 9;
    assert!(!decide(&set, &facts).is_allowed());
    for (host, allowed) in [
        ("a.test", true),
        ("x.test", false),
        ("test", false),
        ("atest", false),
    ] {
        let path = CanonicalPath::parse("/").unwrap();
        let facts = Facts::new(Some(&a), 8080).with(HttpFacts::new("GET", host, path));
        assert_eq!(decide(&set, &facts).is_allowed(), allowed, "{host}");
    }
}

#[test]
fn templates_match_whole_segments() {
    let a = id("spiffe://td/a");
    let set = compiled(
        &policy(
            "ALLOW",
            "    - to: [ { operation: { paths: [\"/users/{*}/keys\", \"/files/{**}\"] } } ]",
        ),
        HTTP,
    );
    for (path, allowed) in [
        ("/users/1/keys", true),
        ("/users/1/2/keys", false),
        ("/users/1", false),
        ("/users/1/keys/", false),
        ("/files/a/b", true),
        ("/files", false),
        ("/filesx/a", false),
    ] {
        assert_eq!(
            decide(&set, &http(Some(&a), "GET", path)).is_allowed(),
            allowed,
            "{path}"
        );
    }
}

#[test]
fn a_denial_names_the_nearest_rule_and_what_failed() {
    let a = id("spiffe://td/client-a");
    let c1 = c1();
    let told = explain(&c1, &http(Some(&a), "GET", "/other"));
    assert_eq!(
        told.sentence(),
        "no rule allows it; nearest is policy allow rule 1: paths: /other is not in [/public*]"
    );
    assert_eq!(told.tried.len(), 2);
    assert_eq!(
        explain(&c1, &http(Some(&a), "GET", "/admin/x")).sentence(),
        "denied by policy deny rule 1"
    );
    assert_eq!(
        explain(&c1, &http(Some(&a), "GET", "/public")).sentence(),
        "allowed by policy allow rule 1"
    );
    let none = explain(&c1, &http(None, "PUT", "/other"));
    assert_eq!(none.nearest().unwrap().failed.len(), 3);
}

/// The two forms in which nearly every policy of these tests stands, with a namespace.
fn in_namespace(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {spec}\n"
    )
}

#[derive(Debug)]
struct Sent(&'static [(&'static str, &'static str)]);

impl Headers for Sent {
    fn each(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.0
            .iter()
            .filter(|(own, _)| *own == name)
            .for_each(|(_, value)| each(value.as_bytes()));
    }
}

#[test]
fn mesh_c1_15_of_a_doubled_header_any_value_denies_and_only_all_of_them_allow() {
    let anything = in_namespace("all", "{ rules: [ {} ] }");
    let role = |action: &str, key: &str| {
        in_namespace(
            "role",
            &format!(
                "{{ action: {action}, rules: [ {{ when: [ {{ key: \"request.headers[X-Role]\", {key}: [admin, \"root*\"] }} ] }} ] }}"
            ),
        )
    };
    let may = |yaml: &str, headers: &'static [(&'static str, &'static str)]| {
        let headers = Sent(headers);
        let mut facts = http(None, "GET", "/");
        facts.http.as_mut().unwrap().headers = Some(&headers);
        decide(&compiled(yaml, HTTP), &facts).is_allowed()
    };
    let deny = anything.clone() + &role("DENY", "values");
    let allow = role("ALLOW", "values");
    let only_others = anything + &role("DENY", "notValues");
    let twice: &[_] = &[("x-role", "user"), ("x-role", "admin")];
    for (headers, denied, allowed, all_known) in [
        (&[][..], false, false, false),
        (&[("x-role", "user")][..], false, false, false),
        (&[("x-role", "admin")][..], true, true, true),
        (&[("x-role", "rooted")][..], true, true, true),
        (twice, true, false, false),
        (&[("x-role", "user, admin")][..], true, false, false),
        (&[("x-role", "admin,root")][..], true, true, true),
        (&[("x-role", "admin,")][..], true, false, false),
        (&[("x_role", "admin")][..], false, false, false),
    ] {
        assert_eq!(!may(&deny, headers), denied, "DENY {headers:?}");
        assert_eq!(may(&allow, headers), allowed, "ALLOW {headers:?}");
        assert_eq!(
            may(&only_others, headers),
            all_known,
            "DENY not {headers:?}"
        );
    }
    let mut nobody_kept_them = http(None, "GET", "/");
    assert!(!decide(&compiled(&allow, HTTP), &nobody_kept_them).is_allowed());
    nobody_kept_them.http = None;
    assert!(!decide(&compiled(&allow, TCP), &nobody_kept_them).is_allowed());
}

#[test]
fn mesh_c1_62_a_mapped_address_is_the_ipv4_address() {
    let blocks = |blocks: &str| {
        compiled(
            &in_namespace(
                "near",
                &format!("{{ rules: [ {{ from: [ {{ source: {{ ipBlocks: {blocks} }} }} ] }} ] }}"),
            ),
            HTTP,
        )
    };
    let near = blocks("[10.1.0.0/16, \"fd00::/8\", 192.0.2.7, \"::ffff:198.51.100.0/120\"]");
    for (address, allowed) in [
        ("10.1.255.255", true),
        ("10.2.0.0", false),
        ("::ffff:10.1.2.3", true),
        ("fd12::1", true),
        ("fe00::1", false),
        ("192.0.2.7", true),
        ("192.0.2.8", false),
        ("198.51.100.9", true),
    ] {
        let mut facts = http(None, "GET", "/");
        facts.peer_address = Some(address.parse().unwrap());
        assert_eq!(decide(&near, &facts).is_allowed(), allowed, "{address}");
    }
    assert!(!decide(&near, &http(None, "GET", "/")).is_allowed());
    let mut far = http(None, "GET", "/");
    far.peer_address = Some("203.0.113.1".parse().unwrap());
    assert!(decide(&blocks("[0.0.0.0/0]"), &far).is_allowed());
    assert!(!decide(&blocks("[\"::/0\"]"), &far).is_allowed());
}

#[test]
fn mesh_c1_13_a_port_in_a_host_matches_that_port_and_none_written_counts_only_where_it_is_stricter()
{
    let with = |action: &str, hosts: &str| {
        let rule = format!("    - to: [ {{ operation: {{ hosts: {hosts} }} }} ]");
        let all = if action == "DENY" {
            in_namespace("all", "{ rules: [ {} ] }")
        } else {
            String::new()
        };
        compiled(&(all + &policy(action, &rule)), HTTP)
    };
    let asks = |policy: &CompiledPolicy, host: &str| {
        let host = crate::CanonicalHost::parse(host).unwrap();
        let mut http = HttpFacts::new("GET", host.name(), CanonicalPath::parse("/").unwrap());
        http.host_port = host.port();
        decide(policy, &Facts::new(None, 8080).with(http)).is_allowed()
    };
    let any_port = with("ALLOW", "[Example.com, \"other.test:*\"]");
    for host in [
        "EXAMPLE.com",
        "example.com.",
        "example.com:80",
        "example.com:8080",
        "other.test:9",
    ] {
        assert!(asks(&any_port, host), "{host}");
    }
    let one_port = with("ALLOW", "[\"example.com:8080\"]");
    assert!(asks(&one_port, "example.com:8080"));
    assert!(!asks(&one_port, "example.com:80") && !asks(&one_port, "example.com"));
    let deny = with("DENY", "[\"example.com:8080\"]");
    assert!(!asks(&deny, "example.com:8080") && !asks(&deny, "example.com"));
    assert!(asks(&deny, "example.com:80"));
}

#[test]
fn a_shadow_policy_tells_what_it_would_change_and_changes_nothing() {
    let a = id("spiffe://td/a");
    let shadow = |name: &str, action: &str, path: &str| {
        in_namespace(
            name,
            &format!(
                "{{ mode: Shadow, action: {action}, rules: [ {{ to: [ {{ operation: {{ paths: [\"{path}\"] }} }} ] }} ] }}"
            ),
        )
    };
    let set = compiled(
        &(in_namespace(
            "real",
            "{ rules: [ { to: [ { operation: { paths: [\"/a*\"] } } ] } ] }",
        ) + &in_namespace(
            "never",
            "{ action: DENY, rules: [ { to: [ { operation: { paths: [\"/ab\"] } } ] } ] }",
        ) + &shadow("would-deny", "DENY", "*b")
            + &shadow("would-allow", "ALLOW", "/c*")),
        HTTP,
    );
    for (path, effect, other) in [
        ("/a", Effect::Allow, None),
        (
            "/a/b",
            Effect::Allow,
            Some((Effect::Deny, "shop/would-deny")),
        ),
        ("/ab", Effect::Deny, None),
        (
            "/c",
            Effect::Deny,
            Some((Effect::Allow, "shop/would-allow")),
        ),
        ("/c/b", Effect::Deny, None),
        ("/d", Effect::Deny, None),
    ] {
        let facts = http(Some(&a), "GET", path);
        let verdict = decide(&set, &facts);
        assert_eq!(verdict.effect, effect, "{path}");
        assert_eq!(
            verdict.shadow.map(|s| (s.effect, &**s.by.policy)),
            other,
            "{path}"
        );
        assert_eq!(explain(&set, &facts).verdict, verdict);
    }
    assert_eq!(set.len(), 2, "only what decides is counted");
}

#[test]
fn istio_s_dry_run_annotation_is_shadow_mode() {
    let text = |dry_run: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: p, annotations: {{ istio.io/dry-run: {dry_run} }} }}\nspec: {{ rules: [ {{}} ] }}\n"
        )
    };
    let may = |dry_run: &str| {
        decide(&compiled(&text(dry_run), HTTP), &http(None, "GET", "/")).is_allowed()
    };
    assert!(may("\"false\"") && !may("\"true\""));
    assert!(PolicySet::from_yaml(&text("\"yes\"")).is_err());
}

#[test]
fn an_audit_rule_records_and_changes_nothing() {
    let audit = in_namespace(
        "watch",
        "{ action: AUDIT, rules: [ { from: [ { source: { notPrincipals: [td/a] } } ] } ] }",
    );
    let set = compiled(&(audit + &in_namespace("all", "{ rules: [ {} ] }")), HTTP);
    let (a, b) = (id("spiffe://td/a"), id("spiffe://td/b"));
    for (peer, recorded) in [(Some(&a), false), (Some(&b), true), (None, true)] {
        let verdict = decide(&set, &http(peer, "GET", "/"));
        assert!(verdict.is_allowed());
        assert_eq!(verdict.audit.is_some(), recorded, "{peer:?}");
    }
}

#[test]
fn mesh_c1_57_a_policy_speaks_of_the_workloads_of_its_namespace_that_it_selects() {
    let yaml = in_namespace(
        "mine",
        "{ selector: { matchLabels: { app: pay } }, rules: [ { to: [ { operation: { paths: [/mine] } } ] } ] }",
    ) + &in_namespace(
        "service",
        "{ targetRefs: [ { kind: Service, group: \"\", name: pay } ], rules: [ { to: [ { operation: { paths: [/service] } } ] } ] }",
    ) + &in_namespace(
        "gateway",
        "{ targetRefs: [ { kind: Gateway, group: gateway.networking.k8s.io, name: g } ], rules: [ { to: [ { operation: { paths: [/gateway] } } ] } ] }",
    ) + &in_namespace(
        "elsewhere",
        "{ rules: [ { to: [ { operation: { paths: [/elsewhere] } } ] } ] }",
    )
    .replace("namespace: shop", "namespace: other")
        + &in_namespace(
            "mesh",
            "{ rules: [ { to: [ { operation: { paths: [/mesh] } } ] } ] }",
        )
        .replace("namespace: shop", "namespace: root")
        + &in_namespace(
            "deny",
            "{ action: DENY, selector: { matchLabels: { app: pay, version: v2 } }, rules: [ { to: [ { operation: { methods: [PUT] } } ] } ] }",
        );
    let workload = |version: &str| crate::Workload {
        namespace: "shop".to_owned(),
        root_namespace: Some("root".to_owned()),
        labels: vec![
            ("app".to_owned(), "pay".to_owned()),
            ("version".to_owned(), version.to_owned()),
        ],
        services: vec!["pay".to_owned()],
    };
    let set = PolicySet::from_yaml(&yaml).unwrap();
    let (one, two) = (workload("v1"), workload("v2"));
    let door = |workload| {
        CompiledPolicy::new(
            &set,
            Door {
                protocol: Protocol::Http,
                workload,
            },
        )
    };
    let may = |policy: &CompiledPolicy, method: &str, path: &str| {
        decide(policy, &http(None, method, path)).is_allowed()
    };
    for (path, allowed) in [
        ("/mine", true),
        ("/service", true),
        ("/gateway", false),
        ("/elsewhere", false),
        ("/mesh", true),
    ] {
        assert_eq!(may(&door(Some(&one)), "GET", path), allowed, "{path}");
    }
    assert!(may(&door(Some(&one)), "PUT", "/mine") && !may(&door(Some(&two)), "PUT", "/mine"));
    // Who does not know whether a policy is meant takes what is stricter, and says so.
    let unknown = door(None);
    assert!(
        !may(&unknown, "GET", "/mine")
            && !may(&unknown, "PUT", "/elsewhere")
            && may(&unknown, "GET", "/elsewhere")
    );
    assert_eq!(unknown.unenforceable().len(), 4);
    assert!(
        unknown.unenforceable()[0]
            .to_string()
            .contains("was not told which workload it serves")
    );
}

#[test]
fn namespaces_and_service_accounts_are_read_from_the_caller_s_id() {
    let set = compiled(
        &in_namespace(
            "p",
            "{ rules: [ { from: [ { source: { namespaces: [\"pro*\"], notNamespaces: [prone] } }, { source: { serviceAccounts: [curl, other/x] } } ] } ] }",
        ),
        HTTP,
    );
    for (peer, allowed) in [
        ("spiffe://td/ns/prod/sa/x", true),
        ("spiffe://any/ns/prod/sa/x", true),
        ("spiffe://td/ns/prone/sa/x", false),
        ("spiffe://td/ns/prod/sa/x/y", false),
        ("spiffe://td/ns/prod", false),
        ("spiffe://td/x/ns/prod/sa/x", false),
        ("spiffe://td/ns/shop/sa/curl", true),
        ("spiffe://td/ns/other/sa/curl", false),
        ("spiffe://td/ns/other/sa/x", true),
        ("spiffe://td/shop", false),
    ] {
        assert_eq!(
            decide(&set, &http(Some(&id(peer)), "GET", "/")).is_allowed(),
            allowed,
            "{peer}"
        );
    }
}

#[test]
fn who_names_his_callers_is_found_by_the_caller_and_in_the_order_of_the_file() {
    let yaml: String = (0..50)
        .map(|i| in_namespace(&format!("p{i}"), &format!("{{ rules: [ {{ from: [ {{ source: {{ principals: [td/c{i}, td/everywhere] }} }} ] }} ] }}")))
        .collect::<String>()
        + &in_namespace("last", "{ rules: [ { from: [ { source: { trustDomains: [td] } } ] } ] }");
    let set = compiled(&yaml, HTTP);
    let by = |peer: &str| {
        decide(&set, &http(Some(&id(peer)), "GET", "/"))
            .policy
            .map(|p| p.to_string())
    };
    assert_eq!(by("spiffe://td/c7").as_deref(), Some("shop/p7"));
    assert_eq!(by("spiffe://td/everywhere").as_deref(), Some("shop/p0"));
    assert_eq!(by("spiffe://td/new").as_deref(), Some("shop/last"));
    assert_eq!(by("spiffe://other/c7"), None);
    assert_eq!(
        set.enforced()
            .allow
            .candidates(Some(&id("spiffe://td/c7")))
            .count(),
        2
    );
}

// --- po_14: the evaluator against a naive reference, on random policies and requests.

const PEERS: [&str; 4] = [
    "spiffe://td/a",
    "spiffe://td/ns/x/a",
    "spiffe://td/ns/x/b",
    "spiffe://other/a",
];
const PRINCIPALS: [&str; 5] = ["td/a", "spiffe://td/ns/x/*", "td/*", "*", "other/a"];
const PATHS: [&str; 6] = ["/", "/a", "/a/", "/a/b", "/b/a", "/ab"];
const PATTERNS: [&str; 6] = ["/a", "/a*", "*/a", "*", "/a/{*}", "/b/{**}"];
const METHODS: [&str; 3] = ["GET", "POST", "PUT"];

#[derive(Debug, Clone)]
struct NaiveRule {
    deny: bool,
    principals: Vec<&'static str>,
    not_principals: Vec<&'static str>,
    methods: Vec<&'static str>,
    paths: Vec<&'static str>,
    not_paths: Vec<&'static str>,
}

fn some_of(values: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(values), 0..3)
}

fn rule() -> impl Strategy<Value = NaiveRule> {
    (
        any::<bool>(),
        some_of(&PRINCIPALS),
        some_of(&PRINCIPALS),
        some_of(&METHODS),
        some_of(&PATTERNS),
        some_of(&PATTERNS),
    )
        .prop_map(
            |(deny, principals, not_principals, methods, paths, not_paths)| NaiveRule {
                deny,
                principals,
                not_principals,
                methods,
                paths,
                not_paths,
            },
        )
}

fn yaml(rules: &[NaiveRule]) -> String {
    let list = |name: &str, values: &[&str]| {
        if values.is_empty() {
            String::new()
        } else {
            format!("{name}: {values:?}, ")
        }
    };
    rules
        .iter()
        .enumerate()
        .map(|(i, r)| {
            let source =
                list("principals", &r.principals) + &list("notPrincipals", &r.not_principals);
            let operation = list("methods", &r.methods)
                + &list("paths", &r.paths)
                + &list("notPaths", &r.not_paths);
            let from = if source.is_empty() {
                String::new()
            } else {
                format!("      from: [ {{ source: {{ {source} }} }} ]\n")
            };
            let to = if operation.is_empty() {
                String::new()
            } else {
                format!("      to: [ {{ operation: {{ {operation} }} }} ]\n")
            };
            let any = if from.is_empty() && to.is_empty() {
                "      to: [ { operation: { methods: [\"*\"] } } ]\n"
            } else {
                ""
            };
            let action = if r.deny { "DENY" } else { "ALLOW" };
            policy(action, &format!("    - name: r\n{from}{to}{any}")).replace(
                &format!("name: {} }}", action.to_lowercase()),
                &format!("name: p{i} }}"),
            )
        })
        .collect()
}

fn naive_path(pattern: &str, path: &str) -> bool {
    match pattern {
        "*" => true,
        "/a/{*}" => path == "/a/b",
        "/b/{**}" => path.starts_with("/b/"),
        _ if pattern.starts_with('*') => path.ends_with(&pattern[1..]),
        _ if pattern.ends_with('*') => path.starts_with(&pattern[..pattern.len() - 1]),
        _ => pattern == path,
    }
}

fn naive_path_wide(pattern: &str, path: &str) -> bool {
    let other = if path == "/" {
        "/".to_owned()
    } else if let Some(p) = path.strip_suffix('/') {
        p.to_owned()
    } else {
        format!("{path}/")
    };
    naive_path(pattern, path) || (other.len() < path.len() && naive_path(pattern, &other))
}

fn naive_principal(pattern: &str, peer: &str) -> bool {
    let full = if pattern.starts_with("spiffe://") || pattern == "*" {
        pattern.to_owned()
    } else {
        format!("spiffe://{pattern}")
    };
    full == "*"
        || full == peer
        || (full.ends_with('*') && peer.starts_with(&full[..full.len() - 1]))
}

fn naive(rules: &[NaiveRule], peer: Option<&str>, method: &str, path: &str) -> bool {
    let matches = |r: &NaiveRule| {
        let source = match peer {
            None if r.principals.is_empty() && r.not_principals.is_empty() => true,
            None => r.deny && r.principals.is_empty(),
            Some(peer) => {
                (r.principals.is_empty() || r.principals.iter().any(|p| naive_principal(p, peer)))
                    && !r.not_principals.iter().any(|p| naive_principal(p, peer))
            }
        };
        let hit = |pattern: &&str, wide: bool| {
            if wide {
                naive_path_wide(pattern, path)
            } else {
                naive_path(pattern, path)
            }
        };
        source
            && (r.methods.is_empty() || r.methods.contains(&method))
            && (r.paths.is_empty() || r.paths.iter().any(|p| hit(p, r.deny)))
            && !r.not_paths.iter().any(|p| hit(p, !r.deny))
    };
    !rules.iter().any(|r| r.deny && matches(r)) && rules.iter().any(|r| !r.deny && matches(r))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn po_14_the_evaluator_agrees_with_a_naive_reference(
        rules in prop::collection::vec(rule(), 0..5), peer in prop::option::of(prop::sample::select(&PEERS[..])),
        method in prop::sample::select(&METHODS[..]), path in prop::sample::select(&PATHS[..]),
    ) {
        let set = compiled(&yaml(&rules), HTTP);
        let peer_id = peer.map(id);
        let facts = http(peer_id.as_ref(), method, path);
        let verdict = decide(&set, &facts);
        prop_assert_eq!(verdict.is_allowed(), naive(&rules, peer, method, path), "{:?} {} {}", peer, method, path);
        prop_assert_eq!(explain(&set, &facts).verdict, verdict);
    }

    #[test]
    fn po_14_one_more_deny_and_one_allow_less_never_allow_more(
        rules in prop::collection::vec(rule(), 1..5), extra in rule(), drop in any::<prop::sample::Index>(),
        peer in prop::option::of(prop::sample::select(&PEERS[..])),
        method in prop::sample::select(&METHODS[..]), path in prop::sample::select(&PATHS[..]),
    ) {
        let peer_id = peer.map(id);
        let facts = http(peer_id.as_ref(), method, path);
        let before = decide(&compiled(&yaml(&rules), HTTP), &facts).is_allowed();
        let mut more = rules.clone();
        more.push(NaiveRule { deny: true, ..extra });
        prop_assert!(before || !decide(&compiled(&yaml(&more), HTTP), &facts).is_allowed());
        let mut less = rules;
        let gone = drop.index(less.len());
        if !less[gone].deny {
            less.remove(gone);
            prop_assert!(before || !decide(&compiled(&yaml(&less), HTTP), &facts).is_allowed());
        }
    }
}
