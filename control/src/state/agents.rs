//! Commands about agents that have joined: evicted, and let in again after a ban. A ban itself is a revocation.

use std::time::Duration;

use hanse_federation::Change;
use hanse_identity::grant::MAX_LIFETIME;
use hanse_identity::name::MemberRole;
use hanse_identity::token::Admits;
use hanse_identity::{
    Closing, NodeName, Reason, Revocation, RevocationId, RevocationTarget, SpiffeId, Timestamp,
};

use super::revocations::{CLOCK_MARGIN, Order};
use super::{Decision, State, already, not_found};
use crate::command::{Answer, Proposal, Refusal};

/// How long an agent that was evicted and has not come back is still listed.
pub const EVICTED_REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

impl State {
    /// The SPIFFE ID of this cluster's agent of that name.
    pub fn agent_id(&self, name: &NodeName) -> SpiffeId {
        SpiffeId::member(&self.view.trust_domain, MemberRole::Agent, name)
    }

    /// Why nothing is given to this agent or through it, if so.
    pub fn agent_refused(&self, name: &NodeName) -> Option<String> {
        let Some(agent) = self.private.agents.get(name) else {
            return Some(format!("no agent {name} has joined this cluster"));
        };
        if let Some(revocation) = self.view.revocations.of_identity(&agent.id) {
            return Some(format!("agent {name} is banned by {}", revocation.id));
        }
        let at = agent.evicted?;
        Some(format!(
            "agent {name} was evicted at {at}: it has to join anew, with a new join token or its host's certificate once that is allowed"
        ))
    }

    /// What the agent has been given until now is dead; with a new join token it may come back.
    pub(super) fn agent_evict(
        &mut self,
        index: u64,
        proposal: &Proposal,
        name: &NodeName,
        note: &str,
    ) -> Decision {
        let Some(agent) = self.private.agents.get(name) else {
            return Err(not_found("agent", name, self.private.agents.keys()));
        };
        if let Some(ban) = self.view.revocations.of_identity(&agent.id) {
            let why = format!("agent {name} is banned by {}, which says more", ban.id);
            return Err(Refusal::Precondition(why));
        }
        if agent.evicted.is_some() {
            return already();
        }
        let order = Order {
            target: &RevocationTarget::Identity(agent.id.clone()),
            reason: Reason::Cessation,
            note,
            expires: None,
            reissue: true,
            closing: Closing::Now,
        };
        let decided = self.revoke(index, proposal, &order)?;
        self.must_join_anew(name, proposal.now);
        Ok(decided)
    }

    /// Ends every ban of the agent. What it was given before stays dead, whatever the ban's reason was.
    pub(super) fn agent_unban(&mut self, index: u64, proposal: &Proposal, name: &NodeName) -> Decision {
        let Some(agent) = self.private.agents.get(name) else {
            return Err(not_found("agent", name, self.private.agents.keys()));
        };
        let (own, now, id) = (&self.view.trust_domain, proposal.now, agent.id.clone());
        let target = RevocationTarget::Agent(name.clone());
        let all = self.view.revocations.iter();
        let bans: Vec<Revocation> =
            all.filter(|r| r.id.origin == *own && r.target == target).cloned().collect();
        if bans.is_empty() {
            return already();
        }
        // Its own certificates and those that were issued through it, to the last one that could still live.
        let (mut serials, _) = self.expanded(&target, now)?;
        let listed = bans.iter().flat_map(|ban| &ban.serials);
        serials.extend(listed.filter(|serial| self.private.issued.get(serial).is_some()).cloned());
        let ids: Vec<String> = bans.iter().map(|ban| ban.id.to_string()).collect();
        let rest = Revocation {
            note: format!("of before {} ended", ids.join(", ")),
            actor: proposal.actor.clone(),
            expires: Some(now + MAX_LIFETIME + CLOCK_MARGIN),
            serials,
            reissue: true,
            ..Revocation::new(
                RevocationId { number: index, origin: own.clone() },
                RevocationTarget::Identity(id),
                Reason::Superseded,
                now,
            )
        };
        let answer = Answer::Revoked(rest.id.clone());
        let mut changes = vec![Change::Revoked(rest)];
        changes.extend(self.without(&bans.iter().collect::<Vec<_>>()));
        self.must_join_anew(name, now);
        Ok((answer, changes))
    }

    /// Join tokens that are out already were made for the agent as it was: they go too.
    fn must_join_anew(&mut self, name: &NodeName, now: Timestamp) {
        if let Some(agent) = self.private.agents.get_mut(name) {
            agent.evicted = Some(now);
            agent.allowed = None;
        }
        let its = Admits::Agent(name.clone());
        self.private.invites.retain(|_, invite| invite.used_by.is_some() || invite.admits != its);
    }

    /// Agents that were evicted long ago and have not come back make room. Where a certificate makes an agent, they are
    /// remembered: it must not bring back who was put out.
    pub(super) fn forget_evicted(&mut self, now: Timestamp) {
        let revocations = &self.view.revocations;
        if self.private.hosts.is_some() {
            return;
        }
        self.private.agents.retain(|_, agent| {
            if agent.host.is_some() {
                return true;
            }
            let is_over = agent.evicted.is_some_and(|at| at + EVICTED_REMEMBERED <= now);
            !is_over || revocations.of_identity(&agent.id).is_some()
        });
    }
}
