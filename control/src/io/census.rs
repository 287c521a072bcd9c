//! Census: who listens to this control node, what each of them has put in force, and the same asked of all nodes.
//!
//! Owns the table of this node's subscribers (proxies, gateways, agents), the questions that nodes ask each other
//! about theirs, and the gathering of answers. Volatile: a node that starts knows nobody until they come.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use hanse_federation::traffic::Report;
use hanse_federation::wire::{decode, encode};
use hanse_identity::proof::{HeldProof, MAX_PROOFS};
use hanse_identity::tls::IdentitySource as _;
use hanse_identity::{NodeName, Revocation, RevocationId, Serial, SpiffeId, Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::context::{Context, VERSION, now};
use super::driver::Status;
use super::issuers::IssuerReport;
use super::node_link::{CensusSource, TapStream};
use super::peer_link::PeerLinkReport;
use super::status::{document, read};
use super::strangers::StrangerReport;
use crate::admin::SubscriberKind;
use crate::wire::control::Document;

mod told;

use told::Told;

/// How long one node may take to answer a census question.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long subscribers may take to count their live connections.
pub const LIVE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an agent without a stream is still waited for. Proxies and gateways are forgotten with their endpoint.
pub const AGENT_REMEMBERED: Duration = Duration::from_secs(60);

/// How long the listeners of a node that has just been revoked may take to be somewhere else.
pub const LISTENERS_MOVE: Duration = Duration::from_secs(2);

/// Most identities that are named as being connected to the target.
pub const MAX_CALLERS: usize = 256;
/// Causes of closed connections that are kept of one subscriber.
pub const MAX_CAUSES: usize = 1024;
/// Subscribers that one identity may be on one node.
pub const MAX_PER_IDENTITY: usize = 2048;

/// One proxy, gateway or agent, as the node that holds (or held) its stream knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscriber {
    pub name: NodeName,
    pub kind: SubscriberKind,
    pub identity: SpiffeId,
    pub node: NodeName,
    /// Revision that it says is in force at its end.
    pub applied: u64,
    /// Live connections that it closed, by cause; counted since it started.
    #[serde(default)]
    pub closed: BTreeMap<RevocationId, u64>,
    pub connected: bool,
    pub seen: Timestamp,
    #[serde(default)]
    pub version: String,
    /// Why its announcement is not accepted.
    #[serde(default)]
    pub refused: Option<String>,
    /// Of an agent: its SDS clients.
    #[serde(default)]
    pub sds: SdsReport,
    /// Of an agent: from where it is connected, or was.
    #[serde(default)]
    pub remote: Option<SocketAddr>,
    /// Of an agent: the certificate that it showed.
    #[serde(default)]
    pub serial: Option<Serial>,
    /// What rests on outgoing authorities at its end, by their trust domain.
    #[serde(default)]
    pub outgoing: BTreeMap<TrustDomain, Outgoing>,
    /// Of an agent: what became of showing revoked certificates whose keys it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proofs: Vec<HeldProof>,
}

/// What rests on the outgoing authorities of one trust domain at a proxy or gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outgoing {
    /// Live connections whose other end was authenticated by one of them.
    pub connections: u64,
    /// Its own SVID was signed by one of them.
    pub own_svid: bool,
}

/// How the SDS clients of an agent stand to the newest state that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SdsReport {
    /// Revision of that state.
    pub known: u64,
    pub subscribers: u32,
    /// Of these: who has said that all of it is in force.
    pub acknowledged: u32,
    /// Of these: who has refused what it was sent last.
    pub rejected: u32,
    /// SVIDs that the agent holds, its own included, of authorities that are on their way out.
    #[serde(default)]
    pub outgoing: u32,
}

/// What a node may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Query {
    Subscribers,
    /// Live connections that this revocation would hit, were it in force.
    Live {
        revocation: Box<Revocation>,
    },
    /// Subscribers, with only what they closed because of this revocation, and what became of showing what it hits.
    Revocation {
        id: RevocationId,
    },
    PeerLinks,
    Node,
    /// How its fetches of foreign bundles went.
    Strangers,
    /// How its fetches of issuers' keys went.
    Issuers,
    /// What of it rests on which authority.
    Trust,
    /// What its subscribers counted in the last minute, added up.
    Traffic,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    Subscribers(Vec<Subscriber>),
    Live(LiveCount),
    PeerLinks(Vec<PeerLinkReport>),
    Node(NodeReport),
    Strangers(Vec<StrangerReport>),
    Issuers(Vec<IssuerReport>),
    Trust(NodeTrust),
    Traffic {
        report: Report,
        /// Subscribers that told of some.
        reporting: usize,
    },
}

/// How a node stands to the authorities of its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeTrust {
    /// Revision that its connections were counted by.
    pub applied: u64,
    /// Its own SVID was signed by an authority that is on its way out.
    pub own_svid: bool,
    /// Who is connected to it and was authenticated by such an authority, by its trust domain; no administrators.
    pub callers: BTreeMap<TrustDomain, u64>,
    /// Foreign trust domains may fetch the cluster's bundle from it.
    #[serde(default)]
    pub bundle_endpoint: bool,
}

/// Live connections that subscribers counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveCount {
    pub connections: u64,
    pub answered: usize,
    pub asked: usize,
    /// Who is at the other end, at most `MAX_CALLERS`.
    #[serde(default)]
    pub callers: BTreeSet<SpiffeId>,
}

impl LiveCount {
    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.answered += other.answered;
        self.asked += other.asked;
        self.callers.extend(other.callers);
        while self.callers.len() > MAX_CALLERS {
            self.callers.pop_last();
        }
    }
}

/// How a node stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    pub status: Status,
    pub certificate_not_after: Option<Timestamp>,
    pub version: String,
    /// What time it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Timestamp>,
    /// Why it signs nothing for others, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_signing: Option<String>,
}

/// What all nodes answered, and who did not.
#[derive(Debug, Default)]
pub struct Gathered {
    pub parts: Vec<(NodeName, Part)>,
    pub silent: BTreeSet<NodeName>,
    /// Not asked. One that was revoked a moment ago is silent too: its listeners are on their way elsewhere.
    pub revoked: BTreeSet<NodeName>,
}

/// A question that goes down a subscriber's stream.
#[derive(Clone, Debug)]
pub struct LiveQuestion {
    pub query: u64,
    pub revocation: Arc<Revocation>,
}

/// Names one stream of one subscriber; another stream of the same name is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamKey {
    pub kind: SubscriberKind,
    pub name: NodeName,
    pub stream: u64,
}

/// The table of this node's subscribers.
pub struct Census {
    node: NodeName,
    next: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<(SubscriberKind, NodeName), Entry>,
    /// Who waits for which live query.
    live: HashMap<u64, mpsc::Sender<LiveCount>>,
    traffic: Told,
}

struct Entry {
    subscriber: Subscriber,
    stream: u64,
    /// Down its stream; dropped when another stream takes the name over, which ends the old one.
    questions: Option<mpsc::Sender<LiveQuestion>>,
}

/// Why a stream is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJoined {
    /// Another identity holds a live stream of that name.
    #[error("the name {name} is in use by {holder}")]
    NameTaken { name: NodeName, holder: SpiffeId },
    #[error("{0} is {MAX_PER_IDENTITY} subscribers here, more are not taken")]
    TooMany(SpiffeId),
}

impl Census {
    pub fn new(node: NodeName) -> Self {
        Self { node, next: AtomicU64::new(1), table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream has begun. An older one of the same name and identity is taken over and ends.
    pub fn join(
        &self,
        kind: SubscriberKind,
        name: NodeName,
        identity: SpiffeId,
        version: String,
        questions: mpsc::Sender<LiveQuestion>,
        now: Timestamp,
    ) -> Result<StreamKey, NotJoined> {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table();
        let key = (kind, name.clone());
        if let Some(known) = table.entries.get(&key)
            && known.subscriber.connected
            && known.subscriber.identity != identity
        {
            return Err(NotJoined::NameTaken { name, holder: known.subscriber.identity.clone() });
        }
        let same = table.entries.values().filter(|e| e.subscriber.identity == identity).count();
        if same >= MAX_PER_IDENTITY && !table.entries.contains_key(&key) {
            return Err(NotJoined::TooMany(identity));
        }
        let subscriber = Subscriber {
            name: name.clone(),
            kind,
            identity,
            node: self.node.clone(),
            applied: 0,
            closed: BTreeMap::new(),
            connected: true,
            seen: now,
            version,
            refused: None,
            sds: SdsReport::default(),
            remote: None,
            serial: None,
            outgoing: BTreeMap::new(),
            proofs: Vec::new(),
        };
        let entry = Entry { subscriber, stream, questions: Some(questions) };
        if let Some(before) = table.entries.insert(key, entry) {
            table.traffic.drop(before.stream);
        }
        Ok(StreamKey { kind, name, stream })
    }

    /// What a stream's subscriber has put in force.
    pub fn applied(&self, key: &StreamKey, revision: u64, closed: Vec<(RevocationId, u64)>, now: Timestamp) {
        self.update(key, |subscriber| {
            subscriber.applied = subscriber.applied.max(revision);
            subscriber.closed.extend(closed);
            // The oldest go: what a subscriber says must not grow without end.
            while subscriber.closed.len() > MAX_CAUSES {
                subscriber.closed.pop_first();
            }
            subscriber.seen = now;
        });
    }

    /// What rests on outgoing authorities at its end, as of now.
    pub fn outgoing(&self, key: &StreamKey, outgoing: BTreeMap<TrustDomain, Outgoing>) {
        self.update(key, |subscriber| subscriber.outgoing = outgoing);
    }

    /// How an agent's SDS clients stand.
    pub fn sds(&self, key: &StreamKey, report: SdsReport) {
        self.update(key, |subscriber| subscriber.sds = report);
    }

    /// What became of revoked certificates that an agent has shown: all of it.
    pub fn proofs(&self, key: &StreamKey, proofs: Vec<HeldProof>) {
        let proofs = proofs.into_iter().take(MAX_PROOFS).map(HeldProof::bounded).collect();
        self.update(key, |subscriber| subscriber.proofs = proofs);
    }

    /// From where an agent's stream came, and with which certificate.
    pub fn came_from(&self, key: &StreamKey, remote: SocketAddr, serial: Serial) {
        self.update(key, |subscriber| (subscriber.remote, subscriber.serial) = (Some(remote), Some(serial)));
    }

    /// What its proxy counted in the last minute.
    pub fn traffic(&self, key: &StreamKey, report: Report, now: Timestamp) {
        let Some(identity) = self.table().latest(key).map(|entry| entry.subscriber.identity.clone()) else {
            return;
        };
        // Every stream waits for the table: not for reading a report too.
        let report = report.of(&identity);
        let mut table = self.table();
        if table.latest(key).is_some() {
            table.traffic.put(key.stream, &identity, report, now);
        }
    }

    /// What all of them counted, one by one.
    pub fn counted(&self, now: Timestamp) -> Vec<Arc<Report>> {
        let mut table = self.table();
        table.traffic.sweep(now);
        table.traffic.reports()
    }

    /// Whether its announcement stands.
    pub fn announced(&self, key: &StreamKey, refused: Option<String>) {
        self.update(key, |subscriber| subscriber.refused = refused);
    }

    /// A stream has ended; who was there is still waited for.
    pub fn leave(&self, key: &StreamKey, now: Timestamp) {
        let mut table = self.table();
        if let Some(entry) = table.latest(key) {
            entry.subscriber.connected = false;
            entry.subscriber.seen = now;
            entry.questions = None;
            table.traffic.drop(key.stream);
        }
    }

    /// Nobody waits for that stream's subscriber any more: its endpoint is withdrawn.
    pub fn forget(&self, key: &StreamKey) {
        let mut table = self.table();
        let name = (key.kind, key.name.clone());
        if table.entries.get(&name).is_some_and(|entry| entry.stream == key.stream) {
            table.entries.remove(&name);
            table.traffic.drop(key.stream);
        }
    }

    /// Whether that stream is still the latest of its name.
    pub fn is_latest(&self, key: &StreamKey) -> bool {
        let table = self.table();
        table.entries.get(&(key.kind, key.name.clone())).is_none_or(|entry| entry.stream == key.stream)
    }

    /// Whether a proxy or gateway of that name has a stream here.
    pub fn holds(&self, name: &NodeName) -> bool {
        let table = self.table();
        [SubscriberKind::Proxy, SubscriberKind::Gateway].into_iter().any(|kind| {
            table.entries.get(&(kind, name.clone())).is_some_and(|entry| entry.subscriber.connected)
        })
    }

    /// Everybody known here; agents that have been gone for long are dropped.
    pub fn subscribers(&self, now: Timestamp) -> Vec<Subscriber> {
        let mut table = self.table();
        table.traffic.sweep(now);
        table.entries.retain(|_, entry| {
            let s = &entry.subscriber;
            s.connected || s.kind != SubscriberKind::Agent || now.since(s.seen) < AGENT_REMEMBERED
        });
        table.entries.values().map(|entry| entry.subscriber.clone()).collect()
    }

    /// Asks every proxy and gateway here how many live connections the revocation would hit.
    pub async fn live(&self, revocation: &Revocation) -> LiveCount {
        let revocation = Arc::new(revocation.clone());
        let query = self.next.fetch_add(1, Ordering::Relaxed);
        let streams: Vec<_> = {
            let table = self.table();
            let asked = table.entries.values().filter(|e| e.subscriber.kind != SubscriberKind::Agent);
            asked.filter_map(|e| e.questions.clone()).collect()
        };
        let (answers, mut answered) = mpsc::channel(streams.len().max(1));
        self.table().live.insert(query, answers);
        for stream in &streams {
            // A stream whose queue is full is about to be cut; it then counts as not answering.
            let _ = stream.try_send(LiveQuestion { query, revocation: revocation.clone() });
        }
        let mut count = LiveCount { asked: streams.len(), ..LiveCount::default() };
        let all = async {
            while count.answered < count.asked {
                let Some(answer) = answered.recv().await else { break };
                count.add(answer);
            }
        };
        // Late answers are missing from the count, and the count says so.
        let _ = tokio::time::timeout(LIVE_TIMEOUT, all).await;
        self.table().live.remove(&query);
        count
    }

    /// A subscriber's answer to a live query; one that came too late finds nobody waiting.
    pub fn live_answer(&self, query: u64, answer: LiveCount) {
        let waiting = self.table().live.get(&query).cloned();
        if let Some(waiting) = waiting {
            let _ = waiting.try_send(answer);
        }
    }

    fn update(&self, key: &StreamKey, change: impl FnOnce(&mut Subscriber)) {
        if let Some(entry) = self.table().latest(key) {
            change(&mut entry.subscriber);
        }
    }
}

impl Table {
    /// That stream's entry, while no other has taken its name over.
    fn latest(&mut self, key: &StreamKey) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&(key.kind, key.name.clone()));
        entry.filter(|entry| entry.stream == key.stream)
    }
}

/// This node's own answer.
pub async fn answer(context: &Context, query: &Query) -> Part {
    match query {
        Query::Subscribers => {
            let mut subscribers = context.census.subscribers(now());
            subscribers.iter_mut().for_each(|s| s.proofs.clear());
            Part::Subscribers(subscribers)
        }
        Query::Revocation { id } => {
            let mut subscribers = context.census.subscribers(now());
            for subscriber in &mut subscribers {
                subscriber.closed.retain(|cause, _| cause == id);
                subscriber.proofs.retain(|proof| proof.revocation == *id);
            }
            Part::Subscribers(subscribers)
        }
        Query::Live { revocation } => Part::Live(context.census.live(revocation).await),
        Query::PeerLinks => Part::PeerLinks(context.peers.reports(now())),
        Query::Strangers => {
            let state = context.handle.state();
            Part::Strangers(context.strangers.reports(&state.private.strangers))
        }
        Query::Issuers => Part::Issuers(context.issuers.reports()),
        Query::Trust => {
            let (applied, callers) = context.callers.get();
            let own = context.own.identity();
            let own_svid = own.is_some_and(|own| context.trust.current().is_outgoing(&own.facts));
            let bundle_endpoint = context.bundle_endpoint.load(Ordering::Relaxed);
            Part::Trust(NodeTrust { applied, own_svid, callers, bundle_endpoint })
        }
        Query::Traffic => {
            let reports = context.census.counted(now());
            let reporting = reports.len();
            // Of many proxies it is some work, which nothing else of this node should wait for.
            let sum = tokio::task::spawn_blocking(move || Report::sum(reports.iter().map(Arc::as_ref)));
            Part::Traffic { report: sum.await.unwrap_or_default(), reporting }
        }
        Query::Node => Part::Node(NodeReport {
            status: context.handle.status(),
            certificate_not_after: context.own.identity().map(|own| own.facts.not_after),
            version: VERSION.to_owned(),
            clock: Some(context.handle.clock().now()),
            not_signing: context.handle.clock().contradiction().map(|why| why.to_string()),
        }),
    }
}

/// Asks every node that is believed, this one included, at the same time.
pub async fn gather(context: &Context, query: &Query) -> Gathered {
    let state = context.handle.state();
    let mut gathered = Gathered::default();
    let mut believed = Vec::new();
    for node in state.private.nodes.values() {
        let own = node.raft_id == context.raft_id;
        match state.node_revocation(&node.name).filter(|_| !own) {
            None => believed.push(node),
            Some(revocation) => {
                if revocation.at + LISTENERS_MOVE > context.time() {
                    gathered.silent.insert(node.name.clone());
                }
                gathered.revoked.insert(node.name.clone());
            }
        }
    }
    let asked = believed.into_iter().map(|node| async {
        let part = if node.raft_id == context.raft_id {
            Ok(answer(context, query).await)
        } else {
            ask(context, node.raft_id, query).await
        };
        (node.name.clone(), part)
    });
    for (node, part) in join_all(asked).await {
        match part {
            Ok(part) => gathered.parts.push((node, part)),
            Err(why) => {
                tracing::debug!(%node, why, "a node did not answer the census");
                gathered.silent.insert(node);
            }
        }
    }
    gathered
}

async fn ask(context: &Context, raft_id: u64, query: &Query) -> Result<Part, String> {
    let question = Document { json: encode(query) };
    let reply = context.links.call_census(raft_id, question, NODE_TIMEOUT).await;
    let reply = reply.map_err(|status| status.message().to_owned())?;
    decode("census part", &reply.json).map_err(|e| e.to_string())
}

#[tonic::async_trait]
impl CensusSource for Context {
    async fn census(&self, query: Document) -> Result<Document, tonic::Status> {
        let query: Query = read("census query", &query)?;
        Ok(document(&answer(self, &query).await))
    }

    fn tap(&self, wanted: &Document) -> Result<TapStream, tonic::Status> {
        super::admin::tap::of_own_subscribers(self, wanted)
    }
}

impl Gathered {
    /// All subscribers that nodes told of.
    pub fn subscribers(self) -> (Vec<Subscriber>, BTreeSet<NodeName>) {
        let lists = self.parts.into_iter().filter_map(|(_, part)| match part {
            Part::Subscribers(list) => Some(list),
            _ => None,
        });
        (lists.flatten().collect(), self.silent)
    }

    /// Live connections, added up; a silent node counts as one that was asked and did not answer.
    pub fn live(&self) -> LiveCount {
        let mut sum = LiveCount { asked: self.silent.len(), ..LiveCount::default() };
        for (_, part) in &self.parts {
            if let Part::Live(count) = part {
                sum.add(count.clone());
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests;
