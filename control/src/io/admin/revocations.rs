//! Revocations in force: one of them shown with its receipt, clearing, the published revocation lists.

use hanse_identity::{Bundle, Reason, Revocation, RevocationId, RevocationTarget};
use tonic::Status;

use super::Call;
use super::revoke::receipt;
use crate::admin::{
    Listing, PublishedList, RevokeClearRequest, RevokeCleared, RevokeExportRequest, RevokeShowRequest,
    RevokeShown, Tally,
};
use crate::command::{Answer, Command, Refusal};
use crate::io::status::refused;
use crate::state::State;
use crate::state::revocations::MAX_CLEARED;

pub async fn show(call: Call, request: RevokeShowRequest) -> Result<RevokeShown, Status> {
    let reading = call.read().await;
    let receipt = receipt(&call.context, &reading.state, &request.id).await?;
    let revocation = known(&reading.state, &request.id)?.clone();
    let committed = call.context.revisions.of(&reading.state.view, &request.id);
    Ok(RevokeShown {
        can_be_lifted: revocation.can_be_lifted(),
        lists: committed.and_then(|revision| listed(&reading.state, &revocation, revision)),
        receipt,
        revocation,
        meta: reading.meta,
        warnings: reading.warnings,
    })
}

fn known<'s>(state: &'s State, id: &RevocationId) -> Result<&'s Revocation, Status> {
    let unknown = || refused(&Refusal::NotFound { what: format!("revocation {id}") });
    state.view.revocations.get(id).ok_or_else(unknown)
}

/// How many lists of the revocation's own trust domain are as new as it is, if they have anything of it to name.
fn listed(state: &State, revocation: &Revocation, revision: u64) -> Option<Tally> {
    let own = &state.view.trust_domain;
    let named = !revocation.serials.is_empty() || matches!(revocation.target, RevocationTarget::Serial(_));
    if !named || revocation.id.origin != *own {
        return None;
    }
    let crls = state.view.crls.get(own);
    let authorities = state.view.bundles.get(own).map(Bundle::trusted).into_iter().flatten();
    Some(authorities.fold(Tally::default(), |tally, authority| {
        let crl = crls.and_then(|crls| crls.get(&authority.key_id));
        let enforced = crl.is_some_and(|crl| crl.number >= revision);
        Tally { enforced: tally.enforced + usize::from(enforced), total: tally.total + 1 }
    }))
}

pub async fn clear(call: Call, request: RevokeClearRequest) -> Result<RevokeCleared, Status> {
    let state = call.read().await.state;
    let compromised = request.include_compromised;
    let (ids, kept) = if request.all { all(&state, compromised) } else { (request.ids, 0) };
    if ids.is_empty() && !request.all {
        return Err(Status::invalid_argument("name revocations to clear, or all of them"));
    }
    for id in &ids {
        known(&state, id)?;
    }
    let mut cleared = RevokeCleared { revision: 0, cleared: 0, kept };
    // Nothing to clear is written too: the audit trail says that it was asked for.
    let mut rest = ids.as_slice();
    loop {
        let (some, more) = rest.split_at(rest.len().min(MAX_CLEARED));
        let command = Command::RevocationsClear { ids: some.to_vec(), compromised };
        let (revision, answer) = call.write(command).await?;
        cleared.revision = revision;
        cleared.cleared += if answer == Answer::Already { 0 } else { some.len() };
        if more.is_empty() {
            return Ok(cleared);
        }
        rest = more;
    }
}

/// Every revocation of our own that may be cleared, and how many may not.
fn all(state: &State, compromised: bool) -> (Vec<RevocationId>, usize) {
    let own = state.view.revocations.iter().filter(|r| r.id.origin == state.view.trust_domain);
    let (cleared, kept): (Vec<&Revocation>, Vec<&Revocation>) =
        own.partition(|r| compromised || r.reason != Reason::KeyCompromise);
    (cleared.into_iter().map(|r| r.id.clone()).collect(), kept.len())
}

pub async fn export(call: Call, request: RevokeExportRequest) -> Result<Listing<PublishedList>, Status> {
    let mut reading = call.read().await;
    let state = reading.state.clone();
    let trust_domain = request.trust_domain.unwrap_or_else(|| state.view.trust_domain.clone());
    let Some(bundle) = state.view.bundles.get(&trust_domain) else {
        return Err(refused(&Refusal::NotFound { what: format!("a bundle of {trust_domain}") }));
    };
    let crls = state.view.crls.get(&trust_domain);
    let mut items = Vec::new();
    for authority in bundle.trusted() {
        let Some(crl) = crls.and_then(|crls| crls.get(&authority.key_id)) else {
            let message = format!("authority {} ({}) has no list", authority.subject, authority.key_id);
            reading.partial("E2302", message);
            continue;
        };
        let entries = crl.entries().map_err(|e| Status::internal(format!("a published list: {e}")))?;
        items.push(PublishedList {
            trust_domain: trust_domain.clone(),
            subject: authority.subject.clone(),
            entries: entries.len(),
            crl: crl.clone(),
        });
    }
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}
