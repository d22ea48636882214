//! Backups: taken from a running server, verified, restored to a server that runs again.

use serde_json::Value;

use super::server::{Server, code, config, program};

#[test]
fn a_backup_of_a_running_server_becomes_a_server_again() {
    let server = Server::start();
    server.has_entries();
    let bundle = server.text(&["bundle", "show"]);
    let file = server.path().join("backup");
    let file = file.to_str().unwrap();
    let taken = server.json(&["backup", "create", "--to", file]);
    assert_eq!(
        (&taken["entries"], &taken["trustDomain"]),
        (&2.into(), &"dev.test".into())
    );
    // A file that is there is never written over.
    assert_eq!(code(&server.ask(&["backup", "create", "--to", file])), 1);

    let offline = |arguments: &[&str]| program().args(arguments).output().unwrap();
    let verified: Value =
        serde_json::from_slice(&offline(&["backup", "verify", file, "-o", "json"]).stdout).unwrap();
    assert_eq!(verified, taken);
    let mut changed = std::fs::read(file).unwrap();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let bad = server.path().join("bad");
    std::fs::write(&bad, changed).unwrap();
    let refused = offline(&["backup", "verify", bad.to_str().unwrap()]);
    assert_eq!(code(&refused), 1);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("FNL1042"));

    let directory = server.stop();
    let config = config(directory.path());
    let config = config.to_str().unwrap();
    let restore = [
        "backup",
        "restore",
        file,
        "--config",
        config,
        "--set",
        "trustDomain=dev.test",
    ];
    let there = offline(&restore);
    assert_eq!(code(&there), 1, "a store is never replaced");
    assert!(String::from_utf8_lossy(&there.stderr).contains("FNL1044"));
    std::fs::rename(
        directory.path().join("store"),
        directory.path().join("lost"),
    )
    .unwrap();
    assert_eq!(code(&offline(&restore)), 0);

    let again = Server::start_in(directory);
    assert_eq!(
        again.text(&["healthcheck"]),
        "ready\n",
        "it has signed its own SVID"
    );
    assert_eq!(again.text(&["bundle", "show"]), bundle);
    assert_eq!(
        again.json(&["entry", "show"])["entries"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}
