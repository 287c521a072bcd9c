//! Peer links: while this node leads, it listens to every joined cluster and commits what they tell.
//!
//! One task per peer: dial its endpoints in turn, resume where our log stands, commit what passes the import filter,
//! and only then acknowledge. Silence is not hope: a link that says nothing is torn down and dialled anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hanse_federation::lease::{Lease, Link, SILENT_AFTER};
use hanse_federation::session::{self, Down, Up, admit};
use hanse_federation::wire::{decode, encode};
use hanse_federation::{PeerFact, View};
use hanse_identity::{ClusterName, Timestamp, VerifiedCaller, VerifyError};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::context::{Context, jitter, now, stopped};
use super::dial;
use super::driver::ProposeError;
use crate::command::{Command, Refusal, Told};
use crate::wire::control::Document;
use crate::wire::control::peer_client::PeerClient;

/// First and longest pause between two dials of a peer, ± 25 %.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(1);
/// A batch is committed once its messages have this many bytes: well below the largest proposal.
const BATCH_BYTES: usize = 1 << 20;
/// Acknowledgements that wait to be sent.
const UP_QUEUE: usize = 16;
/// How long a peer may take to accept the session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the round trip is measured.
const MEASURE: Duration = Duration::from_secs(5);
/// Refused facts of one batch that are logged; all are counted.
const LOGGED_REFUSALS: usize = 8;
/// How old a session with a node below an outgoing authority becomes: by then the node has another SVID.
const REPLACED_WITHIN: Duration = Duration::from_secs(2);
/// Pause before a batch that could not be committed is proposed again.
const COMMIT_RETRY: Duration = Duration::from_millis(200);
/// How long our own side's farewell may take to be committed, once the other side has removed us because of it.
const FAREWELL: Duration = Duration::from_secs(2);
/// Largest message of a peer: with what is held, still below the largest proposal.
const MAX_MESSAGE_BYTES: usize = 2 << 20;

/// What this node knows of its links to peers, both ways. Kept when leadership goes: ages tell how old it is.
#[derive(Default)]
pub struct PeerLinks {
    links: Mutex<BTreeMap<ClusterName, LinkFacts>>,
}

#[derive(Default)]
struct LinkFacts {
    lease: Lease,
    endpoint: Option<String>,
    rtt: Option<Duration>,
    refused: u64,
    error: Option<String>,
    /// Revision of ours that the peer says it has committed, over a session that this node serves.
    acknowledged: Option<u64>,
    /// When the peer last said something over such a session.
    acknowledged_at: Option<Timestamp>,
}

/// One link, as one node knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerLinkReport {
    pub cluster: ClusterName,
    pub link: Link,
    /// Since the peer last said something to us.
    pub age_ms: Option<u64>,
    pub endpoint: Option<String>,
    pub rtt_ms: Option<f64>,
    pub refused_imports: u64,
    pub error: Option<String>,
    /// Our revision that the peer has committed.
    pub acknowledged: Option<u64>,
    /// Since it last said so.
    pub acknowledged_age_ms: Option<u64>,
}

impl PeerLinks {
    fn links(&self) -> MutexGuard<'_, BTreeMap<ClusterName, LinkFacts>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, cluster: &ClusterName, change: impl FnOnce(&mut LinkFacts) -> R) -> R {
        change(self.links().entry(cluster.clone()).or_default())
    }

    /// The peer said, over a session that we serve, that it has committed our facts up to `revision`.
    pub fn acknowledged(&self, cluster: &ClusterName, revision: u64, now: Timestamp) {
        self.with(cluster, |link| {
            link.acknowledged = Some(revision);
            link.acknowledged_at = Some(now);
        });
    }

    /// Forgets clusters that are peers no more: one that joins again starts with nothing.
    fn retain(&self, view: &View) {
        self.links().retain(|cluster, _| view.peers.contains_key(cluster));
    }

    pub fn reports(&self, now: Timestamp) -> Vec<PeerLinkReport> {
        let links = self.links();
        links.iter().map(|(cluster, facts)| facts.report(cluster, now)).collect()
    }

    pub fn refused(&self) -> u64 {
        self.links().values().map(|link| link.refused).sum()
    }
}

impl LinkFacts {
    fn report(&self, cluster: &ClusterName, now: Timestamp) -> PeerLinkReport {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        PeerLinkReport {
            cluster: cluster.clone(),
            link: self.lease.link(now),
            age_ms: self.lease.age(now).map(millis),
            endpoint: self.endpoint.clone(),
            rtt_ms: self.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            refused_imports: self.refused,
            error: self.error.clone(),
            acknowledged: self.acknowledged,
            acknowledged_age_ms: self.acknowledged_at.map(|at| millis(now.since(at))),
        }
    }
}

/// What all nodes know of one link: the freshest hearing, the freshest acknowledgement.
pub fn freshest(reports: impl IntoIterator<Item = PeerLinkReport>) -> Option<PeerLinkReport> {
    reports.into_iter().reduce(|best, next| {
        let age = |r: &PeerLinkReport| r.age_ms.unwrap_or(u64::MAX);
        let told_age = |r: &PeerLinkReport| r.acknowledged_age_ms.unwrap_or(u64::MAX);
        let told = if told_age(&next) < told_age(&best) { &next } else { &best };
        let (acknowledged, acknowledged_age_ms) = (told.acknowledged, told.acknowledged_age_ms);
        // A node that never led knows nothing but perhaps an error; one that hears wins.
        let heard = if age(&next) < age(&best) { next } else { best };
        PeerLinkReport { acknowledged, acknowledged_age_ms, ..heard }
    })
}

/// Keeps one task per peer while this node leads.
pub async fn supervise(context: Arc<Context>) {
    let mut statuses = context.handle.statuses();
    let mut states = context.handle.states();
    let mut stop = context.stop.clone();
    let mut running: HashMap<ClusterName, (tokio::task::JoinHandle<()>, watch::Sender<bool>)> =
        HashMap::new();
    loop {
        let leads = statuses.borrow_and_update().is_leader;
        let state = states.borrow_and_update().clone();
        context.peers.retain(&state.view);
        let wanted: Vec<ClusterName> =
            if leads { state.view.peers.keys().cloned().collect() } else { Vec::new() };
        drop(state);
        running.retain(|cluster, (task, end)| {
            let keep = wanted.contains(cluster) && !task.is_finished();
            if !keep {
                let _ = end.send(true);
            }
            keep
        });
        for cluster in wanted {
            running.entry(cluster.clone()).or_insert_with(|| {
                let (end, ended) = watch::channel(false);
                let link = PeerLink { context: context.clone(), cluster, ended };
                (tokio::spawn(link.run()), end)
            });
        }
        tokio::select! {
            changed = statuses.changed() => if changed.is_err() { break },
            changed = states.changed() => if changed.is_err() { break },
            () = stopped(&mut stop) => break,
        }
    }
    for (_, end) in running.into_values() {
        // A task that is gone already needs no telling.
        let _ = end.send(true);
    }
}

/// The task that listens to one peer.
struct PeerLink {
    context: Arc<Context>,
    cluster: ClusterName,
    ended: watch::Receiver<bool>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Dial(#[from] dial::DialError),
    #[error("{}", .0.message())]
    Refused(#[from] tonic::Status),
    #[error("no answer within {OPEN_TIMEOUT:?}")]
    Open,
    #[error("nothing heard for {SILENT_AFTER:?}")]
    Silent,
    #[error("{0}")]
    Unreadable(#[from] hanse_federation::wire::WireError),
    #[error("the other side closed the session")]
    Closed,
    #[error("the other side has left")]
    Left,
    #[error("it is no peer any more")]
    NoPeer,
    #[error("{0}")]
    Uncommittable(ProposeError),
    #[error("our log refuses what it told: {0}")]
    NotTaken(Refusal),
    #[error("the node at the other end is not believed any more: {0}")]
    Unbelieved(#[from] VerifyError),
    #[error("the SVID at this end or the other has a successor")]
    Overtaken,
}

impl PeerLink {
    async fn run(mut self) {
        let mut ended = self.ended.clone();
        // An error means that the supervisor is gone, which ends the link as well.
        tokio::select! {
            () = self.keep_dialling() => {}
            _ = ended.wait_for(|ended| *ended) => {}
        }
        if self.context.handle.state().view.peers.contains_key(&self.cluster) {
            self.context.peers.with(&self.cluster, |link| link.lease.lost());
        }
    }

    async fn keep_dialling(&mut self) {
        let (mut turn, mut backoff) = (0usize, BACKOFF_FIRST);
        loop {
            let state = self.context.handle.state();
            let Some(peer) = state.view.peers.get(&self.cluster) else {
                return;
            };
            let endpoints = &peer.record.endpoints;
            if !endpoints.is_empty() {
                let endpoint = endpoints[turn % endpoints.len()].clone();
                let invite = peer.record.invite.clone();
                let began = Instant::now();
                let Err(error) = self.session(&endpoint).await;
                tracing::info!(peer = %self.cluster, endpoint, why = %error, "peer session ended");
                self.context.peers.with(&self.cluster, |link| {
                    link.lease.lost();
                    link.error = Some(format!("{endpoint}: {error}"));
                });
                // Whether it is a peer still is asked of the State at the next turn.
                if let LinkError::Left = error {
                    self.forget_peer(invite).await;
                }
                if began.elapsed() > BACKOFF_LONGEST {
                    backoff = BACKOFF_FIRST;
                }
            }
            turn += 1;
            tokio::time::sleep(backoff.mul_f64(0.75 + 0.5 * jitter())).await;
            backoff = (backoff * 2).min(BACKOFF_LONGEST);
        }
    }

    /// One session; ends only with an error.
    async fn session(&self, endpoint: &str) -> Result<std::convert::Infallible, LinkError> {
        let state = self.context.handle.state();
        let peer = state.view.peers.get(&self.cluster).ok_or(LinkError::NoPeer)?;
        let mut renewals = self.context.own.renewals();
        let link = dial::connect(endpoint, self.context.node_tls(&peer.record.trust_domain)).await?;
        let teller = link.server(&self.context.trust.current(), now())?;
        let mut client = PeerClient::new(link.channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (up, ups) = mpsc::channel(UP_QUEUE);
        let resume = session::resume(&state.view, &self.cluster);
        drop(state);
        // The queue is empty and its receiver is in our hands: this cannot fail.
        let _ = up.try_send(Document { json: encode(&resume) });
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.session(ReceiverStream::new(ups))).await;
        let mut downs = opened.map_err(|_| LinkError::Open)??.into_inner();
        self.context.peers.with(&self.cluster, |link| {
            link.lease.connected(now());
            link.endpoint = Some(endpoint.to_owned());
            link.error = None;
        });
        tracing::info!(peer = %self.cluster, endpoint, "peer session open");
        tokio::select! {
            ended = self.listen(&mut downs, &up, &teller) => ended,
            () = self.keep_measuring(client) => Err(LinkError::Closed),
            Ok(()) = renewals.changed() => Err(LinkError::Overtaken),
        }
    }

    async fn listen(
        &self,
        downs: &mut Streaming<Document>,
        up: &mpsc::Sender<Document>,
        teller: &VerifiedCaller,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut held: Option<(u64, Vec<PeerFact>)> = None;
        let mut held_bytes = 0;
        let began = Instant::now();
        loop {
            // What has come in together is committed together.
            let next = if held.is_some() {
                tokio::time::timeout(Duration::ZERO, downs.next()).await.ok()
            } else {
                Some(tokio::time::timeout(SILENT_AFTER, downs.next()).await.map_err(|_| LinkError::Silent)?)
            };
            match next {
                Some(None) => return Err(LinkError::Closed),
                Some(Some(document)) => {
                    let document = document?;
                    // The session may be older than a revocation.
                    let trust = self.context.trust.current();
                    teller.still_believed(&trust, now())?;
                    if began.elapsed() >= REPLACED_WITHIN && teller.is_outgoing(&trust) {
                        return Err(LinkError::Overtaken);
                    }
                    let down = decode::<Down>("peer session", &document.json)?;
                    self.context.peers.with(&self.cluster, |link| link.lease.heard(now()));
                    let Down::Facts { revision, facts } = down else { return Err(LinkError::Left) };
                    if facts.is_empty() {
                        continue;
                    }
                    let (at, batch) = held.get_or_insert_default();
                    *at = revision;
                    batch.extend(facts);
                    held_bytes += document.json.len();
                    if held_bytes < BATCH_BYTES {
                        continue;
                    }
                }
                None => {}
            }
            if let Some((revision, facts)) = held.take() {
                held_bytes = 0;
                self.commit(facts).await?;
                // Full: the peer reads slowly, and the next acknowledgement covers this one.
                let _ = up.try_send(Document { json: encode(&Up::Applied { revision }) });
                self.context.peers.with(&self.cluster, |link| link.lease.heard(now()));
            }
        }
    }

    /// Commits what passes the import filter. A refusal of the log ends the session; no quorum only delays.
    async fn commit(&self, facts: Vec<PeerFact>) -> Result<(), LinkError> {
        let state = self.context.handle.state();
        let (facts, refusals) = admit(&state.view, &self.cluster, facts);
        let follows = state.view.peers.get(&self.cluster).map(Told::of);
        drop(state);
        if !refusals.is_empty() {
            for refusal in refusals.iter().take(LOGGED_REFUSALS) {
                let refused = refusals.len();
                tracing::warn!(peer = %self.cluster, why = %refusal, refused, "import refused");
            }
            self.context.peers.with(&self.cluster, |link| link.refused += refusals.len() as u64);
        }
        if facts.is_empty() {
            return Ok(());
        }
        loop {
            let (cluster, facts) = (self.cluster.clone(), facts.clone());
            let command = Command::PeerFacts { cluster, facts, follows };
            match self.context.handle.propose("", command).await {
                Ok(outcome) => {
                    return outcome.result.map(drop).map_err(|refusal| {
                        tracing::warn!(peer = %self.cluster, why = %refusal, "the peer's facts were refused");
                        LinkError::NotTaken(refusal)
                    });
                }
                Err(error @ ProposeError::TooLarge(_)) => return Err(LinkError::Uncommittable(error)),
                Err(error) => {
                    tracing::warn!(peer = %self.cluster, why = %error, "the peer's facts are not committed yet");
                    tokio::time::sleep(COMMIT_RETRY).await;
                }
            }
        }
    }

    async fn keep_measuring(&self, mut client: PeerClient<tonic::transport::Channel>) {
        loop {
            let began = Instant::now();
            let greeted = tokio::time::timeout(SILENT_AFTER, client.greet(Document::default())).await;
            if let Ok(Ok(_)) = greeted {
                let rtt = began.elapsed();
                self.context.peers.with(&self.cluster, |link| link.rtt = Some(rtt));
            }
            tokio::time::sleep(MEASURE).await;
        }
    }

    /// The other side has removed us: we forget it too, unless we have joined anew since the session began. If it was
    /// our own administrator who left, that Command is on its way and is the one that belongs in the audit trail.
    async fn forget_peer(&self, invite: String) {
        let mut states = self.context.handle.states();
        let gone = states.wait_for(|state| {
            state.view.peers.get(&self.cluster).is_none_or(|peer| peer.record.invite != invite)
        });
        if tokio::time::timeout(FAREWELL, gone).await.is_ok() {
            return;
        }
        let command = Command::PeerRemove { cluster: self.cluster.clone(), only_invite: Some(invite) };
        match self.context.handle.propose("", command).await {
            Ok(outcome) => {
                tracing::info!(peer = %self.cluster, revision = outcome.revision, "the peer has left")
            }
            Err(error) => {
                tracing::warn!(peer = %self.cluster, why = %error, "the peer has left; not committed yet")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(age: Option<u64>, acknowledged: Option<(u64, u64)>) -> PeerLinkReport {
        PeerLinkReport {
            cluster: "west".parse().unwrap(),
            link: if age.is_some() { Link::Connected } else { Link::Unheard },
            age_ms: age,
            endpoint: None,
            rtt_ms: None,
            refused_imports: 0,
            error: None,
            acknowledged: acknowledged.map(|(revision, _)| revision),
            acknowledged_age_ms: acknowledged.map(|(_, age)| age),
        }
    }

    #[test]
    fn the_freshest_hearing_and_the_freshest_acknowledgement_win() {
        let all =
            [report(Some(90_000), Some((40, 80_000))), report(Some(300), None), report(None, Some((57, 20)))];
        let freshest = freshest(all).unwrap();
        assert_eq!(freshest.age_ms, Some(300));
        assert_eq!(freshest.link, Link::Connected);
        assert_eq!((freshest.acknowledged, freshest.acknowledged_age_ms), (Some(57), Some(20)));
        assert_eq!(super::freshest([]), None);
    }
}
