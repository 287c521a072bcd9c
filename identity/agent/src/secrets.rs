//! Secrets: what each caller gets, as a function of the cluster's state and of what is known about the caller.
//!
//! Pure: no socket, clock or key generation. Decides entitlement, reads SDS names, and writes SDS secrets and
//! Workload API messages. Keeping SVIDs fresh is `io::svids`; the conversation of a stream is `subscription`.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate, secret,
    spiffe_cert_validator_config,
};
use envoy_types::pb::google::protobuf::Any;
use hanse_identity::crl::with_crls;
use hanse_identity::jwt::{JwtError, ValidJwt, validate};
use hanse_identity::svid::Svid;
use hanse_identity::wire::{AgentState, to_pem};
use hanse_identity::{
    AuthorityState, Bundle, Evidence, Registration, Selector, SpiffeId, Timestamp, TrustDomain, grant,
};
use prost::{Message as _, Name as _};

use crate::wire::workload;

/// SDS name of the caller's certificate, as stock configurations ask for it.
pub const DEFAULT_NAME: &str = "default";
/// SDS name of the own trust domain's bundle.
pub const OWN_BUNDLE_NAME: &str = "ROOTCA";
/// SDS name of every trust domain's bundle, for Envoy's SPIFFE validator.
pub const ALL_BUNDLES_NAME: &str = "ALL";
/// Names that one stream may ask for.
pub const MAX_NAMES: usize = 64;

/// Envoy's extension that checks an SVID against the bundle of its own trust domain.
const SPIFFE_VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";

/// Why a caller gets nothing, or not what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    #[error("no registration on agent {agent} matches this process ({selectors})")]
    NotRegistered { agent: String, selectors: String },
    #[error("{id} is revoked by {revocation}")]
    Revoked { id: SpiffeId, revocation: String },
    #[error("this process is not registered for {0}")]
    NotEntitled(SpiffeId),
    #[error("there is no bundle of trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    #[error("{0:?} is not a secret: ask for default, ROOTCA, ALL, a SPIFFE ID or spiffe://<trust domain>")]
    UnknownName(String),
    #[error("{0:?} is not a SPIFFE ID")]
    NotAnId(String),
}

/// Whether the digest of the caller's executable, which nobody has read, could give it something.
pub fn digest_decides(state: &AgentState, evidence: &Evidence) -> bool {
    let is_digest = |s: &&Selector| matches!(s, Selector::Sha256(_));
    !evidence.selectors.iter().any(|s| is_digest(&s))
        && state.registrations.iter().filter(|r| r.agent.covers(&evidence.agent)).any(|r| {
            let (digests, others): (Vec<_>, Vec<_>) = r.selectors.iter().partition(is_digest);
            !digests.is_empty() && others.into_iter().all(|s| evidence.selectors.contains(s))
        })
}

/// What an SDS name asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The caller's own certificate and key.
    Certificate(SpiffeId),
    /// One trust domain's bundle.
    Bundle(TrustDomain),
    /// Every trust domain's bundle.
    AllBundles,
    /// What takes the place of a bundle that is no more: a client keeps what it has until something replaces it.
    NoBundle(TrustDomain),
}

impl Wanted {
    /// The identity whose certificate is asked for, if it is a certificate.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Certificate(id) => Some(id),
            Self::Bundle(_) | Self::AllBundles | Self::NoBundle(_) => None,
        }
    }
}

/// The cluster's state as one caller may see it, at one revision.
#[derive(Clone, Debug)]
pub struct Standing<'s> {
    state: &'s AgentState,
    own: &'s TrustDomain,
    /// Every identity that a registration gives, in the order of the registrations, each once.
    registered: Vec<&'s SpiffeId>,
    /// Hints by identity; no two have the same (SPIFFE Workload API §8).
    hints: BTreeMap<&'s SpiffeId, &'s str>,
    /// Trust domains of no joined cluster that a registration of the caller names.
    strangers: BTreeSet<&'s TrustDomain>,
}

impl<'s> Standing<'s> {
    /// What the caller is entitled to; a refusal if that is nothing.
    pub fn of(
        state: &'s AgentState,
        own: &'s TrustDomain,
        evidence: &Evidence,
    ) -> Result<Standing<'s>, Denial> {
        let mut registered: Vec<&SpiffeId> = Vec::new();
        let (mut hints, mut strangers) = (BTreeMap::new(), BTreeSet::new());
        for registration in grant::entitled(&state.registrations, evidence) {
            let Registration { id, hint, federates_with, .. } = registration;
            if id.trust_domain() != own {
                continue;
            }
            if !registered.contains(&id) {
                registered.push(id);
            }
            if !hint.is_empty() && !hints.contains_key(id) && !hints.values().any(|other| other == hint) {
                hints.insert(id, hint.as_str());
            }
            if state.revocations.of_identity(id).is_none() {
                strangers.extend(federates_with);
            }
        }
        if registered.is_empty() {
            let selectors: Vec<String> = evidence.selectors.iter().map(Selector::to_string).collect();
            let agent = evidence.agent.to_string();
            return Err(Denial::NotRegistered { agent, selectors: selectors.join(" ") });
        }
        let standing = Standing { state, own, registered, hints, strangers };
        match standing.identities().is_empty() {
            true => {
                Err(standing.revoked(standing.registered[0]).expect("none of them is free of revocations"))
            }
            false => Ok(standing),
        }
    }

    pub fn revision(&self) -> u64 {
        self.state.revision
    }

    /// The identities that the caller has and that are not revoked; the first is its default.
    pub fn identities(&self) -> Vec<&'s SpiffeId> {
        self.registered.iter().filter(|id| self.revoked(id).is_none()).copied().collect()
    }

    fn revoked(&self, id: &SpiffeId) -> Option<Denial> {
        let revocation = self.state.revocations.of_identity(id)?;
        Some(Denial::Revoked { id: id.clone(), revocation: revocation.id.to_string() })
    }

    /// Whether the caller may have this identity now.
    pub fn may_have(&self, id: &SpiffeId) -> Result<(), Denial> {
        if !self.registered.contains(&id) {
            return Err(Denial::NotEntitled(id.clone()));
        }
        self.revoked(id).map_or(Ok(()), Err)
    }

    /// Whether this very SVID may still be handed out.
    pub fn may_show(&self, svid: &Svid) -> Result<(), Denial> {
        self.may_have(&svid.facts.id)?;
        still_valid(self.state, svid)
    }

    /// Reads an SDS name. `default` is the first registered identity: a revoked one is refused and not
    /// replaced by the next, so that a process never changes its name without having asked.
    pub fn read_name(&self, name: &str) -> Result<Wanted, Denial> {
        let wanted = match name {
            DEFAULT_NAME => Wanted::Certificate(self.registered[0].clone()),
            OWN_BUNDLE_NAME => Wanted::Bundle(self.own.clone()),
            ALL_BUNDLES_NAME => Wanted::AllBundles,
            _ => {
                let id: SpiffeId = name.parse().map_err(|_| Denial::UnknownName(shortened(name)))?;
                match id.path() {
                    "" => Wanted::Bundle(id.trust_domain().clone()),
                    _ => Wanted::Certificate(id),
                }
            }
        };
        match &wanted {
            Wanted::Certificate(id) => self.may_have(id)?,
            Wanted::Bundle(trust_domain) => self.bundle_pem(trust_domain).map(drop)?,
            Wanted::AllBundles | Wanted::NoBundle(_) => {}
        }
        Ok(wanted)
    }

    /// The SDS secret for a name that was read by `read_name`; `None` while the certificate is not there yet.
    pub fn secret(&self, name: &str, wanted: &Wanted, held: &Held<'_>) -> Result<Option<Any>, Denial> {
        let content = match wanted {
            Wanted::Certificate(id) => match held.get(id) {
                None => return Ok(None),
                Some(svid) => {
                    self.may_show(svid)?;
                    certificate(svid)
                }
            },
            Wanted::Bundle(trust_domain) => {
                let BundlePem { authorities, crls } = self.bundle_pem(trust_domain)?;
                secret::Type::ValidationContext(CertificateValidationContext {
                    trusted_ca: Some(inline(authorities)),
                    crl: (!crls.is_empty()).then(|| inline(crls)),
                    ..Default::default()
                })
            }
            Wanted::AllBundles => secret::Type::ValidationContext(self.spiffe_validator()),
            Wanted::NoBundle(_) => secret::Type::ValidationContext(self.nobody()?),
        };
        let secret = Secret { name: name.to_owned(), r#type: Some(content) };
        Ok(Some(Any { type_url: Secret::type_url(), value: secret.encode_to_vec() }))
    }

    /// The Workload API's message: every identity that has its SVID.
    pub fn x509_response(&self, held: &Held<'_>) -> Result<workload::X509svidResponse, Denial> {
        let bundle = self.bundle_der(self.own).ok_or_else(|| Denial::UnknownTrustDomain(self.own.clone()))?;
        let ready: Vec<&Svid> =
            self.identities().into_iter().filter_map(|id| held.get(id).copied()).collect();
        let mut svids = Vec::new();
        let mut refused = None;
        for svid in ready {
            match self.may_show(svid) {
                Ok(()) => svids.push(workload::X509svid {
                    spiffe_id: svid.facts.id.to_string(),
                    x509_svid: svid.chain.concat(),
                    x509_svid_key: svid.key.to_vec(),
                    bundle: bundle.clone(),
                    hint: self.hint(&svid.facts.id),
                }),
                Err(denial) => refused = Some(denial),
            }
        }
        if let (true, Some(denial)) = (svids.is_empty(), refused) {
            return Err(denial);
        }
        let mut federated = self.bundles_response().bundles;
        federated.remove(&self.own.id().to_string());
        let federated_bundles = federated.into_iter().collect();
        Ok(workload::X509svidResponse { svids, crl: self.crls_der(), federated_bundles })
    }

    /// The Workload API's bundles: the own trust domain's and every peer's, by their SPIFFE IDs.
    pub fn bundles_response(&self) -> workload::X509BundlesResponse {
        let domains = self.state.bundles.iter().map(|bundle| &bundle.trust_domain);
        let bundles = domains.filter_map(|td| Some((td.id().to_string(), self.bundle_der(td)?))).collect();
        workload::X509BundlesResponse { crl: self.crls_der(), bundles }
    }

    /// The Workload API's JWT bundles, by SPIFFE ID: the own trust domain's, and every other's that has JWT keys. One
    /// that had some and has none any more is not there, and its clients unload it (SPIFFE Workload API §4.4).
    pub fn jwt_bundles_response(&self) -> workload::JwtBundlesResponse {
        let told = |bundle: &&Bundle| {
            let domain = &bundle.trust_domain;
            domain == self.own || (self.may_know(domain) && bundle.trusted_jwt().next().is_some())
        };
        let row = |bundle: &Bundle| (bundle.trust_domain.id().to_string(), bundle.to_jwt_jwks().into_bytes());
        workload::JwtBundlesResponse { bundles: self.state.bundles.iter().filter(told).map(row).collect() }
    }

    /// The identities that a request for JWT-SVIDs is about: the one that it names, or all.
    pub fn jwt_identities(&self, named: &str) -> Result<Vec<SpiffeId>, Denial> {
        if named.is_empty() {
            return Ok(self.identities().into_iter().cloned().collect());
        }
        let id: SpiffeId = named.parse().map_err(|_| Denial::NotAnId(shortened(named)))?;
        self.may_have(&id)?;
        Ok(vec![id])
    }

    /// Validates a token for the caller: with the bundle of the token's own trust domain, if the caller may know it.
    pub fn validate_jwt(&self, token: &str, audience: &str, now: Timestamp) -> Result<ValidJwt, JwtError> {
        let bundles = &self.state.bundles;
        let bundle_of = |domain: &TrustDomain| {
            bundles.iter().find(|b| b.trust_domain == *domain).filter(|_| self.may_know(domain))
        };
        validate(bundle_of, &self.state.revocations, token, audience, now)
    }

    /// The identity's hint in this caller's answers; empty if it has none.
    pub fn hint(&self, id: &SpiffeId) -> String {
        self.hints.get(id).map_or(String::new(), |hint| (*hint).to_owned())
    }

    /// Trust domains without an authority are left out: Envoy rejects the whole message for one empty bundle.
    fn spiffe_validator(&self) -> CertificateValidationContext {
        let domains: BTreeSet<&TrustDomain> = self.state.bundles.iter().map(|b| &b.trust_domain).collect();
        let trust_domains = domains.into_iter().filter_map(|trust_domain| {
            // Envoy's SPIFFE validator reads lists here, and nowhere else.
            let BundlePem { mut authorities, crls } = self.bundle_pem(trust_domain).ok()?;
            authorities.extend(crls);
            let trust_bundle = Some(inline(authorities));
            let name = trust_domain.to_string();
            Some(spiffe_cert_validator_config::TrustDomain { name, trust_bundle, ..Default::default() })
        });
        let config =
            SpiffeCertValidatorConfig { trust_domains: trust_domains.collect(), ..Default::default() };
        let typed_config =
            Some(Any { type_url: SpiffeCertValidatorConfig::type_url(), value: config.encode_to_vec() });
        let validator = TypedExtensionConfig { name: SPIFFE_VALIDATOR.to_owned(), typed_config };
        CertificateValidationContext { custom_validator_config: Some(validator), ..Default::default() }
    }

    /// A context that no certificate passes. An empty one would be refused, and what was before would stay in force;
    /// so the own authorities, and the hash of a certificate that nobody can make.
    fn nobody(&self) -> Result<CertificateValidationContext, Denial> {
        Ok(CertificateValidationContext {
            trusted_ca: Some(inline(self.bundle_pem(self.own)?.authorities)),
            verify_certificate_hash: vec!["0".repeat(64)],
            ..Default::default()
        })
    }

    /// The bundle of a trust domain that the caller may know: the own one, a joined cluster's, or one that its
    /// registration names.
    fn trusted(&self, trust_domain: &TrustDomain) -> Option<Bundle> {
        if self.may_know(trust_domain) { trusted(self.state, trust_domain) } else { None }
    }

    fn may_know(&self, trust_domain: &TrustDomain) -> bool {
        !self.state.strangers.contains(trust_domain) || self.strangers.contains(trust_domain)
    }

    fn bundle_pem(&self, trust_domain: &TrustDomain) -> Result<BundlePem, Denial> {
        let bundle = self.trusted(trust_domain);
        let bundle = bundle.ok_or_else(|| Denial::UnknownTrustDomain(trust_domain.clone()))?;
        let trusted = with_crls(&bundle, self.state.crls.get(trust_domain));
        let authorities = trusted.authorities.iter().map(|a| to_pem("CERTIFICATE", &a.der));
        Ok(BundlePem {
            authorities: authorities.flat_map(|pem| pem.as_bytes().to_vec()).collect(),
            crls: trusted.crls.iter().flat_map(|crl| crl.to_pem().as_bytes().to_vec()).collect(),
        })
    }

    /// The revocation lists of every trust domain that has all of its own.
    fn crls_der(&self) -> Vec<Vec<u8>> {
        let domains: BTreeSet<&TrustDomain> = self.state.bundles.iter().map(|b| &b.trust_domain).collect();
        let bundles = domains.into_iter().filter_map(|td| self.trusted(td));
        let lists = bundles.flat_map(|bundle| {
            let known = self.state.crls.get(&bundle.trust_domain);
            with_crls(&bundle, known).crls.into_iter().map(|crl| crl.der.to_vec()).collect::<Vec<_>>()
        });
        lists.collect()
    }

    fn bundle_der(&self, trust_domain: &TrustDomain) -> Option<Vec<u8>> {
        let bundle = self.trusted(trust_domain)?;
        Some(bundle.authorities.iter().flat_map(|a| &a.der).copied().collect())
    }
}

/// One trust domain's authorities and their revocation lists, each as concatenated PEM.
struct BundlePem {
    authorities: Vec<u8>,
    crls: Vec<u8>,
}

/// The SVIDs that are ready, by identity.
pub type Held<'h> = BTreeMap<SpiffeId, &'h Svid>;

/// Whether an SVID is untouched by revocations (of its identity or of its serial number).
pub fn still_valid(state: &AgentState, svid: &Svid) -> Result<(), Denial> {
    match state.revocations.check(&svid.facts) {
        Some(r) => Err(Denial::Revoked { id: svid.facts.id.clone(), revocation: r.id.to_string() }),
        None => Ok(()),
    }
}

/// The trust domain's bundle without retired authorities; `None` if none is left.
pub fn trusted(state: &AgentState, trust_domain: &TrustDomain) -> Option<Bundle> {
    let mut bundle = state.bundles.iter().find(|b| b.trust_domain == *trust_domain)?.clone();
    bundle.authorities.retain(|a| a.state != AuthorityState::Retired);
    (!bundle.authorities.is_empty()).then_some(bundle)
}

fn certificate(svid: &Svid) -> secret::Type {
    secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(svid.chain_pem().into_bytes())),
        private_key: Some(inline(svid.key_pem().as_bytes().to_vec())),
        ..Default::default()
    })
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes)), ..Default::default() }
}

/// A stranger's text, short enough for an error and a log line.
fn shortened(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests;
