//! Health: when a target is taken out, for how long, and what brings it back.

use super::*;

use Observation::{ConnectFailure, NobodyThere, Reset, ServerError, Success, Timeout};

fn service(name: &str) -> ServiceName {
    ServiceName::new("shop", name).unwrap()
}

fn endpoint(name: &str) -> Target {
    Target::Endpoint(name.parse().unwrap())
}

fn cluster(name: &str) -> Target {
    Target::Cluster(name.parse().unwrap())
}

/// One target under observation; times in milliseconds.
struct Watched {
    health: Health,
    target: Target,
    settings: OutlierSettings,
}

impl Watched {
    fn new(target: Target) -> Self {
        Self { health: Health::default(), target, settings: OutlierSettings::default() }
    }

    fn see(&mut self, at: u64, observations: &[Observation]) {
        for observation in observations {
            let (health, now) = (&mut self.health, Timestamp(at));
            health.observe(now, &service("reviews"), &self.target, *observation, &self.settings);
        }
    }

    fn healthy(&self, at: u64) -> bool {
        self.health.is_healthy(Timestamp(at), &service("reviews"), &self.target)
    }

    /// How long the ejection that has just begun lasts.
    #[track_caller]
    fn out_for(&self, at: u64) -> u64 {
        let ejected = self.health.ejected(Timestamp(at));
        let [(_, target, until)] = &ejected[..] else { panic!("{ejected:?}") };
        assert_eq!(*target, self.target);
        assert!(!self.healthy(at) && !self.healthy(until.0 - 1) && self.healthy(until.0));
        until.0 - at
    }
}

#[test]
fn rows_of_failures_eject() {
    // (what is seen, whether an endpoint is still in, whether a cluster is)
    for (seen, endpoint_in, cluster_in) in [
        (vec![], true, true),
        (vec![Success; 9], true, true),
        (vec![ConnectFailure], false, false),
        (vec![ServerError; 4], true, true),
        (vec![ServerError; 5], false, false),
        (vec![ServerError, ServerError, ServerError, ServerError, Success, ServerError], true, true),
        (vec![NobodyThere], true, false),
        (vec![NobodyThere; 3], false, false),
        (vec![Timeout; 2], true, true),
        (vec![Timeout, Reset, Timeout], false, false),
        (vec![Timeout, Reset, Success, Timeout], true, true),
        // An app that answers ends the row of errors on the way to it, but both are 5xx to the caller.
        (vec![Timeout, Timeout, ServerError, Timeout], true, true),
        (vec![Timeout, Timeout, ServerError, Timeout, ServerError], false, false),
        // A success after the ejection ends it.
        (vec![ConnectFailure, Success], true, true),
    ] {
        for (target, is_in) in [(endpoint("a"), endpoint_in), (cluster("east"), cluster_in)] {
            let mut watched = Watched::new(target);
            watched.see(1000, &seen);
            assert_eq!(watched.healthy(1000), is_in, "{seen:?} at {:?}", watched.target);
        }
    }
}

#[test]
fn zero_switches_a_row_off() {
    let mut watched = Watched::new(endpoint("a"));
    watched.settings.consecutive_5xx = 0;
    watched.see(0, &[ServerError; 50]);
    assert!(watched.healthy(0));
    watched.settings.consecutive_gateway_errors = 0;
    watched.see(0, &[Timeout; 50]);
    assert!(watched.healthy(0));
    watched.see(0, &[ConnectFailure]);
    assert!(!watched.healthy(0));
    // Switched off, a 5xx on trial is an answer like any other.
    watched.see(2000, &[ServerError]);
    assert!(watched.health.is_quiet(&service("other")));
    assert_eq!(watched.health.standing(Timestamp(2000), &service("reviews"), &endpoint("a")), Standing::Well);
}

#[test]
fn one_failure_on_trial_ejects_for_twice_as_long() {
    let mut watched = Watched::new(endpoint("a"));
    let mut at = 5000;
    for seconds in [1, 2, 4, 8, 16, 30, 30, 30] {
        let failure = if seconds == 4 { ServerError } else { ConnectFailure };
        watched.see(at, &[failure]);
        assert_eq!(watched.out_for(at), seconds * 1000);
        at += seconds * 1000;
        let standing = watched.health.standing(Timestamp(at), &service("reviews"), &endpoint("a"));
        assert_eq!(standing, Standing::OnTrial);
    }
}

#[test]
fn what_was_under_way_when_it_was_ejected_says_nothing_new() {
    let mut watched = Watched::new(endpoint("a"));
    watched.see(1000, &[Timeout, Timeout, Timeout]);
    watched.see(1500, &[Timeout; 20]);
    assert_eq!(watched.out_for(1000), 1000);
    watched.see(2000, &[Timeout]);
    assert_eq!(watched.out_for(2000), 2000);
}

#[test]
fn only_lasting_success_forgets_earlier_ejections() {
    let mut watched = Watched::new(endpoint("a"));
    watched.see(0, &[ConnectFailure]);
    watched.see(1000, &[Success]);
    watched.see(1500, &[ConnectFailure]);
    assert_eq!(watched.out_for(1500), 2000, "soon after: the second in a row");
    watched.see(3500, &[Success]);
    watched.see(9000, &[Success, Timeout, Success]);
    watched.see(15_000, &[ConnectFailure]);
    assert_eq!(watched.out_for(15_000), 4000, "the failure at 9 s broke the success");
    watched.see(19_000, &[Success]);
    watched.see(29_000, &[ConnectFailure]);
    assert_eq!(watched.out_for(29_000), 1000, "ten seconds of success: as if it were the first");
    watched.see(30_000, &[Success]);
    watched.see(40_000, &[Success]);
    assert!(watched.health.is_quiet(&service("reviews")), "nothing is left to remember");
}

#[test]
fn the_longest_ejection_is_never_shorter_than_the_first() {
    let mut watched = Watched::new(endpoint("a"));
    watched.settings.eject_for = Duration::from_secs(60);
    watched.see(0, &[ConnectFailure]);
    assert_eq!(watched.out_for(0), 60_000);
}

#[test]
fn one_bad_service_ejects_neither_another_nor_the_cluster() {
    let mut watched = Watched::new(cluster("east"));
    watched.see(0, &[NobodyThere]);
    assert!(!watched.healthy(0));
    assert!(watched.health.is_healthy(Timestamp(0), &service("ratings"), &cluster("east")));
    assert!(watched.health.is_healthy(Timestamp(0), &service("reviews"), &cluster("north")));
    assert!(watched.health.is_healthy(Timestamp(0), &service("reviews"), &endpoint("east")));
}

#[test]
fn a_lost_path_closes_every_service_of_the_cluster() {
    let east: ClusterName = "east".parse().unwrap();
    let mut watched = Watched::new(cluster("east"));
    watched.health.path_lost(Timestamp(100), &east);
    watched.health.path_lost(Timestamp(900), &east);
    assert_eq!(watched.health.lost_paths(), [(east.clone(), Timestamp(100))]);
    for name in ["reviews", "ratings"] {
        let health = &watched.health;
        assert!(!health.is_healthy(Timestamp(1_000_000), &service(name), &cluster("east")));
        assert!(health.is_healthy(Timestamp(1000), &service(name), &cluster("north")));
        assert!(health.is_healthy(Timestamp(1000), &service(name), &endpoint("east")));
        assert!(!health.is_quiet(&service(name)));
    }
    watched.health.path_alive(Timestamp(2000), &east);
    assert!(watched.healthy(2000) && watched.health.lost_paths().is_empty());
    watched.health.path_lost(Timestamp(3000), &east);
    watched.health.retain_paths(|cluster| *cluster != east);
    assert!(watched.healthy(3000));
}

#[test]
fn a_path_that_is_back_ends_the_ejections_it_caused_and_no_others() {
    let east: ClusterName = "east".parse().unwrap();
    for (seen, back) in [
        (vec![ConnectFailure], true),
        (vec![Timeout; 3], true),
        (vec![Reset; 3], true),
        (vec![NobodyThere], false),
        (vec![ServerError; 5], false),
    ] {
        let mut watched = Watched::new(cluster("east"));
        watched.see(1000, &seen);
        watched.health.path_alive(Timestamp(1100), &east);
        assert!(!watched.healthy(1100), "the path was never lost");
        watched.health.path_lost(Timestamp(1200), &east);
        watched.health.path_alive(Timestamp(1300), &east);
        assert_eq!(watched.healthy(1300), back, "{seen:?}");
    }
}

#[test]
fn memory_is_bounded_and_the_oldest_healthy_go_first() {
    let mut health = Health::default();
    let settings = OutlierSettings::default();
    let (old, ejected) = (endpoint("old"), endpoint("ejected"));
    // All of them have failed once; only those that are ejected must be remembered.
    health.observe(Timestamp(0), &service("s"), &ejected, ConnectFailure, &settings);
    health.observe(Timestamp(1), &service("s"), &old, Timeout, &settings);
    let fill = |health: &mut Health, n: usize| {
        let target = endpoint(&format!("e{n}"));
        health.observe(
            Timestamp(2 + n as u64 / 100),
            &service(&format!("s{}", n % 7)),
            &target,
            Timeout,
            &settings,
        );
    };
    (0..MAX_ENTRIES - 2).for_each(|n| fill(&mut health, n));
    assert_eq!(health.count, MAX_ENTRIES);
    assert!(health.entries[&service("s")].contains_key(&old));
    fill(&mut health, MAX_ENTRIES);
    assert!(!health.entries[&service("s")].contains_key(&old), "the oldest healthy one is forgotten");
    assert!(
        !health.is_healthy(Timestamp(999), &service("s"), &ejected),
        "the ejected one is not, though older"
    );
    (0..3 * MAX_ENTRIES).for_each(|n| fill(&mut health, n));
    assert!(health.count <= MAX_ENTRIES);
    assert_eq!(health.count, health.entries.values().map(HashMap::len).sum::<usize>());
}

#[test]
fn memory_is_bounded_when_everything_is_ejected() {
    let mut health = Health::default();
    for n in 0..2 * MAX_ENTRIES {
        let target = endpoint(&format!("e{n}"));
        health.observe(Timestamp(5), &service("s"), &target, ConnectFailure, &OutlierSettings::default());
    }
    assert!(health.count <= MAX_ENTRIES && health.count > MAX_ENTRIES / 2);
    assert!(!health.is_healthy(Timestamp(6), &service("s"), &endpoint(&format!("e{}", 2 * MAX_ENTRIES - 1))));
}

#[test]
fn retain_forgets_what_no_view_names() {
    let mut watched = Watched::new(endpoint("a"));
    watched.see(0, &[ConnectFailure]);
    watched.target = endpoint("b");
    watched.see(0, &[ConnectFailure]);
    let version = watched.health.version();
    watched.health.retain(|_, target| *target == endpoint("b"));
    assert!(watched.health.is_healthy(Timestamp(1), &service("reviews"), &endpoint("a")));
    assert!(!watched.healthy(1));
    assert!(watched.health.version() > version);
    watched.health.retain(|_, _| false);
    assert!(watched.health.is_quiet(&service("reviews")) && watched.health.count == 0);
}

#[test]
fn a_clock_that_was_set_back_does_not_prolong_an_ejection() {
    let mut watched = Watched::new(endpoint("a"));
    watched.see(10_000_000, &[ConnectFailure]);
    assert!(!watched.healthy(10_000_500));
    assert!(!watched.healthy(9_999_999), "another clock may be a little behind");
    assert!(watched.healthy(5_000_000), "but not by hours");
}
