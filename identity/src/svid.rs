//! SVIDs: a certificate chain with one SPIFFE ID in it, its private key, and the facts that are read from it.

use std::fmt;
use std::str::FromStr;

use rcgen::PublicKeyData as _;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use zeroize::{Zeroize as _, Zeroizing};

use crate::bundle::KeyId;
use crate::name::SpiffeId;
use crate::time::Timestamp;
use crate::wire::{to_hex, to_pem};
use crate::x509;

/// A certificate's serial number: 1 to 20 bytes, positive, no leading zero; written in lower-case hex. Kept in place:
/// a control node has some for every SVID that lives.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Serial {
    length: u8,
    /// Zero beyond `length`.
    bytes: [u8; MAX_SERIAL_BYTES],
}

/// What is known about an SVID once it has been parsed; says nothing about whether it is to be believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvidFacts {
    pub id: SpiffeId,
    pub serial: Serial,
    /// The signer's Authority Key Identifier as hex, if present.
    pub authority_key_identifier: Option<String>,
    /// SHA-256 of the leaf's SubjectPublicKeyInfo.
    pub key_id: KeyId,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// A chain and its private key, as the workload that owns it holds them.
#[derive(Clone)]
pub struct Svid {
    pub facts: SvidFacts,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8 DER.
    pub key: Zeroizing<Vec<u8>>,
}

/// Why bytes are not an X509-SVID: the rule of X509-SVID.md or SPIFFE-ID.md that is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    #[error("the certificate cannot be parsed: {0}")]
    Malformed(String),
    #[error("the certificate has {0} URI names, an SVID has exactly one (X509-SVID §2)")]
    UriNames(usize),
    #[error("the URI name is not a SPIFFE ID: {0}")]
    Name(#[from] crate::name::NameError),
    #[error("{0}")]
    Profile(&'static str),
    #[error("the private key cannot be read as PKCS#8")]
    Key,
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    #[error("the chain has no certificate")]
    NoCertificate,
    #[error("the chain has {0} certificates, at most {max} are read", max = MAX_CHAIN)]
    ChainLength(usize),
}

/// Longest serial number, in bytes (RFC 5280 §4.1.2.2).
const MAX_SERIAL_BYTES: usize = 20;
/// Longest chain that is looked at, in certificates; more is refused before any signature is checked.
pub const MAX_CHAIN: usize = 4;
/// Largest certificate that is looked at, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

impl SvidFacts {
    /// Parses a leaf and checks the SVID profile. No signature is checked.
    pub fn parse(der: &[u8]) -> Result<Self, SvidError> {
        Self::of(&x509::parse(der).map_err(SvidError::Malformed)?)
    }

    /// The same of a certificate that has been read already.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Result<Self, SvidError> {
        let id = leaf_name(certificate)?;
        x509::leaf::profile(certificate).map_err(SvidError::Profile)?;
        x509::leaf::svid_usage(certificate).map_err(SvidError::Profile)?;
        let validity = certificate.validity();
        let time = |at| x509::timestamp(at).ok_or(SvidError::Profile("its validity is before 1970"));
        Ok(Self {
            id,
            serial: x509::serial(certificate).map_err(SvidError::Profile)?,
            authority_key_identifier: x509::authority_key_identifier(certificate).map(to_hex),
            key_id: x509::key_id(certificate.public_key().raw),
            not_before: time(validity.not_before)?,
            not_after: time(validity.not_after)?,
        })
    }
}

/// The one SPIFFE ID.
fn leaf_name(certificate: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let uris = x509::uri_names(certificate).map_err(SvidError::Malformed)?;
    let &[name] = uris.as_slice() else {
        return Err(SvidError::UriNames(uris.len()));
    };
    let id: SpiffeId = name.parse()?;
    if id.path().is_empty() {
        return Err(SvidError::Profile("its SPIFFE ID has no path (X509-SVID §3.1)"));
    }
    Ok(id)
}

impl Svid {
    /// Puts a chain and its key together; the key must belong to the leaf.
    pub fn new(chain: Vec<Vec<u8>>, key_pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, SvidError> {
        if chain.len() > MAX_CHAIN {
            return Err(SvidError::ChainLength(chain.len()));
        }
        let facts = SvidFacts::parse(chain.first().ok_or(SvidError::NoCertificate)?)?;
        let pkcs8 = PrivatePkcs8KeyDer::from(key_pkcs8.as_slice());
        let mut key = rcgen::KeyPair::try_from(&pkcs8).map_err(|_| SvidError::Key)?;
        let belongs = x509::key_id(&key.subject_public_key_info()) == facts.key_id;
        key.zeroize();
        if !belongs {
            return Err(SvidError::KeyMismatch);
        }
        Ok(Self { facts, chain, key: key_pkcs8 })
    }

    /// Certificates as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| to_pem("CERTIFICATE", der).to_string()).collect()
    }

    /// The private key as PKCS#8 PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        to_pem("PRIVATE KEY", &self.key)
    }

    /// From PEM, as written by `chain_pem` and `key_pem`.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, SvidError> {
        let unreadable = |e: pem::Error| SvidError::Malformed(format!("{e:?}"));
        // One more than is allowed, so that `new` can tell.
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
            .take(MAX_CHAIN + 1)
            .map(|der| der.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(unreadable)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).map_err(|_| SvidError::Key)?;
        Self::new(chain, Zeroizing::new(key.secret_pkcs8_der().to_vec()))
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Serial {
    /// Big-endian bytes; leading zeros are dropped. `None` if nothing is left or more than 20 bytes are.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let start = bytes.iter().position(|b| *b != 0)?;
        let number = &bytes[start..];
        let mut bytes = [0; MAX_SERIAL_BYTES];
        bytes.get_mut(..number.len())?.copy_from_slice(number);
        Some(Self { length: u8::try_from(number.len()).ok()?, bytes })
    }

    /// From 16 random bytes that the caller drew; the top bit is cleared and the number is never zero.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Self::new(&bytes).expect("16 bytes that do not start with zero")
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// As its bytes, not as a number.
impl Ord for Serial {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for Serial {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl FromStr for Serial {
    type Err = &'static str;

    /// Hex, with or without colons.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = crate::wire::from_hex(&text.replace(':', "")).ok_or("is not a serial number in hex")?;
        Self::new(&bytes).ok_or("is not 1 to 20 bytes")
    }
}

impl Serialize for Serial {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
