//! What the configuration accepts, and what it says about the rest.

use std::path::Path;

use mesh_runtime::config::{Sources, load, print_defaults};

use super::*;

const GOOD: &str = "apiVersion: config.finial.dev/v1\nkind: WorkloadAgentConfig\ntrustDomain: example.org\n\
    server: { address: \"ca.example.org:8443\", trustBundle: /etc/finial/bundle.pem }\n\
    nodeAttestation:\n  joinToken: { tokenFile: /etc/finial/token }\n";

fn codes(yaml: &str) -> Vec<&'static str> {
    match load::<AgentConfig>(&Sources::new().text("a.yaml", yaml)) {
        Ok(_) => Vec::new(),
        Err(errors) => {
            let mut codes: Vec<_> = errors
                .problems()
                .iter()
                .map(|problem| problem.code())
                .collect();
            codes.sort_unstable();
            codes
        }
    }
}

#[test]
fn a_short_file_is_enough() {
    let config = load::<AgentConfig>(&Sources::new().text("a.yaml", GOOD))
        .unwrap()
        .value;
    assert_eq!(
        config.workload_socket(),
        Path::new("/run/finial/workload/api.sock")
    );
    assert_eq!(config.server.trust_bundle_format, BundleFormat::Pem);
}

#[test]
fn every_mistake_is_told_at_once() {
    let bad = "apiVersion: config.finial.dev/v1\nkind: WorkloadAgentConfig\ntrustDomain: Example.ORG\n\
        server: { address: nowhere }\nworkloadApi: { socket: relative/api.sock }\n\
        nodeAttestation:\n  joinToken: { tokenFile: /t, token: x }\n  k8sPsat: { cluster: c }\n";
    assert_eq!(
        codes(bad),
        ["FNL2000", "FNL2001", "FNL2002", "FNL2003", "FNL2007"]
    );
}

#[test]
fn each_rule_alone_has_its_code() {
    let with = |from: &str, to: &str| codes(&GOOD.replace(from, to));
    assert_eq!(
        with(
            "joinToken: { tokenFile: /etc/finial/token }",
            "joinToken: {}"
        ),
        ["FNL2005"]
    );
    assert_eq!(
        with(
            "joinToken: { tokenFile: /etc/finial/token }",
            "x509Pop: { certificateFile: /c }"
        ),
        ["FNL2030"]
    );
    assert_eq!(
        with("joinToken: { tokenFile: /etc/finial/token }", "k8sPsat: {}"),
        ["FNL2006"]
    );
    assert_eq!(
        with("  joinToken: { tokenFile: /etc/finial/token }\n", "  {}\n"),
        ["FNL2007"]
    );
    assert_eq!(
        codes(&format!(
            "{GOOD}admin: {{ socket: /run/finial/workload/api.sock }}\n"
        )),
        ["FNL2004"]
    );
    assert_eq!(
        codes(&format!("{GOOD}limits: {{ connections: 0 }}\n")),
        ["FNL2008"]
    );
    for sds in [
        "defaultSvidName: ''",
        "defaultBundleName: default",
        "defaultAllBundlesName: 'spiffe://a.test'",
    ] {
        assert_eq!(
            codes(&format!("{GOOD}workloadApi: {{ sds: {{ {sds} }} }}\n")),
            ["FNL2120"],
            "{sds}"
        );
    }
}

#[test]
fn the_token_comes_from_the_environment_or_a_flag_and_is_never_shown() {
    let yaml = GOOD.replace("  joinToken: { tokenFile: /etc/finial/token }\n", "  {}\n");
    let sources = Sources::new().text("a.yaml", &yaml);
    let by_env = sources.clone().variable(
        "WORKLOAD_AGENT__NODE_ATTESTATION__JOIN_TOKEN__TOKEN",
        "s3cret",
    );
    let by_flag = sources.over("--join-token", "nodeAttestation.joinToken.token", "s3cret");
    for sources in [by_env, by_flag] {
        let loaded = load::<AgentConfig>(&sources).unwrap_or_else(|errors| panic!("{errors}"));
        let token = loaded
            .value
            .node_attestation
            .join_token
            .as_ref()
            .unwrap()
            .token
            .as_ref()
            .unwrap();
        assert_eq!(token.expose(), "s3cret");
        assert!(
            !loaded.show(true).contains("s3cret")
                && !format!("{:?}", loaded.value).contains("s3cret")
        );
    }
}

#[test]
fn the_printed_defaults_load_back_but_for_what_has_no_default() {
    assert_eq!(
        codes(&print_defaults::<AgentConfig>()),
        ["FNL2000", "FNL2001", "FNL2002", "FNL2007"]
    );
}

#[test]
fn wep_01_wep_02_wep_04_without_a_word_the_door_is_a_unix_socket_of_this_host() {
    let config = AgentConfig::default();
    for door in [config.workload_socket(), config.admin_socket()] {
        assert!(door.is_absolute() && door.starts_with("/run"), "{door:?}");
    }
}
