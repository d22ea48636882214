//! A plain HTTP client for the scene and the tests: one request on its own connection, or many on one.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    async fn read(response: Response<Incoming>) -> io::Result<Self> {
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Self {
            status: StatusCode::as_u16(&head.status),
            headers: head.headers,
            body,
        })
    }
}

/// `GET path` on a connection of its own.
pub async fn get(address: &str, path: &str) -> io::Result<Answer> {
    Http1::connect(address).await?.send("GET", path).await
}

/// `method path` on a connection of its own.
pub async fn send(address: &str, method: &str, path: &str) -> io::Result<Answer> {
    Http1::connect(address).await?.send(method, path).await
}

/// One HTTP/1.1 connection, kept alive.
pub struct Http1 {
    sender: conn::http1::SendRequest<Empty<Bytes>>,
}

impl Http1 {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> io::Result<Self> {
        let (sender, connection) = conn::http1::handshake(TokioIo::new(stream(address).await?))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// One request after the other.
    pub async fn send(&mut self, method: &str, path: &str) -> io::Result<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "pay.test");
        let request = request.body(Empty::new()).map_err(io::Error::other)?;
        self.sender.ready().await.map_err(io::Error::other)?;
        Answer::read(
            self.sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?,
        )
        .await
    }
}

/// One HTTP/2 connection with prior knowledge.
#[derive(Clone)]
pub struct Http2 {
    sender: conn::http2::SendRequest<Full<Bytes>>,
}

impl Http2 {
    /// Connects to `host:port`.
    pub async fn connect(address: &str) -> io::Result<Self> {
        let io = TokioIo::new(stream(address).await?);
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// One request.
    pub async fn send(&mut self, method: &str, path: &str) -> io::Result<Answer> {
        let uri = format!("http://pay.test{path}");
        let request = Request::builder().method(method).uri(uri);
        let request = request.body(Full::default()).map_err(io::Error::other)?;
        self.sender.ready().await.map_err(io::Error::other)?;
        Answer::read(
            self.sender
                .send_request(request)
                .await
                .map_err(io::Error::other)?,
        )
        .await
    }
}

async fn stream(address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
