//! Load as one worker sees it, per target of one service: what is under way there, and how long answers took.
//!
//! Latency is a moving average that follows a rise within a few answers and a fall within some more, and that falls by
//! itself where nothing is asked: whoever was slow is tried again. Pure: `now` comes in.

use std::collections::HashMap;
use std::time::Duration;

use hanse_identity::Timestamp;

use crate::health::Target;

/// What one worker has seen of one service's targets.
#[derive(Debug, Default)]
pub struct Load {
    entries: HashMap<Target, Entry>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    under_way: u32,
    /// Milliseconds, and when that was right; `None` = nothing has been answered.
    latency: Option<(f64, Timestamp)>,
    answers: u32,
}

/// How a target compares with others at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Burden {
    pub under_way: u32,
    /// Milliseconds; `None` = not known.
    pub latency: Option<f64>,
}

/// Time in which a latency that is not heard of again falls to a third.
const FORGET_WITHIN: Duration = Duration::from_secs(10);
/// How much of a rise, and of a fall, one answer makes.
const RISE: f64 = 0.3;
const FALL: f64 = 0.1;
/// Answers before a latency is believed: the first ones are those of cold caches and new connections.
const BELIEVED_AFTER: u32 = 10;
/// Below this, latency says nothing of load.
const LEAST_LATENCY_MS: f64 = 1.0;
/// Latencies closer than this factor are taken as equal, so that noise does not send everything to one.
const ALIKE: f64 = 1.5;
/// How many times as slow whoever sheds requests counts, and how slow at most.
const SHED: f64 = 4.0;
const SHED_AT_MOST_MS: f64 = 1000.0;

impl Load {
    /// A request goes there.
    pub fn begin(&mut self, target: &Target) {
        match self.entries.get_mut(target) {
            Some(entry) => entry.under_way += 1,
            None => drop(self.entries.insert(target.clone(), Entry { under_way: 1, ..Entry::default() })),
        }
    }

    /// It is over, however it ended.
    pub fn end(&mut self, target: &Target) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.under_way = entry.under_way.saturating_sub(1);
        }
    }

    /// An answer began after so long.
    pub fn answered(&mut self, now: Timestamp, target: &Target, after: Duration) {
        let Some(entry) = self.entries.get_mut(target) else { return };
        let took = after.as_secs_f64() * 1000.0;
        entry.answers = entry.answers.saturating_add(1);
        let Some((held, since)) = entry.latency else {
            entry.latency = Some((took, now));
            return;
        };
        let least = if took > held { RISE } else { FALL };
        let next = held + (took - held) * (1.0 - faded(now, since)).max(least);
        entry.latency = Some((next, now));
    }

    /// It had too much to do and worked for nobody, at once: as if it had been much slower than it is, or refusing would
    /// look like being fast.
    pub fn shed(&mut self, now: Timestamp, target: &Target) {
        let held = self.entries.get(target).and_then(|entry| entry.latency);
        let took = held.map_or(LEAST_LATENCY_MS, |(held, _)| held * SHED).min(SHED_AT_MOST_MS);
        self.answered(now, target, Duration::from_secs_f64(took / 1000.0));
    }

    pub fn of(&self, now: Timestamp, target: &Target) -> Burden {
        let Some(entry) = self.entries.get(target) else { return Burden::default() };
        let believed = entry.latency.filter(|_| entry.answers >= BELIEVED_AFTER);
        let latency = believed.map(|(held, since)| (held * faded(now, since)).max(LEAST_LATENCY_MS));
        Burden { under_way: entry.under_way, latency }
    }

    /// Forgets targets that are on no ladder any more and have nothing under way.
    pub fn retain(&mut self, keep: impl Fn(&Target) -> bool) {
        self.entries.retain(|target, entry| entry.under_way > 0 || keep(target));
    }
}

impl Burden {
    /// Whether one with this burden and `weight` is worse off than `other` with its own: what is under way by weight,
    /// times latency.
    pub fn is_worse_than(&self, weight: u64, other: &Burden, other_weight: u64) -> bool {
        let mean = (weight + other_weight) as f64 / 2.0;
        let waiting = |burden: &Burden, weight: u64| f64::from(burden.under_way) * mean / weight as f64 + 1.0;
        let slower = match (self.latency, other.latency) {
            (Some(own), Some(its)) if own > its * ALIKE || its > own * ALIKE => own / its,
            _ => 1.0,
        };
        waiting(self, weight) * slower > waiting(other, other_weight)
    }
}

/// What is left of something that old, 0.0 to 1.0.
fn faded(now: Timestamp, since: Timestamp) -> f64 {
    (-now.since(since).as_secs_f64() / FORGET_WITHIN.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn at(name: &str) -> Target {
        Target::Endpoint(name.parse().unwrap())
    }

    fn burden(under_way: u32, latency: Option<f64>) -> Burden {
        Burden { under_way, latency }
    }

    #[test]
    fn latency_rises_fast_falls_slowly_and_is_forgotten() {
        let mut load = Load::default();
        load.begin(&at("a"));
        assert_eq!(load.of(NOW, &at("a")), burden(1, None));
        let latency = |load: &Load, now| load.of(now, &at("a")).latency.unwrap();
        for _ in 1..BELIEVED_AFTER {
            load.answered(NOW, &at("a"), Duration::from_millis(10));
            assert_eq!(load.of(NOW, &at("a")), burden(1, None));
        }
        load.answered(NOW, &at("a"), Duration::from_millis(10));
        assert_eq!(latency(&load, NOW), 10.0);
        for _ in 0..10 {
            load.answered(NOW, &at("a"), Duration::from_millis(1000));
        }
        assert!(latency(&load, NOW) > 950.0);
        load.answered(NOW, &at("a"), Duration::from_millis(10));
        assert!(latency(&load, NOW) > 850.0, "one fast answer says little");
        for _ in 0..60 {
            load.answered(NOW, &at("a"), Duration::from_millis(10));
        }
        assert!(latency(&load, NOW) < 15.0);
        let later = NOW + Duration::from_secs(100);
        assert_eq!(latency(&load, later), LEAST_LATENCY_MS);
        load.answered(later, &at("a"), Duration::from_millis(20));
        assert!((latency(&load, later) - 20.0).abs() < 1.0);
    }

    #[test]
    fn who_sheds_counts_as_slower_not_as_fast() {
        let mut load = Load::default();
        load.begin(&at("a"));
        (0..20).for_each(|_| load.answered(NOW, &at("a"), Duration::from_millis(20)));
        load.shed(NOW, &at("a"));
        let once = load.of(NOW, &at("a")).latency.unwrap();
        assert!((30.0..50.0).contains(&once), "{once}");
        (0..100).for_each(|_| load.shed(NOW, &at("a")));
        let often = load.of(NOW, &at("a")).latency.unwrap();
        assert!((900.0..=1000.0).contains(&often), "and no slower than that: {often}");
    }

    #[test]
    fn what_is_under_way_is_counted_and_kept_until_it_ends() {
        let mut load = Load::default();
        load.begin(&at("a"));
        load.begin(&at("a"));
        load.end(&at("a"));
        load.retain(|_| false);
        assert_eq!(load.of(NOW, &at("a")).under_way, 1);
        load.end(&at("a"));
        load.end(&at("a"));
        assert_eq!(load.of(NOW, &at("a")).under_way, 0);
        load.retain(|_| false);
        assert!(load.entries.is_empty());
    }

    #[test]
    fn burdens_compare_by_what_is_under_way_weight_and_latency() {
        for (own, weight, other, other_weight, worse) in [
            (burden(0, None), 1, burden(0, None), 1, false),
            (burden(1, None), 1, burden(0, None), 1, true),
            (burden(3, None), 3, burden(1, None), 1, false),
            (burden(0, None), 1, burden(0, None), 1000, false),
            (burden(1, None), 1, burden(2, None), 1, false),
            (burden(0, Some(1.4)), 1, burden(0, Some(1.0)), 1, false),
            (burden(0, Some(10.0)), 1, burden(0, Some(1.0)), 1, true),
            (burden(0, Some(10.0)), 1, burden(8, Some(1.0)), 1, true),
            (burden(0, Some(10.0)), 1, burden(20, Some(1.0)), 1, false),
            (burden(0, Some(10.0)), 1, burden(0, None), 1, false),
        ] {
            assert_eq!(own.is_worse_than(weight, &other, other_weight), worse, "{own:?} {other:?}");
        }
    }
}
