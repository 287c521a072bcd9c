//! What makes a certificate an authority's: the rules for roots and for the authorities between root and leaf.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use super::key::PublicKey;
use crate::bundle::KeyId;
use crate::name::TrustDomain;
use crate::svid::Serial;
use crate::time::Timestamp;

/// Organizational unit in the subject of a nested issuer's certificate, by which verifiers know it as such.
pub(crate) const NESTED_UNIT: &str = "DOWNSTREAM";

/// What verifiers need to know of an authority; read from its certificate, says nothing about whether it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuthorityFacts {
    pub(crate) key_id: KeyId,
    pub(crate) serial: Serial,
    /// RFC 4514 text.
    pub(crate) subject: String,
    /// The subject's DER: what the issuer of a certificate below it is compared with.
    pub(crate) subject_der: Vec<u8>,
    /// Subject Key Identifier, if there.
    pub(crate) key_identifier: Option<Vec<u8>>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// How many further authorities may stand below it; `None` = any number.
    pub(crate) path_length: Option<u32>,
    /// It is a workload's, to sign leaves with (`downstream`).
    pub(crate) nested: bool,
}

impl AuthorityFacts {
    /// Reads an authority's certificate, wherever it stands (X-4; RFC 5280 §4.2.1), but for what SPIFFE asks of it
    /// beyond (`speaks_for`). `Err` holds the rule that is broken.
    pub(crate) fn read(certificate: &X509Certificate<'_>) -> Result<Self, &'static str> {
        let path_length = super::authority_path_length(certificate)
            .ok_or("its basic constraints do not say cA (X509-SVID §4.1)")?;
        if !matches!(certificate.basic_constraints(), Ok(Some(constraints)) if constraints.critical) {
            return Err("its basic constraints are not critical (RFC 5280 §4.2.1.9)");
        }
        if super::key_usage(certificate)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err("its key usage lacks keyCertSign (X509-SVID §4.3)");
        }
        if certificate.subject().iter_rdn().next().is_none() {
            return Err("its subject is empty");
        }
        if certificate.iter_extensions().any(|e| asks_for_policies(e.parsed_extension())) {
            return Err("it constrains certificate policies, and nothing here processes them");
        }
        super::constraints::sound(certificate)?;
        PublicKey::read(certificate.public_key())?;
        let serial = super::serial(certificate)?;
        let mut units = certificate.subject().iter_organizational_unit();
        let validity = certificate.validity();
        if validity.not_after < validity.not_before {
            return Err("its validity ends before it begins");
        }
        let time = |at| super::timestamp(at).ok_or("its validity is before 1970");
        Ok(Self {
            key_id: super::key_id(certificate.public_key().raw),
            serial,
            subject: super::rfc4514(certificate.subject()),
            subject_der: certificate.subject().as_raw().to_vec(),
            key_identifier: super::subject_key_identifier(certificate).map(<[u8]>::to_vec),
            not_before: time(validity.not_before)?,
            not_after: time(validity.not_after)?,
            path_length,
            nested: units.any(|unit| unit.as_str().is_ok_and(|unit| unit == NESTED_UNIT)),
        })
    }

    /// Reads a root's certificate: an authority that names itself as its issuer. Its own signature is not checked.
    pub(crate) fn root(certificate: &X509Certificate<'_>) -> Result<Self, &'static str> {
        if certificate.subject().as_raw() != certificate.issuer().as_raw() {
            return Err("it is not self-signed");
        }
        let facts = Self::read(certificate)?;
        let signer = super::authority_key_identifier(certificate);
        if signer.is_some_and(|signer| facts.key_identifier.as_deref().is_some_and(|own| own != signer)) {
            return Err("it names another key than its own as its signer's");
        }
        Ok(facts)
    }
}

/// Policy constraints and the like must be critical, and are refused then; where they are not, their author
/// still meant something that nobody here would see to.
fn asks_for_policies(extension: &ParsedExtension<'_>) -> bool {
    matches!(
        extension,
        ParsedExtension::PolicyConstraints(_)
            | ParsedExtension::InhibitAnyPolicy(_)
            | ParsedExtension::PolicyMappings(_)
    )
}

/// What SPIFFE asks of an authority of `trust_domain` beyond RFC 5280. Says whether it has that name:
/// `Ok(false)` if it has no URI name at all, which a root of one's own house may. `Err` holds the broken rule.
pub(crate) fn speaks_for(
    certificate: &X509Certificate<'_>,
    trust_domain: &TrustDomain,
) -> Result<bool, &'static str> {
    super::critical_key_usage(certificate)?;
    let names = super::uri_names(certificate).map_err(|_| "its names cannot be read")?;
    match names.as_slice() {
        [] => Ok(false),
        [name] if *name == trust_domain.id().to_string() => Ok(true),
        _ => Err("its URI name is not the bare trust domain (X509-SVID §3.2)"),
    }
}
