//! HTTP at both ends of the proxy: how a connection is served, and what the two directions have in common.
//! Trusts hyper for the framing; everything that hyper accepts and a back end might read differently is refused in `request.rs`.
//! Never forwards a hop-by-hop header, an upgrade or a claim of identity that it did not make itself.

pub(crate) mod body;
pub(crate) mod exchange;
mod flood;
mod grpc;
pub(crate) mod headers;
pub(crate) mod pool;
pub(crate) mod refusal;
pub(crate) mod request;
mod stall;
mod trace;
mod watch;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::config::Limits;
use crate::connections::Cut;
use body::ProxyBody;
use exchange::Side;
use flood::Guarded;

/// What a connection that is being served is told.
#[derive(Debug)]
pub(crate) enum Signal {
    /// Finish what is under way, begin nothing new.
    Retire,
    /// End now.
    Cut(Cut),
}

/// Which versions a connection may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Versions {
    Http1,
    Http2,
    /// HTTP/2 if it begins with HTTP/2's preface.
    Either,
}

/// The settings of HTTP/2 that both directions use.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of one answer that wait for their reader.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a caller may have reset before they were looked at, and that were reset for an error of his.
const MOST_RESETS: usize = 32;
/// A peer that does not answer a PING for so long is gone.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(30);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A server with every limit set; hyper's own defaults leave some of them off (security.md M4).
fn server(limits: &Limits, versions: Versions) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Some(limits.header_read.get()))
        .max_buf_size(limits.header_bytes.as_usize().max(8192))
        .max_headers(100)
        .keep_alive(true)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes.as_bytes()).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MOST_RESETS)
        .max_local_error_reset_streams(MOST_RESETS)
        .keep_alive_interval(Some(PING_EVERY))
        .keep_alive_timeout(PING_TIMEOUT);
    match versions {
        Versions::Http1 => builder.http1_only(),
        Versions::Http2 => builder.http2_only(),
        Versions::Either => builder,
    }
}

/// Serves one connection until it ends or is cut.
pub(crate) async fn serve<S, F, Fut>(
    limits: &Limits,
    versions: Versions,
    stream: S,
    side: &Arc<Side>,
    mut signals: FuturesUnordered<BoxFuture<'static, Signal>>,
    answer: F,
) -> Option<Cut>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<ProxyBody>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let (stream, flooded) = Guarded::new(stream, side.clock.clone());
    signals.push(ends(flooded, Arc::clone(side), limits.stalled.get()).boxed());
    let builder = server(limits, versions);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    loop {
        // The signals wake their own queue: while they are silent they cost nothing per request.
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return None;
            }
            Some(signal) = signals.next(), if !signals.is_empty() => match signal {
                Signal::Retire => connection.as_mut().graceful_shutdown(),
                Signal::Cut(cut) => return Some(cut),
            },
        }
    }
}

/// Ends when the caller sends too much of nothing, or takes nothing of what he asked for.
async fn ends(flooded: oneshot::Receiver<()>, side: Arc<Side>, limit: Duration) -> Signal {
    let flood = async {
        if flooded.await.is_err() {
            std::future::pending::<()>().await; // the connection ends by itself
        }
    };
    tokio::select! {
        () = flood => Signal::Cut(Cut::Flood),
        () = side.stalls.stalled(limit, &side.clock) => Signal::Cut(Cut::Stalled),
    }
}
