//! Decides what the admin port answers: `/live`, `/ready` with what it waits for, `/metrics`, and routes of the program.
//! Trusts only local callers with the program's own routes; never carries a secret, never lets one slow client hold it up.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use mesh_runtime::{admin::{Admin, Answer}, metrics::Metrics, readiness::Readiness, tasks::Tasks};
//! let admin = Admin::new(&Readiness::new(), &Metrics::new("demo")).route("/config", |_ask| Answer::json(&"{}"));
//! let bound = admin.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
//! println!("metrics on {}", bound.address());
//! Tasks::new("demo").spawn("admin", move |stop| bound.serve(stop));
//! # }
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::accept::{self, Limits};
use crate::errors::{Coded, ErrorChain};
use crate::metrics::Metrics;
use crate::readiness::{Liveness, Readiness};
use crate::tasks::Stop;

/// How long a client may take to send its request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one connection may live: long enough for every scrape.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);

/// The admin port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind the admin port {address}")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    cause: io::Error,
}

impl Coded for BindError {
    fn code(&self) -> &'static str {
        "FNL0222"
    }
}

/// A request to a program's own route; there is no body.
#[derive(Debug)]
pub struct Ask {
    /// `GET` or `POST`.
    pub method: Method,
    /// The path, as matched.
    pub path: String,
    /// The query without its question mark, undecoded.
    pub query: Option<String>,
}

/// An answer of a program's own route.
#[derive(Clone, Debug)]
pub struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

impl Answer {
    /// Plain text.
    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// A value as JSON; what cannot be serialised is an internal error.
    pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Self {
        match serde_json::to_string_pretty(value) {
            Ok(body) => Self {
                status: StatusCode::OK,
                content_type: "application/json",
                body: body + "\n",
            },
            Err(error) => Self::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

type Handler = Arc<dyn Fn(Ask) -> Answer + Send + Sync>;

/// The admin port, before it is bound.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    liveness: Liveness,
    metrics: Metrics,
    routes: BTreeMap<String, Handler>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin")
            .field("routes", &self.routes.keys())
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// With the three routes that every program has.
    pub fn new(readiness: &Readiness, metrics: &Metrics) -> Self {
        Self {
            readiness: readiness.clone(),
            liveness: Liveness::new(),
            metrics: metrics.clone(),
            routes: BTreeMap::new(),
        }
    }

    /// Makes `/live` depend on pulses.
    #[must_use]
    pub fn liveness(mut self, liveness: &Liveness) -> Self {
        self.liveness = liveness.clone();
        self
    }

    /// Adds a route for callers on this machine only; one that ends in `/` answers everything below it. The handler must not block.
    #[must_use]
    pub fn route(
        mut self,
        path: &str,
        handler: impl Fn(Ask) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.routes.insert(path.to_owned(), Arc::new(handler));
        self
    }

    /// Binds the port; `0` chooses one.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn bind(self, address: SocketAddr) -> Result<BoundAdmin, BindError> {
        let fail = |cause| BindError { address, cause };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        Ok(BoundAdmin {
            admin: Arc::new(self),
            listener,
            address,
        })
    }

    fn handler(&self, path: &str) -> Option<&Handler> {
        self.routes.get(path).or_else(|| {
            let below = path.get(..=path.rfind('/')?)?;
            self.routes.get(below)
        })
    }

    fn answer(&self, request: &Request<Incoming>, local: bool) -> Answer {
        let reading = matches!(*request.method(), Method::GET | Method::HEAD);
        match request.uri().path() {
            "/live" | "/ready" | "/metrics" if !reading => {
                Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")
            }
            "/live" => match self.liveness.stuck() {
                stuck if stuck.is_empty() => Answer::text(StatusCode::OK, "live\n"),
                stuck => Answer::text(StatusCode::SERVICE_UNAVAILABLE, lines("stuck", stuck)),
            },
            "/ready" => match self.readiness.reasons() {
                waiting if waiting.is_empty() => Answer::text(StatusCode::OK, "ready\n"),
                waiting => {
                    let waiting = waiting
                        .into_iter()
                        .map(|(name, why)| format!("{name}: {why}"));
                    Answer::text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        lines("waiting for", waiting),
                    )
                }
            },
            "/metrics" => {
                let accept = request
                    .headers()
                    .get(header::ACCEPT)
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or_default();
                // Prometheus asks for OpenMetrics first and falls back by weight; plain text is the default (ux D.5).
                if accept.contains("application/openmetrics-text") {
                    Answer {
                        status: StatusCode::OK,
                        content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                        body: self.metrics.open_metrics_text(),
                    }
                } else {
                    Answer {
                        status: StatusCode::OK,
                        content_type: "text/plain; version=0.0.4; charset=utf-8",
                        body: self.metrics.classic_text(),
                    }
                }
            }
            path => match self.handler(path) {
                None => Answer::text(StatusCode::NOT_FOUND, "no such page\n"),
                Some(_) if !local => {
                    Answer::text(StatusCode::FORBIDDEN, "only from this machine\n")
                }
                // A web page whose name was pointed at this machine (DNS rebinding) comes with that name.
                Some(_) if !host_is_local(request) => {
                    Answer::text(StatusCode::FORBIDDEN, "unknown host name\n")
                }
                Some(handler) => handler(Ask {
                    method: request.method().clone(),
                    path: path.to_owned(),
                    query: request.uri().query().map(str::to_owned),
                }),
            },
        }
    }
}

/// The admin port, bound.
#[derive(Debug)]
pub struct BoundAdmin {
    admin: Arc<Admin>,
    listener: TcpListener,
    address: SocketAddr,
}

impl BoundAdmin {
    /// The address that was really bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until stopped.
    ///
    /// # Errors
    /// Never; the type lets it be spawned as it is.
    pub async fn serve(self, stop: Stop) -> Result<(), Infallible> {
        let admin = self.admin;
        let limits = Limits {
            max_connections: 64,
            ..Limits::default()
        };
        let ending = stop.clone();
        accept::run(
            self.listener,
            "admin",
            limits,
            stop,
            move |stream: TcpStream, permit| {
                let (admin, stop) = (Arc::clone(&admin), ending.clone());
                async move {
                    let local = stream
                        .peer_addr()
                        .is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = admin.answer(&request, local);
                        async move { Ok::<_, Infallible>(respond(answer)) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .max_buf_size(16 * 1024)
                        .serve_connection(TokioIo::new(stream), service);
                    let served =
                        tokio::time::timeout(CONNECTION_LIFE, stop.unless_stopped(connection))
                            .await;
                    if let Ok(Some(Err(error))) = served {
                        tracing::debug!(error = %ErrorChain(&error), "admin connection ended");
                    }
                    drop(permit);
                }
            },
        )
        .await;
        Ok(())
    }
}

/// Asks a program's admin port for a page, as its `healthcheck` verb does: the status and the body.
///
/// # Errors
/// When nobody answers within `limit`, or not in HTTP.
pub async fn probe(
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> io::Result<(StatusCode, String)> {
    let asked = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %ErrorChain(&error), "probe connection ended");
            }
        });
        let request = Request::get(path)
            .header(header::HOST, address.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = answer.status();
        // Our own pages are short; another server's need not be.
        let body = Limited::new(answer.into_body(), 1024 * 1024)
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(limit, asked)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(answer.content_type),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn lines(title: &str, entries: impl IntoIterator<Item = String>) -> String {
    entries
        .into_iter()
        .map(|entry| format!("{title} {entry}\n"))
        .collect()
}

fn host_is_local(request: &Request<Incoming>) -> bool {
    let Some(host) = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
    else {
        return false;
    };
    let name = host
        .parse::<http::uri::Authority>()
        .map(|a| a.host().to_owned())
        .unwrap_or_default();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests;
