//! What travels: Raft messages, forwarded proposals, streams (watch and peer session) and questions with an answer.
//!
//! A stream is ordered, as TCP is: what is lost on it breaks it.

use std::sync::Arc;

use hanse_control::command::{Outcome, Proposal};
use hanse_control::node::Applied;
use hanse_federation::View;
use hanse_federation::catalog::Announcement;
use hanse_federation::join::{JoinReply, Offer, Phase};
use hanse_federation::session::{Down, Up};
use hanse_identity::{ClusterName, NodeName, ServiceName, SpiffeId};

use super::authorities::WorldSvid;
use super::network::Party;
use super::rotation::InForce;
use super::traffic::Answer;
use super::{At, Event, World};

#[derive(Clone, Debug)]
pub(crate) enum Packet {
    Raft {
        life: u64,
        bytes: Vec<u8>,
        snapshot: bool,
    },
    Forward {
        proposal: Arc<Proposal>,
    },
    /// `None`: the node asked does not lead.
    Forwarded {
        id: u64,
        outcome: Option<Outcome>,
    },
    Frame {
        stream: u64,
        sequence: u64,
        frame: Frame,
    },
    /// There is no such stream here.
    Reset {
        stream: u64,
    },
    Join {
        question: u64,
        invite: String,
        phase: Phase,
        offer: Box<Offer>,
    },
    JoinAnswer {
        question: u64,
        reply: Result<JoinReply, String>,
    },
    Open(Box<Opening>),
    Answer {
        connection: u64,
        answer: Answer,
    },
    Close {
        connection: u64,
    },
    Probe {
        probe: u64,
    },
    ProbeAnswer {
        probe: u64,
    },
}

/// A request, and with it the connection that it opens.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) connection: u64,
    pub(crate) caller: WorldSvid,
    pub(crate) service: ServiceName,
    /// The hop before, that waits for the answer.
    pub(crate) back: Party,
}

/// What is said on a stream.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    // A proxy's watch, upwards.
    Hello { name: NodeName, identity: SpiffeId, from: u64 },
    Announce(Box<Announcement>),
    InForce(Box<InForce>),
    WantSvid,
    // A proxy's watch, downwards.
    Snapshot(Arc<View>),
    Changes(Arc<Applied>),
    Alive(u64),
    Svid(Box<WorldSvid>),
    // A peer session.
    Peer(ClusterName, Up),
    Told(Down),
}

/// One end of a stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamEnd {
    pub(crate) id: u64,
    pub(crate) to: Party,
    sent: u64,
    received: u64,
    /// When something was heard last.
    pub(crate) heard: u64,
}

/// What a frame's number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Next,
    Repeated,
    /// Something before it is missing: the stream is broken.
    Gap,
}

impl StreamEnd {
    /// Whether anything has come from the other end after `since`.
    pub(crate) fn has_heard(&self, since: u64) -> bool {
        self.received > 0 && self.heard > since
    }

    pub(crate) fn new(id: u64, to: Party, now: u64) -> Self {
        Self { id, to, sent: 0, received: 0, heard: now }
    }

    pub(crate) fn next(&mut self, frame: Frame) -> (Party, Packet) {
        self.sent += 1;
        (self.to, Packet::Frame { stream: self.id, sequence: self.sent, frame })
    }

    pub(crate) fn arrived(&mut self, sequence: u64, now: u64) -> Arrival {
        match sequence {
            s if s == self.received + 1 => {
                self.received = s;
                self.heard = now;
                Arrival::Next
            }
            s if s <= self.received => Arrival::Repeated,
            _ => Arrival::Gap,
        }
    }
}

impl Packet {
    fn stream(&self) -> Option<u64> {
        match self {
            Self::Frame { stream, .. } | Self::Reset { stream } => Some(*stream),
            _ => None,
        }
    }

    /// Streams and questions with an answer run over TCP; Raft messages and forwarded proposals are sent again by
    /// whoever sends them.
    fn may_come_twice(&self) -> bool {
        matches!(self, Self::Raft { .. } | Self::Forward { .. } | Self::Forwarded { .. })
    }

    fn kind(&self) -> u64 {
        match self {
            Self::Raft { bytes, snapshot, .. } => {
                100 + u64::from(*snapshot) + ((bytes.len() as u64).min(40) << 8)
            }
            Self::Forward { proposal } => 1 ^ proposal.id,
            Self::Forwarded { id, .. } => 2 ^ *id,
            Self::Frame { stream, sequence, .. } => 3 ^ (*stream << 20) ^ (*sequence << 4),
            Self::Reset { stream } => 4 ^ (*stream << 8),
            Self::Join { question, .. } => 5 ^ (*question << 8),
            Self::JoinAnswer { question, .. } => 6 ^ (*question << 8),
            Self::Open(opening) => 7 ^ (opening.connection << 8),
            Self::Answer { connection, .. } => 8 ^ (*connection << 8),
            Self::Close { connection } => 9 ^ (*connection << 8),
            Self::Probe { probe } | Self::ProbeAnswer { probe } => 10 ^ (*probe << 8),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Raft { bytes, snapshot, .. } => raft_words(bytes, *snapshot),
            Self::Frame { stream, sequence, frame } => {
                format!("stream {stream} #{sequence} {}", frame_words(frame))
            }
            Self::Join { phase, .. } => format!("join {phase:?}"),
            Self::JoinAnswer { reply, .. } => {
                format!("join answer committed {:?}", reply.as_ref().map(|r| r.committed))
            }
            Self::Open(opening) => format!("request {} from {}", opening.service, opening.caller.facts.id),
            Self::Forward { proposal } => format!("forward {:x}", proposal.id),
            other => format!("{other:?}"),
        }
    }
}

fn raft_words(bytes: &[u8], snapshot: bool) -> String {
    format!("raft {} bytes{}", bytes.len(), if snapshot { " (snapshot)" } else { "" })
}

fn frame_words(frame: &Frame) -> String {
    match frame {
        Frame::Snapshot(view) => format!("snapshot at {}", view.revision),
        Frame::Changes(applied) => format!("changes at {}: {}", applied.revision, applied.changes.len()),
        Frame::Told(Down::Facts { revision, facts }) => format!("{} facts at {revision}", facts.len()),
        other => format!("{other:?}"),
    }
}

impl World {
    pub(crate) fn send(&mut self, from: Party, to: Party, packet: Packet) {
        let (stream, repeatable) = (packet.stream(), packet.may_come_twice());
        let arrivals = self.network.arrivals(self.now, &mut self.random, from, to, stream, repeatable);
        if let (Packet::Raft { life, snapshot, .. }, Party::Node(cluster, index)) = (&packet, from) {
            self.raft_fate(At { cluster, index }, *life, to, *snapshot, arrivals.first().copied());
        }
        let (lost, kind) = (arrivals.is_empty(), packet.kind());
        self.note(&[from.number(), to.number(), kind, arrivals.len() as u64], || {
            format!("{from:?} → {to:?}{}: {}", if lost { " LOST" } else { "" }, packet.words())
        });
        for at in arrivals {
            self.at(at, Event::Deliver { from, to, packet: Box::new(packet.clone()) });
        }
    }

    fn raft_fate(&mut self, at: At, life: u64, to: Party, snapshot: bool, arrival: Option<u64>) {
        let Party::Node(_, index) = to else { return };
        let to = index as u64 + 1;
        match arrival {
            Some(when) if snapshot => self.at(when + 1, Event::Fate { at, life, to, snapshot, ok: true }),
            Some(_) => {}
            // A connection that is gone is noticed after a while; not every lost message is one.
            None if snapshot || self.random.chance(200) => {
                self.after(50, Event::Fate { at, life, to, snapshot, ok: false });
            }
            None => {}
        }
    }

    pub(crate) fn deliver(&mut self, from: Party, to: Party, packet: Packet) {
        // What was on its way when the cut came does not arrive either.
        if !self.network.passes(from, to) {
            return;
        }
        match to {
            Party::Node(cluster, index) => self.deliver_to_node(At { cluster, index }, from, packet),
            Party::Proxy(cluster, index) => self.deliver_to_proxy(cluster, index, from, packet),
        }
    }

    /// Nobody listens there: as a kernel would answer.
    pub(crate) fn refuse(&mut self, at: Party, from: Party, packet: &Packet) {
        let answer = match packet {
            Packet::Frame { stream, .. } => Packet::Reset { stream: *stream },
            Packet::Open(opening) => {
                Packet::Answer { connection: opening.connection, answer: Answer::Refused("connect".into()) }
            }
            Packet::Join { question, .. } => {
                Packet::JoinAnswer { question: *question, reply: Err("connection refused".into()) }
            }
            Packet::Forward { proposal } => Packet::Forwarded { id: proposal.id, outcome: None },
            _ => return,
        };
        self.send(at, from, answer);
    }
}
