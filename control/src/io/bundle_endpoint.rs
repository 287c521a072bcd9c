//! The bundle endpoint: where strangers fetch this cluster's bundle over HTTPS (SPIFFE Federation §5). One public
//! document and nothing else; no certificate is asked for, none of the mesh's ports or services is behind it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hanse_federation::stranger::OWN_REFRESH_HINT;
use hanse_identity::tls::TlsIdentity;
use hanse_identity::tls::outside::{open_server_config, web_server_config};
use hanse_identity::{Timestamp, renewal};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::context::{Context, OwnIdentity, jitter, stopped};
use super::keys;

/// Connections at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// Connections of one source at the same time; more are closed.
const MAX_PER_SOURCE: usize = 32;
/// How long a client may take over its handshake, over its request's head, and over everything.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_LIFETIME: Duration = Duration::from_secs(20);
/// Largest request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// How often the files of the web certificate are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(5);
/// How long one SVID is shown at most.
const LONGEST_USE: Duration = Duration::from_secs(60);
/// How soon an own certificate is tried again after it could not be made.
const RENEWAL_RETRY: Duration = Duration::from_secs(10);
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const ALPN: &[&[u8]] = &[b"http/1.1"];

/// By which certificate the endpoint is authenticated (Federation §5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// `https_spiffe`: an SVID of `spiffe://<trust domain>/hanse/endpoint/bundle`, on every node the same ID.
    Svid,
    /// `https_web`: PEM files, read again when they change.
    Files { certificate: PathBuf, key: PathBuf },
}

/// The certificate in use, as the TLS configuration that shows it.
struct Certificate {
    config: ArcSwap<rustls::ServerConfig>,
}

/// Which versions of the two files were read.
type FileTimes = [Option<SystemTime>; 2];

/// Serves until the node stops. An error only if there is no certificate to begin with.
pub async fn serve(context: Arc<Context>, listener: TcpListener, shown: Shown) -> anyhow::Result<()> {
    let own = Arc::new(OwnIdentity::default());
    let certificate;
    let keeping: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = match &shown {
        Shown::Svid => {
            let due = renew(&context, &own).map_err(|why| anyhow::anyhow!("the bundle endpoint: {why}"))?;
            let config = open_server_config(own.clone(), ALPN);
            certificate = Arc::new(Certificate { config: ArcSwap::new(config) });
            Box::pin(keep_renewing(context.clone(), own, due))
        }
        Shown::Files { certificate: chain, key } => {
            let times = file_times(chain, key).await;
            let config =
                read_files(chain, key).map_err(|why| anyhow::anyhow!("the bundle endpoint: {why}"))?;
            certificate = Arc::new(Certificate { config: ArcSwap::new(config) });
            Box::pin(keep_reading(certificate.clone(), chain.clone(), key.clone(), times))
        }
    };
    context.bundle_endpoint.store(true, Ordering::Relaxed);
    let mut stop = context.stop.clone();
    tokio::select! {
        () = keeping => {}
        () = accept(&context, &listener, &certificate) => {}
        () = stopped(&mut stop) => {}
    }
    Ok(())
}

async fn accept(context: &Arc<Context>, listener: &TcpListener, certificate: &Arc<Certificate>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut sources: HashMap<IpAddr, Weak<Semaphore>> = HashMap::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (tcp, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection to the bundle endpoint could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let source = sources.get(&remote.ip()).and_then(Weak::upgrade).unwrap_or_else(|| {
            sources.retain(|_, source| source.strong_count() > 0);
            let source = Arc::new(Semaphore::new(MAX_PER_SOURCE));
            sources.insert(remote.ip(), Arc::downgrade(&source));
            source
        });
        let Ok(share) = source.try_acquire_owned() else { continue };
        let (context, config) = (context.clone(), certificate.config.load_full());
        tokio::spawn(async move {
            let serving = serve_one(context, tcp, config);
            // How a client ends its connection is its own business.
            let _ = tokio::time::timeout(CONNECTION_LIFETIME, serving).await;
            drop((place, share));
        });
    }
}

async fn serve_one(context: Arc<Context>, tcp: TcpStream, config: Arc<rustls::ServerConfig>) {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp));
    let Ok(Ok(stream)) = handshake.await else {
        context.metrics.handshakes_failed.inc();
        return;
    };
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&context, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away in the middle has what it wanted, or nothing.
    let _ = connection.await;
}

fn answer(context: &Context, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| respond(status, "text/plain; charset=utf-8", text.into());
    if request.uri().path() != "/" {
        return plain(StatusCode::NOT_FOUND, "the bundle is at /\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let state = context.handle.state();
    match state.view.bundles.get(&context.trust_domain) {
        Some(bundle) => {
            context.metrics.bundles_served.inc();
            let document = bundle.to_jwks(OWN_REFRESH_HINT.as_secs());
            respond(StatusCode::OK, "application/json", document.into())
        }
        None => plain(StatusCode::SERVICE_UNAVAILABLE, "there is no bundle yet\n"),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// Makes a fresh SVID for the endpoint and shows it; answers when the next one is due.
fn renew(context: &Context, own: &OwnIdentity) -> Result<Timestamp, String> {
    let state = context.handle.state();
    let revocations = &state.view.revocations;
    let authority =
        context.own_authority(&state).ok_or("none of this node's authorities is in the bundle")?;
    let svid = keys::endpoint_svid(&authority, revocations, context.member_lifetime, context.time())
        .map_err(|e| e.to_string())?;
    own.set(TlsIdentity::new(&svid).map_err(|e| e.to_string())?);
    context.metrics.svid_issued.inc();
    Ok(renewal::renew_at(svid.facts.not_before, svid.facts.not_after, jitter()))
}

async fn keep_renewing(context: Arc<Context>, own: Arc<OwnIdentity>, mut due: Timestamp) {
    let mut renewals = context.own.renewals();
    loop {
        tokio::select! {
            () = tokio::time::sleep(due.left(context.time()).min(LONGEST_USE)) => {}
            // Another authority signs, perhaps.
            Ok(()) = renewals.changed() => {}
        }
        due = renew(&context, &own).unwrap_or_else(|why| {
            tracing::error!(why, "the bundle endpoint's SVID cannot be renewed");
            context.time() + RENEWAL_RETRY
        });
    }
}

/// Files that cannot be read, or do not fit each other, leave the certificate in use as it is.
async fn keep_reading(certificate: Arc<Certificate>, chain: PathBuf, key: PathBuf, mut read: FileTimes) {
    loop {
        tokio::time::sleep(LOOK_AT_FILES).await;
        let times = file_times(&chain, &key).await;
        if times == read {
            continue;
        }
        match read_files(&chain, &key) {
            Ok(config) => {
                certificate.config.store(config);
                read = times;
                tracing::info!(file = %chain.display(), "the bundle endpoint shows a new certificate");
            }
            Err(why) => tracing::warn!(why, "the bundle endpoint keeps its certificate"),
        }
    }
}

async fn file_times(chain: &Path, key: &Path) -> FileTimes {
    let time = async |path: &Path| tokio::fs::metadata(path).await.ok()?.modified().ok();
    [time(chain).await, time(key).await]
}

fn read_files(chain: &Path, key: &Path) -> Result<Arc<rustls::ServerConfig>, String> {
    let pem = std::fs::read(chain).map_err(|e| format!("{}: {e}", chain.display()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|e| format!("{}: {e:?}", chain.display()))?;
    let pem = Zeroizing::new(keys::read_private(key).map_err(|e| e.to_string())?);
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| format!("{}: {e:?}", key.display()))?;
    web_server_config(certificates, private, ALPN).map_err(|e| format!("{}: {e}", chain.display()))
}
