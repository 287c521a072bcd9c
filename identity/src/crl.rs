//! Certificate revocation lists: made by the node that owns an authority, checked by everyone who takes one in.
//!
//! Our own proxies know revocations as such. CRLs are for software that nobody here wrote: a stock Envoy, `openssl
//! verify -crl_check_all`, a client of the Workload API. One list per authority and never two: OpenSSL and Envoy
//! take the newest of an issuer and do not add them up, and rustls-webpki takes the first. Complete lists only: no
//! delta, no issuing distribution point, nothing indirect (rustls-webpki knows none of these).
//!
//! Every list of a trust domain names every revoked serial number of that trust domain, whichever of its authorities
//! signed the certificate: serial numbers are 126 random bits, so that a number means one certificate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use serde::{Deserialize, Serialize};
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{
    OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_CRL_NUMBER, OID_X509_EXT_REASON_CODE,
};
use x509_parser::revocation_list::{CertificateRevocationList, RevokedCertificate};
use x509_parser::x509::X509Version;
use zeroize::Zeroizing;

use crate::authority::{Authority, AuthorityState};
use crate::bundle::{AuthorityCertificate, Bundle, KeyId};
use crate::name::TrustDomain;
use crate::revocation::{Reason, RevocationTarget, Revocations};
use crate::svid::Serial;
use crate::time::Timestamp;
use crate::wire::to_pem;
use crate::x509;

/// How long before `now` a list's `thisUpdate` is: a verifier whose clock is behind refuses a list of the future,
/// and with it every certificate that it covers.
pub const BACKDATED: Duration = Duration::from_secs(300);
/// How long a list lasts. Made anew at half of it, so that what an authority has signed last (24 h at most,
/// `grant::MAX_LIFETIME`) expires long before the list of a node that is down or without a quorum does.
pub const LIFETIME: Duration = Duration::from_secs(14 * 24 * 3600);
/// Largest list that is read, in bytes: what `MAX_ENTRIES` come to, and then some.
pub const MAX_CRL_BYTES: usize = 1 << 20;
/// Most serial numbers in a list (about 48 bytes each); of more, those that were revoked last.
pub const MAX_ENTRIES: usize = 20_000;

/// AlgorithmIdentifier of `ecdsa-with-SHA256` (RFC 5758 §3.2), the one that authorities sign with.
const ECDSA_WITH_SHA256: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// Before the signature, which is shorter than 127 bytes: tag and length of a BIT STRING, and its unused bits.
const SIGNATURE_HEADER_BYTES: usize = 3;

/// One authority's revocation list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Crl {
    /// Whose: the key that signed it.
    pub authority: KeyId,
    /// CRLNumber: the revision of the cluster's log up to which revocations are in it. Grows from list to list.
    pub number: u64,
    pub next_update: Timestamp,
    /// X.509 CRL version 2, DER.
    #[serde(with = "base64_shared")]
    pub der: Arc<[u8]>,
}

/// What a list says about one serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrlEntry {
    /// When it was revoked, whole seconds.
    pub at: Timestamp,
    pub reason: Reason,
}

/// The authorities of a bundle with the lists that go with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedWithCrls<'b> {
    pub authorities: Vec<&'b AuthorityCertificate>,
    /// One for every authority that signs or has signed, or none at all.
    pub crls: Vec<&'b Crl>,
    /// Authorities whose missing list keeps the others back.
    pub missing: Vec<KeyId>,
}

/// Why a list cannot be made or is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    #[error("it has {0} bytes, at most {MAX_CRL_BYTES} are read")]
    TooLarge(usize),
    #[error("it cannot be read: {0}")]
    Malformed(String),
    #[error("{0}")]
    Profile(&'static str),
    #[error("the authority's certificate cannot be used: {0}")]
    Authority(String),
    #[error("signing failed: {0}")]
    Signing(String),
}

impl Crl {
    /// Makes the authority's list of `revoked`, as of revision `number`.
    pub fn sign(
        authority: &Authority,
        number: u64,
        revoked: &BTreeMap<Serial, CrlEntry>,
        now: Timestamp,
    ) -> Result<Self, CrlError> {
        if authority.intermediate().is_some() {
            let why =
                "it is below a root of the user's own house, whose list only that root's owner can sign";
            return Err(CrlError::Authority(why.to_owned()));
        }
        let bad = |e: rcgen::Error| CrlError::Signing(e.to_string());
        let late = || CrlError::Signing("a time is beyond the year 9999".to_owned());
        let time = |at| x509::date_time(at).ok_or_else(late);
        let mut revoked_certs = Vec::new();
        for (serial, entry) in bounded(revoked) {
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial.as_bytes()),
                revocation_time: time(entry.at)?,
                reason_code: Some(reason_code(entry.reason)),
                invalidity_date: None,
            });
        }
        let certificate = authority.certificate();
        let issuer = x509::parse(&certificate.der).map_err(CrlError::Authority)?;
        let key_identifier = x509::subject_key_identifier(&issuer)
            .ok_or_else(|| CrlError::Authority("it has no subject key identifier".to_owned()))?;
        let next_update = now + LIFETIME;
        let params = CertificateRevocationListParams {
            this_update: time(now - BACKDATED)?,
            next_update: time(next_update)?,
            crl_number: SerialNumber::from_slice(number_bytes(&number.to_be_bytes())),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::PreSpecified(key_identifier.to_vec()),
        };
        let signed = params.signed_by(&authority.issuer).map_err(bad)?;
        // Read as a stranger would before anyone else does.
        Self::parse(signed.der(), certificate)
    }

    /// Reads a list and checks that it is this authority's: bounded, profile, issuer, signature.
    pub fn parse(der: &[u8], authority: &AuthorityCertificate) -> Result<Self, CrlError> {
        let list = read(der)?;
        let issuer = x509::parse(&authority.der).map_err(CrlError::Authority)?;
        if list.issuer().as_raw() != issuer.subject().as_raw() {
            return Err(CrlError::Profile("its issuer is not the authority (RFC 5280 §5.1.2.3)"));
        }
        if !x509::key_usage(&issuer).is_ok_and(|usage| usage.is_some_and(|usage| usage.value.crl_sign())) {
            return Err(CrlError::Profile("the authority's key usage lacks cRLSign (RFC 5280 §4.2.1.3)"));
        }
        let mut number = None;
        let mut key_identifier = None;
        for extension in list.extensions() {
            let twice = match extension.parsed_extension() {
                ParsedExtension::CRLNumber(n) if extension.oid == OID_X509_EXT_CRL_NUMBER => {
                    number.replace(u64::try_from(n).ok()).is_some()
                }
                ParsedExtension::AuthorityKeyIdentifier(aki)
                    if extension.oid == OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER =>
                {
                    key_identifier.replace(aki.key_identifier.as_ref().map(|id| id.0)).is_some()
                }
                _ => {
                    return Err(CrlError::Profile(
                        "it has an extension other than authority key identifier and CRL number: no delta, no distribution point",
                    ));
                }
            };
            if twice {
                return Err(CrlError::Profile("it has an extension twice"));
            }
        }
        let number =
            number.flatten().ok_or(CrlError::Profile("it has no CRL number of 64 bits (RFC 5280 §5.2.3)"))?;
        let key_identifier = key_identifier.flatten();
        if key_identifier.is_none() || key_identifier != x509::subject_key_identifier(&issuer) {
            let rule = "its authority key identifier is not the authority's (RFC 5280 §5.2.1)";
            return Err(CrlError::Profile(rule));
        }
        let next_update = list.next_update().and_then(x509::timestamp);
        let next_update =
            next_update.ok_or(CrlError::Profile("it has no next update (RFC 5280 §5.1.2.5)"))?;
        // The name of the algorithm beside the signature is not signed: byte for byte, lest others cannot read it.
        let unsigned = der.len() - der.len().min(list.signature_value.data.len() + SIGNATURE_HEADER_BYTES);
        if !der[..unsigned].ends_with(ECDSA_WITH_SHA256)
            || list.signature_value.unused_bits != 0
            || list.verify_signature(issuer.public_key()).is_err()
        {
            return Err(CrlError::Profile("it is not signed by the authority"));
        }
        Ok(Self { authority: authority.key_id, number, next_update, der: der.into() })
    }

    /// Checks again what came from elsewhere: that it is what it says about itself, and the authority's.
    pub fn check(&self, authority: &AuthorityCertificate) -> Result<(), CrlError> {
        match Self::parse(&self.der, authority)? == *self {
            true => Ok(()),
            false => Err(CrlError::Profile("what is said about it is not what it says itself")),
        }
    }

    /// What it lists. A list that has passed `parse` can be read.
    pub fn entries(&self) -> Result<BTreeMap<Serial, CrlEntry>, CrlError> {
        read(&self.der)?.iter_revoked_certificates().map(entry).collect()
    }

    /// Whether a list made of `revoked` now would say the same.
    pub fn lists(&self, revoked: &BTreeMap<Serial, CrlEntry>) -> bool {
        let wanted = bounded(revoked);
        self.entries().is_ok_and(|entries| entries.iter().eq(wanted))
    }

    /// When it is to be made anew if nothing is revoked meanwhile.
    pub fn renew_at(&self) -> Timestamp {
        self.next_update - LIFETIME / 2
    }

    /// PEM (RFC 7468 §7: `X509 CRL`).
    pub fn to_pem(&self) -> Zeroizing<String> {
        to_pem("X509 CRL", &self.der)
    }
}

/// At most `MAX_ENTRIES`: those that were revoked last.
fn bounded(revoked: &BTreeMap<Serial, CrlEntry>) -> BTreeMap<&Serial, &CrlEntry> {
    if revoked.len() <= MAX_ENTRIES {
        return revoked.iter().collect();
    }
    let mut newest: Vec<(&Serial, &CrlEntry)> = revoked.iter().collect();
    newest.sort_by_key(|(serial, entry)| (std::cmp::Reverse(entry.at), *serial));
    newest.truncate(MAX_ENTRIES);
    newest.into_iter().collect()
}

/// Every serial number of `trust_domain` that is revoked, with the earliest time and a reason; a reason that is for
/// good outweighs a hold. What has lapsed is no longer among `revocations`.
pub fn revoked_serials(revocations: &Revocations, trust_domain: &TrustDomain) -> BTreeMap<Serial, CrlEntry> {
    let mut listed: BTreeMap<Serial, CrlEntry> = BTreeMap::new();
    for revocation in revocations.iter().filter(|r| r.id.origin == *trust_domain) {
        let named = match &revocation.target {
            RevocationTarget::Serial(serial) => Some(serial),
            _ => None,
        };
        let entry =
            CrlEntry { at: Timestamp::from_seconds(revocation.at.seconds()), reason: revocation.reason };
        // Of identities, agents and keys: what lived when they were revoked.
        for serial in revocation.serials.iter().chain(named) {
            listed
                .entry(serial.clone())
                .and_modify(|known| {
                    known.at = known.at.min(entry.at);
                    if known.reason == Reason::Hold {
                        known.reason = entry.reason;
                    }
                })
                .or_insert(entry);
        }
    }
    listed
}

/// The trusted authorities of a bundle and their lists. A verifier that has one list demands one for every authority
/// in the chain it is shown (`CRL_CHECK_ALL`), and refuses every certificate below one that has none. So the lists
/// go out together or not at all: while an authority that signs, or has signed, has no list, nobody is locked out,
/// and `missing` names it. An authority that is only prepared has signed nothing; it goes along without.
pub fn with_crls<'b>(bundle: &'b Bundle, crls: Option<&'b BTreeMap<KeyId, Crl>>) -> TrustedWithCrls<'b> {
    let authorities: Vec<&AuthorityCertificate> = bundle.trusted().collect();
    let of = |a: &AuthorityCertificate| crls.and_then(|known| known.get(&a.key_id));
    let signs = |a: &&&AuthorityCertificate| a.state != AuthorityState::Prepared;
    let missing: Vec<KeyId> =
        authorities.iter().filter(signs).filter(|a| of(a).is_none()).map(|a| a.key_id).collect();
    let crls = match missing.is_empty() {
        true => authorities.iter().filter_map(|a| of(a)).collect(),
        false => Vec::new(),
    };
    TrustedWithCrls { authorities, crls, missing }
}

fn read(der: &[u8]) -> Result<CertificateRevocationList<'_>, CrlError> {
    if der.len() > MAX_CRL_BYTES {
        return Err(CrlError::TooLarge(der.len()));
    }
    let malformed = |why: &dyn ToString| CrlError::Malformed(why.to_string());
    let (rest, list) = x509_parser::parse_x509_crl(der).map_err(|e| malformed(&e))?;
    if !rest.is_empty() {
        return Err(malformed(&"there are bytes after its end"));
    }
    if list.version() != Some(X509Version::V2) {
        return Err(CrlError::Profile("it is not of version 2 (RFC 5280 §5.1.2.1)"));
    }
    Ok(list)
}

fn entry(entry: &RevokedCertificate<'_>) -> Result<(Serial, CrlEntry), CrlError> {
    let serial = Serial::new(entry.raw_serial())
        .ok_or(CrlError::Profile("a serial number in it is not 1 to 20 bytes and positive"))?;
    if entry.extensions().iter().any(|e| e.oid != OID_X509_EXT_REASON_CODE) {
        return Err(CrlError::Profile("an entry has an extension other than the reason"));
    }
    let at = x509::timestamp(entry.revocation_date)
        .ok_or(CrlError::Profile("a revocation in it is from before 1970"))?;
    let reason = entry.reason_code().map_or(Reason::Unspecified, |(_, code)| match code.0 {
        1 => Reason::KeyCompromise,
        4 => Reason::Superseded,
        5 => Reason::Cessation,
        6 => Reason::Hold,
        _ => Reason::Unspecified,
    });
    Ok((serial, CrlEntry { at, reason }))
}

/// RFC 5280 §5.3.1; `unspecified` is written by leaving it out.
fn reason_code(reason: Reason) -> RevocationReason {
    match reason {
        Reason::Unspecified => RevocationReason::Unspecified,
        Reason::KeyCompromise => RevocationReason::KeyCompromise,
        Reason::Superseded => RevocationReason::Superseded,
        Reason::Cessation => RevocationReason::CessationOfOperation,
        Reason::Hold => RevocationReason::CertificateHold,
    }
}

/// Without leading zeros; at least one byte.
fn number_bytes(bytes: &[u8; 8]) -> &[u8] {
    &bytes[bytes.iter().position(|b| *b != 0).unwrap_or(7)..]
}

/// `#[serde(with = "…")]`: shared bytes as standard base64. A View is copied at every revision; its lists are not.
mod base64_shared {
    use std::sync::Arc;

    use serde::{Deserializer, Serializer};

    use crate::wire::base64_bytes;

    pub fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        base64_bytes::serialize(bytes, serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        base64_bytes::deserialize(deserializer).map(Arc::from)
    }
}

#[cfg(test)]
mod tests;
