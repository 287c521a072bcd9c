//! RequestAuthentications: keys that can be read, headers that may be written, issuers that are one each.

use std::collections::BTreeSet;

use hanse_identity::jwt::user::JwkSet;

use super::alone::check_targets;
use super::edge::check_roots;
use super::{Findings, is_here, known_names};
use crate::policy::document::authentication::{JwtRule, RequestAuthentication};
use crate::policy::value::PolicyDuration;
use crate::reserved::{FRAMING, is_reserved};
use crate::stranger::{LONGEST_INTERVAL, SHORTEST_INTERVAL};
use crate::view::View;

pub(super) fn check(
    view: &View,
    policy: &RequestAuthentication,
    namespace: &str,
    findings: &mut Findings<'_>,
) {
    check_targets("targetRefs", &policy.target_refs, namespace, findings);
    for (index, target) in policy.target_refs.iter().enumerate() {
        let service = target.service(namespace);
        if !is_here(view, &service) {
            let message = format!("{service} is not in {} ({})", view.cluster, known_names(view, namespace));
            let fix = "apply it where the service is: its own proxies read the tokens".to_owned();
            findings.warning("E4131", format!("spec.targetRefs[{index}].name"), message, fix);
        }
    }
    let mut issuers = BTreeSet::new();
    for (index, rule) in policy.jwt_rules.iter().enumerate() {
        let path = format!("spec.jwtRules[{index}]");
        if !issuers.insert(&rule.issuer) {
            let message = format!("issuer {} has a rule already", rule.issuer);
            let fix = "put its audiences and headers into one rule".to_owned();
            findings.error("E4005", format!("{path}.issuer"), message, fix);
        }
        check_rule(rule, &path, findings);
    }
}

/// One source of keys, and nothing about another one.
fn check_keys(rule: &JwtRule, path: &str, findings: &mut Findings<'_>) {
    let sources = [rule.jwks.is_some(), rule.jwks_uri.is_some(), rule.jwks_file.is_some()];
    match sources.iter().filter(|given| **given).count() {
        0 => {
            let fix = "add jwks, jwksUri or jwksFile".to_owned();
            findings.error(
                "E4004",
                path.to_owned(),
                "the rule says nothing of its issuer's keys".to_owned(),
                fix,
            );
        }
        1 => {}
        _ => {
            let message = "the issuer's keys are in more than one place".to_owned();
            let fix = "keep one of jwks, jwksUri and jwksFile".to_owned();
            findings.error("E4005", path.to_owned(), message, fix);
        }
    }
    if let Some(file) = &rule.jwks_file {
        let message = format!("{file} was not sent along");
        let fix = "apply the document with hanse policy apply, or write its content into jwks".to_owned();
        findings.error("E4005", format!("{path}.jwksFile"), message, fix);
    }
    for (name, given) in
        [("jwksRoots", rule.jwks_roots.is_some()), ("jwksRefresh", rule.jwks_refresh.is_some())]
    {
        if given && rule.jwks_uri.is_none() {
            let message = format!("{name} means nothing without jwksUri");
            findings.error("E4005", format!("{path}.{name}"), message, "remove it".to_owned());
        }
    }
    if let Some(roots) = &rule.jwks_roots {
        check_roots(roots, format!("{path}.jwksRoots"), findings);
    }
    let every = rule.jwks_refresh.map(PolicyDuration::get);
    if every.is_some_and(|every| every < SHORTEST_INTERVAL || every > LONGEST_INTERVAL) {
        let message = "keys cannot be fetched that often or that seldom".to_owned();
        findings.error("E4005", format!("{path}.jwksRefresh"), message, "write 5s to 1h".to_owned());
    }
}

fn check_rule(rule: &JwtRule, path: &str, findings: &mut Findings<'_>) {
    if rule.issuer.is_empty() {
        let message = "the issuer is empty".to_owned();
        findings.error("E4005", format!("{path}.issuer"), message, "write its iss to the letter".to_owned());
    }
    check_keys(rule, path, findings);
    if let Some(Err(why)) = rule.jwks.as_ref().map(|jwks| JwkSet::parse(jwks)) {
        let fix = "write the issuer's JWK set as it publishes it: '{\"keys\":[…]}'".to_owned();
        findings.error("E4005", format!("{path}.jwks"), format!("the keys cannot be used: {why}"), fix);
    }
    for (index, from) in rule.from_headers.iter().enumerate() {
        if FRAMING.iter().any(|name| from.name.eq_ignore_ascii_case(name)) || is_reserved(&from.name) {
            let message = format!("{} is not a client's to put a token in", from.name);
            let path = format!("{path}.fromHeaders[{index}].name");
            findings.error("E4005", path, message, "use another header".to_owned());
        }
    }
    for (index, output) in rule.output_claim_to_headers.iter().enumerate() {
        let path = format!("{path}.outputClaimToHeaders[{index}].header");
        let taken = rule.from_headers.iter().any(|from| from.name.eq_ignore_ascii_case(&output.header))
            || rule.from_headers.is_empty() && output.header.eq_ignore_ascii_case("authorization");
        let framing = FRAMING.iter().any(|name| output.header.eq_ignore_ascii_case(name));
        if framing || taken || is_reserved(&output.header) {
            let message =
                format!("{} cannot be made of a claim: it means something else already", output.header);
            findings.error("E4005", path, message, "use a name like x-user".to_owned());
        }
    }
}
