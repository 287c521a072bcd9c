//! `role list|bind|unbind`.

use tonic::Status;

use super::Call;
use crate::admin::{Listing, RoleBindRequest, RoleItem, RoleListRequest, RoleUnbindRequest, Written};
use crate::command::Command;

pub async fn list(call: Call, _: RoleListRequest) -> Result<Listing<RoleItem>, Status> {
    let reading = call.read().await;
    let named = reading.state.private.roles.iter();
    let items = named.map(|(id, roles)| RoleItem { id: id.clone(), roles: roles.clone() }).collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

pub async fn bind(call: Call, request: RoleBindRequest) -> Result<Written, Status> {
    call.written(Command::RoleBind { id: request.id, roles: request.roles }).await
}

pub async fn unbind(call: Call, request: RoleUnbindRequest) -> Result<Written, Status> {
    call.written(Command::RoleUnbind { id: request.id, roles: request.roles }).await
}
