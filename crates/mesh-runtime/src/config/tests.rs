//! Good files, bad files with the caret expected, overrides, and the round trip of the defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::*;
use crate::errors::Coded;
use crate::telemetry::{LogOptions, Secret};
use serde::Deserialize;

mod bad;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Demo {
    /// Name of the trust domain.
    trust_domain: String,
    listen: Listen,
    /// Lifetimes of what is issued.
    lifetimes: Lifetimes,
    store: Store,
    attestation: Attestation,
    /// Labels put on everything.
    labels: BTreeMap<String, String>,
    buffer: ByteSize,
    enabled: bool,
    max_streams: u16,
    /// A token, by value only for tests.
    token: Option<Secret<String>>,
    log: LogOptions,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Listen {
    /// Where callers connect.
    address: SocketAddr,
    admin_socket: PathBuf,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Lifetimes {
    x509_authority: HumanDuration,
    x509_svid: HumanDuration,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Store {
    Memory,
    Sled(Sled),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Sled {
    path: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
struct Attestation {
    node: Vec<Node>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Node {
    JoinToken {},
    K8sPsat {
        cluster: String,
        audience: Option<String>,
    },
}

impl Default for Demo {
    fn default() -> Self {
        Self {
            trust_domain: "example.org".into(),
            listen: Listen::default(),
            lifetimes: Lifetimes::default(),
            store: Store::Sled(Sled {
                path: "/var/lib/demo".into(),
            }),
            attestation: Attestation {
                node: vec![
                    Node::JoinToken {},
                    Node::K8sPsat {
                        cluster: "no".into(),
                        audience: None,
                    },
                ],
            },
            labels: BTreeMap::new(),
            buffer: ByteSize::from_mib(64),
            enabled: true,
            max_streams: 100,
            token: None,
            log: LogOptions::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: ([127, 0, 0, 1], 8443).into(),
            admin_socket: "/run/demo/admin.sock".into(),
        }
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            x509_authority: HumanDuration::from_secs(86_400),
            x509_svid: HumanDuration::from_secs(3600),
        }
    }
}

impl Config for Demo {
    const KIND: &'static str = "DemoConfig";
    const ENV_PREFIX: &'static str = "DEMO";

    fn check(&self, found: &mut Findings) {
        let Lifetimes {
            x509_svid,
            x509_authority,
        } = self.lifetimes;
        if x509_svid > x509_authority {
            let paths = ["lifetimes.x509Svid", "lifetimes.x509Authority"];
            found.problem(
                "FNL0116",
                &paths,
                format!("x509Svid ({x509_svid}) outlives x509Authority ({x509_authority})"),
            );
        }
    }
}

const HEAD: &str = "apiVersion: config.finial.dev/v1\nkind: DemoConfig\n";

fn yaml(body: &str) -> Sources {
    Sources::new().text("demo.yaml", &format!("{HEAD}{body}"))
}

fn errors(sources: &Sources) -> ConfigErrors {
    load::<Demo>(sources).expect_err("a mistake")
}

#[test]
fn the_defaults_load_back_to_exactly_the_defaults() {
    let printed = print_defaults::<Demo>();
    let loaded = load::<Demo>(&Sources::new().text("defaults.yaml", &printed))
        .unwrap_or_else(|e| panic!("{printed}\n{e}"));
    let plain = |demo: &Demo| serde_json::to_value(demo).unwrap();
    assert_eq!(plain(&loaded.value), plain(&Demo::default()), "{printed}");
    assert_eq!(print_defaults::<Demo>(), printed);
    for line in [
        "# Name of the trust domain.\ntrustDomain: ",
        "  # Where callers connect.\n  address: ",
        "# token: (not set)\n",
    ] {
        assert!(printed.contains(line), "{line:?} is not in\n{printed}");
    }
}

#[test]
fn a_file_overrides_defaults_then_the_environment_then_flags_and_each_value_knows_its_origin() {
    let sources = yaml(
        "trustDomain: prod.example\nlisten:\n  address: 0.0.0.0:1\nlifetimes: {x509Svid: 2h}\n",
    )
    .variable("DEMO__LISTEN__ADDRESS", "0.0.0.0:2")
    .variable("DEMO__LIFETIMES__X509_SVID", "3h")
    .variable("DEMO__LABELS__TEAM", "true")
    .variable("DEMO__ENABLED", "false")
    .variable("DEMO__ATTESTATION__NODE", "[{joinToken: {}}]")
    .variable("RUST_LOG", "debug,h2=warn")
    .variable("OTHER__LISTEN__ADDRESS", "x")
    .over("--svid-ttl", "lifetimes.x509Svid", "4h");
    let loaded = load::<Demo>(&sources).unwrap();
    let demo = &loaded.value;
    assert_eq!(demo.listen.address.port(), 2);
    assert_eq!(demo.lifetimes.x509_svid, HumanDuration::from_secs(4 * 3600));
    assert_eq!(
        (
            demo.labels["team"].as_str(),
            demo.enabled,
            demo.attestation.node.len()
        ),
        ("true", false, 1)
    );
    assert_eq!(demo.log.level, "debug,h2=warn");
    let origin = |path: &str| loaded.origin(path).to_string();
    assert_eq!(origin("trustDomain"), "demo.yaml:3");
    assert_eq!(origin("listen.address"), "env DEMO__LISTEN__ADDRESS");
    assert_eq!(origin("lifetimes.x509Svid"), "flag --svid-ttl");
    assert_eq!(origin("maxStreams"), "default");
    let shown = loaded.show(true);
    for line in [
        "trustDomain: prod.example  # demo.yaml:3\n",
        "x509Svid: 4h  # flag --svid-ttl\n",
        "maxStreams: 100  # default\n",
    ] {
        assert!(shown.contains(line), "{line:?} is not in\n{shown}");
    }
}

#[test]
fn later_files_win_and_a_directory_is_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    for (name, streams) in [("20-b.yaml", 2), ("10-a.yaml", 1)] {
        std::fs::write(
            dir.path().join(name),
            format!("{HEAD}maxStreams: {streams}\n"),
        )
        .unwrap();
    }
    std::fs::write(dir.path().join("notes.txt"), "not read").unwrap();
    let loaded = load::<Demo>(&Sources::new().file(dir.path())).unwrap();
    assert_eq!(loaded.value.max_streams, 2);
    assert!(
        loaded
            .origin("maxStreams")
            .to_string()
            .ends_with("20-b.yaml:3")
    );
}

#[test]
fn x_14_a_missing_file_is_named() {
    let error = errors(&Sources::new().file("/nonexistent/demo.yaml"));
    assert_eq!(error.code(), "FNL0101");
    assert!(
        error.to_string().contains("--> /nonexistent/demo.yaml"),
        "{error}"
    );
}

#[test]
fn a_secret_is_shown_redacted_and_its_bad_line_is_not_quoted() {
    let loaded = load::<Demo>(&yaml("token: hunter2\n")).unwrap();
    assert_eq!(
        loaded.value.token.as_ref().map(|t| t.expose().as_str()),
        Some("hunter2")
    );
    assert!(
        !loaded.show(true).contains("hunter2")
            && !format!("{:?}", loaded.value).contains("hunter2")
    );
    let error = errors(&yaml("token: [hunter2]\n")).to_string();
    assert!(
        !error.contains("hunter2") && error.contains("demo.yaml:3:8"),
        "{error}"
    );
}

#[test]
fn unknown_variables_with_our_prefix_are_mistakes() {
    let error = errors(&Sources::new().variable("DEMO__LISTEN__ADRESS", "x").over(
        "--set",
        "listen.adress",
        "x",
    ))
    .to_string();
    assert!(
        error.contains("error[FNL0114]: `ADRESS` in DEMO__LISTEN__ADRESS names no field"),
        "{error}"
    );
    assert!(
        error.contains("did you mean `ADDRESS`?") && error.contains("error[FNL0115]"),
        "{error}"
    );
}

#[test]
fn a_bad_value_in_the_environment_names_the_variable() {
    let error = errors(&Sources::new().variable("DEMO__MAX_STREAMS", "70000")).to_string();
    assert!(
        error.contains("70000 is not u16")
            && error.contains("--> environment variable DEMO__MAX_STREAMS"),
        "{error}"
    );
}

#[test]
fn a_standard_variable_is_checked_and_an_empty_one_is_not_set() {
    let loaded = load::<Demo>(&Sources::new().variable("RUST_LOG", "")).unwrap();
    assert_eq!(loaded.value.log.level, "info");
    let error = errors(&Sources::new().variable("RUST_LOG", "=,=")).to_string();
    assert!(
        error.contains("not a log filter") && error.contains("--> environment variable RUST_LOG"),
        "{error}"
    );
}

#[test]
fn all_mistakes_come_at_once_in_the_order_of_the_lines() {
    let body = "trust_domain: example.org\nlisten:\n  address: nowhere\n  adminSocket: 5\nlifetimes: {x509Svid: 90, x509Authority: ninety}\nenabled: yes\nattestation:\n  node:\n    - k8sPsat: {}\n    - joinTokn: {}\n    - k8sPsat: {cluster: a, x: 1}\nbuffer: 64MB\n";
    let error = errors(&yaml(body));
    let found: Vec<_> = error.problems().iter().map(Problem::code).collect();
    assert_eq!(
        found,
        [
            "FNL0102", "FNL0109", "FNL0109", "FNL0112", "FNL0109", "FNL0111", "FNL0108", "FNL0110",
            "FNL0102", "FNL0109"
        ],
        "{error}"
    );
}

#[test]
fn the_form_is_that_of_the_reference_page() {
    let error = errors(&Sources::new().text("/etc/demo.yaml", &format!("{HEAD}\ntrust_domain: example.org\nlifetimes: {{ x509Authority: 24h, x509Svid: 48h }}\n")));
    assert_eq!(
        error.to_string(),
        "error[FNL0102]: unknown field `trust_domain`\n  --> /etc/demo.yaml:4:1\n   |\n 4 | trust_domain: example.org\n   | ^^^^^^^^^^^^ did you mean `trustDomain`?\n\
         error[FNL0116]: x509Svid (48h) outlives x509Authority (24h)\n  --> /etc/demo.yaml:5:44      also: line 5:29\n   |\n 5 | lifetimes: { x509Authority: 24h, x509Svid: 48h }\n   |                                            ^^^\n"
    );
}

#[test]
fn a_cross_field_rule_over_a_default_still_points_at_what_was_written() {
    let error = errors(&yaml("lifetimes:\n  x509Svid: 48h\n")).to_string();
    assert!(error.contains("--> demo.yaml:4:13"), "{error}");
}

#[test]
fn the_schema_is_closed_and_names_header_and_fields() {
    let schema = schema::<Demo>();
    assert_eq!(schema["properties"]["kind"]["const"], "DemoConfig");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$defs"]["Listen"]["additionalProperties"], false);
    assert_eq!(
        schema["properties"]["trustDomain"]["description"],
        "Name of the trust domain."
    );
}

#[test]
fn durations_and_sizes_round_trip() {
    for text in [
        "0s", "500ms", "90s", "1h30m", "1h", "48h", "7d", "30d12h", "1m30s", "24h",
    ] {
        let value: HumanDuration = text.parse().unwrap();
        assert_eq!(value.to_string().parse::<HumanDuration>().unwrap(), value);
    }
    assert_eq!(HumanDuration::from_secs(86_400).to_string(), "24h");
    assert_eq!(HumanDuration::from_secs(90).to_string(), "1m30s");
    for text in ["0B", "1B", "64MiB", "1GiB", "1536KiB"] {
        assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
    }
    for (text, why) in [
        ("", ParseValueError::Empty),
        ("90", ParseValueError::NoUnit),
        ("90x", ParseValueError::UnknownUnit),
        ("1m1h", ParseValueError::Order),
        ("1s1s", ParseValueError::Order),
        ("99999999999999999999s", ParseValueError::TooLarge),
        ("213503982335d", ParseValueError::TooLarge),
        ("s", ParseValueError::NoNumber),
        ("-5s", ParseValueError::NoNumber),
        ("1.5h", ParseValueError::NoNumber),
        (" 5s", ParseValueError::NoNumber),
        ("5s ", ParseValueError::NoNumber),
    ] {
        assert_eq!(text.parse::<HumanDuration>(), Err(why), "{text:?}");
    }
}

proptest::proptest! {
    #[test]
    fn every_duration_is_read_back(ms in 0..u64::MAX) {
        let value = HumanDuration::from_millis(ms);
        assert_eq!(value.to_string().parse::<HumanDuration>(), Ok(value));
    }

    #[test]
    fn whatever_is_in_force_is_shown_so_that_it_loads_back(
        name in "\\PC{0,20}|[a-z&*!:{}\\[\\],\n \t|>'\"#%@~.0-9-]{0,20}|(yes|no|null|~|0x1f|1e3|<<|- a)",
        labels in proptest::collection::btree_map("\\PC{0,8}|[ \n\t:#-]{0,4}|(null|~|<<|yes|5)", "(?s).{0,12}", 0..4),
        clusters in proptest::collection::vec("(?s).{0,12}", 0..3),
        ms in 0..u64::MAX,
    ) {
        let node = |cluster: String| Node::K8sPsat { audience: Some(cluster.clone()), cluster };
        let demo = Demo {
            trust_domain: name,
            labels,
            attestation: Attestation { node: clusters.into_iter().map(node).collect() },
            lifetimes: Lifetimes { x509_authority: HumanDuration::from_millis(u64::MAX), x509_svid: HumanDuration::from_millis(ms) },
            ..Demo::default()
        };
        let shown = emit::effective::<Demo>(&demo, &|path| Some(format!("from {path:?}")));
        let again = load::<Demo>(&Sources::new().text("shown.yaml", &shown)).unwrap_or_else(|e| panic!("{shown}\n{e}"));
        assert_eq!(serde_json::to_value(&again.value).unwrap(), serde_json::to_value(&demo).unwrap(), "{shown}");
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_place(text in ".{0,200}") {
        if let Err(error) = load::<Demo>(&yaml(&text)) {
            assert!(error.problems().iter().all(|p| p.code().starts_with("FNL01")), "{error}");
            assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn texts_made_of_yaml_marks_are_read_or_refused(text in "[a-z&*!:{}\\[\\],\n \t|>'\"#%@-]{0,80}") {
        let _loaded = load::<Demo>(&yaml(&text)).map_err(|e| e.to_string()).is_ok();
    }
}
