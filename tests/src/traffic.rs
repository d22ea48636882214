//! Steady traffic of each kind that a mesh carries, counted: what was asked, what failed, and how first.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Buf, Bytes};
use finial::dev::http::{Answer, Http1, Http2, send};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Requests one after the other on one HTTP/1.1 connection.
    KeepAlive,
    /// A connection for each request.
    NewConnections,
    /// Requests on one HTTP/2 connection.
    Http2,
    /// One gRPC stream in both directions; each message is answered.
    GrpcStream,
}

/// What was counted.
#[derive(Default)]
pub struct Counts {
    sent: AtomicU64,
    failed: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Counts {
    /// Requests or messages sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// How many of them failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// How the first failed.
    pub fn first_failure(&self) -> String {
        self.first
            .lock()
            .expect("no panic under this lock")
            .clone()
            .unwrap_or_default()
    }

    fn count(&self, answer: io::Result<Answer>) -> bool {
        self.sent.fetch_add(1, Relaxed);
        match answer {
            Ok(answer) if answer.status == 200 => return true,
            Ok(answer) => self.fail(format!("status {}: {}", answer.status, answer.text())),
            Err(error) => self.fail(format!("{error:?}")),
        }
        false
    }

    fn fail(&self, how: String) {
        self.failed.fetch_add(1, Relaxed);
        self.first
            .lock()
            .expect("no panic under this lock")
            .get_or_insert(how);
    }
}

/// Traffic that runs until it is dropped.
pub struct Traffic {
    kinds: Vec<(Kind, Arc<Counts>)>,
    _tasks: JoinSet<()>,
}

impl Traffic {
    /// Starts each kind against `address`, some fifty requests a second each.
    pub fn start(address: &str, kinds: &[Kind]) -> Self {
        let mut tasks = JoinSet::new();
        let kinds = kinds.iter().map(|&kind| {
            let counts = Arc::new(Counts::default());
            tasks.spawn(drive(kind, address.to_owned(), counts.clone()));
            (kind, counts)
        });
        Self {
            kinds: kinds.collect(),
            _tasks: tasks,
        }
    }

    /// What each kind counted so far.
    pub fn counts(&self) -> impl Iterator<Item = (Kind, &Counts)> {
        self.kinds
            .iter()
            .map(|(kind, counts)| (*kind, counts.as_ref()))
    }
}

async fn drive(kind: Kind, address: String, counts: Arc<Counts>) {
    let mut tick = interval(Duration::from_millis(20));
    let (mut http1, mut http2, mut stream) = (None, None, None);
    loop {
        tick.tick().await;
        match kind {
            Kind::NewConnections => {
                counts.count(send(&address, "POST", "/charge").await);
            }
            Kind::KeepAlive => {
                if http1.is_none() {
                    http1 = Http1::connect(&address).await.ok();
                }
                let Some(connection) = &mut http1 else {
                    counts.fail("no connection".into());
                    continue;
                };
                if !counts.count(connection.send("POST", "/charge").await) {
                    http1 = None;
                }
            }
            Kind::Http2 => {
                if http2.is_none() {
                    http2 = Http2::connect(&address).await.ok();
                }
                let Some(connection) = &mut http2 else {
                    counts.fail("no connection".into());
                    continue;
                };
                if !counts.count(connection.send("POST", "/charge").await) {
                    http2 = None;
                }
            }
            Kind::GrpcStream => {
                if stream.is_none() {
                    stream = GrpcStream::open(&address).await.ok();
                }
                let Some(open) = &mut stream else {
                    counts.fail("no stream".into());
                    continue;
                };
                counts.sent.fetch_add(1, Relaxed);
                if let Err(how) = open.echo().await {
                    counts.fail(how);
                    stream = None;
                }
            }
        }
    }
}

struct GrpcStream {
    send: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    body: hyper::body::Incoming,
}

impl GrpcStream {
    async fn open(address: &str) -> io::Result<Self> {
        let io = TokioIo::new(TcpStream::connect(address).await?);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        let (send, receive) = mpsc::channel(4);
        let request = Request::post("http://pay.test/charge")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(ReceiverStream::new(receive)))
            .map_err(io::Error::other)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        if response.status() != 200 {
            return Err(io::Error::other(format!("status {}", response.status())));
        }
        Ok(Self {
            send,
            body: response.into_body(),
        })
    }

    async fn echo(&mut self) -> Result<(), String> {
        // One length-prefixed message, as gRPC frames it: not compressed, three bytes.
        let message = Bytes::from_static(&[0, 0, 0, 0, 3, b'a', b'b', b'c']);
        let mut wanted = message.len();
        self.send
            .send(Ok(Frame::data(message)))
            .await
            .map_err(|_| "the stream ended".to_owned())?;
        while wanted > 0 {
            let frame = timeout(Duration::from_secs(5), self.body.frame()).await;
            match frame {
                Err(_) => return Err("no answer within 5 s".into()),
                Ok(None) => return Err("the stream ended".into()),
                Ok(Some(Err(error))) => return Err(format!("{error:?}")),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => wanted = wanted.saturating_sub(data.remaining()),
                    Err(trailers) => return Err(format!("trailers: {trailers:?}")),
                },
            }
        }
        Ok(())
    }
}
