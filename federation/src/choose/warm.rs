//! Endpoints that have just come up, and get a growing part of their share (`warmup`): caches are cold, connections not
//! made.

use std::collections::HashMap;
use std::time::Duration;

use hanse_identity::Timestamp;

use super::{Place, Tier, Way};

/// What one that has just come up begins with.
const LEAST_SHARE: f64 = 0.1;

/// Who is warming up.
#[derive(Debug, Default)]
pub(super) struct Warming(Vec<Fresh>);

#[derive(Clone, Copy, Debug)]
struct Fresh {
    place: Place,
    /// `None` until the first request after it came up.
    since: Option<Timestamp>,
    share: f64,
}

impl Warming {
    /// Whoever was not ready in the ladder before. Without one before, all are as good as old: they are equal.
    pub(super) fn new(tiers: &[Tier], warmup: Duration, previous: Option<(&Warming, &[Tier])>) -> Self {
        let Some((held, before)) = previous.filter(|_| !warmup.is_zero()) else { return Self::default() };
        let ready = |tiers: &[Tier]| -> Vec<(u64, Place)> {
            let places = tiers.iter().enumerate().flat_map(|(tier, t)| {
                t.candidates.iter().enumerate().map(move |(index, candidate)| (candidate, (tier, index)))
            });
            let up = places.filter(|(c, _)| c.ready_weight > 0 && matches!(c.way, Way::Direct(_)));
            up.map(|(candidate, place)| (candidate.key, place)).collect()
        };
        let before: HashMap<u64, Place> = ready(before).into_iter().collect();
        let fresh = |(key, place): (u64, Place)| match before.get(&key) {
            None => Some(Fresh { place, since: None, share: LEAST_SHARE }),
            Some(was) => held.0.iter().find(|f| f.place == *was).map(|f| Fresh { place, ..*f }),
        };
        Self(ready(tiers).into_iter().filter_map(fresh).collect())
    }

    /// Takes in that time has passed.
    pub(super) fn step(&mut self, now: Timestamp, warmup: Duration) {
        self.0.retain_mut(|fresh| {
            let age = now.since(*fresh.since.get_or_insert(now));
            fresh.share = (age.as_secs_f64() / warmup.as_secs_f64().max(f64::MIN_POSITIVE)).max(LEAST_SHARE);
            age < warmup
        });
    }

    /// What is left of a weight; at least 1.
    pub(super) fn share_of(&self, place: Place, weight: u64) -> u64 {
        match self.0.iter().find(|fresh| fresh.place == place) {
            Some(fresh) => ((weight as f64 * fresh.share) as u64).max(1),
            None => weight,
        }
    }
}
