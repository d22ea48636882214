//! `workload-agent helper` as a program: files through rotations with a reader that never rests, commands and signals, and refusals.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh_identity::X509Svid;

use crate::{
    ca::Ca,
    rig::{Agent, eventually, my_uid},
};

/// A running helper; killed when dropped.
struct Helper {
    child: Child,
    dir: PathBuf,
}

const X509: &str = "svid_file_name = \"svid.pem\"\nsvid_key_file_name = \"svid.key\"\n\
                    svid_bundle_file_name = \"bundle.pem\"\n";

fn configured(agent: &Agent, more: &str) -> (PathBuf, PathBuf) {
    let dir = agent.dir.path().join("files");
    fs::create_dir_all(&dir).unwrap();
    let path = agent.dir.path().join("helper.conf");
    let text = format!(
        "agent_address = \"{}\"\ncert_dir = \"{}\"\n{more}\n",
        agent.socket().display(),
        dir.display()
    );
    fs::write(&path, text).unwrap();
    (path, dir)
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_workload-agent"));
    command.arg("helper").arg("--config").arg(config);
    command.stdin(Stdio::null());
    command
}

impl Helper {
    fn start(agent: &Agent, more: &str) -> Self {
        let (config, dir) = configured(agent, more);
        let child = command(&config).spawn().unwrap();
        Self { child, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn serial(&self) -> Option<String> {
        let pem = fs::read(self.file("svid.pem")).ok()?;
        Some(X509Svid::from_pem(&pem).unwrap().serial().to_owned())
    }

    fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a careful reader does: one look at the link, then certificate and key of that generation. Whether they fit.
fn pair(dir: &Path) -> Option<bool> {
    let generation = dir.join(fs::read_link(dir.join("..data")).ok()?);
    let svid = X509Svid::from_pem(&fs::read(generation.join("svid.pem")).ok()?).expect("whole");
    let key = fs::read_to_string(generation.join("svid.key")).ok()?;
    let key = rcgen::KeyPair::from_pem(&key).expect("whole");
    Some(rcgen::PublicKeyData::subject_public_key_info(&key) == svid.spki())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_whole_and_fit_each_other_through_rotations_while_another_reads() {
    let ca = Ca::start().await;
    ca.knobs().svid_ttl = Duration::from_secs(4);
    ca.foreign_bundle("friend.test");
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.federates_with = vec!["friend.test".into()]
    });
    let agent = Agent::start(&ca).await;
    let more = format!("{X509}include_federated_domains = true\nkey_file_mode = 0640\n");
    let mut helper = Helper::start(&agent, &more);
    eventually("the files come", async || helper.serial().is_some()).await;

    let (stop, dir) = (Arc::new(AtomicBool::new(false)), helper.dir.clone());
    let reader = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut looks = 0;
            while !stop.load(Ordering::Relaxed) {
                // By its name, each file is whole whenever it is opened.
                let text = fs::read(dir.join("svid.pem")).unwrap();
                X509Svid::from_pem(&text).unwrap();
                let text = fs::read_to_string(dir.join("svid.key")).unwrap();
                rcgen::KeyPair::from_pem(&text).unwrap();
                assert_ne!(
                    pair(&dir),
                    Some(false),
                    "a certificate beside another's key"
                );
                looks += 1;
            }
            looks
        }
    });
    let mut seen = std::collections::BTreeSet::new();
    eventually("two rotations", async || {
        seen.extend(helper.serial());
        seen.len() >= 3
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 50, "the reader really read");

    assert_eq!(
        fs::metadata(helper.file("svid.key")).unwrap().mode() & 0o777,
        0o640
    );
    let roots = fs::read_to_string(helper.file("bundle.pem")).unwrap();
    let own = ca.bundle().x509_authorities().len();
    let roots = roots.matches("BEGIN CERTIFICATE").count();
    assert_eq!(
        roots,
        own + 1,
        "and the one of the trust domain that it federates with"
    );
    assert!(helper.terminate().success());
    let svid = helper
        .serial()
        .expect("the files stay when the helper ends");
    assert!(!svid.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_started_with_the_first_files_told_of_the_next_and_ends_with_the_helper() {
    let ca = Ca::start().await;
    ca.knobs().svid_ttl = Duration::from_secs(4);
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let (script, heard) = (
        agent.dir.path().join("app.sh"),
        agent.dir.path().join("heard"),
    );
    let text = "test -s \"$1/svid.pem\" && echo started >> \"$2\"\n\
                trap 'echo renewed >> \"$2\"' USR1\ntrap 'echo ended >> \"$2\"; exit 0' TERM\n\
                while :; do sleep 0.1; done\n";
    fs::write(&script, text).unwrap();
    let more = format!(
        "{X509}cmd = \"sh\"\ncmd_args = \"\\\"{}\\\" {} {}\"\nrenew_signal = \"SIGUSR1\"\n",
        script.display(),
        agent.dir.path().join("files").display(),
        heard.display()
    );
    let mut helper = Helper::start(&agent, &more);
    let lines = || -> Vec<String> {
        let text = fs::read_to_string(&heard).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    eventually("two renewals are told", async || lines().len() >= 3).await;
    assert_eq!(lines()[0], "started");
    assert!(
        lines()[1..].iter().all(|line| line == "renewed"),
        "{:?}",
        lines()
    );
    assert!(helper.terminate().success());
    assert_eq!(lines().last().unwrap(), "ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_command_runs_at_each_renewal_and_a_pid_file_is_signalled() {
    let ca = Ca::start().await;
    ca.knobs().svid_ttl = Duration::from_secs(4);
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let path = |name: &str| agent.dir.path().join(name);
    let mut other = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "trap 'echo told >> {}' USR1; echo $$ > {}; while :; do sleep 0.1; done",
            path("told").display(),
            path("pid").display()
        ))
        .spawn()
        .unwrap();
    let more = format!(
        "{X509}cmd = \"sh\"\ncmd_args = \"-c \\\"echo ran >> {}\\\"\"\npid_file_name = \"{}\"\n\
         renew_signal = \"SIGUSR1\"\n",
        path("ran").display(),
        path("pid").display()
    );
    let helper = Helper::start(&agent, &more);
    let count = |name: &str| {
        fs::read_to_string(path(name))
            .unwrap_or_default()
            .lines()
            .count()
    };
    eventually("both hear of two renewals", async || {
        count("ran") >= 2 && count("told") >= 2
    })
    .await;
    drop(helper);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_their_keys_become_files_and_are_renewed() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let more = "jwt_svids = [{jwt_audience=\"bank\", jwt_extra_audiences=[\"shop\"], jwt_svid_file_name=\"bank.token\"}]\n\
                jwt_bundle_file_name = \"keys.json\"\n";
    let helper = Helper::start(&agent, more);
    let read = |name: &str| fs::read_to_string(helper.file(name)).unwrap_or_default();
    eventually("both files come", async || {
        !read("bank.token").is_empty() && !read("keys.json").is_empty()
    })
    .await;
    assert_eq!(read("bank.token").split('.').count(), 3);
    assert_eq!(
        fs::metadata(helper.file("bank.token")).unwrap().mode() & 0o777,
        0o600
    );
    let keys: serde_json::Value = serde_json::from_str(&read("keys.json")).unwrap();
    let coded = keys["dev.test"].as_str().unwrap();
    use base64::Engine as _;
    let jwks = base64::engine::general_purpose::STANDARD
        .decode(coded)
        .unwrap();
    let jwks: serde_json::Value = serde_json::from_slice(&jwks).unwrap();
    assert!(!jwks["keys"].as_array().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_daemon_the_files_are_written_once_and_a_refusal_leaves_the_old_ones() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let (config, dir) = configured(&agent, &format!("{X509}daemon_mode = false\n"));
    let once =
        |config: PathBuf| tokio::task::spawn_blocking(move || command(&config).output().unwrap());
    let done = once(config.clone()).await.unwrap();
    assert!(done.status.success(), "{done:?}");
    assert_eq!(pair(&dir), Some(true));
    ca.remove_entry("pay");
    eventually("the identity is withdrawn", async || {
        agent.fetch().await.is_err()
    })
    .await;
    let refused = once(config.clone()).await.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("error[FNL2034]") && said.contains("X.509 identity"),
        "{said}"
    );
    assert_eq!(pair(&dir), Some(true), "the former files stay");

    // The flag counts more than the file.
    fs::write(
        &config,
        fs::read_to_string(&config)
            .unwrap()
            .replace("daemon_mode = false", ""),
    )
    .unwrap();
    let mut flagged = command(&config);
    flagged.args(["--daemon-mode", "false"]);
    let flagged = tokio::task::spawn_blocking(move || flagged.output().unwrap());
    assert_eq!(flagged.await.unwrap().status.code(), Some(1));

    fs::write(&config, "cert_dir = \"x\"\nno_such_key = 1\n").unwrap();
    let wrong = once(config).await.unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains("error[FNL2033]") && said.contains("no_such_key"),
        "{said}"
    );
}
