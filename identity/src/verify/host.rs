//! Verification of a host's own certificate: chain → an authority that may vouch for hosts → `VerifiedHost`.
//!
//! The same search and bounds as for SVIDs, on other ground: no trust domain, and no SPIFFE ID anywhere in the chain.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PSS_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use x509_parser::certificate::X509Certificate;

use super::path::{self, PathError, Question};
use super::{Anchor, Usage, VerifyError, bounded};
use crate::host::{HostCertificate, HostError, HostTrust, no_spiffe_id, proof_message};
use crate::name::{NodeName, TrustDomain};
use crate::revocation::Revocations;
use crate::time::Timestamp;
use crate::x509;
use crate::x509::authority::AuthorityFacts;
use crate::x509::key::PublicKey;

/// A host's certificate that was verified. Has no public constructor. Says nothing yet about who showed it: ask `possesses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedHost {
    pub certificate: HostCertificate,
    /// The agent on that host.
    pub agent: NodeName,
    der: Vec<u8>,
}

/// Verifies the chain (DER, leaf first) of a host at `now`. `own` is the cluster's trust domain, whose revocations of
/// keys hold here too.
pub fn verify_host(
    trust: &HostTrust,
    own: &TrustDomain,
    revocations: &Revocations,
    chain: &[&[u8]],
    now: Timestamp,
) -> Result<VerifiedHost, HostError> {
    let refused = |rule: &str| HostError::Certificate(rule.to_owned());
    let (leaf, rest) = bounded(chain).map_err(|e| match e {
        VerifyError::NotAnSvid(why) => HostError::Certificate(why.to_string()),
        other => HostError::Certificate(other.to_string()),
    })?;
    let certificate = x509::parse(leaf).map_err(HostError::Certificate)?;
    x509::leaf::profile(&certificate).map_err(refused)?;
    may_sign_as_client(&certificate).map_err(refused)?;
    no_spiffe_id(&certificate).map_err(refused)?;
    for der in rest {
        let between =
            x509::parse(der).map_err(|rule| HostError::Certificate(format!("its chain: {rule}")))?;
        no_spiffe_id(&between).map_err(|rule| HostError::Certificate(format!("its chain: {rule}")))?;
    }
    let anchors: Vec<Anchor> =
        trust.authorities.iter().filter_map(|a| Anchor::of_hosts(&a.der).ok()).collect();
    let question = Question { anchors: &anchors, trust_domain: None, now, usage: Usage::Client };
    let path = path::validate(question, leaf, rest).map_err(|error| match error {
        PathError::UnknownAuthority => HostError::UnknownAuthority,
        PathError::Expired => HostError::Expired,
        PathError::Refused(rule) => HostError::Certificate(rule),
    })?;
    let own_key = x509::key_id(certificate.public_key().raw);
    for key in path.authorities.into_iter().chain([own_key]) {
        if let Some(revocation) = revocations.of_key(own, key) {
            return Err(HostError::Revoked(revocation.id.clone()));
        }
    }
    Ok(VerifiedHost {
        certificate: HostCertificate::new(leaf, &certificate).map_err(refused)?,
        agent: trust.naming.name(leaf, &certificate).map_err(HostError::Certificate)?,
        der: leaf.to_vec(),
    })
}

/// clientAuth where the extended key usage is there, digitalSignature said outright where it is not.
fn may_sign_as_client(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    match certificate.extended_key_usage() {
        Ok(Some(extended)) if extended.value.client_auth => Ok(()),
        Ok(Some(_)) => Err("its extended key usage lacks clientAuth"),
        Ok(None) if matches!(x509::key_usage(certificate), Ok(Some(_))) => Ok(()),
        Ok(None) => Err("it says neither clientAuth nor digitalSignature"),
        Err(_) => Err("its extended key usage cannot be read"),
    }
}

impl Anchor {
    /// An authority that may vouch for hosts need not be self-signed: an administrator named it.
    fn of_hosts(der: &[u8]) -> Result<Self, String> {
        let certificate = x509::parse(der)?;
        let facts = AuthorityFacts::read(&certificate)?;
        Self::from_facts(der, facts)
    }
}

impl VerifiedHost {
    /// Whether whoever sent `signature` over the TLS session with this binding has the certificate's key, and asked for
    /// that agent and that new key with it.
    pub fn possesses(
        &self,
        own: &TrustDomain,
        binding: &[u8; 32],
        agent: &NodeName,
        csr_der: &[u8],
        signature: &[u8],
    ) -> Result<(), HostError> {
        let message = proof_message(own, binding, agent, csr_der, &self.der);
        let certificate = x509::parse(&self.der).map_err(HostError::Certificate)?;
        let key = PublicKey::read(certificate.public_key());
        let good = match key.map_err(|rule| HostError::Certificate(rule.to_owned()))? {
            PublicKey::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(&message, signature)
            }
            PublicKey::P384(point) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point).verify(&message, signature)
            }
            PublicKey::Rsa { modulus, exponent } => RsaPublicKeyComponents { n: modulus, e: exponent }
                .verify(&RSA_PSS_2048_8192_SHA256, &message, signature),
        };
        good.map_err(|_| HostError::Proof)?;
        // After the signature: only who has the key hears which name it has.
        if self.agent != *agent {
            return Err(HostError::OtherName { named: self.agent.clone(), asked: agent.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
