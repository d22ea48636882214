//! Starts a true agent against the tests' CA, on real sockets in a directory of its own, and calls it as a workload does.
//! Trusts the tests. Never uses a fixed port or path.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mesh_runtime::{
    clock::Clock,
    config::{self, Sources},
};
use proto::{
    convert::workload::X509Context,
    spiffe::workload::{self as wire, spiffe_workload_api_client::SpiffeWorkloadApiClient},
};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::{
    Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};
use workload_agent::{
    app::{App, Parts},
    config::AgentConfig,
};

use crate::ca::{Ca, DOMAIN};

/// An agent in this process, with its directory.
pub(crate) struct Agent {
    pub(crate) dir: TempDir,
    pub(crate) app: App,
}

/// A directory that others may enter but not write, whatever the umask.
pub(crate) fn directory() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new()
        .prefix("agent-test")
        .tempdir()
        .unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

pub(crate) fn yaml(ca: &Ca, dir: &Path, attestation: &str) -> String {
    let d = dir.display();
    let address = ca.address();
    format!(
        "apiVersion: config.finial.dev/v1\nkind: WorkloadAgentConfig\ntrustDomain: {DOMAIN}\n\
         server:\n  address: {address}\n  trustBundle: {d}/bundle.pem\ndataDir: {d}/data\n\
         workloadApi:\n  socket: {d}/public/api.sock\nadmin:\n  socket: {d}/private/admin.sock\n\
         nodeAttestation:\n{attestation}\ntelemetry:\n  metrics:\n    address: 127.0.0.1:0\n"
    )
}

pub(crate) fn join_token(token: &str) -> String {
    format!("  joinToken:\n    token: {token}")
}

pub(crate) fn load(yaml: &str) -> AgentConfig {
    config::load::<AgentConfig>(&Sources::new().text("test.yaml", yaml))
        .unwrap_or_else(|errors| panic!("{errors}"))
        .value
}

impl Agent {
    /// Attests with a fresh join token and is in step with the CA when this returns.
    pub(crate) async fn start(ca: &Ca) -> Self {
        let agent = Self::start_unready(ca).await;
        agent.ready().await;
        agent
    }

    pub(crate) async fn start_unready(ca: &Ca) -> Self {
        let token = uuid::Uuid::new_v4().to_string();
        ca.token(&token);
        Self::start_in(ca, directory(), &join_token(&token)).await
    }

    pub(crate) async fn start_in(ca: &Ca, dir: TempDir, attestation: &str) -> Self {
        Self::start_with_clock(ca, dir, attestation, Clock::system()).await
    }

    /// As [`Agent::start`], with another configuration.
    pub(crate) async fn start_changed(ca: &Ca, change: impl FnOnce(String) -> String) -> Self {
        let token = uuid::Uuid::new_v4().to_string();
        ca.token(&token);
        let dir = directory();
        let yaml = change(yaml(ca, dir.path(), &join_token(&token)));
        let agent = Self::start_on(ca, dir, &yaml, Clock::system()).await;
        agent.ready().await;
        agent
    }

    pub(crate) async fn start_with_clock(
        ca: &Ca,
        dir: TempDir,
        attestation: &str,
        clock: Clock,
    ) -> Self {
        let yaml = yaml(ca, dir.path(), attestation);
        Self::start_on(ca, dir, &yaml, clock).await
    }

    async fn start_on(ca: &Ca, dir: TempDir, yaml: &str, clock: Clock) -> Self {
        mesh_tls::install_default_provider();
        std::fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
        let parts = Parts {
            clock,
            ..Parts::default()
        };
        let app = App::start(load(yaml), parts).await.unwrap();
        Self { dir, app }
    }

    pub(crate) async fn ready(&self) {
        tokio::time::timeout(Duration::from_secs(20), self.app.readiness().ready())
            .await
            .expect("the agent gets ready");
    }

    /// Stops it and keeps its directory.
    pub(crate) async fn stop(self) -> TempDir {
        self.app.tasks().stop();
        self.app
            .tasks()
            .join()
            .await
            .expect("the agent stops in good order");
        self.dir
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("public/api.sock")
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.dir.path().join("private/admin.sock")
    }

    pub(crate) async fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(channel(&self.socket()).await)
    }

    /// The first message, as this process.
    pub(crate) async fn fetch(&self) -> Result<X509Context, Status> {
        let mut stream = self.svids().await?;
        next(&mut stream).await
    }

    pub(crate) async fn svids(&self) -> Result<Streaming<wire::X509svidResponse>, Status> {
        Ok(self
            .client()
            .await
            .fetch_x509svid(with_header(wire::X509svidRequest {}))
            .await?
            .into_inner())
    }

    pub(crate) async fn bundles(&self) -> Result<Streaming<wire::X509BundlesResponse>, Status> {
        Ok(self
            .client()
            .await
            .fetch_x509_bundles(with_header(wire::X509BundlesRequest {}))
            .await?
            .into_inner())
    }

    pub(crate) async fn metrics(&self) -> String {
        let address = self.app.addresses().get("metrics").unwrap().to_owned();
        http_get(&address, "/metrics").await
    }
}

pub(crate) async fn http_get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    tcp.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
    )
    .await
    .unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    text
}

pub(crate) async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://agent")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

pub(crate) fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}

/// The next message, parsed whole; the end of the stream is an error here.
pub(crate) async fn next(
    stream: &mut Streaming<wire::X509svidResponse>,
) -> Result<X509Context, Status> {
    Ok(X509Context::try_from(raw(stream).await?).expect("a message that holds together"))
}

pub(crate) async fn raw<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(Duration::from_secs(15), stream.message())
        .await
        .expect("a message in time")?;
    Ok(message.expect("the stream goes on"))
}

/// Whether nothing comes for a while.
pub(crate) async fn quiet<T>(stream: &mut Streaming<T>, pause: Duration) -> bool {
    tokio::time::timeout(pause, stream.message()).await.is_err()
}

/// Tries until it holds, for at most some seconds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never happened: {what}");
}

/// A selector that this process has.
pub(crate) fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}
