//! Foreign trust domains in the log: what a relationship may be, whose bundles are never taken, what ends one.

use hanse_federation::stranger::{Federation, Profile};
use hanse_identity::Authority;

use super::*;

const NORTH: &str = "north.example";

fn web(domain: &str) -> Federation {
    let url = "https://bundles.example/".parse().unwrap();
    Federation { trust_domain: td(domain), url, profile: Profile::HttpsWeb { roots: None } }
}

fn spiffe(domain: &str, endpoint: &str) -> Federation {
    Federation { profile: Profile::HttpsSpiffe { endpoint_id: id(endpoint) }, ..web(domain) }
}

fn put(federation: Federation, bundle: Option<Bundle>) -> Command {
    Command::FederationPut { federation: Box::new(federation), bundle: bundle.map(Box::new) }
}

fn fetched(bundle: Bundle, since: Timestamp) -> Command {
    Command::ForeignBundlePut { bundle: Box::new(bundle), since }
}

fn ended(domain: &str) -> Command {
    Command::FederationDelete { trust_domain: td(domain), registrations: None }
}

/// A real authority: foreign bundles are read again when they are applied.
fn bundle(domain: &str, sequence: u64) -> Bundle {
    let key = crate::io::keys::new_key_pair().unwrap();
    let lifetime = Duration::from_secs(3600);
    let serial = crate::io::keys::random_serial();
    let made = Authority::create(&td(domain), &name("root"), key, serial, NOW, lifetime).unwrap();
    Bundle::new(td(domain), sequence, vec![made.certificate().clone()])
}

fn kept(log: &Log) -> Option<&Bundle> {
    log.state.private.strangers.get(&td(NORTH)).and_then(|s| s.bundle.as_ref())
}

#[test]
fn f_3_a_lower_sequence_is_refused_and_an_administrators_word_is_taken() {
    let mut log = Log::new();
    log.done(put(web(NORTH), None));
    log.already(put(web(NORTH), None));
    let (seventh, sixth) = (bundle(NORTH, 7), bundle(NORTH, 6));
    log.done(fetched(seventh.clone(), NOW));
    log.already(fetched(seventh.clone(), NOW));
    log.precondition(fetched(sixth.clone(), NOW));
    log.precondition(fetched(bundle(NORTH, 7), NOW));
    assert_eq!(kept(&log), Some(&seventh));
    log.done(put(web(NORTH), Some(sixth.clone())));
    assert_eq!(kept(&log), Some(&sixth));
    // Another URL, the same domain: what is kept stays.
    log.done(put(Federation { url: "https://other.example/".parse().unwrap(), ..web(NORTH) }, None));
    assert_eq!(kept(&log), Some(&sixth));
}

#[test]
fn f_3_bundles_of_different_domains_are_never_merged() {
    let mut log = Log::new();
    log.done(put(web(NORTH), None));
    log.precondition(fetched(bundle("elsewhere.example", 1), NOW));
    log.invalid(put(web(NORTH), Some(bundle("elsewhere.example", 1))));
    let disguised = Bundle { trust_domain: td(NORTH), ..bundle("elsewhere.example", 1) };
    log.invalid(fetched(disguised, NOW));
    assert_eq!(kept(&log), None);
    let bundles: Vec<_> = log.state.view.bundles.keys().cloned().collect();
    assert_eq!(bundles, [td("east.example")], "the View knows nothing of strangers");
}

#[test]
fn our_own_and_joined_domains_get_no_bundle_from_outside() {
    let mut log = Log::new();
    log.invalid(put(web("east.example"), None));
    log.invalid(fetched(bundle("east.example", 99), NOW));
    let offer = Box::new(offer_of("west"));
    log.done(put(web("west.example"), None));
    log.precondition(Command::PeerAdd { invite: "i".into(), offer: offer.clone() });
    log.done(ended("west.example"));
    log.done(Command::PeerAdd { invite: "i".into(), offer });
    log.precondition(put(web("west.example"), None));
    log.precondition(fetched(bundle("west.example", 99), NOW));
}

#[test]
fn f_8_a_first_fetch_by_spiffe_id_needs_a_bundle_of_the_endpoints_domain() {
    let mut log = Log::new();
    log.precondition(put(spiffe(NORTH, "spiffe://north.example/spire/server"), None));
    log.invalid(put(spiffe(NORTH, "spiffe://north.example"), Some(bundle(NORTH, 1))));
    log.done(put(spiffe(NORTH, "spiffe://north.example/spire/server"), Some(bundle(NORTH, 1))));
    // Another domain's endpoint may serve it, if that domain is known.
    log.precondition(put(
        spiffe("south.example", "spiffe://elsewhere.example/x"),
        Some(bundle("south.example", 1)),
    ));
    log.done(put(spiffe("south.example", "spiffe://north.example/spire/server"), None));
    log.precondition(ended(NORTH));
    log.done(ended("south.example"));
    log.done(ended(NORTH));
}

#[test]
fn f_9_what_ended_is_gone_and_a_late_fetch_does_not_bring_it_back() {
    let mut log = Log::new();
    log.done(put(web(NORTH), Some(bundle(NORTH, 1))));
    log.done(ended(NORTH));
    assert!(log.not_found(ended(NORTH)).contains(NORTH));
    log.precondition(fetched(bundle(NORTH, 2), NOW));
    log.now = NOW + Duration::from_secs(1);
    log.done(put(web(NORTH), None));
    log.precondition(fetched(bundle(NORTH, 2), NOW));
    log.done(fetched(bundle(NORTH, 2), log.now));
}

/// No keys at all: every key is revoked, and nobody of that domain is believed (B-4).
#[test]
fn b_4_an_empty_bundle_replaces_the_one_before() {
    let mut log = Log::new();
    log.done(put(web(NORTH), Some(bundle(NORTH, 1))));
    log.done(fetched(Bundle::new(td(NORTH), 2, Vec::new()), NOW));
    assert_eq!(kept(&log).map(|b| b.authorities.len()), Some(0));
}

#[test]
fn strangers_are_bounded() {
    let mut log = Log::new();
    for number in 0..crate::state::strangers::MAX_STRANGERS {
        log.done(put(web(&format!("n{number}.example")), None));
    }
    log.limit(put(web(NORTH), None));
    let roots = Some("x".repeat(hanse_federation::stranger::MAX_ROOTS_BYTES + 1));
    log.invalid(put(Federation { profile: Profile::HttpsWeb { roots }, ..web("n1.example") }, None));
    let read = snapshot::decode(&snapshot::encode(&log.state)).unwrap();
    assert_eq!(read, log.state);
}

#[test]
fn what_a_stranger_changes_drives_out_no_deed_of_ours() {
    let mut log = Log::new();
    log.done(put(web(NORTH), None));
    let bundle = bundle(NORTH, 0);
    for sequence in 1..audit::MAX_OTHERS as u64 + 10 {
        log.index += 1;
        let actor = String::new();
        let command = fetched(Bundle { sequence, ..bundle.clone() }, NOW);
        let proposal = Proposal { id: log.index, now: NOW, actor, certificate: None, command };
        log.state.apply(log.index, &proposal).0.result.unwrap();
    }
    let rows: Vec<_> = log.state.private.audit.newest().map(|row| row.kind.clone()).collect();
    assert_eq!(rows.len(), 1 + audit::MAX_OTHERS);
    assert_eq!(rows.last().map(String::as_str), Some("federation-put"));
}
