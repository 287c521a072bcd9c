//! Limit: how many streams (and connections) each source cluster may have open here at once. One noisy cluster cannot take the
//! door away from the others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hanse_identity::TrustDomain;

/// Counts open streams by the caller's trust domain. The map grows only with joined trust domains: callers of
/// others are refused before they are counted.
#[derive(Debug)]
pub struct Limits {
    at_most: usize,
    open: Mutex<HashMap<TrustDomain, Arc<AtomicUsize>>>,
}

/// One open stream; gives its place back when dropped.
#[derive(Debug)]
pub struct Permit {
    count: Arc<AtomicUsize>,
}

impl Limits {
    pub fn new(at_most: usize) -> Self {
        Self { at_most, open: Mutex::default() }
    }

    /// Takes a place for a stream from `source`, or `None` if all of its places are taken.
    pub fn take(&self, source: &TrustDomain) -> Option<Permit> {
        let count = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.entry(source.clone()).or_default().clone()
        };
        let grow = |n: usize| (n < self.at_most).then_some(n + 1);
        count.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).ok()?;
        Some(Permit { count })
    }

    /// Open streams by trust domain, for the metrics.
    pub fn open(&self) -> Vec<(TrustDomain, usize)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(source, count)| (source.clone(), count.load(Ordering::Acquire))).collect()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cluster_at_its_limit_leaves_the_others_alone() {
        let limits = Limits::new(2);
        let (east, west) = ("east.example".parse().unwrap(), "west.example".parse().unwrap());
        let first = limits.take(&east).unwrap();
        let _second = limits.take(&east).unwrap();
        assert!(limits.take(&east).is_none());
        assert!(limits.take(&west).is_some());
        drop(first);
        assert!(limits.take(&east).is_some());
    }
}
