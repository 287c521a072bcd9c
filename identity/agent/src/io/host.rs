//! The host's own certificate, of the user's own PKI, by which an agent joins without a token (x509 proof of possession).
//!
//! The files are read each time: whatever renews the certificate on the host need not tell the agent.

use std::path::{Path, PathBuf};

use hanse_identity::host::{HostError, fingerprint_name};
use hanse_identity::{AuthorityCertificate, Bundle, HostKey, KeyId, NodeName, TrustDomain};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::store::StoredIdentity;

/// Largest file that is read here.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Joins by a certificate are kept under this name and the certificate's.
const INVITE_PREFIX: &str = "x509pop";

/// Where a host's certificate, its key, and what it needs to know of the cluster are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The cluster's authorities: PEM, or a SPIFFE bundle document.
    pub trust_bundle: PathBuf,
    pub trust_domain: TrustDomain,
}

/// What a host needs in order to join by its certificate.
#[derive(Debug)]
pub struct HostProof {
    pub key: HostKey,
    pub trust_domain: TrustDomain,
    /// Of the cluster's authorities.
    pub pins: Vec<KeyId>,
    /// `host:port` of control nodes.
    pub endpoints: Vec<String>,
    pub invite: String,
}

/// Why the host's files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum HostFileError {
    #[error("{}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than what it should be", .0.display())]
    TooLarge(PathBuf),
    #[error("{}: {source}", .path.display())]
    Host { path: PathBuf, source: HostError },
    #[error("{}: {why}", .path.display())]
    Bundle { path: PathBuf, why: String },
}

impl HostFiles {
    /// Reads them. An agent that has joined before knows the cluster's authorities better than the file does.
    pub fn read(&self, joined: Option<&StoredIdentity>) -> Result<HostProof, HostFileError> {
        let key = self.key()?;
        let (pins, endpoints) = match joined {
            Some(stored) => (stored.bundle.pins(), stored.endpoints.clone()),
            None => (self.pins()?, Vec::new()),
        };
        let invite = format!("{INVITE_PREFIX} {}", fingerprint_name(&key.chain[0]));
        Ok(HostProof { key, trust_domain: self.trust_domain.clone(), pins, endpoints, invite })
    }

    /// The agent's name where agents are named after fingerprints.
    pub fn default_name(&self) -> Result<NodeName, HostFileError> {
        Ok(fingerprint_name(&self.key()?.chain[0]))
    }

    fn key(&self) -> Result<HostKey, HostFileError> {
        let (chain, key) = (read(&self.certificate)?, read(&self.key)?);
        HostKey::from_pem(&chain, &key).map_err(|source| {
            let path = if matches!(source, HostError::Key(_)) { &self.key } else { &self.certificate };
            HostFileError::Host { path: path.clone(), source }
        })
    }

    fn pins(&self) -> Result<Vec<KeyId>, HostFileError> {
        let refused = |why: String| HostFileError::Bundle { path: self.trust_bundle.clone(), why };
        let bytes = read(&self.trust_bundle)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| refused("it is not text".to_owned()))?;
        let bundle = match text.trim_start().starts_with('{') {
            true => Bundle::from_jwks(&self.trust_domain, text).map_err(|e| refused(e.to_string()))?.bundle,
            false => {
                let mut authorities = Vec::new();
                for der in CertificateDer::pem_slice_iter(&bytes) {
                    let der = der.map_err(|e| refused(format!("it cannot be read as PEM: {e:?}")))?;
                    let authority = AuthorityCertificate::parse(&der, &self.trust_domain);
                    authorities.push(authority.map_err(|e| refused(e.to_string()))?);
                }
                Bundle::new(self.trust_domain.clone(), 0, authorities)
            }
        };
        if bundle.authorities.is_empty() {
            return Err(refused(format!("it has no authority of {}", self.trust_domain)));
        }
        Ok(bundle.pins())
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, HostFileError> {
    let unreadable = |source| HostFileError::Unreadable { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(HostFileError::TooLarge(path.to_owned()));
    }
    std::fs::read(path).map(Zeroizing::new).map_err(unreadable)
}
