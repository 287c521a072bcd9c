//! The shell of the agent: sockets, files, tasks. Decisions are in `attest`, `secrets` and `subscription`.

pub mod admin;
pub mod control_link;
pub mod join;
pub mod sds;
pub mod session;
pub mod socket;
pub mod store;
pub mod svids;
pub mod telemetry;
pub mod workload_api;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hanse_identity::wire::AgentState;
use hanse_identity::{NodeName, Timestamp, TrustDomain};
use tokio::sync::watch;

use svids::Svids;
use telemetry::Metrics;

/// What the agent knows of its cluster. Grows: nothing, joined, state received.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The own trust domain, once the agent has joined.
    pub trust_domain: Option<TrustDomain>,
    /// The newest state that a control node sent.
    pub state: Option<Arc<AgentState>>,
}

/// What the servers of local callers share.
pub struct Shared {
    pub name: NodeName,
    pub view: watch::Receiver<View>,
    pub svids: Svids,
    pub streams: Streams,
    pub metrics: Arc<Metrics>,
    pub shutdown: watch::Receiver<bool>,
}

/// The streams that are open, and how far each has followed the state: so that the agent can say honestly
/// which revision is in force on its host.
#[derive(Clone)]
pub struct Streams {
    open: Arc<Mutex<BTreeMap<u64, OpenStream>>>,
    next: Arc<AtomicU64>,
    progress: Arc<watch::Sender<u64>>,
}

#[derive(Clone)]
struct OpenStream {
    kind: &'static str,
    caller: String,
    handled: Arc<AtomicU64>,
}

/// One open stream; it is closed when this is dropped.
pub struct StreamTicket {
    streams: Streams,
    number: u64,
    handled: Arc<AtomicU64>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: Arc::default(), next: Arc::default(), progress: Arc::new(watch::Sender::new(0)) }
    }
}

impl Streams {
    /// Registers a stream that has followed the state up to `revision`.
    pub fn open(&self, kind: &'static str, caller: String, revision: u64) -> StreamTicket {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let handled = Arc::new(AtomicU64::new(revision));
        let stream = OpenStream { kind, caller, handled: Arc::clone(&handled) };
        self.lock().insert(number, stream);
        self.progress.send_modify(|n| *n += 1);
        StreamTicket { streams: self.clone(), number, handled }
    }

    /// The revision that every stream has followed, and how many streams there are.
    pub fn applied(&self, revision: u64) -> (u64, u32) {
        let open = self.lock();
        let slowest = open.values().map(|s| s.handled.load(Ordering::Acquire)).min();
        (slowest.unwrap_or(revision).min(revision), u32::try_from(open.len()).unwrap_or(u32::MAX))
    }

    /// Changes whenever `applied` may have.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// (kind, caller, revision) of every stream, for people.
    pub fn list(&self) -> Vec<(&'static str, String, u64)> {
        let row = |s: &OpenStream| (s.kind, s.caller.clone(), s.handled.load(Ordering::Acquire));
        self.lock().values().map(row).collect()
    }

    pub fn count(&self, kind: &str) -> usize {
        self.lock().values().filter(|s| s.kind == kind).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, OpenStream>> {
        self.open.lock().expect("no holder of this lock panics")
    }
}

impl StreamTicket {
    /// Whatever `revision` changed for this stream has been handed to its client.
    pub fn handled(&self, revision: u64) {
        if self.handled.swap(revision, Ordering::AcqRel) != revision {
            self.streams.progress.send_modify(|n| *n += 1);
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for StreamTicket {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.number);
        self.streams.progress.send_modify(|n| *n += 1);
    }
}

/// Returns at shutdown.
pub async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and whoever stops the agent with it.
    let _ = shutdown.wait_for(|down| *down).await;
}

/// The time, read here once for the pure code.
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// A number from 0.0 to 1.0, to spread what would otherwise happen everywhere at once.
pub fn jitter() -> f64 {
    random() as f64 / u64::MAX as f64
}

/// 64 random bits.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    u64::from_le_bytes(bytes)
}
