//! Issue: ticket + CSR → template → sign → re-read what was signed. The names in a CSR are never used.

use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::authority::{Authority, AuthorityState};
use crate::bundle::KeyId;
use crate::grant::Ticket;
use crate::name::SpiffeId;
use crate::svid::{Serial, SvidFacts};
use crate::time::Timestamp;
use crate::x509;

/// A freshly signed SVID, without its key (which the requester made and kept).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// DER, leaf first, then the authority's own certificate if it is below a root; nothing self-signed is part of it.
    pub chain: Vec<Vec<u8>>,
    pub facts: SvidFacts,
}

/// Largest CSR that is read, in bytes.
pub const MAX_CSR_BYTES: usize = 8 * 1024;
/// How long before `now` an SVID starts: clocks of verifiers may be behind.
pub const BACKDATED: Duration = Duration::from_secs(30);

/// Everything that a certificate will say. Made from the ticket and the authority; of the request, only the key.
pub(crate) struct Template {
    pub(crate) id: SpiffeId,
    pub(crate) serial: Serial,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) spki: Vec<u8>,
    pub(crate) key_id: KeyId,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    #[error("the certificate request cannot be read: {0}")]
    Csr(String),
    #[error("the certificate request's key is not ECDSA P-256")]
    KeyType,
    #[error("the authority is {0:?}, only an active one signs")]
    AuthorityNotActive(crate::authority::AuthorityState),
    #[error("the authority expired at {0}")]
    AuthorityExpired(Timestamp),
    #[error("the authority is of trust domain {0}, the identity is not")]
    ForeignTrustDomain(crate::name::TrustDomain),
    #[error("the registration expired at {0}")]
    RegistrationExpired(Timestamp),
    #[error(
        "the authority lets no other stand below it (path length 0): hanse trust rotate gives the cluster one that does"
    )]
    NoNestedIssuer,
    #[error(
        "the node's authority, or the root of your own above it, lets no other stand below it: the root needs a path length of 2 or none, and the node an authority that was made below it since"
    )]
    NoNestedIssuerBelowRoot,
    #[error("signing failed: {0}")]
    Signing(String),
    #[error("what was signed does not fit the template: {0}")]
    Recheck(String),
}

/// What an SVID says in `not_before` is in whole seconds.
pub const SECOND: Duration = Duration::from_secs(1);

/// Signs an SVID for the ticket's identity over the CSR's public key. The CSR's self-signature is checked
/// (proof of possession); nothing else of it is used. `not_before` is `now` minus 30 s, but after the ticket's
/// watermark; `not_after` is never beyond the authority's own, nor beyond the end of the registration.
pub fn issue(
    ticket: Ticket,
    csr_der: &[u8],
    authority: &Authority,
    serial: Serial,
    now: Timestamp,
) -> Result<Issued, IssueError> {
    let template = Template::new(ticket, csr_der, authority, serial, now)?;
    let der = sign(&template, authority)?;
    let facts = recheck(&template, &der, authority)?;
    Ok(Issued { chain: with_what_is_above(der, authority), facts })
}

/// A chain without the authority that the bundle has.
pub(crate) fn with_what_is_above(der: Vec<u8>, authority: &Authority) -> Vec<Vec<u8>> {
    let above = authority.intermediate().map(|i| i.der.clone());
    std::iter::once(der).chain(above).collect()
}

impl Template {
    /// What a ticket comes to under this authority, at `now`.
    pub(crate) fn new(
        ticket: Ticket,
        csr_der: &[u8],
        authority: &Authority,
        serial: Serial,
        now: Timestamp,
    ) -> Result<Self, IssueError> {
        let certificate = authority.certificate();
        if certificate.state != AuthorityState::Active {
            return Err(IssueError::AuthorityNotActive(certificate.state));
        }
        if authority.not_after() <= now {
            return Err(IssueError::AuthorityExpired(authority.not_after()));
        }
        if ticket.id.trust_domain() != authority.trust_domain() {
            return Err(IssueError::ForeignTrustDomain(authority.trust_domain().clone()));
        }
        let end = ticket.not_after.unwrap_or(Timestamp(u64::MAX));
        if end <= now {
            return Err(IssueError::RegistrationExpired(end));
        }
        let spki = requested_key(csr_der)?;
        let backdated = now - BACKDATED;
        Ok(Self {
            key_id: x509::key_id(&spki),
            spki,
            serial,
            // Our clock may be behind that of the node where the watermark was set.
            not_before: ticket.watermark.map_or(backdated, |mark| backdated.max(mark + SECOND)),
            not_after: (now + ticket.lifetime).min(authority.not_after()).min(end),
            id: ticket.id,
        })
    }

    /// The parameters of a certificate, but for what kind of one it is.
    pub(crate) fn params(&self) -> Result<CertificateParams, IssueError> {
        let time = |at| {
            let late = || IssueError::Signing("the validity ends too late".to_owned());
            x509::date_time(at).ok_or_else(late)
        };
        let mut params = CertificateParams::default();
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(self.serial.as_bytes()));
        params.not_before = time(self.not_before)?;
        params.not_after = time(self.not_after)?;
        Ok(params)
    }

    /// Has it signed, over the key that was asked for.
    pub(crate) fn signed(
        &self,
        params: &CertificateParams,
        authority: &Authority,
    ) -> Result<Vec<u8>, IssueError> {
        let key = x509::public_key(&self.spki).map_err(IssueError::Signing)?;
        let key = RequestedKey(x509::p256_point(&key).ok_or(IssueError::KeyType)?);
        Ok(params.signed_by(&key, &authority.issuer).map_err(not_signed)?.der().to_vec())
    }
}

pub(crate) fn not_signed(error: rcgen::Error) -> IssueError {
    IssueError::Signing(error.to_string())
}

/// The request's public key as SubjectPublicKeyInfo, once the request's signature has shown that the
/// requester holds the private one.
fn requested_key(csr_der: &[u8]) -> Result<Vec<u8>, IssueError> {
    if csr_der.len() > MAX_CSR_BYTES {
        let size = csr_der.len();
        return Err(IssueError::Csr(format!("it has {size} bytes, at most {MAX_CSR_BYTES} are read")));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(csr_der).map_err(|e| IssueError::Csr(e.to_string()))?;
    if !rest.is_empty() {
        return Err(IssueError::Csr("there are bytes after its end".to_owned()));
    }
    let key = &request.certification_request_info.subject_pki;
    if x509::p256_point(key).is_none() {
        return Err(IssueError::KeyType);
    }
    request
        .verify_signature()
        .map_err(|_| IssueError::Csr("it is not signed with the key it asks for".to_owned()))?;
    Ok(key.raw.to_vec())
}

fn sign(template: &Template, authority: &Authority) -> Result<Vec<u8>, IssueError> {
    let mut params = template.params()?;
    // Without a subject the alternative names are critical: rcgen sees to that, `recheck` makes sure.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(template.id.to_string().try_into().map_err(not_signed)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    template.signed(&params, authority)
}

/// The point of a P-256 key. rcgen's own reader of public keys tries every algorithm that it has, for each key.
struct RequestedKey<'k>(&'k [u8]);

impl PublicKeyData for RequestedKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Reads what was signed as a stranger would, and compares.
fn recheck(template: &Template, der: &[u8], authority: &Authority) -> Result<SvidFacts, IssueError> {
    let leaf = x509::parse(der).map_err(IssueError::Recheck)?;
    let facts = SvidFacts::of(&leaf).map_err(|e| IssueError::Recheck(e.to_string()))?;
    signed_by(&leaf, authority)?;
    let as_planned = facts.id == template.id
        && facts.serial == template.serial
        && facts.key_id == template.key_id
        && facts.authority_key_identifier.is_some()
        && facts.not_before.seconds() == template.not_before.seconds()
        && facts.not_after.seconds() == template.not_after.seconds();
    if !as_planned {
        return Err(IssueError::Recheck("it says something else".to_owned()));
    }
    Ok(facts)
}

/// Whether the certificate names the authority as its issuer, and has its signature.
pub(crate) fn signed_by(certificate: &X509Certificate<'_>, authority: &Authority) -> Result<(), IssueError> {
    let refuse = |rule: &str| Err(IssueError::Recheck(rule.to_owned()));
    if certificate.issuer().as_raw() != authority.signer.subject {
        return refuse("the issuer's name is not the authority's");
    }
    if !authority.signer.has_signed(certificate) {
        return refuse("the signature is not the authority's");
    }
    Ok(())
}

/// Makes a CSR (DER, PKCS#10) for `key`, with an empty subject and no names: the issuer would ignore them.
pub fn certificate_request(key: &rcgen::KeyPair) -> Result<Vec<u8>, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(key).map_err(|e| IssueError::Signing(e.to_string()))?;
    Ok(request.der().to_vec())
}

#[cfg(test)]
mod tests;
