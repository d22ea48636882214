//! The application behind a proxy: answers every request with what it was asked, over HTTP/1.1 and HTTP/2,
//! and streams as a gRPC server does.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;

/// A listening application, stopped when dropped.
pub struct Echo {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Echo {
    /// Listens on a free port of loopback.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port on loopback");
        let address = listener.local_addr().expect("its address");
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                stream.set_nodelay(true).ok();
                tokio::spawn(async move {
                    auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await
                        .ok();
                });
            }
        });
        Self { address, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let grpc = request
        .headers()
        .get("content-type")
        .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return Ok(echo_stream(request));
    }
    let said = format!("{} {}", request.method(), request.uri().path());
    let mut response = Response::builder().header("x-echo-path", request.uri().path());
    for name in ["x-forwarded-client-cert"] {
        if let Some(value) = request.headers().get(name) {
            response = response.header(format!("x-echo-{name}"), value);
        }
    }
    request.into_body().collect().await.ok();
    let body = http_body_util::Full::new(Bytes::from(said)).boxed();
    Ok(response.body(body).expect("valid headers"))
}

/// Sends each message back as it comes, then the trailers.
fn echo_stream(request: Request<Incoming>) -> Response<Body> {
    let (send, receive) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(16);
    tokio::spawn(async move {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && send.send(Ok(Frame::data(data))).await.is_err()
            {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        send.send(Ok(Frame::trailers(trailers))).await.ok();
    });
    Response::builder()
        .header("content-type", "application/grpc")
        .body(BodyExt::boxed(StreamBody::new(ReceiverStream::new(
            receive,
        ))))
        .expect("valid headers")
}
