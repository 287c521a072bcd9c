//! Rate limits: token buckets that all workers of a proxy share without a lock, kept as the generic cell rate
//! algorithm has it, in one number per bucket. Pure; the time is an argument.
//!
//! A limit across a cluster is kept by its proxies without a word between them: each has the part of it that its endpoint's
//! weight is of all that are ready, which the View tells every one of them alike.
//!
//! A bucket is the moment up to which its credit is used up (the theoretical arrival time). One that lies in the past is
//! full, and the same as one that nobody has ever asked for: so a table of a fixed size can hold everybody who matters.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hanse_identity::{ServiceName, SpiffeId};

use super::access::EachValue;
use super::document::PolicySpec;
use super::document::limit::{LimitAcross, LimitBy, RateLimit, RequestLimit};
use crate::catalog::EndpointId;
use crate::view::View;

/// Buckets of one limit that has one for each caller or value: sets of some that a key may be in.
const SETS: usize = 512;
const WAYS: usize = 8;
/// Longest value of a header that is told from others; what is longer is cut off.
const MAX_VALUE_BYTES: usize = 256;

/// The limits of one workload at one View.
#[derive(Debug, Default)]
pub struct LimitTable {
    limits: Vec<Arc<Limit>>,
}

/// One limit and its buckets, which stay for as long as it is written in the same words.
#[derive(Debug)]
pub struct Limit {
    /// `namespace/name#limit`.
    pub name: Arc<str>,
    spec: RequestLimit,
    share: Share,
    /// `spec.header` in lower case.
    header: Option<String>,
    /// What one request takes, in nanoseconds of credit.
    cost: u64,
    /// What a full bucket has.
    capacity: u64,
    buckets: Arc<Buckets>,
}

/// The part of a limit that one proxy keeps: its weight, of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    own: u64,
    all: u64,
}

#[derive(Debug)]
enum Buckets {
    One(AtomicU64),
    Each { slots: Box<[Slot]>, keys: RandomState },
}

/// A key's hash, and the moment up to which its credit is used up.
#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    used: AtomicU64,
}

/// Who asks, and how: what the buckets are chosen by.
pub struct Asker<'a> {
    /// `None`: nobody knows; all of these are one.
    pub id: Option<&'a SpiffeId>,
    pub header: &'a EachValue<'a>,
}

/// Which limit is reached, and when there is credit again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    pub name: Arc<str>,
    pub after: Duration,
}

impl LimitTable {
    /// The limits for any of these services, which the endpoint `own` serves; what `before` has of them keeps its buckets.
    pub fn build(view: &View, own: &EndpointId, services: &BTreeSet<ServiceName>, before: &Self) -> Self {
        let mut limits = Vec::new();
        for document in view.policies.values() {
            let PolicySpec::RateLimit(policy) = &document.spec else { continue };
            let namespace = document.name.namespace();
            if !policy.target_refs.iter().any(|target| services.contains(&target.service(namespace))) {
                continue;
            }
            let part = Share::of(view, policy, namespace, own);
            for (index, spec) in policy.limits.iter().enumerate() {
                let name = match &spec.name {
                    Some(name) => format!("{}#{name}", document.name),
                    None => format!("{}#{index}", document.name),
                };
                let share = match spec.across {
                    LimitAcross::Proxy => Share::WHOLE,
                    LimitAcross::Cluster => part,
                };
                let known = before.limits.iter().find(|limit| *limit.name == *name && limit.spec == *spec);
                limits.push(match known {
                    Some(same) if same.share == share => Arc::clone(same),
                    // Credit that is used up stays used up, however many come and go.
                    Some(other) => Arc::new(Limit::new(name.into(), spec, share, Arc::clone(&other.buckets))),
                    None => Arc::new(Limit::new(name.into(), spec, share, Arc::new(Buckets::new(spec.by)))),
                });
            }
        }
        Self { limits }
    }

    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// Takes one request's credit of every limit, or none. `now` is the time since some moment in the past.
    pub fn take(&self, asker: &Asker<'_>, now: Duration) -> Result<(), Limited> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        for (index, limit) in self.limits.iter().enumerate() {
            if let Err(after) = limit.take(asker, now) {
                self.limits[..index].iter().for_each(|earlier| earlier.give_back(asker, now));
                return Err(Limited { name: Arc::clone(&limit.name), after: Duration::from_nanos(after) });
            }
        }
        Ok(())
    }
}

impl Limit {
    fn new(name: Arc<str>, spec: &RequestLimit, share: Share, buckets: Arc<Buckets>) -> Self {
        let per = u64::try_from(spec.per.get().as_nanos()).unwrap_or(u64::MAX);
        let whole = (per / u64::from(spec.requests.max(1))).max(1);
        let burst = u64::from(spec.burst.unwrap_or(spec.requests).max(1));
        // A part of the rate is a higher cost; the same credit is then the same part of the burst, of one request at least.
        let cost = share.dearer(whole);
        let capacity = whole.saturating_mul(burst).max(cost);
        let header = spec.header.as_ref().map(|name| name.to_ascii_lowercase());
        Self { name, spec: spec.clone(), share, header, cost, capacity, buckets }
    }

    /// `Err`: after how many nanoseconds there is credit.
    fn take(&self, asker: &Asker<'_>, now: u64) -> Result<(), u64> {
        let used = self.bucket(asker, now);
        let mut seen = used.load(Ordering::Relaxed);
        loop {
            let taken = seen.max(now).saturating_add(self.cost);
            let full = now.saturating_add(self.capacity);
            if taken > full {
                return Err(taken - full);
            }
            match used.compare_exchange_weak(seen, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    fn give_back(&self, asker: &Asker<'_>, now: u64) {
        let used = self.bucket(asker, now);
        let back = |seen: u64| Some(seen.saturating_sub(self.cost));
        let _ = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }

    fn bucket(&self, asker: &Asker<'_>, now: u64) -> &AtomicU64 {
        match self.buckets.as_ref() {
            Buckets::One(used) => used,
            Buckets::Each { slots, keys } => slot(slots, self.key(keys, asker), now),
        }
    }

    /// The hash is keyed anew in each process: who is in whose bucket cannot be chosen from outside.
    fn key(&self, keys: &RandomState, asker: &Asker<'_>) -> u64 {
        let hash = match &self.header {
            None => keys.hash_one(asker.id.map(ToString::to_string)),
            Some(name) => {
                // Several values are one key together: a second one is no way to a fresh bucket of the first.
                let mut all = Vec::new();
                (asker.header)(name, &mut |value| {
                    let room = MAX_VALUE_BYTES.saturating_sub(all.len());
                    all.extend_from_slice(&value[..value.len().min(room)]);
                });
                keys.hash_one(all)
            }
        };
        // 0 is a slot that nobody has had.
        hash.max(1)
    }
}

impl Buckets {
    fn new(by: LimitBy) -> Self {
        match by {
            LimitBy::Service => Self::One(AtomicU64::new(0)),
            LimitBy::Identity | LimitBy::Header => {
                let slots = std::iter::repeat_with(Slot::default).take(SETS * WAYS).collect();
                Self::Each { slots, keys: RandomState::new() }
            }
        }
    }
}

impl Share {
    const WHOLE: Self = Self { own: 1, all: 1 };

    /// The part of the endpoint `own` among all that serve what the policy is for. One that the View has not, or not as
    /// ready, counts itself beside those that are: requests may come before the others know of it.
    fn of(view: &View, policy: &RateLimit, namespace: &str, own: &EndpointId) -> Self {
        let meant: BTreeSet<_> = policy.target_refs.iter().map(|target| target.service(namespace)).collect();
        let weight = |id: &EndpointId| view.endpoints.get(id).map_or(1, |e| u64::from(e.weight.max(1)));
        let others = view.endpoints.values().filter(|e| e.ready && e.id != *own);
        let others = others.filter(|e| !e.services.is_disjoint(&meant));
        let own = weight(own);
        Self { own, all: own + others.map(|e| weight(&e.id)).sum::<u64>() }
    }

    /// What costs `whole` of the whole limit, of this part.
    fn dearer(self, whole: u64) -> u64 {
        let cost = u128::from(whole) * u128::from(self.all) / u128::from(self.own);
        u64::try_from(cost).unwrap_or(u64::MAX)
    }
}

/// The key's slot; in a set where it has none, that of the bucket which is fullest, and so is missed least. Two workers
/// that do this at the same time may for once count for each other.
fn slot(slots: &[Slot], key: u64, now: u64) -> &AtomicU64 {
    let set = usize::try_from(key % SETS as u64).expect("below the number of sets") * WAYS;
    let set = &slots[set..set + WAYS];
    if let Some(slot) = set.iter().find(|slot| slot.key.load(Ordering::Relaxed) == key) {
        return &slot.used;
    }
    let fullest = set.iter().min_by_key(|slot| slot.used.load(Ordering::Relaxed)).expect("a set has slots");
    fullest.key.store(key, Ordering::Relaxed);
    fullest.used.store(now, Ordering::Relaxed);
    &fullest.used
}

#[cfg(test)]
mod tests;
