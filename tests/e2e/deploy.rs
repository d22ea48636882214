//! What lies in deploy/ is accepted by the programs as it stands.
//! Trusts `validate` to be what `run` does first.
//! Never starts a service.

use std::{path::Path, process::Command};

use mesh_tests::programs;

#[test]
fn the_files_for_a_machine_without_kubernetes_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent");
    for program in ["ca-server", "workload-agent", "mesh-proxy"] {
        let output = Command::new(programs::path(program))
            .args(["validate", "--config", &format!("{program}.yaml")])
            // The policy lies beside the configuration here, not in /etc.
            .env("MESH_PROXY__POLICY__FILE", "policy.yaml")
            .current_dir(root.join("deploy/machine"))
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(
            output.status.success(),
            "deploy/machine/{program}.yaml: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
