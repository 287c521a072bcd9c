//! BackendPolicy: which tier a request goes to, when a target is left out, and what of it is in files beside this one.

use std::collections::BTreeMap;

use hanse_identity::ClusterName;
use serde::{Deserialize, Serialize};

use super::{Percent, PolicyDuration, TargetRef, active, balance, retry};

/// BackendPolicy.spec: locality, balancing, passive health, retries, limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendPolicy {
    #[serde(default)]
    pub scope: Scope,
    pub target_refs: Vec<TargetRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<LocalityPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<balance::LoadBalancingPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<retry::RetryPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<balance::LimitsPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<balance::SessionPersistencePolicy>,
}

/// Whom a policy is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    #[default]
    Cluster,
    Federation,
}

/// Which tier a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalityPolicy {
    #[serde(default)]
    pub mode: LocalityPolicyMode,
    /// The ladder's steps, in order; absent = zone, region, cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Vec<LocalityLabel>>,
    /// Per cluster of the caller, the peers to fail over to, in order; absent = all exporters by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<FailoverOrder>,
    /// Share of healthy endpoints in the open tiers below which the next one opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_next_tier_below: Option<Percent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_after: Option<PolicyDuration>,
    /// Only with mode Distribute.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distribute: Vec<DistributeShares>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalityPolicyMode {
    #[default]
    Failover,
    Distribute,
    LocalOnly,
    Ignore,
}

/// A step of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LocalityLabel {
    Zone,
    Region,
    Cluster,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailoverOrder {
    pub from: ClusterName,
    pub to: Vec<ClusterName>,
}

/// Percent of the traffic of callers in `from` per cluster; together 100.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DistributeShares {
    pub from: ClusterName,
    pub to: BTreeMap<ClusterName, u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthPolicy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier: Option<OutlierPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<active::ActiveCheck>,
    /// Share of healthy endpoints in all tiers below which ejections no longer count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_below: Option<Percent>,
}

/// When a target is taken out for a while. Absent fields keep the defaults of `OutlierSettings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierPolicy {
    #[serde(default, rename = "consecutive5xx", skip_serializing_if = "Option::is_none")]
    pub consecutive_5xx: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<PolicyDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eject_for: Option<PolicyDuration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected: Option<Percent>,
}
