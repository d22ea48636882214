//! Decides what this agent believes of its CA, and keeps its own identity towards it. Two roads lead here and end in the same state:
//! a stream of numbered updates where the server pushes, questions at intervals where it is SPIRE's and cannot.
//! Trusts a server that proves `/spire/server` in our own trust domain. Never drops what it has because the CA is away.

mod feed;
mod heard;
mod poll;
mod remote;
mod sign;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use mesh_identity::{Bundle, BundleSet, SpiffeId, X509Svid, verify::verify_x509_svid};
use mesh_runtime::{
    errors::{Coded, ErrorChain},
    tasks::Stop,
    telemetry::Repetition,
};
use mesh_tls::IdentityCell;
use proto::{convert::denied_because, spire::api::types};
use tokio::sync::{Notify, watch};
use tonic::{Code, Status, transport::Channel};

pub(crate) use self::remote::bootstrap_tls;
use self::{heard::Heard, remote::new_channel};
pub use self::{heard::UpdateError, remote::Remote};
use crate::{
    bootstrap::{Bootstrap, BootstrapError},
    identity::{AgentIdentity, Proven},
    metrics::Metrics,
    rotation::{self, Random},
    vault::{Roster, Vault},
};

/// Pauses between attempts grow from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A stream that lasted this long starts over with the shortest pause.
const STEADY: Duration = Duration::from_secs(5);

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

/// Why a road ended.
#[derive(Debug, thiserror::Error)]
enum RoadEnd {
    #[error("the ca-server does not push updates")]
    NoPush,
    #[error("the stream of updates broke")]
    Broken(#[source] Box<Status>),
    #[error("the ca-server was asked in vain")]
    Silent(#[source] Box<Status>),
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
        let tls = identity.for_tls(only(bundle), bootstrap.clock.now());
        let cell = IdentityCell::new(tls.map_err(BootstrapError::Unusable)?);
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

    /// The agent's SVID of this moment.
    pub(crate) fn svid(&self) -> X509Svid {
        self.identity().svid.clone()
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
            let now = clock.now();
            let renew_at = rotation::renew_at(now, self.identity().svid.not_after(), &self.random);
            let pause = renew_at.duration_since(now).unwrap_or_default();
            let mut from_scratch = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = clock.sleep_until(renew_at) => false,
                // By the monotonic clock too: a wall clock that went back must not let the SVID run out at the CA.
                () = clock.sleep(pause) => false,
                () = self.renew_now.notified() => false,
                () = self.attest_again.notified() => true,
            };
            let mut failures = 0;
            loop {
                match stop.unless_stopped(self.refresh(from_scratch)).await {
                    None => return Ok(()),
                    Some(Ok(())) => {
                        self.metrics.agent_renewed(true);
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
                        self.metrics.agent_renewed(false);
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
        let tls = identity.for_tls(newest.unwrap_or_else(|| only(bundle)), now);
        self.cell.publish(tls.map_err(BootstrapError::Unusable)?);
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
        let (mut state, mut failures) = (Heard::new(self.bootstrap.remote.trust_domain.clone()), 0);
        loop {
            let channel = channels.borrow_and_update().clone();
            state.forget_position_of_another(&self.id());
            let started = clock.monotonic();
            let end = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // A new identity: the stream goes on over a new connection, from where it is.
                Ok(()) = channels.changed() => continue,
                end = self.walk(channel, &mut state, &quiet) => end,
            };
            self.heard(false);
            if let RoadEnd::Broken(status) | RoadEnd::Silent(status) = &end {
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
                RoadEnd::Ended if failures == 0 => self.random.around(RETRY.0 / 2, 1.0),
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

    /// Listens to a server that pushes and asks one that does not. Which one it is is asked anew each time: servers are upgraded.
    async fn walk(&self, channel: Channel, state: &mut Heard, quiet: &Repetition) -> RoadEnd {
        match self.stream(channel.clone(), state, quiet).await {
            RoadEnd::NoPush => self.poll(channel, state, quiet).await,
            end => end,
        }
    }

    /// The CA answers again: what failed because it was away may be tried again.
    fn connected(&self) {
        self.heard(true);
        self.connections.send_modify(|count| *count += 1);
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
    fn publish(&self, state: &Heard) {
        let now = self.bootstrap.clock.now();
        let bundles: BundleSet = state.bundles().cloned().collect();
        let own = bundles.get(&self.bootstrap.remote.trust_domain).cloned();
        self.vault
            .replace(Roster::new(state.entries().cloned()), bundles, now);
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

fn only(bundle: impl Into<Arc<Bundle>>) -> BundleSet {
    let mut bundles = BundleSet::new();
    bundles.insert(bundle);
    bundles
}

#[cfg(test)]
mod tests;
