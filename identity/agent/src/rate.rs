//! How much each user of the host may ask of the agent in a while: a bucket of credit per user, refilled steadily.
//!
//! Pure: the time is an argument. What a request costs is decided where it is served.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Credit that a user may have saved up.
pub const CAPACITY: u32 = 4000;
/// Credit that comes back per second.
pub const PER_SECOND: u32 = 2000;
/// Users that are remembered; those whose bucket is full need not be.
pub const MAX_USERS: usize = 4096;

/// Every user's credit.
#[derive(Debug, Default)]
pub struct Rates {
    users: BTreeMap<u32, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    credit: f64,
    at: Instant,
}

impl Bucket {
    fn refilled(self, now: Instant) -> Self {
        let came_back = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(PER_SECOND);
        Self { credit: (self.credit + came_back).min(f64::from(CAPACITY)), at: now }
    }
}

impl Rates {
    /// Takes credit from a user; if there is not enough, how long until there is, and nothing is taken.
    pub fn take(&mut self, uid: u32, cost: u32, now: Instant) -> Result<(), Duration> {
        if self.users.len() >= MAX_USERS && !self.users.contains_key(&uid) {
            self.users.retain(|_, bucket| bucket.refilled(now).credit < f64::from(CAPACITY));
            if self.users.len() >= MAX_USERS {
                return Err(Duration::from_secs(u64::from(CAPACITY / PER_SECOND)));
            }
        }
        let full = Bucket { credit: f64::from(CAPACITY), at: now };
        let bucket = self.users.entry(uid).or_insert(full);
        *bucket = bucket.refilled(now);
        let missing = f64::from(cost) - bucket.credit;
        if missing > 0.0 {
            return Err(Duration::from_secs_f64(missing / f64::from(PER_SECOND)));
        }
        bucket.credit -= f64::from(cost);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_spent_and_comes_back() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        assert_eq!(rates.take(1000, CAPACITY, start), Ok(()));
        assert_eq!(rates.take(1000, PER_SECOND, start), Err(Duration::from_secs(1)));
        assert_eq!(rates.take(1001, PER_SECOND, start), Ok(()), "another user has credit of its own");
        let later = start + Duration::from_secs(1);
        assert_eq!(rates.take(1000, PER_SECOND, later), Ok(()));
        assert!(rates.take(1000, 1, later).is_err());
        let much_later = start + Duration::from_secs(1000);
        assert!(
            rates.take(1000, CAPACITY + 1, much_later).is_err(),
            "nobody saves up more than the capacity"
        );
    }

    #[test]
    fn the_table_of_users_is_bounded() {
        let (mut rates, start) = (Rates::default(), Instant::now());
        for uid in 0..MAX_USERS as u32 {
            assert_eq!(rates.take(uid, CAPACITY, start), Ok(()));
        }
        assert!(rates.take(u32::MAX, 1, start).is_err());
        let later = start + Duration::from_secs(2);
        assert_eq!(rates.take(u32::MAX, 1, later), Ok(()), "those with a full bucket are forgotten");
    }
}
