//! Tests of `trust_domain.rs`.

use proptest::prelude::*;

use super::*;

fn domain(name: &str) -> Result<TrustDomain, TrustDomainError> {
    name.parse()
}

#[test]
fn id_7_an_upper_case_trust_domain_is_refused_and_not_lowered() {
    assert_eq!(
        domain("TD.Example"),
        Err(TrustDomainError::Byte { at: 0, byte: b'T' })
    );
    assert_eq!(
        domain("td.Example"),
        Err(TrustDomainError::Byte { at: 3, byte: b'E' })
    );
}

#[test]
fn id_8_every_byte_in_every_position_of_a_name_is_judged() {
    for byte in 0..=255u8 {
        for position in 0..3 {
            let mut bytes = *b"abc";
            bytes[position] = byte;
            let allowed =
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
            let verdict = std::str::from_utf8(&bytes).is_ok_and(|name| domain(name).is_ok());
            assert_eq!(verdict, allowed, "{bytes:?}");
        }
    }
}

#[test]
fn id_18_a_name_of_255_bytes_is_accepted_and_one_of_256_refused() {
    let name = "a".repeat(255);
    assert_eq!(domain(&name).unwrap().as_str(), name);
    assert_eq!(
        domain(&"a".repeat(256)),
        Err(TrustDomainError::TooLong(256))
    );
    assert_eq!(domain(""), Err(TrustDomainError::Empty));
}

#[test]
fn a_name_is_not_an_id() {
    assert_eq!(
        domain("spiffe://td"),
        Err(TrustDomainError::Byte { at: 6, byte: b':' })
    );
}

#[test]
fn a_name_cut_out_of_an_id_equals_the_name_alone() {
    use std::collections::HashSet;
    let id: SpiffeId = "spiffe://td/a/b".parse().unwrap();
    let alone = domain("td").unwrap();
    assert_eq!(id.trust_domain(), &alone);
    assert_eq!(id.trust_domain().cmp(&alone), Ordering::Equal);
    assert!(HashSet::from([alone.clone()]).contains(id.trust_domain()));
    assert_eq!(id.trust_domain().id(), alone.id());
    assert_eq!(alone.id().as_str(), "spiffe://td");
    assert_eq!(format!("{alone} {alone:?}"), "td TrustDomain(td)");
}

#[test]
fn an_error_shows_the_byte_and_keeps_control_characters_out_of_the_terminal() {
    assert_eq!(
        domain("t\u{1b}d").unwrap_err().to_string(),
        "byte 1 of the trust domain name is 0x1b; only a-z, 0-9, '.', '-' and '_' are allowed"
    );
    assert!(domain("tD").unwrap_err().to_string().contains("is 'D'"));
}

proptest! {
    #[test]
    fn a_name_reads_back_as_it_was_written_or_is_refused(name in ".{0,300}") {
        if let Ok(domain) = domain(&name) {
            prop_assert_eq!(domain.as_str(), &name);
            prop_assert_eq!(domain.id().to_string(), format!("spiffe://{name}"));
            let json = serde_json::to_string(&domain).unwrap();
            prop_assert_eq!(serde_json::from_str::<TrustDomain>(&json).unwrap(), domain);
        }
    }

    #[test]
    fn every_name_of_the_right_letters_and_length_is_accepted(name in "[a-z0-9._-]{1,255}") {
        prop_assert_eq!(domain(&name).unwrap().to_string(), name);
    }
}
