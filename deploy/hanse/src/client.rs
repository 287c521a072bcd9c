//! A small HTTP/1.1 client: reads admin endpoints, and makes the demo's calls and its load.
//!
//! Connections are kept per address and used again. A request that was certainly not sent is sent once more on
//! a fresh connection; nothing else is ever repeated, so what is counted is what the mesh did.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Idle connections kept per address.
const MAX_IDLE: usize = 256;
/// Largest answer that is read.
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

type Sender = SendRequest<Full<Bytes>>;

/// Clones share their connections.
#[derive(Clone, Debug, Default)]
pub struct Client {
    idle: Arc<Mutex<HashMap<SocketAddr, Vec<Sender>>>>,
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// An answer whose body is still coming.
pub struct Streaming {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Incoming,
    /// Kept so that the connection is not closed under the body.
    _sender: Option<Sender>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    #[error("not a request: {0}")]
    Request(#[from] http::Error),
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

impl Client {
    /// `GET path` with that Host, the whole answer within `timeout`.
    pub async fn get(
        &self,
        address: SocketAddr,
        host: &str,
        path: &str,
        timeout: Duration,
    ) -> Result<Answer, CallError> {
        self.send(address, get(host, path)?, timeout).await
    }

    /// That request, the whole answer within `timeout`.
    pub async fn send(
        &self,
        address: SocketAddr,
        request: Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<Answer, CallError> {
        let call = async {
            let (streaming, sender) = self.open(address, request).await?;
            let Streaming { status, headers, body, .. } = streaming;
            let body = http_body_util::Limited::new(body, MAX_ANSWER_BYTES);
            let body = match body.collect().await {
                Ok(collected) => collected.to_bytes(),
                Err(error) => {
                    return Err(match error.downcast::<hyper::Error>() {
                        Ok(broken) => CallError::Broken(*broken),
                        Err(_) => CallError::TooLarge,
                    });
                }
            };
            self.put_back(address, sender);
            Ok(Answer { status, headers, body })
        };
        tokio::time::timeout(timeout, call).await.unwrap_or(Err(CallError::Timeout(timeout)))
    }

    /// `GET path` with that Host; the body is left to the caller, and the connection is its own.
    pub async fn stream(&self, address: SocketAddr, host: &str, path: &str) -> Result<Streaming, CallError> {
        let (mut streaming, sender) = self.open(address, get(host, path)?).await?;
        streaming._sender = Some(sender);
        Ok(streaming)
    }

    async fn open(
        &self,
        address: SocketAddr,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Streaming, Sender), CallError> {
        loop {
            let (mut sender, reused) = match self.take(address) {
                Some(sender) => (sender, true),
                None => (connect(address).await?, false),
            };
            if sender.ready().await.is_err() {
                if reused {
                    continue;
                }
                return Err(CallError::Connect(address, std::io::ErrorKind::ConnectionReset.into()));
            }
            match sender.try_send_request(request).await {
                Ok(answer) => {
                    let (parts, body) = answer.into_parts();
                    let streaming =
                        Streaming { status: parts.status, headers: parts.headers, body, _sender: None };
                    return Ok((streaming, sender));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(CallError::Broken(error.into_error())),
                },
            }
        }
    }

    fn take(&self, address: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let senders = idle.get_mut(&address)?;
        while let Some(sender) = senders.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn put_back(&self, address: SocketAddr, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let senders = idle.entry(address).or_default();
        if senders.len() < MAX_IDLE && !sender.is_closed() {
            senders.push(sender);
        }
    }
}

fn get(host: &str, path: &str) -> Result<Request<Full<Bytes>>, http::Error> {
    Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "hanse-demo")
        .body(Full::default())
}

async fn connect(address: SocketAddr) -> Result<Sender, CallError> {
    let stream = TcpStream::connect(address).await.map_err(|e| CallError::Connect(address, e))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // A broken connection is reported to whoever waits for an answer on it.
        let _ = connection.await;
    });
    Ok(sender)
}
