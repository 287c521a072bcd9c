//! Hosts that prove themselves with a certificate of the user's own PKI (x509 proof of possession): which authorities
//! may vouch for hosts, how an agent is named after such a certificate, and what a host signs to show that it has the key.
//!
//! Whether a certificate is believed is `verify`'s decision (`verify::host`); its `VerifiedHost` checks the signature.

use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::bundle::KeyId;
use crate::name::{MAX_LABEL_BYTES, NodeName, TrustDomain};
use crate::svid::MAX_CHAIN;
use crate::time::Timestamp;
use crate::wire::{base64_bytes, to_hex};
use crate::x509;
use crate::x509::authority::AuthorityFacts;

/// Most authorities that may vouch for hosts.
pub const MAX_HOST_AUTHORITIES: usize = 16;
/// Longest domain of hosts: a name below it is a DNS name (RFC 1035 §2.3.4).
const MAX_DOMAIN_BYTES: usize = 253 - MAX_LABEL_BYTES - 1;
/// Longest subject that is kept of a certificate, in bytes.
const MAX_SUBJECT_BYTES: usize = 300;
/// Agents that are named after a fingerprint are named so, and with this many of its hex digits.
const FINGERPRINT_PREFIX: &str = "x509pop-";
const FINGERPRINT_DIGITS: usize = 40;
/// What the signature is for. The shape is that of RFC 8446 §4.4.3: no TLS handshake, of whatever version, signs
/// what begins so, so the host's key cannot be made to sign a proof by shaking hands with it, nor the other way round.
const PROOF_PAD: [u8; 64] = [0x20; 64];
const PROOF_CONTEXT: &[u8] = b"hanse x509pop v1";

/// Which authorities may vouch for hosts, and how the agents of those hosts are named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostTrust {
    pub authorities: Vec<HostAuthority>,
    pub naming: Naming,
}

/// An authority that may vouch for hosts: a root, or an authority below one if only what that signs is to count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostAuthority {
    /// X.509, DER.
    #[serde(with = "base64_bytes")]
    pub der: Vec<u8>,
    pub key_id: KeyId,
    /// RFC 4514 text.
    pub subject: String,
    pub not_after: Timestamp,
}

/// How an agent is named after the certificate of its host. There is one name per certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Naming {
    /// `x509pop-` and 40 hex digits of the certificate's SHA-256: nobody's choice.
    Fingerprint,
    /// The one label that the certificate's one DNS name below this domain has before it. The authorities decide which
    /// host has which name. (Never the common name: name constraints do not bind it.)
    DnsDomain(String),
}

/// What is kept of a host's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCertificate {
    /// SHA-256 of the DER, hex.
    pub fingerprint: String,
    /// RFC 4514 text, cut if it is long.
    pub subject: String,
    pub not_after: Timestamp,
}

/// Why a host's certificate, or what is said about hosts' certificates, is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("no authority is named, or more than {MAX_HOST_AUTHORITIES}")]
    Authorities,
    #[error("{subject}: {why}")]
    Authority { subject: String, why: String },
    #[error("{0:?} is not a domain of DNS names in lower case")]
    Domain(String),
    #[error("the host's certificate: {0}")]
    Certificate(String),
    #[error("the host's certificate is not signed by an authority that may vouch for hosts")]
    UnknownAuthority,
    #[error("the host's certificate, or an authority of its chain, has expired or is not yet valid")]
    Expired,
    #[error("the key of the host's certificate, or of an authority of its chain, is revoked by {0}")]
    Revoked(crate::revocation::RevocationId),
    #[error("the host's certificate is for agent {named}, not {asked}")]
    OtherName { named: NodeName, asked: NodeName },
    #[error("the signature is not of the certificate's key over this request on this connection")]
    Proof,
    #[error("the host's private key {0}")]
    Key(&'static str),
}

impl HostTrust {
    /// From PEM, one certificate after another.
    pub fn from_pem(pem: &[u8], naming: Naming) -> Result<Self, HostError> {
        let mut authorities: Vec<HostAuthority> = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem).take(MAX_HOST_AUTHORITIES + 1) {
            let der = der.map_err(|e| HostError::Authority {
                subject: format!("certificate {}", authorities.len() + 1),
                why: format!("it cannot be read as PEM: {e:?}"),
            })?;
            let authority = HostAuthority::parse(&der)?;
            if !authorities.contains(&authority) {
                authorities.push(authority);
            }
        }
        let trust = Self { authorities, naming };
        trust.check()?;
        Ok(trust)
    }

    /// Reads every certificate again: before it is written to the log.
    pub fn check(&self) -> Result<(), HostError> {
        if self.authorities.is_empty() || self.authorities.len() > MAX_HOST_AUTHORITIES {
            return Err(HostError::Authorities);
        }
        for authority in &self.authorities {
            if HostAuthority::parse(&authority.der)? != *authority {
                let why = "what is said about it is not what it says itself".to_owned();
                return Err(HostError::Authority { subject: authority.subject.clone(), why });
            }
        }
        self.naming.check()
    }
}

impl HostAuthority {
    fn parse(der: &[u8]) -> Result<Self, HostError> {
        let refused = |subject: &str, why: String| HostError::Authority { subject: subject.to_owned(), why };
        let certificate = x509::parse(der).map_err(|why| refused("a certificate", why))?;
        let subject = x509::rfc4514(certificate.subject());
        let facts = AuthorityFacts::read(&certificate).map_err(|rule| refused(&subject, rule.to_owned()))?;
        no_spiffe_id(&certificate).map_err(|rule| refused(&subject, rule.to_owned()))?;
        Ok(Self { der: der.to_vec(), key_id: facts.key_id, subject, not_after: facts.not_after })
    }
}

impl Naming {
    fn check(&self) -> Result<(), HostError> {
        let Self::DnsDomain(domain) = self else { return Ok(()) };
        let letter = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let label = |l: &str| (1..=MAX_LABEL_BYTES).contains(&l.len()) && l.bytes().all(letter);
        let fits = domain.len() <= MAX_DOMAIN_BYTES && domain.split('.').all(label);
        if fits { Ok(()) } else { Err(HostError::Domain(domain.chars().take(80).collect())) }
    }

    /// The name of the agent on a host with that certificate.
    pub(crate) fn name(&self, der: &[u8], certificate: &X509Certificate<'_>) -> Result<NodeName, String> {
        let Self::DnsDomain(domain) = self else { return Ok(fingerprint_name(der)) };
        let names = certificate.subject_alternative_name().map_err(|_| "its names cannot be read")?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let label = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => {
                let name = name.to_ascii_lowercase();
                name.strip_suffix(domain)?.strip_suffix('.').map(str::to_owned)
            }
            _ => None,
        };
        let labels: Vec<String> = names.iter().filter_map(label).collect();
        match labels.as_slice() {
            [one] => one.parse().map_err(|e: crate::NameError| format!("its DNS name: {e}")),
            [] => Err(format!("it has no DNS name below {domain}")),
            _ => Err(format!("it has {} DNS names below {domain}, so it names no one host", labels.len())),
        }
    }
}

/// The name of an agent on a host whose certificate this is, where agents are named after fingerprints.
pub fn fingerprint_name(der: &[u8]) -> NodeName {
    let digits = &to_hex(&x509::sha256(der))[..FINGERPRINT_DIGITS];
    format!("{FINGERPRINT_PREFIX}{digits}").parse().expect("letters, a hyphen and hex digits are a label")
}

impl HostCertificate {
    pub(crate) fn new(der: &[u8], certificate: &X509Certificate<'_>) -> Result<Self, &'static str> {
        let mut subject = x509::rfc4514(certificate.subject());
        if subject.len() > MAX_SUBJECT_BYTES {
            let end = (0..=MAX_SUBJECT_BYTES).rev().find(|at| subject.is_char_boundary(*at));
            subject.truncate(end.unwrap_or(0));
            subject.push('…');
        }
        let not_after = x509::timestamp(certificate.validity().not_after);
        Ok(Self {
            fingerprint: to_hex(&x509::sha256(der)),
            subject,
            not_after: not_after.ok_or("its validity is before 1970")?,
        })
    }
}

/// An SVID, of whatever mesh, proves a workload and never a host; what an authority of a mesh has signed neither.
pub(crate) fn no_spiffe_id(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    let names = x509::uri_names(certificate).map_err(|_| "its names cannot be read")?;
    let spiffe = |name: &&str| name.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"));
    match names.iter().any(spiffe) {
        true => Err("it has a SPIFFE ID: it is of a mesh, and vouches for no host"),
        false => Ok(()),
    }
}

/// What a host signs: which cluster, over which TLS session, as which agent, for which new key, with which certificate.
/// The session's exporter value is the challenge: neither end chooses it, and no other session has it. Every part is
/// led by its length, so that no two different inputs give the same bytes.
pub(crate) fn proof_message(
    trust_domain: &TrustDomain,
    binding: &[u8; 32],
    agent: &NodeName,
    csr_der: &[u8],
    certificate_der: &[u8],
) -> Vec<u8> {
    let mut message = PROOF_PAD.to_vec();
    message.extend_from_slice(PROOF_CONTEXT);
    message.push(0);
    let (csr, certificate) = (x509::sha256(csr_der), x509::sha256(certificate_der));
    for part in [trust_domain.as_str().as_bytes(), binding, agent.as_str().as_bytes(), &csr, &certificate] {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

/// A host's certificate chain and its private key, as the host itself holds them.
pub struct HostKey {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    key: std::sync::Arc<dyn SigningKey>,
}

impl HostKey {
    /// From PEM: the chain, leaf first, and an unencrypted private key (PKCS#8, SEC 1 or PKCS#1).
    pub fn from_pem(chain_pem: &[u8], key_pem: &[u8]) -> Result<Self, HostError> {
        let chain = CertificateDer::pem_slice_iter(chain_pem)
            .take(MAX_CHAIN + 1)
            .map(|der| der.map(|der| der.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| HostError::Certificate(format!("it cannot be read as PEM: {e:?}")))?;
        let Some(leaf) = chain.first() else {
            return Err(HostError::Certificate("there is none in the file".to_owned()));
        };
        if chain.len() > MAX_CHAIN {
            return Err(HostError::Certificate(format!("the file has more than {MAX_CHAIN}")));
        }
        let der = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| {
            HostError::Key("cannot be read as PEM (an encrypted one is to be decrypted first)")
        })?;
        let key = any_supported_type(&der).map_err(|_| HostError::Key("is not ECDSA P-256, P-384 or RSA"))?;
        let certificate = x509::parse(leaf).map_err(HostError::Certificate)?;
        let own = key.public_key().ok_or(HostError::Key("does not say what its public key is"))?;
        if own.as_ref() != certificate.public_key().raw {
            return Err(HostError::Key("does not belong to the certificate"));
        }
        Ok(Self { chain, key })
    }

    /// Proves possession of the key over this TLS session.
    pub fn prove(
        &self,
        trust_domain: &TrustDomain,
        binding: &[u8; 32],
        agent: &NodeName,
        csr_der: &[u8],
    ) -> Result<Vec<u8>, HostError> {
        // Which one it is follows from the key alone: the verifier knows it without being told.
        const SCHEMES: &[SignatureScheme] = &[
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
        ];
        let signer = self.key.choose_scheme(SCHEMES);
        let signer = signer.ok_or(HostError::Key("is not ECDSA P-256, P-384 or RSA"))?;
        let message = proof_message(trust_domain, binding, agent, csr_der, &self.chain[0]);
        signer.sign(&message).map_err(|_| HostError::Key("does not sign"))
    }
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}
