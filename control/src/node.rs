//! The control node as a pure machine: `handle(now, Input) → Vec<Output>`, and a `deadline()`.
//!
//! Owns the order of things: a proposal becomes an entry, a committed entry is applied to the State, a read waits
//! for the State that it may see, a State becomes a snapshot and the log behind it is dropped. No clock, socket,
//! disk or thread: whoever owns those performs the Outputs in the order in which they come (store, send, reply,
//! publish) and feeds back what happened. If a store fails, nothing after it may be performed, and the node is over.

use std::sync::Arc;

use hanse_federation::Change;
use hanse_identity::Timestamp;

use crate::command::{Outcome, Proposal};
use crate::consensus::{
    Batch, Committed, Disk, DiskError, Effects, Entry, Group, GroupError, Outgoing, ProposeRefusal,
    Recovered, Snapshot, Timing,
};
use crate::state::snapshot::{self, SnapshotError};
use crate::state::{FOUNDING_INDEX, State};

mod reads;
mod versions;

use reads::Reads;
use versions::Versions;

/// Entries after which a snapshot is taken.
pub const SNAPSHOT_EVERY: u64 = 1000;
/// Entries before a snapshot that are kept, so that a follower that is a little behind needs no snapshot.
pub const SNAPSHOT_MARGIN: u64 = 500;
/// Largest proposal, in bytes of its JSON.
pub const MAX_PROPOSAL_BYTES: usize = 4 << 20;

/// How a node is set up.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub raft_id: u64,
    pub timing: Timing,
    /// Draws election timeouts and names this life of the process; unlike that of any other life.
    pub seed: u64,
    pub snapshot_every: u64,
    pub snapshot_margin: u64,
}

/// What happens to a node.
#[derive(Debug)]
pub enum Input {
    /// `deadline()` has come.
    Tick,
    /// A Raft message from the authenticated node `from`.
    Message {
        from: u64,
        bytes: Vec<u8>,
    },
    Propose(Arc<Proposal>),
    /// Somebody wants to read; `id` is unlike that of any other read that waits.
    Read {
        id: u64,
    },
    /// A message could not be delivered.
    Unreachable {
        to: u64,
    },
    /// A snapshot was handed over, or could not be.
    SnapshotSent {
        to: u64,
        ok: bool,
    },
    /// A `SnapshotJob` is done.
    SnapshotMade(SnapshotMade),
    /// The process is about to end: leave the lead to another.
    Resign,
}

/// What has to be done, in this order within one `handle`.
#[derive(Clone, Debug)]
pub enum Output {
    /// Durable before anything after it is performed.
    Store(Batch),
    Send(Outgoing),
    /// A proposal was applied. Every applied proposal is reported, whoever proposed it.
    Reply {
        id: u64,
        outcome: Outcome,
    },
    /// A proposal was not taken; nothing of it will be applied because of this attempt.
    Refused {
        id: u64,
        why: ProposeRefusal,
    },
    /// The State published with or before this may answer these reads.
    ReadReady {
        ids: Vec<u64>,
    },
    Publish {
        state: Arc<State>,
        applied: Vec<Arc<Applied>>,
    },
    /// To be run beside the loop, it takes its time; the result comes back as `SnapshotMade`.
    MakeSnapshot(SnapshotJob),
    /// Nobody else could tell that a message was dropped.
    Dropped {
        from: u64,
        why: String,
    },
    /// The node cannot go on, and does nothing any more.
    Stop {
        why: String,
    },
}

/// The Changes of one revision, as they are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub revision: u64,
    pub changes: Vec<Change>,
    /// The State came as a snapshot from the leader: what led to it is not known, and whoever follows Changes
    /// starts again from the State.
    pub reset: bool,
}

/// How this node stands in its Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub raft_id: u64,
    pub leader: Option<u64>,
    pub is_leader: bool,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    /// On the leader: (raft id, match index, recently heard).
    pub followers: Vec<(u64, u64, bool)>,
    pub first_index: u64,
    pub snapshot_index: u64,
}

/// A State to be written as a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotJob {
    index: u64,
    term: u64,
    state: Arc<State>,
}

/// A snapshot, written.
#[derive(Clone, Debug)]
pub struct SnapshotMade {
    index: u64,
    term: u64,
    data: bytes::Bytes,
}

/// Why a node cannot start from what its disk held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the snapshot at index {index} is damaged: {why}")]
    Snapshot { index: u64, why: SnapshotError },
    #[error("{0}")]
    Group(#[from] GroupError),
    #[error("node {0} is not among the voters {1:?} of the group in this directory")]
    NotAVoter(u64, Vec<u64>),
}

/// A control node.
#[derive(Debug)]
pub struct Node {
    config: Config,
    group: Group,
    versions: Versions,
    applied: u64,
    applied_term: u64,
    reads: Reads,
    /// Index of the snapshot that is being made.
    snapshot_job: Option<u64>,
    next_tick: Timestamp,
    stopped: bool,
}

/// What the disk holds; if it holds nothing yet, the founding State is written first.
pub fn recover(disk: &mut dyn Disk, founded: impl FnOnce() -> State) -> Result<Recovered, DiskError> {
    if let Some(recovered) = disk.load()? {
        return Ok(recovered);
    }
    disk.write(&founding(&founded()))?;
    disk.load()?.ok_or_else(|| DiskError::Damaged("what was just written is not there".into()))
}

/// The first thing on the disk of every member of a new group, the same on all.
pub fn founding(state: &State) -> Batch {
    Batch::founding(Snapshot {
        index: FOUNDING_INDEX,
        term: 1,
        voters: state.private.nodes.keys().copied().collect(),
        data: snapshot::encode(state),
    })
}

impl SnapshotJob {
    /// Writes the snapshot.
    pub fn run(self) -> Input {
        let data = snapshot::encode(&self.state);
        Input::SnapshotMade(SnapshotMade { index: self.index, term: self.term, data })
    }
}

impl Node {
    /// A node, from what its disk held. Entries that are known to be committed are applied by the first `handle`.
    pub fn open(config: Config, recovered: Recovered, now: Timestamp) -> Result<Self, OpenError> {
        let (index, term) = (recovered.snapshot.index, recovered.snapshot.term);
        let damaged = |why| OpenError::Snapshot { index, why };
        let state = snapshot::decode(&recovered.snapshot.data).map_err(damaged)?;
        if !recovered.snapshot.voters.contains(&config.raft_id) {
            return Err(OpenError::NotAVoter(config.raft_id, recovered.snapshot.voters));
        }
        Ok(Self {
            group: Group::open(config.raft_id, config.timing, config.seed, recovered)?,
            versions: Versions::new(state),
            applied: index,
            applied_term: term,
            reads: Reads::new(config.raft_id, config.seed),
            snapshot_job: None,
            next_tick: now + config.timing.tick,
            stopped: false,
            config,
        })
    }

    /// When the next `Tick` is due.
    pub fn deadline(&self) -> Timestamp {
        self.next_tick
    }

    /// Takes in one Input.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Vec<Output> {
        self.handle_all(now, [input])
    }

    /// Takes in several Inputs at once: one batch to store for all of them.
    pub fn handle_all(&mut self, now: Timestamp, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.stopped {
            return outputs;
        }
        let mut effects = Effects::default();
        for input in inputs {
            self.take(now, input, &mut effects, &mut outputs);
        }
        loop {
            self.group.drain(&mut effects);
            effects.reads.drain(..).for_each(|read| self.reads.arrived(read));
            if !self.reads.ask_next(&mut self.group) {
                break;
            }
        }
        self.perform(effects, outputs)
    }

    fn take(&mut self, now: Timestamp, input: Input, effects: &mut Effects, outputs: &mut Vec<Output>) {
        match input {
            Input::Tick => {
                self.group.tick();
                self.reads.tick();
                self.next_tick = now + self.config.timing.tick;
            }
            Input::Message { from, bytes } => {
                if let Err(why) = self.group.step(from, &bytes) {
                    outputs.push(Output::Dropped { from, why: why.to_string() });
                }
            }
            Input::Propose(proposal) => {
                let data = serde_json::to_vec(&*proposal).expect("a Proposal has no failing serialisers");
                if let Err(why) = self.group.propose(data) {
                    outputs.push(Output::Refused { id: proposal.id, why });
                }
            }
            Input::Read { id } => self.reads.wait(id),
            Input::Unreachable { to } => self.group.report_unreachable(to),
            Input::SnapshotSent { to, ok } => self.group.report_snapshot(to, ok),
            Input::SnapshotMade(made) => {
                self.snapshot_job = None;
                let voters = self.group.snapshot().voters.clone();
                let keep_from = made.index.saturating_sub(self.config.snapshot_margin) + 1;
                let snapshot = Snapshot { index: made.index, term: made.term, voters, data: made.data };
                self.group.compact(snapshot, keep_from, effects);
            }
            Input::Resign => self.group.resign(),
        }
    }

    /// Turns Effects into Outputs, in the order in which they are performed.
    fn perform(&mut self, effects: Effects, immediate: Vec<Output>) -> Vec<Output> {
        let mut outputs = Vec::new();
        if !effects.batch.is_empty() {
            outputs.push(Output::Store(effects.batch));
        }
        outputs.extend(effects.messages.into_iter().map(Output::Send));
        outputs.extend(immediate);
        let mut applied = Vec::new();
        if let Err(why) = self.apply(effects.committed, &mut applied, &mut outputs) {
            self.stopped = true;
            outputs.push(Output::Stop { why });
            return outputs;
        }
        if !applied.is_empty() {
            outputs.push(Output::Publish { state: self.state(), applied });
        }
        let ids = self.reads.ready(self.applied);
        if !ids.is_empty() {
            outputs.push(Output::ReadReady { ids });
        }
        outputs.extend(self.snapshot_due());
        outputs
    }

    fn apply(
        &mut self,
        committed: Vec<Committed>,
        applied: &mut Vec<Arc<Applied>>,
        outputs: &mut Vec<Output>,
    ) -> Result<(), String> {
        let mut entries = Vec::new();
        for one in committed {
            match one {
                Committed::Entry(entry) => entries.push(read_entry(&entry)?),
                Committed::Snapshot(snapshot) => {
                    // What came before it is contained in it.
                    entries.clear();
                    let state = snapshot::decode(&snapshot.data).map_err(|e| e.to_string())?;
                    self.versions.reset(state);
                    (self.applied, self.applied_term) = (snapshot.index, snapshot.term);
                    let revision = snapshot.index;
                    applied.push(Arc::new(Applied { revision, changes: Vec::new(), reset: true }));
                }
            }
        }
        if let Some(last) = entries.last() {
            (self.applied, self.applied_term) = (last.index, last.term);
            for (revision, answer, changes) in self.versions.apply(entries) {
                outputs.extend(answer.map(|(id, outcome)| Output::Reply { id, outcome }));
                applied.push(Arc::new(Applied { revision, changes, reset: false }));
            }
        }
        Ok(())
    }

    fn snapshot_due(&mut self) -> Option<Output> {
        let due = self.group.snapshot().index + self.config.snapshot_every;
        if self.snapshot_job.is_some() || self.applied < due {
            return None;
        }
        self.snapshot_job = Some(self.applied);
        let (index, term) = (self.applied, self.applied_term);
        Some(Output::MakeSnapshot(SnapshotJob { index, term, state: self.state() }))
    }

    /// The State that this node has applied.
    pub fn state(&self) -> Arc<State> {
        self.versions.current()
    }

    /// What is not stored yet although nothing depends on it. For an orderly end.
    pub fn remainder(&mut self) -> Batch {
        self.group.remainder()
    }

    pub fn status(&self) -> Status {
        let standing = self.group.standing();
        Status {
            raft_id: self.config.raft_id,
            leader: standing.leader,
            is_leader: standing.is_leader,
            term: standing.term,
            commit: standing.commit,
            applied: self.applied,
            followers: standing.followers,
            first_index: standing.first_index,
            snapshot_index: standing.snapshot_index,
        }
    }
}

/// An entry whose proposal has been read.
#[derive(Clone, Debug)]
struct ReadEntry {
    index: u64,
    term: u64,
    proposal: Option<Arc<Proposal>>,
}

/// An entry that this version cannot read was written by another one: applying what it does not say would make
/// this node's State differ from the others', so it stops.
fn read_entry(entry: &Entry) -> Result<ReadEntry, String> {
    let proposal = match entry.data.is_empty() {
        true => None,
        false => {
            let read = serde_json::from_slice::<Proposal>(&entry.data);
            Some(Arc::new(read.map_err(|e| format!("entry {} of the log cannot be read: {e}", entry.index))?))
        }
    };
    Ok(ReadEntry { index: entry.index, term: entry.term, proposal })
}

#[cfg(test)]
mod tests;
