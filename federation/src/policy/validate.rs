//! Holding documents against a View: parents, backends, weights, clusters (the E41xx diagnostics).
//!
//! What a document says wrongly by itself is in `validate/alone.rs`; here is what needs to know the clusters.

use std::collections::BTreeSet;

use hanse_identity::{ClusterName, ServiceName, Timestamp};

use super::document::{
    BackendPolicy, Diagnostic, HttpRoute, LocalityPolicy, LocalityPolicyMode, PolicyDocument, PolicyKey,
    PolicyKind, PolicySpec, RefKind, Scope, Severity, TargetRef,
};
use super::value::near;
use crate::view::View;

mod access;
mod alone;
mod authentication;
mod balance;
mod concurrency;
mod edge;
mod fault;
mod filters;
mod gateway;
mod grant;
mod limit;
mod peer;
mod stream;

/// Most names that a message lists.
const MAX_LISTED: usize = 8;

/// Errors and warnings for documents about to be applied together; `documents` carry their line. Diagnostics have
/// the line of the document and the path of the field; `locate` finds the field's own line where the text is at hand.
pub fn validate(view: &View, file: &str, documents: &[(PolicyDocument, usize)]) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let (others, grants) = (others(view, documents), grant::Grants::of(view, documents));
    for (document, line) in documents {
        let mut findings = Findings { file, line: *line, diagnostics: &mut diagnostics, others: &others };
        let namespace = document.name.namespace();
        grant::check_references(&grants, document, &mut findings);
        match &document.spec {
            PolicySpec::HttpRoute(route) => {
                alone::check_route(route, namespace, &mut findings);
                check_route(view, route, namespace, &mut findings);
                fault::check_references(view, documents, route, namespace, &mut findings);
                edge::check_backend_ports(view, documents, route, namespace, &mut findings);
                let attached = (route.parent_refs.as_slice(), route.hostnames.as_slice());
                gateway::check_parents(view, documents, document, attached, &mut findings);
            }
            PolicySpec::GrpcRoute(route) => {
                alone::check_methods(route, &mut findings);
                let (before, route) = (findings.diagnostics.len(), route.to_http());
                alone::check_route(&route, namespace, &mut findings);
                check_route(view, &route, namespace, &mut findings);
                fault::check_references(view, documents, &route, namespace, &mut findings);
                edge::check_backend_ports(view, documents, &route, namespace, &mut findings);
                // What is a path there is a method here.
                for diagnostic in &mut findings.diagnostics[before..] {
                    diagnostic.path = diagnostic.path.replace(".path.value", ".method");
                }
                check_other_kind(view, documents, document, &route, &mut findings);
                let attached = (route.parent_refs.as_slice(), route.hostnames.as_slice());
                gateway::check_parents(view, documents, document, attached, &mut findings);
            }
            PolicySpec::AccessPolicy(policy) => {
                access::check(view, policy, namespace, &mut findings);
                access::check_tokens(view, documents, policy, namespace, &mut findings);
            }
            PolicySpec::RequestAuthentication(policy) => {
                authentication::check(view, policy, namespace, &mut findings)
            }
            PolicySpec::TcpRoute(route) => {
                stream::check(view, documents, document, &route.to_http(), &mut findings);
                gateway::check_parents(view, documents, document, (&route.parent_refs, &[]), &mut findings);
            }
            PolicySpec::TlsRoute(route) => {
                stream::check(view, documents, document, &route.to_http(), &mut findings);
                let attached = (route.parent_refs.as_slice(), route.hostnames.as_slice());
                gateway::check_parents(view, documents, document, attached, &mut findings);
            }
            PolicySpec::FaultInjection(fault) => fault::check(fault, &mut findings),
            PolicySpec::ExternalService(external) => {
                edge::check_external(view, documents, document, external, &mut findings)
            }
            PolicySpec::BackendTlsPolicy(policy) => {
                edge::check_tls(view, documents, document, policy, &mut findings)
            }
            PolicySpec::Gateway(gateway) => gateway::check(gateway, &mut findings),
            PolicySpec::PeerAuthentication(policy) => peer::check(view, policy, namespace, &mut findings),
            PolicySpec::ReferenceGrant(grant) => grant::check(&grants, document, grant, &mut findings),
            PolicySpec::MeshConfig(_) => edge::check_config(view, documents, document, &mut findings),
            PolicySpec::RateLimit(policy) => limit::check(view, policy, namespace, &mut findings),
            PolicySpec::BackendPolicy(policy) => {
                alone::check_policy(policy, namespace, &mut findings);
                check_policy(view, policy, namespace, &mut findings);
                concurrency::check(view, policy, namespace, &mut findings);
                check_conflicts(view, documents, document, policy, &mut findings);
            }
        }
    }
    diagnostics
}

/// What is wrong, or worth a warning, because of the time that it is: beside what `validate` says.
pub fn in_time(file: &str, documents: &[(PolicyDocument, usize)], now: Timestamp) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    let others = BTreeSet::new();
    for (document, line) in documents {
        let mut findings = Findings { file, line: *line, diagnostics: &mut diagnostics, others: &others };
        if let PolicySpec::PeerAuthentication(policy) = &document.spec {
            peer::check_time(policy, now, &mut findings);
        }
    }
    diagnostics
}

/// Where the findings of one document go.
struct Findings<'f> {
    file: &'f str,
    line: usize,
    diagnostics: &'f mut Vec<Diagnostic>,
    /// ExternalServices and Gateways, those that are applied together with it included.
    others: &'f BTreeSet<PolicyKey>,
}

impl Findings<'_> {
    fn error(&mut self, code: &str, path: String, message: String, fix: String) {
        self.add(code, Severity::Error, path, message, fix);
    }

    /// An ExternalService or a Gateway that has to be there.
    fn check_other(&mut self, kind: PolicyKind, name: &ServiceName, code: &str, path: String) {
        if self.others.contains(&PolicyKey { kind, name: name.clone() }) {
            return;
        }
        let same = |key: &&PolicyKey| key.kind == kind && key.name.namespace() == name.namespace();
        let fix = match near(name.name(), self.others.iter().filter(same).map(|key| key.name.name())) {
            Some(near) => format!("did you mean {near}?"),
            None => "apply it together with this document, or before".to_owned(),
        };
        self.error(code, path, format!("there is no {kind} {name}"), fix);
    }

    fn warning(&mut self, code: &str, path: String, message: String, fix: String) {
        self.add(code, Severity::Warning, path, message, fix);
    }

    fn add(&mut self, code: &str, severity: Severity, path: String, message: String, fix: String) {
        let (code, file) = (code.to_owned(), self.file.to_owned());
        self.diagnostics.push(Diagnostic {
            code,
            severity,
            message,
            file,
            line: self.line,
            column: 0,
            fix,
            path,
        });
    }
}

/// The ExternalServices and Gateways that there will be.
fn others(view: &View, documents: &[(PolicyDocument, usize)]) -> BTreeSet<PolicyKey> {
    let all = view.policies.values().chain(documents.iter().map(|(document, _)| document));
    let named = all.map(PolicyDocument::key);
    named.filter(|key| matches!(key.kind, PolicyKind::ExternalService | PolicyKind::Gateway)).collect()
}

fn check_route(view: &View, route: &HttpRoute, namespace: &str, findings: &mut Findings<'_>) {
    check_targets(view, "parentRefs", "parent", &route.parent_refs, namespace, findings);
    for (r, rule) in route.rules.iter().enumerate() {
        let total: u64 = rule.backend_refs.iter().map(|b| u64::from(b.weight)).sum();
        for (b, backend) in rule.backend_refs.iter().enumerate() {
            let path = format!("spec.rules[{r}].backendRefs[{b}].name");
            let service = backend.service(namespace);
            if backend.kind == RefKind::ExternalService {
                findings.check_other(PolicyKind::ExternalService, &service, "E4107", path);
                continue;
            }
            let effect = match total {
                0 => String::new(),
                _ => format!("; {} % of the rule's requests would get 503", percent(backend.weight, total)),
            };
            if is_here(view, &service) {
                continue;
            }
            let abroad = exporters(view, &service);
            if abroad.is_empty() {
                let message = format!(
                    "backend {service} exists in no cluster{effect} ({})",
                    known_names(view, service.namespace())
                );
                findings.error("E4107", path, message, suggestion(view, &service));
            } else if backend.kind == RefKind::Service {
                let message = format!("backend {service} has no endpoint in {}", view.cluster);
                let fix = format!("write kind: ServiceImport to reach it in {}", list(&abroad));
                findings.warning("E4107", path, message, fix);
            }
        }
        for (f, filter) in rule.filters.iter().enumerate() {
            let Some(mirror) = &filter.request_mirror else { continue };
            let service = mirror.backend_ref.service(namespace);
            if !is_here(view, &service) && exporters(view, &service).is_empty() {
                let path = format!("spec.rules[{r}].filters[{f}].requestMirror.backendRef.name");
                let message = format!(
                    "copies go to {service}, which exists in no cluster ({})",
                    known_names(view, service.namespace())
                );
                findings.error("E4107", path, message, suggestion(view, &service));
            }
        }
    }
}

fn check_policy(view: &View, policy: &BackendPolicy, namespace: &str, findings: &mut Findings<'_>) {
    check_targets(view, "targetRefs", "target", &policy.target_refs, namespace, findings);
    if policy.scope == Scope::Federation {
        let message =
            "scope Federation is kept, but this version does not offer policies to peers".to_owned();
        findings.warning(
            "E4125",
            "spec.scope".to_owned(),
            message,
            "apply the document in each cluster".to_owned(),
        );
    }
    let Some(locality) = &policy.locality else { return };
    check_clusters(view, locality, findings);
    if locality.mode == LocalityPolicyMode::LocalOnly {
        for target in &policy.target_refs {
            let service = target.service(namespace);
            let is_service = target.kind != RefKind::ExternalService;
            if is_service && view.endpoints_of(&service).next().is_none() {
                let message = format!(
                    "{service} has no endpoint in {}, and LocalOnly lets no request leave it",
                    view.cluster
                );
                let fix = "start an endpoint here, or write mode: Failover".to_owned();
                findings.warning("E4113", "spec.locality.mode".to_owned(), message, fix);
            }
        }
    }
}

/// Every target has to be a service that this cluster or an import knows.
fn check_targets(
    view: &View,
    field: &str,
    what: &str,
    targets: &[TargetRef],
    namespace: &str,
    findings: &mut Findings<'_>,
) {
    for (index, target) in targets.iter().enumerate() {
        let service = target.service(namespace);
        let other = match target.kind {
            RefKind::ExternalService => Some(PolicyKind::ExternalService),
            RefKind::Gateway => Some(PolicyKind::Gateway),
            RefKind::Service | RefKind::ServiceImport => None,
        };
        if let Some(kind) = other {
            findings.check_other(kind, &service, "E4101", format!("spec.{field}[{index}].name"));
        } else if !is_here(view, &service) && exporters(view, &service).is_empty() {
            let message = format!(
                "{what} {} {service} is neither in {} nor imported ({})",
                target.kind,
                view.cluster,
                known_names(view, namespace)
            );
            findings.error(
                "E4101",
                format!("spec.{field}[{index}].name"),
                message,
                suggestion(view, &service),
            );
        }
    }
}

/// Clusters that a locality names have to be this one or a peer.
fn check_clusters(view: &View, locality: &LocalityPolicy, findings: &mut Findings<'_>) {
    let mut check = |cluster: &ClusterName, path: String| {
        if *cluster == view.cluster || view.peers.contains_key(cluster) {
            return;
        }
        let known: Vec<&str> =
            std::iter::once(&view.cluster).chain(view.peers.keys()).map(ClusterName::as_str).collect();
        let fix = match near(cluster.as_str(), known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("join it first: hanse cluster token create --for {cluster}"),
        };
        let message =
            format!("{cluster} is no cluster that {} knows (known: {})", view.cluster, known.join(", "));
        findings.error("E4111", path, message, fix);
    };
    for (f, order) in locality.failover.iter().enumerate() {
        check(&order.from, format!("spec.locality.failover[{f}].from"));
        for (t, to) in order.to.iter().enumerate() {
            check(to, format!("spec.locality.failover[{f}].to[{t}]"));
        }
    }
    for (d, shares) in locality.distribute.iter().enumerate() {
        check(&shares.from, format!("spec.locality.distribute[{d}].from"));
        for to in shares.to.keys() {
            check(to, format!("spec.locality.distribute[{d}].to.{to}"));
        }
    }
}

/// HTTPRoutes of the same parents, which are not read beside a GRPCRoute.
fn check_other_kind(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    route: &HttpRoute,
    findings: &mut Findings<'_>,
) {
    let here = document.name.namespace();
    let all = view.policies.values().chain(documents.iter().map(|(document, _)| document));
    let https: BTreeSet<_> = all
        .filter_map(|d| Some((&d.name, as_http(d)?)))
        .map(|(name, http)| {
            let parents = http.parent_refs.iter();
            let services: Vec<_> = parents.map(|p| (p.kind, p.service(name.namespace()))).collect();
            (name, services)
        })
        .collect();
    // A Gateway reads both.
    let parents = route.parent_refs.iter().enumerate().filter(|(_, p)| p.kind != RefKind::Gateway);
    for (index, parent) in parents {
        let service = parent.service(here);
        let same = |(kind, other): &(RefKind, ServiceName)| {
            *other == service
                && (*kind == RefKind::ExternalService) == (parent.kind == RefKind::ExternalService)
        };
        let rival = https.iter().find(|(_, services)| services.iter().any(same));
        if let Some((name, _)) = rival {
            let message = format!("HTTPRoute {name} of {service} is no longer read: GRPCRoutes decide alone");
            let fix = "put its rules for gRPC into GRPCRoutes, and delete it".to_owned();
            findings.warning("E4121", format!("spec.parentRefs[{index}]"), message, fix);
        }
    }
}

fn as_http(document: &PolicyDocument) -> Option<&HttpRoute> {
    match &document.spec {
        PolicySpec::HttpRoute(route) => Some(route),
        _ => None,
    }
}

/// Other policies of the same target: which of them will be in force.
fn check_conflicts(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    policy: &BackendPolicy,
    findings: &mut Findings<'_>,
) {
    let key = document.key();
    let together: BTreeSet<PolicyKey> = documents.iter().map(|(d, _)| d.key()).collect();
    let kept = view.policies.values().filter(|d| !together.contains(&d.key()));
    let others: Vec<&PolicyDocument> =
        kept.chain(documents.iter().map(|(d, _)| d)).filter(|d| d.key() != key).collect();
    for (index, target) in policy.target_refs.iter().enumerate() {
        let same = |other: &&&PolicyDocument| {
            let PolicySpec::BackendPolicy(policy) = &other.spec else { return false };
            let theirs = other.name.namespace();
            let here = document.name.namespace();
            policy
                .target_refs
                .iter()
                .any(|t| t.kind == target.kind && t.service(theirs) == target.service(here))
        };
        let rivals: Vec<&PolicyDocument> = others.iter().filter(same).copied().collect();
        let Some(best) = rivals.iter().copied().chain([document]).min_by_key(|d| (age(view, d), &d.name))
        else {
            continue;
        };
        if let Some(rival) = rivals.first() {
            let named = if best.name == document.name { rival } else { &best };
            let outcome = if best.name == document.name { "this one wins" } else { "that one wins" };
            let message = format!(
                "{} and {} both target {} {}: {outcome} (the older, then the first by name)",
                document.name,
                named.name,
                target.kind,
                target.service(document.name.namespace()),
            );
            let fix = format!("merge them, or: hanse policy delete {}", named.key().kind);
            let fix =
                format!("{fix} {}", if best.name == document.name { &rival.name } else { &document.name });
            findings.warning("E4120", format!("spec.targetRefs[{index}]"), message, fix);
        }
    }
}

/// When a document was created as the control node will see it: kept if it is applied again, else younger than all.
fn age(view: &View, document: &PolicyDocument) -> Timestamp {
    view.policies.get(&document.key()).map_or(Timestamp(u64::MAX), |stored| stored.created)
}

/// Whether the service is one of this cluster's own.
fn is_here(view: &View, service: &ServiceName) -> bool {
    view.services.contains_key(service) || view.endpoints_of(service).next().is_some()
}

/// Peers that export it to us.
fn exporters<'v>(view: &'v View, service: &ServiceName) -> Vec<&'v str> {
    view.peers
        .iter()
        .filter(|(_, peer)| peer.services.contains_key(service))
        .map(|(name, _)| name.as_str())
        .collect()
}

/// All services that can be reached from here.
fn reachable(view: &View) -> BTreeSet<&ServiceName> {
    view.services.keys().chain(view.peers.values().flat_map(|peer| peer.services.keys())).collect()
}

fn known_names(view: &View, namespace: &str) -> String {
    let names: Vec<&str> =
        reachable(view).into_iter().filter(|s| s.namespace() == namespace).map(ServiceName::name).collect();
    match names.as_slice() {
        [] => format!("no service of namespace {namespace} is known"),
        names => format!("known in {namespace}: {}", list(names)),
    }
}

fn suggestion(view: &View, service: &ServiceName) -> String {
    let known = reachable(view);
    let names = known.iter().filter(|s| s.namespace() == service.namespace()).map(|s| s.name());
    let export = format!("hanse service export {service}");
    if let Some(near) = near(service.name(), names) {
        return format!("did you mean {near}? or, in the cluster that has it: {export}");
    }
    match known.iter().find(|s| s.name() == service.name()) {
        Some(other) => {
            format!("it is in another namespace, {other}; or, in the cluster that has it: {export}")
        }
        None => format!("in the cluster that has it: {export}"),
    }
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(MAX_LISTED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Rounded up, so that a small share is not told as none.
fn percent(weight: u32, total: u64) -> u64 {
    (u64::from(weight) * 100).div_ceil(total)
}

#[cfg(test)]
mod tests;
