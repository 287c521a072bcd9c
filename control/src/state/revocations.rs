//! Commands about revocations: ordered, lifted, lapsed, cleared.

use std::time::Duration;

use hanse_federation::Change;
use hanse_identity::grant::MAX_LIFETIME;
use hanse_identity::name::MemberRole;
use hanse_identity::{Closing, Reason, Revocation, RevocationId, RevocationTarget, SpiffeId, Timestamp};

use super::rotation::Wanted;
use super::{Decision, MAX_REVOCATIONS, MAX_TEXT_BYTES, State, already, bounded, done, not_found};
use crate::command::{Answer, Proposal, Refusal};

/// A certificate may have been signed this much later than the clock of who revokes says.
pub(super) const CLOCK_MARGIN: Duration = Duration::from_secs(60);
/// Longest grace of live connections.
pub const MAX_CLOSING_SECONDS: u32 = 3600;
/// Most entries that are cleared at once.
pub const MAX_CLEARED: usize = 10_000;

/// What `Command::Revoke` orders.
pub(super) struct Order<'c> {
    pub target: &'c RevocationTarget,
    pub reason: Reason,
    pub note: &'c str,
    pub expires: Option<Timestamp>,
    pub reissue: bool,
    pub closing: Closing,
}

impl State {
    pub(super) fn revoke(&mut self, index: u64, proposal: &Proposal, order: &Order<'_>) -> Decision {
        let own = self.view.trust_domain.clone();
        let own = &own;
        check_order(order)?;
        self.check_target(order)?;
        let expires = self.expiry(order, proposal.now)?;
        let same = |r: &&Revocation| r.id.origin == *own && r.target == *order.target && !r.reissue;
        let covers = |r: &&Revocation| {
            let enough = r.reason != Reason::Hold || order.reason == Reason::Hold;
            same(r) && enough && (r.closing.is_now() || r.closing == order.closing)
        };
        if order.reissue
            && let RevocationTarget::Identity(_) = order.target
            && let Some(known) = self.view.revocations.iter().find(same)
        {
            let why = format!("{} revokes it and lets no new certificate be given", known.id);
            return Err(Refusal::Precondition(why));
        }
        let new_watermark = order.reissue && matches!(order.target, RevocationTarget::Identity(_));
        if !new_watermark && let Some(known) = self.view.revocations.iter().find(covers) {
            return Ok((Answer::Revoked(known.id.clone()), Vec::new()));
        }
        // Our own only: what peers have told must not keep us from revoking.
        let ours = self.view.revocations.iter().filter(|r| r.id.origin == *own).count();
        bounded("revocations", ours, MAX_REVOCATIONS)?;
        let id = RevocationId { number: index, origin: own.clone() };
        let (serials, mut authorities) = self.expanded(order.target, proposal.now)?;
        if let RevocationTarget::Authority(key) = order.target {
            // It hits nothing before everything below it has been replaced.
            authorities.clear();
            let (authority, revocation, closing) = (Some(key), Some(id.clone()), order.closing);
            let wanted = Wanted { authority, reissue: true, revocation, closing };
            // The last that may be refused.
            self.rotate_begin(index, proposal, wanted)?;
        }
        let revocation = Revocation {
            note: order.note.to_owned(),
            actor: proposal.actor.clone(),
            expires,
            serials,
            authorities,
            // Of a certificate or a key, new ones are given in any case.
            reissue: new_watermark,
            closing: order.closing,
            ..Revocation::new(id.clone(), order.target.clone(), order.reason, proposal.now)
        };
        let silenced = revocation.silences();
        let mut changes = vec![Change::Revoked(revocation)];
        changes.extend(silenced.iter().flat_map(|identity| self.silenced(identity)));
        Ok((Answer::Revoked(id), changes))
    }

    /// Whether the target is there, and ours to revoke.
    fn check_target(&self, order: &Order<'_>) -> Result<(), Refusal> {
        let own = &self.view.trust_domain;
        match order.target {
            RevocationTarget::Serial(_) | RevocationTarget::Key(_) => Ok(()),
            RevocationTarget::Identity(id) if id.trust_domain() == own => Ok(()),
            RevocationTarget::Identity(id) => {
                let Some(peer) = self.view.peer_of(id.trust_domain()) else {
                    return Err(Refusal::NotFound { what: format!("trust domain {}", id.trust_domain()) });
                };
                if order.reason != Reason::Hold {
                    let cluster = &peer.record.cluster;
                    return Err(Refusal::NotAllowed(format!(
                        "{id} is of cluster {cluster}: revoke it there; here it can only be put on hold"
                    )));
                }
                Ok(())
            }
            RevocationTarget::Agent(agent) => {
                let agents = &self.private.agents;
                let known = agents.contains_key(agent);
                if known { Ok(()) } else { Err(not_found("agent", agent, agents.keys())) }
            }
            RevocationTarget::Node(node) => {
                let nodes = || self.private.nodes.values().map(|n| &n.name);
                if !nodes().any(|n| n == node) {
                    return Err(not_found("node", node, nodes()));
                }
                let believed = |n: &&hanse_identity::NodeName| {
                    let id = SpiffeId::member(own, MemberRole::Node, n);
                    **n != *node && self.view.revocations.of_identity(&id).is_none()
                };
                let (left, quorum) = (nodes().filter(believed).count(), self.private.nodes.len() / 2 + 1);
                if left < quorum {
                    let why = format!(
                        "without {node} the cluster has {left} control nodes that are believed, and needs {quorum} to decide anything: add nodes first"
                    );
                    return Err(Refusal::Precondition(why));
                }
                Ok(())
            }
            RevocationTarget::Authority(key) => match self.own_bundle().trusted().any(|a| a.key_id == *key) {
                true => Ok(()),
                false => Err(Refusal::NotFound { what: format!("authority {key}") }),
            },
            RevocationTarget::Cluster(trust_domain) if trust_domain == own => {
                Err(Refusal::Invalid(format!("{own} is this cluster itself")))
            }
            RevocationTarget::Cluster(trust_domain) => match self.view.peer_of(trust_domain) {
                Some(_) => Ok(()),
                None => Err(Refusal::NotFound { what: format!("joined cluster of {trust_domain}") }),
            },
        }
    }

    /// When nothing that it could match is valid any more.
    fn expiry(&self, order: &Order<'_>, now: Timestamp) -> Result<Option<Timestamp>, Refusal> {
        let longest = now + MAX_LIFETIME + CLOCK_MARGIN;
        Ok(match order.target {
            RevocationTarget::Serial(serial) => match self.private.issued.get(serial) {
                Some(svid) => Some(svid.not_after.max(now) + CLOCK_MARGIN),
                None => match order.expires {
                    Some(at) if at <= now => {
                        let why = format!("the revocation would lapse at {at}, which has passed");
                        return Err(Refusal::Invalid(why));
                    }
                    at => at,
                },
            },
            RevocationTarget::Identity(_) if order.reissue => Some(longest),
            // As long as a certificate over it could live that was made when the last one ended.
            RevocationTarget::Key(key) => {
                let of_key = self.private.issued.live(now).filter(|s| s.key == *key);
                let last = of_key.map(|s| s.not_after).max().unwrap_or(now).max(now);
                Some(last + MAX_LIFETIME + CLOCK_MARGIN)
            }
            // What is below it ends with it.
            RevocationTarget::Authority(key) => {
                let bundle = self.view.bundles.get(&self.view.trust_domain);
                let authority = bundle.and_then(|b| b.authorities.iter().find(|a| a.key_id == *key));
                authority.map(|a| a.not_after.max(now) + CLOCK_MARGIN)
            }
            // There is no last certificate: it stays until a hold is lifted.
            RevocationTarget::Identity(_)
            | RevocationTarget::Agent(_)
            | RevocationTarget::Node(_)
            | RevocationTarget::Cluster(_) => None,
        })
    }

    pub(super) fn lift(&self, id: &RevocationId) -> Decision {
        let Some(revocation) = self.view.revocations.get(id) else {
            return Err(Refusal::NotFound { what: format!("revocation {id}") });
        };
        if id.origin != self.view.trust_domain {
            return Err(Refusal::NotAllowed(format!("{id} was ordered by {}; lift it there", id.origin)));
        }
        if !revocation.can_be_lifted() {
            return Err(Refusal::Precondition(format!("{id} is no hold; it cannot be lifted")));
        }
        done(self.without(&[revocation]))
    }

    /// All or nothing.
    pub(super) fn revocations_clear(&self, ids: &[RevocationId], compromised: bool) -> Decision {
        if ids.len() > MAX_CLEARED {
            return Err(Refusal::Invalid(format!("at most {MAX_CLEARED} revocations are cleared at once")));
        }
        let own = &self.view.trust_domain;
        if let Some(foreign) = ids.iter().find(|id| id.origin != *own) {
            let why = format!("{foreign} was ordered by {}; clear it there", foreign.origin);
            return Err(Refusal::NotAllowed(why));
        }
        let known: Vec<&Revocation> = ids.iter().filter_map(|id| self.view.revocations.get(id)).collect();
        let stolen = known.iter().find(|r| r.reason == Reason::KeyCompromise && !compromised);
        if let Some(revocation) = stolen {
            let why = format!(
                "{} is for a compromised key, and it was not said that those are meant",
                revocation.id
            );
            return Err(Refusal::Precondition(why));
        }
        if known.is_empty() { already() } else { done(self.without(&known)) }
    }

    /// The Changes by which these go, and what they silenced comes back unless another one silences it.
    pub(super) fn without(&self, gone: &[&Revocation]) -> Vec<Change> {
        let mut rest = self.view.revocations.clone();
        let mut changes = Vec::new();
        for revocation in gone {
            rest.remove(&revocation.id);
            changes.push(Change::Unrevoked(revocation.id.clone()));
        }
        for identity in gone.iter().filter_map(|r| r.silences()) {
            if rest.of_identity(&identity).is_none() {
                changes.extend(self.restored(&identity));
            }
        }
        changes
    }

    /// Only those whose time has passed by the proposer's clock; the others stay.
    pub(super) fn lapse(&self, ids: &[RevocationId], now: Timestamp) -> Decision {
        let lapsed = |id: &&RevocationId| {
            self.view.revocations.get(id).and_then(|r| r.expires).is_some_and(|at| at <= now)
        };
        done(ids.iter().filter(lapsed).cloned().map(Change::Unrevoked).collect())
    }
}

/// What can be said without knowing the State.
fn check_order(order: &Order<'_>) -> Result<(), Refusal> {
    let refuse = |why: String| Err(Refusal::Invalid(why));
    if order.note.len() > MAX_TEXT_BYTES {
        return refuse(format!("the note is longer than {MAX_TEXT_BYTES} bytes"));
    }
    if order.reason == Reason::Hold && !order.target.can_be_held() {
        return refuse("a hold is for an identity, an agent, a node or a cluster; a certificate, a key or an authority is revoked for good".into());
    }
    if matches!(order.closing, Closing::After(seconds) if seconds > MAX_CLOSING_SECONDS) {
        return refuse(format!("live connections are left at most {MAX_CLOSING_SECONDS} s"));
    }
    let replaceable = matches!(
        order.target,
        RevocationTarget::Identity(_) | RevocationTarget::Serial(_) | RevocationTarget::Key(_)
    );
    if order.reissue && (!replaceable || order.reason == Reason::Hold) {
        return refuse("new certificates are given in place of revoked ones for an identity, a certificate or a key, and not on a hold".into());
    }
    Ok(())
}
