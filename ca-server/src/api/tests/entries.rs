//! `entry.v1` as SPIRE's tools use it: updates with masks, filters, pages.

use proto::spire::api::types::selector_match::MatchBehavior;

use super::*;

const PARENT: &str = "spiffe://dev.test/spire/agent/join_token/x";

async fn client(server: &Server) -> EntryClient<Channel> {
    EntryClient::new(admin_channel(server).await)
}

fn parent() -> SpiffeId {
    PARENT.parse().unwrap()
}

async fn update(
    server: &Server,
    entries: Vec<types::Entry>,
    input_mask: Option<types::EntryMask>,
) -> Vec<entry_wire::batch_update_entry_response::Result> {
    let ask = entry_wire::BatchUpdateEntryRequest {
        entries,
        input_mask,
        output_mask: None,
    };
    let answer = client(server).await.batch_update_entry(ask).await;
    answer.unwrap().into_inner().results
}

fn status(result: &entry_wire::batch_update_entry_response::Result) -> (Code, &str) {
    let status = result.status.as_ref().unwrap();
    (Code::from(status.code), &status.message)
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_takes_a_new_revision() {
    let server = Server::start().await;
    let mut new = new_entry("web", &parent());
    new.hint = "old".into();
    new.x509_svid_ttl = 60;
    let old = types::Entry::from(&server.admin.create_entry(&new).await.unwrap());
    let change = types::Entry {
        id: "web".into(),
        hint: "new".into(),
        admin: true,
        revision_number: 7,
        ..Default::default()
    };
    let mask = types::EntryMask {
        hint: true,
        revision_number: true,
        ..Default::default()
    };
    let results = update(&server, vec![change], Some(mask)).await;
    assert_eq!(status(&results[0]), (Code::Ok, "OK"));
    let now = results[0].entry.clone().unwrap();
    assert!(now.revision_number > old.revision_number);
    let expected = types::Entry {
        hint: "new".into(),
        revision_number: now.revision_number,
        ..old
    };
    assert_eq!(now, expected);
    let stored = server.admin.entry("web").await.unwrap();
    assert_eq!(types::Entry::from(&stored), expected);
    assert_eq!(server.audit.of("entry.update")[0]["outcome"], "success");
}

#[tokio::test]
async fn an_update_without_a_mask_replaces_everything_but_id_and_time_of_creation() {
    let server = Server::start().await;
    let mut new = new_entry("web", &parent());
    new.hint = "old".into();
    let old = types::Entry::from(&server.admin.create_entry(&new).await.unwrap());
    let change = types::Entry {
        hint: String::new(),
        created_at: 1,
        downstream: true,
        ..old.clone()
    };
    let results = update(&server, vec![change], None).await;
    let now = results[0].entry.clone().unwrap();
    assert_eq!((now.hint.as_str(), now.downstream), ("", true));
    assert_eq!((now.id, now.created_at), (old.id, old.created_at));
}

#[tokio::test]
async fn each_update_of_a_batch_has_its_own_status_and_a_refused_one_changes_nothing() {
    let server = Server::start().await;
    let web = types::Entry::from(&server.entry("web", &parent()).await);
    server.entry("pay", &parent()).await;
    let of = |change: &dyn Fn(&mut types::Entry)| {
        let mut entry = web.clone();
        change(&mut entry);
        entry
    };
    let before = server.admin.entry("web").await.unwrap();
    let pay = Some(types::Spiffeid {
        trust_domain: "dev.test".into(),
        path: "/pay".into(),
    });
    let results = update(
        &server,
        vec![
            of(&|entry| entry.id = "none".into()),
            of(&|entry| entry.id = "no id / at all".into()),
            of(&|entry| entry.selectors.clear()),
            of(&|entry| entry.spiffe_id = None),
            of(&|entry| entry.spiffe_id = pay.clone()),
            of(&|entry| entry.federates_with = vec!["other.test".into()]),
            of(&|entry| entry.x509_svid_ttl = -1),
        ],
        None,
    )
    .await;
    let statuses: Vec<_> = results.iter().map(status).collect();
    assert_eq!(statuses[0], (Code::NotFound, "failed to update entry"));
    assert_eq!(statuses[1], (Code::NotFound, "failed to update entry"));
    assert_eq!(statuses[2].0, Code::InvalidArgument);
    assert_eq!(
        statuses[3],
        (
            Code::InvalidArgument,
            "failed to convert entry: spiffe_id is required and was not set"
        )
    );
    assert_eq!(
        statuses[4],
        (
            Code::AlreadyExists,
            "failed to update entry: similar entry already exists"
        )
    );
    assert_eq!(statuses[5].0, Code::InvalidArgument);
    assert!(
        statuses[5]
            .1
            .starts_with("failed to update entry: federates_with")
    );
    assert_eq!(statuses[6].0, Code::InvalidArgument);
    assert!(results.iter().all(|result| result.entry.is_none()));
    assert_eq!(server.admin.entry("web").await.unwrap(), before);
    assert_eq!(server.audit.of("entry.update").len(), 7);
}

#[tokio::test]
async fn updates_of_one_entry_in_one_batch_are_worked_in_their_order() {
    let server = Server::start().await;
    let web = types::Entry::from(&server.entry("web", &parent()).await);
    let hints = (0..20).map(|number| types::Entry {
        hint: format!("{number}"),
        ..web.clone()
    });
    let results = update(&server, hints.collect(), None).await;
    let seen: Vec<String> = results
        .into_iter()
        .map(|result| result.entry.unwrap().hint)
        .collect();
    assert_eq!(seen.last().unwrap(), "19");
    assert!(
        seen.iter()
            .enumerate()
            .all(|(at, hint)| *hint == at.to_string())
    );
    assert_eq!(server.admin.entry("web").await.unwrap().hint, "19");
}

#[tokio::test]
async fn an_updated_entry_reaches_its_agent() {
    let server = Server::start().await;
    let agent = server.join().await;
    let web = types::Entry::from(&server.entry("web", &agent.id).await);
    let mut feed = Feed::open(&agent, "", 0).await;
    feed.next().await.unwrap();
    let change = types::Entry {
        hint: "new".into(),
        ..web
    };
    update(&server, vec![change], None).await;
    assert_eq!(feed.next().await.unwrap().entries[0].hint, "new");
}

#[tokio::test]
async fn a_filter_with_an_empty_set_or_a_foreign_id_is_refused_in_spires_words() {
    use entry_wire::list_entries_request::Filter;
    let server = Server::start().await;
    let foreign = || {
        Some(types::Spiffeid {
            trust_domain: "other.test".into(),
            path: "/x".into(),
        })
    };
    let selectors = |selectors: Vec<types::Selector>, how: i32| Filter {
        by_selectors: Some(types::SelectorMatch {
            selectors,
            r#match: how,
        }),
        ..Default::default()
    };
    let one = types::Selector {
        r#type: "unix".into(),
        value: "uid:1".into(),
    };
    for (filter, message) in [
        (
            selectors(vec![], 0),
            "malformed selectors filter: empty selector set",
        ),
        (selectors(vec![one], 9), "malformed selectors filter: match"),
        (
            Filter {
                by_federates_with: Some(types::FederatesWithMatch::default()),
                ..Default::default()
            },
            "malformed federates with filter: empty trust domain set",
        ),
        (
            Filter {
                by_parent_id: foreign(),
                ..Default::default()
            },
            "malformed parent ID filter: \"spiffe://other.test/x\" is not a member",
        ),
        (
            Filter {
                by_spiffe_id: foreign(),
                ..Default::default()
            },
            "malformed SPIFFE ID filter: ",
        ),
        (
            Filter {
                by_spiffe_id: Some((&parent()).into()),
                ..Default::default()
            },
            "malformed SPIFFE ID filter: ",
        ),
    ] {
        let ask = entry_wire::ListEntriesRequest {
            filter: Some(filter),
            ..Default::default()
        };
        let refused = client(&server).await.list_entries(ask).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(
            refused.message().starts_with(message),
            "{}",
            refused.message()
        );
    }
}

#[tokio::test]
async fn list_and_count_agree_under_every_filter() {
    let server = Server::start().await;
    let mut web = new_entry("web", &parent());
    web.hint = "front".into();
    web.selectors.push("unix:gid:2".parse().unwrap());
    server.admin.create_entry(&web).await.unwrap();
    server.entry("pay", &parent()).await;
    server
        .entry("sub", &"spiffe://dev.test/web".parse().unwrap())
        .await;
    let downstream = types::Entry {
        id: "sub".into(),
        downstream: true,
        ..Default::default()
    };
    let mask = types::EntryMask {
        downstream: true,
        ..Default::default()
    };
    update(&server, vec![downstream], Some(mask)).await;
    let selector = |value: &str| types::Selector {
        r#type: "unix".into(),
        value: value.into(),
    };
    let selectors = |values: &[&str], how: MatchBehavior| {
        Some(types::SelectorMatch {
            selectors: values.iter().map(|value| selector(value)).collect(),
            r#match: how.into(),
        })
    };
    macro_rules! check {
        ($expected:expr, $field:ident: $value:expr) => {{
            let ask = entry_wire::ListEntriesRequest {
                filter: Some(entry_wire::list_entries_request::Filter {
                    $field: $value,
                    ..Default::default()
                }),
                output_mask: Some(types::EntryMask::default()),
                ..Default::default()
            };
            let listed = client(&server).await.list_entries(ask).await.unwrap();
            let listed = listed.into_inner().entries;
            assert!(listed.iter().all(|entry| entry.spiffe_id.is_none()));
            let ids: Vec<_> = listed.iter().map(|entry| entry.id.as_str()).collect();
            let expected: &[&str] = &$expected;
            assert_eq!(ids, expected, stringify!($field));
            let ask = entry_wire::CountEntriesRequest {
                filter: Some(entry_wire::count_entries_request::Filter {
                    $field: $value,
                    ..Default::default()
                }),
            };
            let counted = client(&server).await.count_entries(ask).await.unwrap();
            assert_eq!(counted.into_inner().count as usize, expected.len());
        }};
    }
    check!(["pay", "sub"], by_selectors: selectors(&["uid:1"], MatchBehavior::MatchExact));
    check!(["pay", "sub"], by_selectors: selectors(&["uid:1"], MatchBehavior::MatchSubset));
    check!(["pay", "sub", "web"], by_selectors: selectors(&["uid:1"], MatchBehavior::MatchSuperset));
    check!(["web"], by_selectors: selectors(&["gid:2", "gid:3"], MatchBehavior::MatchAny));
    check!(["pay", "web"], by_parent_id: Some((&parent()).into()));
    check!(["web"], by_spiffe_id: Some((&"spiffe://dev.test/web".parse::<SpiffeId>().unwrap()).into()));
    check!(["web"], by_hint: Some("front".into()));
    check!(["pay", "sub", "web"], by_hint: Some(String::new()));
    check!(["sub"], by_downstream: Some(true));
    check!(["pay", "web"], by_downstream: Some(false));
}

#[tokio::test]
async fn pages_carry_an_opaque_token_and_a_foreign_token_is_refused() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.entry(name, &parent()).await;
    }
    let mut client = client(&server).await;
    let mut page = async |page_token: &str| {
        let ask = entry_wire::ListEntriesRequest {
            page_size: 2,
            page_token: page_token.into(),
            ..Default::default()
        };
        client
            .list_entries(ask)
            .await
            .map(tonic::Response::into_inner)
    };
    let first = page("").await.unwrap();
    assert_eq!(first.entries.len(), 2);
    let second = page(&first.next_page_token).await.unwrap();
    assert_eq!(second.entries[0].id, "c");
    assert!(second.next_page_token.is_empty());
    let refused = page("b").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_entry_that_cannot_be_is_not_found_and_a_missing_id_is_an_argument() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let mut get = async |id: &str| {
        let ask = entry_wire::GetEntryRequest {
            id: id.into(),
            output_mask: None,
        };
        let refused = client.get_entry(ask).await.unwrap_err();
        (refused.code(), refused.message().to_owned())
    };
    let not_found = (Code::NotFound, "entry not found".to_owned());
    assert_eq!(get("none").await, not_found);
    assert_eq!(get("no id").await, not_found);
    assert_eq!(get("").await, (Code::InvalidArgument, "missing ID".into()));
    let ask = entry_wire::BatchDeleteEntryRequest {
        ids: vec![String::new(), "none".into()],
    };
    let results = client
        .batch_delete_entry(ask)
        .await
        .unwrap()
        .into_inner()
        .results;
    let statuses: Vec<_> = results
        .into_iter()
        .map(|result| result.status.unwrap())
        .map(|status| (Code::from(status.code), status.message))
        .collect();
    assert_eq!(
        statuses,
        [
            (Code::InvalidArgument, "missing entry ID".into()),
            not_found
        ]
    );
}

#[tokio::test]
async fn a_batch_without_ids_is_made_together_and_what_says_the_same_in_its_order() {
    let server = Server::start().await;
    let entry = |name: &str| types::Entry {
        spiffe_id: Some(types::Spiffeid {
            trust_domain: "dev.test".into(),
            path: format!("/{name}"),
        }),
        parent_id: Some((&parent()).into()),
        selectors: vec![types::Selector {
            r#type: "unix".into(),
            value: "uid:1".into(),
        }],
        ..Default::default()
    };
    let create = async |entries: Vec<types::Entry>| {
        let ask = entry_wire::BatchCreateEntryRequest {
            entries,
            output_mask: None,
        };
        let answer = client(&server).await.batch_create_entry(ask).await;
        let results = answer.unwrap().into_inner().results;
        let code = |result: &entry_wire::batch_create_entry_response::Result| {
            Code::from(result.status.as_ref().unwrap().code)
        };
        results.iter().map(code).collect::<Vec<_>>()
    };
    let many = (0..50).map(|number| entry(&number.to_string())).collect();
    assert_eq!(create(many).await, [Code::Ok; 50]);
    let twice = create(vec![entry("a"), entry("b"), entry("a")]).await;
    assert_eq!(twice, [Code::Ok, Code::Ok, Code::AlreadyExists]);
}
