//! Bundles of foreign trust domains that an administrator sets and deletes by hand.

use hanse_federation::stranger::{Federation, Profile};
use hanse_identity::Authority;

use super::*;
use crate::role::Role;
use crate::state::strangers::{Dependents, MAX_BUNDLE_BYTES, MAX_STRANGERS};

const NORTH: &str = "north.example";
const HOUR: Duration = Duration::from_secs(3600);

/// A real authority's bundle, that ends an hour after `NOW`.
fn bundle(domain: &str, sequence: u64) -> Bundle {
    let key = crate::io::keys::new_key_pair().unwrap();
    let serial = crate::io::keys::random_serial();
    let made = Authority::create(&td(domain), &name("root"), key, serial, NOW, HOUR).unwrap();
    Bundle::new(td(domain), sequence, vec![made.certificate().clone()])
}

fn set(bundle: &Bundle) -> Command {
    Command::ForeignBundleSet { bundle: Box::new(bundle.clone()), older: false }
}

fn set_older(bundle: &Bundle) -> Command {
    Command::ForeignBundleSet { bundle: Box::new(bundle.clone()), older: true }
}

fn delete(domain: &str, registrations: Dependents) -> Command {
    Command::FederationDelete { trust_domain: td(domain), registrations: Some(registrations) }
}

fn federate(domain: &str) -> Command {
    let url = "https://bundles.example/".parse().unwrap();
    let profile = Profile::HttpsWeb { roots: None };
    let federation = Box::new(Federation { trust_domain: td(domain), url, profile });
    Command::FederationPut { federation, bundle: None }
}

fn kept(log: &Log) -> Option<&Bundle> {
    log.state.private.strangers.get(&td(NORTH)).and_then(|s| s.bundle.as_ref())
}

fn federating(identity: &str, domains: &[&str]) -> Registration {
    let federates_with = domains.iter().map(|domain| td(domain)).collect();
    Registration { federates_with, ..registration(identity, "host-1", &["shop/reviews"]) }
}

#[test]
fn a_bundle_is_set_by_hand_and_replaced_by_a_newer_one() {
    let mut log = Log::new();
    let (first, second) = (bundle(NORTH, 7), bundle(NORTH, 8));
    log.done(set(&first));
    log.already(set(&first));
    log.done(set(&second));
    assert_eq!(kept(&log), Some(&second));
    let bundles: Vec<_> = log.state.view.bundles.keys().cloned().collect();
    assert_eq!(bundles, [td("east.example")], "the View knows nothing of it");
    // Nothing is fetched for it: what somebody says was fetched is for no relationship.
    let stranger = &log.state.private.strangers[&td(NORTH)];
    assert_eq!((stranger.federation.as_ref(), stranger.endpoint_domain()), (None, None));
    let read = snapshot::decode(&snapshot::encode(&log.state)).unwrap();
    assert_eq!(read, log.state);
    // A relationship that is told of later begins with it.
    log.done(federate(NORTH));
    assert_eq!(kept(&log), Some(&second));
}

#[test]
fn f_3_by_hand_too_a_lower_sequence_needs_to_be_said() {
    let mut log = Log::new();
    let (seventh, other, sixth, none) =
        (bundle(NORTH, 7), bundle(NORTH, 7), bundle(NORTH, 6), bundle(NORTH, 0));
    log.done(set(&seventh));
    for older in [&other, &sixth, &none] {
        let Err(Refusal::Precondition(why)) = log.run(set(older)).0 else { panic!("{older:?}") };
        assert!(why.contains("--allow-lower-sequence"), "{why}");
        assert_eq!(kept(&log), Some(&seventh));
    }
    log.done(set_older(&sixth));
    log.done(set_older(&none));
    // Of a domain that does not count, what was said last is meant.
    log.done(set(&bundle(NORTH, 0)));
}

#[test]
fn a_stale_relationship_goes_on_from_what_was_set() {
    let mut log = Log::new();
    log.done(federate(NORTH));
    let (old, new) = (bundle(NORTH, 5), bundle(NORTH, 9));
    log.done(Command::ForeignBundlePut { bundle: Box::new(old.clone()), since: NOW });
    log.done(set(&new));
    log.precondition(Command::ForeignBundlePut { bundle: Box::new(old), since: NOW });
    assert_eq!(kept(&log), Some(&new));
    assert!(log.state.private.strangers[&td(NORTH)].federation.is_some(), "it goes on being fetched");
}

#[test]
fn our_own_and_joined_domains_and_bad_bundles_are_refused() {
    let mut log = Log::new();
    log.invalid(set(&bundle("east.example", 99)));
    log.invalid(delete("east.example", Dependents::Delete));
    log.done(Command::PeerAdd { invite: "i".into(), offer: Box::new(offer_of("west")) });
    log.precondition(set(&bundle("west.example", 99)));
    log.precondition(delete("west.example", Dependents::Delete));
    log.invalid(set(&Bundle::new(td(NORTH), 1, Vec::new())));
    log.invalid(set(&Bundle { trust_domain: td(NORTH), ..bundle("elsewhere.example", 1) }));
    let good = bundle(NORTH, 1);
    log.limit(set(&Bundle {
        authorities: vec![good.authorities[0].clone(); MAX_BUNDLE_BYTES / 100],
        ..good.clone()
    }));
    log.now = NOW + HOUR;
    log.invalid(set(&good));
    log.now = NOW;
    for number in 0..MAX_STRANGERS {
        log.done(federate(&format!("n{number}.example")));
    }
    log.limit(set(&good));
    // What is set by hand keeps the domain's cluster from joining, as a relationship does.
    log.done(Command::FederationDelete { trust_domain: td("n1.example"), registrations: None });
    log.done(set(&bundle("south.example", 1)));
    log.precondition(Command::PeerAdd { invite: "j".into(), offer: Box::new(offer_of("south")) });
}

#[test]
fn deleting_a_bundle_says_what_becomes_of_registrations() {
    let mut log = Log::new();
    assert!(log.not_found(delete(NORTH, Dependents::Restrict)).contains(NORTH));
    let other = "spiffe://east.example/ns/shop/sa/other";
    for (sequence, mode) in [(1, Dependents::Restrict), (2, Dependents::Dissociate), (3, Dependents::Delete)]
    {
        log.done(set(&bundle(NORTH, sequence)));
        let both = federating(REVIEWS, &[NORTH, "south.example"]);
        log.run(Command::WorkloadRegister { registration: both }).0.unwrap();
        log.run(Command::WorkloadRegister { registration: federating(other, &[]) }).0.unwrap();
        if mode == Dependents::Restrict {
            let Err(Refusal::Precondition(why)) = log.run(delete(NORTH, mode)).0 else { panic!() };
            assert!(why.contains(REVIEWS) && !why.contains(other) && why.contains("--mode"), "{why}");
            assert!(kept(&log).is_some());
            continue;
        }
        let changes = log.done(delete(NORTH, mode));
        assert_eq!(kept(&log), None);
        let left: Vec<_> = log.state.registrations_of(&id(REVIEWS)).collect();
        match mode {
            Dependents::Dissociate => {
                assert_eq!(left[0].federates_with, [td("south.example")].into());
                assert!(changes.is_empty());
            }
            _ => {
                assert!(left.is_empty());
                let service = &log.state.view.services[&service("shop/reviews")];
                assert_eq!(service.identities, [id(other)].into(), "it may not serve any more");
            }
        }
        assert_eq!(log.state.registrations_of(&id(other)).count(), 1);
    }
    // Nobody names it: there is nothing to say.
    log.done(set(&bundle(NORTH, 1)));
    log.done(delete(NORTH, Dependents::Restrict));
}

#[test]
fn who_changes_registrations_with_a_bundle_is_an_operator() {
    let mut log = Log::new();
    let here = id("spiffe://east.example/hanse/admin/a");
    log.done(Command::RoleUnbind { id: here.clone(), roles: [Role::Operator].into() });
    log.done(set(&bundle(NORTH, 1)));
    log.not_allowed(delete(NORTH, Dependents::Dissociate));
    log.not_allowed(delete(NORTH, Dependents::Delete));
    log.done(delete(NORTH, Dependents::Restrict));
    log.done(set(&bundle(NORTH, 1)));
    log.done(Command::RoleBind { id: here, roles: [Role::Operator].into() });
    log.done(delete(NORTH, Dependents::Delete));
}
