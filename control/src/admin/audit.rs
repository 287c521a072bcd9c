//! `audit list`: who did what, newest first, in pages.

use hanse_identity::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Meta, Warning};
use crate::state::audit::AuditRow;

/// Rows of a page where the request does not say.
pub const AUDIT_PAGE: usize = 100;
/// Most rows of a page.
pub const MAX_AUDIT_PAGE: usize = 1_000;

/// Which rows. Everything that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditListRequest {
    /// Not older than this.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Part of the actor's SPIFFE ID.
    #[serde(default)]
    pub actor: Option<String>,
    /// `revoke`, `workload-register` …, or the beginning of one up to a hyphen: `workload`.
    #[serde(default)]
    pub kind: Option<String>,
    /// At most this many rows, and never more than `MAX_AUDIT_PAGE`.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Only rows of revisions before this one: `next` of the page before.
    #[serde(default)]
    pub before: Option<u64>,
}

/// A page of the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditList {
    pub meta: Meta,
    /// Newest first.
    pub items: Vec<AuditRow>,
    /// There may be more: ask with this as `before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// Rows that had to make room for newer ones since the cluster was founded.
    pub forgotten: u64,
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

impl AuditListRequest {
    /// Whether a row is asked for (the page aside).
    pub fn admits(&self, row: &AuditRow) -> bool {
        let kind_fits = |wanted: &String| {
            let rest = row.kind.strip_prefix(wanted.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        self.since.is_none_or(|since| row.at >= since)
            && self.actor.as_ref().is_none_or(|wanted| row.actor.contains(wanted.as_str()))
            && self.kind.as_ref().is_none_or(kind_fits)
            && self.before.is_none_or(|before| row.revision < before)
    }
}
