//! TLS towards those who are not of the mesh: bundle endpoints, ours and other domains' (SPIFFE Federation §5), services
//! outside that our apps call, and clients outside that call ours.
//!
//! The one place where a certificate of the web is believed, and it proves nothing but the host of a URL: what comes
//! over such a connection is never an identity, and none of ours is shown. TLS 1.3 only, as everywhere here.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{IdentitySource, SessionIdentity, client_builder, finished_client, provider};

/// Why a configuration cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutsideError {
    #[error("none of the {0} roots can be used")]
    NoRoots(usize),
    #[error("{0:?} is no name that a certificate can have")]
    Name(String),
    #[error("the certificate and its key cannot be used: {0}")]
    Certificate(String),
}

/// The certificates of a PEM text.
pub fn read_roots(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    read.map_err(|e| format!("what was given is not PEM: {e:?}"))
}

/// Tells one text of roots from all others: its SHA-256 in hex.
pub fn roots_id(pem: &str) -> String {
    crate::wire::to_hex(digest(&SHA256, pem.as_bytes()).as_ref())
}

/// Whether a PEM text has a certificate that `web_client_config` could believe by.
pub fn may_be_roots(pem: &str) -> bool {
    let roots = read_roots(pem).unwrap_or_default();
    RootCertStore::empty().add_parsable_certificates(roots).0 > 0
}

/// A client that shows nothing and believes whom these roots of the web vouch for, by the name in the URL
/// (`https_web`).
pub fn web_client_config(
    roots: &[CertificateDer<'_>],
    alpn: &[&[u8]],
) -> Result<Arc<rustls::ClientConfig>, OutsideError> {
    Ok(web_client(web_verifier(roots)?, alpn))
}

/// The same, for a server whose certificate has to have one of `names`, whatever name it is asked for by.
pub fn named_client_config(
    roots: &[CertificateDer<'_>],
    names: &[String],
    alpn: &[&[u8]],
) -> Result<Arc<rustls::ClientConfig>, OutsideError> {
    let name =
        |name: &String| ServerName::try_from(name.clone()).map_err(|_| OutsideError::Name(name.clone()));
    let names = names.iter().map(name).collect::<Result<_, _>>()?;
    Ok(web_client(Arc::new(AnyName { inner: web_verifier(roots)?, names }), alpn))
}

fn web_verifier(roots: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, OutsideError> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots.iter().map(|der| der.clone().into_owned()));
    let none = || OutsideError::NoRoots(roots.len());
    if added == 0 {
        return Err(none());
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider().clone())
        .build()
        .map_err(|_| none())
}

fn web_client(verifier: Arc<dyn ServerCertVerifier>, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    finished_client(client_builder(verifier).with_no_client_auth(), alpn)
}

/// The web's rules, for one of these names in place of the one that was asked for.
#[derive(Debug)]
struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut verified = Err(CertificateError::NotValidForName.into());
        for name in &self.names {
            verified = self.inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
            if verified.is_ok() {
                break;
            }
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A server that shows an SVID and asks for no certificate (`https_spiffe`; Federation §5.2.2.2).
pub fn open_server_config(identity: Arc<dyn IdentitySource>, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    let config = server_builder().with_cert_resolver(Arc::new(SessionIdentity(identity)));
    finished_server(config, alpn)
}

/// A server that shows a certificate of the web and asks for none (`https_web`; Federation §5.2.1.2).
pub fn web_server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    alpn: &[&[u8]],
) -> Result<Arc<rustls::ServerConfig>, OutsideError> {
    let config = server_builder().with_single_cert(chain, key);
    config.map(|config| finished_server(config, alpn)).map_err(|e| OutsideError::Certificate(e.to_string()))
}

/// A server that shows whatever certificate of the web `choose` chooses, and asks for none.
pub fn chosen_server_config(
    choose: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Arc<rustls::ServerConfig> {
    finished_server(server_builder().with_cert_resolver(choose), alpn)
}

/// A chain and its key, both PEM, to be shown outside.
pub fn web_identity(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, OutsideError> {
    let bad = |e: &dyn std::fmt::Display| OutsideError::Certificate(e.to_string());
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(&e))?;
    CertifiedKey::from_der(chain, key, provider()).map(Arc::new).map_err(|e| bad(&e))
}

fn server_builder() -> rustls::ConfigBuilder<rustls::ServerConfig, rustls::server::WantsServerCert> {
    rustls::ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 cipher suites")
        .with_no_client_auth()
}

fn finished_server(mut config: rustls::ServerConfig, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}
