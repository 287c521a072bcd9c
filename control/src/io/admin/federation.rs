//! `trust federate` and `trust federation list|show|refresh|delete`.

use std::collections::BTreeMap;

use hanse_federation::stranger::Stranger;
use hanse_identity::TrustDomain;
use tonic::Status;

use super::{Call, Reading};
use crate::admin::{
    FederationDeleteRequest, FederationItem, FederationListRequest, FederationPutRequest,
    FederationRefreshRequest, FederationState, Listing, Written,
};
use crate::command::{Command, Refusal};
use crate::io::census::{Part, Query, gather};
use crate::io::status::{no_outcome, refused};
use crate::io::strangers::{LookError, StrangerReport, freshest, look};

pub async fn put(call: Call, request: FederationPutRequest) -> Result<Written, Status> {
    let bundle = request.read_bundle().map_err(|e| refused(&Refusal::Invalid(format!("the bundle: {e}"))))?;
    // JWT keys name no trust domain, certificates do: without one of them it may be anybody's bundle. And an empty set
    // says that every key is revoked; nobody means to begin with that.
    if bundle.as_ref().is_some_and(|b| b.authorities.is_empty()) {
        let domain = &request.federation.trust_domain;
        let why = format!("the bundle has no X.509 authority of {domain} that can be used");
        return Err(refused(&Refusal::Invalid(why)));
    }
    let command =
        Command::FederationPut { federation: Box::new(request.federation), bundle: bundle.map(Box::new) };
    call.written(command).await
}

pub async fn list(call: Call, request: FederationListRequest) -> Result<Listing<FederationItem>, Status> {
    let (reading, mut reports) = read(&call).await;
    let strangers = &reading.state.private.strangers;
    let items: Vec<_> = strangers
        .values()
        .filter(|s| request.trust_domain.as_ref().is_none_or(|wanted| *wanted == s.federation.trust_domain))
        .map(|s| item(s, reports.remove(&s.federation.trust_domain).unwrap_or_default()))
        .collect();
    match request.trust_domain {
        Some(wanted) if items.is_empty() => Err(unknown(&wanted)),
        _ => Ok(Listing { meta: reading.meta, items, warnings: reading.warnings }),
    }
}

pub async fn refresh(call: Call, request: FederationRefreshRequest) -> Result<FederationItem, Status> {
    let wanted = request.trust_domain;
    match look(&call.context, &call.actor, &wanted).await {
        Ok(_) => {}
        Err(LookError::Unknown(_)) => return Err(unknown(&wanted)),
        Err(LookError::NotCommitted(error)) => return Err(no_outcome(&error)),
        Err(error) => return Err(refused(&Refusal::Precondition(error.to_string()))),
    }
    let (reading, mut reports) = read(&call).await;
    let stranger = reading.state.private.strangers.get(&wanted).ok_or_else(|| unknown(&wanted))?;
    Ok(item(stranger, reports.remove(&wanted).unwrap_or_default()))
}

pub async fn delete(call: Call, request: FederationDeleteRequest) -> Result<Written, Status> {
    call.written(Command::FederationDelete { trust_domain: request.trust_domain }).await
}

fn unknown(trust_domain: &TrustDomain) -> Status {
    refused(&Refusal::NotFound { what: format!("a federation with {trust_domain}") })
}

async fn read(call: &Call) -> (Reading, BTreeMap<TrustDomain, Vec<StrangerReport>>) {
    let gathered = gather(&call.context, &Query::Strangers).await;
    let mut reading = call.read().await;
    reading.silent(&gathered.silent);
    let mut reports: BTreeMap<TrustDomain, Vec<StrangerReport>> = BTreeMap::new();
    for (_, part) in gathered.parts {
        if let Part::Strangers(told) = part {
            told.into_iter()
                .for_each(|report| reports.entry(report.trust_domain.clone()).or_default().push(report));
        }
    }
    (reading, reports)
}

fn item(stranger: &Stranger, reports: Vec<StrangerReport>) -> FederationItem {
    let fetched = reports.iter().filter_map(|report| report.succeeded).max();
    let last = freshest(reports);
    let bundle = stranger.bundle.as_ref();
    let state = match (bundle, &last) {
        (None, _) => FederationState::Waiting,
        (Some(_), None) => FederationState::Kept,
        (Some(_), Some(report)) if report.error.is_some() => FederationState::Stale,
        (Some(_), Some(_)) => FederationState::Fresh,
    };
    FederationItem {
        trust_domain: stranger.federation.trust_domain.clone(),
        url: stranger.federation.url.clone(),
        profile: stranger.federation.profile.clone(),
        since: stranger.since,
        state,
        sequence: bundle.map(|b| b.sequence),
        authorities: bundle.map(|b| b.pins()).unwrap_or_default(),
        jwt_authorities: bundle
            .map(|b| b.trusted_jwt().map(|a| a.key_id.clone()).collect())
            .unwrap_or_default(),
        changed: stranger.changed,
        fetched,
        attempted: last.as_ref().map(|report| report.attempted),
        error: last.as_ref().and_then(|report| report.error.clone()),
        refresh_seconds: last.as_ref().map(|report| report.refresh_seconds),
        ignored: last.map(|report| report.ignored).unwrap_or_default(),
    }
}
