//! Peer sessions: the leader of a cluster listens to a node of every joined cluster; what passes the import filter
//! is committed, and only then acknowledged. As `control/io/peer_link` and `peer_serve` do it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hanse_control::command::{Command, Outcome, Told};
use hanse_control::node::Applied;
use hanse_control::state::State;
use hanse_federation::PeerFact;
use hanse_federation::session::{self, Down, Up};
use hanse_identity::{
    Bundle, ClusterName, Reason, Revocation, RevocationId, RevocationTarget, ServiceName, SpiffeId,
    Timestamp, TrustDomain,
};

use super::network::Party;
use super::packet::{Arrival, Frame, Packet, StreamEnd};
use super::propose::{Pending, Purpose, ReadPurpose};
use super::watch::{LEADERLESS_MS, SILENT_MS};
use super::{At, Bug, Event, World};

const HEARTBEAT_MS: u64 = 500;
const REDIAL_MS: u64 = 300;
/// Few, so that a retelling takes several messages and can break off in the middle.
const FACTS_PER_MESSAGE: usize = 4;

/// Our listening to one peer, on the node that leads.
#[derive(Debug)]
pub(crate) struct Link {
    end: Option<StreamEnd>,
    /// The invite that made the peer when the session was opened.
    invite: String,
    dial_at: u64,
    turn: usize,
    /// Came in while a batch is being committed.
    held: VecDeque<(u64, Vec<PeerFact>)>,
    /// Revision of the batch that is being committed.
    committing: Option<u64>,
}

/// A session that a node serves.
#[derive(Debug)]
pub(crate) struct Export {
    end: StreamEnd,
    cluster: ClusterName,
    /// What the peer has been told, and when something was said last.
    told: Arc<State>,
    said: u64,
    /// When its node knew a leader last.
    led: u64,
}

impl World {
    /// Whether the leader of one cluster has heard a node of another after `since`.
    pub(super) fn has_heard(&self, listener: usize, teller: usize, since: u64) -> bool {
        let Some(at) = self.leader(listener) else { return false };
        let running = self.clusters[at.cluster].nodes[at.index].running.as_ref();
        let link = running.and_then(|r| r.links.get(&self.clusters[teller].name));
        link.and_then(|link| link.end.as_ref()).is_some_and(|end| end.has_heard(since))
    }

    /// While a node leads it has a link to every peer.
    pub(super) fn service_links(&mut self, at: At) {
        let now = self.now;
        let revoked = self.is_revoked(at);
        let Some(running) = self.running(at) else { return };
        if !running.leads || revoked {
            return;
        }
        let state = running.state.clone();
        running.links.retain(|cluster, _| state.view.peers.contains_key(cluster));
        for (cluster, peer) in &state.view.peers {
            let disbelieved = match self.cluster_named(cluster.as_str()) {
                Some(there) => self.revoked_nodes(there, &state.view),
                None => BTreeSet::new(),
            };
            let Some(running) = self.running(at) else { return };
            let link = running.links.entry(cluster.clone()).or_insert_with(|| Link {
                end: None,
                invite: String::new(),
                dial_at: now,
                turn: 0,
                held: VecDeque::new(),
                committing: None,
            });
            let silent = link.end.as_ref().is_some_and(|end| now > end.heard + SILENT_MS);
            let teller = link.end.as_ref().map(|end| end.to);
            let revoked = matches!(teller, Some(Party::Node(_, index)) if disbelieved.contains(&index));
            if silent || revoked || link.invite != peer.record.invite {
                link.close(now);
            }
            // A batch that is being committed first gets its outcome.
            if link.end.is_none() && link.committing.is_none() && now >= link.dial_at {
                self.dial_peer(at, cluster);
            }
        }
    }

    fn dial_peer(&mut self, at: At, cluster: &ClusterName) {
        let stream = self.id();
        let now = self.now;
        let target = self.cluster_named(cluster.as_str());
        let Some(state) = self.state_of(at).cloned() else { return };
        let nodes: Vec<usize> = match target {
            Some(there) => {
                let revoked = self.revoked_nodes(there, &state.view);
                (0..self.clusters[there].nodes.len()).filter(|index| !revoked.contains(index)).collect()
            }
            None => Vec::new(),
        };
        let Some(running) = self.running(at) else { return };
        let Some(peer) = state.view.peers.get(cluster) else { return };
        let Some(link) = running.links.get_mut(cluster) else { return };
        link.turn += 1;
        let (Some(target), false) = (target, nodes.is_empty()) else { return };
        let to = Party::Node(target, nodes[link.turn % nodes.len()]);
        let mut end = StreamEnd::new(stream, to, now);
        let (_, packet) =
            end.next(Frame::Peer(state.view.cluster.clone(), session::resume(&state.view, cluster)));
        link.invite = peer.record.invite.clone();
        link.end = Some(end);
        self.send(at.party(), to, packet);
    }

    /// The node leads no more. What it was about to commit may still be on its way to the new leader.
    pub(super) fn drop_links(&mut self, at: At) {
        let (late, on_its_way_ms) = (self.random.chance(500), self.random.between(0, 300));
        let Some(running) = self.running(at) else { return };
        running.links.clear();
        let facts = |_: &u64, p: &mut Pending| matches!(p.purpose, Purpose::PeerFacts(_));
        let dropped: Vec<Pending> = running.pending.extract_if(.., facts).map(|(_, p)| p).collect();
        let Some(leader) = running.leader.filter(|l| late && *l != at.index as u64 + 1) else { return };
        for pending in dropped {
            let to = Party::Node(at.cluster, leader as usize - 1);
            let packet = Packet::Forward { proposal: pending.proposal };
            self.after(on_its_way_ms, Event::Deliver { from: at.party(), to, packet: Box::new(packet) });
        }
    }

    pub(super) fn peer_frame(&mut self, at: At, from: Party, stream: u64, sequence: u64, frame: Frame) {
        let now = self.now;
        if let Frame::Peer(cluster, Up::Resume { from: resumed, .. }) = &frame {
            let (cluster, resumed) = (cluster.clone(), *resumed);
            if self.is_revoked(at) {
                return self.send(at.party(), from, Packet::Reset { stream });
            }
            if self.bug == Some(Bug::ExporterLags) {
                return self.serve_peer(at, from, stream, cluster, resumed);
            }
            // A node that is behind its own cluster would take back what the peer has heard from another one.
            return self.ask_read(at, ReadPurpose::ServePeer { from, stream, cluster, resumed });
        }
        let Some(running) = self.running(at) else { return };
        let export = running.exports.get_mut(&stream).map(|e| &mut e.end);
        let link = running.links.values_mut().filter_map(|l| l.end.as_mut()).find(|end| end.id == stream);
        let Some(end) = export.or(link) else {
            return self.send(at.party(), from, Packet::Reset { stream });
        };
        match end.arrived(sequence, now) {
            Arrival::Next => {}
            Arrival::Repeated => return,
            Arrival::Gap => {
                self.send(at.party(), from, Packet::Reset { stream });
                return self.peer_gone(at, stream);
            }
        }
        if let Frame::Told(down) = frame {
            let links = running.links.iter();
            let mut of = links.filter(|(_, l)| l.end.as_ref().is_some_and(|e| e.id == stream));
            if let Some(cluster) = of.next().map(|(cluster, _)| cluster.clone()) {
                self.heard_peer(at, &cluster, down);
            }
        }
    }

    pub(super) fn peer_gone(&mut self, at: At, stream: u64) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        running.exports.remove(&stream);
        for link in running.links.values_mut() {
            if link.end.as_ref().is_some_and(|end| end.id == stream) {
                link.close(now);
            }
        }
    }

    fn heard_peer(&mut self, at: At, cluster: &ClusterName, down: Down) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        let Some(link) = running.links.get_mut(cluster) else { return };
        match down {
            Down::Facts { facts, .. } if facts.is_empty() => {}
            Down::Facts { revision, facts } => {
                link.held.push_back((revision, facts));
                self.commit_facts(at, cluster);
            }
            Down::Left => {
                // Not a peer that has joined anew since.
                let only_invite = Some(link.invite.clone());
                link.close(now);
                let command = Command::PeerRemove { cluster: cluster.clone(), only_invite };
                self.propose(at, String::new(), command, Purpose::Mesh);
            }
        }
    }

    /// One batch at a time: what comes in meanwhile is held.
    fn commit_facts(&mut self, at: At, cluster: &ClusterName) {
        let unfiltered = self.bug == Some(Bug::NoImportFilter);
        let Some(running) = self.running(at) else { return };
        let state = running.state.clone();
        let Some(link) = running.links.get_mut(cluster) else { return };
        if link.committing.is_some() {
            return;
        }
        let Some((revision, mut facts)) = link.held.pop_front() else { return };
        // What has come in together is committed together.
        let mut last = revision;
        for (revision, more) in link.held.drain(..) {
            last = revision;
            facts.extend(more);
        }
        let facts = if unfiltered { facts } else { session::admit(&state.view, cluster, facts).0 };
        if facts.is_empty() {
            return;
        }
        link.committing = Some(last);
        let follows = state.view.peers.get(cluster).map(Told::of);
        let command = Command::PeerFacts { cluster: cluster.clone(), facts, follows };
        self.propose(at, String::new(), command, Purpose::PeerFacts(cluster.clone()));
    }

    pub(super) fn facts_committed(&mut self, at: At, cluster: &ClusterName, outcome: &Outcome) {
        let now = self.now;
        let own = self.clusters[at.cluster].name.clone();
        let Some(link) = self.running(at).and_then(|r| r.links.get_mut(cluster)) else { return };
        let Some(revision) = link.committing.take() else { return };
        if outcome.result.is_err() {
            return link.close(now);
        }
        if let Some(end) = &mut link.end {
            let (to, packet) = end.next(Frame::Peer(own, Up::Applied { revision }));
            self.send(at.party(), to, packet);
        }
        self.commit_facts(at, cluster);
    }

    pub(super) fn serve_peer(
        &mut self,
        at: At,
        from: Party,
        stream: u64,
        cluster: ClusterName,
        resumed: u64,
    ) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        let state = running.state.clone();
        if !state.view.peers.contains_key(&cluster) {
            // A stranger's certificate: refused before a word is said.
            return self.send(at.party(), from, Packet::Reset { stream });
        }
        let mut end = StreamEnd::new(stream, from, now);
        end.arrived(1, now);
        let missed = if resumed > 0 { Self::changes_since(running, resumed) } else { None };
        let unchanged = missed.is_some_and(|missed| missed.iter().all(|a| a.changes.is_empty()));
        let export = Export { end, cluster: cluster.clone(), told: state.clone(), said: now, led: now };
        running.exports.insert(stream, export);
        let facts = if unchanged { Vec::new() } else { self.everything(at, &state, &cluster) };
        self.tell_peer(at, stream, state.view.revision.0, facts);
    }

    fn everything(&mut self, at: At, state: &State, cluster: &ClusterName) -> Vec<PeerFact> {
        let mut facts = session::tell_all(&state.view, cluster);
        let addresses = state.private.nodes.values().map(|n| n.peer_address.clone()).collect();
        facts.insert(1, PeerFact::Endpoints(addresses));
        if self.liars.contains(&at.cluster) {
            let end = facts.len() - 1;
            facts.splice(end..end, lies(&state.view.trust_domain));
        }
        facts
    }

    fn tell_peer(&mut self, at: At, stream: u64, revision: u64, facts: Vec<PeerFact>) {
        let now = self.now;
        let chunks: Vec<Vec<PeerFact>> = match facts.is_empty() {
            true => vec![Vec::new()],
            false => facts.chunks(FACTS_PER_MESSAGE).map(<[PeerFact]>::to_vec).collect(),
        };
        for facts in chunks {
            let Some(export) = self.running(at).and_then(|r| r.exports.get_mut(&stream)) else { return };
            export.said = now;
            let (to, packet) = export.end.next(Frame::Told(Down::Facts { revision, facts }));
            self.send(at.party(), to, packet);
        }
    }

    /// The State has moved: every session that this node serves hears what is its business.
    pub(super) fn tell_peers(&mut self, at: At, after: &Arc<State>, applied: &[Arc<Applied>]) {
        let lying = self.liars.contains(&at.cluster);
        let Some(running) = self.running(at) else { return };
        let streams: Vec<u64> = running.exports.keys().copied().collect();
        for stream in streams {
            let Some(export) = self.running(at).and_then(|r| r.exports.get_mut(&stream)) else { return };
            let told = std::mem::replace(&mut export.told, after.clone());
            let cluster = export.cluster.clone();
            if applied.iter().any(|a| a.reset) {
                let to = export.end.to;
                self.send(at.party(), to, Packet::Reset { stream });
                self.peer_gone(at, stream);
                continue;
            }
            if !after.view.peers.contains_key(&cluster) {
                let (to, packet) = export.end.next(Frame::Told(Down::Left));
                self.send(at.party(), to, packet);
                self.peer_gone(at, stream);
                continue;
            }
            let changes: Vec<_> = applied.iter().flat_map(|a| a.changes.iter().cloned()).collect();
            let mut facts = session::tell(&told.view, &after.view, &changes, &cluster);
            if lying && !facts.is_empty() {
                let end = facts.len() - 1;
                facts.splice(end..end, lies(&after.view.trust_domain));
            }
            if !facts.is_empty() {
                self.tell_peer(at, stream, after.view.revision.0, facts);
            }
        }
    }

    pub(super) fn service_exports(&mut self, at: At) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        let led = running.leader.is_some();
        let mut over = Vec::new();
        for (stream, export) in &mut running.exports {
            if led {
                export.led = now;
            } else if now >= export.led + LEADERLESS_MS {
                over.push((*stream, export.end.to));
            }
        }
        for (stream, to) in over {
            self.send(at.party(), to, Packet::Reset { stream });
            self.peer_gone(at, stream);
        }
        let Some(running) = self.running(at) else { return };
        running.exports.retain(|_, export| {
            now <= export.said + 4 * SILENT_MS || now <= export.end.heard + 4 * SILENT_MS
        });
        let due = running.exports.iter().filter(|(_, e)| now >= e.said + HEARTBEAT_MS);
        let due: Vec<(u64, u64)> = due.map(|(stream, e)| (*stream, e.told.view.revision.0)).collect();
        for (stream, revision) in due {
            self.tell_peer(at, stream, revision, Vec::new());
        }
    }
}

impl Link {
    fn close(&mut self, now: u64) {
        if self.end.take().is_some() {
            self.dial_at = now + REDIAL_MS;
        }
        self.held.clear();
    }
}

/// What a cluster gone bad says about others: each of these has to be refused.
fn lies(own: &TrustDomain) -> Vec<PeerFact> {
    let victim: TrustDomain = if own.as_str() == "east.example" { "west.example" } else { "east.example" }
        .parse()
        .expect("a trust domain");
    let id = SpiffeId::workload(&victim, "shop", "productpage").expect("labels");
    let revocation = |origin: &TrustDomain| {
        Revocation::new(
            RevocationId { number: 1_000_000, origin: origin.clone() },
            RevocationTarget::Identity(id.clone()),
            Reason::Hold,
            Timestamp(1),
        )
    };
    let service: ServiceName = "shop/reviews".parse().expect("labels");
    let summary = hanse_federation::catalog::ServiceSummary {
        name: service,
        identities: [id.clone()].into(),
        localities: std::collections::BTreeMap::new(),
    };
    vec![
        PeerFact::Revoked(revocation(&victim)),
        PeerFact::Revoked(revocation(own)),
        PeerFact::Unrevoked(RevocationId { number: 7, origin: victim.clone() }),
        PeerFact::Bundle(Bundle::new(victim, 1_000_000, Vec::new())),
        PeerFact::Service(summary),
    ]
}
