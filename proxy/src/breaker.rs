//! Circuit breakers: what one worker has under way to one service, per cluster, and the most that it may have. Pure.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use hanse_federation::choose::Limits;
use hanse_identity::ClusterName;

/// What is limited; named as in BackendPolicy.limits. Beyond `maxConnections` nothing is refused: those that there are
/// carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Pending,
    Requests,
    Retries,
}

/// The counts of one service.
#[derive(Debug, Default)]
pub struct Breakers {
    clusters: RefCell<Vec<(ClusterName, Rc<Counts>)>>,
}

/// What is under way to one cluster. Connections are counted where they are pooled.
#[derive(Debug, Default)]
pub struct Counts {
    pub pending: Cell<u32>,
    pub requests: Cell<u32>,
    pub retries: Cell<u32>,
}

/// One place among those that are limited; given back when dropped.
#[derive(Debug)]
pub struct Held {
    counts: Rc<Counts>,
    limit: Limit,
}

impl Limit {
    /// The field of the policy.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "maxPending",
            Self::Requests => "maxRequests",
            Self::Retries => "maxRetries",
        }
    }

    fn of(self, limits: &Limits) -> Option<u32> {
        match self {
            Self::Pending => limits.pending,
            Self::Requests => limits.requests,
            Self::Retries => limits.retries,
        }
    }
}

impl Breakers {
    pub fn of(&self, cluster: &ClusterName) -> Rc<Counts> {
        let mut clusters = self.clusters.borrow_mut();
        if let Some((_, counts)) = clusters.iter().find(|(name, _)| name == cluster) {
            return Rc::clone(counts);
        }
        let counts = Rc::<Counts>::default();
        clusters.push((cluster.clone(), Rc::clone(&counts)));
        counts
    }

    /// Every cluster that has been asked for, with its counts.
    pub fn all(&self) -> Vec<(ClusterName, Rc<Counts>)> {
        self.clusters.borrow().clone()
    }
}

impl Counts {
    /// Takes a place, if there is one; else the limit that stands against it.
    pub fn take(self: &Rc<Self>, limit: Limit, limits: &Limits) -> Result<Held, Limit> {
        let count = self.count(limit);
        if limit.of(limits).is_some_and(|most| count.get() >= most) {
            return Err(limit);
        }
        count.set(count.get() + 1);
        Ok(Held { counts: Rc::clone(self), limit })
    }

    fn count(&self, limit: Limit) -> &Cell<u32> {
        match limit {
            Limit::Requests => &self.requests,
            Limit::Retries => &self.retries,
            Limit::Pending => &self.pending,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let count = self.counts.count(self.limit);
        count.set(count.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_per_cluster_and_given_back() {
        let limits = Limits { requests: Some(2), retries: Some(0), ..Limits::default() };
        let breakers = Breakers::default();
        let (east, west) = (breakers.of(&"east".parse().unwrap()), breakers.of(&"west".parse().unwrap()));
        let first = east.take(Limit::Requests, &limits).unwrap();
        let _second = east.take(Limit::Requests, &limits).unwrap();
        assert_eq!(east.take(Limit::Requests, &limits).err(), Some(Limit::Requests));
        assert!(west.take(Limit::Requests, &limits).is_ok(), "each cluster has its own");
        assert_eq!(east.take(Limit::Retries, &limits).err(), Some(Limit::Retries), "0 is none");
        assert!(east.take(Limit::Pending, &limits).is_ok(), "what is not said is not limited");
        drop(first);
        assert!(breakers.of(&"east".parse().unwrap()).take(Limit::Requests, &limits).is_ok());
    }

    #[test]
    fn workers_share_a_limit_and_have_a_place_each_at_least() {
        let limits = Limits { requests: Some(10), pending: Some(1), retries: Some(0), ..Limits::default() };
        let share = limits.share(4);
        assert_eq!((share.requests, share.pending, share.retries), (Some(3), Some(1), Some(0)));
        assert_eq!(share.connections, None);
    }
}
