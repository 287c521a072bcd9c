//! Consensus: raft-rs behind our own types, stepped as a pure machine.
//!
//! Owns everything that names the `raft` crate. A `Group` is one member of the Raft group: it is ticked, stepped
//! with messages, asked to propose and to read, and then `drain`ed: what has to be stored, sent and applied comes
//! out as one `Effects`, which its owner performs in that order. Nothing in an `Effects` may leave the node before
//! its `Batch` is durable; under that rule the members may treat their own log as stored the moment they drain it.
//!
//! What is durable is written by a `Disk` (redb in `io::store`, memory in tests). Raft itself reads the log from
//! memory: it is truncated behind every snapshot, so it is small.

use std::collections::BTreeSet;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{self, MessageType};
use raft::{GetEntriesContext, RaftState, ReadOnlyOption, SnapshotStatus, StateRole, StorageError};

mod disk;
mod log;

pub use disk::{Batch, Disk, DiskError, Entry, HardState, MemoryDisk, Recovered, Snapshot};
use log::Log;

/// Most bytes of entries in one append message.
pub const MAX_APPEND_BYTES: u64 = 1 << 20;
/// Most append messages on their way to one follower.
pub const MAX_INFLIGHT_APPENDS: usize = 256;
/// Most bytes of proposals that are not committed yet; more is refused.
pub const MAX_UNCOMMITTED_BYTES: u64 = 64 << 20;
/// Most bytes of committed entries that are applied in one go.
pub const MAX_APPLY_BYTES: u64 = 16 << 20;

/// How often the group is ticked and how many ticks its timeouts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub tick: std::time::Duration,
    /// A follower that hears nothing stands for election after this many ticks, at most twice as many less one.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
}

impl Default for Timing {
    /// 50 ms, election after 500 to 950 ms, heartbeat every 100 ms: writes again within 2 s of a leader's death.
    fn default() -> Self {
        Self { tick: std::time::Duration::from_millis(50), election_ticks: 10, heartbeat_ticks: 2 }
    }
}

/// One member of the Raft group.
pub struct Group {
    raw: raft::RawNode<Log>,
    election_ticks: usize,
    random: Random,
    /// The hard state as the last batch had it.
    stored: HardState,
}

/// What has come out of a `Group`: to be stored, then sent, then applied.
#[derive(Debug, Default)]
pub struct Effects {
    pub batch: Batch,
    pub messages: Vec<Outgoing>,
    pub committed: Vec<Committed>,
    pub reads: Vec<ReadIndex>,
}

/// A message for another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub to: u64,
    /// raft::eraftpb::Message, encoded.
    pub bytes: Vec<u8>,
    /// Its delivery, or that it could not be delivered, has to be reported.
    pub snapshot: bool,
}

/// What the group has agreed on.
#[derive(Clone, Debug)]
pub enum Committed {
    /// Empty data: a new leader's first entry.
    Entry(Entry),
    /// The leader's snapshot, in place of all entries up to its index.
    Snapshot(Snapshot),
}

/// A read may be answered by any State at or after `index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadIndex {
    pub context: Vec<u8>,
    pub index: u64,
}

/// Why the group did not take a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeRefusal {
    #[error("this node does not lead")]
    NotLeader(Option<u64>),
    #[error("more than {MAX_UNCOMMITTED_BYTES} bytes of proposals are waiting")]
    Full,
}

/// Why a message was not taken. Such a message changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error("the message cannot be decoded: {0}")]
    Malformed(String),
    #[error("the message says it is from {said} to {to}, but node {from} sent it")]
    Misaddressed { said: u64, to: u64, from: u64 },
    #[error("node {0} is not a member")]
    Stranger(u64),
    #[error("a member may not send {0}")]
    NotForMembers(String),
    #[error("the snapshot in the message is damaged: {0}")]
    Snapshot(String),
}

/// How one member stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub leader: Option<u64>,
    pub is_leader: bool,
    pub term: u64,
    pub commit: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub snapshot_index: u64,
    /// On the leader: (id, match index, recently heard) of the others.
    pub followers: Vec<(u64, u64, bool)>,
}

/// A member cannot go on: its durable state contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Raft group cannot be entered: {0}")]
pub struct GroupError(String);

impl Group {
    /// A member, from what its disk held. `seed` draws its election timeouts.
    pub fn open(id: u64, timing: Timing, seed: u64, recovered: Recovered) -> Result<Self, GroupError> {
        let log = Log::new(recovered).map_err(GroupError)?;
        let config = raft::Config {
            id,
            applied: log.snapshot().index,
            election_tick: timing.election_ticks,
            heartbeat_tick: timing.heartbeat_ticks,
            pre_vote: true,
            check_quorum: true,
            // Never leases: a paused leader must not answer from the past.
            read_only_option: ReadOnlyOption::Safe,
            max_size_per_msg: MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_APPENDS,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_APPLY_BYTES,
            ..raft::Config::default()
        };
        let stored = log.hard_state();
        let logger = slog::Logger::root(tracing_drain::ToTracing, slog::o!());
        let raw = raft::RawNode::new(&config, log, &logger).map_err(|e| GroupError(e.to_string()))?;
        Ok(Self { raw, election_ticks: timing.election_ticks, random: Random::new(seed ^ id), stored })
    }

    /// One tick of the clock has passed.
    pub fn tick(&mut self) {
        // raft-rs draws a new timeout from the thread's random source whenever its role changes, and nothing else
        // looks at it but this tick: ours, drawn from our seed, is put in its place before it can have an effect.
        if self.raw.raft.election_elapsed == 0 {
            let spread = u64::try_from(self.election_ticks).unwrap_or(1).max(1);
            let extra = usize::try_from(self.random.next() % spread).unwrap_or(0);
            self.random.timeout = self.election_ticks + extra;
        }
        self.raw.raft.set_randomized_election_timeout(self.random.timeout);
        self.raw.tick();
    }

    /// Takes a message that the authenticated node `from` sent.
    pub fn step(&mut self, from: u64, bytes: &[u8]) -> Result<(), StepError> {
        let message = decode(bytes)?;
        let kind = message.get_msg_type();
        if kind == MessageType::MsgReadIndex && message.from != from && self.members().contains(&message.from)
        {
            // A question that was passed on because its asker took a follower for the leader. It asks again.
            return Ok(());
        }
        if message.from != from || message.to != self.raw.raft.id {
            return Err(StepError::Misaddressed { said: message.from, to: message.to, from });
        }
        if !self.members().contains(&from) {
            return Err(StepError::Stranger(from));
        }
        let foreign_entries =
            || message.get_entries().iter().any(|e| e.get_entry_type() != Default::default());
        // Members forward nothing through Raft but read requests, and never change the membership.
        if kind == MessageType::MsgPropose || kind == MessageType::MsgTransferLeader || foreign_entries() {
            return Err(StepError::NotForMembers(format!("{kind:?}")));
        }
        if kind == MessageType::MsgSnapshot {
            let snapshot = Snapshot::from_raft(message.get_snapshot());
            crate::state::snapshot::check(&snapshot.data).map_err(|e| StepError::Snapshot(e.to_string()))?;
        }
        // The remaining errors are about local messages and unknown progress, both excluded above.
        self.raw.step(message).map_err(|e| StepError::NotForMembers(e.to_string()))
    }

    /// Puts an entry into the log, if this member leads.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<(), ProposeRefusal> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(ProposeRefusal::NotLeader(self.leader()));
        }
        match self.raw.propose(Vec::new(), data) {
            Ok(()) => Ok(()),
            // While leadership is being transferred, or when too much is uncommitted.
            Err(_) if self.raw.raft.lead_transferee.is_some() => Err(ProposeRefusal::NotLeader(None)),
            Err(_) => Err(ProposeRefusal::Full),
        }
    }

    /// Asks for a read index. `context` must never have been used before, on any attempt: a late heartbeat answer
    /// to an older attempt would otherwise release this one. May be dropped without a word: ask again.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
    }

    /// A message to that member could not be delivered.
    pub fn report_unreachable(&mut self, to: u64) {
        self.raw.report_unreachable(to);
    }

    /// A snapshot for that member was, or was not, handed over.
    pub fn report_snapshot(&mut self, to: u64, ok: bool) {
        self.raw.report_snapshot(to, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// Leads the group into the hands of the follower that is furthest, if this member leads.
    pub fn resign(&mut self) {
        let furthest = self.standing().followers.into_iter().filter(|f| f.2).max_by_key(|f| f.1);
        if let Some((to, _, _)) = furthest {
            self.raw.transfer_leader(to);
        }
    }

    /// Takes in a snapshot of the applied State at `index` and drops the log before `keep_from`. Comes out with the
    /// next `drain`.
    pub fn compact(&mut self, snapshot: Snapshot, keep_from: u64, effects: &mut Effects) {
        let log = self.raw.mut_store();
        if snapshot.index <= log.snapshot().index {
            return;
        }
        log.compact(snapshot.clone(), keep_from);
        effects.batch.snapshot = Some(snapshot);
        effects.batch.drop_before = Some(keep_from);
    }

    /// Collects everything that has to be done, until there is nothing more.
    pub fn drain(&mut self, effects: &mut Effects) {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            self.send(ready.take_messages(), effects);
            for state in ready.take_read_states() {
                effects.reads.push(ReadIndex { context: state.request_ctx, index: state.index });
            }
            if !ready.snapshot().is_empty() {
                let snapshot = Snapshot::from_raft(ready.snapshot());
                self.raw.mut_store().install(snapshot.clone());
                effects.batch.install(snapshot.clone());
                effects.committed.push(Committed::Snapshot(snapshot));
            }
            take_committed(ready.take_committed_entries(), effects);
            let entries: Vec<Entry> = ready.take_entries().into_iter().map(Entry::from_raft).collect();
            self.raw.mut_store().append(&entries);
            effects.batch.append(entries);
            if let Some(hard_state) = ready.hs() {
                self.raw.mut_store().set_hard_state(HardState::from_raft(hard_state));
            }
            self.send(ready.take_persisted_messages(), effects);
            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().set_commit(commit);
            }
            self.send(light.take_messages(), effects);
            take_committed(light.take_committed_entries(), effects);
            self.raw.advance_apply();
        }
        self.complete(effects);
    }

    /// A vote or a term must be durable; a commit index alone need not, it is learnt again: it goes with the next
    /// batch. Every batch carries the whole hard state, so that it never falls behind its snapshot.
    fn complete(&mut self, effects: &mut Effects) {
        let now = self.raw.store().hard_state();
        let must = (now.term, now.vote) != (self.stored.term, self.stored.vote);
        if must || !effects.batch.is_empty() {
            effects.batch.hard_state = Some(now);
            self.stored = now;
        }
    }

    /// What is not stored yet although nothing depends on it: the commit index. For an orderly end.
    pub fn remainder(&mut self) -> Batch {
        let now = self.raw.store().hard_state();
        self.stored = now;
        Batch { hard_state: Some(now), ..Batch::default() }
    }

    fn send(&self, messages: Vec<eraftpb::Message>, effects: &mut Effects) {
        for message in messages {
            let bytes = message.write_to_bytes().expect("a message that raft built has all its fields");
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            effects.messages.push(Outgoing { to: message.to, bytes, snapshot });
        }
    }

    pub fn id(&self) -> u64 {
        self.raw.raft.id
    }

    pub fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// The snapshot that a lagging member would be sent.
    pub fn snapshot(&self) -> &Snapshot {
        self.raw.store().snapshot()
    }

    fn members(&self) -> &BTreeSet<u64> {
        self.raw.store().voters()
    }

    pub fn standing(&self) -> Standing {
        let raft = &self.raw.raft;
        let is_leader = raft.state == StateRole::Leader;
        let mut followers = Vec::new();
        if is_leader {
            let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
            followers.extend(others.map(|(id, progress)| (*id, progress.matched, progress.recent_active)));
            followers.sort_unstable();
        }
        Standing {
            leader: self.leader(),
            is_leader,
            term: raft.term,
            commit: raft.raft_log.committed,
            first_index: raft.raft_log.first_index(),
            last_index: raft.raft_log.last_index(),
            snapshot_index: self.snapshot().index,
            followers,
        }
    }
}

fn take_committed(entries: Vec<eraftpb::Entry>, effects: &mut Effects) {
    effects.committed.extend(entries.into_iter().map(Entry::from_raft).map(Committed::Entry));
}

fn decode(bytes: &[u8]) -> Result<eraftpb::Message, StepError> {
    let mut message = eraftpb::Message::default();
    message.merge_from_bytes(bytes).map_err(|e| StepError::Malformed(e.to_string()))?;
    Ok(message)
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough to spread election timeouts, the same on every run of a seed.
#[derive(Clone, Debug)]
struct Random {
    state: u64,
    /// The timeout in force, in ticks.
    timeout: usize,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { state: seed, timeout: 0 }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id()).field("standing", &self.standing()).finish()
    }
}

/// raft-rs logs through slog; its lines become tracing events.
mod tracing_drain {
    pub(super) struct ToTracing;

    impl slog::Drain for ToTracing {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &slog::Record<'_>, _: &slog::OwnedKVList) -> Result<(), slog::Never> {
            match record.level() {
                slog::Level::Critical | slog::Level::Error => {
                    tracing::error!(target: "raft", "{}", record.msg())
                }
                slog::Level::Warning => tracing::warn!(target: "raft", "{}", record.msg()),
                // Elections are interesting when they are looked for; `Status` says the outcome.
                slog::Level::Info | slog::Level::Debug => tracing::debug!(target: "raft", "{}", record.msg()),
                slog::Level::Trace => tracing::trace!(target: "raft", "{}", record.msg()),
            }
            Ok(())
        }
    }
}
