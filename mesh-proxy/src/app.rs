//! Makes every part from the configuration and ties them together; the only place that knows all of them.
//! Trusts nothing to be there yet: doors are bound first, and opened when there is an identity.
//! Never answers for the application: without an identity no door is open, without a policy everything is denied.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use mesh_policy::Protocol as PolicyProtocol;
use mesh_runtime::accept;
use mesh_runtime::addresses::{Addresses, socket_path};
use mesh_runtime::admin::Admin;
use mesh_runtime::audit::AuditLog;
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::{Drain, DrainWatch, Outcome};
use mesh_runtime::metrics::Metrics;
use mesh_runtime::readiness::Readiness;
use mesh_runtime::tasks::{Stop, Tasks};
use mesh_tls::IdentityCell;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::admin::Pages;
use crate::config::{Limits, Outbound, Protocol, ProxyConfig};
use crate::connections::{Proofs, Registry};
use crate::feed::Feed;
use crate::http::pool::{Pool, Target};
use crate::identity::Source;
use crate::identity::stream::Link;
use crate::identity::tokens::{JwtBundles, KeySource};
use crate::inbound::{self, InboundDoor};
use crate::keys::Fetcher;
use crate::metrics::ProxyMetrics;
use crate::outbound::{self, OutboundDoor};
use crate::policy::Policies;
use crate::record::{AccessWriter, Recorder};

/// Runs a proxy until a signal, on a runtime of its own.
///
/// # Errors
/// When it cannot start, or the first part that failed.
pub fn run(config: ProxyConfig, addresses_file: Option<&Path>) -> anyhow::Result<()> {
    runtime(config.workers.0)?.block_on(async {
        let signals = signals()?;
        let app = App::start(config, Clock::system()).await?;
        if let Some(path) = addresses_file {
            app.addresses().write(path)?;
        }
        for (name, address) in app.addresses().iter() {
            tracing::info!(door = name, %address, "bound");
        }
        app.run(signals).await
    })
}

/// One worker is one thread in all: no request ever moves between threads.
fn runtime(workers: usize) -> std::io::Result<tokio::runtime::Runtime> {
    if workers == 1 {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()
    }
}

/// Ends at the next SIGTERM or SIGINT; asked again, at the one after that.
fn signals() -> std::io::Result<impl AsyncFnMut()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    Ok(async move || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A proxy whose doors are bound.
pub struct App {
    config: ProxyConfig,
    tasks: Tasks,
    drain: Drain,
    addresses: Addresses,
    access: AccessWriter,
}

/// What every door needs.
#[derive(Clone)]
struct Parts {
    limits: Limits,
    clock: Clock,
    policies: Policies,
    recorder: Recorder,
    metrics: ProxyMetrics,
    connections: Registry,
    identity: watch::Receiver<Option<IdentityCell>>,
    drain: DrainWatch,
}

impl App {
    /// Binds every door and starts every part.
    ///
    /// # Errors
    /// When a door cannot be bound or a file cannot be opened.
    pub async fn start(config: ProxyConfig, clock: Clock) -> anyhow::Result<Self> {
        mesh_tls::install_default_provider();
        let registry = Metrics::new("mesh_proxy");
        let metrics = ProxyMetrics::new(&registry, config.workload.clone());
        let readiness = Readiness::new();
        let tasks = Tasks::new("mesh-proxy");
        let drain = Drain::after(&readiness);
        let audit = match &config.audit.dir {
            Some(dir) => Some(AuditLog::open(dir, "mesh-proxy", &clock)?),
            None => None,
        };
        let (recorder, access, audit_writer) =
            Recorder::new(access_log(&config.access_log.path)?, audit, metrics.clone())
                .context("the access log")?;
        if let Some(writer) = audit_writer {
            tasks.spawn("audit", |stop| writer.run(stop));
        }
        let (publish, identity) = watch::channel(None);
        let policies = Policies::not_ready();
        let parts = Parts {
            limits: config.limits.clone(),
            clock: clock.clone(),
            policies: policies.clone(),
            recorder: recorder.clone(),
            metrics: metrics.clone(),
            connections: Registry::new(metrics.clone()),
            identity,
            drain: drain.watch(),
        };
        let mut addresses = Addresses::new();
        bind_inbound(&config, &parts, &tasks, &mut addresses).await?;
        for door in &config.outbound {
            bind_outbound(door, &parts, &tasks, &mut addresses).await?;
        }
        let pages = Pages {
            config: Arc::new(config.clone()),
            identity: parts.identity.clone(),
            policies: policies.clone(),
            connections: parts.connections.clone(),
            drain: drain.watch(),
            explanations: recorder.explanations().clone(),
        };
        let admin = pages
            .add_to(Admin::new(&readiness, &registry))
            .bind(config.telemetry.metrics.address)
            .await?;
        addresses.add("metrics", admin.address());
        tasks.spawn("admin", |stop| admin.serve(stop));
        start_identity(&config, &clock, &metrics, publish, &readiness, &tasks)?;
        start_policy(&config, &parts, &readiness, &tasks)?;
        Ok(Self {
            config,
            tasks,
            drain,
            addresses,
            access,
        })
    }

    /// The doors that were bound: `inbound`, `outbound.<name>`, `metrics`.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Runs until the first signal, then drains: unready, no new connections, what is under way may finish, the rest is closed.
    /// A second signal ends the wait.
    ///
    /// # Errors
    /// The first part that failed.
    pub async fn run(self, mut signal: impl AsyncFnMut()) -> anyhow::Result<()> {
        let failed = self.tasks.stopping();
        tokio::select! {
            () = signal() => tracing::info!("stopping"),
            () = failed.cancelled() => tracing::error!("a part failed"),
        }
        let drain = &self.config.drain;
        tokio::select! {
            outcome = self.drain.run(drain.notice.get(), drain.deadline.get()) => match outcome {
                Outcome::Finished => tracing::info!("every connection has ended"),
                Outcome::Forced(left) => tracing::warn!(left, "connections were closed at the deadline"),
            },
            () = signal() => tracing::warn!("second signal: ending without waiting"),
        }
        self.tasks.stop();
        let ended = self.tasks.join().await;
        self.access.close();
        ended.map_err(Into::into)
    }
}

async fn bind(what: &str, address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot bind {what} at {address}"))?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

async fn bind_inbound(
    config: &ProxyConfig,
    parts: &Parts,
    tasks: &Tasks,
    addresses: &mut Addresses,
) -> anyhow::Result<()> {
    let Some(door) = config.inbound.clone() else {
        return Ok(());
    };
    let (listener, bound) = bind("the inbound door", door.listen).await?;
    addresses.add("inbound", bound);
    let parts = parts.clone();
    tasks.spawn("inbound", move |stop| async move {
        let Some(cell) = first_identity(&parts, &stop).await else {
            return Ok::<_, std::convert::Infallible>(());
        };
        let target = Target::Application {
            address: door.application,
            protocol: door.application_protocol,
        };
        let served = Arc::new(InboundDoor {
            protocol: door.protocol,
            application: door.application,
            trusted_proxies: door.trusted_proxies.into(),
            tls: inbound::tls(&cell, door.protocol, &parts.clock),
            cell,
            handshakes: inbound::handshakes(&parts.limits),
            policies: parts.policies.clone(),
            proofs: Proofs::default(),
            pool: Pool::new(
                target,
                &parts.limits,
                parts.clock.clone(),
                parts.metrics.clone(),
            ),
            connections: parts.connections.clone(),
            limits: parts.limits.clone(),
            recorder: parts.recorder.clone(),
            metrics: parts.metrics.clone(),
            clock: parts.clock.clone(),
        });
        let drain = parts.drain.clone();
        accept::run(
            listener,
            "inbound",
            accept_limits(&parts.limits),
            parts.drain.stop_accepting(),
            move |stream: TcpStream, slot| Arc::clone(&served).serve(stream, slot, drain.clone()),
        )
        .await;
        Ok(())
    });
    Ok(())
}

async fn bind_outbound(
    door: &Outbound,
    parts: &Parts,
    tasks: &Tasks,
    addresses: &mut Addresses,
) -> anyhow::Result<()> {
    let (listener, bound) = bind(&format!("the outbound door {}", door.name), door.listen).await?;
    addresses.add(&format!("outbound.{}", door.name), bound);
    let (door, parts) = (door.clone(), parts.clone());
    tasks.spawn(
        &format!("outbound.{}", door.name.clone()),
        move |stop| async move {
            let Some(cell) = first_identity(&parts, &stop).await else {
                return Ok::<_, std::convert::Infallible>(());
            };
            let tls = outbound::tls(&door, &cell, &parts.clock);
            let target = Target::Peer {
                address: door.to,
                config: Arc::clone(&tls),
                cell: cell.clone(),
            };
            let served = Arc::new(OutboundDoor {
                name: door.name.as_str().into(),
                to: door.to,
                server: door.server_id.clone(),
                protocol: door.protocol,
                cell,
                tls,
                pool: Pool::new(
                    target,
                    &parts.limits,
                    parts.clock.clone(),
                    parts.metrics.clone(),
                ),
                connections: parts.connections.clone(),
                limits: parts.limits.clone(),
                recorder: parts.recorder.clone(),
                metrics: parts.metrics.clone(),
                clock: parts.clock.clone(),
            });
            let drain = parts.drain.clone();
            accept::run(
                listener,
                "outbound",
                accept_limits(&parts.limits),
                parts.drain.stop_accepting(),
                move |stream: TcpStream, slot| {
                    Arc::clone(&served).serve(stream, slot, drain.clone())
                },
            )
            .await;
            Ok(())
        },
    );
    Ok(())
}

/// A connection takes two descriptors: one towards each side.
fn accept_limits(limits: &Limits) -> accept::Limits {
    let handshake_timeout = limits.handshake.get();
    accept::Limits {
        max_connections: limits.connections,
        max_handshakes: limits.handshakes,
        handshake_timeout,
    }
    .below_descriptor_limit(2)
}

/// Doors are bound before there is an identity, so that callers wait in the kernel's queue instead of being refused.
async fn first_identity(parts: &Parts, stop: &Stop) -> Option<IdentityCell> {
    let mut identity = parts.identity.clone();
    tokio::select! {
        found = identity.wait_for(Option::is_some) => found.ok().and_then(|cell| cell.clone()),
        () = stop.cancelled() => None,
        () = parts.drain.draining() => None,
    }
}

fn start_identity(
    config: &ProxyConfig,
    clock: &Clock,
    metrics: &ProxyMetrics,
    publish: watch::Sender<Option<IdentityCell>>,
    readiness: &Readiness,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let source = Source {
        link: Link {
            socket: workload_api(config)?,
            clock: clock.clone(),
            metrics: metrics.clone(),
        },
        publish,
    };
    let part = readiness.part("identity");
    tasks.spawn("identity", |stop| source.run(part, stop));
    Ok(())
}

fn workload_api(config: &ProxyConfig) -> anyhow::Result<PathBuf> {
    socket_path(&config.workload_api.socket)
        .context("no Workload API: set workloadApi.socket or SPIFFE_ENDPOINT_SOCKET to unix:///path/of/agent.sock")
}

fn start_policy(
    config: &ProxyConfig,
    parts: &Parts,
    readiness: &Readiness,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let Some(inbound) = &config.inbound else {
        return Ok(());
    };
    let Some(path) = config.policy.file.clone() else {
        tracing::warn!("no policy file: every request that comes in is denied");
        return Ok(());
    };
    let fetcher = Fetcher::new(
        &config.policy.keys,
        parts.policies.clone(),
        parts.clock.clone(),
    )?;
    let jwt_bundles = JwtBundles::default();
    let protocol = match inbound.protocol {
        Protocol::Http => PolicyProtocol::Http,
        Protocol::Tcp => PolicyProtocol::Tcp,
    };
    let feed = Feed {
        path,
        protocol,
        workload: config.workload.as_ref().map(Into::into),
        policies: parts.policies.clone(),
        web_keys: fetcher.keys.clone(),
        jwt_bundles: jwt_bundles.clone(),
        metrics: parts.metrics.clone(),
        recorder: parts.recorder.clone(),
        clock: parts.clock.clone(),
    };
    let part = readiness.part("policy");
    tasks.spawn("policy", |stop| feed.run(part, stop));
    tasks.spawn("keys", |stop| fetcher.run(stop));
    let source = KeySource {
        link: Link {
            socket: workload_api(config)?,
            clock: parts.clock.clone(),
            metrics: parts.metrics.clone(),
        },
        bundles: jwt_bundles,
        policies: parts.policies.clone(),
    };
    tasks.spawn("jwt-bundles", |stop| source.run(stop));
    Ok(())
}

fn access_log(path: &str) -> anyhow::Result<Option<Box<dyn std::io::Write + Send>>> {
    match path {
        "none" => Ok(None),
        "stdout" => Ok(Some(Box::new(std::io::stdout()))),
        path => {
            let path = PathBuf::from(path);
            let file = open_log(&path)
                .with_context(|| format!("cannot open the access log {}", path.display()))?;
            Ok(Some(Box::new(file)))
        }
    }
}

fn open_log(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}
