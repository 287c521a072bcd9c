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

fn window(typical: f64, most: u32) -> Window {
    Window { typical: Some(ms(typical)), most, lost: false }
}

fn lost(most: u32) -> Window {
    Window { lost: true, ..window(500.0, most) }
}

/// So many whole requests of the highest priority.
fn enter(limiter: &Limiter, requests: usize) {
    for _ in 0..requests {
        assert_eq!(limiter.enter(Priority::Critical, true, Duration::ZERO), Ok(Some(Counted::UnderWay)));
    }
}

fn leave(limiter: &Limiter, requests: usize) {
    (0..requests).for_each(|_| limiter.end(Counted::UnderWay));
}

/// Windows of 100 ms, one after the other, each with as many under way as there may be.
fn after(gradient: &mut Gradient, now: &mut Duration, windows: usize, typical: f64) {
    for _ in 0..windows {
        *now += WINDOW;
        gradient.saw(window(typical, gradient.limit()), *now);
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
    assert_eq!(gradient.limit(), 210, "three tenths less, and no less than that");
    after(&mut gradient, &mut now, 7, 100.0);
    assert!((4..30).contains(&gradient.limit()), "{}", gradient.limit());
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
        gradient.saw(window(typical, 10), now);
        assert_eq!(gradient.limit(), 20, "half of it is no demand for more");
    }
    let slow = gradient.base().unwrap();
    assert!(slow > ms(10.0) && slow < ms(40.0), "{slow:?}: slowly upwards");
    for _ in 0..40 {
        now += WINDOW;
        gradient.saw(window(2.0, 3), now);
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
    assert!(gradient.saw(window(50.0, held), now), "what was under way is waited for");
    assert_eq!(gradient.base().unwrap(), before);
    now += WINDOW;
    gradient.saw(window(5.0, held / 4), now);
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
fn a_loss_takes_room_only_where_room_was_used() {
    let (mut gradient, mut now) = (Gradient::new(settings(), Duration::ZERO, 1), Duration::ZERO);
    after(&mut gradient, &mut now, 2, 10.0);
    let (limit, base) = (gradient.limit(), gradient.base());
    for _ in 0..20 {
        assert!(!gradient.saw(lost(limit / 2), now), "two who gave up in an app that rests are no overload");
    }
    assert_eq!((gradient.limit(), gradient.base()), (limit, base));
    assert!(gradient.saw(lost(limit), now), "and what is under way is of the time before");
    assert_eq!(gradient.limit(), limit / 2);
}

#[test]
fn a_measurement_that_nobody_answers_ends_and_is_tried_again_later() {
    let (mut gradient, mut now) = (Gradient::new(settings(), Duration::ZERO, 1), Duration::ZERO);
    let none = Window { typical: None, most: 20, lost: false };
    after(&mut gradient, &mut now, 19, 50.0);
    let (held, base) = (gradient.limit(), gradient.base());
    assert!(!gradient.saw(none, now), "nothing is known");
    assert_eq!(gradient.limit(), held);
    for ends_by in [none, lost(1)] {
        now += FIRST_MEASURED;
        after(&mut gradient, &mut now, 1, 50.0);
        let cut = gradient.limit();
        assert!(cut <= held / 3, "{cut} of {held}");
        assert!(gradient.saw(ends_by, now));
        assert_eq!((gradient.limit(), gradient.base()), (held, base));
        after(&mut gradient, &mut now, 1, 50.0);
        assert!(gradient.limit() >= held, "not at once");
        gradient.set(f64::from(held));
    }
    // Where even a quarter is too much, so is the whole.
    now += FIRST_MEASURED;
    after(&mut gradient, &mut now, 1, 50.0);
    gradient.saw(lost(gradient.limit()), now);
    assert_eq!(gradient.limit(), held / 2);
}

#[test]
fn lower_priorities_are_refused_first_and_come_back_when_there_is_room() {
    let limiter = Limiter::new(ConcurrencySettings { min: 20, max: 20, ..settings() }, Duration::ZERO, 1);
    let admitted = |priority| limiter.check(priority, Duration::ZERO).is_ok();
    let who = |_: &Limiter| {
        [Priority::BestEffort, Priority::Default, Priority::Critical, Priority::Exempt].map(admitted)
    };
    for _ in 0..14 {
        assert_eq!(who(&limiter), [true; 4]);
        enter(&limiter, 1);
    }
    assert_eq!(who(&limiter), [false, true, true, true], "at 14 of 20");
    enter(&limiter, 4);
    assert_eq!(who(&limiter), [false, false, true, true], "at 18");
    enter(&limiter, 2);
    assert_eq!(who(&limiter), [false, false, false, true], "at 20");
    assert!(limiter.enter(Priority::Critical, true, Duration::ZERO).is_err());
    assert_eq!(limiter.enter(Priority::Exempt, true, Duration::ZERO), Ok(None));
    leave(&limiter, 1);
    assert!(admitted(Priority::Critical) && !admitted(Priority::Default));
    leave(&limiter, 3);
    assert!(!admitted(Priority::Default), "16 is not below eight tenths");
    leave(&limiter, 1);
    assert_eq!(who(&limiter), [false, true, true, true], "at 15");
    leave(&limiter, 5);
    assert!(!admitted(Priority::BestEffort), "10 is not below half");
    leave(&limiter, 1);
    assert_eq!(who(&limiter), [true; 4]);
    assert_eq!(limiter.under_way(), 9, "who only asks is not counted, nor who is refused");
    enter(&limiter, 11);
    let refused = |_| limiter.enter(Priority::Default, true, Duration::ZERO).unwrap_err().as_secs();
    assert_eq!(
        (0..9).map(refused).collect::<BTreeSet<_>>(),
        [1, 2, 3].into(),
        "and not all at the same moment"
    );
}

#[test]
fn one_request_at_a_time_always_gets_through() {
    let limiter = Limiter::new(ConcurrencySettings { min: 1, max: 1, ..settings() }, Duration::ZERO, 1);
    for priority in [Priority::BestEffort, Priority::Default, Priority::Critical] {
        let counted = limiter.enter(priority, true, Duration::ZERO).unwrap().unwrap();
        assert!(limiter.enter(priority, true, Duration::ZERO).is_err());
        limiter.end(counted);
        assert!(limiter.check(priority, Duration::ZERO).is_ok());
    }
}

#[test]
fn a_burst_of_bodies_that_are_still_to_come_does_not_pass_whole() {
    let limiter = Limiter::new(ConcurrencySettings { min: 20, max: 20, ..settings() }, Duration::ZERO, 1);
    let come = |whole, now| limiter.enter(Priority::Default, whole, now).ok().flatten();
    let now = ms(10_000.0);
    let burst: Vec<Counted> = (0..500).filter_map(|_| come(false, now)).collect();
    assert_eq!(burst.len(), 18, "as many as if they were whole");
    assert!(come(true, now).is_none(), "they count for those that are");
    // Their bodies come: they are no more than before.
    let begun = burst.iter().map(|counted| limiter.begin(*counted, now + ms(40.0)));
    let begun: Vec<Counted> = begun.collect();
    assert_eq!((begun.len(), limiter.under_way(), limiter.arriving.count(now)), (18, 18, 0));
    assert!(come(true, now).is_none());
    begun.into_iter().for_each(|counted| limiter.end(counted));
    // Who is slow keeps nobody's place, whenever he ends.
    let slow: Vec<Counted> = (0..20).filter_map(|_| come(false, now)).collect();
    assert!(come(true, now).is_none());
    let later = now + arriving::SLOT * 2;
    let other = come(true, later).unwrap();
    slow.into_iter().for_each(|counted| limiter.end(counted));
    assert_eq!(limiter.under_way(), 1);
    limiter.end(other);
}

#[test]
fn who_is_turned_away_for_those_who_are_coming_is_demand_too() {
    let limiter = Limiter::new(ConcurrencySettings { min: 4, ..settings() }, Duration::ZERO, 1);
    let mut now = Duration::ZERO;
    for _ in 0..12 {
        let all: Vec<_> =
            (0..100).filter_map(|_| limiter.enter(Priority::Default, false, now).ok()).collect();
        for counted in all {
            limiter.end(limiter.begin(counted.unwrap(), now));
            limiter.answered(now, now + ms(10.0), Outcome::Answered);
        }
        now += WINDOW;
    }
    assert!(limiter.limit() > 40, "{}", limiter.limit());
}

#[test]
fn answers_that_say_nothing_of_the_app_are_no_samples() {
    let limiter = Limiter::new(settings(), Duration::ZERO, 1);
    let mut now = Duration::ZERO;
    let answer = |took: f64, outcome, now: &mut Duration| {
        *now += ms(20.0);
        limiter.answered(*now - ms(took), *now, outcome);
    };
    (0..50).for_each(|_| answer(0.01, Outcome::Failed, &mut now));
    assert_eq!(limiter.base(), Duration::ZERO, "errors that come at once are no speed");
    (0..50).for_each(|_| answer(10.0, Outcome::Answered, &mut now));
    let base = limiter.base();
    assert!(base > ms(9.0) && base < ms(11.0), "{base:?}");
    (0..50).for_each(|_| answer(0.01, Outcome::Failed, &mut now));
    for took in [0.01, 500.0] {
        (0..50).for_each(|_| answer(took, Outcome::Refused, &mut now));
    }
    assert_eq!((limiter.base(), limiter.limit()), (base, 20));
    (0..50).for_each(|_| answer(500.0, Outcome::Failed, &mut now));
    assert_eq!((limiter.base(), limiter.limit()), (base, 20), "nobody was there but they");
    enter(&limiter, 15);
    (0..100).for_each(|_| answer(500.0, Outcome::Failed, &mut now));
    assert!(limiter.limit() < 20, "who gave up after half a second would have waited no less");
    assert_eq!(limiter.base(), base);
}

#[test]
fn a_window_of_few_answers_ends_too() {
    let limiter = Limiter::new(settings(), Duration::ZERO, 1);
    let mut now = Duration::ZERO;
    let answer = |every: f64, took: f64, now: &mut Duration| {
        *now += ms(every);
        limiter.answered(*now - ms(took), *now, Outcome::Answered);
    };
    (0..4).for_each(|_| answer(1000.0, 40.0, &mut now));
    assert_eq!(limiter.base(), Duration::ZERO, "four are few");
    answer(1000.0, 40.0, &mut now);
    assert!(limiter.base() > ms(36.0), "but there are no more in five seconds: {:?}", limiter.base());
    (0..4).for_each(|_| answer(5000.0, 20.0, &mut now));
    assert!(limiter.base() < ms(31.0), "nor ever: {:?}", limiter.base());
    // What takes longer than that is waited for.
    let slow = Limiter::new(settings(), Duration::ZERO, 1);
    let mut now = ms(20_000.0);
    let windows = (0..40).filter(|_| {
        now += ms(2000.0);
        let ends = slow.ends.load(Ordering::Relaxed);
        slow.answered(now - ms(10_000.0), now, Outcome::Answered);
        slow.ends.load(Ordering::Relaxed) != ends
    });
    assert!((3..=5).contains(&windows.count()));
}

#[test]
fn the_median_is_found_within_an_eighth() {
    for micros in [0, 1, 7, 8, 15, 16, 17, 1000, 12_345, 999_999, 59_999_999] {
        let answers = Answers::default();
        for took in [micros / 3, micros, micros * 5] {
            answers.add(Duration::from_micros(took), false);
        }
        let found = answers.take_median().unwrap().as_micros() as f64;
        assert!((found - micros as f64).abs() <= micros as f64 / 8.0, "{micros}: {found}");
        assert_eq!((answers.count.load(Ordering::Relaxed), answers.take_median()), (0, None));
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

impl App {
    fn new(hands: usize, work: f64, demand: [f64; 3]) -> Self {
        Self { hands, work, demand }
    }
}

#[derive(Debug, Default)]
struct Run {
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

    fn run(&mut self, until: f64) -> Run {
        let mut outcome = Run::default();
        while let Some(Reverse((when, number))) = self.queue.pop() {
            self.now = when as f64 / 1000.0;
            if self.now > until {
                self.queue.push(Reverse((when, number)));
                break;
            }
            match self.events[number as usize] {
                Event::Comes(priority) => {
                    self.next_of(priority);
                    let enters = |l: &Limiter| l.enter(PRIORITIES[priority], true, ms(self.now));
                    if self.limiter.as_ref().is_some_and(|limiter| enters(limiter).is_err()) {
                        outcome.shed[priority] += 1;
                        continue;
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
                        self.over(asked, Outcome::Answered);
                    }
                }
                Event::GivesUp(request) => {
                    if !std::mem::replace(&mut self.gone[request as usize], true) {
                        outcome.late += 1;
                        self.over(self.now - PATIENCE, Outcome::Failed);
                    }
                }
            }
            self.work();
        }
        outcome.limit = self.limiter.as_ref().map_or(0, Limiter::limit);
        outcome.took.sort_by(f64::total_cmp);
        outcome
    }

    fn over(&self, asked: f64, outcome: Outcome) {
        if let Some(limiter) = &self.limiter {
            limiter.answered(ms(asked), ms(self.now), outcome);
            limiter.end(Counted::UnderWay);
        }
    }
}

impl Run {
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
        let app = || App::new(hands, work, [0.0, capacity * 3.0, 0.0]);
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
    let mut scene = Scene::new(App::new(hands, work, [0.0, capacity * 4.0, 0.0]), true, 2);
    let first = scene.run(2_000.0);
    assert!(first.late > 10, "{first:?}");
    scene.run(20_000.0);
    let outcome = scene.run(30_000.0);
    assert!(outcome.in_time() as f64 > capacity * 10.0 * 0.9, "{outcome:?}");
}

#[test]
fn nothing_is_shed_that_the_app_can_do() {
    let (hands, work) = (16, 20.0);
    let app = App::new(hands, work, [100.0, 400.0, 60.0]);
    let mut scene = Scene::new(app, true, 3);
    let outcome = scene.run(20_000.0);
    let shed: usize = outcome.shed.iter().sum();
    assert!(shed * 1000 < outcome.in_time(), "{shed} of {}", outcome.in_time());
}

#[test]
fn who_is_less_important_makes_room_for_who_is_more() {
    let (hands, work) = (16, 20.0);
    // 800 a second is what it can do.
    let app = App::new(hands, work, [1600.0, 300.0, 200.0]);
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
    let app = App::new(32, 20.0, [0.0, 1200.0, 0.0]);
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

#[test]
fn the_limit_of_an_app_with_a_hand_or_two_comes_near_that() {
    for (hands, work) in [(1, 20.0), (1, 100.0), (1, 300.0), (2, 20.0), (2, 100.0), (2, 300.0)] {
        let capacity = hands as f64 * 1000.0 / work;
        let mut scene = Scene::new(App::new(hands, work, [0.0, capacity * 3.0, 0.0]), true, hands as u64);
        scene.run(30_000.0);
        let outcome = scene.run(60_000.0);
        let share = outcome.in_time() as f64 / (capacity * 30.0);
        let shown = (hands, work, outcome.limit, share, outcome.p99());
        assert!(outcome.limit as usize <= hands * 3 + 2, "{shown:?}");
        assert!(share > 0.6 && (outcome.p99() < work * 6.0 || work > 100.0), "{shown:?}");
    }
}
