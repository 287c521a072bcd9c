//! Commands about foreign trust domains: relationships with bundle endpoints, and the bundles that came of them or were
//! set by hand.
//!
//! These tables are private to the control nodes on purpose: what is not in the View is believed by no proxy, gateway
//! or control node. Agents are told (`agent_state`), for workloads that federate with the domain.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hanse_federation::Change;
use hanse_federation::stranger::{Federation, Freshness, MAX_ROOTS_BYTES, Profile, Stranger, compare};
use hanse_identity::{Bundle, Registration, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use super::{Decision, State, already, bounded, not_found};
use crate::command::{Answer, Refusal};
use crate::role::Role;

/// Most foreign trust domains.
pub const MAX_STRANGERS: usize = 256;
/// Largest bundle that is kept of one, in bytes of its JSON: all of them are in every snapshot.
pub const MAX_BUNDLE_BYTES: usize = 256 << 10;
/// Registrations that a refusal names.
const MAX_NAMED: usize = 8;

/// By trust domain.
pub type Strangers = BTreeMap<TrustDomain, Stranger>;

/// What becomes of registrations that federate with a trust domain whose bundle is deleted (the modes of SPIRE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dependents {
    /// While there is one, nothing is deleted.
    Restrict,
    /// They stay, and federate with it no more.
    Dissociate,
    /// They are deleted.
    Delete,
}

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
            federation: Some(federation.clone()),
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

    /// Ends what there is with a foreign trust domain: its bundle goes with the relationship, and nobody of that domain
    /// is believed any more (Federation §6.3).
    pub(super) fn federation_delete(
        &mut self,
        trust_domain: &TrustDomain,
        registrations: Option<Dependents>,
    ) -> Decision {
        if registrations.is_some() {
            self.check_stranger(trust_domain)?;
        }
        if !self.private.strangers.contains_key(trust_domain) {
            return Err(not_found("federation with", trust_domain, self.private.strangers.keys()));
        }
        let uses = |(domain, stranger): &(&TrustDomain, &Stranger)| {
            *domain != trust_domain && stranger.endpoint_domain() == Some(trust_domain)
        };
        if let Some((other, _)) = self.private.strangers.iter().find(uses) {
            return Err(Refusal::Precondition(format!(
                "the endpoint of {other} is authenticated by the bundle of {trust_domain}; end that relationship first"
            )));
        }
        let changes = match registrations {
            None => Vec::new(),
            Some(Dependents::Restrict) => {
                self.check_nobody_federates_with(trust_domain)?;
                Vec::new()
            }
            Some(Dependents::Dissociate) => {
                let names = |r: &&mut Arc<Registration>| r.federates_with.contains(trust_domain);
                for registration in self.private.registrations.values_mut().filter(names) {
                    Arc::make_mut(registration).federates_with.remove(trust_domain);
                }
                Vec::new()
            }
            Some(Dependents::Delete) => self.registrations_delete(trust_domain),
        };
        self.private.strangers.remove(trust_domain);
        Ok((Answer::Done, changes))
    }

    fn federating_with(&self, trust_domain: &TrustDomain) -> impl Iterator<Item = &Registration> {
        let all = self.private.registrations.values().map(Arc::as_ref);
        all.filter(|r| r.federates_with.contains(trust_domain))
    }

    fn check_nobody_federates_with(&self, trust_domain: &TrustDomain) -> Result<(), Refusal> {
        let named: Vec<String> =
            self.federating_with(trust_domain).map(|r| format!("{} on {}", r.id, r.agent)).collect();
        if named.is_empty() {
            return Ok(());
        }
        let more = match named.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = named.into_iter().take(MAX_NAMED).collect::<Vec<_>>().join(", ");
        Err(Refusal::Precondition(format!(
            "registrations federate with {trust_domain}: {named}{more}; say what becomes of them: --mode dissociate or --mode delete"
        )))
    }

    fn registrations_delete(&mut self, federating_with: &TrustDomain) -> Vec<Change> {
        let keys: Vec<_> =
            self.federating_with(federating_with).map(|r| (r.id.clone(), r.agent.clone())).collect();
        let before = self.view.clone();
        let mut all = Vec::new();
        for (id, agent) in keys {
            let (_, changes) = self.workload_delete(&id, &agent).expect("it has just been found");
            changes.iter().for_each(|change| self.view.apply(change));
            all.extend(changes);
        }
        // The View changes when the caller folds in the Changes.
        self.view = before;
        all
    }

    /// Registrations are an operator's.
    pub(super) fn may_change_registrations(
        &self,
        actor: &str,
        registrations: Option<Dependents>,
    ) -> Result<(), Refusal> {
        let changes = matches!(registrations, Some(Dependents::Dissociate | Dependents::Delete));
        if !changes || self.actor_has(actor, Role::Operator) {
            return Ok(());
        }
        Err(Refusal::NotAllowed(format!("who changes registrations needs the role {}", Role::Operator)))
    }

    /// An administrator's word in place of a fetch: the bundle is kept until the next one is fetched or set.
    pub(super) fn foreign_bundle_set(&mut self, bundle: &Bundle, older: bool, now: Timestamp) -> Decision {
        if self.check_foreign_bundle_set(bundle, older, now)? == Freshness::Same {
            return already();
        }
        let stranger = self.private.strangers.entry(bundle.trust_domain.clone()).or_insert(Stranger {
            federation: None,
            since: now,
            bundle: None,
            changed: None,
        });
        stranger.bundle = Some(bundle.clone());
        stranger.changed = Some(now);
        Ok((Answer::Done, Vec::new()))
    }

    /// Whether that bundle could be set by hand now, and whether that would change anything.
    pub fn check_foreign_bundle_set(
        &self,
        bundle: &Bundle,
        older: bool,
        now: Timestamp,
    ) -> Result<Freshness, Refusal> {
        let trust_domain = &bundle.trust_domain;
        self.check_stranger(trust_domain)?;
        check_bundle(trust_domain, bundle)?;
        if bundle.authorities.is_empty() {
            return Err(Refusal::Invalid(format!("the bundle has no X.509 authority of {trust_domain}")));
        }
        if bundle.authorities.iter().all(|authority| authority.not_after <= now) {
            return Err(Refusal::Invalid(format!(
                "every authority in the bundle of {trust_domain} has expired"
            )));
        }
        let kept = self.private.strangers.get(trust_domain);
        if kept.is_none() {
            bounded("foreign trust domains", self.private.strangers.len(), MAX_STRANGERS)?;
        }
        match compare(kept.and_then(|stranger| stranger.bundle.as_ref()), bundle) {
            Ok(freshness) => Ok(freshness),
            Err(_) if older => Ok(Freshness::Newer),
            Err(stale) => Err(Refusal::Precondition(format!(
                "{stale}; if you mean to go back to it: --allow-lower-sequence"
            ))),
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
            return Err(Refusal::Invalid(format!(
                "{trust_domain} is this cluster's own trust domain: its authorities are replaced with hanse trust rotate"
            )));
        }
        match self.view.peer_of(trust_domain) {
            Some(peer) => Err(Refusal::Precondition(format!(
                "{trust_domain} is the trust domain of {0}, which is joined: its bundle comes with its session and goes with hanse cluster leave {0}",
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

impl Dependents {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Restrict => "restrict",
            Self::Dissociate => "dissociate",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Dependents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
