//! From a leaf to an anchor: which path is tried, and RFC 5280 validation of exactly that one.
//!
//! webpki searches: given a hostile chain it checks a hundred signatures before it gives up. Here the paths
//! are found first, by what can be read without any cryptography (names, key identifiers, validity, profile), no
//! authority's name occurs in a path twice, and webpki is given one path at a time, `MAX_PATHS` at most.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage, aws_lc_rs as algorithms};
use x509_parser::certificate::X509Certificate;

use super::{Anchor, Usage};
use crate::bundle::KeyId;
use crate::downstream::NestedIssuer;
use crate::name::TrustDomain;
use crate::time::Timestamp;
use crate::x509;
use crate::x509::authority::{AuthorityFacts, speaks_for};

/// Paths that are tried: one, and another for an authority that two others vouch for. With `MAX_CHAIN` this bounds
/// the signatures that one handshake costs to eight.
pub(super) const MAX_PATHS: usize = 2;

/// The signatures that are believed: ECDSA and RSA over SHA-2, with the keys that `x509::key` lets in.
static SIGNATURES: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P384_SHA512,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Why no path from the leaf to an anchor is believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("not signed by an authority that is trusted")]
    UnknownAuthority,
    #[error("expired or not yet valid")]
    Expired,
    #[error("{0}")]
    Refused(String),
}

/// What is asked of a path, whatever certificates it goes through.
#[derive(Clone, Copy)]
pub(super) struct Question<'q> {
    pub(super) anchors: &'q [Anchor],
    /// Whose authorities they must be; `None` for chains outside any trust domain.
    pub(super) trust_domain: Option<&'q TrustDomain>,
    pub(super) now: Timestamp,
    pub(super) usage: Usage,
}

/// A certificate that was sent along, and may stand between the leaf and an anchor.
struct Link<'c> {
    der: &'c [u8],
    certificate: X509Certificate<'c>,
    /// `Err`: the rule for authorities that it breaks.
    facts: Result<AuthorityFacts, String>,
}

/// A way from the leaf to an anchor, by names: indices of links, the one that signed the leaf first.
struct Path<'q> {
    links: Vec<usize>,
    anchor: &'q Anchor,
}

/// The search for paths.
struct Search<'q, 'c> {
    question: Question<'q>,
    links: &'q [Link<'c>],
    used: Vec<usize>,
    found: Vec<Path<'q>>,
    /// Why the first candidate that had the right name was passed by.
    passed_by: Option<PathError>,
}

/// A path that was validated.
pub(super) struct Validated {
    /// The keys of the authorities on it: the leaf's signer first, the anchor last.
    pub(super) authorities: Vec<KeyId>,
    /// The leaf's signer, if it is a nested issuer.
    pub(super) nested: Option<NestedIssuer>,
    /// When the first of these authorities expires.
    pub(super) until: Timestamp,
}

/// Validates the way from `leaf` through some of `rest` to an anchor.
pub(super) fn validate(question: Question<'_>, leaf: &[u8], rest: &[&[u8]]) -> Result<Validated, PathError> {
    let leaf_certificate = x509::parse(leaf).map_err(PathError::Refused)?;
    let links = links(rest);
    let mut search = Search { question, links: &links, used: Vec::new(), found: Vec::new(), passed_by: None };
    search.walk(&leaf_certificate);
    let mut error = search.passed_by;
    for path in search.found {
        match try_path(question, leaf, &links, &path) {
            Ok(()) => return Ok(validated(&links, &path)),
            Err(refused) => error = Some(refused),
        }
    }
    Err(error.unwrap_or(PathError::UnknownAuthority))
}

/// Reads what was sent along. What cannot be read, names itself as its issuer, or was sent before is no link: a
/// root is believed because it is in the bundle, never because it was sent. (Control nodes send theirs last, for
/// pinned clients.)
fn links<'c>(rest: &[&'c [u8]]) -> Vec<Link<'c>> {
    let mut links: Vec<Link<'c>> = Vec::with_capacity(rest.len());
    for der in rest {
        let Ok(certificate) = x509::parse(der) else { continue };
        let self_issued = certificate.subject().as_raw() == certificate.issuer().as_raw();
        if self_issued || links.iter().any(|link| link.der == *der) {
            continue;
        }
        let facts = AuthorityFacts::read(&certificate).map_err(|rule| format!("an intermediate: {rule}"));
        links.push(Link { der, certificate, facts });
    }
    links
}

impl<'q> Search<'q, '_> {
    /// Looks for whoever may have signed `head`: first among the anchors, then among the links not yet used.
    fn walk(&mut self, head: &X509Certificate<'_>) {
        let issuer = head.issuer().as_raw();
        let anchors = self.question.anchors;
        for anchor in anchors.iter().filter(|a| a.facts.subject_der == issuer) {
            if self.found.len() == MAX_PATHS {
                return;
            }
            match self.may_sign(head, &anchor.facts) {
                Ok(()) => self.found.push(Path { links: self.used.clone(), anchor }),
                Err(rule) => self.pass_by(rule),
            }
        }
        let links = self.links;
        for (index, link) in links.iter().enumerate() {
            let subject = link.certificate.subject().as_raw();
            if subject != issuer
                || self.used.iter().any(|u| links[*u].certificate.subject().as_raw() == subject)
            {
                continue;
            }
            match self.may_follow(head, link) {
                Ok(()) => {
                    self.used.push(index);
                    self.walk(&link.certificate);
                    self.used.pop();
                }
                Err(rule) => self.pass_by(rule),
            }
        }
    }

    fn may_follow(&self, head: &X509Certificate<'_>, link: &Link<'_>) -> Result<(), PathError> {
        let facts = link.facts.as_ref().map_err(|rule| PathError::Refused(rule.clone()))?;
        if let Some(trust_domain) = self.question.trust_domain {
            let refused = |rule: &str| PathError::Refused(format!("an intermediate: {rule}"));
            let named = speaks_for(&link.certificate, trust_domain).map_err(refused)?;
            if facts.nested && !self.used.is_empty() {
                return Err(refused("it is a nested issuer's, which signs leaves alone"));
            }
            // A root of one's own house may have other authorities below it that sign for whoever asks. Only the
            // one that calls itself the trust domain's speaks for it.
            if !named && self.used.is_empty() {
                return Err(refused(
                    "it signed the leaf but does not have its trust domain's name (X509-SVID §3.2)",
                ));
            }
        }
        self.may_sign(head, facts)
    }

    /// Whether the authority's key identifier, validity and path length allow it to have signed `head`.
    fn may_sign(&self, head: &X509Certificate<'_>, authority: &AuthorityFacts) -> Result<(), PathError> {
        let (expected, own) = (x509::authority_key_identifier(head), authority.key_identifier.as_deref());
        if expected.is_some_and(|expected| own.is_some_and(|own| own != expected)) {
            return Err(PathError::UnknownAuthority);
        }
        // Both ends belong to it (RFC 5280 §4.1.2.5).
        if self.question.now < authority.not_before || self.question.now > authority.not_after {
            return Err(PathError::Expired);
        }
        // Every link in use stands below it, and is an authority.
        let below = u32::try_from(self.used.len()).unwrap_or(u32::MAX);
        if authority.path_length.is_some_and(|most| below > most) {
            return Err(PathError::Refused("an authority allows fewer authorities below it".to_owned()));
        }
        Ok(())
    }

    fn pass_by(&mut self, reason: PathError) {
        self.passed_by.get_or_insert(reason);
    }
}

/// RFC 5280 path validation of this one path.
fn try_path(
    question: Question<'_>,
    leaf: &[u8],
    links: &[Link<'_>],
    path: &Path<'_>,
) -> Result<(), PathError> {
    let leaf = CertificateDer::from(leaf);
    let leaf = EndEntityCert::try_from(&leaf).map_err(path_error)?;
    let intermediates: Vec<_> =
        path.links.iter().map(|index| CertificateDer::from(links[*index].der)).collect();
    let usage = match question.usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(question.now.seconds()));
    let anchor = std::slice::from_ref(&path.anchor.root);
    leaf.verify_for_usage(SIGNATURES, anchor, &intermediates, now, usage, None, None)
        .map(|_| ())
        .map_err(path_error)
}

fn path_error(error: webpki::Error) -> PathError {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => PathError::Expired,
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            PathError::UnknownAuthority
        }
        other => PathError::Refused(other.to_string()),
    }
}

fn validated(links: &[Link<'_>], path: &Path<'_>) -> Validated {
    let anchor = &path.anchor.facts;
    let between = path.links.iter().filter_map(|index| links[*index].facts.as_ref().ok());
    let mut validated = Validated { authorities: Vec::new(), nested: None, until: anchor.not_after };
    for authority in between.chain([anchor]) {
        if authority.nested && validated.authorities.is_empty() {
            let (serial, key_id) = (authority.serial.clone(), authority.key_id);
            validated.nested = Some(NestedIssuer { serial, key_id });
        }
        validated.authorities.push(authority.key_id);
        validated.until = validated.until.min(authority.not_after);
    }
    validated
}
