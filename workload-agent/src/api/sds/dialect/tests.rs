//! Requests and answers without a socket.

use super::*;

fn secret(name: &str, version: &str) -> Secret {
    Secret {
        name: name.into(),
        version: version.into(),
        identity: name
            .starts_with("spiffe://")
            .then(|| (name.into(), version.into())),
        resource: prost_types::Any::default(),
    }
}

fn ask(names: &[&str], nonce: &str) -> wire::DiscoveryRequest {
    wire::DiscoveryRequest {
        resource_names: names.iter().map(|&n| n.into()).collect(),
        response_nonce: nonce.into(),
        type_url: SECRET.into(),
        ..Default::default()
    }
}

fn delta(subscribe: &[&str], unsubscribe: &[&str]) -> wire::DeltaDiscoveryRequest {
    wire::DeltaDiscoveryRequest {
        resource_names_subscribe: subscribe.iter().map(|&n| n.into()).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(|&n| n.into()).collect(),
        ..Default::default()
    }
}

fn refused(message: &str) -> Option<proto::google::rpc::Status> {
    Some(proto::google::rpc::Status {
        code: 13,
        message: message.into(),
    })
}

const CHANGED: Heard = Heard {
    changed: true,
    refused: None,
};

#[test]
fn a_whole_answer_has_the_next_version_and_a_nonce_and_is_not_repeated() {
    let mut whole = Whole::default();
    assert_eq!(whole.hear(ask(&["a"], "")).unwrap(), CHANGED);
    let (first, _) = whole.answer(vec![secret("a", "1")]).unwrap();
    assert_eq!((&*first.version_info, &*first.nonce), ("1", "00000001"));
    assert!(whole.answer(vec![secret("a", "1")]).is_none());
    let (second, _) = whole.answer(vec![secret("a", "2")]).unwrap();
    assert_eq!((&*second.version_info, &*second.nonce), ("2", "00000002"));
}

#[test]
fn an_acknowledgement_asks_for_nothing_and_a_changed_list_is_answered_even_with_the_same_secrets() {
    let mut whole = Whole::default();
    whole.hear(ask(&["a"], "")).unwrap();
    whole.answer(vec![secret("a", "1")]).unwrap();
    assert_eq!(
        whole.hear(ask(&["a"], "00000001")).unwrap(),
        Heard::default()
    );
    assert_eq!(whole.hear(ask(&["a", "b"], "00000001")).unwrap(), CHANGED);
    assert!(whole.answer(vec![secret("a", "1")]).is_some());
    // The order of names and their repetition are no change.
    assert_eq!(
        whole.hear(ask(&["b", "a", "b"], "00000002")).unwrap(),
        Heard::default()
    );
}

#[test]
fn a_request_with_another_nonce_is_ignored_with_all_that_it_says() {
    let mut whole = Whole::default();
    whole.hear(ask(&["a"], "")).unwrap();
    whole.answer(vec![secret("a", "1")]).unwrap();
    for nonce in ["", "00000002", "nonsense"] {
        let mut stale = ask(&["b"], nonce);
        stale.error_detail = refused("no");
        assert_eq!(whole.hear(stale).unwrap(), Heard::default(), "{nonce}");
    }
    assert_eq!(whole.asked().unwrap().names.len(), 1);
}

#[test]
fn a_refused_answer_is_told_in_bounds_and_its_list_counts() {
    let mut whole = Whole::default();
    whole.hear(ask(&["a"], "")).unwrap();
    whole.answer(vec![secret("a", "1")]).unwrap();
    let mut nack = ask(&["b"], "00000001");
    nack.error_detail = refused(&"x".repeat(100_000));
    let heard = whole.hear(nack).unwrap();
    assert!(heard.changed);
    assert_eq!(heard.refused.unwrap().len(), COMPLAINT);
}

#[test]
fn another_type_is_refused() {
    let mut wrong = ask(&[], "");
    wrong.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".into();
    let status = Whole::default().hear(wrong).unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let mut untyped = ask(&[], "");
    untyped.type_url.clear();
    assert!(Whole::default().hear(untyped).unwrap().changed);
}

#[test]
fn an_answer_says_which_identities_it_hands_out() {
    let mut whole = Whole::default();
    whole.hear(ask(&[], "")).unwrap();
    let all = vec![secret("ROOTCA", "1"), secret("spiffe://dev.test/a", "7")];
    let (_, given) = whole.answer(all).unwrap();
    assert_eq!(given, [("spiffe://dev.test/a".into(), "7".into())]);
}

#[test]
fn a_difference_holds_what_changed_and_names_what_is_gone() {
    let mut difference = Difference::default();
    assert_eq!(difference.hear(delta(&["*"], &[])).unwrap(), CHANGED);
    assert!(difference.asked().unwrap().all);
    let (first, _) = difference
        .answer(vec![secret("a", "1"), secret("b", "1")])
        .unwrap();
    assert_eq!(first.resources.len(), 2);
    assert!(
        difference
            .answer(vec![secret("a", "1"), secret("b", "1")])
            .is_none()
    );
    let (second, given) = difference.answer(vec![secret("a", "2")]).unwrap();
    assert_eq!(second.resources.len(), 1);
    assert_eq!(second.resources[0].version, "2");
    assert_eq!(second.removed_resources, ["b"]);
    assert!(given.is_empty());
}

#[test]
fn a_client_that_comes_back_is_told_only_what_it_has_not() {
    let mut difference = Difference::default();
    let mut back = delta(&["a", "b"], &[]);
    back.initial_resource_versions = [("a", "1"), ("b", "1"), ("left", "1")]
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .into();
    difference.hear(back).unwrap();
    let (answer, _) = difference
        .answer(vec![secret("a", "1"), secret("b", "2")])
        .unwrap();
    let names: Vec<_> = answer.resources.iter().map(|r| &*r.name).collect();
    assert_eq!(names, ["b"]);
    // It did not ask for that one.
    assert!(answer.removed_resources.is_empty());
}

#[test]
fn a_name_that_is_asked_for_again_is_sent_again_and_one_that_is_left_is_forgotten() {
    let mut difference = Difference::default();
    difference.hear(delta(&["a", "b"], &[])).unwrap();
    let both = || vec![secret("a", "1"), secret("b", "1")];
    difference.answer(both()).unwrap();
    assert_eq!(difference.hear(delta(&["a"], &[])).unwrap(), CHANGED);
    let (again, _) = difference.answer(both()).unwrap();
    assert_eq!(again.resources.len(), 1);
    assert_eq!(difference.hear(delta(&[], &["b"])).unwrap(), CHANGED);
    assert!(difference.answer(vec![secret("a", "1")]).is_none());
}

#[test]
fn only_the_newest_difference_can_be_refused() {
    let mut difference = Difference::default();
    difference.hear(delta(&["a"], &[])).unwrap();
    difference.answer(vec![secret("a", "1")]).unwrap();
    for (nonce, told) in [("00000001", true), ("00000009", false)] {
        let mut nack = delta(&[], &[]);
        nack.response_nonce = nonce.into();
        nack.error_detail = refused("no");
        let heard = difference.hear(nack).unwrap();
        assert_eq!((heard.changed, heard.refused.is_some()), (false, told));
    }
}
