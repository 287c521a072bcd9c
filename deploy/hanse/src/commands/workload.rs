//! `hanse workload`: which executables get which identity.

use hanse_control::admin::{WorkloadDeleteRequest, WorkloadListRequest, WorkloadRegisterRequest};
use hanse_identity::Registration;

use super::Outcome;
use super::service::report;
use crate::cli::{Global, WorkloadCommand};
use crate::context::Connection;
use crate::errors::Exit;
use crate::output::Listing;

pub async fn run(global: &Global, command: &WorkloadCommand) -> Outcome {
    match command {
        WorkloadCommand::Register { id, agent, selectors, services, ttl, address } => {
            let registration = Registration {
                id: id.clone(),
                agent: agent.clone(),
                selectors: selectors.iter().cloned().collect(),
                services: services.iter().cloned().collect(),
                ttl_seconds: ttl.map(|t| t.as_secs()).unwrap_or_default(),
                address: *address,
            };
            let written = Connection::open(global)?.call(&WorkloadRegisterRequest { registration }).await?;
            report(global, &written, &format!("{id} registered on {agent}"));
        }
        WorkloadCommand::Delete { id, agent } => {
            let request = WorkloadDeleteRequest { id: id.clone(), agent: agent.clone() };
            let written = Connection::open(global)?.call(&request).await?;
            report(global, &written, &format!("{id} no longer registered on {agent}"));
        }
        WorkloadCommand::List => {
            let workloads = Connection::open(global)?.call(&WorkloadListRequest {}).await?;
            let titles = ["ID", "AGENT", "SERVICES", "STATE", "+SELECTORS", "+TTL", "+ADDRESS"];
            Listing::of("WorkloadList", &workloads.meta, &workloads.items, &titles, |item| {
                let join = |texts: Vec<String>| texts.join(",");
                [
                    item.id.to_string(),
                    item.agent.to_string(),
                    join(item.services.iter().map(ToString::to_string).collect()),
                    item.revoked.as_ref().map_or("ok".to_owned(), |r| format!("revoked by {r}")),
                    join(item.selectors.iter().map(ToString::to_string).collect()),
                    if item.ttl_seconds == 0 { String::new() } else { format!("{}s", item.ttl_seconds) },
                    item.address.map(|a| a.to_string()).unwrap_or_default(),
                ]
            })
            .warnings(&workloads.warnings)
            .print(global.output);
        }
    }
    Ok(Exit::Done)
}
