//! Tests of `spiffe_id.rs`.

use proptest::prelude::*;

use super::*;
use crate::test_util::{BAD_IDS, GOOD_IDS};

fn id(text: &str) -> Result<SpiffeId, SpiffeIdError> {
    text.parse()
}

fn refused(texts: &[&str]) {
    for text in texts {
        assert!(id(text).is_err(), "{text:?} was accepted");
    }
}

/// A second reading of the standard, slow and plain, to compare with.
fn reference(text: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    let Some(rest) = text.strip_prefix(b"spiffe://") else {
        return false;
    };
    let mut parts = rest.split(|b| *b == b'/');
    let name = parts.next().unwrap();
    text.len() <= 2048
        && (1..=255).contains(&name.len())
        && name.iter().all(|b| allowed(b) && !b.is_ascii_uppercase())
        && parts.all(|part| !matches!(part, b"" | b"." | b"..") && part.iter().all(allowed))
}

#[test]
fn po_20_the_table_of_texts_is_judged_as_it_says() {
    assert!(GOOD_IDS.len() + BAD_IDS.len() >= 120);
    for text in GOOD_IDS {
        let id = id(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert_eq!(id.as_str(), *text);
        assert!(reference(text.as_bytes()), "{text:?}");
    }
    for text in BAD_IDS {
        assert!(id(text).is_err(), "{text:?} was accepted");
        assert!(!reference(text.as_bytes()), "{text:?}");
    }
}

#[test]
fn id_1_only_the_scheme_spiffe_in_lower_case_is_accepted() {
    for text in ["http://td/x", "", "spiffe:/td", "SPIFFE://td/x", "td/x"] {
        assert_eq!(id(text), Err(SpiffeIdError::Scheme), "{text:?}");
    }
}

#[test]
fn id_2_an_empty_trust_domain_is_refused() {
    assert_eq!(id("spiffe:///p"), Err(SpiffeIdError::NoTrustDomain));
    assert_eq!(id("spiffe://"), Err(SpiffeIdError::NoTrustDomain));
}

#[test]
fn id_3_a_query_is_refused_even_when_it_is_empty() {
    assert_eq!(
        id("spiffe://td/p?x"),
        Err(SpiffeIdError::PathByte { at: 13, byte: b'?' })
    );
    refused(&["spiffe://td/p?", "spiffe://td?", "spiffe://td?x"]);
}

#[test]
fn id_4_a_fragment_is_refused_even_when_it_is_empty() {
    assert_eq!(
        id("spiffe://td/p#"),
        Err(SpiffeIdError::PathByte { at: 13, byte: b'#' })
    );
    refused(&["spiffe://td/p#x", "spiffe://td#", "spiffe://td#x"]);
}

#[test]
fn id_5_userinfo_is_refused() {
    assert_eq!(
        id("spiffe://u@td/p"),
        Err(SpiffeIdError::TrustDomainByte { at: 10, byte: b'@' })
    );
    refused(&["spiffe://@td/p", "spiffe://u:p@td/p"]);
}

#[test]
fn id_6_a_port_is_refused_even_when_it_is_empty() {
    assert_eq!(
        id("spiffe://td:1/p"),
        Err(SpiffeIdError::TrustDomainByte { at: 11, byte: b':' })
    );
    refused(&["spiffe://td:/p", "spiffe://td:", "spiffe://td:80"]);
}

#[test]
fn id_8_every_byte_in_every_position_of_the_trust_domain_is_judged() {
    for byte in 0..=255u8 {
        for position in 9..12 {
            let mut text = *b"spiffe://abc/p";
            text[position] = byte;
            let allowed = byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || b".-_".contains(&byte)
                // a slash ends the name early, which leaves another valid ID unless the name is then empty
                // or the path is not one
                || byte == b'/' && reference(&text);
            assert_eq!(SpiffeId::from_bytes(&text).is_ok(), allowed, "{text:?}");
        }
    }
}

#[test]
fn id_9_percent_encoding_in_the_trust_domain_is_refused() {
    assert_eq!(
        id("spiffe://t%64/p"),
        Err(SpiffeIdError::TrustDomainByte { at: 10, byte: b'%' })
    );
}

#[test]
fn id_10_a_trust_domain_that_looks_like_an_address_is_ordinary_and_ipv6_cannot_occur() {
    assert_eq!(
        id("spiffe://10.0.0.1/p").unwrap().trust_domain().as_str(),
        "10.0.0.1"
    );
    assert_ne!(id("spiffe://010.0.0.1/p"), id("spiffe://10.0.0.1/p"));
    assert_ne!(id("spiffe://example.org./p"), id("spiffe://example.org/p"));
    refused(&["spiffe://[::1]/p"]);
}

#[test]
fn id_11_percent_encoding_in_the_path_is_refused() {
    assert_eq!(
        id("spiffe://td/a%2fb"),
        Err(SpiffeIdError::PathByte { at: 13, byte: b'%' })
    );
    refused(&["spiffe://td/%61", "spiffe://td/%2e%2e"]);
}

#[test]
fn id_12_an_empty_path_segment_is_refused() {
    assert_eq!(
        id("spiffe://td//a"),
        Err(SpiffeIdError::EmptySegment { at: 12 })
    );
    assert_eq!(
        id("spiffe://td/a//b"),
        Err(SpiffeIdError::EmptySegment { at: 14 })
    );
}

#[test]
fn id_13_dot_segments_are_refused_and_names_with_dots_are_not() {
    for (text, at) in [
        ("spiffe://td/.", 12),
        ("spiffe://td/..", 12),
        ("spiffe://td/a/./b", 14),
        ("spiffe://td/a/../b", 14),
        ("spiffe://td/a/..", 14),
    ] {
        assert_eq!(id(text), Err(SpiffeIdError::DotSegment { at }), "{text}");
    }
    for text in [
        "spiffe://td/...",
        "spiffe://td/.a",
        "spiffe://td/a.",
        "spiffe://td/..a",
    ] {
        assert!(id(text).is_ok(), "{text}");
    }
}

#[test]
fn id_14_a_trailing_slash_is_refused_with_and_without_a_path() {
    assert_eq!(id("spiffe://td/"), Err(SpiffeIdError::TrailingSlash));
    assert_eq!(id("spiffe://td/a/"), Err(SpiffeIdError::TrailingSlash));
    assert!(id("spiffe://td").unwrap().is_path_less());
}

#[test]
fn id_15_every_byte_in_every_position_of_the_path_is_judged() {
    for byte in 0..=255u8 {
        for position in 12..15 {
            let mut text = *b"spiffe://td/abc";
            text[position] = byte;
            let allowed = byte.is_ascii_alphanumeric()
                || b".-_".contains(&byte)
                || byte == b'/' && position == 13; // between two others it makes two segments
            assert_eq!(SpiffeId::from_bytes(&text).is_ok(), allowed, "{text:?}");
        }
    }
}

#[test]
fn id_16_an_id_of_2048_bytes_is_accepted_and_one_of_2049_refused() {
    let text = format!("spiffe://td/{}", "a".repeat(2048 - 12));
    assert_eq!(id(&text).unwrap().as_str().len(), 2048);
    assert_eq!(id(&format!("{text}a")), Err(SpiffeIdError::TooLong(2049)));
}

#[test]
fn id_17_joining_parts_never_makes_an_id_of_more_than_2048_bytes() {
    let domain: TrustDomain = "td".parse().unwrap();
    let path = format!("/{}", "a".repeat(2048 - 12));
    assert_eq!(
        SpiffeId::from_parts(&domain, &path).unwrap().as_str().len(),
        2048
    );
    let longer = format!("{path}a");
    assert_eq!(
        SpiffeId::from_parts(&domain, &longer),
        Err(SpiffeIdError::TooLong(2049))
    );
}

#[test]
fn id_18_a_trust_domain_of_255_bytes_is_accepted_and_one_of_256_refused() {
    assert!(id(&format!("spiffe://{}/p", "a".repeat(255))).is_ok());
    let text = format!("spiffe://{}/p", "a".repeat(256));
    assert_eq!(id(&text), Err(SpiffeIdError::TrustDomainTooLong));
}

#[test]
fn id_19_ids_compare_byte_by_byte() {
    assert_ne!(id("spiffe://td/A"), id("spiffe://td/a"));
    assert!(id("spiffe://TD/a").is_err()); // T-1: not the same as td, so not at all
    assert!(
        id("spiffe://td.evil/a").unwrap().trust_domain()
            != id("spiffe://td/a").unwrap().trust_domain()
    );
    let domain: TrustDomain = "td".parse().unwrap();
    assert!(id("spiffe://td/a").unwrap().is_member_of(&domain));
    for other in ["spiffe://td.evil/a", "spiffe://evil-td/a", "spiffe://t/d/a"] {
        assert!(!id(other).unwrap().is_member_of(&domain), "{other}");
    }
}

#[test]
fn parts_join_to_what_they_came_from() {
    let whole = id("spiffe://td/a/b").unwrap();
    assert_eq!(
        (whole.trust_domain().as_str(), whole.path()),
        ("td", "/a/b")
    );
    assert_eq!(
        SpiffeId::from_parts(whole.trust_domain(), "/a/b").unwrap(),
        whole
    );
    assert_eq!(
        SpiffeId::from_parts(whole.trust_domain(), "")
            .unwrap()
            .as_str(),
        "spiffe://td"
    );
    for (path, error) in [
        ("a", SpiffeIdError::PathStart),
        ("/", SpiffeIdError::TrailingSlash),
        ("//a", SpiffeIdError::EmptySegment { at: 12 }),
        ("/a?", SpiffeIdError::PathByte { at: 13, byte: b'?' }),
        ("@evil/a", SpiffeIdError::PathStart),
    ] {
        assert_eq!(
            SpiffeId::from_parts(whole.trust_domain(), path),
            Err(error),
            "{path}"
        );
    }
}

#[test]
fn po_30_no_suffix_of_up_to_two_bytes_makes_an_id_that_the_standard_does_not_know() {
    for base in [
        &b"spiffe://t"[..],
        b"spiffe://td/a",
        b"spiffe://td/",
        b"spiffe://",
    ] {
        let mut text = base.to_vec();
        for a in 0..=255 {
            text.push(a);
            assert_eq!(check(&text).is_ok(), reference(&text), "{text:?}");
            for b in 0..=255 {
                text.push(b);
                assert_eq!(check(&text).is_ok(), reference(&text), "{text:?}");
                text.pop();
            }
            text.pop();
        }
    }
}

/// All 256 bytes thrice would be 16.8 million texts for each base. Bytes of one class behave alike in `check` (two tables
/// and a handful of literals), so the third byte runs over one of each class and all neighbours of the class borders.
#[test]
fn po_30_no_suffix_of_three_bytes_makes_an_id_that_the_standard_does_not_know() {
    const THIRD: &[u8] = b"\0 !#%-./09:;?@AZ[\\_`az{~\x7f\x80\xff";
    for base in [&b"spiffe://t"[..], b"spiffe://td/"] {
        let mut text = base.to_vec();
        let len = base.len();
        text.extend([0; 3]);
        for a in 0..=255 {
            for b in 0..=255 {
                for &c in THIRD {
                    text[len..].copy_from_slice(&[a, b, c]);
                    if check(&text).is_ok() != reference(&text) {
                        panic!("{text:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn stored_ids_are_parsed_again_when_they_are_read() {
    let good: SpiffeId = serde_json::from_str("\"spiffe://td/a\"").unwrap();
    assert_eq!(serde_json::to_string(&good).unwrap(), "\"spiffe://td/a\"");
    let error = serde_json::from_str::<SpiffeId>("\"spiffe://td/a/\"").unwrap_err();
    assert!(
        error.to_string().contains("cannot end in a slash"),
        "{error}"
    );
    assert!(serde_json::from_str::<SpiffeId>("7").is_err());
    let bytes = postcard::to_stdvec(&good).unwrap();
    assert_eq!(postcard::from_bytes::<SpiffeId>(&bytes).unwrap(), good);
    assert_eq!(
        format!("{good} {good:?}"),
        "spiffe://td/a SpiffeId(spiffe://td/a)"
    );
}

proptest! {
    #[test]
    fn po_28_the_parser_agrees_with_a_plain_reading_of_the_standard(bytes in any::<Vec<u8>>()) {
        prop_assert_eq!(check(&bytes).is_ok(), reference(&bytes));
        let mut text = b"spiffe://".to_vec();
        text.extend(&bytes);
        prop_assert_eq!(check(&text).is_ok(), reference(&text));
        text.splice(9..9, *b"td/");
        prop_assert_eq!(check(&text).is_ok(), reference(&text));
    }

    #[test]
    fn near_misses_are_judged_as_the_standard_says(text in "spiffe://[a-zA._/%?#@:-]{0,12}") {
        prop_assert_eq!(id(&text).is_ok(), reference(text.as_bytes()));
    }

    #[test]
    fn an_id_reads_back_as_it_was_written(name in "[a-z0-9._-]{1,40}", path in "(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,10}){0,8}") {
        let text = format!("spiffe://{name}{path}");
        let id = id(&text).unwrap();
        prop_assert_eq!(id.as_str(), &text);
        prop_assert_eq!(id.trust_domain().as_str(), &name);
        prop_assert_eq!(id.path(), &path);
        prop_assert_eq!(SpiffeId::from_parts(id.trust_domain(), &path).unwrap(), id.clone());
        prop_assert_eq!(SpiffeId::from_bytes(text.as_bytes()).unwrap(), id);
    }

    #[test]
    fn an_error_points_into_the_text(text in "spiffe://.{0,40}") {
        match id(&text) {
            Err(SpiffeIdError::TrustDomainByte { at, byte } | SpiffeIdError::PathByte { at, byte }) => {
                prop_assert_eq!(text.as_bytes()[at], byte);
            }
            Err(SpiffeIdError::EmptySegment { at } | SpiffeIdError::DotSegment { at }) => {
                prop_assert_eq!(text.as_bytes()[at - 1], b'/');
            }
            _ => {}
        }
    }
}
