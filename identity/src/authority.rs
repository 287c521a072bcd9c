//! Authorities: the CA key pairs that sign SVIDs, and the states they pass through.
//!
//! An `Authority` holds a private key and therefore never leaves the node that made it; what travels is its
//! `AuthorityCertificate`. States: prepared → active → tainted → retired.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::bundle::{AuthorityCertificate, KeyId};
use crate::name::{NodeName, TrustDomain};
use crate::svid::Serial;
use crate::time::Timestamp;
use crate::x509;

/// How long before `now` an authority's certificate starts: clocks of verifiers may be behind.
const BACKDATED: Duration = Duration::from_secs(300);
/// Longest attribute of a subject (RFC 5280, ub-common-name and ub-organization-name).
const MAX_SUBJECT_ATTRIBUTE: usize = 64;
/// Hex digits of the key id in the subject: 64 bits keep subjects apart.
const SUBJECT_KEY_DIGITS: usize = 16;

/// Where an authority is in its life. Only `Active` signs; all but `Retired` are trusted by verifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthorityState {
    Prepared,
    Active,
    Tainted,
    Retired,
}

/// One CA key pair with its self-signed certificate.
pub struct Authority {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) issuer: Issuer<'static, AuthorityKey>,
    pub(crate) certificate: AuthorityCertificate,
}

/// The private key; its bytes are wiped when it is dropped.
pub(crate) struct AuthorityKey(KeyPair);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority's key cannot be read: {0}")]
    Key(String),
    #[error("the authority's certificate cannot be made or read: {0}")]
    Certificate(String),
}

impl Authority {
    /// Makes a self-signed authority from a fresh P-256 `key` (the caller generates it, on its own node).
    /// The subject is unique: trust domain, node and key id. `not_before` is `now` minus five minutes.
    pub fn create(
        trust_domain: &TrustDomain,
        node: &NodeName,
        key: KeyPair,
        serial: Serial,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Self, AuthorityError> {
        let key = AuthorityKey::new(key)?;
        let bad = |e: rcgen::Error| AuthorityError::Certificate(e.to_string());
        let time = |at| {
            let late = || AuthorityError::Certificate("its validity ends too late".to_owned());
            x509::date_time(at).ok_or_else(late)
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(trust_domain, node, &key.id());
        let uri = trust_domain.id().to_string();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(bad)?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.not_before = time(now - BACKDATED)?;
        params.not_after = time(now + lifetime)?;
        let certificate = params.self_signed(&key).map_err(bad)?;
        Self::assemble(trust_domain, key, certificate.der())
    }

    /// From what `to_pkcs8` and the certificate's DER gave; the key must belong to the certificate.
    pub fn restore(
        trust_domain: &TrustDomain,
        key_pkcs8: &[u8],
        certificate_der: &[u8],
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(key_pkcs8),
            &PKCS_ECDSA_P256_SHA256,
        )
        .map_err(|e| AuthorityError::Key(e.to_string()))?;
        Self::assemble(trust_domain, AuthorityKey::new(key)?, certificate_der)
    }

    fn assemble(trust_domain: &TrustDomain, key: AuthorityKey, der: &[u8]) -> Result<Self, AuthorityError> {
        let certificate = AuthorityCertificate::parse(der, trust_domain)
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        if certificate.key_id != key.id() {
            return Err(AuthorityError::Key("it does not belong to the certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(der), key)
            .map_err(|e| AuthorityError::Certificate(e.to_string()))?;
        Ok(Self { trust_domain: trust_domain.clone(), issuer, certificate })
    }

    /// The private key, PKCS#8 DER, for the node's own 0600 file and nothing else.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().0.serialize_der())
    }

    /// Moves it to another state of its life; only an active authority signs.
    pub fn set_state(&mut self, state: AuthorityState) {
        self.certificate.state = state;
    }

    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

impl AuthorityKey {
    fn new(key: KeyPair) -> Result<Self, AuthorityError> {
        if !key.is_compatible(&PKCS_ECDSA_P256_SHA256) {
            return Err(AuthorityError::Key("it is not ECDSA P-256".to_owned()));
        }
        Ok(Self(key))
    }

    fn id(&self) -> KeyId {
        x509::key_id(&self.0.subject_public_key_info())
    }
}

impl Drop for AuthorityKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for AuthorityKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for AuthorityKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Unique per key: some verifiers take the first authority with a fitting subject, and no other.
fn subject(trust_domain: &TrustDomain, node: &NodeName, key: &KeyId) -> DistinguishedName {
    let bounded = |text: &str, room: usize| text[..text.len().min(room)].to_owned();
    let digits = bounded(&key.to_string(), SUBJECT_KEY_DIGITS);
    let node = bounded(node.as_str(), MAX_SUBJECT_ATTRIBUTE - SUBJECT_KEY_DIGITS - 1);
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, bounded(trust_domain.as_str(), MAX_SUBJECT_ATTRIBUTE));
    subject.push(DnType::CommonName, format!("{node} {digits}"));
    subject
}

#[cfg(test)]
mod tests;
