//! One fetch over HTTPS of a bundle document (SPIFFE Federation §5.2) or an issuer's key set. Every wait has an end, and
//! nothing is read beyond a bound: whoever answers is a stranger until TLS has said otherwise, and one that lies even then.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hanse_federation::stranger::{EndpointUrl, MAX_REDIRECTS, Profile, UrlError};
use hanse_identity::bundle::MAX_DOCUMENT_BYTES;
use hanse_identity::jwt::user::MAX_JWKS_BYTES;
use hanse_identity::tls::outside::{OutsideError, read_roots, web_client_config};
use hanse_identity::tls::{Expect, client_config};
use hanse_identity::{Revocations, SpiffeId, Trust, TrustDomain};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::io::dial::{FixedIdentity, FixedTrust};
use crate::state::State;

/// How long a fetch may take in all, redirects included.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take until the other end is connected and has shown who it is.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest head of an answer.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// HTTP/1.1 and nothing else.
const ALPN: &[&[u8]] = &[b"http/1.1"];

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{host}:{port} cannot be reached: {why}")]
    Connect { host: String, port: u16, why: std::io::Error },
    #[error("{0} is no name that a certificate can have")]
    ServerName(String),
    #[error("{host}:{port} is an address that is not fetched from ({why})")]
    Address { host: String, port: u16, why: &'static str },
    #[error("{host}:{port} is not believed: {why}")]
    Tls { host: String, port: u16, why: std::io::Error },
    #[error(
        "there is no bundle of {0} to authenticate the endpoint by: give one (hanse trust federate --bundle FILE)"
    )]
    NoBundle(TrustDomain),
    #[error("the roots of the web: {0}")]
    Roots(String),
    #[error("{0}")]
    Outside(#[from] OutsideError),
    #[error("the answer cannot be read: {0}")]
    Http(#[from] hyper::Error),
    #[error("the answer is {0}, not 200 OK")]
    Status(StatusCode),
    #[error("redirected: {0}")]
    Redirect(#[from] UrlError),
    #[error("redirected, but not where to")]
    NoLocation,
    #[error("redirected more than {MAX_REDIRECTS} times")]
    TooManyRedirects,
    #[error("redirected to {0}, which is another host")]
    OtherHost(String),
    #[error("the document has more than {0} bytes")]
    TooLarge(usize),
    #[error("the document is cut off: {0}")]
    Body(String),
    #[error("the document is not UTF-8")]
    NotText,
}

/// What is fetched, and how far that may lead.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Largest document that is read.
    max_bytes: usize,
    /// Whether a redirect may lead to another host.
    leaves_host: bool,
}

/// A bundle document: redirects as SPIFFE Federation §5.2.1.3 has them.
pub const BUNDLE: Wanted = Wanted { max_bytes: MAX_DOCUMENT_BYTES, leaves_host: true };
/// A key set, from where somebody has written into a policy.
pub const KEY_SET: Wanted = Wanted { max_bytes: MAX_JWKS_BYTES, leaves_host: false };

/// How the endpoint of a relationship is authenticated, by what the State holds now.
pub async fn endpoint_tls(state: &State, profile: &Profile) -> Result<Arc<rustls::ClientConfig>, FetchError> {
    match profile {
        Profile::HttpsSpiffe { endpoint_id } => spiffe_tls(state, endpoint_id),
        Profile::HttpsWeb { roots } => web_tls(roots.as_deref()).await,
    }
}

/// A host that these roots vouch for, or those of the system.
pub async fn web_tls(roots: Option<&str>) -> Result<Arc<rustls::ClientConfig>, FetchError> {
    match roots {
        Some(pem) => Ok(web_client_config(&read_roots(pem).map_err(FetchError::Roots)?, ALPN)?),
        None => {
            let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let loaded = loaded.map_err(|e| FetchError::Roots(e.to_string()))?;
            if loaded.certs.is_empty() {
                let errors: Vec<_> = loaded.errors.iter().map(ToString::to_string).collect();
                return Err(FetchError::Roots(format!(
                    "this system has none ({}); install its ca-certificates or give roots",
                    errors.join("; ")
                )));
            }
            Ok(web_client_config(&loaded.certs, ALPN)?)
        }
    }
}

/// Exactly that identity, under its own domain's newest bundle and no other (§5.2.2).
fn spiffe_tls(state: &State, endpoint_id: &SpiffeId) -> Result<Arc<rustls::ClientConfig>, FetchError> {
    let domain = endpoint_id.trust_domain();
    let bundle = state.bundle_for_endpoint(domain).ok_or_else(|| FetchError::NoBundle(domain.clone()))?;
    let known = state.view.bundles.contains_key(domain);
    let revocations = if known { state.view.revocations.clone() } else { Revocations::default() };
    let trust = FixedTrust(Arc::new(Trust::new([bundle], revocations)));
    let expect = Expect::Identities(Arc::new([endpoint_id.clone()].into()));
    Ok(client_config(Arc::new(trust), Arc::new(FixedIdentity(None)), expect, ALPN))
}

/// The document at the URL.
pub async fn fetch(
    url: &EndpointUrl,
    tls: Arc<rustls::ClientConfig>,
    wanted: Wanted,
) -> Result<String, FetchError> {
    let fetched = tokio::time::timeout(FETCH_TIMEOUT, follow(url, tls, wanted)).await;
    fetched.unwrap_or(Err(FetchError::Timeout(FETCH_TIMEOUT)))
}

/// The redirects hold for this fetch alone: the next one begins at the configured URL again (§5.2.1.3).
async fn follow(
    origin: &EndpointUrl,
    tls: Arc<rustls::ClientConfig>,
    wanted: Wanted,
) -> Result<String, FetchError> {
    let mut url = origin.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut connection = JoinSet::new();
        let answer = get(&url, tls.clone(), &mut connection).await?;
        match answer.status() {
            StatusCode::OK => return text(answer, wanted.max_bytes).await,
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => {
                let location = answer.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
                url = url.redirected(location.ok_or(FetchError::NoLocation)?)?;
                if !wanted.leaves_host && (url.host(), url.port()) != (origin.host(), origin.port()) {
                    return Err(FetchError::OtherHost(url.authority().to_owned()));
                }
            }
            other => return Err(FetchError::Status(other)),
        }
    }
    Err(FetchError::TooManyRedirects)
}

/// Asks once. What drives the connection ends with `driver`.
async fn get(
    url: &EndpointUrl,
    tls: Arc<rustls::ClientConfig>,
    driver: &mut JoinSet<()>,
) -> Result<Response<Incoming>, FetchError> {
    let (host, port) = (url.host().to_owned(), url.port());
    let name = ServerName::try_from(host.clone()).map_err(|_| FetchError::ServerName(host.clone()))?;
    let connecting = async {
        let unreachable = |why| FetchError::Connect { host: host.clone(), port, why };
        let addresses: Vec<_> =
            tokio::net::lookup_host((host.as_str(), port)).await.map_err(unreachable)?.collect();
        if let Some(why) = addresses.iter().find_map(|address| forbidden(address.ip())) {
            return Err(FetchError::Address { host: host.clone(), port, why });
        }
        let tcp = TcpStream::connect(addresses.as_slice()).await.map_err(unreachable)?;
        let stream = TlsConnector::from(tls).connect(name, tcp).await;
        stream.map_err(|why| FetchError::Tls { host: host.clone(), port, why })
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    let stream = stream.unwrap_or(Err(FetchError::Timeout(CONNECT_TIMEOUT)))?;
    let mut http = hyper::client::conn::http1::Builder::new();
    let (mut sender, connection) = http.max_buf_size(MAX_HEAD_BYTES).handshake(TokioIo::new(stream)).await?;
    // How it ends is told by the answer, or by its absence.
    driver.spawn(async move { drop(connection.await) });
    let request = Request::get(url.path())
        .header(header::HOST, url.authority())
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("hanse/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::ServerName(host))?;
    Ok(sender.send_request(request).await?)
}

/// Addresses that no host of the web has and that clouds answer at with what only this machine may know.
fn forbidden(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        _ if link_local => Some("link-local"),
        _ if address.is_unspecified() => Some("unspecified"),
        _ if address.is_multicast() => Some("multicast"),
        _ => None,
    }
}

async fn text(answer: Response<Incoming>, max_bytes: usize) -> Result<String, FetchError> {
    let body = Limited::new(answer.into_body(), max_bytes).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => FetchError::TooLarge(max_bytes),
        false => FetchError::Body(error.to_string()),
    })?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| FetchError::NotText)
}
