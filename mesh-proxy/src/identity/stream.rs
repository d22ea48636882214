//! How a stream of the Workload API is followed: opened, read frame by frame, opened anew with a growing pause.
//! Trusts the socket's owner. Never asks a server again that does not know the request, until another one is in its place.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Coded as _;
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::Repetition;
use proto::spiffe::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};

use super::{FrameError, IdentityError};
use crate::metrics::ProxyMetrics;

/// The header without which no Workload API answers: it keeps web pages from asking.
pub(super) const SECURITY_HEADER: &str = "workload.spiffe.io";
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether another server took the place of one that said no for good.
const LOOK_FOR_ANOTHER: Duration = Duration::from_secs(1);
/// A frame with a hundred bundles is far below this.
const LARGEST_FRAME: usize = 4 * 1024 * 1024;

/// The client of one connection.
pub(super) type Client = SpiffeWorkloadApiClient<Channel>;

/// Where a stream comes from.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) socket: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) metrics: ProxyMetrics,
}

/// Whoever follows a stream.
pub(super) trait Follower: Send {
    /// What comes on it.
    type Frame: Send;

    /// The call that opens it.
    fn open(
        client: Client,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Frame>>, Status>> + Send;
    /// Takes a frame whole, or refuses it whole: the next one may be good, and what is in use stays.
    fn take(&mut self, frame: Self::Frame) -> Result<(), FrameError>;
    /// The stream ended, or could not be opened.
    fn failed(&mut self, error: &IdentityError);
}

/// A request with the security header.
pub(super) fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    headers.insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    request
}

impl Link {
    /// Follows until stopped; reconnects with a growing pause.
    pub(super) async fn follow<F: Follower>(
        &self,
        follower: &mut F,
        name: &'static str,
        stop: &Stop,
    ) {
        let trouble = Repetition::new(name);
        let mut pause = FIRST_PAUSE;
        loop {
            let server = socket_file(&self.socket);
            let once = self.once(follower, &trouble, &mut pause);
            let Some(error) = stop.unless_stopped(once).await else {
                return;
            };
            self.note(&error, &trouble);
            follower.failed(&error);
            if error.is_final() {
                if stop
                    .unless_stopped(self.another_than(server))
                    .await
                    .is_none()
                {
                    return;
                }
                pause = FIRST_PAUSE;
                continue;
            }
            // Up to a quarter more, so that the proxies of a node do not come back in step.
            let jitter = pause.mul_f64(f64::from(fraction()) / 1024.0);
            let rest = self.clock.sleep(pause + jitter);
            if stop.unless_stopped(rest).await.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One connection, until it fails.
    async fn once<F: Follower>(
        &self,
        follower: &mut F,
        trouble: &Repetition,
        pause: &mut Duration,
    ) -> IdentityError {
        let channel = match connect(&self.socket).await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let client = Client::new(channel).max_decoding_message_size(LARGEST_FRAME);
        let mut frames = match F::open(client).await {
            Ok(response) => response.into_inner(),
            Err(status) => return IdentityError::Answer(Box::new(status)),
        };
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return IdentityError::Ended,
                Err(status) => return IdentityError::Answer(Box::new(status)),
            };
            match follower.take(frame) {
                Ok(()) => {
                    trouble.succeeded();
                    *pause = FIRST_PAUSE;
                }
                Err(error) => self.note(&IdentityError::Frame(error), trouble),
            }
        }
    }

    fn note(&self, error: &IdentityError, trouble: &Repetition) {
        self.metrics.identity_failed(error.code());
        trouble.failed(error);
    }

    /// Waits until there is another socket than the one that said no for good. The same server would say the same again, so it
    /// is not asked (WEP-9, WEP-20); one that is started anew makes a socket of its own.
    async fn another_than(&self, server: Option<SocketFile>) {
        while socket_file(&self.socket) == server {
            self.clock.sleep(LOOK_FOR_ANOTHER).await;
        }
    }
}

/// What tells one socket at a path from the next: device, inode, and when it was made or moved there.
type SocketFile = (u64, u64, i64, i64);

fn socket_file(path: &Path) -> Option<SocketFile> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

async fn connect(socket: &Path) -> Result<Channel, IdentityError> {
    let path = socket.to_owned();
    let dial = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI is only a name for the connection: a Unix socket has none.
    Endpoint::from_static("http://workload-api")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(dial)
        .await
        .map_err(|cause| IdentityError::Unreachable {
            path: socket.to_owned(),
            cause,
        })
}

/// A number from 0 to 255 that differs between processes and calls.
fn fraction() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}
