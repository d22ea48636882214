//! Bad files, each with the code, the place and the words that must be shown.

use super::*;

/// Body (its first line is line 3), code, `line:column`, and a part of what is shown.
const BAD: &[(&str, &str, &str, &str)] = &[
    // --- unknown fields
    (
        "trust_domain: a\n",
        "FNL0102",
        "3:1",
        "did you mean `trustDomain`?",
    ),
    (
        "trustdomain: a\n",
        "FNL0102",
        "3:1",
        "did you mean `trustDomain`?",
    ),
    ("zzz: 1\n", "FNL0102", "3:1", "known fields: "),
    (
        "listen:\n  adress: 127.0.0.1:1\n",
        "FNL0102",
        "4:3",
        "did you mean `address`?",
    ),
    (
        "listen: {addres: \"127.0.0.1:1\"}\n",
        "FNL0102",
        "3:10",
        "did you mean `address`?",
    ),
    (
        "listen:\n  admin-socket: /a\n",
        "FNL0102",
        "4:3",
        "did you mean `adminSocket`?",
    ),
    (
        "store: {sled: {path: /a, sync: true}}\n",
        "FNL0102",
        "3:26",
        "unknown field `sync`",
    ),
    (
        "attestation: {node: [{joinToken: {ttl: 5s}}]}\n",
        "FNL0102",
        "3:35",
        "unknown field `ttl`",
    ),
    (
        "log: {levle: info}\n",
        "FNL0102",
        "3:7",
        "did you mean `level`?",
    ),
    (
        "apiVersoin: x\n",
        "FNL0102",
        "3:1",
        "unknown field `apiVersoin`",
    ),
    // --- syntax
    ("listen: {address: a\n", "FNL0103", "3:9", "not YAML"),
    ("labels: [a, b\n", "FNL0103", "3:9", "not YAML"),
    ("trustDomain: 'a\n", "FNL0103", "3:14", "not YAML"),
    ("trustDomain: \"\\q\"\n", "FNL0103", "3:", "not YAML"),
    ("trustDomain: a: b\n", "FNL0103", "3:", "not YAML"),
    (
        "listen:\n   address: \"a\"\n  adminSocket: b\n",
        "FNL0103",
        "5:",
        "not YAML",
    ),
    ("- a\n", "FNL0103", "3:", "not YAML"),
    ("? [a]\n: b\n", "FNL0103", "3:3", "as a key"),
    ("@x: y\n", "FNL0103", "3:1", "not YAML"),
    ("%YAML 1.1\n", "FNL0103", "3:", "not YAML"),
    // --- tabs
    (
        "listen:\n\taddress: \"a\"\n",
        "FNL0104",
        "4:1",
        "use spaces",
    ),
    (
        "listen:\n  \tadminSocket: /b\n",
        "FNL0104",
        "4:3",
        "use spaces",
    ),
    (
        "attestation:\n  node:\n\t- joinToken: {}\n",
        "FNL0104",
        "5:1",
        "use spaces",
    ),
    // --- duplicates
    (
        "trustDomain: a\ntrustDomain: b\n",
        "FNL0105",
        "4:1",
        "also: line 3:1",
    ),
    (
        "listen: {adminSocket: /a, adminSocket: /b}\n",
        "FNL0105",
        "3:27",
        "duplicate key `adminSocket`",
    ),
    (
        "trustDomain: a\n\"trustDomain\": b\n",
        "FNL0105",
        "4:1",
        "duplicate key",
    ),
    (
        "kind: DemoConfig\n",
        "FNL0105",
        "3:1",
        "duplicate key `kind`",
    ),
    (
        "labels: {a: b, a: c}\n",
        "FNL0105",
        "3:16",
        "duplicate key `a`",
    ),
    // --- anchors, aliases, tags, merges
    ("trustDomain: &a x\n", "FNL0106", "3:", "an anchor"),
    ("trustDomain: *a\n", "FNL0106", "3:14", "an alias"),
    ("labels: &a [*a]\n", "FNL0106", "3:", "an anchor"),
    ("trustDomain: !!str 5\n", "FNL0106", "3:", "a tag"),
    ("trustDomain: !env HOME\n", "FNL0106", "3:", "a tag"),
    (
        "listen: {<<: {adminSocket: /a}}\n",
        "FNL0106",
        "3:10",
        "a merge key",
    ),
    // --- missing
    (
        "store: {sled: {}}\n",
        "FNL0108",
        "3:9",
        "missing field `path`",
    ),
    (
        "store:\n  sled: {}\n",
        "FNL0108",
        "4:3",
        "missing field `path`",
    ),
    (
        "attestation: {node: [{k8sPsat: {}}]}\n",
        "FNL0108",
        "3:23",
        "missing field `cluster`",
    ),
    // --- wrong values
    (
        "trustDomain: 5\n",
        "FNL0109",
        "3:14",
        "quote it if it is text",
    ),
    ("trustDomain: 1.10\n", "FNL0109", "3:14", "found a number"),
    (
        "trustDomain: true\n",
        "FNL0109",
        "3:14",
        "expected a string",
    ),
    ("trustDomain: [a]\n", "FNL0109", "3:14", "found a list"),
    ("trustDomain:\n", "FNL0109", "3:12", "found nothing"),
    (
        "listen:\n",
        "FNL0109",
        "3:7",
        "write `{}` for an empty section",
    ),
    (
        "listen: here\n",
        "FNL0109",
        "3:9",
        "expected a map of fields",
    ),
    ("listen: [a]\n", "FNL0109", "3:9", "found a list"),
    (
        "listen: {address: localhost}\n",
        "FNL0109",
        "3:19",
        "invalid socket address",
    ),
    (
        "listen: {address: \"127.0.0.1\"}\n",
        "FNL0109",
        "3:19",
        "invalid socket address",
    ),
    ("maxStreams: 70000\n", "FNL0109", "3:13", "70000 is not u16"),
    ("maxStreams: -1\n", "FNL0109", "3:13", "-1 is not u16"),
    ("maxStreams: 1.5\n", "FNL0109", "3:13", "expected u16"),
    ("maxStreams: 007\n", "FNL0109", "3:13", "expected u16"),
    ("maxStreams: 0x10\n", "FNL0109", "3:13", "expected u16"),
    ("maxStreams: \"5\"\n", "FNL0109", "3:13", "found a text"),
    (
        "maxStreams: 99999999999999999999\n",
        "FNL0109",
        "3:13",
        "expected u16",
    ),
    ("enabled: 1\n", "FNL0109", "3:10", "expected a boolean"),
    ("enabled: \"true\"\n", "FNL0109", "3:10", "found a text"),
    ("labels: {a: 5}\n", "FNL0109", "3:13", "quote it"),
    (
        "attestation: {node: {joinToken: {}}}\n",
        "FNL0109",
        "3:21",
        "found a map",
    ),
    ("store: {}\n", "FNL0109", "3:8", "nothing is chosen"),
    (
        "store: {memory: {}, sled: {path: /a}}\n",
        "FNL0109",
        "3:8",
        "more than one is chosen",
    ),
    ("store: sled\n", "FNL0109", "3:8", "needs its fields"),
    (
        "store: {memory: {path: /a}}\n",
        "FNL0109",
        "3:8",
        "has no fields",
    ),
    ("buffer: 64MB\n", "FNL0109", "3:9", "a unit is unknown"),
    (
        "lifetimes: {x509Svid: 1m1h}\n",
        "FNL0109",
        "3:23",
        "not in falling order",
    ),
    (
        "lifetimes: {x509Svid: forever}\n",
        "FNL0109",
        "3:23",
        "a duration with a unit",
    ),
    (
        "lifetimes: {x509Svid: 99999999999999999999h}\n",
        "FNL0109",
        "3:23",
        "too large",
    ),
    // --- choices
    ("store: sleed\n", "FNL0110", "3:8", "did you mean `sled`?"),
    (
        "store: {postgres: {}}\n",
        "FNL0110",
        "3:9",
        "one of: memory, sled",
    ),
    (
        "log: {format: xml}\n",
        "FNL0110",
        "3:15",
        "one of: pretty, json",
    ),
    // --- ambiguous words
    ("enabled: yes\n", "FNL0111", "3:10", "write true or false"),
    ("enabled: off\n", "FNL0111", "3:10", "write true or false"),
    ("enabled: True\n", "FNL0111", "3:10", "write true or false"),
    (
        "trustDomain: no\n",
        "FNL0111",
        "3:14",
        "write \"no\" in quotes",
    ),
    (
        "trustDomain: On\n",
        "FNL0111",
        "3:14",
        "write \"On\" in quotes",
    ),
    (
        "labels: {country: NO}\n",
        "FNL0111",
        "3:19",
        "write \"NO\" in quotes",
    ),
    (
        "labels: {axis: y}\n",
        "FNL0111",
        "3:16",
        "write \"y\" in quotes",
    ),
    // --- units
    (
        "lifetimes: {x509Svid: 90}\n",
        "FNL0112",
        "3:23",
        "add a unit: ms, s, m, h, d",
    ),
    (
        "lifetimes: {x509Svid: \"90\"}\n",
        "FNL0112",
        "3:23",
        "add a unit",
    ),
    (
        "lifetimes: {x509Svid: 1.5}\n",
        "FNL0112",
        "3:23",
        "add a unit",
    ),
    (
        "lifetimes: {x509Svid: 0}\n",
        "FNL0112",
        "3:23",
        "add a unit",
    ),
    (
        "buffer: 65536\n",
        "FNL0112",
        "3:9",
        "add a unit: B, KiB, MiB, GiB",
    ),
    // --- documents
    (
        "trustDomain: a\n---\ntrustDomain: b\n",
        "FNL0118",
        "4:1",
        "a second document",
    ),
];

#[test]
fn x_14_each_bad_file_is_refused_with_its_code_place_and_words() {
    let mut wrong = Vec::new();
    for (body, code, place, words) in BAD {
        let shown = match load::<Demo>(&yaml(body)) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        let at = format!("error[{code}]");
        let placed = shown.contains(&format!("--> demo.yaml:{place}"));
        if !(shown.contains(&at) && placed && shown.contains(words)) {
            wrong.push(format!(
                "{body:?} should be {code} at {place} with {words:?} but is\n{shown}"
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        BAD.len(),
        wrong.join("\n")
    );
    assert!(BAD.len() >= 60);
}

#[test]
fn a_bomb_of_aliases_is_refused_at_once() {
    let mut body = "labels: {a0: &a0 [x]}\n".to_owned();
    for n in 1..30 {
        body.push_str(&format!(
            "b{n}: &a{n} [*a{m}, *a{m}, *a{m}, *a{m}]\n",
            m = n - 1
        ));
    }
    assert!(
        errors(&yaml(&body))
            .to_string()
            .contains("error[FNL0106]: an anchor")
    );
}

#[test]
fn deep_nesting_and_endless_lists_are_refused() {
    let deep = format!("labels: {}{}\n", "[".repeat(10_000), "]".repeat(10_000));
    assert!(errors(&yaml(&deep)).to_string().contains("FNL0103"));
    let block: String = (0..500).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    assert!(errors(&yaml(&block)).to_string().contains("FNL0103"));
    let long = format!("labels: [{}]\n", "a, ".repeat(60_000));
    assert!(errors(&yaml(&long)).to_string().contains("FNL0107"));
}

#[test]
fn a_file_that_is_too_large_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.yaml");
    std::fs::write(&path, "#".repeat(2 * 1024 * 1024)).unwrap();
    let error = errors(&Sources::new().file(&path)).to_string();
    assert!(
        error.contains("FNL0101") && error.contains("larger than 1 MiB"),
        "{error}"
    );
}

#[test]
fn the_header_is_demanded() {
    let error = errors(&Sources::new().text("x.yaml", "trustDomain: a\n")).to_string();
    assert!(
        error.contains("error[FNL0113]: `apiVersion` is missing")
            && error.contains("error[FNL0113]: `kind` is missing"),
        "{error}"
    );
    let error =
        errors(&Sources::new().text("x.yaml", "apiVersion: config.finial.dev/v2\nkind: Other\n"))
            .to_string();
    assert!(
        error.contains("expected `config.finial.dev/v1`")
            && error.contains("expected `DemoConfig`"),
        "{error}"
    );
}

#[test]
fn x_06_control_characters_of_a_file_are_not_printed() {
    let error = errors(&yaml("\"a\\e[31mb\": 1\n\"\u{202e}x\": 1\n")).to_string();
    assert!(
        !error.contains('\u{1b}') && !error.contains('\u{202e}'),
        "{error}"
    );
}

#[test]
fn a_mistake_far_to_the_right_is_shown_in_a_window() {
    let error = errors(&yaml(&format!(
        "labels: {{{} z: 5}}\n",
        "a: b, ".to_owned() + &"c".repeat(300) + ": d,"
    )))
    .to_string();
    let widest = error
        .lines()
        .map(|l| l.chars().count())
        .max()
        .unwrap_or_default();
    assert!(widest < 200 && error.contains("^ quote it"), "{error}");
}
