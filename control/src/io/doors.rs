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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hanse_federation::catalog::{Endpoint, Gateway, GatewaySummary, Locality, Session};
    use hanse_federation::change::PeerRecord;
    use hanse_identity::name::MemberRole;
    use hanse_identity::{
        Reason, Revocation, RevocationId, RevocationTarget, SpiffeId, Timestamp, TrustDomain,
    };

    use super::*;

    fn domain(cluster: &str) -> TrustDomain {
        format!("{cluster}.example").parse().unwrap()
    }

    fn session() -> Session {
        Session { incarnation: 1, sequence: 1, node: "east-1".parse().unwrap() }
    }

    fn endpoint(view: &mut View, name: &str, ready: bool) -> SpiffeId {
        let identity = SpiffeId::workload(&view.trust_domain, "shop", name).unwrap();
        let endpoint = Endpoint {
            id: name.parse().unwrap(),
            services: BTreeSet::new(),
            identity: identity.clone(),
            address: "10.0.0.1:15006".parse().unwrap(),
            locality: Locality::default(),
            weight: 100,
            ready,
            session: session(),
        };
        view.endpoints.insert(endpoint.id.clone(), endpoint);
        identity
    }

    fn gateway(view: &mut View, name: &str, ready: bool) -> SpiffeId {
        let identity = SpiffeId::member(&view.trust_domain, MemberRole::Gateway, &name.parse().unwrap());
        let gateway = Gateway {
            name: name.parse().unwrap(),
            identity: identity.clone(),
            passthrough: "10.0.0.9:15443".parse().unwrap(),
            tunnel: format!("{name}.east:15008"),
            locality: Locality::default(),
            ready,
            session: session(),
        };
        view.gateways.insert(gateway.name.clone(), gateway);
        identity
    }

    fn peer(view: &mut View, cluster: &str, gateways: &[&str]) {
        let record = PeerRecord {
            cluster: cluster.parse().unwrap(),
            trust_domain: domain(cluster),
            endpoints: Vec::new(),
            invite: "i-1".to_owned(),
            joined: Timestamp(1),
        };
        let mut peer = Peer::new(record);
        peer.gateways = gateways
            .iter()
            .map(|name| GatewaySummary {
                name: name.parse().unwrap(),
                identity: SpiffeId::member(&domain(cluster), MemberRole::Gateway, &name.parse().unwrap()),
                tunnel: format!("{name}.{cluster}:15008"),
                locality: Locality::default(),
                ready: true,
            })
            .collect();
        view.peers.insert(peer.record.cluster.clone(), peer);
    }

    fn east() -> View {
        View::new("east".parse().unwrap(), domain("east"))
    }

    fn names(view: &View, agent: &str) -> Vec<String> {
        of(view, &agent.parse().unwrap()).into_iter().map(|door| door.name.to_string()).collect()
    }

    fn revoke(view: &mut View, identity: &SpiffeId) {
        let id = RevocationId { number: 7, origin: view.trust_domain.clone() };
        let target = RevocationTarget::Identity(identity.clone());
        view.revocations.insert(Revocation::new(id, target, Reason::KeyCompromise, Timestamp(1)));
    }

    #[test]
    fn agents_knock_at_a_few_doors_and_not_all_at_the_same() {
        let mut view = east();
        for name in ["a-1", "b-1", "c-1", "d-1"] {
            endpoint(&mut view, name, true);
        }
        assert_eq!(names(&view, "a-host"), ["b-1", "c-1"]);
        assert_eq!(names(&view, "c-host"), ["d-1", "a-1"], "and round");
        assert_eq!(names(&view, "z-host"), ["a-1", "b-1"]);
        assert_eq!(names(&east(), "a-host"), Vec::<String>::new());
    }

    #[test]
    fn who_is_not_ready_or_not_believed_is_no_door() {
        let mut view = east();
        endpoint(&mut view, "a-1", false);
        let revoked = endpoint(&mut view, "b-1", true);
        endpoint(&mut view, "c-1", true);
        gateway(&mut view, "gateway-1", false);
        gateway(&mut view, "gateway-2", true);
        revoke(&mut view, &revoked);
        assert_eq!(names(&view, "host"), ["c-1", "gateway-2"]);
        let doors = of(&view, &"host".parse().unwrap());
        assert_eq!([doors[0].kind, doors[1].kind], [DoorKind::Proxy, DoorKind::Gateway]);
        assert_eq!(doors[1].address, "gateway-2.east:15008");
        assert_eq!(doors[1].server_name, SERVER_NAME, "the address says who it is");
    }

    #[test]
    fn a_neighbours_gateway_is_reached_through_ours_by_its_name() {
        let mut view = east();
        peer(&mut view, "west", &["gateway-1", "gateway-2", "gateway-3"]);
        let direct = of(&view, &"host".parse().unwrap());
        assert_eq!(direct.len(), PER_KIND);
        assert_eq!(direct[0].address, "gateway-1.west:15008", "there is none of our own");
        gateway(&mut view, "own-1", true);
        let doors = of(&view, &"host".parse().unwrap());
        let theirs: Vec<_> = doors.iter().filter(|door| door.cluster.as_str() == "west").collect();
        assert_eq!(theirs.len(), PER_KIND);
        assert_eq!(theirs[0].address, "10.0.0.9:15443");
        let sni = Sni::Gateway { gateway: "gateway-1".parse().unwrap(), cluster: "west".parse().unwrap() };
        assert_eq!(Some(theirs[0].server_name.clone()), sni.to_name());
        // A neighbour that is on hold as a whole is believed nowhere here.
        let id = RevocationId { number: 8, origin: domain("east") };
        let target = RevocationTarget::Cluster(domain("west"));
        view.revocations.insert(Revocation::new(id, target, Reason::Hold, Timestamp(1)));
        assert_eq!(names(&view, "host"), ["own-1"]);
    }
}
