//! The shell of the agent: sockets, files, tasks. Decisions are in `attest`, `secrets` and `subscription`.

pub mod admin;
pub mod control_link;
pub mod dial;
pub mod hashing;
pub mod host;
pub mod join;
pub mod jwt;
pub mod proof;
pub mod reflection;
pub mod rejoin;
pub mod sds;
pub mod session;
pub mod socket;
pub mod spare;
pub mod store;
pub mod streams;
pub mod svids;
pub mod telemetry;
pub mod workload_api;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hanse_identity::wire::AgentState;
use hanse_identity::{NodeName, Timestamp, TrustDomain};
use tokio::sync::watch;

use jwt::JwtDesk;
pub use streams::{StreamTicket, Streams};
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
    pub jwt: JwtDesk,
    pub streams: Streams,
    pub metrics: Arc<Metrics>,
    pub shutdown: watch::Receiver<bool>,
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
