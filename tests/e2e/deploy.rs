//! What lies in deploy/ is accepted by the programs as it stands.
//! Trusts `validate` to be what `run` does first.
//! Never starts a service.

use std::path::Path;

use mesh_tests::programs;

#[test]
fn the_files_for_a_machine_without_kubernetes_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent");
    let dir = root.join("deploy/machine");
    for program in ["ca-server", "workload-agent", "mesh-proxy"] {
        programs::succeed(
            program,
            &["validate", "--config", &format!("{program}.yaml")],
            &dir,
        );
    }
}

#[test]
fn the_policy_for_a_machine_without_kubernetes_is_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent");
    let text =
        std::fs::read_to_string(root.join("deploy/machine/policy.yaml")).expect("a policy file");
    let policies = mesh_policy::PolicySet::from_yaml(&text)
        .unwrap_or_else(|e| panic!("{}", e.render("policy.yaml", &text)));
    assert_eq!(policies.policies().len(), 1);
}
