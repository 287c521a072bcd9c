//! Virtual addresses: the same for everybody and at all times, never one for two names.

use super::*;
use crate::catalog::{Service, ServiceSummary};
use crate::change::{Change, PeerFact, PeerRecord};
use crate::policy::parse;

fn view(services: &[String]) -> View {
    let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
    for name in services {
        let service = Service { name: name.parse().unwrap(), identities: BTreeSet::default(), export: None };
        view.apply(&Change::ServicePut(service));
    }
    view
}

fn host(name: &str) -> ServiceHost {
    ServiceHost::parse(name).unwrap()
}

#[test]
fn an_address_is_of_its_range_and_stays_what_it_is() {
    let two = view(&["shop/reviews".to_owned(), "shop/redis".to_owned()]);
    let table = Addresses::default().next(&two).unwrap();
    assert!(table.next(&two).is_none(), "nothing has changed");
    let reviews = table.of(&host("reviews.shop.svc.clusterset.local")).unwrap();
    // A golden value: the next version has to come to it as well.
    let golden = ("240.249.201.177".to_owned(), "fd68:616e:7365:0:bb69:58af:fa7a:e850".to_owned());
    assert_eq!((reviews.v4.to_string(), reviews.v6.to_string()), golden);
    assert!(is_virtual(reviews.v4.into()) && is_virtual(reviews.v6.into()));
    let here = table.of(&host("reviews.shop.svc.cluster.local")).unwrap();
    assert!(here.v4 != reviews.v4 && here.v6 != reviews.v6, "how far a name reaches is part of it");
    let of = |address: IpAddr| table.at(address).map(|host| host.to_host()).unwrap();
    assert_eq!(of(reviews.v4.into()), "reviews.shop.svc.clusterset.local");
    assert_eq!(of(here.v6.into()), "reviews.shop.svc.cluster.local");
    assert_eq!(table.at("240.240.0.0".parse().unwrap()), None);
    assert_eq!(table.of(&host("details.shop")), None);

    let alone = Addresses::default().next(&view(&["shop/reviews".to_owned()])).unwrap();
    assert_eq!(alone.of(&host("reviews.shop")), Some(reviews), "whoever else there is");
}

#[test]
fn what_is_gone_is_unknown_and_its_address_nobody_elses() {
    let both = ["shop/reviews".to_owned(), "shop/redis".to_owned()];
    let before = Addresses::default().next(&view(&both)).unwrap();
    let redis = before.of(&host("redis.shop")).unwrap();
    let without = before.next(&view(&both[..1])).unwrap();
    assert_eq!((without.of(&host("redis.shop")), without.at(redis.v4.into())), (None, None));
    assert!(without.v4.contains_key(&redis.v4), "kept for it");
    let again = without.next(&view(&both)).unwrap();
    assert_eq!(again.of(&host("redis.shop")), Some(redis));
    let nothing = again.next(&view(&[])).unwrap();
    assert_eq!(nothing.of(&host("reviews.shop")), None);
}

#[test]
fn of_names_that_come_to_the_same_address_the_one_that_has_it_keeps_it() {
    // So many that some do: two names a service in a range of 2^20.
    let all: Vec<String> = (0..3000).map(|n| format!("shop/s{n}")).collect();
    let table = Addresses::default().next(&view(&all)).unwrap();
    assert_eq!((table.names.len(), table.v4.len(), table.v6.len()), (6000, 6000, 6000));
    let moved: Vec<_> =
        table.names.iter().filter(|(host, pair)| v4_of(&host.to_host(), 0) != pair.v4).collect();
    assert!(!moved.is_empty(), "no two names met");
    for (host, pair) in moved {
        let holder = &table.v4[&v4_of(&host.to_host(), 0)];
        assert!(holder < host, "{holder:?} comes before {host:?}");
        // The other one is served first: it keeps the address when the first comes.
        let late = Addresses::default().next(&view(&[host.service.to_string()])).unwrap();
        let both = view(&[host.service.to_string(), holder.service.to_string()]);
        let kept = late.of(host).unwrap();
        assert_ne!(kept.v4, pair.v4);
        assert_eq!(late.next(&both).unwrap().of(host), Some(kept));
    }
}

#[test]
fn names_that_only_routes_know_have_addresses_too_and_remembering_ends() {
    let mut routed = view(&[]);
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: r, namespace: shop }\n\
                spec:\n  parentRefs: [{ kind: ServiceImport, group: multicluster.x-k8s.io, name: front }]\n  \
                rules: [{ backendRefs: [{ name: reviews }] }]\n";
    for (document, _) in parse("test", text).unwrap_or_else(|e| panic!("{e:#?}")) {
        routed.apply(&Change::PolicyPut(Box::new(document)));
    }
    let mut table = Addresses::default().next(&routed).unwrap();
    assert!(table.of(&host("front.shop.svc.clusterset.local")).is_some());
    for round in 0..8 {
        let all: Vec<String> = (0..1000).map(|n| format!("shop/r{round}-{n}")).collect();
        table = table.next(&view(&all)).unwrap();
        assert!(table.names.len() <= MAX_GONE + 4000, "{} names", table.names.len());
        assert!(table.of(&host(&format!("r{round}-7.shop"))).is_some());
    }
}

#[test]
fn virtual_is_what_is_in_the_ranges() {
    for (address, expected) in [
        ("240.240.0.0", true),
        ("240.255.255.255", true),
        ("240.239.255.255", false),
        ("241.0.0.0", false),
        ("::ffff:240.240.0.1", true),
        ("fd68:616e:7365::1", true),
        ("fd68:616e:7366::1", false),
        ("10.0.0.1", false),
    ] {
        assert_eq!(is_virtual(address.parse().unwrap()), expected, "{address}");
    }
}

#[test]
fn a_table_that_peers_filled_has_room_for_names_of_ones_own() {
    let served = |own: &[String], peers: usize| {
        let mut view = view(own);
        let west: hanse_identity::ClusterName = "west".parse().unwrap();
        view.apply(&Change::PeerPut(PeerRecord {
            cluster: west.clone(),
            trust_domain: "west.example".parse().unwrap(),
            endpoints: vec![],
            invite: String::new(),
            joined: hanse_identity::Timestamp(1),
        }));
        for n in 0..peers {
            let name = format!("shop/p{n:03}").parse().unwrap();
            let localities = std::collections::BTreeMap::new();
            let summary = ServiceSummary { name, identities: BTreeSet::new(), localities };
            view.apply(&Change::PeerFact(west.clone(), PeerFact::Service(summary)));
        }
        view
    };
    const MOST: usize = 100;
    let full = Addresses::default().within(&served(&["shop/one".to_owned()], 120), MOST).unwrap();
    assert_eq!((full.names.len(), full.known.len()), (MOST, 122), "more are known than have an address");
    let of = |table: &Addresses, name: &str| table.of(&host(name));
    assert!(
        of(&full, "one.shop").is_some()
            && of(&full, "p097.shop").is_some()
            && of(&full, "p098.shop").is_none()
    );
    // Two names of one service of ours: as many of a peer's go, and the others keep what they have.
    let both = ["shop/one".to_owned(), "shop/two".to_owned()];
    let next = full.within(&served(&both, 120), MOST).unwrap();
    assert_eq!((next.names.len(), next.v4.len(), next.v6.len()), (MOST, MOST, MOST));
    assert!(of(&next, "two.shop").is_some() && of(&next, "two.shop.svc.cluster.local").is_some());
    assert!(of(&next, "p095.shop").is_some() && of(&next, "p096.shop").is_none());
    let all: Vec<_> = next.all().filter(|(host, _)| host.service.name() != "two").collect();
    assert!(all.iter().all(|(host, pair)| full.of(host) == Some(*pair)));
    // Names that are gone are the first to go.
    let fewer = next.within(&served(&both, 90), MOST).unwrap();
    assert!(
        fewer.names.len() == MOST && of(&fewer, "p095.shop").is_none() && of(&fewer, "p089.shop").is_some()
    );
    let three = [&both[..], &["shop/three".to_owned()]].concat();
    let third = fewer.within(&served(&three, 90), MOST).unwrap();
    assert!(of(&third, "three.shop").is_some() && of(&third, "p089.shop").is_some());
    assert_eq!(third.names.len(), 96);
}
