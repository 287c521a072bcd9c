//! BackendPolicy.limits.concurrency as documents write it: how many requests an app works on at a time, found by how long it
//! takes, and who goes first when there are more. Plain data.

use serde::{Deserialize, Serialize};

use super::access::{AccessFrom, AccessTo};
use super::{Percent, PolicyDuration};

/// An adaptive limit of the requests that the app behind one proxy works on. What is absent keeps its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConcurrencyPolicy {
    /// The limit is never below; absent = 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_limit: Option<u32>,
    /// Nor above; absent = 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_limit: Option<u32>,
    /// How much longer than undisturbed an answer may take before the limit falls; absent = 50%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Percent>,
    /// Where the app never rests, how often it is given less to do for a moment, to see how long it takes undisturbed;
    /// absent = 60s, give or take a quarter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remeasure: Option<PolicyDuration>,
    /// The first that matches; a request that none matches has priority Default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub priorities: Vec<PriorityRule>,
}

/// Caller and request have to match; what is left out matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PriorityRule {
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<AccessFrom>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<AccessTo>,
}

/// Who goes first. Lower ones are refused before higher ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Priority {
    BestEffort,
    Default,
    Critical,
    /// Never refused, and not counted: what waits long and works little.
    Exempt,
}

impl Priority {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BestEffort => "BestEffort",
            Self::Default => "Default",
            Self::Critical => "Critical",
            Self::Exempt => "Exempt",
        }
    }
}
