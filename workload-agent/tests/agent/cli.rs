//! The program as people use it: its verbs, what they print, and how they end.

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::{
    ca::Ca,
    rig::{Agent, eventually, join_token, my_uid, yaml},
};

async fn run(args: &[&str]) -> Output {
    run_in(None, args).await
}

/// With this address of the Workload API in the environment.
async fn run_in(endpoint: Option<String>, args: &[&str]) -> Output {
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let work = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workload-agent"));
        match endpoint {
            Some(endpoint) => command.env("SPIFFE_ENDPOINT_SOCKET", endpoint),
            None => command.env_remove("SPIFFE_ENDPOINT_SOCKET"),
        };
        command.args(args).output()
    };
    tokio::task::spawn_blocking(work).await.unwrap().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn fetch_writes_files_that_openssl_and_others_can_read() {
    use std::os::unix::fs::MetadataExt;
    let ca = Ca::start().await;
    ca.foreign_bundle("friend.test");
    ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
        entry.federates_with = vec!["friend.test".into()]
    });
    let agent = Agent::start(&ca).await;
    let dir = agent.dir.path().join("out");
    let socket = format!("unix://{}", agent.socket().display());
    let done = run(&[
        "api",
        "fetch",
        "x509",
        "--socket",
        &socket,
        "--write",
        dir.to_str().unwrap(),
    ])
    .await;
    assert!(done.status.success(), "{done:?}");
    assert!(
        out(&done).contains("spiffe://dev.test/pay") && !out(&done).contains("PRIVATE"),
        "{done:?}"
    );
    let key = std::fs::read_to_string(dir.join("svid.0.key")).unwrap();
    assert!(
        key.starts_with("-----BEGIN PRIVATE KEY-----\n")
            && key.ends_with("-----END PRIVATE KEY-----\n")
    );
    assert_eq!(
        std::fs::metadata(dir.join("svid.0.key")).unwrap().mode() & 0o777,
        0o600
    );
    rcgen::KeyPair::from_pem(&key).unwrap();
    mesh_identity::X509Svid::from_pem(&std::fs::read(dir.join("svid.0.pem")).unwrap()).unwrap();
    for (file, domain) in [
        ("bundle.0.pem", "dev.test"),
        ("federated.friend.test.pem", "friend.test"),
    ] {
        mesh_identity::Bundle::from_pem(
            domain.parse().unwrap(),
            &std::fs::read(dir.join(file)).unwrap(),
        )
        .unwrap();
    }
    let json = run(&["api", "fetch", "x509", "-o", "json", "--socket", &socket]).await;
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["svids"][0]["spiffeId"], "spiffe://dev.test/pay");
    assert!(!out(&json).contains("PRIVATE KEY"));
}

#[tokio::test]
async fn wep_11_without_an_argument_the_socket_is_that_of_the_environment() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let here = format!("unix://{}", agent.socket().display());
    let fetch = ["api", "fetch", "x509"];
    let done = run_in(Some(here.clone()), &fetch).await;
    assert!(out(&done).contains("spiffe://dev.test/pay"), "{done:?}");
    let nowhere = [&fetch[..], &["--socket", "/nowhere/api.sock"]].concat();
    let argument_first = run_in(Some(here), &nowhere).await;
    assert_eq!(argument_first.status.code(), Some(4), "{argument_first:?}");
    for bad in ["tcp://127.0.0.1:1", "unix://host/api.sock", "api.sock"] {
        let refused = run_in(Some(bad.into()), &fetch).await;
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(err(&refused).contains("is not a socket"), "{refused:?}");
    }
}

#[tokio::test]
async fn wapi_50_a_token_is_checked_by_the_agent_and_a_wrong_one_is_exit_code_three() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let socket = agent.socket().to_str().unwrap().to_owned();
    let fetch = async |more: &[&str]| {
        run(&[&["api", "fetch", "jwt", "--socket", &socket], more].concat()).await
    };
    let json = fetch(&["--audience", "bank,shop", "-o", "json"]).await;
    assert!(json.status.success(), "{json:?}");
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["svids"][0]["spiffeId"], "spiffe://dev.test/pay");
    let token = value["svids"][0]["svid"].as_str().unwrap().to_owned();
    let table = fetch(&["--audience", "bank", "--audience", "shop"]).await;
    assert!(out(&table).contains(&token), "the same one: {table:?}");
    let other = fetch(&["--audience", "bank", "--spiffe-id", "spiffe://dev.test/x"]).await;
    assert_eq!(other.status.code(), Some(3), "{other:?}");
    assert_eq!(fetch(&[]).await.status.code(), Some(2), "no audience");

    let check = async |audience: &str, token: &str, output: &str| {
        let jwt = ["api", "validate", "jwt", "--socket", &socket];
        let rest = ["--audience", audience, "--svid", token, "-o", output];
        run(&[&jwt[..], &rest].concat()).await
    };
    let proven = check("shop", &token, "json").await;
    assert!(proven.status.success(), "{proven:?}");
    let value: serde_json::Value = serde_json::from_slice(&proven.stdout).unwrap();
    assert_eq!(value["spiffeId"], "spiffe://dev.test/pay");
    assert_eq!(value["claims"]["aud"], serde_json::json!(["bank", "shop"]));
    assert!(value["claims"]["exp"].is_i64(), "{value}");
    assert!(out(&check("bank", &token, "table").await).starts_with("the token is valid"));
    for (audience, token) in [("other", token.as_str()), ("bank", "x.y.z")] {
        let refused = check(audience, token, "table").await;
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert!(out(&refused).is_empty() && err(&refused).contains("refused"));
    }
    let calls = |code: &str| format!("method=\"ValidateJWTSVID\",code=\"{code}\"}} 2");
    let metrics = agent.metrics().await;
    for code in ["Ok", "InvalidArgument"] {
        assert!(metrics.contains(&calls(code)), "{metrics}");
    }
}

#[tokio::test]
async fn a_process_without_identity_is_told_the_code_and_where_to_ask() {
    let ca = Ca::start().await;
    ca.entry("other", "/other", &["unix:uid:4242"]);
    let agent = Agent::start(&ca).await;
    let refused = run(&[
        "api",
        "fetch",
        "x509",
        "--socket",
        agent.socket().to_str().unwrap(),
    ])
    .await;
    assert_eq!(refused.status.code(), Some(3));
    assert!(
        err(&refused).contains("error[FNL2104]") && err(&refused).contains("correlation id"),
        "{refused:?}"
    );
    assert!(out(&refused).is_empty(), "messages are not on stdout");
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_exit_code_four() {
    for verb in [
        &["api", "fetch", "x509", "--socket"][..],
        &["healthcheck", "--socket"],
        &["api", "watch", "--socket"],
        &["api", "fetch", "jwt", "--audience", "a", "--socket"],
        &[
            "api",
            "validate",
            "jwt",
            "--audience",
            "a",
            "--svid",
            "x",
            "--socket",
        ],
    ] {
        let done = run(&[verb, &["/nowhere/api.sock"]].concat()).await;
        assert_eq!(done.status.code(), Some(4), "{done:?}");
        assert!(err(&done).contains("FNL2101"), "{done:?}");
    }
}

#[tokio::test]
async fn healthcheck_says_whether_identities_can_be_served() {
    let ca = Ca::start().await;
    ca.down().await;
    let agent = Agent::start_unready(&ca).await;
    let socket = agent.socket();
    let check = async || run(&["healthcheck", "--socket", socket.to_str().unwrap()]).await;
    assert_eq!(check().await.status.code(), Some(3));
    ca.up().await;
    agent.ready().await;
    eventually("healthy", async || check().await.status.success()).await;
}

#[tokio::test]
async fn explain_shows_the_difference_and_the_command_that_mends_it() {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let exe = std::env::current_exe().unwrap().canonicalize().unwrap();
    let path = format!("unix:path:{}", exe.display());
    ca.entry("pay", "/pay", &[&my_uid(), &path, "unix:gid:2000"]);
    let (pid, socket) = (std::process::id().to_string(), agent.admin_socket());
    let explain = async || {
        run(&[
            "explain",
            "--pid",
            &pid,
            "--admin-socket",
            socket.to_str().unwrap(),
        ])
        .await
    };
    eventually("the entry is known", async || {
        err(&explain().await).is_empty() && out(&explain().await).contains("entry pay")
    })
    .await;
    let shown = explain().await;
    assert_eq!(shown.status.code(), Some(3));
    let text = out(&shown);
    assert!(
        text.starts_with("error[FNL2104]: no identity for this process\n"),
        "{text}"
    );
    for part in [
        format!("pid {pid}").as_str(),
        "entry pay (closest, 2 of 3)",
        "unix:gid:2000",
        "differs",
        "holds 1 entries",
        "= fix:  ca-server entry create --parent-id spiffe://dev.test/spire/agent/join_token/",
        &format!("--selector {path}"),
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    // The facts of the command are true: with that entry the process has an identity.
    ca.entry(
        "mended",
        "/pay",
        &[
            &my_uid(),
            &path,
            &format!("unix:gid:{}", nix::unistd::getegid()),
        ],
    );
    eventually("mended", async || explain().await.status.success()).await;
    assert!(out(&explain().await).contains("spiffe://dev.test/pay"));
}

#[tokio::test]
async fn explain_of_a_process_that_is_not_there_says_so() {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let socket = agent.admin_socket();
    let gone = run(&[
        "explain",
        "--pid",
        "2147483646",
        "--admin-socket",
        socket.to_str().unwrap(),
    ])
    .await;
    assert_eq!(gone.status.code(), Some(3), "{gone:?}");
    let json = run(&[
        "explain",
        "-o",
        "json",
        "--pid",
        &std::process::id().to_string(),
        "--admin-socket",
        socket.to_str().unwrap(),
    ])
    .await;
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["code"], "FNL2104");
    assert!(
        value["selectors"]
            .as_array()
            .unwrap()
            .iter()
            .any(|s| *s == my_uid())
    );
}

#[tokio::test]
async fn the_admin_socket_is_closed_to_other_users() {
    use std::os::unix::{fs::PermissionsExt, process::CommandExt};
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: another user's process needs root");
        return;
    }
    let ca = Ca::start().await;
    ca.entry("nobody", "/nobody", &["unix:uid:65534"]);
    let agent = Agent::start(&ca).await;
    let program = agent.dir.path().join("client");
    std::fs::copy(env!("CARGO_BIN_EXE_workload-agent"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let as_nobody = |args: Vec<String>| {
        let mut command = Command::new(&program);
        command.args(args).uid(65534).gid(65534).current_dir("/");
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let admin = agent.admin_socket().display().to_string();
    let refused = as_nobody(vec![
        "explain".into(),
        "--pid".into(),
        "1".into(),
        "--admin-socket".into(),
        admin,
    ])
    .await
    .unwrap();
    assert!(
        !refused.status.success() && out(&refused).is_empty(),
        "{refused:?}"
    );
    let open = agent.socket().display().to_string();
    let served = as_nobody(vec![
        "api".into(),
        "fetch".into(),
        "x509".into(),
        "--socket".into(),
        open,
    ])
    .await
    .unwrap();
    assert!(
        out(&served).contains("spiffe://dev.test/nobody"),
        "{served:?}"
    );
}

#[tokio::test]
async fn the_configuration_verbs_print_what_loads_back() {
    let defaults = run(&["config", "print-defaults"]).await;
    assert!(
        out(&defaults).contains("kind: WorkloadAgentConfig")
            && out(&defaults).contains("# The socket that workloads use.")
    );
    let schema = run(&["config", "schema"]).await;
    serde_json::from_slice::<serde_json::Value>(&schema.stdout).unwrap();
    let ca = Ca::start().await;
    let dir = crate::rig::directory();
    let file = dir.path().join("agent.yaml");
    std::fs::write(&file, yaml(&ca, dir.path(), &join_token("s3cret"))).unwrap();
    let file = file.to_str().unwrap();
    assert!(run(&["validate", "--config", file]).await.status.success());
    let shown = run(&["config", "show", "--origin", "--config", file]).await;
    assert!(
        out(&shown).contains("dev.test") && !out(&shown).contains("s3cret"),
        "{shown:?}"
    );
    std::fs::write(
        file,
        "apiVersion: config.finial.dev/v1\nkind: WorkloadAgentConfig\ntrustDomian: x\n",
    )
    .unwrap();
    let wrong = run(&["validate", "--config", file]).await;
    assert!(!wrong.status.success());
    assert!(
        err(&wrong).contains("trustDomian")
            && err(&wrong).contains("trustDomain")
            && err(&wrong).contains("FNL0102"),
        "{wrong:?}"
    );
}

#[tokio::test]
async fn the_program_runs_stops_on_sigterm_and_takes_over_after_sigkill() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    ca.token("once");
    let dir = crate::rig::directory();
    std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    std::fs::write(dir.path().join("token"), "once\n").unwrap();
    let config = dir.path().join("agent.yaml");
    std::fs::write(&config, yaml(&ca, dir.path(), "  {}")).unwrap();
    let token = dir.path().join("token");
    let start = |addresses: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_workload-agent"));
        command
            .arg("run")
            .arg("--config")
            .arg(&config)
            .arg("--join-token-file")
            .arg(&token);
        command
            .arg("--addresses-file")
            .arg(addresses)
            .spawn()
            .unwrap()
    };
    let (first, second) = (
        dir.path().join("first.json"),
        dir.path().join("second.json"),
    );
    let socket = dir.path().join("public/api.sock");
    let fetch = async || run(&["api", "fetch", "x509", "--socket", socket.to_str().unwrap()]).await;

    let mut killed = start(&first);
    eventually("it serves", async || {
        first.exists() && fetch().await.status.success()
    })
    .await;
    let addresses: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&first).unwrap()).unwrap();
    for door in ["workloadApi", "adminSocket", "metrics"] {
        assert!(addresses[door].is_string(), "{addresses}");
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(socket.exists(), "a killed agent leaves its socket");

    let mut stopped = start(&second);
    eventually("its successor serves", async || {
        second.exists() && fetch().await.status.success()
    })
    .await;
    assert_eq!(ca.seen().attested.len(), 1, "ag_23: no second attestation");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(stopped.id()).unwrap()),
        nix::sys::signal::SIGTERM,
    )
    .unwrap();
    let status = tokio::task::spawn_blocking(move || stopped.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(status.success(), "{status}");
    assert!(
        !socket.exists(),
        "one that stops in good order takes its socket away"
    );
}

#[tokio::test]
async fn a_refused_node_ends_with_the_code_and_what_to_do() {
    let ca = Ca::start().await;
    let dir = crate::rig::directory();
    std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    let config = dir.path().join("agent.yaml");
    std::fs::write(&config, yaml(&ca, dir.path(), &join_token("never-made"))).unwrap();
    let ended = run(&["run", "--config", config.to_str().unwrap()]).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        err(&ended).contains("error[FNL2023]") && err(&ended).contains("docs/errors/FNL2023.md"),
        "{ended:?}"
    );
    assert!(!err(&ended).contains("never-made"), "{ended:?}");
}

#[tokio::test]
async fn a_ca_that_proves_another_root_is_not_talked_to() {
    let (ca, impostor) = (Ca::start().await, Ca::start().await);
    let dir = crate::rig::directory();
    std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    impostor.token("precious");
    // The bundle is written again by `start_in`, so start the parts by hand.
    let config = crate::rig::load(&yaml(&impostor, dir.path(), &join_token("precious")));
    let app = workload_agent::app::App::start(config, workload_agent::app::Parts::default())
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    assert!(!app.readiness().is_ready());
    assert!(
        impostor.seen().evidence.is_empty(),
        "the token was not shown to it"
    );
    app.tasks().stop();
}

#[tokio::test]
async fn watch_shows_each_change_until_the_entitlement_ends() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let out_file = agent.dir.path().join("watched");
    let mut child = Command::new(env!("CARGO_BIN_EXE_workload-agent"))
        .args([
            "api",
            "watch",
            "-o",
            "json",
            "--socket",
            agent.socket().to_str().unwrap(),
        ])
        .stdout(std::fs::File::create(&out_file).unwrap())
        .spawn()
        .unwrap();
    let lines = || std::fs::read_to_string(&out_file).unwrap().lines().count();
    eventually("the first state", async || lines() == 1).await;
    ca.entry("shop", "/shop", &[&my_uid()]);
    eventually("the second state", async || lines() == 2).await;
    ca.remove_entry("pay");
    ca.remove_entry("shop");
    let status = tokio::task::spawn_blocking(move || child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(3));
}

#[tokio::test]
async fn the_log_level_is_shown_changed_and_set_back_in_our_spelling_and_in_spires() {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let socket = agent.admin_socket().to_str().unwrap().to_owned();
    let json = async |verb: &[&str]| -> serde_json::Value {
        let done = run(&[verb, &["--admin-socket", &socket, "-o", "json"]].concat()).await;
        assert!(done.status.success(), "{done:?}");
        serde_json::from_slice(&done.stdout).unwrap()
    };
    let now = |level: &str| serde_json::json!({ "currentLevel": level, "launchLevel": "info" });
    assert_eq!(json(&["log-level", "show"]).await, now("info"));
    let debug = ["log-level", "set", "--level", "debug"];
    assert_eq!(json(&debug).await, now("debug"));
    assert_eq!(json(&["logger", "get"]).await, now("debug"));
    let table = run(&["logger", "get", "--socketPath", &socket]).await;
    assert_eq!(out(&table), "Log level   debug\nConfigured  info\n");
    assert_eq!(json(&["log-level", "reset"]).await, now("info"));
    let loud = run(&["log-level", "set", "--level", "loud"]).await;
    assert_eq!(loud.status.code(), Some(2), "{loud:?}");
    let nobody = ["log-level", "show", "--admin-socket", "/nowhere/admin.sock"];
    assert_eq!(run(&nobody).await.status.code(), Some(4));
}
