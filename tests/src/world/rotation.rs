//! Rotations in the World: the leader measures what a gate waits for and proposes the next step, as `control/io/rotation`
//! does it; what a gate waits for is decided by the product. And what must hold at every moment of one.

use std::collections::{BTreeMap, BTreeSet};

use hanse_control::admin::{BundlePart, WaitsFor, asks_peers, waited_for, waits_for};
use hanse_control::command::Command;
use hanse_control::io::census::{NodeTrust, Outgoing, Subscriber};
use hanse_control::state::State;
use hanse_control::state::rotation::Gate;
use hanse_federation::View;
use hanse_federation::view::PeerState;
use hanse_identity::{AuthorityState, NodeName, TrustDomain};

use super::authorities::WorldSvid;
use super::keys::own_bundle;
use super::network::Party;
use super::propose::Purpose;
use super::receipt::subscriber;
use super::{At, Bug, World};

/// How long a connection below an outgoing authority stays, so that SVIDs are replaced meanwhile.
const REPLACED_WITHIN_MS: u64 = 3000;

/// How long the listeners of a node that has just been revoked are taken to be somewhere else.
const LISTENERS_MOVE_MS: u64 = 2000;

/// Who has heard its node so lately has a stream there that the node knows of.
const HEARD_LATELY_MS: u64 = 1500;

/// What a subscriber says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    pub(crate) revision: u64,
    pub(crate) outgoing: BTreeMap<TrustDomain, Outgoing>,
}

/// Whether the SVID's authority is on its way out.
pub(super) fn is_outgoing(view: &View, svid: &WorldSvid) -> bool {
    let bundle = view.bundles.get(svid.facts.id.trust_domain());
    let mut authorities = bundle.into_iter().flat_map(|b| &b.authorities);
    authorities.any(|a| a.key_id == svid.authority && a.state == AuthorityState::Tainted)
}

impl World {
    /// Takes the rotation that runs on, if this node leads and nothing is waited for.
    pub(super) fn keep_rotation(&mut self, at: At) {
        let unmeasured = self.bug == Some(Bug::GatesUnmeasured);
        if self.is_revoked(at) {
            return;
        }
        let Some(running) = self.running(at).filter(|r| r.leads) else { return };
        if running.waits_for(|command| matches!(command, Command::RotateStep { .. })) {
            return;
        }
        let state = running.state.clone();
        let Some(rotation) = state.rotating() else { return };
        if unmeasured || self.measured(at, &state).is_empty() {
            let step = Command::RotateStep { id: rotation.id, to: rotation.gate.next() };
            self.propose(at, String::new(), step, Purpose::Mesh);
        }
    }

    /// What the gate of the rotation that runs waits for.
    fn measured(&self, at: At, state: &State) -> Vec<WaitsFor> {
        let (Some(rotation), Some(bundle)) = (state.rotating(), own_bundle(state)) else { return Vec::new() };
        let now = self.agreed(at);
        let (own, connected) = self.bundle_part(at, &state.view.trust_domain, bundle.sequence);
        let mut parts = vec![own];
        let waiting = waits_for(state, rotation, &parts, &connected, now);
        if !waiting.is_empty() || !asks_peers(rotation.gate) {
            return waiting;
        }
        for peer in waited_for(state) {
            let peer = &peer.record.cluster;
            let there = self.cluster_named(peer.as_str()).and_then(|there| self.asked(at, there));
            parts.push(match there {
                Some(there) => self.bundle_part(there, &state.view.trust_domain, bundle.sequence).0,
                None => BundlePart::unreachable(peer.clone(), "no answer".to_owned()),
            });
        }
        waits_for(state, rotation, &parts, &connected, now)
    }

    /// How the bundle of a trust domain stands in the cluster of `at`, as that node gathers it from the others; and whose
    /// agents are connected: in the World every proxy is its own.
    fn bundle_part(
        &self,
        at: At,
        trust_domain: &TrustDomain,
        sequence: u64,
    ) -> (BundlePart, BTreeSet<NodeName>) {
        let cluster = &self.clusters[at.cluster];
        let (mut subscribers, mut nodes, mut silent) = (Vec::new(), Vec::new(), BTreeSet::new());
        let disbelieved = self.disbelieved(at);
        for (index, control) in cluster.nodes.iter().enumerate() {
            if let Some(since) = disbelieved.get(&index) {
                if self.now < since + LISTENERS_MOVE_MS {
                    silent.insert(control.name.clone());
                }
                continue;
            }
            let (here, there) = (at.party(), Party::Node(at.cluster, index));
            let answers = self.network.passes(here, there) && self.network.passes(there, here);
            match control.running.as_ref().filter(|_| answers) {
                Some(running) => {
                    let gone = running.gone.iter().filter(|(until, _)| *until > self.now);
                    let known = running.watchers.values().map(|w| w.subscriber(&control.name));
                    // In the real house whoever is revoked has no stream to anybody.
                    let revoked = &running.state.view.revocations;
                    let believed = |s: &Subscriber| revoked.of_identity(&s.identity).is_none();
                    subscribers.extend(known.chain(gone.map(|(_, s)| s.clone())).filter(believed));
                    let trust = NodeTrust { applied: running.state.view.revision.0, ..NodeTrust::default() };
                    nodes.push((control.name.clone(), trust));
                }
                None => {
                    silent.insert(control.name.clone());
                }
            }
        }
        let connected: BTreeSet<NodeName> =
            subscribers.iter().filter(|s: &&Subscriber| s.connected).map(|s| s.name.clone()).collect();
        let revision = cluster.nodes[at.index]
            .running
            .as_ref()
            .and_then(|running| running.bundle_revisions.of(&running.state.view, trust_domain, sequence));
        let own = *trust_domain == cluster.trust_domain;
        let part =
            BundlePart::new(cluster.name.clone(), (trust_domain, own), revision, subscribers, nodes, silent);
        (part, connected)
    }

    /// What a proxy has in force, and what rests on outgoing authorities there.
    pub(super) fn report(&self, cluster: usize, index: usize) -> InForce {
        let proxy = &self.clusters[cluster].proxies[index];
        let (Some(life), Some(view)) = (&proxy.running, proxy.view()) else { return InForce::default() };
        let mut outgoing: BTreeMap<TrustDomain, Outgoing> = BTreeMap::new();
        for connection in life.connections.values().filter(|c| is_outgoing(view, &c.other)) {
            let domain = connection.other.facts.id.trust_domain().clone();
            outgoing.entry(domain).or_default().connections += 1;
        }
        let own = life.svid.as_ref().filter(|own| own.check(view, self.clock()).is_ok());
        if let Some(own) = own.filter(|own| is_outgoing(view, own)) {
            outgoing.entry(own.facts.id.trust_domain().clone()).or_default().own_svid = true;
        }
        InForce { revision: view.revision.0, outgoing }
    }

    /// Connections below an outgoing authority are let go once SVIDs have been replaced.
    pub(super) fn leave_outgoing(&mut self, cluster: usize, index: usize) {
        let now = self.now;
        let here = Party::Proxy(cluster, index);
        let Some(life) = self.life_of(cluster, index) else { return };
        let Some(view) = &life.view else { return };
        for connection in life.connections.values_mut() {
            connection.outgoing_since = match is_outgoing(view, &connection.other) {
                true => connection.outgoing_since.or(Some(now)),
                false => None,
            };
        }
        let over = |since: u64| now >= since + REPLACED_WITHIN_MS;
        let left = life.connections.extract_if(.., |_, c| c.outgoing_since.is_some_and(over));
        let left: Vec<_> = left.collect();
        for (connection, entry) in left {
            for to in entry.neighbours {
                self.send(here, to, super::packet::Packet::Close { connection });
            }
        }
    }

    /// Nobody uses an SVID that somebody who may meet it cannot verify: every proxy of its own cluster, and those of the
    /// peers that hear their own control nodes.
    pub(super) fn check_believed(&mut self, cluster: usize, index: usize) {
        let proxy = &self.clusters[cluster].proxies[index];
        let Some(svid) = proxy.running.as_ref().and_then(|life| life.svid.clone()) else { return };
        if !self.is_in_use(cluster, &svid) {
            return;
        }
        let domain = svid.facts.id.trust_domain();
        let believes = |view: &View| {
            view.bundles.get(domain).is_some_and(|b| b.trusted().any(|a| a.key_id == svid.authority))
        };
        let mut wrong = None;
        if !believes(self.ledger.truth(cluster)) {
            wrong = Some("the bundle of its cluster".to_owned());
        }
        for (other, c) in self.clusters.iter().enumerate() {
            let at_home = other == cluster;
            let joined = self.has_joined(cluster, other) && self.has_joined(other, cluster);
            // On hold here it keeps no gate shut: neither side would let the other in.
            let held = self.ledger.truth(cluster).revocations.of_cluster(&c.trust_domain).is_some();
            if !at_home && (!joined || held) {
                continue;
            }
            for verifier in &c.proxies {
                let (Some(life), Some(view)) = (&verifier.running, verifier.view()) else { continue };
                let lives = life.svid.as_ref().is_some_and(|own| self.is_in_use(other, own));
                let hears = life
                    .stream
                    .as_ref()
                    .is_some_and(|s| s.has_heard(self.now.saturating_sub(HEARD_LATELY_MS)));
                // A join that it has not heard of yet, or a peer that has left: nothing of it is believed at all.
                let knows = at_home || view.bundles.contains_key(domain);
                if lives && (at_home || hears) && knows && !believes(view) {
                    wrong = Some(format!("{} at {}", verifier.name, view.revision));
                }
            }
        }
        if let Some(who) = wrong {
            let name = self.clusters[cluster].proxies[index].name.clone();
            self.violate(|| format!("{who} cannot verify the SVID that {name} uses, of {}", svid.authority));
        }
    }

    pub(super) fn has_joined(&self, cluster: usize, other: usize) -> bool {
        let peer = self.ledger.truth(cluster).peers.get(&self.clusters[other].name);
        peer.is_some_and(|peer| peer.state == PeerState::Joined && peer.retelling.is_none())
    }

    /// Whether it lives, by the clock of whoever is most ahead, and nobody has revoked it.
    fn is_in_use(&self, cluster: usize, svid: &WorldSvid) -> bool {
        let truth = self.ledger.truth(cluster);
        let now = self.clock() + std::time::Duration::from_millis(self.most_ahead_ms);
        now < svid.facts.not_after && truth.revocations.check(&svid.facts).is_none()
    }

    /// How the rotation stands, in words.
    pub(super) fn show_rotation(&self, leader: At, state: &State) -> String {
        let Some(rotation) = &state.private.rotation else { return "none has been run".to_owned() };
        let taken_back = if rotation.aborted { ", taken back" } else { "" };
        let mut lines = vec![format!("at {}{taken_back}", rotation.gate)];
        if rotation.is_running() {
            let waits = self.measured(leader, state);
            lines.extend(waits.iter().map(|w| format!("  waits for {} {}: {}", w.cluster, w.who, w.why)));
        }
        lines.join("\n")
    }

    /// Which gate the rotation of a cluster is at; `Done` if none runs.
    pub(super) fn gate_of(&self, cluster: usize) -> Option<Gate> {
        let state = self.leader(cluster).and_then(|at| self.state_of(at))?;
        Some(state.private.rotation.as_ref().map_or(Gate::Done, |r| r.gate))
    }
}

impl super::watch::Watcher {
    pub(super) fn subscriber(&self, node: &NodeName) -> Subscriber {
        Subscriber {
            node: node.clone(),
            applied: self.in_force.revision,
            outgoing: self.in_force.outgoing.clone(),
            ..subscriber(&self.name, &self.identity)
        }
    }
}
