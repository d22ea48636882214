//! The administrators' socket with the real program: who may come, by the kernel's word, and what is written of those who may not.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use mesh_tests::{programs, world::World};

/// A user whom the configuration makes an administrator.
const OPERATOR: u32 = 54_321;

/// A user who is nobody here.
const NOBODY: u32 = 65_534;

/// Whether an administrator's call succeeds for a user, through `by` if that is given; and what was said.
fn counts(world: &World, tool: &Path, uid: u32, by: &[&str]) -> (bool, String) {
    let tool = tool.display().to_string();
    let socket = world.file("ca-admin.sock");
    let call = [by, &[&tool, "agent", "count", "--admin-socket", &socket]].concat();
    let output = Command::new(call[0])
        .args(&call[1..])
        .uid(uid)
        .gid(uid)
        .current_dir(world.path(""))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_26_the_admin_socket_refuses_another_user_from_a_user_namespace_too_and_keeps_a_record()
{
    if !nix::unistd::getuid().is_root() {
        return println!("skipped: only root can be other users");
    }
    let other_users = format!("  adminUids: [{OPERATOR}]\n  adminSocket:");
    let world = World::with_ca(|config| config.replace("  adminSocket:", &other_users)).await;
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).expect("ours");
    let tool = world.path("tool");
    fs::copy(programs::path("ca-server"), &tool).expect("a copy of the program");

    let (done, said) = counts(&world, &tool, OPERATOR, &[]);
    assert!(done, "{said}");
    let (done, said) = counts(&world, &tool, NOBODY, &[]);
    assert!(!done && said.contains("FNL1245"), "{said}");
    // Root inside a namespace of its own is outside who it was.
    let root_inside = ["unshare", "--user", "--map-root-user"];
    let allowed = Command::new(root_inside[0])
        .args([&root_inside[1..], &["true"]].concat())
        .uid(NOBODY)
        .gid(NOBODY)
        .status()
        .is_ok_and(|status| status.success());
    let mut refused = 1;
    if allowed {
        let (done, said) = counts(&world, &tool, NOBODY, &root_inside);
        assert!(!done && said.contains("FNL1245"), "{said}");
        refused += 1;
    } else {
        println!("skipped in part: this machine lets nobody make a user namespace");
    }
    let records = world.audit("ca-server").into_iter();
    let denied = records.filter(|record| record["outcome"] == "denied");
    let by: Vec<_> = denied
        .map(|record| record["actor"]["uid"].clone())
        .collect();
    assert_eq!(by, vec![serde_json::json!(NOBODY); refused]);
}
