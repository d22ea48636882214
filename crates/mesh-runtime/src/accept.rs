//! Decides how connections come in: one loop for TCP and Unix listeners that survives exhausted descriptors, with a cap
//! on connections and bounds on handshakes. Trusts nobody who connects; never ends because of a peer, never spins.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use mesh_runtime::accept::{self, Incoming, Limits};
//! use mesh_runtime::tasks::StopSource;
//! let (stop, listener) = (StopSource::new(), tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
//! // For tonic's serve_with_incoming: the closure does the handshake and returns the IO, which keeps the permit.
//! let _incoming = Incoming::new(listener, "grpc", Limits::default(), stop.stop(), |stream, permit| async move {
//!     Ok::<_, std::io::Error>((stream, permit))
//! });
//! # stop.trigger();
//! # let listener = tokio::net::UnixListener::bind(format!("/tmp/accept-doc-{}", std::process::id())).unwrap();
//! // Or a task per connection; the permit is dropped when the connection ends.
//! accept::run(listener, "admin", Limits::default(), stop.stop(), |stream, permit| async move { drop((stream, permit)) }).await;
//! # let _ = std::fs::remove_file(format!("/tmp/accept-doc-{}", std::process::id()));
//! # }
//! ```

mod authority;

pub use self::authority::PathAuthority;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;

use crate::errors::ErrorChain;
use crate::tasks::Stop;
use crate::telemetry::Repetition;

/// The first pause after a failed accept; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause: how late a recovered listener answers.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Descriptors that are left for everything but accepted connections.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Bounds of one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; more wait in the kernel's backlog.
    pub max_connections: usize,
    /// Handshakes at the same time (used by [`Incoming`]).
    pub max_handshakes: usize,
    /// Longest time of one handshake (used by [`Incoming`]).
    pub handshake_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_handshakes: 256,
            handshake_timeout: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// The same limits with the connection cap lowered below the process's descriptor limit:
    /// `descriptors_each` are used by one connection, and some are left for files.
    #[must_use]
    pub fn below_descriptor_limit(mut self, descriptors_each: u64) -> Self {
        if let Ok((soft, _)) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        {
            let room =
                soft.saturating_sub(RESERVED_DESCRIPTORS).max(soft / 4) / descriptors_each.max(1);
            self.max_connections = self
                .max_connections
                .min(usize::try_from(room).unwrap_or(usize::MAX))
                .max(1);
        }
        self
    }
}

/// One place under the connection cap. Keep it as long as the connection lives.
#[derive(Debug)]
pub struct Permit {
    _slot: OwnedSemaphorePermit,
}

/// A listening socket of either kind.
pub trait Listener: Send + 'static {
    /// What it accepts.
    type Stream: Send + 'static;
    /// One accept.
    fn accept_one(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept_one(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Small answers must not wait for more; a socket that is already gone shows itself at the first read.
        stream.set_nodelay(true).ok();
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept_one(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Accepts until stopped and runs `handle` as a task per connection. Tasks that run when it is stopped are left
/// to end by themselves (see [`crate::drain`]); a panic in one closes that connection only.
pub async fn run<L, F, Fut>(listener: L, name: &'static str, limits: Limits, stop: Stop, handle: F)
where
    L: Listener,
    F: Fn(L::Stream, Permit) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let mut trouble = Trouble::new(name);
    while let Some((stream, permit)) = next(&listener, &slots, &stop, &mut trouble).await {
        tokio::spawn(handle(stream, permit));
    }
}

/// The next connection under the cap, or `None` when stopped.
async fn next<L: Listener>(
    listener: &L,
    slots: &Arc<Semaphore>,
    stop: &Stop,
    trouble: &mut Trouble,
) -> Option<(L::Stream, Permit)> {
    // The slot comes first: over the cap nothing is accepted, so nothing has to be thrown away.
    let slot = stop
        .unless_stopped(Arc::clone(slots).acquire_owned())
        .await?
        .ok()?;
    loop {
        match stop.unless_stopped(listener.accept_one()).await? {
            Ok(stream) => {
                trouble.over();
                return Some((stream, Permit { _slot: slot }));
            }
            Err(error) => {
                let pause = trouble.pause_after(&error);
                stop.unless_stopped(tokio::time::sleep(pause)).await?;
            }
        }
    }
}

/// Back-off of one accept loop.
#[derive(Debug)]
struct Trouble {
    pause: Duration,
    quiet: Repetition,
    troubled: bool,
}

impl Trouble {
    fn new(name: &'static str) -> Self {
        Self {
            pause: FIRST_PAUSE,
            quiet: Repetition::new(name),
            troubled: false,
        }
    }

    fn pause_after(&mut self, error: &io::Error) -> Duration {
        // The peer went away between its SYN and our accept: its loss, go on at once.
        if matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        ) {
            return Duration::ZERO;
        }
        // EMFILE, ENFILE, ENOMEM, ENOBUFS, EPERM (a firewall), and whatever else a kernel may invent:
        // the listener itself is fine, so wait and try again rather than end the program (M5).
        self.troubled = true;
        self.quiet.failed(error);
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    fn over(&mut self) {
        if self.troubled {
            self.quiet.succeeded();
            self.troubled = false;
        }
        self.pause = FIRST_PAUSE;
    }
}

/// Accepted and handshaken connections as a stream that never yields an error, for tonic's `serve_with_incoming`.
/// It ends when stopped; a handshake that fails or is late is dropped and logged at debug.
#[derive(Debug)]
pub struct Incoming<Io> {
    ready: mpsc::Receiver<Io>,
}

impl<Io: Send + 'static> Incoming<Io> {
    /// Starts accepting. `handshake` gets the raw stream and its permit and makes the connection's IO, which must keep
    /// the permit; it runs within [`Limits::handshake_timeout`], at most [`Limits::max_handshakes`] at a time.
    pub fn new<L, F, Fut, E>(
        listener: L,
        name: &'static str,
        limits: Limits,
        stop: Stop,
        handshake: F,
    ) -> Self
    where
        L: Listener + Sync,
        F: Fn(L::Stream, Permit) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Io, E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        let (done, ready) = mpsc::channel(16);
        tokio::spawn(async move {
            let connections = Arc::new(Semaphore::new(limits.max_connections));
            let handshakes = Arc::new(Semaphore::new(limits.max_handshakes));
            let mut trouble = Trouble::new(name);
            loop {
                let Some(Ok(turn)) = stop
                    .unless_stopped(Arc::clone(&handshakes).acquire_owned())
                    .await
                else {
                    return;
                };
                let accepted = tokio::select! {
                    accepted = next(&listener, &connections, &stop, &mut trouble) => accepted,
                    () = done.closed() => None,
                };
                let Some((stream, permit)) = accepted else {
                    return;
                };
                let (work, done) = (handshake(stream, permit), done.clone());
                tokio::spawn(async move {
                    // What was accepted before the stop is still handed on, if somebody takes it.
                    let outcome = tokio::select! {
                        outcome = tokio::time::timeout(limits.handshake_timeout, work) => outcome,
                        () = done.closed() => return,
                    };
                    drop(turn);
                    match outcome {
                        // A closed receiver means that the server is gone; the connection closes with it.
                        Ok(Ok(io)) => drop(done.send(io).await),
                        Ok(Err(error)) => {
                            tracing::debug!(door = name, error = %ErrorChain(&error), "handshake failed")
                        }
                        Err(_) => {
                            tracing::debug!(door = name, limit = ?limits.handshake_timeout, "handshake too slow")
                        }
                    }
                });
            }
        });
        Self { ready }
    }
}

impl<Io> Stream for Incoming<Io> {
    type Item = Result<Io, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|io| io.map(Ok))
    }
}

/// The bytes of an HTTP/2 preface and the head of the frame that must follow it.
pub const HTTP2_OPENING: usize = 24 + 9;

/// An IO whose first bytes must arrive in time: after the handshake, for servers that set no limit of their own on the
/// opening of their protocol, as tonic does not on the HTTP/2 preface (M4). Reading fails with `TimedOut` when it is late.
#[derive(Debug)]
pub struct Patience<Io> {
    io: Io,
    /// Bytes still awaited; 0 when the limit no longer holds.
    awaited: usize,
    end: Pin<Box<tokio::time::Sleep>>,
}

impl<Io> Patience<Io> {
    /// At least `bytes` must arrive within `limit` from now on.
    pub fn new(io: Io, bytes: usize, limit: Duration) -> Self {
        Self {
            io,
            awaited: bytes,
            end: Box::pin(tokio::time::sleep(limit)),
        }
    }

    /// The IO inside.
    pub fn get_ref(&self) -> &Io {
        &self.io
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Patience<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.awaited == 0 {
            return read;
        }
        self.awaited = self.awaited.saturating_sub(buf.filled().len() - before);
        if read.is_pending() && self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Patience<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
