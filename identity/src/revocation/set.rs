//! The set of revocations in force, indexed by everything that a handshake knows: no scan per connection.
//!
//! Entries and indexes are shared between copies: a View is copied with every change of it, its revocations rarely.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Revocation, RevocationId, RevocationTarget};
use crate::bundle::KeyId;
use crate::downstream::NestedIssuer;
use crate::name::{SpiffeId, TrustDomain};
use crate::svid::{MAX_CHAIN, Serial, SvidFacts};
use crate::time::Timestamp;

/// All revocations in force.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    by_id: BTreeMap<RevocationId, Arc<Revocation>>,
    index: Arc<Index>,
}

type Ids = BTreeSet<RevocationId>;

/// Which entries are about what.
#[derive(Clone, Debug, Default)]
struct Index {
    /// Nothing of the identity is believed, and nothing new is issued.
    silenced: BTreeMap<SpiffeId, Ids>,
    /// What was issued up to a watermark is not believed.
    reissued: BTreeMap<SpiffeId, Ids>,
    domains: BTreeMap<TrustDomain, Domain>,
}

/// What concerns the certificates of one trust domain.
#[derive(Clone, Debug, Default)]
struct Domain {
    whole: Ids,
    serials: BTreeMap<Serial, Ids>,
    keys: BTreeMap<KeyId, Ids>,
    /// By the first 160 bits of the key's id, in hex: what our certificates have as key identifier (RFC 7093 §2).
    authorities: BTreeMap<String, Ids>,
}

impl PartialEq for Revocations {
    fn eq(&self, other: &Self) -> bool {
        // The indexes follow from the entries. What is shared is equal without being read.
        Arc::ptr_eq(&self.index, &other.index) || self.by_id == other.by_id
    }
}

impl Eq for Revocations {}

impl Revocations {
    /// Adds one; the same id again replaces it.
    pub fn insert(&mut self, revocation: Revocation) {
        self.remove(&revocation.id);
        Arc::make_mut(&mut self.index).each(&revocation, |ids, id| {
            ids.insert(id.clone());
        });
        self.by_id.insert(revocation.id.clone(), Arc::new(revocation));
    }

    /// Takes one away: lifted, lapsed or cleared.
    pub fn remove(&mut self, id: &RevocationId) -> Option<Arc<Revocation>> {
        let revocation = self.by_id.remove(id)?;
        let index = Arc::make_mut(&mut self.index);
        index.each(&revocation, |ids, id| {
            ids.remove(id);
        });
        index.tidy(&revocation);
        Some(revocation)
    }

    pub fn get(&self, id: &RevocationId) -> Option<&Revocation> {
        self.by_id.get(id).map(Arc::as_ref)
    }

    /// In the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Revocation> {
        self.by_id.values().map(Arc::as_ref)
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The revocation that hits this SVID, if any, by what the certificate itself says.
    pub fn check(&self, facts: &SvidFacts) -> Option<&Revocation> {
        self.hitting(facts, &[]).next()
    }

    /// The same for an SVID whose path led over these authorities.
    pub fn check_from(&self, facts: &SvidFacts, authorities: &[KeyId]) -> Option<&Revocation> {
        self.hitting(facts, authorities).next()
    }

    /// Every revocation that hits this SVID; one may come twice.
    pub fn hitting<'r>(
        &'r self,
        facts: &SvidFacts,
        authorities: &[KeyId],
    ) -> impl Iterator<Item = &'r Revocation> + use<'r> {
        let mut places = [None; 4 + MAX_CHAIN];
        places[0] = self.index.silenced.get(&facts.id);
        if let Some(domain) = self.index.domains.get(facts.id.trust_domain()) {
            places[1] = Some(&domain.whole);
            places[2] = domain.serials.get(&facts.serial);
            places[3] = domain.keys.get(&facts.key_id);
            if !domain.authorities.is_empty() {
                let named = facts.authority_key_identifier.clone();
                let keys = named.into_iter().chain(authorities.iter().map(KeyId::prefix));
                for (place, key) in places[4..].iter_mut().zip(keys) {
                    *place = domain.authorities.get(&key);
                }
            }
        }
        let started = facts.not_before;
        let older =
            self.reissued(&facts.id).filter(move |r| r.watermark().is_some_and(|mark| started <= mark));
        places.into_iter().flatten().flatten().filter_map(|id| self.get(id)).chain(older)
    }

    /// Every revocation that hits what this nested issuer of the trust domain has signed; one may come twice. Those of the
    /// authorities above it are among what hits its SVIDs.
    pub fn hitting_issuer<'r>(
        &'r self,
        trust_domain: &TrustDomain,
        issuer: &NestedIssuer,
    ) -> impl Iterator<Item = &'r Revocation> + use<'r> {
        let domain = self.index.domains.get(trust_domain);
        let places = domain.map(|d| [d.serials.get(&issuer.serial), d.keys.get(&issuer.key_id)]);
        places.into_iter().flatten().flatten().flatten().filter_map(|id| self.get(id))
    }

    /// The revocation because of which nothing of this identity is believed and no new SVID of it is issued, if any.
    pub fn of_identity(&self, id: &SpiffeId) -> Option<&Revocation> {
        let whole = self.index.domains.get(id.trust_domain()).and_then(|domain| domain.whole.first());
        let id = whole.or_else(|| self.index.silenced.get(id).and_then(Ids::first))?;
        self.get(id)
    }

    /// The revocation of a trust domain as a whole, if any.
    pub fn of_cluster(&self, trust_domain: &TrustDomain) -> Option<&Revocation> {
        self.index.domains.get(trust_domain)?.whole.first().and_then(|id| self.get(id))
    }

    /// The revocation of what this authority of the trust domain has signed, if any.
    pub fn of_authority(&self, trust_domain: &TrustDomain, key: KeyId) -> Option<&Revocation> {
        let domain = self.index.domains.get(trust_domain)?;
        domain.authorities.get(&key.prefix()).and_then(Ids::first).and_then(|id| self.get(id))
    }

    /// The revocation of this public key in the trust domain, if any.
    pub fn of_key(&self, trust_domain: &TrustDomain, key: KeyId) -> Option<&Revocation> {
        self.index.domains.get(trust_domain)?.keys.get(&key).and_then(Ids::first).and_then(|id| self.get(id))
    }

    /// The revocation that takes this certificate in by its serial number, if any.
    pub fn of_serial(&self, trust_domain: &TrustDomain, serial: &Serial) -> Option<&Revocation> {
        let domain = self.index.domains.get(trust_domain)?;
        domain.serials.get(serial).and_then(Ids::first).and_then(|id| self.get(id))
    }

    /// Revocations of the identity after which new SVIDs are given.
    pub fn reissued<'r>(&'r self, id: &SpiffeId) -> impl Iterator<Item = &'r Revocation> + use<'r> {
        self.index.reissued.get(id).into_iter().flatten().filter_map(|id| self.get(id))
    }

    /// What a new SVID of the identity must start after, so that no revocation takes it for an old one.
    pub fn watermark(&self, id: &SpiffeId) -> Option<Timestamp> {
        self.reissued(id).filter_map(Revocation::watermark).max()
    }

    /// Those that `now` no longer need to be remembered.
    pub fn lapsed(&self, now: Timestamp) -> Vec<RevocationId> {
        let lapsed = |r: &&Revocation| r.expires.is_some_and(|at| at <= now);
        self.iter().filter(lapsed).map(|r| r.id.clone()).collect()
    }
}

impl Index {
    /// Every place where a revocation is indexed.
    fn each(&mut self, revocation: &Revocation, mut change: impl FnMut(&mut Ids, &RevocationId)) {
        let id = &revocation.id;
        if let Some(silenced) = revocation.silences() {
            change(self.silenced.entry(silenced).or_default(), id);
        }
        if let (RevocationTarget::Identity(reissued), true) = (&revocation.target, revocation.reissue) {
            change(self.reissued.entry(reissued.clone()).or_default(), id);
        }
        if let RevocationTarget::Cluster(trust_domain) = &revocation.target {
            change(&mut self.domains.entry(trust_domain.clone()).or_default().whole, id);
        }
        let domain = self.domains.entry(id.origin.clone()).or_default();
        match &revocation.target {
            RevocationTarget::Serial(serial) => change(domain.serials.entry(serial.clone()).or_default(), id),
            RevocationTarget::Key(key) => change(domain.keys.entry(*key).or_default(), id),
            _ => {}
        }
        for serial in &revocation.serials {
            change(domain.serials.entry(serial.clone()).or_default(), id);
        }
        for key in &revocation.authorities {
            change(domain.authorities.entry(key.prefix()).or_default(), id);
        }
    }

    /// Drops the places that a revocation which has gone has left empty.
    fn tidy(&mut self, gone: &Revocation) {
        let drop_empty = |map: &mut BTreeMap<SpiffeId, Ids>, key: &SpiffeId| {
            if map.get(key).is_some_and(BTreeSet::is_empty) {
                map.remove(key);
            }
        };
        if let Some(silenced) = gone.silences() {
            drop_empty(&mut self.silenced, &silenced);
        }
        if let RevocationTarget::Identity(id) = &gone.target {
            drop_empty(&mut self.reissued, id);
        }
        if let Some(domain) = self.domains.get_mut(&gone.id.origin) {
            let own = match &gone.target {
                RevocationTarget::Serial(serial) => Some(serial),
                _ => None,
            };
            for serial in gone.serials.iter().chain(own) {
                if domain.serials.get(serial).is_some_and(BTreeSet::is_empty) {
                    domain.serials.remove(serial);
                }
            }
            domain.keys.retain(|_, ids| !ids.is_empty());
            domain.authorities.retain(|_, ids| !ids.is_empty());
        }
        let concerned = [Some(&gone.id.origin), Some(gone.trust_domain())];
        for trust_domain in concerned.into_iter().flatten() {
            if self.domains.get(trust_domain).is_some_and(Domain::is_empty) {
                self.domains.remove(trust_domain);
            }
        }
    }
}

impl Domain {
    fn is_empty(&self) -> bool {
        self.whole.is_empty()
            && self.serials.is_empty()
            && self.keys.is_empty()
            && self.authorities.is_empty()
    }
}

impl Serialize for Revocations {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Revocations {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut revocations = Self::default();
        Vec::<Revocation>::deserialize(d)?.into_iter().for_each(|r| revocations.insert(r));
        Ok(revocations)
    }
}
