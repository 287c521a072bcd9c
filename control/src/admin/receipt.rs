//! The receipt of a revocation: who enforces it, who is behind. Pure: from what nodes say of their subscribers.

use std::collections::{BTreeMap, BTreeSet};

use hanse_identity::{ClusterName, NodeName, RevocationId, Timestamp};
use serde::{Deserialize, Serialize};

use super::proof::Proof;
use super::{IntermediateItem, SubscriberKind, WaitsFor};
use crate::io::census::{SdsReport, Subscriber};
use crate::state::rotation::Gate;

/// How far a revocation is enforced, in every cluster that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    pub id: RevocationId,
    /// Every part is complete, and the proof does not speak against it.
    pub complete: bool,
    /// The answering cluster's own part first, then its peers'.
    pub parts: Vec<ReceiptPart>,
    /// What whoever holds a revoked certificate saw of it.
    #[serde(default)]
    pub proof: Proof,
    /// Of an authority: how far its replacement is, without which the receipt is not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// Nested issuers whose intermediate it hits, and so all that they have signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intermediates: Vec<IntermediateItem>,
}

/// The rotation by which an authority is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gates {
    pub rotation: u64,
    pub gate: Gate,
    /// When it came to each.
    pub reached: BTreeMap<Gate, Timestamp>,
    pub waits_for: Vec<WaitsFor>,
}

/// One cluster's part of a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptPart {
    pub cluster: ClusterName,
    pub state: ReachState,
    /// That cluster's log index at which the revocation was committed there, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    pub proxies: Tally,
    pub gateways: Tally,
    pub agents: Tally,
    /// Clients of the agents' SDS that have said that it is in force at their end.
    #[serde(default)]
    pub sds: Tally,
    /// Live connections closed because of it.
    pub closed_connections: u64,
    pub behind: Vec<Behind>,
    /// Control nodes that did not say what their subscribers have applied.
    pub nodes_silent: Vec<NodeName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether a cluster could be asked, and whether it knows of the revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReachState {
    Committed,
    NotCommitted,
    Unreachable,
}

/// Enforced n of N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    pub enforced: usize,
    pub total: usize,
}

/// A subscriber that has not put the revocation in force yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Behind {
    pub name: NodeName,
    pub kind: SubscriberKind,
    pub applied: u64,
    /// False: its stream is gone and it has not come back yet.
    pub connected: bool,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.enforced += other.enforced;
        self.total += other.total;
    }
}

impl SdsReport {
    /// How many of the clients have a revision in force, by the agent's last word. Who has accepted everything up to
    /// it but not the newest state is not told apart, and counts as behind.
    fn at(&self, revision: u64, applied: u64) -> Tally {
        let enforced = match self {
            _ if applied >= revision => self.subscribers,
            report if report.known >= revision => report.acknowledged,
            _ => 0,
        };
        Tally { enforced: enforced as usize, total: self.subscribers as usize }
    }
}

impl Receipt {
    pub fn new(id: RevocationId, parts: Vec<ReceiptPart>) -> Self {
        let complete = !parts.is_empty() && parts.iter().all(ReceiptPart::complete);
        Self { id, complete, parts, proof: Proof::default(), gates: None, intermediates: Vec::new() }
    }

    pub fn with_gates(self, gates: Option<Gates>) -> Self {
        let passed = gates.as_ref().is_none_or(|gates| gates.gate == Gate::Done);
        Self { complete: self.complete && passed, gates, ..self }
    }

    pub fn with_intermediates(self, intermediates: Vec<IntermediateItem>) -> Self {
        Self { intermediates, ..self }
    }

    pub fn with_proof(self, proof: Proof) -> Self {
        Self { complete: self.complete && proof.allows(), proof, ..self }
    }
}

impl ReceiptPart {
    /// Committed, and nobody is known or suspected to be behind.
    pub fn complete(&self) -> bool {
        self.state == ReachState::Committed && self.behind.is_empty() && self.nodes_silent.is_empty()
    }

    /// A cluster that could not be asked.
    pub fn unreachable(cluster: ClusterName, error: String) -> Self {
        Self {
            cluster,
            state: ReachState::Unreachable,
            revision: None,
            proxies: Tally::default(),
            gateways: Tally::default(),
            agents: Tally::default(),
            sds: Tally::default(),
            closed_connections: 0,
            behind: Vec::new(),
            nodes_silent: Vec::new(),
            error: Some(error),
        }
    }
}

/// One entry per subscriber: connected before gone, then the furthest. A subscriber that moved from one control
/// node to another is thus counted once, where it is now; what it closed is counted by its own latest word.
pub fn merged(subscribers: impl IntoIterator<Item = Subscriber>) -> Vec<Subscriber> {
    let mut by_name: BTreeMap<(SubscriberKind, NodeName), Subscriber> = BTreeMap::new();
    for subscriber in subscribers {
        let key = (subscriber.kind, subscriber.name.clone());
        let rank = |s: &Subscriber| (s.connected, s.applied);
        match by_name.get(&key) {
            Some(known) if rank(known) >= rank(&subscriber) => {}
            _ => {
                by_name.insert(key, subscriber);
            }
        }
    }
    by_name.into_values().collect()
}

/// Our own part, from what our nodes say. `revision` is where our log committed it (`None`: not known here).
pub fn part_of(
    cluster: ClusterName,
    id: &RevocationId,
    revision: Option<u64>,
    subscribers: impl IntoIterator<Item = Subscriber>,
    nodes_silent: BTreeSet<NodeName>,
) -> ReceiptPart {
    let mut part = ReceiptPart {
        cluster,
        state: if revision.is_some() { ReachState::Committed } else { ReachState::NotCommitted },
        revision,
        proxies: Tally::default(),
        gateways: Tally::default(),
        agents: Tally::default(),
        sds: Tally::default(),
        closed_connections: 0,
        behind: Vec::new(),
        nodes_silent: nodes_silent.into_iter().collect(),
        error: None,
    };
    for subscriber in merged(subscribers) {
        let tally = match subscriber.kind {
            SubscriberKind::Proxy => &mut part.proxies,
            SubscriberKind::Gateway => &mut part.gateways,
            SubscriberKind::Agent => &mut part.agents,
        };
        tally.total += 1;
        if let Some(at) = revision {
            part.sds.add(subscriber.sds.at(at, subscriber.applied));
        }
        part.closed_connections += subscriber.closed.get(id).copied().unwrap_or(0);
        // Without a stream, who has applied it still enforces it: a View outlives the stream that brought it.
        if revision.is_some_and(|at| subscriber.applied >= at) {
            tally.enforced += 1;
        } else {
            part.behind.push(Behind {
                name: subscriber.name,
                kind: subscriber.kind,
                applied: subscriber.applied,
                connected: subscriber.connected,
            });
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_identity::SpiffeId;

    fn subscriber(kind: SubscriberKind, name: &str, node: &str, applied: u64, connected: bool) -> Subscriber {
        let id: SpiffeId = format!("spiffe://east.example/ns/shop/sa/{name}").parse().unwrap();
        Subscriber {
            name: name.parse().unwrap(),
            kind,
            identity: id,
            node: node.parse().unwrap(),
            applied,
            closed: BTreeMap::new(),
            connected,
            seen: Timestamp(1),
            version: String::new(),
            refused: None,
            sds: Default::default(),
            remote: None,
            serial: None,
            outgoing: BTreeMap::new(),
            proofs: Vec::new(),
        }
    }

    fn id() -> RevocationId {
        "r-10@east.example".parse().unwrap()
    }

    #[test]
    fn counts_who_enforces_and_names_who_is_behind() {
        let mut reviews = subscriber(SubscriberKind::Proxy, "reviews-1", "east-1", 10, true);
        reviews.closed.insert(id(), 3);
        let part = part_of(
            "east".parse().unwrap(),
            &id(),
            Some(10),
            [
                reviews,
                subscriber(SubscriberKind::Proxy, "ratings-1", "east-2", 9, true),
                subscriber(SubscriberKind::Gateway, "gateway-1", "east-2", 12, true),
                subscriber(SubscriberKind::Agent, "host-1", "east-3", 11, true),
            ],
            BTreeSet::new(),
        );
        assert_eq!(part.proxies, Tally { enforced: 1, total: 2 });
        assert_eq!(part.gateways, Tally { enforced: 1, total: 1 });
        assert_eq!(part.agents, Tally { enforced: 1, total: 1 });
        assert_eq!(part.closed_connections, 3);
        assert_eq!(part.behind.len(), 1);
        assert_eq!(part.behind[0].name.as_str(), "ratings-1");
        assert!(!part.complete());
    }

    #[test]
    fn clients_of_sds_are_counted_by_what_they_have_accepted() {
        let agent = |name: &str, applied, known| Subscriber {
            sds: SdsReport { known, subscribers: 3, acknowledged: 2, rejected: 1, outgoing: 0 },
            ..subscriber(SubscriberKind::Agent, name, "east-1", applied, true)
        };
        let sds = |agents: Vec<Subscriber>| {
            part_of("east".parse().unwrap(), &id(), Some(10), agents, BTreeSet::new()).sds
        };
        assert_eq!(sds(vec![agent("all", 10, 12)]), Tally { enforced: 3, total: 3 });
        assert_eq!(sds(vec![agent("some", 9, 10)]), Tally { enforced: 2, total: 3 });
        assert_eq!(sds(vec![agent("none", 8, 9)]), Tally { enforced: 0, total: 3 });
        assert_eq!(sds(vec![agent("a", 10, 10), agent("b", 9, 10)]), Tally { enforced: 5, total: 6 });
    }

    #[test]
    fn a_subscriber_that_moved_is_counted_once_where_it_is() {
        let part = part_of(
            "east".parse().unwrap(),
            &id(),
            Some(10),
            [
                subscriber(SubscriberKind::Proxy, "reviews-1", "east-1", 9, false),
                subscriber(SubscriberKind::Proxy, "reviews-1", "east-2", 10, true),
            ],
            BTreeSet::new(),
        );
        assert_eq!(part.proxies, Tally { enforced: 1, total: 1 });
        assert!(part.complete());
    }

    #[test]
    fn who_is_gone_without_having_applied_it_is_behind() {
        let east: ClusterName = "east".parse().unwrap();
        let gone = subscriber(SubscriberKind::Proxy, "reviews-1", "east-1", 9, false);
        let part = part_of(east.clone(), &id(), Some(10), [gone], BTreeSet::new());
        assert_eq!(part.proxies, Tally { enforced: 0, total: 1 });
        assert!(!part.complete());
        let gone = subscriber(SubscriberKind::Proxy, "reviews-1", "east-1", 10, false);
        assert!(part_of(east, &id(), Some(10), [gone], BTreeSet::new()).complete());
    }

    #[test]
    fn not_complete_while_a_node_is_silent_or_a_cluster_has_not_committed_or_cannot_be_asked() {
        let east: ClusterName = "east".parse().unwrap();
        let done = part_of(east.clone(), &id(), Some(10), [], BTreeSet::new());
        assert!(Receipt::new(id(), vec![done.clone()]).complete);
        let silent = BTreeSet::from(["east-3".parse().unwrap()]);
        let with_silent = part_of(east.clone(), &id(), Some(10), [], silent);
        assert!(!Receipt::new(id(), vec![with_silent]).complete);
        let not_there = part_of("west".parse().unwrap(), &id(), None, [], BTreeSet::new());
        assert_eq!(not_there.state, ReachState::NotCommitted);
        assert!(!Receipt::new(id(), vec![done.clone(), not_there]).complete);
        let unreachable = ReceiptPart::unreachable("west".parse().unwrap(), "refused".to_owned());
        assert!(!Receipt::new(id(), vec![done, unreachable]).complete);
        assert!(!Receipt::new(id(), vec![]).complete);
    }
}
