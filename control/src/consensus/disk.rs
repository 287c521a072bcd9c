//! What a member keeps: log entries, hard state, snapshot; and the trait of what keeps it.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Bytes, eraftpb};

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    /// A `command::Proposal` as JSON; empty for a new leader's first entry.
    pub data: Bytes,
}

/// What a member must never forget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    /// Whom it voted for in that term; 0 = nobody.
    pub vote: u64,
    pub commit: u64,
}

/// The State at one index, in place of all entries up to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub index: u64,
    pub term: u64,
    pub voters: Vec<u64>,
    /// As `state::snapshot` writes it.
    pub data: Bytes,
}

/// What is written at once: all of it or nothing, and durable when the write has returned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub hard_state: Option<HardState>,
    /// Replaces the older one.
    pub snapshot: Option<Snapshot>,
    /// The snapshot came from the leader: the log is emptied before `entries` are written.
    pub clear_log: bool,
    /// Replace everything from the first one's index on.
    pub entries: Vec<Entry>,
    /// Entries before this index are dropped.
    pub drop_before: Option<u64>,
}

/// What a disk held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub hard_state: HardState,
    pub snapshot: Snapshot,
    /// In order, without a gap.
    pub entries: Vec<Entry>,
    /// Index and term of the entry before the first one.
    pub before: (u64, u64),
}

/// Why nothing was written, or nothing can be read. After the first one, a node stops: what the disk holds is no
/// longer known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    #[error("the store cannot be opened: {0}")]
    Open(String),
    #[error("the store is damaged: {0}")]
    Damaged(String),
    #[error("the store cannot be written: {0}")]
    Write(String),
    #[error("the store failed before and is not written any more")]
    Poisoned,
}

/// Keeps what has to survive. One write is one synced transaction.
pub trait Disk: Send {
    /// What was written; `None` if nothing ever was.
    fn load(&mut self) -> Result<Option<Recovered>, DiskError>;

    /// Durable when it returns. After an error it returns only errors.
    fn write(&mut self, batch: &Batch) -> Result<(), DiskError>;
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.hard_state.is_none()
            && self.snapshot.is_none()
            && self.entries.is_empty()
            && self.drop_before.is_none()
    }

    /// The first thing that a member of a new group writes.
    pub fn founding(snapshot: Snapshot) -> Self {
        let hard_state = HardState { term: snapshot.term, vote: 0, commit: snapshot.index };
        Self { hard_state: Some(hard_state), snapshot: Some(snapshot), clear_log: true, ..Self::default() }
    }

    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        let first = first.index;
        self.entries.retain(|e| e.index < first);
        self.entries.extend(entries);
    }

    pub(super) fn install(&mut self, snapshot: Snapshot) {
        self.entries.clear();
        self.drop_before = None;
        self.clear_log = true;
        self.snapshot = Some(snapshot);
    }
}

impl Recovered {
    /// What a disk holds after a batch: the meaning of `Batch`, in one place.
    pub fn write(&mut self, batch: &Batch) {
        if let Some(snapshot) = &batch.snapshot {
            self.snapshot = snapshot.clone();
        }
        if batch.clear_log {
            self.entries.clear();
            self.before = (self.snapshot.index, self.snapshot.term);
        }
        if let Some(first) = batch.entries.first() {
            self.entries.retain(|e| e.index < first.index);
            self.entries.extend(batch.entries.iter().cloned());
        }
        if let Some(from) = batch.drop_before {
            let dropped = self.entries.partition_point(|e| e.index < from);
            if let Some(last) = self.entries.drain(..dropped).next_back() {
                self.before = (last.index, last.term);
            }
        }
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
    }
}

/// A disk in memory, for tests and simulations: what was written survives its member.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    held: Arc<Mutex<Option<Recovered>>>,
}

impl MemoryDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at what is held, if anything was ever written.
    pub fn look<T>(&self, at: impl FnOnce(&Recovered) -> T) -> Option<T> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(at)
    }
}

impl Disk for MemoryDisk {
    fn load(&mut self) -> Result<Option<Recovered>, DiskError> {
        Ok(self.held.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn write(&mut self, batch: &Batch) -> Result<(), DiskError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert_default().write(batch);
        Ok(())
    }
}

impl Entry {
    pub(super) fn from_raft(entry: eraftpb::Entry) -> Self {
        Self { index: entry.index, term: entry.term, data: entry.data }
    }

    pub(super) fn to_raft(&self) -> eraftpb::Entry {
        eraftpb::Entry { index: self.index, term: self.term, data: self.data.clone(), ..Default::default() }
    }
}

impl HardState {
    pub(super) fn from_raft(hard_state: &eraftpb::HardState) -> Self {
        Self { term: hard_state.term, vote: hard_state.vote, commit: hard_state.commit }
    }

    pub(super) fn to_raft(self) -> eraftpb::HardState {
        eraftpb::HardState { term: self.term, vote: self.vote, commit: self.commit, ..Default::default() }
    }
}

impl Snapshot {
    pub(super) fn from_raft(snapshot: &eraftpb::Snapshot) -> Self {
        let metadata = snapshot.get_metadata();
        Self {
            index: metadata.index,
            term: metadata.term,
            voters: metadata.get_conf_state().get_voters().to_vec(),
            data: snapshot.data.clone(),
        }
    }

    pub(super) fn to_raft(&self) -> eraftpb::Snapshot {
        let mut snapshot = eraftpb::Snapshot { data: self.data.clone(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = self.index;
        metadata.term = self.term;
        metadata.set_conf_state((self.voters.clone(), Vec::new()).into());
        snapshot
    }
}
