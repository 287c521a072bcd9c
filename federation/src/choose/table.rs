//! Consistent hashing: tables from hashes to the candidates of a tier, made when the tier changes and kept while it
//! does not. When a candidate goes, its keys move to others, and (nearly) no other key does.

use std::sync::Arc;

use super::dice::{both, mixed};
use super::{Algorithm, Tier};

/// Points that a candidate of average weight has on a ring.
const POINTS: usize = 160;
/// Most points of a ring; with more candidates than that, each has one.
const MAX_POINTS: usize = 65_536;
/// Sizes of Maglev tables, both prime. Only where a tier grows from one into the other do all keys move.
const SMALL: usize = 16_381;
const LARGE: usize = 65_537;
/// Members of a tier that a small table is enough for: a hundred places each.
const SMALL_MEMBERS: usize = 160;
/// Places that are looked at for one request before the table is given up: so many only where most are out.
const MAX_STEPS: usize = 64;

/// The table of one tier.
#[derive(Debug, PartialEq)]
pub(super) struct Table {
    /// Key and weight of each candidate: what it was made from.
    members: Vec<(u64, u32)>,
    kind: Kind,
}

#[derive(Debug, PartialEq)]
enum Kind {
    /// Points and whose they are, in order (Karger et al. 1997).
    Ring(Vec<(u64, u32)>),
    /// Whose each place is (Eisenbud et al. 2016, §3.4).
    Maglev(Vec<u32>),
}

/// The tables of a ladder; none where nobody hashes.
pub(super) fn tables(
    tiers: &[Tier],
    algorithm: Algorithm,
    previous: Option<&[Arc<Table>]>,
) -> Vec<Arc<Table>> {
    let make = match algorithm {
        Algorithm::RingHash => ring,
        Algorithm::Maglev => maglev,
        Algorithm::LeastRequest | Algorithm::RoundRobin | Algorithm::Random => return Vec::new(),
    };
    let table = |tier: &Tier| {
        let members: Vec<_> = tier.candidates.iter().map(|c| (c.key, c.ready_weight)).collect();
        let same = |held: &&Arc<Table>| {
            held.members == members && held.is_ring() == (algorithm == Algorithm::RingHash)
        };
        match previous.into_iter().flatten().find(same) {
            Some(held) => Arc::clone(held),
            None => Arc::new(Table { kind: make(&members), members }),
        }
    };
    tiers.iter().map(table).collect()
}

impl Table {
    /// The first candidate from the hash's place on that `admits` lets through; `None` if none of those looked at.
    pub(super) fn find(&self, hash: u64, admits: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.kind {
            Kind::Ring(points) => {
                let first = points.partition_point(|(point, _)| *point < hash);
                let onward = points[first..].iter().chain(&points[..first]).take(MAX_STEPS);
                onward.map(|(_, index)| *index as usize).find(|index| admits(*index))
            }
            Kind::Maglev(places) if places.is_empty() => None,
            Kind::Maglev(places) => {
                let mut hash = hash;
                (0..MAX_STEPS).find_map(|_| {
                    let index = places[(hash % places.len() as u64) as usize] as usize;
                    hash = mixed(hash.wrapping_add(1));
                    admits(index).then_some(index)
                })
            }
        }
    }

    fn is_ring(&self) -> bool {
        matches!(self.kind, Kind::Ring(_))
    }
}

fn ring(members: &[(u64, u32)]) -> Kind {
    let ready = members.iter().filter(|(_, weight)| *weight > 0).count();
    let sum: u64 = members.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let average = (MAX_POINTS / ready.max(1)).clamp(1, POINTS) as f64;
    let mut points = Vec::with_capacity((ready as f64 * average) as usize);
    for (index, (key, weight)) in members.iter().enumerate().filter(|(_, (_, weight))| *weight > 0) {
        let own = (f64::from(*weight) * ready as f64 / sum as f64 * average).round().max(1.0) as u64;
        points.extend((0..own).map(|point| (both(*key, point), index as u32)));
    }
    points.sort_unstable();
    Kind::Ring(points)
}

fn maglev(members: &[(u64, u32)]) -> Kind {
    let ready: Vec<_> = members.iter().enumerate().filter(|(_, (_, weight))| *weight > 0).collect();
    let Some(most) = ready.iter().map(|(_, (_, weight))| u64::from(*weight)).max() else {
        return Kind::Maglev(Vec::new());
    };
    let size = if ready.len() <= SMALL_MEMBERS { SMALL } else { LARGE };
    const FREE: u32 = u32::MAX;
    let mut places = vec![FREE; size];
    let modulus = size as u64;
    // Each has a permutation of all places, by offset and skip, and takes its next free one in turn; of unequal
    // weights, the lighter sit out turns.
    let mut orders: Vec<_> = ready
        .iter()
        .map(|(_, (key, _))| (both(*key, 1) % modulus, both(*key, 2) % (modulus - 1) + 1, 0u64))
        .collect();
    let mut left = size;
    for turn in 1u64.. {
        for ((at, skip, taken), (index, (_, weight))) in orders.iter_mut().zip(&ready) {
            if left == 0 {
                return Kind::Maglev(places);
            }
            if turn * u64::from(*weight) < (*taken + 1) * most {
                continue;
            }
            while places[*at as usize] != FREE {
                *at = (*at + *skip) % modulus;
            }
            places[*at as usize] = *index as u32;
            *taken += 1;
            left -= 1;
        }
    }
    unreachable!("the heaviest takes a place in every turn")
}
