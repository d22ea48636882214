//! Tests of `dns_name.rs`.

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Result<DnsName, DnsNameError> {
    text.parse()
}

#[test]
fn ordinary_names_wildcards_and_punycode_are_accepted() {
    for text in [
        "a",
        "example.org",
        "*.example.org",
        "*.org",
        "a-b.c",
        "1.2.3.4",
        "Example.ORG",
        "xn--bcher-kva.example",
        "xn--fiqs8s",
        "xn--80ak6aa92e.com",
        "xn--ls8h.example",
    ] {
        assert_eq!(name(text).unwrap().as_str(), text);
    }
    let label = "a".repeat(63);
    assert!(name(&label).is_ok());
    assert!(name(&format!("{label}.{label}.{label}.{}", "a".repeat(61))).is_ok());
}

#[test]
fn malformed_names_are_refused_with_the_place() {
    for (text, error) in [
        ("", DnsNameError::Empty),
        (".", DnsNameError::EmptyLabel { at: 0 }),
        ("a.", DnsNameError::EmptyLabel { at: 2 }),
        (".a", DnsNameError::EmptyLabel { at: 0 }),
        ("a..b", DnsNameError::EmptyLabel { at: 2 }),
        ("a_b", DnsNameError::Byte { at: 1, byte: b'_' }),
        ("x.a b", DnsNameError::Byte { at: 3, byte: b' ' }),
        ("b\u{fc}cher", DnsNameError::Byte { at: 1, byte: 0xc3 }),
        ("-a", DnsNameError::Hyphen { at: 0 }),
        ("x.a-", DnsNameError::Hyphen { at: 2 }),
        ("ab--cd", DnsNameError::Hyphen { at: 0 }),
        ("*", DnsNameError::Wildcard),
        ("a.*", DnsNameError::Wildcard),
        ("*a.b", DnsNameError::Wildcard),
        ("a*.b", DnsNameError::Wildcard),
        ("**.b", DnsNameError::Wildcard),
        ("*.*.b", DnsNameError::Wildcard),
        ("*.", DnsNameError::Wildcard),
        ("xn--", DnsNameError::Hyphen { at: 0 }),
        ("xn--a-", DnsNameError::Hyphen { at: 0 }),
        ("x.xn--99999999", DnsNameError::Punycode { at: 2 }),
        ("xn---abc", DnsNameError::Punycode { at: 0 }),
    ] {
        assert_eq!(name(text), Err(error), "{text:?}");
    }
    assert_eq!(
        name(&"a".repeat(64)),
        Err(DnsNameError::LongLabel { at: 0 })
    );
    let long = [
        "a".repeat(63),
        "a".repeat(63),
        "a".repeat(63),
        "a".repeat(62),
    ]
    .join(".");
    assert_eq!(name(&long), Err(DnsNameError::TooLong(254)));
}

proptest! {
    #[test]
    fn a_name_reads_back_as_it_was_written_or_is_refused(text in "[a-zA-Z0-9.*_ -]{0,30}") {
        if let Ok(name) = name(&text) {
            prop_assert_eq!(name.as_str(), text);
        }
    }

    #[test]
    fn punycode_of_any_shape_never_panics(tail in "[a-z0-9-]{0,59}") {
        let _verdict = name(&format!("xn--{tail}"));
    }
}
