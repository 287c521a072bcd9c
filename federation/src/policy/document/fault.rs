//! FaultInjection as documents write it: delays and aborts that a route's rule takes in by ExtensionRef. Plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HeaderMatch, Label, PolicyDuration};

/// Longest time that a fault may be in force.
pub const MAX_FAULT: Duration = Duration::from_secs(24 * 3600);

/// FaultInjection.spec: what happens to the requests of the rules that name it, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjection {
    /// How long, from when the document was last changed; then it is removed.
    #[serde(rename = "for", default)]
    pub lasts: PolicyDuration,
    /// Whose requests; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<FaultOnly>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// After the delay, if a request gets both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultOnly {
    pub header: HeaderMatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// 0 to 100.
    pub percent: u32,
    pub fixed: PolicyDuration,
}

/// One of the two statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// 0 to 100.
    pub percent: u32,
    /// 400 to 599; a gRPC call gets the status that it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// 1 to 16; for gRPC calls only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
}

/// A filter of our own that a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtensionRef {
    pub group: String,
    pub kind: ExtensionKind,
    /// In the document's own namespace.
    pub name: Label,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtensionKind {
    FaultInjection,
}
