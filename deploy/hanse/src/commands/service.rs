//! `hanse service`: where services run, and to whom they are exported.

use hanse_control::admin::{
    ServiceEndpointsRequest, ServiceExportRequest, ServiceListRequest, ServiceUnexportRequest, TierState,
    Written,
};
use hanse_federation::catalog::Export;

use super::{Outcome, qualified};
use crate::cli::{Global, ServiceCommand};
use crate::context::Connection;
use crate::errors::Exit;
use crate::output::{self, Listing};

pub async fn run(global: &Global, command: &ServiceCommand) -> Outcome {
    match command {
        ServiceCommand::List => list(global).await,
        ServiceCommand::Endpoints { name, from } => endpoints(global, name, from).await,
        ServiceCommand::Export { name, to } => {
            let service = qualified(global, name)?;
            let to =
                if to.is_empty() { Export::Everyone } else { Export::Only(to.iter().cloned().collect()) };
            let audience = audience(Some(&to));
            let request = ServiceExportRequest { service: service.clone(), to };
            let written = Connection::open(global)?.call(&request).await?;
            report(global, &written, &format!("{service} exported to {audience}"));
            Ok(Exit::Done)
        }
        ServiceCommand::Unexport { name } => {
            let service = qualified(global, name)?;
            let request = ServiceUnexportRequest { service: service.clone() };
            let written = Connection::open(global)?.call(&request).await?;
            report(global, &written, &format!("{service} exported to nobody"));
            Ok(Exit::Done)
        }
    }
}

/// What a write did, in one line.
pub fn report(global: &Global, written: &Written, what: &str) {
    let how = if written.changed { "" } else { " (it was so already)" };
    output::print(global.output, "Written", written, &format!("{what} at #{}{how}\n", written.revision));
}

fn audience(export: Option<&Export>) -> String {
    match export {
        None => String::new(),
        Some(Export::Everyone) => "all".to_owned(),
        Some(Export::Only(peers)) => peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

async fn list(global: &Global) -> Outcome {
    let services = Connection::open(global)?.call(&ServiceListRequest {}).await?;
    let titles = ["SERVICE", "READY", "EXPORTED TO", "IMPORTED FROM", "+IDENTITIES"];
    Listing::of("ServiceList", &services.meta, &services.items, &titles, |item| {
        let imported = item.imported_from.iter();
        let imported: Vec<String> =
            imported.map(|i| format!("{} {}/{}", i.cluster, i.ready_endpoints, i.endpoints)).collect();
        let identities: Vec<String> = item.identities.iter().map(ToString::to_string).collect();
        let ready = format!("{}/{}", item.ready_endpoints, item.endpoints);
        [
            item.service.to_string(),
            if item.local { ready } else { String::new() },
            audience(item.export.as_ref()),
            imported.join(", "),
            identities.join(","),
        ]
    })
    .warnings(&services.warnings)
    .print(global.output);
    Ok(Exit::Done)
}

async fn endpoints(global: &Global, name: &str, from: &str) -> Outcome {
    let service = qualified(global, name)?;
    let request = ServiceEndpointsRequest { service, from: from.to_owned() };
    let tiers = Connection::open(global)?.call(&request).await?;
    let titles = ["TIER", "KIND", "CLUSTER", "LOCALITY", "READY", "SHARE", "STATE", "+MEMBERS"];
    Listing::of("ServiceEndpoints", &tiers.meta, &tiers.items, &titles, |tier| {
        let state = match tier.state {
            TierState::Serving => "serving",
            TierState::Standby => "standby",
            TierState::Down => "down",
        };
        let members = tier.members.iter();
        let members: Vec<String> = members
            .map(|m| format!("{}={}{}", m.name, m.address, if m.ready { "" } else { "(not ready)" }))
            .collect();
        [
            tier.tier.to_string(),
            tier.kind.clone(),
            tier.cluster.to_string(),
            tier.locality.clone(),
            format!("{}/{}", tier.ready_endpoints, tier.endpoints),
            format!("{:.0}%", tier.share * 100.0),
            state.to_owned(),
            members.join(" "),
        ]
    })
    .warnings(&tiers.warnings)
    .print(global.output);
    Ok(Exit::Done)
}
