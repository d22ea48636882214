//! The three doors: mutual TLS for agents, the Unix socket for local administrators, the admin port for operators.
//! All are bound before anything is served; each has limits of its own.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_runtime::accept::{self, Incoming};
use mesh_runtime::addresses::Addresses;
use mesh_runtime::admin::{Admin, BoundAdmin};
use mesh_runtime::readiness::{Liveness, Part, Readiness};
use mesh_runtime::tasks::Tasks;
use mesh_tls::{Authorizer, ClientPolicy, IdentityCell, ServerConfig, Shown, WebIdentity};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tonic::transport::Server;

use super::SocketFile;
use crate::api::door::Io;
use crate::api::{GuardLayer, Parts, routes};
use crate::config::{BundleEndpointConfig, BundleEndpointProfile, CaServerConfig};
use crate::public::BundleEndpoint;

/// A connection is asked to end by then, so that agents spread over several servers again. Streams on it may finish.
const OLDEST_CONNECTION: Duration = Duration::from_secs(30 * 60);

/// How often a silent peer is asked whether it is still there, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest header list of a call.
const LARGEST_HEADERS: u32 = 16 * 1024;

/// Local administrators are few.
const LOCAL_CONNECTIONS: usize = 64;

pub(super) struct Doors {
    tcp: TcpListener,
    unix: UnixListener,
    socket: SocketFile,
    admin: BoundAdmin,
    public: Option<BundleEndpoint>,
    addresses: Addresses,
    tls: Arc<ServerConfig>,
    parts: Parts,
    connections: usize,
    streams: u32,
    ready: Part,
}

impl Doors {
    pub(super) async fn bind(
        config: &CaServerConfig,
        parts: Parts,
        identity: &IdentityCell,
        readiness: &Readiness,
        liveness: &Liveness,
        ready: Part,
    ) -> anyhow::Result<Self> {
        let tcp = TcpListener::bind(config.listen.address)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen.address))?;
        let open_to_others =
            !config.listen.admin_uids.is_empty() || !config.listen.admin_gids.is_empty();
        let (unix, socket) = bind_socket(&config.listen.admin_socket, open_to_others).await?;
        let admin = Admin::new(readiness, parts.metrics.registry())
            .liveness(liveness)
            .bind(config.telemetry.metrics.address)
            .await?;
        let mut addresses = Addresses::new();
        addresses.add("grpc", tcp.local_addr()?);
        addresses.add("adminSocket", config.listen.admin_socket.display());
        addresses.add("metrics", admin.address());
        let public = match &config.federation.bundle_endpoint {
            None => None,
            Some(endpoint) => {
                let (public, address) = bind_public(endpoint, &parts, identity).await?;
                addresses.add("bundleEndpoint", address);
                Some(public)
            }
        };
        let tls = mesh_tls::server_config(
            identity,
            // Who may call what is decided for each call; a certificate that is shown must be valid.
            ClientPolicy::Optional(Authorizer::any_verified()),
            &[b"h2"],
            parts.clock.as_fn(),
        );
        Ok(Self {
            tcp,
            unix,
            socket,
            admin,
            public,
            addresses,
            tls,
            parts,
            connections: usize::try_from(config.limits.connections).unwrap_or(usize::MAX),
            streams: config.limits.streams_per_connection,
            ready,
        })
    }

    pub(super) fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    pub(super) fn start(self, tasks: &Tasks) {
        let drain = self.parts.drain.clone();
        let limits = accept::Limits {
            max_connections: self.connections.max(1),
            ..accept::Limits::default()
        }
        .below_descriptor_limit(1);
        let (tls, watch) = (self.tls, drain.clone());
        let agents = Incoming::new(
            self.tcp,
            "grpc",
            limits,
            drain.stop_accepting(),
            move |stream, permit| Io::tls(tls.clone(), stream, permit, watch.hold()),
        );
        let (path, watch) = (Arc::new(self.socket.0.clone()), drain.clone());
        let local_limits = accept::Limits {
            max_connections: LOCAL_CONNECTIONS,
            ..accept::Limits::default()
        };
        let locals = Incoming::new(
            self.unix,
            "admin-socket",
            local_limits,
            drain.stop_accepting(),
            move |stream, permit| {
                let io = Io::unix(stream, path.clone(), permit, watch.hold());
                async move { io }
            },
        );
        for (name, incoming) in [("grpc-door", agents), ("admin-door", locals)] {
            let (parts, drain, streams) = (self.parts.clone(), drain.clone(), self.streams);
            tasks.spawn(name, move |stop| async move {
                let serving = server(streams)
                    .layer(GuardLayer::new(&parts))
                    .add_routes(routes(&parts))
                    .serve_with_incoming_shutdown(incoming, async move { drain.draining().await });
                match stop.unless_stopped(serving).await {
                    Some(outcome) => outcome,
                    None => Ok(()),
                }
            });
        }
        if let Some(public) = self.public {
            let drain = drain.clone();
            tasks.spawn("bundle-endpoint", move |stop| public.serve(drain, stop));
        }
        let admin = self.admin;
        tasks.spawn("admin-port", move |stop| admin.serve(stop));
        let socket = self.socket;
        tasks.spawn("admin-socket-file", |stop| async move {
            stop.cancelled().await;
            drop(socket);
            Ok::<(), std::io::Error>(())
        });
        let _ready = self.ready.done();
    }
}

fn server(streams: u32) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(Some(LARGEST_HEADERS))
        .http2_max_pending_accept_reset_streams(Some(32))
        .max_concurrent_streams(Some(streams.max(1)))
        .max_connection_age(OLDEST_CONNECTION)
}

/// The bundle endpoint, and what was bound.
async fn bind_public(
    config: &BundleEndpointConfig,
    parts: &Parts,
    identity: &IdentityCell,
) -> anyhow::Result<(BundleEndpoint, SocketAddr)> {
    let shown = match &config.profile {
        BundleEndpointProfile::HttpsSpiffe(_) => Shown::Svid(identity.clone()),
        BundleEndpointProfile::HttpsWeb(web) => {
            let read = |path: &Path| {
                std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
            };
            let identity = WebIdentity::from_pem(&read(&web.certificate)?, &read(&web.key)?);
            Shown::Web(identity.with_context(|| {
                format!(
                    "cannot show {} at the bundle endpoint",
                    web.certificate.display()
                )
            })?)
        }
    };
    let listener = TcpListener::bind(config.address)
        .await
        .with_context(|| format!("cannot listen on {}", config.address))?;
    let address = listener.local_addr()?;
    let tls = mesh_tls::public_server_config(shown, &[b"http/1.1"], parts.clock.as_fn());
    let bundle = parts.authority.bundle();
    Ok((BundleEndpoint::new(listener, tls, bundle), address))
}

/// Binds the socket, over one that a killed predecessor left; never over one that somebody listens on.
async fn bind_socket(path: &Path, open: bool) -> anyhow::Result<(UnixListener, SocketFile)> {
    let context = || format!("cannot listen on {}", path.display());
    if path.exists() {
        anyhow::ensure!(
            UnixStream::connect(path).await.is_err(),
            "{}: another process listens on this socket",
            path.display()
        );
        std::fs::remove_file(path).with_context(context)?;
    }
    let listener = UnixListener::bind(path).with_context(context)?;
    // Who connects is asked of the kernel in any case; the mode keeps out those who could only be refused.
    let mode = if open { 0o666 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(context)?;
    Ok((listener, SocketFile(PathBuf::from(path))))
}
