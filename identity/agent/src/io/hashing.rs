//! Reading executables for their digests: off the runtime, some at a time, and only for callers of whom it decides
//! something.

use std::sync::Arc;
use std::time::Duration;

use hanse_identity::Evidence;
use hanse_identity::wire::AgentState;
use tokio::sync::Semaphore;

use crate::attest::Caller;
use crate::secrets::digest_decides;

/// Executables that are read at once.
const MAX_HASHING: usize = 8;
/// How long a caller waits for its executable's digest, its turn included; a large executable on a cold disk is slow.
const WAIT: Duration = Duration::from_secs(20);

/// Where executables are read.
#[derive(Clone)]
pub struct Hashing(Arc<Semaphore>);

impl Default for Hashing {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_HASHING)))
    }
}

impl Hashing {
    /// Has the caller's executable read if, by that state, the digest could give it something that `evidence` does
    /// not. Says whether it was tried.
    pub async fn look(&self, state: &AgentState, evidence: &Evidence, caller: &Arc<Caller>) -> bool {
        if !digest_decides(state, evidence) {
            return false;
        }
        let (places, caller) = (Arc::clone(&self.0), Arc::clone(caller));
        let reading = async move {
            let place = places.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let _place = place;
                caller.hash_executable();
            })
            .await
        };
        // What could not be read in time is not in the evidence.
        let _ = tokio::time::timeout(WAIT, reading).await;
        true
    }
}
