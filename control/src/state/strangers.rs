//! Commands about foreign trust domains: relationships with bundle endpoints, and the bundles that came of them.
//!
//! These tables are private to the control nodes on purpose: what is not in the View is believed by no proxy, gateway
//! or control node. Agents are told (`agent_state`), for workloads that federate with the domain.

use std::collections::BTreeMap;

use hanse_federation::stranger::{Federation, Freshness, MAX_ROOTS_BYTES, Profile, Stranger, compare};
use hanse_identity::{Bundle, Timestamp, TrustDomain};

use super::{Decision, State, already, bounded, not_found};
use crate::command::{Answer, Refusal};

/// Most foreign trust domains.
pub const MAX_STRANGERS: usize = 256;
/// Largest bundle that is kept of one, in bytes of its JSON: all of them are in every snapshot.
pub const MAX_BUNDLE_BYTES: usize = 256 << 10;

/// By trust domain.
pub type Strangers = BTreeMap<TrustDomain, Stranger>;

impl State {
    /// Begins a relationship or changes one. A bundle that comes with it is the administrator's own word: it takes
    /// the place of what is kept, whatever its sequence.
    pub(super) fn federation_put(
        &mut self,
        federation: &Federation,
        bundle: Option<&Bundle>,
        now: Timestamp,
    ) -> Decision {
        let trust_domain = &federation.trust_domain;
        self.check_stranger(trust_domain)?;
        self.check_profile(federation, bundle)?;
        if let Some(bundle) = bundle {
            check_bundle(trust_domain, bundle)?;
        }
        let before = self.private.strangers.get(trust_domain);
        if before.is_none() {
            bounded("foreign trust domains", self.private.strangers.len(), MAX_STRANGERS)?;
        }
        let replaced = bundle.filter(|bundle| before.and_then(|b| b.bundle.as_ref()) != Some(bundle));
        let after = Stranger {
            federation: federation.clone(),
            since: before.map_or(now, |b| b.since),
            bundle: replaced.or(before.and_then(|b| b.bundle.as_ref())).cloned(),
            changed: if replaced.is_some() { Some(now) } else { before.and_then(|b| b.changed) },
        };
        if before == Some(&after) {
            return already();
        }
        self.private.strangers.insert(trust_domain.clone(), after);
        Ok((Answer::Done, Vec::new()))
    }

    /// Ends a relationship: its bundle goes with it, and nobody of that domain is believed any more (Federation §6.3).
    pub(super) fn federation_delete(&mut self, trust_domain: &TrustDomain) -> Decision {
        let uses = |s: &&Stranger| {
            s.federation.trust_domain != *trust_domain && s.endpoint_domain() == Some(trust_domain)
        };
        if let Some(other) = self.private.strangers.values().find(uses) {
            let other = &other.federation.trust_domain;
            return Err(Refusal::Precondition(format!(
                "the endpoint of {other} is authenticated by the bundle of {trust_domain}; end that relationship first"
            )));
        }
        match self.private.strangers.remove(trust_domain) {
            Some(_) => Ok((Answer::Done, Vec::new())),
            None => Err(not_found("federation with", trust_domain, self.private.strangers.keys())),
        }
    }

    /// A bundle that was fetched for the relationship that began at `since`; void if that has ended meanwhile.
    pub(super) fn foreign_bundle_put(
        &mut self,
        bundle: &Bundle,
        since: Timestamp,
        now: Timestamp,
    ) -> Decision {
        let trust_domain = &bundle.trust_domain;
        self.check_stranger(trust_domain)?;
        check_bundle(trust_domain, bundle)?;
        let Some(stranger) = self.private.strangers.get_mut(trust_domain).filter(|s| s.since == since) else {
            return Err(Refusal::Precondition(format!(
                "the relationship with {trust_domain} has ended meanwhile"
            )));
        };
        match compare(stranger.bundle.as_ref(), bundle) {
            Ok(Freshness::Same) => already(),
            Ok(Freshness::Newer) => {
                stranger.bundle = Some(bundle.clone());
                stranger.changed = Some(now);
                Ok((Answer::Done, Vec::new()))
            }
            Err(stale) => Err(Refusal::Precondition(stale.to_string())),
        }
    }

    /// What is joined or our own gets no bundle from outside.
    fn check_stranger(&self, trust_domain: &TrustDomain) -> Result<(), Refusal> {
        if *trust_domain == self.view.trust_domain {
            return Err(Refusal::Invalid(format!("{trust_domain} is this cluster's own trust domain")));
        }
        match self.view.peer_of(trust_domain) {
            Some(peer) => Err(Refusal::Precondition(format!(
                "{trust_domain} is the trust domain of {}, which is joined: its bundle comes with its session",
                peer.record.cluster
            ))),
            None => Ok(()),
        }
    }

    fn check_profile(&self, federation: &Federation, bundle: Option<&Bundle>) -> Result<(), Refusal> {
        match &federation.profile {
            Profile::HttpsWeb { roots } => match roots {
                Some(pem) if pem.len() > MAX_ROOTS_BYTES => {
                    Err(Refusal::Invalid(format!("the roots have more than {MAX_ROOTS_BYTES} bytes")))
                }
                _ => Ok(()),
            },
            Profile::HttpsSpiffe { endpoint_id } => {
                let domain = endpoint_id.trust_domain();
                if endpoint_id.path().is_empty() {
                    return Err(Refusal::Invalid(format!("{endpoint_id} is a trust domain, no endpoint")));
                }
                if self.bundle_for_endpoint(domain).is_some()
                    || (*domain == federation.trust_domain && bundle.is_some())
                {
                    return Ok(());
                }
                Err(Refusal::Precondition(format!(
                    "the first fetch from {endpoint_id} needs a bundle of {domain} to authenticate it by; give one (--bundle FILE)"
                )))
            }
        }
    }

    /// By which bundle an endpoint of that trust domain is authenticated: what is kept of a stranger, else our own or
    /// a joined cluster's.
    pub fn bundle_for_endpoint(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        let foreign = self.private.strangers.get(trust_domain).map(|s| s.bundle.as_ref());
        foreign.unwrap_or_else(|| self.view.bundles.get(trust_domain))
    }
}

fn check_bundle(trust_domain: &TrustDomain, bundle: &Bundle) -> Result<(), Refusal> {
    if bundle.trust_domain != *trust_domain {
        return Err(Refusal::Invalid(format!("the bundle is that of {}", bundle.trust_domain)));
    }
    let bytes = serde_json::to_vec(bundle).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_BUNDLE_BYTES {
        return Err(Refusal::Limit(format!("{MAX_BUNDLE_BYTES} bytes of one bundle")));
    }
    bundle.check_foreign().map_err(|e| Refusal::Invalid(e.to_string()))
}
