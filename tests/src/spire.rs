//! SPIRE's own programs in a test: `spire-server`'s command line against our admin socket, a real `spire-agent`, and a real
//! `spire-server` for our agent.
//! They are built by `tests/rig/spire.sh`; nothing of them lies in this repository.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::time::sleep;

use crate::{env, eventually};

/// The folder of the programs.
pub struct Spire(PathBuf);

impl Spire {
    /// The programs in the folder named by `FINIAL_SPIRE`, or in the cache of `tests/rig/spire.sh`.
    /// `None`, with the reason printed, where they are missing; a panic where that happens in CI.
    pub fn find() -> Option<Self> {
        let cache = env::read("FINIAL_SPIRE_CACHE")
            .map(PathBuf::from)
            .or_else(|| {
                env::read("XDG_CACHE_HOME")
                    .map(PathBuf::from)
                    .or_else(|| env::read("HOME").map(|home| Path::new(&home).join(".cache")))
                    .map(|cache| cache.join("finial/spire"))
            })
            .map(|cache| cache.join("1.15.3"));
        let folder = env::read("FINIAL_SPIRE").map(PathBuf::from).or(cache);
        let found = folder.filter(|folder| {
            folder.join("spire-server").exists() && folder.join("spire-agent").exists()
        });
        if found.is_none() {
            let reason = "skipped: no spire-server and spire-agent. Get them: \
                          FINIAL_SPIRE=$(tests/rig/spire.sh) cargo test -p mesh-tests spire";
            assert!(
                env::read("CI").is_none(),
                "in CI SPIRE must be there; {reason}"
            );
            eprintln!("{reason}");
        }
        found.map(Self)
    }

    /// `spire-server`'s command line, pointed at an admin socket of ours.
    pub fn server(&self, socket: PathBuf) -> Verbs {
        Verbs {
            program: self.0.join("spire-server"),
            socket,
            used: RefCell::default(),
        }
    }

    /// Starts a real `spire-agent` in `folder`, with a join token, and waits until it says that it is healthy.
    pub async fn agent(&self, folder: &Path, server: &str, bundle: &Path, token: &str) -> Agent {
        let join = (
            format!("join_token = \"{token}\""),
            r#"NodeAttestor "join_token" { plugin_data {} }"#.to_owned(),
        );
        self.agent_by(folder, server, bundle, join).await
    }

    /// The same with a certificate of its own instead of a token.
    pub async fn agent_with_certificate(
        &self,
        folder: &Path,
        server: &str,
        bundle: &Path,
        (certificate, key): (&Path, &Path),
    ) -> Agent {
        let plugin = format!(
            r#"NodeAttestor "x509pop" {{ plugin_data {{
    certificate_path = "{}"
    private_key_path = "{}"
  }} }}"#,
            certificate.display(),
            key.display()
        );
        self.agent_by(folder, server, bundle, (String::new(), plugin))
            .await
    }

    async fn agent_by(
        &self,
        folder: &Path,
        server: &str,
        bundle: &Path,
        (setting, plugin): (String, String),
    ) -> Agent {
        let text = folder.display();
        let (address, port) = server.rsplit_once(':').expect("host:port");
        let config = format!(
            r#"agent {{
  data_dir = "{text}"
  log_level = "DEBUG"
  server_address = "{address}"
  server_port = {port}
  socket_path = "{text}/api.sock"
  trust_bundle_path = "{}"
  trust_domain = "{}"
  {setting}
}}
plugins {{
  {plugin}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#,
            bundle.display(),
            finial::dev::files::TRUST_DOMAIN,
        );
        fs::create_dir_all(folder).expect("a folder");
        let path = folder.join("agent.conf");
        fs::write(&path, config).expect("a configuration file");
        let log = File::create(folder.join("agent.log")).expect("a log file");
        let program = self.0.join("spire-agent");
        let child = Command::new(&program)
            .args(["run", "-config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("spire-agent starts");
        let mut agent = Agent {
            verbs: Verbs {
                program,
                socket: folder.join("api.sock"),
                used: RefCell::default(),
            },
            child,
            log: folder.join("agent.log"),
        };
        let healthy = eventually::within(Duration::from_secs(60), async || {
            assert!(agent.ended().is_none(), "spire-agent ended");
            let healthy = agent.verbs.say(&["healthcheck"]).code == 0;
            if !healthy {
                sleep(Duration::from_millis(200)).await;
            }
            healthy
        })
        .await;
        assert!(healthy, "spire-agent did not become healthy");
        agent
    }
}

impl Spire {
    /// A folder in which a real `spire-server` can be started, and started again with the same keys and data.
    pub fn authority(&self, folder: &Path) -> Authority {
        self.authority_by(folder, r#"NodeAttestor "join_token" { plugin_data {} }"#)
    }

    /// The same, where nodes prove themselves by certificates below these roots.
    pub fn authority_for_certificates(&self, folder: &Path, roots: &Path) -> Authority {
        let plugin = format!(
            r#"NodeAttestor "x509pop" {{ plugin_data {{ ca_bundle_path = "{}" }} }}"#,
            roots.display()
        );
        self.authority_by(folder, &plugin)
    }

    fn authority_by(&self, folder: &Path, plugin: &str) -> Authority {
        fs::create_dir_all(folder).expect("a folder");
        // Free at this moment; SPIRE does not say which port it got when it is left to choose.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let text = folder.display();
        let config = format!(
            r#"server {{
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{text}/server.sock"
  trust_domain = "{}"
  data_dir = "{text}"
  log_level = "DEBUG"
  ca_ttl = "1h"
  default_x509_svid_ttl = "20s"
  agent_ttl = "30s"
  experimental {{ cache_reload_interval = "1s" }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{text}/data.sqlite3" }} }}
  KeyManager "disk" {{ plugin_data {{ keys_path = "{text}/keys.json" }} }}
  {plugin}
}}
"#,
            finial::dev::files::TRUST_DOMAIN,
        );
        fs::write(folder.join("server.conf"), config).expect("a configuration file");
        Authority {
            address: format!("127.0.0.1:{port}"),
            verbs: self.server(folder.join("server.sock")),
            folder: folder.to_owned(),
            child: None,
        }
    }
}

/// A real `spire-server`; killed when dropped, and its log printed if the test failed.
pub struct Authority {
    /// Where agents reach it.
    pub address: String,
    /// Its command line.
    pub verbs: Verbs,
    folder: PathBuf,
    child: Option<Child>,
}

impl Authority {
    /// Starts it and waits until it is healthy.
    pub async fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("server.log"))
            .expect("a log file");
        let child = Command::new(&self.verbs.program)
            .args(["run", "-config"])
            .arg(self.folder.join("server.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("spire-server starts");
        self.child = Some(child);
        let healthy = eventually::within(Duration::from_secs(60), async || {
            let healthy = self.verbs.say(&["healthcheck"]).code == 0;
            if !healthy {
                sleep(Duration::from_millis(200)).await;
            }
            healthy
        });
        assert!(healthy.await, "spire-server did not become healthy");
    }

    /// Takes its power away.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- end of the log of spire-server\n{}", end.join("\n"));
        }
    }
}

/// A running `spire-agent`; killed when dropped, and its log printed if the test failed.
pub struct Agent {
    /// Its command line, on its Workload API.
    pub verbs: Verbs,
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its state is known")
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("---- log of spire-agent\n{}", self.log());
        }
    }
}

/// A command that goes on; killed when dropped.
pub struct Following {
    child: Child,
    output: PathBuf,
}

impl Following {
    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// A command line of SPIRE's; remembers which of its verbs were used.
pub struct Verbs {
    program: PathBuf,
    socket: PathBuf,
    used: RefCell<BTreeSet<String>>,
}

impl Verbs {
    /// Runs one command on the socket.
    pub fn say(&self, arguments: &[&str]) -> Said {
        self.used.borrow_mut().insert(verb(arguments));
        let output = Command::new(&self.program)
            .args(arguments)
            .arg("-socketPath")
            .arg(&self.socket)
            // `wit mint` is hidden without it.
            .env("SPIRE_SERVER_FFLAGS", "wit-svid")
            .stdin(Stdio::null())
            .output()
            .expect("SPIRE's program runs");
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a command that goes on until it is ended, with its standard output in a file.
    pub fn follow(&self, arguments: &[&str], output: &Path) -> Following {
        self.used.borrow_mut().insert(verb(arguments));
        let file = File::create(output).expect("a file for the output");
        let child = Command::new(&self.program)
            .args(arguments)
            .arg("-socketPath")
            .arg(&self.socket)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(Stdio::null())
            .spawn()
            .expect("SPIRE's program runs");
        Following {
            child,
            output: output.to_owned(),
        }
    }

    /// A command that must succeed; its standard output.
    pub fn text(&self, arguments: &[&str]) -> String {
        let said = self.say(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.out
    }

    /// The same with `-output json`, read.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.text(&[arguments, &["-output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{text}"))
    }

    /// A command that must fail, with each of these words on its standard error.
    pub fn refused(&self, arguments: &[&str], words: &[&str]) {
        let said = self.say(arguments);
        assert_eq!(said.code, 1, "{arguments:?}: {said:?}");
        for word in words {
            assert!(
                said.err.contains(word),
                "{arguments:?}: no {word:?} in {said:?}"
            );
        }
    }

    /// The verbs that were used so far.
    pub fn used(&self) -> BTreeSet<String> {
        self.used.borrow().clone()
    }

    /// Every verb that the program itself knows, from its own help.
    pub fn known(&self) -> BTreeSet<String> {
        let mut known = BTreeSet::new();
        let mut open = vec![String::new()];
        while let Some(verb) = open.pop() {
            let output = Command::new(&self.program)
                .args(verb.split_whitespace())
                .arg("-h")
                .env("SPIRE_SERVER_FFLAGS", "wit-svid")
                .stdin(Stdio::null())
                .output()
                .expect("SPIRE's program runs");
            let help = [output.stdout, output.stderr].concat();
            let help = String::from_utf8_lossy(&help);
            let below: Vec<_> = subcommands(&help)
                .map(|name| format!("{verb} {name}").trim().to_owned())
                .collect();
            match below.is_empty() {
                true => drop(known.insert(verb)),
                false => open.extend(below),
            }
        }
        known
    }
}

/// The words before the first flag.
pub fn verb(arguments: &[&str]) -> String {
    let words = arguments.iter().take_while(|word| !word.starts_with('-'));
    words.copied().collect::<Vec<_>>().join(" ")
}

fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    help.lines()
        .skip_while(|line| !matches!(line.trim(), "Available commands are:" | "Subcommands:"))
        .skip(1)
        .filter_map(|line| line.strip_prefix("    "))
        .filter_map(|line| line.split_whitespace().next())
}
