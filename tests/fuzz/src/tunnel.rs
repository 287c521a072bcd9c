//! A tunnel's CONNECT: of all authorities only those that name an exported service, to every reader, open one.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use hanse_federation::catalog::{Locality, Session};
use hanse_federation::change::{Change, PeerRecord};
use hanse_federation::{Endpoint, Export, Service, View};
use hanse_identity::{SpiffeId, Timestamp};
use http::uri::Authority;

use crate::route::{Denied, admit};

fn view() -> &'static View {
    static VIEW: OnceLock<View> = OnceLock::new();
    VIEW.get_or_init(|| {
        let identity: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().expect("a constant");
        let mut view = View::new("east".parse().expect("a constant"), identity.trust_domain().clone());
        view.apply(&Change::PeerPut(PeerRecord {
            cluster: "west".parse().expect("a constant"),
            trust_domain: "west.example".parse().expect("a constant"),
            endpoints: vec![],
            invite: "i".to_owned(),
            joined: Timestamp(0),
        }));
        for (name, export) in [("shop/reviews", Some(Export::Everyone)), ("shop/ratings", None)] {
            view.apply(&Change::ServicePut(Service {
                name: name.parse().expect("a constant"),
                identities: BTreeSet::from([identity.clone()]),
                export,
            }));
            view.apply(&Change::EndpointPut(Endpoint {
                id: format!("{}-1", &name[5..]).parse().expect("a constant"),
                services: BTreeSet::from([name.parse().expect("a constant")]),
                identity: identity.clone(),
                address: "127.0.0.1:1".parse().expect("a constant"),
                locality: Locality::default(),
                weight: 1,
                ready: true,
                session: Session { incarnation: 1, sequence: 1, node: "east-1".parse().expect("a constant") },
            }));
        }
        view
    })
}

pub fn run(bytes: &[u8]) -> bool {
    // As it comes from HTTP/2: the library has read an authority, and its text is looked at again.
    let Ok(authority) = Authority::try_from(bytes) else { return false };
    let caller = |cluster: &str| -> SpiffeId {
        format!("spiffe://{cluster}.example/ns/shop/sa/web").parse().expect("a constant")
    };
    let names = |service: &str| {
        let host = authority.host().to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let short = format!("{service}.shop");
        let rest = host.strip_prefix(short.as_str());
        // No userinfo: what stands before the `@` is read as the host by some.
        let plain = !authority.as_str().contains('@');
        plain && matches!(rest, Some("" | ".svc.clusterset.local" | ".svc.cluster.local"))
    };
    let at_home = admit(view(), &caller("east"), authority.as_str());
    let abroad = admit(view(), &caller("west"), authority.as_str());
    let unknown = admit(view(), &caller("south"), authority.as_str());
    assert!(unknown.is_err(), "{authority}");
    match (&at_home, &abroad) {
        (Ok(home), Ok(away)) => {
            assert!(
                home == away && home.service().to_string() == "shop/reviews" && names("reviews"),
                "{authority}"
            );
        }
        (Ok(home), Err(Denied::NotExported { service, .. })) => {
            assert!(home.service() == service && names("ratings"), "{authority}");
        }
        (Err(home), Err(away)) => assert_eq!(home, away, "{authority}"),
        other => panic!("{authority}: {other:?}"),
    }
    if let Ok(admitted) = &at_home {
        assert_eq!(admitted.endpoints(view(), 7).len(), 1);
    }
    at_home.is_ok()
}

pub fn seeds() -> Vec<Vec<u8>> {
    crate::texts(&[
        "reviews.shop.svc.clusterset.local:80",
        "ratings.shop.svc.cluster.local",
        "reviews.shop.:443",
        "REVIEWS.shop",
        "idle.shop.svc.clusterset.local",
        "ann@reviews.shop:80",
        "reviews.shop:0",
        "[::1]:80",
    ])
}
