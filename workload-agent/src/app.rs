//! Decides the order in which the agent comes up: sockets first (they answer Unavailable), then the node's proof, then the rest.
//! Trusts the configuration that was checked. Never serves an identity before the CA has said who may have it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_identity::TrustDomain;
use mesh_runtime::{
    addresses::{Addresses, AddressesError},
    admin::{Admin, BindError, BoundAdmin},
    audit::{AuditError, AuditLog},
    clock::Clock,
    errors::{Coded, ErrorChain, Report},
    readiness::{Part, Readiness, ReadyPart},
    tasks::{Stop, TaskFailure, Tasks},
    telemetry::{self, LogControl, Repetition},
};
use tokio::sync::watch;
use tonic::transport::server::Router;

use crate::{
    api::{
        self, ConnectionCaps,
        admin::{AdminApi, AdminPermit, SelfView},
        caller,
        debug::DebugApi,
        delegated::DelegatedApi,
        health::HealthApi,
        logger::LoggerApi,
        reflection::Served,
        sds::SdsApi,
        socket::{BoundSocket, SocketError},
        workload::WorkloadApi,
    },
    attestor::{Attestor, k8s::K8sAttestor, unix::UnixAttestor},
    bootstrap::{Bootstrap, BootstrapError, Proof},
    config::AgentConfig,
    handover::{self, Estate, HandoverError, Inheritance, Successor},
    identity::Proven,
    metrics::Metrics,
    rotation::{self, Random},
    state::{self, StateDir, StateError},
    tokens::Tokens,
    upstream::{Banned, Remote, Upstream},
    vault::Vault,
};

/// Connections on the admin socket: administrators are few.
const ADMIN_CAPS: ConnectionCaps = ConnectionCaps {
    all: 64,
    per_uid: 32,
};
/// Pauses between attempts to attest at the start.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A running agent.
#[derive(Debug)]
pub struct App {
    tasks: Tasks,
    addresses: Addresses,
    readiness: Readiness,
    audit: Option<AuditLog>,
    successor: Successor,
}

/// What is not configured.
#[derive(Debug)]
pub struct Parts {
    /// The time.
    pub clock: Clock,
    /// Sockets of the agent that ran before.
    pub inherited: Inheritance,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            clock: Clock::system(),
            inherited: Inheritance::default(),
        }
    }
}

impl App {
    /// Binds every door, then starts everything. Identities come when the CA has been reached.
    ///
    /// # Errors
    /// When a door cannot be bound or the data directory cannot be used.
    pub async fn start(config: AgentConfig, mut parts: Parts) -> anyhow::Result<Self> {
        let own: TrustDomain = config
            .trust_domain
            .parse()
            .context("the trust domain was checked")?;
        let (clock, metrics, readiness) = (parts.clock, Metrics::new(), Readiness::new());
        let identity_ready = readiness.part("node attestation");
        let synced = readiness.part("updates from the ca-server");

        let admin_port = Admin::new(&readiness, metrics.registry())
            .bind(config.telemetry.metrics.address)
            .await?;
        let mut bind = |path: PathBuf, mode| {
            let inherited = parts.inherited.socket(&path);
            BoundSocket::adopt_or_bind(&path, mode, inherited)
        };
        let workload_socket = bind(config.workload_socket(), 0o777)?;
        let admin_socket = bind(config.admin_socket(), 0o666)?;
        let estate = Estate::new(&config, vec![workload_socket.lend()?, admin_socket.lend()?])?;
        let state = StateDir::open(&config.data_dir, config.sealing_key.as_deref())?;
        let audit = match &config.audit.dir {
            Some(dir) => Some(AuditLog::open(dir, "workload-agent", &clock)?),
            None => None,
        };
        if let Some(log) = &audit {
            log.register(metrics.registry(), "workload_agent");
        }
        let mut addresses = Addresses::new();
        addresses.add("workloadApi", workload_socket.path().display());
        addresses.add("adminSocket", admin_socket.path().display());
        addresses.add("metrics", admin_port.address());

        let proof =
            Proof::from_config(config.node_attestation).context("the way to attest was checked")?;
        let remote = Arc::new(Remote::new(config.server.address.clone(), own.clone()));
        let bootstrap = Bootstrap {
            remote,
            proof,
            options: config.server,
            state,
            clock: clock.clone(),
        };
        let vault = Arc::new(Vault::new(own.clone()));
        // Only what this very agent held counts, and who may have it is asked of the kernel anew.
        if let Some(kept) = bootstrap.state.identity(&own)?
            && let Some(held) = bootstrap.state.node(&own, kept.identity.id(), clock.now())
        {
            vault.restore(held, clock.now());
        }
        let attestor = Attestor::new(
            UnixAttestor::new(config.limits.executable_size.as_bytes()),
            K8sAttestor::on_this_node(),
        );
        let tasks = Tasks::new("workload-agent");
        let (self_view, own_view) = watch::channel(SelfView::default());

        let tokens = Arc::new(Tokens::default());
        let giving = caller::Parts::new(
            Arc::clone(&vault),
            attestor.clone(),
            clock.clone(),
            metrics.clone(),
            audit.clone(),
            Arc::clone(&tokens),
            tasks.stopping(),
        );
        let giving = Arc::new(giving.with_streams_per_uid(config.limits.streams_per_uid));
        let workload = WorkloadApi::new(Arc::clone(&giving));
        let sds = (!config.workload_api.sds.disabled)
            .then(|| SdsApi::new(Arc::clone(&giving), config.workload_api.sds).into_service());
        let delegated = DelegatedApi::new(giving, config.admin.authorized_delegates);
        let log = telemetry::installed().unwrap_or_else(|| LogControl::of_no_log(&config.log));
        let logger = LoggerApi::new(log, audit.clone());
        let debug = DebugApi::new(
            Arc::clone(&vault),
            Arc::clone(&tokens),
            own_view.clone(),
            clock.clone(),
        );
        let admin = AdminApi::new(Arc::clone(&vault), attestor, own_view, clock.clone());
        let caps = ConnectionCaps {
            all: config.limits.connections,
            per_uid: config.limits.connections_per_uid,
        };
        let permit = AdminPermit::new(&config.admin.allowed_uids);
        let doors = Doors {
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
        };
        let router = doors.router(|server, served| {
            server
                .add_service(served.note(workload.into_service()))
                .add_optional_service(sds.map(|sds| served.note(sds)))
        });
        doors.serve("workload-api", workload_socket, router, caps, |_| Ok(()));
        let router = doors.router(|server, served| {
            server
                .add_service(served.note(admin.into_service()))
                .add_service(served.note(debug.into_service()))
                .add_service(served.note(delegated.into_service()))
                .add_service(served.note(logger.into_service()))
        });
        doors.serve(
            "admin-socket",
            admin_socket,
            router,
            ADMIN_CAPS,
            move |peer| permit.admit(peer),
        );
        doors.serve_admin_port(admin_port);
        doors.show_readiness();

        let heart = Heart {
            bootstrap,
            vault,
            metrics,
            clock,
            tasks: tasks.clone(),
            tokens,
            self_view,
            identity_ready,
            synced,
        };
        tasks.spawn("identity", |stop| heart.beat(stop));
        let successor = Successor::default();
        tasks.spawn("handover", |stop| {
            estate.await_successor(successor.clone(), tasks.clone(), stop)
        });
        Ok(Self {
            successor,
            tasks,
            addresses,
            readiness,
            audit,
        })
    }

    /// Where the doors are.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether identities can be served.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Waits for the end of all tasks, then closes the audit log.
    ///
    /// # Errors
    /// The first failure.
    pub async fn join(&self) -> Result<(), AppError> {
        let ended = self.tasks.join().await;
        let closed = match &self.audit {
            Some(log) => log.close().await,
            None => Ok(()),
        };
        // Nothing is written from here on: another agent may have the state.
        self.successor.release();
        closed?;
        Ok(ended?)
    }

    /// The tasks, to stop them or wait for their end.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

/// What both sockets and the admin port need.
struct Doors {
    tasks: Tasks,
    metrics: Metrics,
    readiness: Readiness,
}

impl Doors {
    /// What is added, with health and reflection, which say what else is there.
    fn router(&self, add: impl FnOnce(Router, &mut Served) -> Router) -> Router {
        let mut served = Served::default();
        let health = HealthApi::new(self.readiness.clone(), self.tasks.stopping());
        let server = api::bounded_server().add_service(served.note(health.into_service()));
        add(server, &mut served)
            .add_service(served.present())
            .add_service(served.older())
    }

    fn serve(
        &self,
        name: &'static str,
        socket: BoundSocket,
        router: Router,
        caps: ConnectionCaps,
        admit: impl Fn(&api::peer::Peer) -> Result<(), api::Refused> + Send + Sync + Clone + 'static,
    ) {
        tracing::info!(socket = %socket.path().display(), "{name} listens");
        let metrics = self.metrics.clone();
        self.tasks.spawn(name, move |stop| {
            api::serve(socket, name, router, caps, admit, metrics, stop)
        });
    }

    /// Keeps the metric of the readiness.
    fn show_readiness(&self) {
        let (readiness, metrics) = (self.readiness.clone(), self.metrics.clone());
        self.tasks.spawn("readiness", move |stop| async move {
            let mut ready = readiness.is_ready();
            loop {
                metrics.ready(ready);
                match stop.unless_stopped(readiness.changed_from(ready)).await {
                    Some(now) => ready = now,
                    None => return Ok::<_, std::convert::Infallible>(()),
                }
            }
        });
    }

    fn serve_admin_port(&self, port: BoundAdmin) {
        tracing::info!(address = %port.address(), "the admin port listens");
        self.tasks.spawn("admin-port", move |stop| port.serve(stop));
    }
}

/// What starts once the doors are open.
struct Heart {
    bootstrap: Bootstrap,
    vault: Arc<Vault>,
    metrics: Metrics,
    clock: Clock,
    tasks: Tasks,
    tokens: Arc<Tokens>,
    self_view: watch::Sender<SelfView>,
    identity_ready: Part,
    synced: Part,
}

impl Heart {
    async fn beat(self, stop: Stop) -> Result<(), BootstrapError> {
        let proven = tokio::select! {
            proven = prove(&self.bootstrap, &self.clock, &stop) => proven?,
            never = rotation::withdraw_expired(&self.vault, &self.clock) => match never {},
        };
        let Some(proven) = proven else {
            return Ok(());
        };
        let state = self.bootstrap.state.clone();
        let _attested: ReadyPart = self.identity_ready.done();
        let upstream = Arc::new(Upstream::new(
            self.bootstrap,
            proven,
            Arc::clone(&self.vault),
            self.metrics.clone(),
        )?);
        self.tokens.connect(Arc::clone(&upstream) as _);
        let (follower, keeper, signer) = (
            Arc::clone(&upstream),
            Arc::clone(&upstream),
            Arc::clone(&upstream),
        );
        self.tasks.spawn("updates", |stop| follower.follow(stop));
        self.tasks
            .spawn("agent-svid", |stop| keeper.keep_identity(stop));
        let (vault, clock, metrics) = (
            Arc::clone(&self.vault),
            self.clock.clone(),
            self.metrics.clone(),
        );
        let connections = upstream.connections();
        self.tasks.spawn("rotation", |stop| {
            rotation::run(vault, signer, connections, clock, metrics, stop)
        });

        let (vault, clock, metrics, named) = (
            Arc::clone(&self.vault),
            self.clock.clone(),
            self.metrics.clone(),
            Arc::clone(&upstream),
        );
        self.tasks.spawn("state", |stop| {
            state::keep(state, vault, move || named.id(), clock, metrics, stop)
        });

        // From here on: tell the admin socket and the metrics what is known.
        let (mut views, mut links, mut synced) =
            (self.vault.watch(), upstream.status(), Some(self.synced));
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            self.self_view.send_replace(SelfView {
                id: Some(upstream.id()),
                link: *links.borrow_and_update(),
                upstream: Some(Arc::clone(&upstream)),
            });
            self.metrics.cached(view.svids().count());
            if view.roster().is_some()
                && let Some(part) = synced.take()
            {
                tracing::info!(
                    entries = view.roster().map_or(0, |roster| roster.len()),
                    "the agent knows who may have which identity"
                );
                drop(part.done());
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = views.changed() => {}
                Ok(()) = links.changed() => {}
            }
        }
    }
}

/// The identity of the last run, or a new one. A CA that is away is waited for; one that refuses ends the program, which tells
/// the operator at once what a retry would hide.
async fn prove(
    bootstrap: &Bootstrap,
    clock: &Clock,
    stop: &Stop,
) -> Result<Option<Proven>, BootstrapError> {
    if let Some(kept) = bootstrap.resume()? {
        tracing::info!(id = %kept.identity.id(), "going on with the identity of the last run");
        return Ok(Some(kept));
    }
    let (quiet, random) = (Repetition::new("node attestation"), Random::new());
    for failures in 0.. {
        match stop.unless_stopped(bootstrap.attest()).await {
            None => return Ok(None),
            Some(Ok(proven)) => {
                quiet.succeeded();
                return Ok(Some(proven));
            }
            Some(Err(error)) if error.may_pass() => quiet.failed(&error),
            Some(Err(error)) => {
                tracing::error!(error = %ErrorChain(&error), "this node is not attested");
                return Err(error);
            }
        };
        let pause = random.around(rotation::grown(RETRY, failures), 0.25);
        if stop.unless_stopped(clock.sleep(pause)).await.is_none() {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Why the program ended.
#[derive(Debug)]
pub struct AppError(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for AppError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl AppError {
    /// As people see it: under the code of the innermost cause that has one.
    pub fn report(&self) -> Report {
        let codes = self.0.chain().filter_map(|cause| {
            None.or_else(|| coded::<BootstrapError>(cause))
                .or_else(|| coded::<StateError>(cause))
                .or_else(|| coded::<SocketError>(cause))
                .or_else(|| coded::<HandoverError>(cause))
                .or_else(|| coded::<Banned>(cause))
                .or_else(|| coded::<BindError>(cause))
                .or_else(|| coded::<AuditError>(cause))
                .or_else(|| coded::<AddressesError>(cause))
                .or_else(|| coded::<TaskFailure>(cause))
        });
        Report::new(
            codes.last().unwrap_or("FNL2100"),
            ErrorChain(self.0.as_ref()).to_string(),
        )
    }
}

fn coded<E: std::error::Error + Coded + 'static>(
    error: &(dyn std::error::Error + 'static),
) -> Option<&'static str> {
    error.downcast_ref::<E>().map(Coded::code)
}

/// Runs until a signal, a failure, or another agent that takes its place. With `take_over` it first takes that of the one that runs.
///
/// # Errors
/// When it cannot start, or a task fails.
pub async fn run(
    config: AgentConfig,
    addresses_file: Option<PathBuf>,
    take_over: bool,
) -> Result<(), AppError> {
    let inherited = match take_over {
        true => handover::take(&config).await?,
        false => Inheritance::default(),
    };
    let parts = Parts {
        inherited,
        ..Parts::default()
    };
    let app = App::start(config, parts).await?;
    app.tasks().stop_on_signals()?;
    if let Some(path) = addresses_file {
        app.addresses().write(&path)?;
    }
    app.join().await
}
