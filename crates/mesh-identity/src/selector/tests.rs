//! Tests of `selector.rs`.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn a_selector_is_cut_at_its_first_colon_only() {
    let selector: Selector = "unix:uid:1000".parse().unwrap();
    assert_eq!((selector.kind(), selector.value()), ("unix", "uid:1000"));
    assert_eq!(selector, Selector::new("unix", "uid:1000").unwrap());
    assert_eq!(selector.to_string(), "unix:uid:1000");
}

#[test]
fn malformed_selectors_are_refused_with_the_reason() {
    for (text, error) in [
        ("", SelectorError::NoColon),
        ("unix", SelectorError::NoColon),
        (":uid", SelectorError::EmptyKind),
        ("unix:", SelectorError::EmptyValue),
        ("un ix:uid", SelectorError::KindByte { at: 2, byte: b' ' }),
        ("\u{e9}:uid", SelectorError::KindByte { at: 0, byte: 0xc3 }),
        ("unix:a\0", SelectorError::Nul { at: 1 }),
    ] {
        assert_eq!(text.parse::<Selector>(), Err(error), "{text:?}");
    }
    assert_eq!(
        Selector::new("a:b", "c"),
        Err(SelectorError::KindByte { at: 1, byte: b':' })
    );
    assert_eq!(
        Selector::new(&"a".repeat(256), "c"),
        Err(SelectorError::KindTooLong(256))
    );
    assert_eq!(
        Selector::new("a", &"c".repeat(8193)),
        Err(SelectorError::ValueTooLong(8193))
    );
}

#[test]
fn selectors_are_ordered_by_type_and_then_by_value() {
    let set: BTreeSet<Selector> = ["a0:x", "a:y", "a:x", "b:a"]
        .iter()
        .map(|s| s.parse().unwrap())
        .collect();
    let order: Vec<_> = set.iter().map(Selector::as_str).collect();
    assert_eq!(order, ["a:x", "a:y", "a0:x", "b:a"]);
}

proptest! {
    #[test]
    fn a_selector_reads_back_as_it_was_written_or_is_refused(text in ".{0,40}") {
        match text.parse::<Selector>() {
            Ok(selector) => {
                prop_assert_eq!(selector.as_str(), &text);
                prop_assert_eq!(Selector::new(selector.kind(), selector.value()).unwrap(), selector.clone());
                let bytes = postcard::to_stdvec(&selector).unwrap();
                prop_assert_eq!(postcard::from_bytes::<Selector>(&bytes).unwrap(), selector);
            }
            Err(_) => {
                let cut = text.split_once(':');
                prop_assert!(cut.is_none_or(|(kind, value)| Selector::new(kind, value).is_err()));
            }
        }
    }

    #[test]
    fn equal_order_means_equal_selectors(a in "[ab:]{1,5}", b in "[ab:]{1,5}") {
        if let (Ok(a), Ok(b)) = (a.parse::<Selector>(), b.parse::<Selector>()) {
            prop_assert_eq!(a == b, a.cmp(&b) == Ordering::Equal);
        }
    }
}
