//! RateLimit as documents write it: how many requests a workload takes, from whom. Plain data.

use serde::{Deserialize, Serialize};

use super::{PolicyDuration, TargetRef};

/// RateLimit.spec: limits for the services of its own namespace, kept by the proxies before their apps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Services, by the workloads that serve them: all that such a workload serves counts.
    pub target_refs: Vec<TargetRef>,
    /// A request has to be within all of them.
    pub limits: Vec<RequestLimit>,
}

/// A token bucket: `burst` requests at once, `requests` in every `per`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestLimit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who has a bucket of their own.
    #[serde(default)]
    pub by: LimitBy,
    /// With `by: Header`; requests without it have one bucket together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Whether each instance of the service takes so much, or all of this cluster together.
    #[serde(default)]
    pub across: LimitAcross,
    pub requests: u32,
    pub per: PolicyDuration,
    /// `requests` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitBy {
    /// All callers have one bucket.
    #[default]
    Service,
    /// Each calling identity, as mutual TLS has proved it.
    Identity,
    /// Each value of a header: the caller's own word.
    Header,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitAcross {
    /// Each proxy by itself.
    #[default]
    Proxy,
    /// The ready instances of this cluster together: each proxy keeps its part, by weight.
    Cluster,
}

/// Longest `per`.
pub const MAX_PER_SECONDS: u64 = 24 * 3600;
