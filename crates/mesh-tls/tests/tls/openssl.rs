//! Decides whether a foreign implementation agrees with us: the machine's `openssl s_client` and `s_server`, as real processes.
//! Trusts the first line that s_server prints for its port.
//! Never fixes a port; without `openssl` it skips with a printed reason, except on CI, where it fails.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use base64::Engine as _;
use mesh_identity::test_util::{Made, Spec, now};
use mesh_tls::{
    AlertDescription, HandshakeError, Peer, PeerRefused, ServerConfig, accept, alert_in, connect,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::common::{PAY, TD, WEB, World, id, refusal};

/// Longer than any honest run, shorter than a developer's patience.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether there is an `openssl` to talk to; says so if there is none.
#[expect(
    clippy::disallowed_methods,
    reason = "whether this is CI is a fact of the test's environment"
)]
fn openssl_is_here() -> bool {
    let found = std::process::Command::new("openssl")
        .arg("version")
        .output();
    if found.is_ok_and(|output| output.status.success()) {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "CI must have openssl (apt-get install openssl)"
    );
    eprintln!("skipped: there is no `openssl` on this machine (apt-get install openssl)");
    false
}

/// A leaf, its chain, its key and its root as files.
struct Files {
    _dir: TempDir,
    leaf: PathBuf,
    chain: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

impl Files {
    fn of(shown: &Made, root: &Made) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let files = Self {
            leaf: path("leaf.pem"),
            chain: path("chain.pem"),
            key: path("key.pem"),
            root: path("root.pem"),
            _dir: dir,
        };
        std::fs::write(&files.leaf, pem("CERTIFICATE", &shown.der)).unwrap();
        let chain: String = shown
            .chain
            .iter()
            .skip(1)
            .map(|der| pem("CERTIFICATE", der))
            .collect();
        std::fs::write(&files.chain, chain).unwrap();
        std::fs::write(&files.key, pem("PRIVATE KEY", &shown.key_pkcs8())).unwrap();
        std::fs::write(&files.root, pem("CERTIFICATE", &root.der)).unwrap();
        files
    }
}

impl Files {
    fn arguments(&self) -> Vec<OsString> {
        let mut all = vec![];
        let mut add = |option: &str, path: &Path| all.extend([option.into(), path.into()]);
        add("-cert", &self.leaf);
        add("-key", &self.key);
        add("-CAfile", &self.root);
        if std::fs::metadata(&self.chain).unwrap().len() > 0 {
            add("-cert_chain", &self.chain); // openssl refuses an empty one
        }
        all
    }
}

/// A server of ours on a real socket: takes one connection, answers one line and goes.
async fn our_server(
    config: Arc<ServerConfig>,
) -> (String, JoinHandle<Result<Peer, HandshakeError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = tokio::spawn(async move {
        let (socket, _) = timeout(PATIENCE, listener.accept())
            .await
            .expect("s_client dials")
            .unwrap();
        let (mut stream, peer) = accept(&config, socket).await?;
        let mut line = [0; 6];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"hello\n");
        stream.write_all(b"we heard you\n").await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(peer.expect("a client certificate is required"))
    });
    (address, served)
}

/// Runs `openssl s_client`, says hello, and returns all that it prints.
async fn s_client(address: &str, files: &Files, more: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            address,
            "-verify_return_error",
            "-ign_eof",
        ])
        .args(files.arguments())
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // A refused client may be gone before it reads this.
    drop(input.write_all(b"hello\n").await);
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .expect("s_client ends")
        .unwrap();
    drop(input);
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test]
async fn openssl_s_client_is_served_and_known_by_its_spiffe_id() {
    if !openssl_is_here() {
        return;
    }
    let world = World::new();
    let web = world.root.intermediate(TD, "intermediate").leaf(WEB);
    let files = Files::of(&web, &world.root);
    for (groups, expected) in [("X25519:P-256", "x25519"), ("P-256", "secp256r1")] {
        let (address, served) = our_server(world.server()).await;
        let said = s_client(&address, &files, &["-tls1_3", "-groups", groups]).await;
        let peer = served
            .await
            .unwrap()
            .unwrap_or_else(|error| panic!("{error:?}\n{said}"));
        assert_eq!(peer.id, id(WEB));
        assert_eq!(peer.serial, web.svid().serial());
        assert_eq!(peer.session.key_exchange.to_lowercase(), expected);
        for needed in [
            "we heard you",
            "New, TLSv1.3",
            "Verify return code: 0 (ok)",
            "No client certificate CA names sent",
            "Early data was not sent",
        ] {
            assert!(said.contains(needed), "{needed:?} is missing in:\n{said}");
        }
        assert!(
            !said.contains("Post-Handshake New Session Ticket"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn px_06_openssl_s_client_gets_no_session_to_come_back_with() {
    if !openssl_is_here() {
        return;
    }
    let world = World::new();
    let files = Files::of(&world.web, &world.root);
    let session = files.root.with_file_name("session.pem");
    let path = session.to_str().unwrap();

    let (address, served) = our_server(world.server()).await;
    s_client(&address, &files, &["-sess_out", path]).await;
    served.await.unwrap().unwrap();
    // Without a ticket s_client keeps nothing, or a session that cannot be resumed.
    if session.exists() {
        let (address, served) = our_server(world.server()).await;
        let said = s_client(&address, &files, &["-sess_in", path]).await;
        served.await.unwrap().unwrap();
        assert!(
            said.contains("New, TLSv1.3") && !said.contains("Reused"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn openssl_s_client_with_old_versions_or_other_groups_is_refused() {
    if !openssl_is_here() {
        return;
    }
    let world = World::new();
    let files = Files::of(&world.web, &world.root);
    for offer in [
        ["-tls1_2", "-cipher", "ALL"].as_slice(),
        &["-tls1_3", "-groups", "P-384:P-521"],
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
    ] {
        let (address, served) = our_server(world.server()).await;
        let said = s_client(&address, &files, offer).await;
        let error = served.await.unwrap().unwrap_err();
        assert_eq!(error.code(), "FNL0414", "{offer:?}: {error:?}\n{said}");
        assert!(said.contains("alert"), "{said}");
    }
}

#[tokio::test]
async fn openssl_s_client_with_a_wrong_certificate_is_refused_with_the_right_alert() {
    if !openssl_is_here() {
        return;
    }
    let world = World::new();
    let hour = Duration::from_secs(3600);
    let expired = world
        .root
        .sign(Spec::leaf(WEB).valid(now() - hour * 2, now() - hour));
    let two_ids = world.root.sign(Spec {
        uris: vec![WEB.into(), PAY.into()],
        ..Spec::leaf(WEB)
    });
    for (wrong, code, alert) in [
        (expired, "FNL0333", "certificate expired"),
        (
            Made::root("foreign.test").leaf("spiffe://foreign.test/web"),
            "FNL0334",
            "unknown ca",
        ),
        (two_ids, "", "certificate unknown"),
    ] {
        let files = Files::of(&wrong, &world.root);
        let (address, served) = our_server(world.server()).await;
        let said = s_client(&address, &files, &["-tls1_3"]).await;
        let reason = refusal(served.await.unwrap());
        assert!(matches!(reason, PeerRefused::NotVerified(_)), "{reason:?}");
        assert!(code.is_empty() || reason.code() == code, "{reason:?}");
        assert!(said.contains(alert), "{alert:?} is missing in:\n{said}");
    }
}

/// A running `openssl s_server` that returns each line reversed.
struct Server {
    _child: Child,
    _lines: Lines<BufReader<ChildStdout>>, // kept open: s_server goes on printing
    address: String,
}

async fn s_server(files: &Files, more: &[&str]) -> Server {
    let mut child = Command::new("openssl")
        .args([
            "s_server",
            "-accept",
            "127.0.0.1:0",
            "-rev",
            "-verify_return_error",
        ])
        .args(["-Verify", "4"])
        .args(files.arguments())
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = loop {
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .expect("s_server starts");
        let line = line.unwrap().expect("s_server says where it listens");
        if let Some(address) = line.strip_prefix("ACCEPT ") {
            break address.to_owned();
        }
    };
    Server {
        _child: child,
        _lines: lines,
        address,
    }
}

#[tokio::test]
async fn openssl_s_server_is_verified_and_verifies_us_and_its_tickets_are_not_used() {
    if !openssl_is_here() {
        return;
    }
    let world = World::new();
    let pay = world.root.intermediate(TD, "intermediate").leaf(PAY);
    let server = s_server(&Files::of(&pay, &world.root), &["-tls1_3"]).await;
    let client = world.client();
    for _ in 0..3 {
        let socket = TcpStream::connect(&server.address).await.unwrap();
        let (mut stream, peer) = connect(&client, socket).await.unwrap();
        assert_eq!(peer.id, id(PAY));
        assert_eq!(peer.serial, pay.svid().serial());
        assert_eq!(peer.chain.len(), 2);
        stream.write_all(b"hello\n").await.unwrap();
        let mut answer = [0; 6];
        timeout(PATIENCE, stream.read_exact(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        assert_eq!(&answer, b"olleh\n");
        let kind = stream.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
        stream.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn openssl_s_server_with_the_wrong_identity_or_version_is_refused() {
    if !openssl_is_here() {
        return;
    }
    let world = World::new();
    let dial = async |server: &Server| {
        let socket = TcpStream::connect(&server.address).await.unwrap();
        timeout(PATIENCE, connect(&world.client(), socket))
            .await
            .expect("an answer")
    };
    let other = s_server(&Files::of(&world.web, &world.root), &["-tls1_3"]).await;
    assert_eq!(
        refusal(dial(&other).await),
        PeerRefused::NotPermitted(id(WEB))
    );

    let old = s_server(&Files::of(&world.pay, &world.root), &["-tls1_2"]).await;
    match dial(&old).await {
        Err(HandshakeError::RefusedByPeer(alert)) => {
            assert_eq!(alert.0, AlertDescription::ProtocolVersion);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_client_that_openssl_s_server_refuses_learns_the_alert() {
    if !openssl_is_here() {
        return;
    }
    let world = World::new();
    // The server trusts another root than ours.
    let files = Files::of(&world.pay, &Made::root("other.test"));
    let server = s_server(&files, &["-tls1_3"]).await;
    let socket = TcpStream::connect(&server.address).await.unwrap();
    let (mut stream, _) = connect(&world.client(), socket).await.unwrap();
    let error = timeout(PATIENCE, stream.read_u8())
        .await
        .expect("an answer")
        .unwrap_err();
    assert_eq!(
        alert_in(&error),
        Some(AlertDescription::UnknownCA),
        "{error:?}"
    );
}
