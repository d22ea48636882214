//! A caller who sends frames that cost him little and say nothing, on a connection of HTTP/2, is sent away.
//! Trusts h2 for what a frame means; here only its kind, its length and how many come.
//! Never holds a byte back and never looks into a payload.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use mesh_runtime::clock::Clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Instant;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a frame costs that carries nothing of a request: PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE, empty DATA.
const COST: u32 = 2;
/// What a connection may spend at once. Clients say some dozens of such frames when they begin.
const PURSE: u32 = 4000;
/// What comes back in a second, whatever happens.
const PER_SECOND: u32 = 400;
/// What a request earns: half of all requests may be taken back.
const REQUEST: u32 = 1;
/// What a frame of a body earns.
const BODY: u32 = 2;
/// So many bytes to the caller earn one: his windows are for them. An answer to a PING is shorter.
const WRITTEN: usize = 32;

/// Counts the frames of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Frames {
    state: State,
    purse: u32,
    filled: Instant,
}

#[derive(Debug)]
enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    Head {
        bytes: [u8; 9],
        known: usize,
    },
    Payload(u32),
    /// It is not HTTP/2.
    Other,
}

impl Frames {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: State::Preface(0),
            purse: PURSE,
            filled: now,
        }
    }

    /// The next bytes of the caller; whether he may go on.
    pub(crate) fn pass(&mut self, mut data: &[u8], now: impl Fn() -> Instant) -> bool {
        while let Some(first) = data.first() {
            let used = match &mut self.state {
                State::Other => return true,
                State::Preface(known) => {
                    if PREFACE[*known] != *first {
                        self.state = State::Other;
                        return true;
                    }
                    *known += 1;
                    if *known == PREFACE.len() {
                        self.state = State::head();
                    }
                    1
                }
                State::Payload(left) => {
                    let passed = data.len().min(*left as usize);
                    *left -= u32::try_from(passed).unwrap_or(u32::MAX);
                    if *left == 0 {
                        self.state = State::head();
                    }
                    passed
                }
                State::Head { bytes, known } => {
                    let passed = data.len().min(bytes.len() - *known);
                    bytes[*known..*known + passed].copy_from_slice(&data[..passed]);
                    *known += passed;
                    if *known == bytes.len() {
                        let [a, b, c, kind, flags, ..] = *bytes;
                        let length = u32::from_be_bytes([0, a, b, c]);
                        self.state = match length {
                            0 => State::head(),
                            length => State::Payload(length),
                        };
                        if !self.frame(kind, flags, length, &now) {
                            return false;
                        }
                    }
                    passed
                }
            };
            data = &data[used..];
        }
        true
    }

    /// Bytes went to the caller.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.earn(u32::try_from(bytes / WRITTEN).unwrap_or(u32::MAX));
    }

    fn frame(&mut self, kind: u8, flags: u8, length: u32, now: &impl Fn() -> Instant) -> bool {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const CONTINUATION: u8 = 9;
        const END_STREAM: u8 = 1;
        match kind {
            HEADERS => self.earn(REQUEST),
            DATA if length > 0 => self.earn(BODY),
            DATA if flags & END_STREAM != 0 => {}
            // h2 counts these itself.
            CONTINUATION => {}
            _ => return self.spend(now),
        }
        true
    }

    fn earn(&mut self, more: u32) {
        self.purse = self.purse.saturating_add(more).min(PURSE);
    }

    fn spend(&mut self, now: &impl Fn() -> Instant) -> bool {
        if self.purse < COST {
            let now = now();
            let since = now.saturating_duration_since(self.filled);
            let back = since.as_millis() * u128::from(PER_SECOND) / 1000;
            self.earn(u32::try_from(back).unwrap_or(u32::MAX));
            self.filled = now;
        }
        match self.purse.checked_sub(COST) {
            Some(left) => self.purse = left,
            None => return false,
        }
        true
    }
}

impl State {
    fn head() -> Self {
        Self::Head {
            bytes: [0; 9],
            known: 0,
        }
    }
}

/// A connection whose frames are counted as they are read.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    stream: S,
    frames: Frames,
    clock: Clock,
    /// Taken when it was too much.
    flooded: Option<oneshot::Sender<()>>,
}

impl<S> Guarded<S> {
    /// The connection, and what resolves when it is flooded. From then on nothing is read from it.
    pub(crate) fn new(stream: S, clock: Clock) -> (Self, oneshot::Receiver<()>) {
        let (flooded, told) = oneshot::channel();
        let guarded = Self {
            stream,
            frames: Frames::new(clock.monotonic()),
            clock,
            flooded: Some(flooded),
        };
        (guarded, told)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flooded.is_none() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = &read {
            let clock = &this.clock;
            let new = &buffer.filled()[before..];
            if !this.frames.pass(new, || clock.monotonic())
                && let Some(flooded) = this.flooded.take()
            {
                // Nobody listens when the connection is ending anyway.
                flooded.send(()).ok();
                return Poll::Pending;
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &written {
            this.frames.wrote(*count);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bytes);
        if let Poll::Ready(Ok(count)) = &written {
            this.frames.wrote(*count);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let size = u32::try_from(length).unwrap().to_be_bytes();
        let mut bytes = vec![size[1], size[2], size[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(9 + length, 7);
        bytes
    }

    /// How many of these frames pass, in pieces of `piece` bytes.
    fn passed(frame: &[u8], most: usize, piece: usize) -> usize {
        let began = Instant::now();
        let mut frames = Frames::new(began);
        assert!(frames.pass(PREFACE, || began));
        (0..most)
            .take_while(|_| frame.chunks(piece).all(|part| frames.pass(part, || began)))
            .count()
    }

    #[tokio::test]
    async fn frames_that_say_nothing_are_bounded_however_they_are_cut() {
        let most = (PURSE / COST) as usize;
        for (kind, length) in [(6, 8), (4, 0), (2, 5), (3, 4), (8, 4), (0, 0), (0x7f, 3)] {
            for piece in [1, 4, 1000] {
                let passed = passed(&frame(kind, 0, length), 10_000, piece);
                assert_eq!(passed, most, "kind {kind} in pieces of {piece}");
            }
        }
        assert_eq!(passed(&frame(0, 0, 100), 10_000, 50), 10_000, "a body");
        assert_eq!(passed(&frame(1, 5, 30), 10_000, 50), 10_000, "requests");
        let pair = [frame(1, 5, 30), frame(3, 0, 4)].concat();
        assert!(
            passed(&pair, 10_000, 50) < 2 * most,
            "requests that are taken back"
        );
    }

    #[tokio::test]
    async fn windows_for_what_was_written_and_time_give_back() {
        let began = Instant::now();
        let mut frames = Frames::new(began);
        frames.pass(PREFACE, || began);
        for _ in 0..100_000 {
            frames.wrote(128);
            assert!(frames.pass(&frame(8, 0, 4), || began));
        }
        let ping = frame(6, 0, 8);
        while frames.pass(&ping, || began) {}
        let later = began + Duration::from_secs(1);
        assert!(frames.pass(&ping, || later));
    }

    #[tokio::test]
    async fn what_is_not_http_2_is_not_counted() {
        let began = Instant::now();
        let mut frames = Frames::new(began);
        let text = b"POST / HTTP/1.1\r\n\r\n\0\0\0\0";
        assert!((0..10_000).all(|_| frames.pass(text, || began)));
    }
}
