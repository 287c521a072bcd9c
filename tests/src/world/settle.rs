//! When the faults have stopped: everything has to come to rest in the same state everywhere.

use std::collections::BTreeMap;

use hanse_control::command::Command;
use hanse_control::state::State;
use hanse_federation::view::PeerState;
use hanse_federation::{PeerFact, View, session};
use hanse_identity::{AuthorityState, ClusterName, ServiceName};

use super::join::Ended;
use super::keys::own_bundle;
use super::proxy::ProxyKind;
use super::{At, Violation, World};

const STEP_MS: u64 = 500;

impl World {
    /// No faults from here on: the network is whole, everybody runs, nobody lies, clocks are right.
    pub fn calm(&mut self) {
        self.network.heal_all();
        self.liars.clear();
        self.disk_delay_per_mille = 0;
        for cluster in 0..self.clusters.len() {
            for index in 0..self.clusters[cluster].nodes.len() {
                let node = &mut self.clusters[cluster].nodes[index];
                (node.slow_disk, node.skew_ms) = (false, 0);
                self.start_node(At { cluster, index });
            }
            for index in 0..self.clusters[cluster].proxies.len() {
                self.clusters[cluster].proxies[index].ready = true;
                self.start_proxy(cluster, index);
            }
        }
        for task in 0..self.joins.len() {
            self.join_again(task);
        }
    }

    /// An operator whose removal of a peer got no answer orders it again.
    fn leave_again(&mut self) {
        let mut last: BTreeMap<(usize, ClusterName), u64> = BTreeMap::new();
        for (id, operation) in &self.operations {
            if let Command::PeerRemove { cluster, .. } = &operation.command {
                last.insert((operation.cluster, cluster.clone()), *id);
            }
        }
        for ((from, cluster), id) in last {
            if matches!(self.operations[&id].end, Some(Err(_))) {
                self.order(from, "admin", Command::PeerRemove { cluster, only_invite: None });
            }
        }
    }

    /// Runs until everything is at rest; that it does not come to rest is a violation.
    pub fn settle(&mut self, limit_ms: u64) -> Result<(), Violation> {
        let end = self.now + limit_ms;
        loop {
            self.leave_again();
            self.run_for(STEP_MS)?;
            self.compare_states();
            self.ledger.verdict()?;
            match self.at_rest() {
                Ok(()) => return Ok(()),
                Err(why) if self.now >= end => {
                    return Err(Violation { at: self.now, what: format!("does not come to rest: {why}") });
                }
                Err(_) => {}
            }
        }
    }

    /// Equal index ⇒ equal State, the private tables included.
    pub fn compare_states(&mut self) {
        for cluster in 0..self.clusters.len() {
            let states = (0..self.clusters[cluster].nodes.len()).filter_map(|index| {
                self.state_of(At { cluster, index }).cloned().map(|state| (index, state))
            });
            let states: Vec<_> = states.collect();
            let mut first: BTreeMap<u64, usize> = BTreeMap::new();
            for (position, (index, state)) in states.iter().enumerate() {
                let other = *first.entry(state.view.revision.0).or_insert(position);
                if other != position && states[other].1 != *state {
                    let (a, b, at) = (states[other].0, *index, state.view.revision);
                    self.violate(|| {
                        format!("nodes {a} and {b} of cluster {cluster} have unequal States at {at}")
                    });
                }
            }
        }
    }

    /// Whether everything is at rest, or what is not.
    pub fn at_rest(&self) -> Result<(), String> {
        if let Some(task) = self.joins.iter().position(|j| j.end.is_none()) {
            return Err(format!("join {task} has not ended"));
        }
        if self.operations.values().any(|o| o.end.is_none()) {
            return Err("somebody waits for a write".into());
        }
        for cluster in 0..self.clusters.len() {
            self.cluster_at_rest(cluster)?;
        }
        for from in 0..self.clusters.len() {
            for to in 0..self.clusters.len() {
                if from != to {
                    self.peers_at_rest(from, to)?;
                }
            }
        }
        self.joins.iter().enumerate().try_for_each(|(task, _)| self.join_at_rest(task))
    }

    fn cluster_at_rest(&self, cluster: usize) -> Result<(), String> {
        let name = &self.clusters[cluster].name;
        let Some(leader) = self.leader(cluster) else { return Err(format!("{name} has no leader")) };
        let Some(state) = self.state_of(leader) else { return Err(format!("{name} has no leader")) };
        // What is revoked is told nothing, and asked nothing.
        let revoked = self.revoked_nodes(cluster, &state.view);
        for (index, node) in self.clusters[cluster].nodes.iter().enumerate() {
            if revoked.contains(&index) {
                continue;
            }
            let other = self.state_of(At { cluster, index });
            if other != Some(state) {
                return Err(format!("{} is behind its leader", node.name));
            }
        }
        if let Some(lost) = self.ledger.lost_writes(cluster, state) {
            return Err(lost);
        }
        if state.rotating().is_some() {
            return Err(format!("{name} rotates: {}", self.show_rotation(leader, state)));
        }
        let left =
            own_bundle(state).and_then(|b| b.authorities.iter().find(|a| a.state != AuthorityState::Active));
        if let Some(left) = left {
            return Err(format!("an authority of {name} is left over, {:?}", left.state));
        }
        for (index, control) in self.clusters[cluster].nodes.iter().enumerate() {
            if !revoked.contains(&index) && !self.has_its_authorities(At { cluster, index }) {
                return Err(format!("{} has not the authorities that its bundle says", control.name));
            }
        }
        for (index, proxy) in self.clusters[cluster].proxies.iter().enumerate() {
            // Nobody talks to it.
            if self.is_out(cluster, index) {
                continue;
            }
            // Revisions without a Change come all the time: SVIDs are recorded.
            let same = |own: &View| View { revision: state.view.revision, ..own.clone() } == state.view;
            if !proxy.view().is_some_and(same) {
                return Err(format!("{} has not the View of its cluster", proxy.name));
            }
        }
        self.registry_at_rest(cluster, state)
    }

    /// Who runs and may serve is registered, who does not is not.
    fn registry_at_rest(&self, cluster: usize, state: &State) -> Result<(), String> {
        let proxies = &self.clusters[cluster].proxies;
        for (index, proxy) in proxies.iter().enumerate() {
            let revoked = state.view.revocations.of_identity(&proxy.identity).is_some();
            let revoked = revoked || self.is_out(cluster, index);
            let allowed: Vec<&ServiceName> =
                state.registrations_of(&proxy.identity).flat_map(|r| &r.services).collect();
            let known = match proxy.kind {
                ProxyKind::Gateway => state.view.gateways.contains_key(&proxy.name),
                ProxyKind::Sidecar => {
                    state.view.endpoints.get(&proxy.name).is_some_and(|e| e.ready == proxy.ready)
                }
            };
            let known = known && (revoked || proxy.stands(&state.view));
            let may = !revoked && proxy.services.iter().all(|s| allowed.contains(&s));
            let serves = proxy.kind == ProxyKind::Gateway || !proxy.services.is_empty();
            if serves && may != known {
                return Err(format!("{} may serve: {may}, is registered: {known}", proxy.name));
            }
        }
        let stray = state.view.endpoints.keys().find(|id| !proxies.iter().any(|p| p.name == **id));
        stray.map_or(Ok(()), |id| Err(format!("{id} is registered and does not exist")))
    }

    fn view_of(&self, cluster: usize) -> Option<&View> {
        self.leader(cluster).and_then(|at| self.state_of(at)).map(|state| &state.view)
    }

    /// Both know each other or neither; and who knows the other knows what it has to tell.
    fn peers_at_rest(&self, from: usize, to: usize) -> Result<(), String> {
        let (Some(exporter), Some(importer)) = (self.view_of(from), self.view_of(to)) else {
            return Err("a cluster has no leader".into());
        };
        let (known, knows) = (importer.peers.get(&exporter.cluster), exporter.peers.get(&importer.cluster));
        let (Some(peer), Some(_)) = (known, knows) else {
            let half = known.is_some() != knows.is_some();
            let (a, b) = (&exporter.cluster, &importer.cluster);
            return if half { Err(format!("only one of {a} and {b} has joined the other")) } else { Ok(()) };
        };
        if peer.state != PeerState::Joined || peer.retelling.is_some() {
            return Err(format!("{} has not heard all of {}", importer.cluster, exporter.cluster));
        }
        let mut services = BTreeMap::new();
        let mut revocations = Vec::new();
        for fact in session::tell_all(exporter, &importer.cluster) {
            let same = match fact {
                PeerFact::Service(summary) => services.insert(summary.name.clone(), summary).is_none(),
                PeerFact::Revoked(revocation) => {
                    revocations.push(revocation);
                    true
                }
                PeerFact::Gateways(gateways) => gateways == peer.gateways,
                PeerFact::Bundle(bundle) => importer.bundles.get(&bundle.trust_domain) == Some(&bundle),
                PeerFact::Crl(crl) => {
                    let imported = importer.crls.get(&exporter.trust_domain);
                    imported.and_then(|crls| crls.get(&crl.authority)) == Some(&crl)
                }
                _ => true,
            };
            if !same {
                return Err(format!(
                    "{} has an old bundle or old gateways of {}",
                    importer.cluster, exporter.cluster
                ));
            }
        }
        let imported = importer.revocations.iter().filter(|r| r.id.origin == exporter.trust_domain);
        if services != peer.services {
            return Err(format!(
                "{} has not the services that {} exports to it",
                importer.cluster, exporter.cluster
            ));
        }
        if !imported.eq(revocations.iter()) {
            return Err(format!("{} has not the revocations of {}", importer.cluster, exporter.cluster));
        }
        Ok(())
    }

    /// A join that was reported as done, and not undone since by an operator, is there.
    fn join_at_rest(&self, task: usize) -> Result<(), String> {
        let join = &self.joins[task];
        let by = |from: usize, to: usize| {
            let peer = self.view_of(from).and_then(|v| v.peers.get(&self.clusters[to].name));
            peer.is_some_and(|p| p.record.invite == join.invite)
        };
        let (there, here) = (by(join.inviter, join.joiner), by(join.joiner, join.inviter));
        match join.end {
            Some(Ended::Joined) if there && here => Ok(()),
            Some(Ended::Joined) if !self.has_left(join.inviter, join.joiner) => {
                Err(format!("join {task} was reported as done: inviter {there}, joiner {here}"))
            }
            Some(Ended::AsBefore) if there || here => {
                Err(format!("join {task} was reported as undone: inviter {there}, joiner {here}"))
            }
            _ => Ok(()),
        }
    }
}
