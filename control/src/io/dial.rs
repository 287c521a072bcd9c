//! Dialling: TCP, then our TLS, then gRPC over it. Everything a control node or the CLI dials goes through here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hanse_identity::tls::{IdentitySource, TlsIdentity, TrustSource, session_binding};
use hanse_identity::{Timestamp, Trust, Usage, VerifiedCaller, VerifyError};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// The application protocol of gRPC.
pub const ALPN_H2: &[&[u8]] = &[b"h2"];
/// Server name where no name decides anything: the SPIFFE ID does.
pub const FIXED_SERVER_NAME: &str = "hanse.internal";
/// How long a TCP connect may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 PING on every dialled connection, so that a dead path is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    #[error("{address} cannot be reached: {why}")]
    Unreachable { address: String, why: String },
    #[error("{address} did not answer within {after:?}")]
    Timeout { address: String, after: Duration },
    #[error("{address} is not who was expected: {why}")]
    Tls { address: String, why: String },
}

/// One connection and the channel on it; the channel does not reconnect, so the binding stays true.
#[derive(Clone, Debug)]
pub struct Link {
    pub channel: Channel,
    /// 32 bytes that only the two ends of this TLS session know.
    pub binding: [u8; 32],
    /// What the server showed (DER, leaf first).
    chain: Vec<Vec<u8>>,
}

impl Link {
    /// Who the server is, to be asked again while the link lasts.
    pub fn server(&self, trust: &Trust, now: Timestamp) -> Result<VerifiedCaller, VerifyError> {
        let chain: Vec<&[u8]> = self.chain.iter().map(Vec::as_slice).collect();
        hanse_identity::verify(trust, &chain, now, Usage::Server)
    }
}

/// Opens a TLS connection.
pub async fn tls(
    address: &str,
    server_name: &str,
    config: Arc<rustls::ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let tcp = tcp(address).await?;
    let name = rustls_pki_types::ServerName::try_from(server_name.to_owned())
        .map_err(|e| DialError::Tls { address: address.to_owned(), why: e.to_string() })?;
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(tls_error(address, &error)),
        Err(_) => Err(DialError::Timeout { address: address.to_owned(), after: HANDSHAKE_TIMEOUT }),
    }
}

/// Opens a TCP connection.
pub async fn tcp(address: &str) -> Result<TcpStream, DialError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // Latency matters more than packets here; a socket that refuses the option still works.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(DialError::Unreachable { address: address.to_owned(), why: error.to_string() }),
        Err(_) => Err(DialError::Timeout { address: address.to_owned(), after: CONNECT_TIMEOUT }),
    }
}

fn tls_error(address: &str, error: &std::io::Error) -> DialError {
    let address = address.to_owned();
    match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(tls) => DialError::Tls { address, why: tls.to_string() },
        None => DialError::Unreachable { address, why: error.to_string() },
    }
}

/// Dials once and speaks gRPC over that one connection; when it is gone, the channel is.
pub async fn connect(address: &str, config: Arc<rustls::ClientConfig>) -> Result<Link, DialError> {
    let stream = tls(address, FIXED_SERVER_NAME, config).await?;
    let binding = session_binding(stream.get_ref().1).ok_or_else(|| DialError::Tls {
        address: address.to_owned(),
        why: "the TLS session gives no exporter".to_owned(),
    })?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|der| der.to_vec()).collect();
    Ok(Link { channel: over(address, stream).await?, binding, chain })
}

/// Speaks gRPC over a connection that is there already; when it is gone, the channel is.
pub async fn over<S>(address: &str, stream: S) -> Result<Channel, DialError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            stream
                .map(TokioIo::new)
                .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotConnected, Gone))
        }
    });
    let unreachable = |why: String| DialError::Unreachable { address: address.to_owned(), why };
    endpoint().connect_with_connector(connector).await.map_err(|e| unreachable(with_sources(&e)))
}

/// A channel that dials when it is first used, and again when its connection is gone.
pub fn lazy<D, F, S>(dial: D) -> Channel
where
    D: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, DialError>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let dialled = dial();
        async move { dialled.await.map(TokioIo::new).map_err(std::io::Error::other) }
    }))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://hanse.internal")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// The connection of a `Link` had ended before a request could be sent on it.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection is gone")]
pub struct Gone;

/// Whether a failed request certainly never left: its `Link` was gone already.
pub fn never_sent(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<Gone>()) {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error and what caused it, in one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// A trust that does not change: for one conversation.
pub struct FixedTrust(pub Arc<Trust>);

impl TrustSource for FixedTrust {
    fn trust(&self) -> Arc<Trust> {
        self.0.clone()
    }
}

/// An identity that does not change.
pub struct FixedIdentity(pub Option<Arc<TlsIdentity>>);

impl FixedIdentity {
    pub fn new(svid: &hanse_identity::Svid) -> Result<Self, VerifyError> {
        TlsIdentity::new(svid).map(|identity| Self(Some(Arc::new(identity))))
    }
}

impl IdentitySource for FixedIdentity {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        self.0.clone()
    }
}
