//! A bundle from a file that an administrator hands over: a bundle document or certificates in PEM. What a stranger's
//! endpoint says is read leniently (`document`); what a person says by hand is taken as a whole, or not at all.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;

use super::document::bounded;
use super::{AuthorityCertificate, Bundle, BundleDocument, BundleError, MAX_AUTHORITIES};
use crate::name::TrustDomain;
use crate::svid::MAX_CERTIFICATE_BYTES;

/// Members of a JWK that only a private or a symmetric key has (RFC 7518 §6.2.2, §6.3.2, §6.4.1).
pub(crate) const SECRET_MEMBERS: [&str; 9] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"];

impl Bundle {
    /// Reads the bundle of `trust_domain` from a file: a bundle document (SPIFFE Trust Domain and Bundle §4) or
    /// certificates in PEM, which say nothing of a sequence and of JWT authorities.
    ///
    /// A file with a private key in it is refused, whatever else it has, and so is one that has no X.509 authority:
    /// JWT keys name no trust domain, so without a certificate it may be anybody's; and no key at all would revoke all.
    pub fn from_file(trust_domain: &TrustDomain, text: &str) -> Result<BundleDocument, BundleError> {
        bounded(text)?;
        let read = match text.trim_start().starts_with('{') {
            true => document(trust_domain, text)?,
            false => pem(trust_domain, text)?,
        };
        if read.bundle.authorities.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(read)
    }
}

fn document(trust_domain: &TrustDomain, text: &str) -> Result<BundleDocument, BundleError> {
    let parsed: Value = serde_json::from_str(text).map_err(|e| BundleError::Document(e.to_string()))?;
    let keys = parsed.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let secret = |key: &Value| SECRET_MEMBERS.iter().any(|member| key.get(member).is_some());
    if keys.iter().any(secret) {
        return Err(BundleError::PrivateKey);
    }
    Bundle::from_jwks(trust_domain, text)
}

fn pem(trust_domain: &TrustDomain, text: &str) -> Result<BundleDocument, BundleError> {
    // By label: an encrypted key, or one of a kind that the parser does not know, is a key all the same.
    let begins = |line: &&str| line.trim_start().starts_with("-----BEGIN ");
    if text.lines().filter(begins).any(|line| line.contains("PRIVATE KEY")) {
        return Err(BundleError::PrivateKey);
    }
    let mut bundle = Bundle::new(trust_domain.clone(), 0, Vec::new());
    for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let der = der.map_err(|e| BundleError::Document(e.to_string()))?;
        if bundle.authorities.len() >= MAX_AUTHORITIES {
            return Err(BundleError::TooMany(bundle.authorities.len() + 1));
        }
        if der.len() > MAX_CERTIFICATE_BYTES {
            let why = format!("it has {} bytes, at most {MAX_CERTIFICATE_BYTES} are read", der.len());
            return Err(BundleError::Certificate(why));
        }
        let authority = AuthorityCertificate::parse(&der, trust_domain)?;
        if !bundle.authorities.contains(&authority) {
            bundle.authorities.push(authority);
        }
    }
    Ok(BundleDocument { bundle, sequence: None, refresh_hint: None, ignored: Vec::new() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{authority, bundle, east, handmade, jwt_bundle, jwt_key, root_params, west};
    use crate::wire::to_pem;

    fn read(text: &str) -> Result<BundleDocument, BundleError> {
        Bundle::from_file(&east(), text)
    }

    #[test]
    fn a_file_is_a_document_or_pem() {
        let (one, two) = (authority(&east()), authority(&east()));
        let wanted = bundle(&[&one, &two]);
        let by_pem = read(&format!("# roots of east\n{}{}", wanted.to_pem(), wanted.to_pem())).unwrap();
        assert_eq!(by_pem.bundle.authorities, wanted.authorities, "each once");
        assert_eq!((by_pem.bundle.sequence, by_pem.sequence), (0, None));
        let mut with_jwt = jwt_bundle(&[&jwt_key(&east())]);
        with_jwt.sequence = 9;
        let by_document = read(&format!("\n {}", with_jwt.to_jwks(60))).unwrap();
        assert_eq!(by_document.sequence, Some(9));
        assert_eq!(by_document.bundle.jwt_authorities.len(), 1);
    }

    #[test]
    fn a_private_key_is_refused_in_whatever_form() {
        let wanted = bundle(&[&authority(&east())]);
        for label in ["PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
            let with_key = format!("{}{}", wanted.to_pem(), *to_pem(label, &[0x30, 0x03, 0x02, 0x01, 0x00]));
            assert_eq!(read(&with_key), Err(BundleError::PrivateKey), "{label}");
        }
        for member in SECRET_MEMBERS {
            let mut document: Value = serde_json::from_str(&wanted.to_jwks(60)).unwrap();
            // Also where nobody would look: in a key of a kind that is ignored.
            let stray = json!({ "kty": "oct", "use": "x", member: "AA" });
            document["keys"].as_array_mut().unwrap().push(stray);
            assert_eq!(read(&document.to_string()), Err(BundleError::PrivateKey), "{member}");
        }
    }

    #[test]
    fn what_is_no_authority_of_the_domain_spoils_the_whole_pem_file() {
        let good = bundle(&[&authority(&east())]).to_pem();
        let of_west = bundle(&[&authority(&west())]).to_pem();
        assert!(matches!(read(&format!("{good}{of_west}")), Err(BundleError::NotAnAuthority(..))));
        let mut params = root_params(&east());
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let leaf = to_pem("CERTIFICATE", &handmade(params).0);
        assert!(matches!(read(&format!("{good}{}", *leaf)), Err(BundleError::NotAnAuthority(..))));
        let huge = to_pem("CERTIFICATE", &vec![0x30; MAX_CERTIFICATE_BYTES + 1]);
        assert!(matches!(read(&huge), Err(BundleError::Certificate(_))));
    }

    #[test]
    fn a_file_without_an_authority_is_no_bundle() {
        for text in ["", "hello", "{\"keys\":[]}", &jwt_bundle(&[&jwt_key(&east())]).to_jwt_jwks()] {
            assert_eq!(read(text), Err(BundleError::Empty), "{text:?}");
        }
        assert!(matches!(read("{"), Err(BundleError::Document(_))));
        let long = " ".repeat(super::super::MAX_DOCUMENT_BYTES + 1);
        assert!(matches!(read(&long), Err(BundleError::Document(_))));
    }
}
