//! Agents and registrations: `agent list`, `workload register|list|delete`.

use std::collections::BTreeMap;

use tonic::Status;

use super::Call;
use crate::admin::{
    AgentItem, AgentListRequest, Listing, SubscriberKind, WorkloadApplyRequest, WorkloadDeleteRequest,
    WorkloadItem, WorkloadListRequest, WorkloadRegisterRequest, Written, merged,
};
use crate::command::Command;
use crate::io::census::{Query, Subscriber, gather};

pub async fn agents(call: Call, _: AgentListRequest) -> Result<Listing<AgentItem>, Status> {
    let (subscribers, silent) = gather(&call.context, &Query::Subscribers).await.subscribers();
    let mut reading = call.read().await;
    reading.silent(&silent);
    let streams: BTreeMap<_, Subscriber> = merged(subscribers)
        .into_iter()
        .filter(|s| s.kind == SubscriberKind::Agent)
        .map(|s| (s.name.clone(), s))
        .collect();
    let private = &reading.state.private;
    let items = private
        .agents
        .values()
        .map(|agent| {
            let stream = streams.get(&agent.name);
            AgentItem {
                agent: agent.name.clone(),
                id: agent.id.clone(),
                joined: agent.joined,
                connected: stream.is_some_and(|s| s.connected),
                node: stream.map(|s| s.node.clone()),
                applied: stream.map(|s| s.applied),
                registrations: private.registrations.values().filter(|r| r.agent.covers(&agent.name)).count(),
            }
        })
        .collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

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
        .map(|r| WorkloadItem {
            id: r.id.clone(),
            agent: r.agent.clone(),
            selectors: r.selectors.clone(),
            services: r.services.clone(),
            ttl_seconds: r.ttl_seconds,
            address: r.address,
            federates_with: r.federates_with.clone(),
            hint: r.hint.clone(),
            expires: r.expires,
            revoked: revocations.of_identity(&r.id).map(|revocation| revocation.id.clone()),
        })
        .collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

pub async fn delete(call: Call, request: WorkloadDeleteRequest) -> Result<Written, Status> {
    call.written(Command::WorkloadDelete { id: request.id, agent: request.agent }).await
}
