//! Commands about what is in force: policies, revocations, authorities.

use hanse_federation::Change;
use hanse_federation::policy::{PolicyDocument, PolicyKey};
use hanse_identity::{
    AuthorityCertificate, Bundle, Crl, NodeName, Reason, Revocation, RevocationId, RevocationTarget,
    Timestamp,
};

use super::{
    Decision, MAX_AUTHORITIES, MAX_POLICIES, MAX_REVOCATIONS, MAX_TEXT_BYTES, State, already, bounded, done,
    not_found,
};
use crate::command::{Answer, Proposal, Refusal};

impl State {
    /// All or nothing. What was there before keeps the time of its making.
    pub(super) fn policy_apply(&self, documents: &[PolicyDocument], now: Timestamp) -> Decision {
        let mut changes: Vec<Change> = Vec::new();
        let mut keys = std::collections::BTreeSet::new();
        let mut count = self.view.policies.len();
        for document in documents {
            let key = document.key();
            if !keys.insert(key.clone()) {
                return Err(Refusal::Invalid(format!("{} {} is there twice", key.kind, key.name)));
            }
            let before = self.view.policies.get(&key);
            let document = PolicyDocument { created: before.map_or(now, |b| b.created), ..document.clone() };
            if before == Some(&document) {
                continue;
            }
            if before.is_none() {
                bounded("policy documents", count, MAX_POLICIES)?;
                count += 1;
            }
            changes.push(Change::PolicyPut(Box::new(document)));
        }
        done(changes)
    }

    /// All or nothing.
    pub(super) fn policy_delete(&self, keys: &[PolicyKey]) -> Decision {
        let policies = &self.view.policies;
        for key in keys {
            if !policies.contains_key(key) {
                let names = policies.keys().filter(|k| k.kind == key.kind).map(|k| &k.name);
                return Err(not_found(&key.kind.to_string(), &key.name, names));
            }
        }
        let keys: std::collections::BTreeSet<&PolicyKey> = keys.iter().collect();
        done(keys.into_iter().cloned().map(Change::PolicyGone).collect())
    }

    pub(super) fn revoke(
        &self,
        index: u64,
        proposal: &Proposal,
        target: &RevocationTarget,
        reason: Reason,
        note: &str,
        expires: Option<Timestamp>,
    ) -> Decision {
        let own = &self.view.trust_domain;
        if note.len() > MAX_TEXT_BYTES {
            return Err(Refusal::Invalid(format!("the note is longer than {MAX_TEXT_BYTES} bytes")));
        }
        let expires = match target {
            RevocationTarget::Serial(_) => match (reason, expires) {
                (Reason::Hold, _) => {
                    return Err(Refusal::Invalid(
                        "a hold is for an identity, a certificate is revoked for good".into(),
                    ));
                }
                (_, Some(at)) if at <= proposal.now => {
                    return Err(Refusal::Invalid(format!(
                        "the revocation would lapse at {at}, which has passed"
                    )));
                }
                (_, at) => at,
            },
            // An identity has no last certificate: it stays until a hold on it is lifted.
            RevocationTarget::Identity(id) if id.trust_domain() == own => None,
            RevocationTarget::Identity(id) => {
                let Some(peer) = self.view.peer_of(id.trust_domain()) else {
                    return Err(Refusal::NotFound { what: format!("trust domain {}", id.trust_domain()) });
                };
                if reason != Reason::Hold {
                    let cluster = &peer.record.cluster;
                    return Err(Refusal::NotAllowed(format!(
                        "{id} is of cluster {cluster}: revoke it there; here it can only be put on hold"
                    )));
                }
                None
            }
        };
        let covers = |r: &&Revocation| {
            let enough = r.reason != Reason::Hold || reason == Reason::Hold;
            r.target == *target && r.id.origin == *own && enough
        };
        if let Some(known) = self.view.revocations.iter().find(covers) {
            return Ok((Answer::Revoked(known.id.clone()), Vec::new()));
        }
        // Our own only: what peers have told must not keep us from revoking.
        let ours = self.view.revocations.iter().filter(|r| r.id.origin == *own).count();
        bounded("revocations", ours, MAX_REVOCATIONS)?;
        let id = RevocationId { number: index, origin: own.clone() };
        let mut changes = vec![Change::Revoked(Revocation {
            id: id.clone(),
            target: target.clone(),
            reason,
            note: note.to_owned(),
            actor: proposal.actor.clone(),
            at: proposal.now,
            expires,
        })];
        if let RevocationTarget::Identity(identity) = target {
            changes.extend(self.silenced(identity));
        }
        Ok((Answer::Revoked(id), changes))
    }

    pub(super) fn lift(&self, id: &RevocationId) -> Decision {
        let Some(revocation) = self.view.revocations.get(id) else {
            return Err(Refusal::NotFound { what: format!("revocation {id}") });
        };
        if id.origin != self.view.trust_domain {
            return Err(Refusal::NotAllowed(format!("{id} was ordered by {}; lift it there", id.origin)));
        }
        if !revocation.can_be_lifted() {
            return Err(Refusal::Precondition(format!(
                "{id} is no hold on an identity; it cannot be lifted"
            )));
        }
        let mut changes = vec![Change::Unrevoked(id.clone())];
        let still = |r: &hanse_identity::Revocation| r.id != *id && r.target == revocation.target;
        if let RevocationTarget::Identity(identity) = &revocation.target
            && !self.view.revocations.iter().any(still)
        {
            changes.extend(self.restored(identity));
        }
        done(changes)
    }

    /// Only those whose time has passed by the proposer's clock; the others stay.
    pub(super) fn lapse(&self, ids: &[RevocationId], now: Timestamp) -> Decision {
        let lapsed = |id: &&RevocationId| {
            self.view.revocations.get(id).and_then(|r| r.expires).is_some_and(|at| at <= now)
        };
        done(ids.iter().filter(lapsed).cloned().map(Change::Unrevoked).collect())
    }

    pub(super) fn authority_publish(&self, node: &NodeName, certificate: &AuthorityCertificate) -> Decision {
        let mut nodes = self.private.nodes.values().map(|n| &n.name);
        if !nodes.clone().any(|n| n == node) {
            return Err(not_found("node", node, &mut nodes));
        }
        let mut bundle = self.own_bundle();
        let authorities = &mut bundle.authorities;
        if authorities.contains(certificate) {
            return already();
        }
        let same_key = authorities.iter().position(|a| a.key_id == certificate.key_id);
        let others = authorities.iter().enumerate().filter(|(i, _)| Some(*i) != same_key);
        if others.into_iter().any(|(_, a)| a.subject == certificate.subject) {
            let subject = &certificate.subject;
            return Err(Refusal::Precondition(format!("another authority has the subject {subject}")));
        }
        match same_key {
            Some(position) => authorities[position] = certificate.clone(),
            None => {
                bounded("authorities", authorities.len(), MAX_AUTHORITIES)?;
                authorities.push(certificate.clone());
            }
        }
        bundle.sequence += 1;
        done(vec![Change::BundlePut(bundle)])
    }

    /// The cluster's own bundle as it stands.
    pub(super) fn own_bundle(&self) -> Bundle {
        let own = &self.view.trust_domain;
        let none = || Bundle::new(own.clone(), 0, Vec::new());
        self.view.bundles.get(own).cloned().unwrap_or_else(none)
    }

    /// Of an authority in the own bundle, signed by it, and newer than the one before.
    pub(super) fn crl_publish(&self, crl: &Crl) -> Decision {
        let own = &self.view.trust_domain;
        let authorities = self.view.bundles.get(own).map(|b| b.authorities.as_slice()).unwrap_or_default();
        let Some(authority) = authorities.iter().find(|a| a.key_id == crl.authority) else {
            return Err(Refusal::NotFound { what: format!("an authority with key {}", crl.authority) });
        };
        if let Some(known) = self.view.crls.get(own).and_then(|crls| crls.get(&crl.authority)) {
            if known == crl {
                return already();
            }
            if crl.number <= known.number {
                let (number, known) = (crl.number, known.number);
                return Err(Refusal::Precondition(format!(
                    "revocation list {number} is not newer than {known}, which is published"
                )));
            }
        }
        crl.check(authority).map_err(|e| Refusal::Invalid(format!("revocation list: {e}")))?;
        done(vec![Change::CrlPut(own.clone(), crl.clone())])
    }
}
