//! BackendPolicy.loadBalancing, limits and sessionPersistence as documents write them. Plain data.

use serde::{Deserialize, Serialize};

use super::PolicyDuration;
use super::concurrency::ConcurrencyPolicy;

/// Which of a tier's endpoints gets a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancingPolicy {
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Only with RingHash and Maglev; without it each request has a hash of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// An endpoint that has come up gets its full share after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<PolicyDuration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// The better of two that are drawn by weight: requests under way, and how long they take.
    #[default]
    LeastRequest,
    RoundRobin,
    Random,
    RingHash,
    Maglev,
}

/// What the same endpoint is chosen by: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashOn {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// A parameter of the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The identity of the workload that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_identity: Option<bool>,
}

/// Circuit breakers: the most that may be under way from one proxy to the service in one cluster. And what the proxy in front
/// of the app takes as a request's body, whoever calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitsPolicy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Requests whose response has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Requests that are being tried again; 0 = none are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<PolicyDuration>,
    /// A connection that has carried nothing for so long is let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<PolicyDuration>,
    /// Bytes of a request's body; of a stream's, all its messages together. Absent = any number: bodies are not collected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_request_bytes: Option<u64>,
    /// Longest wait for each 16 KiB of a request's body, as long as nothing was answered; gRPC may take its time. Absent =
    /// 30s; 0s = for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_request_timeout: Option<PolicyDuration>,
    /// Requests that the app works on at a time, whoever calls. Absent = as many as come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ConcurrencyPolicy>,
}

/// Requests of one session go to one endpoint, as long as it may be chosen (Gateway API, GEP-1619).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistencePolicy {
    #[serde(default, rename = "type")]
    pub kind: SessionKind,
    /// Name of the cookie or header; absent = `hanse-session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// A session ends so long after it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<PolicyDuration>,
    /// A session ends when nothing was asked for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<PolicyDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_config: Option<CookieConfig>,
}

/// How the client carries its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionKind {
    #[default]
    Cookie,
    /// The client sends back what a response said in the same header.
    Header,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieConfig {
    #[serde(default)]
    pub lifetime_type: CookieLifetime,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CookieLifetime {
    /// Until the browser is closed.
    #[default]
    Session,
    /// For `absoluteTimeout`, which is required.
    Permanent,
}
