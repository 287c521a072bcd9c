//! Documents about revocations that are in force: one with all that is known of it, clearing, the published lists.

use hanse_identity::{Crl, Revocation, RevocationId, TrustDomain};
use serde::{Deserialize, Serialize};

use super::{Meta, Receipt, Tally, Warning};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeShowRequest {
    pub id: RevocationId,
}

/// One revocation, and how far it is enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeShown {
    pub meta: Meta,
    #[serde(flatten)]
    pub revocation: Revocation,
    pub can_be_lifted: bool,
    /// Revocation lists of the own authorities that name its serial numbers; none if it has no serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lists: Option<Tally>,
    pub receipt: Receipt,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// Takes revocations of this cluster's own away, whatever they are: those that are named, or all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeClearRequest {
    #[serde(default)]
    pub ids: Vec<RevocationId>,
    #[serde(default)]
    pub all: bool,
    /// Those for a compromised key too. Otherwise `all` leaves them, and naming one is refused.
    #[serde(default)]
    pub include_compromised: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeCleared {
    pub revision: u64,
    pub cleared: usize,
    /// Left, because they are for a compromised key.
    pub kept: usize,
}

/// The published revocation lists of one trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokeExportRequest {
    /// The own one if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<TrustDomain>,
}

/// One authority's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedList {
    pub trust_domain: TrustDomain,
    /// Name of the authority, as its certificate has it.
    pub subject: String,
    /// Serial numbers that it lists.
    pub entries: usize,
    #[serde(flatten)]
    pub crl: Crl,
}
