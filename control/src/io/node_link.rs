//! The links between the nodes of one cluster: Raft messages in streams, forwarded writes, census questions.
//!
//! One task per other node keeps one connection and one stream. What cannot be sent is dropped, oldest first, and
//! Raft sends it again; only snapshots are reported, because Raft waits for word of them. A revoked node is neither
//! dialled nor sent anything, and what was dialled before is cut (`believed`). The serving side is `NodeService`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hanse_identity::SpiffeId;
use hanse_identity::name::MemberRole;
use hanse_identity::tls::{Expect, IdentitySource, TrustSource, client_config};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::dial::{self, ALPN_H2};
use super::driver::{ForwardError, Forwarding, Inbox, Transport};
use super::server::MAX_NODE_MESSAGE_BYTES;
use crate::command::{Outcome, Proposal};
use crate::consensus::Outgoing;
use crate::state::{NodeRecord, State};
use crate::wire::control::node_client::NodeClient;
use crate::wire::control::{Document, RaftBatch};

mod believed;
mod service;

use believed::Believed;
pub use service::{CensusSource, NodeService, TapStream};

/// Raft messages that wait for one node; more push out the oldest.
pub const LINK_QUEUE: usize = 4096;
/// Their bytes; more push out the oldest, but never the only one.
pub const LINK_QUEUE_BYTES: usize = 256 << 20;
/// Batches between the queue and the stream.
const STREAM_QUEUE: usize = 4;
/// Bytes in one batch; a message that is longer is sent in parts.
pub const BATCH_BYTES: usize = 1 << 20;
/// Messages in one batch.
const BATCH_MESSAGES: usize = 256;
/// Longest message that is put together again from parts: a snapshot.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// Pause before a node is dialled again, at first and at most.
const REDIAL: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// A stream that lasted this long was a good one: the pause starts small again.
const GOOD_STREAM: Duration = Duration::from_secs(1);

/// The links of one node to all others of its cluster.
pub struct NodeLinks {
    peers: BTreeMap<u64, Arc<Peer>>,
    inbox: Inbox,
    tasks: Mutex<JoinSet<()>>,
    believed: OnceLock<Arc<Believed>>,
}

/// One other node.
struct Peer {
    record: NodeRecord,
    id: SpiffeId,
    queue: Mutex<Queue>,
    filled: Notify,
    /// For single calls; dials by itself. Present once `connect` was called.
    channel: ArcSwapOption<Channel>,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Outgoing>,
    bytes: usize,
    /// A snapshot was pushed out, which Raft has to be told.
    lost_snapshot: bool,
}

impl NodeLinks {
    /// Links to the nodes that `state` knows; nothing is dialled before `connect`.
    pub fn new(own: u64, state: &State, inbox: Inbox) -> Arc<Self> {
        let others = state.private.nodes.values().filter(|n| n.raft_id != own);
        let id = |n: &NodeRecord| SpiffeId::member(&state.view.trust_domain, MemberRole::Node, &n.name);
        let peers = others.map(|n| (n.raft_id, Arc::new(Peer::new(n.clone(), id(n))))).collect();
        Arc::new(Self { peers, inbox, tasks: Mutex::default(), believed: OnceLock::new() })
    }

    /// Starts to dial, on the runtime that this is called on. Once. `states` says when `trust` may have changed.
    pub fn connect(
        &self,
        trust: &Arc<dyn TrustSource>,
        identity: &Arc<dyn IdentitySource>,
        states: watch::Receiver<Arc<State>>,
        renewals: &watch::Receiver<u64>,
    ) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = self.believed.get_or_init(|| Believed::new(trust.clone()));
        tasks.spawn(believed.clone().keep(states));
        for peer in self.peers.values() {
            // Exactly that node, not just any: an address that has moved must not get another's messages.
            let expect = Expect::Identities(Arc::new(BTreeSet::from([peer.id.clone()])));
            let config = client_config(trust.clone(), identity.clone(), expect, ALPN_H2);
            let channel = lazily(peer, believed, &config);
            if peer.channel.swap(Some(Arc::new(channel))).is_none() {
                let (peer, believed, inbox) = (peer.clone(), believed.clone(), self.inbox.clone());
                tasks.spawn(keep_linked(peer, believed, config, inbox, renewals.clone()));
            }
        }
    }

    /// Ends all links.
    pub fn close(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Asks a node what its own subscribers are at.
    pub async fn call_census(&self, to: u64, query: Document, within: Duration) -> Result<Document, Status> {
        let mut client =
            self.client(to).ok_or_else(|| Status::unavailable("there is no link to that node"))?;
        let mut request = Request::new(query);
        request.set_timeout(within);
        match tokio::time::timeout(within, client.census(request)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the node did not answer in time")),
        }
    }

    /// Has a node tell what its own subscribers see, for as long as the stream is held.
    pub async fn tap(
        &self,
        to: u64,
        wanted: Document,
        within: Duration,
    ) -> Result<Streaming<Document>, Status> {
        let mut client =
            self.client(to).ok_or_else(|| Status::unavailable("there is no link to that node"))?;
        match tokio::time::timeout(within, client.tap(wanted)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the node did not answer in time")),
        }
    }

    /// Whether a connection to that node is open.
    pub fn is_linked(&self, to: u64) -> bool {
        let id = self.peers.get(&to).map(|peer| &peer.id);
        id.zip(self.believed.get()).is_some_and(|(id, believed)| believed.is_open(id))
    }

    /// `None`: the node is not known, or revoked.
    fn client(&self, to: u64) -> Option<NodeClient<Channel>> {
        let peer = self.peers.get(&to)?;
        if self.believed.get()?.is_revoked(&peer.id) {
            return None;
        }
        let channel = peer.channel.load_full()?;
        // An answer may be as long as a question.
        Some(NodeClient::new((*channel).clone()).max_decoding_message_size(MAX_NODE_MESSAGE_BYTES))
    }
}

impl Transport for NodeLinks {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        // Raft speaks only to members, and members do not change.
        let Some(peer) = self.peers.get(&to) else { return };
        peer.queue().push(messages);
        peer.filled.notify_one();
    }

    fn forward(&self, to: u64, proposal: Arc<Proposal>, within: Duration) -> Forwarding {
        let client = self.client(to);
        Box::pin(async move {
            let unreachable = |why: &str| Err(ForwardError::Unreachable(why.to_owned()));
            let Some(mut client) = client else { return unreachable("there is no link to that node") };
            let json = serde_json::to_vec(&*proposal).expect("a Proposal has no failing serialisers");
            let mut request = Request::new(Document { json });
            request.set_timeout(within);
            match tokio::time::timeout(within, client.forward(request)).await {
                Ok(Ok(answer)) => serde_json::from_slice::<Outcome>(&answer.into_inner().json)
                    .map_err(|e| ForwardError::Unreachable(format!("its answer cannot be read: {e}"))),
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => Err(ForwardError::NotLeader),
                Ok(Err(status)) if status.code() == Code::ResourceExhausted => Err(ForwardError::Overloaded),
                Ok(Err(status)) => unreachable(status.message()),
                Err(_) => unreachable("no answer in time"),
            }
        })
    }
}

impl Peer {
    fn new(record: NodeRecord, id: SpiffeId) -> Self {
        Self { record, id, queue: Mutex::default(), filled: Notify::new(), channel: ArcSwapOption::empty() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next messages to send, and whether a snapshot was pushed out before them.
    async fn next(&self) -> (Vec<Outgoing>, bool) {
        loop {
            {
                let mut queue = self.queue();
                let lost = std::mem::take(&mut queue.lost_snapshot);
                if lost || !queue.messages.is_empty() {
                    return (queue.pop_some(), lost);
                }
            }
            self.filled.notified().await;
        }
    }

    /// Drops what is queued: it was meant for a connection that is not there. Says whether a snapshot was in it.
    fn clear(&self) -> bool {
        let mut queue = self.queue();
        let lost = queue.lost_snapshot || queue.messages.iter().any(|m| m.snapshot);
        *queue = Queue::default();
        lost
    }
}

impl Queue {
    fn push(&mut self, messages: Vec<Outgoing>) {
        for message in messages {
            self.bytes += message.bytes.len();
            self.messages.push_back(message);
        }
        while self.messages.len() > LINK_QUEUE || (self.bytes > LINK_QUEUE_BYTES && self.messages.len() > 1) {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
            self.lost_snapshot |= oldest.snapshot;
        }
    }

    fn pop_some(&mut self) -> Vec<Outgoing> {
        let mut some = Vec::new();
        let mut bytes = 0;
        while some.len() < BATCH_MESSAGES {
            let fits = |m: &mut Outgoing| some.is_empty() || bytes + m.bytes.len() <= BATCH_BYTES;
            let Some(message) = self.messages.pop_front_if(fits) else { break };
            bytes += message.bytes.len();
            self.bytes -= message.bytes.len();
            some.push(message);
        }
        some
    }
}

/// Batches as they go over the wire: a message that is too long goes in parts, each but the last with `more`.
fn batches(messages: Vec<Outgoing>) -> Vec<RaftBatch> {
    let mut batches = Vec::new();
    let mut whole = Vec::new();
    for message in messages {
        if message.bytes.len() <= BATCH_BYTES {
            whole.push(message.bytes);
            continue;
        }
        if !whole.is_empty() {
            batches.push(RaftBatch { message: std::mem::take(&mut whole), more: false });
        }
        let mut parts = message.bytes.chunks(BATCH_BYTES).peekable();
        while let Some(part) = parts.next() {
            batches.push(RaftBatch { message: vec![part.to_vec()], more: parts.peek().is_some() });
        }
    }
    if !whole.is_empty() {
        batches.push(RaftBatch { message: whole, more: false });
    }
    batches
}

/// A channel for single calls, which dials by itself.
fn lazily(peer: &Arc<Peer>, believed: &Arc<Believed>, config: &Arc<rustls::ClientConfig>) -> Channel {
    let dialling = (peer.clone(), believed.clone(), config.clone());
    dial::lazy(move || {
        let (peer, believed, config) = dialling.clone();
        async move { believed.dial(&peer.record.address, config).await }
    })
}

/// Keeps one stream to one node, for as long as the node runs. With each new SVID of our own it is made anew: the other
/// node would cut it once the authority of the older one is gone.
async fn keep_linked(
    peer: Arc<Peer>,
    believed: Arc<Believed>,
    config: Arc<rustls::ClientConfig>,
    inbox: Inbox,
    mut renewals: watch::Receiver<u64>,
) {
    let to = peer.record.raft_id;
    let mut pause = REDIAL.0;
    let mut told = false;
    loop {
        // Single calls have a connection of their own, which may live while there is no stream. Calls under way end on the
        // channel that they began on.
        if renewals.has_changed().unwrap_or(false) {
            renewals.mark_unchanged();
            peer.channel.store(Some(Arc::new(lazily(&peer, &believed, &config))));
        }
        match link(&peer, &believed, config.clone()).await {
            Ok(channel) => {
                let since = tokio::time::Instant::now();
                tracing::info!(node = %peer.record.name, "linked");
                told = false;
                // What was queued while there was no link is of the past.
                if peer.clear() {
                    inbox.snapshot_sent(to, false).await;
                }
                let why = tokio::select! {
                    why = stream(&peer, NodeClient::new(channel), &inbox) => why,
                    Ok(()) = renewals.changed() => {
                        renewals.mark_changed();
                        tracing::info!(node = %peer.record.name, "linking anew, with the newest SVID");
                        continue;
                    }
                };
                tracing::info!(node = %peer.record.name, why, "link lost");
                if since.elapsed() >= GOOD_STREAM {
                    pause = REDIAL.0;
                }
            }
            Err(error) if !told => {
                // Once per outage: a node that is down is dialled many times.
                tracing::warn!(node = %peer.record.name, %error, "no link");
                told = true;
            }
            Err(_) => {}
        }
        if peer.clear() {
            inbox.snapshot_sent(to, false).await;
        }
        inbox.unreachable(to).await;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REDIAL.1);
    }
}

async fn link(
    peer: &Peer,
    believed: &Arc<Believed>,
    config: Arc<rustls::ClientConfig>,
) -> Result<Channel, String> {
    if believed.is_revoked(&peer.id) {
        return Err(format!("{} is revoked", peer.id));
    }
    let address = &peer.record.address;
    let stream = believed.clone().dial(address, config).await.map_err(|e| e.to_string())?;
    dial::over(address, stream).await.map_err(|e| e.to_string())
}

/// Sends until the stream ends; says why it did.
async fn stream(peer: &Peer, mut client: NodeClient<Channel>, inbox: &Inbox) -> String {
    let (batches_in, batches_out) = mpsc::channel(STREAM_QUEUE);
    let call = client.raft(ReceiverStream::new(batches_out));
    let feed = feed(peer, batches_in, inbox);
    tokio::select! {
        ended = call => match ended {
            Ok(_) => "the node ended the stream".to_owned(),
            Err(status) => status.message().to_owned(),
        },
        () = feed => "the stream takes nothing more".to_owned(),
    }
}

async fn feed(peer: &Peer, batches_in: mpsc::Sender<RaftBatch>, inbox: &Inbox) {
    let to = peer.record.raft_id;
    loop {
        let (messages, lost_snapshot) = peer.next().await;
        if lost_snapshot {
            inbox.snapshot_sent(to, false).await;
        }
        let snapshot = messages.iter().any(|m| m.snapshot);
        for batch in batches(messages) {
            if batches_in.send(batch).await.is_err() {
                if snapshot {
                    inbox.snapshot_sent(to, false).await;
                }
                return;
            }
        }
        if snapshot {
            // Handed over. Should it be lost on the way, the follower refuses what comes next and gets another.
            inbox.snapshot_sent(to, true).await;
        }
    }
}

impl fmt::Debug for NodeLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeLinks").field("to", &self.peers.keys()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
