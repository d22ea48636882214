//! A client of the Workload API, seen from the other end: a server that answers as it is told and notes what it was asked.
//! The numbers are those of the specification's rows for clients (WEP-, WAPI-).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_identity::test_util::{Made, Spec};
use mesh_runtime::clock::Clock;
use mesh_runtime::metrics::Metrics;
use mesh_runtime::readiness::Readiness;
use mesh_runtime::tasks::Tasks;
use prost::Message as _;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::stream::SECURITY_HEADER;
use super::*;
use crate::metrics::ProxyMetrics;

/// What the next call is answered.
enum Answer {
    /// A status and nothing else.
    Refuse(Code),
    /// These messages as they come; the end of them is the end of the stream.
    Tell(mpsc::Receiver<X509svidResponse>),
}

/// One call: its path, the values of the security header, and when it came.
#[derive(Clone, Debug)]
struct Call {
    path: String,
    header: Vec<String>,
    at: Instant,
}

#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Script {
    fn refuse(&self, code: Code) {
        self.answers.lock().unwrap().push_back(Answer::Refuse(code));
    }

    /// What is sent here is told by the next call that is not yet spoken for.
    fn tell(&self) -> mpsc::Sender<X509svidResponse> {
        let (sender, frames) = mpsc::channel(8);
        self.answers.lock().unwrap().push_back(Answer::Tell(frames));
        sender
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    async fn answer(
        self,
        request: hyper::Request<Incoming>,
    ) -> Result<hyper::Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
        let values = request.headers().get_all(SECURITY_HEADER).iter();
        let header = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        self.calls.lock().unwrap().push(Call {
            path: request.uri().path().to_owned(),
            header,
            at: Instant::now(),
        });
        let next = self.answers.lock().unwrap().pop_front();
        let response = hyper::Response::builder().header("content-type", "application/grpc");
        let answered = match next {
            Some(Answer::Refuse(code)) => response
                .header("grpc-status", code as i32)
                .body(Empty::new().boxed_unsync()),
            Some(Answer::Tell(frames)) => {
                let data = ReceiverStream::new(frames).map(|frame| Frame::data(framed(&frame)));
                let trailers = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static("0"),
                )]);
                let end = futures::stream::iter([Frame::trailers(trailers)]);
                response.body(StreamBody::new(data.chain(end).map(Ok)).boxed_unsync())
            }
            None => std::future::pending().await,
        };
        Ok(answered.unwrap())
    }
}

/// As gRPC sends a message: not compressed, its length, itself.
fn framed(message: &X509svidResponse) -> Bytes {
    let message = message.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(&message);
    bytes.into()
}

/// Serves at this path until dropped.
struct Server(tokio::task::JoinHandle<()>);

impl Server {
    fn start(path: &Path, script: &Script) -> Self {
        let (listener, script) = (UnixListener::bind(path).unwrap(), script.clone());
        Self(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let script = script.clone();
                let service =
                    hyper::service::service_fn(move |request| script.clone().answer(request));
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        }))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A client that follows a socket.
struct Client {
    dir: tempfile::TempDir,
    identity: watch::Receiver<Option<IdentityCell>>,
    readiness: Readiness,
    tasks: Tasks,
}

impl Client {
    fn start() -> Self {
        mesh_tls::install_default_provider();
        let dir = tempfile::tempdir().unwrap();
        let (publish, identity) = watch::channel(None);
        let source = Source {
            link: Link {
                socket: dir.path().join("api.sock"),
                clock: Clock::system(),
                metrics: ProxyMetrics::new(&Metrics::new("mesh_proxy"), None),
            },
            publish,
        };
        let (readiness, tasks) = (Readiness::new(), Tasks::new("test"));
        let part = readiness.part("identity");
        tasks.spawn("identity", |stop| source.run(part, stop));
        Self {
            dir,
            identity,
            readiness,
            tasks,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// The identity in use, once it is one that fits.
    async fn uses(&self, what: &str, fits: impl Fn(&TlsIdentity) -> bool) {
        eventually(what, || {
            let cell = self.identity.borrow().clone();
            cell.is_some_and(|cell| fits(&cell.current()))
        })
        .await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never happened: {what}");
}

fn message(root: &Made, names: &[&str], foreign: &[&Made]) -> X509svidResponse {
    let svids = names.iter().map(|name| {
        let id = format!("spiffe://dev.test/{name}");
        let leaf = root.sign(Spec::leaf(&id));
        X509svid {
            spiffe_id: id,
            x509_svid: leaf.svid().to_der_concat(),
            x509_svid_key: leaf.key_pkcs8(),
            bundle: root.bundle("dev.test").to_der_concat(),
            hint: String::new(),
        }
    });
    let foreign = foreign.iter().map(|root| {
        let roots = root.bundle("far.test").to_der_concat();
        ("spiffe://far.test".to_owned(), roots)
    });
    X509svidResponse {
        svids: svids.collect(),
        crl: Vec::new(),
        federated_bundles: foreign.collect(),
    }
}

#[tokio::test]
async fn wep_06_wep_24_each_call_carries_the_header_and_nothing_but_the_workload_api_is_called() {
    let (client, script) = (Client::start(), Script::default());
    let root = Made::root("dev.test");
    let _server = Server::start(&client.socket(), &script);
    for _ in 0..2 {
        let first = script.tell();
        first.send(message(&root, &["pay"], &[])).await.unwrap();
    }
    let _last = script.tell();
    client
        .uses("an identity", |identity| identity.id().path() == "/pay")
        .await;
    eventually("three calls", || script.calls().len() == 3).await;
    for call in script.calls() {
        assert_eq!(call.path, "/SpiffeWorkloadAPI/FetchX509SVID");
        assert_eq!(call.header, ["true"]);
    }
}

#[tokio::test]
async fn wapi_05_a_stream_that_ends_is_opened_again_at_once() {
    let (client, script) = (Client::start(), Script::default());
    let root = Made::root("dev.test");
    let _server = Server::start(&client.socket(), &script);
    let first = script.tell();
    let second = script.tell();
    first.send(message(&root, &["pay"], &[])).await.unwrap();
    client.uses("an identity", |_| true).await;
    let ended = Instant::now();
    drop(first);
    eventually("the next call", || script.calls().len() == 2).await;
    let pause = script.calls()[1].at - ended;
    assert!(pause < Duration::from_secs(1), "{pause:?}");
    second.send(message(&root, &["shop"], &[])).await.unwrap();
    client
        .uses("what it tells", |identity| identity.id().path() == "/shop")
        .await;
}

#[tokio::test]
async fn wep_09_wep_20_a_server_that_does_not_know_the_request_is_not_asked_again_and_the_next_one_is()
 {
    for code in [Code::InvalidArgument, Code::Unimplemented] {
        let (client, script) = (Client::start(), Script::default());
        let server = Server::start(&client.socket(), &script);
        script.refuse(code);
        eventually("the first call", || script.calls().len() == 1).await;
        // A refusal that may pass is tried again after a tenth of a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(script.calls().len(), 1, "{code:?}");
        assert!(!client.readiness.is_ready());

        drop(server);
        std::fs::remove_file(client.socket()).unwrap();
        let (next, root) = (Script::default(), Made::root("dev.test"));
        let frames = next.tell();
        let _server = Server::start(&client.socket(), &next);
        frames.send(message(&root, &["pay"], &[])).await.unwrap();
        client.uses("an identity of the next one", |_| true).await;
        assert_eq!(script.calls().len(), 1, "{code:?}");
    }
}

#[tokio::test]
async fn a_refusal_that_may_pass_is_asked_again() {
    for code in [Code::Unavailable, Code::PermissionDenied] {
        let (client, script) = (Client::start(), Script::default());
        let _server = Server::start(&client.socket(), &script);
        script.refuse(code);
        script.refuse(code);
        let frames = script.tell();
        let root = Made::root("dev.test");
        frames.send(message(&root, &["pay"], &[])).await.unwrap();
        client.uses("an identity in the end", |_| true).await;
        assert_eq!(script.calls().len(), 3, "{code:?}");
    }
}

#[tokio::test]
async fn wapi_10_wapi_34_a_bundle_that_is_not_in_the_next_message_is_not_used_any_more() {
    let (client, script) = (Client::start(), Script::default());
    let (root, far) = (Made::root("dev.test"), Made::root("far.test"));
    let _server = Server::start(&client.socket(), &script);
    let frames = script.tell();
    frames
        .send(message(&root, &["pay"], &[&far]))
        .await
        .unwrap();
    let domain: TrustDomain = "far.test".parse().unwrap();
    client
        .uses("both bundles", |identity| {
            identity.bundles().get(&domain).is_some()
        })
        .await;
    frames.send(message(&root, &["pay"], &[])).await.unwrap();
    client
        .uses("its own alone", |identity| {
            identity.bundles().get(&domain).is_none() && identity.bundles().len() == 1
        })
        .await;
}

#[tokio::test]
async fn wapi_28_of_several_identities_the_first_is_used_and_one_that_is_withdrawn_is_not() {
    let (client, script) = (Client::start(), Script::default());
    let root = Made::root("dev.test");
    let _server = Server::start(&client.socket(), &script);
    let frames = script.tell();
    let two = message(&root, &["pay", "shop"], &[]);
    frames.send(two).await.unwrap();
    client
        .uses("the first", |identity| identity.id().path() == "/pay")
        .await;
    frames.send(message(&root, &["shop"], &[])).await.unwrap();
    client
        .uses("the one that is left", |identity| {
            identity.id().path() == "/shop"
        })
        .await;
}

#[tokio::test]
async fn wapi_28_told_that_it_has_no_identity_any_more_it_trusts_nobody_and_is_not_ready_until_it_has_one()
 {
    let (client, script) = (Client::start(), Script::default());
    let root = Made::root("dev.test");
    let _server = Server::start(&client.socket(), &script);
    let first = script.tell();
    script.refuse(Code::PermissionDenied);
    let second = script.tell();
    first.send(message(&root, &["pay"], &[])).await.unwrap();
    client
        .uses("an identity", |identity| identity.bundles().len() == 1)
        .await;
    assert!(client.readiness.is_ready());
    drop(first);
    client
        .uses("no trust", |identity| identity.bundles().is_empty())
        .await;
    assert!(!client.readiness.is_ready());
    second.send(message(&root, &["pay"], &[])).await.unwrap();
    client
        .uses("trust again", |identity| identity.bundles().len() == 1)
        .await;
    eventually("ready again", || client.readiness.is_ready()).await;
}

#[tokio::test]
async fn while_nobody_answers_the_identity_in_use_stays() {
    let (client, script) = (Client::start(), Script::default());
    let root = Made::root("dev.test");
    let server = Server::start(&client.socket(), &script);
    let first = script.tell();
    script.refuse(Code::Unavailable);
    first.send(message(&root, &["pay"], &[])).await.unwrap();
    client.uses("an identity", |_| true).await;
    drop(first);
    eventually("the second call", || script.calls().len() >= 2).await;
    drop(server);
    std::fs::remove_file(client.socket()).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    client
        .uses("the same one", |identity| identity.bundles().len() == 1)
        .await;
    assert!(client.readiness.is_ready());
}
