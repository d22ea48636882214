//! Cargo, called by a program that cargo runs.

use std::{ffi::OsString, path::Path, process::Command};

/// Whether cargo runs this program, so that there is a workspace to build.
pub(crate) fn under_cargo() -> bool {
    cargo().is_some()
}

/// Runs `cargo build` with `arguments`, in the profile whose folder is `folder`; whether it succeeded.
///
/// What cargo tells a program that it runs is taken away first, see [`forget_package`]: build scripts that look at
/// the package's name or folder would find another one and build everything behind them anew.
pub fn cargo_build(folder: &Path, arguments: &[&str]) -> bool {
    let mut build = Command::new(cargo().unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet"]).args(arguments);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    forget_package(&mut build);
    build.status().is_ok_and(|status| status.success())
}

/// Takes away from a command what cargo told this process about the package that it runs.
pub fn forget_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ]
        .iter()
        .any(|of| told.starts_with(of))
        {
            command.env_remove(&name);
        }
    }
    command
        .env_remove("CARGO_PRIMARY_PACKAGE")
        .env_remove("LD_LIBRARY_PATH");
}

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells the programs it runs, and nobody else, where it is"
)]
fn cargo() -> Option<OsString> {
    std::env::var_os("CARGO_MANIFEST_DIR").and_then(|_| std::env::var_os("CARGO"))
}
