//! The World: clusters of control nodes, proxies and gateways in one process, with a virtual clock, an invented
//! network and disks in memory. No sockets, no threads, no wall clock: one seed, one run.
//!
//! It owns the shells that `control/io` and `proxy` have in the real house, as thin as they can be: the deciding is
//! done by the very same pure code (`control::node`, `control::state`, `federation`, `identity`, `gateway::route`).
//! `ledger` watches the invariants all the time; `scenario` reads operators' words; `storm` breaks things.
//!
//! Files: `control` one node and its disk, `propose` writes and reads, `watch` its subscribers, `peer` the sessions
//! between clusters, `clocks` whose is right, `join`, `proxy` subscribers and their timers, `traffic` requests and live connections, `keys` the
//! authorities of a node, `rotation` how they are replaced, `revoked` whom nobody listens to any more.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use hanse_control::command::{Command, Outcome};
use hanse_identity::{ClusterName, Timestamp, TrustDomain};

pub mod authorities;
mod clocks;
mod control;
pub mod join;
mod keys;
pub mod ledger;
mod log;
pub mod network;
mod packet;
mod peer;
mod propose;
mod proxy;
pub mod random;
mod receipt;
mod revoked;
mod rotation;
pub mod scenario;
pub mod settle;
mod show;
pub mod storm;
mod traffic;
mod watch;

pub use authorities::EPOCH;
pub use control::ControlNode;
pub use ledger::Violation;
pub use log::EventLog;
pub use network::{Party, Scope, Weather};
pub use proxy::{Proxy, ProxyKind};
pub use traffic::Told;

use join::JoinTask;
use ledger::Ledger;
use network::Network;
use packet::Packet;
use random::Random;

/// What a World is told to do wrong, to show that the invariants see it. Only its shell knows of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A node sends and answers before what it says is on its disk, which is synced now and then.
    SpeakBeforeStore,
    /// What a peer says goes into the log as it came.
    NoImportFilter,
    /// A proxy that resumes overlooks the revocations that it missed.
    ResumeWithoutRevocations,
    /// An exporter tells from what it has applied, even if the importer has heard of newer things.
    ExporterLags,
    /// A retried proposal gets a new id.
    FreshProposalIds,
    /// A node signs with its new authority before the cluster has published it.
    SignUnpublished,
    /// A read is answered from what the node has applied, without asking the others.
    StaleReads,
    /// A subscriber forgets how far it was, and takes any snapshot that comes.
    SnapshotsGoBack,
    /// Live connections are not looked at again when a new View comes.
    ConnectionsKept,
    /// A leader takes a rotation through its gates without asking anybody.
    GatesUnmeasured,
    /// What is given in place of what was revoked begins as if nothing had been.
    WatermarkIgnored,
    /// A node goes by its own clock, whatever the others say.
    OwnClockBelieved,
}

/// A cluster: its control nodes, and its proxies and gateways.
#[derive(Debug)]
pub struct Cluster {
    pub name: ClusterName,
    pub trust_domain: TrustDomain,
    pub nodes: Vec<ControlNode>,
    pub proxies: Vec<Proxy>,
}

/// A node by its cluster and its place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub cluster: usize,
    pub index: usize,
}

/// Something that an operator asked for.
#[derive(Clone, Debug)]
pub struct Operation {
    pub cluster: usize,
    pub command: Command,
    pub began: u64,
    /// `Err`: nobody knows whether it was done (its node crashed, or took too long).
    pub end: Option<Result<Outcome, &'static str>>,
}

/// A linearizable read that an operator asked for.
#[derive(Clone, Debug)]
pub struct Reading {
    pub cluster: usize,
    /// What had been acknowledged when it began.
    pub floor: u64,
    pub end: Option<u64>,
}

pub struct World {
    pub now: u64,
    pub clusters: Vec<Cluster>,
    pub network: Network,
    pub log: EventLog,
    pub ledger: Ledger,
    pub bug: Option<Bug>,
    pub operations: BTreeMap<u64, Operation>,
    pub readings: BTreeMap<u64, Reading>,
    pub joins: Vec<JoinTask>,
    pub told: BTreeMap<u64, Told>,
    /// Clusters whose exporters say things about others (a peer gone bad).
    pub liars: Vec<usize>,
    /// Chance that a store takes a while, per mille.
    pub disk_delay_per_mille: u64,
    /// By how much any node's clock has been ahead at most.
    pub most_ahead_ms: u64,
    pub random: Random,
    queue: BinaryHeap<Scheduled>,
    scheduled: u64,
    ids: u64,
}

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

/// What the clock brings.
#[derive(Debug)]
pub(crate) enum Event {
    Deliver {
        from: Party,
        to: Party,
        packet: Box<Packet>,
    },
    Tick {
        at: At,
        life: u64,
    },
    Stored {
        at: At,
        life: u64,
    },
    SnapshotMade {
        at: At,
        life: u64,
        job: hanse_control::node::SnapshotJob,
    },
    /// What became of a message: not delivered, or of a snapshot: delivered or not.
    Fate {
        at: At,
        life: u64,
        to: u64,
        snapshot: bool,
        ok: bool,
    },
    Service {
        at: At,
        life: u64,
    },
    LeaseOver {
        at: At,
        life: u64,
        name: hanse_identity::NodeName,
        session: hanse_federation::catalog::Session,
    },
    Proxy {
        cluster: usize,
        index: usize,
        life: u64,
    },
    RequestTimeout {
        cluster: usize,
        index: usize,
        life: u64,
        request: u64,
        attempt: u32,
    },
    Join {
        task: usize,
    },
}

impl World {
    pub fn new(seed: u64, log: EventLog) -> Self {
        Self {
            now: 0,
            clusters: Vec::new(),
            network: Network::new(),
            log,
            ledger: Ledger::default(),
            bug: None,
            operations: BTreeMap::new(),
            readings: BTreeMap::new(),
            joins: Vec::new(),
            told: BTreeMap::new(),
            liars: Vec::new(),
            disk_delay_per_mille: 0,
            most_ahead_ms: 0,
            random: Random::new(seed),
            queue: BinaryHeap::new(),
            scheduled: 0,
            ids: 0,
        }
    }

    /// The true time, that nobody's clock need show.
    pub fn clock(&self) -> Timestamp {
        Timestamp(EPOCH.0 + self.now)
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(crate) fn after(&mut self, delay_ms: u64, event: Event) {
        self.at(self.now + delay_ms, event);
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled { at, order: self.scheduled, event });
    }

    pub(crate) fn note(&mut self, numbers: &[u64], line: impl FnOnce() -> String) {
        let now = self.now;
        self.log.event(now, numbers, || format!("{now:>7} {}", line()));
    }

    /// Lets that much time pass, or stops at the first violation.
    pub fn run_for(&mut self, duration_ms: u64) -> Result<(), Violation> {
        let end = self.now + duration_ms;
        while let Some(next) = self.queue.peek()
            && next.at <= end
        {
            let Some(Scheduled { at, event, .. }) = self.queue.pop() else { break };
            self.now = at;
            self.handle(event);
            self.ledger.verdict()?;
        }
        self.now = end;
        Ok(())
    }

    /// Lets time pass until `done` says so, at most `limit_ms`; says whether it did.
    pub fn run_until(&mut self, limit_ms: u64, done: impl Fn(&World) -> bool) -> Result<bool, Violation> {
        const STEP_MS: u64 = 50;
        let end = self.now + limit_ms;
        loop {
            if done(self) {
                return Ok(true);
            }
            if self.now >= end {
                return Ok(false);
            }
            self.run_for(STEP_MS.min(end - self.now))?;
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, packet } => self.deliver(from, to, *packet),
            Event::Tick { at, life } => self.node_tick(at, life),
            Event::Stored { at, life } => self.node_stored(at, life),
            Event::SnapshotMade { at, life, job } => self.node_input(at, life, job.run()),
            Event::Fate { at, life, to, snapshot, ok } => self.node_fate(at, life, to, snapshot, ok),
            Event::Service { at, life } => self.node_service(at, life),
            Event::LeaseOver { at, life, name, session } => self.lease_over(at, life, &name, session),
            Event::Proxy { cluster, index, life } => self.proxy_timer(cluster, index, life),
            Event::RequestTimeout { cluster, index, life, request, attempt } => {
                self.request_timeout(cluster, index, life, request, attempt);
            }
            Event::Join { task } => self.join_step(task),
        }
    }

    pub fn cluster_named(&self, name: &str) -> Option<usize> {
        self.clusters.iter().position(|c| c.name.as_str() == name)
    }

    pub fn violate(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        self.ledger.violate(now, what);
    }
}

impl At {
    pub fn party(self) -> Party {
        Party::Node(self.cluster, self.index)
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest, for the heap.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}
