//! `trust federate`, `trust federation list|show|refresh|delete` and `trust bundle set|delete`.

use std::collections::BTreeMap;

use hanse_federation::stranger::{Freshness, Stranger};
use hanse_identity::bundle::BundleDocument;
use hanse_identity::{Bundle, TrustDomain};
use tonic::Status;

use super::{Call, Reading};
use crate::admin::{
    FederationDeleteRequest, FederationItem, FederationListRequest, FederationPutRequest,
    FederationRefreshRequest, FederationState, Listing, TrustBundleDeleteRequest, TrustBundleSet,
    TrustBundleSetRequest, Written,
};
use crate::command::{Command, Refusal};
use crate::io::census::{Part, Query, gather};
use crate::io::context::now;
use crate::io::status::{no_outcome, refused};
use crate::io::strangers::{LookError, StrangerReport, freshest, look, shorten};

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
        .iter()
        .filter(|(domain, _)| request.trust_domain.as_ref().is_none_or(|wanted| wanted == *domain))
        .map(|(domain, stranger)| item(domain, stranger, reports.remove(domain).unwrap_or_default()))
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
    Ok(item(&wanted, stranger, reports.remove(&wanted).unwrap_or_default()))
}

pub async fn delete(call: Call, request: FederationDeleteRequest) -> Result<Written, Status> {
    let FederationDeleteRequest { trust_domain } = request;
    call.written(Command::FederationDelete { trust_domain, registrations: None }).await
}

/// What a person hands over is read whole, or not at all; the log decides whether it may replace what is kept.
pub async fn set(call: Call, request: TrustBundleSetRequest) -> Result<TrustBundleSet, Status> {
    let TrustBundleSetRequest { trust_domain, bundle, allow_lower_sequence: older, dry_run } = request;
    let read = Bundle::from_file(&trust_domain, &bundle);
    let BundleDocument { bundle, mut ignored, .. } =
        read.map_err(|e| refused(&Refusal::Invalid(format!("the bundle: {e}"))))?;
    shorten(&mut ignored);
    let state = call.read().await.state;
    let kept = TrustBundleSet {
        revision: None,
        changed: false,
        sequence: bundle.sequence,
        authorities: bundle.pins(),
        jwt_authorities: bundle.trusted_jwt().map(|authority| authority.key_id.clone()).collect(),
        ignored,
        url: state
            .private
            .strangers
            .get(&trust_domain)
            .and_then(|stranger| stranger.federation.as_ref())
            .map(|federation| federation.url.clone()),
        trust_domain,
    };
    if dry_run {
        let freshness =
            state.check_foreign_bundle_set(&bundle, older, now()).map_err(|refusal| refused(&refusal))?;
        return Ok(TrustBundleSet { changed: freshness == Freshness::Newer, ..kept });
    }
    let written = call.written(Command::ForeignBundleSet { bundle: Box::new(bundle), older }).await?;
    Ok(TrustBundleSet { revision: Some(written.revision), changed: written.changed, ..kept })
}

pub async fn unset(call: Call, request: TrustBundleDeleteRequest) -> Result<Written, Status> {
    let TrustBundleDeleteRequest { trust_domain, registrations } = request;
    call.written(Command::FederationDelete { trust_domain, registrations: Some(registrations) }).await
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

fn item(trust_domain: &TrustDomain, stranger: &Stranger, reports: Vec<StrangerReport>) -> FederationItem {
    let fetched = reports.iter().filter_map(|report| report.succeeded).max();
    let last = freshest(reports);
    let bundle = stranger.bundle.as_ref();
    let state = match (bundle, &last) {
        (None, _) => FederationState::Waiting,
        (Some(_), _) if stranger.federation.is_none() => FederationState::ByHand,
        (Some(_), None) => FederationState::Kept,
        (Some(_), Some(report)) if report.error.is_some() => FederationState::Stale,
        (Some(_), Some(_)) => FederationState::Fresh,
    };
    FederationItem {
        trust_domain: trust_domain.clone(),
        url: stranger.federation.as_ref().map(|federation| federation.url.clone()),
        profile: stranger.federation.as_ref().map(|federation| federation.profile.clone()),
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
