//! Mesh connections: dialled once, shared by many requests, one pool per worker.
//!
//! A connection to a target of our own cluster is made here; one through gateways is made by `tunnel`, on a connection
//! that is pooled here as well. Concurrent requests for the same missing connection wait for one dial.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use hanse_federation::EndpointId;
use hanse_federation::sni::Sni;
use hanse_identity::frames::Frames;
use hanse_identity::tls::Expect;
use hanse_identity::{ClusterName, NodeName, ServiceName, SpiffeId, Timestamp};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::body::RequestBody;
use super::http::{MAX_HEAD_BYTES, MAX_SHARED_STREAMS, Protocol, Windows};
use super::metered::Metered;
use super::sever::Sever;
use super::tls::{self, About, Dialled, TlsRefusal};
use crate::connections::{Live, Order, Side};
use crate::runtime::text::Text;
use crate::runtime::worker::LocalExecutor;
use crate::runtime::{Plane, now};

/// One HTTP/2 connection of the mesh, to a workload or to a gateway.
pub struct MeshConnection {
    sender: SendRequest<RequestBody>,
    pub peer: SpiffeId,
    /// The same, as records have it.
    pub peer_text: Text,
    /// For a tunnel: our own gateway that it goes through, if it does.
    pub via: Option<NodeName>,
    /// The tunnel that it runs in, if it does: new requests go elsewhere when that is on its way out.
    pub outer: Option<Rc<MeshConnection>>,
    /// Let go when it has carried nothing for so long.
    pub idle_after: Duration,
    opened: Timestamp,
    used: Cell<Timestamp>,
    retired: Rc<Cell<bool>>,
    /// Streams that it carries, where it is for streams.
    carried: Arc<AtomicU32>,
    protocol: Protocol,
}

/// One stream's place on its connection, until its last clone is dropped.
#[derive(Clone)]
pub struct Carried(#[expect(dead_code, reason = "held for its end")] Arc<Place>);

struct Place(Arc<AtomicU32>);

/// What a connection is dialled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    Requests,
    /// Upgrades and plain TCP: on connections of their own, so that whoever does not read holds up no request.
    Streams,
}

/// How a connection came to take no more requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// We wanted it so.
    Retired,
    /// Pings were not answered.
    Silent,
    /// The other end, or something between, broke or ended it.
    Broken,
}

/// How soon silence on a connection is noticed.
#[derive(Clone, Copy, Debug)]
pub struct Pings {
    pub every: Duration,
    pub timeout: Duration,
}

/// What a pooled connection leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Straight to a proxy of our cluster.
    Endpoint(EndpointId, SocketAddr),
    /// End to end to some endpoint of a service in another cluster.
    Service(ServiceName, ClusterName),
    /// To a gateway of another cluster.
    Tunnel(ClusterName),
}

/// Why there is no connection. Shared by all who waited for the same dial.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("no connection: {0}")]
    Connect(String),
    #[error("no connection in time")]
    ConnectTimeout,
    #[error("{0}")]
    Tls(String),
    #[error("HTTP/2: {0}")]
    Http(String),
    /// A proxy of an older version; requests are as good there as ever.
    #[error("the proxy there takes no upgrades")]
    NoUpgrades,
    /// The far gateway has answered, and refused the CONNECT.
    #[error("the gateway refused with {status} {reason}")]
    Refused { status: u16, reason: String },
    /// No pair of gateways lets anything pass.
    #[error("no path to cluster {0}")]
    NoPath(ClusterName),
}

/// One worker's connections.
pub struct Pool {
    slots: RefCell<HashMap<Key, Slot>>,
}

type Dialling = Shared<LocalBoxFuture<'static, Result<Rc<MeshConnection>, DialError>>>;

#[derive(Default)]
struct Slot {
    ready: Vec<Rc<MeshConnection>>,
    next: usize,
    dialling: Option<Dialling>,
    /// No further connection is dialled beside the ready ones before this.
    not_before: Timestamp,
}

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pings on connections straight to a workload, inside a tunnel or not.
pub const WORKLOAD_PINGS: Pings = Pings { every: Duration::from_secs(1), timeout: Duration::from_secs(2) };
/// Pings on connections to another cluster's gateway: a dark path is noticed within two seconds.
pub const TUNNEL_PINGS: Pings =
    Pings { every: Duration::from_millis(500), timeout: Duration::from_millis(1500) };
/// A connection that carried nothing for so long is let go.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// An end-to-end connection through gateways is replaced after this, so that load finds new endpoints.
const SERVICE_MAX_AGE: Duration = Duration::from_secs(30);
/// Pause before another connection beside a ready one is tried again.
const SPREAD_AGAIN: Duration = Duration::from_secs(1);

impl MeshConnection {
    /// A stream on it, counted until it is dropped.
    pub fn carry(&self) -> Carried {
        self.carried.fetch_add(1, Ordering::Relaxed);
        Carried(Arc::new(Place(Arc::clone(&self.carried))))
    }

    fn has_room(&self) -> bool {
        self.carried.load(Ordering::Relaxed) < MAX_SHARED_STREAMS
    }

    /// Whether it takes upgrades (extended CONNECT, RFC 8441): who offers connections for streams does, and need not be
    /// waited for until its settings have come.
    pub fn takes_upgrades(&self) -> bool {
        self.protocol == Protocol::Streams
    }

    /// A handle to send on; cheap.
    pub fn sender(&self) -> SendRequest<RequestBody> {
        self.used.set(now());
        self.sender.clone()
    }

    pub fn is_usable(&self) -> bool {
        let outer_usable = self.outer.as_ref().is_none_or(|outer| outer.is_usable());
        !self.retired.get() && !self.sender.is_closed() && outer_usable
    }

    /// No new requests; what is in flight goes on.
    pub fn retire(&self) {
        self.retired.set(true);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl For {
    /// What is offered, best first: who does not know streams of their own takes them as any HTTP/2.
    pub fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Requests => &[tls::ALPN_H2],
            Self::Streams => &[tls::ALPN_STREAMS, tls::ALPN_H2],
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { slots: RefCell::new(HashMap::new()) }
    }
}

impl Pool {
    /// A usable connection for `key` to somebody whom `admits` accepts, dialled with `dial` if there is none. With
    /// `spread` above one, further ones are dialled beside it, without waiting, and used in turn.
    pub async fn connection(
        self: &Rc<Self>,
        key: Key,
        spread: usize,
        admits: impl Fn(&SpiffeId) -> bool,
        dial: impl Fn() -> LocalBoxFuture<'static, Result<MeshConnection, DialError>>,
    ) -> Result<Rc<MeshConnection>, DialError> {
        // As often as it takes: of all who waited for one connection, only so many have room on it. Whoever asks bounds this.
        loop {
            let dialling = {
                let mut slots = self.slots.borrow_mut();
                let slot = slots.entry(key.clone()).or_default();
                slot.ready.retain(|connection| connection.is_usable() && admits(&connection.peer));
                let room = slot.ready.iter().any(|connection| connection.has_room());
                let wanted = !room || (slot.ready.len() < spread && now() >= slot.not_before);
                if wanted && slot.dialling.is_none() {
                    slot.dialling = Some(self.start(key.clone(), dial()));
                }
                if let Some(connection) = slot.pick() {
                    return Ok(connection);
                }
                slot.dialling.clone()
            };
            let dialled = dialling.ok_or(DialError::ConnectTimeout)?.await?;
            if !admits(&dialled.peer) || !dialled.is_usable() {
                return Ok(dialled);
            }
        }
    }

    /// Usable connections for `key`.
    pub fn usable(&self, key: &Key) -> Vec<Rc<MeshConnection>> {
        let slots = self.slots.borrow();
        let ready = slots.get(key).into_iter().flat_map(|slot| &slot.ready);
        ready.filter(|connection| connection.is_usable()).cloned().collect()
    }

    /// Whether a request for `key` need not wait.
    pub fn is_ready(&self, key: &Key) -> bool {
        let slots = self.slots.borrow();
        slots.get(key).is_some_and(|slot| slot.ready.iter().any(|connection| connection.is_usable()))
    }

    /// Whether there is a connection for `key`, or will be.
    pub fn holds(&self, key: &Key) -> bool {
        let dialling = self.slots.borrow().get(key).is_some_and(|slot| slot.dialling.is_some());
        dialling || self.is_ready(key)
    }

    /// Lets go of what is dead, idle or old; called every few seconds.
    pub fn tidy(&self, now: Timestamp) {
        self.slots.borrow_mut().retain(|key, slot| {
            slot.ready.retain(|connection| {
                let old = matches!(key, Key::Service(..)) && now.since(connection.opened) > SERVICE_MAX_AGE;
                let idle = connection.carried.load(Ordering::Relaxed) == 0
                    && now.since(connection.used.get()) > connection.idle_after;
                if old || idle {
                    connection.retire();
                }
                connection.is_usable()
            });
            !slot.ready.is_empty() || slot.dialling.is_some()
        });
    }

    /// Starts a dial that runs on even if nobody waits for it any more.
    fn start(
        self: &Rc<Self>,
        key: Key,
        dial: LocalBoxFuture<'static, Result<MeshConnection, DialError>>,
    ) -> Dialling {
        let pool = Rc::downgrade(self);
        let dialling = async move {
            let dialled = dial.await.map(Rc::new);
            if let Some(pool) = pool.upgrade() {
                let mut slots = pool.slots.borrow_mut();
                let slot = slots.entry(key).or_default();
                slot.dialling = None;
                match &dialled {
                    Ok(connection) => slot.ready.push(Rc::clone(connection)),
                    Err(_) => slot.not_before = now() + SPREAD_AGAIN,
                }
            }
            dialled
        };
        let dialling = dialling.boxed_local().shared();
        tokio::task::spawn_local(dialling.clone().map(drop));
        dialling
    }
}

impl Slot {
    fn pick(&mut self) -> Option<Rc<MeshConnection>> {
        for _ in 0..self.ready.len() {
            self.next = (self.next + 1) % self.ready.len();
            if self.ready[self.next].has_room() {
                return Some(Rc::clone(&self.ready[self.next]));
            }
        }
        None
    }
}

/// Dials a proxy of our own cluster.
pub async fn dial_endpoint(
    plane: Arc<Plane>,
    address: SocketAddr,
    within: Duration,
    service: ServiceName,
    cluster: ClusterName,
    expect: Expect,
    what: For,
) -> Result<MeshConnection, DialError> {
    let tcp = connect(address, within).await?;
    let name = Sni::Service { service: service.clone(), cluster: cluster.clone() }.to_name();
    let about = About { side: Side::Outbound, service: Some(service), cluster: Some(cluster) };
    let dialled = tls::dial_for(what.protocols(), tcp, &plane, expect, name, about).await?;
    speak_http2(dialled, &plane, WORKLOAD_PINGS, |_| {}).await
}

/// TCP, bounded in time.
pub async fn connect(address: SocketAddr, within: Duration) -> Result<TcpStream, DialError> {
    let connected = tokio::time::timeout(within, TcpStream::connect(address)).await;
    let tcp = connected.map_err(|_| DialError::ConnectTimeout)?;
    let tcp = tcp.map_err(|e| DialError::Connect(e.to_string()))?;
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

/// HTTP/2 on a TLS connection that was dialled. `ended` is called when it takes no more requests.
pub async fn speak_http2<S>(
    dialled: Dialled<S>,
    plane: &Plane,
    pings: Pings,
    ended: impl FnOnce(Ended) + 'static,
) -> Result<MeshConnection, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let sever = Sever::default();
    let metered = Metered::new(dialled.stream, Frames::of_server(), Arc::clone(&plane.telemetry));
    let io = TokioIo::new(sever.wrap(metered));
    let windows = match dialled.protocol {
        Protocol::Streams => Windows::STREAMS,
        Protocol::Http1 | Protocol::Http2 => Windows::REQUESTS,
    };
    let mut http = hyper::client::conn::http2::Builder::new(LocalExecutor);
    http.timer(TokioTimer::new())
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .keep_alive_interval(pings.every)
        .keep_alive_timeout(pings.timeout)
        .keep_alive_while_idle(true);
    let handshake = http.handshake::<_, RequestBody>(io).await;
    let (sender, connection) = handshake.map_err(|e| DialError::Http(e.to_string()))?;
    let retired = Rc::new(Cell::new(false));
    let (peer, protocol) = (dialled.live.peer().id().clone(), dialled.protocol);
    let driver = drive(connection, dialled.live, sever, Rc::clone(&retired), ended);
    tokio::task::spawn_local(driver);
    Ok(MeshConnection {
        sender,
        peer_text: Text::of(&peer),
        peer,
        via: None,
        outer: None,
        idle_after: IDLE_AFTER,
        opened: now(),
        used: Cell::new(now()),
        retired,
        carried: Arc::default(),
        protocol,
    })
}

/// Runs a client connection, and obeys the connection table for as long as there is a socket: hyper's connection future
/// ends before the last streams on it do.
async fn drive<C>(
    connection: C,
    mut live: Live,
    sever: Sever,
    retired: Rc<Cell<bool>>,
    ended: impl FnOnce(Ended),
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection.fuse());
    let mut ended = Some(ended);
    loop {
        tokio::select! {
            biased;
            order = live.ordered() => match order {
                Order::Close(cause) => {
                    tracing::info!(cause = cause.label(), peer = %live.peer().id(), "connection closed");
                    retired.set(true);
                    sever.cut();
                }
                Order::Leave(_) => retired.set(true),
                Order::Stay => {}
            },
            outcome = connection.as_mut() => {
                if let Err(error) = &outcome {
                    tracing::debug!(%error, peer = %live.peer().id(), "mesh connection");
                }
                let how = match outcome {
                    _ if retired.replace(true) => Ended::Retired,
                    Err(error) if error.is_timeout() => Ended::Silent,
                    _ => Ended::Broken,
                };
                if let Some(ended) = ended.take() {
                    ended(how);
                }
            }
            () = sever.gone() => break,
        }
    }
    if let Some(ended) = ended {
        ended(if retired.replace(true) { Ended::Retired } else { Ended::Broken });
    }
}

impl From<TlsRefusal> for DialError {
    fn from(refusal: TlsRefusal) -> Self {
        match refusal {
            TlsRefusal::Timeout => Self::ConnectTimeout,
            other => Self::Tls(other.to_string()),
        }
    }
}
