//! TCPRoutes and TLSRoutes: what they refer to, and which of several is asked.

use super::{Findings, age, alone, check_route};
use crate::policy::document::{HttpRoute, PolicyDocument, PolicySpec, RefKind};
use crate::view::View;

/// `route`: the HTTPRoute with the same references.
pub(super) fn check(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    route: &HttpRoute,
    findings: &mut Findings<'_>,
) {
    let (before, namespace) = (findings.diagnostics.len(), document.name.namespace());
    alone::check_route(route, namespace, findings);
    check_route(view, route, namespace, findings);
    // What is a request there is a connection here.
    for diagnostic in &mut findings.diagnostics[before..] {
        let message = diagnostic.message.replace("requests would get 503", "connections would be reset");
        diagnostic.message =
            message.replace("every request of the rule would get 500", "every connection would be reset");
    }
    check_backends(route, findings);
    if matches!(document.spec, PolicySpec::TcpRoute(_)) {
        check_others(view, documents, document, route, findings);
    }
}

/// A connection goes to a service of the mesh, and to a port that somebody has said.
fn check_backends(route: &HttpRoute, findings: &mut Findings<'_>) {
    for (index, parent) in route.parent_refs.iter().enumerate() {
        if parent.kind == RefKind::ExternalService {
            let message = "connections to what is outside are not routed: only requests are".to_owned();
            let fix = "write an HTTPRoute, or name a Service, a ServiceImport or a Gateway".to_owned();
            findings.error("E4109", format!("spec.parentRefs[{index}].kind"), message, fix);
        }
    }
    let enters = route.parent_refs.iter().any(|parent| parent.kind == RefKind::Gateway);
    for (r, rule) in route.rules.iter().enumerate() {
        for (b, backend) in rule.backend_refs.iter().enumerate() {
            let path = |field: &str| format!("spec.rules[{r}].backendRefs[{b}].{field}");
            if backend.kind == RefKind::ExternalService {
                let message = format!("plain TCP does not go outside: {} would get nothing", backend.name);
                let fix = "name a Service or a ServiceImport; HTTP goes outside by an HTTPRoute".to_owned();
                findings.error("E4109", path("kind"), message, fix);
            } else if backend.port.is_none() && enters {
                let message = "a Gateway's port is not the service's".to_owned();
                let fix = "add port: the one that the service has".to_owned();
                findings.error("E4106", path("port"), message, fix);
            }
        }
    }
}

/// An older TCPRoute of the same port takes every connection.
fn check_others(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    document: &PolicyDocument,
    route: &HttpRoute,
    findings: &mut Findings<'_>,
) {
    let here = document.name.namespace();
    let others = view.policies.values().chain(documents.iter().map(|(document, _)| document));
    for other in others.filter(|other| other.key() != document.key()) {
        let PolicySpec::TcpRoute(theirs) = &other.spec else { continue };
        if (age(view, other), &other.name) > (age(view, document), &document.name) {
            continue;
        }
        for (index, parent) in route.parent_refs.iter().enumerate() {
            let same = theirs.parent_refs.iter().any(|their| {
                (their.kind == RefKind::Gateway) == (parent.kind == RefKind::Gateway)
                    && their.service(other.name.namespace()) == parent.service(here)
                    && (their.port.is_none() || their.port == parent.port)
                    && (their.section_name.is_none() || their.section_name == parent.section_name)
            });
            if same {
                let message = format!(
                    "TCPRoute {} of {} is older and takes every connection: this one is never asked",
                    other.name,
                    parent.service(here)
                );
                let fix = format!("merge them, or: hanse policy delete TCPRoute {}", other.name);
                findings.warning("E4121", format!("spec.parentRefs[{index}]"), message, fix);
            }
        }
    }
}
