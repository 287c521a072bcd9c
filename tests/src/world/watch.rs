//! A control node's subscribers: Changes from the ring or a snapshot, announcements, leases, and their SVIDs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hanse_control::command::{Answer, Command, Outcome};
use hanse_control::io::census::Subscriber;
use hanse_control::node::Applied;
use hanse_control::state::State;
use hanse_control::state::issuance::{IssuedRecord, IssuedSvid};
use hanse_federation::catalog::{Announcement, Serves, Session};
use hanse_identity::issue::{BACKDATED, SECOND};
use hanse_identity::{Evidence, NodeName, Selector, SpiffeId, grant};

use super::authorities::WorldSvid;
use super::control::Running;
use super::network::Party;
use super::packet::{Arrival, Frame, Packet, StreamEnd};
use super::propose::{Pending, Purpose};
use super::rotation::InForce;
use super::{At, Bug, Event, World};

/// How often a subscriber hears something, and how long its silence is borne.
const ALIVE_MS: u64 = 1000;
pub(super) const SILENT_MS: u64 = 2500;
/// How long an announcement outlives its stream.
const LEASE_MS: u64 = 2000;
/// Missed revisions beyond which a snapshot is sent instead.
const MOST_CHANGES: usize = 12;
/// How long a node vouches for a subscriber that has no stream there.
const RETURN_MS: u64 = 5000;
/// The leader looks after the endpoints of a node that it has not heard for so long.
const NODE_LOST_MS: u64 = 10_000;
/// How long a stream goes on at a node that has nobody to follow, and one that began there.
pub(super) const LEADERLESS_MS: u64 = 3000;
const LEADERLESS_FROM_THE_START_MS: u64 = 20_000;
/// How long an SVID lives.
pub(super) const LIFETIME: Duration = Duration::from_secs(12);

/// A subscriber's stream.
#[derive(Debug)]
pub(crate) struct Watcher {
    end: StreamEnd,
    pub(super) name: NodeName,
    pub(super) identity: SpiffeId,
    pub(super) in_force: InForce,
    /// Up to which revision everything has been sent.
    told: u64,
    said: u64,
    /// When there was a leader last, and how long it may go on without.
    led: (u64, u64),
    announced: Option<Session>,
}

impl World {
    pub(super) fn watch_frame(&mut self, at: At, from: Party, stream: u64, sequence: u64, frame: Frame) {
        let now = self.now;
        let revoked = self.is_revoked(at);
        let Some(running) = self.running(at) else { return };
        if let Frame::Hello { name, identity, from: told } = &frame {
            if revoked || is_put_out(&running.state, name) {
                return self.send(at.party(), from, Packet::Reset { stream });
            }
            if sequence != 1 || running.watchers.contains_key(&stream) {
                return;
            }
            let mut end = StreamEnd::new(stream, from, now);
            end.arrived(1, now);
            let (name, identity) = (name.clone(), identity.clone());
            let in_force = InForce::default();
            let within = if running.leader.is_some() { LEADERLESS_MS } else { LEADERLESS_FROM_THE_START_MS };
            let (told, said, led, announced) = (*told, now, (now, within), None);
            let watcher = Watcher { end, name, identity, in_force, told, said, led, announced };
            running.watchers.insert(stream, watcher);
            return self.catch_up(at, stream);
        }
        let Some(watcher) = running.watchers.get_mut(&stream) else {
            return self.send(at.party(), from, Packet::Reset { stream });
        };
        match watcher.end.arrived(sequence, now) {
            Arrival::Next => {}
            Arrival::Repeated => return,
            Arrival::Gap => {
                self.send(at.party(), from, Packet::Reset { stream });
                return self.watch_gone(at, stream);
            }
        }
        match frame {
            Frame::Announce(announcement) => self.announced(at, stream, announcement),
            Frame::WantSvid => self.issue(at, stream),
            Frame::InForce(in_force) => {
                if let Some(watcher) = self.running(at).and_then(|r| r.watchers.get_mut(&stream)) {
                    watcher.in_force = *in_force;
                }
            }
            _ => {}
        }
    }

    fn tell(&mut self, at: At, stream: u64, frame: Frame) {
        let now = self.now;
        let Some(watcher) = self.running(at).and_then(|r| r.watchers.get_mut(&stream)) else { return };
        watcher.said = now;
        let (to, packet) = watcher.end.next(frame);
        self.send(at.party(), to, packet);
    }

    /// By Changes if they are still known, else by a snapshot. One that is ahead of us waits.
    fn catch_up(&mut self, at: At, stream: u64) {
        let Some(running) = self.running(at) else { return };
        let revision = running.state.view.revision.0;
        let Some(told) = running.watchers.get(&stream).map(|w| w.told) else { return };
        if told > 0 && told >= revision {
            return;
        }
        let missed = if told > 0 { Self::changes_since(running, told) } else { None };
        match missed.filter(|missed| missed.len() <= MOST_CHANGES) {
            Some(missed) => missed.iter().for_each(|one| self.tell_one(at, stream, one)),
            None => {
                let view = Arc::new(running.state.view.clone());
                if let Some(watcher) = running.watchers.get_mut(&stream) {
                    watcher.told = revision;
                }
                self.tell(at, stream, Frame::Snapshot(view));
            }
        }
    }

    fn tell_one(&mut self, at: At, stream: u64, applied: &Arc<Applied>) {
        let Some(watcher) = self.running(at).and_then(|r| r.watchers.get_mut(&stream)) else { return };
        if applied.revision <= watcher.told {
            return;
        }
        watcher.told = applied.revision;
        if !applied.changes.is_empty() {
            self.tell(at, stream, Frame::Changes(applied.clone()));
        }
    }

    pub(super) fn tell_watchers(&mut self, at: At, applied: &[Arc<Applied>]) {
        let Some(running) = self.running(at) else { return };
        let streams: Vec<u64> = running.watchers.keys().copied().collect();
        let reset = applied.iter().any(|a| a.reset);
        for stream in streams {
            if reset {
                self.catch_up(at, stream);
            } else {
                applied.iter().for_each(|one| self.tell_one(at, stream, one));
            }
        }
    }

    pub(super) fn service_watchers(&mut self, at: At) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        let silent = running.watchers.iter().filter(|(_, w)| now > w.end.heard + SILENT_MS);
        let silent: Vec<u64> = silent.map(|(stream, _)| *stream).collect();
        silent.into_iter().for_each(|stream| self.watch_gone(at, stream));
        self.send_away(at);
        let Some(running) = self.running(at) else { return };
        let due = running.watchers.iter().filter(|(_, w)| now >= w.said + ALIVE_MS);
        let due: Vec<(u64, u64)> = due.map(|(stream, w)| (*stream, w.told)).collect();
        for (stream, told) in due {
            self.tell(at, stream, Frame::Alive(told));
        }
    }

    /// Streams that this node ends: it is revoked, has nobody to follow, or signs nothing; or who listens has been put out.
    fn send_away(&mut self, at: At) {
        let (now, revoked, signs) = (self.now, self.is_revoked(at), self.contradiction(at).is_none());
        let Some(running) = self.running(at) else { return };
        let (fit, state) = (running.leader.is_some() && signs, running.state.clone());
        let mut away = Vec::new();
        for (stream, watcher) in &mut running.watchers {
            if fit {
                watcher.led = (now, LEADERLESS_MS);
            }
            let (since, within) = watcher.led;
            if revoked || now >= since + within || is_put_out(&state, &watcher.name) {
                away.push((*stream, watcher.end.to));
            }
        }
        for (stream, to) in away {
            self.send(at.party(), to, Packet::Reset { stream });
            self.watch_gone(at, stream);
        }
    }

    /// The stream has ended: what it vouched for is withdrawn after a lease.
    pub(super) fn watch_gone(&mut self, at: At, stream: u64) {
        let (life, now) = (self.life(at), self.now);
        let node = self.clusters[at.cluster].nodes[at.index].name.clone();
        let Some(running) = self.running(at) else { return };
        let Some(gone) = running.watchers.remove(&stream) else { return };
        running.gone.retain(|(until, _)| *until > now);
        running.gone.push((now + LEASE_MS, Subscriber { connected: false, ..gone.subscriber(&node) }));
        if let Some(session) = gone.announced {
            self.after(LEASE_MS, Event::LeaseOver { at, life, name: gone.name, session });
        }
    }

    pub(super) fn lease_over(&mut self, at: At, life: u64, name: &NodeName, session: Session) {
        let Some(running) = self.running_in(at, life) else { return };
        if !running.watchers.values().any(|w| w.name == *name) {
            let command = Command::Withdraw { name: name.clone(), session };
            self.propose(at, String::new(), command, Purpose::Mesh);
        }
    }

    fn announced(&mut self, at: At, stream: u64, announcement: Box<Announcement>) {
        let node = self.clusters[at.cluster].nodes[at.index].name.clone();
        let Some(watcher) = self.running(at).and_then(|r| r.watchers.get_mut(&stream)) else { return };
        let session = Session {
            incarnation: announcement.incarnation,
            sequence: announcement.sequence,
            node: node.clone(),
        };
        watcher.announced = (announcement.serves != Serves::Nothing).then_some(session);
        let identity = watcher.identity.clone();
        let actor = identity.to_string();
        self.propose(at, actor, Command::Announce { announcement, identity, node }, Purpose::Mesh);
    }

    /// Withdraws what was vouched for by a node that cannot do so itself any more.
    pub(super) fn sweep(&mut self, at: At) {
        let now = self.now;
        let own = self.clusters[at.cluster].nodes[at.index].name.clone();
        let names: Vec<NodeName> = self.clusters[at.cluster].nodes.iter().map(|n| n.name.clone()).collect();
        let Some(running) = self.running(at) else { return };
        let mut orphaned = BTreeSet::new();
        let mut withdrawn = returned_by_nobody(running, &own, now);
        if running.leads {
            for (follower, heard) in &mut running.heard {
                if now >= *heard + NODE_LOST_MS {
                    *heard = now;
                    orphaned.insert(names[*follower as usize - 1].clone());
                }
            }
        }
        withdrawn.extend(vouched(running, |session| orphaned.contains(&session.node)));
        for (name, session) in withdrawn {
            let command = Command::Withdraw { name, session };
            self.propose(at, String::new(), command, Purpose::Mesh);
        }
    }

    /// What `control/io/issue` does: a ticket from `grant`, signed by this node's authority, and recorded before it is
    /// handed out. Without a quorum nothing is handed out here: what is owed then is the recorder's own affair.
    fn issue(&mut self, at: At, stream: u64) {
        if self.is_revoked(at) || self.contradiction(at).is_some() {
            return;
        }
        let Some(running) = self.running(at) else { return };
        let waits = |p: &Pending| matches!(p.purpose, Purpose::Issued { stream: s, .. } if s == stream);
        if running.pending.values().any(waits) {
            return;
        }
        let Some(watcher) = running.watchers.get(&stream) else { return };
        let (identity, agent) = (watcher.identity.clone(), watcher.name.clone());
        let state = running.state.clone();
        if is_put_out(&state, &agent) {
            return;
        }
        // In the World every proxy is its own agent.
        let evidence = Evidence { agent: agent.clone(), selectors: BTreeSet::from([Selector::Uid(1000)]) };
        let registrations = state.registrations_of(&identity);
        let trust_domain = &state.view.trust_domain;
        let ticket = grant(trust_domain, registrations, &state.view.revocations, &evidence, &identity);
        let Ok(ticket) = ticket else { return };
        let Some(key) = self.signing_key(at) else { return };
        let serial = (u128::from(self.random.draw()) << 64) | u128::from(self.random.draw());
        let unmarked = self.bug == Some(Bug::WatermarkIgnored);
        let mark = state.view.revocations.watermark(ticket.id()).filter(|_| !unmarked);
        let clock = self.clock_of(at);
        let begins = mark.map_or(clock - BACKDATED, |mark| (clock - BACKDATED).max(mark + SECOND));
        // By the true time: a clock that is behind would give SVIDs that have ended.
        let svid = WorldSvid::new(ticket.id().clone(), serial, key, begins, self.clock() + LIFETIME);
        if state.view.revocations.check_from(&svid.facts, &[key]).is_some() && !unmarked {
            return;
        }
        self.note(&[40, at.party().number()], || format!("{:?} issues {}", at.party(), svid.facts.id));
        let revision = state.view.revision.0;
        let off_by = self.off_by(at);
        let signer = &self.clusters[at.cluster].nodes[at.index].name;
        self.ledger.issued(self.now, at, (signer, off_by), revision, &svid);
        let record = IssuedRecord {
            svid: Arc::new(IssuedSvid {
                serial: svid.facts.serial.clone(),
                id: svid.facts.id.clone(),
                key: svid.facts.key_id,
                authority: svid.authority,
                agent,
                node: self.clusters[at.cluster].nodes[at.index].name.clone(),
                issued: Some(clock),
                not_after: svid.facts.not_after,
                downstream: false,
            }),
            granted: revision,
            handed_out: false,
        };
        let purpose = Purpose::Issued { stream, svid: Box::new(svid) };
        self.propose(at, String::new(), Command::Issued { records: vec![record] }, purpose);
    }

    /// The record is in the log: unless it was refused there, the SVID is handed out.
    pub(super) fn recorded(&mut self, at: At, stream: u64, svid: Box<WorldSvid>, outcome: &Outcome) {
        if let Ok(Answer::Issued { refused }) = &outcome.result
            && !refused.contains(&svid.facts.serial)
        {
            self.tell(at, stream, Frame::Svid(svid));
        }
    }
}

/// Whether the agent of that name has been banned, or evicted and has not come back.
fn is_put_out(state: &State, agent: &NodeName) -> bool {
    state.private.agents.contains_key(agent) && state.agent_refused(agent).is_some()
}

/// What a node vouches for and has had no stream of for too long, as `control/io/watch` looks after it.
fn returned_by_nobody(running: &mut Running, own: &NodeName, now: u64) -> Vec<(NodeName, Session)> {
    if running.leader.is_none() {
        running.alone.clear();
        return Vec::new();
    }
    let held = |name: &NodeName| running.watchers.values().any(|w| w.name == *name);
    let mut alone = vouched(running, |session| session.node == *own);
    alone.retain(|(name, _)| !held(name));
    let before = std::mem::take(&mut running.alone);
    for (name, session) in alone {
        let known = before.get(&name).filter(|(known, _)| *known == session);
        let since = known.map_or(now, |(_, since)| *since);
        running.alone.insert(name, (session, since));
    }
    let over = running.alone.extract_if(.., |_, (_, since)| now >= *since + RETURN_MS);
    over.map(|(name, (session, _))| (name, session)).collect()
}

fn vouched(running: &Running, by: impl Fn(&Session) -> bool) -> Vec<(NodeName, Session)> {
    let view = &running.state.view;
    let endpoints = view.endpoints.values().map(|e| (&e.id, &e.session));
    let gateways = view.gateways.values().map(|g| (&g.name, &g.session));
    let by = endpoints.chain(gateways).filter(|(_, session)| by(session));
    by.map(|(name, session)| (name.clone(), session.clone())).collect()
}
