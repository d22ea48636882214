//! The table against the `.proto` files: every RPC has a row, and no row is of an RPC that does not exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;

/// Every RPC of the services that a ca-server has, read from the files that the wire is generated from.
fn rpcs() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let mut found = BTreeSet::new();
    for file in proto_files(&root.join("spire/api/server"))
        .into_iter()
        .chain(proto_files(&root.join("finial/feed")))
        .chain(proto_files(&root.join("finial/backup")))
        .chain(proto_files(&root.join("finial/authority")))
        .chain(proto_files(&root.join("grpc/health")))
    {
        let text = std::fs::read_to_string(&file).unwrap();
        let (mut package, mut service) = (String::new(), String::new());
        for line in text.lines().map(str::trim) {
            let word = |prefix: &str| {
                line.strip_prefix(prefix)
                    .map(|rest| rest.split([' ', ';', '(', '{']).next().unwrap().to_owned())
            };
            if let Some(name) = word("package ") {
                package = name;
            } else if let Some(name) = word("service ") {
                service = name;
            } else if let Some(name) = word("rpc ") {
                found.insert(format!("/{package}.{service}/{name}"));
            }
        }
    }
    found
}

fn proto_files(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| match path.is_dir() {
            true => proto_files(&path),
            false => vec![path],
        })
        .collect()
}

#[test]
fn ca_23_every_rpc_of_the_wire_has_a_row_and_every_row_an_rpc() {
    let rpcs = rpcs();
    assert!(rpcs.len() > 50, "only {} RPCs were found", rpcs.len());
    let rows: BTreeSet<String> = TABLE
        .iter()
        .map(|row| row.path.to_owned())
        // Reflection comes with its library.
        .filter(|path| !path.starts_with("/grpc.reflection."))
        .collect();
    assert_eq!(rpcs, rows);
}

#[test]
fn no_path_has_two_rows() {
    let paths: BTreeSet<&str> = TABLE.iter().map(|row| row.path).collect();
    assert_eq!(paths.len(), TABLE.len());
}

#[test]
fn without_a_certificate_only_attestation_and_the_bundle_are_open() {
    let open: Vec<&str> = TABLE
        .iter()
        .filter(|row| row.callers.contains(&Kind::Anonymous))
        .map(|row| row.path)
        .collect();
    assert_eq!(
        open,
        [
            "/spire.api.server.agent.v1.Agent/AttestAgent",
            "/spire.api.server.bundle.v1.Bundle/GetBundle",
        ]
    );
}

#[test]
fn an_agent_may_call_nothing_of_the_administrators() {
    // Its handler gives an agent only the bundles that its own workloads federate with.
    let narrowed = "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle";
    for row in TABLE.iter().filter(|row| row.path != narrowed) {
        let both = row.callers.contains(&Kind::Agent) && row.callers.contains(&Kind::LocalAdmin);
        assert!(
            !both || row.callers.contains(&Kind::Anonymous),
            "{}",
            row.path
        );
    }
}

#[test]
fn ca_24_paths_are_compared_byte_for_byte() {
    for path in [
        "/spire.api.server.agent.v1.agent/attestagent",
        "//spire.api.server.agent.v1.Agent/AttestAgent",
        "/spire.api.server.agent.v1.Agent/AttestAgent/",
        "/spire.api.server.agent.v1.Agent/%41ttestAgent",
        "",
    ] {
        assert!(find(path).is_none(), "{path}");
    }
}
