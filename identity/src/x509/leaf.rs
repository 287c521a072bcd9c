//! What a leaf may be used for: the rules of the SVID profile that are not about its name.

use x509_parser::certificate::X509Certificate;

use super::key::PublicKey;

/// The leaf rules that RFC 5280 has too (X-2, X-4, X-9; §4.2.1), and ours about keys. `Err` holds the broken one.
pub(crate) fn profile(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    if super::authority_path_length(certificate).is_some() {
        return Err("its basic constraints say cA (X509-SVID §4.1)");
    }
    if let Some(usage) = super::key_usage(certificate)? {
        if !usage.value.digital_signature() {
            return Err("its key usage lacks digitalSignature (X509-SVID §4.3)");
        }
        if usage.value.key_cert_sign() || usage.value.crl_sign() {
            return Err("its key usage has keyCertSign or cRLSign (X509-SVID §4.3)");
        }
    }
    if !matches!(certificate.name_constraints(), Ok(None)) {
        return Err("it has name constraints, which are for authorities (RFC 5280 §4.2.1.10)");
    }
    let names = certificate.subject_alternative_name().map_err(|_| "its names cannot be read")?;
    if certificate.subject().iter_rdn().next().is_none() && names.is_some_and(|names| !names.critical) {
        return Err("its subject is empty but its alternative names are not critical (X509-SVID §3.1)");
    }
    PublicKey::read(certificate.public_key())?;
    super::serial(certificate).map(|_| ())
}

/// What SPIFFE asks of a leaf's usage beyond RFC 5280.
pub(crate) fn svid_usage(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    super::critical_key_usage(certificate)?;
    extended_key_usage(certificate)
}

/// both usages where the extension is there. It may be absent: the standard says SHOULD, and absent means
/// "any" (RFC 5280 §4.2.1.12); but `anyExtendedKeyUsage` written out in place of the two is against a MUST.
fn extended_key_usage(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    match certificate.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(extended)) if extended.value.server_auth && extended.value.client_auth => Ok(()),
        Ok(Some(_)) => Err("its extended key usage lacks serverAuth or clientAuth (X509-SVID §4.4)"),
        Err(_) => Err("its extended key usage cannot be read (X509-SVID §4.4)"),
    }
}
