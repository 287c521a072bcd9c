//! `role list|bind|unbind`.

use std::collections::BTreeSet;

use hanse_identity::SpiffeId;
use tonic::Status;

use super::Call;
use crate::admin::{Listing, RoleBindRequest, RoleItem, RoleListRequest, RoleUnbindRequest, Written};
use crate::command::Command;
use crate::role::Role;

pub async fn list(call: Call, _: RoleListRequest) -> Result<Listing<RoleItem>, Status> {
    let reading = call.read().await;
    let state = &reading.state;
    let item = |(id, roles): (&SpiffeId, &BTreeSet<Role>)| RoleItem {
        id: id.clone(),
        roles: roles.clone(),
        dormant: id.as_member().is_none() && !state.is_admin_workload(id),
    };
    let items = state.private.roles.iter().map(item).collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

pub async fn bind(call: Call, request: RoleBindRequest) -> Result<Written, Status> {
    call.written(Command::RoleBind { id: request.id, roles: request.roles }).await
}

pub async fn unbind(call: Call, request: RoleUnbindRequest) -> Result<Written, Status> {
    call.written(Command::RoleUnbind { id: request.id, roles: request.roles }).await
}
