//! An HTTP/2 client that writes its frames by hand, so that it can write what no library would.
//! Trusts nothing that comes back; it is read beside the writing, so that neither side waits for the other.
//! Never answers by itself: no SETTINGS are acknowledged and no PING, unless a test does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::world::World;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A frame that came.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or RST_STREAM.
    pub(crate) fn code(&self) -> Option<u32> {
        let at = match self.kind {
            GOAWAY => 4,
            RST_STREAM => 0,
            _ => return None,
        };
        let code = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(code.try_into().unwrap()))
    }

    /// The status of a response head, for those that HPACK knows by number.
    pub(crate) fn status(&self) -> Option<u16> {
        let known = [200, 204, 206, 304, 400, 404, 500];
        match *self.payload.first()? {
            first @ 0x88..=0x8e if self.kind == HEADERS => {
                known.get(usize::from(first - 0x88)).copied()
            }
            _ => None,
        }
    }
}

/// A connection.
pub(crate) struct Client {
    to: WriteHalf<mesh_tls::ClientStream<TcpStream>>,
    from: mpsc::UnboundedReceiver<Frame>,
    /// What has come since the beginning.
    pub(crate) seen: Vec<Frame>,
}

impl Client {
    /// Connects as `name` and says hello with these settings.
    pub(crate) async fn connect(
        world: &World,
        name: &str,
        door: SocketAddr,
        settings: &[(u16, u32)],
    ) -> Self {
        let stream = world.dial(name, door, &[b"h2"]).await;
        let (read, to) = tokio::io::split(stream);
        let (sender, from) = mpsc::unbounded_channel();
        tokio::spawn(receive(read, sender));
        let mut client = Self {
            to,
            from,
            seen: Vec::new(),
        };
        client
            .to
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        assert!(client.send(SETTINGS, 0, 0, &payload).await);
        client
    }

    /// Writes a frame; whether the other side still took it.
    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.write(&frame(kind, flags, stream, payload)).await
    }

    /// Writes bytes; whether the other side still took them.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> bool {
        let written = async {
            self.to.write_all(bytes).await?;
            self.to.flush().await
        };
        let written = tokio::time::timeout(Duration::from_secs(10), written).await;
        matches!(written, Ok(Ok(())))
    }

    /// The next frame, for as long as there is hope; `None`: the connection has ended, or nothing came.
    pub(crate) async fn next(&mut self, patience: Duration) -> Option<Frame> {
        let frame = tokio::time::timeout(patience, self.from.recv())
            .await
            .ok()??;
        self.seen.push(frame.clone());
        Some(frame)
    }

    /// Waits for a frame.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        while let Some(frame) = self.next(Duration::from_secs(10)).await {
            if wanted(&frame) {
                return Some(frame);
            }
        }
        None
    }

    /// Reads until the other side has closed; `false`: it has not within the time.
    pub(crate) async fn is_closed(&mut self, within: Duration) -> bool {
        let deadline = crate::world::started() + within;
        while crate::world::started() < deadline {
            let next = tokio::time::timeout(Duration::from_millis(100), self.from.recv()).await;
            match next {
                Ok(Some(frame)) => self.seen.push(frame),
                Ok(None) => return true,
                // A broken connection shows itself to whoever writes; an unknown frame is nothing to one that is whole.
                Err(_) if !self.send(0x7f, 0, 0, &[]).await => return true,
                Err(_) => {}
            }
        }
        false
    }

    /// The error codes of the GOAWAYs that came.
    pub(crate) fn goaways(&self) -> Vec<u32> {
        let goaways = self.seen.iter().filter(|frame| frame.kind == GOAWAY);
        goaways.filter_map(Frame::code).collect()
    }
}

async fn receive(
    mut from: ReadHalf<mesh_tls::ClientStream<TcpStream>>,
    sender: mpsc::UnboundedSender<Frame>,
) {
    loop {
        let mut head = [0; 9];
        if from.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        if from.read_exact(&mut payload).await.is_err() {
            return;
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame {
            kind: head[3],
            stream,
            payload,
        };
        if sender.send(frame).is_err() {
            return;
        }
    }
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A field that HPACK writes out and does not remember.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// A field that HPACK writes out and remembers: it is number 62 from then on.
pub(crate) fn remembered(name: &str, value: &str) -> Vec<u8> {
    [&[0x40][..], &text(name), &text(value)].concat()
}

/// HPACK's form of a text, without Huffman's code.
fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match u8::try_from(text.len()) {
        Ok(length) if length < 127 => bytes.push(length),
        _ => {
            let mut rest = text.len() - 127;
            bytes.push(127);
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap() | 0x80);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The head of a request: method, scheme, path and host in HPACK's static table, then `more`.
pub(crate) fn head(method: &str, path: &str, more: &[u8]) -> Vec<u8> {
    let method = match method {
        "GET" => vec![0x82],
        "POST" => vec![0x83],
        other => [&[0x02][..], &text(other)].concat(),
    };
    let (path, host) = (
        [&[0x04][..], &text(path)].concat(),
        [&[0x01][..], &text("pay")].concat(),
    );
    [&method[..], &[0x87], &path, &host, more].concat()
}
