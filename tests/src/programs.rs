//! The real programs: built once per test run, then started as a user starts them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use finial::dev::programs::cargo_build;

/// The path of a program of ours, `ca-server` for example.
pub fn path(program: &str) -> PathBuf {
    folder().join(program)
}

/// Runs a program to its end and returns what it said.
pub fn run(program: &str, arguments: &[&str], dir: &Path) -> Output {
    Command::new(path(program))
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// As [`run`], for a command that must succeed; returns its standard output.
pub fn succeed(program: &str, arguments: &[&str], dir: &Path) -> String {
    let output = run(program, arguments, dir);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).expect("our programs write UTF-8")
}

fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        // This test binary lies in target/<profile>/deps.
        let own = std::env::current_exe().expect("the path of this test");
        let folder = own.ancestors().nth(2).expect("two folders up").to_owned();
        // `cargo test -p mesh-tests` alone does not build the programs of other packages.
        assert!(
            cargo_build(&folder, &["--workspace", "--bins"]),
            "the programs could not be built"
        );
        folder
    })
}
