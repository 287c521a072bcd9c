//! What goes down the Watch streams, encoded once for all of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use hanse_federation::View;
use hanse_federation::wire::encode;
use hanse_federation::wire::watch::{Changes, Snapshot};

use crate::io::driver::Applied;
use crate::state::State;

/// Revisions whose encoded Changes are kept, so that each is encoded once and not once per subscriber.
const ENCODED_REVISIONS: usize = 64;

/// Changes and the newest snapshot as they go over the wire, shared by all streams.
#[derive(Default)]
pub struct Encoded {
    changes: Mutex<VecDeque<Changes>>,
    snapshot: Mutex<Option<Snapshot>>,
}

impl Encoded {
    pub fn changes(&self, applied: &Applied) -> Changes {
        let mut kept = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept.iter().rev().find(|c| c.revision == applied.revision) {
            return known.clone();
        }
        let told = applied.changes.iter().filter(|change| change.is_for_the_data_plane());
        let changes = Changes { revision: applied.revision, change: told.map(encode).collect() };
        kept.push_back(changes.clone());
        if kept.len() > ENCODED_REVISIONS {
            kept.pop_front();
        }
        changes
    }

    pub fn snapshot(&self, state: &State) -> Snapshot {
        let revision = state.view.revision.0;
        let mut kept = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(known) if known.revision == revision => known.clone(),
            _ => {
                let view = match state.view.crls.is_empty() {
                    true => encode(&state.view),
                    false => encode(&View { crls: BTreeMap::new(), ..state.view.clone() }),
                };
                kept.insert(Snapshot { revision, view }).clone()
            }
        }
    }
}
