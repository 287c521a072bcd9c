//! Connections out of the mesh: TCP or TLS to a service outside, HTTP/1.1 or HTTP/2 on it, pooled per worker.
//!
//! Nothing of ours is shown there: no SVID, no header of the mesh. Whoever answers is believed by the roots and the name that
//! a BackendTLSPolicy says, and by nothing else; without one there is no TLS of the mesh's.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::policy::document::edge::TlsValidation;
use hanse_identity::frames::Frames;
use hanse_identity::tls::outside::{named_client_config, read_roots, web_client_config};
use hanse_identity::{ServiceName, Timestamp};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::body::RequestBody;
use super::dial::{DialError, connect};
use super::http::{CONNECTION_WINDOW, MAX_HEAD_BYTES, MAX_HEADERS, STREAM_WINDOW};
use super::metered::Metered;
use super::tls::{ALPN_H2, ALPN_HTTP1, DIAL_TIMEOUT};
use crate::runtime::now;
use crate::runtime::telemetry::Telemetry;
use crate::runtime::worker::LocalExecutor;

/// One worker's connections.
pub struct Outsiders {
    telemetry: Arc<Telemetry>,
    slots: RefCell<HashMap<Place, Slot>>,
    /// By service: what it was made of, and what came of it.
    tls: RefCell<HashMap<ServiceName, (TlsValidation, Tls)>>,
}

/// Where a connection leads, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
    /// Without TLS nobody can ask which it is to be.
    pub prefers_http2: bool,
    /// Whether it may be at an address of this host's own.
    pub may_be_here: bool,
}

/// Whom we take for the service. Equal if it is the same configuration: another policy has connections of its own.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
}

/// A connection to ask on.
pub enum Connection {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

#[derive(Default)]
struct Slot {
    /// The one used last at the end.
    idle: VecDeque<(Timestamp, http1::SendRequest<RequestBody>)>,
    shared: Option<(Timestamp, http2::SendRequest<RequestBody>)>,
}

/// HTTP/1.1 connections to one place that are kept.
const MAX_IDLE: usize = 64;
/// A connection that was not used for so long is let go: before common servers do it.
const IDLE_AFTER: Duration = Duration::from_secs(30);
/// How a server that is gone without a word is noticed.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl Eq for Tls {}

impl Hash for Tls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.config).hash(state);
    }
}

impl Outsiders {
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, slots: RefCell::default(), tls: RefCell::default() }
    }

    /// The TLS for a service, made once for the same words.
    pub async fn tls(&self, service: &ServiceName, wanted: &TlsValidation) -> Result<Tls, String> {
        if let Some((validation, tls)) = self.tls.borrow().get(service)
            && validation == wanted
        {
            return Ok(tls.clone());
        }
        let roots = match &wanted.ca_certificates {
            Some(pem) => Arc::new(read_roots(pem)?),
            None => system_roots().await?,
        };
        let tls = Tls::new(&roots, wanted)?;
        self.tls.borrow_mut().insert(service.clone(), (wanted.clone(), tls.clone()));
        Ok(tls)
    }

    /// A connection to the place, and whether it is new.
    pub async fn connection(&self, place: &Place, within: Duration) -> Result<(Connection, bool), DialError> {
        if let Some(connection) = self.slots.borrow_mut().get_mut(place).and_then(Slot::take) {
            return Ok((connection, false));
        }
        let tcp = connect(place.address, within).await?;
        if !place.may_be_here && is_this_host(&tcp) {
            let why = format!("{} is this host itself (allowLocalAddresses)", place.address);
            return Err(DialError::Connect(why));
        }
        let Some(tls) = &place.tls else {
            return Ok((self.speak(place, tcp, place.prefers_http2).await?, true));
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
        let handshake =
            tokio::time::timeout(DIAL_TIMEOUT.max(within), connector.connect(tls.name.clone(), tcp));
        let stream = handshake.await.map_err(|_| DialError::ConnectTimeout)?;
        let stream = stream.map_err(|e| DialError::Tls(format!("TLS with {}: {e}", place.address)))?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_H2);
        Ok((self.speak(place, stream, is_http2).await?, true))
    }

    async fn speak<S>(&self, place: &Place, stream: S, is_http2: bool) -> Result<Connection, DialError>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let failed = |e: hyper::Error| DialError::Http(e.to_string());
        if !is_http2 {
            let mut http = http1::Builder::new();
            http.max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS);
            let (sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(failed)?;
            tokio::task::spawn_local(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection to a service outside");
                }
            });
            return Ok(Connection::Http1(sender));
        }
        // A stranger least of all may flood us with frames.
        let io = TokioIo::new(Metered::new(stream, Frames::of_server(), Arc::clone(&self.telemetry)));
        let mut http = http2::Builder::new(LocalExecutor);
        http.timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        let (sender, connection) = http.handshake(io).await.map_err(failed)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP/2 connection to a service outside");
            }
        });
        // Who dialled at the same time uses its own for what it has; the last one stays.
        let shared = Some((now(), sender.clone()));
        self.slots.borrow_mut().entry(place.clone()).or_default().shared = shared;
        Ok(Connection::Http2(sender))
    }

    /// Keeps a connection for the next request; it may still have an answer on it.
    pub fn give_back(&self, place: &Place, connection: Connection) {
        let Connection::Http1(sender) = connection else { return };
        let mut slots = self.slots.borrow_mut();
        let slot = slots.entry(place.clone()).or_default();
        if slot.idle.len() >= MAX_IDLE {
            slot.idle.pop_front();
        }
        slot.idle.push_back((now(), sender));
    }

    /// Lets go of what is closed or idle, and of the TLS of services that `is_known` has not; called every few seconds.
    pub fn tidy(&self, now: Timestamp, is_known: impl Fn(&ServiceName) -> bool) {
        self.slots.borrow_mut().retain(|_, slot| {
            slot.idle.retain(|(used, sender)| !sender.is_closed() && now.since(*used) < IDLE_AFTER);
            slot.shared.take_if(|(used, sender)| sender.is_closed() || now.since(*used) > IDLE_AFTER);
            !slot.idle.is_empty() || slot.shared.is_some()
        });
        self.tls.borrow_mut().retain(|service, _| is_known(service));
    }
}

impl Slot {
    fn take(&mut self) -> Option<Connection> {
        if let Some((used, sender)) = self.shared.as_mut().filter(|(_, sender)| !sender.is_closed()) {
            *used = now();
            return Some(Connection::Http2(sender.clone()));
        }
        // One may still be on its way to readiness: those before it are asked then.
        for at in (0..self.idle.len()).rev() {
            let (_, sender) = &self.idle[at];
            if sender.is_ready() {
                return self.idle.remove(at).map(|(_, sender)| Connection::Http1(sender));
            }
            if sender.is_closed() {
                self.idle.remove(at);
            }
        }
        None
    }
}

impl Tls {
    fn new(roots: &[CertificateDer<'_>], wanted: &TlsValidation) -> Result<Self, String> {
        const ALPN: &[&[u8]] = &[ALPN_H2, ALPN_HTTP1];
        let name = ServerName::try_from(wanted.hostname.clone());
        let name = name.map_err(|_| format!("{:?} is no server name", wanted.hostname))?;
        let alternatives: Vec<String> =
            wanted.subject_alt_names.iter().map(|name| name.hostname.clone()).collect();
        let config = match alternatives.is_empty() {
            true => web_client_config(roots, ALPN),
            false => named_client_config(roots, &alternatives, ALPN),
        };
        Ok(Self { config: config.map_err(|e| e.to_string())?, name })
    }
}

/// Whether a connection has this host at both ends. No list knows its addresses: the kernel takes the same one for both where
/// a connection does not leave.
fn is_this_host(tcp: &TcpStream) -> bool {
    let both = tcp.peer_addr().and_then(|peer| Ok((peer.ip(), tcp.local_addr()?.ip())));
    both.is_ok_and(|(peer, local)| peer.to_canonical() == local.to_canonical())
}

/// The roots of this system, read once in the life of the process.
async fn system_roots() -> Result<Arc<Vec<CertificateDer<'static>>>, String> {
    static ROOTS: OnceCell<Arc<Vec<CertificateDer<'static>>>> = OnceCell::const_new();
    let read = || async {
        let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
        let loaded = loaded.map_err(|e| e.to_string())?;
        match loaded.certs.is_empty() {
            true => Err("this system has no roots: install its ca-certificates".to_owned()),
            false => Ok(Arc::new(loaded.certs)),
        }
    };
    ROOTS.get_or_try_init(read).await.cloned()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_address_of_this_host_is_nowhere_outside() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // What is on no list: as an address of its network card would be.
        let place = |may_be_here| Place { address, tls: None, prefers_http2: false, may_be_here };
        let within = Duration::from_secs(5);
        let refused = Outsiders::new(Arc::default()).connection(&place(false), within).await.err().unwrap();
        assert!(refused.to_string().contains("this host itself"), "{refused}");
        let from_elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
        from_elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        assert!(!is_this_host(&from_elsewhere.connect(address).await.unwrap()));
        let local = tokio::task::LocalSet::new();
        let allowed = async { Outsiders::new(Arc::default()).connection(&place(true), within).await.is_ok() };
        assert!(local.run_until(allowed).await, "where the document says so");
    }
}
