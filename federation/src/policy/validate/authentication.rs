//! RequestAuthentications: keys that can be read, headers that may be written, issuers that are one each.

use std::collections::BTreeSet;

use hanse_identity::jwt::user::JwkSet;

use super::alone::check_targets;
use super::filters::FRAMING;
use super::{Findings, is_here, known_names};
use crate::policy::document::authentication::{JwtRule, RequestAuthentication};
use crate::reserved::is_reserved;
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

fn check_rule(rule: &JwtRule, path: &str, findings: &mut Findings<'_>) {
    if rule.issuer.is_empty() {
        let message = "the issuer is empty".to_owned();
        findings.error("E4005", format!("{path}.issuer"), message, "write its iss to the letter".to_owned());
    }
    if let Err(why) = JwkSet::parse(&rule.jwks) {
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
