//! Connections to one place upstream: the application, or another proxy behind mutual TLS.
//! Trusts mesh-tls to say who is at the other end.
//! Never sends a request twice: it is sent again only when the connection proves that it never carried it.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::HOST;
use http::uri::{Parts, Scheme};
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::rt::{Executor, Read, Write};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_identity::SpiffeId;
use mesh_runtime::clock::Clock;
use mesh_tls::{AlertSlot, ClientConfig, HandshakeError, IdentityCell, Peer, PeerAlert};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::body::RequestBody;
use super::exchange::Host;
use super::{CONNECTION_WINDOW, PING_EVERY, PING_TIMEOUT, STREAM_WINDOW};
use crate::config::{ApplicationProtocol, Limits};
use crate::connections::{self, Cut, Life, Proofs, Trust};
use crate::metrics::ProxyMetrics;

/// HTTP/1.1 connections that wait for their next request.
const MOST_IDLE: usize = 64;
/// Idle connections older than this are not used again: whoever is at the other end may be about to close them.
const IDLE: Duration = Duration::from_secs(20);
/// HTTP/2 connections to one place.
const MOST_SHARED: usize = 8;
/// The part of its life by which a connection retires here before it ends. The serving side takes less, so this side goes first.
pub(crate) const RETIRE_EARLY: f64 = 0.2;
const ATTEMPTS: usize = 3;

/// Where a pool leads.
pub(crate) enum Target {
    /// The local application, without TLS.
    Application {
        address: SocketAddr,
        protocol: ApplicationProtocol,
    },
    /// Another proxy, which must have the identity that `config` asks for.
    Peer {
        address: SocketAddr,
        config: Arc<ClientConfig>,
        cell: IdentityCell,
    },
}

/// Connections to one place. Shared by an `Arc`.
pub(crate) struct Pool {
    target: Target,
    limits: Limits,
    clock: Clock,
    metrics: ProxyMetrics,
    idle: Mutex<Vec<Idle>>,
    shared: Mutex<Vec<Arc<Shared>>>,
    /// Held while a connection is made, so that a burst makes one and not a hundred.
    dialing: tokio::sync::Mutex<()>,
    proofs: Proofs,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// An HTTP/1.1 connection between two requests.
#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    life: Option<Life>,
    since: SystemTime,
    alert: Option<AlertSlot>,
}

/// An HTTP/2 connection.
#[derive(Debug)]
pub(crate) struct Shared {
    sender: http2::SendRequest<RequestBody>,
    life: Option<Life>,
    alert: Option<AlertSlot>,
}

/// A connection as long as an answer is read from it.
#[derive(Debug)]
pub(crate) enum Lease {
    /// Goes back to the pool when the answer has ended.
    Http1 {
        pool: Arc<Pool>,
        connection: Box<LeasedHttp1>,
    },
    /// Counts as busy while it is held.
    Http2 { _busy: Arc<Shared> },
}

/// An HTTP/1.1 connection that is in use.
#[derive(Debug)]
pub(crate) struct LeasedHttp1 {
    sender: http1::SendRequest<RequestBody>,
    life: Option<Life>,
    alert: Option<AlertSlot>,
}

impl Lease {
    pub(crate) fn give_back(self) {
        if let Self::Http1 { pool, connection } = self {
            let LeasedHttp1 {
                sender,
                life,
                alert,
            } = *connection;
            pool.park(Idle {
                sender,
                life,
                since: pool.clock.now(),
                alert,
            });
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// No TCP connection.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    /// Not within the limit.
    #[error("no connection to {0} within {1:?}")]
    Slow(SocketAddr, Duration),
    /// The handshake failed, on our side of it.
    #[error("TLS with {0}")]
    Handshake(SocketAddr, #[source] Box<HandshakeError>),
    /// The other side refused us.
    #[error("{0} refused our identity")]
    Refused(SocketAddr, #[source] PeerAlert),
    /// HTTP could not begin, or broke.
    #[error("HTTP with {0}")]
    Http(SocketAddr, #[source] hyper::Error),
}

enum Connection {
    Http1(Idle),
    Http2(Arc<Shared>),
}

impl Pool {
    pub(crate) fn new(
        target: Target,
        limits: &Limits,
        clock: Clock,
        metrics: ProxyMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            target,
            limits: limits.clone(),
            clock,
            metrics,
            idle: Mutex::default(),
            shared: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            proofs: Proofs::default(),
        })
    }

    /// How long the body of a request may be silent.
    pub(crate) fn body_idle(&self) -> Duration {
        self.limits.body_idle.get()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match &self.target {
            Target::Application { address, .. } | Target::Peer { address, .. } => *address,
        }
    }

    /// Sends a request. Its URI holds path and query only, and its headers no `Host`: both are set for the version that is spoken.
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
        host: &Host,
        grpc: bool,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (connection, fresh) = match self.pooled(grpc) {
                Some(connection) => (connection, false),
                None => self.dial(grpc).await?,
            };
            let (unsent, error) = match connection {
                Connection::Http2(shared) => {
                    shape_http2(
                        &mut request,
                        host,
                        matches!(self.target, Target::Peer { .. }),
                    );
                    let mut sender = shared.sender.clone();
                    match sender.try_send_request(request).await {
                        Ok(response) => return Ok((response, Lease::Http2 { _busy: shared })),
                        Err(mut error) => {
                            self.forget(&shared);
                            (
                                error.take_message(),
                                self.failed(error.into_error(), shared.alert.as_ref()),
                            )
                        }
                    }
                }
                Connection::Http1(Idle {
                    mut sender,
                    life,
                    alert,
                    ..
                }) => {
                    shape_http1(&mut request, host);
                    match sender.try_send_request(request).await {
                        Ok(response) => {
                            let connection = Box::new(LeasedHttp1 {
                                sender,
                                life,
                                alert,
                            });
                            return Ok((
                                response,
                                Lease::Http1 {
                                    pool: Arc::clone(self),
                                    connection,
                                },
                            ));
                        }
                        Err(mut error) => (
                            error.take_message(),
                            self.failed(error.into_error(), alert.as_ref()),
                        ),
                    }
                }
            };
            match unsent {
                // The connection ended before it took the request. A fresh one that does so is given one more chance only.
                Some(back)
                    if attempt < ATTEMPTS
                        && !(fresh && attempt > 1)
                        && !matches!(error, SendError::Refused(..)) =>
                {
                    self.metrics.retried();
                    request = back;
                }
                _ => return Err(error),
            }
        }
    }

    fn failed(&self, error: hyper::Error, alert: Option<&AlertSlot>) -> SendError {
        match alert.and_then(AlertSlot::get) {
            Some(alert) => SendError::Refused(self.address(), alert),
            None => SendError::Http(self.address(), error),
        }
    }

    /// A connection that is there already.
    fn pooled(&self, grpc: bool) -> Option<Connection> {
        let now = self.clock.now();
        if self.may_share(grpc)
            && let Some(shared) = self.shared(now, false)
        {
            return Some(Connection::Http2(shared));
        }
        if !self.may_be_http1(grpc) {
            return None;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            let old = now
                .duration_since(connection.since)
                .is_ok_and(|age| age > IDLE);
            if !old && !connection.sender.is_closed() && !retired(connection.life, now) {
                return Some(Connection::Http1(connection));
            }
        }
        None
    }

    /// The HTTP/2 connection with room; with `crowded`, the least busy one even when all are full.
    fn shared(&self, now: SystemTime, crowded: bool) -> Option<Arc<Shared>> {
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|shared| !shared.sender.is_closed() && !retired(shared.life, now));
        // Each lease holds one more handle. Room is left below the peer's limit, which is ours as well.
        let full = (self.limits.streams as usize * 3 / 4).max(1);
        let best = all.iter().min_by_key(|shared| Arc::strong_count(shared))?;
        (crowded || Arc::strong_count(best) <= full).then(|| Arc::clone(best))
    }

    fn may_share(&self, grpc: bool) -> bool {
        match &self.target {
            Target::Peer { .. } => true,
            Target::Application { protocol, .. } => match protocol {
                ApplicationProtocol::Auto => grpc,
                ApplicationProtocol::Http1 => false,
                ApplicationProtocol::Http2 => true,
            },
        }
    }

    fn may_be_http1(&self, grpc: bool) -> bool {
        match &self.target {
            Target::Peer { .. } => true,
            Target::Application { .. } => !self.may_share(grpc),
        }
    }

    fn park(&self, connection: Idle) {
        if connection.sender.is_closed() || retired(connection.life, connection.since) {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(connection);
        }
    }

    fn forget(&self, shared: &Arc<Shared>) {
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| !Arc::ptr_eq(other, shared));
    }

    /// A new connection; the second value is false when somebody else made one meanwhile.
    async fn dial(self: &Arc<Self>, grpc: bool) -> Result<(Connection, bool), SendError> {
        let share = self.may_share(grpc);
        let _turn = if share {
            Some(self.dialing.lock().await)
        } else {
            None
        };
        if share {
            if let Some(connection) = self.pooled(grpc) {
                return Ok((connection, false));
            }
            let many = self
                .shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len()
                >= MOST_SHARED;
            if many && let Some(shared) = self.shared(self.clock.now(), true) {
                return Ok((Connection::Http2(shared), false));
            }
        }
        let limit = self.limits.connect.get();
        let connection = timeout(limit, self.connect(share))
            .await
            .map_err(|_| SendError::Slow(self.address(), limit))??;
        if let Connection::Http2(shared) = &connection {
            self.shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::clone(shared));
        }
        Ok((connection, true))
    }

    async fn connect(self: &Arc<Self>, share: bool) -> Result<Connection, SendError> {
        let address = self.address();
        let stream = TcpStream::connect(address)
            .await
            .map_err(|cause| SendError::Connect(address, cause))?;
        // Small requests must not wait for more; a socket that is already gone shows itself at the first write.
        stream.set_nodelay(true).ok();
        match &self.target {
            Target::Application { .. } => self.start(TokioIo::new(stream), share, None, None).await,
            Target::Peer { config, cell, .. } => {
                let trust = Trust::watch(cell);
                let own = cell.current().not_after();
                let (stream, peer) = match mesh_tls::connect(config, stream).await {
                    Ok(done) => done,
                    Err(cause) => {
                        self.metrics.handshake("client", cause.code(), None);
                        return Err(SendError::Handshake(address, Box::new(cause)));
                    }
                };
                self.metrics.handshake("client", "ok", Some(&peer.session));
                let now = self.clock.now();
                self.proofs.note(&peer.id, peer.not_after.min(own), now);
                // A peer that chose nothing never said that it speaks HTTP/2 (RFC 9113, section 3.2).
                let share = peer.session.alpn.as_deref() == Some(b"h2");
                let proof = Proof {
                    life: Life::new(now, peer.not_after, own, RETIRE_EARLY),
                    peer: Box::new(peer),
                    cell: cell.clone(),
                    trust,
                };
                let alert = stream.alert();
                self.start(TokioIo::new(stream), share, Some(proof), Some(alert))
                    .await
            }
        }
    }

    /// Begins HTTP on a connection; its driver runs until it ends or its time is over.
    async fn start<IO>(
        self: &Arc<Self>,
        io: IO,
        share: bool,
        proof: Option<Proof>,
        alert: Option<AlertSlot>,
    ) -> Result<Connection, SendError>
    where
        IO: Read + Write + Unpin + Send + 'static,
    {
        let begin = |cause| SendError::Http(self.address(), cause);
        let life = proof.as_ref().map(|proof| proof.life);
        if share {
            let (task, ended) = ConnectionTask::new();
            let (sender, driver) = http2::Builder::new(task.clone())
                .timer(TokioTimer::new())
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(
                    u32::try_from(self.limits.header_bytes.as_bytes()).unwrap_or(u32::MAX),
                )
                .keep_alive_interval(Some(PING_EVERY))
                .keep_alive_timeout(PING_TIMEOUT)
                .handshake(io)
                .await
                .map_err(begin)?;
            let both = async {
                let dispatched = driver.await;
                // The dispatcher ends when nobody sends any more; the connection goes on while streams run on it.
                ended.await.ok();
                dispatched
            };
            self.drive(both, proof, Some(task));
            Ok(Connection::Http2(Arc::new(Shared {
                sender,
                life,
                alert,
            })))
        } else {
            let (sender, driver) = http1::Builder::new()
                .max_buf_size(self.limits.header_bytes.as_usize().max(8192))
                .handshake(io)
                .await
                .map_err(begin)?;
            self.drive(driver, proof, None);
            Ok(Connection::Http1(Idle {
                sender,
                life,
                since: self.clock.now(),
                alert,
            }))
        }
    }

    /// Runs a connection. When it retires it leaves the pool, and what still runs on it may go on while both sides prove themselves
    /// again on a new one; then, or with its certificates, it is dropped. Without trust in its peer it is dropped at once.
    fn drive<D>(self: &Arc<Self>, driver: D, proof: Option<Proof>, task: Option<ConnectionTask>)
    where
        D: Future<Output = hyper::Result<()>> + Send + 'static,
    {
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let mut driver = pin!(driver);
            let ended = match proof {
                None => driver.await,
                Some(Proof {
                    life,
                    peer,
                    cell,
                    trust,
                }) => {
                    let cut = tokio::select! {
                        biased;
                        ended = driver.as_mut() => Err(ended),
                        () = pool.outlives(life, &peer.id, &cell) => Ok(Cut::Expired),
                        () = trust.withdrawn(&peer, &pool.clock) => Ok(Cut::Trust),
                    };
                    match cut {
                        Err(ended) => ended,
                        Ok(cut) => {
                            // Retiring with its certificate is the usual end; trust that is gone is an event.
                            if cut == Cut::Trust {
                                pool.metrics.cut(cut.code());
                            }
                            tracing::debug!(code = cut.code(), peer = %peer.id, "{cut}");
                            if let Some(task) = task {
                                task.abort();
                            }
                            return;
                        }
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
    }

    /// Ends when the connection must.
    async fn outlives(self: &Arc<Self>, life: Life, peer: &SpiffeId, cell: &IdentityCell) {
        /// An idle connection ends at once when it leaves the pool.
        const MOMENT: Duration = Duration::from_millis(100);
        self.clock.sleep_until(life.retire).await;
        let now = self.clock.now();
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|shared| !retired(shared.life, now));
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|idle| !retired(idle.life, now));
        self.clock.sleep(MOMENT).await;
        // Something still runs on it: newer connections are the proof that it may, again and again while it runs.
        loop {
            let end = connections::proven(life, peer, &self.proofs, cell);
            let left = end.duration_since(self.clock.now()).unwrap_or_default();
            if left.is_zero() {
                return;
            }
            self.prove(end, cell).await;
            self.clock.sleep((left / 2).max(MOMENT)).await;
        }
    }

    /// Makes a connection that proves both sides beyond `end`, unless there is one or we have no newer certificate to show.
    async fn prove(self: &Arc<Self>, end: SystemTime, cell: &IdentityCell) {
        let newer = |life: Option<Life>| life.is_some_and(|life| life.end > end);
        let known = || {
            self.shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(|shared| newer(shared.life))
        };
        if cell.current().not_after() <= end || known() {
            return;
        }
        let _turn = self.dialing.lock().await;
        if known() {
            return;
        }
        match timeout(self.limits.connect.get(), Box::pin(self.connect(true))).await {
            Ok(Ok(Connection::Http1(idle))) => self.park(idle),
            Ok(Ok(Connection::Http2(shared))) => self
                .shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(shared),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no newer connection for the streams of an older one")
            }
            Err(_) => {
                tracing::debug!("a newer connection for the streams of an older one takes too long")
            }
        }
    }
}

/// The task that hyper starts for an HTTP/2 connection, so that it can be ended: hyper itself lets it run as long as it has streams.
#[derive(Clone)]
struct ConnectionTask {
    first: Arc<Mutex<Option<oneshot::Sender<()>>>>,
    handle: Arc<OnceLock<AbortHandle>>,
}

impl ConnectionTask {
    /// The executor to give to hyper, and what resolves when the connection has ended.
    fn new() -> (Self, oneshot::Receiver<()>) {
        let (done, ended) = oneshot::channel();
        (
            Self {
                first: Arc::new(Mutex::new(Some(done))),
                handle: Arc::default(),
            },
            ended,
        )
    }

    fn abort(&self) {
        if let Some(handle) = self.handle.get() {
            handle.abort();
        }
    }
}

impl<F> Executor<F> for ConnectionTask
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        // hyper starts the connection first; later futures carry single bodies and end with it.
        let first = self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match first {
            None => drop(tokio::spawn(future)),
            Some(done) => {
                let task = tokio::spawn(async move {
                    drop(future.await);
                    drop(done);
                });
                self.handle.get_or_init(|| task.abort_handle());
            }
        }
    }
}

/// Whom a connection was made with, and how long that counts.
struct Proof {
    life: Life,
    peer: Box<Peer>,
    cell: IdentityCell,
    trust: Trust,
}

fn retired(life: Option<Life>, now: SystemTime) -> bool {
    life.is_some_and(|life| now >= life.retire)
}

fn shape_http1(request: &mut Request<RequestBody>, host: &Host) {
    *request.version_mut() = Version::HTTP_11;
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
    request.headers_mut().insert(HOST, host.header.clone());
}

fn shape_http2(request: &mut Request<RequestBody>, host: &Host, tls: bool) {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    let mut parts = Parts::default();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Some(host.authority.clone());
    parts.path_and_query = request.uri().path_and_query().cloned();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}
