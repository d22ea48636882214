//! The gRPC doors. Every call goes audit → caller → permit → limit → handler, in this order; no handler is reached otherwise.
//! Trusts `caller.rs` for who calls and `permit.rs` for what that allows.
//! Never answers an RPC that has no row, and never grants anything before its record is durable.

pub mod caller;
pub mod client;
pub mod door;
mod finial;
pub mod limit;
pub mod permit;
mod reflection;
mod spire;
mod status;

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use mesh_identity::TrustDomain;
use mesh_runtime::audit::{Action, AuditLog, Decision, Object, Outcome, Record};
use mesh_runtime::clock::Clock;
use mesh_runtime::drain::DrainWatch;
use mesh_runtime::errors::untrusted;
use mesh_runtime::readiness::Readiness;
use mesh_runtime::span;
use mesh_runtime::telemetry::{LogControl, traces};
use mesh_tls::IdentityCell;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use self::caller::{Caller, Callers, Connection};
use self::door::OtherEnd;
use self::limit::{Limits, Payer};
use self::permit::{Audit, Limit, Row};
pub use self::status::Refusal;
use crate::attestation::Attestors;
use crate::authority::Authority;
use crate::federation::Federation;
use crate::fleet::Fleet;
use crate::issuance::{Attribution, Issuer};
use crate::metrics::Metrics;
use crate::registry::{EntryBook, Registry};
use crate::store::{Bundles, Issued, Nodes, Snapshots, Tokens};

/// What the handlers work with: the narrowest handle of each part.
#[derive(Clone)]
pub struct Parts {
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Which identities exist.
    pub registry: Arc<Registry>,
    /// The stored entries.
    pub book: EntryBook,
    /// The bundles of other trust domains.
    pub bundles: Arc<dyn Bundles>,
    /// The relationships with other trust domains.
    pub federation: Arc<Federation>,
    /// The agents.
    pub nodes: Arc<dyn Nodes>,
    /// Join tokens.
    pub tokens: Arc<dyn Tokens>,
    /// The store as a whole.
    pub snapshots: Arc<dyn Snapshots>,
    /// Signs and records.
    pub issuer: Arc<Issuer>,
    /// Our bundle.
    pub authority: Arc<Authority>,
    /// Judges nodes.
    pub attestors: Arc<Attestors>,
    /// What agents report.
    pub fleet: Fleet,
    /// Who calls.
    pub callers: Callers,
    /// How fast.
    pub limits: Limits,
    /// The record.
    pub audit: AuditLog,
    /// The numbers.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// When to end streams.
    pub drain: DrainWatch,
    /// For the health service.
    pub readiness: Readiness,
    /// How verbose the log is.
    pub log: LogControl,
    /// What this server shows to its peers.
    pub identity: IdentityCell,
    /// The record of what was signed.
    pub issued: Arc<dyn Issued>,
    /// Certificates in one request.
    pub most_certificates: usize,
}

/// All services behind the guard.
pub fn routes(parts: &Parts) -> Routes {
    let routes = Routes::new(spire::agent(parts))
        .add_service(spire::entry(parts))
        .add_service(spire::svid(parts))
        .add_service(spire::bundle(parts))
        .add_service(spire::trustdomain(parts))
        .add_service(spire::local_authority(parts))
        .add_service(spire::logger(parts))
        .add_service(spire::debug(parts))
        .add_service(spire::health(parts))
        .add_service(finial::feed(parts))
        .add_service(finial::authority(parts))
        .add_service(finial::backup(parts))
        .add_service(reflection::present())
        .add_service(reflection::older());
    routes.prepare()
}

/// Reads bytes as one of the requests of SPIRE's API, as its handler does.
pub(crate) fn read_for_fuzzing(bytes: &[u8], own: &TrustDomain) {
    spire::read_for_fuzzing(bytes, own);
}

/// A call that was permitted, as its handler sees it.
#[derive(Clone)]
pub(crate) struct Call {
    /// Who calls.
    pub(crate) caller: Caller,
    /// Over which connection.
    pub(crate) connection: Connection,
    /// For the records of its parts.
    pub(crate) who: Attribution,
    /// Filled by the handler, for the record of the whole.
    note: Arc<Mutex<Note>>,
}

#[derive(Default)]
struct Note {
    object: Option<Object>,
    code: Option<&'static str>,
}

impl Call {
    /// The call that a request belongs to.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Status::internal("the call came around the guard"))
    }

    /// The agent that calls.
    pub(crate) fn agent(&self) -> Result<Arc<crate::store::Node>, Status> {
        match &self.caller {
            Caller::Agent(node) => Ok(node.clone()),
            _ => Err(Status::permission_denied("only for agents")),
        }
    }

    /// From whose budget it is taken.
    pub(crate) fn payer(&self) -> Payer {
        payer(&self.caller, &self.connection)
    }

    /// Says what the call is about, for its record.
    pub(crate) fn about(&self, object: Object) {
        self.note().object = Some(object);
    }

    /// Ends the call with a refusal.
    pub(crate) fn refuse(&self, refusal: impl Into<Refusal>) -> Status {
        let refusal = refusal.into();
        self.note().code = Some(refusal.code);
        refusal.into_status()
    }

    fn note(&self) -> std::sync::MutexGuard<'_, Note> {
        self.note.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn payer(caller: &Caller, connection: &Connection) -> Payer {
    match (caller, connection) {
        (Caller::Agent(node), _) => Payer::Identity(node.id.clone()),
        (Caller::WorkloadAdmin(id), _) => Payer::Identity(id.clone()),
        (_, Connection::Tcp { address, .. }) => Payer::at(address.ip()),
        (_, Connection::Unix { .. }) => Payer::at(Ipv4Addr::UNSPECIFIED.into()),
    }
}

/// Puts the guard before the services.
#[derive(Clone)]
pub struct GuardLayer(Arc<Parts>);

impl GuardLayer {
    /// The guard with its parts.
    pub fn new(parts: &Parts) -> Self {
        Self(Arc::new(parts.clone()))
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard {
            parts: self.0.clone(),
            inner,
        }
    }
}

/// The guard.
#[derive(Clone)]
pub struct Guard<S> {
    parts: Arc<Parts>,
    inner: S,
}

type Request = http::Request<Body>;
type Response = http::Response<Body>;

impl<S> Service<Request> for Guard<S>
where
    S: Service<Request, Response = Response> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // The service that said it was ready is the one to be called; its clone has to be asked first.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let parts = self.parts.clone();
        let method = permit::name_of(request.uri().path());
        let span = call_span(method);
        traces::continue_from(&span, request.headers());
        let answered = async move {
            match admit(&parts, request).await {
                Ok((request, admitted)) => {
                    let started = parts.clock.monotonic();
                    let response = ready.call(request).await?;
                    let response = admitted.finish(response).await;
                    let code = grpc_code(&response);
                    parts.metrics.call(method, code, started.elapsed());
                    tell_outcome(code);
                    Ok(response)
                }
                Err(refusal) => {
                    parts.metrics.refused(method, refusal.grpc);
                    tell_outcome(refusal.grpc);
                    Ok(refusal.into_status().into_http())
                }
            }
        };
        Box::pin(answered.instrument(span))
    }
}

/// The span of a call, with the names of OpenTelemetry's conventions for gRPC. A stranger's text never becomes its name.
fn call_span(method: &'static str) -> tracing::Span {
    let method = method.trim_start_matches('/');
    span!(
        "call",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = tracing::field::Empty,
    )
}

/// Writes how the call that this task is in ended into its span.
fn tell_outcome(code: Code) {
    let span = tracing::Span::current();
    span.record("rpc.response.status_code", tracing::field::debug(code));
    // What a caller did wrong is no error of this server.
    if matches!(code, Code::Internal | Code::Unavailable | Code::Unknown) {
        span.record("otel.status_code", "ERROR");
    }
}

/// A call on its way through its handler.
struct Admitted {
    record: Option<Record>,
    call: Call,
}

/// Audit, caller, permit, limit.
async fn admit(parts: &Parts, mut request: Request) -> Result<(Request, Admitted), Refusal> {
    let Some(OtherEnd(connection)) = request.extensions().get::<OtherEnd>().cloned() else {
        return Err(Refusal::new(
            "FNL1242",
            Code::Internal,
            "the call came without its connection",
        ));
    };
    // The request itself must not be borrowed while we wait: its body cannot be shared.
    let path = request.uri().path().to_owned();
    let row = permit::find(&path);
    let begin = |who: &Attribution| {
        let mut record = parts.audit.begin(
            Action(row.map_or("api.call", |row| row.action)),
            who.actor.clone(),
        );
        record.origin(who.origin.clone());
        record.object(Object::new("rpc").name(untrusted(&path)));
        record
    };
    match judge(parts, &connection, row).await {
        Err(refusal) => {
            let mut record = begin(&connection.attribution(&Caller::Other));
            record.decision(Decision::deny(refusal.why()));
            record.finish_later(refusal.outcome(), Some(refusal.code));
            Err(refusal)
        }
        Ok((row, caller)) => {
            let who = connection.attribution(&caller);
            let record = (row.audit == Audit::Call).then(|| begin(&who));
            let call = Call {
                caller,
                connection,
                who,
                note: Arc::default(),
            };
            request.extensions_mut().insert(call.clone());
            Ok((request, Admitted { record, call }))
        }
    }
}

async fn judge(
    parts: &Parts,
    connection: &Connection,
    row: Option<&'static Row>,
) -> Result<(&'static Row, Caller), Refusal> {
    let row = row.ok_or_else(|| {
        Refusal::new(
            "FNL1243",
            Code::Unimplemented,
            "this server has no such RPC",
        )
    })?;
    if row.callers.is_empty() {
        return Err(Refusal::new(
            "FNL1244",
            Code::Unimplemented,
            format!("{} is not served by this version of ca-server", row.path),
        ));
    }
    let open_to_all = row.callers.contains(&caller::Kind::Anonymous);
    let caller = match parts.callers.identify(connection, parts.clock.now()).await {
        Ok(caller) => caller,
        // What anybody may ask, an agent may ask whose certificate is not in use any more: it has to attest again.
        Err(_) if open_to_all => Caller::Other,
        Err(error) => return Err(error.into()),
    };
    if !row.callers.contains(&caller.kind()) {
        return Err(Refusal::new(
            "FNL1245",
            Code::PermissionDenied,
            format!("authorization denied for method {}", row.path),
        ));
    }
    // Signatures are counted by the handlers, which know how many are asked for.
    if row.limit != Limit::Sign
        && !parts
            .limits
            .wait(row.limit, payer(&caller, connection), 1)
            .await
    {
        return Err(over_the_limit(parts, row.limit));
    }
    Ok((row, caller))
}

/// The refusal of a call over its budget.
pub(crate) fn over_the_limit(parts: &Parts, limit: Limit) -> Refusal {
    parts.metrics.rate_limited(limit.name());
    Refusal::new(
        "FNL1246",
        Code::ResourceExhausted,
        "rate limit exceeded: try again later",
    )
}

impl Admitted {
    /// Finishes the record of the whole call. A grant that cannot be recorded is taken back from the answer.
    fn finish(self, response: Response) -> BoxFuture<'static, Response> {
        let Some(mut record) = self.record else {
            return std::future::ready(response).boxed();
        };
        async move {
            let (object, code) = {
                let mut note = self.call.note();
                (note.object.take(), note.code)
            };
            if let Some(object) = object {
                record.object(object);
            }
            let (outcome, code) = match grpc_code(&response) {
                Code::Ok => (Outcome::Success, None),
                Code::Internal | Code::Unavailable | Code::Unknown => {
                    (Outcome::Failure, Some(code.unwrap_or("FNL1247")))
                }
                _ => (Outcome::Denied, Some(code.unwrap_or("FNL1248"))),
            };
            match record.finish(outcome, code).await {
                Ok(_) => response,
                Err(error) => Refusal::from(error).into_status().into_http(),
            }
        }
        .boxed()
    }
}

/// The status of an answer, where it is known before the body is.
fn grpc_code(response: &Response) -> Code {
    response
        .headers()
        .get("grpc-status")
        .map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

#[cfg(test)]
mod tests;
