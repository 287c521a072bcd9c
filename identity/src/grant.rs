//! Grant: evidence and registrations in, a ticket or a refusal out. Only `grant` can make a `Ticket`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::name::{MemberRole, NodeName, SpiffeId, TrustDomain};
use crate::revocation::Revocations;
use crate::time::Timestamp;

pub mod registration;
pub mod selector;

pub use registration::{AgentScope, Registration, RegistrationError};
pub use selector::{Selector, SelectorError};

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
    /// What it gives is not valid beyond this: the end of the registration.
    pub(crate) not_after: Option<Timestamp>,
    /// The SVID must start after this: older ones of the identity are revoked.
    pub(crate) watermark: Option<Timestamp>,
}

/// Leave to issue one intermediate authority to a workload, for a key of its own. Only `grant_downstream` makes one.
#[derive(Debug)]
pub struct DownstreamTicket(pub(crate) Ticket);

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
    #[error("no registration of {id} on agent {agent} says downstream")]
    NotDownstream { id: SpiffeId, agent: NodeName },
    #[error("{id} is not of the form /hanse/<role>/<name>")]
    NotAMember { id: SpiffeId },
}

/// Shortest and longest SVID lifetime that is granted.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10);
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Lifetime where a registration does not say.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

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
    // Nothing more is issued through a revoked agent, whoever asks.
    own_and_not_revoked(
        trust_domain,
        revocations,
        &SpiffeId::member(trust_domain, MemberRole::Agent, &evidence.agent),
    )?;
    if id.path().starts_with("/hanse/") && !id.is_member(trust_domain, MemberRole::Gateway) {
        return Err(Refusal::MemberIdentity { id: id.clone() });
    }
    let matching = registrations.into_iter().filter(|r| r.id == *id && r.matches(evidence));
    // Of several, the one that holds longest, then the one for this host in particular.
    let registration = matching
        .max_by_key(|r| (r.expires.unwrap_or(Timestamp(u64::MAX)), r.agent.name().is_some()))
        .ok_or_else(|| Refusal::NotRegistered { id: id.to_string(), agent: evidence.agent.clone() })?;
    Ok(Ticket::new(id, registration.lifetime(), registration.expires, revocations))
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
    Ok(Ticket::new(id, lifetime, None, revocations))
}

/// Decides whether a workload may have an intermediate authority of the trust domain. The caller has authenticated it by
/// its SVID, and knows through which agent it was given that.
pub fn grant_downstream<'r>(
    trust_domain: &TrustDomain,
    registrations: impl IntoIterator<Item = &'r Registration>,
    revocations: &Revocations,
    agent: &NodeName,
    id: &SpiffeId,
) -> Result<DownstreamTicket, Refusal> {
    own_and_not_revoked(trust_domain, revocations, id)?;
    let by = SpiffeId::member(trust_domain, MemberRole::Agent, agent);
    own_and_not_revoked(trust_domain, revocations, &by)?;
    let mut entries = registrations.into_iter().filter(|r| r.downstream && r.id == *id);
    let entry = entries.find(|r| r.agent.covers(agent));
    let entry = entry.ok_or_else(|| Refusal::NotDownstream { id: id.clone(), agent: agent.clone() })?;
    Ok(DownstreamTicket(Ticket::new(id, entry.lifetime(), entry.expires, revocations)))
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

impl Ticket {
    fn new(
        id: &SpiffeId,
        lifetime: Duration,
        not_after: Option<Timestamp>,
        revocations: &Revocations,
    ) -> Self {
        let lifetime = lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME);
        Self { id: id.clone(), lifetime, not_after, watermark: revocations.watermark(id) }
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// When the registration behind it ends: nothing that the ticket gives is valid any longer.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.not_after
    }
}

#[cfg(test)]
mod tests;
