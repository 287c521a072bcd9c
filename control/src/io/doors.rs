//! Which listeners of the mesh an agent is told, so that it can show revoked certificates to them: some of this cluster and
//! of each joined one, a few, and not the same for every agent.

use std::ops::Bound::{Excluded, Included, Unbounded};

use hanse_federation::sni::Sni;
use hanse_federation::{Peer, View};
use hanse_identity::NodeName;
use hanse_identity::proof::{Door, DoorKind};

/// Most of one kind in one cluster: one is enough, the others are for when it is not there.
const PER_KIND: usize = 2;
/// Most joined clusters of which any are told.
const MAX_CLUSTERS: usize = 16;
/// Where the address says already who is dialled.
const SERVER_NAME: &str = "hanse.internal";

/// The doors for that agent.
pub fn of(view: &View, agent: &NodeName) -> Vec<Door> {
    let believed = |id: &hanse_identity::SpiffeId| view.revocations.of_identity(id).is_none();
    // From the agent's own name onwards and round: so that not everybody knocks at the first.
    let beyond = view.endpoints.range((Excluded(agent), Unbounded));
    let endpoints = beyond.chain(view.endpoints.range((Unbounded, Included(agent)))).map(|(_, e)| e);
    let proxies = endpoints
        .filter(|e| e.ready && !e.session.is_of_registration() && believed(&e.identity))
        .take(PER_KIND)
        .map(|e| Door {
            cluster: view.cluster.clone(),
            kind: DoorKind::Proxy,
            name: e.id.clone(),
            identity: e.identity.clone(),
            address: e.address.to_string(),
            server_name: SERVER_NAME.to_owned(),
        });
    let gateways =
        view.gateways.values().filter(|g| g.ready && believed(&g.identity)).take(PER_KIND).map(|g| Door {
            cluster: view.cluster.clone(),
            kind: DoorKind::Gateway,
            name: g.name.clone(),
            identity: g.identity.clone(),
            address: g.tunnel.clone(),
            server_name: SERVER_NAME.to_owned(),
        });
    let peers = view.peers.values().take(MAX_CLUSTERS).flat_map(|peer| of_peer(view, peer));
    proxies.chain(gateways).chain(peers).collect()
}

/// Gateways of a joined cluster: through one of ours, which passes on by the server name, as proxies go.
fn of_peer(view: &View, peer: &Peer) -> Vec<Door> {
    let cluster = &peer.record.cluster;
    let theirs = peer.gateways.iter().filter(|g| view.revocations.of_identity(&g.identity).is_none());
    let own = view.gateways.values().find(|g| g.ready).or_else(|| view.gateways.values().next());
    let door = |g: &hanse_federation::catalog::GatewaySummary| {
        let (address, server_name) = match own {
            Some(own) => {
                let sni = Sni::Gateway { gateway: g.name.clone(), cluster: cluster.clone() };
                (own.passthrough.to_string(), sni.to_name()?)
            }
            None => (g.tunnel.clone(), SERVER_NAME.to_owned()),
        };
        let (name, identity) = (g.name.clone(), g.identity.clone());
        Some(Door { cluster: cluster.clone(), kind: DoorKind::Gateway, name, identity, address, server_name })
    };
    theirs.filter(|g| g.ready).take(PER_KIND).filter_map(door).collect()
}
