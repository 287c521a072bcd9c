//! The joiner's machine: preflight, probes, the other side's commit, our own commit; or back to where it was.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_identity::Timestamp;

use super::check::check_offer;
use super::{Check, JoinReply, Offer, Phase};
use crate::catalog::GatewaySummary;
use crate::view::View;

/// How often a commit or an abort is sent before the other side counts as silent.
const MAX_SENT: u32 = 3;

/// The joiner's machine. The shell performs Outputs and feeds back Inputs; no step is done twice.
#[derive(Debug)]
pub struct Joiner {
    /// Ours, as it was at the start.
    view: View,
    invite: String,
    our_version: String,
    state: State,
    /// The other side has answered, and may hold a peer by this invite that we do not have.
    may_be_committed: bool,
}

#[derive(Debug)]
enum State {
    New,
    /// Preflight has been sent.
    Checking,
    Probing(Box<Offer>),
    /// Commit has been sent that many times.
    Agreeing {
        offer: Box<Offer>,
        sent: u32,
    },
    /// Committed over there, at that revision of its log; now here.
    Committing {
        offer: Box<Offer>,
        theirs: u64,
    },
    /// Abort has been sent that many times.
    Undoing {
        sent: u32,
    },
    Ended,
}

/// What happened, told to the joiner.
#[derive(Clone, Debug)]
pub enum JoinerInput {
    Start,
    /// The inviter's reply to the phase that was sent last, or why there was none.
    Replied(Result<Box<JoinReply>, String>),
    /// Our own dials to the inviter's gateways: (gateway, round trip or why not).
    Probed(Vec<(String, Result<Duration, String>)>),
    /// Our own commit of the peer. `Err` only if it is certain that it is not, and will not be, in our log.
    Committed(Result<u64, String>),
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum JoinerOutput {
    /// Show the user a line.
    Line(Check),
    /// Send our offer in this phase.
    Send(Phase),
    /// Dial these gateways of the other side (mutual TLS where a bundle is known, else pinned by the offer).
    Probe(Vec<GatewaySummary>),
    /// Commit the peer and its bundle to our own log.
    Commit(Box<Offer>),
    /// The end: joined, or everything as before.
    Done { joined: bool },
}

use JoinerOutput::{Commit, Done, Line, Probe, Send};

impl Joiner {
    /// `now` is when the join begins: nothing is measured from it yet.
    pub fn new(view: &View, invite: &str, now: Timestamp, our_version: &str) -> Self {
        let _ = now;
        Self {
            view: view.clone(),
            invite: invite.to_owned(),
            our_version: our_version.to_owned(),
            state: State::New,
            may_be_committed: false,
        }
    }

    /// An input that does not belong to the step under way (a duplicate, or late) is passed over.
    pub fn handle(&mut self, now: Timestamp, input: JoinerInput) -> Vec<JoinerOutput> {
        match (std::mem::replace(&mut self.state, State::Ended), input) {
            (State::New, JoinerInput::Start) => {
                self.state = State::Checking;
                vec![Send(Phase::Preflight)]
            }
            (State::Checking, JoinerInput::Replied(Ok(reply))) => self.checked(now, *reply),
            (State::Checking, JoinerInput::Replied(Err(why))) => {
                // An earlier join with this invite may have broken off between the two commits: without an answer
                // nobody knows, and it must not be said that all is as before.
                let detail = "nothing was done now; whether an earlier join with this token has left something on the \
                              other side could not be told: join again with the same token";
                let lines =
                    [Check::failed("reach", format!("no answer: {why}")), Check::failed("agree", detail)];
                lines.into_iter().map(Line).chain([Done { joined: false }]).collect()
            }
            (State::Probing(offer), JoinerInput::Probed(results)) => self.probed(offer, &results),
            (State::Agreeing { offer, sent }, JoinerInput::Replied(reply)) => {
                self.agreed(now, offer, sent, reply.map(|reply| *reply))
            }
            (State::Committing { offer, theirs }, JoinerInput::Committed(Ok(ours))) => {
                let (them, us) = (&offer.cluster, &self.view.cluster);
                let agree = format!("committed at {them} #{theirs} and {us} #{ours}");
                vec![Line(Check::passed("agree", agree)), Done { joined: true }]
            }
            (State::Committing { .. }, JoinerInput::Committed(Err(why))) => {
                let detail = format!("{} could not commit: {why}", self.view.cluster);
                self.give_up(vec![Line(Check::failed("agree", detail))])
            }
            (State::Undoing { sent }, JoinerInput::Replied(reply)) => {
                self.undone(sent, reply.map(|reply| *reply))
            }
            (state, _) => {
                self.state = state;
                Vec::new()
            }
        }
    }

    /// The reply to preflight.
    fn checked(&mut self, now: Timestamp, reply: JoinReply) -> Vec<JoinerOutput> {
        let JoinReply { checks: theirs, offer, .. } = reply;
        let mut checks = match &offer {
            Some(offer) => check_offer(&self.view, offer, &self.invite, now, &self.our_version),
            None => Vec::new(),
        };
        // An earlier join by this invite may have broken off between the two commits. Where we hold the peer
        // already there is nothing to undo: the other side was the first to commit.
        self.may_be_committed = !self.view.peers.values().any(|peer| peer.record.invite == self.invite);
        let other = offer.as_ref().map_or_else(|| "the other side".to_owned(), |o| o.cluster.to_string());
        merge(&mut checks, theirs, &other);
        if offer.is_none() && checks.iter().all(|check| check.ok) {
            checks.push(Check::failed("token", format!("{other} refused without saying why")));
        }
        let good = checks.iter().all(|check| check.ok);
        // That the root is the pinned one was seen, and shown, when the shell dialled.
        let shown = |check: &Check| !check.ok || check.name != "pin";
        let mut outputs: Vec<_> = checks.into_iter().filter(shown).map(Line).collect();
        match offer.filter(|_| good) {
            Some(offer) => {
                outputs.push(Probe(offer.gateways.clone()));
                self.state = State::Probing(Box::new(offer));
                outputs
            }
            None => self.give_up(outputs),
        }
    }

    fn probed(
        &mut self,
        offer: Box<Offer>,
        results: &[(String, Result<Duration, String>)],
    ) -> Vec<JoinerOutput> {
        let shown: Vec<String> = results
            .iter()
            .map(|(gateway, result)| match result {
                Ok(trip) => {
                    format!("{gateway} {}.{} ms", trip.as_millis(), trip.subsec_micros() % 1000 / 100)
                }
                Err(why) => format!("{gateway} did not answer: {why}"),
            })
            .collect();
        let path = format!("{}→{}", self.view.cluster, offer.cluster);
        if results.iter().any(|(_, result)| result.is_ok()) {
            self.state = State::Agreeing { offer, sent: 1 };
            return vec![
                Line(Check::passed("gateways", format!("{path} {}", shown.join(", ")))),
                Send(Phase::Commit),
            ];
        }
        let found = if shown.is_empty() { "nothing was dialled".to_owned() } else { shown.join(", ") };
        let detail = format!("{path} {found}; open the way to a gateway of {}", offer.cluster);
        self.give_up(vec![Line(Check::failed("gateways", detail))])
    }

    /// The reply to Commit: yes, no, or silence, after which the same is asked again.
    fn agreed(
        &mut self,
        now: Timestamp,
        offer: Box<Offer>,
        sent: u32,
        reply: Result<JoinReply, String>,
    ) -> Vec<JoinerOutput> {
        match reply {
            Ok(JoinReply { committed: Some(theirs), offer: newer, .. }) => {
                let offer = self.newest(now, offer, newer);
                self.state = State::Committing { offer: offer.clone(), theirs };
                vec![Commit(offer)]
            }
            Ok(JoinReply { checks, .. }) => {
                let mut lines = Vec::new();
                merge(
                    &mut lines,
                    checks.into_iter().filter(|check| !check.ok).collect(),
                    offer.cluster.as_str(),
                );
                if lines.is_empty() {
                    lines.push(Check::failed("agree", format!("{} did not commit", offer.cluster)));
                }
                self.give_up(lines.into_iter().map(Line).collect())
            }
            Err(_) if sent < MAX_SENT => {
                self.state = State::Agreeing { offer, sent: sent + 1 };
                vec![Send(Phase::Commit)]
            }
            Err(why) => {
                let detail = format!("{} did not answer {MAX_SENT} times: {why}", offer.cluster);
                self.give_up(vec![Line(Check::failed("agree", detail))])
            }
        }
    }

    /// What was offered with the commit may be fresher (a rotated bundle), if it is as good as that of the preflight.
    fn newest(&self, now: Timestamp, checked: Box<Offer>, newer: Option<Offer>) -> Box<Offer> {
        let same =
            |offer: &Offer| offer.cluster == checked.cluster && offer.trust_domain == checked.trust_domain;
        let good = |offer: &Offer| {
            check_offer(&self.view, offer, &self.invite, now, &self.our_version).iter().all(|check| check.ok)
                && offer.bundle.sequence >= checked.bundle.sequence
        };
        newer.filter(|offer| same(offer) && good(offer)).map_or(checked, Box::new)
    }

    fn undone(&mut self, sent: u32, reply: Result<JoinReply, String>) -> Vec<JoinerOutput> {
        match reply {
            Ok(_) => vec![Line(as_before()), Done { joined: false }],
            Err(_) if sent < MAX_SENT => {
                self.state = State::Undoing { sent: sent + 1 };
                vec![Send(Phase::Abort)]
            }
            Err(why) => {
                let us = &self.view.cluster;
                let detail = format!(
                    "nothing is left here, but the other side could not be told to undo: {why}; join again with the same \
                     token, or there: hanse cluster leave {us}"
                );
                vec![Line(Check::failed("agree", detail)), Done { joined: false }]
            }
        }
    }

    /// The end without a join; first the other side is told to undo, if there may be anything to undo.
    fn give_up(&mut self, mut outputs: Vec<JoinerOutput>) -> Vec<JoinerOutput> {
        if self.may_be_committed {
            self.state = State::Undoing { sent: 1 };
            outputs.push(Send(Phase::Abort));
        } else {
            self.state = State::Ended;
            outputs.extend([Line(as_before()), Done { joined: false }]);
        }
        outputs
    }
}

fn as_before() -> Check {
    Check::failed("agree", "not joined: both clusters are as they were before")
}

/// Adds what the other side found: what fails always, what is good only where we have not said it ourselves.
fn merge(ours: &mut Vec<Check>, theirs: Vec<Check>, other: &str) {
    let said: BTreeSet<String> = ours.iter().map(|check| check.name.clone()).collect();
    for check in theirs {
        if !check.ok {
            ours.push(Check { detail: format!("{other} says: {}", check.detail), ..check });
        } else if !said.contains(&check.name) {
            ours.push(check);
        }
    }
}
