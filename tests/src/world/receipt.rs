//! Receipts of revocations in the World: the product's own count, of what the World's proxies have in force.

use std::collections::{BTreeMap, BTreeSet};

use hanse_control::admin::{ReachState, Receipt, ReceiptPart, SubscriberKind, Tally, part_of};
use hanse_control::io::census::Subscriber;
use hanse_identity::name::MemberRole;
use hanse_identity::{NodeName, RevocationId, SpiffeId};

use super::network::Party;
use super::{At, World};

impl World {
    /// The receipt as an administrator of `cluster` gets it now, in words.
    pub(super) fn receipt(&self, cluster: usize, id: &RevocationId) -> String {
        let Some(leader) = self.leader(cluster) else {
            return format!("{} has no leader", self.clusters[cluster].name);
        };
        let Some(state) = self.state_of(leader) else { return "no State".to_owned() };
        let Some(revocation) = state.view.revocations.get(id) else { return format!("{id} does not exist") };
        let mut parts = vec![self.receipt_part(leader, id)];
        let peers = state.view.peers.keys().filter(|_| revocation.is_of(&state.view.trust_domain));
        for peer in peers {
            let there = self.cluster_named(peer.as_str()).and_then(|there| self.asked(leader, there));
            parts.push(match there {
                Some(at) => self.receipt_part(at, id),
                None => ReceiptPart::unreachable(peer.clone(), "no answer".to_owned()),
            });
        }
        words(&Receipt::new(id.clone(), parts))
    }

    /// A node of `cluster` that can be asked and has a State that is as new as its cluster's.
    pub(super) fn asked(&self, from: At, cluster: usize) -> Option<At> {
        let nodes = 0..self.clusters[cluster].nodes.len();
        let reaches = |at: &At| {
            let (here, there) = (from.party(), at.party());
            self.network.passes(here, there) && self.network.passes(there, here)
        };
        let mut reached = nodes.map(|index| At { cluster, index }).filter(reaches);
        reached.find(|at| self.leader(cluster) == Some(*at))
    }

    fn receipt_part(&self, at: At, id: &RevocationId) -> ReceiptPart {
        let there = &self.clusters[at.cluster];
        let known = self.state_of(at).is_some_and(|state| state.view.revocations.get(id).is_some());
        let revision = self.ledger.revoked_in(at.cluster, id).filter(|_| known);
        let proxies = there.proxies.iter().enumerate().filter(|(_, proxy)| proxy.is_up());
        let node = &there.nodes[at.index].name;
        let hears = |index: usize| self.network.passes(at.party(), Party::Proxy(at.cluster, index));
        let subscribers = proxies.map(|(index, proxy)| Subscriber {
            node: node.clone(),
            connected: hears(index),
            applied: proxy.view().map_or(0, |view| view.revision.0),
            ..subscriber(&proxy.name, &proxy.identity)
        });
        part_of(there.name.clone(), id, revision, subscribers, BTreeSet::new())
    }
}

/// A subscriber of that name that has said nothing yet.
pub(super) fn subscriber(name: &NodeName, identity: &SpiffeId) -> Subscriber {
    Subscriber {
        name: name.clone(),
        kind: match identity.as_member() {
            Some((MemberRole::Gateway, _)) => SubscriberKind::Gateway,
            _ => SubscriberKind::Proxy,
        },
        identity: identity.clone(),
        node: name.clone(),
        applied: 0,
        closed: BTreeMap::new(),
        connected: true,
        seen: Default::default(),
        version: String::new(),
        remote: None,
        serial: None,
        refused: None,
        sds: Default::default(),
        outgoing: BTreeMap::new(),
        proofs: Vec::new(),
    }
}

fn words(receipt: &Receipt) -> String {
    let of = |tally: Tally| format!("{}/{}", tally.enforced, tally.total);
    let mut lines = Vec::new();
    for part in &receipt.parts {
        let state = match part.state {
            ReachState::Committed => "enforced by",
            ReachState::NotCommitted => "has not heard of it:",
            ReachState::Unreachable => {
                lines.push(format!("{}: not reached", part.cluster));
                continue;
            }
        };
        lines.push(format!(
            "{}: {state} {} proxies, {} gateways",
            part.cluster,
            of(part.proxies),
            of(part.gateways)
        ));
        lines.extend(part.behind.iter().map(|behind| format!("  behind: {}", behind.name)));
    }
    lines.push(if receipt.complete { "complete" } else { "NOT complete" }.to_owned());
    lines.join("\n")
}
