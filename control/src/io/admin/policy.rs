//! Policies: applied from text, validated here against the View, all or nothing.

use hanse_federation::View;
use hanse_federation::policy::{Diagnostic, PolicyDocument, Severity, parse, validate};
use tonic::Status;

use super::Call;
use crate::admin::{
    Listing, PolicyAction, PolicyApplyReply, PolicyApplyRequest, PolicyDeleteRequest, PolicyEffect,
    PolicyGetRequest, PolicyItem, PolicyValidateReply, PolicyValidateRequest, Written,
};
use crate::command::{Command, Refusal};
use crate::io::status::{no_outcome, refused};

/// Largest text that is read.
const MAX_TEXT_BYTES: usize = 2 << 20;

pub async fn apply(call: Call, request: PolicyApplyRequest) -> Result<PolicyApplyReply, Status> {
    bounded(&request.text)?;
    // A write: validated against a State that has everything acknowledged before it, or not at all.
    call.context.handle.read().await.map_err(|e| no_outcome(&e))?;
    let reading = call.read().await;
    let (documents, diagnostics) = checked(&reading.state.view, &request.file, &request.text);
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
    bounded(&request.text)?;
    let reading = call.read().await;
    let (documents, diagnostics) = checked(&reading.state.view, &request.file, &request.text);
    Ok(PolicyValidateReply {
        meta: reading.meta,
        ok: !has_error(&diagnostics),
        documents: documents.len(),
        diagnostics,
    })
}

fn bounded(text: &str) -> Result<(), Status> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Status::invalid_argument(format!("the text is longer than {MAX_TEXT_BYTES} bytes")));
    }
    Ok(())
}

/// The documents of a text, and all that is wrong with them.
fn checked(view: &View, file: &str, text: &str) -> (Vec<PolicyDocument>, Vec<Diagnostic>) {
    match parse(file, text) {
        Ok(documents) => {
            let diagnostics = validate(view, file, &documents);
            (documents.into_iter().map(|(document, _)| document).collect(), diagnostics)
        }
        Err(diagnostics) => (Vec::new(), diagnostics),
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
    let reading = call.read().await;
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
        .map(|d| PolicyItem { key: d.key(), created: d.created, document: d.to_json() })
        .collect();
    match &request.name {
        Some(name) if items.is_empty() => {
            let kind = request.kind.map_or("policy".to_owned(), |kind| kind.to_string());
            Err(refused(&Refusal::NotFound { what: format!("{kind} {name}") }))
        }
        _ => Ok(Listing { meta: reading.meta, items, warnings: reading.warnings }),
    }
}

pub async fn delete(call: Call, request: PolicyDeleteRequest) -> Result<Written, Status> {
    call.written(Command::PolicyDelete { keys: request.keys }).await
}
