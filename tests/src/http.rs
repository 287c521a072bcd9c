//! A small HTTP/1.1 client for tests and load: one connection, one request after the other.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// One keep-alive connection.
pub struct Connection {
    send: SendRequest<Empty<Bytes>>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Connection {
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("dial {address}"))?;
        stream.set_nodelay(true)?;
        let (send, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { send })
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        let request = http::Request::get(path).header("host", host).body(Empty::new())?;
        self.send.ready().await?;
        let (head, body) = self.send.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}

/// One request on a connection of its own.
pub async fn get(address: &str, host: &str, path: &str) -> Result<Answer> {
    Connection::open(address).await?.get(host, path).await
}
