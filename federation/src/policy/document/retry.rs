//! BackendPolicy.retry as documents write it. Plain data.

use serde::{Deserialize, Serialize};

use super::PolicyDuration;

/// What may be tried again, how often and for how long. What is absent keeps its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryPolicy {
    /// Attempts after the first, of what may have been delivered; 0 = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Only these; a status of 500 to 599 is repeated only if it is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<RetryCondition>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<PolicyDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RetryCondition {
    Word(RetryWord),
    Status(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryWord {
    /// Not delivered; always tried elsewhere, named or not.
    ConnectFailure,
    /// The connection broke before there was an answer.
    Reset,
    Timeout,
    /// 502, 503 and 504, whoever says them.
    GatewayError,
    #[serde(rename = "5xx")]
    ServerError,
}

/// Retries as a share of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// 0 to 100.
    pub percent: u32,
}
