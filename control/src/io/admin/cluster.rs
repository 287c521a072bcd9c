//! `cluster list`, `check` and `leave`: the joined clusters, how fresh what they told is, whether they answer.

use std::collections::BTreeMap;
use std::time::Duration;

use hanse_federation::join::{Check, MAX_CLOCK_SKEW};
use hanse_federation::lease::Link;
use hanse_federation::view::PeerState;
use hanse_federation::{Peer, View};
use hanse_identity::ClusterName;
use tonic::{Code, Status};

use super::Call;
use crate::admin::{
    ClusterCheckReply, ClusterCheckRequest, ClusterChecks, ClusterItem, ClusterLeaveReply,
    ClusterLeaveRequest, ClusterListRequest, ClusterState, Listing,
};
use crate::command::{Command, Refusal};
use crate::io::census::{Part, Query, gather};
use crate::io::context::{Context, now};
use crate::io::joiner::counts;
use crate::io::peer_link::{PeerLinkReport, freshest};
use crate::io::status::refused;
use crate::io::{dial, reach};
use crate::state::State;
use crate::wire::control::Document;
use crate::wire::control::peer_client::PeerClient;

/// How long the other side may take to agree that we leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

pub async fn list(call: Call, _: ClusterListRequest) -> Result<Listing<ClusterItem>, Status> {
    let gathered = gather(&call.context, &Query::PeerLinks).await;
    let mut reading = call.read().await;
    reading.silent(&gathered.silent);
    reading.permissive();
    reading.not_permitted();
    let mut reports: BTreeMap<ClusterName, Vec<PeerLinkReport>> = BTreeMap::new();
    for (_, part) in gathered.parts {
        if let Part::PeerLinks(links) = part {
            links.into_iter().for_each(|link| reports.entry(link.cluster.clone()).or_default().push(link));
        }
    }
    let state = &reading.state;
    let mut items = vec![own_item(&state.view)];
    items.extend(state.view.peers.iter().map(|(cluster, peer)| {
        let link = reports.remove(cluster).and_then(freshest);
        peer_item(state, peer, link)
    }));
    Ok(Listing { meta: reading.meta, items, warnings: reading.warnings })
}

fn own_item(view: &View) -> ClusterItem {
    let bundle = view.bundles.get(&view.trust_domain);
    ClusterItem {
        cluster: view.cluster.clone(),
        state: ClusterState::This,
        trust_domain: view.trust_domain.clone(),
        roots: bundle.map_or(0, |b| b.authorities.len()),
        bundle_sequence: bundle.map_or(0, |b| b.sequence),
        imports: 0,
        exports: view.services.values().filter(|s| s.export.is_some()).count(),
        gateways_ready: view.gateways.values().filter(|g| g.ready).count(),
        gateways: view.gateways.len(),
        link: None,
        rtt_ms: None,
        sync_age_ms: None,
        refused_imports: 0,
        since: None,
        endpoints: Vec::new(),
        error: None,
    }
}

fn peer_item(state: &State, peer: &Peer, link: Option<PeerLinkReport>) -> ClusterItem {
    let cluster = &peer.record.cluster;
    let (imports, exports) = counts(state, cluster);
    let bundle = state.view.bundles.get(&peer.record.trust_domain);
    let gateways_ready = peer.gateways.iter().filter(|g| g.ready).count();
    let connected = link.as_ref().is_some_and(|l| l.link == Link::Connected);
    let cluster_state = match peer.state {
        PeerState::Joining => ClusterState::Joining,
        PeerState::Joined if connected && (gateways_ready > 0 || peer.gateways.is_empty()) => {
            ClusterState::Connected
        }
        PeerState::Joined => ClusterState::Degraded,
    };
    ClusterItem {
        cluster: cluster.clone(),
        state: cluster_state,
        trust_domain: peer.record.trust_domain.clone(),
        roots: bundle.map_or(0, |b| b.authorities.len()),
        bundle_sequence: bundle.map_or(0, |b| b.sequence),
        imports,
        exports,
        gateways_ready,
        gateways: peer.gateways.len(),
        link: Some(link.as_ref().map_or(Link::Unheard, |l| l.link)),
        rtt_ms: link.as_ref().and_then(|l| l.rtt_ms),
        sync_age_ms: link.as_ref().and_then(|l| l.age_ms),
        refused_imports: link.as_ref().map_or(0, |l| l.refused_imports),
        since: Some(peer.record.joined),
        endpoints: peer.record.endpoints.clone(),
        error: link.and_then(|l| l.error),
    }
}

pub async fn check(call: Call, request: ClusterCheckRequest) -> Result<ClusterCheckReply, Status> {
    let listing = list(call.clone(), ClusterListRequest {}).await?;
    let state = call.context.handle.state();
    let mut items = Vec::new();
    for item in listing.items.into_iter().filter(|item| item.state != ClusterState::This) {
        if request.cluster.as_ref().is_some_and(|wanted| *wanted != item.cluster) {
            continue;
        }
        if let Some(peer) = state.view.peers.get(&item.cluster) {
            items.push(ClusterChecks {
                cluster: item.cluster.clone(),
                checks: checks(&call.context, peer, &item).await,
            });
        }
    }
    match request.cluster {
        Some(cluster) if items.is_empty() => {
            Err(refused(&Refusal::NotFound { what: format!("peer cluster {cluster}") }))
        }
        _ => {
            let ok = items.iter().flat_map(|item| &item.checks).all(|check| check.ok);
            Ok(ClusterCheckReply { meta: listing.meta, items, ok, warnings: listing.warnings })
        }
    }
}

async fn checks(context: &Context, peer: &Peer, item: &ClusterItem) -> Vec<Check> {
    let (nodes, gateways) = tokio::join!(node_checks(context, peer), gateway_check(context, peer));
    let mut checks = vec![sync_check(item), bundle_check(item)];
    checks.extend(nodes);
    checks.push(gateways);
    checks
}

fn sync_check(item: &ClusterItem) -> Check {
    let ok = item.link == Some(Link::Connected) && item.state != ClusterState::Joining;
    let age = item
        .sync_age_ms
        .map_or("never heard".to_owned(), |age| format!("heard {:.1} s ago", age as f64 / 1000.0));
    let mut detail = format!("{age}; {} exports in, {} out", item.imports, item.exports);
    if item.refused_imports > 0 {
        detail.push_str(&format!("; {} facts refused by the import filter", item.refused_imports));
    }
    if let (false, Some(error)) = (ok, &item.error) {
        detail.push_str(&format!("; {error}"));
    }
    Check { name: "sync".to_owned(), ok, detail }
}

fn bundle_check(item: &ClusterItem) -> Check {
    let detail = format!("{}: {} roots, sequence {}", item.trust_domain, item.roots, item.bundle_sequence);
    Check { name: "pin".to_owned(), ok: item.roots > 0, detail }
}

async fn node_checks(context: &Context, peer: &Peer) -> Vec<Check> {
    let tls = context.node_tls(&peer.record.trust_domain);
    let greetings = futures_util::future::join_all(peer.record.endpoints.iter().map(|endpoint| {
        let tls = tls.clone();
        async move {
            let link = dial::connect(endpoint, tls).await.map_err(|e| e.to_string())?;
            let asked = now();
            reach::greet(link.channel).await.map(|(greeting, took)| (greeting, took, asked))
        }
    }))
    .await;
    let skews: Vec<Duration> = greetings
        .iter()
        .filter_map(|g| g.as_ref().ok())
        .map(|(greeting, took, asked)| {
            let there = *asked + *took / 2;
            greeting.clock.since(there).max(there.since(greeting.clock))
        })
        .collect();
    let dials =
        peer.record.endpoints.iter().cloned().zip(greetings.into_iter().map(|g| g.map(|(_, took, _)| took)));
    let mut checks = vec![reach::check("reach", "control nodes", dials.collect())];
    if let Some(worst) = skews.into_iter().max() {
        checks.push(Check {
            name: "clocks".to_owned(),
            ok: worst <= MAX_CLOCK_SKEW,
            detail: format!("skew {:.1} s (limit {} s)", worst.as_secs_f64(), MAX_CLOCK_SKEW.as_secs()),
        });
    }
    checks
}

async fn gateway_check(context: &Context, peer: &Peer) -> Check {
    let what = format!("{} gateways", peer.record.cluster);
    let dials = reach::gateways(context, &peer.record.cluster, context.trust.clone(), &peer.gateways).await;
    if dials.is_empty() {
        let detail = format!("{what}: it has told of none, so no service of it can be reached");
        return Check { name: "gateways".to_owned(), ok: false, detail };
    }
    reach::check("gateways", &what, dials)
}

pub async fn leave(call: Call, request: ClusterLeaveRequest) -> Result<ClusterLeaveReply, Status> {
    let state = call.context.handle.state();
    let Some(peer) = state.view.peers.get(&request.cluster) else {
        return Err(refused(&Refusal::NotFound { what: format!("peer cluster {}", request.cluster) }));
    };
    // Told first: once we have forgotten it, it is no longer believed and cannot be spoken to.
    let told = tokio::time::timeout(LEAVE_TIMEOUT, tell_leaving(&call.context, peer)).await;
    let told = told.unwrap_or_else(|_| Err(format!("no answer within {LEAVE_TIMEOUT:?}")));
    let command = Command::PeerRemove { cluster: request.cluster, only_invite: None };
    let revision = match call.write(command).await {
        Ok((revision, _)) => revision,
        // The other side's farewell was here first.
        Err(status) if status.code() == Code::NotFound && told.is_ok() => call.read().await.meta.raft_index,
        Err(status) => return Err(status),
    };
    Ok(ClusterLeaveReply { revision, other_side_told: told.is_ok(), error: told.err() })
}

async fn tell_leaving(context: &Context, peer: &Peer) -> Result<(), String> {
    let mut last = "it has no endpoint".to_owned();
    for endpoint in &peer.record.endpoints {
        let link = match dial::connect(endpoint, context.node_tls(&peer.record.trust_domain)).await {
            Ok(link) => link,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        match PeerClient::new(link.channel).leave(Document::default()).await {
            Ok(_) => return Ok(()),
            Err(status) => last = status.message().to_owned(),
        }
    }
    Err(last)
}
