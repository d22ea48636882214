//! Decides when identities become files: each change of the Workload API is written whole, then the program that reads it is told.
//! Trusts the agent at the socket, as any workload does. Never shows half a file, never takes a good one away because of a fault.

mod arguments;
mod content;
mod folder;
pub mod options;
mod source;
mod tell;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_runtime::{
    admin::{Admin, BindError},
    clock::Clock,
    errors::{Coded, ErrorChain},
    metrics::Metrics,
    readiness::{Part, Readiness},
    tasks::{Stop, TaskFailure, Tasks},
    telemetry::Repetition,
};

use self::{
    content::Content,
    folder::{Folder, FolderError},
    options::{JwtFile, Settings},
    source::{Fault, Source},
    tell::Teller,
};
use crate::rotation::{Random, grown};

/// Pauses between attempts.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A token is renewed at half of what it has left, and never without a pause.
const SHORTEST_TOKEN_PAUSE: Duration = Duration::from_secs(1);

/// Why the helper ended.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// What is wanted cannot be had, and the helper was told to ask only once.
    #[error("the agent gave no {what}")]
    Nothing {
        /// Of what.
        what: &'static str,
        /// Why.
        #[source]
        cause: Fault,
    },
    /// The port of the health checks.
    #[error(transparent)]
    Health(#[from] BindError),
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
    /// A task.
    #[error(transparent)]
    Task(#[from] TaskFailure),
}

impl Coded for HelperError {
    fn code(&self) -> &'static str {
        match self {
            Self::Folder(error) => error.code(),
            Self::Nothing { .. } => "FNL2034",
            Self::Health(error) => error.code(),
            Self::Signals(_) => "FNL2036",
            Self::Task(error) => error.code(),
        }
    }
}

/// What the loops share.
struct Helper {
    settings: Settings,
    source: Source,
    folder: Mutex<Folder>,
    clock: Clock,
    random: Random,
}

/// Writes once and ends, or, as a daemon, keeps the files fresh until it is told to stop.
///
/// # Errors
/// When the folder cannot be used; without the daemon also when the agent gives nothing.
pub async fn run(settings: Settings, clock: Clock) -> Result<(), HelperError> {
    let names = settings.names();
    let helper = Arc::new(Helper {
        folder: Mutex::new(Folder::open(&settings.folder, names)?),
        source: Source::new(&settings.socket),
        settings,
        clock,
        random: Random::new(),
    });
    match helper.settings.daemon {
        true => helper.keep().await,
        false => helper.once().await,
    }
}

impl Helper {
    async fn once(&self) -> Result<(), HelperError> {
        let nothing = |what| move |cause| HelperError::Nothing { what, cause };
        if self.settings.x509.is_some() {
            let first = async {
                let mut stream = self.source.x509().await?;
                let context = source::next_x509(&mut stream).await?;
                self.write_x509(context).await
            };
            first.await.map_err(nothing("X.509 identity"))?;
        }
        if self.settings.jwt_bundle.is_some() {
            let first = async {
                let mut stream = self.source.jwt_bundles().await?;
                let bundles = source::next_jwt_bundles(&mut stream).await?;
                self.write_jwt_bundles(&bundles).await
            };
            first.await.map_err(nothing("JWT bundle"))?;
        }
        for file in &self.settings.jwt_svids {
            let written = self.write_token(file).await;
            written.map_err(nothing("JWT-SVID"))?;
        }
        Ok(())
    }

    async fn keep(self: Arc<Self>) -> Result<(), HelperError> {
        let (tasks, readiness) = (Tasks::new("helper"), Readiness::new());
        if let Some(health) = self.settings.health {
            let port = Admin::new(&readiness, &Metrics::new("helper")).bind(health);
            let port = port.await?;
            tracing::info!(address = %port.address(), "health checks are answered");
            tasks.spawn("health", |stop| port.serve(stop));
        }
        tasks.stop_on_signals().map_err(HelperError::Signals)?;
        if self.settings.x509.is_some() {
            let (helper, part) = (Arc::clone(&self), readiness.part("X.509 files"));
            tasks.spawn("x509", |stop| helper.follow_x509(part, stop));
        }
        if self.settings.jwt_bundle.is_some() {
            let (helper, part) = (Arc::clone(&self), readiness.part("JWT bundle"));
            tasks.spawn("jwt-bundle", |stop| helper.follow_jwt_bundles(part, stop));
        }
        for file in self.settings.jwt_svids.clone() {
            let part = readiness.part(&file.name);
            let helper = Arc::clone(&self);
            let name = format!("jwt-svid {}", file.name);
            tasks.spawn(&name, |stop| helper.renew_token(file, part, stop));
        }
        Ok(tasks.join().await?)
    }

    async fn follow_x509(self: Arc<Self>, part: Part, stop: Stop) -> Result<(), Infallible> {
        let mut teller = Teller::new(self.settings.tell.clone());
        let (mut part, mut failures) = (Some(part), 0);
        let quiet = Repetition::new("X.509 identity");
        loop {
            let walk = async {
                let mut stream = self.source.x509().await?;
                loop {
                    let context = tokio::select! {
                        context = source::next_x509(&mut stream) => context?,
                        never = teller.reap() => match never {},
                    };
                    self.write_x509(context).await?;
                    failures = 0;
                    quiet.succeeded();
                    if let Some(part) = part.take() {
                        drop(part.done());
                    }
                    if let Err(error) = teller.changed().await {
                        tracing::error!(error = %ErrorChain(&error), "the program that reads the files was not told");
                    }
                }
            };
            let end: Option<Result<Infallible, Fault>> = stop.unless_stopped(walk).await;
            match end {
                None => break,
                Some(Ok(never)) => match never {},
                Some(Err(fault)) => {
                    quiet.failed(&fault);
                }
            }
            let pause = self.pause(failures);
            failures += 1;
            let waited = async {
                tokio::select! {
                    () = self.clock.sleep(pause) => {}
                    never = teller.reap() => match never {},
                }
            };
            if stop.unless_stopped(waited).await.is_none() {
                break;
            }
        }
        teller.end().await;
        Ok(())
    }

    async fn follow_jwt_bundles(self: Arc<Self>, part: Part, stop: Stop) -> Result<(), Infallible> {
        let (mut part, mut failures) = (Some(part), 0);
        let quiet = Repetition::new("JWT bundle");
        loop {
            let walk = async {
                let mut stream = self.source.jwt_bundles().await?;
                loop {
                    let bundles = source::next_jwt_bundles(&mut stream).await?;
                    self.write_jwt_bundles(&bundles).await?;
                    failures = 0;
                    quiet.succeeded();
                    if let Some(part) = part.take() {
                        drop(part.done());
                    }
                }
            };
            let end: Option<Result<Infallible, Fault>> = stop.unless_stopped(walk).await;
            match end {
                None => return Ok(()),
                Some(Ok(never)) => match never {},
                Some(Err(fault)) => {
                    quiet.failed(&fault);
                }
            }
            let pause = self.pause(failures);
            failures += 1;
            if stop.unless_stopped(self.clock.sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    async fn renew_token(
        self: Arc<Self>,
        file: JwtFile,
        part: Part,
        stop: Stop,
    ) -> Result<(), Infallible> {
        let (mut part, mut failures) = (Some(part), 0);
        let quiet = Repetition::new("JWT-SVID");
        loop {
            let pause = match stop.unless_stopped(self.write_token(&file)).await {
                None => return Ok(()),
                Some(Ok(left)) => {
                    failures = 0;
                    quiet.succeeded();
                    if let Some(part) = part.take() {
                        drop(part.done());
                    }
                    (left / 2).max(SHORTEST_TOKEN_PAUSE)
                }
                Some(Err(fault)) => {
                    quiet.failed(&fault);
                    failures += 1;
                    self.pause(failures - 1)
                }
            };
            if stop.unless_stopped(self.clock.sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    fn pause(&self, failures: u32) -> Duration {
        self.random.around(grown(RETRY, failures), 0.25)
    }

    async fn write_x509(&self, context: source::X509) -> Result<(), Fault> {
        let Some(files) = &self.settings.x509 else {
            return Ok(());
        };
        let identity = context.pick(&self.settings.hint)?;
        let now = self.clock.now();
        self.write(content::x509(files, identity, context.bundles(), now)?)
            .await
    }

    async fn write_jwt_bundles(&self, bundles: &BTreeMap<String, Vec<u8>>) -> Result<(), Fault> {
        let Some((name, mode)) = &self.settings.jwt_bundle else {
            return Ok(());
        };
        let content = Content::new(*mode, content::jwt_bundles(bundles));
        self.write([(name.clone(), content)].into()).await
    }

    /// How long the new token lives.
    async fn write_token(&self, file: &JwtFile) -> Result<Duration, Fault> {
        let hint = &self.settings.hint;
        let token = self.source.token(&file.audience, hint).await?;
        let left = token
            .expires_at
            .duration_since(self.clock.now())
            .map_err(|_| Fault::ExpiredToken)?;
        let content = Content::new(file.mode, token.text);
        self.write([(file.name.clone(), content)].into()).await?;
        Ok(left)
    }

    /// On a thread that may wait for the disk.
    async fn write(&self, changed: BTreeMap<String, Content>) -> Result<(), Fault> {
        let written = tokio::task::block_in_place(|| {
            let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
            folder.put(changed)
        });
        if written? {
            tracing::info!(folder = %self.settings.folder.display(), "new files are in place");
        }
        Ok(())
    }
}
