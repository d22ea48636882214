//! Decides what Envoy's secret discovery service answers a caller, and when it answers again.
//! Trusts `session` for who asks, what that process holds and when it changes, and `secrets` for what a name means.
//! Never hands out a secret to a process that was not looked at since it asked for it. It demands no header: no Envoy sends
//! one, and what answers here speaks gRPC on a Unix socket only.

mod dialect;
mod secrets;

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use futures::{Stream, stream};
use proto::envoy::service::{
    discovery::v3 as wire,
    secret::v3::secret_discovery_service_server::{
        SecretDiscoveryService, SecretDiscoveryServiceServer,
    },
};
use tonic::{Code, Request, Response, Status, Streaming};

use self::{
    dialect::{Dialect, Difference, Given, Whole},
    secrets::{NotGiven, Validator, secrets},
};
use super::{
    LARGEST_REQUEST,
    caller::{Parts, gone, stopping},
    session::{Session, X509Svids},
};
use crate::{config::SdsOptions, vault::IdentitySet};

/// The name of this service's streams in the metrics.
const API: &str = "sds";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone, Debug)]
pub struct SdsApi {
    parts: Arc<Parts>,
    options: Arc<SdsOptions>,
}

impl SdsApi {
    /// Serves with what every door has.
    pub fn new(parts: Arc<Parts>, options: SdsOptions) -> Self {
        Self {
            parts,
            options: Arc::new(options),
        }
    }

    /// As a tonic service.
    pub fn into_service(self) -> SecretDiscoveryServiceServer<Self> {
        SecretDiscoveryServiceServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }

    fn talk<D: Dialect>(
        &self,
        request: Request<Streaming<D::Ask>>,
    ) -> Result<Response<Answers<D::Answer>>, Status> {
        let session = Session::open(&self.parts, &request, D::METHOD, API)
            .inspect_err(|status| self.parts.metrics.called(D::METHOD, status.code()))?;
        let talk = Talk::<D> {
            giving: Giving {
                session,
                options: Arc::clone(&self.options),
                given: BTreeSet::new(),
            },
            asks: request.into_inner(),
            dialect: D::default(),
            counted: false,
        };
        let answers = stream::unfold(Some(talk), |talk| async {
            let mut talk = talk?;
            // Asked for only when the connection has room: a slow reader gets the newest state, not each one.
            let answer = talk.next().await;
            talk.count(answer.as_ref().map_or_else(Status::code, |_| Code::Ok));
            match answer {
                Ok(Some(answer)) => Some((Ok(answer), Some(talk))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch(
        &self,
        request: Request<wire::DiscoveryRequest>,
    ) -> Result<wire::DiscoveryResponse, Status> {
        let session = Session::open(&self.parts, &request, "FetchSecrets", API)?;
        let mut giving = Giving {
            session,
            options: Arc::clone(&self.options),
            given: BTreeSet::new(),
        };
        let mut dialect = Whole::default();
        dialect.hear(request.into_inner())?;
        giving.session.look().await?;
        let state = giving.session.changed().await?;
        let answer = giving.answer(&mut dialect, &state).await?;
        answer.ok_or_else(|| Status::internal("a first answer is never left out"))
    }
}

/// What one caller is given, and what it was given before.
struct Giving {
    session: Session<X509Svids>,
    options: Arc<SdsOptions>,
    /// Identities that were recorded for this call already. Renewals are recorded where they are signed.
    given: BTreeSet<String>,
}

impl Giving {
    async fn answer<D: Dialect>(
        &mut self,
        dialect: &mut D,
        state: &IdentitySet,
    ) -> Result<Option<D::Answer>, Status> {
        let Some(asked) = dialect.asked() else {
            return Ok(None);
        };
        let validator = Validator::of(dialect.node(), &self.options);
        let found = secrets(state, asked, &self.options, validator).map_err(refusal)?;
        let Some((answer, given)) = dialect.answer(found) else {
            return Ok(None);
        };
        let fresh: Given = given
            .into_iter()
            .filter(|(id, _)| self.given.insert(id.clone()))
            .collect();
        let fresh = fresh.iter().map(|(id, serial)| (&**id, &**serial));
        self.session.caller.record_given(fresh).await?;
        Ok(Some(answer))
    }
}

/// As SPIRE answers.
fn refusal(error: NotGiven) -> Status {
    match error {
        NotGiven::NotYours(_) => Status::invalid_argument(error.to_string()),
        NotGiven::NeedsValidator(_) => Status::internal(error.to_string()),
    }
}

/// One stream.
struct Talk<D: Dialect> {
    giving: Giving,
    asks: Streaming<D::Ask>,
    dialect: D,
    counted: bool,
}

impl<D: Dialect> Talk<D> {
    /// Waits until there is something to answer; `None` when the client has no more to ask.
    async fn next(&mut self) -> Result<Option<D::Answer>, Status> {
        loop {
            let session = &mut self.giving.session;
            let (process, stop) = (
                session.caller.peer.process().clone(),
                session.caller.parts.stop.clone(),
            );
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(stopping()),
                () = process.exited() => return Err(gone()),
                ask = self.asks.message() => match ask? {
                    Some(ask) => self.hear(ask).await?,
                    None => return Ok(None),
                },
                state = session.changed(), if self.dialect.asked().is_some() => {
                    let state = state?;
                    let answer = self.giving.answer(&mut self.dialect, &state).await?;
                    self.giving.session.tell(Some(state));
                    if answer.is_some() {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    async fn hear(&mut self, ask: D::Ask) -> Result<(), Status> {
        let heard = self.dialect.hear(ask)?;
        let session = &mut self.giving.session;
        let (parts, uid) = (&session.caller.parts, session.caller.peer.uid());
        if let Some(why) = heard.refused
            && parts.denials.may_log(uid, parts.clock.monotonic())
        {
            tracing::warn!(pid = session.caller.peer.process().pid(), uid, method = D::METHOD, why = ?why,
                "an Envoy could not use the secrets that it was sent; it goes on with those before");
        }
        if heard.changed {
            // The process may have become another program since the last answer (M10 b).
            session.look().await?;
            session.tell(None);
        }
        Ok(())
    }

    /// Counts the call once, by its first answer.
    fn count(&mut self, code: Code) {
        if !std::mem::replace(&mut self.counted, true) {
            self.giving
                .session
                .caller
                .parts
                .metrics
                .called(D::METHOD, code);
        }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SdsApi {
    type StreamSecretsStream = Answers<wire::DiscoveryResponse>;
    type DeltaSecretsStream = Answers<wire::DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<wire::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.talk::<Whole>(request)
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<wire::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.talk::<Difference>(request)
    }

    async fn fetch_secrets(
        &self,
        request: Request<wire::DiscoveryRequest>,
    ) -> Result<Response<wire::DiscoveryResponse>, Status> {
        let answer = self.fetch(request).await;
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.parts.metrics.called("FetchSecrets", code);
        answer.map(Response::new)
    }
}
