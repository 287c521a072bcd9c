//! A seeded World of three nodes: lossy, reordering, duplicating network, partitions, slow disks, crashes that
//! leave nothing but what was stored. A failing seed prints itself; `HANSE_SEED=n` replays it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hanse_federation::policy::{PolicyDocument, PolicyKey, PolicyKind};
use hanse_identity::{AuthorityCertificate, AuthorityState, KeyId, ServiceName};

use super::*;
use crate::command::{Answer, Command};
use crate::consensus::MemoryDisk;
use crate::state::NodeRecord;

mod alone;
mod joins;
mod storm;

/// SplitMix64: the World's only source of chance.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What is under way in the World, by the time at which it arrives.
#[derive(Debug)]
enum Event {
    Message {
        from: u64,
        to: u64,
        bytes: Vec<u8>,
        snapshot: bool,
    },
    /// The disk has finished writing: what follows the store may be performed.
    Stored {
        node: u64,
        life: u64,
        outputs: Vec<Output>,
    },
    Made {
        node: u64,
        life: u64,
        job: SnapshotJob,
    },
    Restart {
        node: u64,
    },
}

/// One machine: its disk outlives the node that runs on it.
struct Machine {
    disk: MemoryDisk,
    node: Option<Node>,
    life: u64,
    /// The disk is busy until then; what arrives waits.
    busy: bool,
    inbox: Vec<Input>,
    published: u64,
}

/// A write that a client wants, and what it knows of it.
struct Write {
    proposal: Arc<Proposal>,
    acknowledged: Option<Outcome>,
}

struct Pending {
    node: u64,
    life: u64,
    /// The highest revision that was acknowledged to anyone before the read began.
    floor: u64,
}

struct World {
    chance: Chance,
    now: Timestamp,
    machines: BTreeMap<u64, Machine>,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    /// Pairs (from, to) that nothing passes.
    cut: BTreeSet<(u64, u64)>,
    faults: bool,
    writes: BTreeMap<u64, Write>,
    reads: BTreeMap<u64, Pending>,
    next_id: u64,
    acknowledged: u64,
    leaders: BTreeMap<u64, u64>,
    /// A digest of the State at each index, from whichever node was there first.
    states: BTreeMap<u64, Vec<u8>>,
    reads_served: u64,
    snapshots_installed: u64,
    crashes: u64,
}

fn record(raft_id: u64) -> NodeRecord {
    let name = format!("east-{raft_id}");
    NodeRecord {
        raft_id,
        name: name.parse().unwrap(),
        address: format!("127.0.0.1:{}", 7000 + raft_id),
        peer_address: format!("127.0.0.1:{}", 7000 + raft_id),
        intermediate: None,
        authority: AuthorityCertificate {
            der: vec![u8::try_from(raft_id).unwrap()],
            key_id: KeyId([u8::try_from(raft_id).unwrap(); 32]),
            subject: format!("CN={name}"),
            not_after: Timestamp(u64::MAX),
            state: AuthorityState::Active,
        },
    }
}

fn founded(nodes: u64) -> State {
    State::founded(
        "east".parse().unwrap(),
        "east.example".parse().unwrap(),
        (1..=nodes).map(record).collect(),
    )
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            chance: Chance(seed),
            now: Timestamp(1_000),
            machines: BTreeMap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            cut: BTreeSet::new(),
            faults: true,
            writes: BTreeMap::new(),
            reads: BTreeMap::new(),
            next_id: 0,
            acknowledged: 0,
            leaders: BTreeMap::new(),
            states: BTreeMap::new(),
            reads_served: 0,
            snapshots_installed: 0,
            crashes: 0,
        };
        for id in 1..=3 {
            let machine = Machine {
                disk: MemoryDisk::new(),
                node: None,
                life: 0,
                busy: false,
                inbox: Vec::new(),
                published: 0,
            };
            world.machines.insert(id, machine);
            world.start(id);
        }
        world
    }

    fn config(&mut self, raft_id: u64) -> Config {
        Config {
            raft_id,
            timing: Timing::default(),
            seed: self.chance.next(),
            snapshot_every: 20,
            snapshot_margin: 5,
        }
    }

    fn start(&mut self, id: u64) {
        let config = self.config(id);
        let machine = self.machines.get_mut(&id).unwrap();
        let recovered = recover(&mut machine.disk, || founded(3)).unwrap();
        let commit = recovered.hard_state.commit;
        let node = Node::open(config, recovered, self.now).unwrap();
        machine.life += 1;
        machine.busy = false;
        machine.inbox.clear();
        machine.published = 0;
        machine.node = Some(node);
        self.run(id);
        let applied = self.machines[&id].node.as_ref().unwrap().applied;
        assert!(
            self.machines[&id].busy || applied >= commit,
            "what was stored as committed is applied at once"
        );
    }

    fn crash(&mut self, id: u64) {
        let machine = self.machines.get_mut(&id).unwrap();
        if machine.node.take().is_none() {
            return;
        }
        self.crashes += 1;
        machine.life += 1;
        // A write that the disk had not finished is there in full or not at all.
        let under_way: Vec<(u64, u64)> = self
            .events
            .iter()
            .filter(|(_, e)| matches!(e, Event::Stored { node, .. } if *node == id))
            .map(|(at, _)| *at)
            .collect();
        for at in under_way {
            if let Some(Event::Stored { outputs, .. }) = self.events.remove(&at)
                && self.chance.one_in(2)
                && let Some(Output::Store(batch)) = outputs.first()
            {
                self.machines.get_mut(&id).unwrap().disk.write(batch).unwrap();
            }
        }
        let back = 50 + self.chance.below(3_000);
        self.at(back, Event::Restart { node: id });
    }

    fn at(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now.0 + after, self.sequence), event);
    }

    fn input(&mut self, id: u64, input: Input) {
        let machine = self.machines.get_mut(&id).unwrap();
        if machine.node.is_some() {
            machine.inbox.push(input);
            self.run(id);
        }
    }

    /// Lets a node take in what waits for it, unless its disk is busy.
    fn run(&mut self, id: u64) {
        let machine = self.machines.get_mut(&id).unwrap();
        if machine.busy {
            return;
        }
        let inputs = std::mem::take(&mut machine.inbox);
        let Some(node) = machine.node.as_mut() else { return };
        let outputs = node.handle_all(self.now, inputs);
        if outputs.iter().any(|o| matches!(o, Output::Store(_))) {
            assert!(matches!(outputs[0], Output::Store(_)), "the store comes first");
            machine.busy = true;
            let life = machine.life;
            let slow = if self.faults && self.chance.one_in(100) { 1_500 } else { 5 };
            let takes = self.chance.below(slow);
            self.at(takes, Event::Stored { node: id, life, outputs });
        } else {
            self.perform(id, outputs);
        }
    }

    fn stored(&mut self, id: u64, life: u64, outputs: Vec<Output>) {
        let machine = self.machines.get_mut(&id).unwrap();
        assert_eq!(machine.life, life, "a crash takes what was under way with it");
        machine.busy = false;
        self.perform(id, outputs);
        self.run(id);
    }

    fn perform(&mut self, id: u64, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Store(batch) => self.machines.get_mut(&id).unwrap().disk.write(&batch).unwrap(),
                Output::Send(message) => self.send(id, message),
                Output::Reply { id: proposal, outcome } => self.acknowledge(proposal, outcome),
                Output::Publish { state, applied } => self.published(id, &state, &applied),
                Output::ReadReady { ids } => ids.into_iter().for_each(|read| self.read_done(id, read)),
                Output::MakeSnapshot(job) => {
                    let life = self.machines[&id].life;
                    let takes = self.chance.below(100);
                    self.at(takes, Event::Made { node: id, life, job });
                }
                Output::Refused { .. } => {}
                Output::Dropped { why, .. } => panic!("a message was dropped: {why}"),
                Output::Stop { why } => panic!("a node stopped: {why}"),
            }
        }
        self.check_leader(id);
    }

    /// Persist before you speak: what a message promises is on the disk of who sends it.
    fn check_promise(&self, from: u64, bytes: &[u8]) {
        use protobuf::Message as _;
        use raft::eraftpb::{Message, MessageType};
        let mut message = Message::default();
        message.merge_from_bytes(bytes).unwrap();
        let kept = |held: &crate::consensus::Recovered| match message.get_msg_type() {
            MessageType::MsgRequestVote => {
                (held.hard_state.term, held.hard_state.vote) == (message.term, from)
            }
            MessageType::MsgRequestVoteResponse if !message.reject => {
                (held.hard_state.term, held.hard_state.vote) == (message.term, message.to)
            }
            MessageType::MsgAppendResponse if !message.reject => {
                held.entries.last().map_or(held.before.0, |e| e.index) >= message.index
                    && held.hard_state.term >= message.term
            }
            _ => {
                held.hard_state.term >= message.term
                    || message.get_msg_type() == MessageType::MsgRequestPreVote
                    || message.get_msg_type() == MessageType::MsgRequestPreVoteResponse
            }
        };
        let disk = &self.machines[&from].disk;
        assert_eq!(disk.look(kept), Some(true), "node {from} says what it has not stored: {message:?}");
    }

    fn send(&mut self, from: u64, message: Outgoing) {
        self.check_promise(from, &message.bytes);
        let lost = self.faults && self.chance.one_in(20);
        if lost || self.cut.contains(&(from, message.to)) {
            // The link tells the node some of the time.
            if message.snapshot || self.chance.one_in(4) {
                let to = message.to;
                let told = if message.snapshot {
                    Input::SnapshotSent { to, ok: false }
                } else {
                    Input::Unreachable { to }
                };
                self.machines.get_mut(&from).unwrap().inbox.push(told);
            }
            return;
        }
        let copies = if self.faults && self.chance.one_in(50) { 2 } else { 1 };
        for _ in 0..copies {
            let far = if self.faults && self.chance.one_in(30) { 400 } else { 10 };
            let takes = 1 + self.chance.below(far);
            let (to, bytes, snapshot) = (message.to, message.bytes.clone(), message.snapshot);
            self.at(takes, Event::Message { from, to, bytes, snapshot });
        }
    }

    fn acknowledge(&mut self, id: u64, outcome: Outcome) {
        let write = self.writes.get_mut(&id).unwrap();
        if let Some(before) = &write.acknowledged {
            assert_eq!(*before, outcome, "one proposal has one outcome");
        }
        self.acknowledged = self.acknowledged.max(outcome.revision);
        write.acknowledged = Some(outcome);
    }

    /// Equal index ⇒ equal State; a View never goes back; revisions have no gap but after a snapshot.
    fn published(&mut self, id: u64, state: &Arc<State>, applied: &[Arc<Applied>]) {
        let index = state.view.revision.0;
        // Not the whole of what is remembered, for speed; `calm` compares all.
        let digest = serde_json::to_vec(&(&state.view, state.private.remembered.back())).unwrap();
        let known = self.states.entry(index).or_insert_with(|| digest.clone());
        assert_eq!(*known, digest, "node {id} has another State at index {index}");
        let machine = self.machines.get_mut(&id).unwrap();
        for one in applied {
            if one.reset {
                assert!(one.revision > machine.published);
                self.snapshots_installed += 1;
            } else if machine.published != 0 {
                assert_eq!(one.revision, machine.published + 1);
            }
            machine.published = one.revision;
        }
        assert_eq!(machine.published, index);
    }

    fn check_leader(&mut self, id: u64) {
        let Some(node) = &self.machines[&id].node else { return };
        let status = node.status();
        if status.is_leader {
            let known = self.leaders.entry(status.term).or_insert(id);
            assert_eq!(*known, id, "two leaders in term {}", status.term);
        }
    }

    fn read_done(&mut self, node: u64, id: u64) {
        let pending = self.reads.remove(&id).unwrap();
        let machine = &self.machines[&node];
        assert_eq!((pending.node, pending.life), (node, machine.life));
        let seen = machine.node.as_ref().unwrap().state().view.revision.0;
        assert!(seen >= pending.floor, "a read saw {seen}, {} had been acknowledged before", pending.floor);
        self.reads_served += 1;
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now.0 {
                break;
            }
            match entry.remove() {
                Event::Message { from, to, bytes, snapshot } => {
                    let passes = !self.cut.contains(&(from, to)) && self.machines[&to].node.is_some();
                    if snapshot {
                        self.input(from, Input::SnapshotSent { to, ok: passes });
                    }
                    if passes {
                        self.input(to, Input::Message { from, bytes });
                    }
                }
                Event::Stored { node, life, outputs } => self.stored(node, life, outputs),
                Event::Made { node, life, job } => {
                    if self.machines[&node].life == life {
                        self.input(node, job.run());
                    }
                }
                Event::Restart { node } => self.start(node),
            }
        }
        for id in 1..=3 {
            let due = self.machines[&id].node.as_ref().is_some_and(|n| n.deadline() <= self.now);
            if due && !self.machines[&id].busy {
                self.input(id, Input::Tick);
            }
        }
    }
}
