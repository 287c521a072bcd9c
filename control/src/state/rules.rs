//! Commands about what is in force: policies, authorities.

use std::collections::BTreeSet;

use hanse_federation::Change;
use hanse_federation::policy::authentication::KeySource;
use hanse_federation::policy::{PolicyDocument, PolicyKey, PolicySpec};
use hanse_identity::jwt::user::JwkSet;
use hanse_identity::name::MemberRole;
use hanse_identity::{AuthorityCertificate, AuthorityState, Bundle, Crl, NodeName, SpiffeId, Timestamp};

use super::{
    Decision, MAX_AUTHORITIES, MAX_ISSUER_KEYS, MAX_POLICIES, State, already, bounded, done, not_found,
};
use crate::command::Refusal;

/// Documents that one Command removes.
const MAX_LAPSED_AT_ONCE: usize = 1_000;

fn is_over(document: &PolicyDocument, now: Timestamp) -> bool {
    document.ends().is_some_and(|end| end <= now)
}

impl State {
    /// All or nothing. What was there before keeps the time of its making, unless it ends: changed, or
    /// when it is over, it begins anew.
    pub(super) fn policy_apply(&self, documents: &[PolicyDocument], now: Timestamp) -> Decision {
        let mut changes: Vec<Change> = Vec::new();
        let mut keys = BTreeSet::new();
        let mut count = self.view.policies.len();
        for document in documents {
            let key = document.key();
            if !keys.insert(key.clone()) {
                return Err(Refusal::Invalid(format!("{} {} is there twice", key.kind, key.name)));
            }
            if let PolicySpec::PeerAuthentication(spec) = &document.spec
                && let Some((_, why)) = spec.trouble(now)
            {
                return Err(Refusal::Invalid(format!("{} {}: {why}", key.kind, key.name)));
            }
            let before = self.view.policies.get(&key);
            let goes_on =
                |b: &&PolicyDocument| b.ends().is_none() || b.spec == document.spec && !is_over(b, now);
            let kept = before.filter(goes_on);
            let document = PolicyDocument { created: kept.map_or(now, |b| b.created), ..document.clone() };
            if before == Some(&document) {
                continue;
            }
            if before.is_none() {
                bounded("policy documents", count, MAX_POLICIES)?;
                count += 1;
            }
            changes.push(Change::PolicyPut(Box::new(document)));
        }
        self.bounded_sources(documents, &keys)?;
        done(changes)
    }

    /// A source more than are fetched would never be: its documents would believe nobody.
    fn bounded_sources(
        &self,
        documents: &[PolicyDocument],
        keys: &BTreeSet<PolicyKey>,
    ) -> Result<(), Refusal> {
        if KeySource::named(documents).is_empty() {
            return Ok(());
        }
        let others = self.view.policies.iter().filter(|(key, _)| !keys.contains(key)).map(|(_, d)| d);
        let after = KeySource::named(others.chain(documents)).len();
        // What is there already may get fewer.
        if after > MAX_ISSUER_KEYS && after > KeySource::all(&self.view).len() {
            return Err(Refusal::Limit(format!(
                "{MAX_ISSUER_KEYS} sources of issuers' keys (jwksUri, each with its jwksRoots): with these documents there \
                 would be {after}"
            )));
        }
        Ok(())
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
        let keys: BTreeSet<&PolicyKey> = keys.iter().collect();
        done(keys.into_iter().cloned().map(Change::PolicyGone).collect())
    }

    /// Only those whose end has come by the proposer's clock; the others stay.
    pub(super) fn policy_lapse(&self, keys: &[PolicyKey], now: Timestamp) -> Decision {
        let over = |key: &&PolicyKey| self.view.policies.get(*key).is_some_and(|d| is_over(d, now));
        let keys: BTreeSet<&PolicyKey> = keys.iter().filter(over).collect();
        done(keys.into_iter().cloned().map(Change::PolicyGone).collect())
    }

    /// Only of a source that a document names, and away only if none does.
    pub(super) fn issuer_keys(&self, source: &str, jwks: Option<&String>) -> Decision {
        let named = KeySource::all(&self.view).keys().any(|named| named.id() == source);
        let kept = &self.view.issuer_keys;
        match (named, jwks, kept.get(source)) {
            (true, Some(jwks), known) if known != Some(jwks) => {
                JwkSet::parse(jwks).map_err(|e| Refusal::Invalid(e.to_string()))?;
                if known.is_none() {
                    bounded("key sets of issuers", kept.len(), MAX_ISSUER_KEYS)?;
                }
                done(vec![Change::IssuerKeysPut(source.to_owned(), jwks.clone())])
            }
            (false, None, Some(_)) => done(vec![Change::IssuerKeysGone(source.to_owned())]),
            _ => already(),
        }
    }

    /// Documents whose end has come, at most as many as one Command takes.
    pub fn lapsed_policies(&self, now: Timestamp) -> Vec<PolicyKey> {
        let over = self.view.policies.values().filter(|document| is_over(document, now));
        over.map(PolicyDocument::key).take(MAX_LAPSED_AT_ONCE).collect()
    }

    pub(super) fn authority_publish(
        &mut self,
        node: &NodeName,
        certificate: &AuthorityCertificate,
        rotation: Option<u64>,
    ) -> Decision {
        let mut nodes = self.private.nodes.values().map(|n| &n.name);
        if !nodes.clone().any(|n| n == node) {
            return Err(not_found("node", node, &mut nodes));
        }
        // A revoked node must not get back in by way of a new authority.
        let id = SpiffeId::member(&self.view.trust_domain, MemberRole::Node, node);
        if let Some(revocation) = self.view.revocations.of_identity(&id) {
            return Err(Refusal::NotAllowed(format!("node {node} is revoked by {}", revocation.id)));
        }
        let mut bundle = self.own_bundle();
        if let Some(revocation) = self.authority_revocation(&certificate.key_id) {
            let (key, id) = (&certificate.key_id, &revocation.id);
            return Err(Refusal::NotAllowed(format!("authority {key} is revoked by {id}")));
        }
        let authorities = &mut bundle.authorities;
        if authorities.contains(certificate) {
            return already();
        }
        if let Some(made_for) = rotation.filter(|id| self.rotating().is_none_or(|r| r.id != *id)) {
            return Err(Refusal::Precondition(format!("it was made for rotation {made_for}, which is over")));
        }
        let prepared = certificate.state == AuthorityState::Prepared && self.private.rotation.is_some();
        if prepared {
            self.may_prepare(node, certificate)?;
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
        if prepared {
            self.prepared(node, certificate.key_id);
        }
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
