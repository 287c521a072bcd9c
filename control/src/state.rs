//! State: what a control node's log adds up to. The View that everyone may know, and the tables that only
//! control nodes hold. `apply` is deterministic: no clock, no randomness, no I/O.
//!
//! One file per subject below does the work: `catalog` (announcements, exports), `registrations`, `peers` (invites,
//! joins, joined clusters), `agents` (evicted, banned), `hosts` (attested by certificates of their own), `rules` (policies, authorities), `revocations`, `issuance` (which SVIDs live), `downstream` (nested issuers), `rotation`
//! (of authorities), `jwt` (keys of JWT-SVIDs), `roles` (who may do what), `audit` (who did what), `strangers` (foreign trust domains), `snapshot`
//! (how a State is written).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hanse_federation::{Change, Revision, View};
use hanse_identity::name::MemberRole;
use hanse_identity::token::Invite;
use hanse_identity::{
    Bundle, ClusterName, NodeName, Registration, Revocation, SpiffeId, Timestamp, TrustDomain,
};
use serde::{Deserialize, Serialize};

use crate::command::{Answer, Command, Outcome, Proposal, Refusal};

mod addressed;
pub mod agents;
pub mod audit;
mod catalog;
pub mod downstream;
pub mod hosts;
pub mod issuance;
mod jwt;
mod peers;
mod registrations;
pub mod revocations;
pub mod roles;
pub mod rotation;
mod rules;
pub mod shared;
pub mod snapshot;
pub mod strangers;

use issuance::Issuance;
use revocations::Order;
use shared::Shared;

/// How many answers are remembered so that a retried proposal is answered and not applied again.
pub const REMEMBERED_PROPOSALS: usize = 4096;
/// The index, and so the revision, at which a cluster is founded.
pub const FOUNDING_INDEX: u64 = 1;
/// Most services of one cluster.
pub const MAX_SERVICES: usize = 10_000;
/// Most endpoints of one cluster.
pub const MAX_ENDPOINTS: usize = 100_000;
/// Most gateways of one cluster.
pub const MAX_GATEWAYS: usize = 1_000;
/// Most services that one proxy may announce.
pub const MAX_SERVICES_PER_ENDPOINT: usize = 64;
/// Most policy documents.
pub const MAX_POLICIES: usize = 10_000;
/// Key sets of issuers of end users' tokens that are fetched.
pub const MAX_ISSUER_KEYS: usize = 128;
/// Most invites that have not lapsed.
pub const MAX_INVITES: usize = 1_000;
/// Most registrations.
pub const MAX_REGISTRATIONS: usize = 100_000;
/// Most selectors, and most services, of one registration.
pub const MAX_PER_REGISTRATION: usize = 64;
/// Most agents.
pub const MAX_AGENTS: usize = 10_000;
/// Most joined clusters.
pub const MAX_PEERS: usize = 256;
/// Most gateways that one peer may have us remember.
pub const MAX_PEER_GATEWAYS: usize = 256;
/// Most control-node addresses that one peer may have us remember.
pub const MAX_PEER_ENDPOINTS: usize = 64;
/// Most revocations of this cluster's own in force.
pub const MAX_REVOCATIONS: usize = 100_000;
/// Most authorities in the cluster's own bundle.
pub const MAX_AUTHORITIES: usize = 64;
/// Longest free text (a note, a region), in bytes.
pub const MAX_TEXT_BYTES: usize = 1_000;

/// Everything that the log adds up to at one index. Equal index ⇒ equal State, on every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub view: View,
    pub private: Private,
}

/// Tables that do not leave the control nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Private {
    /// The voters, by Raft id, as the cluster was founded.
    pub nodes: BTreeMap<u64, NodeRecord>,
    pub invites: BTreeMap<String, Invite>,
    pub agents: BTreeMap<NodeName, AgentRecord>,
    /// Key: `<spiffe id> <agent>`.
    pub registrations: Shared<BTreeMap<String, Arc<Registration>>>,
    /// (proposal id, its outcome), oldest first, at most `REMEMBERED_PROPOSALS`.
    pub remembered: Shared<VecDeque<(u64, Outcome)>>,
    /// The rotation of authorities that runs, or ran last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<rotation::Rotation>,
    /// Who was given which roles.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: roles::Bindings,
    /// Foreign trust domains. Not in the View: nothing of the mesh itself believes them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub strangers: strangers::Strangers,
    /// Who did what.
    #[serde(default)]
    pub audit: audit::AuditTrail,
    #[serde(default, skip_serializing_if = "Issuance::is_empty")]
    pub issued: Issuance,
    /// Which certificates of the user's own PKI attest hosts; none: join tokens alone do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<hosts::HostSettings>,
    /// Revision of the last Command that was more than a batch of records: before it, nobody has to look again.
    #[serde(default)]
    pub moved: u64,
}

/// A control node as its cluster knows it (public part of `node init`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    pub raft_id: u64,
    pub name: NodeName,
    /// `host:port` for nodes, agents, proxies and administrators of this cluster.
    pub address: String,
    /// `host:port` as other clusters reach it.
    pub peer_address: String,
    /// What goes into the bundle: the node's own authority, or the root above it, which nodes then share.
    pub authority: hanse_identity::AuthorityCertificate,
    /// The node's own authority, if a root of the user's own house signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate: Option<hanse_identity::Intermediate>,
}

impl NodeRecord {
    /// The key that signs on this node; no other node has it.
    pub fn signing_key(&self) -> hanse_identity::KeyId {
        self.intermediate.as_ref().map_or(self.authority.key_id, |i| i.key_id)
    }
}

/// What the bundle of these nodes holds: each authority once, as nodes below the same root share it.
pub fn anchors<'r>(
    nodes: impl IntoIterator<Item = &'r NodeRecord>,
) -> Vec<hanse_identity::AuthorityCertificate> {
    let mut anchors: Vec<hanse_identity::AuthorityCertificate> = Vec::new();
    for node in nodes {
        if !anchors.contains(&node.authority) {
            anchors.push(node.authority.clone());
        }
    }
    anchors
}

/// A host's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentRecord {
    pub name: NodeName,
    pub id: SpiffeId,
    pub joined: Timestamp,
    /// By which it joined: the same request with the same invite is answered again, as long as it is this one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub invite: String,
    /// When it was put out; until it joins anew nothing is given to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evicted: Option<Timestamp>,
    /// Its host's certificate, if it joined by that; else it was with a join token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<hosts::HostJoin>,
    /// Until when a certificate of its host may make it once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Timestamp>,
}

impl AgentRecord {
    /// An agent that joins now; by what, its caller says.
    pub fn new(name: NodeName, id: SpiffeId, joined: Timestamp) -> Self {
        Self { name, id, joined, invite: String::new(), evicted: None, host: None, allowed: None }
    }
}

/// What one Command comes to: its answer and the Changes, or why nothing happens.
type Decision = Result<(Answer, Vec<Change>), Refusal>;

/// Nothing had to be changed.
fn already() -> Decision {
    Ok((Answer::Already, Vec::new()))
}

/// `Done`, or `Already` if there is nothing to change.
fn done(changes: Vec<Change>) -> Decision {
    let answer = if changes.is_empty() { Answer::Already } else { Answer::Done };
    Ok((answer, changes))
}

/// Refuses what would not fit any more.
fn bounded(what: &str, len: usize, max: usize) -> Result<(), Refusal> {
    if len < max { Ok(()) } else { Err(Refusal::Limit(format!("{max} {what}"))) }
}

impl State {
    /// The State of a newly founded cluster: its nodes and the bundle of their authorities.
    pub fn founded(cluster: ClusterName, trust_domain: TrustDomain, nodes: Vec<NodeRecord>) -> Self {
        let nodes: BTreeMap<u64, NodeRecord> = nodes.into_iter().map(|n| (n.raft_id, n)).collect();
        let bundle = Bundle::new(trust_domain.clone(), 1, anchors(nodes.values()));
        let mut view = View::new(cluster, trust_domain);
        view.advance(Revision(FOUNDING_INDEX), &[Change::BundlePut(bundle)]);
        Self { view, private: Private { nodes, ..Private::default() } }
    }

    /// Applies one committed proposal at log index `index`. Changes are folded into the View already.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> (Outcome, Vec<Change>) {
        // Records are recognised by their serial numbers: remembering them would push out what needs remembering.
        let records = matches!(proposal.command, Command::Issued { .. });
        if !records
            && let Some((_, outcome)) =
                self.private.remembered.iter().rev().find(|(id, _)| *id == proposal.id)
        {
            let outcome = outcome.clone();
            self.skip(index);
            return (outcome, Vec::new());
        }
        let (result, changes) = match self.decide(index, proposal) {
            Ok((answer, changes)) => (Ok(answer), changes),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        self.view.advance(Revision(index), &changes);
        self.private.audit.record(index, proposal, &result, !changes.is_empty());
        let outcome = Outcome { revision: index, result };
        if records && changes.is_empty() {
            return (outcome, changes);
        }
        if !changes.is_empty() || matches!(&outcome.result, Ok(answer) if *answer != Answer::Already) {
            self.private.moved = index;
        }
        if records {
            return (outcome, changes);
        }
        if self.private.remembered.len() >= REMEMBERED_PROPOSALS {
            self.private.remembered.pop_front();
        }
        self.private.remembered.push_back((proposal.id, outcome.clone()));
        (outcome, changes)
    }

    /// An entry without a Command (a new leader's, a membership change) still moves the revision.
    pub fn skip(&mut self, index: u64) {
        self.view.advance(Revision(index), &[]);
    }

    /// Decides a Command and changes the private tables; the View changes when its caller folds in the Changes.
    /// Whoever returns a `Refusal` has changed nothing.
    fn decide(&mut self, index: u64, proposal: &Proposal) -> Decision {
        let now = proposal.now;
        match &proposal.command {
            Command::Announce { announcement, identity, node } => self.announce(announcement, identity, node),
            Command::Withdraw { name, session } => self.withdraw(name, session),
            Command::Export { service, to } => self.export(service, to),
            Command::Unexport { service } => self.unexport(service),
            Command::PolicyApply { documents } => self.policy_apply(documents, now),
            Command::PolicyDelete { keys } => self.policy_delete(keys),
            Command::IssuerKeys { source, jwks } => self.issuer_keys(source, jwks.as_ref()),
            Command::PolicyLapse { keys } => self.policy_lapse(keys, now),
            Command::Revoke { target, reason, note, expires, reissue, closing } => {
                let order = Order {
                    target,
                    reason: *reason,
                    note,
                    expires: *expires,
                    reissue: *reissue,
                    closing: *closing,
                };
                self.revoke(index, proposal, &order)
            }
            Command::Lift { id } => self.lift(id),
            Command::RevocationsClear { ids, compromised } => self.revocations_clear(ids, *compromised),
            Command::Issued { records } => self.issued(records, now),
            Command::DownstreamIssued { record } => self.downstream_issued(record, now),
            Command::Lapse { ids } => self.lapse(ids, now),
            Command::InviteCreate { invite } => {
                self.may_admit(&proposal.actor, &invite.admits)?;
                self.invite_create(invite, now)
            }
            Command::AgentJoin { invite, request_hash } => self.agent_join(invite, request_hash, now),
            Command::HostTrustPut { trust } => self.host_trust_put(index, trust),
            Command::HostTrustDelete {} => self.host_trust_delete(),
            Command::AgentAttest { agent, join, since } => self.agent_attest(agent, join, *since, now),
            Command::AgentAllow { agent, until } => self.agent_allow(&proposal.actor, agent, *until, now),
            Command::AgentEvict { agent, note } => self.agent_evict(index, proposal, agent, note),
            Command::AgentUnban { agent } => self.agent_unban(index, proposal, agent),
            Command::WorkloadRegister { registration } => {
                self.may_register(&proposal.actor, registration)?;
                self.workload_register(registration, now)
            }
            Command::WorkloadDelete { id, agent } => self.workload_delete(id, agent),
            Command::WorkloadApply { registrations } => {
                registrations.iter().try_for_each(|r| self.may_register(&proposal.actor, r))?;
                self.workload_apply(registrations, now)
            }
            Command::WorkloadLapse { keys } => self.workload_lapse(keys, now),
            Command::PeerAccept { invite, request_hash, offer } => {
                self.peer_accept(invite, request_hash, offer, now)
            }
            Command::PeerAdd { invite, offer } => self.peer_add(invite, offer, now),
            Command::PeerRemove { cluster, only_invite } => self.peer_remove(cluster, only_invite.as_deref()),
            Command::PeerFacts { cluster, facts, follows } => self.peer_facts(cluster, facts, *follows),
            Command::AuthorityPublish { node, certificate, rotation } => {
                self.authority_publish(node, certificate, *rotation)
            }
            Command::RotateBegin { authority, reissue } => {
                let wanted = rotation::Wanted {
                    authority: authority.as_ref(),
                    reissue: *reissue,
                    revocation: None,
                    closing: hanse_identity::Closing::Never,
                };
                self.rotate_begin(index, proposal, wanted)
            }
            Command::RotateStep { id, to } => self.rotate_step(*id, *to, now),
            Command::RotateAbort {} => self.rotate_abort(now),
            Command::CredentialRenew { id, .. } => self.credential_renew(id),
            Command::Tap { .. } => Ok((Answer::Done, Vec::new())),
            Command::CrlPublish { crl } => self.crl_publish(crl),
            Command::RoleBind { id, roles } => self.role_bind(id, roles),
            Command::RoleUnbind { id, roles } => self.role_unbind(id, roles),
            Command::JwtAuthorityPublish { node, authority } => {
                self.jwt_authority_publish(node, authority, now)
            }
            Command::FederationPut { federation, bundle } => {
                self.federation_put(federation, bundle.as_deref(), now)
            }
            Command::FederationDelete { trust_domain, registrations } => {
                self.may_change_registrations(&proposal.actor, *registrations)?;
                self.federation_delete(trust_domain, *registrations)
            }
            Command::ForeignBundleSet { bundle, older } => self.foreign_bundle_set(bundle, *older, now),
            Command::ForeignBundlePut { bundle, since } => self.foreign_bundle_put(bundle, *since, now),
        }
    }

    /// The revocation of a control node of this cluster, if it is revoked.
    pub fn node_revocation(&self, node: &NodeName) -> Option<&Revocation> {
        let id = SpiffeId::member(&self.view.trust_domain, MemberRole::Node, node);
        self.view.revocations.of_identity(&id)
    }

    /// Registrations of an identity, on whichever agent.
    pub fn registrations_of(&self, id: &SpiffeId) -> impl Iterator<Item = &Registration> {
        let prefix = format!("{id} ");
        let from = prefix.clone();
        self.private
            .registrations
            .range(from..)
            .take_while(move |(key, _)| key.starts_with(&prefix))
            .map(|(_, r)| r.as_ref())
    }
}

/// What does not exist, with what it may have been meant to be.
fn not_found<'n, T: std::fmt::Display + 'n>(
    kind: &str,
    name: &T,
    known: impl Iterator<Item = &'n T>,
) -> Refusal {
    let wanted = name.to_string();
    let mut near: Vec<(usize, String)> =
        known.map(T::to_string).filter_map(|k| distance(&wanted, &k).map(|d| (d, k))).collect();
    near.sort();
    near.truncate(3);
    let names: Vec<String> = near.into_iter().map(|(_, name)| name).collect();
    let what = match names.is_empty() {
        true => format!("{kind} {wanted}"),
        false => format!("{kind} {wanted} (near: {})", names.join(", ")),
    };
    Refusal::NotFound { what }
}

/// How many letters differ (Levenshtein), if few enough to be a slip.
fn distance(a: &str, b: &str) -> Option<usize> {
    let most = 1 + a.len() / 4;
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let b: Vec<u8> = b.bytes().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().filter(|d| *d <= most)
}

#[cfg(test)]
mod tests;
