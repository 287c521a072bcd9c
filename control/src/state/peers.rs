//! Commands about other parties: invites and who used them, agents, joined clusters and what they tell.

use std::time::Duration;

use hanse_federation::change::PeerRecord;
use hanse_federation::join::{self, Offer};
use hanse_federation::session::{MAX_IMPORTED_REVOCATIONS, MAX_IMPORTED_SERVICES};
use hanse_federation::view::PeerState;
use hanse_federation::{Change, PeerFact};
use hanse_identity::crl::MAX_CRL_BYTES;
use hanse_identity::name::MemberRole;
use hanse_identity::token::{Admits, Invite};
use hanse_identity::{ClusterName, NodeName, Timestamp};

use super::catalog::check_host_port;
use super::{
    AgentRecord, Decision, MAX_AGENTS, MAX_INVITES, MAX_PEER_ENDPOINTS, MAX_PEER_GATEWAYS, MAX_PEERS,
    MAX_TEXT_BYTES, State, already, bounded, done, not_found,
};
use crate::command::{Answer, Refusal, Told};

/// How long after its expiry an invite is still remembered, so that a late retry of who used it is answered.
pub const INVITE_GRACE: Duration = Duration::from_secs(3600);

impl State {
    pub(super) fn invite_create(&mut self, invite: &Invite, now: Timestamp) -> Decision {
        if let Some(known) = self.private.invites.get(&invite.id) {
            return match known == invite {
                true => already(),
                false => Err(Refusal::Precondition(format!("there is another invite {}", invite.id))),
            };
        }
        if invite.expires <= now {
            return Err(Refusal::Invalid(format!(
                "the invite would expire at {}, which has passed",
                invite.expires
            )));
        }
        if invite.id.is_empty() || invite.id.len() > 255 || invite.public_key.len() > MAX_TEXT_BYTES {
            return Err(Refusal::Invalid("the invite's id or key is empty or too long".into()));
        }
        if invite.admits == Admits::Cluster(self.view.cluster.clone()) {
            return Err(Refusal::Invalid(format!("{} is this cluster itself", self.view.cluster)));
        }
        let lapsed = |i: &Invite| i.expires + INVITE_GRACE <= now;
        let live = self.private.invites.values().filter(|i| !lapsed(i)).count();
        bounded("invites", live, MAX_INVITES)?;
        self.private.invites.retain(|_, i| !lapsed(i));
        self.private.invites.insert(invite.id.clone(), invite.clone());
        Ok((Answer::Done, Vec::new()))
    }

    /// The invite, if this request may use it; `true` if it has used it already.
    fn usable(&self, id: &str, request_hash: &str, now: Timestamp) -> Result<(&Invite, bool), Refusal> {
        let Some(invite) = self.private.invites.get(id) else {
            return Err(Refusal::NotFound { what: format!("invite {id}") });
        };
        match &invite.used_by {
            Some(by) if by == request_hash => Ok((invite, true)),
            Some(_) => Err(Refusal::Precondition(format!("invite {id} has been used; ask for a new token"))),
            None if invite.expires <= now => Err(Refusal::Precondition(format!(
                "invite {id} expired at {}; ask for a new token",
                invite.expires
            ))),
            None => Ok((invite, false)),
        }
    }

    fn consume(&mut self, id: &str, request_hash: &str) {
        if let Some(invite) = self.private.invites.get_mut(id) {
            invite.used_by = Some(request_hash.to_owned());
        }
    }

    /// Which agent that request makes by the invite, and whether (`true`) it has done so already. Asked before it is
    /// proposed too.
    pub fn may_join(
        &self,
        id: &str,
        request_hash: &str,
        now: Timestamp,
    ) -> Result<(NodeName, bool), Refusal> {
        let (invite, used) = self.usable(id, request_hash, now)?;
        let Admits::Agent(name) = invite.admits.clone() else {
            return Err(Refusal::NotAllowed(format!("invite {id} admits a cluster, not an agent")));
        };
        let agent = self.agent_id(&name);
        if let Some(revocation) = self.view.revocations.of_identity(&agent) {
            return Err(Refusal::NotAllowed(format!("{agent} is revoked by {}", revocation.id)));
        }
        // It was evicted since, or has joined with another token: this one must not bring it back.
        let still = |a: &AgentRecord| a.invite == id && a.evicted.is_none();
        if used && !self.private.agents.get(&name).is_some_and(still) {
            return Err(Refusal::Precondition(format!("invite {id} has been used; ask for a new token")));
        }
        Ok((name, used))
    }

    pub(super) fn agent_join(&mut self, id: &str, request_hash: &str, now: Timestamp) -> Decision {
        let (name, used) = self.may_join(id, request_hash, now)?;
        if used {
            return already();
        }
        self.forget_evicted(now);
        if !self.private.agents.contains_key(&name) {
            bounded("agents", self.private.agents.len(), MAX_AGENTS)?;
        }
        self.consume(id, request_hash);
        let agent = self.agent_id(&name);
        let record = AgentRecord { invite: id.to_owned(), ..AgentRecord::new(name.clone(), agent, now) };
        self.private.agents.insert(name, record);
        Ok((Answer::Done, Vec::new()))
    }

    pub(super) fn peer_accept(
        &mut self,
        id: &str,
        request_hash: &str,
        offer: &Offer,
        now: Timestamp,
    ) -> Decision {
        let (invite, used) = self.usable(id, request_hash, now)?;
        if invite.admits != Admits::Cluster(offer.cluster.clone()) {
            return Err(Refusal::NotAllowed(format!("invite {id} does not admit cluster {}", offer.cluster)));
        }
        let made = self.view.peers.get(&offer.cluster).is_some_and(|p| p.record.invite == id);
        if used && made {
            return already();
        }
        if used {
            // The peer that it made has left since: the same request again must not bring it back.
            return Err(Refusal::Precondition(format!("invite {id} has been used; ask for a new token")));
        }
        let changes = self.new_peer(id, offer, now)?;
        self.consume(id, request_hash);
        done(changes)
    }

    pub(super) fn peer_add(&mut self, invite: &str, offer: &Offer, now: Timestamp) -> Decision {
        if self.view.peers.get(&offer.cluster).is_some_and(|p| p.record.invite == invite) {
            return already();
        }
        done(self.new_peer(invite, offer, now)?)
    }

    fn new_peer(&self, invite: &str, offer: &Offer, now: Timestamp) -> Result<Vec<Change>, Refusal> {
        let cluster = &offer.cluster;
        if *cluster == self.view.cluster || offer.trust_domain == self.view.trust_domain {
            return Err(Refusal::Invalid("a cluster cannot join itself".into()));
        }
        if self.view.peers.contains_key(cluster) {
            return Err(Refusal::Precondition(format!("{cluster} is joined already; let it leave first")));
        }
        if let Some(peer) = self.view.peer_of(&offer.trust_domain) {
            let (taken, by) = (&offer.trust_domain, &peer.record.cluster);
            return Err(Refusal::Precondition(format!("trust domain {taken} is that of {by}")));
        }
        if let Some(revocation) = self.view.revocations.of_cluster(&offer.trust_domain) {
            let why = format!("the cluster of {} is revoked by {}", offer.trust_domain, revocation.id);
            return Err(Refusal::Precondition(why));
        }
        if offer.bundle.trust_domain != offer.trust_domain || offer.bundle.authorities.is_empty() {
            return Err(Refusal::Invalid(format!(
                "the offer's bundle is not that of {}",
                offer.trust_domain
            )));
        }
        if self.private.strangers.contains_key(&offer.trust_domain) {
            return Err(Refusal::Precondition(format!(
                "{} is federated with as a stranger; end that first: hanse trust federation delete",
                offer.trust_domain
            )));
        }
        bounded("peers", self.view.peers.len(), MAX_PEERS)?;
        let record = join::record(offer, invite, now);
        check_endpoints(&record.endpoints)?;
        let gateways = PeerFact::Gateways(offer.gateways.clone());
        if !speaks_of_itself(&record, &gateways) {
            return Err(Refusal::Invalid(format!("a gateway in the offer is not of {}", offer.trust_domain)));
        }
        Ok(vec![
            Change::PeerPut(record),
            Change::BundlePut(offer.bundle.clone()),
            Change::PeerFact(cluster.clone(), gateways),
        ])
    }

    /// With `only_invite`, undoes exactly that join: if it had not been completed, the invite may then be used again
    /// until it expires.
    pub(super) fn peer_remove(&mut self, cluster: &ClusterName, only_invite: Option<&str>) -> Decision {
        let peer = self.view.peers.get(cluster);
        if let Some(invite) = only_invite {
            let Some(peer) = peer.filter(|p| p.record.invite == invite) else { return already() };
            let (gone, completed) = (peer.record.cluster.clone(), peer.state == PeerState::Joined);
            if let Some(invite) = self.private.invites.get_mut(invite).filter(|_| !completed) {
                invite.used_by = None;
            }
            return done(vec![Change::PeerGone(gone)]);
        }
        match peer {
            Some(_) => done(vec![Change::PeerGone(cluster.clone())]),
            None => Err(not_found("peer", cluster, self.view.peers.keys())),
        }
    }

    /// The import filter has seen them at the node that proposed them. What a peer says of others than itself is
    /// dropped here once more: this is the last door.
    pub(super) fn peer_facts(
        &self,
        cluster: &ClusterName,
        facts: &[PeerFact],
        follows: Option<Told>,
    ) -> Decision {
        let Some(peer) = self.view.peers.get(cluster) else {
            return Err(not_found("peer", cluster, self.view.peers.keys()));
        };
        if follows.is_some_and(|told| told != Told::of(peer)) {
            return Err(Refusal::Precondition(format!(
                "something else has been taken in from {cluster} meanwhile"
            )));
        }
        // Twice the import filter's bounds: while a retelling is under way, what it replaces is still here.
        let origin = &peer.record.trust_domain;
        let mut revocations = self.view.revocations.iter().filter(|r| r.id.origin == *origin).count();
        let mut services = peer.services.len();
        let mut changes = Vec::with_capacity(facts.len());
        for fact in facts.iter().filter(|f| speaks_of_itself(&peer.record, f)) {
            if let PeerFact::Service(summary) = fact
                && !peer.services.contains_key(&summary.name)
            {
                bounded("services of one peer", services, 2 * MAX_IMPORTED_SERVICES)?;
                services += 1;
            }
            if let PeerFact::Revoked(revocation) = fact
                && self.view.revocations.get(&revocation.id).is_none()
            {
                bounded("revocations of one peer", revocations, 2 * MAX_IMPORTED_REVOCATIONS)?;
                revocations += 1;
            }
            if let PeerFact::Endpoints(endpoints) = fact {
                check_endpoints(endpoints)?;
            }
            changes.push(Change::PeerFact(cluster.clone(), fact.clone()));
        }
        done(changes)
    }
}

/// Whether a fact concerns nothing but the peer's own trust domain.
fn speaks_of_itself(peer: &PeerRecord, fact: &PeerFact) -> bool {
    let own = &peer.trust_domain;
    match fact {
        PeerFact::Service(summary) => summary.identities.iter().all(|id| id.trust_domain() == own),
        PeerFact::Gateways(gateways) => {
            gateways.len() <= MAX_PEER_GATEWAYS
                && gateways.iter().all(|g| {
                    g.identity.is_member(own, MemberRole::Gateway)
                        && check_host_port("tunnel", &g.tunnel).is_ok()
                })
        }
        PeerFact::Bundle(bundle) => bundle.trust_domain == *own && !bundle.authorities.is_empty(),
        PeerFact::Revoked(revocation) => revocation.is_of(own),
        PeerFact::Unrevoked(id) => id.origin == *own,
        // A View takes it in only for an authority of the peer's own bundle.
        PeerFact::Crl(crl) => crl.der.len() <= MAX_CRL_BYTES,
        PeerFact::ServiceGone(_) | PeerFact::Endpoints(_) | PeerFact::Synced(_) | PeerFact::Begin => true,
    }
}

fn check_endpoints(endpoints: &[String]) -> Result<(), Refusal> {
    if endpoints.is_empty() || endpoints.len() > MAX_PEER_ENDPOINTS {
        let told = endpoints.len();
        return Err(Refusal::Invalid(format!(
            "a peer names 1 to {MAX_PEER_ENDPOINTS} endpoints, not {told}"
        )));
    }
    endpoints.iter().try_for_each(|e| check_host_port("the peer's endpoint", e))
}
