//! Verify: the one place where a certificate is believed.
//!
//! Chain → exactly one URI name → the trust domain's own bundle, no other → revocation → `VerifiedCaller`.

use std::collections::BTreeMap;

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::Serialize;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::bundle::{AuthorityFacts, Bundle, KeyId};
use crate::name::{SpiffeId, TrustDomain};
use crate::revocation::{RevocationId, Revocations};
use crate::svid::{MAX_CERTIFICATE_BYTES, MAX_CHAIN, SvidError, SvidFacts};
use crate::time::Timestamp;
use crate::x509;

/// What a verifier believes in: bundles by trust domain, and what has been revoked.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    bundles: BTreeMap<TrustDomain, Arc<Anchors>>,
    pub revocations: Revocations,
}

/// One trust domain's anchors, ready for path validation. Two lists in step: webpki wants its own as a slice,
/// and knows nothing of an anchor's validity and path length.
#[derive(Debug, Default)]
struct Anchors {
    roots: Vec<TrustAnchor<'static>>,
    facts: Vec<AuthorityFacts>,
}

/// In which part of the handshake the certificate was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

/// Proof that a chain was verified. Has no public constructor: only `verify` makes one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedCaller {
    facts: SvidFacts,
    /// The authority at the end of its chain.
    authority: KeyId,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("no certificate was shown")]
    NoCertificate,
    #[error("not an SVID: {0}")]
    NotAnSvid(#[from] SvidError),
    #[error("no bundle for trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    #[error("not signed by an authority of {0}")]
    UnknownAuthority(TrustDomain),
    #[error("expired or not yet valid")]
    Expired,
    #[error("path validation failed: {0}")]
    Path(String),
    #[error("{id} is revoked by {revocation}")]
    Revoked { id: SpiffeId, revocation: RevocationId },
    #[error("{0} is not who was expected")]
    Unexpected(SpiffeId),
}

impl Trust {
    /// From bundles; authorities that cannot be read are left out (their bundle was checked when it came in).
    pub fn new<'b>(bundles: impl IntoIterator<Item = &'b Bundle>, revocations: Revocations) -> Self {
        let mut trust = Self { bundles: BTreeMap::new(), revocations };
        bundles.into_iter().for_each(|bundle| trust.set_bundle(bundle));
        trust
    }

    pub fn knows(&self, trust_domain: &TrustDomain) -> bool {
        self.bundles.contains_key(trust_domain)
    }

    /// Adds the bundle to what is trusted, in place of what was there for that trust domain.
    pub fn set_bundle(&mut self, bundle: &Bundle) {
        self.bundles.insert(bundle.trust_domain.clone(), Arc::new(Anchors::new(bundle)));
    }
}

impl Anchors {
    fn new(bundle: &Bundle) -> Self {
        let mut anchors = Self::default();
        for authority in bundle.trusted() {
            let Ok(facts) = AuthorityFacts::parse(&authority.der, &bundle.trust_domain) else { continue };
            let der = CertificateDer::from(authority.der.as_slice());
            let Ok(root) = webpki::anchor_from_trusted_cert(&der) else { continue };
            anchors.roots.push(root.to_owned());
            anchors.facts.push(facts);
        }
        anchors
    }

    /// What is known about the anchor that a path ended in.
    fn facts_of(&self, root: &TrustAnchor<'_>) -> Option<&AuthorityFacts> {
        self.roots.iter().position(|r| r == root).and_then(|index| self.facts.get(index))
    }
}

/// Verifies a chain (DER, leaf first) at `now`. Chain length and sizes are bounded before work is done.
pub fn verify(
    trust: &Trust,
    chain: &[&[u8]],
    now: Timestamp,
    usage: Usage,
) -> Result<VerifiedCaller, VerifyError> {
    let Some((leaf, rest)) = chain.split_first() else { return Err(VerifyError::NoCertificate) };
    if chain.len() > MAX_CHAIN {
        return Err(SvidError::ChainLength(chain.len()).into());
    }
    if let Some(large) = chain.iter().find(|der| der.len() > MAX_CERTIFICATE_BYTES) {
        let rule = format!("it has {} bytes, at most {MAX_CERTIFICATE_BYTES} are read", large.len());
        return Err(SvidError::Malformed(rule).into());
    }
    let facts = SvidFacts::parse(leaf)?;
    let trust_domain = facts.id.trust_domain();
    let anchors = trust.bundles.get(trust_domain);
    let anchors = anchors.ok_or_else(|| VerifyError::UnknownTrustDomain(trust_domain.clone()))?;
    let authority = validate_path(anchors, &facts, leaf, without_root(rest), now, usage)?;
    match trust.revocations.check(&facts) {
        Some(r) => Err(VerifyError::Revoked { id: facts.id.clone(), revocation: r.id.clone() }),
        None => Ok(VerifiedCaller { facts, authority }),
    }
}

/// Control nodes send their self-signed root last, for pinned clients. A root is believed because it is in
/// the bundle, never because it was sent: leave it out.
fn without_root<'c, 'd>(rest: &'c [&'d [u8]]) -> &'c [&'d [u8]] {
    match rest.split_last() {
        Some((last, others))
            if x509::parse(last).is_ok_and(|c| c.subject().as_raw() == c.issuer().as_raw()) =>
        {
            others
        }
        _ => rest,
    }
}

/// RFC 5280 path validation against the trust domain's own anchors; the key of the one that it ends in.
fn validate_path(
    anchors: &Anchors,
    facts: &SvidFacts,
    leaf: &[u8],
    intermediates: &[&[u8]],
    now: Timestamp,
    usage: Usage,
) -> Result<KeyId, VerifyError> {
    let trust_domain = facts.id.trust_domain();
    let path_error = |error: webpki::Error| match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => VerifyError::Expired,
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            VerifyError::UnknownAuthority(trust_domain.clone())
        }
        other => VerifyError::Path(other.to_string()),
    };
    let leaf = CertificateDer::from(leaf);
    let leaf = EndEntityCert::try_from(&leaf).map_err(path_error)?;
    // Two parsers read the certificate; they must have read the same name.
    let names: Vec<_> = leaf.valid_uri_names().collect();
    if names != [facts.id.to_string()] {
        return Err(SvidError::UriNames(names.len()).into());
    }
    let intermediates: Vec<_> = intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let path = leaf
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors.roots,
            &intermediates,
            UnixTime::since_unix_epoch(Duration::from_secs(now.seconds())),
            usage,
            None,
            None,
        )
        .map_err(path_error)?;
    check_authorities(anchors, &path, trust_domain, now)
}

/// What webpki leaves out: the anchor's own validity and path length, and the intermediates' key usage and
/// names.
fn check_authorities(
    anchors: &Anchors,
    path: &VerifiedPath<'_>,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<KeyId, VerifyError> {
    let unknown = || VerifyError::UnknownAuthority(trust_domain.clone());
    let anchor = anchors.facts_of(path.anchor()).ok_or_else(unknown)?;
    if now < anchor.not_before || now >= anchor.not_after {
        return Err(VerifyError::Expired);
    }
    let mut below = 0;
    for intermediate in path.intermediate_certificates() {
        below += 1;
        let der = intermediate.der();
        let certificate = x509::parse(&der).map_err(VerifyError::Path)?;
        let names = x509::uri_names(&certificate).map_err(VerifyError::Path)?.names;
        if !names.is_empty() && names != [trust_domain.id().to_string()] {
            return Err(VerifyError::Path(
                "an intermediate has another name than its trust domain's".to_owned(),
            ));
        }
        let usage = x509::key_usage(&certificate).map_err(|rule| VerifyError::Path(rule.to_owned()))?;
        if !usage.key_cert_sign() {
            return Err(VerifyError::Path("an intermediate's key usage lacks keyCertSign".to_owned()));
        }
    }
    if anchor.path_length.is_some_and(|most| below > most) {
        return Err(VerifyError::Path("the authority allows no authority below it".to_owned()));
    }
    Ok(anchor.key_id)
}

impl VerifiedCaller {
    pub fn id(&self) -> &SpiffeId {
        &self.facts.id
    }

    pub fn facts(&self) -> &SvidFacts {
        &self.facts
    }

    /// The key of the authority at the end of its chain.
    pub fn authority(&self) -> KeyId {
        self.authority
    }

    /// Asks again: for connections that live on while the world changes. Not believed any more is who has
    /// expired, is revoked, or whose authority has gone from the bundle.
    pub fn still_believed(&self, trust: &Trust, now: Timestamp) -> Result<(), VerifyError> {
        if now >= self.facts.not_after {
            return Err(VerifyError::Expired);
        }
        if let Some(r) = trust.revocations.check(&self.facts) {
            return Err(VerifyError::Revoked { id: self.facts.id.clone(), revocation: r.id.clone() });
        }
        let trust_domain = self.facts.id.trust_domain();
        let anchors = trust.bundles.get(trust_domain);
        let anchors = anchors.ok_or_else(|| VerifyError::UnknownTrustDomain(trust_domain.clone()))?;
        match anchors.facts.iter().find(|f| f.key_id == self.authority) {
            Some(authority) if now >= authority.not_after => Err(VerifyError::Expired),
            Some(_) => Ok(()),
            None => Err(VerifyError::UnknownAuthority(trust_domain.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
