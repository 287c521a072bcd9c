//! Two copies of the State, so that publishing one does not mean copying it.
//!
//! What is published is shared and may not be changed. The copy that was published before is usually free again by
//! the next time: it is brought up to date by applying the few entries that it lacks, and becomes the next one. So
//! a batch costs its own work twice, not a copy of everything. Only if somebody still holds the older copy (a
//! snapshot being written, a slow reader) the State is copied in full.

use std::sync::Arc;

use hanse_federation::Change;

use super::ReadEntry;
use crate::command::Outcome;
use crate::state::State;

/// What one entry came to: its revision, the proposal's id and outcome if it held one, and its Changes.
pub(super) type AppliedEntry = (u64, Option<(u64, Outcome)>, Vec<Change>);

#[derive(Debug)]
pub(super) struct Versions {
    current: Arc<State>,
    /// The version before `current`, and the entries that lead from it to `current`.
    before: Option<(Arc<State>, Vec<ReadEntry>)>,
}

impl Versions {
    pub(super) fn new(state: State) -> Self {
        Self { current: Arc::new(state), before: None }
    }

    pub(super) fn reset(&mut self, state: State) {
        *self = Self::new(state);
    }

    pub(super) fn current(&self) -> Arc<State> {
        self.current.clone()
    }

    pub(super) fn apply(&mut self, entries: Vec<ReadEntry>) -> Vec<AppliedEntry> {
        let mut next = self.free_copy();
        let applied = entries.iter().map(|entry| apply(&mut next, entry)).collect();
        let previous = std::mem::replace(&mut self.current, Arc::new(next));
        self.before = Some((previous, entries));
        applied
    }

    /// A State equal to `current` that nobody else holds.
    fn free_copy(&mut self) -> State {
        let reused = self.before.take().and_then(|(state, lacking)| {
            let mut state = Arc::try_unwrap(state).ok()?;
            lacking.iter().for_each(|entry| drop(apply(&mut state, entry)));
            Some(state)
        });
        reused.unwrap_or_else(|| State::clone(&self.current))
    }
}

fn apply(state: &mut State, entry: &ReadEntry) -> AppliedEntry {
    match &entry.proposal {
        Some(proposal) => {
            let (outcome, changes) = state.apply(entry.index, proposal);
            (entry.index, Some((proposal.id, outcome)), changes)
        }
        None => {
            state.skip(entry.index);
            (entry.index, None, Vec::new())
        }
    }
}
