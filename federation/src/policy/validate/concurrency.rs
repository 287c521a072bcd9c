//! Adaptive limits: bounds that leave room, and rules that decide something.

use std::time::Duration;

use super::access::check_from;
use super::alone::{check_path, check_pattern};
use super::{Findings, is_here, known_names};
use crate::policy::concurrency::DEFAULT_MAX_LIMIT;
use crate::policy::document::concurrency::{Priority, PriorityRule};
use crate::policy::document::{BackendPolicy, HeaderMatchKind, RefKind};
use crate::view::View;

/// More often than this the app would be measured more than used.
const SHORTEST_REMEASURE: Duration = Duration::from_secs(5);

pub(super) fn check(view: &View, policy: &BackendPolicy, namespace: &str, findings: &mut Findings<'_>) {
    let Some(concurrency) = policy.limits.as_ref().and_then(|limits| limits.concurrency.as_ref()) else {
        return;
    };
    let path = "spec.limits.concurrency";
    for (index, target) in policy.target_refs.iter().enumerate() {
        let service = target.service(namespace);
        let at = format!("spec.targetRefs[{index}].name");
        if target.kind == RefKind::ExternalService {
            let message = format!("{service} is outside: no proxy of ours is before it to keep the limit");
            findings.error("E4135", at, message, "limit what is sent there by limits.maxRequests".to_owned());
        } else if !is_here(view, &service) {
            let message = format!("{service} is not in {} ({})", view.cluster, known_names(view, namespace));
            let fix = "apply it where the service is: its own proxies keep the limit".to_owned();
            findings.warning("E4131", at, message, fix);
        }
    }
    let (min, max) = (concurrency.min_limit, concurrency.max_limit);
    let most = max.unwrap_or(DEFAULT_MAX_LIMIT);
    if let Some(least) = min.filter(|least| *least > most) {
        let usual = if max.is_none() { " where nobody says" } else { "" };
        let message = format!("minLimit is {least} and maxLimit {most}{usual}");
        let fix = format!("write a minLimit of {most} or less, or a higher maxLimit");
        findings.error("E4135", format!("{path}.minLimit"), message, fix);
    }
    if concurrency.remeasure.is_some_and(|remeasure| remeasure.get() < SHORTEST_REMEASURE) {
        let message = "more often than every 5s the app would be measured more than used".to_owned();
        findings.error("E4135", format!("{path}.remeasure"), message, "write remeasure: 60s".to_owned());
    }
    for (index, rule) in concurrency.priorities.iter().enumerate() {
        check_rule(view, rule, &format!("{path}.priorities[{index}]"), findings);
    }
    let all = |rule: &PriorityRule| rule.from.is_none() && rule.to.is_none();
    if let Some(index) =
        concurrency.priorities.iter().position(all).filter(|index| index + 1 < concurrency.priorities.len())
    {
        let message = "this rule matches every request, so those after it are never reached".to_owned();
        findings.error("E4103", format!("{path}.priorities[{index}]"), message, "write it last".to_owned());
    }
}

fn check_rule(view: &View, rule: &PriorityRule, path: &str, findings: &mut Findings<'_>) {
    if let Some(from) = &rule.from {
        check_from(view, from, &format!("{path}.from"), findings);
    }
    let proven =
        rule.from.as_ref().is_some_and(|from| !(from.identities.is_empty() && from.namespaces.is_empty()));
    if rule.priority == Priority::Exempt && !proven {
        let message = "whoever writes such a request is never refused, whatever the app can bear".to_owned();
        let fix = "add from with the identities that may, or write priority: Critical".to_owned();
        findings.warning("E4135", format!("{path}.priority"), message, fix);
    }
    let Some(to) = &rule.to else { return };
    if !to.ports.is_empty() {
        let message = "ports are of plain TCP, and requests are on none of them".to_owned();
        findings.error("E4135", format!("{path}.to.ports"), message, "remove ports".to_owned());
    }
    for (index, wanted) in to.paths.iter().enumerate() {
        check_path(wanted, &format!("{path}.to.paths[{index}].value"), findings);
    }
    for (index, header) in to.headers.iter().enumerate() {
        if header.kind == HeaderMatchKind::RegularExpression {
            check_pattern(&header.value, format!("{path}.to.headers[{index}].value"), findings);
        }
    }
}
