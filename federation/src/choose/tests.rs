//! The ladder: which tiers there are, how traffic is divided, and what is picked. Timelines are in `timeline`,
//! properties over random worlds in `properties`.

use hanse_identity::{Reason, Revocation, RevocationId, RevocationTarget};

use super::dice::Dice;
use super::*;
use crate::catalog::{Endpoint, Export, GatewaySummary, LocalityWeight, Service, ServiceSummary, Session};
use crate::change::{Change, PeerFact, PeerRecord};
use crate::health::Observation::{ConnectFailure, ServerError, Success, Timeout};
use crate::policy::{PolicyDocument, PolicySpec};

mod balance;
mod properties;
mod timeline;

const NOW: Timestamp = Timestamp(1_000_000);

pub(super) fn reviews() -> ServiceName {
    "shop/reviews".parse().unwrap()
}

pub(super) fn host() -> ServiceHost {
    ServiceHost::parse("reviews.shop").unwrap()
}

fn cluster_host() -> ServiceHost {
    ServiceHost::parse("reviews.shop.svc.cluster.local").unwrap()
}

pub(super) fn here() -> Locality {
    "eu/1".parse().unwrap()
}

pub(super) fn at(name: &str) -> Target {
    Target::Endpoint(name.parse().unwrap())
}

pub(super) fn in_cluster(name: &str) -> Target {
    Target::Cluster(name.parse().unwrap())
}

/// The View of `west`, in which `shop/reviews` exists and is exported.
pub(super) fn world() -> View {
    let mut view = View::new("west".parse().unwrap(), "west.example".parse().unwrap());
    let identities = ["spiffe://west.example/ns/shop/sa/reviews".parse().unwrap()].into();
    view.apply(&Change::ServicePut(Service { name: reviews(), identities, export: Some(Export::Everyone) }));
    view
}

pub(super) trait World: Sized {
    fn endpoint(self, id: &str, locality: &str, weight: u32, ready: bool) -> Self;
    fn peer(self, name: &str, ready_weight: u32, weight: u32) -> Self;
    fn policy(self, name: &str, spec: &str) -> Self;
}

impl World for View {
    fn endpoint(mut self, id: &str, locality: &str, weight: u32, ready: bool) -> Self {
        self.apply(&Change::EndpointPut(Endpoint {
            id: id.parse().unwrap(),
            services: [reviews()].into(),
            identity: format!("spiffe://west.example/ns/shop/sa/{id}").parse().unwrap(),
            address: "127.0.0.1:15006".parse().unwrap(),
            locality: locality.parse().unwrap(),
            weight,
            ready,
            session: Session { incarnation: 1, sequence: 1, node: "west-1".parse().unwrap() },
        }));
        self
    }

    /// A joined peer with a gateway that exports `shop/reviews`.
    fn peer(mut self, name: &str, ready_weight: u32, weight: u32) -> Self {
        let cluster: ClusterName = name.parse().unwrap();
        let id = |path: &str| format!("spiffe://{name}.example{path}").parse::<SpiffeId>().unwrap();
        self.apply(&Change::PeerPut(PeerRecord {
            cluster: cluster.clone(),
            trust_domain: id("/x").trust_domain().clone(),
            endpoints: Vec::new(),
            invite: String::new(),
            joined: Timestamp(0),
        }));
        let gateway = GatewaySummary {
            name: "gateway-1".parse().unwrap(),
            identity: id("/hanse/gateway/gateway-1"),
            locality: Locality::default(),
            tunnel: "127.0.0.1:15008".into(),
            ready: true,
        };
        let weights = LocalityWeight { weight, ready_weight, ..LocalityWeight::default() };
        let summary = ServiceSummary {
            name: reviews(),
            identities: [id("/ns/shop/sa/reviews"), id("/ns/shop/sa/reviews-v2")].into(),
            localities: [("eu/1".to_owned(), weights)].into(),
        };
        self.apply(&Change::PeerFact(cluster.clone(), PeerFact::Gateways(vec![gateway])));
        self.apply(&Change::PeerFact(cluster, PeerFact::Service(summary)));
        self
    }

    /// A BackendPolicy for `shop/reviews`; `spec` without targetRefs, as JSON.
    fn policy(mut self, name: &str, spec: &str) -> Self {
        let mut spec: serde_json::Value = serde_json::from_str(spec).unwrap();
        if spec.get("targetRefs").is_none() {
            spec["targetRefs"] = serde_json::json!([{ "kind": "Service", "name": "reviews" }]);
        }
        let spec = PolicySpec::BackendPolicy(serde_json::from_value(spec).unwrap());
        let document = PolicyDocument { name: name.parse().unwrap(), created: Timestamp(0), spec };
        self.apply(&Change::PolicyPut(Box::new(document)));
        self
    }
}

/// A world with a tier of every kind: two endpoints next door, one in the region, one beyond, two peers.
pub(super) fn full_world() -> View {
    let local = world()
        .endpoint("a", "eu/1", 100, true)
        .endpoint("b", "eu/1", 100, true)
        .endpoint("c", "eu/2", 100, true)
        .endpoint("d", "us/1", 100, true);
    local.peer("north", 100, 100).peer("east", 100, 100)
}

pub(super) fn ladder(view: &View) -> Ladder {
    Ladder::build(view, &host(), &here(), None)
}

/// `zone:a,b region:c peer-east:east`.
fn tiers(ladder: &Ladder) -> String {
    let name = |c: &Candidate| match &c.target {
        Target::Endpoint(id) => id.to_string(),
        Target::Cluster(cluster) => cluster.to_string(),
        Target::Address(address) => address.to_string(),
    };
    let tier = |tier: &Tier| {
        let names: Vec<_> = tier.candidates.iter().map(name).collect();
        format!("{:?}:{}", tier.kind, names.join(",")).to_lowercase()
    };
    ladder.tiers.iter().map(tier).collect::<Vec<_>>().join(" ")
}

/// Takes targets out for an hour.
pub(super) fn eject(health: &mut Health, targets: &[Target]) {
    let hour = std::time::Duration::from_secs(3600);
    let settings = OutlierSettings { eject_for: hour, eject_for_at_most: hour, ..OutlierSettings::default() };
    for target in targets {
        health.observe(NOW, &reviews(), target, ConnectFailure, &settings);
    }
}

#[track_caller]
fn assert_shares(ladder: &Ladder, health: &Health, expected: &[f64]) {
    let shares = ladder.shares(NOW, health);
    let close =
        shares.len() == expected.len() && shares.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9);
    assert!(close, "{shares:?} is not {expected:?}");
}

/// How often each target is picked of `n` times, in a fixed sequence of random numbers.
fn census(
    ladder: &mut Ladder,
    health: &Health,
    tried: &[Target],
    n: u32,
) -> std::collections::BTreeMap<Target, f64> {
    let mut seed = Dice::new(42);
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..n {
        let choice = ladder.choose_at(NOW, health, tried, seed.roll()).unwrap();
        assert!(ladder.tiers[choice.tier].candidates.contains(&choice.candidate));
        *counts.entry(choice.candidate.target).or_insert(0.0) += 1.0 / f64::from(n);
    }
    counts
}

#[track_caller]
fn assert_census(ladder: &mut Ladder, health: &Health, tried: &[Target], expected: &[(Target, f64)]) {
    let census = census(ladder, health, tried, 10_000);
    assert_eq!(census.len(), expected.len(), "{census:?}");
    for (target, share) in expected {
        let got = census.get(target).copied().unwrap_or(0.0);
        assert!(
            (got - share).abs() < 0.02,
            "{target:?}: {got} is not within 2 points of {share}; {census:?}"
        );
    }
}

#[test]
fn tiers_follow_locality() {
    let view = full_world();
    for (from, expected) in [
        ("eu/1", "zone:a,b region:c cluster:d peer:east peer:north"),
        ("eu/2", "zone:c region:a,b cluster:d peer:east peer:north"),
        ("eu/9", "region:a,b,c cluster:d peer:east peer:north"),
        ("eu", "region:a,b,c cluster:d peer:east peer:north"),
        ("asia/1", "cluster:a,b,c,d peer:east peer:north"),
        ("", "cluster:a,b,c,d peer:east peer:north"),
    ] {
        let ladder = Ladder::build(&view, &host(), &from.parse().unwrap(), None);
        assert_eq!(tiers(&ladder), expected, "from {from:?}");
    }
    // Endpoints that do not say where they are, too, are near nobody.
    let view = world().endpoint("a", "", 100, true);
    assert_eq!(tiers(&Ladder::build(&view, &host(), &Locality::default(), None)), "cluster:a");
}

#[test]
fn a_name_of_one_cluster_stays_there() {
    let ladder = Ladder::build(&full_world(), &cluster_host(), &here(), None);
    assert_eq!(tiers(&ladder), "zone:a,b region:c cluster:d");
}

#[test]
fn only_peers_that_export_the_service_and_have_a_gateway_are_tiers() {
    let mut view = world().peer("east", 100, 100).peer("north", 100, 100).peer("south", 100, 100);
    view.apply(&Change::PeerFact("east".parse().unwrap(), PeerFact::Gateways(Vec::new())));
    view.apply(&Change::PeerFact("north".parse().unwrap(), PeerFact::ServiceGone(reviews())));
    assert_eq!(tiers(&ladder(&view)), "peer:south");
    // None of the gateways is ready: there, but closed.
    let mut gateways = view.peers[&"south".parse().unwrap()].gateways.clone();
    gateways[0].ready = false;
    view.apply(&Change::PeerFact("south".parse().unwrap(), PeerFact::Gateways(gateways)));
    let ladder = ladder(&view);
    assert_eq!((ladder.tiers[0].candidates[0].weight, ladder.tiers[0].candidates[0].ready_weight), (100, 0));
}

#[test]
fn candidates_say_who_may_answer_and_how_to_get_there() {
    let ladder = ladder(&full_world());
    let local = ladder.candidate(&"c".parse().unwrap()).unwrap();
    assert_eq!(*local.identities, ["spiffe://west.example/ns/shop/sa/c".parse().unwrap()].into());
    assert_eq!(local.way, Way::Direct("127.0.0.1:15006".parse().unwrap()));
    let west = "west".parse().unwrap();
    assert_eq!(local.cluster(&west), &west);
    let remote = &ladder.tiers[3].candidates[0];
    assert_eq!(remote.identities.len(), 2);
    assert!(remote.identities.iter().all(|id| id.trust_domain().as_str() == "east.example"));
    assert_eq!(remote.way, Way::Tunnel("east".parse().unwrap()));
    assert_eq!(remote.cluster(&west).as_str(), "east");
    assert_eq!(ladder.candidate(&"z".parse().unwrap()), None);
}

#[test]
fn whoever_is_revoked_is_not_ready() {
    let mut view = full_world();
    for (number, id) in
        [(1, "spiffe://west.example/ns/shop/sa/a"), (2, "spiffe://east.example/ns/shop/sa/reviews")]
    {
        let id: SpiffeId = id.parse().unwrap();
        view.apply(&Change::Revoked(Revocation::new(
            RevocationId { number, origin: id.trust_domain().clone() },
            RevocationTarget::Identity(id),
            Reason::KeyCompromise,
            Timestamp(0),
        )));
    }
    let mut ladder = ladder(&view);
    assert_eq!(ladder.candidate(&"a".parse().unwrap()).unwrap().ready_weight, 0);
    assert_eq!(
        ladder.tiers[3].candidates[0].ready_weight, 100,
        "another identity of that service may answer"
    );
    let half = 0.5 / 0.7;
    assert_census(&mut ladder, &Health::default(), &[], &[(at("b"), half), (at("c"), 1.0 - half)]);
}

#[test]
fn shares_flow_down_as_capacity_is_lost() {
    let all = ["a", "b", "c", "d"];
    for (ejected, expected) in [
        (vec![], [1.0, 0.0, 0.0, 0.0, 0.0]),
        (vec!["a"], [0.5 / 0.7, 1.0 - 0.5 / 0.7, 0.0, 0.0, 0.0]),
        (vec!["a", "c"], [0.5 / 0.7, 0.0, 1.0 - 0.5 / 0.7, 0.0, 0.0]),
        (vec!["a", "b"], [0.0, 1.0, 0.0, 0.0, 0.0]),
        (vec!["c", "d"], [1.0, 0.0, 0.0, 0.0, 0.0]),
        (all.to_vec(), [0.0, 0.0, 0.0, 1.0, 0.0]),
    ] {
        let mut health = Health::default();
        eject(&mut health, &ejected.iter().map(|name| at(name)).collect::<Vec<_>>());
        assert_shares(&ladder(&full_world()), &health, &expected);
    }
    let mut health = Health::default();
    eject(&mut health, &all.map(at));
    health.path_lost(NOW, &"east".parse().unwrap());
    assert_shares(&ladder(&full_world()), &health, &[0.0, 0.0, 0.0, 0.0, 1.0]);
    health.path_lost(NOW, &"north".parse().unwrap());
    assert_shares(&ladder(&full_world()), &health, &[0.0; 5]);
}

#[test]
fn ready_weight_counts_by_weight() {
    let view =
        world().endpoint("a", "eu/1", 300, true).endpoint("b", "eu/1", 100, false).peer("east", 10, 100);
    assert_shares(&ladder(&view), &Health::default(), &[1.0, 0.0]);
    let view =
        world().endpoint("a", "eu/1", 100, true).endpoint("b", "eu/1", 300, false).peer("east", 10, 100);
    // Neither is whole: what is left is spread in proportion to what each takes.
    let (zone, peer) = (0.25 / 0.7, (1.0 - 0.25 / 0.7) * (0.1 / 0.7));
    assert_shares(&ladder(&view), &Health::default(), &[zone / (zone + peer), peer / (zone + peer)]);
}

#[test]
fn within_a_tier_the_ready_weight_decides() {
    let view = world()
        .endpoint("a", "eu/1", 100, true)
        .endpoint("b", "eu/1", 300, true)
        .endpoint("c", "eu/1", 100, false)
        .endpoint("d", "eu/1", 600, true);
    let expected = [(at("a"), 0.1), (at("b"), 0.3), (at("d"), 0.6)];
    assert_census(&mut ladder(&view), &Health::default(), &[], &expected);
}

#[test]
fn one_on_trial_gets_a_part_until_it_has_succeeded() {
    let view = world().endpoint("a", "eu/1", 100, true).endpoint("b", "eu/1", 100, true);
    let mut ladder = ladder(&view);
    let mut health = Health::default();
    let long_ago = Timestamp(NOW.0 - 60_000);
    health.observe(long_ago, &reviews(), &at("a"), ConnectFailure, &OutlierSettings::default());
    assert_census(&mut ladder, &health, &[], &[(at("a"), 1.0 / 9.0), (at("b"), 8.0 / 9.0)]);
    health.observe(NOW, &reviews(), &at("a"), Success, &OutlierSettings::default());
    assert_census(&mut ladder, &health, &[], &[(at("a"), 0.5), (at("b"), 0.5)]);
}

#[test]
fn what_was_tried_is_passed_over_while_another_is_left() {
    let mut ladder = ladder(&full_world());
    let health = Health::default();
    let mut tried = Vec::new();
    let mut tiers = Vec::new();
    for _ in 0..6 {
        let choice = ladder.choose_at(NOW, &health, &tried, 7).unwrap();
        assert!(!tried.contains(&choice.candidate.target));
        tiers.push(choice.tier);
        tried.push(choice.candidate.target);
    }
    assert_eq!(tiers, [0, 0, 1, 2, 3, 4], "same tier first, then the next, whatever their shares");
    let again = ladder.choose_at(NOW, &health, &tried, 7).unwrap();
    assert_eq!(again.tier, 0, "all are tried: better again than not at all");
}

#[test]
fn a_healthy_one_that_was_tried_goes_before_one_that_is_ejected() {
    let view = world().endpoint("a", "eu/1", 100, true).endpoint("b", "eu/1", 100, true);
    let mut health = Health::default();
    eject(&mut health, &[at("a")]);
    assert_census(&mut ladder(&view), &health, &[at("b")], &[(at("b"), 1.0)]);
}

#[test]
fn in_panic_the_least_bad_is_tried() {
    let view = world()
        .endpoint("dead", "eu/1", 100, true)
        .endpoint("failing", "eu/2", 100, true)
        .endpoint("asleep", "eu/1", 100, false)
        .peer("east", 100, 100);
    let mut ladder = ladder(&view);
    let mut health = Health::default();
    eject(&mut health, &[at("dead")]);
    for _ in 0..5 {
        health.observe(NOW, &reviews(), &at("failing"), ServerError, &OutlierSettings::default());
    }
    health.path_lost(NOW, &"east".parse().unwrap());
    let mut tried = Vec::new();
    for expected in [at("failing"), at("dead"), at("asleep")] {
        assert_census(&mut ladder, &health, &tried, &[(expected.clone(), 1.0)]);
        tried.push(expected);
    }
    // A lost path is not tried while anything else exists, even if that was tried already.
    assert_census(&mut ladder, &health, &tried, &[(at("failing"), 1.0)]);
}

#[test]
fn in_panic_those_that_are_equally_bad_share_by_weight() {
    let view = world().endpoint("a", "eu/1", 100, true).endpoint("b", "eu/1", 300, true);
    let mut health = Health::default();
    eject(&mut health, &[at("a"), at("b")]);
    assert_census(&mut ladder(&view), &health, &[], &[(at("a"), 0.25), (at("b"), 0.75)]);
}

#[test]
fn a_lost_path_is_tried_only_where_nothing_else_exists() {
    let view = world().peer("east", 100, 100);
    let mut health = Health::default();
    health.path_lost(NOW, &"east".parse().unwrap());
    assert_census(&mut ladder(&view), &health, &[], &[(in_cluster("east"), 1.0)]);
}

#[test]
fn there_is_no_choice_where_nobody_is() {
    let choose = |view: &View, host: &ServiceHost| {
        Ladder::build(view, host, &here(), None)
            .choose_at(NOW, &Health::default(), &[], 0)
            .map(|c| c.candidate.target)
    };
    let empty = View::new("west".parse().unwrap(), "west.example".parse().unwrap());
    assert_eq!(choose(&empty, &host()), Err(NoChoice::NoSuchService));
    assert_eq!(choose(&world(), &host()), Err(NoChoice::NobodyHealthy), "known, without endpoints");
    assert_eq!(choose(&empty.clone().peer("east", 0, 0), &host()), Err(NoChoice::NobodyHealthy));
    assert_eq!(choose(&empty.clone().peer("east", 1, 1), &host()), Ok(in_cluster("east")));
    assert_eq!(choose(&empty.peer("east", 1, 1), &cluster_host()), Err(NoChoice::NoSuchService));
    assert_eq!(choose(&world().endpoint("a", "", 1, false), &host()), Ok(at("a")), "asleep, but registered");
}

#[test]
fn a_policy_orders_and_limits_the_peers() {
    let policy = r#"{ "locality": { "failover": [
        { "from": "east", "to": ["west"] }, { "from": "west", "to": ["south", "north", "gone"] } ] } }"#;
    let view = full_world().peer("south", 1, 1).policy("shop/p", policy);
    assert_eq!(tiers(&ladder(&view)), "zone:a,b region:c cluster:d peer:south peer:north");
    let far = Ladder::build(&view, &cluster_host(), &here(), None);
    assert_eq!(tiers(&far), "zone:a,b region:c cluster:d peer:south peer:north", "the policy says so");
    let view = full_world()
        .policy("shop/p", r#"{ "locality": { "failover": [{ "from": "east", "to": ["west"] }] } }"#);
    assert_eq!(
        tiers(&ladder(&view)),
        "zone:a,b region:c cluster:d peer:east peer:north",
        "says nothing for us"
    );
    let view =
        full_world().policy("shop/p", r#"{ "locality": { "failover": [{ "from": "west", "to": [] }] } }"#);
    assert_eq!(tiers(&ladder(&view)), "zone:a,b region:c cluster:d");
    let view = full_world().policy("other/p", policy);
    assert_eq!(ladder(&view).settings, LadderSettings::default(), "a policy of another namespace");
}

#[test]
fn a_policy_orders_the_steps_at_home() {
    for (prefer, expected) in [
        (r#"["zone", "region", "cluster"]"#, "zone:a,b region:c cluster:d"),
        (r#"["region", "cluster"]"#, "region:a,b,c cluster:d"),
        (r#"["zone"]"#, "zone:a,b cluster:c,d"),
        (r#"["cluster"]"#, "cluster:a,b,c,d"),
        ("[]", "cluster:a,b,c,d"),
    ] {
        let policy = format!(r#"{{ "locality": {{ "mode": "LocalOnly", "prefer": {prefer} }} }}"#);
        assert_eq!(tiers(&ladder(&full_world().policy("shop/p", &policy))), expected, "{prefer}");
    }
}

#[test]
fn a_policy_sets_thresholds_and_outlier_detection() {
    let policy = r#"{ "locality": { "openNextTierBelow": "40%", "returnAfter": "5s" }, "health": { "outlier": {
        "consecutive5xx": 2, "consecutiveGatewayErrors": 1, "ejectFor": "45s", "maxEjected": "50%" } } }"#;
    let settings = settings_of(&full_world().policy("shop/p", policy), &host());
    let secs = std::time::Duration::from_secs;
    assert_eq!(
        settings,
        LadderSettings {
            open_next_tier_below: 0.4,
            return_after: secs(5),
            max_ejected: 0.5,
            outlier: OutlierSettings {
                consecutive_5xx: 2,
                consecutive_gateway_errors: 1,
                eject_for: secs(45),
                eject_for_at_most: secs(45),
            },
            ..LadderSettings::default()
        }
    );
    let mut health = Health::default();
    eject(&mut health, &[at("a")]);
    let view = full_world().policy("shop/p", policy);
    assert_shares(&ladder(&view), &health, &[1.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn a_threshold_of_zero_opens_the_next_tier_only_when_the_upper_is_dead() {
    let view = full_world().policy("shop/p", r#"{ "locality": { "openNextTierBelow": "0%" } }"#);
    let mut health = Health::default();
    eject(&mut health, &[at("a")]);
    assert_shares(&ladder(&view), &health, &[1.0, 0.0, 0.0, 0.0, 0.0]);
    eject(&mut health, &[at("b")]);
    assert_shares(&ladder(&view), &health, &[0.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn ignore_makes_one_tier_of_home_and_one_of_the_peers() {
    let view = full_world().policy("shop/p", r#"{ "locality": { "mode": "Ignore" } }"#);
    let mut ladder = ladder(&view);
    assert_eq!(tiers(&ladder), "cluster:a,b,c,d peer:east,north");
    let quarter = ["a", "b", "c", "d"].map(|name| (at(name), 0.25));
    assert_census(&mut ladder, &Health::default(), &[], &quarter);
    let mut health = Health::default();
    eject(&mut health, &["a", "b", "c", "d"].map(at));
    assert_census(&mut ladder, &health, &[], &[(in_cluster("east"), 0.5), (in_cluster("north"), 0.5)]);
}

#[test]
fn local_only_has_no_peers() {
    let policy =
        r#"{ "locality": { "mode": "LocalOnly", "failover": [{ "from": "west", "to": ["east"] }] } }"#;
    let mut ladder = ladder(&full_world().policy("shop/p", policy));
    assert_eq!(tiers(&ladder), "zone:a,b region:c cluster:d");
    let mut health = Health::default();
    eject(&mut health, &["a", "b", "c", "d"].map(at));
    assert!(matches!(ladder.choose_at(NOW, &health, &[], 3).unwrap().candidate.target, Target::Endpoint(_)));
}

const EIGHTY_TWENTY: &str = r#"{ "locality": { "mode": "Distribute",
    "distribute": [{ "from": "west", "to": { "west": 80, "east": 20, "south": 0 } }] } }"#;

#[test]
fn distribute_divides_by_percent() {
    let view = full_world().peer("south", 100, 100).policy("shop/p", EIGHTY_TWENTY);
    let mut ladder = ladder(&view);
    assert_eq!(
        tiers(&ladder),
        "zone:a,b region:c cluster:d peer:east",
        "north is not named, south has nothing"
    );
    let expected = [(at("a"), 0.4), (at("b"), 0.4), (in_cluster("east"), 0.2)];
    assert_census(&mut ladder, &Health::default(), &[], &expected);

    let census = census(&mut ladder, &Health::default(), &[], 10_000);
    let west: f64 = census.iter().filter(|(t, _)| matches!(t, Target::Endpoint(_))).map(|(_, n)| n).sum();
    assert!((west - 0.8).abs() < 0.02 && (census[&in_cluster("east")] - 0.2).abs() < 0.02, "{census:?}");

    // At home the ladder goes on within the 80 %.
    let mut health = Health::default();
    eject(&mut health, &["a", "b"].map(at));
    assert_census(&mut ladder, &health, &[], &[(at("c"), 0.8), (in_cluster("east"), 0.2)]);
}

#[test]
fn distribute_gives_a_dead_clusters_part_to_the_others() {
    let view = full_world().policy("shop/p", EIGHTY_TWENTY);
    let mut health = Health::default();
    health.path_lost(NOW, &"east".parse().unwrap());
    assert_census(&mut ladder(&view), &health, &[], &[(at("a"), 0.5), (at("b"), 0.5)]);
    let mut health = Health::default();
    eject(&mut health, &["a", "b", "c", "d"].map(at));
    assert_census(&mut ladder(&view), &health, &[], &[(in_cluster("east"), 1.0)]);
    // One request survives a cluster that has just died, before anyone knows.
    let tried = ["a", "b", "c", "d"].map(at);
    assert_census(&mut ladder(&view), &Health::default(), &tried, &[(in_cluster("east"), 1.0)]);
}

#[test]
fn distribute_that_does_not_name_the_callers_cluster_is_failover() {
    let policy = r#"{ "locality": { "mode": "Distribute", "distribute": [{ "from": "east", "to": { "east": 100 } }] } }"#;
    let ladder = ladder(&full_world().policy("shop/p", policy));
    assert_eq!(ladder.settings.mode, LocalityMode::Failover);
    assert_eq!(tiers(&ladder), "zone:a,b region:c cluster:d peer:east peer:north");
}

#[test]
fn a_policy_keeps_those_in_that_still_answer() {
    let view = world()
        .endpoint("a", "eu/1", 100, true)
        .endpoint("b", "eu/1", 100, true)
        .endpoint("c", "eu/1", 100, true)
        .endpoint("d", "eu/1", 100, true)
        .peer("east", 100, 100)
        .policy("shop/p", r#"{ "health": { "outlier": { "maxEjected": "50%" } } }"#);
    let mut ladder = ladder(&view);
    let mut health = Health::default();
    for name in ["a", "b", "c"] {
        for _ in 0..5 {
            health.observe(NOW, &reviews(), &at(name), ServerError, &OutlierSettings::default());
        }
    }
    assert_shares(&ladder, &health, &[0.5 / 0.7, 1.0 - 0.5 / 0.7]);
    // What nobody reaches stays out, however many.
    eject(&mut health, &[at("d")]);
    assert_shares(&ladder, &health, &[0.5 / 0.7, 1.0 - 0.5 / 0.7]);
    let picked = census(&mut ladder, &health, &[], 1000);
    assert!(!picked.contains_key(&at("d")) && picked.len() == 3, "{picked:?}");
    let mut dead = Health::default();
    eject(&mut dead, &["a", "b", "c", "d"].map(at));
    assert_shares(&ladder, &dead, &[0.0, 1.0]);
}

#[test]
fn shares_are_what_choose_goes_by() {
    let view = full_world();
    let mut ladder = ladder(&view);
    let mut health = Health::default();
    eject(&mut health, &[at("a")]);
    let shares = ladder.shares(NOW, &health);
    let mut seed = Dice::new(1);
    let mut counts = vec![0.0; shares.len()];
    for _ in 0..10_000 {
        counts[ladder.choose_at(NOW, &health, &[], seed.roll()).unwrap().tier] += 1e-4;
    }
    assert!(
        shares.iter().zip(&counts).all(|(a, b): (&f64, &f64)| (a - b).abs() < 0.02),
        "{shares:?} {counts:?}"
    );
}

#[test]
fn a_choice_goes_by_what_was_observed_in_the_same_millisecond() {
    let mut ladder = ladder(&full_world());
    let mut health = Health::default();
    assert_eq!(ladder.choose_at(NOW, &health, &[], 5).unwrap().tier, 0);
    for _ in 0..3 {
        ["a", "b"].iter().for_each(|name| {
            health.observe(NOW, &reviews(), &at(name), Timeout, &OutlierSettings::default());
        });
    }
    assert_eq!(ladder.choose_at(NOW, &health, &[], 5).unwrap().tier, 1);
}
