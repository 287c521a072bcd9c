//! `node list` and `proxy list`: who the nodes are and how they stand, who listens to them.

use std::collections::BTreeMap;

use hanse_identity::NodeName;
use tonic::Status;

use super::Call;
use crate::admin::{
    Listing, NodeItem, NodeList, NodeListRequest, NodeState, ProxyItem, ProxyListRequest, Quorum,
    SubscriberKind, merged,
};
use crate::io::census::{NodeReport, Part, Query, gather};
use crate::state::NodeRecord;

pub async fn list(call: Call, _: NodeListRequest) -> Result<NodeList, Status> {
    let mut reading = call.read().await;
    let mut gathered = gather(&call.context, &Query::Node).await;
    let revoked = std::mem::take(&mut gathered.revoked);
    reading.silent(gathered.silent.difference(&revoked));
    let reports: BTreeMap<NodeName, NodeReport> = gathered
        .parts
        .into_iter()
        .filter_map(|(name, part)| match part {
            Part::Node(report) => Some((name, report)),
            _ => None,
        })
        .collect();
    let furthest = reports.values().map(|r| r.status.applied).max().unwrap_or(0);
    let nodes = &reading.state.private.nodes;
    let row = |n: &NodeRecord| {
        let is_revoked = revoked.contains(&n.name) || reading.state.node_revocation(&n.name).is_some();
        item(&call, n, reports.get(&n.name).filter(|_| !is_revoked), is_revoked, furthest)
    };
    let items: Vec<_> = nodes.values().map(row).collect();
    let answering = items.iter().filter(|i| !matches!(i.state, NodeState::Silent | NodeState::Revoked));
    let quorum = Quorum::new(nodes.len(), answering.count());
    Ok(NodeList { meta: reading.meta, items, quorum, warnings: reading.warnings })
}

fn item(
    call: &Call,
    node: &NodeRecord,
    report: Option<&NodeReport>,
    is_revoked: bool,
    furthest: u64,
) -> NodeItem {
    let status = report.map(|r| &r.status);
    let state = match status {
        _ if is_revoked => NodeState::Revoked,
        None => NodeState::Silent,
        Some(s) if s.is_leader => NodeState::Leader,
        Some(s) if s.leader.is_some() => NodeState::Follower,
        Some(_) => NodeState::Leaderless,
    };
    let lag = status.filter(|s| !s.is_leader).map(|s| furthest.saturating_sub(s.applied));
    NodeItem {
        cluster: call.context.cluster.clone(),
        node: node.name.clone(),
        raft_id: node.raft_id,
        role: "voter".to_owned(),
        state,
        term: status.map_or(0, |s| s.term),
        applied: status.map_or(0, |s| s.applied),
        lag,
        certificate_not_after: report.and_then(|r| r.certificate_not_after),
        version: report.map(|r| r.version.clone()).unwrap_or_default(),
        address: node.address.clone(),
        peer_address: node.peer_address.clone(),
    }
}

pub async fn proxies(call: Call, _: ProxyListRequest) -> Result<Listing<ProxyItem>, Status> {
    let (subscribers, silent) = gather(&call.context, &Query::Subscribers).await.subscribers();
    let mut reading = call.read().await;
    reading.silent(&silent);
    let revision = reading.state.view.revision.0;
    let items = merged(subscribers)
        .into_iter()
        .filter(|s| s.kind != SubscriberKind::Agent)
        .map(|s| ProxyItem {
            lag: revision.saturating_sub(s.applied),
            name: s.name,
            kind: s.kind,
            identity: s.identity,
            node: s.node,
            connected: s.connected,
            applied: s.applied,
            version: s.version,
            refused: s.refused,
        })
        .collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}
