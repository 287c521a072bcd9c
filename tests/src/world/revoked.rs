//! Revoked nodes and agents in the World: who talks to whom no more, as `control/io/node_link/believed` and `io/quorum` do
//! it; hosts' agents that join, are put out and come back; and what must hold once all is at rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hanse_control::command::Command;
use hanse_federation::View;
use hanse_identity::token::{Admits, Invite};
use hanse_identity::{NodeName, RevocationTarget, TrustDomain};

use super::network::Party;
use super::{At, EPOCH, Operation, Violation, World};

/// How long a node that has just been revoked is still told of what is committed.
const FAREWELL_MS: u64 = 300;
/// How long at rest it may take until everybody has an SVID that everybody believes.
const SVIDS_WITHIN_MS: u64 = 20_000;

/// Whether that node of that trust domain is revoked, as this View has it.
fn is_node_revoked(view: &View, domain: &TrustDomain, name: &NodeName) -> bool {
    let of_node = |target: &RevocationTarget| matches!(target, RevocationTarget::Node(node) if node == name);
    view.revocations.iter().any(|r| r.id.origin == *domain && of_node(&r.target))
}

impl World {
    /// The nodes of a cluster that are revoked, as a View has it that may be another cluster's.
    pub(super) fn revoked_nodes(&self, cluster: usize, view: &View) -> BTreeSet<usize> {
        let Some(there) = self.clusters.get(cluster) else { return BTreeSet::new() };
        let nodes = there.nodes.iter().enumerate();
        let revoked = nodes.filter(|(_, node)| is_node_revoked(view, &there.trust_domain, &node.name));
        revoked.map(|(index, _)| index).collect()
    }

    /// A node has a new State: whom of its cluster it believes no more, and since when.
    pub(super) fn note_revoked(&mut self, at: At) {
        let Some(state) = self.state_of(at).cloned() else { return };
        let (now, revoked) = (self.now, self.revoked_nodes(at.cluster, &state.view));
        let Some(running) = self.running(at) else { return };
        running.revoked.retain(|index, _| revoked.contains(index));
        for index in revoked {
            running.revoked.entry(index).or_insert(now);
        }
    }

    /// Whom of its cluster a node believes no more, and since when.
    pub(super) fn disbelieved(&self, at: At) -> BTreeMap<usize, u64> {
        let running = self.clusters[at.cluster].nodes[at.index].running.as_ref();
        running.map(|running| running.revoked.clone()).unwrap_or_default()
    }

    /// Whether this node knows that it is revoked itself: it sends everybody away, signs and publishes nothing.
    pub(super) fn is_revoked(&self, at: At) -> bool {
        let running = self.clusters[at.cluster].nodes[at.index].running.as_ref();
        running.is_some_and(|running| running.revoked.contains_key(&at.index))
    }

    /// Whether a node has cut its own connections to another one of its cluster.
    pub(super) fn has_cut(&self, at: At, other: usize) -> bool {
        let running = self.clusters[at.cluster].nodes[at.index].running.as_ref();
        let since = running.and_then(|running| running.revoked.get(&other));
        other != at.index && since.is_some_and(|since| self.now >= since + FAREWELL_MS)
    }

    /// Whether a node hears nothing of what comes from there: another node that it knows to be revoked.
    pub(super) fn disbelieves(&self, at: At, from: Party) -> bool {
        let (Party::Node(cluster, index), Some(state)) = (from, self.state_of(at)) else { return false };
        from != at.party() && self.revoked_nodes(cluster, &state.view).contains(&index)
    }

    /// The operator makes a join token for the agent of a proxy, and the agent uses it once it is there.
    pub fn agent_joins(&mut self, cluster: usize, index: usize) {
        let name = self.clusters[cluster].proxies[index].name.clone();
        let made = |o: &Operation| match &o.command {
            Command::InviteCreate { invite }
                if o.cluster == cluster && invite.admits == Admits::Agent(name.clone()) =>
            {
                Some((invite.id.clone(), matches!(&o.end, Some(Ok(outcome)) if outcome.result.is_ok())))
            }
            _ => None,
        };
        let tokens: Vec<(String, bool)> = self.operations.values().filter_map(made).collect();
        let used = |id: &str| {
            self.operations.values().any(
                |o| matches!(&o.command, Command::AgentJoin { invite, .. } if o.cluster == cluster && invite == id),
            )
        };
        let ready = tokens.iter().find(|(id, made)| *made && !used(id)).map(|(id, _)| id.clone());
        let command = match ready {
            Some(invite) => Command::AgentJoin { invite, request_hash: name.to_string() },
            None => Command::InviteCreate {
                invite: Invite {
                    id: format!("a-{name}-{}", tokens.len() + 1),
                    admits: Admits::Agent(name),
                    public_key: "one-time key".to_owned(),
                    made: EPOCH,
                    expires: EPOCH + Duration::from_secs(86_400),
                    used_by: None,
                },
            },
        };
        self.order(cluster, "admin", command);
    }

    /// The agent of a proxy has joined and has been put out: banned, or evicted.
    pub(super) fn is_out(&self, cluster: usize, index: usize) -> bool {
        let name = &self.clusters[cluster].proxies[index].name;
        let state = self.leader(cluster).and_then(|at| self.state_of(at));
        state.is_some_and(|state| {
            state.private.agents.contains_key(name) && state.agent_refused(name).is_some()
        })
    }

    /// At rest everybody who runs and is not revoked has an SVID, and everybody who may meet it believes it.
    pub(super) fn everybody_has_an_svid(&mut self) -> Result<(), Violation> {
        let until = self.now + SVIDS_WITHIN_MS;
        loop {
            let missing = (0..self.clusters.len()).find_map(|cluster| {
                (0..self.clusters[cluster].proxies.len()).find_map(|index| self.lacks(cluster, index))
            });
            match missing {
                None => return Ok(()),
                Some(what) if self.now >= until => {
                    return Err(Violation { at: self.now, what: format!("at rest, {what}") });
                }
                Some(_) => self.run_for(250)?,
            }
        }
    }

    /// What keeps a proxy from being believed by everybody, if anything does that should not.
    fn lacks(&self, cluster: usize, index: usize) -> Option<String> {
        let proxy = &self.clusters[cluster].proxies[index];
        let truth = self.ledger.truth(cluster);
        let life = proxy.running.as_ref()?;
        if truth.revocations.of_identity(&proxy.identity).is_some() || self.is_out(cluster, index) {
            return None;
        }
        let Some(svid) = &life.svid else { return Some(format!("{} has no SVID", proxy.name)) };
        if let Some(mark) = truth.revocations.watermark(&proxy.identity)
            && svid.facts.not_before <= mark
        {
            return Some(format!("{} has an SVID of before its reissue", proxy.name));
        }
        let now = self.clock();
        for (other, there) in self.clusters.iter().enumerate() {
            let joined = self.has_joined(cluster, other) && self.has_joined(other, cluster);
            let held = self.ledger.truth(other).revocations.of_cluster(&truth.trust_domain).is_some();
            if other != cluster && (!joined || held) {
                continue;
            }
            for (verifier, v) in there.proxies.iter().enumerate() {
                let Some(view) = v.view().filter(|_| !self.is_out(other, verifier)) else { continue };
                if let Err(why) = svid.check(view, now) {
                    return Some(format!("{} does not believe {}: {why:?}", v.name, proxy.name));
                }
            }
        }
        None
    }
}
