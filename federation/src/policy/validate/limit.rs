//! RateLimits: that a limit lets anything through, and that what names its buckets is there.

use std::collections::BTreeSet;
use std::time::Duration;

use super::alone::check_targets;
use super::{Findings, is_here, known_names};
use crate::policy::document::limit::{LimitBy, MAX_PER_SECONDS, RateLimit, RequestLimit};
use crate::policy::value::PolicyDuration;
use crate::view::View;

pub(super) fn check(view: &View, policy: &RateLimit, namespace: &str, findings: &mut Findings<'_>) {
    check_targets("targetRefs", &policy.target_refs, namespace, findings);
    for (index, target) in policy.target_refs.iter().enumerate() {
        let service = target.service(namespace);
        if !is_here(view, &service) {
            let message = format!("{service} is not in {} ({})", view.cluster, known_names(view, namespace));
            let fix = "apply it where the service is: its own proxies keep the limit".to_owned();
            findings.warning("E4131", format!("spec.targetRefs[{index}].name"), message, fix);
        }
    }
    let mut names = BTreeSet::new();
    for (index, limit) in policy.limits.iter().enumerate() {
        let path = format!("spec.limits[{index}]");
        if let Some(name) = limit.name.as_ref().filter(|name| !names.insert(*name)) {
            let message =
                format!("two limits are named {name}: who reads the metrics could not tell them apart");
            findings.error("E4005", format!("{path}.name"), message, "give one another name".to_owned());
        }
        check_limit(limit, &path, findings);
    }
}

fn check_limit(limit: &RequestLimit, path: &str, findings: &mut Findings<'_>) {
    let longest = PolicyDuration::new(Duration::from_secs(MAX_PER_SECONDS));
    if limit.per.is_zero() || limit.per > longest {
        let message = format!("per is {}; it has to be 1ms to {longest}", limit.per);
        findings.error("E4005", format!("{path}.per"), message, "write per: 1s".to_owned());
    }
    match (limit.by, &limit.header) {
        (LimitBy::Header, None) => {
            let message = "a limit by header names none".to_owned();
            findings.error("E4004", path.to_owned(), message, "add header: x-tenant".to_owned());
        }
        (LimitBy::Service | LimitBy::Identity, Some(_)) => {
            let message = "header is not read without by: Header".to_owned();
            findings.error(
                "E4005",
                format!("{path}.header"),
                message,
                "add by: Header, or remove it".to_owned(),
            );
        }
        _ => {}
    }
}
