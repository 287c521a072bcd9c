//! Requests between sidecars, straight or through a peer's gateway, and the live connections that they leave.
//!
//! Who is sent where is `choose`'s doing, who is let in that of the gateway's `route::admit` and `View::may_call`,
//! who is believed that of the View's bundles and revocations: registered first, then checked, then served.

use hanse_federation::View;
use hanse_federation::catalog::Locality;
use hanse_federation::choose::{Ask, Candidate, Ladder, Way};
use hanse_federation::health::{Observation, Target};
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::load::Load;
use hanse_gateway::route;
use hanse_identity::{ClusterName, NodeName, ServiceName};

use super::authorities::{Disbelief, WorldSvid};
use super::network::Party;
use super::packet::{Opening, Packet};
use super::proxy::ProxyKind;
use super::{Event, World};

const ATTEMPT_TIMEOUT_MS: u64 = 400;
const MAX_ATTEMPTS: u32 = 4;
/// Oldest first, the rest is closed.
const MAX_CONNECTIONS: usize = 16;

/// How a refusal begins that nothing but a wrong index accounts for.
const NOT_HIT: &str = "kept out by";

/// A request and how it ended.
#[derive(Clone, Debug)]
pub struct Told {
    pub cluster: usize,
    pub index: usize,
    pub service: ServiceName,
    pub end: Option<Result<Served, String>>,
}

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub cluster: ClusterName,
    pub endpoint: NodeName,
}

/// What the caller has of a request that is under way.
#[derive(Debug)]
pub(super) struct Request {
    service: ServiceName,
    tried: Vec<Target>,
    attempt: u32,
    connection: u64,
    candidate: Option<Candidate>,
    why: String,
}

/// A live connection: who is at the other end of it, and the neighbours that it runs through.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) other: WorldSvid,
    pub(super) neighbours: Vec<Party>,
    /// Since when the authority of the other end is seen to be on its way out.
    pub(super) outgoing_since: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Served { svid: Box<WorldSvid>, served: Served },
    Refused(String),
}

impl World {
    /// A sidecar's app asks for a service. The id under which `told` will have the answer.
    pub fn request(&mut self, cluster: usize, index: usize, service: &ServiceName) -> u64 {
        let id = self.id();
        self.told.insert(id, Told { cluster, index, service: service.clone(), end: None });
        let request = Request {
            service: service.clone(),
            tried: Vec::new(),
            attempt: 0,
            connection: 0,
            candidate: None,
            why: String::new(),
        };
        match self.life_of(cluster, index) {
            Some(life) => {
                life.requests.insert(id, request);
                self.attempt_request(cluster, index, id);
            }
            None => self.tell_end(id, Err("the proxy is down".into())),
        }
        id
    }

    fn tell_end(&mut self, id: u64, end: Result<Served, String>) {
        if let Err(why) = &end
            && why.contains(NOT_HIT)
        {
            self.violate(|| format!("request {id}: {why}"));
        }
        self.note(&[70, id, u64::from(end.is_ok())], || format!("request {id}: {end:?}"));
        if let Some(told) = self.told.get_mut(&id) {
            told.end.get_or_insert(end);
        }
    }

    fn end_request(&mut self, cluster: usize, index: usize, id: u64, end: Result<Served, String>) {
        if let Some(life) = self.life_of(cluster, index) {
            life.requests.remove(&id);
        }
        self.tell_end(id, end);
    }

    fn attempt_request(&mut self, cluster: usize, index: usize, id: u64) {
        let (now, random, connection) = (self.clock(), self.random.draw(), self.id());
        let proxy = &mut self.clusters[cluster].proxies[index];
        let life_number = proxy.life;
        let Some(life) = &mut proxy.running else { return };
        let Some(request) = life.requests.get_mut(&id) else { return };
        request.attempt += 1;
        let (service, attempt) = (request.service.clone(), request.attempt);
        let (Some(view), Some(svid)) = (&life.view, &life.svid) else {
            return self.end_request(cluster, index, id, Err("no View or no SVID yet".into()));
        };
        if let Err(why) = svid.check(view, now) {
            let why = format!("own SVID: {}", words(&why));
            return self.end_request(cluster, index, id, Err(why));
        }
        let svid = svid.clone();
        let host = ServiceHost { service: service.clone(), reach: Reach::ClusterSet };
        let ladder = Ladder::build(view, &host, &Locality::default(), life.ladders.get(&service));
        let ladder = match life.ladders.entry(service.clone()) {
            std::collections::btree_map::Entry::Occupied(mut known) => {
                *known.get_mut() = ladder;
                known.into_mut()
            }
            std::collections::btree_map::Entry::Vacant(vacant) => vacant.insert(ladder),
        };
        // Of latency and what is under way this world knows nothing: an even draw by weight.
        let load = Load::default();
        let choice =
            ladder.choose(&Ask { tried: &request.tried, ..Ask::new(now, &life.health, &load, random) });
        let choice = match choice {
            Ok(choice) if attempt <= MAX_ATTEMPTS => choice,
            Ok(_) => {
                let why = request.why.clone();
                return self.end_request(cluster, index, id, Err(why));
            }
            Err(why) => return self.end_request(cluster, index, id, Err(why.to_string())),
        };
        let hop = hop(view, &choice.candidate, random);
        (request.connection, request.candidate) = (connection, Some(choice.candidate));
        let back = Party::Proxy(cluster, index);
        let to = hop.and_then(|(abroad, name)| {
            self.party_named(abroad.as_ref().unwrap_or(&self.clusters[cluster].name), &name)
        });
        let life = life_number;
        self.after(ATTEMPT_TIMEOUT_MS, Event::RequestTimeout { cluster, index, life, request: id, attempt });
        if let Some(to) = to {
            let opening = Opening { connection, caller: svid, service, back };
            self.send(back, to, Packet::Open(Box::new(opening)));
        }
    }

    fn party_named(&self, cluster: &ClusterName, name: &NodeName) -> Option<Party> {
        let cluster = self.cluster_named(cluster.as_str())?;
        let index = self.clusters[cluster].proxies.iter().position(|p| p.name == *name)?;
        Some(Party::Proxy(cluster, index))
    }

    pub(super) fn request_timeout(
        &mut self,
        cluster: usize,
        index: usize,
        life: u64,
        request: u64,
        attempt: u32,
    ) {
        if self.clusters[cluster].proxies[index].life != life {
            return;
        }
        let waits = self.life_of(cluster, index).and_then(|l| l.requests.get(&request));
        if waits.is_some_and(|r| r.attempt == attempt) {
            self.observed(cluster, index, request, Observation::Timeout, "timeout");
        }
    }

    /// An attempt has failed: the target's health knows, and the next one is tried.
    fn observed(&mut self, cluster: usize, index: usize, id: u64, observation: Observation, why: &str) {
        let now = self.clock();
        let Some(life) = self.life_of(cluster, index) else { return };
        let Some(request) = life.requests.get_mut(&id) else { return };
        request.why = why.to_owned();
        if let Some(candidate) = request.candidate.take() {
            let settings =
                life.ladders.get(&request.service).map(|l| l.settings.outlier.clone()).unwrap_or_default();
            life.health.observe(now, &request.service, &candidate.target, observation, &settings);
            if let (Way::Tunnel(peer), Observation::Timeout) = (&candidate.way, observation) {
                life.health.path_lost(now, peer);
            }
            request.tried.push(candidate.target);
        }
        self.attempt_request(cluster, index, id);
    }

    /// Somebody wants in: registered, then checked, then served.
    pub(super) fn opened(&mut self, cluster: usize, index: usize, opening: Opening) {
        let here = Party::Proxy(cluster, index);
        let (connection, back) = (opening.connection, opening.back);
        let neighbours = vec![back];
        let entry = Connection { other: opening.caller.clone(), neighbours, outgoing_since: None };
        self.enter(cluster, index, connection, entry);
        let decision = match self.clusters[cluster].proxies[index].kind {
            ProxyKind::Sidecar => self.serve(cluster, index, &opening),
            ProxyKind::Gateway => self.pass_on(cluster, index, opening),
        };
        let answer = match decision {
            Ok(None) => return,
            Ok(Some(answer)) => answer,
            Err(why) => {
                if let Some(life) = self.life_of(cluster, index) {
                    life.connections.remove(&connection);
                }
                Answer::Refused(why)
            }
        };
        self.send(here, back, Packet::Answer { connection, answer });
    }

    fn enter(&mut self, cluster: usize, index: usize, connection: u64, entry: Connection) {
        let here = Party::Proxy(cluster, index);
        let Some(life) = self.life_of(cluster, index) else { return };
        life.connections.insert(connection, entry);
        if life.connections.len() > MAX_CONNECTIONS
            && let Some((connection, oldest)) = life.connections.pop_first()
        {
            for to in oldest.neighbours {
                self.send(here, to, Packet::Close { connection });
            }
        }
    }

    fn serve(&mut self, cluster: usize, index: usize, opening: &Opening) -> Result<Option<Answer>, String> {
        let now = self.clock();
        let cluster_name = self.clusters[cluster].name.clone();
        let proxy = &self.clusters[cluster].proxies[index];
        let name = proxy.name.clone();
        let life = proxy.running.as_ref().ok_or("down")?;
        let (view, own) =
            (life.view.as_ref().ok_or("no View yet")?, life.svid.as_ref().ok_or("no SVID yet")?);
        opening.caller.check(view, now).map_err(|why| words(&why))?;
        if !proxy.services.contains(&opening.service) {
            return Err("unknown-service".into());
        }
        if !view.may_call(&opening.caller.facts.id, &opening.service) {
            return Err("not-exported".into());
        }
        if !proxy.ready {
            return Err("app-unreachable".into());
        }
        self.ledger.admitted(self.now, cluster, view, &opening.caller);
        let served = Served { cluster: cluster_name, endpoint: name };
        Ok(Some(Answer::Served { svid: Box::new(own.clone()), served }))
    }

    fn pass_on(
        &mut self,
        cluster: usize,
        index: usize,
        mut opening: Opening,
    ) -> Result<Option<Answer>, String> {
        let (now, random) = (self.clock(), self.random.draw());
        let here = Party::Proxy(cluster, index);
        let connection = opening.connection;
        let life = self.clusters[cluster].proxies[index].running.as_ref().ok_or("down")?;
        let view = life.view.as_ref().ok_or("no View yet")?;
        opening.caller.check(view, now).map_err(|why| words(&why))?;
        let authority =
            format!("{}.{}.svc.cluster.local:80", opening.service.name(), opening.service.namespace());
        let admitted =
            route::admit(view, &opening.caller.facts.id, &authority).map_err(|d| d.reason().to_owned())?;
        let endpoints = admitted.endpoints(view, random);
        let endpoint = endpoints.first().ok_or("nobody-ready")?.id.clone();
        self.ledger.admitted(self.now, cluster, view, &opening.caller);
        let to = self.party_named(&self.clusters[cluster].name, &endpoint).ok_or("nobody-ready")?;
        if let Some(entry) = self.life_of(cluster, index).and_then(|l| l.connections.get_mut(&connection)) {
            entry.neighbours.push(to);
        }
        opening.back = here;
        self.send(here, to, Packet::Open(Box::new(opening)));
        Ok(None)
    }

    pub(super) fn answered(&mut self, cluster: usize, index: usize, connection: u64, answer: Answer) {
        let here = Party::Proxy(cluster, index);
        let now = self.clock();
        let proxy = &mut self.clusters[cluster].proxies[index];
        let kind = proxy.kind;
        let Some(life) = &mut proxy.running else { return };
        if kind == ProxyKind::Gateway {
            let Some(back) = life.connections.get(&connection).and_then(|c| c.neighbours.first().copied())
            else {
                return;
            };
            if matches!(answer, Answer::Refused(_)) {
                life.connections.remove(&connection);
            }
            return self.send(here, back, Packet::Answer { connection, answer });
        }
        let found = life.requests.iter().find(|(_, r)| r.connection == connection && r.candidate.is_some());
        let Some((id, request)) = found.map(|(id, r)| (*id, r)) else {
            return;
        };
        let (service, candidate) = (request.service.clone(), request.candidate.clone());
        match (answer, candidate, &life.view) {
            (Answer::Served { svid, served }, Some(candidate), Some(view)) => {
                let expected = candidate.identities.contains(&svid.facts.id);
                if let Err(why) = svid.check(view, now) {
                    return self.observed(cluster, index, id, Observation::ConnectFailure, &words(&why));
                }
                if !expected {
                    return self.observed(
                        cluster,
                        index,
                        id,
                        Observation::ConnectFailure,
                        "not who was expected",
                    );
                }
                self.ledger.admitted(self.now, cluster, view, &svid);
                let settings =
                    life.ladders.get(&service).map(|l| l.settings.outlier.clone()).unwrap_or_default();
                life.health.observe(now, &service, &candidate.target, Observation::Success, &settings);
                let neighbours = vec![self.first_hop(cluster, &served)];
                let entry = Connection { other: *svid, neighbours, outgoing_since: None };
                self.enter(cluster, index, connection, entry);
                self.end_request(cluster, index, id, Ok(served));
            }
            (Answer::Refused(why), ..) => {
                let observation =
                    if why == "connect" { Observation::ConnectFailure } else { Observation::NobodyThere };
                self.observed(cluster, index, id, observation, &why);
            }
            _ => {}
        }
    }

    fn first_hop(&self, cluster: usize, served: &Served) -> Party {
        self.party_named(&served.cluster, &served.endpoint).unwrap_or(Party::Proxy(cluster, 0))
    }

    /// Those at whose other end is somebody who is not believed any more are closed; all, if it is ourselves.
    pub(super) fn close_disbelieved(&mut self, cluster: usize, index: usize) {
        let now = self.clock();
        let here = Party::Proxy(cluster, index);
        let Some(life) = self.life_of(cluster, index) else { return };
        let Some(view) = &life.view else { return };
        let gone = |svid: &WorldSvid| svid.check(view, now).is_err();
        let all = life.svid.as_ref().is_some_and(gone);
        let closed: Vec<(u64, Connection)> =
            life.connections.extract_if(.., |_, c| all || gone(&c.other)).collect();
        for (connection, entry) in closed {
            self.note(&[71, here.number(), connection], || {
                format!("{here:?} closes connection {connection} with {}", entry.other.facts.id)
            });
            for to in entry.neighbours {
                self.send(here, to, Packet::Close { connection });
            }
        }
    }

    pub(super) fn probe_lost_paths(&mut self, cluster: usize, index: usize) {
        let here = Party::Proxy(cluster, index);
        let random = self.random.draw();
        let Some(life) = self.life_of(cluster, index) else { return };
        let Some(view) = &life.view else { return };
        life.health.retain_paths(|peer| view.peers.contains_key(peer));
        let lost = life.health.lost_paths();
        let targets: Vec<(ClusterName, Option<NodeName>)> =
            lost.into_iter().map(|(peer, _)| (peer.clone(), gateway_of(view, &peer, random))).collect();
        for (peer, gateway) in targets {
            let Some(to) = gateway.and_then(|name| self.party_named(&peer, &name)) else { continue };
            let probe = self.id();
            if let Some(life) = self.life_of(cluster, index) {
                life.probes.insert(probe, peer);
                if life.probes.len() > MAX_CONNECTIONS {
                    life.probes.pop_first();
                }
            }
            self.send(here, to, Packet::Probe { probe });
        }
    }

    pub(super) fn probed(&mut self, cluster: usize, index: usize, probe: u64) {
        let now = self.clock();
        let Some(life) = self.life_of(cluster, index) else { return };
        if let Some(peer) = life.probes.remove(&probe) {
            life.health.path_alive(now, &peer);
        }
    }
}

/// The proxy that an attempt is sent to: an endpoint at home, or a gateway abroad.
fn hop(view: &View, candidate: &Candidate, random: u64) -> Option<(Option<ClusterName>, NodeName)> {
    match (&candidate.way, &candidate.target) {
        (Way::Direct(_), Target::Endpoint(id)) => Some((None, id.clone())),
        (Way::Tunnel(peer), _) => gateway_of(view, peer, random).map(|name| (Some(peer.clone()), name)),
        (Way::Direct(_), Target::Cluster(_) | Target::Address(_)) | (Way::Outside(_), _) => None,
    }
}

fn gateway_of(view: &View, peer: &ClusterName, random: u64) -> Option<NodeName> {
    let ready: Vec<_> = view.peers.get(peer)?.gateways.iter().filter(|g| g.ready).collect();
    let count = ready.len() as u64;
    if count == 0 { None } else { ready.get(usize::try_from(random % count).ok()?).map(|g| g.name.clone()) }
}

fn words(why: &Disbelief) -> String {
    match why {
        Disbelief::Revoked(id) => format!("revoked by {id}"),
        Disbelief::NotHit(id) => format!("{NOT_HIT} {id}"),
        Disbelief::UnknownAuthority => "unknown-authority".to_owned(),
        Disbelief::UnknownTrustDomain => "unknown-trust-domain".to_owned(),
        Disbelief::Expired => "expired".to_owned(),
    }
}
