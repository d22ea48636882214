//! A mesh of real programs in a folder of its own: an authority, an agent, and proxied workloads on request.
//! Configuration is dev mode's, changed where a test needs it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use finial::dev::files;
use serde_json::Value;
use tempfile::TempDir;

use crate::{daemon::Daemon, programs};

/// The folder, the authority and the agent. Proxies belong to the test that starts them.
pub struct World {
    dir: TempDir,
    /// The authority; `None` while a test has it killed.
    pub ca: Option<Daemon>,
    /// The agent, once started.
    pub agent: Option<Daemon>,
    agent_id: String,
}

impl World {
    /// A folder with a running authority. `change` edits its configuration.
    pub async fn with_ca(change: impl FnOnce(String) -> String) -> Self {
        // Short, because the kernel's limit for a socket's path is 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("fnl")
            .tempdir()
            .expect("a temporary folder");
        let mut world = Self {
            dir,
            ca: None,
            agent: None,
            agent_id: String::new(),
        };
        world.write("ca.yaml", &change(files::ca_server(&world.text())));
        world.start_ca().await;
        world.write_bundle();
        world
    }

    /// An authority and an agent that attested with a join token.
    pub async fn start(change: impl FnOnce(String) -> String) -> Self {
        let mut world = Self::with_ca(change).await;
        world.join().await;
        world
    }

    /// Starts an agent that attests with a join token.
    pub async fn join(&mut self) {
        let token = self.ca_json(&["token", "generate", "--ttl", "600"]);
        let token = token["token"].as_str().expect("a token").to_owned();
        self.write("join-token", &token);
        self.agent_id = format!(
            "spiffe://{}/spire/agent/join_token/{token}",
            files::TRUST_DOMAIN
        );
        let config = files::workload_agent(&self.text(), self.ca().address("grpc"));
        self.start_agent(&config).await;
    }

    /// Starts the authority on its present configuration.
    pub async fn start_ca(&mut self) {
        let config = self.path("ca.yaml");
        let program = programs::path("ca-server");
        self.ca = Some(Daemon::start_ready("ca-server", &program, &config, self.dir.path()).await);
    }

    /// The running authority.
    pub fn ca(&self) -> &Daemon {
        self.ca.as_ref().expect("the authority runs")
    }

    /// Starts the agent with this configuration and waits until it is ready.
    pub async fn start_agent(&mut self, config: &str) {
        let config = self.write("agent.yaml", config);
        let program = programs::path("workload-agent");
        let agent = Daemon::start_ready("workload-agent", &program, &config, self.dir.path());
        self.agent = Some(agent.await);
    }

    /// Under which ID the agent's entries are registered.
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// Registers entries under another agent from here on.
    pub fn set_agent_id(&mut self, id: String) {
        self.agent_id = id;
    }

    /// A verb of ca-server on its admin socket, as JSON.
    pub fn ca_json(&self, arguments: &[&str]) -> Value {
        let socket = self.file("ca-admin.sock");
        let all = [arguments, &["-o", "json", "--admin-socket", &socket]].concat();
        let text = programs::succeed("ca-server", &all, self.dir.path());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{text}"))
    }

    /// Writes the authority's bundle where the agent's configuration names it.
    pub fn write_bundle(&self) {
        let socket = self.file("ca-admin.sock");
        let arguments = [
            "bundle",
            "show",
            "--format",
            "pem",
            "--admin-socket",
            &socket,
        ];
        let pem = programs::succeed("ca-server", &arguments, self.dir.path());
        self.write("bundle.pem", &pem);
    }

    /// An entry for the process at `program`, under this world's agent.
    pub fn entry(&self, name: &str, program: &str) {
        let id = format!("spiffe://{}/{name}", files::TRUST_DOMAIN);
        let path = format!("unix:path:{program}");
        let uid = format!("unix:uid:{}", nix::unistd::getuid());
        self.ca_json(&[
            "entry",
            "create",
            "--parent-id",
            &self.agent_id,
            "--spiffe-id",
            &id,
            "--selector",
            &uid,
            "--selector",
            &path,
        ]);
    }

    /// `program` under a path of its own, by which its process is known.
    pub fn own_program(&self, name: &str, program: &Path) -> PathBuf {
        let own = self.path(name);
        fs::hard_link(program, &own)
            .or_else(|_| fs::copy(program, &own).map(drop))
            .expect("a path of its own for the program");
        own
    }

    /// A proxy with a path and an identity of its own, ready.
    pub async fn proxy(&self, name: &str, config: &str) -> Daemon {
        let program = self.own_program(&format!("{name}-proxy"), &programs::path("mesh-proxy"));
        self.entry(name, &program.display().to_string());
        let config = self.write(&format!("{name}.yaml"), config);
        Daemon::start_ready(name, &program, &config, self.dir.path()).await
    }

    /// `pay`, in front of `application`, with dev mode's policy.
    pub async fn pay(&self, application: SocketAddr) -> Daemon {
        self.write("policy.yaml", files::POLICY);
        self.proxy("pay", &files::pay(&self.text(), application))
            .await
    }

    /// A caller of `pay`.
    pub async fn caller(&self, name: &str, pay: &Daemon) -> Daemon {
        self.proxy(
            name,
            &files::caller(&self.text(), name, pay.address("inbound")),
        )
        .await
    }

    /// The audit records that a program has written so far.
    pub fn audit(&self, program: &str) -> Vec<Value> {
        let Ok(folder) = fs::read_dir(self.path("audit").join(program)) else {
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = folder
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        files.sort();
        let text: String = files
            .iter()
            .filter_map(|file| fs::read_to_string(file).ok())
            .collect();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The folder as text.
    pub fn text(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file in the folder.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }
}
