//! Authorities: the CA key pairs that sign SVIDs, and the states they pass through.
//!
//! An `Authority` holds a private key and therefore never leaves the node that made it; what travels is its
//! `AuthorityCertificate`. States: prepared → active → tainted → retired.

use std::convert::Infallible;
use std::time::Duration;

use aws_lc_rs::error::KeyRejected;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;

use crate::bundle::{AuthorityCertificate, KeyId};
use crate::name::{NodeName, TrustDomain};
use crate::private_key::{PrivateKey, PrivateKeyError};
use crate::svid::Serial;
use crate::time::Timestamp;
use crate::upstream::Intermediate;
use crate::x509;
use crate::x509::authority::NESTED_UNIT;

/// How long before `now` an authority's certificate starts: clocks of verifiers may be behind.
pub(crate) const BACKDATED: Duration = Duration::from_secs(300);
/// Longest attribute of a subject (RFC 5280, ub-common-name and ub-organization-name).
const MAX_SUBJECT_ATTRIBUTE: usize = 64;
/// Hex digits of the key id in the subject: 64 bits keep subjects apart.
const SUBJECT_KEY_DIGITS: usize = 16;
/// How many authorities may stand below one that is made from now on: a nested issuer (`downstream`).
pub(crate) const PATH_LENGTH: u8 = 1;

/// Where an authority is in its life. Only `Active` signs; all but `Retired` are trusted by verifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthorityState {
    Prepared,
    Active,
    Tainted,
    Retired,
}

/// One CA key pair with its certificate: self-signed, or below a root of the user's own house (`upstream`).
pub struct Authority {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) issuer: Issuer<'static, PrivateKey>,
    /// What is in the bundle: its own self-signed certificate, or the root above it.
    pub(crate) certificate: AuthorityCertificate,
    /// Its own certificate, if a root of the user's own house signed it.
    intermediate: Option<Intermediate>,
    pub(crate) signer: Signer,
}

/// What the certificate whose key signs says of itself, kept apart because every SVID is compared with it.
pub(crate) struct Signer {
    /// Its subject, DER.
    pub(crate) subject: Vec<u8>,
    /// Its P-256 key, read once.
    key: ParsedPublicKey,
    /// How many authorities it lets stand below itself; `None` = any number.
    path_length: Option<u32>,
}

impl Signer {
    fn read(der: &[u8]) -> Result<Self, AuthorityError> {
        let certificate = x509::parse(der).map_err(AuthorityError::Certificate)?;
        let subject = certificate.subject().as_raw().to_vec();
        let path_length = path_length(&certificate)?;
        let point = x509::p256_point(certificate.public_key()).ok_or(PrivateKeyError::NotP256)?;
        let unreadable = |e: KeyRejected| AuthorityError::Certificate(e.to_string());
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).map_err(unreadable)?;
        Ok(Self { subject, key, path_length })
    }

    /// Whether it has signed this, with ECDSA and SHA-256.
    pub(crate) fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        certificate.signature_algorithm.algorithm == OID_SIG_ECDSA_WITH_SHA256
            && certificate.signature_value.unused_bits == 0
            && self
                .key
                .verify_sig(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
                .is_ok()
    }
}

/// How many authorities one lets stand below itself.
fn path_length(certificate: &X509Certificate<'_>) -> Result<Option<u32>, AuthorityError> {
    let length = x509::authority_path_length(certificate);
    length.ok_or_else(|| AuthorityError::Certificate("it is no CA".to_owned()))
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority's key cannot be used: {0}")]
    Key(#[from] PrivateKeyError),
    #[error("the authority's key does not belong to its certificate")]
    KeyMismatch,
    #[error("the authority's certificate cannot be made or read: {0}")]
    Certificate(String),
    #[error("the upstream authority: {0}")]
    Upstream(String),
}

impl Authority {
    /// Makes a self-signed authority from a fresh P-256 `key` (the caller has it made, on its own node).
    /// The subject is unique: trust domain, node and key id. `not_before` is `now` minus five minutes.
    pub fn create<K: TryInto<PrivateKey>>(
        trust_domain: &TrustDomain,
        node: &NodeName,
        key: K,
        serial: Serial,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Self, AuthorityError>
    where
        AuthorityError: From<K::Error>,
    {
        let key = key.try_into()?;
        let bad = |e: rcgen::Error| AuthorityError::Certificate(e.to_string());
        let time = |at| {
            let late = || AuthorityError::Certificate("its validity ends too late".to_owned());
            x509::date_time(at).ok_or_else(late)
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(trust_domain, node, &key.id());
        let uri = trust_domain.id().to_string();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(bad)?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(PATH_LENGTH));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.not_before = time(now - BACKDATED)?;
        params.not_after = time(now + lifetime)?;
        let certificate = params.self_signed(&key).map_err(bad)?;
        Self::assemble(trust_domain, key, certificate.der())
    }

    /// From a key and the certificate that was made for it; the key must belong to the certificate.
    pub fn restore(
        trust_domain: &TrustDomain,
        key: PrivateKey,
        certificate_der: &[u8],
    ) -> Result<Self, AuthorityError> {
        Self::assemble(trust_domain, key, certificate_der)
    }

    fn assemble(trust_domain: &TrustDomain, key: PrivateKey, der: &[u8]) -> Result<Self, AuthorityError> {
        let certificate = AuthorityCertificate::parse(der, trust_domain)
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        if certificate.key_id != key.id() {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(der), key)
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        let signer = Signer::read(der)?;
        Ok(Self { trust_domain: trust_domain.clone(), issuer, certificate, intermediate: None, signer })
    }

    /// Below a root: `root` is in the bundle, `intermediate` goes along with every SVID. Both are checked again.
    pub fn restore_below(
        trust_domain: &TrustDomain,
        key: PrivateKey,
        intermediate: Intermediate,
        root: AuthorityCertificate,
    ) -> Result<Self, AuthorityError> {
        let checked = Intermediate::parse(&intermediate.der, trust_domain, &root)?;
        if checked.key_id != key.id() {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(checked.der.as_slice()), key)
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        let mut signer = Signer::read(&checked.der)?;
        // It is one of those that the root lets stand below itself.
        let above = x509::parse(&root.der).map_err(AuthorityError::Certificate)?;
        let left = path_length(&above)?.map(|most| most.saturating_sub(1));
        signer.path_length = signer.path_length.into_iter().chain(left).min();
        Ok(Self {
            trust_domain: trust_domain.clone(),
            issuer,
            certificate: root,
            signer,
            intermediate: Some(checked),
        })
    }

    /// Its own certificate, if a root above it is in the bundle instead.
    pub fn intermediate(&self) -> Option<&Intermediate> {
        self.intermediate.as_ref()
    }

    /// Whether its certificate, and the root's above it, let a nested issuer stand below.
    pub fn allows_nested(&self) -> bool {
        self.signer.path_length.is_none_or(|most| most > 0)
    }

    /// When the first certificate above what it signs expires.
    pub fn not_after(&self) -> Timestamp {
        let root = self.certificate.not_after;
        self.intermediate.as_ref().map_or(root, |i| i.not_after.min(root))
    }

    /// The key that signs.
    pub fn key(&self) -> &PrivateKey {
        self.issuer.key()
    }

    /// Moves it to another state of its life; only an active authority signs.
    pub fn set_state(&mut self, state: AuthorityState) {
        self.certificate.state = state;
    }

    /// The certificate that verifiers have in their bundle: its own, or that of the root above it.
    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

/// A `PrivateKey` is one already.
impl From<Infallible> for AuthorityError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Unique per key: some verifiers take the first authority with a fitting subject, and no other.
pub(crate) fn subject(trust_domain: &TrustDomain, node: &NodeName, key: &KeyId) -> DistinguishedName {
    let node = bounded(node.as_str(), MAX_SUBJECT_ATTRIBUTE - SUBJECT_KEY_DIGITS - 1);
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, bounded(trust_domain.as_str(), MAX_SUBJECT_ATTRIBUTE));
    subject.push(DnType::CommonName, format!("{node} {}", bounded(&key.to_string(), SUBJECT_KEY_DIGITS)));
    subject
}

/// The same of a nested issuer: it says so, and names no node.
pub(crate) fn nested_subject(trust_domain: &TrustDomain, key: &KeyId) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, bounded(trust_domain.as_str(), MAX_SUBJECT_ATTRIBUTE));
    subject.push(DnType::OrganizationalUnitName, NESTED_UNIT);
    subject.push(DnType::CommonName, bounded(&key.to_string(), SUBJECT_KEY_DIGITS));
    subject
}

/// The beginning of an ASCII text.
fn bounded(text: &str, room: usize) -> String {
    text[..text.len().min(room)].to_owned()
}

#[cfg(test)]
mod tests;
