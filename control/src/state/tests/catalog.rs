//! Services, endpoints, gateways, exports and policies: what may be registered, announced and applied.

use super::*;
use hanse_federation::policy::document::authentication::{JwtRule, RequestAuthentication};
use hanse_federation::policy::document::fault::FaultDelay;
use hanse_federation::policy::document::peer::{PeerMode, PortMode};
use hanse_federation::policy::moment::Moment;
use hanse_federation::policy::{FaultInjection, PeerAuthentication, PolicyDuration};

#[test]
fn a_service_has_the_identities_of_its_registrations() {
    let mut log = Log::new();
    let changes = log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    assert!(matches!(&changes[..], [Change::ServicePut(s)] if s.identities.contains(&id(REVIEWS))));
    log.already(register(REVIEWS, "host-1", &["shop/reviews"]));
    // The same identity on another host adds nothing to the service.
    assert!(log.done(register(REVIEWS, "host-2", &["shop/reviews"])).is_empty());
    log.done(register(RATINGS, "host-1", &["shop/reviews", "shop/ratings"]));
    assert_eq!(log.state.view.services[&service("shop/reviews")].identities.len(), 2);
    // It stays as long as one host has it.
    log.done(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-1").into() });
    assert_eq!(log.state.view.services[&service("shop/reviews")].identities.len(), 2);
    log.done(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-2").into() });
    assert_eq!(log.state.view.services[&service("shop/reviews")].identities, BTreeSet::from([id(RATINGS)]));
    // Nothing keeps it any more.
    let changes = log.done(register(RATINGS, "host-1", &["shop/ratings"]));
    assert_eq!(changes, vec![Change::ServiceGone(service("shop/reviews"))]);
    log.not_found(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-1").into() });
}

#[test]
fn an_identity_is_not_mistaken_for_one_that_starts_alike() {
    let mut log = Log::new();
    log.done(register("spiffe://east.example/ns/shop/sa/reviews-v2", "host-1", &["shop/reviews"]));
    log.not_allowed(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
}

#[test]
fn registrations_are_checked() {
    let mut log = Log::new();
    log.not_allowed(register("spiffe://west.example/ns/shop/sa/x", "host-1", &[]));
    log.not_allowed(register("spiffe://east.example/hanse/node/east-1", "host-1", &[]));
    log.not_allowed(register("spiffe://east.example/hanse/other/x", "host-1", &[]));
    log.invalid(register("spiffe://east.example", "host-1", &[]));
    log.invalid(register("spiffe://east.example/hanse/gateway/gateway-1", "host-1", &["shop/reviews"]));
    log.done(register("spiffe://east.example/hanse/gateway/gateway-1", "host-1", &[]));
    let mut bare = registration(REVIEWS, "host-1", &[]);
    bare.selectors.clear();
    log.invalid(Command::WorkloadRegister { registration: bare });
    let mut many = registration(REVIEWS, "host-1", &[]);
    many.services = (0..=MAX_PER_REGISTRATION).map(|i| service(&format!("shop/s{i}"))).collect();
    log.limit(Command::WorkloadRegister { registration: many });
}

#[test]
fn endpoints_come_and_go_with_their_sessions() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews", "shop/reviews-v1"]));
    let changes = log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    assert!(matches!(&changes[..], [Change::EndpointPut(e)] if e.session == session((1, 1), "east-1")));
    log.already(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    log.done(announce("reviews-1", REVIEWS, (1, 3), &["shop/reviews", "shop/reviews-v1"]));
    log.already(announce("reviews-1", REVIEWS, (1, 2), &["shop/reviews"]));
    // The same words over another node's stream: that one is alive now.
    log.done(announce_via("east-2", "reviews-1", REVIEWS, (1, 3), serves(&["shop/reviews"])));
    log.already(withdraw("reviews-1", (1, 3)));
    assert!(log.state.view.endpoints.contains_key(&name("reviews-1")));
    // Another life of the process counts from the start.
    log.done(announce("reviews-1", REVIEWS, (2, 1), &["shop/reviews"]));
    // An earlier life's comes late, by another node, and that its stream has ended: the present one stands.
    log.already(announce_via("east-2", "reviews-1", REVIEWS, (1, 9), serves(&["shop/reviews"])));
    log.already(announce_via("east-2", "reviews-1", REVIEWS, (1, 10), Serves::Nothing));
    let late = Command::Withdraw { name: name("reviews-1"), session: session((1, 9), "east-2") };
    log.already(late);
    log.already(withdraw("reviews-1", (1, 3)));
    let changes = log.done(withdraw("reviews-1", (2, 1)));
    assert_eq!(changes, vec![Change::EndpointGone(name("reviews-1"))]);
    assert!(log.state.view.services.contains_key(&service("shop/reviews")), "its registration keeps it");
    log.already(withdraw("reviews-1", (2, 1)));
}

#[test]
fn announcements_are_checked() {
    let mut log = Log::new();
    log.not_allowed(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    log.done(register(RATINGS, "host-1", &["shop/ratings"]));
    log.not_allowed(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews", "shop/ratings"]));
    log.not_allowed(announce(
        "reviews-1",
        "spiffe://west.example/ns/shop/sa/reviews",
        (1, 1),
        &["shop/reviews"],
    ));
    let none = Serves::Services {
        services: services(&["shop/reviews"]),
        inbound: "127.0.0.1:9000".parse().unwrap(),
        weight: 0,
    };
    log.invalid(announce_via("east-1", "reviews-1", REVIEWS, (1, 1), none));
    log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    // The name is taken as long as its owner has it.
    log.not_allowed(announce("reviews-1", RATINGS, (9, 9), &["shop/ratings"]));
    log.not_allowed(announce_via("east-1", "reviews-1", RATINGS, (9, 9), Serves::Nothing));
    log.done(withdraw("reviews-1", (1, 1)));
    log.done(announce("reviews-1", RATINGS, (9, 9), &["shop/ratings"]));
    let mut long = announcement("reviews-2", (1, 1), serves(&["shop/reviews"]));
    long.locality.zone = "z".repeat(MAX_TEXT_BYTES + 1);
    let (announcement, identity) = (Box::new(long), id(REVIEWS));
    log.invalid(Command::Announce { announcement, identity, node: name("east-1") });
}

#[test]
fn one_who_serves_nothing_any_more_has_no_endpoint() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    log.already(announce_via("east-1", "client-1", REVIEWS, (1, 1), Serves::Nothing));
    log.done(announce("reviews-1", REVIEWS, (1, 1), &["shop/reviews"]));
    let changes = log.done(announce_via("east-1", "reviews-1", REVIEWS, (1, 2), Serves::Nothing));
    assert_eq!(changes, vec![Change::EndpointGone(name("reviews-1"))]);
}

#[test]
fn what_a_registration_no_longer_allows_is_no_longer_served() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/a", "shop/b"]));
    log.done(announce("p-1", REVIEWS, (1, 1), &["shop/a", "shop/b"]));
    log.done(announce("p-2", REVIEWS, (1, 1), &["shop/b"]));
    log.done(register(REVIEWS, "host-1", &["shop/a"]));
    assert_eq!(log.state.view.endpoints[&name("p-1")].services, services(&["shop/a"]));
    assert!(!log.state.view.endpoints.contains_key(&name("p-2")));
    assert!(!log.state.view.services.contains_key(&service("shop/b")));
}

#[test]
fn a_gateway_speaks_only_for_itself() {
    let mut log = Log::new();
    let own = "spiffe://east.example/hanse/gateway/gateway-1";
    log.not_allowed(gateway("gateway-2", own, (1, 1)));
    log.not_allowed(gateway("gateway-1", REVIEWS, (1, 1)));
    log.not_allowed(gateway("gateway-1", "spiffe://west.example/hanse/gateway/gateway-1", (1, 1)));
    log.done(gateway("gateway-1", own, (1, 1)));
    log.already(gateway("gateway-1", own, (1, 1)));
    let passthrough = "127.0.0.1:15443".parse().unwrap();
    let nowhere = Serves::Gateway { passthrough, tunnel: "nowhere".into() };
    log.invalid(announce_via("east-1", "gateway-1", own, (1, 2), nowhere));
    log.done(withdraw("gateway-1", (1, 1)));
    assert!(log.state.view.gateways.is_empty());
}

#[test]
fn exports_are_for_services_that_exist() {
    let mut log = Log::new();
    log.done(register(REVIEWS, "host-1", &["shop/reviews"]));
    let export = |name: &str, to| Command::Export { service: service(name), to };
    let what = log.not_found(export("shop/revews", Export::Everyone));
    assert!(what.contains("shop/reviews"), "{what}");
    log.invalid(export("shop/reviews", Export::Only(BTreeSet::new())));
    log.invalid(export("shop/reviews", Export::Only(BTreeSet::from([east()]))));
    let unexport = || Command::Unexport { service: service("shop/reviews") };
    log.already(unexport());
    log.done(export("shop/reviews", Export::Everyone));
    log.already(export("shop/reviews", Export::Everyone));
    log.done(export("shop/reviews", Export::Only(BTreeSet::from([west()]))));
    // The export alone keeps the service, without identities.
    log.done(Command::WorkloadDelete { id: id(REVIEWS), agent: name("host-1").into() });
    assert!(log.state.view.services[&service("shop/reviews")].identities.is_empty());
    assert_eq!(log.done(unexport()), vec![Change::ServiceGone(service("shop/reviews"))]);
    log.not_found(unexport());
}

#[test]
fn policies_are_applied_all_or_none() {
    let mut log = Log::new();
    log.already(Command::PolicyApply { documents: Vec::new() });
    log.done(Command::PolicyApply { documents: vec![route("shop/a")] });
    let key = |kind, text| PolicyKey { kind, name: service(text) };
    assert_eq!(log.state.view.policies[&key(PolicyKind::HttpRoute, "shop/a")].created, NOW);
    log.now = NOW + Duration::from_secs(5);
    log.already(Command::PolicyApply { documents: vec![route("shop/a")] });
    log.invalid(Command::PolicyApply { documents: vec![route("shop/b"), route("shop/b")] });
    let backend = policy("shop/a", PolicySpec::BackendPolicy(Box::default()));
    log.done(Command::PolicyApply { documents: vec![route("shop/a"), backend] });
    assert_eq!(log.state.view.policies.len(), 2);
    let keys = vec![key(PolicyKind::HttpRoute, "shop/a"), key(PolicyKind::HttpRoute, "shop/zz")];
    log.not_found(Command::PolicyDelete { keys });
    assert_eq!(log.state.view.policies.len(), 2);
    log.done(Command::PolicyDelete { keys: vec![key(PolicyKind::HttpRoute, "shop/a")] });
    assert_eq!(log.state.view.policies.len(), 1);
}

#[test]
fn a_fault_ends_by_itself_and_begins_anew_only_when_it_is_changed() {
    let mut log = Log::new();
    let fault = |minutes: u64| {
        let lasts = PolicyDuration::new(Duration::from_secs(60 * minutes));
        let delay = Some(FaultDelay { percent: 10, fixed: PolicyDuration::new(Duration::from_secs(2)) });
        policy(
            "shop/slow",
            PolicySpec::FaultInjection(FaultInjection { lasts, only: None, delay, abort: None }),
        )
    };
    let key = PolicyKey { kind: PolicyKind::FaultInjection, name: service("shop/slow") };
    log.done(Command::PolicyApply { documents: vec![fault(15), route("shop/a")] });
    let (began, quarter) = (log.now, Duration::from_secs(15 * 60));
    log.now = began + Duration::from_secs(60);
    // The same again, as tools that apply and apply do, prolongs nothing.
    log.already(Command::PolicyApply { documents: vec![fault(15)] });
    assert_eq!(log.state.view.policies[&key].ends(), Some(began + quarter));
    log.done(Command::PolicyApply { documents: vec![fault(14)] });
    assert_eq!(log.state.view.policies[&key].ends(), Some(began + quarter), "a minute later, a minute less");
    log.now = began + quarter - Duration::from_millis(1);
    assert_eq!(log.state.lapsed_policies(log.now), []);
    log.already(Command::PolicyLapse { keys: vec![key.clone()] });
    log.now = began + quarter;
    assert_eq!(log.state.lapsed_policies(log.now), std::slice::from_ref(&key));
    // Over, though nobody has removed it yet: the same again is a new one.
    log.done(Command::PolicyApply { documents: vec![fault(14)] });
    log.now = log.now + Duration::from_secs(14 * 60);
    assert_eq!(log.state.view.policies[&key].ends(), Some(log.now));
    let stays = PolicyKey { kind: PolicyKind::HttpRoute, name: service("shop/a") };
    log.done(Command::PolicyLapse { keys: vec![key, stays.clone()] });
    assert_eq!(log.state.view.policies.keys().collect::<Vec<_>>(), [&stays]);
}

#[test]
fn more_sources_of_keys_than_are_fetched_are_refused_when_they_are_named() {
    let mut log = Log::new();
    let blank: JwtRule = serde_json::from_str(r#"{"issuer":""}"#).unwrap();
    let from = |name: &str, hosts: std::ops::Range<usize>| {
        let rule = |n| JwtRule {
            issuer: format!("i{n}"),
            jwks_uri: Some(format!("https://id-{n}.example/keys").parse().unwrap()),
            ..blank.clone()
        };
        let spec = RequestAuthentication { target_refs: Vec::new(), jwt_rules: hosts.map(rule).collect() };
        policy(name, PolicySpec::RequestAuthentication(spec))
    };
    let apply = |documents: &[PolicyDocument]| Command::PolicyApply { documents: documents.to_vec() };
    log.done(apply(&[from("shop/a", 0..100), from("shop/b", 90..MAX_ISSUER_KEYS)]));
    // Named again, by another document too, they are no more than they were.
    log.done(apply(&[from("shop/c", 0..MAX_ISSUER_KEYS)]));
    let refusal =
        log.refused(apply(&[from("shop/d", 0..1), from("shop/e", MAX_ISSUER_KEYS..MAX_ISSUER_KEYS + 2)]));
    let Refusal::Limit(why) = refusal else { panic!("{refusal:?}") };
    assert!(why.starts_with("128 sources") && why.contains("would be 130"), "{why}");
    log.done(apply(&[route("shop/r")]));
    // What is replaced is named no more.
    log.done(Command::PolicyDelete {
        keys: vec![PolicyKey { kind: PolicyKind::RequestAuthentication, name: service("shop/c") }],
    });
    log.done(apply(&[from("shop/a", 1..89), from("shop/e", 200..201)]));
    log.limit(apply(&[from("shop/e", 200..220)]));
}

#[test]
fn a_permissive_port_closes_by_itself_and_none_is_open_for_long() {
    let mut log = Log::new();
    let day = Duration::from_secs(24 * 3600);
    let document = |until: Timestamp| {
        let port = PortMode { port: 9080, mode: PeerMode::Permissive, until: Moment::new(until) };
        policy(
            "shop/moving",
            PolicySpec::PeerAuthentication(PeerAuthentication { target_refs: Vec::new(), ports: vec![port] }),
        )
    };
    let key = PolicyKey { kind: PolicyKind::PeerAuthentication, name: service("shop/moving") };
    let began = log.now;
    for until in [began, began + 91 * day] {
        log.invalid(Command::PolicyApply { documents: vec![document(until)] });
    }
    let first = began + 30 * day;
    log.done(Command::PolicyApply { documents: vec![document(first)] });
    log.now = began + 20 * day;
    log.already(Command::PolicyApply { documents: vec![document(first)] });
    log.done(Command::PolicyApply { documents: vec![document(began + 100 * day)] });
    assert_eq!(log.state.view.policies[&key].ends(), Some(began + 100 * day), "said anew, with a later end");
    assert_eq!(log.state.lapsed_policies(log.now), []);
    log.now = began + 100 * day;
    assert_eq!(log.state.lapsed_policies(log.now), std::slice::from_ref(&key));
    log.done(Command::PolicyLapse { keys: vec![key.clone()] });
    assert!(!log.state.view.policies.contains_key(&key));
    log.invalid(Command::PolicyApply { documents: vec![document(first)] });
}
