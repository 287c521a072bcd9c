//! A root of the user's own house: signs a node's authority once, and is not needed after that.
//!
//! The bundle then holds the root (stock verifiers want chains to end in a self-signed certificate), every SVID carries
//! its authority's certificate between leaf and root, and the root's private key is nowhere in the mesh.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use crate::authority::{AuthorityError, BACKDATED, PATH_LENGTH, subject};
use crate::bundle::{AuthorityCertificate, KeyId};
use crate::name::{NodeName, TrustDomain};
use crate::private_key::PrivateKey;
use crate::svid::Serial;
use crate::time::Timestamp;
use crate::x509;
use crate::x509::authority::{AuthorityFacts, speaks_for};

/// The root's certificate and, for as long as this lives, its private key: ECDSA P-256 or P-384, or RSA.
pub struct Upstream {
    trust_domain: TrustDomain,
    certificate: AuthorityCertificate,
    issuer: Issuer<'static, RootKey>,
    /// How many authorities may stand below those that it signs, as far as it allows what they need.
    path_length: u8,
}

/// Wiped when dropped.
struct RootKey(KeyPair);

/// A node's authority's certificate that stands below a root: signed by the root, of the bare trust domain, and letting no
/// more stand below it than a nested issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intermediate {
    /// X.509, DER.
    #[serde(with = "crate::wire::base64_bytes")]
    pub der: Vec<u8>,
    pub key_id: KeyId,
    pub not_after: Timestamp,
}

impl Upstream {
    /// From PEM: one certificate, one unencrypted private key that belongs to it.
    pub fn from_pem(
        trust_domain: &TrustDomain,
        certificate_pem: &[u8],
        key_pem: &[u8],
    ) -> Result<Self, AuthorityError> {
        let bad = |why: String| AuthorityError::Upstream(why);
        let der = CertificateDer::from_pem_slice(certificate_pem)
            .map_err(|e| bad(format!("the certificate cannot be read as PEM: {e:?}")))?;
        let certificate = AuthorityCertificate::parse(&der, trust_domain).map_err(|e| bad(e.to_string()))?;
        let parsed = x509::parse(&der).map_err(bad)?;
        let facts = AuthorityFacts::root(&parsed).map_err(|e| bad(e.to_owned()))?;
        let below = match facts.path_length {
            Some(0) => {
                return Err(bad("the root allows no authority below it (path length 0)".to_owned()));
            }
            Some(1) => 0,
            _ => PATH_LENGTH,
        };
        let mut key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| {
            bad(format!(
                "the private key cannot be read as PEM (an encrypted one is to be decrypted first): {e:?}"
            ))
        })?;
        let pair = KeyPair::try_from(&key).map(RootKey).map_err(|e| bad(format!("the private key: {e}")));
        key.zeroize();
        let pair = pair?;
        if x509::key_id(&pair.0.subject_public_key_info()) != certificate.key_id {
            return Err(bad("the private key does not belong to the certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|e| bad(e.to_string()))?;
        Ok(Self { trust_domain: trust_domain.clone(), certificate, issuer, path_length: below })
    }

    /// The root, as it goes into the bundle.
    pub fn certificate(&self) -> &AuthorityCertificate {
        &self.certificate
    }

    /// Signs the certificate of a node's authority, valid from five minutes ago for `lifetime`, never beyond the root.
    pub fn sign(
        &self,
        node: &NodeName,
        key: &PrivateKey,
        serial: Serial,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Intermediate, AuthorityError> {
        let bad = |e: rcgen::Error| AuthorityError::Upstream(format!("the root does not sign: {e}"));
        let not_after = (now + lifetime).min(self.certificate.not_after);
        if not_after <= now {
            return Err(AuthorityError::Upstream(format!("the root expired at {not_after}")));
        }
        let time = |at| {
            let late = || AuthorityError::Certificate("its validity ends too late".to_owned());
            x509::date_time(at).ok_or_else(late)
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&self.trust_domain, node, &key.id());
        let uri = self.trust_domain.id().to_string();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(bad)?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(self.path_length));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.not_before = time(now - BACKDATED)?;
        params.not_after = time(not_after)?;
        let der = params.signed_by(key, &self.issuer).map_err(bad)?.der().to_vec();
        // Read as a stranger would before anybody relies on it.
        Intermediate::parse(&der, &self.trust_domain, &self.certificate)
    }
}

impl Intermediate {
    /// Reads one and checks that it is an authority of the trust domain, and signed by that root.
    pub fn parse(
        der: &[u8],
        trust_domain: &TrustDomain,
        root: &AuthorityCertificate,
    ) -> Result<Self, AuthorityError> {
        let bad = |why: &str| AuthorityError::Certificate(why.to_owned());
        let certificate = x509::parse(der).map_err(AuthorityError::Certificate)?;
        let facts = AuthorityFacts::read(&certificate).map_err(bad)?;
        if !speaks_for(&certificate, trust_domain).map_err(bad)? {
            return Err(bad(
                "it has no URI name: it is to be that of the bare trust domain (X509-SVID §3.2)",
            ));
        }
        if facts.path_length.is_none_or(|most| most > u32::from(PATH_LENGTH)) {
            return Err(bad("its path length is neither 0 nor 1"));
        }
        let root = x509::parse(&root.der).map_err(AuthorityError::Certificate)?;
        if certificate.issuer().as_raw() != root.subject().as_raw() {
            return Err(bad("its issuer is not the root, byte for byte"));
        }
        certificate
            .verify_signature(Some(root.public_key()))
            .map_err(|_| bad("it is not signed by the root"))?;
        Ok(Self { der: der.to_vec(), key_id: facts.key_id, not_after: facts.not_after })
    }
}

impl rcgen::PublicKeyData for RootKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl rcgen::SigningKey for RootKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl Drop for RootKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
