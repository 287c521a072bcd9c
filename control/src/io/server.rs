//! The one gRPC port of a control node: accept, TLS, who is there, and the services behind the role table.
//!
//! Handshakes run in tasks of their own, bounded and timed. A connection whose caller is no longer believed is cut
//! with every stream on it, at once for a revocation.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use hanse_identity::frames::Frames;
use hanse_identity::name::MemberRole;
use hanse_identity::tls::{ClientAuth, server_config, session_binding, verified_peer};
use hanse_identity::{SpiffeId, Timestamp, Trust, TrustDomain, Usage, VerifiedCaller, VerifyError};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::admin::AdminService;
use super::context::{Context, now, stopped};
use super::cut::{self, Cut, Cutter, OtherEnd, cutter};
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
/// Of the places for handshakes and for connections, no one source has more than one in this many.
const SHARE: usize = 2;
/// Connections without a client certificate open at the same time.
pub const MAX_ANONYMOUS: usize = 256;
/// Connections that the nodes of one joined cluster may have open.
pub const MAX_PER_PEER: usize = 256;
/// Connections that one workload, gateway, agent or administrator may have open.
pub const MAX_PER_IDENTITY: usize = 1024;
/// Places that only nodes of this cluster get.
const KEPT_FOR_NODES: usize = 64;
/// File descriptors that are not for accepted connections: the store, links to other nodes, logs.
const KEPT_DESCRIPTORS: usize = 256;
/// How long a client may take over its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client whose certificate is refused may take to hear it, and what it may send meanwhile.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: u64 = 64 << 10;
/// How long a connection without a client certificate may last: enough to join.
pub const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(60);
/// How long a peer that has been removed may still hear that it was.
const PEER_FAREWELL: Duration = Duration::from_secs(2);
/// How long a revoked workload, gateway or agent may still hear that it was, and close its connections. Its streams
/// live on for that long; every new request of it is denied at once.
const REVOKED_FAREWELL: Duration = Duration::from_millis(500);
/// Accepted connections that wait for the server to take them.
const ACCEPTED_QUEUE: usize = 64;
/// Streams that one connection may have open.
const MAX_STREAMS: u32 = 256;
/// Bytes of a request's head, when decoded.
const MAX_HEAD_BYTES: u32 = 16 << 10;
/// Requests that a client took back before we had looked at them.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we have to reset for what a client did on them, in the life of its connection (MadeYouReset).
const MAX_PROVOKED_RESETS: usize = 256;
/// Largest request where strangers or the data plane speak.
const MAX_SMALL_MESSAGE_BYTES: usize = 1 << 20;
/// Largest request of administrators.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Largest message between nodes: batches of log entries, parts of snapshots, answers to a census.
pub const MAX_NODE_MESSAGE_BYTES: usize = 64 << 20;
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
    /// Whether a host has shown its certificate here: a session is a challenge for one proof.
    pub attested: Arc<AtomicBool>,
}

/// One accepted connection. Reading from it fails once it has been cut.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    frames: Frames,
    floods: Counter,
    info: ConnInfo,
    cut: Cut,
    _entry: TableEntry,
    _permit: OwnedSemaphorePermit,
}

/// All open connections and how to cut them.
struct Connections {
    next: AtomicU64,
    /// How many there may be.
    places: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Open>,
    /// How many connections each has.
    held: HashMap<Holder, usize>,
}

/// To whose account a connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Anonymous,
    /// A control node of this cluster.
    Node,
    /// The control nodes of a joined cluster.
    Peer(TrustDomain),
    Identity(SpiffeId),
}

struct Open {
    holder: Holder,
    caller: Option<OtherEnd>,
    since: Timestamp,
    cut: Cutter,
}

/// Cuts every connection when it is dropped.
struct CutAll(Arc<Connections>);

impl Drop for CutAll {
    fn drop(&mut self) {
        for (_, open) in self.0.table().open.drain() {
            open.cut.cut();
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
    let places = places(std::fs::read_to_string("/proc/self/limits").ok().as_deref());
    let connections = Arc::new(Connections::new(places));
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
        .http2_max_header_list_size(MAX_HEAD_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_PROVOKED_RESETS))
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
            // Strangers speak here too: an offer is what they may say most of.
            PeerServer::new(PeerService::new(context.clone()))
                .max_decoding_message_size(MAX_SMALL_MESSAGE_BYTES),
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
    let most = MAX_HANDSHAKES.min(table.places / 4).max(SHARE);
    let handshakes = Arc::new(Semaphore::new(most));
    let places = Arc::new(Semaphore::new(table.places));
    let mut sources: HashMap<IpAddr, std::sync::Weak<Semaphore>> = HashMap::new();
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
        // One source that shakes hands without end must not keep the others waiting.
        let source = sources.get(&remote.ip()).and_then(std::sync::Weak::upgrade).unwrap_or_else(|| {
            sources.retain(|_, source| source.strong_count() > 0);
            let source = Arc::new(Semaphore::new(most / SHARE));
            sources.insert(remote.ip(), Arc::downgrade(&source));
            source
        });
        let Ok(share) = source.try_acquire_owned() else {
            context.metrics.handshakes_failed.inc();
            continue;
        };
        // Latency matters more than packets here; a socket that refuses the option still works.
        let _ = tcp.set_nodelay(true);
        let (context, acceptor, table, accepted) =
            (context.clone(), acceptor.clone(), table.clone(), accepted.clone());
        tokio::spawn(async move {
            let _handshake = (handshake, share);
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
    #[error("{0} is of another cluster and no control node")]
    Foreign(SpiffeId),
    #[error("{0:?} has as many connections as it may")]
    TooMany(Holder),
}

async fn greet(
    context: &Context,
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
    remote: SocketAddr,
    table: Arc<Connections>,
    permit: OwnedSemaphorePermit,
) -> Result<Connection, HandshakeError> {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp).into_fallible());
    let stream = match handshake.await.map_err(|_| HandshakeError::Timeout)? {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            let refused = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            if matches!(refused, Some(rustls::Error::InvalidCertificate(_))) {
                linger(tcp).await;
            }
            return Err(error.into());
        }
    };
    let session = stream.get_ref().1;
    let now = now();
    let caller = verified_peer(session, &context.trust.current(), now, Usage::Client)?;
    let binding = session_binding(session).ok_or(HandshakeError::NoExporter)?;
    let holder = holder(&context.trust_domain, caller.as_ref())?;
    let (cutter, cut) = cutter();
    let open = Open { holder, caller: caller.clone().map(OtherEnd::new), since: now, cut: cutter };
    let entry = Connections::enter(table, open).map_err(HandshakeError::TooMany)?;
    let info = ConnInfo { caller, binding, remote, attested: Arc::default() };
    let (frames, floods) = (Frames::of_client(), context.metrics.floods.clone());
    Ok(Connection { stream, frames, floods, info, cut, _entry: entry, _permit: permit })
}

/// Lets a client whose certificate is refused read why: a socket that is closed with something unread in it resets the
/// connection, and the alert with it.
async fn linger(mut tcp: TcpStream) {
    let farewell = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    // Whoever does not go has had its time.
    let _ = tokio::time::timeout(LINGER, farewell).await;
}

fn holder(own: &TrustDomain, caller: Option<&VerifiedCaller>) -> Result<Holder, HandshakeError> {
    let Some(id) = caller.map(VerifiedCaller::id) else { return Ok(Holder::Anonymous) };
    match id.as_member() {
        Some((MemberRole::Node, _)) if id.trust_domain() == own => Ok(Holder::Node),
        Some((MemberRole::Node, _)) => Ok(Holder::Peer(id.trust_domain().clone())),
        _ if id.trust_domain() == own => Ok(Holder::Identity(id.clone())),
        // There is nothing here for it.
        _ => Err(HandshakeError::Foreign(id.clone())),
    }
}

/// How many connections may be open, so that descriptors are left for the node itself. `limits` is what
/// `/proc/self/limits` says.
fn places(limits: Option<&str>) -> usize {
    let line = limits.and_then(|text| text.lines().find_map(|line| line.strip_prefix("Max open files")));
    let soft = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<usize>().ok());
    let Some(soft) = soft else { return MAX_CONNECTIONS };
    soft.saturating_sub(KEPT_DESCRIPTORS).clamp(2 * KEPT_FOR_NODES, MAX_CONNECTIONS)
}

/// Cuts connections whose caller is no longer believed, and counts those below an outgoing authority.
async fn sweep(context: Arc<Context>, connections: Arc<Connections>) {
    let (trust, states) = (context.trust.clone(), context.handle.states());
    cut::sweep(trust, states, |revision, trust| {
        let (cut, leaving) = connections.cut_unbelieved(trust, now());
        context.metrics.connections_cut.inc_by(cut);
        context.callers.set(revision, connections.outgoing(trust));
        leaving
    })
    .await;
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
        let Some(caller) = &mut self.caller else {
            return (now.since(self.since) >= ANONYMOUS_LIFETIME).then(|| "no certificate".to_owned());
        };
        caller.verdict(trust, now, farewell).map(|error| error.to_string())
    }

    fn is_leaving(&self) -> bool {
        self.caller.as_ref().is_some_and(OtherEnd::is_leaving)
    }
}

impl Connections {
    fn new(places: usize) -> Self {
        Self { next: AtomicU64::new(0), places, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(table: Arc<Self>, open: Open) -> Result<TableEntry, Holder> {
        let id = table.next.fetch_add(1, Ordering::Relaxed);
        let (places, mut entries) = (table.places, table.table());
        let most = match open.holder {
            Holder::Node => usize::MAX,
            Holder::Anonymous => MAX_ANONYMOUS,
            Holder::Peer(_) => MAX_PER_PEER,
            Holder::Identity(_) => MAX_PER_IDENTITY,
        };
        let held = entries.held.get(&open.holder).copied().unwrap_or(0);
        let full = open.holder != Holder::Node && entries.open.len() >= places.saturating_sub(KEPT_FOR_NODES);
        if full || held >= most.min(places / SHARE) {
            return Err(open.holder);
        }
        *entries.held.entry(open.holder.clone()).or_default() += 1;
        entries.open.insert(id, open);
        drop(entries);
        Ok(TableEntry { id, table })
    }

    /// How many callers were authenticated by an outgoing authority, by its trust domain. Administrators come and go
    /// with their commands.
    fn outgoing(&self, trust: &Trust) -> BTreeMap<TrustDomain, u64> {
        let mut outgoing = BTreeMap::new();
        let table = self.table();
        for caller in table.open.values().filter_map(|open| Some(&open.caller.as_ref()?.verified)) {
            let administrator = matches!(caller.id().as_member(), Some((MemberRole::Admin, _)));
            if !administrator && caller.is_outgoing(trust) {
                *outgoing.entry(caller.id().trust_domain().clone()).or_default() += 1;
            }
        }
        outgoing
    }

    /// Cuts who must go; answers how many, and whether somebody is in its farewell.
    fn cut_unbelieved(&self, trust: &Trust, now: Timestamp) -> (u64, bool) {
        let mut table = self.table();
        let mut unbelieved = Vec::new();
        for (id, open) in &mut table.open {
            if let Some(why) = open.verdict(trust, now) {
                let caller = open.caller.as_ref().map(|c| c.verified.id().to_string()).unwrap_or_default();
                tracing::info!(caller, why, "connection cut");
                unbelieved.push(*id);
            }
        }
        for id in &unbelieved {
            if let Some(open) = table.remove(id) {
                open.cut.cut();
            }
        }
        (unbelieved.len() as u64, table.open.values().any(Open::is_leaving))
    }
}

impl Table {
    fn remove(&mut self, id: &u64) -> Option<Open> {
        let open = self.open.remove(id)?;
        if let Some(held) = self.held.get_mut(&open.holder) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&open.holder);
            }
        }
        Some(open)
    }
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        self.table.table().remove(&self.id);
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
        if let Err(cut) = self.cut.check(cx) {
            return Poll::Ready(Err(cut));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Err(flood) = self.frames.received(&buffer.filled()[before..], Instant::now) {
            self.floods.inc();
            let caller = self.info.caller.as_ref().map(|caller| caller.id().to_string()).unwrap_or_default();
            tracing::warn!(caller, remote = %self.info.remote, %flood, "connection closed");
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.frames.sent(&bytes[..written]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(holder: Holder) -> Open {
        Open { holder, caller: None, since: Timestamp(1), cut: cutter().0 }
    }

    #[test]
    fn strangers_and_one_identity_do_not_take_the_places_of_all() {
        let table = Arc::new(Connections::new(MAX_CONNECTIONS));
        let enter = |holder: &Holder| Connections::enter(table.clone(), open(holder.clone()));
        let thief = Holder::Identity("spiffe://east.example/ns/shop/sa/thief".parse().unwrap());
        let peer = Holder::Peer("west.example".parse().unwrap());
        for (holder, most) in
            [(&Holder::Anonymous, MAX_ANONYMOUS), (&peer, MAX_PER_PEER), (&thief, MAX_PER_IDENTITY)]
        {
            let mut entered: Vec<_> = (0..most).map(|_| enter(holder).ok().unwrap()).collect();
            assert_eq!(enter(holder).err().as_ref(), Some(holder));
            assert!(enter(&Holder::Node).is_ok());
            entered.pop();
            assert!(enter(holder).is_ok(), "a place that was given back is free");
        }
        let table = table.table();
        assert!(table.open.is_empty() && table.held.is_empty());
    }

    #[test]
    fn the_last_places_are_for_the_nodes_of_this_cluster() {
        let places = 2 * KEPT_FOR_NODES;
        let table = Arc::new(Connections::new(places));
        let enter = |holder: &Holder| Connections::enter(table.clone(), open(holder.clone()));
        let many: Vec<_> = (0..places)
            .filter_map(|n| {
                let id = format!("spiffe://east.example/ns/shop/sa/w{n}").parse().unwrap();
                enter(&Holder::Identity(id)).ok()
            })
            .collect();
        assert_eq!(many.len(), places - KEPT_FOR_NODES);
        assert!((0..KEPT_FOR_NODES).map(|_| enter(&Holder::Node)).all(|entry| entry.is_ok()));
    }

    #[test]
    fn places_leave_descriptors_for_the_node_itself() {
        let limits =
            |soft: &str| format!("Limit  Soft Hard Units\nMax open files            {soft} 4096 files\n");
        assert_eq!(places(Some(&limits("1024"))), 1024 - KEPT_DESCRIPTORS);
        assert_eq!(places(Some(&limits("1048576"))), MAX_CONNECTIONS);
        assert_eq!(places(Some(&limits("unlimited"))), MAX_CONNECTIONS);
        assert_eq!(places(Some(&limits("64"))), 2 * KEPT_FOR_NODES);
        assert_eq!(places(None), MAX_CONNECTIONS);
    }
}
