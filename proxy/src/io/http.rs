//! Serving HTTP on an accepted connection: limits, timeouts, graceful ends, and obedience to the connection table.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hanse_identity::frames::Frames;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::metered::Metered;
use super::peek::Pauses;
use crate::connections::{Live, Order};
use crate::headers::is_framing_plain;
use crate::runtime::drain::Stop;
use crate::runtime::telemetry::Telemetry;
use crate::runtime::worker::LocalExecutor;

/// Bytes of a request's head.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Fields of a request's head. HTTP/2 compresses them: what is one byte on the wire is a hundred in memory.
pub const MAX_HEADERS: usize = 128;
/// The same of a request that another proxy sends on: with what that puts in, such as its ID, its trace and its client.
pub const MAX_CARRIED_HEADERS: usize = MAX_HEADERS + 8;
/// Requests that one HTTP/2 connection may have in flight.
pub const MAX_STREAMS: u32 = 1024;
/// Requests that a client took back before we had looked at them.
pub const MAX_PENDING_RESETS: usize = 20;
/// Streams that we have to reset for what a client did on them, in the life of its connection (MadeYouReset).
pub const MAX_PROVOKED_RESETS: usize = 256;
/// Longest wait for the first bytes of a connection.
pub const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time from the end of one HTTP/1 request to the end of the next one's head: hyper counts idleness in, so
/// this is above the idle timeouts of common clients' pools.
pub const NEXT_HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How long an idle HTTP/1 connection of an app stays when we end. Its next request may be on its way, and is answered, with
/// `connection: close`; whoever has none for so long is closed.
pub const LINGER: Duration = Duration::from_millis(500);
/// HTTP/2 flow-control windows.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
pub const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// How a server finds out that a client is gone without a word.
const SERVER_PING_EVERY: Duration = Duration::from_secs(15);
const SERVER_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams that one HTTP/2 connection for streams may carry, and their windows: together no more than the connection's,
/// so that ends which do not read hold up nobody else's.
pub const MAX_SHARED_STREAMS: u32 = 64;
pub const SHARED_STREAM_WINDOW: u32 = 512 * 1024;
pub const SHARED_CONNECTION_WINDOW: u32 = MAX_SHARED_STREAMS * SHARED_STREAM_WINDOW;

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    /// HTTP/2 for streams: upgrades and plain TCP.
    Streams,
}

/// How much an HTTP/2 connection lets its other end send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    pub stream: u32,
    pub connection: u32,
    pub streams: u32,
}

impl Windows {
    pub const REQUESTS: Self =
        Self { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW, streams: MAX_STREAMS };
    pub const STREAMS: Self = Self {
        stream: SHARED_STREAM_WINDOW,
        connection: SHARED_CONNECTION_WINDOW,
        streams: MAX_SHARED_STREAMS,
    };
}

/// Serves a connection to its end: the client's, an order's, or draining's.
pub async fn serve<I, S, B>(
    io: I,
    protocol: Protocol,
    service: S,
    live: Option<Live>,
    stop: Stop,
    telemetry: &Arc<Telemetry>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + 'static,
    S: HttpService<Incoming, ResBody = B, Error = Infallible>,
    <S as hyper::service::Service<Request<Incoming>>>::Future: 'static,
    <S as HttpService<Incoming>>::Future: 'static,
    B: Body<Data = Bytes, Error = hyper::Error> + 'static,
{
    match protocol {
        Protocol::Http1 => {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(NEXT_HEAD_TIMEOUT)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_HEAD_BYTES)
                .half_close(false);
            let ending = Rc::new(Cell::new(false));
            let told = Rc::clone(&ending);
            let service = service_fn(move |request: Request<Incoming>| {
                let plain = is_framing_plain(request.headers());
                let connects = *request.method() == Method::CONNECT;
                let answered = hyper::service::Service::call(&service, request);
                let told = Rc::clone(&told);
                async move {
                    let mut response = answered.await?;
                    // What becomes a stream is no answer that another request could follow.
                    let becomes_stream = connects || response.status() == StatusCode::SWITCHING_PROTOCOLS;
                    // Who was not understood about where its request ends is not understood about where the next one begins.
                    if !plain || (told.get() && !becomes_stream) {
                        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = http.serve_connection(TokioIo::new(io), service);
            match live {
                // Only our own app may take a connection over: a stream must not outlive its place in the table.
                None => {
                    let leave = hyper::server::conn::http1::UpgradeableConnection::graceful_shutdown;
                    let ends = Ends { told: ending, linger: LINGER };
                    steer(connection.with_upgrades(), leave, live, stop, ends).await;
                }
                Some(_) => {
                    let leave = hyper::server::conn::http1::Connection::graceful_shutdown;
                    steer(connection, leave, live, stop, Ends { told: ending, linger: Duration::ZERO }).await;
                }
            }
        }
        Protocol::Http2 | Protocol::Streams => {
            let windows = if protocol == Protocol::Http2 { Windows::REQUESTS } else { Windows::STREAMS };
            let io = TokioIo::new(Metered::new(io, Frames::of_client(), Arc::clone(telemetry)));
            let mut http = hyper::server::conn::http2::Builder::new(LocalExecutor);
            http.timer(TokioTimer::new())
                .max_header_list_size(MAX_HEAD_BYTES as u32)
                .max_concurrent_streams(windows.streams)
                .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
                .max_local_error_reset_streams(MAX_PROVOKED_RESETS)
                .initial_stream_window_size(windows.stream)
                .initial_connection_window_size(windows.connection)
                .keep_alive_interval(SERVER_PING_EVERY)
                .keep_alive_timeout(SERVER_PING_TIMEOUT);
            if live.is_some() {
                http.enable_connect_protocol();
            }
            let leave = hyper::server::conn::http2::Connection::graceful_shutdown;
            steer(http.serve_connection(io, service), leave, live, stop, Ends::default()).await;
        }
    }
}

/// How a connection ends when draining begins.
#[derive(Default)]
struct Ends {
    /// Set as soon as it has begun.
    told: Rc<Cell<bool>>,
    /// How long it goes on then before it is asked to leave.
    linger: Duration,
}

/// Runs a connection, and obeys: a `Close` drops it with all that is on it, a `Leave` and draining let it finish.
async fn steer<C>(
    connection: C,
    leave: impl Fn(Pin<&mut C>),
    mut live: Option<Live>,
    mut stop: Stop,
    ends: Ends,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    let mut over = pin!(async {
        stop.draining().await;
        ends.told.set(true);
        if !ends.linger.is_zero() {
            tokio::time::sleep(ends.linger).await;
        }
    });
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            order = ordered(&mut live) => match order {
                Order::Close(cause) => {
                    tracing::info!(cause = cause.label(), "connection closed");
                    return;
                }
                Order::Leave(_) => leave(connection.as_mut()),
                Order::Stay => {}
            },
            // Before it is asked to leave, so that what has come in already is not taken for nothing.
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection");
                }
                return;
            }
            () = over.as_mut(), if !leaving => {
                leaving = true;
                leave(connection.as_mut());
            }
        }
    }
}

async fn ordered(live: &mut Option<Live>) -> Order {
    match live {
        Some(live) => live.ordered().await,
        None => std::future::pending().await,
    }
}

/// Tells HTTP/2 with prior knowledge from HTTP/1 without reading: no HTTP/1 method starts like the preface
/// (RFC 9113 §3.4). `None`: nothing came in time, or the client left.
pub async fn detect(stream: &TcpStream) -> Option<Protocol> {
    const PREFACE: &[u8; 3] = b"PRI";
    let mut first = [0u8; 3];
    let looked = async {
        let mut pauses = Pauses::default();
        loop {
            let n = stream.peek(&mut first).await.ok().filter(|n| *n > 0)?;
            if first[..n] != PREFACE[..n] {
                return Some(Protocol::Http1);
            }
            if n == PREFACE.len() {
                return Some(Protocol::Http2);
            }
            pauses.next().await;
        }
    };
    tokio::time::timeout(FIRST_BYTES_TIMEOUT, looked).await.ok().flatten()
}
