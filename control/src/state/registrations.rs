//! Commands about registrations: who may be what, on which hosts, until when.

use std::collections::BTreeSet;
use std::sync::Arc;

use hanse_federation::Change;
use hanse_identity::name::MemberRole;
use hanse_identity::{AgentScope, Registration, ServiceName, SpiffeId, Timestamp};

use super::catalog::empty_service;
use super::{Decision, MAX_PER_REGISTRATION, MAX_REGISTRATIONS, MAX_SERVICES, State, already, bounded};
use crate::command::{Answer, Refusal};

/// Most registrations that one Command makes.
pub const MAX_REGISTRATIONS_AT_ONCE: usize = 1_000;

/// The key of a registration. `*` sorts before every name.
pub(super) fn registration_key(id: &SpiffeId, agent: &AgentScope) -> String {
    format!("{id} {agent}")
}

impl State {
    pub(super) fn workload_register(&mut self, new: &Registration, now: Timestamp) -> Decision {
        self.check_registration(new, now)?;
        let endpoint = self.addressed(new)?;
        let key = registration_key(&new.id, &new.agent);
        let before = self.private.registrations.get(&key);
        if before.is_some_and(|before| **before == *new) {
            return already();
        }
        let added: Vec<&ServiceName> =
            new.services.iter().filter(|s| !self.view.services.contains_key(*s)).collect();
        if !added.is_empty() {
            bounded("services", self.view.services.len() + added.len() - 1, MAX_SERVICES)?;
        }
        if before.is_none() {
            bounded("registrations", self.private.registrations.len(), MAX_REGISTRATIONS)?;
        }
        let removed: BTreeSet<ServiceName> =
            before.map(|b| b.services.difference(&new.services).cloned().collect()).unwrap_or_default();
        self.private.registrations.insert(key, Arc::new(new.clone()));
        let mut changes = Vec::new();
        for name in &new.services {
            let entry = self.view.services.get(name);
            if entry.is_some_and(|e| e.identities.contains(&new.id)) {
                continue;
            }
            let mut entry = entry.cloned().unwrap_or_else(|| empty_service(name));
            entry.identities.insert(new.id.clone());
            changes.push(Change::ServicePut(entry));
        }
        changes.extend(self.no_longer_allowed(&new.id, &removed));
        changes.extend(self.readdressed(&new.id, &new.agent, endpoint));
        Ok((Answer::Done, changes))
    }

    fn check_registration(&self, new: &Registration, now: Timestamp) -> Result<(), Refusal> {
        let here = &self.view.trust_domain;
        if new.id.trust_domain() != here {
            return Err(Refusal::NotAllowed(format!("{} is not of trust domain {here}", new.id)));
        }
        match new.id.as_member() {
            None if new.id.path().starts_with("/hanse") => {
                return Err(Refusal::NotAllowed(format!(
                    "{} is below /hanse, which is the mesh's own",
                    new.id
                )));
            }
            Some((MemberRole::Gateway, _)) if new.admin || new.downstream => {
                return Err(Refusal::Invalid(
                    "a gateway is neither an administrator nor a nested issuer".into(),
                ));
            }
            Some((MemberRole::Gateway, _)) if new.services.is_empty() => {}
            Some((MemberRole::Gateway, _)) => {
                return Err(Refusal::Invalid("a gateway is registered without services".into()));
            }
            Some((role, _)) => {
                let role = role.as_str();
                return Err(Refusal::NotAllowed(format!(
                    "{} is a member ({role}), it cannot be registered",
                    new.id
                )));
            }
            None if new.id.path().is_empty() => {
                return Err(Refusal::Invalid("a workload's SPIFFE ID has a path".into()));
            }
            None => {}
        }
        if (new.admin || new.downstream) && new.agent == AgentScope::Any {
            let whose = if new.admin { "an administrator's" } else { "a nested issuer's" };
            let why = format!("{whose} registration names its agents: else every host could vouch for it");
            return Err(Refusal::Invalid(why));
        }
        new.check(now).map_err(|e| Refusal::Invalid(e.to_string()))?;
        if new.selectors.len().max(new.services.len()) > MAX_PER_REGISTRATION {
            return Err(Refusal::Limit(format!(
                "{MAX_PER_REGISTRATION} selectors and services per registration"
            )));
        }
        // The agent need not have joined: a host may be prepared before it is switched on.
        Ok(())
    }

    /// All of them or none. Each is decided on what those before it have made.
    pub(super) fn workload_apply(&mut self, registrations: &[Registration], now: Timestamp) -> Decision {
        if registrations.len() > MAX_REGISTRATIONS_AT_ONCE {
            return Err(Refusal::Limit(format!("{MAX_REGISTRATIONS_AT_ONCE} registrations at once")));
        }
        let mut keys = BTreeSet::new();
        for new in registrations {
            if !keys.insert(registration_key(&new.id, &new.agent)) {
                return Err(Refusal::Invalid(format!("{} on agent {} is there twice", new.id, new.agent)));
            }
        }
        let before = self.view.clone();
        let replaced: Vec<(String, Option<Arc<Registration>>)> = keys
            .into_iter()
            .map(|key| (key.clone(), self.private.registrations.get(&key).cloned()))
            .collect();
        let mut all = Vec::new();
        let mut refused = None;
        for new in registrations {
            match self.workload_register(new, now) {
                Ok((_, changes)) => {
                    changes.iter().for_each(|change| self.view.apply(change));
                    all.extend(changes);
                }
                Err(refusal) => {
                    refused = Some(named(new, refusal));
                    break;
                }
            }
        }
        let changed = replaced.iter().any(|(key, old)| self.private.registrations.get(key) != old.as_ref());
        // The View changes when the caller folds in the Changes.
        self.view = before;
        if let Some(refusal) = refused {
            for (key, old) in replaced {
                match old {
                    Some(old) => self.private.registrations.insert(key, old),
                    None => self.private.registrations.remove(&key),
                };
            }
            return Err(refusal);
        }
        Ok((if changed { Answer::Done } else { Answer::Already }, all))
    }

    pub(super) fn workload_delete(&mut self, id: &SpiffeId, agent: &AgentScope) -> Decision {
        let key = registration_key(id, agent);
        let there = self.private.registrations.contains_key(&key);
        let Some(gone) = there.then(|| self.private.registrations.remove(&key)).flatten() else {
            return Err(Refusal::NotFound { what: format!("a registration of {id} on agent {agent}") });
        };
        let mut changes = self.no_longer_allowed(id, &gone.services);
        changes.extend(self.readdressed(id, agent, None));
        Ok((Answer::Done, changes))
    }

    /// Only those whose end has come by the proposer's clock; the others stay.
    pub(super) fn workload_lapse(&mut self, keys: &[(SpiffeId, AgentScope)], now: Timestamp) -> Decision {
        let before = self.view.clone();
        let (mut lapsed, mut all) = (false, Vec::new());
        for (id, agent) in keys {
            let known = self.private.registrations.get(&registration_key(id, agent));
            if known.and_then(|r| r.expires).is_none_or(|at| at > now) {
                continue;
            }
            let (_, changes) = self.workload_delete(id, agent).expect("it has just been found");
            changes.iter().for_each(|change| self.view.apply(change));
            all.extend(changes);
            lapsed = true;
        }
        self.view = before;
        // One without services changes nothing of the View, and is gone all the same.
        Ok((if lapsed { Answer::Done } else { Answer::Already }, all))
    }

    /// Registrations whose end has come, at most as many as one Command takes.
    pub fn lapsed_registrations(&self, now: Timestamp) -> Vec<(SpiffeId, AgentScope)> {
        let over = |r: &&Arc<Registration>| r.expires.is_some_and(|at| at <= now);
        let keys = self.private.registrations.values().filter(over);
        keys.map(|r| (r.id.clone(), r.agent.clone())).take(MAX_REGISTRATIONS_AT_ONCE).collect()
    }
}

/// Which registration of several was refused.
fn named(registration: &Registration, refusal: Refusal) -> Refusal {
    let which = |why: String| format!("{} on agent {}: {why}", registration.id, registration.agent);
    match refusal {
        Refusal::NotFound { what } => Refusal::NotFound { what },
        Refusal::Invalid(why) => Refusal::Invalid(which(why)),
        Refusal::Precondition(why) => Refusal::Precondition(which(why)),
        Refusal::NotAllowed(why) => Refusal::NotAllowed(which(why)),
        Refusal::Limit(why) => Refusal::Limit(which(why)),
    }
}

#[cfg(test)]
mod tests;
