//! Tests of the choice of ways into another cluster.

use hanse_federation::catalog::{Gateway, GatewaySummary, Session};
use hanse_federation::change::PeerRecord;
use hanse_federation::view::Peer;
use hanse_federation::{Locality, View};
use hanse_identity::Timestamp;
use hanse_identity::name::MemberRole;

use super::*;

fn gateway(trust_domain: &str, name: &str) -> SpiffeId {
    SpiffeId::member(&trust_domain.parse().unwrap(), MemberRole::Gateway, &name.parse().unwrap())
}

/// Own gateways by name and readiness, and the peer's.
fn view(own: &[(&str, bool)], theirs: &[(&str, bool)]) -> View {
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    for (name, ready) in own {
        let gateway = Gateway {
            name: name.parse().unwrap(),
            identity: gateway("east.example", name),
            locality: Locality::default(),
            passthrough: "127.0.0.1:15443".parse().unwrap(),
            tunnel: "127.0.0.1:15008".to_owned(),
            ready: *ready,
            session: Session { incarnation: 1, sequence: 1, node: "n".parse().unwrap() },
        };
        view.gateways.insert(gateway.name.clone(), gateway);
    }
    let mut peer = Peer::new(PeerRecord {
        cluster: "west".parse().unwrap(),
        trust_domain: "west.example".parse().unwrap(),
        endpoints: Vec::new(),
        invite: String::new(),
        joined: Timestamp(0),
    });
    peer.gateways = theirs
        .iter()
        .map(|(name, ready)| GatewaySummary {
            name: name.parse().unwrap(),
            identity: gateway("west.example", name),
            locality: Locality::default(),
            tunnel: "192.0.2.1:15008".to_owned(),
            ready: *ready,
        })
        .collect();
    view.peers.insert("west".parse().unwrap(), peer);
    view
}

fn names(pairs: &[Pair]) -> Vec<String> {
    let via = |pair: &Pair| pair.via.as_ref().map_or("-".to_owned(), |(name, _)| name.to_string());
    pairs.iter().map(|pair| format!("{}>{}", via(pair), pair.gateway)).collect()
}

#[test]
fn every_pair_is_a_way_and_the_ready_ones_come_first() {
    let west = "west".parse().unwrap();
    let view = view(&[("a", true), ("b", false)], &[("x", true), ("y", true)]);
    for random in 0..20 {
        let pairs = pairs(&view, &west, &[], random);
        let mut first: Vec<_> = names(&pairs[..2]);
        first.sort();
        assert_eq!(first, ["a>x", "a>y"]);
        assert_eq!(pairs.len(), 4, "the others are a last resort");
    }
}

#[test]
fn a_second_tunnel_takes_other_gateways_than_the_first() {
    let west = "west".parse().unwrap();
    let view = view(&[("a", true), ("b", true)], &[("x", true), ("y", true)]);
    for random in 0..20 {
        let in_use = [(Some("a".parse().unwrap()), gateway("west.example", "x"))];
        assert_eq!(names(&pairs(&view, &west, &in_use, random))[0], "b>y");
    }
}

#[test]
fn without_gateways_of_our_own_theirs_are_dialled_directly() {
    let view = view(&[], &[("x", true)]);
    assert_eq!(names(&pairs(&view, &"west".parse().unwrap(), &[], 3)), ["->x"]);
    assert!(pairs(&view, &"nowhere".parse().unwrap(), &[], 3).is_empty());
}
