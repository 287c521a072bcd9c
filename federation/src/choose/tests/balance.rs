//! Balancing within a tier: who gets how much by each algorithm, what moves when somebody comes or goes, warm-up, panic,
//! sessions.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const ALGORITHMS: [&str; 5] = ["LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"];

impl Ladder {
    /// Asked by a worker that has nothing under way.
    pub(in crate::choose) fn choose_at(
        &mut self,
        now: Timestamp,
        health: &Health,
        tried: &[Target],
        random: u64,
    ) -> Result<Choice, NoChoice> {
        let load = Load::default();
        self.choose(&Ask { tried, ..Ask::new(now, health, &load, random) })
    }
}

fn balanced(algorithm: &str, weights: &[u32]) -> View {
    let policy = format!(r#"{{ "loadBalancing": {{ "algorithm": "{algorithm}" }} }}"#);
    weights.iter().enumerate().fold(world().policy("shop/p", &policy), |view, (index, weight)| {
        view.endpoint(&format!("e{index}"), "eu/1", *weight, true)
    })
}

fn name(choice: &Choice) -> String {
    match &choice.candidate.target {
        Target::Endpoint(id) => id.to_string(),
        Target::Cluster(cluster) => cluster.to_string(),
        Target::Address(address) => address.to_string(),
    }
}

/// How often each is chosen in `times`, with nothing under way.
fn count(ladder: &mut Ladder, times: usize, seed: u64) -> BTreeMap<String, usize> {
    let (health, load, mut dice) = (Health::default(), Load::default(), Dice::new(seed));
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let choice = ladder.choose(&Ask::new(NOW, &health, &load, dice.roll())).unwrap();
        *counts.entry(name(&choice)).or_default() += 1;
    }
    counts
}

/// Who gets each of so many keys.
fn by_key(ladder: &mut Ladder, health: &Health, keys: u64) -> Vec<String> {
    let load = Load::default();
    let whose = |key: u64| {
        let hash = Some(stable_hash(&key.to_be_bytes()));
        name(&ladder.choose(&Ask { hash, ..Ask::new(NOW, health, &load, key) }).unwrap())
    };
    (0..keys).map(whose).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    /// Whatever the algorithm, an idle tier is shared by weight.
    #[test]
    fn every_algorithm_shares_by_weight(
        algorithm in 0..ALGORITHMS.len(),
        weights in proptest::collection::vec(1u32..5, 1..8),
        seed: u64,
    ) {
        const TIMES: usize = 6_000;
        let view = balanced(ALGORITHMS[algorithm], &weights);
        let mut ladder = ladder(&view);
        let counts = count(&mut ladder, TIMES, seed);
        let sum: u32 = weights.iter().sum();
        for (index, weight) in weights.iter().enumerate() {
            let expected = TIMES as f64 * f64::from(*weight) / f64::from(sum);
            let got = counts.get(&format!("e{index}")).copied().unwrap_or(0) as f64;
            // A ring of 160 points each is some ten percent off; the others are as even as chance.
            let off = match ALGORITHMS[algorithm] { "RingHash" => 0.45, "RoundRobin" => 0.01, _ => 0.15 };
            prop_assert!((got - expected).abs() <= expected * off + 40.0, "{counts:?} of {weights:?}");
        }
    }

    /// One that goes takes its own keys along, and nobody else's; and they are spread over those that are left.
    #[test]
    fn hashing_moves_the_keys_of_whoever_goes_and_few_others(
        ring: bool,
        endpoints in 3usize..12,
        gone in 0usize..12,
        ejected: bool,
    ) {
        const KEYS: u64 = 1500;
        let gone = format!("e{}", gone % endpoints);
        let view = balanced(if ring { "RingHash" } else { "Maglev" }, &vec![100; endpoints]);
        let mut health = Health::default();
        let mut before = ladder(&view);
        let was = by_key(&mut before, &health, KEYS);
        let mut after = match ejected {
            true => {
                health.observe(NOW, &reviews(), &at(&gone), ConnectFailure, &OutlierSettings::default());
                Ladder::build(&view, &host(), &here(), Some(&before))
            }
            false => {
                let mut view = view.clone();
                view.apply(&Change::EndpointGone(gone.parse().unwrap()));
                Ladder::build(&view, &host(), &here(), Some(&before))
            }
        };
        let is = by_key(&mut after, &health, KEYS);
        prop_assert!(!is.contains(&gone));
        let moved = was.iter().zip(&is).filter(|(was, is)| **was != gone && was != is).count();
        // A ring and one that is only out move nothing else; Maglev's table is made anew, and moves a few.
        let most = if ring || ejected { 0 } else { KEYS as usize / 10 };
        prop_assert!(moved <= most, "{moved} keys of others have moved");
        let heirs: std::collections::BTreeSet<_> =
            was.iter().zip(&is).filter(|(was, _)| **was == gone).map(|(_, is)| is).collect();
        prop_assert!(heirs.len() >= 2, "all went to {heirs:?}");
    }

    /// With what is under way, nobody has many more than the least loaded, and nobody is starved.
    #[test]
    fn least_request_evens_out_what_is_under_way(endpoints in 2usize..10, seed: u64) {
        let mut ladder = ladder(&balanced("LeastRequest", &vec![100; endpoints]));
        let (health, mut load, mut dice) = (Health::default(), Load::default(), Dice::new(seed));
        for _ in 0..endpoints * 20 {
            let choice = ladder.choose(&Ask::new(NOW, &health, &load, dice.roll())).unwrap();
            load.begin(&choice.candidate.target);
        }
        for index in 0..endpoints {
            let under_way = load.of(NOW, &at(&format!("e{index}"))).under_way;
            prop_assert!((14..=26).contains(&under_way), "e{index} has {under_way} of 20");
        }
    }
}

#[test]
fn round_robin_takes_turns_and_goes_on_after_a_view_that_changes_nothing() {
    let view = balanced("RoundRobin", &[100, 100, 100]);
    let mut ladder = ladder(&view);
    let (health, load) = (Health::default(), Load::default());
    let next = |ladder: &mut Ladder| name(&ladder.choose(&Ask::new(NOW, &health, &load, 5)).unwrap());
    let round: Vec<_> = (0..3).map(|_| next(&mut ladder)).collect();
    assert_eq!(round.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "{round:?}");
    assert_eq!(next(&mut ladder), round[0]);
    let mut ladder = Ladder::build(&view, &host(), &here(), Some(&ladder));
    assert_eq!([next(&mut ladder), next(&mut ladder)], [round[1].clone(), round[2].clone()]);
}

#[test]
fn whoever_is_slow_gets_less_and_is_tried_again() {
    let mut ladder = ladder(&balanced("LeastRequest", &[100, 100, 100]));
    let (health, mut load, mut dice) = (Health::default(), Load::default(), Dice::new(9));
    let mut ask = |load: &mut Load, now: Timestamp| {
        let target = ladder.choose(&Ask::new(now, &health, load, dice.roll())).unwrap().candidate.target;
        let took = if target == at("e0") { 200 } else { 5 };
        load.begin(&target);
        load.answered(now, &target, Duration::from_millis(took));
        load.end(&target);
        target == at("e0")
    };
    let slow = (0..300).filter(|_| ask(&mut load, NOW)).count();
    assert!(slow <= 40, "{slow} of 300 went to the slow one");
    let slow = (0..300).filter(|_| ask(&mut load, NOW)).count();
    assert!(slow <= 20, "{slow} of 300 went to the slow one, now that it is known");
    let later = NOW + Duration::from_secs(120);
    let slow = (0..300).filter(|_| ask(&mut load, later)).count();
    assert!(slow >= 1, "it is never tried again");
}

/// The table is made once per set of members, however often Views change.
#[test]
fn a_table_is_kept_while_its_members_are() {
    for algorithm in ["RingHash", "Maglev"] {
        let mut view = balanced(algorithm, &[100, 100]);
        let first = ladder(&view);
        let second = Ladder::build(&view, &host(), &here(), Some(&first));
        assert!(Arc::ptr_eq(&first.tables[0], &second.tables[0]));
        view = view.endpoint("e2", "eu/1", 100, true);
        let third = Ladder::build(&view, &host(), &here(), Some(&second));
        assert!(!Arc::ptr_eq(&first.tables[0], &third.tables[0]));
    }
}

#[test]
fn a_key_stays_in_its_tier_while_traffic_is_divided() {
    let policy = r#"{ "loadBalancing": { "algorithm": "RingHash" } }"#;
    let view =
        world().policy("shop/p", policy).endpoint("a", "eu/1", 100, true).endpoint("b", "eu/1", 100, false);
    let mut ladder = ladder(&view.peer("east", 100, 100));
    let health = Health::default();
    let first = by_key(&mut ladder, &health, 500);
    assert!(first.iter().any(|who| who == "a") && first.iter().any(|who| who == "east"), "{first:?}");
    assert_eq!(by_key(&mut ladder, &health, 500), first);
}

#[test]
fn an_endpoint_that_comes_up_gets_its_share_bit_by_bit() {
    let policy = r#"{ "loadBalancing": { "algorithm": "Random", "warmup": "30s" } }"#;
    let view = world()
        .policy("shop/p", policy)
        .endpoint("old", "eu/1", 100, true)
        .endpoint("new", "eu/1", 100, false);
    let before = ladder(&view);
    let view = view.endpoint("new", "eu/1", 100, true);
    let mut ladder = Ladder::build(&view, &host(), &here(), Some(&before));
    let (health, load, mut dice) = (Health::default(), Load::default(), Dice::new(4));
    for (after, expected) in [(0, 0.09), (15, 0.33), (31, 0.5)] {
        let now = NOW + Duration::from_secs(after);
        let chosen = |ladder: &mut Ladder, dice: &mut Dice| {
            name(&ladder.choose(&Ask::new(now, &health, &load, dice.roll())).unwrap()) == "new"
        };
        let got = (0..4000).filter(|_| chosen(&mut ladder, &mut dice)).count() as f64 / 4000.0;
        assert!((got - expected).abs() < 0.04, "{got} after {after} s, in place of {expected}");
        // A View that changes nothing here does not begin it anew.
        ladder = Ladder::build(&view, &host(), &here(), Some(&ladder));
    }
}

#[test]
fn below_the_panic_threshold_ejections_do_not_count() {
    let policy = |below: &str| {
        format!(
            r#"{{ "loadBalancing": {{ "algorithm": "Random" }}, "health": {{ "panicBelow": "{below}" }} }}"#
        )
    };
    let shop = |below: &str| {
        (0..4).fold(world().policy("shop/p", &policy(below)), |view, index| {
            view.endpoint(&format!("e{index}"), "eu/1", 100, true)
        })
    };
    let mut health = Health::default();
    for index in 0..3 {
        health.observe(
            NOW,
            &reviews(),
            &at(&format!("e{index}")),
            ConnectFailure,
            &OutlierSettings::default(),
        );
    }
    let chosen = |view: &View, health: &Health| {
        let (mut ladder, load, mut dice) = (ladder(view), Load::default(), Dice::new(2));
        let names: std::collections::BTreeSet<_> = (0..200)
            .map(|_| name(&ladder.choose(&Ask::new(NOW, health, &load, dice.roll())).unwrap()))
            .collect();
        assert_eq!(ladder.is_in_panic(NOW, health), names.len() > 2, "{names:?}");
        names.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen(&shop("0%"), &health), "e3");
    assert_eq!(chosen(&shop("25%"), &health), "e3", "a quarter is healthy, which is not below");
    assert_eq!(chosen(&shop("26%"), &health), "e0 e1 e2 e3");
    // Failover goes first: another cluster's healthy weight counts.
    assert_eq!(chosen(&shop("26%").peer("east", 400, 400), &health), "e3 east");
}

#[test]
fn a_session_goes_where_it_was_if_that_may_be_chosen() {
    let view =
        balanced("Random", &[100, 100, 100]).endpoint("down", "eu/1", 100, false).peer("east", 100, 100);
    let mut ladder = ladder(&view);
    let (mut health, load) = (Health::default(), Load::default());
    let key = |ladder: &Ladder, name: &str| {
        let all = ladder.tiers.iter().flat_map(|tier| &tier.candidates);
        let is = |c: &&Candidate| c.target == at(name) || c.target == in_cluster("east") && name == "east";
        all.into_iter().find(is).unwrap().key
    };
    let stays = |ladder: &mut Ladder, health: &Health, to: &str, tried: &[Target]| {
        let session = Some(key(ladder, to));
        (0..50).all(|random| {
            let ask = Ask { session, tried, ..Ask::new(NOW, health, &load, random) };
            name(&ladder.choose(&ask).unwrap()) == to
        })
    };
    assert!(stays(&mut ladder, &health, "e1", &[]));
    assert!(!stays(&mut ladder, &health, "e1", &[at("e1")]), "it has just failed there");
    assert!(!stays(&mut ladder, &health, "down", &[]), "not ready");
    assert!(!stays(&mut ladder, &health, "east", &[]), "the tier is not open");
    health.observe(NOW, &reviews(), &at("e1"), ConnectFailure, &OutlierSettings::default());
    assert!(!stays(&mut ladder, &health, "e1", &[]), "ejected");
    for name in ["e0", "e2"] {
        health.observe(NOW, &reviews(), &at(name), ConnectFailure, &OutlierSettings::default());
    }
    assert!(stays(&mut ladder, &health, "east", &[]), "now it is");
}

#[test]
fn nobody_else_is_chosen_where_only_some_may_be() {
    let mut ladder = ladder(&balanced("LeastRequest", &[100, 100, 100]));
    let (health, load) = (Health::default(), Load::default());
    let only = |candidate: &Candidate| candidate.target == at("e2");
    let nobody = |_: &Candidate| false;
    for random in 0..20 {
        let ask = Ask { only: Some(&only), ..Ask::new(NOW, &health, &load, random) };
        assert_eq!(name(&ladder.choose(&ask).unwrap()), "e2");
        let ask = Ask { only: Some(&nobody), ..ask };
        assert_eq!(ladder.choose(&ask), Err(NoChoice::NobodyHealthy));
    }
}
