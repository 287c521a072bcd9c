//! Tests of `route`: who is let through to what.

use std::collections::{BTreeMap, BTreeSet};

use hanse_federation::catalog::{Locality, Session};
use hanse_federation::change::{Change, PeerRecord};
use hanse_federation::{Endpoint, Export, Service, View};
use hanse_identity::{SpiffeId, Timestamp};

use super::{Denied, admit};

fn service(name: &str, export: Option<Export>) -> Change {
    Change::ServicePut(Service {
        name: name.parse().unwrap(),
        identities: BTreeSet::from(["spiffe://east.example/ns/shop/sa/reviews".parse().unwrap()]),
        export,
    })
}

fn endpoint(id: &str, service: &str, weight: u32, ready: bool) -> Change {
    Change::EndpointPut(Endpoint {
        id: id.parse().unwrap(),
        services: BTreeSet::from([service.parse().unwrap()]),
        identity: "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
        locality: Locality::default(),
        weight,
        ready,
        session: Session { incarnation: 1, sequence: 1, node: "east-1".parse().unwrap() },
    })
}

fn east() -> View {
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    for cluster in ["west", "north"] {
        view.apply(&Change::PeerPut(PeerRecord {
            cluster: cluster.parse().unwrap(),
            trust_domain: format!("{cluster}.example").parse().unwrap(),
            endpoints: vec![],
            invite: "i".into(),
            joined: Timestamp(0),
        }));
    }
    view.apply(&service("shop/reviews", Some(Export::Only(BTreeSet::from(["west".parse().unwrap()])))));
    view.apply(&service("shop/ratings", None));
    view.apply(&service("shop/idle", Some(Export::Everyone)));
    view.apply(&endpoint("r-1", "shop/reviews", 3, true));
    view.apply(&endpoint("r-2", "shop/reviews", 1, true));
    view.apply(&endpoint("r-3", "shop/reviews", 100, false));
    view.apply(&endpoint("s-1", "shop/ratings", 1, true));
    view.apply(&endpoint("i-1", "shop/idle", 1, false));
    view
}

fn caller(cluster: &str) -> SpiffeId {
    format!("spiffe://{cluster}.example/ns/shop/sa/productpage").parse().unwrap()
}

#[test]
fn every_combination_of_caller_and_service_is_decided() {
    let view = east();
    let reviews = "reviews.shop.svc.cluster.local:80";
    let table: &[(&str, &str, Option<&str>)] = &[
        ("west", reviews, None),
        ("east", reviews, None),
        ("north", reviews, Some("not-exported")),
        ("south", reviews, Some("unknown-cluster")),
        ("west", "ratings.shop.svc.cluster.local:80", Some("not-exported")),
        ("east", "ratings.shop.svc.cluster.local:80", None),
        ("west", "ghost.shop.svc.cluster.local:80", Some("unknown-service")),
        ("west", "idle.shop.svc.cluster.local:80", Some("nobody-ready")),
        ("west", "127.0.0.1:80", Some("not-a-service")),
        ("west", "", Some("not-a-service")),
    ];
    for (from, authority, reason) in table {
        let decision = admit(&view, &caller(from), authority);
        assert_eq!(decision.as_ref().err().map(Denied::reason), *reason, "{from} → {authority}");
    }
}

#[test]
fn endpoints_are_drawn_by_weight_and_only_ready_ones() {
    let view = east();
    let admitted = admit(&view, &caller("west"), "reviews.shop").unwrap();
    let mut first: BTreeMap<String, u32> = BTreeMap::new();
    for random in 0..400 {
        let order = admitted.endpoints(&view, random);
        assert_eq!(order.len(), 2, "both ready endpoints are there to fall back on, the third is not");
        *first.entry(order[0].id.to_string()).or_default() += 1;
    }
    assert_eq!(first, BTreeMap::from([("r-1".into(), 300), ("r-2".into(), 100)]));
}
