//! Tunnels: end-to-end connections to workloads of other clusters, through our gateway and theirs.
//!
//! Our gateway copies bytes to the peer's by SNI; with the peer's gateway we speak mutual TLS and HTTP/2 CONNECT; inside
//! that stream the workloads speak their own. Here is also kept whether anything passes to a cluster at all: when no
//! pair of gateways lets us through, its path is lost, and is probed until it is back.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hanse_federation::View;
use hanse_federation::health::Health;
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::sni::Sni;
use hanse_identity::tls::Expect;
use hanse_identity::{ClusterName, NodeName, ServiceName, SpiffeId};
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::body::RequestBody;
use super::dial::{
    CONNECT_TIMEOUT, DialError, Ended, For, Key, MeshConnection, Pool, TUNNEL_PINGS, WORKLOAD_PINGS, connect,
    speak_http2,
};
use super::tls::{self, About};
use crate::connections::Side;
use crate::headers;
use crate::runtime::knowledge::HANDSHAKE_WAITS;
use crate::runtime::worker::Random;
use crate::runtime::{Plane, now};

/// One way into another cluster: through which of our gateways, to which of theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// `None`: our cluster has no gateway, we dial theirs ourselves.
    pub via: Option<(NodeName, SocketAddr)>,
    pub gateway: NodeName,
    pub identity: SpiffeId,
    /// `host:port` of their tunnel listener.
    pub tunnel: String,
}

/// One worker's tunnels.
pub struct Tunnels {
    plane: Arc<Plane>,
    pool: Rc<Pool>,
    health: Rc<RefCell<Health>>,
    random: Rc<Random>,
    probing: RefCell<BTreeSet<ClusterName>>,
}

/// Connections that a worker keeps to another cluster's gateways, over different pairs where there are.
pub const TUNNELS_PER_CLUSTER: usize = 2;
/// Pairs that one dial tries.
const MAX_PAIRS: usize = 4;
/// Head start of a pair before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(200);
/// Longest time for all pairs together.
const DIAL_WITHIN: Duration = Duration::from_millis(2200);
/// Longest wait for a gateway's answer to CONNECT.
const CONNECT_ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);
/// How often a lost path is tried.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Port that a CONNECT authority names; the gateway looks at the service only.
const SERVICE_PORT: u16 = 80;

/// The ways into `cluster`, best first: ready gateways before others, those not `in_use` before those that are; the
/// rest is left to `random`. Empty if the cluster is no peer, or has told of no gateway.
pub fn pairs(
    view: &View,
    cluster: &ClusterName,
    in_use: &[(Option<NodeName>, SpiffeId)],
    random: u64,
) -> Vec<Pair> {
    let Some(peer) = view.peers.get(cluster) else { return Vec::new() };
    let own: Vec<_> = view.gateways.values().collect();
    let mut ways = Vec::new();
    for theirs in &peer.gateways {
        let pair = |via| Pair {
            via,
            gateway: theirs.name.clone(),
            identity: theirs.identity.clone(),
            tunnel: theirs.tunnel.clone(),
        };
        let theirs_used = in_use.iter().any(|(_, identity)| *identity == theirs.identity);
        if own.is_empty() {
            ways.push(((!theirs.ready, theirs_used, false), pair(None)));
        }
        for ours in &own {
            let ours_used = in_use.iter().any(|(via, _)| via.as_ref() == Some(&ours.name));
            let rank = (!(theirs.ready && ours.ready), theirs_used, ours_used);
            ways.push((rank, pair(Some((ours.name.clone(), ours.passthrough)))));
        }
    }
    if !ways.is_empty() {
        let turn = (random % ways.len() as u64) as usize;
        ways.rotate_left(turn);
    }
    ways.sort_by_key(|(rank, _)| *rank);
    ways.into_iter().map(|(_, pair)| pair).collect()
}

impl Tunnels {
    pub fn new(plane: Arc<Plane>, pool: Rc<Pool>, health: Rc<RefCell<Health>>, random: Rc<Random>) -> Self {
        Self { plane, pool, health, random, probing: RefCell::default() }
    }

    /// Dials a service of another cluster, end to end.
    pub async fn dial_service(
        self: Rc<Self>,
        service: ServiceName,
        cluster: ClusterName,
        expect: Expect,
        what: For,
    ) -> Result<MeshConnection, DialError> {
        if self.health.borrow().is_lost(&cluster)
            && self.pool.usable(&Key::Tunnel(cluster.clone())).is_empty()
        {
            // The probe finds out when the path is back; requests do not wait for what is known to be dead.
            self.probe(&cluster, Duration::ZERO);
            return Err(DialError::NoPath(cluster));
        }
        let mut again = true;
        loop {
            let outer = self.outer(&cluster).await?;
            let through = self.connect_through(&outer, &service, &cluster, expect.clone(), what).await;
            match through {
                Err(DialError::Refused { .. }) | Ok(_) => return through,
                // The tunnel may have died under us: once more, on another.
                Err(_) if again && !outer.is_usable() => again = false,
                Err(_) => return through,
            }
        }
    }

    /// A connection to one of the cluster's gateways.
    async fn outer(self: &Rc<Self>, cluster: &ClusterName) -> Result<Rc<MeshConnection>, DialError> {
        let spread = self.spread(cluster);
        let dial = || Rc::clone(self).dial_gateway(cluster.clone()).boxed_local();
        self.pool.connection(Key::Tunnel(cluster.clone()), spread, |_| true, dial).await
    }

    /// How many tunnels make sense: one if there is only one pair.
    fn spread(&self, cluster: &ClusterName) -> usize {
        let view = self.plane.knowledge.view();
        let ways = view.map_or(0, |view| {
            let theirs = view.peers.get(cluster).map_or(0, |peer| peer.gateways.len());
            theirs * view.gateways.len().max(1)
        });
        ways.clamp(1, TUNNELS_PER_CLUSTER)
    }

    /// CONNECT on a tunnel, then the workloads' own TLS inside the stream.
    async fn connect_through(
        &self,
        outer: &Rc<MeshConnection>,
        service: &ServiceName,
        cluster: &ClusterName,
        expect: Expect,
        what: For,
    ) -> Result<MeshConnection, DialError> {
        let host = ServiceHost { service: service.clone(), reach: Reach::Cluster }.to_host();
        let request = Request::connect(format!("{host}:{SERVICE_PORT}"))
            .body(RequestBody::Empty)
            .expect("a service's host name and a port are an authority");
        let mut sender = outer.sender();
        let answer = tokio::time::timeout(CONNECT_ANSWER_TIMEOUT, sender.send_request(request)).await;
        let answer = answer.map_err(|_| DialError::ConnectTimeout)?;
        let response = answer.map_err(|e| DialError::Http(e.to_string()))?;
        if response.status() != StatusCode::OK {
            let reason = response.headers().get(headers::REASON).and_then(|r| r.to_str().ok());
            let reason = reason.unwrap_or_default().to_owned();
            return Err(DialError::Refused { status: response.status().as_u16(), reason });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| DialError::Http(e.to_string()))?;
        let name = Sni::Service { service: service.clone(), cluster: cluster.clone() }.to_name();
        let about =
            About { side: Side::Outbound, service: Some(service.clone()), cluster: Some(cluster.clone()) };
        let (io, protocols) = (TokioIo::new(upgraded), what.protocols());
        let dialled = tls::dial_for(protocols, io, &self.plane, expect, name, about).await?;
        let mut connection = speak_http2(dialled, &self.plane, WORKLOAD_PINGS, |_| {}).await?;
        connection.outer = Some(Rc::clone(outer));
        Ok(connection)
    }

    /// Dials one of the cluster's gateways: the best pairs, each with a head start before the next.
    async fn dial_gateway(self: Rc<Self>, cluster: ClusterName) -> Result<MeshConnection, DialError> {
        let key = Key::Tunnel(cluster.clone());
        let in_use: Vec<_> =
            self.pool.usable(&key).iter().map(|outer| (outer.via.clone(), outer.peer.clone())).collect();
        let view = self.plane.knowledge.view();
        let ways = view.map_or(Vec::new(), |view| pairs(&view, &cluster, &in_use, self.random.next()));
        if ways.is_empty() || self.plane.knowledge.settled(HANDSHAKE_WAITS).await.own_revoked.is_some() {
            return Err(DialError::NoPath(cluster));
        }
        let raced = tokio::time::timeout(DIAL_WITHIN, self.race(ways, &cluster)).await;
        match raced.unwrap_or(Err(DialError::ConnectTimeout)) {
            Ok(connection) => {
                self.path_alive(&cluster);
                Ok(connection)
            }
            Err(error) => {
                tracing::warn!(%cluster, %error, "no pair of gateways lets us through");
                if self.pool.usable(&key).is_empty() {
                    self.path_lost(&cluster);
                    self.probe(&cluster, PROBE_EVERY);
                }
                Err(DialError::NoPath(cluster))
            }
        }
    }

    async fn race(
        self: &Rc<Self>,
        ways: Vec<Pair>,
        cluster: &ClusterName,
    ) -> Result<MeshConnection, DialError> {
        let mut ways = ways.into_iter().take(MAX_PAIRS);
        let mut dials = FuturesUnordered::new();
        let mut last = DialError::NoPath(cluster.clone());
        loop {
            let more = match ways.next() {
                Some(pair) => {
                    dials.push(Rc::clone(self).dial_pair(pair, cluster.clone()));
                    true
                }
                None => false,
            };
            let first = if more {
                match tokio::time::timeout(STAGGER, dials.next()).await {
                    Ok(first) => first,
                    Err(_) => continue,
                }
            } else {
                dials.next().await
            };
            match first {
                Some(Ok(connection)) => return Ok(connection),
                Some(Err(error)) => last = error,
                None if more => {}
                None => return Err(last),
            }
        }
    }

    async fn dial_pair(
        self: Rc<Self>,
        pair: Pair,
        cluster: ClusterName,
    ) -> Result<MeshConnection, DialError> {
        let address = match &pair.via {
            Some((_, passthrough)) => *passthrough,
            None => resolve(&pair.tunnel).await?,
        };
        let tcp = connect(address, CONNECT_TIMEOUT).await?;
        let name = Sni::Gateway { gateway: pair.gateway.clone(), cluster: cluster.clone() }.to_name();
        let expect = Expect::Identities(Arc::new(BTreeSet::from([pair.identity.clone()])));
        let about = About { side: Side::Tunnel, service: None, cluster: Some(cluster.clone()) };
        let dialled = tls::dial(tcp, &self.plane, expect, name, about).await?;
        let tunnels = Rc::downgrade(&self);
        let ended = move |how| {
            if let Some(tunnels) = tunnels.upgrade() {
                tunnels.ended(&cluster, how);
            }
        };
        let mut connection = speak_http2(dialled, &self.plane, TUNNEL_PINGS, ended).await?;
        connection.via = pair.via.map(|(name, _)| name);
        Ok(connection)
    }

    /// A tunnel is over. If it was the last: is there another way, or is the path dark?
    fn ended(self: &Rc<Self>, cluster: &ClusterName, how: Ended) {
        if how == Ended::Retired || !self.pool.usable(&Key::Tunnel(cluster.clone())).is_empty() {
            return;
        }
        if how == Ended::Silent {
            tracing::warn!(%cluster, "the last tunnel fell silent: its path counts as lost");
            self.path_lost(cluster);
        }
        self.probe(cluster, Duration::ZERO);
    }

    /// Called every few seconds: lets go of tunnels over gateways that are leaving, before those cut them off, and
    /// sees to it that every lost path has its probe.
    pub fn tidy(self: &Rc<Self>, view: &View) {
        for cluster in view.peers.keys() {
            let tunnels = self.pool.usable(&Key::Tunnel(cluster.clone()));
            let is_good = |outer: &MeshConnection| is_ready_pair(view, cluster, &outer.via, &outer.peer);
            let ways = pairs(view, cluster, &[], 0);
            let better = ways.iter().any(|pair| {
                let via = pair.via.as_ref().map(|(name, _)| name.clone());
                is_ready_pair(view, cluster, &via, &pair.identity)
            });
            tunnels.iter().filter(|outer| better && !is_good(outer)).for_each(|outer| outer.retire());
        }
        let lost = self.health.borrow().lost_paths();
        for (cluster, _) in lost.iter().filter(|(cluster, _)| view.peers.contains_key(cluster)) {
            self.probe(cluster, PROBE_EVERY);
        }
    }

    fn path_lost(&self, cluster: &ClusterName) {
        self.health.borrow_mut().path_lost(now(), cluster);
    }

    fn path_alive(&self, cluster: &ClusterName) {
        self.health.borrow_mut().path_alive(now(), cluster);
    }

    /// Dials until somebody answers, or the cluster is no peer any more.
    fn probe(self: &Rc<Self>, cluster: &ClusterName, first_after: Duration) {
        if !self.probing.borrow_mut().insert(cluster.clone()) {
            return;
        }
        let (tunnels, cluster) = (Rc::clone(self), cluster.clone());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(first_after).await;
            while tunnels.is_peer(&cluster) && tunnels.outer(&cluster).await.is_err() {
                tokio::time::sleep(PROBE_EVERY).await;
            }
            tunnels.probing.borrow_mut().remove(&cluster);
        });
    }

    fn is_peer(&self, cluster: &ClusterName) -> bool {
        self.plane.knowledge.view().is_some_and(|view| view.peers.contains_key(cluster))
    }
}

fn is_ready_pair(view: &View, cluster: &ClusterName, via: &Option<NodeName>, identity: &SpiffeId) -> bool {
    let ours = match via {
        Some(name) => view.gateways.get(name).is_some_and(|gateway| gateway.ready),
        None => view.gateways.is_empty(),
    };
    let theirs = view.peers.get(cluster).map_or(&[][..], |peer| &peer.gateways);
    ours && theirs.iter().any(|gateway| gateway.ready && gateway.identity == *identity)
}

async fn resolve(host_and_port: &str) -> Result<SocketAddr, DialError> {
    let looked_up = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(host_and_port));
    let mut addresses = looked_up
        .await
        .map_err(|_| DialError::ConnectTimeout)?
        .map_err(|e| DialError::Connect(format!("{host_and_port}: {e}")))?;
    addresses.next().ok_or_else(|| DialError::Connect(format!("{host_and_port} has no address")))
}

#[cfg(test)]
mod tests;
