//! What is a canonical path, host or method, and what is refused because two readers could read it differently.
//! Trusts nothing; strange forms are made by hand and by proptest.
//! Never accepts by repairing.

use proptest::prelude::*;

use super::*;

fn refused(path: &str) -> PathRefusal {
    CanonicalPath::parse(path).expect_err(path)
}

#[test]
fn mesh_c1_9_ordinary_paths_and_double_encodings_are_accepted_as_they_are() {
    for path in [
        "/",
        "/charge",
        "/a/b/c",
        "/a/",
        "/a.b/..c/d..",
        "/grpc.health.v1.Health/Check",
        "/caf%C3%A9",
        "/a%20b",
        "/%25",
        "/x%2561",
        "/@me/a:b,c=d+e~f",
        "/*",
    ] {
        assert_eq!(
            CanonicalPath::parse(path).map(CanonicalPath::as_str),
            Ok(path)
        );
    }
}

#[test]
fn mesh_c1_1_double_slashes_are_refused() {
    for path in ["//admin", "///admin", "/public//../admin", "/a//"] {
        assert_eq!(refused(path), PathRefusal::DoubleSlash, "{path}");
    }
}

#[test]
fn mesh_c1_2_dot_segments_are_refused() {
    for path in [
        "/public/../admin",
        "/public/./../admin",
        "/admin/.",
        "/admin/..",
        "/.",
        "/..",
        "/./admin",
    ] {
        assert_eq!(refused(path), PathRefusal::DotSegment, "{path}");
    }
}

#[test]
fn mesh_c1_3_needless_and_separator_encodings_are_refused() {
    assert_eq!(refused("/%61dmin"), PathRefusal::NeedlessEncoding);
    assert_eq!(refused("/admin%2Fx"), PathRefusal::EncodedSeparator);
    assert_eq!(refused("/%2E%2E/admin"), PathRefusal::EncodedSeparator);
    assert_eq!(refused("/%5Cadmin"), PathRefusal::EncodedSeparator);
    for small in [
        "/public%2f..%2fadmin",
        "/%2e%2e/admin",
        "/caf%c3%a9",
        "/a%5c",
    ] {
        assert_eq!(refused(small), PathRefusal::SmallHex, "{small}");
    }
}

#[test]
fn mesh_c1_4_backslashes_are_refused() {
    assert_eq!(refused("/public\\..\\admin"), PathRefusal::Backslash);
    assert_eq!(refused("/a%5C"), PathRefusal::EncodedSeparator);
}

#[test]
fn mesh_c1_5_nul_and_control_bytes_are_refused() {
    assert_eq!(refused("/admin%00"), PathRefusal::EncodedControl);
    assert_eq!(refused("/pub\0lic"), PathRefusal::Control);
    assert_eq!(refused("/a%7F"), PathRefusal::EncodedControl);
    assert_eq!(refused("/a%C2%85"), PathRefusal::EncodedControl);
}

#[test]
fn mesh_c1_6_semicolons_are_refused() {
    for path in ["/admin;a=b", "/public/..;/admin", "/public;/../admin"] {
        assert_eq!(refused(path), PathRefusal::Semicolon, "{path}");
    }
    assert_eq!(refused("/admin%3Ba"), PathRefusal::NeedlessEncoding);
}

#[test]
fn mesh_c1_7_and_8_fragments_and_queries_are_no_part_of_a_path() {
    assert_eq!(refused("/admin#x"), PathRefusal::Fragment);
    assert_eq!(refused("/admin?x"), PathRefusal::Query);
    assert_eq!(refused("/admin%23x"), PathRefusal::NeedlessEncoding);
    assert_eq!(refused("/admin%3Fx"), PathRefusal::NeedlessEncoding);
}

#[test]
fn mesh_c1_11_overlong_and_raw_utf8_is_refused() {
    for path in [
        "/%C0%AF",
        "/%E0%80%AF",
        "/%C3",
        "/%C3/",
        "/%ED%A0%80",
        "/%F5%80%80%80",
        "/%80",
        "/%FF",
        "/%F0%80%80%AF",
    ] {
        assert_eq!(refused(path), PathRefusal::NotUtf8, "{path}");
    }
    assert_eq!(refused("/café"), PathRefusal::NotAscii);
}

#[test]
fn incomplete_encodings_and_unencoded_characters_are_refused() {
    for path in ["/%", "/%2", "/%G0", "/%0"] {
        assert_eq!(refused(path), PathRefusal::BadEncoding, "{path}");
    }
    for path in ["/a b", "/<", "/{x}", "/\"", "/^", "/|", "/`", "/[x]"] {
        assert_eq!(refused(path), PathRefusal::MustBeEncoded, "{path}");
    }
    assert_eq!(refused(""), PathRefusal::NoSlash);
    assert_eq!(refused("*"), PathRefusal::NoSlash);
    assert_eq!(
        refused(&format!("/{}", "a".repeat(LONGEST_PATH))),
        PathRefusal::TooLong
    );
}

#[test]
fn each_single_byte_has_one_answer_raw_and_encoded() {
    for byte in 0_u8..=0x7f {
        let raw = format!("/x{}y", char::from(byte));
        let encoded = format!("/x%{byte:02X}y");
        let accepted = [
            CanonicalPath::parse(&raw).is_ok(),
            CanonicalPath::parse(&encoded).is_ok(),
        ];
        // The one spelling is either raw or encoded, or there is none: never two.
        assert_ne!(accepted, [true, true], "{byte:#x}");
    }
}

/// What a back end sees: each percent-encoding decoded once.
fn decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            out.push(u8::from_str_radix(&path[at + 1..at + 3], 16).unwrap());
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}

/// The one spelling of a decoded path.
fn encoded(decoded: &[u8]) -> String {
    let mut out = String::new();
    for &b in decoded {
        if b == b'/' || is_plain(b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_accepted_path_is_the_only_spelling_of_what_it_decodes_to(path in "/[a-c./%0-9A-Fa-f;\\\\]{0,12}") {
        if CanonicalPath::parse(&path).is_ok() {
            let seen = decoded(&path);
            prop_assert_eq!(encoded(&seen), path);
            prop_assert!(!seen.windows(2).any(|w| w == b"//"));
            prop_assert!(!seen.split(|b| *b == b'/').any(|s| s == b"." || s == b".."));
            prop_assert!(!seen.iter().any(|b| matches!(b, 0..=0x1f | 0x7f | b'\\' | b';' | b'#' | b'?')));
        }
    }

    #[test]
    fn no_path_panics_and_acceptance_never_changes_a_byte(path in "\\PC{0,40}") {
        if let Ok(canonical) = CanonicalPath::parse(&path) {
            prop_assert_eq!(canonical.as_str(), path.as_str());
        }
    }

    #[test]
    fn a_canonical_host_stays_as_it_is(host in "[a-zA-Z0-9.:\\[\\]_@-]{1,24}") {
        if let Ok(once) = CanonicalHost::parse(&host) {
            let text = once.to_string();
            let twice = CanonicalHost::parse(&text).unwrap();
            prop_assert!(!twice.is_rewritten());
            prop_assert_eq!(twice.name(), once.name());
            prop_assert_eq!(twice.port(), once.port());
            prop_assert!(!text.contains('@'));
        }
    }
}

#[test]
fn po_09_and_mesh_c1_13_spellings_of_a_host_are_one_host() {
    for host in ["svc", "Svc", "svc.", "svc:80", "SVC.:443"] {
        assert_eq!(CanonicalHost::parse(host).unwrap().name(), "svc", "{host}");
    }
    assert_eq!(
        CanonicalHost::parse("[::0001]:80").unwrap().to_string(),
        "[::1]:80"
    );
    assert_eq!(CanonicalHost::parse("svc:80").unwrap().port(), Some(80));
}

#[test]
fn px_16_doubtful_hosts_are_refused() {
    assert_eq!(CanonicalHost::parse("user@svc"), Err(HostRefusal::Userinfo));
    assert_eq!(CanonicalHost::parse(""), Err(HostRefusal::Empty));
    assert_eq!(CanonicalHost::parse("."), Err(HostRefusal::Empty));
    assert_eq!(CanonicalHost::parse("a..b"), Err(HostRefusal::EmptyLabel));
    assert_eq!(CanonicalHost::parse("a.."), Err(HostRefusal::EmptyLabel));
    for bad in [
        "a,b",
        "a b",
        "a%2eb",
        "a/b",
        "bücher",
        "[::1",
        "[x]",
        "[::1]x",
        "[fe80::1%25eth0]",
    ] {
        assert_eq!(
            CanonicalHost::parse(bad),
            Err(HostRefusal::Character),
            "{bad}"
        );
    }
    for bad in [
        "svc:",
        "svc:0",
        "svc:080",
        "svc:65536",
        "svc:a",
        "svc:80:80",
        "a:b@c",
    ] {
        assert_eq!(CanonicalHost::parse(bad), Err(HostRefusal::Port), "{bad}");
    }
}
