//! Services: what there is, the ladder that a caller would climb, and what is offered to peers.

use std::collections::{BTreeMap, BTreeSet};

use hanse_federation::View;
use hanse_federation::catalog::Locality;
use hanse_federation::choose::{Ladder, Tier, TierKind, Way};
use hanse_federation::health::{Health, Target};
use hanse_federation::host::{Reach, ServiceHost};
use hanse_identity::ServiceName;
use tonic::Status;

use super::Call;
use crate::admin::{
    ImportedService, Listing, ServiceEndpointsRequest, ServiceExportRequest, ServiceItem, ServiceListRequest,
    ServiceUnexportRequest, TierItem, TierMember, TierState, Written,
};
use crate::command::{Command, Refusal};
use crate::io::context::now;
use crate::io::status::refused;

pub async fn list(call: Call, _: ServiceListRequest) -> Result<Listing<ServiceItem>, Status> {
    let mut reading = call.read().await;
    reading.permissive();
    reading.not_permitted();
    let items = services(&reading.state.view);
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

/// Every service name of a View, own and imported.
fn services(view: &View) -> Vec<ServiceItem> {
    let mut items: BTreeMap<&ServiceName, ServiceItem> = BTreeMap::new();
    let empty = |name: &ServiceName| ServiceItem {
        service: name.clone(),
        local: false,
        endpoints: 0,
        ready_endpoints: 0,
        export: None,
        identities: BTreeSet::new(),
        imported_from: Vec::new(),
    };
    for (name, service) in &view.services {
        let item = items.entry(name).or_insert_with(|| empty(name));
        item.local = true;
        item.export.clone_from(&service.export);
        item.identities.clone_from(&service.identities);
    }
    for endpoint in view.endpoints.values() {
        for name in &endpoint.services {
            let item = items.entry(name).or_insert_with(|| empty(name));
            item.endpoints += 1;
            item.ready_endpoints += usize::from(endpoint.ready);
        }
    }
    for (cluster, peer) in &view.peers {
        for (name, summary) in &peer.services {
            let item = items.entry(name).or_insert_with(|| empty(name));
            item.imported_from.push(ImportedService {
                cluster: cluster.clone(),
                endpoints: summary.localities.values().map(|l| l.endpoints).sum(),
                ready_endpoints: summary.localities.values().map(|l| l.ready_endpoints).sum(),
                identities: summary.identities.clone(),
            });
        }
    }
    items.into_values().collect()
}

pub async fn endpoints(call: Call, request: ServiceEndpointsRequest) -> Result<Listing<TierItem>, Status> {
    let reading = call.read().await;
    let view = &reading.state.view;
    let known = view.services.contains_key(&request.service)
        || view.peers.values().any(|peer| peer.services.contains_key(&request.service));
    if !known {
        return Err(refused(&Refusal::NotFound { what: format!("service {}", request.service) }));
    }
    let Ok(from) = request.from.parse::<Locality>();
    let host = ServiceHost { service: request.service.clone(), reach: Reach::ClusterSet };
    let ladder = Ladder::build(view, &host, &from, None);
    // What proxies observe is theirs: the registry alone calls everything that is registered as ready, healthy.
    let shares = ladder.shares(now(), &Health::default());
    let tiers = ladder.tiers.iter().enumerate();
    let items = tiers
        .map(|(n, tier)| tier_item(view, &request.service, n, tier, shares.get(n).copied().unwrap_or(0.0)))
        .collect();
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

fn tier_item(view: &View, service: &ServiceName, number: usize, tier: &Tier, share: f64) -> TierItem {
    let members: Vec<TierMember> = match tier.kind {
        TierKind::Peer => peer_members(view, service, tier),
        _ => local_members(view, tier),
    };
    let (endpoints, ready_endpoints) = match tier.kind {
        TierKind::Peer => {
            let summary = view.peers.get(&tier.cluster).and_then(|peer| peer.services.get(service));
            let sum = |count: fn(&hanse_federation::catalog::LocalityWeight) -> u32| {
                summary.map_or(0, |s| s.localities.values().map(count).sum::<u32>() as usize)
            };
            (sum(|l| l.endpoints), sum(|l| l.ready_endpoints))
        }
        _ => (members.len(), members.iter().filter(|m| m.ready).count()),
    };
    let localities: BTreeSet<&String> = members.iter().map(|m| &m.locality).collect();
    let locality = if localities.len() == 1 { members[0].locality.clone() } else { String::new() };
    let state = if share > 0.0 {
        TierState::Serving
    } else if ready_endpoints > 0 {
        TierState::Standby
    } else {
        TierState::Down
    };
    let kind = match tier.kind {
        TierKind::Zone => "zone",
        TierKind::Region => "region",
        TierKind::Cluster => "cluster",
        TierKind::Peer => "peer",
        TierKind::Outside => "outside",
    };
    TierItem {
        tier: number,
        kind: kind.to_owned(),
        cluster: tier.cluster.clone(),
        locality,
        endpoints,
        ready_endpoints,
        share,
        state,
        members,
    }
}

fn local_members(view: &View, tier: &Tier) -> Vec<TierMember> {
    let endpoint = |target: &Target| match target {
        Target::Endpoint(id) => view.endpoints.get(id),
        Target::Cluster(_) | Target::Address(_) => None,
    };
    tier.candidates
        .iter()
        .filter_map(|candidate| {
            let endpoint = endpoint(&candidate.target)?;
            let address = match &candidate.way {
                Way::Direct(address) => address.to_string(),
                Way::Tunnel(cluster) => cluster.to_string(),
                Way::Outside(address) => address.to_string(),
            };
            Some(TierMember {
                name: endpoint.id.to_string(),
                address,
                locality: endpoint.locality.to_string(),
                weight: endpoint.weight,
                ready: endpoint.ready,
                identity: endpoint.identity.to_string(),
            })
        })
        .collect()
}

/// A peer tells summaries, not endpoints: the ways in are its gateways.
fn peer_members(view: &View, service: &ServiceName, tier: &Tier) -> Vec<TierMember> {
    let Some(peer) = view.peers.get(&tier.cluster) else { return Vec::new() };
    let weight = peer.services.get(service).map_or(0, |summary| summary.ready_weight());
    peer.gateways
        .iter()
        .map(|gateway| TierMember {
            name: gateway.name.to_string(),
            address: gateway.tunnel.clone(),
            locality: gateway.locality.to_string(),
            weight,
            ready: gateway.ready,
            identity: gateway.identity.to_string(),
        })
        .collect()
}

pub async fn export(call: Call, request: ServiceExportRequest) -> Result<Written, Status> {
    call.written(Command::Export { service: request.service, to: request.to }).await
}

pub async fn unexport(call: Call, request: ServiceUnexportRequest) -> Result<Written, Status> {
    call.written(Command::Unexport { service: request.service }).await
}
