//! A small true world around real proxies: a CA that signs, a Workload API that speaks the protocol, applications that answer.
//! Trusts its tests. Never fakes a certificate, a socket or a process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_identity::X509Svid;
use mesh_identity::test_util::{Made, Spec};
use mesh_tls::{IdentityCell, PrivateKey, TlsIdentity};
use proto::spiffe::workload as wire;
use proto::spiffe::workload::spiffe_workload_api_server::{
    SpiffeWorkloadApi, SpiffeWorkloadApiServer,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Status};

/// The trust domain of this world.
pub(crate) const DOMAIN: &str = "dev.test";

/// An authority, a directory, and what was started.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: Made,
}

impl World {
    pub(crate) fn new() -> Self {
        mesh_tls::install_default_provider();
        Self {
            dir: tempfile::tempdir().unwrap(),
            root: Made::root(DOMAIN),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        // As an operator's editor or Kubernetes does it: the whole file at once.
        let (path, beside) = (self.path(name), self.path(&format!("{name}.new")));
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        path
    }

    /// A certificate for a workload, valid for `life` from now.
    pub(crate) fn issue(&self, name: &str, life: Duration) -> Made {
        let now = now();
        self.root.sign(
            Spec::leaf(&format!("spiffe://{DOMAIN}/{name}"))
                .valid(now - Duration::from_secs(10), now + life),
        )
    }

    /// A frame of the Workload API.
    pub(crate) fn frame(&self, name: &str, life: Duration) -> wire::X509svidResponse {
        let leaf = self.issue(name, life);
        wire::X509svidResponse {
            svids: vec![wire::X509svid {
                spiffe_id: format!("spiffe://{DOMAIN}/{name}"),
                x509_svid: leaf.svid().to_der_concat(),
                x509_svid_key: leaf.key_pkcs8(),
                bundle: self.root.bundle(DOMAIN).to_der_concat(),
                hint: String::new(),
            }],
            crl: Vec::new(),
            federated_bundles: BTreeMap::new(),
        }
    }

    /// An agent that serves one workload.
    pub(crate) fn agent(&self, name: &str, life: Duration) -> Agent {
        Agent::start(self.path(&format!("{name}.sock")), self.frame(name, life))
    }

    /// The identity of a workload in this test's own hands.
    pub(crate) fn cell(&self, name: &str) -> IdentityCell {
        let leaf = self.issue(name, Duration::from_secs(3600));
        let key = PrivateKey::from_pkcs8(leaf.key_pkcs8()).unwrap();
        let svid = X509Svid::parse(leaf.chain.clone()).unwrap();
        IdentityCell::new(TlsIdentity::new(svid, key, self.root.bundles(DOMAIN), now()).unwrap())
    }

    /// A TLS connection to an inbound door, made by hand.
    pub(crate) async fn dial(
        &self,
        name: &str,
        to: SocketAddr,
        alpn: &[&[u8]],
    ) -> mesh_tls::ClientStream<TcpStream> {
        let config = mesh_tls::client_config(
            &self.cell(name),
            mesh_tls::Authorizer::any_verified(),
            alpn,
            Arc::new(now),
        );
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        mesh_tls::connect(&config, stream).await.unwrap().0
    }

    /// Sends bytes to an inbound door over TLS and reads until the other end closes or `enough` answers have come.
    pub(crate) async fn raw(
        &self,
        name: &str,
        to: SocketAddr,
        request: &[u8],
        enough: usize,
    ) -> String {
        let mut stream = self.dial(name, to, &[b"http/1.1"]).await;
        exchange(&mut stream, request, enough).await
    }
}

/// Writes a request and reads `enough` answers, or until the end.
pub(crate) async fn exchange<S>(stream: &mut S, request: &[u8], enough: usize) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // The door may refuse while we still write.
    if stream.write_all(request).await.is_ok() {
        stream.flush().await.ok();
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let deadline = started() + Duration::from_secs(10);
    while started() < deadline {
        let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut buffer)).await;
        match read {
            Ok(Ok(0) | Err(_)) => break,
            Ok(Ok(n)) => answer.extend_from_slice(&buffer[..n]),
            Err(_) if !answer.is_empty() => break,
            Err(_) => {}
        }
        let text = String::from_utf8_lossy(&answer);
        if text.matches("HTTP/1.1 ").count() > enough {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[expect(
    clippy::disallowed_methods,
    reason = "real proxies live by the real clock"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

#[expect(clippy::disallowed_methods, reason = "a test waits in real time")]
pub(crate) fn started() -> Instant {
    Instant::now()
}

/// A Workload API on a socket; its frames are pushed.
pub(crate) struct Agent {
    pub(crate) socket: PathBuf,
    pub(crate) frames: watch::Sender<wire::X509svidResponse>,
    /// The keys of JWT-SVIDs.
    pub(crate) keys: watch::Sender<wire::JwtBundlesResponse>,
    server: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(socket: PathBuf, frame: wire::X509svidResponse) -> Self {
        let (frames, follow) = watch::channel(frame);
        let (keys, follow_keys) = watch::channel(wire::JwtBundlesResponse::default());
        let server = serve_agent(&socket, WorkloadApi(follow, follow_keys));
        Self {
            socket,
            frames,
            keys,
            server,
        }
    }

    pub(crate) fn push(&self, frame: wire::X509svidResponse) {
        self.frames.send_replace(frame);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn serve_agent(socket: &Path, api: WorkloadApi) -> tokio::task::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(SpiffeWorkloadApiServer::new(api))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
            .unwrap();
    })
}

struct WorkloadApi(
    watch::Receiver<wire::X509svidResponse>,
    watch::Receiver<wire::JwtBundlesResponse>,
);

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Frames<wire::X509svidResponse>;
    type FetchX509BundlesStream = Frames<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Frames<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Frames<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Frames<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        if request
            .metadata()
            .get("workload.spiffe.io")
            .is_none_or(|value| value != "true")
        {
            return Err(Status::invalid_argument(
                "security header missing from request",
            ));
        }
        Ok(Response::new(Box::pin(
            WatchStream::new(self.0.clone()).map(Ok),
        )))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented("this agent gives X.509-SVIDs only"))
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        Err(Status::unimplemented("this agent gives X.509-SVIDs only"))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Ok(Response::new(Box::pin(
            WatchStream::new(self.1.clone()).map(Ok),
        )))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented("this agent gives X.509-SVIDs only"))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented("this agent gives X.509-SVIDs only"))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented("this agent gives X.509-SVIDs only"))
    }
}

/// A real proxy.
pub(crate) struct Proxy {
    pub(crate) child: Child,
    pub(crate) doors: BTreeMap<String, String>,
    pub(crate) log: PathBuf,
    pub(crate) access: PathBuf,
    pub(crate) audit: PathBuf,
}

impl Proxy {
    /// Starts `mesh-proxy run`. `doors` is the YAML of its doors and policy.
    pub(crate) async fn start(world: &World, name: &str, agent: &Agent, doors: &str) -> Self {
        let (log, access, audit) = (
            world.path(&format!("{name}.log")),
            world.path(&format!("{name}.access")),
            world.path(&format!("{name}.audit")),
        );
        let config = world.write(
            &format!("{name}.yaml"),
            &format!(
                "apiVersion: config.finial.dev/v1\nkind: MeshProxyConfig\nworkloadApi: {{ socket: \"unix://{}\" }}\naccessLog: {{ path: \"{}\" }}\naudit: {{ dir: \"{}\" }}\n{doors}\n",
                agent.socket.display(),
                access.display(),
                audit.display()
            ),
        );
        let addresses = world.path(&format!("{name}.addresses"));
        let child = Command::new(env!("CARGO_BIN_EXE_mesh-proxy"))
            .args(["run", "--config"])
            .arg(&config)
            .arg("--addresses-file")
            .arg(&addresses)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut proxy = Self {
            child,
            doors: BTreeMap::new(),
            log,
            access,
            audit,
        };
        eventually("the proxy binds its doors", || {
            let text = std::fs::read_to_string(&addresses).ok()?;
            proxy.doors = serde_json::from_str(&text).ok()?;
            Some(())
        })
        .await;
        proxy
    }

    pub(crate) fn door(&self, name: &str) -> SocketAddr {
        self.doors[name].parse().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// All lines of the access log.
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&self.access).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// The access-log line that `wanted` accepts, once it is there.
    pub(crate) async fn line(
        &self,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        eventually("an access-log line", || {
            self.lines().into_iter().find(&wanted)
        })
        .await
    }

    pub(crate) fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.audit.join("audit.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub(crate) fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Status and text of a page of the admin port.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.door("metrics")).await.unwrap();
        let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange(&mut stream, ask.as_bytes(), 9).await;
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        (status, answer)
    }

    pub(crate) async fn ready(&self) {
        let address = self.door("metrics");
        for _ in 0..200 {
            if let Ok(mut stream) = TcpStream::connect(address).await {
                let answer = exchange(
                    &mut stream,
                    b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
                    9,
                )
                .await;
                if answer.starts_with("HTTP/1.1 200") {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not ready: {}", self.log());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.log.display(), self.log());
        }
    }
}

/// Tries until it works; fails after ten seconds with what was wanted.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..400 {
        if let Some(value) = attempt() {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("in vain: {what}");
}

pub(crate) type Answered = hyper::Response<BoxBody<Bytes, hyper::Error>>;

/// An application that answers HTTP/1.1 and HTTP/2, and remembers the heads of all requests.
pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
}

impl Application {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (
            listener.local_addr().unwrap(),
            Arc::new(Mutex::new(Vec::new())),
        );
        let remembered = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&remembered);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        answer(request, Arc::clone(&seen))
                    });
                    let builder =
                        hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        });
        Self { address, seen }
    }

    pub(crate) fn heads(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn full(text: impl Into<Bytes>) -> BoxBody<Bytes, hyper::Error> {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

/// `/echo` and gRPC give the body and trailers back as they come; `/slow` takes a second; everything else says what it saw.
async fn answer(
    request: hyper::Request<hyper::body::Incoming>,
    seen: Arc<Mutex<Vec<String>>>,
) -> Result<Answered, hyper::Error> {
    let mut head = format!(
        "{} {} {:?}\n",
        request.method(),
        request.uri(),
        request.version()
    );
    for (name, value) in request.headers() {
        head.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    seen.lock().unwrap().push(head.clone());
    let grpc = request
        .headers()
        .get("content-type")
        .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        let (sender, frames) =
            tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, hyper::Error>>(8);
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if sender.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("x-forwarded-client-cert", "forged".parse().unwrap());
            sender
                .send(Ok(http_body::Frame::trailers(trailers)))
                .await
                .ok();
        });
        let body = BoxBody::new(http_body_util::StreamBody::new(
            tokio_stream::wrappers::ReceiverStream::new(frames),
        ));
        return Ok(hyper::Response::builder()
            .header("content-type", "application/grpc")
            .body(body)
            .unwrap());
    }
    match request.uri().path() {
        "/echo" => Ok(hyper::Response::new(request.into_body().boxed())),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(800)).await;
            Ok(hyper::Response::new(full("slow")))
        }
        _ => {
            let body = request.into_body().collect().await?.to_bytes();
            let text = format!("{head}\n{}", String::from_utf8_lossy(&body));
            Ok(hyper::Response::builder()
                .header("x-finial-error", "forged")
                .body(full(text))
                .unwrap())
        }
    }
}

/// An application that speaks bytes: gives them back, and closes when its caller does.
pub(crate) async fn echo_bytes() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.ok();
                to.write_all(b"<end>").await.ok();
                to.shutdown().await.ok();
            });
        }
    });
    address
}

/// Two workloads, `shop` calling `pay`, each behind its proxy.
pub(crate) struct Pair {
    pub(crate) application: Application,
    pub(crate) shop_agent: Agent,
    pub(crate) pay_agent: Agent,
    pub(crate) shop: Proxy,
    pub(crate) pay: Proxy,
    /// Last, so that its directory is still there when a failed test shows the logs.
    pub(crate) world: World,
}

impl Pair {
    pub(crate) async fn start(policy: &str) -> Self {
        Self::with_life(policy, Duration::from_secs(600)).await
    }

    pub(crate) async fn with_life(policy: &str, life: Duration) -> Self {
        Self::with_config(policy, life, "").await
    }

    /// Both proxies have `more` in their configuration.
    pub(crate) async fn with_config(policy: &str, life: Duration, more: &str) -> Self {
        let world = World::new();
        let application = Application::start().await;
        let (shop_agent, pay_agent) = (world.agent("shop", life), world.agent("pay", life));
        let policy = world.write("policy.yaml", policy);
        let doors = format!(
            "inbound: {{ listen: \"127.0.0.1:0\", application: \"{}\" }}\npolicy: {{ file: \"{}\" }}\n{more}",
            application.address,
            policy.display()
        );
        let pay = Proxy::start(&world, "pay", &pay_agent, &doors).await;
        let doors = format!(
            "outbound:\n  - {{ name: pay, listen: \"127.0.0.1:0\", to: \"{0}\", serverId: \"spiffe://{DOMAIN}/pay\" }}\n  - {{ name: wrong, listen: \"127.0.0.1:0\", to: \"{0}\", serverId: \"spiffe://{DOMAIN}/other\" }}\n{more}",
            pay.door("inbound")
        );
        let shop = Proxy::start(&world, "shop", &shop_agent, &doors).await;
        pay.ready().await;
        shop.ready().await;
        Self {
            world,
            application,
            shop_agent,
            pay_agent,
            shop,
            pay,
        }
    }

    /// A request of `shop` through both proxies.
    pub(crate) async fn get(&self, path: &str) -> String {
        self.send(
            format!("GET {path} HTTP/1.1\r\nHost: pay\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await
    }

    pub(crate) async fn send(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.shop.door("outbound.pay"))
            .await
            .unwrap();
        exchange(&mut stream, request, 9).await
    }

    pub(crate) fn policy(&self, text: &str) {
        self.world.write("policy.yaml", text);
    }
}

/// A policy file of one ALLOW and perhaps one DENY.
pub(crate) fn allow(rule: &str) -> String {
    format!(
        "---\napiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: allow-shop, namespace: payments }}\nspec:\n  rules:\n    - name: r\n      {}\n",
        rule.replace('\n', "\n      ")
    )
}

pub(crate) fn deny(rule: &str) -> String {
    format!(
        "---\napiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: deny-admin }}\nspec:\n  action: DENY\n  rules:\n    - name: d\n      {}\n",
        rule.replace('\n', "\n      ")
    )
}

pub(crate) const SHOP_ANYTHING: &str =
    "from: [ { source: { principals: [\"spiffe://dev.test/shop\"] } } ]";
