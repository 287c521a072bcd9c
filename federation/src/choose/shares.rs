//! Dividing the traffic: how much each tier gets, and holding back a tier that returns.
//!
//! A tier takes all that reaches it while its healthy capacity is at least `openNextTierBelow`, else in proportion,
//! and the rest flows to the next. A tier that lost traffic and is well again keeps what it has for `returnAfter`,
//! then gets back the rest along a ramp; failing again starts this anew. Traffic is never refused for a hold.

use std::ops::Range;
use std::time::Duration;

use hanse_identity::{ClusterName, Timestamp};

use super::{LadderSettings, LocalityMode, Tier, TierKind};

/// The ramp of a returning tier lasts this part of `returnAfter`.
const RAMP_PART: u32 = 3;
/// Most tiers that are remembered after they have left the ladder.
const MAX_DEPARTED: usize = 32;

/// How the traffic of one service is divided, and the memory that this needs.
#[derive(Clone, Debug)]
pub(super) struct Division {
    groups: Vec<Group>,
    tiers: Vec<(Key, Opening)>,
    /// Tiers and groups that a View took away: if they come back, they return like any other.
    departed: Vec<(Key, Opening)>,
    /// Scratch: what each tier wants and is granted, kept to spare allocations.
    terms: Vec<Terms>,
}

/// Under which name memory is carried from one ladder to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Tier(TierKind, ClusterName),
    Group(ClusterName),
}

/// Tiers that share a fixed part of the traffic: all of them, or with `Distribute` those of one cluster.
#[derive(Clone, Debug)]
struct Group {
    key: Key,
    tiers: Range<usize>,
    percent: f64,
    opening: Opening,
}

/// How far a tier is open, 0.0 to 1.0, for the traffic that reaches it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Opening {
    /// What its capacity last allowed; `None` = never asked.
    wanted: Option<f64>,
    /// What it had when it began to return.
    from: f64,
    /// When it began to return; `None` = it has everything back.
    since: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Terms {
    wanted: f64,
    granted: f64,
}

impl Division {
    pub(super) fn new(tiers: &[Tier], mode: &LocalityMode, previous: Option<&Division>) -> Self {
        let keys = tiers.iter().map(|tier| Key::Tier(tier.kind, tier.cluster.clone()));
        let mut division = Self {
            groups: groups(tiers, mode),
            tiers: keys.map(|key| (key, Opening::default())).collect(),
            departed: Vec::new(),
            terms: Vec::with_capacity(tiers.len()),
        };
        let Some(previous) = previous else { return division };
        let memory: Vec<_> = previous.memory().filter(|(_, opening)| opening.wanted.is_some()).collect();
        let recall =
            |key: &Key| memory.iter().find(|(k, _)| *k == key).map_or_else(Opening::default, |(_, o)| *o);
        for (key, opening) in &mut division.tiers {
            *opening = recall(key);
        }
        for group in &mut division.groups {
            group.opening = recall(&group.key);
        }
        let gone = memory.into_iter().filter(|(key, _)| division.memory().all(|(k, _)| k != *key));
        let departed = gone.take(MAX_DEPARTED).map(|(key, opening)| (key.clone(), opening)).collect();
        division.departed = departed;
        division
    }

    fn memory(&self) -> impl Iterator<Item = (&Key, Opening)> {
        let groups = self.groups.iter().map(|group| (&group.key, group.opening));
        groups.chain(self.tiers.iter().chain(&self.departed).map(|(key, opening)| (key, *opening)))
    }

    /// Fills `shares` with the share per tier: together 1, or all 0 where nothing is healthy.
    pub(super) fn divide(
        &mut self,
        now: Timestamp,
        capacities: impl Iterator<Item = f64>,
        settings: &LadderSettings,
        shares: &mut Vec<f64>,
    ) {
        let return_after = settings.return_after;
        self.terms.clear();
        for ((_, opening), capacity) in self.tiers.iter_mut().zip(capacities) {
            let wanted = wanted(capacity, settings.open_next_tier_below);
            self.terms.push(Terms { wanted, granted: opening.step(now, wanted, return_after) });
        }
        for (_, opening) in &mut self.departed {
            opening.step(now, 0.0, return_after);
        }
        shares.clear();
        shares.resize(self.terms.len(), 0.0);

        let alone = self.groups.len() == 1;
        let (mut granted, mut wanted) = (0.0, 0.0);
        for group in &mut self.groups {
            let alive = self.terms[group.tiers.clone()].iter().any(|terms| terms.wanted > 0.0);
            let alive = if alive { 1.0 } else { 0.0 };
            granted += group.percent * group.opening.step(now, alive, return_after);
            wanted += group.percent * alive;
        }
        for group in &self.groups {
            let part = match alone {
                true => 1.0,
                false if granted > 0.0 => group.percent * group.opening.granted(now, return_after) / granted,
                false if wanted > 0.0 => group.percent * group.opening.wanted.unwrap_or(0.0) / wanted,
                false => 0.0,
            };
            spread(part, &self.terms[group.tiers.clone()], &mut shares[group.tiers.clone()]);
        }
    }
}

/// How far a tier of that healthy capacity is open.
fn wanted(capacity: f64, open_next_tier_below: f64) -> f64 {
    match capacity {
        none if none <= 0.0 => 0.0,
        enough if enough >= open_next_tier_below => 1.0,
        some => some / open_next_tier_below,
    }
}

/// Lets `part` flow down the tiers. What is left at the end goes to those that hold back, from the top: better too
/// early than refused. What then is left is spread over all in proportion.
fn spread(part: f64, terms: &[Terms], shares: &mut [f64]) {
    let mut left = 1.0;
    for (share, terms) in shares.iter_mut().zip(terms) {
        *share = left * terms.granted;
        left -= *share;
    }
    for (share, terms) in shares.iter_mut().zip(terms).filter(|(_, terms)| terms.granted < terms.wanted) {
        let more = left * terms.wanted;
        *share += more;
        left -= more;
    }
    let sum: f64 = shares.iter().sum();
    if sum > 0.0 {
        shares.iter_mut().for_each(|share| *share *= part / sum);
    }
}

fn groups(tiers: &[Tier], mode: &LocalityMode) -> Vec<Group> {
    let Some(first) = tiers.first() else { return Vec::new() };
    let group = |cluster: &ClusterName, tiers, percent| Group {
        key: Key::Group(cluster.clone()),
        tiers,
        percent,
        opening: Opening::default(),
    };
    let LocalityMode::Distribute(percents) = mode else {
        return vec![group(&first.cluster, 0..tiers.len(), 100.0)];
    };
    let mut groups = Vec::new();
    let mut start = 0;
    for same in tiers.chunk_by(|a, b| a.cluster == b.cluster) {
        let cluster = &same[0].cluster;
        let percent = percents.iter().find(|(c, _)| c == cluster).map_or(0, |(_, percent)| *percent);
        groups.push(group(cluster, start..start + same.len(), f64::from(percent)));
        start += same.len();
    }
    groups
}

impl Opening {
    /// Takes in what the capacity allows now; returns what is granted.
    fn step(&mut self, now: Timestamp, wanted: f64, return_after: Duration) -> f64 {
        let Some(before) = self.wanted.replace(wanted) else {
            // Never asked before: there is nothing to return to.
            self.from = 1.0;
            return wanted;
        };
        if self.since.is_some_and(|since| since > now) {
            self.since = Some(now); // The clock was set back; do not hold for longer than agreed.
        }
        let allowed = self.allowed(now, return_after);
        if wanted < before {
            self.from = allowed.min(wanted);
            self.since = Some(now);
        } else if wanted > before && allowed >= before {
            self.from = before;
            self.since = Some(now);
        }
        if self.allowed(now, return_after) >= 1.0 {
            self.since = None;
        }
        self.granted(now, return_after)
    }

    fn granted(&self, now: Timestamp, return_after: Duration) -> f64 {
        self.wanted.unwrap_or(0.0).min(self.allowed(now, return_after))
    }

    /// What the hold and the ramp allow.
    fn allowed(&self, now: Timestamp, return_after: Duration) -> f64 {
        let Some(since) = self.since else { return 1.0 };
        let well_for = now.since(since);
        if well_for < return_after {
            return self.from;
        }
        let ramp = (return_after / RAMP_PART).as_secs_f64();
        let climbed = (well_for - return_after).as_secs_f64();
        if climbed >= ramp { 1.0 } else { self.from + (1.0 - self.from) * climbed / ramp }
    }
}
