//! Decides what this agent believes of its CA: one stream of numbered updates, each taken whole or refused with the reason.
//! Trusts a server that proves `/spire/server` in our own trust domain. Never drops what it has because the CA is away.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures::{FutureExt as _, future::BoxFuture};
use mesh_identity::{
    Bundle, BundleSet, Entry, EntryId, SpiffeId, TrustDomain, verify::verify_x509_svid,
};
use mesh_runtime::{
    clock::Clock,
    errors::{Coded, ErrorChain},
    tasks::Stop,
    telemetry::{Repetition, Secret},
};
use mesh_tls::{Authorizer, ClientConfig, IdentityCell};
use proto::{
    convert::{
        IssuedX509Svid, WireError, denied_because,
        feed::{Assembly, FromAgent, PART_BYTES, Position, Update, Verdict as Reply},
    },
    finial::feed::v1::feed_client::FeedClient,
    spire::api::{server::svid::v1 as svid_wire, types},
};
use tokio::{
    net::TcpStream,
    sync::{Notify, mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    bootstrap::{AgentIdentity, Bootstrap, BootstrapError, Proven},
    metrics::Metrics,
    rotation::{self, Answer, Ask, Random, Refusal, Sign, SignError, SvidFault},
    tokens::{MakeToken, TokenError},
    vault::{Roster, Vault},
};

/// How long a connection may take to be made, TLS included.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A silent connection is asked this often whether it still lives, and has this long to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// How long the CA may take for a batch of SVIDs.
const SIGN_WITHIN: Duration = Duration::from_secs(20);
/// Pauses between attempts grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A stream that lasted this long starts over with the shortest pause.
const STEADY: Duration = Duration::from_secs(5);
/// How long a refusal may take to reach the CA before the stream is closed.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The ca-server, as the configuration names it.
#[derive(Debug)]
pub struct Remote {
    /// `host:port`.
    pub address: String,
    /// Whose server it must be.
    pub trust_domain: TrustDomain,
    server: SpiffeId,
}

impl Remote {
    /// The server of a trust domain at an address.
    pub fn new(address: String, trust_domain: TrustDomain) -> Self {
        let server = SpiffeId::from_parts(&trust_domain, "/spire/server")
            .expect("a constant path that is well formed");
        Self {
            address,
            trust_domain,
            server,
        }
    }

    /// A connection that is made when it is first used, and again whenever it breaks.
    pub(crate) fn channel(&self, tls: Arc<ClientConfig>) -> Channel {
        let address: Arc<str> = self.address.as_str().into();
        let connector = tower::service_fn(move |_: Uri| {
            let (address, tls) = (Arc::clone(&address), Arc::clone(&tls));
            async move {
                let work = async {
                    let tcp = TcpStream::connect(&*address).await?;
                    tcp.set_nodelay(true)?;
                    let (stream, _) = mesh_tls::connect(&tls, tcp)
                        .await
                        .map_err(std::io::Error::other)?;
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
                };
                tokio::time::timeout(CONNECT_WITHIN, work)
                    .await
                    .unwrap_or_else(|_| {
                        Err(std::io::Error::new(
                            std::io::ErrorKind::TimedOut,
                            "no connection within the time limit",
                        ))
                    })
            }
        });
        // The URI only names the authority of the requests; the connector knows where to go and does the TLS.
        Endpoint::from_static("http://ca-server")
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }

    fn servers(&self) -> Authorizer {
        Authorizer::exactly(self.server.clone())
    }
}

/// TLS without a certificate of our own, against a bundle that the configuration names.
pub(crate) fn bootstrap_tls(
    remote: &Remote,
    bundles: BundleSet,
    clock: &Clock,
) -> Arc<ClientConfig> {
    mesh_tls::bootstrap_client_config(bundles, remote.servers(), &[b"h2"], clock.as_fn())
}

/// What a failed call means for this agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This node is banned.
    Banned,
    /// The CA does not know this agent any more, or wants its proof again.
    AttestAgain,
    /// The same call may work later.
    Later,
    /// The same call will be refused again.
    No,
}

/// Reads a status as SPIRE's agents do: the reason is a detail of type `PermissionDeniedDetails`.
pub fn verdict(status: &Status) -> Verdict {
    use types::permission_denied_details::Reason;
    match status.code() {
        Code::PermissionDenied => match denied_because(status) {
            Some(Reason::AgentBanned) => Verdict::Banned,
            Some(
                Reason::AgentExpired
                | Reason::AgentNotAttested
                | Reason::AgentNotActive
                | Reason::AgentMustReattest,
            ) => Verdict::AttestAgain,
            Some(Reason::Unknown) | None => Verdict::No,
        },
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => Verdict::Later,
        _ => Verdict::No,
    }
}

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("the ca-server has banned this node; its identities are withdrawn and the agent stops")]
pub struct Banned;

impl Coded for Banned {
    fn code(&self) -> &'static str {
        "FNL2027"
    }
}

/// Why an update is refused.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A part of it cannot be read.
    #[error("the update cannot be read")]
    Unreadable(#[source] WireError),
    /// It is a change to something we do not hold.
    #[error("a change to revision {got} does not follow what is held ({held})")]
    NoBase {
        /// What came.
        got: u64,
        /// What we have.
        held: String,
    },
    /// Our own trust domain would have no root.
    #[error("the update leaves {0} without a trust bundle")]
    NoBundle(TrustDomain),
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("the stream of updates broke")]
    Broken(#[source] Box<Status>),
    #[error("the ca-server ended the stream of updates")]
    Ended,
    #[error("an update was refused; the state before it stays in use")]
    Refused(#[source] UpdateError),
}

/// Whether the CA is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// A stream is open.
    pub connected: bool,
    /// When it last was.
    pub last_heard: Option<SystemTime>,
}

/// The agent's side of its CA: the identity it uses, the connection, and what has been heard.
pub struct Upstream {
    bootstrap: Bootstrap,
    identity: Mutex<Arc<AgentIdentity>>,
    cell: IdentityCell,
    channel: watch::Sender<Channel>,
    attest_again: Notify,
    renew_now: Notify,
    connections: watch::Sender<u64>,
    status: watch::Sender<LinkStatus>,
    vault: Arc<Vault>,
    metrics: Metrics,
    random: Random,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("cell", &self.cell)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// Starts from a proven identity.
    ///
    /// # Errors
    /// When a peer would refuse that identity.
    pub fn new(
        bootstrap: Bootstrap,
        proven: Proven,
        vault: Arc<Vault>,
        metrics: Metrics,
    ) -> Result<Self, BootstrapError> {
        let Proven { identity, bundle } = proven;
        let cell = IdentityCell::new(identity.for_tls(only(bundle), bootstrap.clock.now())?);
        let channel = new_channel(&bootstrap, &cell);
        metrics.agent_svid(identity.svid.not_after());
        Ok(Self {
            identity: Mutex::new(Arc::new(identity)),
            cell,
            channel: watch::Sender::new(channel),
            attest_again: Notify::new(),
            renew_now: Notify::new(),
            connections: watch::Sender::new(0),
            status: watch::Sender::default(),
            vault,
            metrics,
            random: Random::new(),
            bootstrap,
        })
    }

    /// The agent's ID.
    pub fn id(&self) -> SpiffeId {
        self.identity().id().clone()
    }

    /// Changes with each new stream: what failed because the CA was away may be tried again.
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }

    /// Whether the CA is there.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.subscribe()
    }

    fn identity(&self) -> Arc<AgentIdentity> {
        Arc::clone(&self.identity.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn own_bundle(&self) -> Option<Arc<Bundle>> {
        self.cell
            .current()
            .bundles()
            .get(&self.bootstrap.remote.trust_domain)
            .cloned()
    }

    /// Keeps the agent's own SVID fresh until stopped.
    ///
    /// # Errors
    /// When this node is banned.
    pub async fn keep_identity(self: Arc<Self>, stop: Stop) -> Result<(), Banned> {
        let clock = self.bootstrap.clock.clone();
        let quiet = Repetition::new("agent identity");
        loop {
            let renew_at =
                rotation::renew_at(clock.now(), self.identity().svid.not_after(), &self.random);
            let mut from_scratch = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = clock.sleep_until(renew_at) => false,
                () = self.renew_now.notified() => false,
                () = self.attest_again.notified() => true,
            };
            let mut failures = 0;
            loop {
                match stop.unless_stopped(self.refresh(from_scratch)).await {
                    None => return Ok(()),
                    Some(Ok(())) => {
                        quiet.succeeded();
                        break;
                    }
                    Some(Err(BootstrapError::Banned)) => {
                        self.vault.withdraw_all();
                        return Err(Banned);
                    }
                    Some(Err(error)) => {
                        if let BootstrapError::Refused { cause } = &error
                            && verdict(cause) == Verdict::AttestAgain
                        {
                            from_scratch = true;
                        }
                        quiet.failed(&error);
                    }
                }
                // Several tries must fit into what is left of a short life.
                let left = self
                    .identity()
                    .svid
                    .not_after()
                    .duration_since(clock.now())
                    .unwrap_or_default();
                let longest = (left / 8).clamp(RETRY.0, RETRY.1);
                let pause = self
                    .random
                    .around(rotation::grown((RETRY.0, longest), failures), 0.25);
                failures += 1;
                if stop.unless_stopped(clock.sleep(pause)).await.is_none() {
                    return Ok(());
                }
            }
        }
    }

    async fn refresh(&self, from_scratch: bool) -> Result<(), BootstrapError> {
        let (old, now) = (self.identity(), self.bootstrap.clock.now());
        let bundle = self.own_bundle();
        let proven = match bundle {
            // Nodes that can prove themselves again do so instead of renewing: a stolen key must not outlive its node.
            Some(bundle) if !from_scratch && !old.reattestable && old.svid.not_after() > now => {
                let channel = self.channel.borrow().clone();
                self.bootstrap.renew(&old, channel, &bundle).await?
            }
            _ => self.bootstrap.attest().await?,
        };
        let now = self.bootstrap.clock.now();
        let Proven { identity, bundle } = proven;
        // What the feed said of our trust domain is newer than the configured file, if it knows the new SVID.
        let newest = self
            .vault
            .view()
            .bundles()
            .get(&self.bootstrap.remote.trust_domain)
            .cloned();
        let newest = newest
            .map(only)
            .filter(|set| verify_x509_svid(identity.svid.chain(), set, now).is_ok());
        self.cell
            .publish(identity.for_tls(newest.unwrap_or_else(|| only(bundle)), now)?);
        self.metrics.agent_svid(identity.svid.not_after());
        tracing::info!(id = %identity.id(), serial = identity.svid.serial(), "the agent has a new SVID");
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
        // The CA forgets the old serial once the new one is used: nothing may go on over the old connection.
        self.channel
            .send_replace(new_channel(&self.bootstrap, &self.cell));
        Ok(())
    }

    /// Follows the CA's updates until stopped.
    ///
    /// # Errors
    /// When this node is banned.
    pub async fn follow(self: Arc<Self>, stop: Stop) -> Result<(), Banned> {
        let clock = self.bootstrap.clock.clone();
        let quiet = Repetition::new("updates from the ca-server");
        let mut channels = self.channel.subscribe();
        let (mut state, mut failures) = (
            FeedState::new(self.bootstrap.remote.trust_domain.clone()),
            0,
        );
        loop {
            let channel = channels.borrow_and_update().clone();
            state.forget_position_of_another(&self.id());
            let started = clock.monotonic();
            let end = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // A new identity: the stream goes on over a new connection, from where it is.
                Ok(()) = channels.changed() => continue,
                end = self.stream(channel, &mut state, &quiet) => end,
            };
            self.heard(false);
            if let StreamEnd::Broken(status) = &end {
                match verdict(status) {
                    Verdict::Banned => {
                        self.vault.withdraw_all();
                        return Err(Banned);
                    }
                    Verdict::AttestAgain => self.attest_again.notify_one(),
                    Verdict::Later | Verdict::No => {}
                }
            }
            if started.elapsed() > STEADY {
                quiet.succeeded();
                failures = 0;
            }
            // A server that ends a stream in good order is asked again at once, the first time.
            let pause = match end {
                StreamEnd::Ended if failures == 0 => self.random.around(RETRY.0 / 2, 1.0),
                _ => self.random.around(rotation::grown(RETRY, failures), 0.5),
            };
            failures += 1;
            quiet.failed(&end);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Ok(()) = channels.changed() => channels.mark_changed(),
                () = clock.sleep(pause) => {}
            }
        }
    }

    async fn stream(
        &self,
        channel: Channel,
        state: &mut FeedState,
        quiet: &Repetition,
    ) -> StreamEnd {
        let broken = |status| StreamEnd::Broken(Box::new(status));
        let (replies, rest) = mpsc::channel(16);
        let hello = FromAgent::Hello {
            resume: state.position.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if replies.send(hello.into()).await.is_err() {
            return StreamEnd::Ended;
        }
        let mut client = FeedClient::new(channel).max_decoding_message_size(PART_BYTES * 8);
        let mut updates = match client.follow(ReceiverStream::new(rest)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return broken(status),
        };
        self.heard(true);
        self.connections.send_modify(|count| *count += 1);
        let mut assembly = Assembly::default();
        loop {
            let part = match updates.message().await {
                Ok(Some(part)) => part,
                Ok(None) => return StreamEnd::Ended,
                Err(status) => return broken(status),
            };
            self.heard(true);
            let revision = part.revision;
            let applied = match assembly.add(part, &self.bootstrap.remote.trust_domain) {
                Ok(None) => continue,
                Ok(Some(update)) => state.apply(update).map(|()| self.publish(state)),
                Err(error) => Err(UpdateError::Unreadable(error)),
            };
            self.metrics
                .synced(self.bootstrap.clock.now(), applied.is_ok());
            let verdict = match &applied {
                Ok(()) => Reply::Applied,
                Err(error) => Reply::Refused(ErrorChain(error).to_string()),
            };
            if replies
                .send(FromAgent::Ack { revision, verdict }.into())
                .await
                .is_err()
            {
                return StreamEnd::Ended;
            }
            if applied.is_ok() {
                quiet.succeeded();
            }
            if let Err(error) = applied {
                // What follows would build on what we do not have. Let the refusal get through, then start again from here.
                drop(replies);
                drop(
                    tokio::time::timeout(LAST_WORD, async {
                        while let Ok(Some(_)) = updates.message().await {}
                    })
                    .await,
                );
                return StreamEnd::Refused(error);
            }
        }
    }

    fn heard(&self, connected: bool) {
        let now = self.bootstrap.clock.now();
        self.status.send_if_modified(|status| {
            let before = *status;
            status.connected = connected;
            if connected || before.connected {
                status.last_heard = Some(now);
            }
            before.connected != connected
        });
    }

    /// Hands the new state on: to the vault, and its bundle to our own connections.
    fn publish(&self, state: &FeedState) {
        let now = self.bootstrap.clock.now();
        let bundles: BundleSet = state.bundles.values().cloned().collect();
        let own = bundles.get(&state.own).cloned();
        self.vault
            .replace(Roster::new(state.entries.values().cloned()), bundles, now);
        let Some(own) = own.filter(|own| self.own_bundle().is_none_or(|held| *held != **own))
        else {
            return;
        };
        let identity = self.identity();
        self.cell.replace_bundles(only(Arc::clone(&own)));
        if let Err(error) = self.bootstrap.state.keep_identity(&identity, &own) {
            tracing::error!(error = %ErrorChain(&error), "the new trust bundle is in use but was not kept for the next start");
        }
        let proven = verify_x509_svid(identity.svid.chain(), &only(own), now);
        if proven.map_or(true, |proven| proven.authority_tainted) {
            self.renew_now.notify_one();
        }
    }
}

impl Sign for Upstream {
    async fn sign(&self, asks: Vec<Ask>) -> Result<Vec<Answer>, SignError> {
        let params = asks.into_iter().map(|ask| svid_wire::NewX509svidParams {
            entry_id: ask.entry.to_string(),
            csr: ask.csr,
        });
        let mut call = tonic::Request::new(svid_wire::BatchNewX509svidRequest {
            params: params.collect(),
        });
        call.set_timeout(SIGN_WITHIN);
        let channel = self.channel.borrow().clone();
        let mut client = svid_wire::svid_client::SvidClient::new(channel);
        let status = match tokio::time::timeout(SIGN_WITHIN, client.batch_new_x509svid(call)).await
        {
            Ok(Ok(answer)) => {
                return Ok(answer
                    .into_inner()
                    .results
                    .into_iter()
                    .map(read_result)
                    .collect());
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer within the time limit"),
        };
        Err(match verdict(&status) {
            Verdict::No => SignError::Refused(Box::new(status)),
            Verdict::Later => SignError::Unavailable(Box::new(status)),
            // The stream of updates or the next renewal meets the same answer and acts on it.
            Verdict::Banned | Verdict::AttestAgain => {
                self.attest_again.notify_one();
                SignError::Unavailable(Box::new(status))
            }
        })
    }
}

impl MakeToken for Upstream {
    fn make<'a>(
        &'a self,
        entry: &'a EntryId,
        audience: &'a [String],
    ) -> BoxFuture<'a, Result<Secret<String>, TokenError>> {
        async move {
            let mut call = tonic::Request::new(svid_wire::NewJwtsvidRequest {
                entry_id: entry.to_string(),
                audience: audience.to_vec(),
            });
            call.set_timeout(SIGN_WITHIN);
            let channel = self.channel.borrow().clone();
            let mut client = svid_wire::svid_client::SvidClient::new(channel);
            let status = match tokio::time::timeout(SIGN_WITHIN, client.new_jwtsvid(call)).await {
                Ok(Ok(answer)) => match answer.into_inner().svid {
                    Some(svid) => return Ok(Secret::new(svid.token)),
                    None => Status::internal("neither a token nor a reason"),
                },
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer within the time limit"),
            };
            if matches!(verdict(&status), Verdict::Banned | Verdict::AttestAgain) {
                self.attest_again.notify_one();
            }
            Err(TokenError::NotMade(Box::new(status)))
        }
        .boxed()
    }
}

fn read_result(result: svid_wire::batch_new_x509svid_response::Result) -> Answer {
    match (result.status, result.svid) {
        (Some(status), _) if status.code != 0 => Err(Refusal {
            code: status.code,
            message: status.message,
        }
        .into()),
        (_, Some(svid)) => IssuedX509Svid::try_from(svid)
            .map(|issued| issued.svid)
            .map_err(|error| SvidFault::Shape(Box::new(error))),
        (_, None) => Err(Refusal {
            code: 0,
            message: "neither an SVID nor a reason".into(),
        }
        .into()),
    }
}

fn new_channel(bootstrap: &Bootstrap, cell: &IdentityCell) -> Channel {
    let remote = &bootstrap.remote;
    remote.channel(mesh_tls::client_config(
        cell,
        remote.servers(),
        &[b"h2"],
        bootstrap.clock.as_fn(),
    ))
}

fn only(bundle: impl Into<Arc<Bundle>>) -> BundleSet {
    let mut bundles = BundleSet::new();
    bundles.insert(bundle);
    bundles
}

/// What the applied updates add up to.
#[derive(Debug)]
struct FeedState {
    own: TrustDomain,
    /// Whose position it is: another agent ID has other entries.
    agent: Option<SpiffeId>,
    position: Option<Position>,
    entries: BTreeMap<EntryId, Arc<Entry>>,
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
}

impl FeedState {
    fn new(own: TrustDomain) -> Self {
        Self {
            own,
            agent: None,
            position: None,
            entries: BTreeMap::new(),
            bundles: BTreeMap::new(),
        }
    }

    fn forget_position_of_another(&mut self, agent: &SpiffeId) {
        if self.agent.as_ref() != Some(agent) {
            self.agent = Some(agent.clone());
            self.position = None;
        }
    }

    /// All of it or nothing.
    fn apply(&mut self, update: Update) -> Result<(), UpdateError> {
        if !update.snapshot {
            // The same revision again is how a server says that there is nothing new.
            let held = match &self.position {
                Some(held)
                    if held.epoch == update.at.epoch && held.revision <= update.at.revision =>
                {
                    None
                }
                Some(held) => Some(format!("revision {} of {}", held.revision, held.epoch)),
                None => Some("nothing".into()),
            };
            if let Some(held) = held {
                return Err(UpdateError::NoBase {
                    got: update.at.revision,
                    held,
                });
            }
        }
        let removed = update.removed_bundles.contains(&self.own);
        let own = update
            .bundles
            .iter()
            .map(|carried| &carried.bundle)
            .find(|bundle| *bundle.trust_domain() == self.own);
        let rooted = match own {
            Some(bundle) => !bundle.x509_authorities().is_empty(),
            None => !update.snapshot && !removed && self.bundles.contains_key(&self.own),
        };
        if !rooted {
            return Err(UpdateError::NoBundle(self.own.clone()));
        }
        if update.snapshot {
            self.entries.clear();
            self.bundles.clear();
        }
        for id in &update.removed_entries {
            self.entries.remove(id);
        }
        for domain in &update.removed_bundles {
            self.bundles.remove(domain);
        }
        self.entries.extend(
            update
                .entries
                .into_iter()
                .map(|entry| (entry.id.clone(), Arc::new(entry))),
        );
        let bundles = update
            .bundles
            .into_iter()
            .map(|carried| Arc::new(carried.bundle));
        self.bundles
            .extend(bundles.map(|bundle| (bundle.trust_domain().clone(), bundle)));
        self.position = Some(update.at);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
