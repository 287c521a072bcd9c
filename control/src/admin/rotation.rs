//! `trust rotate`, `trust bundle` and what they ask: who has the bundle in force, what still rests on outgoing
//! authorities, and so what a gate of a rotation waits for. Pure: from what nodes say of themselves and others.

use std::collections::{BTreeMap, BTreeSet};

use hanse_federation::Peer;
use hanse_federation::stranger::{OWN_OVERLAP, OWN_REFRESH_HINT};
use hanse_identity::{Bundle, ClusterName, KeyId, NodeName, SpiffeId, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use super::{Behind, IntermediateItem, Meta, SubscriberKind, Tally, Warning, merged};
use crate::io::census::{NodeTrust, Subscriber};
use crate::state::State;
use crate::state::rotation::{Gate, Rotation};

/// Begins a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustRotateRequest {
    /// Only this authority; none: all of the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<KeyId>,
    /// SVIDs are replaced at once, not when they would be renewed anyway.
    #[serde(default)]
    pub reissue: bool,
}

/// Takes the rotation that runs back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustAbortRequest {}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustStatusRequest {}

/// How the rotation that runs, or ran last, stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustStatus {
    pub meta: Meta,
    pub rotation: Option<Rotation>,
    /// What its gate waits for; nothing once it is done.
    pub waits_for: Vec<WaitsFor>,
    /// Who has the bundle in force: this cluster first, then its peers.
    pub parts: Vec<BundlePart>,
    /// Nested issuers by the authority that signed their intermediates: a rotation of it waits for each of them.
    #[serde(default)]
    pub nested: BTreeMap<KeyId, Vec<IntermediateItem>>,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// Somebody that a gate waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitsFor {
    pub cluster: ClusterName,
    /// Such as `proxy reviews-1` or `node east-2`.
    pub who: String,
    pub why: String,
}

/// The bundles that the mesh believes: the own one and those of joined clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundleListRequest {
    /// Those of foreign trust domains too, which nothing of the mesh believes.
    #[serde(default)]
    pub foreign: bool,
}

/// An administrator asks for a new certificate for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialRenewRequest {
    #[serde(with = "hanse_identity::wire::base64_bytes")]
    pub csr_der: Vec<u8>,
}

/// The certificate, and whom to believe and dial from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialReply {
    pub chain_pem: String,
    pub bundle: Bundle,
    pub endpoints: Vec<String>,
    pub not_after: Timestamp,
}

/// What one cluster may ask another, by Peer.BundleStatus, about the asker's own bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleQuestion {
    /// Of the bundle that is asked about; a newer one will do.
    pub sequence: u64,
}

/// How far a bundle is in force in one cluster, and what rests on its outgoing authorities there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BundlePart {
    pub cluster: ClusterName,
    /// That cluster's log index at which it was committed there, if it is.
    pub revision: Option<u64>,
    pub proxies: Tally,
    pub gateways: Tally,
    pub agents: Tally,
    pub behind: Vec<Behind>,
    pub resting: Vec<Resting>,
    pub nodes: Vec<NodeItem>,
    /// Control nodes that did not answer.
    pub nodes_silent: Vec<NodeName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A subscriber at which something rests on an outgoing authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resting {
    pub name: NodeName,
    pub kind: SubscriberKind,
    pub connections: u64,
    /// SVIDs: its own, or those that an agent holds.
    pub svids: u64,
}

/// A control node, asked the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeItem {
    pub node: NodeName,
    pub applied: u64,
    pub own_svid: bool,
    pub callers: u64,
    /// Foreign trust domains may fetch the bundle that is asked about from it.
    #[serde(default)]
    pub bundle_endpoint: bool,
}

impl BundlePart {
    /// A cluster that could not be asked.
    pub fn unreachable(cluster: ClusterName, error: String) -> Self {
        Self {
            cluster,
            revision: None,
            proxies: Tally::default(),
            gateways: Tally::default(),
            agents: Tally::default(),
            behind: Vec::new(),
            resting: Vec::new(),
            nodes: Vec::new(),
            nodes_silent: Vec::new(),
            error: Some(error),
        }
    }

    /// From what the nodes of a cluster say. `trust_domain` is the bundle's, `own` whether it is the cluster's own.
    pub fn new(
        cluster: ClusterName,
        (trust_domain, own): (&TrustDomain, bool),
        revision: Option<u64>,
        subscribers: impl IntoIterator<Item = Subscriber>,
        nodes: Vec<(NodeName, NodeTrust)>,
        nodes_silent: BTreeSet<NodeName>,
    ) -> Self {
        let mut part = Self { revision, error: None, ..Self::unreachable(cluster, String::new()) };
        part.nodes_silent = nodes_silent.into_iter().collect();
        part.nodes = nodes
            .into_iter()
            .map(|(node, trust)| NodeItem {
                node,
                applied: trust.applied,
                own_svid: own && trust.own_svid,
                callers: trust.callers.get(trust_domain).copied().unwrap_or_default(),
                bundle_endpoint: own && trust.bundle_endpoint,
            })
            .collect();
        for subscriber in merged(subscribers) {
            let Subscriber { name, kind, applied, connected, .. } = subscriber;
            let tally = match kind {
                SubscriberKind::Proxy => &mut part.proxies,
                SubscriberKind::Gateway => &mut part.gateways,
                SubscriberKind::Agent => &mut part.agents,
            };
            tally.total += 1;
            if revision.is_some_and(|at| applied >= at) {
                tally.enforced += 1;
            } else {
                part.behind.push(Behind { name: name.clone(), kind, applied, connected });
            }
            let outgoing = subscriber.outgoing.get(trust_domain).copied().unwrap_or_default();
            let held = if own { u64::from(subscriber.sds.outgoing) } else { 0 };
            let (connections, svids) = (outgoing.connections, held + u64::from(own && outgoing.own_svid));
            if connections + svids > 0 {
                part.resting.push(Resting { name, kind, connections, svids });
            }
        }
        part
    }

    /// Live connections that were authenticated by an outgoing authority, as far as this part knows of them.
    pub fn connections(&self) -> u64 {
        let resting = self.resting.iter().map(|r| r.connections).sum::<u64>();
        resting + self.nodes.iter().map(|n| n.callers).sum::<u64>()
    }

    /// SVIDs in use that an outgoing authority has signed.
    pub fn svids(&self) -> u64 {
        let resting = self.resting.iter().map(|r| r.svids).sum::<u64>();
        resting + self.nodes.iter().filter(|n| n.own_svid).count() as u64
    }

    /// Who does not have the bundle in force.
    fn not_in_force(&self) -> Vec<WaitsFor> {
        let mut waits = Vec::new();
        let mut wait = |who: String, why: String| {
            waits.push(WaitsFor { cluster: self.cluster.clone(), who, why });
        };
        if let Some(error) = &self.error {
            wait("cluster".to_owned(), format!("cannot be asked: {error}"));
            return waits;
        }
        let Some(revision) = self.revision else {
            wait("cluster".to_owned(), "has not taken the bundle in".to_owned());
            return waits;
        };
        for node in &self.nodes_silent {
            wait(format!("node {node}"), "does not answer".to_owned());
        }
        for node in self.nodes.iter().filter(|n| n.applied < revision) {
            wait(
                format!("node {}", node.node),
                format!("is at #{}, the bundle at #{revision}", node.applied),
            );
        }
        for b in &self.behind {
            let how = if b.connected { "" } else { ", and has no stream" };
            let why = format!("has acknowledged #{}, the bundle is at #{revision}{how}", b.applied);
            wait(format!("{} {}", b.kind.as_str(), b.name), why);
        }
        waits
    }

    /// Whose SVIDs, or whose connections, rest on an outgoing authority.
    fn resting(&self, what: &'static str, count: impl Fn(&Resting) -> u64) -> Vec<WaitsFor> {
        let resting = self.resting.iter().filter(|r| count(r) > 0);
        let waits = resting.map(|r| WaitsFor {
            cluster: self.cluster.clone(),
            who: format!("{} {}", r.kind.as_str(), r.name),
            why: format!("{} {what} below an old authority", count(r)),
        });
        waits.collect()
    }
}

/// Which parts a gate has to be told: whether peers have to be asked.
pub fn asks_peers(gate: Gate) -> bool {
    matches!(gate, Gate::Spread | Gate::Drain | Gate::Retire)
}

/// The peers that are asked: one that is revoked here is neither believed nor waited for.
pub fn waited_for(state: &State) -> impl Iterator<Item = &Peer> {
    let revoked = |peer: &Peer| state.view.revocations.of_cluster(&peer.record.trust_domain).is_some();
    state.view.peers.values().filter(move |peer| !revoked(peer))
}

/// What the rotation's gate waits for; nothing: it may go on. `parts` is this cluster's own part and, where the gate
/// asks them, its peers'; `connected` are the agents that have a stream to a node of this cluster.
pub fn waits_for(
    state: &State,
    rotation: &Rotation,
    parts: &[BundlePart],
    connected: &BTreeSet<NodeName>,
    now: Timestamp,
) -> Vec<WaitsFor> {
    let here = |who: String, why: String| WaitsFor { cluster: state.view.cluster.clone(), who, why };
    let mut waits = Vec::new();
    match rotation.gate {
        Gate::Done => return waits,
        Gate::Prepare => {
            let unprepared = state.unprepared(rotation);
            waits.extend(
                unprepared.map(|n| here(format!("node {n}"), "has not made its authority".to_owned())),
            );
            return waits;
        }
        Gate::Spread => {
            let listless = state.without_list(rotation);
            waits.extend(
                listless.map(|n| here(format!("node {n}"), "has published no list of it".to_owned())),
            );
        }
        Gate::Activate | Gate::Drain | Gate::Retire => {}
    }
    waits.extend(parts.iter().flat_map(BundlePart::not_in_force));
    if rotation.gate == Gate::Retire {
        return waits;
    }
    waits.extend(absent(state, connected, now).into_iter().map(|(agent, until)| {
        here(format!("agent {agent}"), format!("is not connected, and SVIDs of it live until {until}"))
    }));
    if rotation.gate == Gate::Spread {
        waits.extend(overlap(rotation, parts, now).map(|until| {
            let hint = OWN_REFRESH_HINT.as_secs();
            let why = format!("fetch the bundle, about every {hint} s: nothing new signs before {until}");
            here("foreign trust domains".to_owned(), why)
        }));
        return waits;
    }
    for part in parts {
        waits.extend(part.resting("SVIDs", |r| r.svids));
        let overtaken = part.nodes.iter().filter(|n| n.own_svid);
        waits.extend(overtaken.map(|n| WaitsFor {
            cluster: part.cluster.clone(),
            who: format!("node {}", n.node),
            why: "shows an SVID of its old authority".to_owned(),
        }));
    }
    waits.extend(state.nested(rotation, now).map(|intermediate| {
        let (serial, until) = (&intermediate.serial, intermediate.not_after);
        let why = format!(
            "holds an intermediate of an old authority until {until}; once it has another, hanse revoke --serial {serial} ends this one"
        );
        here(format!("nested issuer {}", intermediate.id), why)
    }));
    if rotation.gate == Gate::Activate {
        if !rotation.reissue {
            waits.extend(unmoved(state, rotation, now).into_iter().map(|(agent, (count, last))| {
                here(format!("agent {agent}"), format!("{count} SVIDs of old authorities live, until {last}"))
            }));
        }
        return waits;
    }
    if !rotation.waits_for_connections(now) {
        return waits;
    }
    for part in parts {
        waits.extend(part.resting("connections", |r| r.connections));
        let called = part.nodes.iter().filter(|n| n.callers > 0);
        waits.extend(called.map(|n| WaitsFor {
            cluster: part.cluster.clone(),
            who: format!("node {}", n.node),
            why: format!("{} connections below an old authority", n.callers),
        }));
    }
    waits
}

/// Until when what is new only stands in the bundle, because strangers fetch it: they would believe nothing that it signs,
/// the bundle endpoint itself included, and so never hear of it. Whoever revokes an authority does not wait for that.
fn overlap(rotation: &Rotation, parts: &[BundlePart], now: Timestamp) -> Option<Timestamp> {
    let served = parts.iter().flat_map(|part| &part.nodes).any(|node| node.bundle_endpoint);
    let until = *rotation.reached.get(&Gate::Spread)? + OWN_OVERLAP;
    (served && rotation.revocation.is_none() && now < until).then_some(until)
}

/// The nested issuers of each authority.
pub fn nested(state: &State, now: Timestamp) -> BTreeMap<KeyId, Vec<IntermediateItem>> {
    let mut nested: BTreeMap<KeyId, Vec<IntermediateItem>> = BTreeMap::new();
    for svid in state.nested_issuers(now) {
        nested.entry(svid.authority).or_default().push(IntermediateItem::new(svid));
    }
    nested
}

/// Agents whose SVIDs live and that cannot say what they hold, with the end of the last of these.
fn absent(state: &State, connected: &BTreeSet<NodeName>, now: Timestamp) -> BTreeMap<NodeName, Timestamp> {
    let mut absent = BTreeMap::new();
    let live = state.private.issued.live(now).filter(|svid| svid.not_after > now && !svid.downstream);
    for svid in live.filter(|svid| !connected.contains(&svid.agent)) {
        let id =
            SpiffeId::member(&state.view.trust_domain, hanse_identity::name::MemberRole::Agent, &svid.agent);
        if state.view.revocations.of_identity(&id).is_none() {
            let end = absent.entry(svid.agent.clone()).or_insert(svid.not_after);
            *end = (*end).max(svid.not_after);
        }
    }
    absent
}

fn unmoved(state: &State, rotation: &Rotation, now: Timestamp) -> BTreeMap<NodeName, (usize, Timestamp)> {
    let mut unmoved = BTreeMap::new();
    for svid in state.unmoved(rotation, now) {
        let (count, last) = unmoved.entry(svid.agent.clone()).or_insert((0, svid.not_after));
        *count += 1;
        *last = (*last).max(svid.not_after);
    }
    unmoved
}

#[cfg(test)]
mod tests;
