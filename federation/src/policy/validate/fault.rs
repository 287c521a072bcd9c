//! FaultInjections: that they end, that they do something, and that they spare what watches over the services.

use super::Findings;
use super::alone::check_pattern;
use crate::policy::document::fault::{ExtensionRef, FaultInjection, MAX_FAULT};
use crate::policy::document::{
    HeaderMatchKind, HttpRoute, PathMatch, PolicyDocument, PolicySpec, RouteMatch, RouteRule,
};
use crate::policy::matching::PathTest;
use crate::policy::route::matches_of;
use crate::policy::value::PolicyDuration;
use crate::view::View;

/// Where callers ask whether a service is well: by convention, and gRPC's health protocol.
const HEALTH: [&str; 6] = [
    "/healthz",
    "/readyz",
    "/livez",
    "/health",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
];

pub(super) fn check(fault: &FaultInjection, findings: &mut Findings<'_>) {
    let longest = PolicyDuration::new(MAX_FAULT);
    if fault.lasts.is_zero() || fault.lasts > longest {
        let message = match fault.lasts.is_zero() {
            true => "the fault has no end".to_owned(),
            false => format!("the fault would last {}; at most {longest} are allowed", fault.lasts),
        };
        let fix = "write for: 15m: after that the control node removes it".to_owned();
        findings.error("E4122", "spec.for".to_owned(), message, fix);
    }
    if let Some(only) = fault.only.as_ref().filter(|o| o.header.kind == HeaderMatchKind::RegularExpression) {
        check_pattern(&only.header.value, "spec.only.header.value".to_owned(), findings);
    }
    if fault.delay.is_none() && fault.abort.is_none() {
        let message = "the fault does nothing".to_owned();
        findings.error("E4004", "spec".to_owned(), message, "add delay, abort, or both".to_owned());
    }
    if fault.delay.is_some_and(|delay| delay.fixed.is_zero()) {
        let message = "a delay of 0s is none".to_owned();
        findings.error("E4005", "spec.delay.fixed".to_owned(), message, "write fixed: 2s".to_owned());
    }
    if let Some(abort) = fault.abort
        && abort.http_status.is_some() == abort.grpc_status.is_some()
    {
        let message = "an abort has one status, of HTTP or of gRPC".to_owned();
        let fix = "write httpStatus: 503 (calls of gRPC get 14), or grpcStatus: 14".to_owned();
        findings.error("E4005", "spec.abort".to_owned(), message, fix);
    }
}

/// What the rules of a route name, among what is applied together and what is there.
pub(super) fn check_references(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    route: &HttpRoute,
    namespace: &str,
    findings: &mut Findings<'_>,
) {
    for (r, rule) in route.rules.iter().enumerate() {
        for (f, filter) in rule.filters.iter().enumerate() {
            let Some(reference) = &filter.extension_ref else { continue };
            let path = format!("spec.rules[{r}].filters[{f}].extensionRef");
            match named(view, documents, reference, namespace) {
                None => {
                    let message = format!(
                        "there is no FaultInjection {namespace}/{}: the rule does without it",
                        reference.name
                    );
                    let fix = "apply it too; a fault that has ended may be applied again".to_owned();
                    findings.warning("E4122", format!("{path}.name"), message, fix);
                }
                Some(fault) => check_spared(fault, rule, path, findings),
            }
        }
    }
}

fn named<'d>(
    view: &'d View,
    documents: &'d [(PolicyDocument, usize)],
    reference: &ExtensionRef,
    namespace: &str,
) -> Option<&'d FaultInjection> {
    let together = documents.iter().map(|(document, _)| document);
    together.chain(view.policies.values()).find_map(|document| match &document.spec {
        PolicySpec::FaultInjection(fault)
            if document.name.namespace() == namespace && document.name.name() == reference.name.as_str() =>
        {
            Some(fault)
        }
        _ => None,
    })
}

/// A fault that is for everybody, in a rule that lets checks of health through.
fn check_spared(fault: &FaultInjection, rule: &RouteRule, path: String, findings: &mut Findings<'_>) {
    if fault.only.is_some() {
        return;
    }
    let hit = |wanted: &RouteMatch| {
        let test = PathTest::compile(wanted.path.as_ref().unwrap_or(&PathMatch::everything()))?;
        let open = wanted.headers.is_empty() && wanted.query_params.is_empty();
        HEALTH.into_iter().find(|health| open && test.holds(health))
    };
    if let Some(health) = matches_of(rule).iter().find_map(hit) {
        let message =
            format!("the fault hits checks of health too, like {health}: what asks there acts on it");
        let fix = "give the fault only.header, or the rule a match that checks do not fit".to_owned();
        findings.warning("E4123", path, message, fix);
    }
}
