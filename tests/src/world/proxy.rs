//! Proxies and gateways as subscribers: a View folded from Changes, resumed by revision; announcements; an SVID.
//!
//! A sidecar also sends and takes requests, a gateway passes them on: see `traffic`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hanse_control::node::Applied;
use hanse_federation::catalog::{Locality, Serves};
use hanse_federation::choose::Ladder;
use hanse_federation::health::Health;
use hanse_federation::presence::Presence;
use hanse_federation::{Change, Revision, View};
use hanse_identity::name::MemberRole;
use hanse_identity::{ClusterName, NodeName, ServiceName, SpiffeId};

use super::authorities::WorldSvid;
use super::network::Party;
use super::packet::{Arrival, Frame, Packet, StreamEnd};
use super::rotation::is_outgoing;
use super::traffic::{Connection, Request};
use super::watch::{LIFETIME, SILENT_MS};
use super::{Bug, Event, World};

/// How often a proxy looks after its timers.
const TIMER_MS: u64 = 500;
/// How far the clock of a host is set back at every third start of its proxy.
const SET_BACK: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    Sidecar,
    Gateway,
}

/// A proxy and its life; what is in `Life` goes with a crash.
#[derive(Debug)]
pub struct Proxy {
    pub name: NodeName,
    pub kind: ProxyKind,
    pub identity: SpiffeId,
    pub services: BTreeSet<ServiceName>,
    /// Whether its app answers.
    pub ready: bool,
    pub(super) life: u64,
    pub(super) running: Option<Life>,
}

#[derive(Debug)]
pub(super) struct Life {
    pub(super) view: Option<View>,
    pub(super) svid: Option<WorldSvid>,
    pub(super) health: Health,
    pub(super) ladders: BTreeMap<ServiceName, Ladder>,
    pub(super) stream: Option<StreamEnd>,
    /// The node that it asks next.
    turn: usize,
    presence: Presence,
    /// What it has said last, on which stream.
    said: Option<(u64, bool)>,
    /// The stream on which it has asked for an SVID.
    asked: Option<u64>,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) requests: BTreeMap<u64, Request>,
    /// Since it resumed, nothing but what was missed has come.
    resumed: bool,
    pub(super) probes: BTreeMap<u64, ClusterName>,
}

impl Life {
    fn new(turn: usize, presence: Presence) -> Self {
        Self {
            view: None,
            svid: None,
            health: Health::default(),
            ladders: BTreeMap::new(),
            stream: None,
            turn,
            presence,
            said: None,
            asked: None,
            connections: BTreeMap::new(),
            requests: BTreeMap::new(),
            resumed: false,
            probes: BTreeMap::new(),
        }
    }
}

impl Proxy {
    /// Whether a View has what it said last.
    pub fn stands(&self, view: &View) -> bool {
        self.running.as_ref().is_some_and(|life| life.presence.stands(view, &self.identity))
    }

    pub fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub fn view(&self) -> Option<&View> {
        self.running.as_ref().and_then(|life| life.view.as_ref())
    }

    pub fn connections(&self) -> usize {
        self.running.as_ref().map_or(0, |life| life.connections.len())
    }

    pub(super) fn serves(&self, address: std::net::SocketAddr) -> Serves {
        match self.kind {
            ProxyKind::Gateway => {
                Serves::Gateway { passthrough: address, tunnel: format!("{}.tunnels:15008", self.name) }
            }
            ProxyKind::Sidecar if self.services.is_empty() => Serves::Nothing,
            ProxyKind::Sidecar => {
                Serves::Services { services: self.services.clone(), inbound: address, weight: 100 }
            }
        }
    }
}

impl World {
    /// A sidecar with the identity of `account`; starts at once.
    pub fn add_sidecar(
        &mut self,
        cluster: usize,
        name: &str,
        account: &str,
        services: &[ServiceName],
    ) -> usize {
        let trust_domain = &self.clusters[cluster].trust_domain;
        let identity = SpiffeId::workload(trust_domain, "shop", account).expect("the account is a label");
        self.add_proxy(cluster, name, ProxyKind::Sidecar, identity, services.iter().cloned().collect())
    }

    pub fn add_gateway(&mut self, cluster: usize, name: &str) -> usize {
        let node: NodeName = name.parse().expect("a gateway's name is a label");
        let identity = SpiffeId::member(&self.clusters[cluster].trust_domain, MemberRole::Gateway, &node);
        self.add_proxy(cluster, name, ProxyKind::Gateway, identity, BTreeSet::new())
    }

    fn add_proxy(
        &mut self,
        cluster: usize,
        name: &str,
        kind: ProxyKind,
        identity: SpiffeId,
        services: BTreeSet<ServiceName>,
    ) -> usize {
        let name = name.parse().expect("a proxy's name is a label");
        let proxy = Proxy { name, kind, identity, services, ready: true, life: 0, running: None };
        self.clusters[cluster].proxies.push(proxy);
        let index = self.clusters[cluster].proxies.len() - 1;
        self.start_proxy(cluster, index);
        index
    }

    pub fn start_proxy(&mut self, cluster: usize, index: usize) {
        let turn = self.random.index(self.clusters[cluster].nodes.len());
        let first = self.random.between(1, 50);
        let clock = self.clock();
        let proxy = &mut self.clusters[cluster].proxies[index];
        if proxy.running.is_none() {
            proxy.life += 1;
            let clock = if proxy.life.is_multiple_of(3) { clock - SET_BACK } else { clock };
            proxy.running = Some(Life::new(turn, Presence::new(clock)));
            let life = proxy.life;
            self.note(&[60, Party::Proxy(cluster, index).number()], || {
                format!("proxy {cluster}/{} starts", index + 1)
            });
            self.after(first, Event::Proxy { cluster, index, life });
        }
    }

    pub fn crash_proxy(&mut self, cluster: usize, index: usize) {
        self.clusters[cluster].proxies[index].running = None;
        self.note(&[61, Party::Proxy(cluster, index).number()], || {
            format!("proxy {cluster}/{} crashes", index + 1)
        });
    }

    pub(super) fn life_of(&mut self, cluster: usize, index: usize) -> Option<&mut Life> {
        self.clusters[cluster].proxies[index].running.as_mut()
    }

    pub(super) fn proxy_timer(&mut self, cluster: usize, index: usize, life: u64) {
        let proxy = &self.clusters[cluster].proxies[index];
        if proxy.life != life || proxy.running.is_none() {
            return;
        }
        self.after(TIMER_MS, Event::Proxy { cluster, index, life });
        let now = self.now;
        let Some(life) = self.life_of(cluster, index) else { return };
        if life.stream.as_ref().is_some_and(|s| now > s.heard + SILENT_MS) {
            life.stream = None;
        }
        if life.stream.is_none() {
            self.dial_control(cluster, index);
        } else {
            self.speak(cluster, index);
        }
        self.probe_lost_paths(cluster, index);
        self.leave_outgoing(cluster, index);
        self.check_believed(cluster, index);
    }

    fn dial_control(&mut self, cluster: usize, index: usize) {
        let stream = self.id();
        let (now, forgetful) = (self.now, self.bug == Some(Bug::SnapshotsGoBack));
        let nodes = self.clusters[cluster].nodes.len();
        let revoked_here = match self.clusters[cluster].proxies[index].view() {
            Some(view) => self.revoked_nodes(cluster, view),
            None => BTreeSet::new(),
        };
        let proxy = &mut self.clusters[cluster].proxies[index];
        let (name, identity) = (proxy.name.clone(), proxy.identity.clone());
        let Some(life) = &mut proxy.running else { return };
        life.turn += 1;
        // TLS would refuse who is known to be revoked.
        let refused = |turn: usize| revoked_here.contains(&(turn % nodes));
        life.turn += (0..nodes).find(|more| !refused(life.turn + more)).unwrap_or(0);
        let from = if forgetful { 0 } else { life.view.as_ref().map_or(0, |v| v.revision.0) };
        life.resumed = from > 0;
        let mut end = StreamEnd::new(stream, Party::Node(cluster, life.turn % nodes), now);
        let (to, packet) = end.next(Frame::Hello { name, identity, from });
        life.stream = Some(end);
        self.send(Party::Proxy(cluster, index), to, packet);
    }

    /// What is due: an announcement, a wish for an SVID, a sign of life.
    fn speak(&mut self, cluster: usize, index: usize) {
        let (now, now_ms) = (self.clock(), self.now);
        let in_force = self.report(cluster, index);
        let port = u16::try_from(index).unwrap_or(0) + 1;
        let address = std::net::SocketAddr::from(([10, u8::try_from(cluster).unwrap_or(0), 0, 1], port));
        let proxy = &mut self.clusters[cluster].proxies[index];
        let (name, identity) = (proxy.name.clone(), proxy.identity.clone());
        let (ready, serves) = (proxy.ready, proxy.serves(address));
        let Some(life) = &mut proxy.running else { return };
        let Some(view) = &life.view else { return };
        let Some(end) = &mut life.stream else { return };
        let mut frames = vec![Frame::InForce(Box::new(in_force))];
        let revoked = view.revocations.of_identity(&identity).is_some();
        let elapsed = Duration::from_millis(now_ms);
        let due = life.presence.is_due(view, &identity, elapsed);
        if revoked {
            life.said = Some((end.id, ready));
        } else if life.said != Some((end.id, ready)) || due {
            life.said = Some((end.id, ready));
            let said = life.presence.say(&name, &Locality::default(), ready, serves, elapsed);
            frames.push(Frame::Announce(Box::new(said)));
        }
        let reconnected = life.asked != Some(end.id);
        life.asked = Some(end.id);
        // The agent replaces what is hit, as long as there is anything else to be had.
        let fresh = |svid: &WorldSvid| {
            svid.facts.not_after.left(now) * 2 > LIFETIME
                && (revoked || view.revocations.check(&svid.facts).is_none())
        };
        let good = |svid: &WorldSvid| fresh(svid) && !is_outgoing(view, svid);
        if reconnected || !life.svid.as_ref().is_some_and(good) {
            frames.push(Frame::WantSvid);
        }
        for frame in frames {
            let Some(end) = self.life_of(cluster, index).and_then(|l| l.stream.as_mut()) else { return };
            let (to, packet) = end.next(frame);
            self.send(Party::Proxy(cluster, index), to, packet);
        }
    }

    pub(super) fn deliver_to_proxy(&mut self, cluster: usize, index: usize, from: Party, packet: Packet) {
        let party = Party::Proxy(cluster, index);
        let now = self.now;
        let Some(life) = self.life_of(cluster, index) else { return self.refuse(party, from, &packet) };
        match packet {
            Packet::Frame { stream, sequence, frame } => {
                let Some(end) = life.stream.as_mut().filter(|s| s.id == stream) else {
                    return self.send(party, from, Packet::Reset { stream });
                };
                match end.arrived(sequence, now) {
                    Arrival::Next => self.hear(cluster, index, frame),
                    Arrival::Repeated => {}
                    Arrival::Gap => life.stream = None,
                }
            }
            Packet::Reset { stream } if life.stream.as_ref().is_some_and(|s| s.id == stream) => {
                life.stream = None;
            }
            Packet::Open(opening) => self.opened(cluster, index, *opening),
            Packet::Answer { connection, answer } => self.answered(cluster, index, connection, answer),
            Packet::Close { connection } => {
                life.connections.remove(&connection);
            }
            Packet::Probe { probe } => self.send(party, from, Packet::ProbeAnswer { probe }),
            Packet::ProbeAnswer { probe } => self.probed(cluster, index, probe),
            _ => {}
        }
    }

    fn hear(&mut self, cluster: usize, index: usize, frame: Frame) {
        match frame {
            Frame::Snapshot(view) => self.snapshot(cluster, index, &view),
            Frame::Changes(applied) => self.changes(cluster, index, &applied),
            Frame::Alive(revision) => {
                let applied = Arc::new(Applied { revision, changes: Vec::new(), reset: false });
                self.changes(cluster, index, &applied);
            }
            Frame::Svid(svid) => {
                if let Some(life) = self.life_of(cluster, index) {
                    life.svid = Some(*svid);
                }
            }
            _ => {}
        }
        let announced = self
            .life_of(cluster, index)
            .is_some_and(|l| l.said.map(|s| s.0) == l.stream.as_ref().map(|s| s.id));
        if !announced {
            self.speak(cluster, index);
        }
    }

    fn snapshot(&mut self, cluster: usize, index: usize, view: &View) {
        let backwards = self.bug == Some(Bug::SnapshotsGoBack);
        let Some(life) = self.life_of(cluster, index) else { return };
        let known = life.view.as_ref().map_or(0, |v| v.revision.0);
        if view.revision.0 > known || backwards {
            life.view = Some(view.clone());
            self.new_view(cluster, index);
        }
    }

    fn changes(&mut self, cluster: usize, index: usize, applied: &Applied) {
        let careless = self.bug == Some(Bug::ResumeWithoutRevocations);
        let Some(life) = self.life_of(cluster, index) else { return };
        let Some(view) = &mut life.view else { return };
        let mut changes = std::borrow::Cow::Borrowed(&applied.changes);
        if careless && std::mem::take(&mut life.resumed) {
            changes.to_mut().retain(|c| !matches!(c, Change::Revoked(_)));
        }
        if view.advance(Revision(applied.revision), &changes) {
            self.new_view(cluster, index);
        }
    }

    /// A newer View is in force: live connections are looked at again.
    fn new_view(&mut self, cluster: usize, index: usize) {
        let keep = self.bug == Some(Bug::ConnectionsKept);
        let Some(life) = self.life_of(cluster, index) else { return };
        let Some(revision) = life.view.as_ref().map(|v| v.revision.0) else { return };
        self.note(&[62, Party::Proxy(cluster, index).number(), revision], || {
            format!("proxy {cluster}/{} has {revision} in force", index + 1)
        });
        if !keep {
            self.close_disbelieved(cluster, index);
        }
        let proxy = &self.clusters[cluster].proxies[index];
        self.ledger.in_force(self.now, cluster, index, proxy);
    }
}
