//! Folding Changes: never back, peers only about themselves, nothing left of one that is gone; default deny.

use hanse_identity::{Reason, Revocation, RevocationId, RevocationTarget, Timestamp};

use super::*;
use crate::catalog::{Export, Locality, LocalityWeight, Session};

fn east() -> ClusterName {
    "east".parse().unwrap()
}

/// The View of `west`, with peer `east` (trust domain `east.example`).
fn view() -> View {
    let mut view = View::new("west".parse().unwrap(), "west.example".parse().unwrap());
    view.apply(&Change::BundlePut(bundle("west.example", 1)));
    view.apply(&Change::PeerPut(record()));
    view
}

fn record() -> PeerRecord {
    PeerRecord {
        cluster: east(),
        trust_domain: "east.example".parse().unwrap(),
        endpoints: vec!["east-1:7000".into()],
        invite: "i-1".into(),
        joined: Timestamp(1),
    }
}

fn bundle(trust_domain: &str, sequence: u64) -> Bundle {
    Bundle::new(trust_domain.parse().unwrap(), sequence, Vec::new())
}

fn summary(name: &str) -> ServiceSummary {
    let weight = LocalityWeight { endpoints: 1, ready_endpoints: 1, weight: 100, ready_weight: 100 };
    ServiceSummary {
        name: name.parse().unwrap(),
        identities: ["spiffe://east.example/ns/shop/sa/reviews".parse().unwrap()].into(),
        localities: [("eu/1".into(), weight)].into(),
    }
}

fn revocation(number: u64, origin: &str, id: &str) -> Revocation {
    Revocation::new(
        RevocationId { number, origin: origin.parse().unwrap() },
        RevocationTarget::Identity(id.parse().unwrap()),
        Reason::Unspecified,
        Timestamp(5),
    )
}

fn tell(view: &mut View, facts: impl IntoIterator<Item = PeerFact>) {
    for fact in facts {
        view.apply(&Change::PeerFact(east(), fact));
    }
}

fn service(name: &str, export: Option<Export>) -> Change {
    let name: ServiceName = name.parse().unwrap();
    Change::ServicePut(Service { name, identities: Default::default(), export })
}

#[test]
fn a_view_never_goes_back() {
    let mut view = view();
    assert!(view.advance(Revision(7), &[service("shop/reviews", None)]));
    let after = view.clone();
    let gone = [Change::ServiceGone("shop/reviews".parse().unwrap())];
    for old in [0, 1, 6, 7] {
        assert!(!view.advance(Revision(old), &gone));
        assert_eq!(view, after, "revision {old} is not newer");
    }
    assert!(view.advance(Revision(9), &gone), "a gap is no step back");
    assert!(view.services.is_empty() && view.revision == Revision(9));
}

#[test]
fn a_view_survives_its_own_snapshot() {
    let mut view = view();
    view.advance(Revision(3), &[service("shop/reviews", Some(Export::Only([east()].into())))]);
    tell(&mut view, [PeerFact::Begin, PeerFact::Service(summary("shop/ratings"))]);
    tell(&mut view, [PeerFact::Revoked(revocation(1, "east.example", "spiffe://east.example/ns/shop/sa/x"))]);
    let bytes = crate::wire::encode(&view);
    assert_eq!(crate::wire::decode::<View>("view", &bytes).unwrap(), view);
}

#[test]
fn a_retelling_removes_what_it_does_not_name() {
    let mut view = view();
    let names =
        |view: &View| view.peers[&east()].services.keys().map(|s| s.name().to_owned()).collect::<Vec<_>>();
    let told = |name: &str| PeerFact::Service(summary(name));
    assert_eq!(view.peers[&east()].state, PeerState::Joining);
    tell(&mut view, [PeerFact::Begin, told("shop/a"), told("shop/b"), told("shop/c"), PeerFact::Synced(10)]);
    assert_eq!(names(&view), ["a", "b", "c"]);
    assert_eq!((view.peers[&east()].synced, view.peers[&east()].state), (10, PeerState::Joined));

    // Not a retelling: what is not named stays.
    tell(&mut view, [told("shop/d"), PeerFact::Synced(11)]);
    assert_eq!(names(&view), ["a", "b", "c", "d"]);

    tell(&mut view, [PeerFact::Begin, told("shop/b"), told("shop/e")]);
    assert_eq!(names(&view), ["a", "b", "c", "d", "e"], "until it is complete, what was known serves");
    // Broken off and begun anew: only the last one counts.
    tell(&mut view, [PeerFact::Begin, told("shop/b"), PeerFact::Synced(20)]);
    assert_eq!(names(&view), ["b"]);
    tell(&mut view, [PeerFact::ServiceGone("shop/b".parse().unwrap()), PeerFact::Synced(21)]);
    assert!(names(&view).is_empty());
}

#[test]
fn a_peer_that_is_put_again_keeps_what_it_told() {
    let mut view = view();
    tell(&mut view, [PeerFact::Service(summary("shop/reviews")), PeerFact::Synced(4)]);
    let moved = PeerRecord { endpoints: vec!["east-9:7000".into()], ..record() };
    view.apply(&Change::PeerPut(moved.clone()));
    let peer = &view.peers[&east()];
    assert_eq!((&peer.record, peer.services.len(), peer.synced), (&moved, 1, 4));
}

#[test]
fn nothing_is_left_of_a_peer_that_is_gone() {
    let mut view = view();
    let before_join = {
        let mut view = view.clone();
        view.peers.clear();
        view
    };
    let ours = revocation(9, "west.example", "spiffe://west.example/ns/shop/sa/reviews");
    view.apply(&Change::Revoked(ours.clone()));
    tell(
        &mut view,
        [
            PeerFact::Bundle(bundle("east.example", 3)),
            PeerFact::Service(summary("shop/reviews")),
            PeerFact::Revoked(revocation(1, "east.example", "spiffe://east.example/ns/shop/sa/reviews")),
            PeerFact::Revoked(revocation(2, "east.example", "spiffe://east.example/ns/shop/sa/ratings")),
        ],
    );
    assert_eq!((view.bundles.len(), view.revocations.len()), (2, 3));
    view.apply(&Change::PeerGone(east()));
    assert!(view.revocations.get(&ours.id).is_some(), "our own revocations stay");
    view.apply(&Change::Unrevoked(ours.id));
    assert_eq!(view, before_join);
    tell(
        &mut view,
        [PeerFact::Service(summary("shop/reviews")), PeerFact::Bundle(bundle("east.example", 4))],
    );
    assert_eq!(view, before_join, "what it still says is not heard");
}

#[test]
fn a_peer_has_no_say_outside_its_own_trust_domain() {
    let mut view = view();
    let ours = revocation(9, "west.example", "spiffe://west.example/ns/shop/sa/reviews");
    view.apply(&Change::Revoked(ours.clone()));
    let before = view.clone();
    tell(
        &mut view,
        [
            PeerFact::Bundle(bundle("west.example", 99)),
            PeerFact::Bundle(bundle("north.example", 1)),
            PeerFact::Unrevoked(ours.id),
            PeerFact::Revoked(revocation(1, "west.example", "spiffe://west.example/ns/shop/sa/ratings")),
            PeerFact::Revoked(revocation(2, "east.example", "spiffe://west.example/ns/shop/sa/ratings")),
            PeerFact::Revoked(revocation(3, "north.example", "spiffe://east.example/ns/shop/sa/ratings")),
        ],
    );
    assert_eq!(view, before);
}

#[test]
fn between_clusters_nothing_may_be_called_unless_exported() {
    let mut view = view();
    let north = ClusterName::clone(&"north".parse().unwrap());
    view.apply(&Change::PeerPut(PeerRecord {
        cluster: north.clone(),
        trust_domain: "north.example".parse().unwrap(),
        ..record()
    }));
    view.apply(&service("shop/private", None));
    view.apply(&service("shop/public", Some(Export::Everyone)));
    view.apply(&service("shop/for-east", Some(Export::Only([east()].into()))));
    view.apply(&service("shop/for-nobody", Some(Export::Only([].into()))));
    for (caller, allowed) in [
        (
            "spiffe://west.example/ns/shop/sa/web",
            vec!["private", "public", "for-east", "for-nobody", "unknown"],
        ),
        ("spiffe://east.example/ns/shop/sa/web", vec!["public", "for-east"]),
        ("spiffe://north.example/ns/shop/sa/web", vec!["public"]),
        ("spiffe://stranger.example/ns/shop/sa/web", vec![]),
        // A name that only looks like ours.
        ("spiffe://west.example.org/ns/shop/sa/web", vec![]),
    ] {
        for name in ["private", "public", "for-east", "for-nobody", "unknown"] {
            let may = view.may_call(&caller.parse().unwrap(), &ServiceName::new("shop", name).unwrap());
            assert_eq!(may, allowed.contains(&name), "{caller} → {name}");
        }
    }
    view.apply(&Change::PeerGone(east()));
    let caller = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    assert!(!view.may_call(&caller, &ServiceName::new("shop", "public").unwrap()));
}

#[test]
fn endpoints_come_and_go_by_name() {
    let mut view = view();
    let endpoint = |id: &str, services: &[&str]| Endpoint {
        id: id.parse().unwrap(),
        services: services.iter().map(|s| s.parse().unwrap()).collect(),
        identity: "spiffe://west.example/ns/shop/sa/reviews".parse().unwrap(),
        address: "127.0.0.1:15006".parse().unwrap(),
        locality: Locality::default(),
        weight: 100,
        ready: false,
        session: Session { incarnation: 1, sequence: 1, node: "west-1".parse().unwrap() },
    };
    view.apply(&Change::EndpointPut(endpoint("a", &["shop/reviews", "shop/reviews-v1"])));
    view.apply(&Change::EndpointPut(endpoint("b", &["shop/reviews"])));
    let of = |view: &View, name: &str| view.endpoints_of(&name.parse().unwrap()).count();
    assert_eq!((of(&view, "shop/reviews"), of(&view, "shop/reviews-v1"), of(&view, "shop/x")), (2, 1, 0));
    view.apply(&Change::EndpointPut(endpoint("a", &["shop/x"])));
    assert_eq!((of(&view, "shop/reviews"), of(&view, "shop/reviews-v1"), of(&view, "shop/x")), (1, 0, 1));
    view.apply(&Change::EndpointGone("b".parse().unwrap()));
    assert_eq!(of(&view, "shop/reviews"), 0);
}

#[test]
fn a_peers_weights_do_not_overflow() {
    let mut boast = summary("shop/reviews");
    let weight = LocalityWeight { weight: u32::MAX, ready_weight: u32::MAX, ..LocalityWeight::default() };
    boast.localities = [("a/1".to_owned(), weight), ("b/1".to_owned(), weight)].into();
    assert_eq!((boast.weight(), boast.ready_weight()), (u32::MAX, u32::MAX));
}
