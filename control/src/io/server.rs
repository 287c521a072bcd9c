//! The one gRPC port of a control node: accept, TLS, who is there, and the services behind the role table.
//!
//! Handshakes run in tasks of their own, bounded and timed. A connection whose caller is no longer believed is cut
//! with every stream on it, at once for a revocation.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use hanse_identity::name::MemberRole;
use hanse_identity::tls::{ClientAuth, server_config, session_binding, verified_peer};
use hanse_identity::{Timestamp, Trust, Usage, VerifiedCaller, VerifyError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::admin::AdminService;
use super::context::{Context, now, stopped};
use super::dial::ALPN_H2;
use super::issue::IssueService;
use super::node_link::NodeService;
use super::peer_serve::PeerService;
use super::roles::RolesLayer;
use super::watch::WatchService;
use crate::wire::control::admin_server::AdminServer;
use crate::wire::control::node_server::NodeServer;
use crate::wire::control::peer_server::PeerServer;
use crate::wire::issue::issue_server::IssueServer;
use crate::wire::watch::watch_server::WatchServer;

/// Handshakes under way at the same time; more wait in the kernel's queue.
pub const MAX_HANDSHAKES: usize = 1024;
/// Connections open at the same time; more wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 16_384;
/// How long a client may take over its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection without a client certificate may last: enough to join.
pub const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(60);
/// How long a peer that has been removed may still hear that it was.
const PEER_FAREWELL: Duration = Duration::from_secs(2);
/// How long a revoked workload, gateway or agent may still hear that it was, and close its connections. Its streams
/// live on for that long; every new request of it is denied at once.
const REVOKED_FAREWELL: Duration = Duration::from_millis(500);
/// How often connections in their farewell are looked at.
const FAREWELL_SWEEP: Duration = Duration::from_millis(100);
/// How often connections are asked again whether their caller is believed (changes of trust are acted on at once).
const SWEEP: Duration = Duration::from_secs(1);
/// Accepted connections that wait for the server to take them.
const ACCEPTED_QUEUE: usize = 64;
/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;
/// Largest request where strangers or the data plane speak.
const MAX_SMALL_MESSAGE_BYTES: usize = 1 << 20;
/// Largest request of administrators and joined clusters.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Largest request between nodes: batches of log entries and parts of snapshots.
const MAX_NODE_MESSAGE_BYTES: usize = 64 << 20;
/// HTTP/2 PING, so that a dead path is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause after an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a handler may know of the connection that a request came over.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Who showed a certificate that was believed when the connection began.
    pub caller: Option<VerifiedCaller>,
    /// 32 bytes that only the two ends of this TLS session know.
    pub binding: [u8; 32],
    pub remote: SocketAddr,
}

/// One accepted connection. Reading from it fails once it has been cut.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    info: ConnInfo,
    cut: oneshot::Receiver<()>,
    is_cut: bool,
    _entry: TableEntry,
    _permit: OwnedSemaphorePermit,
}

/// All open connections and how to cut them.
#[derive(Default)]
struct Connections {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

struct Open {
    caller: Option<VerifiedCaller>,
    since: Timestamp,
    /// When its caller was first found to be no longer believed.
    unbelieved_since: Option<Timestamp>,
    cut: oneshot::Sender<()>,
}

/// Cuts every connection when it is dropped.
struct CutAll(Arc<Connections>);

impl Drop for CutAll {
    fn drop(&mut self) {
        for (_, open) in self.0.open().drain() {
            // A connection that is gone already needs no cutting.
            let _ = open.cut.send(());
        }
    }
}

struct TableEntry {
    id: u64,
    table: Arc<Connections>,
}

/// Serves until the node stops, then lets what is under way finish for a moment.
pub async fn serve(context: Arc<Context>, listener: TcpListener) -> anyhow::Result<()> {
    let (accepted, incoming) = mpsc::channel(ACCEPTED_QUEUE);
    let connections = Arc::new(Connections::default());
    // However this ends, nothing goes on accepting, and no connection outlives the server.
    let _cut = CutAll(connections.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(context.clone(), listener, connections.clone(), accepted));
    tasks.spawn(sweep(context.clone(), connections));
    let node = NodeService::new(context.handle.clone(), context.clone());
    let mut stop = context.stop.clone();
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .layer(RolesLayer::new(context.clone()))
        .add_service(
            IssueServer::new(IssueService::new(context.clone()))
                .max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES),
        )
        .add_service(
            WatchServer::new(WatchService::new(context.clone()))
                .max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES),
        )
        .add_service(NodeServer::new(node).max_decoding_message_size(MAX_NODE_MESSAGE_BYTES))
        .add_service(
            AdminServer::new(AdminService::new(context.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            PeerServer::new(PeerService::new(context.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
            stopped(&mut stop).await;
        })
        .await;
    Ok(served?)
}

async fn accept(
    context: Arc<Context>,
    listener: TcpListener,
    table: Arc<Connections>,
    accepted: mpsc::Sender<Result<Connection, io::Error>>,
) {
    let config = server_config(context.trust.clone(), context.own.clone(), ClientAuth::Optional, ALPN_H2);
    let acceptor = TlsAcceptor::from(config);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (tcp, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Latency matters more than packets here; a socket that refuses the option still works.
        let _ = tcp.set_nodelay(true);
        let (context, acceptor, table, accepted) =
            (context.clone(), acceptor.clone(), table.clone(), accepted.clone());
        tokio::spawn(async move {
            let _handshake = handshake;
            match greet(&context, &acceptor, tcp, remote, table, place).await {
                // A server that no longer takes connections is stopping.
                Ok(connection) => drop(accepted.send(Ok(connection)).await),
                Err(why) => {
                    context.metrics.handshakes_failed.inc();
                    tracing::debug!(%remote, %why, "handshake failed");
                }
            }
        });
    }
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
    #[error("{0}")]
    Tls(#[from] io::Error),
    #[error("{0}")]
    Caller(#[from] VerifyError),
    #[error("the TLS session gives no exporter")]
    NoExporter,
}

async fn greet(
    context: &Context,
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
    remote: SocketAddr,
    table: Arc<Connections>,
    permit: OwnedSemaphorePermit,
) -> Result<Connection, HandshakeError> {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp));
    let stream = handshake.await.map_err(|_| HandshakeError::Timeout)??;
    let session = stream.get_ref().1;
    let now = now();
    let caller = verified_peer(session, &context.trust.current(), now, Usage::Client)?;
    let binding = session_binding(session).ok_or(HandshakeError::NoExporter)?;
    let (cut, is_cut) = oneshot::channel();
    let entry =
        Connections::enter(table, Open { caller: caller.clone(), since: now, unbelieved_since: None, cut });
    let info = ConnInfo { caller, binding, remote };
    Ok(Connection { stream, info, cut: is_cut, is_cut: false, _entry: entry, _permit: permit })
}

/// Cuts connections whose caller is no longer believed: on every change of trust, and as time passes.
async fn sweep(context: Arc<Context>, connections: Arc<Connections>) {
    let mut states = context.handle.states();
    let mut seen = context.trust.current();
    let mut tick = tokio::time::interval(SWEEP);
    let mut leaving = false;
    loop {
        let timed = tokio::select! {
            _ = tick.tick() => true,
            () = tokio::time::sleep(FAREWELL_SWEEP), if leaving => true,
            changed = states.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
        };
        let trust = context.trust.current();
        if timed || !Arc::ptr_eq(&trust, &seen) {
            let (cut, left) = connections.cut_unbelieved(&trust, now());
            context.metrics.connections_cut.inc_by(cut);
            (leaving, seen) = (left, trust);
        }
    }
}

/// How long a caller that is no longer believed may still listen.
fn farewell(caller: &VerifiedCaller, error: &VerifyError) -> Duration {
    let member = caller.id().as_member().map(|(role, _)| role);
    match (error, member) {
        (VerifyError::UnknownTrustDomain(_), _) => PEER_FAREWELL,
        (VerifyError::Revoked { .. }, None | Some(MemberRole::Agent | MemberRole::Gateway)) => {
            REVOKED_FAREWELL
        }
        _ => Duration::ZERO,
    }
}

impl Open {
    /// Why the connection must end now, if it must.
    fn verdict(&mut self, trust: &Trust, now: Timestamp) -> Option<String> {
        let Some(caller) = &self.caller else {
            return (now.since(self.since) >= ANONYMOUS_LIFETIME).then(|| "no certificate".to_owned());
        };
        match caller.still_believed(trust, now) {
            Ok(()) => {
                self.unbelieved_since = None;
                None
            }
            Err(error) => {
                let since = *self.unbelieved_since.get_or_insert(now);
                (now.since(since) >= farewell(caller, &error)).then(|| error.to_string())
            }
        }
    }
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(table: Arc<Self>, open: Open) -> TableEntry {
        let id = table.next.fetch_add(1, Ordering::Relaxed);
        table.open().insert(id, open);
        TableEntry { id, table }
    }

    /// Cuts who must go; answers how many, and whether somebody is in its farewell.
    fn cut_unbelieved(&self, trust: &Trust, now: Timestamp) -> (u64, bool) {
        let mut table = self.open();
        let mut unbelieved = Vec::new();
        for (id, open) in table.iter_mut() {
            if let Some(why) = open.verdict(trust, now) {
                let caller = open.caller.as_ref().map(|c| c.id().to_string()).unwrap_or_default();
                tracing::info!(caller, why, "connection cut");
                unbelieved.push(*id);
            }
        }
        for id in &unbelieved {
            if let Some(open) = table.remove(id) {
                // A connection that is gone already needs no cutting.
                let _ = open.cut.send(());
            }
        }
        (unbelieved.len() as u64, table.values().any(|open| open.unbelieved_since.is_some()))
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        self.table.open().remove(&self.id);
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnInfo;

    fn connect_info(&self) -> ConnInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_cut {
            self.is_cut = Pin::new(&mut self.cut).poll(cx).is_ready();
        }
        if self.is_cut {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the caller is not believed",
            )));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
