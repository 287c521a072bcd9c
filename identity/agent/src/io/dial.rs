//! Dialling a control node: TCP, TLS, HTTP/2; and what its TLS says of our own SVID.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hanse_identity::tls;
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

pub const ALPN_H2: &[&[u8]] = &[b"h2"];
/// Server name where the connection's address already says who is dialled.
const SERVER_NAME: &str = "hanse.internal";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const TLS_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A finished connection to a control node. It is never made anew behind one's back: a proof or an identity
/// belongs to one TLS session.
pub struct Dialed {
    pub channel: Channel,
    /// What only the two ends of the TLS session know.
    pub binding: [u8; 32],
    pub alert: Alert,
}

/// The alert by which the control node ended the TLS session, once it has. A client of TLS 1.3 has finished its
/// handshake before its certificate is looked at, and the HTTP/2 library keeps no more of the error than its text: so it
/// is noted where it is read.
#[derive(Clone, Debug, Default)]
pub struct Alert(Arc<OnceLock<AlertDescription>>);

/// Why a control node cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("connecting takes longer than {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    #[error("connecting: {0}")]
    Connect(#[source] io::Error),
    #[error("the TLS handshake takes longer than {} s", TLS_TIMEOUT.as_secs())]
    TlsTimeout,
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    #[error("the control node does not accept the agent's SVID: TLS alert {0:?}")]
    Refused(AlertDescription),
    #[error("the TLS session cannot be bound to")]
    NoBinding,
    #[error("HTTP/2: {0}")]
    Http(#[from] tonic::transport::Error),
}

/// A TLS stream that notes the alert which ends it.
struct Heard {
    stream: TlsStream<TcpStream>,
    alert: Alert,
}

/// Dials a control node: TCP, TLS, HTTP/2.
pub async fn dial(endpoint: &str, config: Arc<rustls::ClientConfig>) -> Result<Dialed, DialError> {
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint)).await;
    let tcp = tcp.map_err(|_| DialError::ConnectTimeout)?.map_err(DialError::Connect)?;
    tcp.set_nodelay(true).map_err(DialError::Connect)?;
    let name = ServerName::try_from(SERVER_NAME).expect("the fixed server name is a DNS name");
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
    let alert = Alert::default();
    let refused = |or: DialError| alert.refusal().map_or(or, DialError::Refused);
    let stream = timeout(TLS_TIMEOUT, handshake).await.map_err(|_| DialError::TlsTimeout)?;
    let stream = stream.map_err(|error| {
        alert.note(&error);
        refused(DialError::Tls(error))
    })?;
    let binding = tls::session_binding(stream.get_ref().1).ok_or(DialError::NoBinding)?;
    let once = Arc::new(Mutex::new(Some(Heard { stream, alert: alert.clone() })));
    let connector = tower::service_fn(move |_uri: http::Uri| {
        let stream = once.lock().ok().and_then(|mut once| once.take());
        std::future::ready(
            stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection has ended")),
        )
    });
    let http = Endpoint::from_static("http://hanse.internal")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connected = timeout(TLS_TIMEOUT, http.connect_with_connector(connector)).await;
    let channel = connected.map_err(|_| DialError::TlsTimeout)?.map_err(|error| refused(error.into()))?;
    Ok(Dialed { channel, binding, alert })
}

impl Alert {
    /// The alert, if it says that our certificate is not accepted.
    pub fn refusal(&self) -> Option<AlertDescription> {
        use AlertDescription as A;
        let of_certificates = |alert: &A| {
            matches!(
                alert,
                A::NoCertificate
                    | A::BadCertificate
                    | A::UnsupportedCertificate
                    | A::CertificateRevoked
                    | A::CertificateExpired
                    | A::CertificateUnknown
                    | A::UnknownCA
                    | A::AccessDenied
                    | A::CertificateRequired
            )
        };
        self.0.get().copied().filter(of_certificates)
    }

    fn note(&self, error: &io::Error) {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            // Only the first ends the session.
            let _ = self.0.set(*alert);
        }
    }

    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.note(error);
        }
        polled
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.alert.noted(polled)
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.alert.noted(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.alert.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.alert.noted(polled)
    }
}
