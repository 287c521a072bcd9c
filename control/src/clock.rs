//! Clock: whether the other nodes contradict this node's. Pure: it is told what was heard, and what time it is.
//!
//! A node signs by its own clock. One that has gone wrong would hand out certificates that are over before they begin, or
//! that outlive what was promised. So a node whose clock more than half of all nodes contradict with one voice signs
//! nothing for others until it agrees again. Two such majorities have a node in common, so none of those who are of one mind
//! is ever contradicted by another majority: more than half of the nodes go on signing, whatever the clocks say. One node,
//! or two, or as many opinions as nodes, decide nothing.
//!
//! What was heard stays good: a clock that is set is found out at once, and one that has lost its way while its node was
//! cut off (the SVIDs of the others look expired then) is still known to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use hanse_identity::{NodeName, Timestamp};

/// How far a clock may be from those of the majority for its node to sign.
pub const MAX_SIGNING_SKEW: Duration = Duration::from_secs(60);

/// What the other nodes' clocks said, and when that was: the time since this host was started, asleep or not, which nobody
/// sets.
#[derive(Debug, Default)]
pub struct Clocks {
    heard: BTreeMap<NodeName, (Timestamp, Duration)>,
    /// Nodes that there are, this one included.
    nodes: usize,
}

/// What more than half of the nodes say of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// What time it is by the clocks of those.
    pub theirs: Timestamp,
    pub by: Duration,
    pub is_ahead: bool,
    /// How many say so, of how many nodes.
    pub of: (usize, usize),
}

impl Clocks {
    /// Takes in what other nodes' clocks said at that moment. Those that are not among the nodes (any more) are forgotten.
    pub fn heard(
        &mut self,
        clocks: impl IntoIterator<Item = (NodeName, Timestamp)>,
        at: Duration,
        nodes: &BTreeSet<NodeName>,
    ) {
        self.heard.extend(clocks.into_iter().map(|(node, clock)| (node, (clock, at))));
        self.heard.retain(|node, _| nodes.contains(node));
        self.nodes = nodes.len();
    }

    /// Of how many other nodes it is known what time they have.
    pub fn known(&self) -> usize {
        self.heard.len()
    }

    /// What time it is by the other nodes.
    fn theirs(&self, at: Duration) -> impl Iterator<Item = Timestamp> {
        self.heard.values().map(move |(clock, heard)| *clock + at.saturating_sub(*heard))
    }

    /// How far a clock that says `now` at that moment is from the other one that differs most.
    pub fn skew(&self, now: Timestamp, at: Duration) -> Duration {
        self.theirs(at).map(|theirs| apart(theirs, now)).max().unwrap_or_default()
    }

    /// Whether a clock that says `now` at that moment is contradicted by more than half of the nodes with one voice.
    pub fn contradiction(&self, now: Timestamp, at: Duration) -> Option<Contradiction> {
        let is_far = |theirs: &Timestamp| apart(*theirs, now) > MAX_SIGNING_SKEW;
        let mut others: Vec<Timestamp> = self.theirs(at).filter(is_far).collect();
        others.sort_unstable();
        let of_one_mind = |first: usize| {
            let rest = &others[first..];
            &rest[..rest.partition_point(|clock| apart(*clock, rest[0]) <= MAX_SIGNING_SKEW)]
        };
        let voice = (0..others.len()).map(of_one_mind).max_by_key(|voice| voice.len())?;
        let theirs = *voice.get(voice.len() / 2)?;
        let contradiction = Contradiction {
            theirs,
            by: apart(theirs, now),
            is_ahead: now > theirs,
            of: (voice.len(), self.nodes),
        };
        (voice.len() * 2 > self.nodes).then_some(contradiction)
    }
}

fn apart(one: Timestamp, other: Timestamp) -> Duration {
    one.since(other).max(other.since(one))
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_ahead { "ahead of" } else { "behind" };
        let ((say, nodes), by, limit) = (self.of, self.by.as_secs(), MAX_SIGNING_SKEW.as_secs());
        write!(f, "its clock is {by} s {how} those of {say} of {nodes} nodes (limit {limit} s)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn name(number: usize) -> NodeName {
        format!("east-{number}").parse().unwrap()
    }

    /// What node 0 of as many as there are `offsets` (in seconds, its own first) knows, and what it makes of it.
    fn verdict(offsets: &[i64], me: usize) -> Option<Contradiction> {
        let clock = |offset: i64| match offset >= 0 {
            true => NOON + SECOND * offset.unsigned_abs().try_into().unwrap(),
            false => NOON - SECOND * offset.unsigned_abs().try_into().unwrap(),
        };
        let nodes: BTreeSet<NodeName> = (0..offsets.len()).map(name).collect();
        let others = offsets.iter().enumerate().filter(|(n, _)| *n != me);
        let (mut clocks, at) = (Clocks::default(), SECOND);
        clocks.heard(others.map(|(n, offset)| (name(n), clock(*offset))), at, &nodes);
        clocks.contradiction(clock(offsets[me]), at)
    }

    fn signs(offsets: &[i64]) -> Vec<bool> {
        (0..offsets.len()).map(|me| verdict(offsets, me).is_none()).collect()
    }

    #[test]
    fn t29_who_is_contradicted_by_more_than_half_with_one_voice_does_not_sign() {
        for wrong in [61, -61, 3_600, -3_600, 86_400, -315_360_000] {
            assert_eq!(signs(&[wrong, 0, 0]), [false, true, true], "{wrong}");
        }
        assert_eq!(signs(&[240, 0, 7, -8, 30]), [false, true, true, true, true]);
        assert_eq!(signs(&[60, 0, 0]), [true, true, true], "the limit itself");
        let told = verdict(&[-3_600, 0, 10], 0).unwrap();
        assert_eq!((told.theirs, told.is_ahead, told.of), (NOON + SECOND * 10, false, (2, 3)));
        assert_eq!(told.to_string(), "its clock is 3610 s behind those of 2 of 3 nodes (limit 60 s)");
        assert!(verdict(&[3_600, 0, 10], 0).unwrap().to_string().contains("3590 s ahead of"));
    }

    #[test]
    fn t29_one_node_two_nodes_and_as_many_opinions_as_nodes_go_on_signing() {
        assert_eq!(signs(&[86_400]), [true]);
        assert_eq!(signs(&[86_400, 0]), [true, true], "of two nobody can say whose is wrong");
        assert_eq!(signs(&[0, 3_600, 7_200]), [true, true, true]);
        assert_eq!(signs(&[0, 0, 3_600, 3_600]), [true; 4], "half is no majority");
        // Cut off from the others before it has heard of them, it is not contradicted by anybody.
        let mut clocks = Clocks::default();
        clocks.heard([(name(1), NOON)], SECOND, &(0..3).map(name).collect());
        assert_eq!(clocks.contradiction(NOON + SECOND * 3_600, SECOND), None);
    }

    #[test]
    fn t29_more_than_half_sign_whatever_the_clocks_say() {
        // Every clock of five nodes at every one of these, limits and just past them among them.
        let places = [-3_600, -61, -60, 0, 60, 61, 120];
        for mut code in 0..places.len().pow(5) {
            let offsets: Vec<i64> = (0..5)
                .map(|_| {
                    let place = places[code % places.len()];
                    code /= places.len();
                    place
                })
                .collect();
            let signing = signs(&offsets).into_iter().filter(|signs| *signs).count();
            assert!(signing >= 3, "{offsets:?}: {signing}");
        }
    }

    #[test]
    fn t29_what_was_heard_stays_good_until_the_node_is_gone() {
        let (mut clocks, start) = (Clocks::default(), SECOND * 100);
        let nodes: BTreeSet<NodeName> = (0..3).map(name).collect();
        clocks.heard([(name(1), NOON), (name(2), NOON)], start, &nodes);
        let (hour, later) = (SECOND * 3_600, start + SECOND * 3_600);
        assert_eq!(clocks.contradiction(NOON + hour, later), None, "an hour is an hour by every clock");
        // Set an hour back while nobody could be asked.
        let told = clocks.contradiction(NOON, later).unwrap();
        assert_eq!((told.theirs, told.by, told.is_ahead), (NOON + hour, hour, false));
        assert_eq!(clocks.skew(NOON, later), hour);
        // One that was heard again counts by that; one that left the cluster does not count.
        clocks.heard([(name(1), NOON)], later, &nodes);
        assert_eq!(clocks.contradiction(NOON, later), None, "one of three says so");
        clocks.heard([], later, &[name(0), name(1)].into());
        assert_eq!(clocks.known(), 1);
    }
}
