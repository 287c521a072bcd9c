//! Nested issuers: which workload may have an intermediate authority, and which of those that live a revocation hits.
//!
//! An intermediate is a row of the issuance index like an SVID, so revocations of its identity, its key and its agent are
//! expanded to it. What it signs is in no log: verifiers tell it by the intermediate in its chain.

use hanse_identity::grant::{DownstreamTicket, grant_downstream};
use hanse_identity::{NestedIssuer, NodeName, Revocation, RevocationTarget, SpiffeId, Timestamp};

use super::issuance::{IssuedRecord, IssuedSvid, MAX_ISSUED_PER_AGENT};
use super::{Decision, State, bounded};
use crate::command::{Answer, Refusal};

/// Most intermediate authorities of one identity that live at a time.
pub const MAX_DOWNSTREAM: usize = 256;

impl State {
    /// Whether a registration of that workload says, on whichever agent, that it may be a nested issuer.
    pub fn is_nested_issuer(&self, id: &SpiffeId) -> bool {
        self.registrations_of(id).any(|registration| registration.downstream)
    }

    /// Leave to give an intermediate authority to a workload, whose SVID came through that agent.
    pub fn downstream_ticket(
        &self,
        id: &SpiffeId,
        agent: &NodeName,
        now: Timestamp,
    ) -> Result<DownstreamTicket, Refusal> {
        if let Some(why) = self.agent_refused(agent) {
            return Err(Refusal::NotAllowed(why));
        }
        let (own, revocations) = (&self.view.trust_domain, &self.view.revocations);
        let ticket = grant_downstream(own, self.registrations_of(id), revocations, agent, id)
            .map_err(|refusal| Refusal::NotAllowed(refusal.to_string()))?;
        let live = self.private.issued.downstream(now).filter(|intermediate| intermediate.id == *id).count();
        bounded("intermediate authorities of one identity that live", live, MAX_DOWNSTREAM)?;
        bounded(
            "certificates of one agent that live",
            self.private.issued.of_agent(agent),
            MAX_ISSUED_PER_AGENT,
        )?;
        Ok(ticket)
    }

    /// Takes the record of an intermediate in before that is handed out; whether its holder may have it is decided here.
    pub(super) fn downstream_issued(&mut self, record: &IssuedRecord, now: Timestamp) -> Decision {
        let svid = &record.svid;
        if !svid.downstream || record.handed_out {
            return Err(Refusal::Invalid("this is no record of an intermediate authority".into()));
        }
        self.downstream_ticket(&svid.id, &svid.agent, now)?;
        if self.is_too_late(record) {
            let why = "it was revoked, or its authority was replaced, while it was being issued: ask again";
            return Err(Refusal::Precondition(why.into()));
        }
        let (_, changes) = self.recorded(std::slice::from_ref(record), now)?;
        Ok((Answer::Done, changes))
    }

    /// The intermediates that live and that this revocation hits, or will once the authority that it names is replaced.
    pub fn downstream_hit<'s>(
        &'s self,
        revocation: &'s Revocation,
        now: Timestamp,
    ) -> impl Iterator<Item = &'s IssuedSvid> {
        let own = &self.view.trust_domain;
        self.private.issued.downstream(now).filter(move |svid| {
            let issuer = NestedIssuer { serial: svid.serial.clone(), key_id: svid.key };
            let above = revocation.authorities.contains(&svid.authority)
                || revocation.target == RevocationTarget::Authority(svid.authority);
            (above && revocation.id.origin == *own) || revocation.hits_issuer(own, &issuer)
        })
    }
}
