//! Decides what SPIRE's DelegatedIdentity API answers: a trusted local process asks for the identities of others, which it names by
//! selectors or by process id, and hands them on.
//! Trusts the configuration for which identities may do so, and such a delegate for the selectors that it vouches for.
//! Never answers a process that does not hold one of those identities at that moment, and never goes on for a process that was
//! named and has ended.

mod bundles;
mod svids;

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use futures::{Stream, stream};
use mesh_identity::{Entry, Selector, SpiffeId};
use proto::{
    convert::selectors_from_wire,
    spire::api::{
        agent::delegatedidentity::v1::{
            self as wire,
            delegated_identity_server::{DelegatedIdentity, DelegatedIdentityServer},
        },
        types,
    },
};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Request, Response, Status};

use self::{
    bundles::Bundles,
    svids::{Svids, tokens},
};
use super::{
    LARGEST_REQUEST, Place,
    caller::{Caller, Parts, gone, stopping},
    sleep_until,
};
use crate::{
    attestor::{
        AttestError, Credentials, Wanted,
        known::Sight,
        process::{NoProcess, Process},
    },
    metrics::OpenStream,
    vault::{Standing, View},
};

/// The name of this service's streams in the metrics.
const API: &str = "delegated";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone, Debug)]
pub struct DelegatedApi {
    parts: Arc<Parts>,
    delegates: Arc<BTreeSet<SpiffeId>>,
}

impl DelegatedApi {
    /// Serves the holders of these identities, and nobody if there is none.
    pub fn new(parts: Arc<Parts>, delegates: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self {
            parts,
            delegates: Arc::new(delegates.into_iter().collect()),
        }
    }

    /// As a tonic service.
    pub fn into_service(self) -> DelegatedIdentityServer<Self> {
        DelegatedIdentityServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }

    async fn delegate<Q>(
        &self,
        request: &Request<Q>,
        method: &'static str,
    ) -> Result<(Delegate, Place), Status> {
        let (caller, place) = self.parts.caller(request)?;
        let mut delegate = Delegate {
            caller,
            allowed: Arc::clone(&self.delegates),
            method,
        };
        delegate.look(&self.parts.vault.view()).await?;
        Ok((delegate, place))
    }

    async fn open<S: Source, Q>(
        &self,
        request: Request<Q>,
        method: &'static str,
        source: impl AsyncFnOnce(&Arc<Parts>, Q) -> Result<S, Status>,
    ) -> Result<Response<Answers<S::Message>>, Status> {
        let opened = async {
            let (delegate, place) = self.delegate(&request, method).await?;
            let source = source(&self.parts, request.into_inner()).await?;
            let mut open = Open {
                delegate,
                source,
                views: self.parts.vault.watch(),
                told: None,
                _place: place,
                _open: self.parts.metrics.stream(API),
            };
            let first = open.next().await?;
            Ok((first, open))
        };
        let opened = opened.await;
        let code = opened.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.parts.metrics.called(method, code);
        let (first, open) = opened?;
        let answers = stream::unfold((Some(first), Some(open)), |(first, open)| async {
            let mut open = open?;
            let answer = match first {
                Some(first) => Ok(first),
                // Asked for only when the connection has room: a slow reader gets the newest state, not each one.
                None => open.next().await,
            };
            let rest = answer.is_ok().then_some(open);
            Some((answer, (None, rest)))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchJwtsviDsRequest>,
    ) -> Result<wire::FetchJwtsviDsResponse, Status> {
        let (mut delegate, _place) = self.delegate(&request, "FetchJWTSVIDs").await?;
        let ask = request.into_inner();
        if ask.audience.iter().all(String::is_empty) {
            return Err(Status::invalid_argument("audience must be specified"));
        }
        let subject = Subject::read(&self.parts, &ask.selectors, ask.pid).await?;
        tokens(&mut delegate, &subject, &ask.audience).await
    }
}

/// The process that asks.
struct Delegate {
    caller: Caller,
    allowed: Arc<BTreeSet<SpiffeId>>,
    method: &'static str,
}

impl Delegate {
    /// Looks at the process, again if it was looked at before, and asks whether it may still do this.
    async fn look(&mut self, view: &View) -> Result<(), Status> {
        self.caller.look(view.wanted()).await?;
        self.authorize(view)
    }

    fn authorize(&self, view: &View) -> Result<(), Status> {
        match view.entitled(self.caller.facts(), self.caller.parts.clock.now()) {
            Standing::NotSynced | Standing::NothingReady { .. } => Err(not_synced(&self.caller)),
            Standing::NoIdentity => Err(self.caller.no_identity(self.method)),
            Standing::Ready(own)
                if own
                    .iter()
                    .any(|(entry, _)| self.allowed.contains(&entry.spiffe_id)) =>
            {
                Ok(())
            }
            Standing::Ready(_) => {
                self.caller.parts.metrics.no_identity("no_delegate");
                tracing::info!(
                    pid = self.caller.peer.process().pid(),
                    uid = self.caller.peer.uid(),
                    method = self.method,
                    "a process without an identity of admin.authorizedDelegates asked for the identities of others"
                );
                Err(Status::permission_denied(
                    "caller not configured as an authorized delegate",
                ))
            }
        }
    }
}

/// Whom a delegate asks for.
pub(super) enum Subject {
    /// A workload that the delegate has looked at itself.
    Vouched(BTreeSet<Selector>),
    /// A process that we look at, held so that its pid cannot come to mean another one.
    Held {
        /// The process.
        process: Process,
        /// What is known of it.
        sight: Sight,
    },
}

impl Subject {
    async fn read(parts: &Parts, selectors: &[types::Selector], pid: i32) -> Result<Self, Status> {
        match (selectors.is_empty(), pid) {
            (false, 0) => {
                let facts = selectors_from_wire("selectors", selectors);
                facts
                    .map(Self::Vouched)
                    .map_err(|error| Status::invalid_argument(error.to_string()))
            }
            (true, 1..) => {
                let process = Process::open(pid).map_err(|error| match error {
                    NoProcess::Gone => ended(),
                    NoProcess::Unwatched(_) | NoProcess::TooMany => {
                        Status::unavailable("the process that was named cannot be held")
                    }
                })?;
                let sight = look(parts, &process, Instant::now()).await?;
                Ok(Self::Held { process, sight })
            }
            _ => Err(Status::invalid_argument(
                "must provide either selectors or a positive pid, and not both",
            )),
        }
    }

    /// Looks at the process again, unless that was done at `since` or later.
    async fn look_since(&mut self, parts: &Parts, since: Instant) -> Result<(), Status> {
        if let Self::Held { process, sight } = self {
            *sight = look(parts, process, since).await?;
        }
        Ok(())
    }

    /// Looks at the process again if its facts may not hold any more.
    async fn keep_up(&mut self, parts: &Parts) -> Result<(), Status> {
        match self {
            Self::Held { sight, .. } if !sight.counts(Wanted::ALL) => {
                self.look_since(parts, Sight::recently()).await
            }
            _ => Ok(()),
        }
    }

    /// When [`Subject::keep_up`] has to be called again.
    fn due(&self) -> Option<Instant> {
        match self {
            Self::Vouched(_) => None,
            Self::Held { sight, .. } => Some(sight.due()),
        }
    }

    fn facts(&self) -> &BTreeSet<Selector> {
        match self {
            Self::Vouched(facts) => facts,
            Self::Held { sight, .. } => sight.facts(),
        }
    }

    fn process(&self) -> Option<&Process> {
        match self {
            Self::Vouched(_) => None,
            Self::Held { process, .. } => Some(process),
        }
    }

    /// The entries of such a workload that may be handed on. Those with power over a CA are not (C.12).
    fn entries(&self, parts: &Parts, view: &View) -> Vec<(Arc<Entry>, String)> {
        match view.entitled(self.facts(), parts.clock.now()) {
            Standing::Ready(mut entries) => {
                entries.retain(|(entry, _)| !entry.admin && !entry.downstream);
                entries
            }
            _ => Vec::new(),
        }
    }
}

/// What a stream tells.
trait Source: Send + 'static {
    type State: PartialEq + Send + Sync + 'static;
    type Message: Send + 'static;

    /// The full state, and until when after the start of the stream it is worth waiting for more of it.
    fn state(
        &mut self,
        parts: &Arc<Parts>,
        view: &View,
    ) -> (Self::State, Option<std::time::Duration>);
    fn message(state: &Self::State) -> Self::Message;
    /// ID and serial number of each identity in the state.
    fn identities(_: &Self::State) -> Vec<(&str, &str)> {
        Vec::new()
    }
    fn subject(&mut self) -> Option<&mut Subject> {
        None
    }
}

/// One stream.
struct Open<S: Source> {
    delegate: Delegate,
    source: S,
    views: watch::Receiver<Arc<View>>,
    told: Option<S::State>,
    _place: Place,
    _open: OpenStream,
}

impl<S: Source> Open<S> {
    /// Waits until there is a state that has not been told.
    async fn next(&mut self) -> Result<S::Message, Status> {
        let parts = Arc::clone(&self.delegate.caller.parts);
        let started = Instant::now();
        loop {
            let view = Arc::clone(&self.views.borrow_and_update());
            // Both may be other programs by now, and nothing else has changed.
            self.delegate.caller.keep_up(view.wanted()).await?;
            self.delegate.authorize(&view)?;
            if let Some(subject) = self.source.subject() {
                subject.keep_up(&parts).await?;
            }
            let (mut state, mut patience) = self.source.state(&parts, &view);
            if self.told.as_ref().is_some_and(|told| *told != state) {
                // Both may have become other programs since the last message (M10 b): no new key before a new look.
                self.delegate
                    .caller
                    .look_since(view.wanted(), view.since())
                    .await?;
                self.delegate.authorize(&view)?;
                if let Some(subject) = self.source.subject() {
                    subject.look_since(&parts, view.since()).await?;
                }
                (state, patience) = self.source.state(&parts, &view);
            }
            let (subject, subject_due) = match self.source.subject() {
                Some(subject) => (subject.process().cloned(), subject.due()),
                None => (None, None),
            };
            let process = self.delegate.caller.peer.process();
            if !process.is_alive() {
                return Err(gone());
            }
            if subject.as_ref().is_some_and(|subject| !subject.is_alive()) {
                return Err(ended());
            }
            let settled = patience.is_none_or(|limit| started.elapsed() >= limit);
            if self.told.as_ref() != Some(&state) && (self.told.is_some() || settled) {
                let before = self.told.as_ref().map(S::identities).unwrap_or_default();
                let fresh = S::identities(&state)
                    .into_iter()
                    .filter(|(id, _)| before.iter().all(|(known, _)| known != id));
                self.delegate.caller.record_given(fresh).await?;
                let message = S::message(&state);
                self.told = Some(state);
                return Ok(message);
            }
            let deadline = patience
                .filter(|_| self.told.is_none())
                .map(|limit| started + limit);
            tokio::select! {
                changed = self.views.changed() => changed.map_err(|_| stopping())?,
                () = process.exited() => return Err(gone()),
                () = exited(subject.as_ref()) => return Err(ended()),
                () = parts.stop.cancelled() => return Err(stopping()),
                () = sleep_until(deadline) => {}
                () = sleep_until(self.delegate.caller.due()) => {}
                () = sleep_until(subject_due) => {}
            }
        }
    }
}

async fn look(parts: &Parts, process: &Process, since: Instant) -> Result<Sight, Status> {
    let found = parts
        .attestor
        .attest(process, Credentials::Current, Wanted::ALL, since);
    found.await.map_err(|error| match error {
        AttestError::Gone => ended(),
        _ => Status::unavailable("the process that was named could not be attested"),
    })
}

async fn exited(process: Option<&Process>) {
    match process {
        Some(process) => process.exited().await,
        None => std::future::pending().await,
    }
}

fn ended() -> Status {
    Status::permission_denied("the process that was named has ended")
}

fn not_synced(caller: &Caller) -> Status {
    caller.parts.metrics.no_identity("not_synced");
    Status::unavailable("the agent has not heard from its ca-server yet")
}

#[tonic::async_trait]
impl DelegatedIdentity for DelegatedApi {
    type SubscribeToX509SVIDsStream = Answers<wire::SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Answers<wire::SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Answers<wire::SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<wire::SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        self.open(request, "SubscribeToX509SVIDs", async |parts, ask| {
            let subject = Subject::read(parts, &ask.selectors, ask.pid).await?;
            Ok(Svids::of(subject))
        })
        .await
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<wire::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        self.open(request, "SubscribeToX509Bundles", async |_, _| {
            Ok(Bundles::<wire::SubscribeToX509BundlesResponse>::new())
        })
        .await
    }

    async fn fetch_jwtsvi_ds(
        &self,
        request: Request<wire::FetchJwtsviDsRequest>,
    ) -> Result<Response<wire::FetchJwtsviDsResponse>, Status> {
        let answer = self.fetch(request).await;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.parts.metrics.called("FetchJWTSVIDs", code);
        answer.map(Response::new)
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<wire::SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        self.open(request, "SubscribeToJWTBundles", async |_, _| {
            Ok(Bundles::<wire::SubscribeToJwtBundlesResponse>::new())
        })
        .await
    }
}
