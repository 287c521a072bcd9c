//! Documents about revocation, but for the receipt.

use hanse_identity::{
    ClusterName, Reason, Revocation, RevocationId, RevocationTarget, ServiceName, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};

/// What revoking would hit, before anything is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokePreviewRequest {
    pub target: RevocationTarget,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokePreview {
    pub meta: Meta,
    pub target: RevocationTarget,
    /// A revocation that hits it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub already: Option<RevocationId>,
    /// Proxies and gateways that run under the identity (none are known for a serial number).
    pub holders: Vec<String>,
    /// Registrations from which it is issued: those agents will get no new SVID for it.
    pub registrations: usize,
    /// Services of this cluster that only this identity may answer for.
    pub sole_server_of: Vec<ServiceName>,
    pub reach: Vec<PreviewReach>,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// Live connections in one cluster that have the target at either end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviewReach {
    pub cluster: ClusterName,
    pub live_connections: u64,
    /// Proxies and gateways that answered in time, of those that were asked.
    pub answered: usize,
    pub asked: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeRequest {
    pub target: RevocationTarget,
    pub reason: Reason,
    #[serde(default)]
    pub note: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revoked {
    pub id: RevocationId,
    pub revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeStatusRequest {
    pub id: RevocationId,
}

/// What one cluster may ask another, by Peer.RevocationStatus; only about the asker's own trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerQuestion {
    /// Answered by a `ReceiptPart`.
    Revocation(RevokeStatusRequest),
    /// Answered by a `PreviewReach`.
    Live(RevokePreviewRequest),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeListRequest {}

/// A revocation in force, its own and peers'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevocationItem {
    #[serde(flatten)]
    pub revocation: Revocation,
    pub can_be_lifted: bool,
    /// Subscribers of this cluster that enforce it, of those there are.
    pub enforced: usize,
    pub subscribers: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeLiftRequest {
    pub id: RevocationId,
}
