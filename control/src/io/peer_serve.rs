//! Peer: what other clusters may ask of this one: to join, who is here, to be told, receipts, farewell.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hanse_federation::join::{Check, Greeting, JoinReply, JoinRequest, Offer, Phase, invited, signed_bytes};
use hanse_federation::lease::HEARTBEAT;
use hanse_federation::session::{self, Down, Up, tell, tell_all};
use hanse_federation::view::PeerState;
use hanse_federation::wire::{decode, encode};
use hanse_federation::{Change, PeerFact};
use hanse_identity::token::{Admits, TokenError};
use hanse_identity::{ClusterName, TrustDomain};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::admin::revoke;
use super::context::{Context, VERSION, now, stopped};
use super::driver::{Applied, ProposeError};
use super::issue::{proof_time, request_hash};
use super::reach;
use super::roles::{caller_of, connection_of};
use super::rotation;
use super::status::{answered, document, no_outcome, read};
use crate::admin::{BundleQuestion, PeerQuestion, Written};
use crate::command::{Actor, Answer, Command};
use crate::state::State;
use crate::wire::control::Document;
use crate::wire::control::peer_server::Peer;

/// Messages that wait for a slow peer; one more, and its session is cut.
const SESSION_QUEUE: usize = 256;
/// A message is sent once its facts have this many bytes.
const MESSAGE_BYTES: usize = 128 << 10;
/// How long a session waits for a State that has everything acknowledged before it began.
const CATCH_UP: Duration = Duration::from_secs(2);
/// How long a session goes on while this node knows no leader: it may be cut off from what its cluster decides.
const LEADERLESS: Duration = Duration::from_secs(2);
/// The first message must be there by then.
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);

/// The service.
pub struct PeerService {
    context: Arc<Context>,
}

impl PeerService {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

/// The joined cluster that called, by its trust domain.
fn peer_of<T>(context: &Context, request: &Request<T>) -> Result<(ClusterName, TrustDomain), Status> {
    let trust_domain = caller_of(request)?.id().trust_domain().clone();
    let state = context.handle.state();
    let peer = state
        .view
        .peer_of(&trust_domain)
        .ok_or_else(|| Status::permission_denied(format!("{trust_domain} belongs to no joined cluster")))?;
    Ok((peer.record.cluster.clone(), trust_domain))
}

/// What this cluster tells another of itself.
pub fn offer(state: &State) -> Offer {
    let view = &state.view;
    Offer {
        cluster: view.cluster.clone(),
        trust_domain: view.trust_domain.clone(),
        bundle: own_bundle(state),
        endpoints: peer_addresses(state),
        gateways: session::gateways(view),
        clock: now(),
        version: VERSION.to_owned(),
    }
}

fn own_bundle(state: &State) -> hanse_identity::Bundle {
    let trust_domain = &state.view.trust_domain;
    let none = || hanse_identity::Bundle::new(trust_domain.clone(), 0, Vec::new());
    state.view.bundles.get(trust_domain).cloned().unwrap_or_else(none)
}

fn peer_addresses(state: &State) -> Vec<String> {
    state.private.nodes.values().map(|n| n.peer_address.clone()).collect()
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn join(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let info = connection_of(&request)?;
        self.context.joining.from(info.remote.ip())?;
        let request: JoinRequest = read("join request", request.get_ref())?;
        let state = self.context.handle.read().await.map_err(|e| no_outcome(&e))?;
        prove(&state, &request, &info.binding)?;
        // Each phase may write into the log, or dial.
        self.context.joining.with(&request.invite)?;
        let reply = match request.phase {
            Phase::Preflight => self.preflight(&state, &request).await,
            Phase::Commit => self.commit(&state, &request).await?,
            Phase::Abort => {
                completed(&state, &request)?;
                self.abort(&state, &request).await?
            }
        };
        Ok(Response::new(document(&reply)))
    }

    async fn greet(&self, _request: Request<Document>) -> Result<Response<Document>, Status> {
        Ok(Response::new(document(&Greeting {
            cluster: self.context.cluster.clone(),
            trust_domain: self.context.trust_domain.clone(),
            clock: now(),
            version: VERSION.to_owned(),
        })))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<Document, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<Document>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (cluster, _) = peer_of(&self.context, &request)?;
        let (down, stream) = mpsc::channel(SESSION_QUEUE);
        let exporter = Exporter { context: self.context.clone(), cluster, down };
        tokio::spawn(exporter.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn revocation_status(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let (_, trust_domain) = peer_of(&self.context, &request)?;
        let foreign = || Status::permission_denied("a peer may ask only about its own trust domain");
        match read("peer question", request.get_ref())? {
            PeerQuestion::Revocation(question) => {
                if question.id.origin != trust_domain {
                    return Err(foreign());
                }
                Ok(Response::new(document(&revoke::own_part(&self.context, &question.id).await.0)))
            }
            PeerQuestion::Live(revocation) => {
                if !revocation.is_of(&trust_domain) {
                    return Err(foreign());
                }
                Ok(Response::new(document(&revoke::own_reach(&self.context, &revocation).await)))
            }
        }
    }

    async fn bundle_status(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let (_, trust_domain) = peer_of(&self.context, &request)?;
        let question: BundleQuestion = read("bundle question", request.get_ref())?;
        let state = self.context.handle.state();
        let asked = rotation::part_of(&self.context, &state, &trust_domain, question.sequence);
        Ok(Response::new(document(&asked.await.0)))
    }

    async fn leave(&self, request: Request<Document>) -> Result<Response<Document>, Status> {
        let (cluster, _) = peer_of(&self.context, &request)?;
        let actor = Actor::from(caller_of(&request)?);
        let command = Command::PeerRemove { cluster: cluster.clone(), only_invite: None };
        let outcome = self.context.handle.propose(actor, command).await.map_err(|e| no_outcome(&e))?;
        let (revision, answer) = answered(outcome)?;
        tracing::info!(peer = %cluster, revision, "the peer has left");
        Ok(Response::new(document(&Written { revision, changed: answer != Answer::Already })))
    }
}

/// Whether the joiner holds the token, on this very connection.
fn prove(state: &State, request: &JoinRequest, binding: &[u8; 32]) -> Result<(), Status> {
    // One answer for a token that never was and a proof that does not fit: nothing to learn by guessing.
    let unknown = || Status::permission_denied("the join token is not known here, or its proof does not fit");
    let invite = state.private.invites.get(&request.invite).ok_or_else(unknown)?;
    if !matches!(invite.admits, Admits::Cluster(_)) {
        return Err(unknown());
    }
    let signed = signed_bytes(request.phase, &request.offer);
    invite.check(binding, &signed, &request.proof, proof_time(invite)).map_err(|e| match e {
        TokenError::Expired(_) => Status::permission_denied(e.to_string()),
        _ => unknown(),
    })?;
    match &invite.admits {
        Admits::Cluster(cluster) if *cluster == request.offer.cluster => Ok(()),
        _ => Err(Status::permission_denied(format!(
            "the join token is not for cluster {}",
            request.offer.cluster
        ))),
    }
}

/// A join that was completed is not undone by whoever holds its token: that is what leaving is for.
fn completed(state: &State, request: &JoinRequest) -> Result<(), Status> {
    match state.view.peers.get(&request.offer.cluster) {
        Some(peer) if peer.record.invite == request.invite && peer.state == PeerState::Joined => {
            let cluster = &request.offer.cluster;
            Err(Status::failed_precondition(format!("{cluster} has joined; hanse cluster leave ends it")))
        }
        _ => Ok(()),
    }
}

impl PeerService {
    async fn preflight(&self, state: &State, request: &JoinRequest) -> JoinReply {
        let reach_back = reach::back(&self.context, &request.offer).await;
        let checks = invited(&state.view, request, &reach_back, now(), VERSION);
        let offer = checks.iter().all(|c| c.ok).then(|| offer(state));
        JoinReply { checks, offer, committed: None }
    }

    async fn commit(&self, state: &State, request: &JoinRequest) -> Result<JoinReply, Status> {
        let mut checks = invited(&state.view, request, &[], now(), VERSION);
        if checks.iter().any(|c| !c.ok) {
            return Ok(JoinReply { checks, offer: None, committed: None });
        }
        if let Some(peer) = state.view.peers.get(&request.offer.cluster)
            && peer.record.invite == request.invite
        {
            // A joiner that broke off after our commit comes again: the same answer, and nothing is written.
            let committed = Some(state.view.revision.0);
            return Ok(JoinReply { checks, offer: Some(offer(state)), committed });
        }
        let command = Command::PeerAccept {
            invite: request.invite.clone(),
            request_hash: request_hash(&encode(&request.offer)),
            offer: Box::new(request.offer.clone()),
        };
        let outcome = self.context.handle.propose("", command).await.map_err(|e| no_outcome(&e))?;
        match outcome.result {
            Ok(_) => {
                tracing::info!(peer = %request.offer.cluster, revision = outcome.revision, "a cluster has joined");
                Ok(JoinReply { checks, offer: Some(offer(state)), committed: Some(outcome.revision) })
            }
            Err(refusal) => {
                checks.push(Check { name: "agree".to_owned(), ok: false, detail: refusal.to_string() });
                Ok(JoinReply { checks, offer: None, committed: None })
            }
        }
    }

    async fn abort(&self, state: &State, request: &JoinRequest) -> Result<JoinReply, Status> {
        let command = Command::PeerRemove {
            cluster: request.offer.cluster.clone(),
            only_invite: Some(request.invite.clone()),
        };
        let outcome = self.context.handle.propose("", command).await.map_err(|e| no_outcome(&e))?;
        // Nothing to undo is as good as undone.
        let detail = match outcome.result {
            Ok(_) => "undone".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        tracing::info!(peer = %request.offer.cluster, detail, "a join was undone");
        let checks = vec![Check { name: "agree".to_owned(), ok: true, detail }];
        Ok(JoinReply { checks, offer: Some(offer(state)), committed: None })
    }
}

/// Tells one peer what it may know, from this node's applied State.
struct Exporter {
    context: Arc<Context>,
    cluster: ClusterName,
    down: mpsc::Sender<Result<Document, Status>>,
}

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the peer closed it")]
    Closed,
    #[error("the peer does not keep up")]
    Slow,
    #[error("it is no peer any more")]
    Removed,
    #[error("the node is stopping")]
    Stopping,
    #[error("{0}")]
    Unreadable(String),
    #[error("this node fell too far behind its own log")]
    Lagged,
    #[error("this node has no quorum: what it knows may be old")]
    NoQuorum,
}

impl Exporter {
    async fn run(self, mut up: Streaming<Document>) {
        let end = match self.serve(&mut up).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        tracing::info!(peer = %self.cluster, why = %end, "export session ended");
        let farewell = match &end {
            End::Removed => Ok(Document { json: encode(&Down::Left) }),
            End::Unreadable(why) => Err(Status::invalid_argument(why.clone())),
            End::NoQuorum => Err(Status::unavailable(end.to_string())),
            _ => return,
        };
        // A full queue means that nobody reads: then the end of the stream is all that can be told.
        let _ = self.down.try_send(farewell);
    }

    async fn serve(&self, up: &mut Streaming<Document>) -> Result<std::convert::Infallible, End> {
        let from = self.resume(up).await?;
        let mut feed = self.context.handle.feed();
        let mut stop = self.context.stop.clone();
        let mut state = self.caught_up().await?;
        self.begin(&state, from)?;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        let mut led = Instant::now();
        loop {
            tokio::select! {
                received = feed.recv() => {
                    let first = match received {
                        Ok(applied) => applied,
                        Err(RecvError::Closed) => return Err(End::Stopping),
                        Err(RecvError::Lagged(_)) => return Err(End::Lagged),
                    };
                    if first.reset {
                        return Err(End::Lagged);
                    }
                    if first.revision > state.view.revision.0 {
                        state = self.advance(&state, first, &mut feed).await?;
                    }
                }
                document = up.next() => match document {
                    Some(Ok(document)) => self.hear(&document)?,
                    _ => return Err(End::Closed),
                },
                _ = heartbeat.tick() => {
                    if self.context.handle.status().leader.is_some() {
                        led = Instant::now();
                    } else if led.elapsed() >= LEADERLESS {
                        return Err(End::NoQuorum);
                    }
                    self.send(&Down::Facts { revision: state.view.revision.0, facts: vec![] })?;
                }
                () = stopped(&mut stop) => return Err(End::Stopping),
            }
        }
    }

    async fn resume(&self, up: &mut Streaming<Document>) -> Result<u64, End> {
        let first = tokio::time::timeout(RESUME_TIMEOUT, up.next()).await;
        let Ok(Some(Ok(document))) = first else { return Err(End::Closed) };
        match decode::<Up>("peer session", &document.json) {
            Ok(Up::Resume { cluster, from }) if cluster == self.cluster => {
                tracing::info!(peer = %self.cluster, from, "export session open");
                Ok(from)
            }
            Ok(_) => {
                Err(End::Unreadable("a session begins with a resume of the caller's own cluster".to_owned()))
            }
            Err(error) => Err(End::Unreadable(error.to_string())),
        }
    }

    /// Our State with everything that was acknowledged before the peer came. A node that is behind its own cluster
    /// would take back what the peer has heard from another one: revocations, for instance.
    async fn caught_up(&self) -> Result<Arc<State>, End> {
        match tokio::time::timeout(CATCH_UP, self.context.handle.read()).await {
            Ok(Ok(state)) => Ok(state),
            Ok(Err(ProposeError::ShuttingDown)) => Err(End::Stopping),
            Ok(Err(_)) | Err(_) => Err(End::NoQuorum),
        }
    }

    fn hear(&self, document: &Document) -> Result<(), End> {
        match decode::<Up>("peer session", &document.json) {
            Ok(Up::Applied { revision }) => {
                self.context.peers.acknowledged(&self.cluster, revision, now());
                Ok(())
            }
            Ok(Up::Resume { .. }) => Err(End::Unreadable("a session is resumed once".to_owned())),
            Err(error) => Err(End::Unreadable(error.to_string())),
        }
    }

    /// From where the peer stands: nothing if nothing has changed since, else everything, told anew.
    fn begin(&self, state: &State, from: u64) -> Result<(), End> {
        if !state.view.peers.contains_key(&self.cluster) {
            return Err(End::Removed);
        }
        let revision = state.view.revision.0;
        let unchanged = |missed: Vec<Arc<Applied>>| missed.iter().all(|a| a.changes.is_empty());
        if from > 0 && from <= revision && self.context.handle.changes_since(from).is_some_and(unchanged) {
            // The peer has acknowledged `from` before; say so for those who ask this node.
            self.context.peers.acknowledged(&self.cluster, from, now());
            return Ok(());
        }
        let mut facts = tell_all(&state.view, &self.cluster);
        let after_begin = facts.iter().position(|f| *f == PeerFact::Begin).map_or(0, |at| at + 1);
        facts.insert(after_begin, PeerFact::Endpoints(peer_addresses(state)));
        self.facts(revision, facts)
    }

    /// Tells what has changed from `before` to this node's newest State.
    async fn advance(
        &self,
        before: &State,
        first: Arc<Applied>,
        feed: &mut tokio::sync::broadcast::Receiver<Arc<Applied>>,
    ) -> Result<Arc<State>, End> {
        let mut states = self.context.handle.states();
        let at_least = first.revision;
        let waited = states.wait_for(|state| state.view.revision.0 >= at_least).await;
        let after = waited.map_err(|_| End::Stopping)?.clone();
        let mut changes: Vec<Change> = first.changes.clone();
        let mut reached = first.revision;
        while reached < after.view.revision.0 {
            let applied = match feed.recv().await {
                Ok(applied) if !applied.reset => applied,
                Err(RecvError::Closed) => return Err(End::Stopping),
                Ok(_) | Err(RecvError::Lagged(_)) => return Err(End::Lagged),
            };
            reached = applied.revision;
            changes.extend(applied.changes.iter().cloned());
        }
        if !after.view.peers.contains_key(&self.cluster) {
            return Err(End::Removed);
        }
        let facts = tell(&before.view, &after.view, &changes, &self.cluster);
        if !facts.is_empty() {
            let revision = after.view.revision.0;
            self.facts(revision, facts)?;
        }
        Ok(after)
    }

    /// Facts of one revision, in messages of bounded size.
    fn facts(&self, revision: u64, facts: Vec<PeerFact>) -> Result<(), End> {
        let (mut message, mut bytes) = (Vec::new(), 0);
        for fact in facts {
            bytes += encode(&fact).len();
            message.push(fact);
            if bytes >= MESSAGE_BYTES {
                self.send(&Down::Facts { revision, facts: std::mem::take(&mut message) })?;
                bytes = 0;
            }
        }
        if message.is_empty() { Ok(()) } else { self.send(&Down::Facts { revision, facts: message }) }
    }

    fn send(&self, down: &Down) -> Result<(), End> {
        self.down.try_send(Ok(Document { json: encode(down) })).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => End::Slow,
            mpsc::error::TrySendError::Closed(_) => End::Closed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_federation::change::PeerRecord;
    use hanse_identity::{Bundle, Timestamp};

    #[test]
    fn a_completed_join_is_not_undone_by_whoever_holds_its_token() {
        let mut state = State::founded("east".parse().unwrap(), "east.example".parse().unwrap(), Vec::new());
        let trust_domain: TrustDomain = "west.example".parse().unwrap();
        let record = PeerRecord {
            cluster: "west".parse().unwrap(),
            trust_domain: trust_domain.clone(),
            endpoints: vec!["127.0.0.1:1".to_owned()],
            invite: "i-1".to_owned(),
            joined: Timestamp(1),
        };
        let abort = |invite: &str| JoinRequest {
            invite: invite.to_owned(),
            phase: Phase::Abort,
            offer: Offer {
                cluster: "west".parse().unwrap(),
                trust_domain: trust_domain.clone(),
                bundle: Bundle::new(trust_domain.clone(), 1, Vec::new()),
                endpoints: Vec::new(),
                gateways: Vec::new(),
                clock: Timestamp(1),
                version: VERSION.to_owned(),
            },
            proof: Vec::new(),
        };
        assert!(completed(&state, &abort("i-1")).is_ok(), "nothing is there to be undone");
        state.view.apply(&Change::PeerPut(record));
        assert!(completed(&state, &abort("i-1")).is_ok(), "a join that has begun may be undone");
        state.view.apply(&Change::PeerFact("west".parse().unwrap(), PeerFact::Begin));
        state.view.apply(&Change::PeerFact("west".parse().unwrap(), PeerFact::Synced(4)));
        let refused = completed(&state, &abort("i-1")).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(completed(&state, &abort("i-2")).is_ok(), "what another invite has made is not touched");
    }
}
