//! ReferenceGrants, and what routes name in other namespaces without one.

use std::collections::BTreeSet;

use super::{Findings, list, percent};
use crate::policy::document::grant::ReferenceGrant;
use crate::policy::document::{PolicyDocument, PolicyKey, PolicyKind, RefKind};
use crate::policy::grant::{Reference, Referrer, lost, references};
use crate::policy::value::near;
use crate::view::View;

/// Kinds whose references a grant permits.
const FROM: [PolicyKind; 4] =
    [PolicyKind::HttpRoute, PolicyKind::GrpcRoute, PolicyKind::TcpRoute, PolicyKind::TlsRoute];

/// What they refer to.
const TO: [RefKind; 3] = [RefKind::Service, RefKind::ServiceImport, RefKind::ExternalService];

/// The grants that there will be when all documents are applied.
pub(super) struct Grants<'v> {
    in_force: Vec<&'v PolicyDocument>,
    /// Grants that are there and get another content.
    replaced: BTreeSet<PolicyKey>,
    /// Namespace, and what a route that stays as it is may name there now and not any more then.
    lost: Vec<(String, String)>,
}

/// What a grant means nothing by, and what it takes away in the place of an earlier one.
pub(super) fn check(
    grants: &Grants<'_>,
    document: &PolicyDocument,
    grant: &ReferenceGrant,
    findings: &mut Findings<'_>,
) {
    for (index, from) in grant.from.iter().enumerate() {
        if !FROM.iter().any(|kind| kind.as_str() == from.kind && kind.group() == from.group) {
            let known = FROM.map(PolicyKind::as_str);
            let (kind, group) = (&from.kind, FROM[0].group());
            unknown(findings, format!("spec.from[{index}]"), kind, known.into(), format!("in group {group}"));
        }
        if from.namespace.as_str() == document.name.namespace() {
            let message = "documents of its own namespace need no grant".to_owned();
            let fix = "name the namespace of the routes; the document is in that of the services".to_owned();
            findings.warning("E4125", format!("spec.from[{index}].namespace"), message, fix);
        }
    }
    for (index, to) in grant.to.iter().enumerate() {
        if !TO.iter().any(|kind| to.is_of(*kind)) {
            let groups = TO.map(|kind| format!("{kind} in {:?}", kind.group())).join(", ");
            let known = TO.map(RefKind::as_str);
            unknown(findings, format!("spec.to[{index}]"), &to.kind, known.into(), format!("({groups})"));
        }
    }
    let namespace = document.name.namespace();
    let lost: Vec<&str> =
        grants.lost.iter().filter(|(n, _)| n == namespace).map(|(_, l)| l.as_str()).collect();
    if !lost.is_empty() && grants.replaced.contains(&document.key()) {
        let message = format!("RefNotPermitted: references that were granted are no longer: {}", list(&lost));
        let fix = "keep their namespace and kind in from, and what they name in to".to_owned();
        findings.warning("E4108", "spec".to_owned(), message, fix);
    }
}

impl<'v> Grants<'v> {
    pub(super) fn of(view: &'v View, documents: &'v [(PolicyDocument, usize)]) -> Self {
        let is_grant = |document: &&PolicyDocument| document.kind() == PolicyKind::ReferenceGrant;
        let applied: BTreeSet<PolicyKey> = documents.iter().map(|(document, _)| document.key()).collect();
        let is_kept = |document: &&PolicyDocument| !applied.contains(&document.key());
        let before: Vec<_> = view.policies.values().filter(is_grant).collect();
        let given = documents.iter().map(|(document, _)| document).filter(is_grant);
        let in_force = before.iter().copied().filter(is_kept).chain(given).collect();
        let replaced: BTreeSet<_> =
            before.iter().map(|grant| grant.key()).filter(|key| applied.contains(key)).collect();
        let mut grants = Self { in_force, replaced, lost: Vec::new() };
        if grants.replaced.is_empty() {
            return grants;
        }
        let lost = lost(view, view.policies.values().filter(is_kept), &grants.in_force);
        let told = lost.into_iter().map(|(route, to)| {
            (to.service.namespace().to_owned(), format!("{route} to {} {}", to.kind, to.service))
        });
        grants.lost.extend(told);
        grants
    }

    fn permit(&self, from: Referrer<'_>, to: &Reference) -> bool {
        from.may_name_by(self.in_force.iter().copied(), to.kind, &to.service)
    }
}

/// Of kinds that are known elsewhere, or of none.
fn unknown(findings: &mut Findings<'_>, path: String, kind: &str, known: Vec<&str>, groups: String) {
    let message = format!("references of that group and kind are none here: nothing is granted for {kind:?}");
    let fix = match near(kind, known.iter().copied()) {
        Some(near) => format!("if it is not meant for others: did you mean {near} {groups}?"),
        None => format!("if it is not meant for others, write {} {groups}", known.join(", ")),
    };
    findings.warning("E4125", path, message, fix);
}

/// What a route names in other namespaces has to be granted there, now or together with it.
pub(super) fn check_references(grants: &Grants<'_>, document: &PolicyDocument, findings: &mut Findings<'_>) {
    let from = Referrer::of(document);
    for to in references(document) {
        if grants.permit(from, &to) {
            continue;
        }
        let streams = matches!(from.kind, PolicyKind::TcpRoute | PolicyKind::TlsRoute);
        let effect = match to.weight {
            None => "nobody would get a copy".to_owned(),
            Some((_, 0)) => "it gets nothing".to_owned(),
            Some((weight, total)) if streams => {
                format!("{} % of the connections would be reset", percent(weight, total))
            }
            Some((weight, total)) => {
                format!("{} % of the rule's requests would get 500", percent(weight, total))
            }
        };
        let (namespace, there) = (from.namespace, to.service.namespace());
        let message = format!(
            "RefNotPermitted: no ReferenceGrant in {there} lets a {} of {namespace} name {} {}: {effect}",
            from.kind, to.kind, to.service
        );
        let fix = format!("apply a ReferenceGrant in namespace {there} with {}", wanted(from, &to));
        findings.warning("E4108", format!("{}.namespace", to.path), message, fix);
    }
}

/// The least that would permit it.
fn wanted(from: Referrer<'_>, to: &Reference) -> String {
    let (kind, namespace, target) = (from.kind, from.namespace, to.kind);
    let group = if target.group().is_empty() { "\"\"" } else { target.group() };
    format!(
        "from: [{{ group: {}, kind: {kind}, namespace: {namespace} }}], to: [{{ group: {group}, kind: {target}, name: {} }}]",
        kind.group(),
        to.service.name()
    )
}

#[cfg(test)]
mod tests;
