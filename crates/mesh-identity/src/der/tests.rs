//! Tests of `der.rs`.

use proptest::prelude::*;

use super::*;
use crate::test_util::tlv;

#[test]
fn concatenated_sequences_are_cut_apart() {
    let (a, b) = (tlv(0x30, b"one"), tlv(0x30, &[9; 300]));
    let both = [a.clone(), b.clone()].concat();
    assert_eq!(split_sequences(&both).unwrap(), [&a[..], &b[..]]);
    assert_eq!(split_sequences(b"").unwrap(), [&[] as &[u8]; 0]);
}

#[test]
fn what_is_not_der_is_refused_with_the_place() {
    for (bytes, what) in [
        (&[0x30][..], "the data ends inside an element"),
        (&[0x30, 0x80, 0, 0], "indefinite lengths are not DER"),
        (
            &[0x30, 0x81, 0x7f],
            "a length is written longer than need be",
        ),
        (
            &[0x30, 0x82, 0x00, 0x80],
            "a length is written longer than need be",
        ),
        (&[0x30, 0x82, 0x01], "the data ends inside a length"),
        (&[0x30, 0x85, 1, 0, 0, 0, 0], "a length is too large"),
        (&[0x30, 0xff], "a length is too large"),
        (
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            "a length reaches beyond the data",
        ),
        (&[0x30, 1], "a length reaches beyond the data"),
        (&[0x31, 0], "a certificate starts with a sequence"),
        (&[0x30 | 0x1f, 0], "a certificate starts with a sequence"),
    ] {
        let after_one = [&[0x30, 0][..], bytes].concat();
        assert_eq!(
            split_sequences(&after_one),
            Err(DerError { at: 2, what }),
            "{bytes:x?}"
        );
    }
    let many_byte_tag = Reader::new(&[0x3f, 0]).any().unwrap_err();
    assert_eq!(
        many_byte_tag.what,
        "a tag of several bytes does not occur in certificates"
    );
}

proptest! {
    #[test]
    fn a_cut_loses_no_byte_or_is_refused(bytes in any::<Vec<u8>>()) {
        if let Ok(parts) = split_sequences(&bytes) {
            prop_assert_eq!(parts.concat(), bytes);
        }
    }

    #[test]
    fn sequences_of_any_content_are_cut_where_they_end(list in proptest::collection::vec(any::<Vec<u8>>(), 0..5)) {
        let whole: Vec<Vec<u8>> = list.iter().map(|content| tlv(0x30, content)).collect();
        let joined = whole.concat();
        prop_assert_eq!(split_sequences(&joined).unwrap(), whole);
    }

    #[test]
    fn anything_after_sequences_is_refused(tail in any::<Vec<u8>>()) {
        prop_assume!(!tail.is_empty() && tail[0] != 0x30);
        prop_assert!(split_sequences(&[tlv(0x30, b"x"), tail].concat()).is_err());
    }
}
