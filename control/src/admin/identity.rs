//! `identity list|show|verify`: SVIDs that live, as the issuance index knows them, and what is thought of a chain.

use hanse_identity::{ClusterName, KeyId, NodeName, RevocationId, Serial, SpiffeId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};

/// Rows of an answer where the request does not say.
pub const IDENTITY_PAGE: usize = 1_000;
/// Most rows of an answer.
pub const MAX_IDENTITY_PAGE: usize = 10_000;
/// Longest PEM that is looked at, in bytes.
pub const MAX_PEM: usize = 256 * 1024;

/// Which SVIDs. Everything that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityListRequest {
    /// A SPIFFE ID, its last part, a serial number, or the name of a proxy, a gateway or an agent.
    #[serde(default)]
    pub of: Option<String>,
    /// Ends before this.
    #[serde(default)]
    pub ends_before: Option<Timestamp>,
    /// Revoked ones only.
    #[serde(default)]
    pub revoked: bool,
    /// At most this many rows, and never more than `MAX_IDENTITY_PAGE`.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// Live SVIDs, those that end first first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityList {
    pub meta: Meta,
    pub items: Vec<IdentityItem>,
    /// How many more there are.
    pub more: usize,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityItem {
    pub cluster: ClusterName,
    pub spiffe_id: SpiffeId,
    pub serial: Serial,
    /// Of the certificate's public key.
    pub key: KeyId,
    /// Of the authority that signed it, and the control node that has that.
    pub authority: KeyId,
    pub node: NodeName,
    /// Through which it was asked for.
    pub agent: NodeName,
    /// Proxies and gateways that run under this identity now; a workload that speaks TLS itself is not known by name.
    #[serde(default)]
    pub holders: Vec<NodeName>,
    /// When it was signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<Timestamp>,
    pub not_after: Timestamp,
    /// As the index knows it; of a single one that was looked up it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<Renewal>,
    /// It is an intermediate authority, by which whoever is called so issues SVIDs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downstream: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<RevocationId>,
}

/// What the index can tell of an SVID's renewal. Agents replace one when 40 to 60 % of its life is over; which of
/// several processes under one identity on one host has been given a new one only its agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Renewal {
    /// By then at the latest.
    By(Timestamp),
    /// A newer one of the same identity has been given through the same agent since.
    Replaced,
    /// It should have been replaced by then, and has not been.
    Overdue(Timestamp),
}

/// Is this chain believed here?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityVerifyRequest {
    /// Certificates, leaf first; at most `MAX_PEM` bytes.
    pub pem: String,
    /// At another time than now; revocations and bundles are always those of now.
    #[serde(default)]
    pub at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityVerdict {
    pub meta: Meta,
    pub believed: bool,
    /// As the leaf says, if it says so in the form of an SVID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeId>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The keys of the authorities on its path: its signer first, the anchor last.
    #[serde(default)]
    pub authorities: Vec<KeyId>,
    /// What the index knows of it, if it was issued here and lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<IdentityItem>,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

impl IdentityItem {
    /// Whether the SVID is what `text` names.
    pub fn is_meant_by(&self, text: &str) -> bool {
        self.spiffe_id.to_string() == text
            || self.spiffe_id.path().rsplit('/').next() == Some(text)
            || text.parse().is_ok_and(|serial: Serial| serial == self.serial)
            || self.holders.iter().chain([&self.agent]).any(|name| name.as_str() == text)
    }
}
