//! Registrations: `workload register|list|delete`.

use tonic::Status;

use super::Call;
use crate::admin::{
    Listing, WorkloadApplyRequest, WorkloadDeleteRequest, WorkloadItem, WorkloadListRequest,
    WorkloadRegisterRequest, Written,
};
use crate::command::Command;

pub async fn register(call: Call, request: WorkloadRegisterRequest) -> Result<Written, Status> {
    call.written(Command::WorkloadRegister { registration: request.registration }).await
}

pub async fn apply(call: Call, request: WorkloadApplyRequest) -> Result<Written, Status> {
    call.written(Command::WorkloadApply { registrations: request.registrations }).await
}

pub async fn workloads(call: Call, _: WorkloadListRequest) -> Result<Listing<WorkloadItem>, Status> {
    let reading = call.read().await;
    let revocations = &reading.state.view.revocations;
    let items = reading
        .state
        .private
        .registrations
        .values()
        .map(|r| WorkloadItem::of(r, revocations.of_identity(&r.id).map(|revocation| revocation.id.clone())))
        .collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

pub async fn delete(call: Call, request: WorkloadDeleteRequest) -> Result<Written, Status> {
    call.written(Command::WorkloadDelete { id: request.id, agent: request.agent }).await
}
