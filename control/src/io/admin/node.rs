//! `node list` and `proxy list`: who the nodes are and how they stand, who listens to them.

use std::collections::BTreeMap;

use hanse_federation::join::MAX_CLOCK_SKEW;
use hanse_identity::{NodeName, Timestamp};
use tonic::Status;

use super::Call;
use crate::admin::{
    Listing, NodeItem, NodeList, NodeListRequest, NodeState, ProxyItem, ProxyListRequest, Quorum,
    SubscriberKind, Warning, merged,
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
    let clocks =
        reports.iter().filter_map(|(name, report)| Some((name, report.clock?, report.not_signing.is_none())));
    let signs_nothing = |i: &NodeItem| {
        Some(Warning {
            code: "E3104".to_owned(),
            message: format!("{} signs nothing: {}", i.node, i.not_signing.as_ref()?),
        })
    };
    reading.warnings.extend(items.iter().filter_map(signs_nothing));
    reading.warnings.extend(off(clocks.collect()));
    Ok(NodeList { meta: reading.meta, items, quorum, warnings: reading.warnings })
}

/// Whose clock is not that of the others, and signs by it. They answer within a second.
fn off(mut clocks: Vec<(&NodeName, Timestamp, bool)>) -> Vec<Warning> {
    clocks.sort_by_key(|(_, clock, _)| *clock);
    let Some(&(_, middle, _)) = clocks.get(clocks.len() / 2) else { return Vec::new() };
    let warning = |(node, clock, signs): (&NodeName, Timestamp, bool)| {
        let (ahead, behind) = (clock.since(middle), middle.since(clock));
        let (by, how) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
        (signs && by > MAX_CLOCK_SKEW).then(|| Warning {
            code: "E3103".to_owned(),
            message: format!(
                "the clock of {node} is {} s {how} the others' (limit {} s): what it signs begins and ends by it",
                by.as_secs(),
                MAX_CLOCK_SKEW.as_secs()
            ),
        })
    };
    clocks.into_iter().filter_map(warning).collect()
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
        not_signing: report.and_then(|r| r.not_signing.clone()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_the_others_contradict_is_told() {
        let names: Vec<NodeName> = ["east-1", "east-2", "east-3"].map(|name| name.parse().unwrap()).into();
        let told = |seconds: &[u64]| {
            let clocks =
                names.iter().zip(seconds).map(|(name, at)| (name, Timestamp::from_seconds(*at), true));
            off(clocks.collect()).into_iter().map(|warning| warning.message).collect::<Vec<_>>()
        };
        assert!(told(&[]).is_empty() && told(&[1_000]).is_empty());
        assert!(told(&[1_000, 1_001, 1_030]).is_empty());
        let behind = told(&[1_000, 900, 1_001]);
        assert!(behind.len() == 1 && behind[0].contains("east-2 is 100 s behind"), "{behind:?}");
        let ahead = told(&[1_000, 1_001, 99_999]);
        assert!(ahead.len() == 1 && ahead[0].contains("east-3 is 98998 s ahead of"), "{ahead:?}");
        // Of two, nobody can say whose is wrong: one of them is named.
        assert_eq!(told(&[1_000, 5_000]).len(), 1);
    }
}
