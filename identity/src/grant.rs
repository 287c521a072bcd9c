//! Grant: evidence and registrations in, a ticket or a refusal out. Only `grant` can make a `Ticket`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::{MemberRole, NodeName, SpiffeId, TrustDomain};
use crate::revocation::Revocations;

/// One fact about a workload that an agent found out from the kernel, or that a registration demands.
/// Text form `unix:uid:1000`, `unix:gid:1000`, `unix:path:/usr/bin/app`, `unix:sha256:<hex>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    Uid(u32),
    Gid(u32),
    Path(String),
    /// Lower-case hex of the executable's SHA-256.
    Sha256(String),
}

/// Who may have an identity: the agent that vouches, and the selectors of which all must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub id: SpiffeId,
    /// The agent on whose host the workload runs.
    pub agent: NodeName,
    pub selectors: BTreeSet<Selector>,
    /// Services that a proxy with this identity may register endpoints of.
    #[serde(default)]
    pub services: BTreeSet<crate::name::ServiceName>,
    /// SVID lifetime, seconds; 0 = the cluster's default.
    #[serde(default)]
    pub ttl_seconds: u64,
    /// Where a workload that speaks SPIFFE mutual TLS itself, without a proxy of ours, serves its services: the
    /// registration stands for the announcement that nobody makes.
    #[serde(default)]
    pub address: Option<SocketAddr>,
}

/// What an authenticated agent says about a local caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Taken from the agent's own verified SVID, never from its message.
    pub agent: NodeName,
    pub selectors: BTreeSet<Selector>,
}

/// Leave to issue one SVID. Only `grant` (and the member grants beside it) makes one.
#[derive(Debug)]
pub struct Ticket {
    pub(crate) id: SpiffeId,
    pub(crate) lifetime: Duration,
}

/// Why no SVID is given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no registration of {id} on agent {agent} matches the caller's selectors")]
    NotRegistered { id: String, agent: NodeName },
    #[error("{id} is revoked by {revocation}: {reason}")]
    Revoked { id: SpiffeId, revocation: String, reason: String },
    #[error("{id} is not of trust domain {trust_domain}")]
    ForeignTrustDomain { id: SpiffeId, trust_domain: TrustDomain },
    #[error("{id} is an identity of the mesh itself: of those, only a gateway's comes from a registration")]
    MemberIdentity { id: SpiffeId },
    #[error("{id} is not of the form /hanse/<role>/<name>")]
    NotAMember { id: SpiffeId },
}

/// Shortest and longest SVID lifetime that is granted.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10);
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Lifetime where a registration does not say.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

impl Registration {
    /// Whether all selectors of this registration are among the evidence, on the right agent.
    pub fn matches(&self, evidence: &Evidence) -> bool {
        self.agent == evidence.agent
            && !self.selectors.is_empty()
            && self.selectors.is_subset(&evidence.selectors)
    }
}

/// Identities that the evidence entitles to, in the order of `registrations`.
pub fn entitled<'r>(
    registrations: impl IntoIterator<Item = &'r Registration>,
    evidence: &Evidence,
) -> Vec<&'r Registration> {
    registrations.into_iter().filter(|r| r.matches(evidence)).collect()
}

/// Decides whether the workload behind `evidence` may have `id`.
pub fn grant<'r>(
    trust_domain: &TrustDomain,
    registrations: impl IntoIterator<Item = &'r Registration>,
    revocations: &Revocations,
    evidence: &Evidence,
    id: &SpiffeId,
) -> Result<Ticket, Refusal> {
    own_and_not_revoked(trust_domain, revocations, id)?;
    if id.path().starts_with("/hanse/") && !id.is_member(trust_domain, MemberRole::Gateway) {
        return Err(Refusal::MemberIdentity { id: id.clone() });
    }
    let registration = registrations.into_iter().find(|r| r.id == *id && r.matches(evidence));
    let registration = registration
        .ok_or_else(|| Refusal::NotRegistered { id: id.to_string(), agent: evidence.agent.clone() })?;
    let lifetime = match registration.ttl_seconds {
        0 => DEFAULT_LIFETIME,
        seconds => Duration::from_secs(seconds),
    };
    Ok(Ticket { id: id.clone(), lifetime: clamped(lifetime) })
}

/// A ticket for a member of the mesh itself (`/hanse/<role>/<name>`): a node renewing its own SVID, an agent
/// that has proved its host, an administrator. The caller has authenticated it; revocation is checked here.
pub fn grant_member(
    trust_domain: &TrustDomain,
    revocations: &Revocations,
    id: &SpiffeId,
    lifetime: Duration,
) -> Result<Ticket, Refusal> {
    own_and_not_revoked(trust_domain, revocations, id)?;
    if id.as_member().is_none_or(|(_, name)| name.parse::<NodeName>().is_err()) {
        return Err(Refusal::NotAMember { id: id.clone() });
    }
    Ok(Ticket { id: id.clone(), lifetime: clamped(lifetime) })
}

fn own_and_not_revoked(
    trust_domain: &TrustDomain,
    revocations: &Revocations,
    id: &SpiffeId,
) -> Result<(), Refusal> {
    if id.trust_domain() != trust_domain {
        return Err(Refusal::ForeignTrustDomain { id: id.clone(), trust_domain: trust_domain.clone() });
    }
    match revocations.of_identity(id) {
        Some(revocation) => Err(Refusal::Revoked {
            id: id.clone(),
            revocation: revocation.id.to_string(),
            reason: revocation.reason.to_string(),
        }),
        None => Ok(()),
    }
}

fn clamped(lifetime: Duration) -> Duration {
    lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME)
}

impl Ticket {
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "unix:uid:{uid}"),
            Self::Gid(gid) => write!(f, "unix:gid:{gid}"),
            Self::Path(path) => write!(f, "unix:path:{path}"),
            Self::Sha256(hex) => write!(f, "unix:sha256:{hex}"),
        }
    }
}

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selector {0:?} is none of unix:uid:N, unix:gid:N, unix:path:/ABSOLUTE, unix:sha256:HEX")]
pub struct SelectorError(pub String);

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let err = || SelectorError(text.chars().take(120).collect());
        let (kind, value) =
            text.strip_prefix("unix:").and_then(|rest| rest.split_once(':')).ok_or_else(err)?;
        match kind {
            "uid" => value.parse().map(Self::Uid).map_err(|_| err()),
            "gid" => value.parse().map(Self::Gid).map_err(|_| err()),
            "path" if value.starts_with('/') => Ok(Self::Path(value.to_owned())),
            "sha256" if crate::wire::from_hex(value).is_some_and(|b| b.len() == 32) => {
                Ok(Self::Sha256(value.to_ascii_lowercase()))
            }
            _ => Err(err()),
        }
    }
}

impl Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
