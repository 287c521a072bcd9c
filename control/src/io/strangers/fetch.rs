//! One fetch of a bundle document over HTTPS (SPIFFE Federation §5.2). Every wait has an end, and nothing is read
//! beyond a bound: whoever answers is a stranger until TLS has said otherwise, and one that lies even then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hanse_federation::stranger::{EndpointUrl, MAX_REDIRECTS, Profile, UrlError};
use hanse_identity::bundle::MAX_DOCUMENT_BYTES;
use hanse_identity::tls::outside::{OutsideError, web_client_config};
use hanse_identity::tls::{Expect, client_config};
use hanse_identity::{Revocations, SpiffeId, Trust, TrustDomain};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
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
    #[error("{host}:{port} is not believed to be the bundle endpoint: {why}")]
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
    #[error("the document has more than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    #[error("the document is cut off: {0}")]
    Body(String),
    #[error("the document is not UTF-8")]
    NotText,
}

/// How the endpoint of a relationship is authenticated, by what the State holds now.
pub async fn endpoint_tls(state: &State, profile: &Profile) -> Result<Arc<rustls::ClientConfig>, FetchError> {
    match profile {
        Profile::HttpsSpiffe { endpoint_id } => spiffe_tls(state, endpoint_id),
        Profile::HttpsWeb { roots: Some(pem) } => {
            let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
            let roots = roots.map_err(|e| FetchError::Roots(format!("what was given is not PEM: {e:?}")))?;
            Ok(web_client_config(&roots, ALPN)?)
        }
        Profile::HttpsWeb { roots: None } => {
            let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
            let loaded = loaded.map_err(|e| FetchError::Roots(e.to_string()))?;
            if loaded.certs.is_empty() {
                let errors: Vec<_> = loaded.errors.iter().map(ToString::to_string).collect();
                return Err(FetchError::Roots(format!(
                    "this system has none ({}); install its ca-certificates or give --web-roots FILE",
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
pub async fn fetch(url: &EndpointUrl, tls: Arc<rustls::ClientConfig>) -> Result<String, FetchError> {
    let fetched = tokio::time::timeout(FETCH_TIMEOUT, follow(url, tls)).await;
    fetched.unwrap_or(Err(FetchError::Timeout(FETCH_TIMEOUT)))
}

/// The redirects hold for this fetch alone: the next one begins at the configured URL again (§5.2.1.3).
async fn follow(url: &EndpointUrl, tls: Arc<rustls::ClientConfig>) -> Result<String, FetchError> {
    let mut url = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut connection = JoinSet::new();
        let answer = get(&url, tls.clone(), &mut connection).await?;
        match answer.status() {
            StatusCode::OK => return text(answer).await,
            StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT => {
                let location = answer.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
                url = url.redirected(location.ok_or(FetchError::NoLocation)?)?;
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
        let tcp = TcpStream::connect((host.as_str(), port)).await;
        let tcp = tcp.map_err(|why| FetchError::Connect { host: host.clone(), port, why })?;
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

async fn text(answer: Response<Incoming>) -> Result<String, FetchError> {
    let body = Limited::new(answer.into_body(), MAX_DOCUMENT_BYTES).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => FetchError::TooLarge,
        false => FetchError::Body(error.to_string()),
    })?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| FetchError::NotText)
}
