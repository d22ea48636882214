//! HTTPS that anyone may read and nobody may write: our own bundle, for those who federate with us (SPIFFE Federation 5).
//! Trusts the authority's bundle, which holds an authority before it signs. Never asks who reads, never serves anything else.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_identity::BundleError;
use mesh_runtime::accept::{self, Limits};
use mesh_runtime::drain::DrainWatch;
use mesh_runtime::errors::ErrorChain;
use mesh_runtime::tasks::Stop;
use mesh_tls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::store::StoredBundle;

/// Readers at a time. Each asks once in minutes.
const CONNECTIONS: usize = 1024;

/// How long a reader may take for its headers, and for everything.
const HEADERS: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(60);

/// The bundle endpoint, bound.
pub struct BundleEndpoint {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    bundle: watch::Receiver<Arc<StoredBundle>>,
}

/// The newest bundle as a document, made once for each of its states.
struct Document {
    bundle: watch::Receiver<Arc<StoredBundle>>,
    made: Mutex<Option<(u64, Bytes)>>,
}

impl BundleEndpoint {
    /// An endpoint that serves `bundle` on a bound port.
    pub fn new(
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        bundle: watch::Receiver<Arc<StoredBundle>>,
    ) -> Self {
        Self {
            listener,
            tls,
            bundle,
        }
    }

    /// Serves until the server drains or is stopped.
    pub async fn serve(self, drain: DrainWatch, stop: Stop) -> Result<(), Infallible> {
        let document = Arc::new(Document {
            bundle: self.bundle,
            made: Mutex::default(),
        });
        let tls = self.tls;
        let limits = Limits {
            max_connections: CONNECTIONS,
            ..Limits::default()
        };
        let handshake = limits.handshake_timeout;
        accept::run(
            self.listener,
            "bundle-endpoint",
            limits.below_descriptor_limit(1),
            drain.stop_accepting(),
            move |stream, permit| {
                let (document, tls, stop) = (document.clone(), tls.clone(), stop.clone());
                let held = drain.hold();
                async move {
                    let answered = answer(stream, &tls, handshake, document);
                    let answered = tokio::time::timeout(WHOLE, stop.unless_stopped(answered));
                    if let Ok(Some(Err(error))) = answered.await {
                        tracing::debug!(error = %ErrorChain(&error), "a reader of the bundle went away");
                    }
                    drop((permit, held));
                }
            },
        )
        .await;
        Ok(())
    }
}

async fn answer(
    stream: TcpStream,
    tls: &Arc<ServerConfig>,
    limit: Duration,
    document: Arc<Document>,
) -> io::Result<()> {
    let (stream, _nobody) = tokio::time::timeout(limit, mesh_tls::accept(tls, stream))
        .await?
        .map_err(io::Error::other)?;
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let response = document.respond(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(16 * 1024)
        // One question is all that a reader has; the next one comes after minutes.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

impl Document {
    fn respond(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if path != "/" {
            return empty(StatusCode::NOT_FOUND);
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused = empty(StatusCode::METHOD_NOT_ALLOWED);
            let allowed = HeaderValue::from_static("GET, HEAD");
            refused.headers_mut().insert(ALLOW, allowed);
            return refused;
        }
        match self.newest() {
            Ok(document) => {
                let mut response = Response::new(Full::new(document));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                response
            }
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the own bundle cannot be served");
                empty(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    fn newest(&self) -> Result<Bytes, BundleError> {
        let stored = self.bundle.borrow().clone();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((revision, document)) = &*made
            && *revision == stored.revision
        {
            return Ok(document.clone());
        }
        let document = Bytes::from(stored.to_bundle()?.to_spiffe_json());
        *made = Some((stored.revision, document.clone()));
        Ok(document)
    }
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response
}
