//! The limit in scenes, and over a simulated app: it finds what the app can do, and overload costs no more than what is too much.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use super::*;

fn ms(millis: f64) -> Duration {
    Duration::from_secs_f64(millis / 1000.0)
}

fn settings() -> ConcurrencySettings {
    ConcurrencySettings::default()
}

/// Windows of 100 ms, one after the other, each with as many under way as there may be.
fn after(gradient: &mut Gradient, now: &mut Duration, windows: usize, typical: f64) {
    for _ in 0..windows {
        *now += WINDOW;
        let window = Window { typical: ms(typical), most: gradient.limit(), lost: false };
        gradient.saw(window, *now);
    }
}

#[test]
fn the_limit_rises_with_demand_falls_with_latency_and_stays_within_its_bounds() {
    let settings = ConcurrencySettings { min: 4, max: 300, ..settings() };
    let (mut gradient, mut now) = (Gradient::new(settings, Duration::ZERO, 1), Duration::ZERO);
    assert_eq!(gradient.limit(), 20);
    after(&mut gradient, &mut now, 1, 10.0);
    assert_eq!(gradient.limit(), 30, "by halves, as long as nothing was too much");
    after(&mut gradient, &mut now, 9, 10.0);
    assert_eq!(gradient.limit(), 300, "its highest");
    after(&mut gradient, &mut now, 1, 100.0);
    assert_eq!(gradient.limit(), 227, "three tenths less and room for some more");
    after(&mut gradient, &mut now, 7, 100.0);
    assert!((4..60).contains(&gradient.limit()), "{}", gradient.limit());
    let low = gradient.limit();
    after(&mut gradient, &mut now, 1, 10.0);
    let more = gradient.limit() - low;
    assert!((1..=low / 2).contains(&more), "by little, once something was too much: {more} to {low}");
}

#[test]
fn an_app_that_rests_moves_no_limit_and_says_how_fast_it_is() {
    let (mut gradient, mut now) = (Gradient::new(settings(), Duration::ZERO, 1), Duration::ZERO);
    for typical in [10.0, 80.0, 10.0, 300.0] {
        now += WINDOW;
        gradient.saw(Window { typical: ms(typical), most: 10, lost: false }, now);
        assert_eq!(gradient.limit(), 20, "half of it is no demand for more");
    }
    let slow = gradient.base().unwrap();
    assert!(slow > ms(10.0) && slow < ms(40.0), "{slow:?}: slowly upwards");
    for _ in 0..40 {
        now += WINDOW;
        gradient.saw(Window { typical: ms(2.0), most: 3, lost: false }, now);
    }
    assert!(gradient.base().unwrap() < ms(2.1));
}

#[test]
fn an_app_that_never_rests_is_measured_now_and_then_with_a_quarter_of_its_limit() {
    let (mut gradient, mut now) = (Gradient::new(settings(), Duration::ZERO, 7), Duration::ZERO);
    // It is overloaded from the beginning: what is seen is its queue.
    after(&mut gradient, &mut now, 19, 50.0);
    let (held, before) = (gradient.limit(), gradient.base().unwrap());
    assert!(before > ms(45.0));
    after(&mut gradient, &mut now, 1, 50.0);
    assert_eq!(gradient.limit(), held / 4, "after two seconds");
    now += WINDOW;
    assert!(
        gradient.saw(Window { typical: ms(50.0), most: held, lost: false }, now),
        "what was under way is waited for"
    );
    assert_eq!(gradient.base().unwrap(), before);
    now += WINDOW;
    gradient.saw(Window { typical: ms(5.0), most: held / 4, lost: false }, now);
    assert_eq!((gradient.base().unwrap(), gradient.limit()), (ms(5.0), held));
    // Much faster than thought, so it may be faster still; then only as often as the policy says, give or take.
    let mut cuts = Vec::new();
    let mut last = now;
    while cuts.len() < 4 {
        let before = gradient.limit();
        after(&mut gradient, &mut now, 1, 5.0);
        if gradient.limit() < before / 2 {
            cuts.push((now - last).as_secs_f64());
            after(&mut gradient, &mut now, 2, 5.0);
            last = now;
        }
    }
    assert!(cuts[0] <= 2.1, "{cuts:?}");
    assert!(cuts[1..].iter().all(|pause| (45.0..=75.2).contains(pause)), "{cuts:?}");
    assert!(cuts[1] != cuts[2] && cuts[2] != cuts[3], "not in step with others: {cuts:?}");
}

#[test]
fn a_limit_that_fell_for_nothing_comes_back() {
    let (mut gradient, mut now) = (Gradient::new(settings(), Duration::ZERO, 1), Duration::ZERO);
    // Nothing but cheap requests, and then others that take fifty times as long however few there are.
    after(&mut gradient, &mut now, 10, 1.0);
    after(&mut gradient, &mut now, 30, 50.0);
    after(&mut gradient, &mut now, 20, 50.0);
    assert!(gradient.limit() > 20, "{}", gradient.limit());
}

#[test]
fn lower_priorities_are_refused_first_and_come_back_when_there_is_room() {
    let limiter = Limiter::new(ConcurrencySettings { min: 20, max: 20, ..settings() }, Duration::ZERO, 1);
    let admitted = |priority| limiter.admit(priority).is_ok();
    let who = |limiter: &Limiter| {
        [Priority::BestEffort, Priority::Default, Priority::Critical, Priority::Exempt]
            .map(|priority| limiter.admit(priority).is_ok())
    };
    for _ in 0..14 {
        assert_eq!(who(&limiter), [true; 4]);
        limiter.begin();
    }
    assert_eq!(who(&limiter), [false, true, true, true], "at 14 of 20");
    (0..4).for_each(|_| limiter.begin());
    assert_eq!(who(&limiter), [false, false, true, true], "at 18");
    (0..2).for_each(|_| limiter.begin());
    assert_eq!(who(&limiter), [false, false, false, true], "at 20");
    limiter.end();
    assert!(admitted(Priority::Critical) && !admitted(Priority::Default));
    (0..3).for_each(|_| limiter.end());
    assert!(!admitted(Priority::Default), "16 is not below eight tenths");
    limiter.end();
    assert_eq!(who(&limiter), [false, true, true, true], "at 15");
    (0..5).for_each(|_| limiter.end());
    assert!(!admitted(Priority::BestEffort), "10 is not below half");
    limiter.end();
    assert_eq!(who(&limiter), [true; 4]);
    (0..20).for_each(|_| limiter.begin());
    let again: BTreeSet<u64> =
        (0..9).map(|_| limiter.admit(Priority::Default).unwrap_err().as_secs()).collect();
    assert_eq!(again, [1, 2, 3].into(), "and not all at the same moment");
}

#[test]
fn one_request_at_a_time_always_gets_through() {
    let limiter = Limiter::new(ConcurrencySettings { min: 1, max: 1, ..settings() }, Duration::ZERO, 1);
    for priority in [Priority::BestEffort, Priority::Default, Priority::Critical] {
        assert!(limiter.admit(priority).is_ok());
        limiter.begin();
        assert!(limiter.admit(priority).is_err());
        limiter.end();
        assert!(limiter.admit(priority).is_ok());
    }
}

#[test]
fn answers_that_say_nothing_of_the_app_are_no_samples() {
    let limiter = Limiter::new(settings(), Duration::ZERO, 1);
    let mut now = Duration::ZERO;
    let answer = |took: f64, good, now: &mut Duration| {
        *now += ms(20.0);
        limiter.answered(*now - ms(took), *now, good);
    };
    (0..50).for_each(|_| answer(0.01, false, &mut now));
    assert_eq!(limiter.base(), Duration::ZERO, "errors that come at once are no speed");
    (0..50).for_each(|_| answer(10.0, true, &mut now));
    let base = limiter.base();
    assert!(base > ms(9.0) && base < ms(11.0), "{base:?}");
    (0..50).for_each(|_| answer(0.01, false, &mut now));
    assert_eq!(limiter.base(), base);
    let limit = limiter.limit();
    (0..50).for_each(|_| answer(500.0, false, &mut now));
    assert!(limiter.limit() < limit, "who gave up after half a second would have waited no less");
    assert_eq!(limiter.base(), base);
}

#[test]
fn the_median_is_found_within_an_eighth() {
    for micros in [0, 1, 7, 8, 15, 16, 17, 1000, 12_345, 999_999, 59_999_999] {
        let answers = Answers::default();
        for took in [micros / 3, micros, micros * 5] {
            answers.add(Duration::from_micros(took), false);
        }
        let found = answers.take_median().as_micros() as f64;
        assert!((found - micros as f64).abs() <= micros as f64 / 8.0, "{micros}: {found}");
        assert_eq!(answers.count.load(Ordering::Relaxed), 0);
    }
    assert!(bucket_of(SLOWEST.as_micros() as u64) < BUCKETS);
}

/// An app with so many hands, each of which works on one request at a time, behind a queue that never ends; callers that give
/// up after a second, which the app does not hear of.
struct App {
    hands: usize,
    /// Mean milliseconds of work.
    work: f64,
    /// Requests a second, by priority.
    demand: [f64; 3],
}

#[derive(Debug, Default)]
struct Outcome {
    /// In time, and refused, by priority.
    served: [usize; 3],
    shed: [usize; 3],
    late: usize,
    /// Milliseconds of those in time.
    took: Vec<f64>,
    limit: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Event {
    Comes(usize),
    /// Asked then, with that priority.
    Done(f64, usize),
    GivesUp(u64),
}

struct Scene {
    limiter: Option<Limiter>,
    random: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: Vec<Event>,
    now: f64,
    busy: usize,
    waiting: VecDeque<(f64, usize, u64)>,
    /// Whether the caller of a request has gone, by its number.
    gone: Vec<bool>,
    app: App,
}

const PATIENCE: f64 = 1000.0;
const PRIORITIES: [Priority; 3] = [Priority::BestEffort, Priority::Default, Priority::Critical];

impl Scene {
    fn new(app: App, limited: bool, seed: u64) -> Self {
        let limiter = limited.then(|| Limiter::new(settings(), Duration::ZERO, seed));
        let mut scene = Self {
            limiter,
            random: seed,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            now: 0.0,
            busy: 0,
            waiting: VecDeque::new(),
            gone: Vec::new(),
            app,
        };
        for priority in 0..3 {
            scene.next_of(priority);
        }
        scene
    }

    /// 0 to 1, without 0.
    fn random(&mut self) -> f64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) as f64 + 1.0) / (1u64 << 31) as f64
    }

    fn at(&mut self, when: f64, event: Event) {
        let number = self.events.len() as u64;
        self.events.push(event);
        self.queue.push(Reverse(((when * 1000.0) as u64, number)));
    }

    fn next_of(&mut self, priority: usize) {
        let rate = self.app.demand[priority];
        if rate > 0.0 {
            let pause = -self.random().ln() * 1000.0 / rate;
            self.at(self.now + pause, Event::Comes(priority));
        }
    }

    fn work(&mut self) {
        while self.busy < self.app.hands {
            let Some((asked, priority, number)) = self.waiting.pop_front() else { return };
            self.busy += 1;
            let took = self.app.work * (0.5 + self.random());
            self.at(self.now + took, Event::Done(asked, number as usize * 3 + priority));
        }
    }

    fn run(&mut self, until: f64) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(Reverse((when, number))) = self.queue.pop() {
            self.now = when as f64 / 1000.0;
            if self.now > until {
                self.queue.push(Reverse((when, number)));
                break;
            }
            match self.events[number as usize] {
                Event::Comes(priority) => {
                    self.next_of(priority);
                    if self.limiter.as_ref().is_some_and(|l| l.admit(PRIORITIES[priority]).is_err()) {
                        outcome.shed[priority] += 1;
                        continue;
                    }
                    if let Some(limiter) = &self.limiter {
                        limiter.begin();
                    }
                    let request = self.gone.len() as u64;
                    self.gone.push(false);
                    self.waiting.push_back((self.now, priority, request));
                    self.at(self.now + PATIENCE, Event::GivesUp(request));
                }
                Event::Done(asked, which) => {
                    self.busy -= 1;
                    let (request, priority) = (which / 3, which % 3);
                    if !std::mem::replace(&mut self.gone[request], true) {
                        let took = self.now - asked;
                        outcome.served[priority] += 1;
                        outcome.took.push(took);
                        self.over(asked, true);
                    }
                }
                Event::GivesUp(request) => {
                    if !std::mem::replace(&mut self.gone[request as usize], true) {
                        outcome.late += 1;
                        self.over(self.now - PATIENCE, false);
                    }
                }
            }
            self.work();
        }
        outcome.limit = self.limiter.as_ref().map_or(0, Limiter::limit);
        outcome.took.sort_by(f64::total_cmp);
        outcome
    }

    fn over(&self, asked: f64, good: bool) {
        if let Some(limiter) = &self.limiter {
            limiter.end();
            limiter.answered(ms(asked), ms(self.now), good);
        }
    }
}

impl Outcome {
    fn in_time(&self) -> usize {
        self.served.iter().sum()
    }

    fn p99(&self) -> f64 {
        self.took.get(self.took.len() * 99 / 100).copied().unwrap_or(f64::INFINITY)
    }
}

#[test]
fn overload_is_shed_and_what_is_admitted_is_served_soon() {
    for (seed, (hands, work)) in
        [(8, 20.0), (32, 40.0), (4, 10.0), (16, 100.0), (64, 80.0)].into_iter().enumerate()
    {
        let capacity = hands as f64 * 1000.0 / work;
        let app = || App { hands, work, demand: [0.0, capacity * 3.0, 0.0] };
        let mut scene = Scene::new(app(), true, seed as u64 + 1);
        scene.run(6_000.0);
        let outcome = scene.run(12_000.0);
        let share = outcome.in_time() as f64 / (capacity * 6.0);
        let shown = (hands, work, share, outcome.p99(), outcome.limit, outcome.late);
        assert!(share > 0.9, "{shown:?}");
        assert!(outcome.p99() < work * 8.0 + 10.0, "{shown:?}");
        assert_eq!(outcome.late, 0, "{shown:?}");
        assert!((hands as u32..hands as u32 * 4 + 10).contains(&outcome.limit), "{shown:?}");
        // Without it nothing is served in time.
        let mut scene = Scene::new(app(), false, seed as u64 + 1);
        scene.run(10_000.0);
        let without = scene.run(11_000.0);
        assert!((without.in_time() as f64) < capacity * 0.1, "{without:?}");
    }
}

#[test]
fn an_app_that_works_for_who_has_gone_is_given_less_until_somebody_waits_again() {
    // Twenty at a time, as many as there may be at first, take longer than callers wait; and what they left is done first.
    let (hands, work) = (2, 150.0);
    let capacity = hands as f64 * 1000.0 / work;
    let mut scene = Scene::new(App { hands, work, demand: [0.0, capacity * 4.0, 0.0] }, true, 2);
    let first = scene.run(2_000.0);
    assert!(first.late > 10, "{first:?}");
    scene.run(20_000.0);
    let outcome = scene.run(30_000.0);
    assert!(outcome.in_time() as f64 > capacity * 10.0 * 0.9, "{outcome:?}");
}

#[test]
fn nothing_is_shed_that_the_app_can_do() {
    let (hands, work) = (16, 20.0);
    let app = App { hands, work, demand: [100.0, 400.0, 60.0] };
    let mut scene = Scene::new(app, true, 3);
    let outcome = scene.run(20_000.0);
    let shed: usize = outcome.shed.iter().sum();
    assert!(shed * 1000 < outcome.in_time(), "{shed} of {}", outcome.in_time());
}

#[test]
fn who_is_less_important_makes_room_for_who_is_more() {
    let (hands, work) = (16, 20.0);
    // 800 a second is what it can do.
    let app = App { hands, work, demand: [1600.0, 300.0, 200.0] };
    let mut scene = Scene::new(app, true, 5);
    scene.run(5_000.0);
    let outcome = scene.run(15_000.0);
    let share = |priority: usize| {
        outcome.shed[priority] as f64 / (outcome.shed[priority] + outcome.served[priority]) as f64
    };
    assert!(share(2) < 0.01 && share(1) < 0.01, "{} {}", share(2), share(1));
    assert!(share(0) > 0.5 && outcome.served[0] > 1000, "what is left is theirs: {:?}", outcome.served);
    assert!(outcome.in_time() > 7000);
    // With more of the others than it can do, they get nothing; and what goes first still does.
    scene.app.demand = [1600.0, 1600.0, 200.0];
    scene.run(20_000.0);
    let outcome = scene.run(30_000.0);
    assert!(outcome.shed[2] * 50 < outcome.served[2], "{outcome:?}");
    assert!(outcome.served[0] * 50 < outcome.served[1], "{:?}", outcome.served);
}

#[test]
fn the_limit_follows_an_app_that_becomes_slower_and_recovers() {
    let app = App { hands: 32, work: 20.0, demand: [0.0, 1200.0, 0.0] };
    let mut scene = Scene::new(app, true, 9);
    let before = scene.run(10_000.0);
    assert!(before.shed[1] * 100 < before.in_time(), "{:?}", before.shed);
    // A quarter of its hands is left: 400 a second.
    scene.app.hands = 8;
    scene.run(15_000.0);
    let weak = scene.run(25_000.0);
    assert!(weak.in_time() > 3600, "{:?}", weak.served);
    assert!(weak.p99() < 250.0, "{}", weak.p99());
    scene.app.hands = 32;
    scene.run(35_000.0);
    let well = scene.run(45_000.0);
    assert!(well.shed[1] * 100 < well.in_time(), "{:?} {:?}", well.shed, well.served);
}
