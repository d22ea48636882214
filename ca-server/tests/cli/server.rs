//! A running server for a test, and the commands that ask it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

pub(crate) struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ca-server"))
}

pub(crate) fn config(directory: &Path) -> PathBuf {
    let dir = directory.display();
    let text = format!(
        "apiVersion: config.finial.dev/v1\nkind: CaServerConfig\ntrustDomain: dev.test\n\
         listen: {{ address: 127.0.0.1:0, adminSocket: {dir}/admin.sock }}\n\
         store: {{ sled: {{ path: {dir}/store }} }}\nkeys: {{ sealingKey: {dir}/sealing.key }}\n\
         audit: {{ dir: {dir}/audit }}\ntelemetry: {{ metrics: {{ address: 127.0.0.1:0 }} }}\n"
    );
    let path = directory.join("ca.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    pub(crate) fn start_in(directory: tempfile::TempDir) -> Self {
        Self::start_with(directory, "")
    }

    /// Starts it with more configuration than each has.
    pub(crate) fn start_with(directory: tempfile::TempDir, more: &str) -> Self {
        let config = config(directory.path());
        let text = std::fs::read_to_string(&config).unwrap() + more;
        std::fs::write(&config, text).unwrap();
        let addresses = directory.path().join("addresses.json");
        std::fs::remove_file(&addresses).ok();
        let child = program()
            .args(["run", "--config"])
            .arg(config)
            .arg("--addresses-file")
            .arg(&addresses)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From here on its drop ends the process, whatever happens.
        let server = Self { child, directory };
        for _ in 0..600 {
            if addresses.exists() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the server did not bind its doors");
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        program()
            .args(arguments)
            .arg("--admin-socket")
            .arg(self.directory.path().join("admin.sock"))
            .output()
            .unwrap()
    }

    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    /// Gives it the entries of `/web` and `/api`.
    pub(crate) fn has_entries(&self) {
        for name in ["web", "api"] {
            let id = format!("spiffe://dev.test/{name}");
            let parent = "spiffe://dev.test/node";
            self.text(&[
                "entry",
                "create",
                "--spiffe-id",
                &id,
                "--parent-id",
                parent,
                "--selector",
                "unix:uid:1",
            ]);
        }
    }

    /// A command that the server refuses, or that cannot even be asked: its exit code and its standard error.
    pub(crate) fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.ask(arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{arguments:?}");
        (
            code(&output),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn stop(mut self) -> tempfile::TempDir {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(
            self.child.wait().unwrap().success(),
            "a clean stop is exit 0"
        );
        let taken = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.directory, taken)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}
