//! Verify: the one place where a certificate is believed.
//!
//! Chain → exactly one URI name → the trust domain's own bundle, no other → revocation → `VerifiedCaller`.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::Serialize;
use webpki::EndEntityCert;

use crate::authority::AuthorityState;
use crate::bundle::{AuthorityCertificate, Bundle, KeyId};
use crate::downstream::NestedIssuer;
use crate::name::{SpiffeId, TrustDomain};
use crate::revocation::{Revocation, RevocationId, Revocations};
use crate::svid::{MAX_CERTIFICATE_BYTES, MAX_CHAIN, SvidError, SvidFacts};
use crate::time::Timestamp;
use crate::x509;
use crate::x509::authority::{AuthorityFacts, speaks_for};

mod host;
mod path;

pub use host::{VerifiedHost, verify_host};
use path::{PathError, Question};

/// What a verifier believes in: bundles by trust domain, and what has been revoked.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    bundles: BTreeMap<TrustDomain, Arc<[Anchor]>>,
    pub revocations: Revocations,
}

/// One authority that is trusted, ready for path validation: webpki knows nothing of an anchor's validity, path
/// length and profile.
#[derive(Debug)]
struct Anchor {
    root: TrustAnchor<'static>,
    facts: AuthorityFacts,
    /// On its way out: still believed, and to be left by whoever can.
    outgoing: bool,
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
    /// The keys of the authorities on its path: its signer first, the anchor last.
    authorities: Vec<KeyId>,
    /// Who signed it, if that is a workload with an intermediate authority.
    nested: Option<NestedIssuer>,
    /// When it or the first of these authorities expires.
    until: Timestamp,
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
        let named = |der: &[u8]| x509::parse(der).is_ok_and(|c| speaks_for(&c, &bundle.trust_domain).is_ok());
        let outgoing = |a: &AuthorityCertificate| a.state == AuthorityState::Tainted;
        let anchors = bundle.trusted().filter(|a| named(&a.der));
        let anchors =
            anchors.filter_map(|a| Some(Anchor { outgoing: outgoing(a), ..Anchor::new(&a.der).ok()? }));
        self.bundles.insert(bundle.trust_domain.clone(), anchors.collect());
    }

    /// Whether an SVID says that it was signed by an authority which is on its way out. Proves nothing: it is asked
    /// of one's own, which have to be replaced then.
    pub fn is_outgoing(&self, facts: &SvidFacts) -> bool {
        let anchors =
            self.bundles.get(facts.id.trust_domain()).into_iter().flat_map(|anchors| anchors.iter());
        let signer = facts.authority_key_identifier.as_deref();
        let mut outgoing = anchors.filter(|anchor| anchor.outgoing);
        signer.is_some_and(|signer| outgoing.any(|anchor| anchor.facts.key_id.prefix() == signer))
    }

    /// The trust domains that have an authority on its way out.
    pub fn outgoing_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.bundles
            .iter()
            .filter(|(_, anchors)| anchors.iter().any(|a| a.outgoing))
            .map(|(domain, _)| domain)
    }
}

impl Anchor {
    /// From the certificate of an authority; its own signature was checked when its bundle came in.
    fn new(der: &[u8]) -> Result<Self, String> {
        let certificate = x509::parse(der)?;
        let facts = AuthorityFacts::root(&certificate)?;
        Self::from_facts(der, facts)
    }

    fn from_facts(der: &[u8], facts: AuthorityFacts) -> Result<Self, String> {
        let der = CertificateDer::from(der);
        let root = webpki::anchor_from_trusted_cert(&der).map_err(|e| e.to_string())?.to_owned();
        Ok(Self { root, facts, outgoing: false })
    }
}

/// Verifies a chain (DER, leaf first) at `now`. Chain length and sizes are bounded before work is done, and so are
/// the signatures that are checked: a hostile chain costs little more than a good one.
pub fn verify(
    trust: &Trust,
    chain: &[&[u8]],
    now: Timestamp,
    usage: Usage,
) -> Result<VerifiedCaller, VerifyError> {
    let (leaf, rest) = bounded(chain)?;
    let facts = SvidFacts::parse(leaf)?;
    parsers_agree(leaf, &facts)?;
    let trust_domain = facts.id.trust_domain();
    let anchors = trust.bundles.get(trust_domain);
    let anchors = anchors.ok_or_else(|| VerifyError::UnknownTrustDomain(trust_domain.clone()))?;
    let question = Question { anchors, trust_domain: Some(trust_domain), now, usage };
    let path = path::validate(question, leaf, rest).map_err(|error| match error {
        PathError::UnknownAuthority => VerifyError::UnknownAuthority(trust_domain.clone()),
        PathError::Expired => VerifyError::Expired,
        PathError::Refused(rule) => VerifyError::Path(rule),
    })?;
    if path.nested.is_some() && facts.id.is_of_the_mesh() {
        let rule = "a nested issuer signs for workloads, not for members of the mesh";
        return Err(VerifyError::Path(rule.to_owned()));
    }
    let until = path.until.min(facts.not_after);
    let caller = VerifiedCaller { facts, authorities: path.authorities, nested: path.nested, until };
    caller.not_revoked(&trust.revocations)?;
    Ok(caller)
}

/// Everything that `verify` asks of a chain but what SPIFFE asks beyond RFC 5280 (names, key usage critical, both
/// extended key usages), a trust domain's bundle, and revocation: for collections of test certificates that belong
/// to no trust domain. Says nothing about who anybody is, so it proves nothing.
pub fn check_path(roots: &[&[u8]], chain: &[&[u8]], now: Timestamp, usage: Usage) -> Result<(), VerifyError> {
    let (leaf, rest) = bounded(chain)?;
    let certificate = x509::parse(leaf).map_err(SvidError::Malformed)?;
    x509::leaf::profile(&certificate).map_err(SvidError::Profile)?;
    let mut refused = None;
    let mut anchors = Vec::new();
    for root in roots {
        match Anchor::new(root) {
            Ok(anchor) => anchors.push(anchor),
            Err(rule) => refused = Some(format!("a root: {rule}")),
        }
    }
    let question = Question { anchors: &anchors, trust_domain: None, now, usage };
    match (path::validate(question, leaf, rest), refused) {
        (Ok(_), _) => Ok(()),
        (Err(PathError::Expired), _) => Err(VerifyError::Expired),
        (Err(PathError::UnknownAuthority), Some(rule)) => Err(VerifyError::Path(rule)),
        (Err(error), _) => Err(VerifyError::Path(error.to_string())),
    }
}

/// The leaf and the rest, if the chain is neither empty, nor long, nor large.
fn bounded<'c, 'd>(chain: &'c [&'d [u8]]) -> Result<(&'d [u8], &'c [&'d [u8]]), VerifyError> {
    let Some((leaf, rest)) = chain.split_first() else { return Err(VerifyError::NoCertificate) };
    if chain.len() > MAX_CHAIN {
        return Err(SvidError::ChainLength(chain.len()).into());
    }
    if let Some(large) = chain.iter().find(|der| der.len() > MAX_CERTIFICATE_BYTES) {
        let rule = format!("it has {} bytes, at most {MAX_CERTIFICATE_BYTES} are read", large.len());
        return Err(SvidError::Malformed(rule).into());
    }
    Ok((leaf, rest))
}

/// Two parsers read the certificate; they must have read the same name.
fn parsers_agree(leaf: &[u8], facts: &SvidFacts) -> Result<(), VerifyError> {
    let leaf = CertificateDer::from(leaf);
    let leaf = EndEntityCert::try_from(&leaf).map_err(|e| VerifyError::Path(e.to_string()))?;
    let names: Vec<_> = leaf.valid_uri_names().collect();
    if names != [facts.id.to_string()] {
        return Err(SvidError::UriNames(names.len()).into());
    }
    Ok(())
}

impl VerifiedCaller {
    pub fn id(&self) -> &SpiffeId {
        &self.facts.id
    }

    pub fn facts(&self) -> &SvidFacts {
        &self.facts
    }

    /// The keys of the authorities on its path: whoever signed it first, the one of the bundle last. Never empty.
    pub fn authorities(&self) -> &[KeyId] {
        &self.authorities
    }

    /// Asks again: for connections that live on while the world changes. Not believed any more is who has
    /// expired, is revoked, or whose authority has gone from the bundle.
    pub fn still_believed(&self, trust: &Trust, now: Timestamp) -> Result<(), VerifyError> {
        self.not_revoked(&trust.revocations)?;
        self.still_vouched(trust, now)
    }

    fn not_revoked(&self, all: &Revocations) -> Result<(), VerifyError> {
        match self.revocations(all).next() {
            Some(r) => Err(VerifyError::Revoked { id: self.facts.id.clone(), revocation: r.id.clone() }),
            None => Ok(()),
        }
    }

    /// The revocations that hit it, or the nested issuer that signed it.
    pub fn revocations<'r>(&self, all: &'r Revocations) -> impl Iterator<Item = &'r Revocation> + use<'r> {
        let issuer = self.nested.as_ref().map(|n| all.hitting_issuer(self.facts.id.trust_domain(), n));
        all.hitting(&self.facts, &self.authorities).chain(issuer.into_iter().flatten())
    }

    /// Whether this revocation would hit it, were it in force.
    pub fn is_hit_by(&self, revocation: &Revocation) -> bool {
        let issuer = |n: &NestedIssuer| revocation.hits_issuer(self.facts.id.trust_domain(), n);
        revocation.hits_from(&self.facts, &self.authorities) || self.nested.as_ref().is_some_and(issuer)
    }

    /// Who signed it, if that is a workload with an intermediate authority: who it is, the log knows.
    pub fn nested_issuer(&self) -> Option<&NestedIssuer> {
        self.nested.as_ref()
    }

    /// Whether the authority at the end of its path is on its way out: it is believed for as long as that is in the
    /// bundle, and no longer.
    pub fn is_outgoing(&self, trust: &Trust) -> bool {
        let anchors = trust.bundles.get(self.facts.id.trust_domain()).into_iter().flat_map(|a| a.iter());
        anchors.filter(|a| a.outgoing).any(|a| self.authorities.last() == Some(&a.facts.key_id))
    }

    /// Whether it has not expired and its authority is still in the bundle, whatever has been revoked.
    pub fn still_vouched(&self, trust: &Trust, now: Timestamp) -> Result<(), VerifyError> {
        if now >= self.until {
            return Err(VerifyError::Expired);
        }
        let trust_domain = self.facts.id.trust_domain();
        let anchors = trust.bundles.get(trust_domain);
        let anchors = anchors.ok_or_else(|| VerifyError::UnknownTrustDomain(trust_domain.clone()))?;
        match anchors.iter().any(|a| self.authorities.last() == Some(&a.facts.key_id)) {
            true => Ok(()),
            false => Err(VerifyError::UnknownAuthority(trust_domain.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
