//! Writes and linearizable reads: a proposal is tried again under its own id until there is an outcome, on whichever
//! node leads, as `control/io/driver::Handle` does it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hanse_control::command::{Command, Outcome, Proposal};
use hanse_control::node::Input;

use super::authorities::WorldSvid;
use super::network::Party;
use super::packet::Packet;
use super::{At, Bug, Operation, Reading, World};
use hanse_identity::ClusterName;

/// An attempt that has had no answer for so long is made again.
const ATTEMPT_MS: u64 = 1000;
/// An operator's request is given up after that.
const OPERATOR_DEADLINE_MS: u64 = 5000;
/// How long a node that has forwarded a write waits until it has applied it, too.
const OWN_COPY_MS: u64 = 1000;

/// A write that has no outcome yet, on the node that took it.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(super) proposal: Arc<Proposal>,
    pub(super) purpose: Purpose,
    /// When the last attempt began; `None`: to be made at the next opportunity.
    tried: Option<u64>,
    began: u64,
    /// A new leader is asked at once.
    asked: Option<u64>,
}

/// What for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Operator(u64),
    /// The mesh's own, nobody waits for it.
    Mesh,
    /// The record of an SVID: a subscriber waits for it.
    Issued {
        stream: u64,
        svid: Box<WorldSvid>,
    },
    PeerFacts(ClusterName),
    JoinAdd {
        task: usize,
        run: u64,
    },
    JoinAccept {
        to: Party,
        question: u64,
    },
    JoinAbort {
        to: Party,
        question: u64,
    },
}

/// Who waits for a read.
#[derive(Clone, Debug)]
pub(crate) enum ReadPurpose {
    Operator(u64),
    JoinStart { task: usize, run: u64 },
    ServePeer { from: Party, stream: u64, cluster: ClusterName, resumed: u64 },
    JoinAsked(Box<super::join::Question>),
    Authorities,
}

impl World {
    /// An operator asks some node of the cluster for a write. The id of the operation.
    pub fn order(&mut self, cluster: usize, actor: &str, command: Command) -> u64 {
        let operation = self.id();
        let began = self.now;
        let taken = self.some_node(cluster);
        let end = if taken.is_none() { Some(Err("no node answers")) } else { None };
        self.operations.insert(operation, Operation { cluster, command: command.clone(), began, end });
        if let Some(at) = taken {
            self.propose(at, actor.to_owned(), command, Purpose::Operator(operation));
        }
        operation
    }

    /// An operator asks some node for a linearizable read.
    pub fn read(&mut self, cluster: usize) -> Option<u64> {
        let at = self.some_node(cluster)?;
        let id = self.id();
        let floor = self.ledger.floor(cluster);
        self.readings.insert(id, Reading { cluster, floor, end: None });
        if self.bug == Some(Bug::StaleReads) {
            self.read_answered(at, id);
        } else {
            self.ask_read(at, ReadPurpose::Operator(id));
        }
        Some(id)
    }

    pub(super) fn some_node(&mut self, cluster: usize) -> Option<At> {
        // One that is revoked sends whoever asks elsewhere.
        let asked = |index: &usize| {
            let at = At { cluster, index: *index };
            self.clusters[cluster].nodes[*index].running.is_some() && !self.is_revoked(at)
        };
        let up: Vec<usize> = (0..self.clusters[cluster].nodes.len()).filter(asked).collect();
        self.random.pick(&up).map(|index| At { cluster, index })
    }

    pub(super) fn ask_read(&mut self, at: At, purpose: ReadPurpose) {
        let id = self.id();
        let life = self.life(at);
        if let Some(running) = self.running(at) {
            running.reads.insert(id, purpose);
        }
        self.node_input(at, life, Input::Read { id });
    }

    pub(super) fn read_ready(&mut self, at: At, id: u64) {
        let Some(purpose) = self.running(at).and_then(|r| r.reads.remove(&id)) else { return };
        match purpose {
            ReadPurpose::Operator(reading) => self.read_answered(at, reading),
            ReadPurpose::JoinStart { task, run } => self.join_begin(at, task, run),
            ReadPurpose::ServePeer { from, stream, cluster, resumed } => {
                self.serve_peer(at, from, stream, cluster, resumed);
            }
            ReadPurpose::JoinAsked(question) => self.join_answer(at, *question),
            ReadPurpose::Authorities => self.authorities_decided(at),
        }
    }

    fn read_answered(&mut self, at: At, id: u64) {
        let Some(revision) = self.state_of(at).map(|s| s.view.revision.0) else { return };
        let Some(reading) = self.readings.get_mut(&id) else { return };
        reading.end = Some(revision);
        let (cluster, floor) = (reading.cluster, reading.floor);
        self.note(&[30, at.party().number(), revision], || {
            format!("{:?} answers a read at {revision}", at.party())
        });
        self.ledger.read(self.now, cluster, floor, revision);
    }

    pub(super) fn propose(&mut self, at: At, actor: String, command: Command, purpose: Purpose) {
        let id = self.random.draw();
        let now = self.agreed(at);
        let proposal = Arc::new(Proposal { id, now, actor, certificate: None, command });
        let true_time = self.clock();
        self.ledger.proposed(self.now, true_time, at, &proposal);
        self.note(&[31, at.party().number(), id], || {
            format!("{:?} takes proposal {id:x} {:?}", at.party(), proposal.command)
        });
        let began = self.now;
        let Some(running) = self.running(at) else { return };
        running.pending.insert(id, Pending { proposal, purpose, tried: None, began, asked: None });
        self.attempt(at, id);
    }

    fn attempt(&mut self, at: At, mut id: u64) {
        let (now, life) = (self.now, self.life(at));
        if self.bug == Some(Bug::FreshProposalIds) {
            id = self.renew(at, id);
        }
        let Some(running) = self.running(at) else { return };
        let (leads, leader) = (running.leads, running.leader);
        let Some(pending) = running.pending.get_mut(&id) else { return };
        (pending.tried, pending.asked) = (Some(now), leader);
        let proposal = pending.proposal.clone();
        match leader {
            _ if leads => self.node_input(at, life, Input::Propose(proposal)),
            Some(leader) if leader != at.index as u64 + 1 => {
                let to = Party::Node(at.cluster, leader as usize - 1);
                self.send(at.party(), to, Packet::Forward { proposal });
            }
            _ => pending.tried = None,
        }
    }

    /// The bug: what was tried before is tried under another id.
    fn renew(&mut self, at: At, id: u64) -> u64 {
        let fresh = self.random.draw();
        let Some(running) = self.running(at) else { return id };
        if running.pending.get(&id).is_none_or(|p| p.tried.is_none()) {
            return id;
        }
        let Some(mut pending) = running.pending.remove(&id) else { return id };
        pending.proposal = Arc::new(Proposal { id: fresh, ..(*pending.proposal).clone() });
        running.pending.insert(fresh, pending);
        self.ledger.renamed(at.cluster, id, fresh);
        fresh
    }

    pub(super) fn retry_proposals(&mut self, at: At) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        let leader = running.leader;
        let answered: Vec<u64> = running.answered.iter().map(|(id, ..)| *id).collect();
        let due = |p: &Pending| match p.tried {
            None => leader.is_some(),
            Some(tried) => now >= tried + ATTEMPT_MS || (leader.is_some() && leader != p.asked),
        };
        let due = running.pending.iter().filter(|(id, p)| due(p) && !answered.contains(id));
        let due: Vec<u64> = due.map(|(id, _)| *id).collect();
        let given_up = running.pending.extract_if(.., |id, p| {
            !answered.contains(id)
                && matches!(p.purpose, Purpose::Operator(_))
                && now >= p.began + OPERATOR_DEADLINE_MS
        });
        let given_up: Vec<Purpose> = given_up.map(|(_, p)| p.purpose).collect();
        for purpose in given_up {
            self.unknown(&purpose, "no outcome in time");
        }
        for id in due {
            self.attempt(at, id);
        }
    }

    fn unknown(&mut self, purpose: &Purpose, why: &'static str) {
        if let Purpose::Operator(operation) = purpose
            && let Some(operation) = self.operations.get_mut(operation)
        {
            operation.end.get_or_insert(Err(why));
        }
    }

    /// A node that is revoked decides nothing any more: nobody waits there.
    pub(super) fn give_up_all(&mut self, at: At) {
        let Some(running) = self.running(at) else { return };
        let answered: Vec<u64> = running.answered.iter().map(|(id, ..)| *id).collect();
        let given_up = running.pending.extract_if(.., |id, _| !answered.contains(id));
        let given_up: Vec<Purpose> = given_up.map(|(_, p)| p.purpose).collect();
        running.reads.clear();
        given_up.iter().for_each(|purpose| self.unknown(purpose, "the node is revoked"));
    }

    /// A node has crashed: who waited there will never know.
    pub(super) fn lost_with(&mut self, pending: &BTreeMap<u64, Pending>) {
        for one in pending.values() {
            self.unknown(&one.purpose, "the node crashed");
        }
    }

    pub(super) fn forwarded_here(&mut self, at: At, from: Party, proposal: Arc<Proposal>) {
        let life = self.life(at);
        let Some(running) = self.running(at) else { return };
        if !running.leads {
            let refusal = Packet::Forwarded { id: proposal.id, outcome: None };
            return self.send(at.party(), from, refusal);
        }
        running.forwarded.insert(proposal.id, from);
        self.node_input(at, life, Input::Propose(proposal));
    }

    pub(super) fn forward_answered(&mut self, at: At, id: u64, outcome: Option<Outcome>) {
        match outcome {
            Some(outcome) => {
                self.answered_proposal(at, id, outcome);
                self.finish_answered(at);
            }
            None => self.try_later(at, id),
        }
    }

    pub(super) fn refused_proposal(&mut self, at: At, id: u64) {
        if let Some(from) = self.running(at).and_then(|r| r.forwarded.remove(&id)) {
            self.send(at.party(), from, Packet::Forwarded { id, outcome: None });
        }
        self.try_later(at, id);
    }

    fn try_later(&mut self, at: At, id: u64) {
        if let Some(pending) = self.running(at).and_then(|r| r.pending.get_mut(&id)) {
            pending.tried = None;
        }
    }

    pub(super) fn applied_proposal(&mut self, at: At, id: u64, outcome: Outcome) {
        self.note(&[32, at.party().number(), id, outcome.revision], || {
            format!("{:?} applied proposal {id:x} at {}: {:?}", at.party(), outcome.revision, outcome.result)
        });
        self.ledger.applied(self.now, at, id, &outcome);
        if let Some(from) = self.running(at).and_then(|r| r.forwarded.remove(&id)) {
            self.send(at.party(), from, Packet::Forwarded { id, outcome: Some(outcome.clone()) });
        }
        self.answered_proposal(at, id, outcome);
    }

    fn answered_proposal(&mut self, at: At, id: u64, outcome: Outcome) {
        let until = self.now + OWN_COPY_MS;
        if let Some(running) = self.running(at).filter(|r| r.pending.contains_key(&id)) {
            running.answered.push((id, outcome, until));
        }
    }

    /// Whoever gets an outcome finds it in the State of the node that he asked, unless that lags too far.
    pub(super) fn finish_answered(&mut self, at: At) {
        let now = self.now;
        let Some(running) = self.running(at) else { return };
        let revision = running.state.view.revision.0;
        let ready = running.answered.extract_if(.., |(_, o, until)| o.revision <= revision || *until <= now);
        let ready: Vec<_> = ready.collect();
        for (id, outcome, _) in ready {
            self.finish(at, id, outcome);
        }
    }

    fn finish(&mut self, at: At, id: u64, outcome: Outcome) {
        let Some(pending) = self.running(at).and_then(|r| r.pending.remove(&id)) else { return };
        match pending.purpose {
            Purpose::Operator(operation) => {
                self.ledger.acknowledged(at.cluster, id, &outcome);
                if let Some(operation) = self.operations.get_mut(&operation) {
                    operation.end = Some(Ok(outcome));
                }
            }
            Purpose::Mesh => {}
            Purpose::Issued { stream, svid } => self.recorded(at, stream, svid, &outcome),
            Purpose::PeerFacts(cluster) => self.facts_committed(at, &cluster, &outcome),
            Purpose::JoinAdd { task, run } => self.join_added(at, task, run, outcome),
            Purpose::JoinAccept { to, question } => self.join_accepted(at, to, question, outcome),
            Purpose::JoinAbort { to, question } => self.join_aborted(at, to, question),
        }
    }
}
