//! Tests of `x509.rs`: against a second reader, and against damage.

use proptest::prelude::*;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::test_util::{KeyKind, Made, Spec, now, tlv};

/// `x509-parser` reads the same from the same bytes.
fn assert_agrees(der: &[u8]) {
    let ours = Certificate::parse(der).unwrap();
    let (rest, theirs) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    assert_eq!(ours.serial, theirs.raw_serial());
    assert_eq!(tlv(0x30, ours.subject), theirs.subject().as_raw());
    assert_eq!(ours.spki, theirs.public_key().raw);
    assert_eq!(&der[ours.spki_at..][..ours.spki.len()], ours.spki);
    let seconds = |time: SystemTime| match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap(),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap(),
    };
    assert_eq!(
        seconds(ours.not_before),
        theirs.validity().not_before.timestamp()
    );
    assert_eq!(
        seconds(ours.not_after),
        theirs.validity().not_after.timestamp()
    );
    let usage = theirs.key_usage().unwrap();
    assert_eq!(
        ours.key_usage
            .map(|u| (u.critical, u.digital_signature, u.key_cert_sign, u.crl_sign)),
        usage.map(|u| {
            (
                u.critical,
                u.value.digital_signature(),
                u.value.key_cert_sign(),
                u.value.crl_sign(),
            )
        })
    );
    let eku = theirs.extended_key_usage().unwrap();
    assert_eq!(
        ours.eku.map(|e| (e.server_auth, e.client_auth, e.any)),
        eku.map(|e| (e.value.server_auth, e.value.client_auth, e.value.any))
    );
    let basic = theirs.basic_constraints().unwrap();
    assert_eq!(
        ours.basic.map(|b| (b.critical, b.ca, b.path_len)),
        basic.map(|b| (b.critical, b.value.ca, b.value.path_len_constraint))
    );
    let names = theirs.subject_alternative_name().unwrap();
    let uris: Vec<&[u8]> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            x509_parser::prelude::GeneralName::URI(uri) => Some(uri.as_bytes()),
            _ => None,
        })
        .collect();
    assert_eq!(ours.san.map_or(0, |san| san.uris), uris.len());
    if let Some(first) = uris.first() {
        assert_eq!(ours.san.unwrap().first_uri, *first);
    }
}

#[test]
fn certificates_read_as_they_do_in_another_parser() {
    let root = Made::root("td");
    assert_agrees(&root.der);
    assert_agrees(&root.intermediate("td", "ca").der);
    for key in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519] {
        assert_agrees(
            &root
                .sign(Spec {
                    key,
                    ..Spec::leaf("spiffe://td/a")
                })
                .der,
        );
    }
    let bare = Spec {
        key_usage: None,
        eku: None,
        ca: None,
        ..Spec::leaf("spiffe://td/a")
    };
    assert_agrees(&root.sign(bare).der);
    let forever = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799); // 9999-12-31 23:59:59
    let ancient = SystemTime::UNIX_EPOCH - Duration::from_secs(86_400 * 365 * 19);
    assert_agrees(
        &root
            .sign(Spec::leaf("spiffe://td/a").valid(ancient, forever))
            .der,
    );
}

fn parse_time(tag: u8, text: &str) -> Option<i64> {
    let der = tlv(tag, text.as_bytes());
    let time = time(&mut Reader::new(&der)).ok()?;
    Some(match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap(),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap(),
    })
}

#[test]
fn times_are_read_as_rfc_5280_writes_them() {
    for (tag, text, seconds) in [
        (tag::UTC_TIME, "700101000000Z", 0),
        (tag::UTC_TIME, "691231235959Z", -1),
        (tag::UTC_TIME, "500101000000Z", -631_152_000),
        (tag::UTC_TIME, "491231235959Z", 2_524_607_999),
        (tag::UTC_TIME, "000229120000Z", 951_825_600),
        (tag::UTC_TIME, "260601000000Z", 1_780_272_000),
        (tag::GENERALIZED_TIME, "20500101000000Z", 2_524_608_000),
        (tag::GENERALIZED_TIME, "21000301000000Z", 4_107_542_400),
        (tag::GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
    ] {
        assert_eq!(parse_time(tag, text), Some(seconds), "{text}");
    }
    for (tag, text) in [
        (tag::UTC_TIME, "2606010000Z"),
        (tag::UTC_TIME, "260601000000+0000"),
        (tag::UTC_TIME, "260601000000z"),
        (tag::UTC_TIME, "260600000000Z"),
        (tag::UTC_TIME, "260632000000Z"),
        (tag::UTC_TIME, "260229000000Z"),
        (tag::UTC_TIME, "261301000000Z"),
        (tag::UTC_TIME, "260001000000Z"),
        (tag::UTC_TIME, "260601240000Z"),
        (tag::UTC_TIME, "260601006000Z"),
        (tag::UTC_TIME, "260601000060Z"),
        (tag::UTC_TIME, "2606010000 0Z"),
        (tag::UTC_TIME, "-60601000000Z"),
        (tag::GENERALIZED_TIME, "20260601000000Z"),
        (tag::GENERALIZED_TIME, "20500101000000.5Z"),
        (tag::GENERALIZED_TIME, "21000229000000Z"),
        (tag::GENERALIZED_TIME, "205001010000Z"),
        (0x13, "260601000000Z"),
    ] {
        assert_eq!(parse_time(tag, text), None, "{text}");
    }
}

#[test]
fn every_prefix_and_every_tail_is_refused() {
    let root = Made::root("td");
    let der = root.leaf("spiffe://td/a").der;
    for cut in 0..der.len() {
        assert!(Certificate::parse(&der[..cut]).is_err(), "cut at {cut}");
    }
    let error = Certificate::parse(&[&der[..], b"\0"].concat()).unwrap_err();
    assert_eq!(
        (error.at, error.what),
        (der.len(), "something follows the certificate")
    );
}

fn refused(spoil: impl FnOnce(&mut Spec), what: &str) {
    let mut spec = Spec::leaf("spiffe://td/a");
    spoil(&mut spec);
    let error = Certificate::parse(&Made::root_with(spec).der).unwrap_err();
    assert_eq!(error.what, what);
}

/// Replaces an extension of the specification by one with this content.
fn content(id: u64, content: Vec<u8>) -> impl FnOnce(&mut Spec) {
    move |spec| {
        match id {
            15 => spec.key_usage = None,
            17 => spec.uris.clear(),
            19 => spec.ca = None,
            37 => spec.eku = None,
            _ => {}
        }
        spec.extra.push((vec![2, 5, 29, id], true, content));
    }
}

#[test]
fn malformed_extensions_are_refused_with_the_reason() {
    let seq = |inner: &[u8]| tlv(0x30, inner);
    refused(
        content(15, tlv(0x03, &[])),
        "key usage has one or two bytes",
    );
    refused(
        content(15, tlv(0x03, &[0])),
        "key usage has one or two bytes",
    );
    refused(
        content(15, tlv(0x03, &[0, 0x80, 0])),
        "key usage has one or two bytes",
    );
    refused(
        content(15, tlv(0x03, &[0, 0x80, 0x80, 0x80])),
        "key usage has one or two bytes",
    );
    refused(
        content(15, tlv(0x03, &[7, 0xc0])),
        "key usage has bits beyond its end",
    );
    refused(
        content(15, tlv(0x03, &[8, 0x80])),
        "key usage has bits beyond its end",
    );
    refused(
        content(15, tlv(0x03, &[255, 0x80])),
        "key usage has bits beyond its end",
    );
    refused(
        content(15, tlv(0x03, &[1, 0x80, 0x81])),
        "key usage has bits beyond its end",
    );
    refused(content(15, seq(&[])), "key usage is a bit string");
    refused(
        content(15, [tlv(0x03, &[7, 0x80]), vec![5, 0]].concat()),
        "something follows the content of an extension",
    );
    refused(content(17, seq(&[])), "the alternative names are empty");
    refused(
        content(17, tlv(0x31, &[])),
        "alternative names are a sequence",
    );
    refused(
        content(17, seq(&tlv(0x89, b"x"))),
        "an alternative name of an unknown kind",
    );
    refused(
        content(17, seq(&tlv(0xa6, b"x"))),
        "an alternative name of an unknown kind",
    );
    refused(
        content(17, seq(&[0x86, 5])),
        "a length reaches beyond the data",
    );
    refused(content(19, seq(&[2, 1, 0])), "a path length without cA");
    refused(
        content(19, seq(&[1, 1, 0xff, 2, 1, 0xff])),
        "a path length is negative",
    );
    refused(
        content(19, seq(&[1, 1, 0xff, 2, 2, 0, 1])),
        "an integer has a needless zero",
    );
    refused(content(19, seq(&[1, 1, 0xff, 2, 0])), "an integer is empty");
    refused(
        content(19, seq(&[1, 1, 0x01])),
        "a boolean is neither 0x00 nor 0xff",
    );
    refused(
        content(19, seq(&[1, 0])),
        "a boolean is neither 0x00 nor 0xff",
    );
    refused(
        content(19, seq(&[1, 1, 0xff, 5, 0])),
        "something follows the path length",
    );
    refused(content(30, seq(&[])), "the name constraints are empty");
    refused(
        content(30, seq(&tlv(0xa0, &[]))),
        "a list of name constraints is empty",
    );
    refused(
        content(30, seq(&tlv(0xa2, &seq(&[0x86, 0])))),
        "something follows the name constraints",
    );
    refused(
        content(30, seq(&tlv(0xa0, &seq(&[])))),
        "the data ends inside an element",
    );
    refused(content(37, seq(&[])), "the extended key usage is empty");
    refused(content(37, seq(&[5, 0])), "an extended key usage is an OID");
    refused(
        |spec| {
            spec.extra
                .push((vec![2, 5, 29, 15], true, tlv(3, &[7, 0x80])))
        },
        "an extension occurs twice",
    );
    let unknown = (vec![1, 2, 3], false, vec![5, 0]);
    refused(
        |spec| spec.extra.extend([unknown.clone(), unknown]),
        "an extension occurs twice",
    );
    refused(
        |spec| {
            spec.extra
                .extend((0..50).map(|n| (vec![1, 2, n], false, vec![5, 0])))
        },
        "there are too many extensions",
    );
    refused(
        |spec| (spec.not_before, spec.not_after) = (now(), now() - Duration::from_secs(1)),
        "it ends before it begins",
    );
}

#[test]
fn an_explicit_false_is_understood() {
    let mut spec = Spec::leaf("spiffe://td/a");
    content(19, tlv(0x30, &[1, 1, 0]))(&mut spec);
    assert!(
        !Certificate::parse(&Made::root_with(spec).der)
            .unwrap()
            .basic
            .unwrap()
            .ca
    );
    let mut spec = Spec::leaf("spiffe://td/a");
    content(19, tlv(0x30, &[1, 1, 0xff, 2, 2, 1, 0]))(&mut spec);
    let basic = Certificate::parse(&Made::root_with(spec).der)
        .unwrap()
        .basic
        .unwrap();
    assert_eq!(basic.path_len, Some(u32::MAX));
    let mut spec = Spec::leaf("spiffe://td/a");
    content(15, tlv(0x03, &[7, 0x80, 0x80]))(&mut spec);
    assert!(
        Certificate::parse(&Made::root_with(spec).der)
            .unwrap()
            .key_usage
            .unwrap()
            .digital_signature
    );
}

#[test]
fn a_critical_key_identifier_is_not_understood() {
    for (id, content) in [(14, tlv(0x04, &[1])), (35, tlv(0x30, &[]))] {
        let extra = vec![(vec![2, 5, 29, id], true, content)];
        let spec = Spec {
            key_ids: false,
            extra,
            ..Spec::leaf("spiffe://td/a")
        };
        let der = Made::root_with(spec).der;
        let unknown = Certificate::parse(&der)
            .unwrap()
            .unknown_critical
            .map(oid_text);
        assert_eq!(unknown, Some(format!("2.5.29.{id}")));
    }
}

#[test]
fn oids_and_serial_numbers_print_as_people_write_them() {
    assert_eq!(oid_text(&[0x55, 0x1d, 15]), "2.5.29.15");
    assert_eq!(
        oid_text(&[0x2b, 6, 1, 4, 1, 0x86, 0x8d, 0x1f, 1]),
        "1.3.6.1.4.1.99999.1"
    );
    assert_eq!(oid_text(&[]), "");
    assert_eq!(oid_text(&[0xff; 40]), "with an absurd number in it");
    assert_eq!(serial_text(&[0, 0x80]), "80");
    assert_eq!(serial_text(&[0]), "00");
    assert_eq!(serial_text(&[0x0f, 0xa0]), "0fa0");
}

proptest! {
    #[test]
    fn bytes_of_any_kind_never_panic(bytes in any::<Vec<u8>>()) {
        let _verdict = Certificate::parse(&bytes);
    }

    #[test]
    fn damage_never_panics_and_what_is_read_agrees_with_another_parser(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut der = sample().to_vec();
        let at = at.index(der.len());
        der[at] = byte;
        if let Ok(ours) = Certificate::parse(&der)
            && let Ok((rest, theirs)) = X509Certificate::from_der(&der)
        {
            prop_assert!(rest.is_empty());
            prop_assert_eq!(ours.serial, theirs.raw_serial());
            prop_assert_eq!(ours.spki, theirs.public_key().raw);
            if let Ok(Some(basic)) = theirs.basic_constraints() {
                prop_assert_eq!(ours.basic.is_some_and(|b| b.ca), basic.value.ca);
            }
            if let Ok(Some(usage)) = theirs.key_usage() {
                prop_assert_eq!(ours.key_usage.is_some_and(|u| u.key_cert_sign), usage.value.key_cert_sign());
            }
        }
    }
}

/// One certificate for all cases, so that failures can be repeated within a run.
fn sample() -> &'static [u8] {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| Made::root("td").leaf("spiffe://td/a").der.to_vec())
}
