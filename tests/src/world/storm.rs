//! Storms: random faults and random work for a while, then calm, and all has to come to rest.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hanse_control::command::{Answer, Command};
use hanse_federation::catalog::Export;
use hanse_identity::{
    AgentScope, ClusterName, Reason, Registration, RevocationTarget, Selector, ServiceName, SpiffeId,
};

use super::clocks::USUAL_SKEW;
use super::network::{Party, Scope, Weather};
use super::proxy::ProxyKind;
use super::{At, Bug, EventLog, Violation, World};

/// How long the faults last, at least and at most.
const FAULTS_MS: (u64, u64) = (6_000, 11_000);
/// How long it may take to come to rest after that.
const REST_MS: u64 = 45_000;
/// How long until everybody is served who has an SVID that is believed.
const SERVED_WITHIN_MS: u64 = 3000;
/// Of the kinds of revocations: an identity that is given new SVIDs.
const REISSUED: u64 = 10;
const SERVICES: [&str; 2] = ["shop/reviews", "shop/ratings"];

/// How a storm went.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub digest: u64,
    pub events: u64,
    pub lasted_ms: u64,
    pub acknowledged: usize,
    pub served: usize,
    pub refused: usize,
    pub joined: usize,
    pub outcome: Result<(), Violation>,
    pub lines: Vec<String>,
}

/// One storm. The same seed is the same storm.
pub fn storm(seed: u64, bug: Option<Bug>, verbose: bool) -> Report {
    let log = if verbose { EventLog::verbose() } else { EventLog::default() };
    let mut world = World::new(seed, log);
    world.bug = bug;
    // raft-rs and the pure code panic when what they hold true is not: that is a violation, too.
    let outcome = catch_unwind(AssertUnwindSafe(|| world.weather_a_storm()));
    let outcome = outcome.unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        Err(Violation { at: world.now, what: format!("panic: {what}") })
    });
    let ends = |served: bool| {
        world.told.values().filter(|t| t.end.as_ref().is_some_and(|e| e.is_ok() == served)).count()
    };
    Report {
        seed,
        digest: world.log.digest(),
        events: world.log.events(),
        lasted_ms: world.now,
        acknowledged: world.ledger.acknowledged_count(),
        served: ends(true),
        refused: ends(false),
        joined: world.joins.iter().filter(|j| j.end == Some(super::join::Ended::Joined)).count(),
        lines: world.log.lines().to_vec(),
        outcome,
    }
}

/// The registration that lets `id` run on every host.
pub fn registration(id: &SpiffeId, services: &BTreeSet<ServiceName>) -> Registration {
    Registration {
        services: services.clone(),
        ttl_seconds: 30,
        ..Registration::new(id.clone(), AgentScope::Any, [Selector::Uid(1000)])
    }
}

impl World {
    fn weather_a_storm(&mut self) -> Result<(), Violation> {
        let clusters = if self.random.chance(120) { 3 } else { 2 };
        for name in ["east", "west", "north"].into_iter().take(clusters) {
            self.settled_cluster(name)?;
        }
        self.disk_delay_per_mille = 250;
        if self.random.chance(600) {
            self.join(0, 1);
            self.run_until(5000, |world| world.joins.iter().all(|j| j.end.is_some()))?;
        }
        let end = self.now + self.random.between(FAULTS_MS.0, FAULTS_MS.1);
        while self.now < end {
            let pause = self.random.between(20, 400);
            self.run_for(pause)?;
            self.something_happens();
            self.compare_states();
            self.ledger.verdict()?;
        }
        self.note(&[90], || "calm".to_owned());
        self.calm();
        self.settle(REST_MS)?;
        self.everybody_has_an_svid()?;
        self.everybody_is_served()
    }

    /// A cluster with a gateway, three sidecars and a caller, all registered.
    fn settled_cluster(&mut self, name: &str) -> Result<(), Violation> {
        let cluster_name: ClusterName = name.parse().expect("a label");
        let cluster = self.found(&cluster_name, 3);
        self.run_until(5000, |world| world.leader(cluster).is_some())?;
        let [reviews, ratings] = SERVICES.map(|s| s.parse::<ServiceName>().expect("labels"));
        self.add_gateway(cluster, &format!("{name}-gateway"));
        self.add_sidecar(cluster, &format!("{name}-r1"), "reviews", std::slice::from_ref(&reviews));
        self.add_sidecar(cluster, &format!("{name}-r2"), "ratings", &[reviews.clone(), ratings]);
        self.add_sidecar(cluster, &format!("{name}-p1"), "productpage", &[]);
        for index in 0..self.clusters[cluster].proxies.len() {
            let proxy = &self.clusters[cluster].proxies[index];
            let registration = registration(&proxy.identity, &proxy.services);
            self.order(cluster, "admin", Command::WorkloadRegister { registration });
            self.agent_joins(cluster, index);
        }
        self.order(cluster, "admin", Command::Export { service: reviews, to: Export::Everyone });
        self.run_for(600)?;
        for index in 0..self.clusters[cluster].proxies.len() {
            self.agent_joins(cluster, index);
        }
        self.run_for(600)
    }

    fn any_node(&mut self) -> At {
        let cluster = self.random.index(self.clusters.len());
        let index = self.random.index(self.clusters[cluster].nodes.len());
        At { cluster, index }
    }

    fn any_proxy(&mut self) -> (usize, usize) {
        let cluster = self.random.index(self.clusters.len());
        (cluster, self.random.index(self.clusters[cluster].proxies.len()))
    }

    fn something_happens(&mut self) {
        match self.random.below(100) {
            0..24 => self.some_request(),
            24..36 => {
                let cluster = self.random.index(self.clusters.len());
                self.read(cluster);
            }
            36..56 => self.some_write(),
            56..62 => {
                let at = self.any_node();
                self.crash_node(at);
            }
            62..70 => self.some_restart(),
            70..78 => self.some_cut(),
            78..83 => self.some_healing(),
            83..88 => self.network.weather = some_weather(&mut self.random),
            88..91 => self.some_slowness(),
            91..94 => self.some_proxy_trouble(),
            94..97 => self.some_rotation(),
            97 => self.some_join(),
            98 => self.some_lie_or_leave(),
            // Those who have just left often come back.
            _ if self.operations.values().any(|o| matches!(o.command, Command::PeerRemove { .. })) => {
                self.some_join()
            }
            _ => self.some_lie_or_leave(),
        }
    }

    fn some_request(&mut self) {
        let (cluster, index) = self.any_proxy();
        if self.clusters[cluster].proxies[index].kind == ProxyKind::Sidecar {
            let service = self.some_service();
            self.request(cluster, index, &service);
        }
    }

    fn some_service(&mut self) -> ServiceName {
        let most = self.random.pick(&[0, 0, 1]).unwrap_or(0);
        SERVICES[most].parse().expect("labels")
    }

    fn some_write(&mut self) {
        let cluster = self.random.index(self.clusters.len());
        let service = self.some_service();
        let command = match self.random.below(12) {
            0..4 => Command::Export { service, to: self.some_export(cluster) },
            4..6 => Command::Unexport { service },
            6 | 7 => return self.some_revocation(cluster),
            8 => return self.lift_something(cluster),
            9 | 10 => return self.some_agent_trouble(cluster),
            _ => {
                let index = self.random.index(self.clusters[cluster].proxies.len());
                let proxy = &self.clusters[cluster].proxies[index];
                Command::WorkloadRegister { registration: registration(&proxy.identity, &proxy.services) }
            }
        };
        self.order(cluster, "admin", command);
    }

    fn some_export(&mut self, cluster: usize) -> Export {
        let others = self.clusters.iter().enumerate().filter(|(c, _)| *c != cluster);
        let others: Vec<ClusterName> = others.map(|(_, c)| c.name.clone()).collect();
        match self.random.pick(&others) {
            Some(one) if self.random.chance(500) => Export::Only(BTreeSet::from([one])),
            _ => Export::Everyone,
        }
    }

    /// An agent is put out, let in again, or comes with a new token.
    fn some_agent_trouble(&mut self, cluster: usize) {
        let index = self.random.index(self.clusters[cluster].proxies.len());
        let agent = self.clusters[cluster].proxies[index].name.clone();
        match self.random.below(6) {
            0 => drop(self.order(cluster, "admin", Command::AgentEvict { agent, note: String::new() })),
            1 | 2 => drop(self.order(cluster, "admin", Command::AgentUnban { agent })),
            _ if self.is_out(cluster, index) => self.agent_joins(cluster, index),
            _ => {}
        }
    }

    fn some_revocation(&mut self, cluster: usize) {
        let index = self.random.index(self.clusters[cluster].proxies.len());
        let proxy = &self.clusters[cluster].proxies[index];
        if proxy.kind == ProxyKind::Gateway {
            return;
        }
        let agent = proxy.name.clone();
        let facts = proxy.running.as_ref().and_then(|l| l.svid.as_ref()).map(|s| s.facts.clone());
        let identity = RevocationTarget::Identity(proxy.identity.clone());
        // Refused while the two have not joined; a hold on a neighbour can be lifted again.
        let neighbour = self.clusters[(cluster + 1) % self.clusters.len()].trust_domain.clone();
        let nodes = self.clusters[cluster].nodes.len();
        let node = self.clusters[cluster].nodes[self.random.index(nodes)].name.clone();
        let keys = self.ledger.truth(cluster).bundles.get(&self.clusters[cluster].trust_domain);
        let keys: Vec<_> = keys.into_iter().flat_map(|b| b.trusted()).map(|a| a.key_id).collect();
        let authority = self.random.pick(&keys);
        let kind = self.random.below(15);
        let (target, reason) = match (facts, kind) {
            (Some(facts), 0) => (RevocationTarget::Serial(facts.serial), Reason::KeyCompromise),
            (Some(facts), 1) => (RevocationTarget::Key(facts.key_id), Reason::KeyCompromise),
            (_, 2) => (RevocationTarget::Cluster(neighbour), Reason::Hold),
            (_, 3) => (identity, Reason::KeyCompromise),
            (_, 4 | 5) => (RevocationTarget::Agent(agent), Reason::Hold),
            (_, 6) => (RevocationTarget::Agent(agent), Reason::KeyCompromise),
            // Refused if those that are left could decide nothing.
            (_, 7 | 8) => (RevocationTarget::Node(node), Reason::Hold),
            (_, 9) => (RevocationTarget::Node(node), Reason::KeyCompromise),
            (_, REISSUED) => (identity, Reason::KeyCompromise),
            _ => match authority.filter(|_| kind > 12) {
                Some(key) => (RevocationTarget::Authority(key), Reason::KeyCompromise),
                None => (identity, Reason::Hold),
            },
        };
        let command = Command::Revoke {
            target,
            reason,
            note: String::new(),
            expires: None,
            reissue: kind == REISSUED,
            closing: Default::default(),
        };
        self.order(cluster, "admin", command);
    }

    fn lift_something(&mut self, cluster: usize) {
        let revoked =
            self.operations.values().filter(|o| o.cluster == cluster).filter_map(|o| match &o.end {
                Some(Ok(outcome)) => match &outcome.result {
                    Ok(Answer::Revoked(id)) => Some(id.clone()),
                    _ => None,
                },
                _ => None,
            });
        let revoked: Vec<_> = revoked.collect();
        if let Some(id) = self.random.pick(&revoked) {
            self.order(cluster, "admin", Command::Lift { id });
        }
    }

    fn some_restart(&mut self) {
        let down = self.clusters.iter().enumerate().flat_map(|(cluster, c)| {
            let nodes = c.nodes.iter().enumerate();
            nodes.filter(|(_, n)| n.running.is_none()).map(move |(index, _)| At { cluster, index })
        });
        let down: Vec<At> = down.collect();
        if let Some(at) = self.random.pick(&down) {
            self.start_node(at);
        }
    }

    fn some_scope(&mut self) -> Scope {
        match self.random.below(5) {
            0 => Scope::Cluster(self.random.index(self.clusters.len())),
            1 => {
                let (cluster, index) = self.any_proxy();
                Scope::Party(Party::Proxy(cluster, index))
            }
            _ => Scope::Party(self.any_node().party()),
        }
    }

    fn some_cut(&mut self) {
        let (a, b) = match self.random.below(4) {
            0 => (Scope::Cluster(0), Scope::Cluster(1)),
            1 => (self.some_scope(), Scope::Everyone),
            _ => (self.some_scope(), self.some_scope()),
        };
        self.note(&[91], || format!("cut {a:?} {b:?}"));
        if self.random.chance(250) { self.network.cut(a, b) } else { self.network.cut_both(a, b) }
    }

    fn some_healing(&mut self) {
        self.note(&[92], || "the network is whole".to_owned());
        let weather = self.network.weather.clone();
        self.network.heal_all();
        self.network.weather = weather;
    }

    fn some_slowness(&mut self) {
        let at = self.any_node();
        let usual = USUAL_SKEW.as_millis() as u64;
        let skew = self.random.below(2 * usual).cast_signed() - usual.cast_signed();
        let slow = self.random.chance(500);
        let resign = self.random.chance(300);
        if self.random.chance(400) {
            return self.set_far_off(at);
        }
        let node = &mut self.clusters[at.cluster].nodes[at.index];
        if slow {
            node.slow_disk = !node.slow_disk;
        } else if !resign {
            node.skew_ms = skew;
            self.most_ahead_ms = self.most_ahead_ms.max(u64::try_from(skew).unwrap_or(0));
        }
        let running = self.clusters[at.cluster].nodes[at.index].running.is_some();
        if resign && running {
            let life = self.life(at);
            self.node_input(at, life, hanse_control::node::Input::Resign);
        }
    }

    fn some_proxy_trouble(&mut self) {
        let (cluster, index) = self.any_proxy();
        let proxy = &mut self.clusters[cluster].proxies[index];
        if !proxy.is_up() {
            self.start_proxy(cluster, index);
        } else if self.random.chance(500) {
            self.crash_proxy(cluster, index);
        } else {
            let proxy = &mut self.clusters[cluster].proxies[index];
            proxy.ready = !proxy.ready;
        }
    }

    /// All of a cluster's authorities or one of them, at once or in time; or what runs is taken back.
    fn some_rotation(&mut self) {
        let cluster = self.random.index(self.clusters.len());
        let keys = self.ledger.truth(cluster).bundles.get(&self.clusters[cluster].trust_domain);
        let keys: Vec<_> = keys.into_iter().flat_map(|b| b.trusted()).map(|a| a.key_id).collect();
        let one = self.random.pick(&keys).filter(|_| self.random.chance(200));
        let command = match self.random.below(10) {
            0..7 => Command::RotateBegin { authority: one, reissue: self.random.chance(700) },
            _ => Command::RotateAbort {},
        };
        self.order(cluster, "admin", command);
    }

    fn some_join(&mut self) {
        let inviter = self.random.index(self.clusters.len());
        let joiner = self.random.index(self.clusters.len());
        let pair = |j: &super::join::JoinTask| {
            (j.inviter, j.joiner) == (inviter, joiner) || (j.inviter, j.joiner) == (joiner, inviter)
        };
        let busy = self.joins.iter().any(|j| pair(j) && j.end.is_none()) || self.is_leaving();
        if inviter != joiner && !busy && self.joins.len() < 5 {
            let task = self.join(inviter, joiner);
            self.joins[task].give_up = self.random.chance(300);
        }
    }

    fn some_lie_or_leave(&mut self) {
        let a = self.random.index(self.clusters.len());
        if self.random.chance(700) {
            self.note(&[93], || format!("cluster {a} lies"));
            return self.liars.push(a);
        }
        let b = (a + 1) % self.clusters.len();
        let joining = self.joins.iter().any(|j| j.end.is_none());
        if !joining && !self.joins.is_empty() {
            self.leave(a, b);
        }
    }

    /// The operators of both sides remove the other.
    pub fn leave(&mut self, a: usize, b: usize) {
        for (from, other) in [(a, b), (b, a)] {
            let cluster = self.clusters[other].name.clone();
            self.order(from, "admin", Command::PeerRemove { cluster, only_invite: None });
        }
    }

    /// Whether it is not certain of every removal of a peer that it has been done, or has not.
    fn is_leaving(&self) -> bool {
        let removes = |o: &super::Operation| matches!(o.command, Command::PeerRemove { .. });
        self.operations.values().any(|o| removes(o) && !matches!(o.end, Some(Ok(_))))
    }

    /// Whether an operator has ever told one of the two to forget the other.
    pub fn has_left(&self, a: usize, b: usize) -> bool {
        self.operations.values().any(|o| match &o.command {
            Command::PeerRemove { cluster, only_invite: None } => {
                (o.cluster == a && *cluster == self.clusters[b].name)
                    || (o.cluster == b && *cluster == self.clusters[a].name)
            }
            _ => false,
        })
    }

    /// At rest every caller that is believed is answered by its own cluster, if somebody there may answer.
    fn everybody_is_served(&mut self) -> Result<(), Violation> {
        let service: ServiceName = SERVICES[0].parse().expect("labels");
        let mut asked = Vec::new();
        for cluster in 0..self.clusters.len() {
            let truth = self.ledger.truth(cluster);
            let believed = |id: &SpiffeId| truth.revocations.of_identity(id).is_none();
            let answers = truth.endpoints_of(&service).any(|e| e.ready && believed(&e.identity));
            let proxies = &self.clusters[cluster].proxies;
            let caller = proxies.iter().position(|p| p.kind == ProxyKind::Sidecar && p.services.is_empty());
            let caller = caller.filter(|i| !self.is_out(cluster, *i));
            if let Some(index) = caller.filter(|i| answers && believed(&proxies[*i].identity)) {
                asked.push((cluster, index));
            }
        }
        let until = self.now + SERVED_WITHIN_MS;
        for (cluster, index) in asked {
            loop {
                let id = self.request(cluster, index, &service);
                self.run_until(4000, |world| world.told[&id].end.is_some())?;
                match self.told[&id].end.clone() {
                    Some(Ok(_)) => break,
                    end if self.now >= until => {
                        let name = &self.clusters[cluster].proxies[index].name;
                        let what = format!("at rest, {name} is not served: {end:?}");
                        return Err(Violation { at: self.now, what });
                    }
                    _ => self.run_for(300)?,
                }
            }
        }
        Ok(())
    }
}

fn some_weather(random: &mut super::random::Random) -> Weather {
    match random.below(4) {
        0 => Weather::CALM,
        1 => Weather { loss_per_mille: 150, ..Weather::CALM },
        2 => {
            Weather { duplicate_per_mille: 200, straggler_per_mille: 200, most_delay_ms: 30, ..Weather::CALM }
        }
        _ => Weather {
            least_delay_ms: 5,
            most_delay_ms: 150,
            loss_per_mille: 50,
            duplicate_per_mille: 50,
            straggler_per_mille: 50,
        },
    }
}
