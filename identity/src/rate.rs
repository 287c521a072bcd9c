//! How much each of many may ask in a while: a bucket of credit for each, refilled steadily.
//!
//! Pure: the time is an argument. Who "each" is, and what a request costs, is decided where it is served.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Credit that each may have saved up.
    pub capacity: u32,
    /// Credit that comes back.
    pub per_second: f64,
    /// How many are remembered; those whose bucket is full need not be.
    pub remembered: usize,
}

/// Everybody's credit.
#[derive(Debug)]
pub struct Rates<K> {
    rate: Rate,
    buckets: BTreeMap<K, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    credit: f64,
    at: Instant,
}

impl Bucket {
    fn refilled(self, rate: Rate, now: Instant) -> Self {
        let came_back = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        Self { credit: (self.credit + came_back).min(f64::from(rate.capacity)), at: now }
    }
}

impl<K: Ord> Rates<K> {
    pub const fn new(rate: Rate) -> Self {
        Self { rate, buckets: BTreeMap::new() }
    }

    /// Takes credit; if there is not enough, how long until there is, and nothing is taken.
    pub fn take(&mut self, who: K, cost: u32, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        if self.buckets.len() >= rate.remembered && !self.buckets.contains_key(&who) {
            self.buckets.retain(|_, bucket| bucket.refilled(rate, now).credit < f64::from(rate.capacity));
            if self.buckets.len() >= rate.remembered {
                return Err(Duration::from_secs_f64(f64::from(rate.capacity) / rate.per_second));
            }
        }
        let full = Bucket { credit: f64::from(rate.capacity), at: now };
        let bucket = self.buckets.entry(who).or_insert(full);
        *bucket = bucket.refilled(rate, now);
        let missing = f64::from(cost) - bucket.credit;
        if missing > 0.0 {
            return Err(Duration::from_secs_f64(missing / rate.per_second));
        }
        bucket.credit -= f64::from(cost);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { capacity: 4000, per_second: 2000.0, remembered: 64 };

    #[test]
    fn credit_is_spent_and_comes_back() {
        let (mut rates, start) = (Rates::new(RATE), Instant::now());
        assert_eq!(rates.take(1000, 4000, start), Ok(()));
        assert_eq!(rates.take(1000, 2000, start), Err(Duration::from_secs(1)));
        assert_eq!(rates.take(1001, 2000, start), Ok(()), "another has credit of its own");
        let later = start + Duration::from_secs(1);
        assert_eq!(rates.take(1000, 2000, later), Ok(()));
        assert!(rates.take(1000, 1, later).is_err());
        let much_later = start + Duration::from_secs(1000);
        assert!(rates.take(1000, 4001, much_later).is_err(), "nobody saves up more than the capacity");
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut rates, start) = (Rates::new(RATE), Instant::now());
        for who in 0..64 {
            assert_eq!(rates.take(who, 4000, start), Ok(()));
        }
        assert!(rates.take(64, 1, start).is_err());
        let later = start + Duration::from_secs(2);
        assert_eq!(rates.take(64, 1, later), Ok(()), "those with a full bucket are forgotten");
    }
}
