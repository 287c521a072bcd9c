//! `hanse trust federate` and `hanse trust federation`: foreign trust domains, whose bundles are fetched.

use hanse_control::admin::{
    FederationDeleteRequest, FederationItem, FederationListRequest, FederationPutRequest,
    FederationRefreshRequest, FederationState, WorkloadListRequest,
};
use hanse_federation::stranger::{Federation, Profile};

use super::service::report;
use super::{Outcome, confirm, read, talk};
use crate::cli::{EndpointProfile, FederationCommand, Global, TrustFederate};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Listing};

pub async fn federate(global: &Global, wanted: &TrustFederate) -> Outcome {
    let profile = match (wanted.profile, &wanted.endpoint_spiffe_id) {
        (EndpointProfile::HttpsSpiffe, Some(id)) => Profile::HttpsSpiffe { endpoint_id: id.clone() },
        (EndpointProfile::HttpsWeb, None) => {
            Profile::HttpsWeb { roots: wanted.web_roots.as_deref().map(read).transpose()? }
        }
        (EndpointProfile::HttpsSpiffe, None) => {
            return Err(Failure::usage(
                "https_spiffe needs the SPIFFE ID of the endpoint: --endpoint-spiffe-id",
            ));
        }
        (EndpointProfile::HttpsWeb, Some(_)) => {
            return Err(Failure::usage("--endpoint-spiffe-id is for --profile https_spiffe"));
        }
    };
    if wanted.web_roots.is_some() && wanted.profile == EndpointProfile::HttpsSpiffe {
        return Err(Failure::usage("--web-roots is for --profile https_web"));
    }
    let federation =
        Federation { trust_domain: wanted.trust_domain.clone(), url: wanted.url.clone(), profile };
    let bundle = wanted.bundle.as_deref().map(read).transpose()?;
    let request = FederationPutRequest { federation, bundle };
    let written = Connection::open(global)?.call(&request).await?;
    report(global, &written, &format!("{} is federated with", wanted.trust_domain));
    talk(
        global,
        &format!(
            "next   its bundle is fetched from {}: hanse trust federation show {}\n       workloads get it that are registered to federate with it",
            wanted.url, wanted.trust_domain
        ),
    );
    Ok(Exit::Done)
}

pub async fn run(global: &Global, command: &FederationCommand) -> Outcome {
    match command {
        FederationCommand::List => list(global, None).await,
        FederationCommand::Show { trust_domain } => list(global, Some(trust_domain.clone())).await,
        FederationCommand::Refresh { trust_domain } => {
            let request = FederationRefreshRequest { trust_domain: trust_domain.clone() };
            let item = Connection::open(global)?.call(&request).await?;
            let sequence = item.sequence.unwrap_or_default();
            let text =
                format!("{trust_domain} has sequence {sequence}, {} authorities\n", item.authorities.len());
            output::print(global.output, "Federation", &item, &text);
            Ok(Exit::Done)
        }
        FederationCommand::Delete { trust_domain } => {
            talk(global, &format!("nobody of {trust_domain} is believed any more once this is done"));
            confirm(global, trust_domain.as_str())?;
            let request = FederationDeleteRequest { trust_domain: trust_domain.clone() };
            let connection = Connection::open(global)?;
            let written = connection.call(&request).await?;
            let workloads = connection.call(&WorkloadListRequest {}).await?.items;
            let named = workloads.iter().filter(|w| w.federates_with.contains(trust_domain)).count();
            if named > 0 {
                talk(
                    global,
                    &format!(
                        "  {named} registrations still name {trust_domain}: whoever federates with it again gives them its bundle again (hanse workload list)"
                    ),
                );
            }
            report(global, &written, &format!("the federation with {trust_domain} has ended"));
            Ok(Exit::Done)
        }
    }
}

async fn list(global: &Global, trust_domain: Option<hanse_identity::TrustDomain>) -> Outcome {
    let one = trust_domain.is_some();
    let listing = Connection::open(global)?.call(&FederationListRequest { trust_domain }).await?;
    let titles =
        ["TRUST DOMAIN", "STATE", "SEQUENCE", "AUTHORITIES", "AGE", "PROFILE", "URL", "+SINCE", "+ERROR"];
    let mut shown = Listing::of("FederationList", &listing.meta, &listing.items, &titles, |item| {
        [
            item.trust_domain.to_string(),
            state(item.state).to_owned(),
            item.sequence.map(|s| s.to_string()).unwrap_or_default(),
            item.authorities.len().to_string(),
            item.fetched.or(item.changed).map(output::age).unwrap_or_default(),
            item.profile.as_ref().map(|profile| profile.as_str().to_owned()).unwrap_or_default(),
            item.url.as_ref().map(ToString::to_string).unwrap_or_default(),
            item.since.to_string(),
            item.error.clone().unwrap_or_default(),
        ]
    });
    for item in &listing.items {
        notes(item, one).into_iter().for_each(|note| shown.notes.push(note));
    }
    shown.warnings(&listing.warnings).print(global.output);
    Ok(if listing.meta.partial { Exit::Partial } else { Exit::Done })
}

/// What is wrong with it; of one that is shown alone, also its keys.
fn notes(item: &FederationItem, whole: bool) -> Vec<String> {
    let domain = &item.trust_domain;
    let mut notes: Vec<String> =
        item.error.iter().map(|e| format!("{domain}: last fetch failed: {e}")).collect();
    notes.extend(item.ignored.iter().map(|why| format!("{domain}: left out: {why}")));
    if whole {
        notes.extend(item.authorities.iter().map(|key| format!("x509  sha256:{key}")));
        notes.extend(item.jwt_authorities.iter().map(|key| format!("jwt   {key}")));
    }
    notes
}

fn state(state: FederationState) -> &'static str {
    match state {
        FederationState::Waiting => "waiting",
        FederationState::Fresh => "fresh",
        FederationState::Stale => "stale",
        FederationState::Kept => "kept",
        FederationState::ByHand => "by hand",
    }
}
