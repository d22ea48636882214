//! `finial.feed.v1`: one stream per agent. A snapshot or a change first, then a change whenever there is one.
//! Trusts the guard that it is an agent, and looks again as long as the stream lives.
//! Never goes on for an agent that was banned, evicted, attested anew or whose certificate is over.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::Stream;
use mesh_identity::BundleError;
use mesh_runtime::errors::untrusted;
use mesh_tls::Peer;
use proto::convert::CarriedBundle;
use proto::convert::feed::{FromAgent, Position, Update, Verdict};
use proto::finial::feed::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::caller::{Connection, NotACaller};
use super::super::{Call, Parts, Refusal};
use crate::feed::{Follower, Step};
use crate::fleet::Connected;
use crate::issuance::IssueError;
use crate::store::Node;

/// How long an agent may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an agent may leave a message unread before its stream is ended.
const SLOWEST_READ: Duration = Duration::from_secs(60);

/// How often the agent's right to the stream is looked at again, besides at each change.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }
}

type Updates = Pin<Box<dyn Stream<Item = Result<wire::FeedUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl wire::feed_server::Feed for Service {
    type FollowStream = Updates;

    async fn follow(
        &self,
        request: Request<Streaming<wire::FollowRequest>>,
    ) -> Result<Response<Updates>, Status> {
        let call = Call::of(&request)?;
        let agent = call.agent()?;
        let Connection::Tcp {
            peer: Some(peer), ..
        } = call.connection.clone()
        else {
            return Err(Status::permission_denied("only for agents"));
        };
        // One message in the channel: the newest state is computed when there is room for it.
        let (updates, receiver) = mpsc::channel(1);
        let stream = Following {
            follower: Follower::new(self.parts.registry.clone(), agent.id.clone()),
            connected: self.parts.fleet.connect(&agent.id, self.parts.clock.now()),
            parts: self.parts.clone(),
            agent,
            peer,
            updates,
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One open stream.
struct Following {
    parts: Parts,
    agent: Arc<Node>,
    peer: Arc<Peer>,
    follower: Follower,
    connected: Connected,
    updates: mpsc::Sender<Result<wire::FeedUpdate, Status>>,
}

/// Why a stream ends.
enum End {
    /// The agent went away, or reads nothing.
    Gone,
    /// It has to be told.
    Told(Status),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Told(refusal.into_status())
    }
}

impl Following {
    async fn run(mut self, mut said: Streaming<wire::FollowRequest>) {
        if let End::Told(status) = self.follow(&mut said).await {
            tracing::debug!(agent = %self.agent.id, code = ?status.code(), reason = status.message(), "feed stream ended");
            let told = self.updates.send(Err(status));
            // A reader that is gone or stuck cannot be told.
            let _gone = tokio::time::timeout(Duration::from_secs(1), told).await;
        }
    }

    async fn follow(&mut self, said: &mut Streaming<wire::FollowRequest>) -> End {
        match self.try_follow(said).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn try_follow(
        &mut self,
        said: &mut Streaming<wire::FollowRequest>,
    ) -> Result<std::convert::Infallible, End> {
        let resume = self.hello(said).await?;
        let mut newest = self.parts.registry.newest();
        let mut facts = self.parts.registry.facts();
        newest.mark_unchanged();
        facts.mark_unchanged();
        let mut told = self.start(&resume).await?;
        let drain = self.parts.drain.clone();
        let clock = self.parts.clock.clone();
        let over = clock.sleep_until(self.peer.not_after + Duration::from_secs(1));
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = drain.draining() => {
                    return Err(End::Told(Status::unavailable("the server is shutting down")));
                }
                () = self.updates.closed() => return Err(End::Gone),
                () = &mut over => {
                    return Err(Refusal::from(NotACaller::AgentExpired(self.agent.id.clone())).into());
                }
                message = said.message() => match message {
                    Ok(Some(message)) => self.hear(message)?,
                    // It may close its side and go on reading only by ending the stream.
                    Ok(None) | Err(_) => return Err(End::Gone),
                },
                changed = async { tokio::select! {
                    changed = newest.changed() => changed,
                    changed = facts.changed() => changed,
                } } => {
                    if changed.is_err() {
                        return Err(End::Told(Status::unavailable("the store is closed")));
                    }
                    self.still_entitled().await?;
                    match told {
                        false => told = self.start(&resume).await?,
                        true => if let Some(step) = self.follower.next().await.map_err(Refusal::from)? {
                            self.tell(step).await?;
                        }
                    }
                }
                () = tokio::time::sleep(LOOK_AGAIN) => self.still_entitled().await?,
            }
        }
    }

    /// Tells where to begin, as soon as that is known.
    async fn start(&mut self, resume: &Option<crate::feed::Position>) -> Result<bool, End> {
        let first = self.follower.first(resume.clone()).await;
        match first.map_err(Refusal::from)? {
            Some(first) => self.tell(first).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn hello(
        &mut self,
        said: &mut Streaming<wire::FollowRequest>,
    ) -> Result<Option<crate::feed::Position>, End> {
        let first = match tokio::time::timeout(HELLO_TIMEOUT, said.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None) | Err(_)) => return Err(End::Gone),
            Err(_) => return Err(protocol("no hello came").into()),
        };
        match FromAgent::try_from(first).map_err(Refusal::from)? {
            FromAgent::Hello {
                resume,
                agent_version,
            } => {
                if !agent_version.is_empty() && agent_version != self.agent.agent_version {
                    self.parts
                        .nodes
                        .set_agent_version(&self.agent.id, &agent_version)
                        .await
                        .map_err(Refusal::from)?;
                }
                Ok(resume.map(|at| crate::feed::Position {
                    epoch: at.epoch,
                    revision: at.revision,
                }))
            }
            FromAgent::Ack { .. } => Err(protocol("the first message must be a hello").into()),
        }
    }

    fn hear(&mut self, message: wire::FollowRequest) -> Result<(), End> {
        let now = self.parts.clock.now();
        match FromAgent::try_from(message).map_err(Refusal::from)? {
            FromAgent::Hello { .. } => Err(protocol("a second hello").into()),
            FromAgent::Ack {
                revision,
                verdict: Verdict::Applied,
            } => {
                self.connected.applied(revision, now);
                Ok(())
            }
            FromAgent::Ack {
                revision,
                verdict: Verdict::Refused(reason),
            } => {
                let reason = untrusted(&reason);
                tracing::warn!(agent = %self.agent.id, revision, reason, "an agent refused an update and kept what it had");
                self.parts.metrics.feed_refused();
                self.connected.refused(revision, reason, now);
                Ok(())
            }
        }
    }

    /// Sends one step; while it waits for the reader, nothing newer is queued behind it.
    async fn tell(&mut self, step: Step) -> Result<(), End> {
        let revision = step.revision;
        let update = to_update(self.parts.registry.epoch(), step)
            .map_err(|error| Refusal::from(IssueError::from(error)))?;
        let drain = self.parts.drain.clone();
        for part in update.to_wire() {
            let sent = tokio::time::timeout(SLOWEST_READ, self.updates.send(Ok(part)));
            tokio::select! {
                sent = sent => match sent {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return Err(End::Gone),
                },
                () = drain.draining() => return Err(End::Gone),
            }
        }
        self.connected.sent(revision);
        Ok(())
    }

    /// A renewed certificate does not end the stream; eviction, a ban or a new attestation does.
    async fn still_entitled(&self) -> Result<(), End> {
        let id = || self.agent.id.clone();
        let now: SystemTime = self.parts.clock.now();
        let why_not = match self.parts.nodes.get(&self.agent.id).await {
            Err(error) => error.into(),
            Ok(None) => NotACaller::AgentNotAttested(id()),
            Ok(Some(node)) if node.banned => NotACaller::AgentBanned(id()),
            Ok(Some(node)) if node.attested_at != self.agent.attested_at => {
                NotACaller::AgentNotActive(id())
            }
            Ok(Some(_)) if now > self.peer.not_after => NotACaller::AgentExpired(id()),
            Ok(Some(_)) => return Ok(()),
        };
        Err(Refusal::from(why_not).into())
    }
}

fn protocol(what: &str) -> Refusal {
    Refusal::new("FNL1263", Code::InvalidArgument, what)
}

fn to_update(epoch: &str, step: Step) -> Result<Update, BundleError> {
    let at = Position {
        epoch: epoch.to_owned(),
        revision: step.revision,
    };
    let bundles = step
        .bundles
        .iter()
        .map(|stored| stored.to_bundle().map(CarriedBundle::from))
        .collect::<Result<_, _>>()?;
    Ok(Update {
        entries: step.entries.iter().map(|entry| (**entry).clone()).collect(),
        removed_entries: step.removed_entries,
        bundles,
        removed_bundles: step.removed_bundles,
        ..Update::empty(at, step.snapshot)
    })
}
