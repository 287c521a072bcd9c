//! AccessPolicy as documents write it: who may call a service. Plain data.

use std::net::SocketAddr;

use hanse_identity::ClusterName;
use serde::{Deserialize, Serialize};

use super::filter::MirrorRef;
use super::{HeaderMatch, HttpMethod, Label, PathMatch, TargetRef};
use crate::policy::value::PolicyDuration;

/// AccessPolicy.spec: rules for the services of its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicy {
    /// Services, by the workloads that serve them: all that such a workload serves is covered.
    pub target_refs: Vec<TargetRef>,
    pub action: AccessAction,
    /// Any of them. With Allow, none means that nobody may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AccessRule>,
    /// Whom to ask, with action External and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalAuthorizer>,
}

/// Who speaks `envoy.service.auth.v3.Authorization` (gRPC). Field names are those of Gateway API's external authorization
/// (GEP-1494) where it has the field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalAuthorizer {
    /// A service of the mesh, asked by mutual TLS like any other; or `address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<MirrorRef>,
    /// On the workload's own host, where nobody else reads what is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// For an answer; `DEFAULT_TIMEOUT` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<PolicyDuration>,
    /// Whether requests go on while nobody is there to answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_open: bool,
    /// Headers that it is told; all if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_headers: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AccessAction {
    /// Who matches may call; with one such policy, everybody else may not.
    Allow,
    /// Who matches may not, whatever allows it.
    Deny,
    /// Told in log and metrics, and nothing else.
    Audit,
    /// Who matches, and whom the policies let through, needs an external authorizer's leave beside.
    External,
}

/// Caller and request have to match; what is left out matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<AccessFrom>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<AccessTo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<AccessWhen>,
}

/// What has to hold beside, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessWhen {
    /// What the end user's token has to say, as a RequestAuthentication has it believed; without one nothing holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ClaimMatch>,
    /// A condition in CEL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
}

/// One of the claim's values is one of these; `*`: it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimMatch {
    pub name: String,
    pub values: Vec<String>,
}

/// All of the fields that are there, any value of each. Without clusters and identities: callers of this cluster only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessFrom {
    /// SPIFFE IDs; `*` stands for one part between slashes, `**` at the end for the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Label>,
    /// End users: `iss/sub`, with `*` at the end for the rest, or alone for everybody whose token is believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_principals: Vec<String>,
}

/// Likewise, of the request. Headers all have to match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessTo {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<HttpMethod>,
    /// Not with Deny: a path that two readers read in different ways would pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// Of plain TCP. Requests are on none of them: Allow lets none in by such a rule, Deny keeps all out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

impl AccessAction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::Audit => "Audit",
            Self::External => "External",
        }
    }
}
