//! `hanse trust bundle`: the bundles that are believed here, and those of foreign trust domains, set and deleted by hand.

use hanse_control::admin::{
    TrustBundleDeleteRequest, TrustBundleListRequest, TrustBundleSetRequest, WorkloadListRequest,
};
use hanse_control::state::strangers::Dependents;
use hanse_identity::{Bundle, TrustDomain};
use serde_json::json;

use super::service::report;
use super::{Outcome, confirm, read, talk};
use crate::cli::{BundleCommand, BundleFormat, BundleSet, Global, RegistrationsMode};
use crate::context::Connection;
use crate::errors::{Exit, Failure};
use crate::output::{self, Listing};

/// Seconds in the refresh hint of a bundle document that is printed.
const REFRESH_HINT: u64 = 60;
/// Registrations that are named before a bundle is deleted.
const NAMED: usize = 12;

pub async fn run(global: &Global, command: &BundleCommand) -> Outcome {
    match command {
        BundleCommand::Show { cluster, trust_domain, format } => {
            let cluster = cluster.as_ref().map(|name| name.as_str());
            show(global, &Connection::open(global)?, cluster, trust_domain.as_ref(), *format).await
        }
        BundleCommand::Set(wanted) => set(global, wanted).await,
        BundleCommand::Delete { trust_domain, mode } => delete(global, trust_domain, *mode).await,
    }
}

async fn set(global: &Global, wanted: &BundleSet) -> Outcome {
    let bundle = read(&wanted.file)?;
    // Here first: a private key in the file does not leave this host.
    Bundle::from_file(&wanted.trust_domain, &bundle).map_err(|why| Failure::unreadable(&wanted.file, why))?;
    let request = TrustBundleSetRequest {
        trust_domain: wanted.trust_domain.clone(),
        bundle,
        allow_lower_sequence: wanted.allow_lower_sequence,
        dry_run: wanted.dry_run,
    };
    let kept = Connection::open(global)?.call(&request).await?;
    let state = match (wanted.dry_run, kept.changed) {
        (true, true) => "would be kept",
        (true, false) | (false, false) => "is kept already",
        (false, true) => "is kept",
    };
    let mut text = format!("{}  sequence {}  {state}\n", kept.trust_domain, kept.sequence);
    text.extend(kept.authorities.iter().map(|key| format!("  x509  sha256:{key}\n")));
    text.extend(kept.jwt_authorities.iter().map(|key| format!("  jwt   {key}\n")));
    text.extend(kept.ignored.iter().map(|why| format!("  left out  {why}\n")));
    output::print(global.output, "TrustBundleSet", &kept, &text);
    if let Some(url) = &kept.url {
        talk(global, &format!("it goes on being fetched from {url}: what has no lower sequence replaces it"));
    }
    if kept.changed && !wanted.dry_run {
        talk(
            global,
            &format!("workloads get it that are registered with --federates-with {}", wanted.trust_domain),
        );
    }
    Ok(Exit::Done)
}

async fn delete(global: &Global, trust_domain: &TrustDomain, mode: RegistrationsMode) -> Outcome {
    let connection = Connection::open(global)?;
    let registrations = connection.call(&WorkloadListRequest {}).await?;
    let named: Vec<_> =
        registrations.items.iter().filter(|r| r.federates_with.contains(trust_domain)).collect();
    let becomes = match mode {
        RegistrationsMode::Restrict => "keeps it",
        RegistrationsMode::Dissociate => "stays, without it",
        RegistrationsMode::Delete => "is deleted",
    };
    for registration in named.iter().take(NAMED) {
        talk(global, &format!("  {becomes:<17}  {} on {}", registration.id, registration.agent));
    }
    if let Some(more) = named.len().checked_sub(NAMED).filter(|more| *more > 0) {
        talk(global, &format!("  {becomes:<17}  {more} more"));
    }
    talk(
        global,
        &format!("nobody of {trust_domain} is believed any more, and nothing fetched, once this is done"),
    );
    confirm(global, trust_domain.as_str())?;
    let registrations = match mode {
        RegistrationsMode::Restrict => Dependents::Restrict,
        RegistrationsMode::Dissociate => Dependents::Dissociate,
        RegistrationsMode::Delete => Dependents::Delete,
    };
    let request = TrustBundleDeleteRequest { trust_domain: trust_domain.clone(), registrations };
    let written = connection.call(&request).await?;
    report(global, &written, &format!("the bundle of {trust_domain} is deleted"));
    Ok(Exit::Done)
}

async fn show(
    global: &Global,
    connection: &Connection,
    cluster: Option<&str>,
    trust_domain: Option<&TrustDomain>,
    format: Option<BundleFormat>,
) -> Outcome {
    let mut bundles = connection.call(&TrustBundleListRequest { foreign: trust_domain.is_some() }).await?;
    if let Some(wanted) = trust_domain {
        bundles.items.retain(|bundle| bundle.trust_domain == *wanted);
        if bundles.items.is_empty() {
            let nothing = format!("there is no bundle of {wanted}");
            return Err(Failure::new(Exit::NotFound, "E3005", nothing)
                .fix("hanse trust bundle set, hanse trust federate"));
        }
    }
    if let Some(cluster) = cluster {
        let clusters = connection.call(&hanse_control::admin::ClusterListRequest {}).await?;
        let own = (cluster == bundles.meta.cluster.as_str()).then(|| connection.credential().trust_domain);
        let theirs = clusters.items.iter().find(|c| c.cluster.as_str() == cluster);
        let meant = own.or_else(|| theirs.map(|c| c.trust_domain.clone())).ok_or_else(|| {
            Failure::new(Exit::NotFound, "E3005", format!("there is no cluster {cluster}"))
                .fix("hanse cluster list")
        })?;
        bundles.items.retain(|bundle| bundle.trust_domain == meant);
    }
    match format {
        Some(BundleFormat::Pem) => {
            bundles.items.iter().for_each(|bundle| output::data(&bundle.to_pem()));
            return Ok(Exit::Done);
        }
        Some(BundleFormat::SpiffeJwks) => {
            bundles
                .items
                .iter()
                .for_each(|bundle| output::data(&format!("{}\n", bundle.to_jwks(REFRESH_HINT))));
            return Ok(Exit::Done);
        }
        None => {}
    }
    let rows: Vec<_> = bundles
        .items
        .iter()
        .flat_map(|bundle| bundle.authorities.iter().map(move |authority| (bundle, authority)))
        .map(|(bundle, authority)| {
            json!({
                "trustDomain": bundle.trust_domain, "sequence": bundle.sequence, "keyId": authority.key_id,
                "subject": authority.subject, "state": authority.state, "notAfter": authority.not_after,
            })
        })
        .collect();
    let titles = ["TRUST DOMAIN", "STATE", "KEY", "SUBJECT", "LEFT", "+SEQUENCE"];
    let text = |row: &serde_json::Value, field: &str| match &row[field] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let left = |row: &serde_json::Value| {
        let end: Option<hanse_identity::Timestamp> = serde_json::from_value(row["notAfter"].clone()).ok();
        end.map(output::left).unwrap_or_default()
    };
    Listing::of("TrustBundleList", &bundles.meta, &rows, &titles, |row| {
        [
            text(row, "trustDomain"),
            text(row, "state"),
            text(row, "keyId"),
            text(row, "subject"),
            left(row),
            text(row, "sequence"),
        ]
    })
    .warnings(&bundles.warnings)
    .print(global.output);
    Ok(Exit::Done)
}
