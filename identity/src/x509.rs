//! Reading X.509: the parts that SVIDs, authorities and certificate requests have in common.
//!
//! x509-parser leaves an extension that it cannot read as "not there"; here every certificate with such an
//! extension is refused, so that "no basic constraints" never means "unreadable basic constraints".

use std::fmt::Write as _;

use aws_lc_rs::digest;
use time::OffsetDateTime;
use x509_parser::certificate::{BasicExtension, X509Certificate};
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, SubjectPublicKeyInfo, X509Name, X509Version};

use crate::bundle::KeyId;
use crate::svid::{MAX_CERTIFICATE_BYTES, Serial};
use crate::time::Timestamp;

pub(crate) mod authority;
mod constraints;
pub(crate) mod key;
pub(crate) mod leaf;

pub(crate) use key::p256_point;

/// Most extensions that a certificate may have; the longest-winded have a dozen.
const MAX_EXTENSIONS: usize = 64;
/// Most alternative names, of any kind, that a certificate may have.
const MAX_NAMES: usize = 128;
/// Most bytes that a serial number's encoding may have.
const MAX_SERIAL_BYTES: usize = 20;

/// A SubjectPublicKeyInfo, DER.
pub(crate) fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo<'_>, String> {
    SubjectPublicKeyInfo::from_der(der).map(|(_, key)| key).map_err(|e| e.to_string())
}

/// Reads one certificate: bounded, nothing after it, version 3, every extension readable and there once, and
/// none critical that nobody here processes.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(format!("it has {} bytes, at most {MAX_CERTIFICATE_BYTES} are read", der.len()));
    }
    let (rest, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
    if !rest.is_empty() {
        return Err("there are bytes after its end".to_owned());
    }
    if certificate.version() != X509Version::V3 {
        return Err("it is not of version 3".to_owned());
    }
    if certificate.extensions().len() > MAX_EXTENSIONS {
        return Err(format!("it has {} extensions", certificate.extensions().len()));
    }
    if let Some(twice) = repeated(certificate.extensions()) {
        return Err(format!("its extension {} is there twice", twice.oid));
    }
    if let Some(extension) = certificate
        .iter_extensions()
        .find(|e| matches!(e.parsed_extension(), ParsedExtension::ParseError { .. }))
    {
        return Err(format!("its extension {} cannot be read", extension.oid));
    }
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    if let Some(names) = names.map(|names| names.value.general_names.len()).filter(|names| *names > MAX_NAMES)
    {
        return Err(format!("it has {names} names, at most {MAX_NAMES} are read"));
    }
    if let Some(extension) = certificate.iter_extensions().find(|e| e.critical && !is_processed(e)) {
        return Err(format!("its extension {} is critical and not known here", extension.oid));
    }
    Ok(certificate)
}

/// An extension of a kind that has been before. They are few: to compare them costs less than a table of them.
fn repeated<'e, 'c>(extensions: &'e [X509Extension<'c>]) -> Option<&'e X509Extension<'c>> {
    let mut numbered = extensions.iter().enumerate();
    numbered.find(|(at, e)| extensions[..*at].iter().any(|before| before.oid == e.oid)).map(|(_, e)| e)
}

/// Whether somebody here sees to what the extension says, so that it may be critical (RFC 5280 §4.2): name
/// constraints are path validation's, the others are read by the profiles.
fn is_processed(extension: &X509Extension<'_>) -> bool {
    matches!(
        extension.parsed_extension(),
        ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_)
            | ParsedExtension::NameConstraints(_)
    )
}

/// The URI names, in their order; a name that cannot be read is an error, whatever its kind.
pub(crate) fn uri_names<'c>(certificate: &'c X509Certificate<'_>) -> Result<Vec<&'c str>, String> {
    let Some(extension) = certificate.subject_alternative_name().map_err(|e| e.to_string())? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for name in &extension.value.general_names {
        match name {
            GeneralName::URI(uri) => names.push(*uri),
            GeneralName::Invalid(..) => return Err("one of its names cannot be read".to_owned()),
            _ => {}
        }
    }
    Ok(names)
}

/// The key usage, if there; `Err` holds the rule that is broken.
pub(crate) fn key_usage<'c>(
    certificate: &'c X509Certificate<'_>,
) -> Result<Option<BasicExtension<&'c KeyUsage>>, &'static str> {
    certificate.key_usage().map_err(|_| "its key usage cannot be read (X509-SVID §4.3)")
}

/// every certificate of a trust domain says what it may be used for, and means it.
pub(crate) fn critical_key_usage(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    match key_usage(certificate)? {
        Some(usage) if usage.critical => Ok(()),
        Some(_) => Err("its key usage is not critical (X509-SVID §4.3)"),
        None => Err("it has no key usage (X509-SVID §4.3)"),
    }
}

/// Whether it may sign certificates, and how many authorities may stand between it and a leaf.
pub(crate) fn authority_path_length(certificate: &X509Certificate<'_>) -> Option<Option<u32>> {
    let constraints = certificate.basic_constraints().ok()??;
    constraints.value.ca.then_some(constraints.value.path_len_constraint)
}

/// The serial number: positive, at most 20 bytes as it is written (RFC 5280 §4.1.2.2), no byte too many.
pub(crate) fn serial(certificate: &X509Certificate<'_>) -> Result<Serial, &'static str> {
    // The content of a DER INTEGER: the top bit of its first byte is the sign.
    let content = certificate.raw_serial();
    let (positive, minimal) = match content {
        [first, second, ..] => (first & 0x80 == 0, *first != 0 || second & 0x80 != 0),
        [only] => (only & 0x80 == 0, true),
        [] => (false, false),
    };
    let bounded = content.len() <= MAX_SERIAL_BYTES;
    Serial::new(content)
        .filter(|_| positive && minimal && bounded)
        .ok_or("its serial number is not 1 to 20 bytes and positive")
}

/// What the certificate calls its own key, if it does (RFC 5280 §4.2.1.2).
pub(crate) fn subject_key_identifier<'c>(certificate: &'c X509Certificate<'_>) -> Option<&'c [u8]> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0),
        _ => None,
    })
}

/// What its issuer calls the key that signed it, if it says so (RFC 5280 §4.2.1.1).
pub(crate) fn authority_key_identifier<'c>(certificate: &'c X509Certificate<'_>) -> Option<&'c [u8]> {
    certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(aki) => aki.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

/// SHA-256 of the SubjectPublicKeyInfo.
pub(crate) fn key_id(spki_der: &[u8]) -> KeyId {
    KeyId(sha256(spki_der))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("a SHA-256 digest has 32 bytes")
}

/// Whole seconds; `None` before 1970.
pub(crate) fn timestamp(time: ASN1Time) -> Option<Timestamp> {
    u64::try_from(time.timestamp()).ok().map(Timestamp::from_seconds)
}

/// Whole seconds, rounded down; `None` beyond what X.509 can write (the year 9999).
pub(crate) fn date_time(at: Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at.seconds()).ok()?).ok()
}

/// RFC 4514 text of a name: last relative name first; types other than CN and O as dotted numbers.
pub(crate) fn rfc4514(name: &X509Name<'_>) -> String {
    let relative: Vec<_> =
        name.iter_rdn().map(|rdn| rdn.iter().map(rfc4514_attribute).collect::<Vec<_>>().join("+")).collect();
    relative.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn rfc4514_attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type();
    let kind = if *oid == OID_X509_COMMON_NAME {
        "CN".to_owned()
    } else if *oid == OID_X509_ORGANIZATION_NAME {
        "O".to_owned()
    } else {
        oid.to_id_string()
    };
    match attribute.as_str() {
        Ok(text) => format!("{kind}={}", rfc4514_value(text)),
        Err(_) => format!("{kind}=#{}", crate::wire::to_hex(attribute.as_slice())),
    }
}

fn rfc4514_value(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (index, character) in text.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => escaped.extend(['\\', character]),
            ' ' if index == 0 || index == last => escaped.push_str("\\ "),
            '#' if index == 0 => escaped.push_str("\\#"),
            control if control.is_ascii_control() => {
                write!(escaped, "\\{:02x}", control as u32).expect("writing to a String cannot fail");
            }
            other => escaped.push(other),
        }
    }
    escaped
}
