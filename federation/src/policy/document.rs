//! The documents themselves: each kind as a Rust type, their stored form and the user's form.
//!
//! Every type here is camelCase and refuses unknown fields; `parse` (in `parse.rs`) reads the user's form from YAML
//! or JSON with a line for everything that is wrong. The stored form is plain serde of `PolicyDocument`.

use std::collections::BTreeMap;
use std::str::FromStr;

use hanse_identity::{ClusterName, ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

pub mod access;
pub mod active;
pub mod authentication;
pub mod balance;
pub mod edge;
pub mod fault;
pub mod filter;
pub mod gateway;
pub mod grpc;
pub mod limit;
pub mod retry;
pub mod stream;

pub use access::AccessPolicy;
pub use authentication::RequestAuthentication;
pub use edge::{BackendTlsPolicy, ExternalService, MeshConfig};
pub use fault::FaultInjection;
pub use filter::{FilterKind, QueryMatch, RouteFilter};
pub use gateway::Gateway;
pub use grpc::GrpcRoute;
pub use limit::RateLimit;
pub use stream::{TcpRoute, TlsRoute};

pub use super::parse::{locate, parse};
pub use super::value::{Label, Percent, PolicyDuration, ValueError};

/// API group of Gateway API documents.
pub const GATEWAY_API_VERSION: &str = "gateway.networking.k8s.io/v1";
/// API group of our own documents.
pub const HANSE_API_VERSION: &str = "hanse.dev/v1alpha1";
/// API group of ServiceImport.
pub const IMPORT_GROUP: &str = "multicluster.x-k8s.io";
/// API group of Gateway.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// API group of our own kinds.
pub const HANSE_GROUP: &str = "hanse.dev";
/// Namespace of a document that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A kind of document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyKind {
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    #[serde(rename = "TLSRoute")]
    TlsRoute,
    BackendPolicy,
    AccessPolicy,
    FaultInjection,
    RateLimit,
    RequestAuthentication,
    ExternalService,
    #[serde(rename = "BackendTLSPolicy")]
    BackendTlsPolicy,
    MeshConfig,
    Gateway,
}

/// `<kind>/<namespace>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyKey {
    pub kind: PolicyKind,
    pub name: ServiceName,
}

/// One stored document: what was written, and when it was first created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDocument {
    pub name: ServiceName,
    /// Set by the control node on first apply; older wins where two conflict.
    #[serde(default)]
    pub created: Timestamp,
    pub spec: PolicySpec,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicySpec {
    #[serde(rename = "HTTPRoute")]
    HttpRoute(HttpRoute),
    #[serde(rename = "GRPCRoute")]
    GrpcRoute(GrpcRoute),
    #[serde(rename = "TCPRoute")]
    TcpRoute(TcpRoute),
    #[serde(rename = "TLSRoute")]
    TlsRoute(TlsRoute),
    BackendPolicy(Box<BackendPolicy>),
    AccessPolicy(AccessPolicy),
    FaultInjection(FaultInjection),
    RateLimit(RateLimit),
    RequestAuthentication(RequestAuthentication),
    ExternalService(ExternalService),
    #[serde(rename = "BackendTLSPolicy")]
    BackendTlsPolicy(BackendTlsPolicy),
    MeshConfig(MeshConfig),
    Gateway(Gateway),
}

/// HTTPRoute.spec of Gateway API v1, in the parts that this version carries out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    /// The services whose callers the route is for.
    pub parent_refs: Vec<TargetRef>,
    /// Accepted for portability; a mesh route is found by its parents, so they are not matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    pub rules: Vec<RouteRule>,
}

/// What a reference may point at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RefKind {
    /// The service's endpoints in this cluster, group "".
    Service,
    /// Its endpoints in every cluster that exports it, group `multicluster.x-k8s.io`.
    ServiceImport,
    /// Something outside the mesh, group `hanse.dev`.
    ExternalService,
    /// Where clients from outside come in; a parent of routes only, group `gateway.networking.k8s.io`.
    Gateway,
}

/// A parent of a route or the target of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    #[serde(default)]
    pub group: String,
    pub kind: RefKind,
    pub name: Label,
    /// The document's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Label>,
    /// Of a TCPRoute or TLSRoute: the port that it is for. Accepted for portability elsewhere: HTTP has one port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Of a Gateway: the listener that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// One rule: any of `matches` (all requests if there is none), then its filters, then one of the backends by weight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteRule {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RouteMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<RouteFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<RouteTimeouts>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
}

/// All of these must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteMatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<QueryMatch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<HttpMethod>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    #[serde(rename = "type", default)]
    pub kind: PathMatchKind,
    #[serde(default = "root_path")]
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PathMatchKind {
    Exact,
    /// By path element: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
    /// The whole path.
    RegularExpression,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    #[serde(rename = "type", default)]
    pub kind: HeaderMatchKind,
    /// Case does not matter.
    pub name: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HeaderMatchKind {
    #[default]
    Exact,
    /// The whole value.
    RegularExpression,
}

/// The methods that Gateway API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// `0s` switches a timeout off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteTimeouts {
    /// The whole request, retries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<PolicyDuration>,
    /// One attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<PolicyDuration>,
}

/// One backend of a rule and its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    #[serde(default)]
    pub group: String,
    #[serde(default = "service_kind")]
    pub kind: RefKind,
    pub name: Label,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Label>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// 0 to 1 000 000, relative to the others of the rule.
    #[serde(default = "one")]
    pub weight: u32,
}

/// Largest weight that Gateway API allows.
pub const MAX_WEIGHT: u32 = 1_000_000;

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

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    Error,
    Warning,
}

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// `E4101` …
    pub code: String,
    pub severity: Severity,
    pub message: String,
    pub file: String,
    /// 1-based; 0 = unknown.
    pub line: usize,
    pub column: usize,
    /// How to fix it.
    #[serde(default)]
    pub fix: String,
    /// The field, from the document's root: `spec.rules[1].backendRefs[0].name`. Empty = the document.
    #[serde(default)]
    pub path: String,
}

impl PolicyDocument {
    pub fn kind(&self) -> PolicyKind {
        match self.spec {
            PolicySpec::HttpRoute(_) => PolicyKind::HttpRoute,
            PolicySpec::GrpcRoute(_) => PolicyKind::GrpcRoute,
            PolicySpec::TcpRoute(_) => PolicyKind::TcpRoute,
            PolicySpec::TlsRoute(_) => PolicyKind::TlsRoute,
            PolicySpec::BackendPolicy(_) => PolicyKind::BackendPolicy,
            PolicySpec::AccessPolicy(_) => PolicyKind::AccessPolicy,
            PolicySpec::FaultInjection(_) => PolicyKind::FaultInjection,
            PolicySpec::RateLimit(_) => PolicyKind::RateLimit,
            PolicySpec::RequestAuthentication(_) => PolicyKind::RequestAuthentication,
            PolicySpec::ExternalService(_) => PolicyKind::ExternalService,
            PolicySpec::BackendTlsPolicy(_) => PolicyKind::BackendTlsPolicy,
            PolicySpec::MeshConfig(_) => PolicyKind::MeshConfig,
            PolicySpec::Gateway(_) => PolicyKind::Gateway,
        }
    }

    pub fn key(&self) -> PolicyKey {
        PolicyKey { kind: self.kind(), name: self.name.clone() }
    }

    /// When the control node takes it away by itself; `None` for what stays.
    pub fn ends(&self) -> Option<Timestamp> {
        match &self.spec {
            PolicySpec::FaultInjection(fault) => Some(self.created + fault.lasts.get()),
            _ => None,
        }
    }

    /// As the user would write it (`apiVersion`, `kind`, `metadata`, `spec`), as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let spec = match &self.spec {
            PolicySpec::HttpRoute(route) => serde_json::to_value(route),
            PolicySpec::GrpcRoute(route) => serde_json::to_value(route),
            PolicySpec::TcpRoute(route) => serde_json::to_value(route),
            PolicySpec::TlsRoute(route) => serde_json::to_value(route),
            PolicySpec::BackendPolicy(policy) => serde_json::to_value(policy),
            PolicySpec::AccessPolicy(policy) => serde_json::to_value(policy),
            PolicySpec::FaultInjection(fault) => serde_json::to_value(fault),
            PolicySpec::RateLimit(limit) => serde_json::to_value(limit),
            PolicySpec::RequestAuthentication(policy) => serde_json::to_value(policy),
            PolicySpec::ExternalService(external) => serde_json::to_value(external),
            PolicySpec::BackendTlsPolicy(policy) => serde_json::to_value(policy),
            PolicySpec::MeshConfig(config) => serde_json::to_value(config),
            PolicySpec::Gateway(gateway) => serde_json::to_value(gateway),
        };
        serde_json::json!({
            "apiVersion": self.kind().api_version(),
            "kind": self.kind().to_string(),
            "metadata": { "name": self.name.name(), "namespace": self.name.namespace() },
            "spec": spec.expect("policy documents have string keys and no failing serialisers"),
        })
    }
}

impl PolicyKind {
    pub const ALL: [PolicyKind; 13] = [
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::BackendPolicy,
        Self::AccessPolicy,
        Self::FaultInjection,
        Self::RateLimit,
        Self::RequestAuthentication,
        Self::ExternalService,
        Self::BackendTlsPolicy,
        Self::MeshConfig,
        Self::Gateway,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::BackendPolicy => "BackendPolicy",
            Self::AccessPolicy => "AccessPolicy",
            Self::FaultInjection => "FaultInjection",
            Self::RateLimit => "RateLimit",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::ExternalService => "ExternalService",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::MeshConfig => "MeshConfig",
            Self::Gateway => "Gateway",
        }
    }

    pub const fn api_version(self) -> &'static str {
        match self {
            Self::HttpRoute
            | Self::GrpcRoute
            | Self::TcpRoute
            | Self::TlsRoute
            | Self::BackendTlsPolicy
            | Self::Gateway => GATEWAY_API_VERSION,
            _ => HANSE_API_VERSION,
        }
    }
}

impl TargetRef {
    /// The service it means, in a document of `namespace`.
    pub fn service(&self, namespace: &str) -> ServiceName {
        named(namespace, self.namespace.as_ref(), &self.name)
    }
}

impl BackendRef {
    /// The service it means, in a document of `namespace`.
    pub fn service(&self, namespace: &str) -> ServiceName {
        named(namespace, self.namespace.as_ref(), &self.name)
    }
}

/// `namespace` is that of a document, and so a label already.
fn named(namespace: &str, own: Option<&Label>, name: &Label) -> ServiceName {
    ServiceName::new(own.map_or(namespace, Label::as_str), name.as_str()).expect("labels make a service name")
}

impl HttpMethod {
    pub const ALL: [HttpMethod; 9] = [
        Self::Get,
        Self::Head,
        Self::Post,
        Self::Put,
        Self::Delete,
        Self::Connect,
        Self::Options,
        Self::Trace,
        Self::Patch,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
        }
    }
}

impl PathMatch {
    /// What a match without a path means: everything.
    pub fn everything() -> Self {
        Self { kind: PathMatchKind::PathPrefix, value: root_path() }
    }
}

fn root_path() -> String {
    "/".to_owned()
}

fn service_kind() -> RefKind {
    RefKind::Service
}

fn one() -> u32 {
    1
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let singular = match lower.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => lower.strip_suffix('s').unwrap_or(&lower).to_owned(),
        };
        Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(&singular)).ok_or_else(|| {
            format!("{text:?} is no kind of policy; known: {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

impl std::fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl std::fmt::Display for RefKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Service => "Service",
            Self::ServiceImport => "ServiceImport",
            Self::ExternalService => "ExternalService",
            Self::Gateway => "Gateway",
        })
    }
}

#[cfg(test)]
mod tests;
