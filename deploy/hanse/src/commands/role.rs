//! `hanse role`: who may ask what of the control nodes.

use std::collections::BTreeSet;

use hanse_control::admin::{RoleBindRequest, RoleListRequest, RoleUnbindRequest};
use hanse_control::role::Role;

use super::service::report;
use super::{Outcome, talk};
use crate::cli::{Global, RoleCommand};
use crate::context::Connection;
use crate::errors::Exit;
use crate::output::Listing;

pub async fn run(global: &Global, command: &RoleCommand) -> Outcome {
    match command {
        RoleCommand::Bind { id, roles } => {
            let request = RoleBindRequest { id: id.clone(), roles: roles.iter().copied().collect() };
            let written = Connection::open(global)?.call(&request).await?;
            report(global, &written, &format!("{id} has {}", named(&request.roles)));
            if id.as_member().is_none() {
                talk(
                    global,
                    "a workload holds them while a registration of it says so: hanse workload register … --admin",
                );
            }
        }
        RoleCommand::Unbind { id, roles } => {
            let request = RoleUnbindRequest { id: id.clone(), roles: roles.iter().copied().collect() };
            let written = Connection::open(global)?.call(&request).await?;
            report(global, &written, &format!("{id} no longer has {}", named(&request.roles)));
        }
        RoleCommand::List => {
            let connection = Connection::open(global)?;
            let bindings = connection.call(&RoleListRequest {}).await?;
            Listing::of("RoleList", &bindings.meta, &bindings.items, &["ID", "ROLES", "STATE"], |item| {
                let state = if item.dormant { "no registration says admin" } else { "in force" };
                [item.id.to_string(), named(&item.roles), state.to_owned()]
            })
            .note(format!(
                "every other spiffe://{}/hanse/admin/NAME has every role; who is not listed has none",
                connection.credential().trust_domain
            ))
            .warnings(&bindings.warnings)
            .print(global.output);
        }
    }
    Ok(Exit::Done)
}

fn named(roles: &BTreeSet<Role>) -> String {
    match roles.is_empty() {
        true => "none".to_owned(),
        false => roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}
