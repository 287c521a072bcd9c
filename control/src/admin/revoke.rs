//! Documents about revocation, but for the receipt.

use hanse_identity::{
    Closing, ClusterName, NodeName, Reason, Revocation, RevocationId, RevocationTarget, Serial, ServiceName,
    SpiffeId, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};
use crate::state::State;
use crate::state::issuance::IssuedSvid;

/// What revoking would hit, before anything is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokePreviewRequest {
    pub target: RevocationTarget,
    /// Of an identity: only what has been issued up to now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reissue: bool,
}

impl RevokePreviewRequest {
    pub fn new(target: RevocationTarget) -> Self {
        Self { target, reissue: false }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokePreview {
    pub meta: Meta,
    pub target: RevocationTarget,
    /// A revocation that hits it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub already: Option<RevocationId>,
    /// Live certificates that it hits, as far as the issuance index knows them.
    #[serde(default)]
    pub certificates: usize,
    /// Proxies, gateways and agents that run under a revoked identity, or show a revoked certificate.
    pub holders: Vec<String>,
    /// Registrations from which nothing would be issued any more.
    pub registrations: usize,
    /// Services of this cluster that only this identity may answer for.
    pub sole_server_of: Vec<ServiceName>,
    pub reach: Vec<PreviewReach>,
    /// Nested issuers whose intermediate it hits, and so all that they have signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intermediates: Vec<IntermediateItem>,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// The intermediate authority of a nested issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IntermediateItem {
    pub serial: Serial,
    /// Whose it is, and through which agent that has the SVID that it asked with.
    pub spiffe_id: SpiffeId,
    pub agent: NodeName,
    pub not_after: Timestamp,
}

impl IntermediateItem {
    pub fn new(svid: &IssuedSvid) -> Self {
        Self {
            serial: svid.serial.clone(),
            spiffe_id: svid.id.clone(),
            agent: svid.agent.clone(),
            not_after: svid.not_after,
        }
    }

    /// Those that a revocation hits, or will.
    pub fn hit(state: &State, revocation: &Revocation, now: Timestamp) -> Vec<Self> {
        state.downstream_hit(revocation, now).map(Self::new).collect()
    }
}

/// Live connections in one cluster that have the target at either end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviewReach {
    pub cluster: ClusterName,
    pub live_connections: u64,
    /// Identities at the other end of them.
    #[serde(default)]
    pub callers: Vec<SpiffeId>,
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
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reissue: bool,
    #[serde(default, skip_serializing_if = "Closing::is_now")]
    pub closing: Closing,
}

impl RevokeRequest {
    /// Without note or reissue, connections closed at once.
    pub fn new(target: RevocationTarget, reason: Reason) -> Self {
        Self { target, reason, note: String::new(), reissue: false, closing: Closing::Now }
    }
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
    /// What this revocation would hit, were it in force. Answered by a `PreviewReach`.
    Live(Box<Revocation>),
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
