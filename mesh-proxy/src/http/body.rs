//! Bodies on their way through, unread: frames are passed on, counted, and ended when the policy no longer allows them.
//! Trusts hyper for the framing.
//! Never holds a body in memory, never passes on a trailer that claims an identity or frames a message.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::exchange::Exchange;
use super::grpc::Messages;
use super::headers;
use super::pool::Lease;
use super::stall::Handed;
use super::watch::PolicyWatch;

/// Why a body ended early.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// The body of an answer to the caller.
#[derive(Debug)]
pub(crate) struct ProxyBody {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Full(Option<Bytes>),
    Upstream(Box<Upstream>),
}

#[derive(Debug)]
struct Upstream {
    incoming: Incoming,
    /// The connection, to be given back when the body has ended.
    lease: Option<Lease>,
    /// The record, to be finished when the body has ended.
    exchange: Option<Exchange>,
    watch: Option<PolicyWatch>,
    /// Whether somebody takes it, from its first part on.
    handed: Option<Handed>,
}

impl ProxyBody {
    pub(crate) fn empty() -> Self {
        Self {
            source: Source::Full(None),
        }
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self {
            source: Source::Full(Some(bytes)),
        }
    }

    /// A body that comes from upstream. `bodiless`: no body follows whatever the headers say (HEAD, 204, 304).
    pub(crate) fn upstream(
        incoming: Incoming,
        lease: Lease,
        exchange: Exchange,
        watch: Option<PolicyWatch>,
        bodiless: bool,
    ) -> Self {
        let mut upstream = Upstream {
            incoming,
            lease: Some(lease),
            exchange: Some(exchange),
            watch,
            handed: None,
        };
        if bodiless || upstream.incoming.is_end_stream() {
            upstream.end();
        }
        Self {
            source: Source::Upstream(Box::new(upstream)),
        }
    }
}

impl Upstream {
    fn end(&mut self) {
        self.watch = None;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(handed) = &self.handed {
            handed.asked();
        }
        if let Some(watch) = &mut self.watch
            && watch.denies_now()
        {
            return Poll::Ready(Some(Err(self.cut())));
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(self.pass(frame)))),
            Poll::Ready(Some(Err(error))) => {
                if let Some(exchange) = &mut self.exchange {
                    exchange.broken(&error);
                }
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let denied = self
                    .watch
                    .as_mut()
                    .is_some_and(|watch| watch.poll_denied(cx).is_ready());
                if denied {
                    Poll::Ready(Some(Err(self.cut())))
                } else {
                    Poll::Pending
                }
            }
        }
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let frame = match frame.into_trailers() {
            Ok(mut trailers) => {
                scrub_trailers(&mut trailers);
                if let Some(exchange) = &mut self.exchange {
                    exchange.trailers(&trailers);
                }
                Frame::trailers(trailers)
            }
            Err(frame) => {
                if let (Some(data), Some(exchange)) = (frame.data_ref(), &mut self.exchange) {
                    exchange.sent(data);
                }
                frame
            }
        };
        if self.incoming.is_end_stream() {
            self.end();
        }
        if let Some(exchange) = &self.exchange {
            let stalls = &exchange.side().stalls;
            stalls.handed(self.handed.get_or_insert_with(|| stalls.begin()));
        }
        frame
    }

    fn cut(&mut self) -> BodyError {
        self.watch = None;
        let cut = crate::connections::Cut::Policy;
        if let Some(exchange) = self.exchange.take() {
            exchange.cut(cut);
        }
        cut.into()
    }
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.source {
            Source::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Upstream(upstream) => upstream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Upstream(upstream) => upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Source::Upstream(upstream) => upstream.incoming.size_hint(),
        }
    }
}

/// The body of a request on its way upstream.
#[derive(Debug)]
pub(crate) struct RequestBody {
    incoming: Incoming,
    received: Option<Arc<Received>>,
    messages: Option<Messages>,
    idle: Option<Idle>,
}

/// How long a body may be silent, and since when it is.
#[derive(Debug)]
struct Idle {
    limit: Duration,
    ends: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    /// Ready when nothing came for too long.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        self.ends
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)))
            .as_mut()
            .poll(cx)
    }
}

/// Nothing of a request's body came for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing of the body came for {0:?}")]
struct Silent(Duration);

/// How much of a body has come.
#[derive(Debug, Default)]
pub(crate) struct Received {
    bytes: AtomicU64,
    messages: AtomicU64,
    answered: AtomicBool,
    silent: AtomicBool,
}

impl Received {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Its answer has begun: from here on it may be as slow as it likes.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether it was given up because nothing came.
    pub(crate) fn fell_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }
}

impl RequestBody {
    /// Passes a body on; the second value counts what it has, if it can have anything. `grpc`: it has messages, and may be silent for as
    /// long as it likes.
    pub(crate) fn new(
        incoming: Incoming,
        grpc: bool,
        idle: Duration,
    ) -> (Self, Option<Arc<Received>>) {
        let received = (!incoming.is_end_stream()).then(Arc::<Received>::default);
        (
            Self {
                incoming,
                received: received.clone(),
                messages: grpc.then(Messages::default),
                idle: (!grpc).then_some(Idle {
                    limit: idle,
                    ends: None,
                }),
            },
            received,
        )
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                let body = &mut *self;
                if let (Some(idle), Some(received)) = (&mut body.idle, &body.received)
                    && !received.answered.load(Ordering::Relaxed)
                    && idle.poll_over(cx).is_ready()
                    && !received.answered.load(Ordering::Relaxed)
                {
                    received.silent.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err(Silent(idle.limit).into())));
                }
                return Poll::Pending;
            }
        };
        if let Some(idle) = &mut self.idle {
            idle.ends = None;
        }
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                scrub_trailers(&mut trailers);
                Frame::trailers(trailers)
            }
            Err(frame) => {
                let body = &mut *self;
                if let (Some(data), Some(received)) = (frame.data_ref(), &body.received) {
                    received
                        .bytes
                        .fetch_add(data.len() as u64, Ordering::Relaxed);
                    if let Some(messages) = &mut body.messages {
                        messages.pass(data);
                        received.messages.store(messages.count(), Ordering::Relaxed);
                    }
                }
                frame
            }
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

fn scrub_trailers(trailers: &mut HeaderMap) {
    headers::strip_claims(trailers);
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING, HOST] {
        trailers.remove(name);
    }
}
