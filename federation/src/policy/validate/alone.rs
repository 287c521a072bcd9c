//! What a document says wrongly by itself, whatever clusters there are.

use std::collections::BTreeSet;

use super::Findings;
use super::filters::check_filters;
use crate::policy::document::retry::RetryPolicy;
use crate::policy::document::{
    BackendPolicy, GrpcRoute, HeaderMatch, HeaderMatchKind, HttpMethod, HttpRoute, LocalityPolicy,
    LocalityPolicyMode, PathMatch, PathMatchKind, QueryMatch, RefKind, RouteMatch, RouteRule, TargetRef,
};
use crate::policy::matching::{PatternError, compile_pattern};
use crate::policy::route::{distinct_headers, distinct_queries, matches_of};
use crate::policy::value::Label;

pub(super) fn check_route(route: &HttpRoute, namespace: &str, findings: &mut Findings<'_>) {
    check_targets("parentRefs", &route.parent_refs, namespace, findings);
    for (index, rule) in route.rules.iter().enumerate() {
        check_rule(rule, &format!("spec.rules[{index}]"), findings);
    }
    check_reached(&route.rules, findings);
}

/// A match by method has to name something.
pub(super) fn check_methods(route: &GrpcRoute, findings: &mut Findings<'_>) {
    for (r, rule) in route.rules.iter().enumerate() {
        for (m, method) in
            rule.matches.iter().enumerate().filter_map(|(m, one)| Some((m, one.method.as_ref()?)))
        {
            if [&method.service, &method.method].into_iter().flatten().all(String::is_empty) {
                let message = "the match names neither a service nor a method".to_owned();
                let fix = "add service, method, or both; or remove method to match every call".to_owned();
                findings.error("E4004", format!("spec.rules[{r}].matches[{m}].method"), message, fix);
            }
        }
    }
}

pub(super) fn check_policy(policy: &BackendPolicy, namespace: &str, findings: &mut Findings<'_>) {
    check_targets("targetRefs", &policy.target_refs, namespace, findings);
    let outlier = policy.health.as_ref().and_then(|health| health.outlier.as_ref());
    if outlier.is_some_and(|outlier| outlier.interval.is_some()) {
        let message = "interval has no effect: failures are counted as they come".to_owned();
        findings.warning("E4125", "spec.health.outlier.interval".to_owned(), message, "remove it".to_owned());
    }
    if let Some(retry) = &policy.retry {
        check_retry(retry, findings);
    }
    super::balance::check(policy, findings);
    if let Some(locality) = &policy.locality {
        check_mode(locality, findings);
        check_failover(locality, findings);
        check_distribute(locality, findings);
        if locality.open_next_tier_below.is_some_and(|share| share.permille() == 0) {
            let message = "no share is below 0%: the next tier would never open".to_owned();
            let fix = "write openNextTierBelow: 70%, or mode: LocalOnly if that is meant".to_owned();
            findings.warning("E4115", "spec.locality.openNextTierBelow".to_owned(), message, fix);
        }
    }
}

/// Words that say nothing, or that something else takes back.
fn check_retry(retry: &RetryPolicy, findings: &mut Findings<'_>) {
    if retry.attempts == Some(0) && (retry.on.is_some() || retry.budget.is_some()) {
        let message = "with attempts: 0 nothing is tried again, so on and budget have no effect".to_owned();
        findings.warning("E4133", "spec.retry.attempts".to_owned(), message, "remove them".to_owned());
    }
    if retry.per_try_timeout.is_some_and(|limit| limit.is_zero()) {
        let message = "a timeout of 0s is none, as without it".to_owned();
        findings.warning("E4133", "spec.retry.perTryTimeout".to_owned(), message, "remove it".to_owned());
    }
}

pub(super) fn check_targets(
    field: &str,
    targets: &[TargetRef],
    namespace: &str,
    findings: &mut Findings<'_>,
) {
    for (index, target) in targets.iter().enumerate() {
        let path = format!("spec.{field}[{index}]");
        check_group(&target.group, target.kind, &path, findings);
        if target.section_name.is_some() && target.kind != RefKind::Gateway {
            let message = "only Gateways have sections".to_owned();
            let fix = "leave it out: a service has one port for HTTP".to_owned();
            findings.error("E4125", format!("{path}.sectionName"), message, fix);
        }
        check_namespace(target.namespace.as_ref(), namespace, &path, findings);
    }
}

/// The same document has to mean the same thing in Kubernetes, where a kind without its group is another kind.
pub(super) fn check_group(group: &str, kind: RefKind, path: &str, findings: &mut Findings<'_>) {
    if group == kind.group() || (kind == RefKind::Service && group == "core") {
        return;
    }
    let wanted = if kind.group().is_empty() { "\"\"" } else { kind.group() };
    let message = format!("{kind} is not in group {group:?}");
    findings.error("E4005", format!("{path}.group"), message, format!("write group: {wanted}"));
}

/// What a document is for is in its own namespace: no ReferenceGrant changes that.
fn check_namespace(other: Option<&Label>, namespace: &str, path: &str, findings: &mut Findings<'_>) {
    if let Some(other) = other.filter(|other| other.as_str() != namespace) {
        let message = format!("a document of namespace {namespace} has no say over what is in {other}");
        let fix = format!("put the document into namespace {other}, with the service");
        findings.error("E4108", format!("{path}.namespace"), message, fix);
    }
}

fn check_rule(rule: &RouteRule, path: &str, findings: &mut Findings<'_>) {
    for (index, wanted) in rule.matches.iter().enumerate() {
        let path = format!("{path}.matches[{index}]");
        if let Some(wanted) = &wanted.path {
            check_path(wanted, &format!("{path}.path.value"), findings);
        }
        for (index, header) in wanted.headers.iter().enumerate() {
            if header.kind == HeaderMatchKind::RegularExpression {
                check_pattern(&header.value, format!("{path}.headers[{index}].value"), findings);
            }
        }
        for (index, query) in wanted.query_params.iter().enumerate() {
            if query.kind == HeaderMatchKind::RegularExpression {
                check_pattern(&query.value, format!("{path}.queryParams[{index}].value"), findings);
            }
        }
    }
    check_filters(rule, path, findings);
    if !rule.backend_refs.is_empty() && rule.backend_refs.iter().all(|backend| backend.weight == 0) {
        let message = "the weights sum to 0: every request of the rule would get 500".to_owned();
        let fix = "give at least one backend a weight above 0".to_owned();
        findings.error("E4105", format!("{path}.backendRefs"), message, fix);
    }
    for (index, backend) in rule.backend_refs.iter().enumerate() {
        let path = format!("{path}.backendRefs[{index}]");
        check_group(&backend.group, backend.kind, &path, findings);
    }
    let timeouts = rule.timeouts.unwrap_or_default();
    if let (Some(request), Some(attempt)) = (timeouts.request, timeouts.backend_request)
        && !request.is_zero()
        && (attempt.is_zero() || attempt > request)
    {
        let shown = if attempt.is_zero() { "none (0s)".to_owned() } else { attempt.to_string() };
        let message = format!("one attempt may take longer ({shown}) than the whole request ({request})");
        let fix = format!("write backendRequest: {request} or less");
        findings.error("E4110", format!("{path}.timeouts.backendRequest"), message, fix);
    }
}

/// The rules of Gateway API's HTTPPathMatch.
pub(super) fn check_path(wanted: &PathMatch, path: &str, findings: &mut Findings<'_>) {
    let value = wanted.value.as_str();
    if wanted.kind == PathMatchKind::RegularExpression {
        check_pattern(value, path.to_owned(), findings);
        return;
    }
    if !value.starts_with('/') {
        let (message, fix) = (format!("the path {value:?} does not start with /"), format!("write /{value}"));
        findings.error("E4005", path.to_owned(), message, fix);
    }
    let lower = value.to_ascii_lowercase();
    let inside = ["//", "/./", "/../", "%2f", "#", "?"].into_iter().find(|bad| lower.contains(bad));
    let bad = inside.or_else(|| ["/..", "/."].into_iter().find(|end| lower.ends_with(end)));
    if let Some(bad) = bad {
        let message =
            format!("the path {value:?} has {bad:?} in it, which no request's path has when it is matched");
        findings.error("E4005", path.to_owned(), message, "write the path without it".to_owned());
    }
}

pub(super) fn check_pattern(pattern: &str, path: String, findings: &mut Findings<'_>) {
    match compile_pattern(pattern) {
        Ok(_) => {}
        Err(PatternError::Syntax(why)) => {
            findings.error(
                "E4005",
                path,
                format!("the regular expression cannot be read: {why}"),
                String::new(),
            );
        }
        Err(costly @ (PatternError::TooLong | PatternError::TooCostly)) => {
            let fix = "use smaller repetitions and ASCII classes, or a prefix".to_owned();
            findings.error("E4104", path, format!("the regular expression is too costly: {costly}"), fix);
        }
    }
}

/// A match that an earlier rule has in the same words is never reached.
fn check_reached(rules: &[RouteRule], findings: &mut Findings<'_>) {
    let mut earlier: Vec<(MatchKey, usize)> = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let keys: Vec<MatchKey> = matches_of(rule).iter().map(match_key).collect();
        let by: Vec<Option<usize>> =
            keys.iter().map(|key| earlier.iter().find(|(k, _)| k == key).map(|(_, rule)| *rule)).collect();
        if let Some(first) = by.iter().flatten().next()
            && by.iter().all(Option::is_some)
        {
            let name = |i: usize| rules[i].name.clone().unwrap_or_else(|| format!("#{i}"));
            let message = format!(
                "rule {} is never reached: rule {} matches the same requests before it",
                name(index),
                name(*first)
            );
            let fix = "remove it, or make its matches narrower".to_owned();
            findings.warning("E4103", format!("spec.rules[{index}]"), message, fix);
        }
        earlier.extend(keys.into_iter().map(|key| (key, index)));
    }
}

/// What a match comes to, whatever the order and case in which it is written.
type MatchKey = (PathMatchKind, String, Option<HttpMethod>, ValueKeys, ValueKeys);

/// Name, how the value is compared, value.
type ValueKeys = BTreeSet<(String, HeaderMatchKind, String)>;

fn match_key(wanted: &RouteMatch) -> MatchKey {
    let path = wanted.path.clone().unwrap_or_else(PathMatch::everything);
    let value = match path.kind {
        PathMatchKind::PathPrefix => path.value.trim_end_matches('/').to_owned(),
        _ => path.value,
    };
    let header = |h: &HeaderMatch| (h.name.to_ascii_lowercase(), h.kind, h.value.clone());
    let query = |q: &QueryMatch| (q.name.clone(), q.kind, q.value.clone());
    let headers = distinct_headers(wanted).map(header).collect();
    (path.kind, value, wanted.method, headers, distinct_queries(wanted).map(query).collect())
}

/// A list that its mode does not read would be dropped without a word.
fn check_mode(locality: &LocalityPolicy, findings: &mut Findings<'_>) {
    let mut unread = |field: &str, mode: &str| {
        let message = format!("{field} is not read in mode {:?}", locality.mode);
        findings.error(
            "E4005",
            format!("spec.locality.{field}"),
            message,
            format!("write mode: {mode}, or remove {field}"),
        );
    };
    if locality.mode != LocalityPolicyMode::Distribute && !locality.distribute.is_empty() {
        unread("distribute", "Distribute");
    }
    if locality.mode != LocalityPolicyMode::Failover && !locality.failover.is_empty() {
        unread("failover", "Failover");
    }
    if locality.mode == LocalityPolicyMode::Distribute && locality.distribute.is_empty() {
        let fix = "add distribute: [{ from: west, to: { west: 80, east: 20 } }]".to_owned();
        let message = "mode Distribute needs distribute".to_owned();
        findings.error("E4004", "spec.locality.mode".to_owned(), message, fix);
    }
}

fn check_failover(locality: &LocalityPolicy, findings: &mut Findings<'_>) {
    let mut callers = BTreeSet::new();
    for (f, order) in locality.failover.iter().enumerate() {
        let path = format!("spec.locality.failover[{f}]");
        if !callers.insert(&order.from) {
            let message = format!("{} has an order already", order.from);
            findings.error(
                "E4112",
                format!("{path}.from"),
                message,
                "put all its clusters into one order".to_owned(),
            );
        }
        let mut named = BTreeSet::new();
        for (t, to) in order.to.iter().enumerate() {
            let message = if *to == order.from {
                format!("{to} fails over to itself")
            } else if !named.insert(to) {
                format!("{to} is in the order twice")
            } else {
                continue;
            };
            findings.error("E4112", format!("{path}.to[{t}]"), message, format!("remove {to} from the list"));
        }
    }
}

fn check_distribute(locality: &LocalityPolicy, findings: &mut Findings<'_>) {
    let mut callers = BTreeSet::new();
    for (d, shares) in locality.distribute.iter().enumerate() {
        let path = format!("spec.locality.distribute[{d}]");
        if !callers.insert(&shares.from) {
            let message = format!("{} has shares already", shares.from);
            findings.error(
                "E4114",
                format!("{path}.from"),
                message,
                "put all its shares into one entry".to_owned(),
            );
        }
        let sum: u32 = shares.to.values().sum();
        if sum != 100 {
            let message = format!("the shares of {} sum to {sum}, not 100", shares.from);
            let fix = match sum.cmp(&100) {
                std::cmp::Ordering::Less => format!("{} more to give", 100 - sum),
                _ => format!("{} too many", sum - 100),
            };
            findings.error("E4114", format!("{path}.to"), message, fix);
        }
    }
}
