//! The programs of the demonstration, started in order and stopped in reverse: authority, agent, three
//! proxied workloads. `shop` calls `pay`; `guest` has an identity too, and no permission.

use std::{
    io,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use thiserror::Error;
use tokio::process::Command;

use super::{
    DevError, Events,
    app::App,
    events::Event,
    files,
    place::Place,
    process::Process,
    programs::{cargo_build, under_cargo},
};

/// Why a program cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ProgramError {
    /// It is not beside this program.
    #[error("{0} is not beside finial; build it with `cargo build --bins`")]
    Missing(PathBuf),
    /// Where this program is cannot be told.
    #[error("the folder of finial cannot be told")]
    Nowhere(#[source] io::Error),
    /// Cargo could not build them.
    #[error("cargo could not build the daemons")]
    Build,
    /// A verb failed.
    #[error("`{command}` failed: {said}")]
    Verb {
        /// What was run.
        command: String,
        /// What it wrote to standard error.
        said: String,
    },
}

/// Where the daemons are.
pub(crate) struct Programs {
    ca_server: PathBuf,
    workload_agent: PathBuf,
    mesh_proxy: PathBuf,
}

/// The daemons beside this program. Run by cargo in a workspace, they are built first, so that the scene
/// always shows the code that is there.
pub(crate) fn programs() -> Result<Programs, ProgramError> {
    let own = std::env::current_exe().map_err(ProgramError::Nowhere)?;
    let folder = own.parent().unwrap_or(Path::new("."));
    let daemons = ["--workspace", "--bins"]; // the features that `cargo dev` itself was built with
    if under_cargo() && !cargo_build(folder, &daemons) {
        return Err(ProgramError::Build);
    }
    let find = |name: &str| {
        let path = folder.join(name);
        if path.exists() {
            Ok(path)
        } else {
            Err(ProgramError::Missing(path))
        }
    };
    Ok(Programs {
        ca_server: find("ca-server")?,
        workload_agent: find("workload-agent")?,
        mesh_proxy: find("mesh-proxy")?,
    })
}

/// Everything that runs.
pub(crate) struct Mesh<'p> {
    pub(crate) place: &'p Place,
    pub(crate) ca: Process,
    pub(crate) agent: Process,
    pub(crate) pay: Process,
    pub(crate) shop: Process,
    pub(crate) guest: Process,
    _app: App,
}

impl<'p> Mesh<'p> {
    /// Starts all of it and returns when every part is ready.
    pub(crate) async fn start(
        place: &'p Place,
        programs: &Programs,
        events: Events,
    ) -> Result<Self, DevError> {
        let dir = place.path();
        let text = place.path().display().to_string();
        let ca = start_ca(place, programs, events).await?;
        let verb = Verbs { programs, dir };
        let bundle = verb.ca(&["bundle", "show", "--format", "pem"]).await?;
        place.write("bundle.pem", &bundle)?;
        let token = verb
            .ca(&["token", "generate", "--ttl", "600", "-o", "json"])
            .await?;
        let token = json_text(&token, "token")?;
        place.write("join-token", &token)?;

        let config = place.write(
            "agent.yaml",
            &files::workload_agent(&text, ca.address("grpc")),
        )?;
        let mut agent = Process::start(
            "workload-agent",
            &programs.workload_agent,
            &config,
            dir,
            &[],
        )
        .await?;
        agent.ready().await?;
        let agent_id = format!(
            "spiffe://{}/spire/agent/join_token/{token}",
            files::TRUST_DOMAIN
        );
        let agents = verb.ca(&["agent", "list", "-o", "json"]).await?;
        if !agents.contains(&agent_id) {
            return Err(DevError::Scene {
                line: "the agent is known by the token it used",
                because: agents,
            });
        }
        events.say(&Event {
            event: "agent.attested",
            who: "workload-agent",
            what: "attested",
            text: format!("{agent_id}  (token used once, now void)"),
        });

        let app = App::start().await.map_err(|cause| DevError::System {
            what: "a port for the application",
            cause,
        })?;
        place.write("policy.yaml", files::POLICY)?;
        let start = Starter {
            place,
            programs,
            verb,
            agent_id: &agent_id,
            events,
        };
        let pay = start.proxy("pay", files::pay(&text, app.address())).await?;
        let inbound = pay.address("inbound").to_owned();
        let shop = start
            .proxy("shop", files::caller(&text, "shop", &inbound))
            .await?;
        let guest = start
            .proxy("guest", files::caller(&text, "guest", &inbound))
            .await?;
        Ok(Self {
            place,
            ca,
            agent,
            pay,
            shop,
            guest,
            _app: app,
        })
    }

    /// Stops everything in reverse order, each with time to drain.
    pub(crate) async fn stop(self) -> Result<(), DevError> {
        for process in [self.guest, self.shop, self.pay, self.agent, self.ca] {
            let name = process.name().to_owned();
            let status = process.stop(Duration::from_secs(2)).await;
            if !status.is_some_and(|status| status.success()) {
                return Err(DevError::Scene {
                    line: "everything stops when it is asked to",
                    because: format!("{name} ended with {status:?}"),
                });
            }
        }
        Ok(())
    }
}

async fn start_ca(place: &Place, programs: &Programs, events: Events) -> Result<Process, DevError> {
    let text = place.path().display().to_string();
    let config = place.write("ca.yaml", &files::ca_server(&text))?;
    let mut ca =
        Process::start("ca-server", &programs.ca_server, &config, place.path(), &[]).await?;
    ca.ready().await?;
    events.say(&Event {
        event: "ca.ready",
        who: "ca-server",
        what: "ready",
        text: format!(
            "trust domain {} · sled {text}/ca · grpc {} · metrics http://{}/metrics",
            files::TRUST_DOMAIN,
            ca.address("grpc"),
            ca.address("metrics"),
        ),
    });
    Ok(ca)
}

struct Starter<'s> {
    place: &'s Place,
    programs: &'s Programs,
    verb: Verbs<'s>,
    agent_id: &'s str,
    events: Events,
}

impl Starter<'_> {
    /// A workload: an entry that names its path and uid, and its proxy at that path.
    async fn proxy(&self, name: &str, config: String) -> Result<Process, DevError> {
        let program = self
            .place
            .link(&self.programs.mesh_proxy, &format!("{name}-proxy"))?;
        let uid = nix::unistd::getuid();
        let id = format!("spiffe://{}/{name}", files::TRUST_DOMAIN);
        let (by_uid, by_path) = (
            format!("unix:uid:{uid}"),
            format!("unix:path:{}", program.display()),
        );
        self.verb
            .ca(&[
                "entry",
                "create",
                "--parent-id",
                self.agent_id,
                "--spiffe-id",
                &id,
                "--selector",
                &by_uid,
                "--selector",
                &by_path,
            ])
            .await?;
        let config = self.place.write(&format!("{name}.yaml"), &config)?;
        let mut proxy = Process::start(name, &program, &config, self.place.path(), &[]).await?;
        proxy.ready().await?;
        let pid = proxy.pid().to_string();
        let said = self
            .verb
            .agent(&["explain", "--pid", &pid, "-o", "json"])
            .await?;
        let entry = entry_of(&said, &id, &[&by_path, &by_uid]).ok_or(DevError::Scene {
            line: "each process has the one identity that its entry gives it",
            because: said,
        })?;
        self.events.say(&Event {
            event: "proxy.identity",
            who: &format!("{name}-proxy"),
            what: "identity",
            text: format!(
                "{id}  {}s\nwhy: {by_path}, {by_uid} matched entry {entry}",
                files::SVID_SECONDS
            ),
        });
        Ok(proxy)
    }
}

#[derive(Clone, Copy)]
struct Verbs<'v> {
    programs: &'v Programs,
    dir: &'v Path,
}

impl Verbs<'_> {
    /// A verb of ca-server.
    async fn ca(self, arguments: &[&str]) -> Result<String, ProgramError> {
        self.run(&self.programs.ca_server, "ca-admin.sock", arguments)
            .await
    }

    /// A verb of workload-agent for administrators.
    async fn agent(self, arguments: &[&str]) -> Result<String, ProgramError> {
        self.run(&self.programs.workload_agent, "agent-admin.sock", arguments)
            .await
    }

    async fn run(
        self,
        program: &Path,
        socket: &str,
        arguments: &[&str],
    ) -> Result<String, ProgramError> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--admin-socket")
            .arg(self.dir.join(socket))
            .current_dir(self.dir);
        let failed = |said: String| ProgramError::Verb {
            command: format!("{} {}", program.display(), arguments.join(" ")),
            said,
        };
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().await.map_err(|e| failed(e.to_string()))?;
        if !status.success() {
            return Err(failed(String::from_utf8_lossy(&stderr).into_owned()));
        }
        String::from_utf8(stdout).map_err(|e| failed(e.to_string()))
    }
}

/// The entry that gives a process this identity and no other one, if it was attested with these selectors.
fn entry_of(explained: &str, id: &str, selectors: &[&str]) -> Option<String> {
    let explained: serde_json::Value = serde_json::from_str(explained).ok()?;
    let [entry] = explained["matchingEntries"].as_array()?.as_slice() else {
        return None;
    };
    let attested = explained["selectors"].as_array()?;
    let all = selectors
        .iter()
        .all(|wanted| attested.iter().any(|one| one == wanted));
    (entry["spiffeId"] == id && all).then(|| entry["id"].as_str().map(str::to_owned))?
}

fn json_text(text: &str, key: &str) -> Result<String, ProgramError> {
    serde_json::from_str::<serde_json::Value>(text)
        .ok()
        .and_then(|value| value[key].as_str().map(str::to_owned))
        .ok_or_else(|| ProgramError::Verb {
            command: "ca-server token generate".into(),
            said: format!("its answer has no `{key}`"),
        })
}
