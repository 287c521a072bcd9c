//! TLS on a socket: the handshake, the proof of who is there, and the entry in the connection table, in this order.
//!
//! The configurations are `hanse_identity::tls`'s; nothing here decides whom to believe.

use std::sync::Arc;
use std::time::Duration;

use hanse_identity::name::SpiffeId;
use hanse_identity::tls::{Expect, IdentitySource, TlsIdentity, TrustSource, client_config, verified_peer};
use hanse_identity::{ClusterName, RevocationId, ServiceName, Usage, VerifyError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use super::http::Protocol;
use crate::connections::{Entrant, Live, Side};
use crate::runtime::knowledge::HANDSHAKE_WAITS;
use crate::runtime::view::INTERNAL_NAME;
use crate::runtime::{Plane, now};
use crate::staleness::Stale;

/// Longest TLS handshake as a server.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest TLS handshake as a client.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(1500);
pub const ALPN_H2: &[u8] = b"h2";
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
/// HTTP/2 whose streams are long: CONNECT only, with windows for that.
pub const ALPN_STREAMS: &[u8] = b"hanse-streams";

/// A connection that was accepted, verified, entered in the table and checked again.
pub struct Accepted<S> {
    pub stream: tokio_rustls::server::TlsStream<S>,
    pub live: Live,
    /// Lower-case hex SHA-256 of the caller's leaf certificate.
    pub caller_hash: String,
    /// The identity that was shown to the caller.
    pub own: SpiffeId,
    pub protocol: Protocol,
}

/// A connection that was dialled, likewise.
pub struct Dialled<S> {
    pub stream: tokio_rustls::client::TlsStream<S>,
    pub live: Live,
    pub protocol: Protocol,
}

/// What the connection table is told beside who is there.
#[derive(Clone, Debug)]
pub struct About {
    pub side: Side,
    pub service: Option<ServiceName>,
    pub cluster: Option<ClusterName>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsRefusal {
    #[error("we have no SVID")]
    NoIdentity,
    /// Whoever does not know it yet would still let us in: we do not ask.
    #[error("our own identity is revoked by {0}")]
    OwnRevoked(RevocationId),
    /// What is known of revocations is too old to let anybody in, or to go to anybody.
    #[error(transparent)]
    Stale(#[from] Stale),
    #[error("the handshake took too long")]
    Timeout,
    #[error("the handshake failed: {0}")]
    Handshake(#[source] std::io::Error),
    #[error("the other end is not believed: {0}")]
    NotBelieved(#[from] VerifyError),
}

impl TlsRefusal {
    /// Label of `hanse_refused_total`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoIdentity => "no_identity",
            Self::OwnRevoked(_) => "own_revoked",
            Self::Stale(_) => "stale_revocations",
            Self::Timeout => "handshake_timeout",
            Self::NotBelieved(error) => verify_label(error),
            Self::Handshake(error) => {
                let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
                tls.map_or("handshake", tls_label)
            }
        }
    }
}

fn verify_label(error: &VerifyError) -> &'static str {
    match error {
        VerifyError::NoCertificate => "no_certificate",
        VerifyError::Revoked { .. } => "revoked",
        VerifyError::Expired => "expired",
        VerifyError::UnknownTrustDomain(_) => "unknown_trust_domain",
        VerifyError::UnknownAuthority(_) => "unknown_root",
        VerifyError::Unexpected(_) => "wrong_identity",
        VerifyError::NotAnSvid(_) | VerifyError::Path(_) => "bad_certificate",
    }
}

fn tls_label(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as Bad;
    match error {
        rustls::Error::NoCertificatesPresented => "no_certificate",
        rustls::Error::InvalidCertificate(Bad::Other(other)) => {
            other.0.downcast_ref::<VerifyError>().map_or("bad_certificate", verify_label)
        }
        rustls::Error::InvalidCertificate(Bad::Revoked) => "revoked",
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::NotValidYet) => "expired",
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => "unknown_root",
        rustls::Error::InvalidCertificate(_) => "bad_certificate",
        rustls::Error::InvalidMessage(_) => "not_tls",
        rustls::Error::PeerIncompatible(_) => "tls_version",
        _ => "handshake",
    }
}

/// Accepts: handshake (bounded), then proof, then the table, then the check that no revocation fell between.
pub async fn accept<S>(
    io: S,
    config: &Arc<rustls::ServerConfig>,
    plane: &Plane,
    about: About,
) -> Result<Accepted<S>, TlsRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    plane.admits_new(now())?;
    let own = own_identity(plane).await?;
    let handshake = tokio_rustls::TlsAcceptor::from(Arc::clone(config)).accept(io);
    let handshake = tokio::time::timeout(ACCEPT_TIMEOUT, handshake).await;
    let stream = handshake.map_err(|_| TlsRefusal::Timeout)?.map_err(TlsRefusal::Handshake)?;
    let connection = stream.get_ref().1;
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(VerifyError::NoCertificate)?;
    let caller_hash = sha256_hex(leaf);
    let protocol = chosen(connection, Protocol::Http1);
    let shown = own.facts.id.clone();
    let live = enter(connection, plane, own, Usage::Client, about)?;
    Ok(Accepted { stream, live, caller_hash, own: shown, protocol })
}

/// Dials TLS over `io`: handshake (bounded) with whoever `expect` names, then as `accept`. `name` is the SNI.
pub async fn dial<S>(
    io: S,
    plane: &Plane,
    expect: Expect,
    name: Option<String>,
    about: About,
) -> Result<Dialled<S>, TlsRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    dial_for(&[ALPN_H2], io, plane, expect, name, about).await
}

/// As `dial`, for one of these protocols.
pub async fn dial_for<S>(
    protocols: &[&[u8]],
    io: S,
    plane: &Plane,
    expect: Expect,
    name: Option<String>,
    about: About,
) -> Result<Dialled<S>, TlsRefusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    plane.admits_new(now())?;
    let own = own_identity(plane).await?;
    let trust: Arc<dyn TrustSource> = Arc::clone(&plane.knowledge) as _;
    let identity: Arc<dyn IdentitySource> = Arc::clone(&plane.credentials) as _;
    let config = client_config(trust, identity, expect, protocols);
    let name = name
        .and_then(|name| ServerName::try_from(name).ok())
        .unwrap_or_else(|| ServerName::try_from(INTERNAL_NAME).expect("the internal name is a DNS name"));
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, io);
    let handshake = tokio::time::timeout(DIAL_TIMEOUT, handshake).await;
    let stream = handshake.map_err(|_| TlsRefusal::Timeout)?.map_err(TlsRefusal::Handshake)?;
    let live = enter(stream.get_ref().1, plane, own, Usage::Server, about)?;
    let protocol = chosen(stream.get_ref().1, Protocol::Http2);
    Ok(Dialled { stream, live, protocol })
}

/// What ALPN chose.
fn chosen(connection: &rustls::CommonState, otherwise: Protocol) -> Protocol {
    match connection.alpn_protocol() {
        Some(ALPN_H2) => Protocol::Http2,
        Some(ALPN_STREAMS) => Protocol::Streams,
        _ => otherwise,
    }
}

/// The identity to show, if we may show it.
async fn own_identity(plane: &Plane) -> Result<Arc<TlsIdentity>, TlsRefusal> {
    match &plane.knowledge.settled(HANDSHAKE_WAITS).await.own_revoked {
        Some(revocation) => Err(TlsRefusal::OwnRevoked(revocation.clone())),
        None => plane.credentials.identity().ok_or(TlsRefusal::NoIdentity),
    }
}

fn enter(
    connection: &rustls::CommonState,
    plane: &Plane,
    own: Arc<TlsIdentity>,
    usage: Usage,
    about: About,
) -> Result<Live, TlsRefusal> {
    let trust = plane.knowledge.trust();
    let peer = verified_peer(connection, &trust, now(), usage)?.ok_or(VerifyError::NoCertificate)?;
    let entrant = Entrant { side: about.side, peer, own, service: about.service, cluster: about.cluster };
    let live = plane.connections.enter(entrant, now());
    let known = plane.knowledge.now();
    live.check(&known.trust, now())?;
    match &known.own_revoked {
        Some(revocation) => Err(TlsRefusal::OwnRevoked(revocation.clone())),
        None => Ok(live),
    }
}

fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
