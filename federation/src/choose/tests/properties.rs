//! Properties that hold in every world, however it came about.

use proptest::prelude::*;

use super::*;

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Observe(usize, Observation),
    Lost(usize),
    Alive(usize),
    Ready(usize, bool),
    Wait(u64),
}

#[derive(Clone, Debug)]
struct Plan {
    /// Locality, weight, ready.
    endpoints: Vec<(usize, u32, bool)>,
    /// Ready weight, further weight.
    peers: Vec<(u32, u32)>,
    policy: usize,
    steps: Vec<Step>,
}

const PEERS: [&str; 3] = ["east", "north", "south"];
const LOCALITIES: [&str; 4] = ["eu/1", "eu/2", "us/1", ""];
const POLICIES: [&str; 5] = [
    "{}",
    r#"{ "locality": { "mode": "Ignore" } }"#,
    r#"{ "locality": { "mode": "LocalOnly", "openNextTierBelow": "100%" } }"#,
    r#"{ "locality": { "mode": "Distribute",
        "distribute": [{ "from": "west", "to": { "west": 50, "east": 30, "north": 20, "south": 0 } }] } }"#,
    r#"{ "locality": { "openNextTierBelow": "0%", "returnAfter": "2s" },
        "health": { "outlier": { "maxEjected": "50%", "consecutive5xx": 1 } } }"#,
];

fn step() -> impl Strategy<Value = Step> {
    let observation = prop_oneof![
        Just(Success),
        Just(ServerError),
        Just(Observation::NobodyThere),
        Just(ConnectFailure),
        Just(Observation::Reset),
        Just(Timeout),
    ];
    prop_oneof![
        6 => (0usize..9, observation).prop_map(|(target, observation)| Step::Observe(target, observation)),
        1 => (0usize..3).prop_map(Step::Lost),
        1 => (0usize..3).prop_map(Step::Alive),
        1 => (0usize..6, any::<bool>()).prop_map(|(endpoint, ready)| Step::Ready(endpoint, ready)),
        2 => (0u64..40_000).prop_map(Step::Wait),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let endpoints = proptest::collection::vec((0..LOCALITIES.len(), 1u32..1000, any::<bool>()), 0..6);
    let peers = proptest::collection::vec((0u32..1000, 0u32..1000), 0..3);
    (endpoints, peers, 0..POLICIES.len(), proptest::collection::vec(step(), 0..40))
        .prop_map(|(endpoints, peers, policy, steps)| Plan { endpoints, peers, policy, steps })
}

impl Plan {
    fn view(&self) -> View {
        let mut view = world().policy("shop/p", POLICIES[self.policy]);
        for (index, (locality, weight, ready)) in self.endpoints.iter().enumerate() {
            view = view.endpoint(&format!("e{index}"), LOCALITIES[*locality], *weight, *ready);
        }
        for (name, (ready, further)) in PEERS.iter().zip(&self.peers) {
            view = view.peer(name, *ready, ready + further);
        }
        view
    }
}

fn target(index: usize) -> Target {
    match index.checked_sub(6) {
        Some(peer) => in_cluster(PEERS[peer]),
        None => at(&format!("e{index}")),
    }
}

/// Lives through the plan; after each step `check` sees the ladder, the health and the time.
fn live(
    plan: &Plan,
    mut check: impl FnMut(&mut Ladder, &Health, Timestamp) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut view = plan.view();
    let mut ladder = ladder(&view);
    let mut health = Health::default();
    let mut now = NOW;
    for step in &plan.steps {
        match step {
            Step::Observe(index, observation) => {
                health.observe(now, &reviews(), &target(*index), *observation, &ladder.settings.outlier);
            }
            Step::Lost(peer) => health.path_lost(now, &PEERS[*peer].parse().unwrap()),
            Step::Alive(peer) => health.path_alive(now, &PEERS[*peer].parse().unwrap()),
            Step::Ready(endpoint, ready) => {
                let known = view.endpoints.get(&format!("e{endpoint}").parse().unwrap()).cloned();
                if let Some(known) = known {
                    view.apply(&Change::EndpointPut(Endpoint { ready: *ready, ..known }));
                    ladder = Ladder::build(&view, &host(), &here(), Some(&ladder));
                }
            }
            Step::Wait(millis) => now = Timestamp(now.0 + millis),
        }
        check(&mut ladder, &health, now)?;
    }
    Ok(())
}

/// Those that may be chosen in the ordinary way.
fn choosable<'l>(ladder: &'l Ladder, health: &Health, now: Timestamp) -> Vec<&'l Candidate> {
    let candidates = ladder.tiers.iter().flat_map(|tier| &tier.candidates);
    let may = |c: &&Candidate| c.ready_weight > 0 && health.is_healthy(now, &reviews(), &c.target);
    candidates.filter(may).collect()
}

proptest! {
    #[test]
    fn shares_are_whole_whenever_anything_is_healthy(plan in plan()) {
        live(&plan, |ladder, health, now| {
            let shares = ladder.shares(now, health);
            let sum: f64 = shares.iter().sum();
            prop_assert!(shares.iter().all(|share| (0.0..=1.0 + 1e-9).contains(share)), "{:?}", shares);
            if !choosable(ladder, health, now).is_empty() {
                prop_assert!((sum - 1.0).abs() < 1e-9, "{:?}", shares);
            } else if ladder.settings.max_ejected >= 1.0 {
                prop_assert_eq!(sum, 0.0);
            }
            let _ = ladder.choose_at(now, health, &[], 1);
            prop_assert_eq!(&shares, &ladder.shares);
            Ok(())
        })?;
    }

    #[test]
    fn an_open_tier_has_somebody_to_take_its_share(plan in plan()) {
        live(&plan, |ladder, health, now| {
            if ladder.settings.max_ejected < 1.0 {
                return Ok(());
            }
            for (tier, share) in ladder.tiers.iter().zip(ladder.shares(now, health)) {
                let able = |c: &Candidate| c.ready_weight > 0 && health.is_healthy(now, &reviews(), &c.target);
                prop_assert!(share == 0.0 || tier.candidates.iter().any(able));
            }
            Ok(())
        })?;
    }

    #[test]
    fn an_unhealthy_one_is_never_chosen_while_a_healthy_untried_one_is_left(plan in plan(), seed: u64) {
        let mut dice = Dice::new(seed);
        live(&plan, |ladder, health, now| {
            let mut tried: Vec<Target> = Vec::new();
            for _ in 0..8 {
                let choice = match ladder.choose_at(now, health, &tried, dice.roll()) {
                    Ok(choice) => choice,
                    Err(_) => {
                        let anyone = ladder.tiers.iter().flat_map(|t| &t.candidates).any(|c| c.weight > 0);
                        prop_assert!(!anyone, "refused though somebody is registered");
                        break;
                    }
                };
                let chosen = &choice.candidate;
                let healthy = choosable(ladder, health, now);
                let untried = healthy.iter().any(|c| !tried.contains(&c.target));
                let pardoned = ladder.outlook.pardoned.iter().any(|(t, i)| ladder.tiers[*t].candidates[*i] == *chosen);
                if untried && !pardoned {
                    prop_assert!(healthy.contains(&chosen), "{:?} is not among {:?}", chosen, healthy);
                }
                if untried {
                    prop_assert!(!tried.contains(&chosen.target), "{:?} again", chosen);
                }
                let lost = |c: &Candidate| health.standing(now, &reviews(), &c.target) == Standing::PathLost;
                if lost(chosen) {
                    let others = ladder.tiers.iter().flat_map(|t| &t.candidates).filter(|c| c.weight > 0);
                    prop_assert!(others.into_iter().all(lost), "a lost path, though others exist");
                }
                tried.push(choice.candidate.target);
            }
            Ok(())
        })?;
    }
}
