//! The log as raft-rs reads it: in memory, from the snapshot on.

use std::collections::{BTreeSet, VecDeque};

use super::{Entry, GetEntriesContext, HardState, RaftState, Recovered, Snapshot, StorageError, eraftpb};

/// A member's log, hard state and snapshot: the same that its `Disk` holds, or is about to.
pub(super) struct Log {
    hard_state: HardState,
    snapshot: Snapshot,
    voters: BTreeSet<u64>,
    /// Index and term of the entry before the first one kept.
    before: (u64, u64),
    entries: VecDeque<Entry>,
}

impl Log {
    /// Checks that what was recovered holds together.
    pub(super) fn new(recovered: Recovered) -> Result<Self, String> {
        let Recovered { mut hard_state, snapshot, entries, before } = recovered;
        if snapshot.index == 0 || snapshot.voters.is_empty() {
            return Err("there is no snapshot, not even the founding one".into());
        }
        let (mut index, mut term) = before;
        if index > snapshot.index {
            return Err(format!("the log starts after {index}, the snapshot ends at {}", snapshot.index));
        }
        for entry in &entries {
            if entry.index != index + 1 || entry.term < term {
                return Err(format!(
                    "entry {} of term {} follows {index} of {term}",
                    entry.index, entry.term
                ));
            }
            (index, term) = (entry.index, entry.term);
        }
        if index < snapshot.index || index < hard_state.commit {
            return Err(format!("the log ends at {index}, but {} was committed", hard_state.commit));
        }
        if term > hard_state.term {
            return Err(format!("the log has term {term}, the hard state says {}", hard_state.term));
        }
        hard_state.commit = hard_state.commit.max(snapshot.index);
        let voters = snapshot.voters.iter().copied().collect();
        Ok(Self { hard_state, snapshot, voters, before, entries: entries.into() })
    }

    pub(super) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub(super) fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub(super) fn voters(&self) -> &BTreeSet<u64> {
        &self.voters
    }

    /// Entries from the first one's index on are replaced.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.entries.back().is_some_and(|e| e.index >= first.index) {
            self.entries.pop_back();
        }
        self.entries.extend(entries.iter().cloned());
    }

    /// The leader's snapshot takes the place of everything.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        self.entries.clear();
        self.before = (snapshot.index, snapshot.term);
        self.hard_state.commit = self.hard_state.commit.max(snapshot.index);
        self.hard_state.term = self.hard_state.term.max(snapshot.term);
        self.voters = snapshot.voters.iter().copied().collect();
        self.snapshot = snapshot;
    }

    /// Our own snapshot: the entries before `keep_from` are not needed any more.
    pub(super) fn compact(&mut self, snapshot: Snapshot, keep_from: u64) {
        while self.entries.front().is_some_and(|e| e.index < keep_from && e.index <= snapshot.index) {
            if let Some(entry) = self.entries.pop_front() {
                self.before = (entry.index, entry.term);
            }
        }
        self.snapshot = snapshot;
    }

    fn last(&self) -> u64 {
        self.entries.back().map_or(self.before.0, |e| e.index)
    }

    fn position(&self, index: u64) -> Option<usize> {
        index.checked_sub(self.before.0 + 1).and_then(|p| usize::try_from(p).ok())
    }
}

impl raft::Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let voters = self.voters.iter().copied().collect::<Vec<_>>();
        Ok(RaftState::new(self.hard_state.to_raft(), (voters, Vec::new()).into()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        let start = self.position(low).ok_or(raft::Error::Store(StorageError::Compacted))?;
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX);
        let mut entries: Vec<_> =
            self.entries.range(start.min(self.entries.len())..).take(count).map(Entry::to_raft).collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        let position = self.position(index).ok_or(raft::Error::Store(StorageError::Compacted))?;
        self.entries.get(position).map(|e| e.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// The stored one will do: the log is kept from before it on, so whoever gets it can go on from there. Its
    /// voters are those of the group, without whom the receiver would drop it without a word.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        if self.snapshot.index < request_index {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.to_raft())
    }
}
