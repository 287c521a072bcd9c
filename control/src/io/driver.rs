//! The one loop that performs a node's Outputs, in a fixed order: store, send, reply, publish.
//!
//! `Handle` is how every other part of the shell talks to it. The loop has a thread of its own, because a synced
//! write blocks; everything else in it is quick. A write that fails ends the loop: what the disk holds is then not
//! known, and a node that does not know what it promised must not go on.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hanse_identity::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::command::{Actor, Command, Outcome, Proposal};
use crate::consensus::{Disk, DiskError, MemoryDisk, Outgoing, ProposeRefusal, Timing};
use crate::io::clock::NodeClock;
use crate::io::keys::{self, NodeFile};
use crate::io::store::Store;
use crate::node::{self, Input, Node, OpenError};
pub use crate::node::{Applied, Status};
use crate::state::State;

mod running;

pub use running::{Ended, Running};

/// Proposals that wait for the loop.
pub const PROPOSAL_QUEUE: usize = 1024;
/// Reads that wait for the loop.
pub const READ_QUEUE: usize = 1024;
/// Raft messages that wait for the loop; when it is full they are dropped, and Raft sends them again.
pub const MESSAGE_QUEUE: usize = 4096;
/// Reports of what happened to sent messages.
pub const REPORT_QUEUE: usize = 256;
/// Inputs that are taken in at once, into one batch to store.
pub const BATCH: usize = 256;
/// Revisions whose Changes are kept for watchers that resume.
pub const RING: usize = 4096;
/// Revisions that a receiver of the feed may lag behind.
pub const FEED: usize = 1024;
/// How long a write is tried, over leader changes.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);
/// How long one attempt waits for its outcome before the same proposal is handed in again.
pub const PROPOSE_ATTEMPT: Duration = Duration::from_secs(1);
/// How long a read is tried.
pub const READ_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait before asking a leader again that was not there.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// How long a forwarded write waits until this node has applied it too.
const OWN_COPY_WAIT: Duration = Duration::from_secs(1);

/// How the services of a control node reach the replicated state. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    raft_id: u64,
    state: watch::Receiver<Arc<State>>,
    status: watch::Receiver<Status>,
    feed: broadcast::Sender<Arc<Applied>>,
    ring: Arc<Mutex<Ring>>,
    inbox: Inbox,
    transport: Arc<dyn Transport>,
    clock: Arc<NodeClock>,
}

/// Why a write has no outcome. It may or may not be applied later; retry with the same proposal id is safe and
/// is what `propose` itself does until its deadline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("the cluster has no leader at the moment")]
    NoLeader,
    #[error("no outcome within {0:?}")]
    Timeout(Duration),
    #[error("the node is overloaded: {0} proposals are waiting")]
    Overloaded(usize),
    #[error("the node is shutting down")]
    ShuttingDown,
    #[error("the command has {0} bytes, at most {max} are taken", max = node::MAX_PROPOSAL_BYTES)]
    TooLarge(usize),
}

/// How the loop reaches the other nodes. Nothing here waits.
pub trait Transport: Send + Sync + 'static {
    /// Takes messages for one node, in order. What cannot be delivered is reported through the `Inbox`.
    fn send(&self, to: u64, messages: Vec<Outgoing>);

    /// Hands a proposal to the leader `to`, which proposes it once.
    fn forward(&self, to: u64, proposal: Arc<Proposal>, within: Duration) -> Forwarding;
}

/// A forwarded proposal on its way.
pub type Forwarding = Pin<Box<dyn Future<Output = Result<Outcome, ForwardError>> + Send>>;

/// Why a forwarded proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("the node asked does not lead")]
    NotLeader,
    #[error("the node asked is overloaded")]
    Overloaded,
    #[error("the node cannot be reached: {0}")]
    Unreachable(String),
}

/// Where events for the loop are put. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    proposals: mpsc::Sender<Ask>,
    reads: mpsc::Sender<oneshot::Sender<()>>,
    messages: mpsc::Sender<Input>,
    reports: mpsc::Sender<Input>,
}

/// A proposal and who waits for it.
#[derive(Debug)]
struct Ask {
    proposal: Arc<Proposal>,
    reply: oneshot::Sender<Result<Outcome, ProposeRefusal>>,
}

/// What came of one attempt on this node alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    Applied(Outcome),
    NotLeader,
    Overloaded(usize),
    /// It may still be applied.
    Unknown,
    ShuttingDown,
}

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the store is.
    pub data_dir: PathBuf,
    /// This node, as `node init` made it.
    pub node: NodeFile,
    /// All nodes of the cluster, for the first start; later ignored.
    pub initial_nodes: Vec<NodeFile>,
    pub timing: Timing,
    pub snapshot_every: u64,
    pub snapshot_margin: u64,
}

impl Options {
    pub fn new(data_dir: PathBuf, node: NodeFile, initial_nodes: Vec<NodeFile>) -> Self {
        Self {
            data_dir,
            node,
            initial_nodes,
            timing: Timing::default(),
            snapshot_every: node::SNAPSHOT_EVERY,
            snapshot_margin: node::SNAPSHOT_MARGIN,
        }
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Disk(#[from] DiskError),
    #[error("{0}")]
    Node(#[from] OpenError),
    #[error("this is the first start: the initial nodes of the cluster must be given (--initial-nodes)")]
    NoInitialNodes,
    #[error("the initial nodes: {0}")]
    InitialNodes(String),
    #[error("the data directory belongs to {found}, not to {wanted}")]
    AnotherNode { found: String, wanted: String },
    #[error("the loop's thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// A node whose disk has been read, not yet running.
pub struct Opened {
    raft_id: u64,
    node: Node,
    disk: Box<dyn Disk>,
    inbox: Inbox,
    queues: Queues,
    state: watch::Sender<Arc<State>>,
}

/// The loop's ends of the queues.
struct Queues {
    proposals: mpsc::Receiver<Ask>,
    reads: mpsc::Receiver<oneshot::Sender<()>>,
    messages: mpsc::Receiver<Input>,
    reports: mpsc::Receiver<Input>,
}

/// The Changes of the last revisions, without a gap.
#[derive(Debug, Default)]
struct Ring {
    applied: VecDeque<Arc<Applied>>,
}

/// Reads the disk (founds the cluster's State if there is nothing) and makes the node that goes on from there.
pub fn open(options: &Options) -> Result<Opened, StartError> {
    let store = Store::open(&options.data_dir)?;
    open_on(Box::new(store), options)
}

/// The same, on a given disk.
pub fn open_on(mut disk: Box<dyn Disk>, options: &Options) -> Result<Opened, StartError> {
    let recovered = match disk.load()? {
        Some(recovered) => recovered,
        None => {
            let state = founding_state(&options.node, &options.initial_nodes)?;
            node::recover(disk.as_mut(), || state)?
        }
    };
    let raft_id = options.node.record.raft_id;
    let config = node::Config {
        raft_id,
        timing: options.timing,
        seed: keys::random_u64(),
        snapshot_every: options.snapshot_every,
        snapshot_margin: options.snapshot_margin,
    };
    let node = Node::open(config, recovered, Timestamp(0))?;
    check_owner(&node.state(), &options.node)?;
    let (inbox, queues) = queues();
    let (state, _) = watch::channel(node.state());
    Ok(Opened { raft_id, node, disk, inbox, queues, state })
}

/// A cluster of this one node, in memory: for tests of what is built on a `Handle`.
pub fn in_memory(node: NodeFile) -> Result<(Handle, Running), StartError> {
    let mut options = Options::new(PathBuf::new(), node.clone(), vec![node]);
    options.timing.tick = Duration::from_millis(5);
    open_on(Box::new(MemoryDisk::new()), &options)?.start(Arc::new(NoTransport))
}

/// For a group of one.
struct NoTransport;

impl Transport for NoTransport {
    fn send(&self, _: u64, _: Vec<Outgoing>) {}

    fn forward(&self, _: u64, _: Arc<Proposal>, _: Duration) -> Forwarding {
        Box::pin(async { Err(ForwardError::Unreachable("there is no other node".into())) })
    }
}

fn queues() -> (Inbox, Queues) {
    let (proposals, proposals_out) = mpsc::channel(PROPOSAL_QUEUE);
    let (reads, reads_out) = mpsc::channel(READ_QUEUE);
    let (messages, messages_out) = mpsc::channel(MESSAGE_QUEUE);
    let (reports, reports_out) = mpsc::channel(REPORT_QUEUE);
    let inbox = Inbox { proposals, reads, messages, reports };
    let queues =
        Queues { proposals: proposals_out, reads: reads_out, messages: messages_out, reports: reports_out };
    (inbox, queues)
}

/// The State of a new cluster; every node makes the same from the same files.
fn founding_state(own: &NodeFile, nodes: &[NodeFile]) -> Result<State, StartError> {
    if nodes.is_empty() {
        return Err(StartError::NoInitialNodes);
    }
    let refuse = |why: String| Err(StartError::InitialNodes(why));
    if !nodes.contains(own) {
        return refuse(format!("{} is not among them as its own node.json has it", own.record.name));
    }
    for (position, node) in nodes.iter().enumerate() {
        let record = &node.record;
        if (&node.cluster, &node.trust_domain) != (&own.cluster, &own.trust_domain) {
            return refuse(format!(
                "{} is of cluster {} and {}",
                record.name, node.cluster, node.trust_domain
            ));
        }
        let clash = |other: &NodeFile| {
            let other = &other.record;
            other.raft_id == record.raft_id
                || other.name == record.name
                || other.address == record.address
                || other.signing_key() == record.signing_key()
        };
        if let Some(other) = nodes[..position].iter().find(|other| clash(other)) {
            let other = &other.record.name;
            return refuse(format!(
                "{} and {other} share a Raft id, name, address or authority",
                record.name
            ));
        }
    }
    let records = nodes.iter().map(|n| n.record.clone()).collect();
    Ok(State::founded(own.cluster.clone(), own.trust_domain.clone(), records))
}

fn check_owner(state: &State, own: &NodeFile) -> Result<(), StartError> {
    let record = state.private.nodes.get(&own.record.raft_id);
    let found = record.map_or_else(|| "nobody".to_owned(), |r| r.name.to_string());
    let same =
        record.is_some_and(|r| r.name == own.record.name && r.signing_key() == own.record.signing_key());
    if same && state.view.cluster == own.cluster {
        return Ok(());
    }
    let found = format!("{found} (Raft id {}) of cluster {}", own.record.raft_id, state.view.cluster);
    Err(StartError::AnotherNode { found, wanted: format!("{} of cluster {}", own.record.name, own.cluster) })
}

impl Opened {
    /// The State as of the last stored commit: who the nodes are, whom to trust before the loop runs.
    pub fn state(&self) -> Arc<State> {
        self.node.state()
    }

    /// The same receiver that `Handle::states` gives, for parts that are needed before there is a `Handle`.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    pub fn inbox(&self) -> Inbox {
        self.inbox.clone()
    }

    /// Starts the loop on its own thread.
    pub fn start(self, transport: Arc<dyn Transport>) -> Result<(Handle, Running), StartError> {
        let (feed, _) = broadcast::channel(FEED);
        let ring = Arc::new(Mutex::new(Ring::default()));
        let (status_in, status) = watch::channel(self.node.status());
        let handle = Handle {
            raft_id: self.raft_id,
            state: self.state.subscribe(),
            status,
            feed: feed.clone(),
            ring: ring.clone(),
            inbox: self.inbox,
            transport: transport.clone(),
            clock: Arc::default(),
        };
        let publisher = running::Publisher { state: self.state, status: status_in, feed, ring };
        let running = running::start(self.node, self.disk, self.queues, transport, publisher)
            .map_err(StartError::Thread)?;
        Ok((handle, running))
    }
}

impl Handle {
    /// Has a Command committed and applied, on whichever node leads; retries over leader changes (up to 5 s).
    /// When it returns an outcome, this node's `state()` has it too (unless this node lags by more than a second).
    pub async fn propose(&self, actor: impl Into<Actor>, command: Command) -> Result<Outcome, ProposeError> {
        let Actor { id: actor, certificate } = actor.into();
        let (id, now) = (keys::random_u64(), self.clock.agreed());
        let proposal = Proposal { id, now, actor, certificate, command };
        self.propose_until(Arc::new(proposal), PROPOSE_DEADLINE).await
    }

    /// The same, for a proposal that was drawn up elsewhere, within a given time.
    pub async fn propose_until(
        &self,
        proposal: Arc<Proposal>,
        within: Duration,
    ) -> Result<Outcome, ProposeError> {
        let bytes = serde_json::to_vec(&*proposal).map_or(usize::MAX, |json| json.len());
        if bytes > node::MAX_PROPOSAL_BYTES {
            return Err(ProposeError::TooLarge(bytes));
        }
        let deadline = Instant::now() + within;
        let mut status = self.status.clone();
        let mut last = ProposeError::NoLeader;
        while Instant::now() < deadline {
            let leader = status.borrow_and_update().leader;
            let left = deadline.saturating_duration_since(Instant::now()).min(PROPOSE_ATTEMPT);
            match leader {
                Some(leader) if leader == self.raft_id => {
                    match self.propose_here(proposal.clone(), left).await {
                        Attempt::Applied(outcome) => return Ok(self.with_own_copy(outcome).await),
                        Attempt::Overloaded(waiting) => return Err(ProposeError::Overloaded(waiting)),
                        Attempt::ShuttingDown => return Err(ProposeError::ShuttingDown),
                        Attempt::NotLeader => last = ProposeError::NoLeader,
                        Attempt::Unknown => last = ProposeError::Timeout(within),
                    }
                }
                Some(leader) => match self.transport.forward(leader, proposal.clone(), left).await {
                    Ok(outcome) => return Ok(self.with_own_copy(outcome).await),
                    Err(ForwardError::Overloaded) => return Err(ProposeError::Overloaded(PROPOSAL_QUEUE)),
                    Err(ForwardError::NotLeader) => last = ProposeError::NoLeader,
                    Err(ForwardError::Unreachable(_)) => last = ProposeError::Timeout(within),
                },
                None => last = ProposeError::NoLeader,
            }
            if self.inbox.proposals.is_closed() {
                return Err(ProposeError::ShuttingDown);
            }
            // A new leader wakes us at once.
            let pause = Instant::now() + RETRY_PAUSE;
            let _ = timeout_at(pause.min(deadline), status.wait_for(|s| s.leader != leader)).await;
        }
        Err(last)
    }

    /// One attempt on this node alone: for what another node has forwarded.
    pub async fn propose_here(&self, proposal: Arc<Proposal>, within: Duration) -> Attempt {
        let (reply, outcome) = oneshot::channel();
        if let Err(refused) = self.inbox.proposals.try_send(Ask { proposal, reply }) {
            return match refused {
                mpsc::error::TrySendError::Full(_) => Attempt::Overloaded(PROPOSAL_QUEUE),
                mpsc::error::TrySendError::Closed(_) => Attempt::ShuttingDown,
            };
        }
        let term = self.status.borrow().term;
        let mut status = self.status.clone();
        tokio::select! {
            biased;
            answer = outcome => match answer {
                Ok(Ok(outcome)) => Attempt::Applied(outcome),
                Ok(Err(ProposeRefusal::NotLeader(_))) => Attempt::NotLeader,
                Ok(Err(ProposeRefusal::Full)) => Attempt::Overloaded(PROPOSAL_QUEUE),
                // Somebody handed in the same proposal again, or the loop has ended.
                Err(_) => Attempt::Unknown,
            },
            // Another leader: whether ours was committed, it will tell when asked with the same id.
            _ = status.wait_for(|s| s.term != term && !s.is_leader) => Attempt::Unknown,
            () = tokio::time::sleep(within) => Attempt::Unknown,
        }
    }

    /// Waits until this node has applied what another one answered.
    async fn with_own_copy(&self, outcome: Outcome) -> Outcome {
        let mut state = self.state.clone();
        let applied = state.wait_for(|s| s.view.revision.0 >= outcome.revision);
        let _ = tokio::time::timeout(OWN_COPY_WAIT, applied).await;
        outcome
    }

    /// The State after everything that was acknowledged before this call (Raft ReadIndex).
    pub async fn read(&self) -> Result<Arc<State>, ProposeError> {
        let (reply, ready) = oneshot::channel();
        self.inbox.reads.try_send(reply).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded(READ_QUEUE),
            mpsc::error::TrySendError::Closed(_) => ProposeError::ShuttingDown,
        })?;
        match tokio::time::timeout(READ_DEADLINE, ready).await {
            Ok(Ok(())) => Ok(self.state()),
            Ok(Err(_)) => Err(ProposeError::ShuttingDown),
            Err(_) if self.status().leader.is_none() => Err(ProposeError::NoLeader),
            Err(_) => Err(ProposeError::Timeout(READ_DEADLINE)),
        }
    }

    /// The State as this node has applied it; may lag behind others.
    pub fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Wakes whenever `state()` has changed.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Wakes whenever leadership, term or progress has changed.
    pub fn statuses(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Every revision applied from now on. Bounded: a receiver that lags is told so and starts from a snapshot, as
    /// after an `Applied` with `reset`. Subscribe first, then take `state()`, then skip what is not newer.
    pub fn feed(&self) -> broadcast::Receiver<Arc<Applied>> {
        self.feed.subscribe()
    }

    /// The Changes after `revision`, in order and without a gap; `None` if that is too long ago (or unknown here).
    pub fn changes_since(&self, revision: u64) -> Option<Vec<Arc<Applied>>> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.since(revision, self.state.borrow().view.revision.0)
    }

    /// What time it is here.
    pub fn clock(&self) -> &NodeClock {
        &self.clock
    }

    /// This node's Raft id.
    pub fn raft_id(&self) -> u64 {
        self.raft_id
    }

    pub fn inbox(&self) -> &Inbox {
        &self.inbox
    }
}

impl Inbox {
    /// A Raft message from an authenticated node. Dropped if the loop is behind: Raft sends it again.
    pub fn message(&self, from: u64, bytes: Vec<u8>) -> bool {
        self.messages.try_send(Input::Message { from, bytes }).is_ok()
    }

    /// Whether the loop has ended: nothing that is put here will be looked at.
    pub fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    /// Messages to that node are not delivered.
    pub async fn unreachable(&self, to: u64) {
        // The loop has ended: nobody needs to know.
        let _ = self.reports.send(Input::Unreachable { to }).await;
    }

    /// What became of a snapshot for that node. Must not be left out: until then it is sent nothing else.
    pub async fn snapshot_sent(&self, to: u64, ok: bool) {
        let _ = self.reports.send(Input::SnapshotSent { to, ok }).await;
    }
}

impl Ring {
    fn push(&mut self, applied: Arc<Applied>) {
        if applied.reset {
            self.applied.clear();
            return;
        }
        if self.applied.len() >= RING {
            self.applied.pop_front();
        }
        self.applied.push_back(applied);
    }

    fn since(&self, revision: u64, current: u64) -> Option<Vec<Arc<Applied>>> {
        if revision == current {
            return Some(Vec::new());
        }
        let first = self.applied.front()?.revision;
        if revision + 1 < first || revision > current {
            return None;
        }
        let skip = usize::try_from(revision + 1 - first).ok()?;
        Some(self.applied.iter().skip(skip).cloned().collect())
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("raft_id", &self.raft_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("node", &self.node).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
