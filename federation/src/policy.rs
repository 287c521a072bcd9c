//! Policy documents: HTTPRoute, GRPCRoute, TCPRoute and TLSRoute (Gateway API v1), BackendPolicy, AccessPolicy and FaultInjection, read,
//! checked and put to use.
//!
//! `document` has the types and `parse` reads them from YAML with file, line and suggestion for what is wrong;
//! `validate` holds documents against a View; `route` and `access` are what the request path asks, `grant` what routes may name. The same functions run in the
//! CLI, the control node and the proxy. `workload` reads registrations written in the same form.

pub mod access;
pub mod authentication;
pub mod body;
pub mod concurrency;
pub mod condition;
pub mod document;
pub mod external;
pub mod grant;
mod hosts;
pub mod ingress;
pub mod limit;
mod matching;
pub mod moment;
pub mod parse;
pub mod permissive;
pub mod route;
mod schema;
pub mod stream;
mod tree;
pub mod validate;
pub mod value;
pub mod workload;

use crate::host::{Reach, ServiceHost};
use crate::view::View;

pub use document::{
    AccessPolicy, BackendPolicy, BackendTlsPolicy, Diagnostic, ExternalService, FaultInjection, Gateway,
    GrpcRoute, HttpRoute, PeerAuthentication, PolicyDocument, PolicyKey, PolicyKind, PolicySpec, RefKind,
    ReferenceGrant, Severity, TargetRef, TcpRoute, TlsRoute,
};
pub use grant::CrossReference;
pub use parse::{locate, parse};
pub use route::{Filters, NoRoute, Redirect, RequestParts, RouteTable, Routed};
pub use stream::{StreamRoutes, StreamTo};
pub use validate::{in_time, validate};
pub use value::{Label, Percent, PolicyDuration};

/// Whether a reference in a document of `namespace` means the service as `host` names it: a Service means both its
/// names, a ServiceImport only the name that reaches every cluster. References to other namespaces mean nothing.
pub fn refers_to(reference: &TargetRef, namespace: &str, host: &ServiceHost) -> bool {
    let reaches = match reference.kind {
        RefKind::Service => matches!(host.reach, Reach::ClusterSet | Reach::Cluster),
        RefKind::ServiceImport => host.reach == Reach::ClusterSet,
        RefKind::ExternalService => host.reach == Reach::External,
        RefKind::Gateway => host.reach == Reach::Gateway,
    };
    reaches
        && namespace == host.service.namespace()
        && reference.namespace.as_ref().is_none_or(|n| n.as_str() == namespace)
        && reference.name.as_str() == host.service.name()
}

/// The BackendPolicy that is in force for a service. For a name that reaches every cluster one that targets the
/// ServiceImport goes before one that targets the Service; then the older, then the first by name.
pub fn backend_policy<'v>(view: &'v View, host: &ServiceHost) -> Option<&'v BackendPolicy> {
    winner(view.policies.values(), host).map(|(_, policy)| policy)
}

/// The winner among `documents`, with the document that it comes from.
pub(crate) fn winner<'v>(
    documents: impl IntoIterator<Item = &'v PolicyDocument>,
    host: &ServiceHost,
) -> Option<(&'v PolicyDocument, &'v BackendPolicy)> {
    let candidate = |document: &'v PolicyDocument| {
        let PolicySpec::BackendPolicy(policy) = &document.spec else { return None };
        let rank = policy
            .target_refs
            .iter()
            .filter(|target| refers_to(target, document.name.namespace(), host))
            .map(|target| target.kind != RefKind::ServiceImport)
            .min()?;
        Some((rank, document.created, &document.name, document, &**policy))
    };
    documents
        .into_iter()
        .filter_map(candidate)
        .min_by_key(|(rank, created, name, ..)| (*rank, *created, *name))
        .map(|(_, _, _, document, policy)| (document, policy))
}
