//! Callers that are not what they seem: security.md M10 and AG-01 to AG-14, with real processes.
//! The helper is this very test program, run again under another name by `Helper`.

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::AsFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use nix::unistd::Gid;
use proto::{
    convert::workload::X509Context,
    envoy::service::{
        discovery::v3::DiscoveryRequest,
        secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
    spiffe::workload::{self as wire, spiffe_workload_api_client::SpiffeWorkloadApiClient},
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    ca::Ca,
    rig::{Agent, eventually, my_uid, next, quiet, raw, with_header},
};

pub(crate) const ROLE: &str = "AGENT_TEST_HELPER";

/// The other process: connects to the agent, hands the connection over, waits for a byte, then does what its role says.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the role of a helper process can come to a test only by the environment"
)]
fn helper() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let mut words = role.split('|');
    let (agent, handover, then) = (
        words.next().unwrap(),
        words.next().unwrap(),
        words.next().unwrap(),
    );
    if then == "regroup" {
        nix::unistd::setgroups(&[Gid::from_raw(4242)]).unwrap();
    }
    let to_agent = UnixStream::connect(agent).unwrap();
    let mut to_test = UnixStream::connect(handover).unwrap();
    let fds = [to_agent.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(
        &to_test,
        &[IoSlice::new(b"x")],
        &mut ancillary,
        SendFlags::empty(),
    )
    .unwrap();
    to_test.read_exact(&mut [0]).unwrap();
    match then {
        "exit" => std::process::exit(0),
        // To groups that every machine has a name for, and that no machine has.
        "regroup" => {
            nix::unistd::setgroups(&[Gid::from_raw(1), Gid::from_raw(4243)]).unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
        // The connection stays open across the exec only in the test's copy; that is enough.
        program => {
            let error = Command::new(program).arg("600").exec();
            panic!("{program}: {error}");
        }
    }
}

struct Helper {
    child: Child,
    /// Its side of the handover; a byte lets it go on.
    line: UnixStream,
    /// Its connection to the agent.
    connection: Option<UnixStream>,
    program: PathBuf,
}

impl Helper {
    fn start(agent: &Agent, uid: u32, then: &str) -> Self {
        let dir = agent.dir.path();
        // A copy in a place that every user can reach, under a path of its own.
        let program = dir.join("helper");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let handover = dir.join("handover.sock");
        let listener = UnixListener::bind(&handover).unwrap();
        std::fs::set_permissions(&handover, std::fs::Permissions::from_mode(0o777)).unwrap();
        let role = format!("{}|{}|{then}", agent.socket().display(), handover.display());
        let mut command = Command::new(&program);
        command
            .args(["--exact", "peers::helper", "--nocapture"])
            .env(ROLE, role)
            .env("HOME", "/")
            .current_dir("/");
        if nix::unistd::geteuid().is_root() {
            command.uid(uid).gid(uid);
        }
        let child = command.spawn().unwrap();
        let (line, _) = listener.accept().unwrap();
        let connection = receive_fd(&line);
        Self {
            child,
            line,
            connection: Some(connection),
            program,
        }
    }

    /// Its connection, used by us.
    async fn client(&mut self) -> SpiffeWorkloadApiClient<Channel> {
        over(self.connection.take().unwrap()).await.unwrap()
    }

    fn go_on(&mut self) {
        self.line.write_all(b"x").unwrap();
    }

    fn runs(&self, program: &Path) -> bool {
        std::fs::read_link(format!("/proc/{}/exe", self.child.id())).is_ok_and(|exe| exe == program)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn receive_fd(line: &UnixStream) -> UnixStream {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        line,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    UnixStream::from(fd.unwrap())
}

/// A client on a connection that somebody else made.
pub(crate) async fn over(
    connection: UnixStream,
) -> Result<SpiffeWorkloadApiClient<Channel>, tonic::transport::Error> {
    channel_over(connection)
        .await
        .map(SpiffeWorkloadApiClient::new)
}

async fn channel_over(connection: UnixStream) -> Result<Channel, tonic::transport::Error> {
    connection.set_nonblocking(true).unwrap();
    let mut connection = Some(TokioIo::new(
        tokio::net::UnixStream::from_std(connection).unwrap(),
    ));
    let connector = tower::service_fn(move |_: Uri| {
        let once = connection.take();
        async move { once.ok_or_else(|| std::io::Error::other("there is only one connection")) }
    });
    let endpoint = Endpoint::from_static("http://agent");
    endpoint.connect_with_connector(connector).await
}

pub(crate) async fn open(
    client: &mut SpiffeWorkloadApiClient<Channel>,
) -> Result<Streaming<wire::X509svidResponse>, Status> {
    Ok(client
        .fetch_x509svid(with_header(wire::X509svidRequest {}))
        .await?
        .into_inner())
}

/// The stream, as soon as the caller has an identity.
async fn opened(
    client: &mut SpiffeWorkloadApiClient<Channel>,
) -> Streaming<wire::X509svidResponse> {
    let mut stream = None;
    eventually("it has its identity", async || {
        stream = open(client).await.ok();
        stream.is_some()
    })
    .await;
    stream.unwrap()
}

pub(crate) fn paths(context: &X509Context) -> Vec<String> {
    context
        .identities()
        .iter()
        .map(|identity| identity.svid.id().path().to_owned())
        .collect()
}

pub(crate) fn is_root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: {what} needs root");
    }
    root
}

#[tokio::test]
async fn ag_03_wep_16_when_the_connector_exits_its_socket_is_worth_nothing_whoever_holds_it() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &["unix:uid:65534"]);
    ca.entry("mine", "/mine", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let uid = if nix::unistd::geteuid().is_root() {
        65534
    } else {
        nix::unistd::geteuid().as_raw()
    };
    let mut helper = Helper::start(&agent, uid, "exit");
    let mut client = helper.client().await;
    let mut stream = open(&mut client).await.unwrap();
    next(&mut stream).await.unwrap();
    helper.go_on();
    let started = tokio::time::Instant::now();
    let status = next(&mut stream).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    // Nor does a new call on it work, though a copy of the socket is still open.
    assert!(open(&mut client).await.is_err());
}

#[tokio::test]
async fn ag_03_a_connector_that_exits_before_its_first_call_is_nobody() {
    let ca = Ca::start().await;
    ca.entry("any", "/any", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut helper = Helper::start(&agent, nix::unistd::geteuid().as_raw(), "exit");
    helper.go_on();
    helper.child.wait().unwrap();
    let mut client = helper.client().await;
    assert!(open(&mut client).await.is_err());
}

#[tokio::test]
async fn ag_07_a_socket_that_is_handed_on_carries_the_identity_of_its_connector_only() {
    if !is_root("another user's process") {
        return;
    }
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let helper_path = format!("unix:path:{}", agent.dir.path().join("helper").display());
    ca.entry("connector", "/connector", &["unix:uid:65534", &helper_path]);
    ca.entry("holder", "/holder", &[&my_uid()]);
    eventually("the entries are there", async || {
        agent.fetch().await.is_ok()
    })
    .await;
    let mut helper = Helper::start(&agent, 65534, "exit");
    let mut client = helper.client().await;
    let context = next(&mut open(&mut client).await.unwrap()).await.unwrap();
    assert_eq!(paths(&context), ["/connector"]);
}

#[tokio::test]
async fn ag_02_a_setuid_program_is_who_connected_and_not_who_it_became() {
    if !is_root("a setuid program") {
        return;
    }
    let ca = Ca::start().await;
    ca.entry("nobody", "/nobody", &["unix:uid:65534"]);
    ca.entry("root", "/root", &["unix:uid:0"]);
    let agent = Agent::start(&ca).await;
    let setuid = agent.dir.path().join("setuid-sleep");
    std::fs::copy("/bin/sleep", &setuid).unwrap();
    std::fs::set_permissions(&setuid, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let mut helper = Helper::start(&agent, 65534, setuid.to_str().unwrap());
    helper.go_on();
    eventually("the setuid program runs", async || helper.runs(&setuid)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.child.id())).unwrap();
    if !status
        .lines()
        .any(|line| line.starts_with("Uid:\t65534\t0\t"))
    {
        println!("skipped: setuid has no effect on this file system");
        return;
    }
    let mut client = helper.client().await;
    let context = next(&mut open(&mut client).await.unwrap()).await.unwrap();
    assert_eq!(paths(&context), ["/nobody"]);
}

#[tokio::test]
async fn ag_01_a_process_that_became_another_program_gets_no_new_key_of_the_first() {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let helper_path = format!("unix:path:{}", agent.dir.path().join("helper").display());
    ca.entry("first", "/first", &[&helper_path]);
    let uid = nix::unistd::geteuid().as_raw();
    let sleep = Path::new("/bin/sleep").canonicalize().unwrap();
    let mut helper = Helper::start(&agent, uid, sleep.to_str().unwrap());
    let mut client = helper.client().await;
    let mut stream = opened(&mut client).await;
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/first"]);
    helper.go_on();
    eventually("the second program runs", async || helper.runs(&sleep)).await;
    // Anything new makes the agent look again.
    ca.entry_with("first", "/first", &[&helper_path], |entry| {
        entry.dns_names = vec!["x.test".into()]
    });
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert!(helper.program.exists());
}

#[tokio::test]
async fn ag_01_a_process_that_became_another_program_loses_its_stream_though_nothing_else_changed()
{
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let helper_path = format!("unix:path:{}", agent.dir.path().join("helper").display());
    ca.entry("first", "/first", &[&helper_path]);
    let uid = nix::unistd::geteuid().as_raw();
    let sleep = Path::new("/bin/sleep").canonicalize().unwrap();
    let mut helper = Helper::start(&agent, uid, sleep.to_str().unwrap());
    let mut client = helper.client().await;
    let mut stream = opened(&mut client).await;
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/first"]);
    let asked = wire::X509BundlesRequest {};
    let bundles = client.fetch_x509_bundles(with_header(asked)).await;
    let mut bundles = bundles.unwrap().into_inner();
    raw(&mut bundles).await.unwrap();
    // For longer than a glance takes to come: a process that stays what it is keeps its stream, and is told nothing twice.
    assert!(quiet(&mut stream, Duration::from_secs(6)).await);

    helper.go_on();
    let started = tokio::time::Instant::now();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let status = raw(&mut bundles).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    assert!(helper.runs(&sleep), "it lives, as another program");
}

#[tokio::test]
async fn ag_01_a_process_that_became_another_program_with_an_identity_gets_that_one_in_place_of_its_own()
 {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let helper_path = format!("unix:path:{}", agent.dir.path().join("helper").display());
    let sleep = Path::new("/bin/sleep").canonicalize().unwrap();
    ca.entry("first", "/first", &[&helper_path]);
    ca.entry(
        "second",
        "/second",
        &[&format!("unix:path:{}", sleep.display())],
    );
    let uid = nix::unistd::geteuid().as_raw();
    let mut helper = Helper::start(&agent, uid, sleep.to_str().unwrap());
    let mut client = helper.client().await;
    let mut stream = opened(&mut client).await;
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/first"]);
    helper.go_on();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/second"]);
}

#[tokio::test]
async fn ag_01_an_envoy_that_became_another_program_loses_its_stream_of_secrets() {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let helper_path = format!("unix:path:{}", agent.dir.path().join("helper").display());
    ca.entry("first", "/first", &[&helper_path]);
    let sleep = Path::new("/bin/sleep").canonicalize().unwrap();
    let uid = nix::unistd::geteuid().as_raw();
    let mut helper = Helper::start(&agent, uid, sleep.to_str().unwrap());
    let connection = helper.connection.take().unwrap();
    let channel = channel_over(connection).await.unwrap();
    opened(&mut SpiffeWorkloadApiClient::new(channel.clone())).await;
    let (asks, coming) = tokio::sync::mpsc::channel(1);
    let ask = DiscoveryRequest {
        resource_names: vec!["default".into()],
        ..DiscoveryRequest::default()
    };
    asks.send(ask).await.unwrap();
    let answers = SecretDiscoveryServiceClient::new(channel)
        .stream_secrets(ReceiverStream::new(coming))
        .await;
    let mut answers = answers.unwrap().into_inner();
    assert_eq!(raw(&mut answers).await.unwrap().resources.len(), 1);
    helper.go_on();
    let status = raw(&mut answers).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}

#[tokio::test]
async fn a_process_that_changes_its_groups_is_judged_again_by_number_and_by_name() {
    if !is_root("setgroups") {
        return;
    }
    let Ok(Some(named)) = nix::unistd::Group::from_gid(Gid::from_raw(1)) else {
        println!("skipped: group 1 has no name on this machine");
        return;
    };
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    ca.entry("a", "/before", &["unix:supplementary_gid:4242"]);
    let mut helper = Helper::start(&agent, 0, "regroup");
    let mut client = helper.client().await;
    let mut stream = opened(&mut client).await;
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/before"]);
    // The first entry that asks for the name of a supplementary group: the process is looked at again for it.
    let name = format!("unix:supplementary_group:{}", named.name);
    ca.entry("b", "/named", &[&name]);
    assert!(quiet(&mut stream, Duration::from_millis(500)).await);
    helper.go_on();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/named"]);
    ca.entry("c", "/both", &[&name, "unix:supplementary_gid:4243"]);
    let both = next(&mut stream).await.unwrap();
    assert_eq!(paths(&both), ["/named", "/both"]);
}

#[tokio::test]
async fn an_entry_that_asks_for_a_fact_nobody_asked_for_before_reaches_open_streams() {
    let ca = Ca::start().await;
    ca.entry("a", "/any", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/any"]);
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &program);
    let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    ca.entry("b", "/this", &[&format!("unix:sha256:{digest}")]);
    let both = next(&mut stream).await.unwrap();
    assert_eq!(paths(&both), ["/any", "/this"]);
}

#[tokio::test]
async fn ag_06_root_inside_a_user_namespace_is_the_user_outside() {
    if !is_root("another user's process") {
        return;
    }
    let ca = Ca::start().await;
    ca.entry("nobody", "/nobody", &["unix:uid:65534"]);
    ca.entry("root", "/root", &["unix:uid:0"]);
    let agent = Agent::start(&ca).await;
    let program = agent.dir.path().join("client");
    std::fs::copy(env!("CARGO_BIN_EXE_workload-agent"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let call = |prefix: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(prefix)
            .arg(&program);
        command
            .args([
                "api",
                "fetch",
                "x509",
                "-o",
                "json",
                "--socket",
                agent.socket().to_str().unwrap(),
            ])
            .current_dir("/");
        tokio::task::spawn_blocking(move || command.output())
    };
    let Ok(inside) = call(&["unshare", "--user", "--map-root-user"])
        .await
        .unwrap()
    else {
        println!("skipped: there is no `setpriv` on this machine (package util-linux)");
        return;
    };
    let text = String::from_utf8_lossy(&inside.stdout).into_owned();
    if !inside.status.success() && String::from_utf8_lossy(&inside.stderr).contains("unshare") {
        println!("skipped: this kernel lets no user make namespaces");
        return;
    }
    assert!(
        text.contains("spiffe://dev.test/nobody") && !text.contains("spiffe://dev.test/root"),
        "{inside:?}"
    );
}

#[tokio::test]
async fn ag_05_a_caller_of_a_foreign_pid_namespace_is_refused() {
    if !is_root("a pid namespace") {
        return;
    }
    let ca = Ca::start().await;
    ca.entry("any", "/any", &[&my_uid()]);
    ca.token("in-a-namespace");
    let dir = crate::rig::directory();
    std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    let config = dir.path().join("agent.yaml");
    std::fs::write(
        &config,
        crate::rig::yaml(&ca, dir.path(), &crate::rig::join_token("in-a-namespace")),
    )
    .unwrap();
    let addresses = dir.path().join("addresses.json");
    let spawned = Command::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            env!("CARGO_BIN_EXE_workload-agent"),
            "run",
            "--config",
        ])
        .arg(&config)
        .arg("--addresses-file")
        .arg(&addresses)
        .spawn();
    let Ok(mut child) = spawned else {
        println!("skipped: there is no `unshare` on this machine (package util-linux)");
        return;
    };
    eventually(
        "the agent in the namespace is ready",
        async || match std::fs::read_to_string(&addresses) {
            Ok(text) => {
                let address: serde_json::Value = serde_json::from_str(&text).unwrap();
                crate::rig::http_get(address["metrics"].as_str().unwrap(), "/ready")
                    .await
                    .contains("200 OK")
            }
            Err(_) => child.try_wait().unwrap().is_some(),
        },
    )
    .await;
    if child.try_wait().unwrap().is_some() {
        println!("skipped: this machine allows no pid namespace");
        return;
    }
    let client = tokio::net::UnixStream::connect(dir.path().join("public/api.sock"))
        .await
        .unwrap();
    let mut client = Some(TokioIo::new(client));
    let connector = tower::service_fn(move |_: Uri| {
        let once = client.take();
        async move { once.ok_or_else(|| std::io::Error::other("refused")) }
    });
    let outcome = match Endpoint::from_static("http://agent")
        .connect_with_connector(connector)
        .await
    {
        Ok(channel) => open(&mut SpiffeWorkloadApiClient::new(channel))
            .await
            .err()
            .map(|status| status.code()),
        Err(_) => Some(Code::Unavailable),
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        outcome.is_some_and(|code| code != Code::Ok),
        "no stream for somebody whose pid reads as 0"
    );
}

#[tokio::test]
async fn ag_08_connections_that_come_and_go_leave_nothing_behind() {
    let ca = Ca::start().await;
    ca.entry("any", "/any", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    let count = |metrics: &str| -> i64 {
        let line = metrics
            .lines()
            .find(|line| line.starts_with("process_open_fds "))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as i64
    };
    // Other tests run in this process at the same time; what 2,000 leaks would add stands out.
    let before = count(&agent.metrics().await);
    for round in 0..2000 {
        let connection = tokio::net::UnixStream::connect(agent.socket())
            .await
            .unwrap();
        if round % 100 == 0 {
            agent.fetch().await.unwrap();
        }
        drop(connection);
    }
    eventually("the descriptors are closed", async || {
        count(&agent.metrics().await) < before + 400
    })
    .await;
}

#[tokio::test]
async fn ag_14_one_user_cannot_take_every_place() {
    if !is_root("two users") {
        return;
    }
    let ca = Ca::start().await;
    ca.entry("nobody", "/nobody", &["unix:uid:65534"]);
    let few = |yaml| yaml + "limits:\n  connectionsPerUid: 1000\n";
    let agent = Agent::start_changed(&ca, few).await;
    let mut taken = Vec::new();
    for _ in 0..1100 {
        // Over the cap the agent closes at once; the connect itself still works.
        taken.push(
            tokio::net::UnixStream::connect(agent.socket())
                .await
                .unwrap(),
        );
    }
    eventually("the cap bites", async || {
        agent
            .metrics()
            .await
            .contains("refused_connections_total{reason=\"too_many\"}")
    })
    .await;
    let mut helper = Helper::start(&agent, 65534, "exit");
    let started = tokio::time::Instant::now();
    let context = next(&mut open(&mut helper.client().await).await.unwrap())
        .await
        .unwrap();
    assert_eq!(paths(&context), ["/nobody"]);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    drop(taken);
}

#[tokio::test]
async fn a_supplementary_group_is_a_fact() {
    let groups = std::fs::read_to_string("/proc/self/status").unwrap();
    let groups = groups
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .unwrap()
        .trim();
    let Some(group) = groups.split_ascii_whitespace().next() else {
        println!("skipped: this process has no supplementary group");
        return;
    };
    let ca = Ca::start().await;
    ca.entry(
        "member",
        "/member",
        &[&format!("unix:supplementary_gid:{group}")],
    );
    let agent = Agent::start(&ca).await;
    assert_eq!(paths(&agent.fetch().await.unwrap()), ["/member"]);
}

#[tokio::test]
async fn a_digest_selector_finds_the_program_and_no_other() {
    let ca = Ca::start().await;
    let digest = ring::digest::digest(
        &ring::digest::SHA256,
        &std::fs::read(std::env::current_exe().unwrap()).unwrap(),
    );
    let digest: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ca.entry("this", "/this", &[&format!("unix:sha256:{digest}")]);
    ca.entry(
        "other",
        "/other",
        &[&format!("unix:sha256:{}", "0".repeat(64))],
    );
    let agent = Agent::start(&ca).await;
    assert_eq!(paths(&agent.fetch().await.unwrap()), ["/this"]);
}

#[tokio::test]
async fn ag_17_an_agent_with_few_descriptors_recovers_when_callers_go() {
    let ca = Ca::start().await;
    ca.entry("any", "/any", &[&my_uid()]);
    ca.token("few");
    let dir = crate::rig::directory();
    std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    let config = dir.path().join("agent.yaml");
    std::fs::write(
        &config,
        crate::rig::yaml(&ca, dir.path(), &crate::rig::join_token("few")),
    )
    .unwrap();
    let script = format!(
        "ulimit -n 64; exec {} run -q --config {}",
        env!("CARGO_BIN_EXE_workload-agent"),
        config.display()
    );
    let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let socket = dir.path().join("public/api.sock");
    let fetch = async || -> bool {
        let Ok(stream) = tokio::net::UnixStream::connect(&socket).await else {
            return false;
        };
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_: Uri| {
            let once = stream.take();
            async move { once.ok_or_else(|| std::io::Error::other("refused")) }
        });
        let call = async {
            let channel = Endpoint::from_static("http://agent")
                .connect_with_connector(connector)
                .await
                .ok()?;
            open(&mut SpiffeWorkloadApiClient::new(channel)).await.ok()
        };
        tokio::time::timeout(Duration::from_secs(2), call)
            .await
            .ok()
            .flatten()
            .is_some()
    };
    eventually("it serves", async || fetch().await).await;
    let mut taken = Vec::new();
    for _ in 0..100 {
        match tokio::time::timeout(
            Duration::from_millis(100),
            tokio::net::UnixStream::connect(&socket),
        )
        .await
        {
            Ok(Ok(stream)) => taken.push(stream),
            _ => break,
        }
    }
    let cpu = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let rest = stat.rsplit_once(')').unwrap().1;
        rest.split_ascii_whitespace()
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum()
    };
    let before = cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        cpu() - before < 40,
        "below 20 % of a core while exhausted: {} ticks in 2 s",
        cpu() - before
    );
    drop(taken);
    let started = tokio::time::Instant::now();
    eventually("it serves again", async || fetch().await).await;
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    child.kill().unwrap();
    child.wait().unwrap();
}
