//! Connections that the kernel has turned to us: programs that know nothing of a mesh dial virtual addresses, or anything
//! else. What goes to a service goes the way of requests or of plain TCP; the rest passes through unchanged.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::host::ServiceHost;
use http::Request;
use hyper::service::service_fn;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::Outbound;
use super::tcp::TcpTarget;
use crate::answer::Reason;
use crate::capture::{Destination, SNIFFED_BYTES, Spoken, destination, spoken};
use crate::io::body::OnEnd as _;
use crate::io::http::{Protocol, serve};
use crate::io::loops::{Entered, Loops};
use crate::io::record::{Direction, Record, TCP};
use crate::io::stream::{self, Ending};
use crate::runtime::addresses::Directory;
use crate::runtime::drain::Stop;
use crate::runtime::telemetry::Telemetry;
use crate::runtime::text::Text;

/// What all workers of a proxy have in common that takes captured connections.
pub struct Capture {
    pub directory: Arc<Directory>,
    /// Ports that are carried without a look.
    pub opaque: BTreeSet<u16>,
    loops: Arc<Loops>,
    captured: Family<CapturedLabels, Counter>,
}

/// `hanse_captured_connections_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CapturedLabels {
    /// `http`, `tcp` or `passthrough`; or why it was refused: `not_redirected`, `unknown_address`, `loop`, `overload`,
    /// `unreachable`; `nothing`: it ended before it had said anything.
    pub to: &'static str,
}

/// What requests and connections that leave the mesh are counted as.
const PASSTHROUGH: &str = "PassthroughCluster";
/// How long a client may say nothing until it is taken for one that waits for its server to speak.
const SPEAKS_WITHIN: Duration = Duration::from_secs(3);
/// How often its first bytes are looked at again while they decide nothing.
const PEEK_AGAIN: Duration = Duration::from_millis(2);
/// Longest wait for a destination outside the mesh.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// What passes through may be idle for as long as its own ends like; that both are there is asked in between.
const PASSTHROUGH_IDLE: Duration = Duration::from_secs(24 * 3600);
const ASK_AFTER: Duration = Duration::from_secs(60);

impl Capture {
    pub fn new(directory: Arc<Directory>, opaque: BTreeSet<u16>, telemetry: &Telemetry) -> Self {
        let captured = Family::default();
        let help = "Connections that were turned to the proxy, by what became of them";
        telemetry.register("hanse_captured_connections", help, captured.clone());
        Self { directory, opaque, loops: Arc::default(), captured }
    }

    fn count(&self, to: &'static str) {
        self.captured.get_or_create(&CapturedLabels { to }).inc();
    }
}

impl Outbound {
    /// Takes one captured connection to its end.
    pub async fn captured(self: Rc<Self>, capture: Arc<Capture>, client: TcpStream, stop: Stop) {
        let destination = match (original_destination(&client), client.local_addr()) {
            (Ok(original), Ok(local)) => destination(capture.directory.now().as_deref(), original, local),
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%error, "a connection that nobody turned to us");
                Destination::Ourselves
            }
        };
        match destination {
            Destination::Service(host, port) => self.to_service(&capture, host, port, client, stop).await,
            Destination::Elsewhere(to) => self.pass_through(&capture, to, client).await,
            Destination::Ourselves => {
                capture.count("not_redirected");
                stream::reset(&client);
            }
            Destination::Nobody => {
                capture.count("unknown_address");
                stream::reset(&client);
            }
        }
    }

    async fn to_service(
        self: Rc<Self>,
        capture: &Capture,
        host: Arc<ServiceHost>,
        port: u16,
        client: TcpStream,
        stop: Stop,
    ) {
        let protocol =
            if self.is_opaque(capture, &host, port) { Some(Spoken::Tcp) } else { told(&client).await };
        let protocol = match protocol {
            Some(Spoken::Http1) => Protocol::Http1,
            Some(Spoken::Http2) => Protocol::Http2,
            Some(Spoken::Tcp | Spoken::More) => {
                capture.count("tcp");
                let target = TcpTarget { host: host.as_ref().clone(), port };
                return self.carry(Arc::new(target), client).await;
            }
            None => return capture.count("nothing"),
        };
        capture.count("http");
        let telemetry = Arc::clone(&self.plane.telemetry);
        let service = service_fn(move |request| Rc::clone(&self).handle(Some(Arc::clone(&host)), request));
        serve(client, protocol, service, None, stop, &telemetry).await;
    }

    /// By what was said of the port, here or by a TCPRoute or TLSRoute.
    fn is_opaque(&self, capture: &Capture, host: &ServiceHost, port: u16) -> bool {
        let routed = || {
            let view = self.plane.knowledge.view()?;
            Some(self.tables(&view, host).streams.covers(port))
        };
        capture.opaque.contains(&port) || routed().unwrap_or_default()
    }

    /// Carries what is for nobody in the mesh, bytes as they are, from an address of this host.
    async fn pass_through(self: &Rc<Self>, capture: &Capture, to: SocketAddr, mut client: TcpStream) {
        let request =
            Request::connect(to.to_string()).body(()).expect("an address and port are an authority");
        let mut record = Record::begin(&self.reporter, Direction::Outbound, &request);
        record.entry.protocol = TCP;
        record.entry.upstream_cluster = Text::from(PASSTHROUGH.to_owned());
        let refused = |mut record: Record, reason: Reason, label: &'static str| {
            capture.count(label);
            record.refused(reason);
            record.on_end(0, true);
        };
        let Some(_place) = self.streams.place() else {
            refused(record, Reason::Overload, "overload");
            return stream::reset(&client);
        };
        let (mut server, _entered) = match dial(capture, &client, to).await {
            Ok(dialled) => dialled,
            Err(label) => {
                refused(record, Reason::Unreachable, label);
                return stream::reset(&client);
            }
        };
        capture.count("passthrough");
        for socket in [&client, &server] {
            let keepalive = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AFTER);
            let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
        }
        let ending = stream::carry(&mut client, &mut server, record, PASSTHROUGH_IDLE).await;
        if !matches!(ending, Ending::Complete) {
            stream::reset(&client);
            stream::reset(&server);
        }
    }
}

/// Connects to what the client wanted; `Err` says how that is counted.
async fn dial(
    capture: &Capture,
    client: &TcpStream,
    to: SocketAddr,
) -> Result<(TcpStream, [Entered; 2]), &'static str> {
    let looped = || {
        tracing::warn!(%to, "a connection of this proxy was turned back to it: does the redirection spare its user?");
        "loop"
    };
    let from = client.peer_addr().map_err(|_| "nothing")?;
    let accepted = capture.loops.accepted(from, to).ok_or_else(looped)?;
    let connected = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(to)).await;
    let server = connected.map_err(|_| "unreachable")?.map_err(|error| {
        tracing::debug!(%to, %error, "a destination outside the mesh");
        "unreachable"
    })?;
    let _ = server.set_nodelay(true);
    let from = server.local_addr().map_err(|_| "unreachable")?;
    let dialled = capture.loops.dialled(from, to).ok_or_else(looped)?;
    Ok((server, [accepted, dialled]))
}

/// What the client speaks, left where it is. `None`: it has gone.
async fn told(client: &TcpStream) -> Option<Spoken> {
    let mut first = [0u8; SNIFFED_BYTES];
    let looked = async {
        loop {
            let there = client.peek(&mut first).await.ok().filter(|there| *there > 0)?;
            match spoken(&first[..there]) {
                Spoken::More => tokio::time::sleep(PEEK_AGAIN).await,
                told => return Some(told),
            }
        }
    };
    tokio::time::timeout(SPEAKS_WITHIN, looked).await.unwrap_or(Some(Spoken::Tcp))
}

/// Where the client was going before the kernel turned it to us; its own local address if it did not.
#[cfg(target_os = "linux")]
pub fn original_destination(client: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(client);
    let original = match client.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    original.as_socket().ok_or_else(|| io::Error::other("the original destination is no address and port"))
}

#[cfg(not(target_os = "linux"))]
pub fn original_destination(_: &TcpStream) -> io::Result<SocketAddr> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
