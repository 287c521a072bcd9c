//! The documents themselves: each kind as a Rust type, their stored form and the user's form.
//!
//! Every type here is camelCase and refuses unknown fields; `parse` (in `parse.rs`) reads the user's form from YAML
//! or JSON with a line for everything that is wrong. The stored form is plain serde of `PolicyDocument`.

use hanse_identity::{ServiceName, Timestamp};
use serde::{Deserialize, Serialize};

pub mod access;
pub mod active;
pub mod authentication;
pub mod backend;
pub mod balance;
pub mod concurrency;
pub mod cors;
pub mod edge;
pub mod fault;
pub mod filter;
pub mod gateway;
pub mod grant;
pub mod grpc;
pub mod kind;
pub mod limit;
pub mod peer;
pub mod retry;
pub mod route;
pub mod stream;

pub use access::AccessPolicy;
pub use authentication::RequestAuthentication;
pub use backend::{
    BackendPolicy, DistributeShares, FailoverOrder, HealthPolicy, LocalityLabel, LocalityPolicy,
    LocalityPolicyMode, OutlierPolicy, Scope,
};
pub use edge::{BackendTlsPolicy, ExternalService, MeshConfig};
pub use fault::FaultInjection;
pub use filter::{FilterKind, QueryMatch, RouteFilter};
pub use gateway::Gateway;
pub use grant::ReferenceGrant;
pub use grpc::GrpcRoute;
pub use kind::PolicyKind;
pub use limit::RateLimit;
pub use peer::PeerAuthentication;
pub use route::{
    BackendRef, HeaderMatch, HeaderMatchKind, HttpMethod, HttpRoute, MAX_WEIGHT, PathMatch, PathMatchKind,
    RouteMatch, RouteRule, RouteTimeouts,
};
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
    PeerAuthentication(PeerAuthentication),
    ReferenceGrant(ReferenceGrant),
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

impl RefKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::ServiceImport => "ServiceImport",
            Self::ExternalService => "ExternalService",
            Self::Gateway => "Gateway",
        }
    }

    /// Its API group.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Service => "",
            Self::ServiceImport => IMPORT_GROUP,
            Self::ExternalService => HANSE_GROUP,
            Self::Gateway => GATEWAY_GROUP,
        }
    }
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
            PolicySpec::PeerAuthentication(_) => PolicyKind::PeerAuthentication,
            PolicySpec::ReferenceGrant(_) => PolicyKind::ReferenceGrant,
        }
    }

    pub fn key(&self) -> PolicyKey {
        PolicyKey { kind: self.kind(), name: self.name.clone() }
    }

    /// When the control node takes it away by itself; `None` for what stays.
    pub fn ends(&self) -> Option<Timestamp> {
        match &self.spec {
            PolicySpec::FaultInjection(fault) => Some(self.created + fault.lasts.get()),
            PolicySpec::PeerAuthentication(spec) => Some(spec.ends(self.created)),
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
            PolicySpec::PeerAuthentication(spec) => serde_json::to_value(spec),
            PolicySpec::ReferenceGrant(grant) => serde_json::to_value(grant),
        };
        serde_json::json!({
            "apiVersion": self.kind().api_version(),
            "kind": self.kind().to_string(),
            "metadata": { "name": self.name.name(), "namespace": self.name.namespace() },
            "spec": spec.expect("policy documents have string keys and no failing serialisers"),
        })
    }
}

impl TargetRef {
    /// The service it means, in a document of `namespace`.
    pub fn service(&self, namespace: &str) -> ServiceName {
        named(namespace, self.namespace.as_ref(), &self.name)
    }
}

/// `namespace` is that of a document, and so a label already.
fn named(namespace: &str, own: Option<&Label>, name: &Label) -> ServiceName {
    ServiceName::new(own.map_or(namespace, Label::as_str), name.as_str()).expect("labels make a service name")
}

fn service_kind() -> RefKind {
    RefKind::Service
}

impl std::fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl std::fmt::Display for RefKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests;
