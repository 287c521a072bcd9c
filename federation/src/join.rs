//! Join: how two clusters become peers. Two machines, `Inviter` and `Joiner`, with one signature each.
//!
//! The joiner dials with a pinned root, proves the invite bound to the TLS session, both sides check (preflight),
//! and only then both commit. Idempotent by invite id: a crash anywhere is followed by the same answer.
//! A join ends with both or neither.

use std::time::Duration;

mod check;
mod joiner;

pub use check::{check_offer, invited};
pub use joiner::{Joiner, JoinerInput, JoinerOutput};

use hanse_identity::{Bundle, ClusterName, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::catalog::GatewaySummary;
use crate::change::PeerRecord;

/// What each side tells the other of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    pub bundle: Bundle,
    /// `host:port` of control nodes, as advertised to peers.
    pub endpoints: Vec<String>,
    pub gateways: Vec<GatewaySummary>,
    pub clock: Timestamp,
    pub version: String,
}

/// The steps of a join, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Check everything, commit nothing.
    Preflight,
    Commit,
    /// The joiner could not commit: undo, if this invite made the peer.
    Abort,
}

/// Joiner → inviter. `proof` is over the JSON of `(phase, offer)` and the TLS session binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest {
    pub invite: String,
    pub phase: Phase,
    pub offer: Offer,
    #[serde(with = "hanse_identity::wire::base64_bytes")]
    pub proof: Vec<u8>,
}

/// Inviter → joiner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinReply {
    pub checks: Vec<Check>,
    /// Present unless refused.
    pub offer: Option<Offer>,
    /// Revision of the inviter's log at which it committed, if it did: by this request or an earlier one with the
    /// same invite.
    pub committed: Option<u64>,
}

/// One line of the preflight, as the CLI prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Stable: `token`, `reach`, `pin`, `clocks`, `names`, `version`, `reachBack`, `gateways`, `agree`, `sync`.
    pub name: String,
    pub ok: bool,
    /// What was found, and if not ok, how to fix it.
    pub detail: String,
}

/// Who answers at an address, and what time it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Greeting {
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    pub clock: Timestamp,
    pub version: String,
}

impl Check {
    pub fn passed(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: true, detail: detail.into() }
    }

    pub fn failed(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), ok: false, detail: detail.into() }
    }
}

/// Largest clock difference with which clusters may join.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);

/// The record that a committed join writes.
pub fn record(offer: &Offer, invite: &str, now: Timestamp) -> PeerRecord {
    PeerRecord {
        cluster: offer.cluster.clone(),
        trust_domain: offer.trust_domain.clone(),
        endpoints: offer.endpoints.clone(),
        invite: invite.to_owned(),
        joined: now,
    }
}

/// Bytes that the joiner signs.
pub fn signed_bytes(phase: Phase, offer: &Offer) -> Vec<u8> {
    crate::wire::encode(&(phase, offer))
}

#[cfg(test)]
mod tests;
