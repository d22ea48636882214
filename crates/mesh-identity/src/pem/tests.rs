//! Tests of `pem.rs`.

use proptest::prelude::*;

use super::*;

fn pem(ders: &[&[u8]]) -> String {
    let mut text = String::new();
    for der in ders {
        write_certificate(der, &mut text);
    }
    text
}

fn ders(text: &str) -> Result<Vec<Vec<u8>>, PemError> {
    read_certificates(text.as_bytes()).map(|list| list.into_iter().map(|(_, der)| der).collect())
}

#[test]
fn certificates_are_read_between_explanations_and_with_either_line_end() {
    let text = pem(&[b"one", &[7; 100]]);
    assert!(text.lines().all(|line| line.len() <= 64));
    assert_eq!(ders(&text).unwrap(), [b"one".to_vec(), vec![7; 100]]);
    assert_eq!(ders(&text.replace('\n', "\r\n")).unwrap().len(), 2);
    let explained = format!("# roots of td\nSubject: CN=root\n\n{text}\nend\n");
    assert_eq!(
        read_certificates(explained.as_bytes()).unwrap()[0],
        (4, b"one".to_vec())
    );
    assert_eq!(ders(text.trim_end()).unwrap().len(), 2);
}

#[test]
fn a_text_that_holds_anything_else_is_refused_with_the_line() {
    let good = pem(&[b"one"]);
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (text, error) in [
        (String::new(), PemError::Empty),
        ("hello\n".into(), PemError::Empty),
        (
            format!("{good}{key}"),
            PemError::Label {
                line: 4,
                label: "PRIVATE KEY".into(),
            },
        ),
        (
            good.replace("-----BEGIN", "----BEGIN"),
            PemError::Boundary(1),
        ),
        (
            good.replace("-----BEGIN", " -----BEGIN"),
            PemError::Boundary(1),
        ),
        (
            good.replace("BEGIN CERTIFICATE", "BEGIN  CERTIFICATE"),
            PemError::Label {
                line: 1,
                label: " CERTIFICATE".into(),
            },
        ),
        (
            good.replace("BEGIN CERTIFICATE", "begin certificate"),
            PemError::Boundary(1),
        ),
        (
            good.replace("BEGIN CERTIFICATE", "BEGIN TRUSTED CERTIFICATE"),
            PemError::Label {
                line: 1,
                label: "TRUSTED CERTIFICATE".into(),
            },
        ),
        (
            good.replace("END CERTIFICATE", "END CERT"),
            PemError::Boundary(3),
        ),
        (
            good.replace("-----END CERTIFICATE-----\n", ""),
            PemError::Unterminated(1),
        ),
        (
            format!("-----BEGIN CERTIFICATE-----\n{good}"),
            PemError::Boundary(2),
        ),
        (good.replace("b25l", "b25"), PemError::Base64(1)),
        (good.replace("b25l", "b25_"), PemError::Base64(1)),
        (good.replace("b25l", "b2 5l"), PemError::Base64(1)),
        (good.replace("b25l", "b25l="), PemError::Base64(1)),
        ("-----END CERTIFICATE-----\n".into(), PemError::Boundary(1)),
    ] {
        assert_eq!(ders(&text), Err(error), "{text}");
    }
    assert_eq!(read_certificates(b"ab\xff"), Err(PemError::NotText(2)));
}

proptest! {
    #[test]
    fn what_was_written_reads_back(list in proptest::collection::vec(any::<Vec<u8>>(), 1..4)) {
        let text = pem(&list.iter().map(Vec::as_slice).collect::<Vec<_>>());
        prop_assert_eq!(ders(&text).unwrap(), list);
    }

    #[test]
    fn bytes_of_any_kind_never_panic(bytes in any::<Vec<u8>>()) {
        let _verdict = read_certificates(&bytes);
    }

    #[test]
    fn one_changed_byte_never_adds_or_drops_a_certificate_silently(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = pem(&[b"one", b"two"]).into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(list) = read_certificates(&text) {
            prop_assert_eq!(list.len(), 2);
        }
    }
}
