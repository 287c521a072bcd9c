//! AccessPolicies: what they say wrongly by themselves, and what names nobody that is known here.

use std::collections::BTreeSet;
use std::time::Duration;

use super::alone::{check_group, check_path, check_pattern, check_targets};
use super::{Findings, exporters, is_here, known_names};
use crate::host::host_of;
use crate::policy::access::{DEFAULT_TIMEOUT, IdPattern};
use crate::policy::condition::Condition;
use crate::policy::document::access::{AccessAction, AccessFrom, AccessPolicy, AccessTo, AccessWhen};
use crate::policy::document::{HeaderMatchKind, PathMatch, PolicyDocument, PolicySpec};
use crate::policy::value::{PolicyDuration, near};
use crate::view::View;

/// Longest that a request may wait for an authorizer.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn check(view: &View, policy: &AccessPolicy, namespace: &str, findings: &mut Findings<'_>) {
    check_targets("targetRefs", &policy.target_refs, namespace, findings);
    for (index, target) in policy.target_refs.iter().enumerate() {
        let service = target.service(namespace);
        // No error: a service is best protected before it is there.
        if !is_here(view, &service) {
            let abroad = match exporters(view, &service).as_slice() {
                [] => String::new(),
                there => format!("; it is in {}, whose own policies decide", there.join(", ")),
            };
            let message =
                format!("{service} is not in {}{abroad} ({})", view.cluster, known_names(view, namespace));
            let fix = "apply it where the service is; here it waits for a service of that name".to_owned();
            findings.warning("E4131", format!("spec.targetRefs[{index}].name"), message, fix);
        }
    }
    if policy.rules.is_empty() && policy.action != AccessAction::Allow {
        let message = format!("a policy with action {} and no rule does nothing", policy.action.as_str());
        findings.error("E4004", "spec.rules".to_owned(), message, "add a rule".to_owned());
    }
    check_external(view, policy, namespace, findings);
    let mut names = BTreeSet::new();
    for (index, rule) in policy.rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        if let Some(name) = rule.name.as_ref().filter(|name| !names.insert(*name)) {
            let message = format!("two rules are named {name}: who reads the log could not tell them apart");
            findings.error("E4005", format!("{path}.name"), message, "give one another name".to_owned());
        }
        if let Some(from) = &rule.from {
            check_from(view, from, &format!("{path}.from"), findings);
        }
        if let Some(to) = &rule.to {
            check_to(policy.action, to, &format!("{path}.to"), findings);
        }
        if let Some(when) = &rule.when {
            check_when(policy.action, rule.from.as_ref(), when, &format!("{path}.when"), findings);
        }
    }
}

/// One authorizer, which is not the one that is protected, and nobody on the way to it.
fn check_external(view: &View, policy: &AccessPolicy, namespace: &str, findings: &mut Findings<'_>) {
    let path = "spec.external".to_owned();
    let Some(external) = &policy.external else {
        if policy.action == AccessAction::External {
            let message = "the policy says nobody who is asked".to_owned();
            findings.error("E4004", path, message, "add external with backendRef or address".to_owned());
        }
        return;
    };
    if policy.action != AccessAction::External {
        let message = format!("nobody is asked with action {}", policy.action.as_str());
        findings.error("E4005", path.clone(), message, "write action: External, or remove it".to_owned());
    }
    if external.backend_ref.is_some() == external.address.is_some() {
        let message = "an authorizer is a service of the mesh or an address, one of the two".to_owned();
        findings.error("E4005", path.clone(), message, "keep one of backendRef and address".to_owned());
    }
    if external.address.is_some_and(|address| !address.ip().is_loopback() || address.port() == 0) {
        let message = "what is asked would cross the network in plain text".to_owned();
        let fix = "write an address of the host itself (127.0.0.1:9191), or a backendRef".to_owned();
        findings.error("E4005", format!("{path}.address"), message, fix);
    }
    let timeout = external.timeout.map_or(DEFAULT_TIMEOUT, PolicyDuration::get);
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        let message = "nobody waits that long, or that short".to_owned();
        findings.error("E4005", format!("{path}.timeout"), message, "write 1ms to 10s".to_owned());
    }
    let Some(backend) = &external.backend_ref else { return };
    let path = format!("{path}.backendRef");
    check_group(&backend.group, backend.kind, &path, findings);
    let service = backend.service(namespace);
    if policy.target_refs.iter().any(|target| target.service(namespace) == service) {
        let message = format!("{service} would be asked whether it may be asked");
        findings.error("E4005", path, message, "leave it out of targetRefs".to_owned());
    } else if !is_here(view, &service) && exporters(view, &service).is_empty() {
        let message = format!("no cluster offers {service} ({})", known_names(view, namespace));
        let fix = "until one does, what it would be asked about is refused".to_owned();
        findings.warning("E4107", path, message, fix);
    }
}

/// Rules that want a token, where nobody would read one.
pub(super) fn check_tokens(
    view: &View,
    documents: &[(PolicyDocument, usize)],
    policy: &AccessPolicy,
    namespace: &str,
    findings: &mut Findings<'_>,
) {
    let wants = |rule: &crate::policy::document::access::AccessRule| {
        let of_claims = |when: &AccessWhen| {
            let reads =
                |text: &String| Condition::compile(text).is_ok_and(|condition| condition.reads_user());
            !when.claims.is_empty() || when.expression.as_ref().is_some_and(reads)
        };
        rule.when.as_ref().is_some_and(of_claims)
            || rule.from.as_ref().is_some_and(|from| !from.request_principals.is_empty())
    };
    let Some(index) = policy.rules.iter().position(wants) else { return };
    let read = |service| {
        let all = view.policies.values().chain(documents.iter().map(|(document, _)| document));
        all.into_iter().any(|document| match &document.spec {
            PolicySpec::RequestAuthentication(spec) => {
                let other = document.name.namespace();
                spec.target_refs.iter().any(|target| target.service(other) == service)
            }
            _ => false,
        })
    };
    if let Some(target) = policy.target_refs.iter().find(|target| !read(target.service(namespace))) {
        let service = target.service(namespace);
        let message = format!("the rule wants a token, and no RequestAuthentication for {service} reads any");
        let fix = "apply one with the issuer's keys".to_owned();
        findings.warning("E4118", format!("spec.rules[{index}]"), message, fix);
    }
}

pub(super) fn check_from(view: &View, from: &AccessFrom, path: &str, findings: &mut Findings<'_>) {
    for (index, identity) in from.identities.iter().enumerate() {
        if let Err(message) = IdPattern::parse(identity) {
            let fix = "write it like spiffe://east.example/ns/shop/sa/web, or with * for a part".to_owned();
            findings.error("E4005", format!("{path}.identities[{index}]"), message, fix);
        }
    }
    for (index, cluster) in from.clusters.iter().enumerate() {
        if *cluster != view.cluster && !view.peers.contains_key(cluster) {
            let known: Vec<&str> =
                std::iter::once(&view.cluster).chain(view.peers.keys()).map(|name| name.as_str()).collect();
            let message =
                format!("{cluster} is no cluster that {} knows (known: {})", view.cluster, known.join(", "));
            let fix = match near(cluster.as_str(), known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!(
                    "nobody of it can call until it is joined: hanse cluster token create --for {cluster}"
                ),
            };
            findings.warning("E4111", format!("{path}.clusters[{index}]"), message, fix);
        }
    }
}

fn check_when(
    action: AccessAction,
    from: Option<&AccessFrom>,
    when: &AccessWhen,
    path: &str,
    findings: &mut Findings<'_>,
) {
    let Some(text) = &when.expression else {
        if when.claims.is_empty() {
            let fix = "add expression, claims, or both".to_owned();
            findings.error("E4004", path.to_owned(), "when says nothing".to_owned(), fix);
        }
        return;
    };
    let path = format!("{path}.expression");
    let condition = match Condition::compile(text) {
        Ok(condition) => condition,
        Err(wrong) => {
            return findings.error("E4143", path, format!("the condition {wrong}"), wrong.fix);
        }
    };
    let is_ours = from.is_some_and(|from| {
        !(from.identities.is_empty() && from.clusters.is_empty() && from.namespaces.is_empty())
    });
    if condition.takes_any_namespace() && action == AccessAction::Allow && !is_ours {
        let message = "every cluster has namespaces of its own, and peers give theirs any name".to_owned();
        let fix = "add: && source.cluster == 'NAME', or write from.namespaces, which means this cluster's";
        findings.error("E4143", path.clone(), message, fix.to_owned());
    }
    let shuts = matches!(action, AccessAction::Deny | AccessAction::External);
    if condition.reads_path() && shuts || condition.shuts_by_path() && action == AccessAction::Allow {
        let message = "a path may open and not shut: whoever writes it in another way would pass".to_owned();
        let fix = match action {
            AccessAction::External => "leave it out: the authorizer is told the path, and decides",
            _ => "write an Allow with the paths that may be called: ==, in, startsWith, matches",
        };
        findings.error("E4130", path, message, fix.to_owned());
    }
}

fn check_to(action: AccessAction, to: &AccessTo, path: &str, findings: &mut Findings<'_>) {
    if matches!(action, AccessAction::Deny | AccessAction::External) && !to.paths.is_empty() {
        let message =
            "a path decides no Deny and no External: whoever writes it in another way would pass".to_owned();
        let fix = match action {
            AccessAction::Deny => "write an Allow with the paths that may be called".to_owned(),
            _ => "leave it out: the authorizer is told the path, and decides".to_owned(),
        };
        findings.error("E4130", format!("{path}.paths"), message, fix);
    }
    for (index, wanted) in to.paths.iter().enumerate() {
        let path = format!("{path}.paths[{index}].value");
        check_path(wanted, &path, findings);
        check_readable(wanted, path, findings);
    }
    for (index, header) in to.headers.iter().enumerate() {
        if header.kind == HeaderMatchKind::RegularExpression {
            check_pattern(&header.value, format!("{path}.headers[{index}].value"), findings);
        } else if header.name.eq_ignore_ascii_case("host") {
            let named = host_of(&header.value);
            if !named.as_ref().is_some_and(|(host, port)| port.is_none() && *host == header.value) {
                let message =
                    "a host is compared in lower case, without port and dot at its end: this is none";
                let fix = match named {
                    Some((host, _)) => format!("write {host}"),
                    None => "write a host as reviews.shop.svc.clusterset.local".to_owned(),
                };
                findings.error("E4005", format!("{path}.headers[{index}].value"), message.to_owned(), fix);
            }
        }
    }
}

/// A path with a percent sign is compared as it is written: one that is encoded otherwise would not match.
fn check_readable(wanted: &PathMatch, path: String, findings: &mut Findings<'_>) {
    if wanted.value.contains('%') {
        let message =
            "the path is compared as it is sent, so another encoding of it does not match".to_owned();
        findings.warning("E4132", path, message, "match on a prefix above it, if that will do".to_owned());
    }
}
