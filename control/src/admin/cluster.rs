//! Documents about joined clusters, and join tokens.

use hanse_federation::join::Check;
use hanse_federation::lease::Link;
use hanse_identity::{ClusterName, KeyId, NodeName, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};

/// Makes a join token that admits one cluster, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterTokenCreateRequest {
    /// The cluster that may join with it.
    #[serde(rename = "for")]
    pub cluster: ClusterName,
    pub ttl_seconds: u64,
}

/// A token as it is printed once and stored nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenReply {
    /// The full token: a secret.
    pub token: String,
    pub invite: String,
    pub expires: Timestamp,
    pub endpoints: Vec<String>,
    pub pins: Vec<KeyId>,
    pub made_by: NodeName,
}

impl std::fmt::Debug for TokenReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReply").field("invite", &self.invite).finish_non_exhaustive()
    }
}

/// Joins the cluster that made the token. Answered by a stream of `JoinEvent`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterJoinRequest {
    /// The full token: a secret.
    pub token: String,
    /// Check everything, commit nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl std::fmt::Debug for ClusterJoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterJoinRequest").field("dry_run", &self.dry_run).finish_non_exhaustive()
    }
}

/// What `cluster join` streams: a line per check, and then the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JoinEvent {
    Line(Check),
    #[serde(rename_all = "camelCase")]
    Done {
        joined: bool,
        /// The other cluster, once known.
        cluster: Option<ClusterName>,
        trust_domain: Option<TrustDomain>,
        /// Both sides have heard each other's first complete telling.
        synced: bool,
        took_ms: u64,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterListRequest {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterItem {
    pub cluster: ClusterName,
    pub state: ClusterState,
    pub trust_domain: TrustDomain,
    /// Authorities in its bundle.
    pub roots: usize,
    /// Its bundle's `spiffe_sequence`.
    pub bundle_sequence: u64,
    /// Services it exports to us.
    pub imports: usize,
    /// Services we export to it.
    pub exports: usize,
    pub gateways_ready: usize,
    pub gateways: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// How long ago it last said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_age_ms: Option<u64>,
    /// Facts that the import filter refused since the link's node started.
    #[serde(default)]
    pub refused_imports: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Why the link is not up, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClusterState {
    #[serde(rename = "self")]
    This,
    /// Committed, nothing heard yet.
    Joining,
    Connected,
    /// Heard, but the link is silent or lost, or no gateway of it is ready.
    Degraded,
}

/// Checks all peers, or one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterCheckRequest {
    #[serde(default)]
    pub cluster: Option<ClusterName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterCheckReply {
    pub meta: Meta,
    pub items: Vec<ClusterChecks>,
    pub ok: bool,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// The checks of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterChecks {
    pub cluster: ClusterName,
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLeaveRequest {
    pub cluster: ClusterName,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLeaveReply {
    pub revision: u64,
    /// Whether the other side was told and agreed; if not, it finds out when its link is refused.
    pub other_side_told: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
