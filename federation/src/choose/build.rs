//! From a View to tiers: who could answer for a service, in which order of nearness.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hanse_identity::{ClusterName, SpiffeId};

use super::{Candidate, LadderSettings, LocalityMode, Tier, TierKind, Way, stable_hash};
use crate::catalog::{Endpoint, Locality, ServiceSummary};
use crate::health::Target;
use crate::host::{Reach, ServiceHost};
use crate::view::{Peer, View};

/// The tiers for a caller at `from`, nearest first; none of them is empty.
pub(super) fn tiers(
    view: &View,
    host: &ServiceHost,
    from: &Locality,
    settings: &LadderSettings,
) -> Vec<Tier> {
    let local = local_tiers(view, host, from, settings);
    let peers = peer_tiers(view, host, settings);
    match &settings.mode {
        LocalityMode::Failover | LocalityMode::LocalOnly => local.into_iter().chain(peers).collect(),
        LocalityMode::Ignore => merged(local).into_iter().chain(merged(peers)).collect(),
        LocalityMode::Distribute(percents) => {
            let named = |tier: &Tier| percents.iter().any(|(c, percent)| *c == tier.cluster && *percent > 0);
            local.into_iter().chain(peers).filter(named).collect()
        }
    }
}

/// Whether the service exists in any cluster that `host` and the settings let us look at.
pub(super) fn is_known(view: &View, host: &ServiceHost, settings: &LadderSettings) -> bool {
    let here = view.services.contains_key(&host.service) || view.endpoints_of(&host.service).next().is_some();
    here || peers_in_order(view, host, settings).iter().any(|peer| peer.services.contains_key(&host.service))
}

fn local_tiers(view: &View, host: &ServiceHost, from: &Locality, settings: &LadderSettings) -> Vec<Tier> {
    let mut left: Vec<&Endpoint> = view.endpoints_of(&host.service).collect();
    let mut tiers = Vec::new();
    for kind in settings.prefer.iter().copied().chain([TierKind::Cluster]) {
        let (near, far) = left.into_iter().partition(|endpoint| is_within(kind, &endpoint.locality, from));
        left = far;
        let candidates: Vec<_> = near.into_iter().map(|endpoint| local_candidate(view, endpoint)).collect();
        if !candidates.is_empty() {
            tiers.push(Tier { kind, cluster: view.cluster.clone(), candidates });
        }
    }
    tiers
}

/// A locality that is not said is like no other.
fn is_within(kind: TierKind, there: &Locality, from: &Locality) -> bool {
    match kind {
        TierKind::Zone => !from.zone.is_empty() && there.zone == from.zone && there.region == from.region,
        TierKind::Region => !from.region.is_empty() && there.region == from.region,
        TierKind::Cluster => true,
        TierKind::Peer | TierKind::Outside => false,
    }
}

fn local_candidate(view: &View, endpoint: &Endpoint) -> Candidate {
    let identities = BTreeSet::from([endpoint.identity.clone()]);
    let weight = endpoint.weight.max(1);
    let ready = endpoint.ready && may_answer(view, &identities);
    Candidate {
        target: Target::Endpoint(endpoint.id.clone()),
        key: key("endpoint", endpoint.id.as_str()),
        identities: Arc::new(identities),
        weight,
        ready_weight: if ready { weight } else { 0 },
        way: Way::Direct(endpoint.address),
    }
}

fn peer_tiers(view: &View, host: &ServiceHost, settings: &LadderSettings) -> Vec<Tier> {
    let tier = |peer: &Peer| {
        let summary = peer.services.get(&host.service)?;
        let cluster = peer.record.cluster.clone();
        let candidates = vec![peer_candidate(view, peer, summary)?];
        Some(Tier { kind: TierKind::Peer, cluster, candidates })
    };
    peers_in_order(view, host, settings).into_iter().filter_map(tier).collect()
}

fn peer_candidate(view: &View, peer: &Peer, summary: &ServiceSummary) -> Option<Candidate> {
    if peer.gateways.is_empty() {
        return None;
    }
    let ready = peer.gateways.iter().any(|gateway| gateway.ready) && may_answer(view, &summary.identities);
    Some(Candidate {
        target: Target::Cluster(peer.record.cluster.clone()),
        key: key("cluster", peer.record.cluster.as_str()),
        identities: Arc::new(summary.identities.clone()),
        weight: summary.weight(),
        ready_weight: if ready { summary.ready_weight() } else { 0 },
        way: Way::Tunnel(peer.record.cluster.clone()),
    })
}

/// Everybody outside is as near as everybody else; `None` if there is nobody.
pub(super) fn outside_tier(view: &View, addresses: &[IpAddr]) -> Option<Tier> {
    /// As endpoints weigh that say nothing of it.
    const WEIGHT: u32 = 100;
    let candidate = |address: &IpAddr| Candidate {
        target: Target::Address(*address),
        key: key("address", &address.to_string()),
        identities: Arc::default(),
        weight: WEIGHT,
        ready_weight: WEIGHT,
        way: Way::Outside(*address),
    };
    let candidates: Vec<_> = addresses.iter().map(candidate).collect();
    (!candidates.is_empty()).then(|| Tier {
        kind: TierKind::Outside,
        cluster: view.cluster.clone(),
        candidates,
    })
}

fn key(kind: &str, name: &str) -> u64 {
    stable_hash(format!("{kind}/{name}").as_bytes())
}

/// Whoever is revoked would be refused by our own TLS: to the ladder it is not ready.
fn may_answer(view: &View, identities: &BTreeSet<SpiffeId>) -> bool {
    identities.iter().any(|id| view.revocations.of_identity(id).is_none())
}

/// The peers that traffic for `host` may go to. A name of one cluster leaves it only where the policy says so.
fn peers_in_order<'v>(view: &'v View, host: &ServiceHost, settings: &LadderSettings) -> Vec<&'v Peer> {
    let named = |clusters: &mut dyn Iterator<Item = &ClusterName>| {
        let mut seen = BTreeSet::new();
        clusters.filter(|c| seen.insert((*c).clone())).filter_map(|c| view.peers.get(c)).collect()
    };
    match (&settings.mode, &settings.failover, host.reach) {
        (LocalityMode::LocalOnly, ..) => Vec::new(),
        (LocalityMode::Distribute(percents), ..) => named(&mut percents.iter().map(|(cluster, _)| cluster)),
        (_, Some(order), _) => named(&mut order.iter()),
        (_, None, Reach::ClusterSet) => view.peers.values().collect(),
        (_, None, Reach::Cluster | Reach::External | Reach::Gateway) => Vec::new(),
    }
}

/// All of them as one tier, of the last one's kind.
fn merged(tiers: Vec<Tier>) -> Option<Tier> {
    let kind = tiers.last()?.kind.max(TierKind::Cluster);
    let cluster = tiers.first()?.cluster.clone();
    Some(Tier { kind, cluster, candidates: tiers.into_iter().flat_map(|tier| tier.candidates).collect() })
}
