//! Agents: `agent list|show|evict|unban|allow`, and which certificates attest hosts (`agent trust-ca`). A ban is a revocation.

use std::collections::BTreeMap;
use std::time::Duration;

use hanse_identity::{HostTrust, SpiffeId, Timestamp};
use tonic::Status;

use super::Call;
use crate::admin::{
    AgentAllowRequest, AgentEvictRequest, AgentItem, AgentListRequest, AgentStanding, AgentUnbanRequest,
    AgentWorkload, Evicted, HostTrustDeleteRequest, HostTrustSetRequest, HostTrustShowRequest,
    HostTrustShown, Listing, SubscriberKind, Written, merged,
};
use crate::command::{Answer, Command};
use crate::io::census::{Query, Subscriber, gather};
use crate::io::context::now;
use crate::state::issuance::IssuedSvid;
use crate::state::{AgentRecord, State};

pub async fn list(call: Call, request: AgentListRequest) -> Result<Listing<AgentItem>, Status> {
    let (subscribers, silent) = gather(&call.context, &Query::Subscribers).await.subscribers();
    let mut reading = call.read().await;
    reading.silent(&silent);
    let streams: BTreeMap<_, Subscriber> = merged(subscribers)
        .into_iter()
        .filter(|s| s.kind == SubscriberKind::Agent)
        .map(|s| (s.name.clone(), s))
        .collect();
    let (state, now) = (&reading.state, now());
    let asked = |agent: &&AgentRecord| request.agent.as_ref().is_none_or(|name| *name == agent.name);
    let agents: Vec<&AgentRecord> = state.private.agents.values().filter(asked).collect();
    if let (Some(name), true) = (&request.agent, agents.is_empty()) {
        return Err(Status::not_found(format!("no agent {name} has joined this cluster")));
    }
    let mut issued: BTreeMap<&hanse_identity::NodeName, Vec<&IssuedSvid>> = BTreeMap::new();
    for svid in state.private.issued.live(now).filter(|s| s.not_after > now) {
        issued.entry(&svid.agent).or_default().push(svid);
    }
    let items = agents.into_iter().map(|agent| {
        let its = issued.remove(&agent.name).unwrap_or_default();
        item(state, agent, streams.get(&agent.name), &its, now)
    });
    let items = items.collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

fn item(
    state: &State,
    agent: &AgentRecord,
    stream: Option<&Subscriber>,
    issued: &[&IssuedSvid],
    now: Timestamp,
) -> AgentItem {
    let banned = state.view.revocations.of_identity(&agent.id).map(|r| r.id.clone());
    let connected = stream.is_some_and(|s| s.connected);
    let own = || issued.iter().filter(|s| s.id == agent.id);
    let shown = stream.and_then(|s| s.serial.as_ref()).filter(|_| connected);
    let certificate = shown
        .and_then(|serial| state.private.issued.get(serial))
        .or_else(|| own().max_by_key(|s| s.not_after).copied());
    let standing = match (&banned, agent.evicted) {
        (Some(_), _) => AgentStanding::Banned,
        (None, Some(_)) => AgentStanding::Evicted,
        (None, None) if connected => AgentStanding::Connected,
        (None, None) if certificate.is_some() => AgentStanding::Gone,
        (None, None) => AgentStanding::Expired,
    };
    let mut workloads: BTreeMap<&SpiffeId, (usize, Timestamp)> = BTreeMap::new();
    for svid in issued.iter().filter(|s| s.id != agent.id) {
        let (count, end) = workloads.entry(&svid.id).or_insert((0, svid.not_after));
        (*count, *end) = (*count + 1, svid.not_after.max(*end));
    }
    let workload = |(id, (certificates, not_after)): (&SpiffeId, _)| AgentWorkload {
        id: id.clone(),
        certificates,
        not_after,
    };
    AgentItem {
        agent: agent.name.clone(),
        id: agent.id.clone(),
        state: standing,
        joined: agent.joined,
        connected,
        node: stream.map(|s| s.node.clone()),
        remote: stream.and_then(|s| s.remote),
        seen: stream.map(|s| s.seen),
        applied: stream.map(|s| s.applied),
        serial: certificate.map(|s| s.serial.clone()).or_else(|| shown.cloned()),
        certificate_not_after: certificate.map(|s| s.not_after),
        registrations: state.private.registrations.values().filter(|r| r.agent.covers(&agent.name)).count(),
        workloads: workloads.into_iter().map(workload).collect(),
        banned,
        evicted: agent.evicted,
        certificate: agent.host.as_ref().map(|host| host.certificate.clone()),
        allowed: agent.allowed.filter(|until| *until > now),
    }
}

pub async fn evict(call: Call, request: AgentEvictRequest) -> Result<Evicted, Status> {
    let command = Command::AgentEvict { agent: request.agent, note: request.note };
    let (revision, answer) = call.write(command).await?;
    let revocation = match answer {
        Answer::Revoked(id) => Some(id),
        _ => None,
    };
    Ok(Evicted { revision, revocation })
}

pub async fn unban(call: Call, request: AgentUnbanRequest) -> Result<Written, Status> {
    call.written(Command::AgentUnban { agent: request.agent }).await
}

pub async fn allow(call: Call, request: AgentAllowRequest) -> Result<Written, Status> {
    let until = call.context.time() + Duration::from_secs(request.ttl_seconds);
    call.written(Command::AgentAllow { agent: request.agent, until }).await
}

pub async fn trust_hosts(call: Call, request: HostTrustSetRequest) -> Result<Written, Status> {
    let trust = HostTrust::from_pem(request.pem.as_bytes(), request.naming);
    let trust = trust.map_err(|e| Status::invalid_argument(e.to_string()))?;
    call.written(Command::HostTrustPut { trust: Box::new(trust) }).await
}

pub async fn trusted_hosts(call: Call, _: HostTrustShowRequest) -> Result<HostTrustShown, Status> {
    let reading = call.read().await;
    let settings = reading.state.private.hosts.as_ref();
    let trust = settings.map(|settings| settings.trust.clone());
    Ok(HostTrustShown { meta: reading.meta, trust, warnings: reading.warnings })
}

pub async fn distrust_hosts(call: Call, _: HostTrustDeleteRequest) -> Result<Written, Status> {
    call.written(Command::HostTrustDelete {}).await
}
