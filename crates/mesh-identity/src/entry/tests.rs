//! Tests of `entry.rs`.

use proptest::prelude::*;

use super::*;

fn own() -> TrustDomain {
    "td".parse().unwrap()
}

fn entry() -> Entry {
    Entry {
        id: "web-1".parse().unwrap(),
        spiffe_id: "spiffe://td/web".parse().unwrap(),
        parent_id: "spiffe://td/spire/agent/join_token/x".parse().unwrap(),
        selectors: selectors(&["unix:uid:1000", "unix:gid:1000"]),
        x509_svid_ttl: Some(Duration::from_secs(20)),
        jwt_svid_ttl: None,
        federates_with: ["other".parse().unwrap()].into(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: vec!["web.example".parse().unwrap()],
        revision: 1,
        store_svid: false,
        hint: String::new(),
        created_at: SystemTime::UNIX_EPOCH,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

fn selectors(texts: &[&str]) -> BTreeSet<Selector> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn an_entry_matches_when_its_selectors_are_among_the_facts() {
    let facts = selectors(&["unix:uid:1000", "unix:gid:1000", "unix:path:/bin/web"]);
    assert!(entry().matches(&facts));
    assert!(!entry().matches(&selectors(&["unix:uid:1000"])));
    assert!(!entry().matches(&BTreeSet::new()));
    assert!(
        !Entry {
            selectors: BTreeSet::new(),
            ..entry()
        }
        .matches(&facts)
    );
}

#[test]
fn a_right_entry_is_valid() {
    assert_eq!(entry().validate(&own()), Ok(()));
    let alias = Entry {
        parent_id: "spiffe://td/spire/server".parse().unwrap(),
        ..entry()
    };
    assert_eq!(alias.validate(&own()), Ok(()));
    assert!(alias.is_node_alias() && !entry().is_node_alias());
    for name in ["spiffe://td/spirex", "spiffe://td/x/spire"] {
        assert!(
            Entry {
                spiffe_id: name.parse().unwrap(),
                ..entry()
            }
            .validate(&own())
            .is_ok()
        );
    }
}

#[test]
fn wapi_16_each_rule_for_the_fields_of_an_entry_refuses_with_its_own_reason() {
    let id = |text: &str| text.parse::<SpiffeId>().unwrap();
    type Spoil = fn(&mut Entry);
    let cases: [(Spoil, EntryError); 16] = [
        (
            |e| e.spiffe_id = "spiffe://other/web".parse().unwrap(),
            EntryError::ForeignId(id("spiffe://other/web")),
        ),
        (
            |e| e.spiffe_id = "spiffe://td".parse().unwrap(),
            EntryError::PathLessId(id("spiffe://td")),
        ),
        (
            |e| e.spiffe_id = "spiffe://td/spire".parse().unwrap(),
            EntryError::ReservedId(id("spiffe://td/spire")),
        ),
        (
            |e| e.spiffe_id = "spiffe://td/spire/server".parse().unwrap(),
            EntryError::ReservedId(id("spiffe://td/spire/server")),
        ),
        (
            |e| e.parent_id = "spiffe://other/agent".parse().unwrap(),
            EntryError::ForeignParent(id("spiffe://other/agent")),
        ),
        (
            |e| e.parent_id = "spiffe://td".parse().unwrap(),
            EntryError::PathLessParent(id("spiffe://td")),
        ),
        (|e| e.selectors.clear(), EntryError::NoSelector),
        (
            |e| e.x509_svid_ttl = Some(Duration::ZERO),
            EntryError::Ttl {
                field: "x509_svid_ttl",
                ttl: Duration::ZERO,
            },
        ),
        (
            |e| e.x509_svid_ttl = Some(Duration::from_millis(999)),
            EntryError::Ttl {
                field: "x509_svid_ttl",
                ttl: Duration::from_millis(999),
            },
        ),
        (
            |e| e.jwt_svid_ttl = Some(Duration::from_secs(1 << 31)),
            EntryError::Ttl {
                field: "jwt_svid_ttl",
                ttl: Duration::from_secs(1 << 31),
            },
        ),
        (
            |e| e.jwt_svid_ttl = Some(Duration::MAX),
            EntryError::Ttl {
                field: "jwt_svid_ttl",
                ttl: Duration::MAX,
            },
        ),
        (
            |e| e.federates_with = ["td".parse().unwrap()].into(),
            EntryError::FederatesWithItself("td".parse().unwrap()),
        ),
        (|e| e.hint = "h".repeat(1025), EntryError::LongHint(1025)),
        (
            |e| e.hint = "\u{e9}".repeat(513),
            EntryError::LongHint(1026),
        ),
        (
            |e| (e.store_svid, e.disable_x509_svid_prefetch) = (true, true),
            EntryError::StoredWithoutPrefetch,
        ),
        (
            |e| {
                e.store_svid = true;
                e.selectors.insert("k8s:ns:web".parse().unwrap());
            },
            EntryError::StoredWithMixedSelectors {
                one: "k8s".into(),
                other: "unix".into(),
            },
        ),
    ];
    for (spoil, error) in cases {
        let mut entry = entry();
        spoil(&mut entry);
        assert_eq!(entry.validate(&own()), Err(error.clone()));
    }
    let longest = Entry {
        hint: "h".repeat(1024),
        ..entry()
    };
    assert_eq!(longest.validate(&own()), Ok(()));
}

#[test]
fn an_entry_id_is_1_to_255_letters_digits_hyphens_dots_and_underscores() {
    for text in ["a", "A-Z.0_9", &"x".repeat(255)] {
        assert_eq!(text.parse::<EntryId>().unwrap().as_str(), text);
    }
    for (text, error) in [
        ("", EntryIdError::Empty),
        (&*"x".repeat(256), EntryIdError::TooLong(256)),
        ("a/b", EntryIdError::Byte { at: 1, byte: b'/' }),
        ("a\u{e9}", EntryIdError::Byte { at: 1, byte: 0xc3 }),
        ("a\0", EntryIdError::Byte { at: 1, byte: 0 }),
    ] {
        assert_eq!(text.parse::<EntryId>(), Err(error), "{text:?}");
    }
}

#[test]
fn a_stored_entry_reads_back_whole_and_a_damaged_one_is_refused() {
    let bytes = postcard::to_stdvec(&entry()).unwrap();
    assert_eq!(postcard::from_bytes::<Entry>(&bytes).unwrap(), entry());
    for cut in 0..bytes.len() {
        assert!(
            postcard::from_bytes::<Entry>(&bytes[..cut]).is_err(),
            "cut at {cut}"
        );
    }
    let json = serde_json::to_string(&entry()).unwrap();
    assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry());
    let damaged = json.replace("spiffe://td/web", "spiffe://td/../web");
    assert!(serde_json::from_str::<Entry>(&damaged).is_err());
}

proptest! {
    #[test]
    fn validation_accepts_no_entry_outside_the_rules(
        id in "spiffe://(td|other)(/(spire|web|a)){0,2}",
        parent in "spiffe://(td|other)(/(spire|agent)){0,2}",
        facts in proptest::collection::btree_set("(unix|k8s):[a-z]{1,2}", 0..3),
        ttl in proptest::option::of(0u64..=1 << 32),
        federates in proptest::collection::btree_set("(td|one|two)", 0..2),
        hint in 1000usize..1050,
        (stored, lazy) in any::<(bool, bool)>(),
    ) {
        let entry = Entry {
            spiffe_id: id.parse().unwrap(),
            parent_id: parent.parse().unwrap(),
            selectors: facts.iter().map(|text| text.parse().unwrap()).collect(),
            x509_svid_ttl: ttl.map(Duration::from_secs),
            federates_with: federates.iter().map(|text| text.parse().unwrap()).collect(),
            hint: "h".repeat(hint),
            store_svid: stored,
            disable_x509_svid_prefetch: lazy,
            ..entry()
        };
        let kinds: BTreeSet<_> = entry.selectors.iter().map(Selector::kind).collect();
        let right = id.starts_with("spiffe://td/")
            && id != "spiffe://td/spire"
            && !id.starts_with("spiffe://td/spire/")
            && parent.starts_with("spiffe://td/")
            && !kinds.is_empty()
            && ttl.is_none_or(|ttl| (1..1 << 31).contains(&ttl))
            && !federates.contains("td")
            && hint <= 1024
            && !(stored && (lazy || kinds.len() > 1));
        prop_assert_eq!(entry.validate(&own()).is_ok(), right);
    }

    #[test]
    fn damaged_storage_never_panics(bytes in any::<Vec<u8>>()) {
        let _entry = postcard::from_bytes::<Entry>(&bytes);
    }
}
