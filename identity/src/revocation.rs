//! Revocations: what is no longer to be believed, since when, and until when that has to be remembered.
//!
//! One `Revocation` is one entry of a cluster's log; `Revocations` is the set in force, indexed for the handshake.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bundle::KeyId;
use crate::downstream::NestedIssuer;
use crate::issue::BACKDATED;
use crate::name::{MemberRole, NodeName, SpiffeId, TrustDomain};
use crate::svid::{Serial, SvidFacts};
use crate::time::Timestamp;

mod set;

pub use set::Revocations;

/// Most serial numbers that one revocation may carry: what an agent or an identity has alive at a time.
pub const MAX_SERIALS: usize = 32_768;
/// Most authorities that one revocation may carry.
pub const MAX_AUTHORITIES: usize = crate::bundle::MAX_AUTHORITIES;

/// `r-<number>@<trust domain>`: unique in the federation; the number is the committing cluster's Raft index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevocationId {
    pub number: u64,
    pub origin: TrustDomain,
}

/// What is revoked. All but `Identity` and `Cluster` are of the origin's own trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevocationTarget {
    /// One certificate.
    Serial(Serial),
    /// Every SVID of that ID and any new one; with `Revocation::reissue`, only those issued up to the watermark.
    Identity(SpiffeId),
    /// Every SVID over that public key (SHA-256 of its SubjectPublicKeyInfo), and any new one over it.
    Key(KeyId),
    /// A host's agent: its own identity, every SVID that was issued through it, and any new one through it.
    Agent(NodeName),
    /// A control node: its own identity, and everything that its authorities have signed or will sign.
    Node(NodeName),
    /// An authority, by its key: everything below it is replaced first. It hits nothing until that is done and
    /// `Revocation::authorities` names the key, and everything below it from then on.
    Authority(KeyId),
    /// A joined cluster as a whole, as its neighbours see it: everything of that trust domain.
    Cluster(TrustDomain),
}

/// What becomes of connections that live already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Closing {
    /// Closed at once.
    #[default]
    Now,
    /// Asked to finish, and closed so many seconds after the revocation was ordered.
    After(u32),
    /// Left alone: only new handshakes are refused.
    Never,
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

/// One revocation, as committed by the cluster that ordered it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub id: RevocationId,
    pub target: RevocationTarget,
    pub reason: Reason,
    #[serde(default)]
    pub note: String,
    /// SPIFFE ID of who ordered it.
    pub actor: String,
    /// When it was ordered, by the clock of the node that took the order.
    pub at: Timestamp,
    /// When no certificate that it could match is valid any more; `None` = stays until lifted or cleared.
    pub expires: Option<Timestamp>,
    /// The live certificates that it hits, as the issuance index had them: those of an agent, which nothing else in
    /// them tells, and those whose issuer's clock ran ahead of the watermark. Also what a CRL needs.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub serials: BTreeSet<Serial>,
    /// The authorities of a revoked control node; a revoked authority, once nothing rests on it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub authorities: BTreeSet<KeyId>,
    /// Of an identity: what was issued up to the watermark is dead, new SVIDs with new keys are given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reissue: bool,
    #[serde(default, skip_serializing_if = "Closing::is_now")]
    pub closing: Closing,
}

impl Closing {
    pub fn is_now(&self) -> bool {
        *self == Self::Now
    }

    /// How much of `now` is left to a connection under a revocation of `at`; `None` = it may stay.
    pub fn left(self, at: Timestamp, now: Timestamp) -> Option<Duration> {
        match self {
            Self::Now => Some(Duration::ZERO),
            Self::After(seconds) => Some((at + Duration::from_secs(u64::from(seconds))).left(now)),
            Self::Never => None,
        }
    }
}

impl Revocation {
    /// With nothing beyond the target: no index entries, no end, connections closed now.
    pub fn new(id: RevocationId, target: RevocationTarget, reason: Reason, at: Timestamp) -> Self {
        Self {
            id,
            target,
            reason,
            note: String::new(),
            actor: String::new(),
            at,
            expires: None,
            serials: BTreeSet::new(),
            authorities: BTreeSet::new(),
            reissue: false,
            closing: Closing::Now,
        }
    }

    /// Only a hold can be lifted, and a single certificate or key is never on hold: a new one costs nothing.
    pub fn can_be_lifted(&self) -> bool {
        self.reason == Reason::Hold && self.target.can_be_held()
    }

    /// The trust domain whose names it concerns.
    pub fn trust_domain(&self) -> &TrustDomain {
        match &self.target {
            RevocationTarget::Identity(id) => id.trust_domain(),
            RevocationTarget::Cluster(trust_domain) => trust_domain,
            RevocationTarget::Serial(_)
            | RevocationTarget::Key(_)
            | RevocationTarget::Agent(_)
            | RevocationTarget::Node(_)
            | RevocationTarget::Authority(_) => &self.id.origin,
        }
    }

    /// The identity that gets no SVID any more because of it, if it is about one.
    pub fn silences(&self) -> Option<SpiffeId> {
        match &self.target {
            RevocationTarget::Identity(id) if !self.reissue => Some(id.clone()),
            RevocationTarget::Agent(name) => Some(SpiffeId::member(&self.id.origin, MemberRole::Agent, name)),
            RevocationTarget::Node(name) => Some(SpiffeId::member(&self.id.origin, MemberRole::Node, name)),
            _ => None,
        }
    }

    /// With `reissue`: the latest `not_before` of a dead SVID. An SVID starts `BACKDATED` before it was issued, so
    /// this is what an SVID says that was issued the moment the revocation was ordered.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.reissue.then(|| self.at - BACKDATED)
    }

    /// Whether it hits this SVID, by what the certificate itself says.
    pub fn hits(&self, facts: &SvidFacts) -> bool {
        self.hits_from(facts, &[])
    }

    /// Whether it hits this SVID, whose path led over these authorities.
    pub fn hits_from(&self, facts: &SvidFacts, authorities: &[KeyId]) -> bool {
        let own = *facts.id.trust_domain() == self.id.origin;
        let listed = own && self.serials.contains(&facts.serial);
        let signed = || {
            let by = |key: &KeyId| {
                authorities.contains(key) || facts.authority_key_identifier.as_deref() == Some(&*key.prefix())
            };
            own && self.authorities.iter().any(by)
        };
        let silenced = || self.silences().is_some_and(|id| id == facts.id);
        listed
            || match &self.target {
                RevocationTarget::Serial(serial) => own && facts.serial == *serial,
                RevocationTarget::Identity(id) => {
                    facts.id == *id && self.watermark().is_none_or(|mark| facts.not_before <= mark)
                }
                RevocationTarget::Key(key) => own && facts.key_id == *key,
                RevocationTarget::Agent(_) => silenced(),
                RevocationTarget::Node(_) => silenced() || signed(),
                RevocationTarget::Authority(_) => signed(),
                RevocationTarget::Cluster(trust_domain) => facts.id.trust_domain() == trust_domain,
            }
    }

    /// Whether it hits what a nested issuer of that trust domain has signed: its certificate, or the key in it.
    pub fn hits_issuer(&self, trust_domain: &TrustDomain, issuer: &NestedIssuer) -> bool {
        let named = match &self.target {
            RevocationTarget::Serial(serial) => *serial == issuer.serial,
            RevocationTarget::Key(key) => *key == issuer.key_id,
            _ => false,
        };
        self.id.origin == *trust_domain && (named || self.serials.contains(&issuer.serial))
    }

    /// Whether `trust_domain` may tell it to others: ordered by itself, about nothing but its own names, and of a size
    /// that fits. As a whole a cluster is revoked by its neighbours, each for itself.
    pub fn is_of(&self, trust_domain: &TrustDomain) -> bool {
        self.id.origin == *trust_domain
            && self.trust_domain() == trust_domain
            && !matches!(self.target, RevocationTarget::Cluster(_))
            && self.is_bounded()
    }

    /// Whether it is of a size that others take.
    pub fn is_bounded(&self) -> bool {
        self.serials.len() <= MAX_SERIALS && self.authorities.len() <= MAX_AUTHORITIES
    }
}

impl RevocationTarget {
    /// Whether there may be a hold on it.
    pub fn can_be_held(&self) -> bool {
        matches!(self, Self::Identity(_) | Self::Agent(_) | Self::Node(_) | Self::Cluster(_))
    }

    /// `serial`, `identity`, `key`, `agent`, `node`, `authority` or `cluster`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Serial(_) => "serial",
            Self::Identity(_) => "identity",
            Self::Key(_) => "key",
            Self::Agent(_) => "agent",
            Self::Node(_) => "node",
            Self::Authority(_) => "authority",
            Self::Cluster(_) => "cluster",
        }
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
            Self::Key(key) => write!(f, "key {key}"),
            Self::Agent(name) => write!(f, "agent {name}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Authority(key) => write!(f, "authority {key}"),
            Self::Cluster(trust_domain) => write!(f, "cluster of {trust_domain}"),
        }
    }
}

#[cfg(test)]
mod tests;
