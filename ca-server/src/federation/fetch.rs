//! Asks a bundle endpoint (SPIFFE Federation 5.2): TLS by the profile, one GET, and bounds on everything that the other side decides.
//! Trusts the URL and the profile, which an administrator wrote. Never follows a redirect to less than what was demanded of the
//! first hop, never remembers one, never waits or reads without an end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_ENCODING, HOST, LOCATION};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mesh_identity::{BundleSet, SpiffeId};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Coded;
use mesh_tls::{Authorizer, ClientConfig, ClientStream, HandshakeError};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use super::EndpointUrl;

/// The largest document. A bundle of 256 large roots has a fifth of it.
pub(super) const LARGEST_DOCUMENT: usize = 4 * 1024 * 1024;

/// How long one hop may take until its headers are there, and how long all may take.
const HEADERS: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(30);

/// Redirects that are followed.
const MOST_REDIRECTS: usize = 3;

/// By what an endpoint is known.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// By its host name and the public Web PKI.
    Web,
    /// By its SPIFFE ID; its host name is not looked at.
    Spiffe {
        /// Who must answer.
        id: SpiffeId,
        /// What it is verified with.
        bundles: BundleSet,
    },
}

/// Asks endpoints.
pub trait Fetch: Send + Sync {
    /// The document that an endpoint serves now.
    fn fetch<'a>(
        &'a self,
        url: &'a EndpointUrl,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Vec<u8>, FetchError>>;
}

/// Asks them over the network.
pub struct Https {
    web: Option<Arc<ClientConfig>>,
    clock: Clock,
}

impl Https {
    /// `web` is the TLS configuration for endpoints that are known by the Web PKI; without it none of them is asked.
    pub fn new(web: Option<Arc<ClientConfig>>, clock: Clock) -> Self {
        Self { web, clock }
    }

    async fn follow(&self, first: &EndpointUrl, by: &Endpoint) -> Result<Vec<u8>, FetchError> {
        let mut url = first.clone();
        for _ in 0..=MOST_REDIRECTS {
            let hop = tokio::time::timeout(HEADERS, self.get(&url, by));
            let response = hop.await.map_err(|_| FetchError::TimedOut)??;
            match response.status() {
                StatusCode::OK => return read(response).await,
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => url = target(&url, &response)?,
                other => return Err(FetchError::Status(other)),
            }
        }
        Err(FetchError::TooManyRedirects)
    }

    async fn get(
        &self,
        url: &EndpointUrl,
        by: &Endpoint,
    ) -> Result<Response<Incoming>, FetchError> {
        let stream = TcpStream::connect((url.host(), url.port()))
            .await
            .map_err(FetchError::Connect)?;
        let stream = self.handshake(url, by, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(FetchError::Http)?;
        // The connection lives as long as the body is read, and ends with it; nobody waits for its own outcome.
        tokio::spawn(connection.map(drop));
        let host = match url.port() {
            443 => url.authority_host(),
            port => format!("{}:{port}", url.authority_host()),
        };
        let request = Request::get(url.path_and_query())
            .header(HOST, host)
            .header(ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|_| FetchError::BadRedirect("it cannot be asked for"))?;
        sender.send_request(request).await.map_err(FetchError::Http)
    }

    async fn handshake(
        &self,
        url: &EndpointUrl,
        by: &Endpoint,
        stream: TcpStream,
    ) -> Result<ClientStream<TcpStream>, FetchError> {
        match by {
            Endpoint::Web => {
                let name =
                    ServerName::try_from(url.host().to_owned()).map_err(|_| FetchError::BadHost)?;
                let web = self.web.as_ref().ok_or(FetchError::NoWebRoots)?;
                Ok(mesh_tls::connect_web(web, name, stream).await?)
            }
            Endpoint::Spiffe { id, bundles } => {
                let config = mesh_tls::bootstrap_client_config(
                    bundles.clone(),
                    Authorizer::exactly(id.clone()),
                    &[b"http/1.1"],
                    self.clock.as_fn(),
                );
                let (stream, _peer) = mesh_tls::connect(&config, stream).await?;
                Ok(stream)
            }
        }
    }
}

impl Fetch for Https {
    fn fetch<'a>(
        &'a self,
        url: &'a EndpointUrl,
        endpoint: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Vec<u8>, FetchError>> {
        async move {
            let whole = tokio::time::timeout(WHOLE, self.follow(url, endpoint));
            whole.await.map_err(|_| FetchError::TimedOut)?
        }
        .boxed()
    }
}

/// Where a redirect leads: an endpoint's URL again, absolute or a path on the same host.
fn target(from: &EndpointUrl, response: &Response<Incoming>) -> Result<EndpointUrl, FetchError> {
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .ok_or(FetchError::BadRedirect("it names no place"))?;
    let absolute = match location.strip_prefix('/') {
        Some(path) if !path.starts_with('/') => {
            format!(
                "https://{}:{}{location}",
                from.authority_host(),
                from.port()
            )
        }
        _ => location.to_owned(),
    };
    absolute
        .parse()
        .map_err(|_| FetchError::BadRedirect("its place is no https URL of an endpoint"))
}

async fn read(response: Response<Incoming>) -> Result<Vec<u8>, FetchError> {
    let encoding = response.headers().get(CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(FetchError::Encoded);
    }
    let body = Limited::new(response.into_body(), LARGEST_DOCUMENT);
    match body.collect().await {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(FetchError::Http(*error)),
            Err(_) => Err(FetchError::TooLarge),
        },
    }
}

/// Why a document was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody could be reached.
    #[error("the endpoint cannot be reached")]
    Connect(#[source] io::Error),
    /// The host is no name.
    #[error("the host is no name that a certificate could be for")]
    BadHost,
    /// We cannot verify anybody of the Web.
    #[error("there are no Web roots to verify the endpoint with")]
    NoWebRoots,
    /// It is not who it must be.
    #[error("the endpoint did not prove who it is")]
    Tls(#[from] HandshakeError),
    /// It does not speak HTTP as it must.
    #[error("the endpoint broke off, or does not follow HTTP")]
    Http(#[source] hyper::Error),
    /// It has no document for us.
    #[error("the endpoint answered with status {0}")]
    Status(StatusCode),
    /// It sends us where we do not go.
    #[error("the endpoint redirects, and {0}")]
    BadRedirect(&'static str),
    /// It sends us round and round.
    #[error("the endpoint redirects more than {MOST_REDIRECTS} times")]
    TooManyRedirects,
    /// It is compressed, which nobody asked for.
    #[error("the document is encoded, which nobody asked for")]
    Encoded,
    /// More than we read.
    #[error("the document has more than {LARGEST_DOCUMENT} bytes")]
    TooLarge,
    /// Too slow.
    #[error("the endpoint did not answer in time")]
    TimedOut,
}

impl Coded for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Tls(error) => error.code(),
            _ => "FNL1279",
        }
    }
}
