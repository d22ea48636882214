//! Decides the answers of the SPIFFE Workload API: who asks (by the kernel), what that process may hold, and when it changes.
//! Trusts the vault for what is held. Never answers a call without the security header, never sends a part of the state,
//! never goes on once the process has ended or its entitlement has.

mod caller;
mod jwt;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use mesh_identity::{EntryId, Selector};
use mesh_runtime::{audit::AuditLog, clock::Clock, tasks::Stop};
use proto::{
    convert::workload::{X509IdentityView, keyed_jwks, x509_bundles_response, x509_svid_response},
    spiffe::workload::{
        self as wire,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Request, Response, Status, service::interceptor::InterceptedService};

use self::caller::{Caller, Denials, gone, stopping};
use super::{LARGEST_REQUEST, PerUid, Place, peer::Peer, sleep_until};
use crate::{
    attestor::Attestor,
    metrics::{Metrics, OpenStream},
    tokens::Tokens,
    vault::{BundleView, IdentitySet, Pins, Standing, Vault, View},
};

/// The security header (SPIFFE Workload Endpoint, section 6): a browser or a proxy tricked into a request does not send it.
const HEADER: &str = "workload.spiffe.io";
/// How long a caller waits for its first SVID to be made.
const FIRST_SVID_WITHIN: Duration = Duration::from_secs(5);
/// How long the first message waits for the rest of the identities, so that the default one does not change a moment later.
const SETTLE: Duration = Duration::from_millis(250);
/// Streams of one uid, over all its connections.
const STREAMS_PER_UID: usize = 4096;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service behind the header check.
pub type CheckedApi = InterceptedService<SpiffeWorkloadApiServer<WorkloadApi>, HeaderCheck>;
/// Runs before anything else of a call.
type HeaderCheck = fn(Request<()>) -> Result<Request<()>, Status>;

/// The service.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    vault: Arc<Vault>,
    attestor: Attestor,
    clock: Clock,
    metrics: Metrics,
    streams: PerUid,
    denials: Denials,
    audit: Option<AuditLog>,
    tokens: Arc<Tokens>,
    stop: Stop,
}

impl WorkloadApi {
    /// Serves what the vault holds. With an audit log, no identity is given out unrecorded. Streams end when `stop` comes.
    pub fn new(
        vault: Arc<Vault>,
        attestor: Attestor,
        clock: Clock,
        metrics: Metrics,
        audit: Option<AuditLog>,
        tokens: Arc<Tokens>,
        stop: Stop,
    ) -> Self {
        let streams = PerUid::new(STREAMS_PER_UID);
        Self {
            parts: Arc::new(Parts {
                vault,
                attestor,
                clock,
                metrics,
                streams,
                denials: Denials::default(),
                audit,
                tokens,
                stop,
            }),
        }
    }

    /// With the header check before anything else.
    pub fn into_service(self) -> CheckedApi {
        let server = SpiffeWorkloadApiServer::new(self).max_decoding_message_size(LARGEST_REQUEST);
        InterceptedService::new(server, check_header)
    }

    /// Answers one question of a process that was looked at.
    async fn ask<Q, A, F: Future<Output = Result<A, Status>>>(
        &self,
        request: Request<Q>,
        answer: impl FnOnce(Caller, Arc<View>, Q) -> F,
    ) -> Result<A, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("the connection has no peer"))?;
        let _place = self
            .parts
            .streams
            .take(peer.uid())
            .ok_or_else(|| Status::unavailable("too many calls of this uid"))?;
        let view = self.parts.vault.view();
        let mut caller = Caller::new(Arc::clone(&self.parts), peer);
        caller.look(view.wanted()).await?;
        answer(caller, view, request.into_inner()).await
    }

    fn answered<A>(
        &self,
        method: &'static str,
        answer: Result<A, Status>,
    ) -> Result<Response<A>, Status> {
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.parts.metrics.called(method, code);
        answer.map(Response::new)
    }

    async fn open<T: Tell>(
        &self,
        request: &Request<impl Sized>,
    ) -> Result<Response<Answers<T::Message>>, Status> {
        let outcome = async {
            let peer = request.extensions().get::<Peer>().cloned();
            let peer = peer.ok_or_else(|| Status::internal("the connection has no peer"))?;
            let place = self
                .parts
                .streams
                .take(peer.uid())
                .ok_or_else(|| Status::unavailable("too many streams of this uid"))?;
            let mut session = Session::<T>::start(Arc::clone(&self.parts), peer, place).await?;
            // Before the response exists, so that a caller without identity gets its status at once and nothing else.
            let first = session.next().await?;
            Ok((first, session))
        };
        let outcome = outcome.await;
        self.parts.metrics.called(
            T::METHOD,
            outcome.as_ref().map_or_else(Status::code, |_| Code::Ok),
        );
        let (first, session) = outcome?;
        let rest = stream::unfold(Some(session), |session| async {
            let mut session = session?;
            // Asked for only when the connection has room: a slow reader gets the newest state, not each one.
            match session.next().await {
                Ok(message) => Some((Ok(message), Some(session))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(
            stream::once(std::future::ready(Ok(first))).chain(rest),
        )))
    }
}

fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => Ok(request),
        _ => Err(Status::invalid_argument(
            "the metadata workload.spiffe.io: true is missing",
        )),
    }
}

/// What one kind of stream tells.
trait Tell: Send + Sync + 'static {
    /// The full state.
    type State: PartialEq + Clone + Send + Sync;
    /// The same on the wire.
    type Message: Send;
    const METHOD: &'static str;
    const API: &'static str;

    fn standing(
        view: &View,
        facts: &BTreeSet<Selector>,
        now: std::time::SystemTime,
    ) -> Standing<Self::State>;
    fn message(state: &Self::State) -> Self::Message;
    /// The identities that the state gives out, each with its serial number.
    fn identities(state: &Self::State) -> Vec<(&str, &str)>;
    /// Entries in the state, and those that match but are not ready.
    fn entries(state: &Self::State) -> (Vec<EntryId>, &[EntryId]);
}

struct X509Svids;

impl Tell for X509Svids {
    type State = IdentitySet;
    type Message = wire::X509svidResponse;
    const METHOD: &'static str = "FetchX509SVID";
    const API: &'static str = "x509";

    fn standing(
        view: &View,
        facts: &BTreeSet<Selector>,
        now: std::time::SystemTime,
    ) -> Standing<IdentitySet> {
        view.standing(facts, now)
    }

    fn message(state: &IdentitySet) -> wire::X509svidResponse {
        let identities = state.identities.iter().map(|identity| X509IdentityView {
            svid: &identity.held.svid,
            key: identity.held.key.expose(),
            hint: &identity.hint,
            bundle: &state.bundle,
        });
        x509_svid_response(identities, state.federated.values().map(|bundle| &**bundle))
    }

    fn identities(state: &IdentitySet) -> Vec<(&str, &str)> {
        let svids = state.identities.iter().map(|identity| &identity.held.svid);
        svids
            .map(|svid| (svid.id().as_str(), svid.serial()))
            .collect()
    }

    fn entries(state: &IdentitySet) -> (Vec<EntryId>, &[EntryId]) {
        let ready = state
            .identities
            .iter()
            .map(|identity| identity.held.entry.id.clone());
        (
            ready.chain(state.waiting.iter().cloned()).collect(),
            &state.waiting,
        )
    }
}

struct X509Bundles;

impl Tell for X509Bundles {
    type State = BundleView;
    type Message = wire::X509BundlesResponse;
    const METHOD: &'static str = "FetchX509Bundles";
    const API: &'static str = "bundles";

    fn standing(
        view: &View,
        facts: &BTreeSet<Selector>,
        now: std::time::SystemTime,
    ) -> Standing<BundleView> {
        view.bundles_for(facts, now)
    }

    fn message(state: &BundleView) -> wire::X509BundlesResponse {
        x509_bundles_response(state.bundles.values().map(|bundle| &**bundle))
    }

    fn identities(_: &BundleView) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn entries(_: &BundleView) -> (Vec<EntryId>, &[EntryId]) {
        (Vec::new(), &[])
    }
}

struct JwtBundles;

impl Tell for JwtBundles {
    /// What is on the wire: changes of X.509 roots are no news here.
    type State = BTreeMap<String, Vec<u8>>;
    type Message = wire::JwtBundlesResponse;
    const METHOD: &'static str = "FetchJWTBundles";
    const API: &'static str = "jwt_bundles";

    fn standing(
        view: &View,
        facts: &BTreeSet<Selector>,
        now: std::time::SystemTime,
    ) -> Standing<Self::State> {
        view.bundles_for(facts, now)
            .map(|state| keyed_jwks(state.bundles.values().map(|bundle| &**bundle)))
    }

    fn message(state: &Self::State) -> wire::JwtBundlesResponse {
        wire::JwtBundlesResponse {
            bundles: state.clone(),
        }
    }

    fn identities(_: &Self::State) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn entries(_: &Self::State) -> (Vec<EntryId>, &[EntryId]) {
        (Vec::new(), &[])
    }
}

/// One stream.
struct Session<T: Tell> {
    caller: Caller,
    views: watch::Receiver<Arc<View>>,
    told: Option<T::State>,
    pins: Option<Pins>,
    _place: Place,
    _open: OpenStream,
}

impl<T: Tell> Session<T> {
    async fn start(parts: Arc<Parts>, peer: Peer, place: Place) -> Result<Self, Status> {
        let (views, open) = (parts.vault.watch(), parts.metrics.stream(T::API));
        let mut session = Self {
            caller: Caller::new(parts, peer),
            views,
            told: None,
            pins: None,
            _place: place,
            _open: open,
        };
        session.look().await?;
        Ok(session)
    }

    /// Waits until there is something to tell that has not been told.
    async fn next(&mut self) -> Result<T::Message, Status> {
        let started = Instant::now();
        loop {
            let view = Arc::clone(&self.views.borrow_and_update());
            if view.roster().is_none() {
                self.caller.parts.metrics.no_identity("not_synced");
                return Err(Status::unavailable(
                    "the agent has not heard from its ca-server yet",
                ));
            }
            let mut standing =
                T::standing(&view, &self.caller.facts, self.caller.parts.clock.now());
            if let (Some(told), Standing::Ready(state)) = (&self.told, &standing)
                && told != state
            {
                // The process may have become another program since the last message (M10 b): no new key before a new look.
                self.look().await?;
                standing = T::standing(&view, &self.caller.facts, self.caller.parts.clock.now());
            }
            if !self.caller.peer.process().is_alive() {
                return Err(gone());
            }
            let deadline = match standing {
                Standing::NotSynced => {
                    return Err(Status::unavailable("the agent has no trust bundle yet"));
                }
                Standing::NoIdentity => return Err(self.caller.no_identity(T::METHOD)),
                Standing::NothingReady { entries } => {
                    if self.told.is_some() || started.elapsed() >= FIRST_SVID_WITHIN {
                        return Err(Status::unavailable(
                            "no valid SVID at this moment; the ca-server may be out of reach",
                        ));
                    }
                    self.pin(entries);
                    Some(started + FIRST_SVID_WITHIN)
                }
                Standing::Ready(state) => {
                    let (all, waiting) = T::entries(&state);
                    let settling =
                        self.told.is_none() && !waiting.is_empty() && started.elapsed() < SETTLE;
                    self.pin(all);
                    if !settling && self.told.as_ref() != Some(&state) {
                        self.record_given(&state).await?;
                        let message = T::message(&state);
                        self.told = Some(state);
                        return Ok(message);
                    }
                    settling.then_some(started + SETTLE)
                }
            };
            tokio::select! {
                changed = self.views.changed() => changed.map_err(|_| stopping())?,
                () = self.caller.peer.process().exited() => return Err(gone()),
                () = self.caller.parts.stop.cancelled() => return Err(stopping()),
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Looks at the process again.
    async fn look(&mut self) -> Result<(), Status> {
        let wanted = self.views.borrow().wanted();
        self.caller.look(wanted).await
    }

    fn pin(&mut self, entries: Vec<EntryId>) {
        if !entries.is_empty()
            && self
                .pins
                .as_ref()
                .is_none_or(|pins| pins.entries() != entries)
        {
            self.pins = Some(self.caller.parts.vault.pin(entries));
        }
    }

    /// Records each identity that this process has not been given on this stream before. Renewals of one that it has are
    /// recorded where they are signed.
    async fn record_given(&self, state: &T::State) -> Result<(), Status> {
        let before = self.told.as_ref().map(T::identities).unwrap_or_default();
        let fresh = T::identities(state)
            .into_iter()
            .filter(|(id, _)| before.iter().all(|(known, _)| known != id));
        self.caller.record_given(fresh).await
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;
    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Answers<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.open::<X509Svids>(&request).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.open::<X509Bundles>(&request).await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        let answer = self.ask(request, jwt::fetch).await;
        self.answered("FetchJWTSVID", answer)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.open::<JwtBundles>(&request).await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        let answer = self.ask(request, jwt::validate).await;
        self.answered("ValidateJWTSVID", answer)
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        self.answered("FetchWITSVID", Err(not_served()))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        self.answered("FetchWITBundles", Err(not_served()))
    }
}

/// The WIT profile is switched off (WAPI-2).
fn not_served() -> Status {
    Status::unimplemented("this agent serves the X.509 and JWT profiles only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wep_07_only_exactly_one_exact_header_passes() {
        let with = |values: &[&'static str]| {
            let mut request = Request::new(());
            for value in values {
                request
                    .metadata_mut()
                    .append(HEADER, value.parse().unwrap());
            }
            check_header(request)
                .map(drop)
                .map_err(|status| status.code())
        };
        assert_eq!(with(&["true"]), Ok(()));
        for wrong in [
            &[][..],
            &["True"],
            &["TRUE"],
            &["1"],
            &["true", "true"],
            &["true", "false"],
            &["true,true"],
        ] {
            assert_eq!(with(wrong), Err(Code::InvalidArgument), "{wrong:?}");
        }
    }
}
