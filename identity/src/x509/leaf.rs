//! What a leaf may be used for: the rules of the SVID profile that are not about its name.

use x509_parser::certificate::X509Certificate;

use super::key::PublicKey;

/// The leaf rules but those about names and extended key usage. `Err` holds the broken one.
pub(crate) fn profile(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    if super::authority_path_length(certificate).is_some() {
        return Err("its basic constraints say cA (X509-SVID §4.1)");
    }
    let usage = super::key_usage(certificate)?;
    if !usage.digital_signature() {
        return Err("its key usage lacks digitalSignature (X509-SVID §4.3)");
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err("its key usage has keyCertSign or cRLSign (X509-SVID §4.3)");
    }
    if !matches!(certificate.name_constraints(), Ok(None)) {
        return Err("it has name constraints, which are for authorities (RFC 5280 §4.2.1.10)");
    }
    PublicKey::read(certificate.public_key())?;
    super::serial(certificate).map(|_| ())
}

/// both usages where the extension is there. It may be absent: the standard says SHOULD, and absent means
/// "any" (RFC 5280 §4.2.1.12); but `anyExtendedKeyUsage` written out in place of the two is against a MUST.
pub(crate) fn extended_key_usage(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    match certificate.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(extended)) if extended.value.server_auth && extended.value.client_auth => Ok(()),
        Ok(Some(_)) => Err("its extended key usage lacks serverAuth or clientAuth (X509-SVID §4.4)"),
        Err(_) => Err("its extended key usage cannot be read (X509-SVID §4.4)"),
    }
}
