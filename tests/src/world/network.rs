//! The network between all parties: who reaches whom, how long it takes, what is lost, repeated or overtaken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::random::Random;

/// Somebody with an address: (cluster, index in it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    Node(usize, usize),
    Proxy(usize, usize),
}

/// One end of a cut.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Scope {
    Everyone,
    Cluster(usize),
    Party(Party),
}

/// What the network is like at the moment.
#[derive(Clone, Debug)]
pub struct Weather {
    pub least_delay_ms: u64,
    pub most_delay_ms: u64,
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
    /// Messages that take ten times as long, and so are overtaken.
    pub straggler_per_mille: u64,
}

#[derive(Debug)]
pub struct Network {
    pub weather: Weather,
    /// Directed: from, to.
    cuts: BTreeSet<(Scope, Scope)>,
    /// A stream is in order: nothing on it arrives before what was sent earlier.
    streams: BTreeMap<(u64, Party), u64>,
}

impl Weather {
    pub const CALM: Weather = Weather {
        least_delay_ms: 1,
        most_delay_ms: 4,
        loss_per_mille: 0,
        duplicate_per_mille: 0,
        straggler_per_mille: 0,
    };
}

impl Network {
    pub fn new() -> Self {
        Self { weather: Weather::CALM, cuts: BTreeSet::new(), streams: BTreeMap::new() }
    }

    /// One way only.
    pub fn cut(&mut self, from: Scope, to: Scope) {
        self.cuts.insert((from, to));
    }

    pub fn cut_both(&mut self, a: Scope, b: Scope) {
        self.cut(a, b);
        self.cut(b, a);
    }

    pub fn heal(&mut self, a: Scope, b: Scope) {
        self.cuts.remove(&(a, b));
        self.cuts.remove(&(b, a));
    }

    pub fn heal_all(&mut self) {
        self.cuts.clear();
        self.weather = Weather::CALM;
    }

    pub fn passes(&self, from: Party, to: Party) -> bool {
        from == to || !self.cuts.iter().any(|(a, b)| separates(*a, *b, from, to))
    }

    /// When a packet sent now arrives: not at all, once, or twice if it may. A packet of a stream keeps its order.
    pub(super) fn arrivals(
        &mut self,
        now: u64,
        random: &mut Random,
        from: Party,
        to: Party,
        stream: Option<u64>,
        repeatable: bool,
    ) -> Vec<u64> {
        if !self.passes(from, to) || random.chance(self.weather.loss_per_mille) {
            return Vec::new();
        }
        let copies = if repeatable && random.chance(self.weather.duplicate_per_mille) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let mut delay = random.between(self.weather.least_delay_ms, self.weather.most_delay_ms);
                if random.chance(self.weather.straggler_per_mille) {
                    delay *= 10;
                }
                let mut at = now + delay;
                if let Some(stream) = stream {
                    let last = self.streams.entry((stream, to)).or_default();
                    at = at.max(*last);
                    *last = at;
                }
                at
            })
            .collect()
    }
}

/// Whether a cut from `a` to `b` lies between two parties. A cut from a cluster to everyone leaves its inside whole.
fn separates(a: Scope, b: Scope, from: Party, to: Party) -> bool {
    match (a, b) {
        (Scope::Cluster(c), Scope::Everyone) => from.cluster() == c && to.cluster() != c,
        (Scope::Everyone, Scope::Cluster(c)) => to.cluster() == c && from.cluster() != c,
        _ => a.holds(from) && b.holds(to),
    }
}

impl Scope {
    fn holds(self, party: Party) -> bool {
        match self {
            Self::Everyone => true,
            Self::Cluster(cluster) => party.cluster() == cluster,
            Self::Party(one) => one == party,
        }
    }
}

impl Party {
    pub fn cluster(self) -> usize {
        match self {
            Self::Node(cluster, _) | Self::Proxy(cluster, _) => cluster,
        }
    }

    pub(super) fn number(self) -> u64 {
        match self {
            Self::Node(cluster, index) => (cluster * 1000 + index) as u64,
            Self::Proxy(cluster, index) => (cluster * 1000 + 500 + index) as u64,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(cluster, index) => write!(f, "node {cluster}/{}", index + 1),
            Self::Proxy(cluster, index) => write!(f, "proxy {cluster}/{}", index + 1),
        }
    }
}
