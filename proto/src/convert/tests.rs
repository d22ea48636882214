//! What goes out comes back the same; what is not exactly right is refused, with its field and its reason.
//! Trusts the certificate factory of mesh-identity.
//! Never compares texts where a reason can be matched.

use std::{
    collections::BTreeSet,
    error::Error as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_identity::{
    Bundle, BundleSet, Entry, Selector, SpiffeId, TrustDomain,
    test_util::{Made, Spec, jwt::JwtSigner},
};
use proptest::prelude::*;
use prost::Message;

use super::{
    feed::{Assembly, FromAgent, PART_BYTES, Position, Update, Verdict},
    workload::{
        X509Context, X509IdentityView, bundles_from_wire, x509_bundles_response, x509_svid_response,
    },
    *,
};
use crate::{finial::feed::v1 as feed_wire, spiffe::workload as workload_wire, spire::api::types};

fn domain(name: &str) -> TrustDomain {
    name.parse().expect("a trust domain")
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect("a SPIFFE ID")
}

fn entry(n: usize) -> Entry {
    Entry {
        id: format!("entry-{n}").parse().expect("an entry ID"),
        spiffe_id: id(&format!("spiffe://dev.test/work/{n}")),
        parent_id: id("spiffe://dev.test/spire/agent/join_token/abc"),
        selectors: ["unix:uid:1000".parse().expect("a selector")].into(),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: BTreeSet::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision: n as u64,
        store_svid: false,
        hint: String::new(),
        created_at: UNIX_EPOCH + Duration::from_secs(7),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

/// A refusal of this field for a reason of this kind.
macro_rules! refused {
    ($result:expr, $field:expr, $reason:pat) => {{
        let error = $result.expect_err("it must be refused");
        assert_eq!(error.field(), $field, "{error}");
        assert!(matches!(error.reason(), $reason), "{error:?}");
    }};
}

fn names() -> impl Strategy<Value = String> {
    "[a-z0-9_-]{1,12}(\\.[a-z0-9_-]{1,8}){0,2}"
}

fn ids() -> impl Strategy<Value = SpiffeId> {
    (names(), "(/[A-Za-z0-9_-]{1,10}){0,4}").prop_map(|(d, p)| id(&format!("spiffe://{d}{p}")))
}

fn selectors() -> impl Strategy<Value = Selector> {
    ("[a-z0-9_]{1,8}", "[ -~]{1,20}")
        .prop_map(|(kind, value)| Selector::new(&kind, &value).expect("a selector"))
}

fn moments() -> impl Strategy<Value = SystemTime> {
    (1..=253_402_300_799u64).prop_map(|s| UNIX_EPOCH + Duration::from_secs(s))
}

fn ttls() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((1..=i32::MAX as u64).prop_map(Duration::from_secs))
}

prop_compose! {
    fn entries()(
        (id, spiffe_id, parent_id) in ("[A-Za-z0-9._-]{1,40}", ids(), ids()),
        selectors in proptest::collection::btree_set(selectors(), 0..4),
        (x509_svid_ttl, jwt_svid_ttl) in (ttls(), ttls()),
        federates_with in proptest::collection::btree_set(names(), 0..3),
        (admin, downstream, store_svid, disable_x509_svid_prefetch, jwt_svid_include_jti) in any::<(bool, bool, bool, bool, bool)>(),
        (expires_at, created_at) in (proptest::option::of(moments()), moments()),
        dns_names in proptest::collection::vec("[a-z]{1,10}\\.test", 0..3),
        revision in 0..=i64::MAX as u64,
        hint in ".{0,20}",
    ) -> Entry {
        Entry {
            id: id.parse().expect("an entry ID"),
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl,
            jwt_svid_ttl,
            federates_with: federates_with.iter().map(|d| domain(d)).collect(),
            admin,
            downstream,
            expires_at,
            dns_names: dns_names.iter().map(|n| n.parse().expect("a DNS name")).collect(),
            revision,
            store_svid,
            hint,
            created_at,
            disable_x509_svid_prefetch,
            jwt_svid_include_jti,
        }
    }
}

proptest! {
    #[test]
    fn a_spiffe_id_comes_back_the_same(id in ids()) {
        let wire = types::Spiffeid::from(&id);
        prop_assert_eq!(SpiffeId::try_from(&wire).expect("our own ID"), id);
    }

    #[test]
    fn whatever_two_parts_are_accepted_they_are_exactly_the_id(trust_domain in ".{0,20}", path in "(/|.){0,20}") {
        let wire = types::Spiffeid { trust_domain, path };
        if let Ok(id) = SpiffeId::try_from(&wire) {
            prop_assert_eq!(id.to_string(), format!("spiffe://{}{}", wire.trust_domain, wire.path));
        }
    }

    #[test]
    fn a_selector_comes_back_the_same(selector in selectors()) {
        prop_assert_eq!(Selector::try_from(&types::Selector::from(&selector)).expect("our own selector"), selector);
    }

    #[test]
    fn an_entry_comes_back_the_same_over_the_wire(entry in entries()) {
        let bytes = types::Entry::from(&entry).encode_to_vec();
        let wire = types::Entry::decode(bytes.as_slice()).expect("our own bytes");
        prop_assert_eq!(Entry::try_from(&wire).expect("our own entry"), entry);
    }

    #[test]
    fn any_bytes_are_an_answer_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = workload_wire::X509svidResponse::decode(bytes.as_slice()) {
            prop_assert!(X509Context::try_from(wire).is_err(), "no chance bytes hold a certificate");
        }
        if let Ok(wire) = feed_wire::FollowRequest::decode(bytes.as_slice())
            && let Ok(message) = FromAgent::try_from(wire) {
            let again = feed_wire::FollowRequest::from(message.clone());
            prop_assert_eq!(FromAgent::try_from(again).expect("our own message"), message);
        }
    }

    #[test]
    fn a_verdict_comes_back_the_same(revision in any::<u64>(), reason in ".{0,40}") {
        let verdict = if reason.is_empty() { Verdict::Applied } else { Verdict::Refused(reason) };
        let message = FromAgent::Ack { revision, verdict };
        let wire = feed_wire::FollowRequest::from(message.clone());
        prop_assert_eq!(FromAgent::try_from(wire).expect("our own message"), message);
    }
}

#[test]
fn an_id_is_refused_for_the_part_that_is_wrong() {
    let wire = |trust_domain: &str, path: &str| types::Spiffeid {
        trust_domain: trust_domain.into(),
        path: path.into(),
    };
    refused!(
        SpiffeId::try_from(&wire("", "/a")),
        "trust_domain",
        Reason::TrustDomain(_)
    );
    refused!(
        SpiffeId::try_from(&wire("Dev.test", "/a")),
        "trust_domain",
        Reason::TrustDomain(_)
    );
    refused!(
        SpiffeId::try_from(&wire("spiffe://dev.test", "/a")),
        "trust_domain",
        Reason::TrustDomain(_)
    );
    refused!(
        SpiffeId::try_from(&wire("dev.test", "a")),
        "path",
        Reason::SpiffeId(_)
    );
    refused!(
        SpiffeId::try_from(&wire("dev.test", "/a/../b")),
        "path",
        Reason::SpiffeId(_)
    );
    refused!(
        SpiffeId::try_from(&wire("dev.test", "/")),
        "path",
        Reason::SpiffeId(_)
    );
}

#[test]
fn an_entry_is_refused_for_the_field_that_is_wrong() {
    type Spoil = fn(&mut types::Entry);
    let refusal = |spoil: Spoil| {
        let mut wire = types::Entry::from(&entry(1));
        spoil(&mut wire);
        Entry::try_from(&wire)
    };
    refused!(refusal(|e| e.id.clear()), "id", Reason::Missing);
    refused!(refusal(|e| e.id = "a b".into()), "id", Reason::EntryId(_));
    refused!(
        refusal(|e| e.spiffe_id = None),
        "spiffe_id",
        Reason::Missing
    );
    refused!(
        refusal(|e| e.parent_id = None),
        "parent_id",
        Reason::Missing
    );
    refused!(
        refusal(|e| e.parent_id.as_mut().expect("set").path = "//".into()),
        "parent_id.path",
        Reason::SpiffeId(_)
    );
    refused!(
        refusal(|e| e.selectors.push(types::Selector::default())),
        "selectors[1]",
        Reason::Selector(_)
    );
    refused!(
        refusal(|e| e.x509_svid_ttl = -1),
        "x509_svid_ttl",
        Reason::Negative(-1)
    );
    refused!(
        refusal(|e| e.jwt_svid_ttl = -1),
        "jwt_svid_ttl",
        Reason::Negative(-1)
    );
    refused!(
        refusal(|e| e.federates_with = vec!["B".into()]),
        "federates_with[0]",
        Reason::TrustDomain(_)
    );
    refused!(
        refusal(|e| e.federates_with = vec!["spiffe://b/c".into()]),
        "federates_with[0]",
        Reason::HasPath(_)
    );
    refused!(
        refusal(|e| e.expires_at = -1),
        "expires_at",
        Reason::Negative(-1)
    );
    refused!(
        refusal(|e| e.created_at = -1),
        "created_at",
        Reason::Negative(-1)
    );
    refused!(
        refusal(|e| e.revision_number = -1),
        "revision_number",
        Reason::Negative(-1)
    );
    refused!(
        refusal(|e| e.dns_names = vec!["a".into(), "..".into()]),
        "dns_names[1]",
        Reason::DnsName(_)
    );
}

#[test]
fn a_federated_trust_domain_may_be_written_as_its_id() {
    let mut wire = types::Entry::from(&entry(1));
    wire.federates_with = vec!["spiffe://b.test".into(), "c.test".into()];
    let entry = Entry::try_from(&wire).expect("both spellings are SPIRE's");
    assert_eq!(
        entry.federates_with,
        BTreeSet::from([domain("b.test"), domain("c.test")])
    );
}

#[test]
fn a_refusal_says_the_field_and_its_source_says_why() {
    let mut wire = types::Entry::from(&entry(1));
    wire.selectors.push(types::Selector {
        r#type: "unix".into(),
        value: String::new(),
    });
    let error = Entry::try_from(&wire).expect_err("an empty value");
    assert_eq!(error.to_string(), "selectors[1] is not a selector");
    assert_eq!(
        error.source().expect("the parser's word").to_string(),
        "the value of a selector cannot be empty"
    );
}

#[test]
fn a_bundle_comes_back_the_same_with_marks_numbers_and_token_keys() {
    let (one, two) = (Made::root("dev.test"), Made::root("dev.test"));
    let bundle = Bundle::new(
        domain("dev.test"),
        [one.authority(), two.authority().with_tainted(true)],
    )
    .expect("two roots")
    .with_sequence(7)
    .with_refresh_hint(Some(Duration::from_secs(300)));
    let key = JwtSigner::new("k").authority();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
    let ends = JwtSigner::new("ends").authority();
    let bundle = bundle
        .with_jwt_authorities([key, ends.with_expiry(Some(end)).with_tainted(true)])
        .expect("two keys");
    let carried = CarriedBundle::from(bundle);
    let wire = types::Bundle::from(&carried);
    let keys = wire.jwt_authorities.iter();
    let keys: Vec<_> = keys.map(|k| (k.expires_at, k.tainted)).collect();
    assert_eq!(keys, [(0, false), (9, true)]);
    assert_eq!((wire.sequence_number, wire.refresh_hint), (7, 300));
    assert_eq!(
        CarriedBundle::try_from(wire).expect("our own bundle"),
        carried
    );
}

#[test]
fn a_bundle_is_refused_whole_for_one_bad_root() {
    let wire = types::Bundle::from(&Made::root("dev.test").bundle("dev.test"));
    let with = |spoil: &dyn Fn(&mut types::Bundle)| {
        let mut wire = wire.clone();
        spoil(&mut wire);
        CarriedBundle::try_from(wire)
    };
    let root = |asn1: Vec<u8>| types::X509Certificate {
        asn1,
        tainted: false,
    };
    refused!(
        with(&|b| b.trust_domain.clear()),
        "trust_domain",
        Reason::TrustDomain(_)
    );
    refused!(
        with(&|b| b.refresh_hint = -1),
        "refresh_hint",
        Reason::Negative(-1)
    );
    refused!(
        with(&|b| b.x509_authorities.push(root(vec![0x30]))),
        "x509_authorities[1].asn1",
        Reason::Bundle(_)
    );
    let two = wire.x509_authorities[0].asn1.repeat(2);
    refused!(
        with(&|b| b.x509_authorities[0] = root(two.clone())),
        "x509_authorities[0].asn1",
        Reason::Bundle(_)
    );
    let leaf = Made::root("dev.test")
        .leaf("spiffe://dev.test/a")
        .der
        .to_vec();
    refused!(
        with(&|b| b.x509_authorities.push(root(leaf.clone()))),
        "x509_authorities[1].asn1",
        Reason::Bundle(_)
    );
    let key = types::JwtKey::from(&JwtSigner::new("k").authority());
    let with_key = |spoil: &dyn Fn(&mut types::JwtKey)| {
        let mut key = key.clone();
        spoil(&mut key);
        with(&|b| b.jwt_authorities = vec![key.clone()])
    };
    with_key(&|_| {}).expect("a right key");
    refused!(
        with_key(&|k| k.key_id.clear()),
        "jwt_authorities[0].key_id",
        Reason::Bundle(_)
    );
    refused!(
        with_key(&|k| k.public_key.truncate(40)),
        "jwt_authorities[0].public_key",
        Reason::Bundle(_)
    );
    refused!(
        with_key(&|k| k.expires_at = -1),
        "jwt_authorities[0].expires_at",
        Reason::Negative(-1)
    );
    let other = types::JwtKey::from(&JwtSigner::new("k").authority());
    refused!(
        with(&|b| b.jwt_authorities = vec![key.clone(), other.clone()]),
        "jwt_authorities",
        Reason::Bundle(_)
    );
    let foreign = Made::root("b.test").der.to_vec();
    refused!(
        with(&|b| b.x509_authorities.push(root(foreign.clone()))),
        "x509_authorities",
        Reason::Bundle(_)
    );
}

#[test]
fn an_issued_svid_comes_back_the_same_and_must_say_what_its_certificate_says() {
    let svid = Made::root("dev.test").leaf("spiffe://dev.test/pay").svid();
    let issued = IssuedX509Svid {
        svid,
        hint: "internal".into(),
    };
    let wire = types::X509svid::from(&issued);
    assert_eq!(
        IssuedX509Svid::try_from(wire.clone()).expect("our own SVID"),
        issued
    );

    let other = types::X509svid {
        id: Some((&id("spiffe://dev.test/other")).into()),
        ..wire.clone()
    };
    refused!(
        IssuedX509Svid::try_from(other),
        "id",
        Reason::OtherId { .. }
    );
    let later = types::X509svid {
        expires_at: wire.expires_at + 1,
        ..wire.clone()
    };
    refused!(
        IssuedX509Svid::try_from(later),
        "expires_at",
        Reason::OtherExpiry { .. }
    );
    refused!(
        IssuedX509Svid::try_from(types::X509svid {
            id: None,
            ..wire.clone()
        }),
        "id",
        Reason::Missing
    );
    let empty = types::X509svid {
        cert_chain: Vec::new(),
        ..wire.clone()
    };
    refused!(
        IssuedX509Svid::try_from(empty),
        "cert_chain",
        Reason::Missing
    );
    let broken = types::X509svid {
        cert_chain: vec![vec![0x30, 0x80]],
        ..wire
    };
    refused!(
        IssuedX509Svid::try_from(broken),
        "cert_chain",
        Reason::Svid(_)
    );
}

/// A root, an intermediate and a leaf of dev.test, and a foreign bundle.
struct Scene {
    leaf: Made,
    bundle: Bundle,
    foreign: Bundle,
}

impl Scene {
    fn new() -> Self {
        let root = Made::root("dev.test");
        let leaf = root
            .intermediate("dev.test", "between")
            .sign(Spec::leaf("spiffe://dev.test/pay"));
        Self {
            bundle: root.bundle("dev.test"),
            foreign: Made::root("b.test").bundle("b.test"),
            leaf,
        }
    }

    fn answer(&self) -> workload_wire::X509svidResponse {
        let (svid, key) = (self.leaf.svid(), self.leaf.key_pkcs8());
        let view = |hint| X509IdentityView {
            svid: &svid,
            key: &key,
            hint,
            bundle: &self.bundle,
        };
        x509_svid_response([view("internal"), view("external")], [&self.foreign])
    }
}

#[test]
fn an_answer_comes_back_the_same() {
    let scene = Scene::new();
    let bytes = scene.answer().encode_to_vec();
    let wire = workload_wire::X509svidResponse::decode(bytes.as_slice()).expect("our own bytes");
    let context = X509Context::try_from(wire).expect("our own answer");
    let [first, second] = context.identities() else {
        panic!("two identities")
    };
    assert_eq!(
        (first.hint.as_str(), second.hint.as_str()),
        ("internal", "external")
    );
    assert_eq!(first.svid, scene.leaf.svid());
    assert_eq!(*first.key, scene.leaf.key_pkcs8());
    let bundles: BundleSet = [scene.bundle, scene.foreign].into_iter().collect();
    assert_eq!(*context.bundles(), bundles);
    let printed = format!("{:?}", context.identities());
    assert!(!printed.contains("key"), "no key in a log line: {printed}");
}

#[test]
fn wapi_22_the_chain_is_concatenated_der_leaf_first() {
    let scene = Scene::new();
    let wire = scene.answer();
    assert_eq!(
        wire.svids[0].x509_svid,
        [scene.leaf.chain[0].as_ref(), scene.leaf.chain[1].as_ref()].concat()
    );
}

#[test]
fn wapi_20_an_answer_without_svids_is_refused() {
    let wire = workload_wire::X509svidResponse {
        svids: Vec::new(),
        ..Scene::new().answer()
    };
    refused!(X509Context::try_from(wire), "svids", Reason::Missing);
}

#[test]
fn wapi_13_an_empty_mandatory_field_is_refused_by_name() {
    type Spoil = fn(&mut workload_wire::X509svid);
    let spoils: [(&str, Spoil); 4] = [
        ("svids[1].spiffe_id", |s| s.spiffe_id.clear()),
        ("svids[1].x509_svid", |s| s.x509_svid.clear()),
        ("svids[1].x509_svid_key", |s| s.x509_svid_key.clear()),
        ("svids[1].bundle", |s| s.bundle.clear()),
    ];
    let answer = Scene::new().answer();
    for (field, spoil) in spoils {
        let mut wire = answer.clone();
        spoil(&mut wire.svids[1]);
        refused!(X509Context::try_from(wire), field, Reason::Missing);
    }
}

#[test]
fn an_answer_is_refused_whole_when_one_identity_does_not_fit_its_certificate() {
    let mut wire = Scene::new().answer();
    wire.svids[1].spiffe_id = "spiffe://dev.test/other".into();
    refused!(
        X509Context::try_from(wire),
        "svids[1].spiffe_id",
        Reason::OtherId { .. }
    );

    let mut wire = Scene::new().answer();
    wire.svids[1].x509_svid.push(0);
    refused!(
        X509Context::try_from(wire),
        "svids[1].x509_svid",
        Reason::Svid(_)
    );

    let mut wire = Scene::new().answer();
    wire.svids[1].bundle.pop();
    refused!(
        X509Context::try_from(wire),
        "svids[1].bundle",
        Reason::Bundle(_)
    );

    let mut wire = Scene::new().answer();
    wire.svids[1].bundle = Made::root("dev.test").bundle("dev.test").to_der_concat();
    refused!(
        X509Context::try_from(wire),
        "svids[1].bundle",
        Reason::SecondBundle(_)
    );
}

#[test]
fn wapi_26_of_two_identities_with_one_hint_the_first_is_found() {
    let mut wire = Scene::new().answer();
    wire.svids[1].hint = "internal".into();
    let context = X509Context::try_from(wire).expect("the client decides by the first");
    let found = context.by_hint("internal").expect("there are two");
    assert!(std::ptr::eq(found, &context.identities()[0]));
}

#[test]
fn wapi_29_federated_bundles_are_keyed_by_the_id_of_the_trust_domain() {
    let wire = Scene::new().answer();
    assert_eq!(
        wire.federated_bundles.keys().collect::<Vec<_>>(),
        ["spiffe://b.test"]
    );

    let rekeyed = |key: &str| {
        let mut wire = Scene::new().answer();
        let (_, der) = wire.federated_bundles.pop_first().expect("one");
        wire.federated_bundles.insert(key.into(), der);
        X509Context::try_from(wire)
    };
    refused!(rekeyed("b.test"), "federated_bundles", Reason::SpiffeId(_));
    refused!(
        rekeyed("spiffe://b.test/a"),
        "federated_bundles",
        Reason::HasPath(_)
    );
    refused!(
        rekeyed("spiffe://dev.test"),
        "federated_bundles[dev.test]",
        Reason::Bundle(_)
    );
    let mut wire = Scene::new().answer();
    let own = wire.svids[0].bundle.clone();
    wire.federated_bundles
        .insert("spiffe://dev.test".into(), own);
    refused!(
        X509Context::try_from(wire),
        "federated_bundles[dev.test]",
        Reason::SecondBundle(_)
    );
}

#[test]
fn wapi_11_a_federated_bundle_that_became_empty_verifies_nothing() {
    let mut wire = Scene::new().answer();
    wire.federated_bundles
        .insert("spiffe://b.test".into(), Vec::new());
    let context = X509Context::try_from(wire).expect("redaction is no mistake");
    let bundle = context
        .bundles()
        .get(&domain("b.test"))
        .expect("still named");
    assert!(bundle.x509_authorities().is_empty());
}

#[test]
fn wapi_31_bundles_come_back_the_same_and_none_at_all_is_refused() {
    let scene = Scene::new();
    let wire = x509_bundles_response([&scene.bundle, &scene.foreign]);
    let bundles: BundleSet = [scene.bundle, scene.foreign].into_iter().collect();
    assert_eq!(bundles_from_wire(wire).expect("our own bundles"), bundles);
    refused!(
        bundles_from_wire(workload_wire::X509BundlesResponse::default()),
        "bundles",
        Reason::Missing
    );
}

#[test]
fn wapi_32_in_the_bundles_answer_crl_is_1_and_bundles_is_2() {
    let wire = workload_wire::X509BundlesResponse {
        crl: vec![vec![0xaa]],
        bundles: [("k".to_owned(), vec![0xbb])].into(),
    };
    let bytes = [0x0a, 1, 0xaa, 0x12, 6, 0x0a, 1, b'k', 0x12, 1, 0xbb];
    assert_eq!(wire.encode_to_vec(), bytes);
}

#[test]
fn wapi_04_the_workload_api_has_no_package_on_the_wire() {
    use tonic::server::NamedService as _;
    struct Nothing;
    type Server = workload_wire::spiffe_workload_api_server::SpiffeWorkloadApiServer<Nothing>;
    assert_eq!(Server::NAME, "SpiffeWorkloadAPI");
}

fn at(revision: u64) -> Position {
    Position {
        epoch: "epoch-1".into(),
        revision,
    }
}

fn assemble(parts: Vec<feed_wire::FeedUpdate>) -> Result<Option<Update>, WireError> {
    let mut assembly = Assembly::default();
    let own = domain("dev.test");
    let mut last = None;
    for part in parts {
        assert!(last.is_none(), "only the last part yields the update");
        last = assembly.add(part, &own)?;
    }
    Ok(last)
}

#[test]
fn a_small_update_is_one_message_and_comes_back_the_same() {
    let update = Update {
        entries: vec![entry(1), entry(2)],
        removed_entries: vec!["gone".parse().expect("an entry ID")],
        bundles: vec![Made::root("dev.test").bundle("dev.test").into()],
        removed_bundles: vec![domain("b.test")],
        ..Update::empty(at(9), false)
    };
    let wire = update.to_wire();
    assert_eq!(wire.len(), 1);
    assert!(!wire[0].more);
    assert_eq!(
        assemble(wire).expect("our own update").expect("whole"),
        update
    );
}

#[test]
fn a_large_snapshot_is_cut_into_messages_that_fit_and_comes_back_the_same() {
    let update = Update {
        entries: (0..12_000).map(entry).collect(),
        ..Update::empty(at(9), true)
    };
    let wire = update.to_wire();
    assert!(wire.len() > 1);
    assert!(
        wire.iter()
            .all(|part| part.encoded_len() <= PART_BYTES + 1024
                && part.snapshot
                && part.revision == 9)
    );
    assert_eq!(
        assemble(wire[..wire.len() - 1].to_vec()).expect("so far well"),
        None,
        "nothing before the last part"
    );
    assert_eq!(
        assemble(wire).expect("our own update").expect("whole"),
        update
    );
}

#[test]
fn an_empty_snapshot_is_one_message() {
    let update = Update::empty(at(1), true);
    assert_eq!(
        assemble(update.to_wire())
            .expect("our own update")
            .expect("whole"),
        update
    );
}

#[test]
fn an_update_is_refused_whole_for_the_field_that_is_wrong() {
    let good = Update {
        entries: vec![entry(1), entry(2)],
        ..Update::empty(at(9), false)
    };
    let with = |spoil: &dyn Fn(&mut feed_wire::FeedUpdate)| {
        let mut part = good.to_wire().remove(0);
        spoil(&mut part);
        assemble(vec![part])
    };
    let twice = |u: &mut feed_wire::FeedUpdate| u.upserted_entries[1].id = "entry-1".into();
    let foreign = |u: &mut feed_wire::FeedUpdate| {
        u.upserted_entries[1]
            .spiffe_id
            .as_mut()
            .expect("set")
            .trust_domain = "b.test".into();
    };
    let bundle = types::Bundle::from(&Made::root("dev.test").bundle("dev.test"));
    refused!(
        with(&|u| u.server_epoch.clear()),
        "server_epoch",
        Reason::Missing
    );
    refused!(
        with(&|u| u.server_epoch = "e".repeat(65)),
        "server_epoch",
        Reason::TooLong(64)
    );
    refused!(
        with(&|u| u.upserted_entries[1].id.clear()),
        "upserted_entries[1].id",
        Reason::Missing
    );
    refused!(with(&twice), "upserted_entries[1]", Reason::SecondEntry(_));
    refused!(with(&foreign), "upserted_entries[1]", Reason::Entry(_));
    refused!(
        with(&|u| u.removed_entry_ids = vec!["entry-2".into()]),
        "removed_entry_ids[0]",
        Reason::SecondEntry(_)
    );
    refused!(
        with(&|u| u.bundles = vec![bundle.clone(); 2]),
        "bundles[1]",
        Reason::SecondBundle(_)
    );
    refused!(
        with(&|u| u.bundles = vec![types::Bundle::default()]),
        "bundles[0].trust_domain",
        Reason::TrustDomain(_)
    );
    refused!(
        with(&|u| u.removed_trust_domains = vec![String::new()]),
        "removed_trust_domains[0]",
        Reason::TrustDomain(_)
    );
}

#[test]
fn a_snapshot_removes_nothing_by_name() {
    let mut part = Update::empty(at(9), true).to_wire().remove(0);
    part.removed_entry_ids = vec!["a".into()];
    refused!(
        assemble(vec![part.clone()]),
        "removed_entry_ids",
        Reason::NotInSnapshot
    );
    part.removed_entry_ids.clear();
    part.removed_trust_domains = vec!["b.test".into()];
    refused!(
        assemble(vec![part]),
        "removed_trust_domains",
        Reason::NotInSnapshot
    );
}

#[test]
fn parts_of_different_revisions_do_not_mix() {
    let part = |revision, snapshot, more| feed_wire::FeedUpdate {
        server_epoch: "e".into(),
        revision,
        snapshot,
        more,
        ..Default::default()
    };
    refused!(
        assemble(vec![part(1, true, true), part(2, true, false)]),
        "revision",
        Reason::OtherRevision
    );
    refused!(
        assemble(vec![part(1, true, true), part(1, false, false)]),
        "snapshot",
        Reason::OtherRevision
    );
}

#[test]
fn a_greeting_says_where_to_resume_or_that_it_is_the_first() {
    for resume in [None, Some(at(3))] {
        let hello = FromAgent::Hello {
            resume,
            agent_version: "0.0.0".into(),
        };
        let wire = feed_wire::FollowRequest::from(hello.clone());
        assert_eq!(FromAgent::try_from(wire).expect("our own greeting"), hello);
    }
    refused!(
        FromAgent::try_from(feed_wire::FollowRequest::default()),
        "message",
        Reason::Missing
    );
    let lost = feed_wire::Hello {
        resume_after: 3,
        ..Default::default()
    };
    let lost = feed_wire::FollowRequest {
        message: Some(feed_wire::follow_request::Message::Hello(lost)),
    };
    refused!(
        FromAgent::try_from(lost),
        "hello.server_epoch",
        Reason::Missing
    );
}

#[test]
fn a_refusal_without_words_is_still_a_refusal_and_a_long_one_is_cut() {
    for (reason, bytes) in [(String::new(), 15), ("é".repeat(5000), 4096)] {
        let refused = FromAgent::Ack {
            revision: 1,
            verdict: Verdict::Refused(reason),
        };
        let wire = feed_wire::FollowRequest::from(refused);
        match FromAgent::try_from(wire).expect("our own verdict") {
            FromAgent::Ack {
                verdict: Verdict::Refused(reason),
                ..
            } => assert_eq!(reason.len(), bytes),
            other => panic!("{other:?}"),
        }
    }
}
