//! Decides which service listens on which socket, who may come in, and how many at a time.
//! Trusts the kernel's credentials of each connection. Never listens in a directory where somebody else could put another socket.

pub mod admin;
pub mod caller;
pub mod debug;
pub mod delegated;
pub(crate) mod health;
pub mod logger;
pub mod peer;
pub(crate) mod reflection;
pub mod sds;
mod session;
pub mod socket;
pub mod workload;

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use mesh_runtime::{
    accept::{Incoming, Limits, PathAuthority, Permit},
    tasks::Stop,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Instant, Sleep},
};
use tonic::transport::{
    Server,
    server::{Connected, Router},
};

use self::{
    peer::{Peer, PeerError},
    socket::BoundSocket,
};
use crate::{
    attestor::process::{NoProcess, Processes},
    metrics::Metrics,
};

/// How long a connection may stay silent at its start.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// How long a connection stays after its process has ended: time enough for the last status to be read.
const AFTER_EXIT: Duration = Duration::from_secs(2);
/// How long a connection stays when the agent ends: time enough for what was asked to be answered.
const AFTER_STOP: Duration = Duration::from_secs(1);
/// Streams at a time on one connection.
pub(crate) const STREAMS_PER_CONNECTION: u32 = 100;
/// The largest request: a JWT to be checked is the longest thing a workload sends.
pub(crate) const LARGEST_REQUEST: usize = 64 * 1024;

/// How many connections may be open.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionCaps {
    /// In all.
    pub all: usize,
    /// From one uid.
    pub per_uid: usize,
}

/// A gRPC server with the bounds that both sockets have.
pub(crate) fn bounded_server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(16 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_pending_accept_reset_streams(Some(20))
        .initial_connection_window_size(256 * 1024)
        .initial_stream_window_size(64 * 1024)
        .max_frame_size(16 * 1024)
}

/// Serves until stopped.
pub(crate) async fn serve(
    socket: BoundSocket,
    name: &'static str,
    router: Router,
    caps: ConnectionCaps,
    admit: impl Fn(&Peer) -> Result<(), Refused> + Send + Sync + Clone + 'static,
    metrics: Metrics,
    stop: Stop,
) -> Result<(), tonic::transport::Error> {
    // A descriptor for each connection and one for each process: most processes have one connection, some have many.
    let descriptors = Limits {
        max_connections: usize::MAX,
        ..Limits::default()
    }
    .below_descriptor_limit(1)
    .max_connections;
    let limits = Limits {
        max_connections: caps.all.min(descriptors / 5 * 3).max(1),
        ..Limits::default()
    };
    let processes = Processes::with_room(descriptors - limits.max_connections);
    let per_uid = PerUid::new(caps.per_uid.min(limits.max_connections.div_ceil(8) * 7));
    let (listener, guard) = socket.into_parts();
    let accepting = stop.clone();
    let incoming = Incoming::new(
        listener,
        name,
        limits,
        accepting,
        move |stream: UnixStream, permit| {
            let connection = enter(stream, permit, &processes, &per_uid, &admit, &stop)
                .inspect_err(|refused| {
                    tracing::debug!(door = name, reason = %refused, "connection refused");
                    metrics.refused_connection(refused.label());
                });
            std::future::ready(connection)
        },
    );
    let served = router
        // The end of the connections is the end of serving: those that were let in when the agent stops are still answered.
        .serve_with_incoming_shutdown(incoming, std::future::pending())
        .await;
    drop(guard);
    served
}

fn enter(
    stream: UnixStream,
    permit: Permit,
    processes: &Processes,
    per_uid: &PerUid,
    admit: impl Fn(&Peer) -> Result<(), Refused>,
    stop: &Stop,
) -> Result<Connection, Refused> {
    let peer = Peer::of(&stream, processes)?;
    admit(&peer)?;
    let place = per_uid.take(peer.uid()).ok_or(Refused::TooMany)?;
    let ended = Box::pin({
        let (process, stop) = (peer.process().clone(), stop.clone());
        async move {
            tokio::select! {
                () = process.exited() => tokio::time::sleep(AFTER_EXIT).await,
                () = stop.cancelled() => tokio::time::sleep(AFTER_STOP).await,
            }
        }
    });
    Ok(Connection {
        stream,
        authority: PathAuthority::default(),
        peer,
        ended,
        silent_until: Some(Box::pin(tokio::time::sleep(FIRST_BYTES))),
        _held: (permit, place),
    })
}

/// Why a connection is closed before any call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// Nobody can say who it is.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Its uid has its share of connections already.
    #[error("this uid has too many connections")]
    TooMany,
    /// The door is not for this uid.
    #[error("uid {0} may not use this socket")]
    NotForYou(u32),
}

impl Refused {
    fn label(&self) -> &'static str {
        match self {
            Self::Peer(PeerError::Process(NoProcess::Gone)) => "gone",
            Self::Peer(PeerError::ForeignPidNamespace) => "foreign_pid_namespace",
            Self::Peer(PeerError::Credentials(_) | PeerError::Process(NoProcess::Unwatched(_))) => {
                "no_credentials"
            }
            Self::Peer(PeerError::Process(NoProcess::TooMany)) | Self::TooMany => "too_many",
            Self::NotForYou(_) => "not_allowed",
        }
    }
}

/// Counts connections by uid, so that one user cannot take every place.
#[derive(Clone, Debug)]
struct PerUid {
    most: usize,
    open: Arc<Mutex<HashMap<u32, usize>>>,
}

impl PerUid {
    fn new(most: usize) -> Self {
        Self {
            most,
            open: Arc::default(),
        }
    }

    fn take(&self, uid: u32) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(uid).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place {
            uid,
            open: Arc::clone(&self.open),
        })
    }
}

#[derive(Debug)]
struct Place {
    uid: u32,
    open: Arc<Mutex<HashMap<u32, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

/// A connection with the process at its other end. It closes when that process has ended (whoever else holds the socket by
/// then), when nothing comes at its start, and soon after the agent was told to stop.
struct Connection {
    stream: UnixStream,
    authority: PathAuthority,
    peer: Peer,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    silent_until: Option<Pin<Box<Sleep>>>,
    _held: (Permit, Place),
}

impl Connection {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(limit) = &mut self.silent_until
            && limit.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(());
        }
        self.ended.as_mut().poll(cx)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.poll_over(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let arrived = &mut buf.filled_mut()[before..];
        if !arrived.is_empty() {
            self.authority.pass(arrived);
            self.silent_until = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A number that joins what a caller was told with what the log says.
pub(crate) fn correlation_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// The end of a wait that may have none.
pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
