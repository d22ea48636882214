//! Makes every part from the configuration and ties them together; binds every door before it says so.
//! Trusts nothing that is not there yet: the program is ready when store, identity and doors are.
//! Never serves from a store or an audit log that could not be opened.

mod background;
mod doors;
mod identity;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_runtime::addresses::Addresses;
use mesh_runtime::audit::{AuditError, AuditLog};
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::Drain;
use mesh_runtime::errors::Coded;
use mesh_runtime::readiness::{Liveness, Readiness};
use mesh_runtime::tasks::{TaskFailure, Tasks};
use mesh_runtime::telemetry::{self, LogControl};
use mesh_tls::{ClientConfig, IdentityCell};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use self::background::Background;
use self::doors::Doors;
use crate::api::Parts;
use crate::api::caller::{Admins, Callers};
use crate::api::limit::Limits;
use crate::attestation::{Attestors, AttestorsError, Surroundings};
use crate::authority::{Authority, AuthorityError};
use crate::config::{CaServerConfig, FederationConfig};
use crate::federation::{self, Federation, Https};
use crate::fleet::Fleet;
use crate::issuance::{Issuer, Lives};
use crate::kubernetes::Clusters;
use crate::metrics::Metrics;
use crate::registry::{EntryBook, Registry};
use crate::store::{SledSettings, StoreError, Stores};

/// How long open calls may go on after the doors are closed.
const DRAIN: Duration = Duration::from_secs(8);

/// What the server cannot make for itself, so that a test can bring its own.
#[derive(Clone)]
pub struct Given {
    /// What it remembers.
    pub stores: Stores,
    /// The audit record.
    pub audit: AuditLog,
    /// The time.
    pub clock: Clock,
}

impl Given {
    /// The real ones: the embedded store and the audit files.
    pub async fn open(config: &CaServerConfig, clock: Clock) -> anyhow::Result<Self> {
        for directory in [
            config.store.sled.path.parent(),
            config.keys.sealing_key.parent(),
            config.listen.admin_socket.parent(),
        ] {
            make_directory(directory)?;
        }
        let origin = format!("{}/ca-server/audit", config.trust_domain);
        let audit = AuditLog::open_signed(&config.audit.dir, "ca-server", &clock, &origin)?;
        let sled = &config.store.sled;
        let settings = SledSettings {
            free_space_reserve: sled.free_space_reserve.as_bytes(),
            cache: sled.cache.as_bytes(),
            ..SledSettings::default()
        };
        let stores = Stores::open_sled(&sled.path, &config.trust_domain, settings).await?;
        Ok(Self {
            stores,
            audit,
            clock,
        })
    }
}

fn make_directory(directory: Option<&Path>) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let Some(directory) = directory.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))
}

/// Why the server did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("ca-server ended")]
pub struct Failure {
    code: &'static str,
    #[source]
    cause: Box<dyn std::error::Error + Send + Sync>,
}

impl Coded for Failure {
    fn code(&self) -> &'static str {
        self.code
    }
}

impl From<anyhow::Error> for Failure {
    /// The code is that of whatever part failed; each part's errors have their own.
    fn from(error: anyhow::Error) -> Self {
        let code = error.chain().find_map(|cause| {
            coded::<StoreError>(cause)
                .or_else(|| coded::<AuthorityError>(cause))
                .or_else(|| coded::<AuditError>(cause))
                .or_else(|| coded::<AttestorsError>(cause))
                .or_else(|| coded::<TaskFailure>(cause))
        });
        Self {
            code: code.unwrap_or("FNL1310"),
            cause: error.into(),
        }
    }
}

fn coded<E: std::error::Error + Coded + 'static>(
    error: &(dyn std::error::Error + 'static),
) -> Option<&'static str> {
    error.downcast_ref::<E>().map(Coded::code)
}

/// The whole life of the program: starts, says what it listens on, serves until a signal comes.
pub fn serve(config: &CaServerConfig, addresses_file: Option<&Path>) -> Result<(), Failure> {
    let whole = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(start_and_run(config, addresses_file))
    };
    whole().map_err(Failure::from)
}

async fn start_and_run(
    config: &CaServerConfig,
    addresses_file: Option<&Path>,
) -> anyhow::Result<()> {
    let tasks = Tasks::new("main");
    tasks.stop_on_signals()?;
    let given = Given::open(config, Clock::system()).await?;
    let app = build(config, given).await?;
    let addresses = app.addresses();
    for (door, address) in addresses.iter() {
        tracing::info!(door, address, "listening");
    }
    tracing::info!(trust_domain = %config.trust_domain, version = env!("CARGO_PKG_VERSION"), "ca-server is up");
    if let Some(path) = addresses_file {
        addresses.write(path)?;
    }
    app.run(tasks).await
}

/// A server whose doors are bound.
pub struct App {
    doors: Doors,
    background: Background,
    drain: Drain,
    audit: AuditLog,
    identity: IdentityCell,
}

/// TLS towards bundle endpoints that are known by the Web PKI. Without a root none of them can be verified, so none is asked.
fn web_tls(config: &FederationConfig, clock: &Clock) -> anyhow::Result<Option<Arc<ClientConfig>>> {
    let roots = match &config.web_roots {
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .with_context(|| format!("cannot read the Web roots {}", path.display()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let tls = mesh_tls::web_client_config(roots, &[b"http/1.1"], clock.as_fn());
    match (tls, &config.web_roots) {
        (Ok(tls), _) => Ok(Some(tls)),
        (Err(error), Some(path)) => {
            Err(error).with_context(|| format!("cannot use the Web roots {}", path.display()))
        }
        (Err(_), None) => Ok(None),
    }
}

/// Makes a server. When it returns, every door is bound and nothing is served yet.
pub async fn build(config: &CaServerConfig, given: Given) -> anyhow::Result<App> {
    let Given {
        stores,
        audit,
        clock,
    } = given;
    let metrics = Metrics::new();
    audit.register(metrics.registry(), "ca_server");
    audit.register_checkpoints(metrics.registry(), "ca_server");
    let (readiness, liveness) = (Readiness::new(), Liveness::new());
    let drain = Drain::after(&readiness);
    let store_ready = readiness.part("store");
    let identity_ready = readiness.part("identity");
    let doors_ready = readiness.part("doors");

    let authority =
        Authority::open(config.authority(), stores.journal.clone(), clock.now()).await?;
    let clusters = Clusters::open(&config.attestation.node, &config.trust_domain).await?;
    let registry = Registry::with(stores.changes.clone(), clusters.clone()).await?;
    let store_ready = store_ready.done();
    let lives = Lives {
        x509_svid: config.lifetimes.x509_svid.get(),
        jwt_svid: config.jwt_svid(),
        agent_svid: config.lifetimes.agent_svid.get(),
    };
    let issuer = Arc::new(Issuer::new(
        authority.clone(),
        registry.clone(),
        stores.issued.clone(),
        audit.clone(),
        lives,
        clock.clone(),
        metrics.clone(),
    )?);
    let own_id = identity::id(&config.trust_domain)?;
    let trust = identity::Trust::new(
        issuer.clone(),
        stores.bundles.clone(),
        stores.changes.clone(),
        &config.admin.ids,
        &config.trust_domain,
    );
    let identity = identity::first(&trust, &own_id, &clock).await?;
    let identity_ready = identity_ready.done();

    let fleet = Fleet::new();
    let around = Surroundings {
        trust_domain: config.trust_domain.clone(),
        tokens: stores.tokens.clone(),
        nodes: stores.nodes.clone(),
        fleet: fleet.clone(),
        clock: clock.clone(),
    };
    let attestors = Attestors::open(&config.attestation.node, &around).await?;
    let federation = Arc::new(Federation::new(federation::Around {
        own: config.trust_domain.clone(),
        relationships: stores.relationships.clone(),
        bundles: stores.bundles.clone(),
        fetch: Arc::new(Https::new(
            web_tls(&config.federation, &clock)?,
            clock.clone(),
        )),
        audit: audit.clone(),
        metrics: metrics.clone(),
        clock: clock.clone(),
    }));
    let parts = Parts {
        trust_domain: config.trust_domain.clone(),
        registry: registry.clone(),
        book: EntryBook::new(
            config.trust_domain.clone(),
            stores.entries.clone(),
            stores.bundles.clone(),
        ),
        bundles: stores.bundles.clone(),
        federation: federation.clone(),
        nodes: stores.nodes.clone(),
        tokens: stores.tokens.clone(),
        snapshots: stores.snapshots.clone(),
        issued: stores.issued.clone(),
        issuer: issuer.clone(),
        authority: authority.clone(),
        attestors: Arc::new(attestors),
        fleet: fleet.clone(),
        callers: Callers::new(
            config.trust_domain.clone(),
            stores.nodes.clone(),
            stores.bundles.clone(),
            registry.clone(),
            fleet.clone(),
            Admins {
                uids: config.listen.admin_uids.iter().copied().collect(),
                gids: config.listen.admin_gids.iter().copied().collect(),
                ids: config.admin.ids.iter().cloned().collect(),
            },
        ),
        limits: Limits::new(&config.limits, clock.clone()),
        audit: audit.clone(),
        metrics: metrics.clone(),
        clock: clock.clone(),
        drain: drain.watch(),
        readiness: readiness.clone(),
        log: telemetry::installed().unwrap_or_else(|| LogControl::of_no_log(&config.log)),
        identity: identity.clone(),
        most_certificates: usize::try_from(config.limits.certificates_per_request)
            .unwrap_or(usize::MAX),
    };
    let doors = Doors::bind(config, parts, &identity, &readiness, &liveness, doors_ready).await?;
    let background = Background {
        clusters,
        federation,
        authority,
        registry,
        stores,
        audit: audit.clone(),
        checkpoint_every: config.audit.checkpoint_every.get(),
        fleet,
        metrics,
        clock,
        own_id,
        trust,
        identity: identity.clone(),
        identity_ready,
        store_ready,
    };
    Ok(App {
        doors,
        background,
        drain,
        audit,
        identity,
    })
}

impl App {
    /// What was bound.
    pub fn addresses(&self) -> Addresses {
        self.doors.addresses()
    }

    /// What this server shows to its peers.
    pub fn identity(&self) -> &IdentityCell {
        &self.identity
    }

    /// Serves until the tasks are asked to stop, then drains: unready, no new connections, open calls finish or are cut off.
    pub async fn run(self, tasks: Tasks) -> anyhow::Result<()> {
        let asked = tasks.stopping();
        // Whatever serves or keeps the authority alive outlives the request to stop until the drain is over.
        let inner = Tasks::new("ca-server");
        self.background.start(&inner);
        self.doors.start(&inner);
        let failed = inner.stopping();
        tokio::select! {
            () = asked.cancelled() => {}
            () = failed.cancelled() => {}
        }
        let outcome = self.drain.run(Duration::ZERO, DRAIN).await;
        tracing::info!(?outcome, "drained");
        inner.stop();
        let ended = inner.join().await;
        self.audit.close().await?;
        Ok(ended?)
    }
}

/// Removes the socket's file when the door is closed.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone with its directory already.
        std::fs::remove_file(&self.0).ok();
    }
}
