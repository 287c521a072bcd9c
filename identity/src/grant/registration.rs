//! Registrations: which identity whatever matches some selectors on some hosts is given.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Evidence, MAX_LIFETIME, MIN_LIFETIME, Selector};
use crate::name::{NameError, NodeName, ServiceName, SpiffeId, TrustDomain};
use crate::time::Timestamp;

/// Most foreign trust domains that one registration names.
pub const MAX_FEDERATES_WITH: usize = 64;
/// Longest hint, in bytes (SPIFFE Workload API §8 allows 1024).
pub const MAX_HINT_BYTES: usize = 1024;

/// On which hosts a registration holds: one agent's, or every agent's (`*`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AgentScope {
    /// Every agent of the cluster, those that join later too.
    Any,
    One(NodeName),
}

/// Who may have an identity: the agent that vouches, and the selectors of which all must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub id: SpiffeId,
    /// The agent on whose host the workload runs, or `*`.
    pub agent: AgentScope,
    pub selectors: BTreeSet<Selector>,
    /// Services that a proxy with this identity may register endpoints of.
    #[serde(default)]
    pub services: BTreeSet<ServiceName>,
    /// SVID lifetime, seconds; 0 = the cluster's default.
    #[serde(default)]
    pub ttl_seconds: u64,
    /// Where a workload that speaks SPIFFE mutual TLS itself, without a proxy of ours, serves its services: the
    /// registration stands for the announcement that nobody makes.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// Trust domains that are no joined cluster's and whose bundles the workload is given too. Those of joined
    /// clusters are always given.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub federates_with: BTreeSet<TrustDomain>,
    /// How a workload with several identities tells them apart (SPIFFE Workload API §8); empty = no hint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// When it stops to give its identity; no SVID that it gave is valid longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Whether its SVIDs are an administrator's credential: with the roles that were bound to the identity, and none else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    /// Whether it may have an intermediate authority of the trust domain for a key of its own, and issue SVIDs by it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downstream: bool,
}

/// Why a registration is not a good one, whoever made it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    #[error("a registration needs at least one selector")]
    NoSelector,
    #[error("this version does not know the selector {0}: it would match nothing; known: {kinds}", kinds = super::selector::KINDS)]
    UnknownSelector(Selector),
    #[error(
        "a lifetime of {0} s is out of bounds: an SVID lives {min} s to {max} h; leave it out for the cluster's default",
        min = MIN_LIFETIME.as_secs(),
        max = MAX_LIFETIME.as_secs() / 3600
    )]
    Lifetime(u64),
    #[error("the registration would expire at {0}, which has passed")]
    Expired(Timestamp),
    #[error("the hint is longer than {MAX_HINT_BYTES} bytes")]
    LongHint,
    #[error("the hint has a control character")]
    HintText,
    #[error("{0} is the workload's own trust domain: it has that bundle already")]
    FederatesWithItself(TrustDomain),
    #[error("a registration names at most {MAX_FEDERATES_WITH} foreign trust domains")]
    FederatesWithTooMany,
}

impl AgentScope {
    pub fn covers(&self, agent: &NodeName) -> bool {
        match self {
            Self::Any => true,
            Self::One(name) => name == agent,
        }
    }

    /// The agent, if it is one in particular.
    pub fn name(&self) -> Option<&NodeName> {
        match self {
            Self::Any => None,
            Self::One(name) => Some(name),
        }
    }
}

impl Registration {
    /// A registration that says no more than who and on what evidence.
    pub fn new(
        id: SpiffeId,
        agent: impl Into<AgentScope>,
        selectors: impl IntoIterator<Item = Selector>,
    ) -> Self {
        Self {
            id,
            agent: agent.into(),
            selectors: selectors.into_iter().collect(),
            services: BTreeSet::new(),
            ttl_seconds: 0,
            address: None,
            federates_with: BTreeSet::new(),
            hint: String::new(),
            expires: None,
            admin: false,
            downstream: false,
        }
    }

    /// Whether all selectors of this registration are among the evidence, on the right agent.
    pub fn matches(&self, evidence: &Evidence) -> bool {
        self.agent.covers(&evidence.agent)
            && !self.selectors.is_empty()
            && self.selectors.is_subset(&evidence.selectors)
    }

    /// The lifetime of its SVIDs; the cluster's default where it does not say.
    pub fn lifetime(&self) -> Duration {
        match self.ttl_seconds {
            0 => super::DEFAULT_LIFETIME,
            seconds => Duration::from_secs(seconds),
        }
    }

    /// Whether it is one that may be made at `now`.
    pub fn check(&self, now: Timestamp) -> Result<(), RegistrationError> {
        use RegistrationError::*;
        if self.selectors.is_empty() {
            return Err(NoSelector);
        }
        if let Some(selector) = self.selectors.iter().find(|s| s.is_unknown()) {
            return Err(UnknownSelector(selector.clone()));
        }
        let bounds = MIN_LIFETIME.as_secs()..=MAX_LIFETIME.as_secs();
        if self.ttl_seconds != 0 && !bounds.contains(&self.ttl_seconds) {
            return Err(Lifetime(self.ttl_seconds));
        }
        if let Some(at) = self.expires.filter(|at| *at <= now) {
            return Err(Expired(at));
        }
        if self.hint.len() > MAX_HINT_BYTES {
            return Err(LongHint);
        }
        if self.hint.chars().any(char::is_control) {
            return Err(HintText);
        }
        if self.federates_with.contains(self.id.trust_domain()) {
            return Err(FederatesWithItself(self.id.trust_domain().clone()));
        }
        if self.federates_with.len() > MAX_FEDERATES_WITH {
            return Err(FederatesWithTooMany);
        }
        Ok(())
    }
}

impl From<NodeName> for AgentScope {
    fn from(name: NodeName) -> Self {
        Self::One(name)
    }
}

impl std::str::FromStr for AgentScope {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "*" => Ok(Self::Any),
            name => name.parse().map(Self::One),
        }
    }
}

impl std::fmt::Display for AgentScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.pad("*"),
            Self::One(name) => name.fmt(f),
        }
    }
}

impl Serialize for AgentScope {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AgentScope {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
