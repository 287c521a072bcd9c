//! Policies: applied from text, validated here against the View, all or nothing.

use std::collections::BTreeMap;

use hanse_federation::View;
use hanse_federation::policy::authentication::KeySource;
use hanse_federation::policy::{Diagnostic, PolicyDocument, PolicySpec, Severity, in_time, parse, validate};
use hanse_identity::jwt::user::{JwkSet, MAX_JWKS_BYTES};
use tonic::Status;

use super::{Call, Reading};
use crate::admin::{
    IssuerKeys, Listing, PolicyAction, PolicyApplyReply, PolicyApplyRequest, PolicyDeleteRequest,
    PolicyEffect, PolicyGetRequest, PolicyItem, PolicyValidateReply, PolicyValidateRequest, Warning, Written,
};
use crate::command::{Command, Refusal};
use crate::io::census::{Part, Query, gather};
use crate::io::context::now;
use crate::io::issuers::IssuerReport;
use crate::io::status::{no_outcome, refused};

/// Largest text that is read.
const MAX_TEXT_BYTES: usize = 2 << 20;

pub async fn apply(call: Call, request: PolicyApplyRequest) -> Result<PolicyApplyReply, Status> {
    bounded(&request.text, &request.files)?;
    // A write: validated against a State that has everything acknowledged before it, or not at all.
    call.context.handle.read().await.map_err(|e| no_outcome(&e))?;
    let reading = call.read().await;
    let (documents, diagnostics) =
        checked(&reading.state.view, &request.file, &request.text, &request.files)?;
    let mut reply = PolicyApplyReply {
        meta: reading.meta,
        applied: false,
        revision: None,
        items: documents.iter().map(|document| effect(&reading.state.view, document)).collect(),
        diagnostics,
    };
    if request.dry_run || documents.is_empty() || has_error(&reply.diagnostics) {
        return Ok(reply);
    }
    let (revision, _) = call.write(Command::PolicyApply { documents }).await?;
    reply.applied = true;
    reply.revision = Some(revision);
    Ok(reply)
}

pub async fn check(call: Call, request: PolicyValidateRequest) -> Result<PolicyValidateReply, Status> {
    bounded(&request.text, &request.files)?;
    let reading = call.read().await;
    let (documents, diagnostics) =
        checked(&reading.state.view, &request.file, &request.text, &request.files)?;
    Ok(PolicyValidateReply {
        meta: reading.meta,
        ok: !has_error(&diagnostics),
        documents: documents.len(),
        diagnostics,
    })
}

fn bounded(text: &str, files: &BTreeMap<String, String>) -> Result<(), Status> {
    let files: usize = files.values().map(String::len).sum();
    if text.len() + files > MAX_TEXT_BYTES {
        return Err(Status::invalid_argument(format!("the text is longer than {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

/// The documents of a text, and all that is wrong with them.
fn checked(
    view: &View,
    file: &str,
    text: &str,
    files: &BTreeMap<String, String>,
) -> Result<(Vec<PolicyDocument>, Vec<Diagnostic>), Status> {
    match parse(file, text) {
        Ok(mut documents) => {
            put_in_files(&mut documents, files)?;
            let mut diagnostics = validate(view, file, &documents);
            diagnostics.extend(in_time(file, &documents, now()));
            Ok((documents.into_iter().map(|(document, _)| document).collect(), diagnostics))
        }
        Err(diagnostics) => Ok((Vec::new(), diagnostics)),
    }
}

fn has_error(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|d| d.severity == Severity::Error)
}

fn effect(view: &View, document: &PolicyDocument) -> PolicyEffect {
    let key = document.key();
    let action = match view.policies.get(&key) {
        None => PolicyAction::Created,
        Some(known) if known.spec == document.spec => PolicyAction::Unchanged,
        Some(_) => PolicyAction::Changed,
    };
    PolicyEffect { key, action }
}

pub async fn get(call: Call, request: PolicyGetRequest) -> Result<Listing<PolicyItem>, Status> {
    let (mut reading, fetches) = issuers(&call).await;
    let wanted = |document: &&PolicyDocument| {
        request.kind.is_none_or(|kind| document.kind() == kind)
            && request.name.as_ref().is_none_or(|name| document.name == *name)
    };
    let items: Vec<PolicyItem> = reading
        .state
        .view
        .policies
        .values()
        .filter(wanted)
        .map(|d| PolicyItem {
            key: d.key(),
            created: d.created,
            document: d.to_json(),
            issuers: fetched_for(&reading.state.view, d, &fetches),
        })
        .collect();
    reading.permissive();
    reading.not_permitted();
    for item in &items {
        reading.warnings.extend(item.issuers.iter().filter_map(|issuer| stale(item, issuer)));
    }
    match &request.name {
        Some(name) if items.is_empty() => {
            let kind = request.kind.map_or("policy".to_owned(), |kind| kind.to_string());
            Err(refused(&Refusal::NotFound { what: format!("{kind} {name}") }))
        }
        _ => Ok(Listing { meta: reading.meta, items, warnings: reading.warnings }),
    }
}

/// The State, and what nodes say of their fetches where any document has keys fetched.
async fn issuers(call: &Call) -> (Reading, Vec<IssuerReport>) {
    let reading = call.read().await;
    if KeySource::all(&reading.state.view).is_empty() {
        return (reading, Vec::new());
    }
    let gathered = gather(&call.context, &Query::Issuers).await;
    let reports = gathered.parts.into_iter().filter_map(|(_, part)| match part {
        Part::Issuers(reports) => Some(reports),
        _ => None,
    });
    let reports = reports.flatten().collect();
    (reading, reports)
}

/// Of what nodes know of each source that the document names, the newest.
fn fetched_for(view: &View, document: &PolicyDocument, fetches: &[IssuerReport]) -> Vec<IssuerKeys> {
    let PolicySpec::RequestAuthentication(spec) = &document.spec else { return Vec::new() };
    let named = spec.jwt_rules.iter().filter_map(|rule| Some((rule, KeySource::of(rule)?)));
    named
        .map(|(rule, source)| {
            let id = source.id();
            let of = || fetches.iter().filter(|report| report.source == id);
            let last = of().max_by_key(|report| (report.attempted, report.succeeded));
            IssuerKeys {
                issuer: rule.issuer.clone(),
                url: source.url,
                keys: view
                    .issuer_keys
                    .get(&id)
                    .map_or(0, |jwks| JwkSet::parse(jwks).map_or(0, |set| set.len())),
                fetched: of().filter_map(|report| report.succeeded).max(),
                error: last.and_then(|report| report.error.clone()),
            }
        })
        .collect()
}

fn stale(item: &PolicyItem, issuer: &IssuerKeys) -> Option<Warning> {
    let error = issuer.error.as_ref()?;
    let IssuerKeys { url, fetched, .. } = issuer;
    let kept = match (issuer.keys, fetched) {
        (0, _) => "there are none, and no token of this issuer is believed".to_owned(),
        (_, Some(at)) => format!("those of {at} stay in force"),
        (_, None) => "those that were fetched before stay in force".to_owned(),
    };
    let message = format!("{}: the keys at {url} could not be fetched ({error}): {kept}", item.key);
    Some(Warning { code: "E4140".to_owned(), message })
}

/// `jwksFile` is the sender's: what it names has come along, and is kept as if it had been written into the document. As
/// often as rules name it: together no more than a text may have.
fn put_in_files(
    documents: &mut [(PolicyDocument, usize)],
    files: &BTreeMap<String, String>,
) -> Result<(), Status> {
    let mut bytes = 0;
    for (document, _) in documents {
        let PolicySpec::RequestAuthentication(spec) = &mut document.spec else { continue };
        for rule in &mut spec.jwt_rules {
            let Some(file) = &rule.jwks_file else { continue };
            let (Some(content), None) = (files.get(file), &rule.jwks) else { continue };
            if content.len() > MAX_JWKS_BYTES {
                let (has, most) = (content.len(), MAX_JWKS_BYTES);
                let why = format!("{file} has {has} bytes, of a key set at most {most} are read");
                return Err(Status::invalid_argument(why));
            }
            bytes += content.len();
            if bytes > MAX_TEXT_BYTES {
                let why = format!(
                    "the key sets that rules name by jwksFile are longer than {MAX_TEXT_BYTES} bytes together, each \
                     counted as often as it is named: apply fewer documents at once, or publish the keys and name \
                     their jwksUri"
                );
                return Err(Status::invalid_argument(why));
            }
            rule.jwks = Some(content.clone());
            rule.jwks_file = None;
        }
    }
    Ok(())
}

pub async fn delete(call: Call, request: PolicyDeleteRequest) -> Result<Written, Status> {
    call.written(Command::PolicyDelete { keys: request.keys }).await
}
