//! Joins between clusters: the operator's token, the joiner's machine on one of its nodes, the inviter's answers.
//!
//! A crash of the joiner's node loses the machine; the operator then starts over with the same token, until there is
//! an answer that leaves nothing open. As `control/io/joiner` and `peer_serve` do it.

use std::time::Duration;

use hanse_control::command::{Command, Outcome};
use hanse_control::state::State;
use hanse_federation::join::{
    Check, JoinReply, JoinRequest, Joiner, JoinerInput, JoinerOutput, Offer, Phase, invited,
};
use hanse_federation::session;
use hanse_identity::token::{Admits, Invite};

use super::network::Party;
use super::packet::Packet;
use super::propose::{Purpose, ReadPurpose};
use super::{At, Event, World};

/// How often the operator looks how it goes.
const STEP_MS: u64 = 300;
/// How long the other side may take over one phase.
const PHASE_TIMEOUT_MS: u64 = 3000;
const VERSION: &str = "0.1.0";

/// A join, as the operator sees it.
#[derive(Debug)]
pub struct JoinTask {
    pub inviter: usize,
    pub joiner: usize,
    pub invite: String,
    /// What has been printed, by the last run.
    pub lines: Vec<Check>,
    pub end: Option<Ended>,
    /// Every word of the token's making has been acknowledged.
    invited: bool,
    order: Option<u64>,
    run: Option<Run>,
    pub runs: u32,
    /// Rather not started again after its node has crashed.
    pub give_up: bool,
}

/// How a join ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Joined,
    AsBefore,
}

/// The joiner's machine on one of its nodes.
#[derive(Debug)]
struct Run {
    id: u64,
    at: At,
    life: u64,
    machine: Option<Joiner>,
    offer: Option<Offer>,
    peer: Party,
    /// The question that is out, and until when.
    asked: Option<(u64, u64)>,
}

/// A request to the inviter that waits for its linearizable read.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    from: Party,
    question: u64,
    request: JoinRequest,
}

impl World {
    /// The operator makes a token on `inviter` and uses it on `joiner`. Index of the task.
    pub fn join(&mut self, inviter: usize, joiner: usize) -> usize {
        let task = self.joins.len();
        let invite = format!("i-{}", task + 1);
        self.joins.push(JoinTask {
            inviter,
            joiner,
            invite,
            lines: Vec::new(),
            end: None,
            invited: false,
            order: None,
            run: None,
            runs: 0,
            give_up: false,
        });
        self.after(1, Event::Join { task });
        task
    }

    /// Starts a join over with the same token, if it has not ended.
    pub fn join_again(&mut self, task: usize) {
        self.joins[task].give_up = false;
        if self.joins[task].end.is_none() && self.joins[task].run.is_none() {
            self.after(1, Event::Join { task });
        }
    }

    pub(super) fn join_step(&mut self, task: usize) {
        if self.joins[task].end.is_some() {
            return;
        }
        self.after(STEP_MS, Event::Join { task });
        if !self.joins[task].invited {
            return self.make_token(task);
        }
        let now = self.now;
        let Some(run) = &self.joins[task].run else {
            return if self.joins[task].give_up {
            } else {
                self.start_run(task)
            };
        };
        let (at, life, id) = (run.at, run.life, run.id);
        if self.running_in(at, life).is_none() || self.is_revoked(at) {
            self.joins[task].run = None;
        } else if run_is_late(&self.joins[task], now) {
            self.join_input(task, id, JoinerInput::Replied(Err("no answer in time".into())));
        }
    }

    fn make_token(&mut self, task: usize) {
        let JoinTask { inviter, joiner, ref invite, order, .. } = self.joins[task];
        let done = order.and_then(|o| self.operations[&o].end.clone());
        match done {
            Some(Ok(outcome)) if outcome.result.is_ok() => self.joins[task].invited = true,
            None if order.is_some() => {}
            _ => {
                // The same on every attempt: one that got no answer may have been done.
                let expires = super::EPOCH + Duration::from_secs(86_400);
                let invite = Invite {
                    id: invite.clone(),
                    admits: Admits::Cluster(self.clusters[joiner].name.clone()),
                    public_key: "one-time key".to_owned(),
                    made: super::EPOCH,
                    expires,
                    used_by: None,
                };
                self.joins[task].order = Some(self.order(inviter, "", Command::InviteCreate { invite }));
            }
        }
    }

    fn start_run(&mut self, task: usize) {
        let JoinTask { inviter, joiner, .. } = self.joins[task];
        let Some(at) = self.some_node(joiner) else { return };
        let Some(peer) = self.some_node(inviter) else { return };
        let (id, life) = (self.id(), self.life(at));
        let until = self.now + PHASE_TIMEOUT_MS;
        let asked = Some((0, until));
        self.joins[task].run =
            Some(Run { id, at, life, machine: None, offer: None, peer: peer.party(), asked });
        self.joins[task].runs += 1;
        self.joins[task].lines.clear();
        self.ask_read(at, ReadPurpose::JoinStart { task, run: id });
    }

    pub(super) fn join_begin(&mut self, at: At, task: usize, run: u64) {
        let Some(state) = self.state_of(at).cloned() else { return };
        let now = self.clock_of(at);
        let offer = self.offer(at, &state);
        let invite = self.joins[task].invite.clone();
        let Some(current) = self.joins[task].run.as_mut().filter(|r| r.id == run && r.machine.is_none())
        else {
            return;
        };
        current.machine = Some(Joiner::new(&state.view, &invite, now, VERSION));
        current.offer = Some(offer);
        current.asked = None;
        self.join_input(task, run, JoinerInput::Start);
    }

    fn offer(&self, at: At, state: &State) -> Offer {
        let view = &state.view;
        Offer {
            cluster: view.cluster.clone(),
            trust_domain: view.trust_domain.clone(),
            bundle: view.bundles[&view.trust_domain].clone(),
            endpoints: state.private.nodes.values().map(|n| n.peer_address.clone()).collect(),
            gateways: session::gateways(view),
            clock: self.clock_of(at),
            version: VERSION.to_owned(),
        }
    }

    fn join_input(&mut self, task: usize, run: u64, input: JoinerInput) {
        let Some(current) = self.joins[task].run.as_mut().filter(|r| r.id == run) else { return };
        current.asked = None;
        let at = current.at;
        let Some(mut machine) = current.machine.take() else {
            // Its read was not answered: from the start.
            self.joins[task].run = None;
            return;
        };
        let now = self.clock_of(at);
        let outputs = machine.handle(now, input);
        if let Some(current) = self.joins[task].run.as_mut() {
            current.machine = Some(machine);
        }
        for output in outputs {
            self.perform_join(task, run, at, output);
        }
    }

    fn perform_join(&mut self, task: usize, run: u64, at: At, output: JoinerOutput) {
        match output {
            JoinerOutput::Line(check) => {
                self.note(&[50, u64::from(check.ok)], || {
                    format!("join {}: {} {}", task, check.name, check.detail)
                });
                self.joins[task].lines.push(check);
            }
            JoinerOutput::Send(phase) => {
                let question = self.id();
                let until = self.now + PHASE_TIMEOUT_MS;
                let invite = self.joins[task].invite.clone();
                let Some(current) = &mut self.joins[task].run else { return };
                current.asked = Some((question, until));
                let (to, Some(offer)) = (current.peer, current.offer.clone()) else { return };
                self.send(at.party(), to, Packet::Join { question, invite, phase, offer: Box::new(offer) });
            }
            JoinerOutput::Probe(gateways) => {
                let inviter = self.joins[task].inviter;
                let probed = gateways.iter().map(|g| {
                    let result = match self.reaches_gateway(at.party(), inviter, g.name.as_str()) {
                        true => Ok(Duration::from_millis(2)),
                        false => Err("no answer".to_owned()),
                    };
                    (g.name.to_string(), result)
                });
                let probed = probed.collect();
                self.join_input(task, run, JoinerInput::Probed(probed));
            }
            JoinerOutput::Commit(offer) => {
                let command = Command::PeerAdd { invite: self.joins[task].invite.clone(), offer };
                self.propose(at, String::new(), command, Purpose::JoinAdd { task, run });
            }
            JoinerOutput::Done { joined } => self.join_done(task, joined),
        }
    }

    fn join_done(&mut self, task: usize, joined: bool) {
        let join = &mut self.joins[task];
        join.run = None;
        // Where the other side could not be told, the operator is asked to join again with the same token.
        let clear = join.lines.last().is_none_or(|l| !l.detail.contains("could not be told"));
        join.end = match (joined, clear) {
            (true, _) => Some(Ended::Joined),
            (false, true) => Some(Ended::AsBefore),
            (false, false) => None,
        };
        let end = join.end;
        self.note(&[51, u64::from(joined)], || format!("join {task} ends: {end:?}"));
    }

    fn reaches_gateway(&self, from: Party, cluster: usize, name: &str) -> bool {
        let index = self.clusters[cluster].proxies.iter().position(|p| p.name.as_str() == name);
        index.is_some_and(|index| {
            let gateway = Party::Proxy(cluster, index);
            self.clusters[cluster].proxies[index].is_up()
                && self.network.passes(from, gateway)
                && self.network.passes(gateway, from)
        })
    }

    /// The inviter's side: first a read of what the cluster has agreed on.
    pub(super) fn join_question(
        &mut self,
        at: At,
        from: Party,
        question: u64,
        invite: String,
        phase: Phase,
        offer: Offer,
    ) {
        let request = JoinRequest { invite, phase, offer, proof: Vec::new() };
        self.ask_read(at, ReadPurpose::JoinAsked(Box::new(Question { from, question, request })));
    }

    pub(super) fn join_answer(&mut self, at: At, asked: Question) {
        let Some(state) = self.state_of(at).cloned() else { return };
        let Question { from, question, request } = asked;
        let now = self.clock_of(at);
        let view = &state.view;
        let known = state.private.invites.get(&request.invite);
        if known.is_none_or(|i| i.admits != Admits::Cluster(request.offer.cluster.clone())) {
            let reply = Err("the join token is not known here".to_owned());
            return self.send(at.party(), from, Packet::JoinAnswer { question, reply });
        }
        let peer = view.peers.get(&request.offer.cluster);
        let made = peer.is_some_and(|p| p.record.invite == request.invite);
        let committed = made.then_some(view.revision.0);
        let reach_back = match request.phase {
            Phase::Preflight => self.reach_back(at, &request.offer),
            _ => Vec::new(),
        };
        let checks = invited(view, &request, &reach_back, now, VERSION);
        let good = checks.iter().all(|c| c.ok);
        match request.phase {
            Phase::Commit if good && !made => {
                let command = Command::PeerAccept {
                    invite: request.invite.clone(),
                    request_hash: request.offer.trust_domain.to_string(),
                    offer: Box::new(request.offer),
                };
                return self.propose(at, String::new(), command, Purpose::JoinAccept { to: from, question });
            }
            Phase::Abort => {
                let (cluster, only_invite) = (request.offer.cluster, Some(request.invite));
                let command = Command::PeerRemove { cluster, only_invite };
                return self.propose(at, String::new(), command, Purpose::JoinAbort { to: from, question });
            }
            Phase::Commit | Phase::Preflight => {}
        }
        let offer = good.then(|| self.offer(at, &state));
        let reply = Ok(JoinReply { checks, offer, committed });
        self.send(at.party(), from, Packet::JoinAnswer { question, reply });
    }

    fn reach_back(&self, at: At, offer: &Offer) -> Vec<Check> {
        let Some(cluster) = self.cluster_named(offer.cluster.as_str()) else { return Vec::new() };
        let answers =
            offer.gateways.iter().any(|g| self.reaches_gateway(at.party(), cluster, g.name.as_str()));
        let detail = if answers { "a gateway answers" } else { "no gateway answers" };
        vec![if answers { Check::passed("reachBack", detail) } else { Check::failed("reachBack", detail) }]
    }

    pub(super) fn join_accepted(&mut self, at: At, to: Party, question: u64, outcome: Outcome) {
        let Some(state) = self.state_of(at).cloned() else { return };
        let reply = match outcome.result {
            Ok(_) => {
                let offer = Some(self.offer(at, &state));
                JoinReply { checks: Vec::new(), offer, committed: Some(outcome.revision) }
            }
            Err(refusal) => {
                let checks = vec![Check::failed("agree", refusal.to_string())];
                JoinReply { checks, offer: None, committed: None }
            }
        };
        self.send(at.party(), to, Packet::JoinAnswer { question, reply: Ok(reply) });
    }

    pub(super) fn join_aborted(&mut self, at: At, to: Party, question: u64) {
        let checks = vec![Check::passed("agree", "undone")];
        let reply = Ok(JoinReply { checks, offer: None, committed: None });
        self.send(at.party(), to, Packet::JoinAnswer { question, reply });
    }

    pub(super) fn join_answered(&mut self, at: At, question: u64, reply: Result<JoinReply, String>) {
        let asks = |run: &Run| run.at == at && run.asked.is_some_and(|(asked, _)| asked == question);
        let found = self
            .joins
            .iter()
            .enumerate()
            .find_map(|(task, join)| join.run.as_ref().filter(|r| asks(r)).map(|run| (task, run.id)));
        if let Some((task, run)) = found {
            self.join_input(task, run, JoinerInput::Replied(reply.map(Box::new)));
        }
    }

    pub(super) fn join_added(&mut self, _at: At, task: usize, run: u64, outcome: Outcome) {
        let result = outcome.result.map(|_| outcome.revision).map_err(|refusal| refusal.to_string());
        self.join_input(task, run, JoinerInput::Committed(result));
    }
}

fn run_is_late(join: &JoinTask, now: u64) -> bool {
    join.run.as_ref().and_then(|r| r.asked).is_some_and(|(_, until)| now > until)
}
