//! A control node's shell: performs the Outputs of `control::node` in their order, on a disk that may take its time.
//!
//! A crash loses everything but the disk; a write that was under way is then on it or not, nobody knows. Nothing
//! else of the node goes on while a write is under way, as in `control/io/driver`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hanse_control::command::{Command, Outcome};
use hanse_control::consensus::{Batch, Recovered, Timing};
use hanse_control::io::census::Subscriber;
use hanse_control::io::context::BundleRevisions;
use hanse_control::node::{self, Applied, Config, Input, Node, Output};
use hanse_control::state::{NodeRecord, State};
use hanse_federation::catalog::Session;
use hanse_identity::{ClusterName, KeyId, NodeName, Timestamp, TrustDomain};

use super::authorities::authority;
use super::clocks::Heard;
use super::keys::Held;
use super::network::Party;
use super::packet::Packet;
use super::peer::{Export, Link};
use super::propose::{Pending, ReadPurpose};
use super::watch::Watcher;
use super::{At, Bug, Cluster, Event, World};

/// Ticks are slower than in the real house: every one of them is an event.
const TIMING: Timing = Timing { tick: Duration::from_millis(100), election_ticks: 10, heartbeat_ticks: 2 };
const SNAPSHOT_EVERY: u64 = 25;
const SNAPSHOT_MARGIN: u64 = 8;
/// Revisions whose Changes are kept for those who resume.
const RING: usize = 16;
/// How often a node looks after its timers.
const SERVICE_MS: u64 = 250;

/// A control node: what survives a crash, and what does not.
#[derive(Debug)]
pub struct ControlNode {
    pub name: NodeName,
    pub raft_id: u64,
    pub(super) disk: Option<Recovered>,
    pub(super) life: u64,
    pub(crate) running: Option<Box<Running>>,
    /// What its clock shows is off by that much.
    pub skew_ms: i64,
    /// Every store takes long.
    pub slow_disk: bool,
    /// Authorities whose keys are on its disk, by their generation, and the newest that was ever made.
    pub(super) store: Vec<u32>,
    pub(super) made: u32,
    /// The authorities of the bundle that it has written beside them.
    pub(super) written: BTreeSet<KeyId>,
}

/// What a crash loses.
#[derive(Debug)]
pub(crate) struct Running {
    pub(super) node: Node,
    /// Outputs wait behind this write.
    writing: Option<Batch>,
    unperformed: VecDeque<Output>,
    inbox: Vec<Input>,
    busy: bool,
    pub(super) state: Arc<State>,
    pub(super) ring: VecDeque<Arc<Applied>>,
    pub(super) leads: bool,
    pub(super) leader: Option<u64>,
    /// What it vouches for and has no stream of, and since when.
    pub(super) alone: BTreeMap<NodeName, (Session, u64)>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) forwarded: BTreeMap<u64, Party>,
    /// Outcomes that wait until this node has applied them, too, and until when.
    pub(super) answered: Vec<(u64, Outcome, u64)>,
    pub(super) reads: BTreeMap<u64, ReadPurpose>,
    pub(super) watchers: BTreeMap<u64, Watcher>,
    /// Subscribers whose streams have ended, and until when they are still waited for.
    pub(super) gone: Vec<(u64, Subscriber)>,
    pub(super) held: Held,
    pub(super) clocks: Heard,
    pub(super) bundle_revisions: BundleRevisions,
    pub(super) exports: BTreeMap<u64, Export>,
    /// Nodes of the own cluster that it knows to be revoked, and since when.
    pub(super) revoked: BTreeMap<usize, u64>,
    pub(super) links: BTreeMap<ClusterName, Link>,
    /// On the leader: when each follower was last heard.
    pub(super) heard: BTreeMap<u64, u64>,
    /// Only with `Bug::SpeakBeforeStore`: written, but not on the disk yet.
    unsynced: Vec<(u64, Batch)>,
}

impl Running {
    /// Whether a Command of that kind has no outcome yet.
    pub(super) fn waits_for(&self, kind: impl Fn(&Command) -> bool) -> bool {
        self.pending.values().any(|pending| kind(&pending.proposal.command))
    }
}

impl World {
    /// Founds a cluster of `nodes` control nodes and starts them.
    pub fn found(&mut self, name: &ClusterName, nodes: usize) -> usize {
        let cluster = self.clusters.len();
        let trust_domain: TrustDomain =
            format!("{name}.example").parse().expect("a cluster's name is a label");
        let node_name =
            |n: usize| -> NodeName { format!("{name}-{n}").parse().expect("a label and a number") };
        let records: Vec<NodeRecord> = (1..=nodes)
            .map(|n| NodeRecord {
                raft_id: n as u64,
                name: node_name(n),
                address: format!("{name}-{n}.nodes:7443"),
                peer_address: format!("{name}-{n}.peers:7443"),
                intermediate: None,
                authority: authority(&trust_domain, &node_name(n), 0),
            })
            .collect();
        let founded = State::founded(name.clone(), trust_domain.clone(), records);
        let mut disk = Recovered::default();
        disk.write(&node::founding(&founded));
        let made = (1..=nodes).map(|n| ControlNode {
            name: node_name(n),
            raft_id: n as u64,
            disk: Some(disk.clone()),
            life: 0,
            running: None,
            skew_ms: 0,
            slow_disk: false,
            store: vec![0],
            made: 0,
            written: BTreeSet::new(),
        });
        let nodes_made = made.collect();
        self.clusters.push(Cluster {
            name: name.clone(),
            trust_domain,
            nodes: nodes_made,
            proxies: Vec::new(),
        });
        self.ledger.found(&founded);
        for index in 0..nodes {
            self.start_node(At { cluster, index });
        }
        cluster
    }

    pub fn start_node(&mut self, at: At) {
        let seed = self.random.draw();
        let config = Config {
            raft_id: at.index as u64 + 1,
            timing: TIMING,
            seed,
            snapshot_every: SNAPSHOT_EVERY,
            snapshot_margin: SNAPSHOT_MARGIN,
        };
        let control = &mut self.clusters[at.cluster].nodes[at.index];
        if control.running.is_some() {
            return;
        }
        let recovered = control.disk.clone().unwrap_or_default();
        control.life += 1;
        let (life, name) = (control.life, control.name.clone());
        let now = self.now;
        let node = match Node::open(config, recovered, Timestamp(now)) {
            Ok(node) => node,
            Err(error) => return self.violate(|| format!("{name} cannot start from its own disk: {error}")),
        };
        let held = self.open_authorities(at, &node.state());
        let running = Running {
            state: node.state(),
            node,
            writing: None,
            unperformed: VecDeque::new(),
            inbox: Vec::new(),
            busy: false,
            ring: VecDeque::new(),
            leads: false,
            leader: None,
            alone: BTreeMap::new(),
            pending: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            answered: Vec::new(),
            reads: BTreeMap::new(),
            watchers: BTreeMap::new(),
            gone: Vec::new(),
            held,
            clocks: Heard::default(),
            bundle_revisions: BundleRevisions::default(),
            exports: BTreeMap::new(),
            revoked: BTreeMap::new(),
            links: BTreeMap::new(),
            heard: BTreeMap::new(),
            unsynced: Vec::new(),
        };
        running.bundle_revisions.note_all(&running.state.view);
        self.clusters[at.cluster].nodes[at.index].running = Some(Box::new(running));
        self.note_revoked(at);
        self.note(&[20, at.party().number()], || format!("{name} starts"));
        // Whatever is known to be committed is applied at once.
        self.step_node(at, true);
        self.after(TIMING.tick.as_millis() as u64, Event::Tick { at, life });
        let first = self.random.between(1, SERVICE_MS);
        self.after(first, Event::Service { at, life });
    }

    /// The process is gone, and with it everything that was not on the disk.
    pub fn crash_node(&mut self, at: At) {
        let control = &mut self.clusters[at.cluster].nodes[at.index];
        let Some(running) = control.running.take() else { return };
        let name = control.name.clone();
        self.set_right(at);
        if let Some(batch) = running.writing
            && self.random.chance(500)
        {
            let control = &mut self.clusters[at.cluster].nodes[at.index];
            control.disk.get_or_insert_default().write(&batch);
        }
        self.note(&[21, at.party().number()], || format!("{name} crashes"));
        self.lost_with(&running.pending);
    }

    pub(crate) fn running(&mut self, at: At) -> Option<&mut Running> {
        self.clusters[at.cluster].nodes[at.index].running.as_deref_mut()
    }

    pub(super) fn running_in(&mut self, at: At, life: u64) -> Option<&mut Running> {
        let control = &mut self.clusters[at.cluster].nodes[at.index];
        if control.life == life { control.running.as_deref_mut() } else { None }
    }

    pub(super) fn life(&self, at: At) -> u64 {
        self.clusters[at.cluster].nodes[at.index].life
    }

    /// The node that leads, as it says itself; of two that say so the one of the later term.
    pub fn leader(&self, cluster: usize) -> Option<At> {
        let nodes = self.clusters[cluster].nodes.iter().enumerate();
        let leads = nodes.filter_map(|(index, n)| {
            let status = n.running.as_ref()?.node.status();
            status.is_leader.then_some((status.term, index))
        });
        leads.max().map(|(_, index)| At { cluster, index })
    }

    pub fn state_of(&self, at: At) -> Option<&Arc<State>> {
        self.clusters[at.cluster].nodes[at.index].running.as_ref().map(|r| &r.state)
    }

    pub(super) fn node_tick(&mut self, at: At, life: u64) {
        if self.running_in(at, life).is_some() {
            self.after(TIMING.tick.as_millis() as u64, Event::Tick { at, life });
            self.node_input(at, life, Input::Tick);
        }
    }

    pub(super) fn node_input(&mut self, at: At, life: u64, input: Input) {
        let Some(running) = self.running_in(at, life) else { return };
        running.inbox.push(input);
        self.step_node(at, false);
    }

    pub(super) fn node_stored(&mut self, at: At, life: u64) {
        let Some(running) = self.running_in(at, life) else { return };
        let Some(batch) = running.writing.take() else { return };
        let control = &mut self.clusters[at.cluster].nodes[at.index];
        control.disk.get_or_insert_default().write(&batch);
        self.step_node(at, false);
    }

    pub(super) fn node_fate(&mut self, at: At, life: u64, to: u64, snapshot: bool, ok: bool) {
        let input = if snapshot { Input::SnapshotSent { to, ok } } else { Input::Unreachable { to } };
        self.node_input(at, life, input);
    }

    /// Lets the node work off what has come in, unless it is at it already or waits for its disk.
    pub(super) fn step_node(&mut self, at: At, even_if_nothing: bool) {
        let mut first = even_if_nothing;
        loop {
            let now = Timestamp(self.now);
            let Some(running) = self.running(at) else { return };
            if running.busy || running.writing.is_some() {
                return;
            }
            let mut outputs = std::mem::take(&mut running.unperformed);
            if outputs.is_empty() {
                if running.inbox.is_empty() && !first {
                    return;
                }
                first = false;
                let inputs = std::mem::take(&mut running.inbox);
                outputs = running.node.handle_all(now, inputs).into();
            }
            running.busy = true;
            self.perform(at, outputs);
            self.role_changed(at);
            self.finish_answered(at);
            if let Some(running) = self.running(at) {
                running.busy = false;
            }
        }
    }

    fn perform(&mut self, at: At, mut outputs: VecDeque<Output>) {
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Store(batch) if self.bug == Some(Bug::SpeakBeforeStore) => {
                    self.store_some_day(at, batch)
                }
                Output::Store(batch) => {
                    let delay = self.disk_delay(at);
                    let life = self.life(at);
                    if delay == 0 {
                        let control = &mut self.clusters[at.cluster].nodes[at.index];
                        control.disk.get_or_insert_default().write(&batch);
                        continue;
                    }
                    if let Some(running) = self.running(at) {
                        (running.writing, running.unperformed) = (Some(batch), outputs);
                    }
                    return self.after(delay, Event::Stored { at, life });
                }
                other => self.perform_one(at, other),
            }
        }
    }

    /// The bug: a disk that is synced now and then, while what depends on it is said at once.
    fn store_some_day(&mut self, at: At, batch: Batch) {
        const UNSYNCED_MS: u64 = 1500;
        let now = self.now;
        let control = &mut self.clusters[at.cluster].nodes[at.index];
        let Some(running) = &mut control.running else { return };
        running.unsynced.push((now, batch));
        let disk = control.disk.get_or_insert_default();
        let synced = running.unsynced.extract_if(.., |(written, _)| *written + UNSYNCED_MS <= now);
        synced.for_each(|(_, batch)| disk.write(&batch));
    }

    fn perform_one(&mut self, at: At, output: Output) {
        let life = self.life(at);
        match output {
            Output::Send(message) if self.has_cut(at, message.to as usize - 1) => {
                if message.snapshot {
                    self.after(1, Event::Fate { at, life, to: message.to, snapshot: true, ok: false });
                }
            }
            Output::Send(message) => {
                let to = Party::Node(at.cluster, message.to as usize - 1);
                let packet = Packet::Raft { life, bytes: message.bytes, snapshot: message.snapshot };
                self.send(at.party(), to, packet);
            }
            Output::Reply { id, outcome } => self.applied_proposal(at, id, outcome),
            Output::Refused { id, .. } => self.refused_proposal(at, id),
            Output::ReadReady { ids } => ids.into_iter().for_each(|id| self.read_ready(at, id)),
            Output::Publish { state, applied } => self.publish(at, state, &applied),
            Output::MakeSnapshot(job) => {
                let delay = self.random.between(5, 60);
                self.after(delay, Event::SnapshotMade { at, life, job });
            }
            // Messages of an earlier life of a peer, and the like.
            Output::Dropped { .. } => {}
            Output::Stop { why } => self.violate(|| format!("{:?} stopped: {why}", at.party())),
            Output::Store(_) => {}
        }
    }

    fn disk_delay(&mut self, at: At) -> u64 {
        let slow = self.clusters[at.cluster].nodes[at.index].slow_disk;
        match slow {
            true => self.random.between(20, 400),
            false if self.random.chance(self.disk_delay_per_mille) => self.random.between(1, 12),
            false => 0,
        }
    }

    fn publish(&mut self, at: At, state: Arc<State>, applied: &[Arc<Applied>]) {
        let revision = state.view.revision.0;
        self.note(&[22, at.party().number(), revision], || {
            format!("{:?} applied up to {revision}", at.party())
        });
        self.ledger.published(self.now, at, &state, applied);
        let Some(running) = self.running(at) else { return };
        running.state = state.clone();
        for one in applied {
            if one.reset {
                running.ring.clear();
                running.bundle_revisions.note_all(&state.view);
            } else {
                running.bundle_revisions.note(one.revision, &one.changes);
                running.ring.push_back(one.clone());
            }
        }
        while running.ring.len() > RING {
            running.ring.pop_front();
        }
        self.note_revoked(at);
        self.tell_watchers(at, applied);
        self.tell_peers(at, &state, applied);
    }

    /// The Changes after a revision, if all of them are still known.
    pub(super) fn changes_since(running: &Running, revision: u64) -> Option<Vec<Arc<Applied>>> {
        let current = running.state.view.revision.0;
        if revision == current {
            return Some(Vec::new());
        }
        let first = running.ring.front()?.revision;
        if revision + 1 < first || revision > current {
            return None;
        }
        Some(running.ring.iter().filter(|a| a.revision > revision).cloned().collect())
    }

    /// Leadership and who leads, as of now.
    fn role_changed(&mut self, at: At) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        let status = running.node.status();
        running.leader = status.leader;
        for (follower, _, recently) in &status.followers {
            let heard = running.heard.entry(*follower).or_insert(now);
            if *recently {
                *heard = now;
            }
        }
        let (led, leads) = (running.leads, status.is_leader);
        running.leads = leads;
        self.ledger.role(now, at, status.term, leads);
        if led != leads {
            let word = if leads { "leads" } else { "leads no more" };
            self.note(&[23, at.party().number(), status.term], || {
                format!("{:?} {word} in term {}", at.party(), status.term)
            });
        }
        if led && !leads {
            self.drop_links(at);
        }
        if leads
            && !led
            && let Some(running) = self.running(at)
        {
            running.heard.clear();
        }
    }

    /// What a node does a few times a second.
    pub(super) fn node_service(&mut self, at: At, life: u64) {
        if self.running_in(at, life).is_none() {
            return;
        }
        self.after(SERVICE_MS, Event::Service { at, life });
        if self.is_revoked(at) {
            self.give_up_all(at);
        }
        self.compare_clocks(at);
        self.finish_answered(at);
        self.retry_proposals(at);
        self.service_watchers(at);
        self.service_exports(at);
        self.service_links(at);
        self.sweep(at);
        self.keep_authorities(at);
        self.keep_rotation(at);
    }

    pub(super) fn deliver_to_node(&mut self, at: At, from: Party, packet: Packet) {
        if self.running(at).is_none() {
            return self.refuse(at.party(), from, &packet);
        }
        if self.disbelieves(at, from) {
            return;
        }
        let life = self.life(at);
        match packet {
            Packet::Raft { bytes, .. } => {
                let Party::Node(_, index) = from else { return };
                self.node_input(at, life, Input::Message { from: index as u64 + 1, bytes });
            }
            Packet::Forward { proposal } => self.forwarded_here(at, from, proposal),
            Packet::Forwarded { id, outcome } => self.forward_answered(at, id, outcome),
            Packet::Frame { stream, sequence, frame } => self.node_frame(at, from, stream, sequence, frame),
            Packet::Reset { stream } => self.node_reset(at, stream),
            Packet::Join { question, invite, phase, offer } => {
                self.join_question(at, from, question, invite, phase, *offer);
            }
            Packet::JoinAnswer { question, reply } => self.join_answered(at, question, reply),
            Packet::Probe { probe } => self.send(at.party(), from, Packet::ProbeAnswer { probe }),
            Packet::Open(_) | Packet::Answer { .. } | Packet::Close { .. } | Packet::ProbeAnswer { .. } => {}
        }
    }

    fn node_frame(&mut self, at: At, from: Party, stream: u64, sequence: u64, frame: super::packet::Frame) {
        match from {
            Party::Proxy(..) => self.watch_frame(at, from, stream, sequence, frame),
            Party::Node(..) => self.peer_frame(at, from, stream, sequence, frame),
        }
    }

    fn node_reset(&mut self, at: At, stream: u64) {
        self.watch_gone(at, stream);
        self.peer_gone(at, stream);
    }
}
