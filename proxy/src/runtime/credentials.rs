//! Credentials: our SVID and the bundles, as the agent hands them out over Envoy's SDS v3 on its Unix socket.
//!
//! `Credentials` is the arc-swapped holder that every handshake asks; `follow` keeps it current. What the agent once
//! gave stays in use until it expires, whether or not the agent is still there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use hanse_identity::tls::{IdentitySource, TlsIdentity, TrustSource};
use hanse_identity::{AuthorityCertificate, Bundle, Svid, Timestamp, Trust, TrustDomain};
use prost::{Message as _, Name as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::Plane;
use super::drain::Stop;
use super::worker::Random;

/// The SVID in use, in the forms that are asked for; no private key can be read from it.
pub struct Current {
    pub identity: Arc<TlsIdentity>,
    pub chain_pem: String,
}

/// Holder of the newest SVID and bundles.
pub struct Credentials {
    current: ArcSwapOption<Current>,
    agent_trust: ArcSwap<Trust>,
    bundles: ArcSwap<Vec<Bundle>>,
    changes: watch::Sender<u64>,
}

/// Why what the agent sent cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("secret {0} cannot be decoded: {1}")]
    Decode(String, prost::DecodeError),
    #[error("secret {0} is not given inline")]
    NotInline(String),
    #[error("secret {0} is not PEM text")]
    NotText(String),
    #[error("the SVID cannot be used: {0}")]
    Svid(#[from] hanse_identity::svid::SvidError),
    #[error("the SVID cannot be used for TLS: {0}")]
    Tls(#[from] hanse_identity::VerifyError),
    #[error("trust domain {0:?}: {1}")]
    TrustDomain(String, hanse_identity::NameError),
    #[error("bundle of {0}: {1}")]
    Bundle(TrustDomain, String),
}

/// SDS resource names: our own SVID, and every bundle that we may know.
const SDS_IDENTITY: &str = "default";
const SDS_BUNDLES: &str = "ALL";
/// Requests that may wait for the agent to read them.
const SDS_REQUEST_QUEUE: usize = 8;
/// Waits between attempts to reach the agent.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_AT_MOST: Duration = Duration::from_secs(2);
/// Longest wait for the agent to accept a connection and a stream.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest SDS message that is read.
const MAX_SDS_BYTES: usize = 16 * 1024 * 1024;

impl Default for Credentials {
    fn default() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            agent_trust: ArcSwap::from_pointee(Trust::default()),
            bundles: ArcSwap::default(),
            changes: watch::channel(0).0,
        }
    }
}

impl Credentials {
    /// Takes a new SVID into use: the next handshake shows it.
    pub fn install_svid(&self, svid: &Svid) -> Result<(), SecretError> {
        let identity = Arc::new(TlsIdentity::new(svid)?);
        self.current.store(Some(Arc::new(Current { identity, chain_pem: svid.chain_pem() })));
        self.changes.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// Takes the agent's bundles in: what is believed until there is a View.
    pub fn install_bundles(&self, bundles: Vec<Bundle>) {
        self.agent_trust.store(Arc::new(Trust::new(bundles.iter(), hanse_identity::Revocations::default())));
        self.bundles.store(Arc::new(bundles));
        self.changes.send_modify(|generation| *generation += 1);
    }

    pub fn current(&self) -> Option<Arc<Current>> {
        self.current.load_full()
    }

    /// Trust in the agent's bundles alone, without revocations.
    pub fn agent_trust(&self) -> Arc<Trust> {
        self.agent_trust.load_full()
    }

    /// The agent's bundles as PEM, concatenated.
    pub fn bundle_pem(&self) -> String {
        self.bundles.load().iter().map(Bundle::to_pem).collect()
    }

    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.current.load().as_ref().is_some_and(|c| now < c.identity.facts.not_after)
    }

    /// Resolves on every change of SVID or bundles.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl IdentitySource for Credentials {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        self.current.load().as_ref().map(|c| Arc::clone(&c.identity))
    }
}

impl TrustSource for Credentials {
    fn trust(&self) -> Arc<Trust> {
        self.agent_trust()
    }
}

/// Keeps `plane.credentials` current from the agent at `socket`, for as long as the process lives.
pub async fn follow(socket: PathBuf, plane: Arc<Plane>, mut stop: Stop) {
    let random = Random::from_entropy();
    let mut wait = RETRY_FIRST;
    loop {
        let mut heard = false;
        let outcome = tokio::select! {
            () = stop.ended() => return,
            outcome = session(&socket, &plane, &mut heard) => outcome,
        };
        if heard {
            wait = RETRY_FIRST;
        }
        match outcome {
            Ok(()) => tracing::info!("the agent ended the SDS stream; connecting again"),
            Err(status) => tracing::warn!(code = ?status.code(), "SDS: {}", status.message()),
        }
        let pause = wait.mul_f64(0.75 + 0.5 * random.fraction());
        wait = (wait * 2).min(RETRY_AT_MOST);
        tokio::select! {
            () = stop.ended() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One SDS stream, from its start to its end.
async fn session(socket: &Path, plane: &Plane, heard: &mut bool) -> Result<(), tonic::Status> {
    let late = |_| tonic::Status::deadline_exceeded("the agent does not answer");
    let channel = tokio::time::timeout(AGENT_TIMEOUT, connect(socket)).await.map_err(late)?;
    let channel = channel.map_err(|e| tonic::Status::unavailable(format!("agent socket: {}", chain(&e))))?;
    let mut client = SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_SDS_BYTES);
    let (requests, outgoing) = mpsc::channel(SDS_REQUEST_QUEUE);
    let first = request(String::new(), String::new(), None);
    requests.send(first).await.map_err(|_| tonic::Status::cancelled("the request queue is gone"))?;
    let mut responses = client.stream_secrets(ReceiverStream::new(outgoing)).await?.into_inner();
    while let Some(response) = responses.next().await {
        let response = response?;
        let answer = match take_in(&response, plane) {
            Ok(()) => {
                *heard = true;
                request(response.version_info, response.nonce, None)
            }
            Err(error) => {
                tracing::warn!("SDS: refused what the agent sent: {error}");
                request(String::new(), response.nonce, Some(error.to_string()))
            }
        };
        requests.send(answer).await.map_err(|_| tonic::Status::cancelled("the agent reads no more"))?;
    }
    Ok(())
}

async fn connect(socket: &Path) -> Result<tonic::transport::Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    // The URI is a formality: the connector goes to the socket whatever it says.
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    tonic::transport::Endpoint::from_static("http://agent.hanse.internal")
        .connect_with_connector(connector)
        .await
}

fn request(version: String, nonce: String, refusal: Option<String>) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: version,
        response_nonce: nonce,
        type_url: Secret::type_url(),
        resource_names: vec![SDS_IDENTITY.to_owned(), SDS_BUNDLES.to_owned()],
        error_detail: refusal.map(|message| envoy_types::pb::google::rpc::Status {
            code: tonic::Code::InvalidArgument.into(),
            message,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn take_in(response: &DiscoveryResponse, plane: &Plane) -> Result<(), SecretError> {
    for resource in &response.resources {
        let decode = |e| SecretError::Decode(resource.type_url.clone(), e);
        let secret = Secret::decode(&resource.value[..]).map_err(decode)?;
        match secret.r#type {
            Some(secret::Type::TlsCertificate(certificate)) => {
                let svid = read_svid(&secret.name, &certificate)?;
                tracing::info!(id = %svid.facts.id, serial = %svid.facts.serial, not_after = %svid.facts.not_after, "SVID received");
                plane.credentials.install_svid(&svid)?;
            }
            Some(secret::Type::ValidationContext(context)) => {
                let bundles = read_bundles(&secret.name, &context)?;
                plane.credentials.install_bundles(bundles);
            }
            _ => tracing::debug!(name = secret.name, "a secret of a kind that we did not ask for"),
        }
    }
    plane.knowledge.refresh();
    Ok(())
}

fn read_svid(name: &str, certificate: &TlsCertificate) -> Result<Svid, SecretError> {
    let chain = text(name, certificate.certificate_chain.as_ref())?;
    let key = text(name, certificate.private_key.as_ref())?;
    Ok(Svid::from_pem(chain, key)?)
}

fn read_bundles(name: &str, context: &CertificateValidationContext) -> Result<Vec<Bundle>, SecretError> {
    let config = context.custom_validator_config.as_ref().and_then(|c| c.typed_config.as_ref());
    let Some(config) = config else { return Err(SecretError::NotInline(name.to_owned())) };
    let config = SpiffeCertValidatorConfig::decode(&config.value[..])
        .map_err(|e| SecretError::Decode(name.to_owned(), e))?;
    config
        .trust_domains
        .iter()
        .map(|entry| {
            let trust_domain: TrustDomain =
                entry.name.parse().map_err(|e| SecretError::TrustDomain(entry.name.clone(), e))?;
            let pem = text(name, entry.trust_bundle.as_ref())?;
            bundle_from_pem(trust_domain, pem)
        })
        .collect()
}

/// A bundle from concatenated PEM certificates; each is checked to be an authority of that trust domain.
pub fn bundle_from_pem(trust_domain: TrustDomain, pem: &str) -> Result<Bundle, SecretError> {
    let refused = |why: String| SecretError::Bundle(trust_domain.clone(), why);
    let mut authorities = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = certificate.map_err(|e| refused(e.to_string()))?;
        let authority =
            AuthorityCertificate::parse(&der, &trust_domain).map_err(|e| refused(e.to_string()))?;
        authorities.push(authority);
    }
    Ok(Bundle::new(trust_domain, 0, authorities))
}

fn text<'s>(name: &str, source: Option<&'s DataSource>) -> Result<&'s str, SecretError> {
    match source.and_then(|s| s.specifier.as_ref()) {
        Some(data_source::Specifier::InlineBytes(bytes)) => {
            std::str::from_utf8(bytes).map_err(|_| SecretError::NotText(name.to_owned()))
        }
        Some(data_source::Specifier::InlineString(text)) => Ok(text),
        _ => Err(SecretError::NotInline(name.to_owned())),
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests;
