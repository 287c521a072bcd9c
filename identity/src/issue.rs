//! Issue: ticket + CSR → template → sign → re-read what was signed. The names in a CSR are never used.

use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
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
pub(crate) const BACKDATED: Duration = Duration::from_secs(30);

/// Everything that an SVID will say. Made from the ticket and the authority; of the request, only the key.
struct Template {
    id: SpiffeId,
    serial: Serial,
    key_id: KeyId,
    not_before: Timestamp,
    not_after: Timestamp,
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
    #[error("signing failed: {0}")]
    Signing(String),
    #[error("what was signed does not fit the template: {0}")]
    Recheck(String),
}

/// What an SVID says in `not_before` is in whole seconds.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

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
    let template = Template {
        key_id: x509::key_id(&spki),
        serial,
        // Our clock may be behind that of the node where the watermark was set.
        not_before: ticket.watermark.map_or(backdated, |mark| backdated.max(mark + SECOND)),
        not_after: (now + ticket.lifetime).min(authority.not_after()).min(end),
        id: ticket.id,
    };
    let der = sign(&template, &spki, authority)?;
    let facts = recheck(&template, &der, authority)?;
    let above = authority.intermediate().map(|i| i.der.clone());
    Ok(Issued { chain: std::iter::once(der).chain(above).collect(), facts })
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

fn sign(template: &Template, spki: &[u8], authority: &Authority) -> Result<Vec<u8>, IssueError> {
    let bad = |e: rcgen::Error| IssueError::Signing(e.to_string());
    let time = |at| {
        let late = || IssueError::Signing("the validity ends too late".to_owned());
        x509::date_time(at).ok_or_else(late)
    };
    let mut params = CertificateParams::default();
    // Without a subject the alternative names are critical: rcgen sees to that, `recheck` makes sure.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(template.id.to_string().try_into().map_err(bad)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(template.serial.as_bytes()));
    params.not_before = time(template.not_before)?;
    params.not_after = time(template.not_after)?;
    let key = SubjectPublicKeyInfo::from_der(spki).map_err(bad)?;
    Ok(params.signed_by(&key, &authority.issuer).map_err(bad)?.der().to_vec())
}

/// Reads what was signed as a stranger would, and compares.
fn recheck(template: &Template, der: &[u8], authority: &Authority) -> Result<SvidFacts, IssueError> {
    let refuse = |rule: &str| Err(IssueError::Recheck(rule.to_owned()));
    let leaf = x509::parse(der).map_err(IssueError::Recheck)?;
    let facts = SvidFacts::of(&leaf).map_err(|e| IssueError::Recheck(e.to_string()))?;
    if leaf.issuer().as_raw() != authority.signer.subject {
        return refuse("the issuer's name is not the authority's");
    }
    let key = x509::public_key(&authority.signer.public_key).map_err(IssueError::Recheck)?;
    if leaf.verify_signature(Some(&key)).is_err() {
        return refuse("the signature is not the authority's");
    }
    let as_planned = facts.id == template.id
        && facts.serial == template.serial
        && facts.key_id == template.key_id
        && facts.authority_key_identifier.is_some()
        && facts.not_before.seconds() == template.not_before.seconds()
        && facts.not_after.seconds() == template.not_after.seconds();
    if !as_planned {
        return refuse("it says something else");
    }
    Ok(facts)
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
