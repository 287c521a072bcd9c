//! PeerAuthentications: one word for each port, and an end that is not far.

use std::collections::BTreeSet;

use hanse_identity::Timestamp;

use super::alone::check_targets;
use super::{Findings, is_here, known_names};
use crate::policy::document::peer::{MAX_PERMISSIVE, PeerAuthentication};
use crate::policy::value::PolicyDuration;
use crate::view::View;

pub(super) fn check(view: &View, policy: &PeerAuthentication, namespace: &str, findings: &mut Findings<'_>) {
    check_targets("targetRefs", &policy.target_refs, namespace, findings);
    for (index, target) in policy.target_refs.iter().enumerate() {
        let service = target.service(namespace);
        if !is_here(view, &service) {
            let message = format!("{service} is not in {} ({})", view.cluster, known_names(view, namespace));
            let fix = "apply it where the service is: its own proxies take the connections".to_owned();
            findings.warning("E4131", format!("spec.targetRefs[{index}].name"), message, fix);
        }
    }
    let mut ports = BTreeSet::new();
    for (index, port) in policy.ports.iter().enumerate() {
        if !ports.insert(port.port) {
            let message = format!("port {} is there twice", port.port);
            let fix = "remove one of them".to_owned();
            findings.error("E4005", format!("spec.ports[{index}].port"), message, fix);
        }
    }
}

/// What only a clock can tell.
pub(super) fn check_time(policy: &PeerAuthentication, now: Timestamp, findings: &mut Findings<'_>) {
    if let Some((index, message)) = policy.trouble(now) {
        let days = MAX_PERMISSIVE.as_secs() / 86_400;
        let fix = format!("write a time within the next {days} days; when it comes near, apply a later one");
        return findings.error("E4141", format!("spec.ports[{index}].until"), message, fix);
    }
    for (index, port) in policy.ports.iter().enumerate() {
        let left = PolicyDuration::new(port.until.get().left(now));
        let message = format!(
            "whoever reaches port {} is let in without an identity, in plain text, for {left}",
            port.port
        );
        let fix = "delete the document as soon as its callers are in the mesh".to_owned();
        findings.warning("E4142", format!("spec.ports[{index}]"), message, fix);
    }
}
