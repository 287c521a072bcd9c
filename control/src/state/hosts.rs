//! Commands about hosts that prove themselves with a certificate of the user's own PKI: which authorities may vouch for
//! them, who joined so, and who may do so once more.
//!
//! A certificate can be copied with its key, and shown again. So it makes an agent once: while the agent has a
//! certificate of ours that lives, or has been put out, only an administrator lets the host's certificate in again.

use std::time::Duration;

use hanse_identity::host::{HostCertificate, HostTrust};
use hanse_identity::token::Admits;
use hanse_identity::{NodeName, Timestamp};
use serde::{Deserialize, Serialize};

use super::revocations::CLOCK_MARGIN;
use super::{AgentRecord, Decision, MAX_AGENTS, State, already, bounded, not_found};
use crate::command::{Answer, Refusal};

/// Longest time for which a host's certificate is let in once more.
pub const MAX_ALLOWANCE: Duration = Duration::from_secs(24 * 3600);
/// An agent that has just joined may have a certificate that is not in the index yet.
pub const JUST_JOINED: Duration = Duration::from_secs(120);

/// Which hosts' certificates are taken, and since when it is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSettings {
    #[serde(flatten)]
    pub trust: HostTrust,
    /// Revision at which it was set: what was verified against older settings is not let in.
    pub since: u64,
}

/// How an agent joined that showed its host's certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostJoin {
    pub certificate: HostCertificate,
    /// SHA-256 (hex) of its request: the same again gets the same answer.
    pub request_hash: String,
}

impl State {
    pub(super) fn host_trust_put(&mut self, index: u64, trust: &HostTrust) -> Decision {
        trust.check().map_err(|e| Refusal::Invalid(e.to_string()))?;
        if self.private.hosts.as_ref().is_some_and(|settings| settings.trust == *trust) {
            return already();
        }
        self.private.hosts = Some(HostSettings { trust: trust.clone(), since: index });
        Ok((Answer::Done, Vec::new()))
    }

    /// Agents that have joined stay; none joins so any more.
    pub(super) fn host_trust_delete(&mut self) -> Decision {
        match self.private.hosts.take() {
            Some(_) => Ok((Answer::Done, Vec::new())),
            None => already(),
        }
    }

    /// A host has proved that it has the key of that certificate, which was verified against the settings of `since`.
    pub(super) fn agent_attest(
        &mut self,
        name: &NodeName,
        join: &HostJoin,
        since: u64,
        now: Timestamp,
    ) -> Decision {
        if !self.may_attest(name, join, since, now)? {
            return already();
        }
        if !self.private.agents.contains_key(name) {
            self.forget_evicted(now);
            bounded("agents", self.private.agents.len(), MAX_AGENTS)?;
        }
        let id = self.agent_id(name);
        let record = AgentRecord { host: Some(join.clone()), ..AgentRecord::new(name.clone(), id, now) };
        self.private.agents.insert(name.clone(), record);
        Ok((Answer::Done, Vec::new()))
    }

    /// Whether that certificate may make the agent now, and whether (`true`) it has not done so already. Asked before it is
    /// proposed too: a host that is refused again and again writes nothing into the log.
    pub fn may_attest(
        &self,
        name: &NodeName,
        join: &HostJoin,
        since: u64,
        now: Timestamp,
    ) -> Result<bool, Refusal> {
        if self.private.hosts.as_ref().is_none_or(|settings| settings.since != since) {
            let why = "which certificates attest hosts has changed meanwhile: ask again";
            return Err(Refusal::Precondition(why.to_owned()));
        }
        if let Some(revocation) = self.view.revocations.of_identity(&self.agent_id(name)) {
            return Err(Refusal::NotAllowed(format!("agent {name} is banned by {}", revocation.id)));
        }
        match self.private.agents.get(name) {
            Some(known) if known.evicted.is_none() && known.host.as_ref() == Some(join) => Ok(false),
            Some(known) => self.may_return(known, now).map(|()| true),
            None => Ok(true),
        }
    }

    /// Whether a host's certificate may take this agent's place.
    fn may_return(&self, known: &AgentRecord, now: Timestamp) -> Result<(), Refusal> {
        if known.allowed.is_some_and(|until| now < until) {
            return Ok(());
        }
        let name = &known.name;
        let refuse = |why: String| Err(Refusal::Precondition(why));
        if let Some(at) = known.evicted {
            return refuse(format!(
                "agent {name} was put out at {at}: hanse agent allow {name} lets it in once"
            ));
        }
        if let Some(until) = self.lives_until(known, now) {
            return refuse(format!(
                "agent {name} has joined already, and its own certificate lives until {until}: if this host is to take its place, hanse agent evict {name} and hanse agent allow {name}"
            ));
        }
        match known.host {
            Some(_) => Ok(()),
            None => refuse(format!(
                "agent {name} joined with a join token: hanse agent allow {name} lets its host's certificate in once"
            )),
        }
    }

    /// When the agent's own last certificate ends, if one lives by any clock.
    fn lives_until(&self, agent: &AgentRecord, now: Timestamp) -> Option<Timestamp> {
        let ends = self.private.issued.live(now).filter(|s| s.id == agent.id).map(|s| s.not_after);
        ends.chain([agent.joined + JUST_JOINED]).filter(|end| *end + CLOCK_MARGIN > now).max()
    }

    /// Lets the host's certificate make the agent once more, until then.
    pub(super) fn agent_allow(
        &mut self,
        actor: &str,
        name: &NodeName,
        until: Timestamp,
        now: Timestamp,
    ) -> Decision {
        self.may_admit(actor, &Admits::Agent(name.clone()))?;
        if until <= now || until > now + MAX_ALLOWANCE {
            let hours = MAX_ALLOWANCE.as_secs() / 3600;
            return Err(Refusal::Invalid(format!("a certificate is let in for up to {hours} h from now on")));
        }
        let agents = &self.private.agents;
        let Some(agent) = agents.get(name) else { return Err(not_found("agent", name, agents.keys())) };
        if let Some(revocation) = self.view.revocations.of_identity(&agent.id) {
            let why =
                format!("agent {name} is banned by {}: hanse agent unban {name} ends it", revocation.id);
            return Err(Refusal::Precondition(why));
        }
        if self.private.hosts.is_none() {
            let why = "no authority may vouch for hosts here: hanse agent trust-ca set says which may";
            return Err(Refusal::Precondition(why.to_owned()));
        }
        if agent.evicted.is_none()
            && let Some(end) = self.lives_until(agent, now)
        {
            let why = format!(
                "agent {name} has a certificate that lives until {end}: hanse agent evict {name} first"
            );
            return Err(Refusal::Precondition(why));
        }
        if agent.allowed == Some(until) {
            return already();
        }
        if let Some(agent) = self.private.agents.get_mut(name) {
            agent.allowed = Some(until);
        }
        Ok((Answer::Done, Vec::new()))
    }
}

#[cfg(test)]
mod tests;
