//! TLS configurations of the mesh: rustls with `verify` as its only verifier.
//!
//! TLS 1.3 only, no resumption (a resumed session would walk past revocation), no early data. rustls is a
//! state machine without sockets; whoever owns the socket is in the shells. The time that verification needs
//! is the one rustls hands to the verifier.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;

use crate::bundle::KeyId;
use crate::name::{MemberRole, SpiffeId, TrustDomain};
use crate::svid::{Svid, SvidError};
use crate::time::Timestamp;
use crate::verify::{Trust, Usage, VerifiedCaller, VerifyError, verify};

pub mod outside;
mod verifier;

use verifier::{PinnedVerifier, SessionIdentity, SvidVerifier};

/// RFC 8446 §7.5: the label of the secret that a join proof signs.
const BINDING_LABEL: &[u8] = b"EXPORTER-hanse-join";

/// Gives the trust of the moment. Called once per handshake.
pub trait TrustSource: Send + Sync + 'static {
    fn trust(&self) -> Arc<Trust>;
}

/// Gives the identity of the moment; `None` while there is none. Called once per handshake.
pub trait IdentitySource: Send + Sync + 'static {
    fn identity(&self) -> Option<Arc<TlsIdentity>>;
}

/// An SVID in the form that rustls signs with.
#[derive(Debug)]
pub struct TlsIdentity {
    pub facts: crate::svid::SvidFacts,
    key: Arc<CertifiedKey>,
}

/// Who may be at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Expect {
    /// Anyone with a valid SVID of a known trust domain.
    Anyone,
    /// A member of the mesh itself, by role.
    Member(TrustDomain, MemberRole),
    /// Anyone of that trust domain.
    TrustDomain(TrustDomain),
    /// One of these.
    Identities(Arc<BTreeSet<SpiffeId>>),
}

/// Whether a server insists on a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    /// For the ports where a host or a cluster that has no identity yet asks to join.
    Optional,
}

impl TlsIdentity {
    /// The certificate that is shown, DER.
    pub fn leaf(&self) -> &[u8] {
        self.key.cert.first().map(AsRef::as_ref).unwrap_or_default()
    }

    pub fn new(svid: &Svid) -> Result<Self, VerifyError> {
        let chain = svid.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(svid.key.to_vec()));
        let key = CertifiedKey::from_der(chain, key, provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => SvidError::KeyMismatch,
            _ => SvidError::Key,
        })?;
        Ok(Self { facts: svid.facts.clone(), key: Arc::new(key) })
    }
}

/// The one provider of cryptography, made once: making it is not cheap and it is asked for at every handshake.
fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
}

impl Expect {
    pub fn admits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Anyone => true,
            Self::Member(trust_domain, role) => id.is_member(trust_domain, *role),
            Self::TrustDomain(trust_domain) => id.trust_domain() == trust_domain,
            Self::Identities(ids) => ids.contains(id),
        }
    }
}

/// A client that shows `identity` (nothing while there is none) and believes only `expect`.
pub fn client_config(
    trust: Arc<dyn TrustSource>,
    identity: Arc<dyn IdentitySource>,
    expect: Expect,
    alpn: &[&[u8]],
) -> Arc<rustls::ClientConfig> {
    let verifier = SvidVerifier::for_server(trust, expect, provider().clone());
    let config =
        client_builder(Arc::new(verifier)).with_client_cert_resolver(Arc::new(SessionIdentity(identity)));
    finished_client(config, alpn)
}

fn client_builder(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    rustls::ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites")
        // rustls's word for "not the web's rules": the verifier is stricter than the one it replaces.
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn finished_client(mut config: rustls::ClientConfig, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A client without identity that believes only a chain whose root (sent by the server, last in the chain)
/// has one of these pins: for joining, before there is a bundle. The server's SVID must be a control node of
/// `trust_domain` and verify under that root.
pub fn pinned_client_config(
    trust_domain: &TrustDomain,
    pins: &[KeyId],
    alpn: &[&[u8]],
) -> Arc<rustls::ClientConfig> {
    let verifier = PinnedVerifier::new(trust_domain, pins, provider().clone());
    finished_client(client_builder(Arc::new(verifier)).with_no_client_auth(), alpn)
}

/// A server that shows `identity`. A control node's `Svid::chain` ends in its own self-signed root, so that a
/// pinned client can check it; `verify` ignores a root at the end of a chain.
pub fn server_config(
    trust: Arc<dyn TrustSource>,
    identity: Arc<dyn IdentitySource>,
    client_auth: ClientAuth,
    alpn: &[&[u8]],
) -> Arc<rustls::ServerConfig> {
    let verifier = SvidVerifier::for_client(trust, client_auth, provider().clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SessionIdentity(identity)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// The proof for the other end of a finished handshake; `usage` is the part that the other end played.
/// `Ok(None)`: it showed no certificate. While the handshake is not finished: `NoCertificate`.
pub fn verified_peer(
    connection: &rustls::CommonState,
    trust: &Trust,
    now: Timestamp,
    usage: Usage,
) -> Result<Option<VerifiedCaller>, VerifyError> {
    if connection.is_handshaking() {
        return Err(VerifyError::NoCertificate);
    }
    let Some(chain) = connection.peer_certificates() else { return Ok(None) };
    let chain: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
    verify(trust, &chain, now, usage).map(Some)
}

/// 32 bytes that only the two ends of this TLS session know (RFC 8446 §7.5), to bind a proof to it.
pub fn session_binding<Data>(connection: &rustls::ConnectionCommon<Data>) -> Option<[u8; 32]> {
    connection.export_keying_material([0; 32], BINDING_LABEL, None).ok()
}

#[cfg(test)]
mod tests;
