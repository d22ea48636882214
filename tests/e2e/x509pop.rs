//! Nodes that prove themselves by a certificate of another authority, across both implementations: a real `spire-agent` at our
//! server, and our agent at a real `spire-server`; with RSA and with ECDSA, and attesting again instead of renewing.
//! Trusts OpenSSL for the certificates and SPIRE's programs for the verdict.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use finial::dev::files;
use mesh_tests::{
    daemon::Daemon,
    eventually, programs,
    spire::{Spire, Verbs},
    world::World,
};
use tokio::time::sleep;

const AGENT: &str = "workload-agent";

/// The kinds of keys that both sides can prove.
const KINDS: [(&str, &[&str]); 2] = [
    ("rsa", &["-newkey", "rsa:2048"]),
    (
        "ec",
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_spire_agent_with_a_certificate_attests_at_our_server_and_again_when_its_svid_ages() {
    let Some(spire) = Spire::find() else {
        return;
    };
    for (name, kind) in KINDS {
        let outside = Outside::new(kind);
        let world = World::with_ca(|config| {
            let pop = format!(
                "attestation: {{ node: [x509Pop: {{ caBundles: [{}] }}] }}\n",
                outside.path("root.pem").display()
            );
            config.replace("agentSvid: 60s", "agentSvid: 16s") + &pop
        })
        .await;
        let server = spire.server(world.path("ca-admin.sock"));
        let agent = spire
            .agent_with_certificate(
                &world.path("spire-agent"),
                world.ca().address("grpc"),
                &world.path("bundle.pem"),
                (&outside.path("node.pem"), &outside.path("node.key")),
            )
            .await;
        let id = outside.id();
        let shown = server.json(&["agent", "show", "-spiffeID", &id]);
        assert_eq!(shown["attestation_type"], "x509pop", "{name}: {shown}");
        let selectors = shown["selectors"].to_string();
        for wanted in [
            "subject:cn:node-7",
            "ca:fingerprint:",
            "serialnumber:",
            "san:rack:12",
        ] {
            assert!(
                selectors.contains(wanted),
                "{name}: {wanted} in {selectors}"
            );
        }
        let first = serial(&server, &id);
        let again = soon(async || serial(&server, &id) != first);
        assert!(again.await, "{name}: it did not attest again");
        drop(agent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_agent_with_a_certificate_attests_at_a_real_spire_server_and_again_when_its_svid_ages()
{
    let Some(spire) = Spire::find() else {
        return;
    };
    for (name, kind) in KINDS {
        let outside = Outside::new(kind);
        let path = |file: &str| outside.path(file);
        let mut server = spire.authority_for_certificates(&path("spire"), &path("root.pem"));
        server.start().await;
        let pem = server.verbs.text(&["bundle", "show", "-format", "pem"]);
        fs::write(path("bundle.pem"), pem).expect("a bundle");
        let dir = outside.dir.path().display().to_string();
        let config = files::workload_agent(&dir, &server.address).replace(
            &format!("joinToken: {{ tokenFile: {dir}/join-token }}"),
            &format!(
                "x509Pop: {{ certificateFile: {dir}/node.pem, privateKeyFile: {dir}/node.key }}"
            ),
        );
        fs::write(path("agent.yaml"), config).expect("a configuration");
        let (program, file) = (programs::path(AGENT), path("agent.yaml"));
        let agent = Daemon::start_ready(AGENT, &program, &file, outside.dir.path()).await;
        let id = outside.id();
        let shown = server.verbs.json(&["agent", "show", "-spiffeID", &id]);
        assert_eq!(shown["attestation_type"], "x509pop", "{name}: {shown}");
        let first = serial(&server.verbs, &id);
        let again = soon(async || serial(&server.verbs, &id) != first);
        assert!(again.await, "{name}: it did not attest again");
        drop(agent);
    }
}

/// An authority that is neither ours nor SPIRE's, and a node that it certified.
struct Outside {
    dir: tempfile::TempDir,
}

impl Outside {
    fn new(kind: &[&str]) -> Self {
        // Short, because the kernel's limit for a socket's path is 107 bytes.
        let dir = tempfile::Builder::new().prefix("fnl").tempdir();
        let outside = Self {
            dir: dir.expect("a temporary folder"),
        };
        let openssl = |arguments: &[&[&str]]| {
            let output = Command::new("openssl")
                .args(arguments.concat())
                .current_dir(outside.dir.path())
                .output()
                .expect("openssl runs");
            assert!(output.status.success(), "{output:?}");
        };
        openssl(&[
            &[
                "req", "-x509", "-subj", "/CN=root", "-keyout", "root.key", "-out", "root.pem",
            ],
            kind,
            &["-days", "2", "-nodes"],
        ]);
        openssl(&[
            &[
                "req",
                "-subj",
                "/CN=node-7",
                "-keyout",
                "node.key",
                "-out",
                "node.csr",
                "-nodes",
            ],
            kind,
        ]);
        let extensions = "keyUsage=critical,digitalSignature\nbasicConstraints=critical,CA:FALSE\n\
                          subjectAltName=URI:x509pop://dev.test/rack/12\n";
        fs::write(outside.path("ext"), extensions).expect("a file");
        openssl(&[&[
            "x509",
            "-req",
            "-in",
            "node.csr",
            "-CA",
            "root.pem",
            "-CAkey",
            "root.key",
            "-days",
            "1",
            "-CAcreateserial",
            "-extfile",
            "ext",
            "-out",
            "node.pem",
        ]]);
        outside
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The agent's ID as SPIRE's documentation makes it.
    fn id(&self) -> String {
        let output = Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha1", "-in"])
            .arg(Path::new("node.pem"))
            .current_dir(self.dir.path())
            .output()
            .expect("openssl runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let (_, fingerprint) = text.trim().split_once('=').expect("a fingerprint");
        let fingerprint = fingerprint.replace(':', "").to_lowercase();
        format!(
            "spiffe://{}/spire/agent/x509pop/{fingerprint}",
            files::TRUST_DOMAIN
        )
    }
}

fn serial(server: &Verbs, id: &str) -> String {
    let agent = server.json(&["agent", "show", "-spiffeID", id]);
    agent["x509svid_serial_number"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Asks a few times a second: each question is a program of its own.
async fn soon(mut condition: impl AsyncFnMut() -> bool) -> bool {
    eventually::within(Duration::from_secs(40), async || {
        let met = condition().await;
        if !met {
            sleep(Duration::from_millis(300)).await;
        }
        met
    })
    .await
}
