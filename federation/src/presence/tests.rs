//! Tests of when something is said again, against Views that have it, have it not, or have another life's.

use hanse_identity::{Reason, Revocation, RevocationId, RevocationTarget};

use super::*;
use crate::catalog::{Endpoint, Gateway};

const STARTED: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn view() -> View {
    View::new("west".parse().unwrap(), "west.example".parse().unwrap())
}

fn name() -> NodeName {
    "reviews-1".parse().unwrap()
}

fn identity() -> SpiffeId {
    "spiffe://west.example/ns/shop/sa/reviews".parse().unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn serves(services: &[&str]) -> Serves {
    let services = services.iter().map(|s| s.parse().unwrap()).collect();
    Serves::Services { services, inbound: "127.0.0.1:15006".parse().unwrap(), weight: 100 }
}

fn said(presence: &mut Presence, services: &[&str], now: Duration) -> Announcement {
    presence.say(&name(), &Locality::default(), true, serves(services), now)
}

/// What becomes of it in the log.
fn take(view: &mut View, said: &Announcement) {
    let session =
        Session { incarnation: said.incarnation, sequence: said.sequence, node: "west-1".parse().unwrap() };
    let (name, identity, locality) = (said.name.clone(), identity(), said.locality.clone());
    match &said.serves {
        Serves::Services { services, inbound, weight } => {
            let (id, services, address, weight, ready) = (name, services.clone(), *inbound, *weight, true);
            let endpoint = Endpoint { id, services, identity, address, locality, weight, ready, session };
            view.apply(&crate::Change::EndpointPut(endpoint));
        }
        Serves::Gateway { passthrough, tunnel } => {
            let (passthrough, tunnel, ready) = (*passthrough, tunnel.clone(), true);
            let gateway = Gateway { name, identity, locality, passthrough, tunnel, ready, session };
            view.apply(&crate::Change::GatewayPut(gateway));
        }
        Serves::Nothing => {}
    }
}

#[test]
fn what_is_shown_is_not_said_again_and_what_is_gone_is_ever_more_slowly() {
    let (mut presence, mut view) = (Presence::new(STARTED), view());
    assert!(!presence.is_due(&view, &identity(), seconds(100)), "nothing was said");
    let first = said(&mut presence, &["shop/reviews"], seconds(100));
    assert_eq!((first.incarnation, first.sequence), (STARTED.0, 1));
    assert!(!presence.is_due(&view, &identity(), Duration::from_millis(100_999)), "it may be on its way");
    take(&mut view, &first);
    assert!(!presence.is_due(&view, &identity(), seconds(101)));

    view.apply(&crate::Change::EndpointGone(name()));
    let mut moments = Vec::new();
    for now in 102..=250 {
        if presence.is_due(&view, &identity(), seconds(now)) {
            let again = said(&mut presence, &["shop/reviews"], seconds(now));
            assert_eq!(again.incarnation, first.incarnation);
            moments.push((now, again.sequence));
        }
    }
    assert_eq!(moments, [(102, 2), (104, 3), (108, 4), (116, 5), (132, 6), (162, 7), (192, 8), (222, 9)]);
    // It has to stand for a while before it is quick again.
    let again = said(&mut presence, &["shop/reviews"], seconds(251));
    take(&mut view, &again);
    assert!(!presence.is_due(&view, &identity(), seconds(252)));
    assert!(!presence.is_due(&view, &identity(), seconds(312)));
    view.apply(&crate::Change::EndpointGone(name()));
    assert!(presence.is_due(&view, &identity(), seconds(313)));
}

#[test]
fn a_life_that_finds_an_older_or_a_later_one_in_its_place_takes_it_back() {
    for (other, expected) in
        [(STARTED.0 - 5, STARTED.0), (STARTED.0 + 7, STARTED.0 + 8), (u64::MAX, u64::MAX)]
    {
        let (mut presence, mut view) = (Presence::new(STARTED), view());
        let mine = said(&mut presence, &["shop/reviews"], seconds(1));
        take(&mut view, &Announcement { incarnation: other, sequence: 3, ..mine });
        assert!(presence.is_due(&view, &identity(), seconds(2)));
        let again = said(&mut presence, &["shop/reviews"], seconds(2));
        assert_eq!((again.incarnation, again.sequence), (expected, 2));
    }
    // Somebody else's name is not ours to take: the log refuses, and we go on as we are.
    let (mut presence, mut view) = (Presence::new(STARTED), view());
    let mine = said(&mut presence, &["shop/reviews"], seconds(1));
    take(&mut view, &Announcement { incarnation: u64::MAX, ..mine });
    let other = "spiffe://west.example/ns/shop/sa/ratings".parse().unwrap();
    assert!(presence.is_due(&view, &other, seconds(2)));
    assert_eq!(said(&mut presence, &["shop/reviews"], seconds(2)).incarnation, STARTED.0);
}

#[test]
fn services_that_were_taken_away_are_said_again() {
    let (mut presence, mut view) = (Presence::new(STARTED), view());
    let mine = said(&mut presence, &["shop/reviews", "shop/extra"], seconds(1));
    take(&mut view, &Announcement { serves: serves(&["shop/reviews"]), ..mine });
    assert!(presence.is_due(&view, &identity(), seconds(2)));
}

#[test]
fn gateways_say_it_again_clients_never_and_the_revoked_wait() {
    let (mut presence, mut view) = (Presence::new(Timestamp(0)), view());
    let tunnel = "gateway-1:15008".to_owned();
    let gateway = Serves::Gateway { passthrough: "127.0.0.1:15443".parse().unwrap(), tunnel };
    let mine = presence.say(&name(), &Locality::default(), true, gateway, seconds(1));
    assert_eq!(mine.incarnation, 1, "0 is no process's");
    assert!(presence.is_due(&view, &identity(), seconds(2)));
    take(&mut view, &mine);
    assert!(!presence.is_due(&view, &identity(), seconds(100)));
    view.apply(&crate::Change::GatewayGone(name()));
    let id = RevocationId { number: 1, origin: "west.example".parse().unwrap() };
    let target = RevocationTarget::Identity(identity());
    let revocation = Revocation::new(id.clone(), target, Reason::Hold, STARTED);
    view.apply(&crate::Change::Revoked(revocation));
    assert!(!presence.is_due(&view, &identity(), seconds(200)));
    view.apply(&crate::Change::Unrevoked(id));
    assert!(presence.is_due(&view, &identity(), seconds(201)));

    for nothing in [Serves::Nothing, serves(&[])] {
        let mut presence = Presence::new(STARTED);
        presence.say(&name(), &Locality::default(), true, nothing, seconds(1));
        assert!(!presence.is_due(&view, &identity(), seconds(100)));
    }
}
