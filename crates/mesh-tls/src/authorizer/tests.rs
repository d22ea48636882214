//! Decides whether each rule permits what it says and nothing more.

use super::*;

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

#[test]
fn one_id_means_that_id() {
    let rule = Authorizer::exactly(id("spiffe://td/a"));
    assert!(rule.permits(&id("spiffe://td/a")));
    for other in [
        "spiffe://td/A",
        "spiffe://td/a/b",
        "spiffe://td",
        "spiffe://td2/a",
    ] {
        assert!(!rule.permits(&id(other)), "{other}");
    }
}

#[test]
fn a_set_means_its_members_and_an_empty_set_means_nobody() {
    let rule = Authorizer::one_of([id("spiffe://td/a"), id("spiffe://td/b")]);
    assert!(rule.permits(&id("spiffe://td/b")));
    assert!(!rule.permits(&id("spiffe://td/c")));
    assert!(!Authorizer::one_of([]).permits(&id("spiffe://td/a")));
}

#[test]
fn a_trust_domain_means_exactly_that_trust_domain() {
    let rule = Authorizer::trust_domain("td.test".parse().unwrap());
    assert!(rule.permits(&id("spiffe://td.test/a")));
    for other in [
        "spiffe://sub.td.test/a",
        "spiffe://td.test.evil/a",
        "spiffe://td.tes/t",
    ] {
        assert!(!rule.permits(&id(other)), "{other}");
    }
}

#[test]
fn a_function_is_asked() {
    let rule = Authorizer::by(Arc::new(|id| id.path() == "/a"));
    assert!(rule.permits(&id("spiffe://td/a")));
    assert!(!rule.permits(&id("spiffe://td/b")));
}

#[test]
fn debug_output_says_who_is_meant() {
    assert_eq!(format!("{:?}", Authorizer::any_verified()), "AnyVerified");
    let rule = Authorizer::exactly(id("spiffe://td/a"));
    assert_eq!(format!("{rule:?}"), "Exactly(SpiffeId(spiffe://td/a))");
}
