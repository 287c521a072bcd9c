//! Nodes' clocks: compared with each other as `control/io/clock` does it, and believed or not by the very same
//! `control::clock`. A node in a storm is set far off only where it can know: it has heard of enough others what time it is.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_control::clock::{Clocks, Contradiction, MAX_SIGNING_SKEW};
use hanse_identity::{NodeName, Timestamp};

use super::network::Party;
use super::{At, Bug, EPOCH, World};

/// By how much the clocks of a storm are off that are nothing out of the ordinary, at most.
pub(super) const USUAL_SKEW: Duration = Duration::from_secs(10);
/// Whose clock is off by more than this is contradicted by all others, if theirs are off as usual at most.
pub(super) const SURELY_WRONG: Duration =
    MAX_SIGNING_SKEW.saturating_add(USUAL_SKEW).saturating_add(USUAL_SKEW);
/// How far it is off then: just beyond that, an hour, a day, ten years.
const FAR_MS: [i64; 4] = [90_000, 3_600_000, 86_400_000, 315_360_000_000];

/// What one node has heard since it started.
#[derive(Debug, Default)]
pub(crate) struct Heard(Clocks);

impl World {
    /// What that node's clock shows.
    pub(super) fn clock_of(&self, at: At) -> Timestamp {
        let skew = self.clusters[at.cluster].nodes[at.index].skew_ms;
        Timestamp((EPOCH.0 + self.now).saturating_add_signed(skew))
    }

    /// What enough of the others say of it, as far as the node has heard.
    pub(super) fn contradiction(&self, at: At) -> Option<Contradiction> {
        let running = self.clusters[at.cluster].nodes[at.index].running.as_ref()?;
        let contradiction = running.clocks.0.contradiction(self.clock_of(at), self.since_boot());
        contradiction.filter(|_| self.bug != Some(Bug::OwnClockBelieved))
    }

    /// By what a node dates what enters the log.
    pub(super) fn agreed(&self, at: At) -> Timestamp {
        self.contradiction(at).map_or_else(|| self.clock_of(at), |contradiction| contradiction.theirs)
    }

    /// Asks whom it reaches and believes.
    pub(super) fn compare_clocks(&mut self, at: At) {
        let cluster = &self.clusters[at.cluster];
        let (here, disbelieved, since_boot) = (at.party(), self.disbelieved(at), self.since_boot());
        let names: BTreeSet<NodeName> = cluster.nodes.iter().map(|node| node.name.clone()).collect();
        let others = cluster.nodes.iter().enumerate().filter(|(index, other)| {
            let there = Party::Node(at.cluster, *index);
            let answers = self.network.passes(here, there) && self.network.passes(there, here);
            *index != at.index && other.running.is_some() && answers && !disbelieved.contains_key(index)
        });
        let heard: Vec<(NodeName, Timestamp)> =
            others.map(|(index, other)| (other.name.clone(), self.clock_of(At { index, ..at }))).collect();
        if let Some(running) = self.running(at) {
            running.clocks.0.heard(heard, since_boot, &names);
        }
    }

    /// Sets a node's clock far off, if none of its cluster is, and it has heard the true time from all others: one that was
    /// never told would sign by it.
    pub(super) fn set_far_off(&mut self, at: At) {
        let nodes = &self.clusters[at.cluster].nodes;
        let usual = nodes.iter().all(|node| node.skew_ms.unsigned_abs() <= USUAL_SKEW.as_millis() as u64);
        let knows = nodes[at.index].running.as_ref().is_some_and(|running| {
            let heard = &running.clocks.0;
            heard.known() + 1 == nodes.len() && heard.skew(self.clock(), self.since_boot()) <= USUAL_SKEW
        });
        let far = self.random.pick(&FAR_MS).unwrap_or(FAR_MS[0]);
        let far = if self.random.chance(500) { far } else { -far };
        if usual && knows {
            self.clusters[at.cluster].nodes[at.index].skew_ms = far;
            self.note(&[94, at.party().number()], || {
                format!("the clock of {:?} is off by {far} ms", at.party())
            });
        }
    }

    /// Sets a clock that is far off right: a host does that when it starts.
    pub(super) fn set_right(&mut self, at: At) {
        let node = &mut self.clusters[at.cluster].nodes[at.index];
        if node.skew_ms.unsigned_abs() > USUAL_SKEW.as_millis() as u64 {
            node.skew_ms = 0;
        }
    }

    /// By how much a node's clock is off, for the ledger.
    pub(super) fn off_by(&self, at: At) -> Duration {
        Duration::from_millis(self.clusters[at.cluster].nodes[at.index].skew_ms.unsigned_abs())
    }

    /// The time that nobody sets.
    fn since_boot(&self) -> Duration {
        Duration::from_millis(self.now)
    }
}
