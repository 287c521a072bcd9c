//! Revocations: what is no longer to be believed, since when, and until when that has to be remembered.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{SpiffeId, TrustDomain};
use crate::svid::{Serial, SvidFacts};
use crate::time::Timestamp;

/// `r-<number>@<trust domain>`: unique in the federation; the number is the committing cluster's Raft index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevocationId {
    pub number: u64,
    pub origin: TrustDomain,
}

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevocationTarget {
    /// One certificate of the origin's trust domain.
    Serial(Serial),
    /// Every SVID of that ID issued up to `Revocation::at`, and any new one.
    Identity(SpiffeId),
}

/// Why (RFC 5280 §5.3.1, the reasons that make sense here).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Unspecified,
    KeyCompromise,
    Superseded,
    Cessation,
    Hold,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::Superseded => "superseded",
            Self::Cessation => "cessation",
            Self::Hold => "hold",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One revocation, as committed by the cluster whose trust domain it concerns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub id: RevocationId,
    pub target: RevocationTarget,
    pub reason: Reason,
    #[serde(default)]
    pub note: String,
    /// SPIFFE ID of who ordered it.
    pub actor: String,
    /// When it was ordered; for an identity also the watermark.
    pub at: Timestamp,
    /// When no certificate that it could match is valid any more; `None` = stays until lifted.
    pub expires: Option<Timestamp>,
}

/// All revocations in force, indexed for the two questions that are asked of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    by_id: BTreeMap<RevocationId, Revocation>,
    by_serial: BTreeMap<(TrustDomain, Serial), Vec<RevocationId>>,
    by_identity: BTreeMap<SpiffeId, Vec<RevocationId>>,
}

impl Revocation {
    /// Only an identity on hold can be lifted.
    pub fn can_be_lifted(&self) -> bool {
        self.reason == Reason::Hold && matches!(self.target, RevocationTarget::Identity(_))
    }

    /// The trust domain whose names it concerns.
    pub fn trust_domain(&self) -> &TrustDomain {
        match &self.target {
            RevocationTarget::Serial(_) => &self.id.origin,
            RevocationTarget::Identity(id) => id.trust_domain(),
        }
    }

    /// Whether it hits this SVID.
    pub fn hits(&self, facts: &SvidFacts) -> bool {
        match &self.target {
            RevocationTarget::Serial(serial) => {
                *facts.id.trust_domain() == self.id.origin && facts.serial == *serial
            }
            RevocationTarget::Identity(id) => facts.id == *id,
        }
    }
}

impl Revocations {
    /// Adds one; the same id again replaces it.
    pub fn insert(&mut self, revocation: Revocation) {
        self.remove(&revocation.id.clone());
        match &revocation.target {
            RevocationTarget::Serial(serial) => {
                let key = (revocation.id.origin.clone(), serial.clone());
                self.by_serial.entry(key).or_default().push(revocation.id.clone());
            }
            RevocationTarget::Identity(id) => {
                self.by_identity.entry(id.clone()).or_default().push(revocation.id.clone());
            }
        }
        self.by_id.insert(revocation.id.clone(), revocation);
    }

    /// Takes one away: lifted or lapsed.
    pub fn remove(&mut self, id: &RevocationId) -> Option<Revocation> {
        let revocation = self.by_id.remove(id)?;
        match &revocation.target {
            RevocationTarget::Serial(serial) => {
                forget(&mut self.by_serial, &(id.origin.clone(), serial.clone()), id);
            }
            RevocationTarget::Identity(identity) => forget(&mut self.by_identity, identity, id),
        }
        Some(revocation)
    }

    pub fn get(&self, id: &RevocationId) -> Option<&Revocation> {
        self.by_id.get(id)
    }

    /// In the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Revocation> {
        self.by_id.values()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The revocation that hits this SVID, if any.
    pub fn check(&self, facts: &SvidFacts) -> Option<&Revocation> {
        if self.by_id.is_empty() {
            return None;
        }
        let serial = (facts.id.trust_domain().clone(), facts.serial.clone());
        let by_serial = self.by_serial.get(&serial).and_then(|ids| self.by_id.get(ids.first()?));
        by_serial.or_else(|| self.of_identity(&facts.id))
    }

    /// The revocation because of which no new SVID of this identity is issued, if any.
    pub fn of_identity(&self, id: &SpiffeId) -> Option<&Revocation> {
        self.by_identity.get(id).and_then(|ids| ids.first()).and_then(|id| self.by_id.get(id))
    }

    /// Those that `now` no longer need to be remembered.
    pub fn lapsed(&self, now: Timestamp) -> Vec<RevocationId> {
        let lapsed = |r: &&Revocation| r.expires.is_some_and(|at| at <= now);
        self.iter().filter(lapsed).map(|r| r.id.clone()).collect()
    }
}

/// Takes `id` out of an index; what another revocation says about the same key stays.
fn forget<K: Ord>(index: &mut BTreeMap<K, Vec<RevocationId>>, key: &K, id: &RevocationId) {
    if let Some(ids) = index.get_mut(key) {
        ids.retain(|i| i != id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

impl Serialize for Revocations {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.by_id.values())
    }
}

impl<'de> Deserialize<'de> for Revocations {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let mut revocations = Self::default();
        Vec::<Revocation>::deserialize(d)?.into_iter().for_each(|r| revocations.insert(r));
        Ok(revocations)
    }
}

impl fmt::Display for RevocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("r-{}@{}", self.number, self.origin))
    }
}

impl FromStr for RevocationId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = "is not of the form r-<number>@<trust domain>";
        let (number, origin) = text.strip_prefix("r-").and_then(|rest| rest.split_once('@')).ok_or(shape)?;
        let number = number.parse().map_err(|_| shape)?;
        Ok(Self { number, origin: origin.parse().map_err(|_| shape)? })
    }
}

impl Serialize for RevocationId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RevocationId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for RevocationTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Identity(id) => write!(f, "{id}"),
        }
    }
}

#[cfg(test)]
mod tests;
