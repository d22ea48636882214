//! Istio's documented examples, in its own grammar: accepted as they are, and meaning what its pages say or less.
//! Trusts the public interface alone.
//! Never changes an example so that it fits.

use mesh_identity::SpiffeId;
use mesh_policy::{
    CanonicalPath, CompiledPolicy, Door, Facts, Headers, HttpFacts, PolicySet, Protocol, Token,
    Workload, decide,
};

const REFERENCE: &str = include_str!("istio/reference.yaml");
const BASELINE: &str = include_str!("istio/baseline.yaml");
const CONCEPTS: &str = include_str!("istio/concepts.yaml");
const TASKS: &str = include_str!("istio/tasks.yaml");
const CONDITIONS: &str = include_str!("istio/conditions.yaml");

fn set(text: &str) -> PolicySet {
    PolicySet::from_yaml(text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The set as the workload `app` of a namespace has it.
fn at(text: &str, namespace: &str, app: &str, protocol: Protocol) -> CompiledPolicy {
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let workload = Workload {
        namespace: namespace.to_owned(),
        root_namespace: Some("istio-system".to_owned()),
        labels: vec![label("app", app), label("version", "v1")],
        services: vec![app.to_owned()],
    };
    let door = Door {
        protocol,
        workload: Some(&workload),
    };
    CompiledPolicy::new(&set(text), door)
}

fn id(text: &str) -> SpiffeId {
    format!("spiffe://{text}").parse().expect("a SPIFFE ID")
}

fn request<'a>(
    peer: Option<&'a SpiffeId>,
    method: &'a str,
    path: &'a str,
    token: Option<&'a Token>,
) -> Facts<'a> {
    let path = CanonicalPath::parse(path).expect("a canonical path");
    let mut http = HttpFacts::new(method, "httpbin.foo", path);
    http.token = token;
    Facts::new(peer, 80).with(http)
}

fn token(issuer: &str, claims: &[(&[&str], &[&str])]) -> Token {
    let own = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
    Token {
        principal: format!("{issuer}/subject"),
        claims: claims
            .iter()
            .map(|(path, values)| (own(path), own(values)))
            .collect(),
        ..Token::default()
    }
}

#[derive(Debug)]
struct Header(&'static str, &'static str);

impl Headers for Header {
    fn each(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        if name == self.0 {
            each(self.1.as_bytes());
        }
    }
}

#[test]
fn the_reference_s_allow_and_deny_mean_what_its_page_says() {
    let policy = at(REFERENCE, "foo", "httpbin", Protocol::Http);
    let google = token("g", &[(&["iss"], &["https://accounts.google.com"])]);
    let other = token("o", &[(&["iss"], &["https://other"])]);
    let (curl, test, dev) = (
        id("cluster.local/ns/default/sa/curl"),
        id("cluster.local/ns/test/sa/any"),
        id("cluster.local/ns/dev/sa/any"),
    );
    for (peer, method, path, token, allowed) in [
        (&curl, "GET", "/info", Some(&google), true),
        (&curl, "GET", "/info/x", Some(&google), true),
        (&test, "POST", "/data", Some(&google), true),
        (&curl, "POST", "/info", Some(&google), false),
        (&curl, "GET", "/info", Some(&other), false),
        (&curl, "GET", "/info", None, false),
        (&dev, "GET", "/info", Some(&google), false),
        (&dev, "POST", "/data", Some(&google), false),
    ] {
        let verdict = decide(&policy, &request(Some(peer), method, path, token));
        assert_eq!(verdict.is_allowed(), allowed, "{peer} {method} {path}");
    }
    let watched = decide(
        &policy,
        &request(Some(&curl), "GET", "/user/profile/x", None),
    );
    assert_eq!(
        watched.audit.map(|hit| &**hit.policy),
        Some("foo/anonymous-audit")
    );
}

#[test]
fn the_policies_of_one_word_mean_nothing_everything_and_nothing_at_all() {
    for (namespace, allowed) in [("foo", false), ("bar", false), ("baz", true)] {
        let policy = at(BASELINE, namespace, "any", Protocol::Http);
        let facts = request(None, "GET", "/", None);
        assert_eq!(decide(&policy, &facts).is_allowed(), allowed, "{namespace}");
    }
}

#[test]
fn the_concepts_examples_exclude_and_require_as_their_page_says() {
    let policy = at(CONCEPTS, "default", "products", Protocol::Http);
    let (token, curl) = (token("i", &[]), id("cluster.local/ns/default/sa/curl"));
    for (path, with_token, without) in [
        ("/test/x", true, true),
        ("/a/info", true, true),
        ("/healthz", false, false),
        ("/admin", true, false),
        ("/other", true, false),
    ] {
        let may = |token| decide(&policy, &request(Some(&curl), "GET", path, token)).is_allowed();
        assert_eq!(
            (may(Some(&token)), may(None)),
            (with_token, without),
            "{path}"
        );
    }
    let may = |peer: &SpiffeId, path: &str, version| {
        let header = Header("version", version);
        let mut facts = request(Some(peer), "GET", path, None);
        facts.http.as_mut().unwrap().headers = Some(&header);
        decide(&policy, &facts).is_allowed()
    };
    assert!(may(&curl, "/products/7/price", "v1"));
    assert!(may(&id("old-td/ns/x/sa/inventory"), "/files/a/b", "v2"));
    assert!(!may(&curl, "/products/7/price", "v3"));
    assert!(!may(&curl, "/products/7/8/price", "v1"));
}

#[test]
fn the_tasks_mean_what_their_pages_say() {
    let tcp = at(TASKS, "foo", "tcp-echo", Protocol::Tcp);
    // The DENY by host of the same namespace keeps its other half at a TCP door: everybody but this caller.
    let curl = id("old-td/ns/curl-allow/sa/curl");
    assert!(decide(&tcp, &Facts::new(Some(&curl), 9000)).is_allowed());
    assert!(!decide(&tcp, &Facts::new(Some(&curl), 9002)).is_allowed());
    assert!(!decide(&tcp, &Facts::new(None, 9000)).is_allowed());

    let gateway = at(
        &(BASELINE.replace("baz", "foo") + "---\n" + TASKS),
        "foo",
        "istio-ingressgateway",
        Protocol::Http,
    );
    let may = |address: &str, remote: &str| {
        let mut facts = request(None, "GET", "/", None);
        facts.peer_address = Some(address.parse().unwrap());
        facts.remote_address = Some(remote.parse().unwrap());
        decide(&gateway, &facts).is_allowed()
    };
    assert!(!may("1.2.3.4", "10.1.1.1") && !may("5.6.7.8", "10.1.1.1"));
    assert!(may("1.2.3.5", "10.1.1.1") && may("1.2.3.4", "10.9.1.1"));

    let httpbin = at(TASKS, "foo", "httpbin", Protocol::Http);
    let mut grouped = token(
        "testing@secure.istio.io",
        &[(&["groups"], &["group1", "group2"])],
    );
    grouped.principal = "testing@secure.istio.io/testing@secure.istio.io".to_owned();
    let allowed = decide(&httpbin, &request(None, "GET", "/headers", Some(&grouped)));
    assert!(allowed.is_allowed());
    assert_eq!(
        allowed.shadow.map(|s| &**s.by.policy),
        Some("foo/path-deny")
    );
    let mut at_example = request(None, "GET", "/headers", Some(&grouped));
    at_example.http.as_mut().unwrap().host = "www.example.com";
    assert!(!decide(&httpbin, &at_example).is_allowed());

    let productpage = at(TASKS, "foo", "productpage", Protocol::Http);
    let may =
        |peer: &str| decide(&productpage, &request(Some(&id(peer)), "GET", "/", None)).is_allowed();
    assert!(may("any/ns/default/sa/gateway") && may("any/ns/foo/sa/curl"));
    assert!(!may("any/ns/default/sa/curl"));
}

#[test]
fn every_documented_condition_is_read_and_each_of_them_is_needed() {
    let policy = at(CONDITIONS, "foo", "any", Protocol::Http);
    let peer = id("cluster.local/ns/default/sa/productpage");
    let agent = Header("user-agent", "Mozilla/5.0");
    let token = Token {
        principal: "issuer.example.com/subject-admin".to_owned(),
        audiences: vec!["other".to_owned(), "example.com".to_owned()],
        presenter: Some("123456789012.example.com".to_owned()),
        claims: vec![
            (vec!["iss".to_owned()], vec!["me@foo.com".to_owned()]),
            (
                vec!["nested1".to_owned(), "nested2".to_owned()],
                vec!["some-value".to_owned()],
            ),
        ],
    };
    let address = Some("10.2.9.9".parse().unwrap());
    let mut facts = request(Some(&peer), "GET", "/", Some(&token));
    facts.peer_address = address;
    facts.remote_address = address;
    facts.address = address;
    facts.sni = Some("www.example.com");
    facts.http.as_mut().unwrap().headers = Some(&agent);
    assert!(decide(&policy, &facts).is_allowed());
    let other = id("cluster.local/ns/other/sa/productpage");
    let far = Some("192.0.2.1".parse().unwrap());
    for (what, changed) in [
        (
            "peer",
            Facts {
                peer: Some(&other),
                ..facts
            },
        ),
        (
            "source.ip",
            Facts {
                peer_address: far,
                ..facts
            },
        ),
        (
            "remote.ip",
            Facts {
                remote_address: None,
                ..facts
            },
        ),
        (
            "destination.ip",
            Facts {
                address: far,
                ..facts
            },
        ),
        (
            "port",
            Facts {
                port: 8443,
                ..facts
            },
        ),
        ("sni", Facts { sni: None, ..facts }),
        (
            "token",
            facts.with(HttpFacts {
                token: None,
                ..facts.http.unwrap()
            }),
        ),
        (
            "headers",
            facts.with(HttpFacts {
                headers: None,
                ..facts.http.unwrap()
            }),
        ),
    ] {
        assert!(!decide(&policy, &changed).is_allowed(), "{what}");
    }
}
