//! Decides the answers of the SPIFFE Workload API: who asks (by the kernel), what that process may hold, and when it changes.
//! Trusts the vault for what is held. Never answers a call without the security header, never sends a part of the state,
//! never goes on once the process has ended or its entitlement has.

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use mesh_identity::{EntryId, Selector};
use mesh_runtime::{
    audit::{Action, Actor, AuditLog, Decision, Object, Outcome, Record},
    clock::Clock,
    errors::ErrorChain,
    tasks::Stop,
};
use proto::{
    convert::workload::{X509IdentityView, x509_bundles_response, x509_svid_response},
    spiffe::workload::{
        self as wire,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Request, Response, Status, service::interceptor::InterceptedService};

use super::{LARGEST_REQUEST, PerUid, Place, correlation_id, peer::Peer, sleep_until};
use crate::{
    attestor::{AttestError, Attestor},
    metrics::{Metrics, OpenStream},
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
                stop,
            }),
        }
    }

    /// With the header check before anything else.
    pub fn into_service(self) -> CheckedApi {
        let server = SpiffeWorkloadApiServer::new(self).max_decoding_message_size(LARGEST_REQUEST);
        InterceptedService::new(server, check_header)
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

/// One stream.
struct Session<T: Tell> {
    parts: Arc<Parts>,
    peer: Peer,
    facts: BTreeSet<Selector>,
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
            parts,
            peer,
            facts: BTreeSet::new(),
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
                self.parts.metrics.no_identity("not_synced");
                return Err(Status::unavailable(
                    "the agent has not heard from its ca-server yet",
                ));
            }
            let mut standing = T::standing(&view, &self.facts, self.parts.clock.now());
            if let (Some(told), Standing::Ready(state)) = (&self.told, &standing)
                && told != state
            {
                // The process may have become another program since the last message (M10 b): no new key before a new look.
                self.look().await?;
                standing = T::standing(&view, &self.facts, self.parts.clock.now());
            }
            if !self.peer.process().is_alive() {
                return Err(gone());
            }
            let deadline = match standing {
                Standing::NotSynced => {
                    return Err(Status::unavailable("the agent has no trust bundle yet"));
                }
                Standing::NoIdentity => return Err(self.no_identity()),
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
                () = self.peer.process().exited() => return Err(gone()),
                () = self.parts.stop.cancelled() => return Err(stopping()),
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Attests the process.
    async fn look(&mut self) -> Result<(), Status> {
        let wanted = self.views.borrow().wanted();
        let started = Instant::now();
        let found = self
            .parts
            .attestor
            .attest(
                self.peer.process(),
                self.peer.uid(),
                self.peer.gid(),
                wanted,
            )
            .await;
        self.parts
            .metrics
            .attested(started.elapsed(), found.as_ref().err().map(label));
        match found {
            Ok(found) => {
                self.facts = found.facts;
                Ok(())
            }
            Err(AttestError::Gone) => Err(gone()),
            Err(error) => {
                self.parts.metrics.no_identity("attestor_error");
                tracing::warn!(pid = self.peer.process().pid(), uid = self.peer.uid(), error = %ErrorChain(&error),
                    "a caller could not be attested");
                Err(Status::unavailable("the caller could not be attested"))
            }
        }
    }

    fn pin(&mut self, entries: Vec<EntryId>) {
        if !entries.is_empty()
            && self
                .pins
                .as_ref()
                .is_none_or(|pins| pins.entries() != entries)
        {
            self.pins = Some(self.parts.vault.pin(entries));
        }
    }

    /// Records each identity that this process has not been given on this stream before. Renewals of one that it has are
    /// recorded where they are signed.
    async fn record_given(&self, state: &T::State) -> Result<(), Status> {
        let Some(log) = &self.parts.audit else {
            return Ok(());
        };
        let before = self.told.as_ref().map(T::identities).unwrap_or_default();
        let fresh = T::identities(state)
            .into_iter()
            .filter(|(id, _)| before.iter().all(|(known, _)| known != id));
        // Begun together, so that they become durable together.
        let records = fresh.map(|(id, serial)| {
            let mut record = self.record(log);
            record
                .object(Object::new("svid").id(id).serial(serial))
                .decision(Decision::allow());
            record.finish(Outcome::Success, None)
        });
        futures::future::try_join_all(records.collect::<Vec<_>>())
            .await
            .map(drop)
            .map_err(|error| {
                tracing::error!(error = %ErrorChain(&error), "no identity is given out unrecorded");
                Status::unavailable("the agent cannot write its audit record")
            })
    }

    fn record(&self, log: &AuditLog) -> Record {
        let mut actor = Actor::workload("")
            .authn("uds")
            .process(self.peer.uid(), Some(self.peer.process().pid()));
        let path = self.facts.iter().find_map(|fact| {
            (fact.kind() == "unix")
                .then(|| fact.value().strip_prefix("path:"))
                .flatten()
        });
        if let Some(path) = path {
            actor = actor.exe(path);
        }
        log.begin(Action("identity.fetch"), actor)
    }

    /// The caller learns a code and a number; what is missing is for the administrator, who finds the number in the log.
    fn no_identity(&self) -> Status {
        let (id, pid) = (correlation_id(), self.peer.process().pid());
        self.parts.metrics.no_identity("no_match");
        if let Some(log) = &self.parts.audit {
            let mut record = self.record(log);
            record
                .decision(Decision::deny("no entry matches"))
                .request_id(id.as_str());
            record.finish_later(Outcome::Denied, Some(crate::NO_IDENTITY));
        }
        if self
            .parts
            .denials
            .may_log(self.peer.uid(), self.parts.clock.monotonic())
        {
            tracing::info!(code = crate::NO_IDENTITY, correlation_id = %id, pid, uid = self.peer.uid(), method = T::METHOD,
            "no identity for this process; `workload-agent explain --pid {pid}` shows why");
        }
        Status::permission_denied(format!(
            "no identity issued [{}] correlation id {id}",
            crate::NO_IDENTITY
        ))
    }
}

/// How many refusals of one uid are logged within [`LOG_WINDOW`]; the metric counts them all.
const LOGGED_REFUSALS: u32 = 20;
/// See [`LOGGED_REFUSALS`].
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// Keeps a process that asks again and again from filling the log.
#[derive(Debug, Default)]
struct Denials(Mutex<HashMap<u32, (Instant, u32)>>);

impl Denials {
    fn may_log(&self, uid: u32, now: Instant) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() > 1024 {
            seen.retain(|_, (since, _)| now.duration_since(*since) < LOG_WINDOW);
        }
        let (since, count) = seen.entry(uid).or_insert((now, 0));
        if now.duration_since(*since) >= LOG_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= LOGGED_REFUSALS
    }
}

fn gone() -> Status {
    Status::permission_denied("the process that opened this connection has ended")
}

fn stopping() -> Status {
    Status::unavailable("the agent is stopping")
}

fn label(error: &AttestError) -> &'static str {
    match error {
        AttestError::Gone => "gone",
        AttestError::Restless => "restless",
        AttestError::Unreadable(_) => "unreadable",
        AttestError::TooSlow => "too_slow",
    }
}

/// The JWT profile is not served by this agent; the WIT profile is switched off (WAPI-2).
fn not_served<T>(method: &'static str, metrics: &Metrics) -> Result<T, Status> {
    metrics.called(method, Code::Unimplemented);
    Err(Status::unimplemented(
        "this agent serves the X.509 profile only",
    ))
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
        _: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        not_served("FetchJWTSVID", &self.parts.metrics)
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        not_served("FetchJWTBundles", &self.parts.metrics)
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        not_served("ValidateJWTSVID", &self.parts.metrics)
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        not_served("FetchWITSVID", &self.parts.metrics)
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        not_served("FetchWITBundles", &self.parts.metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_one_uid_do_not_fill_the_log_and_do_not_hide_those_of_another() {
        let (denials, start) = (Denials::default(), Instant::now());
        let logged = (0..1000).filter(|_| denials.may_log(1, start)).count();
        assert_eq!(logged, LOGGED_REFUSALS as usize);
        assert!(denials.may_log(2, start));
        assert!(denials.may_log(1, start + LOG_WINDOW));
    }

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
