//! Downstream: an intermediate authority of the trust domain for a workload's own key, with which it issues SVIDs itself.
//!
//! Whoever has one is a *nested issuer*. Its certificate says so in its subject, so that a verifier, which knows nothing of
//! the log, tells its SVIDs from those of control nodes: it lets them name no member of the mesh, and holds them against
//! the revocations of the intermediate too.

use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose, SanType};
use serde::Serialize;

use crate::authority::{Authority, nested_subject};
use crate::bundle::KeyId;
use crate::grant::DownstreamTicket;
use crate::issue::{IssueError, Template, not_signed, signed_by, with_what_is_above};
use crate::svid::Serial;
use crate::time::Timestamp;
use crate::x509;
use crate::x509::authority::{AuthorityFacts, speaks_for};

/// A nested issuer, as the certificate that signed a leaf tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NestedIssuer {
    /// Of its certificate.
    pub serial: Serial,
    /// Of the public key in it.
    pub key_id: KeyId,
}

/// A freshly signed intermediate authority, without its key (which the workload made and keeps).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedDownstream {
    /// DER: its certificate, then the node's own if that is below a root; nothing self-signed is part of it.
    pub chain: Vec<Vec<u8>>,
    pub issuer: NestedIssuer,
    pub not_after: Timestamp,
}

/// Signs an intermediate authority over the CSR's public key, of which nothing else is used. It is of the bare trust
/// domain, signs certificates and revocation lists, and lets no other stand below it. `not_before` is `now` minus 30 s, but
/// after the ticket's watermark; `not_after` is never beyond the authority's own, nor beyond the end of the registration.
pub fn issue_downstream(
    ticket: DownstreamTicket,
    csr_der: &[u8],
    authority: &Authority,
    serial: Serial,
    now: Timestamp,
) -> Result<IssuedDownstream, IssueError> {
    if !authority.allows_nested() {
        return Err(match authority.intermediate() {
            None => IssueError::NoNestedIssuer,
            Some(_) => IssueError::NoNestedIssuerBelowRoot,
        });
    }
    let template = Template::new(ticket.0, csr_der, authority, serial, now)?;
    let der = sign(&template, authority)?;
    let not_after = recheck(&template, &der, authority)?;
    let issuer = NestedIssuer { serial: template.serial, key_id: template.key_id };
    Ok(IssuedDownstream { chain: with_what_is_above(der, authority), issuer, not_after })
}

fn sign(template: &Template, authority: &Authority) -> Result<Vec<u8>, IssueError> {
    let trust_domain = authority.trust_domain();
    let mut params = template.params()?;
    params.distinguished_name = nested_subject(trust_domain, &template.key_id);
    let uri = trust_domain.id().to_string().try_into().map_err(not_signed)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    template.signed(&params, authority)
}

/// Reads what was signed as a stranger would, and compares. Answers when it ends.
fn recheck(template: &Template, der: &[u8], authority: &Authority) -> Result<Timestamp, IssueError> {
    let refuse = |rule: &str| Err(IssueError::Recheck(rule.to_owned()));
    let certificate = x509::parse(der).map_err(IssueError::Recheck)?;
    let facts = match AuthorityFacts::read(&certificate) {
        Ok(facts) => facts,
        Err(rule) => return refuse(rule),
    };
    match speaks_for(&certificate, authority.trust_domain()) {
        Ok(true) => {}
        Ok(false) => return refuse("it does not have its trust domain's name"),
        Err(rule) => return refuse(rule),
    }
    signed_by(&certificate, authority)?;
    let as_planned = facts.nested
        && facts.path_length == Some(0)
        && facts.serial == template.serial
        && facts.key_id == template.key_id
        && facts.not_before.seconds() == template.not_before.seconds()
        && facts.not_after.seconds() == template.not_after.seconds();
    if as_planned { Ok(facts.not_after) } else { refuse("it says something else") }
}

#[cfg(test)]
mod tests;
