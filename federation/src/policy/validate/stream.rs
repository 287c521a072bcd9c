//! TCPRoutes and TLSRoutes: what they refer to, and which of several is asked.

use super::{Findings, age, alone, check_route};
use crate::policy::document::{HttpRoute, PolicyDocument, PolicySpec};
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
    if matches!(document.spec, PolicySpec::TcpRoute(_)) {
        check_others(view, documents, document, route, findings);
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
                their.service(other.name.namespace()) == parent.service(here)
                    && (their.port.is_none() || their.port == parent.port)
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
