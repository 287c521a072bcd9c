//! Watch: proxies and gateways receive the View and its Changes, and say what they serve and have in force.
//!
//! One task per stream; what goes down is bounded, and who does not keep up is cut (it comes back and resumes).
//! When a stream ends, its announcement is withdrawn after a lease, unless the same name has announced anew.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::catalog::{Announcement, Serves, Session};
use hanse_federation::wire::watch::watch_down::Message as Down;
use hanse_federation::wire::watch::watch_up::Message as Up;
use hanse_federation::wire::watch::{Changes, Hello, LiveQuery, WatchDown, WatchUp};
use hanse_federation::wire::{decode, encode};
use hanse_identity::name::MemberRole;
use hanse_identity::{NodeName, RevocationId, SpiffeId};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::census::{LiveCount, LiveQuestion, MAX_CALLERS, Outgoing, StreamKey};
use super::context::{Context, now, stopped};
use super::driver::Applied;
use super::quorum::{Leash, NO_QUORUM, NODE_REVOKED};
use super::roles::{caller_of, is_workload};
use super::status::unreadable;
use super::taps::Telling;
use crate::admin::SubscriberKind;
use crate::command::Command;
use crate::state::State;
use crate::wire::watch::watch_server::Watch;

mod encoded;
mod taps;

use encoded::Encoded;

/// Messages that wait for a slow subscriber; one more, and it is cut.
pub const SUBSCRIBER_QUEUE: usize = 256;
/// Live queries that wait for a subscriber's stream.
const QUESTION_QUEUE: usize = 16;
/// The first message must be there by then.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a subscriber hears something, if only the newest revision.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How long an announcement outlives its stream.
pub const LEASE: Duration = Duration::from_secs(2);
/// Shortest time between two proposals for one stream: each is a write to every node's disk.
const ANNOUNCE_PACE: Duration = Duration::from_millis(100);
/// First and longest pause before an announcement or withdrawal is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// Trust domains of which a subscriber may say that something rests on their outgoing authorities.
const MAX_OUTGOING_DOMAINS: usize = 512;

/// The service.
#[derive(Clone)]
pub struct WatchService {
    context: Arc<Context>,
    encoded: Arc<Encoded>,
}

/// One subscriber's stream.
struct Subscription {
    context: Arc<Context>,
    encoded: Arc<Encoded>,
    key: StreamKey,
    identity: SpiffeId,
    up: Streaming<WatchUp>,
    down: mpsc::Sender<Result<WatchDown, Status>>,
    /// To the task that proposes what this subscriber announces: only the latest counts.
    announce: watch::Sender<Option<Box<Announcement>>>,
    /// Up to which revision everything has been put into the queue.
    told: u64,
    /// The live query that was asked last and not answered yet.
    asked: Option<u64>,
    /// The taps that it was told of last, and what it tells of them.
    tapped: Vec<Telling>,
}

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the subscriber closed it")]
    Closed,
    #[error("the subscriber does not keep up")]
    Slow,
    #[error("another stream of the same name took over")]
    TakenOver,
    #[error("the node is stopping")]
    Stopping,
    #[error("{}", .0.message())]
    Refused(Status),
}

impl WatchService {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, encoded: Arc::default() }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchDown, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchUp>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let identity = caller_of(&request)?.id().clone();
        let mut up = request.into_inner();
        let (down, stream) = mpsc::channel(SUBSCRIBER_QUEUE);
        let service = self.clone();
        // The answer's headers go out at once; the subscriber may wait for them before it says hello.
        tokio::spawn(async move {
            let hello = match hello(&mut up).await {
                Ok(hello) => hello,
                Err(status) => return drop(down.send(Err(status)).await),
            };
            match service.admit(&identity, &hello) {
                Ok((key, questions)) => service.run(key, identity, hello, up, down, questions).await,
                Err(status) => drop(down.send(Err(status)).await),
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

async fn hello(up: &mut Streaming<WatchUp>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, up.next()).await;
    match first.map_err(|_| Status::deadline_exceeded("no hello"))?.transpose()? {
        Some(WatchUp { message: Some(Up::Hello(hello)) }) => Ok(hello),
        _ => Err(Status::invalid_argument("a watch begins with hello")),
    }
}

impl WatchService {
    /// Who may be whom: a gateway is named by its SPIFFE ID, a proxy names itself.
    fn admit(
        &self,
        identity: &SpiffeId,
        hello: &Hello,
    ) -> Result<(StreamKey, mpsc::Receiver<LiveQuestion>), Status> {
        let name: NodeName = hello
            .name
            .parse()
            .map_err(|e: hanse_identity::NameError| Status::invalid_argument(e.to_string()))?;
        let kind = match hello.kind.as_str() {
            "proxy" if is_workload(identity) => SubscriberKind::Proxy,
            "gateway" if identity.as_member() == Some((MemberRole::Gateway, name.as_str())) => {
                SubscriberKind::Gateway
            }
            kind => return Err(Status::permission_denied(format!("{identity} is not {kind} {name}"))),
        };
        let (questions, asked) = mpsc::channel(QUESTION_QUEUE);
        let version = hello.version.chars().take(64).collect();
        let key = self
            .context
            .census
            .join(kind, name, identity.clone(), version, questions, now())
            .map_err(|e| Status::already_exists(e.to_string()))?;
        Ok((key, asked))
    }

    async fn run(
        &self,
        key: StreamKey,
        identity: SpiffeId,
        hello: Hello,
        up: Streaming<WatchUp>,
        down: mpsc::Sender<Result<WatchDown, Status>>,
        questions: mpsc::Receiver<LiveQuestion>,
    ) {
        let (announce, announced) = watch::channel(None);
        let announcer =
            Announcer { context: self.context.clone(), key: key.clone(), identity: identity.clone() };
        let announcing = tokio::spawn(announcer.run(announced));
        let mut subscription = Subscription {
            context: self.context.clone(),
            encoded: self.encoded.clone(),
            key: key.clone(),
            identity,
            up,
            down: down.clone(),
            announce,
            told: hello.from_revision,
            asked: None,
            tapped: Vec::new(),
        };
        tracing::info!(name = %key.name, kind = key.kind.as_str(), from = hello.from_revision, "subscriber came");
        let end = subscription.serve(questions).await;
        if let End::Refused(status) = &end {
            // A full queue means that nobody reads: then the end of the stream is all that can be told.
            let _ = down.try_send(Err(status.clone()));
        }
        drop(subscription);
        tracing::info!(name = %key.name, why = %end, "subscriber gone");
        self.context.census.leave(&key, now());
        // Returns the session that was proposed last; it ends because its sender is gone.
        let last = announcing.await.unwrap_or_default();
        if !*self.context.stop.borrow() {
            tokio::spawn(withdraw_after_lease(self.context.clone(), key, last));
        }
    }
}

impl Subscription {
    async fn serve(&mut self, mut questions: mpsc::Receiver<LiveQuestion>) -> End {
        // Subscribed before the State is read, so that no revision falls between the two.
        let mut feed = self.context.handle.feed();
        let mut stop = self.context.stop.clone();
        let mut taps = self.context.taps.changes();
        if let Err(end) = self.catch_up().and_then(|()| self.tap()) {
            return end;
        }
        let mut alive = tokio::time::interval(SIGN_OF_LIFE);
        let mut leash = Leash::new(self.context.handle.status().leader.is_some(), std::time::Instant::now());
        loop {
            let step = tokio::select! {
                received = feed.recv() => match received {
                    Ok(applied) if applied.reset => self.catch_up(),
                    Ok(applied) => self.tell(&applied),
                    Err(RecvError::Lagged(_)) => self.catch_up(),
                    Err(RecvError::Closed) => Err(End::Stopping),
                },
                up = self.up.next() => match up {
                    Some(Ok(WatchUp { message: Some(message) })) => self.hear(message),
                    Some(Ok(WatchUp { message: None })) => Ok(()),
                    Some(Err(_)) | None => Err(End::Closed),
                },
                question = questions.recv() => match question {
                    Some(question) => self.ask(&question),
                    None => Err(End::TakenOver),
                },
                Ok(()) = taps.changed() => self.tap(),
                _ = alive.tick() => {
                    let led = self.context.handle.status().leader.is_some();
                    match leash.is_over(led, std::time::Instant::now()) {
                        true => Err(End::Refused(Status::unavailable(NO_QUORUM))),
                        // What it serves may have changed, and with it who looks at it.
                        false => self.send(Down::Changes(Changes { revision: self.told, change: vec![] })).and_then(|()| self.tap()),
                    }
                }
                () = stopped(&mut stop) => Err(End::Stopping),
            };
            if let Err(end) = step {
                return end;
            }
            if self.context.is_revoked() {
                // The feed may be a step behind the State: whoever listens hears of it before being sent away.
                let _ = self.catch_up();
                return End::Refused(Status::unavailable(NODE_REVOKED));
            }
        }
    }

    /// Brings the subscriber from `told` to the State of this node: by Changes if they are still known, else by a
    /// snapshot. One that is ahead of us (it comes from a node that is further) waits for us.
    fn catch_up(&mut self) -> Result<(), End> {
        let state = self.context.handle.state();
        let revision = state.view.revision.0;
        if self.told > 0 && self.told >= revision {
            return Ok(());
        }
        let missed = if self.told > 0 { self.context.handle.changes_since(self.told) } else { None };
        match missed {
            Some(missed) if missed.len() < SUBSCRIBER_QUEUE / 2 => {
                missed.iter().try_for_each(|a| self.tell(a))
            }
            _ => {
                self.told = revision;
                self.send(Down::Snapshot(self.encoded.snapshot(&state)))
            }
        }
    }

    fn tell(&mut self, applied: &Applied) -> Result<(), End> {
        if applied.revision <= self.told {
            return Ok(());
        }
        self.told = applied.revision;
        if applied.changes.is_empty() {
            // The sign of life will carry the revision.
            return Ok(());
        }
        self.send(Down::Changes(self.encoded.changes(applied)))
    }

    fn ask(&mut self, question: &LiveQuestion) -> Result<(), End> {
        self.asked = Some(question.query);
        let revocation = encode(&*question.revocation);
        self.send(Down::Live(LiveQuery { query: question.query, revocation }))
    }

    fn hear(&mut self, message: Up) -> Result<(), End> {
        match message {
            Up::Hello(_) => Err(End::Refused(Status::invalid_argument("hello is said once"))),
            Up::Applied(applied) => {
                let closed = applied.closed.into_iter();
                let closed: Vec<(RevocationId, u64)> =
                    closed.filter_map(|c| Some((c.revocation.parse().ok()?, c.connections))).collect();
                let outgoing = applied.outgoing.iter().take(MAX_OUTGOING_DOMAINS).filter_map(|o| {
                    let outgoing = Outgoing { connections: o.connections, own_svid: o.own_svid };
                    Some((o.trust_domain.parse().ok()?, outgoing))
                });
                // First what rests on which authority: who asks for both takes the revision for the older of the two.
                self.context.census.outgoing(&self.key, outgoing.collect());
                self.context.census.applied(&self.key, applied.revision, closed, now());
                Ok(())
            }
            Up::Traffic(traffic) => {
                // One that cannot be read is of a version that counts otherwise: it goes untold.
                if let Ok(report) = decode("traffic", &traffic.report) {
                    self.context.census.traffic(&self.key, report, now());
                }
                Ok(())
            }
            Up::Tapped(tapped) => {
                self.pass_on(tapped);
                Ok(())
            }
            Up::Announce(announce) => {
                let announcement: Announcement = decode("announcement", &announce.announcement)
                    .map_err(|e| End::Refused(unreadable(e)))?;
                self.check(&announcement)?;
                self.announce.send_replace(Some(Box::new(announcement)));
                Ok(())
            }
            Up::Live(reply) => {
                // Only what was asked, and only once.
                if self.asked == Some(reply.query) {
                    self.asked = None;
                    let others =
                        reply.others.iter().take(MAX_CALLERS).filter_map(|id| id.parse().ok()).collect();
                    let count =
                        LiveCount { connections: reply.connections, answered: 1, asked: 0, callers: others };
                    self.context.census.live_answer(reply.query, count);
                }
                Ok(())
            }
        }
    }

    fn check(&self, announcement: &Announcement) -> Result<(), End> {
        let fits = match announcement.serves {
            Serves::Gateway { .. } => self.key.kind == SubscriberKind::Gateway,
            Serves::Services { .. } | Serves::Nothing => self.key.kind == SubscriberKind::Proxy,
        };
        if announcement.name != self.key.name || !fits {
            let why = format!("{} {} may announce only itself", self.key.kind.as_str(), self.key.name);
            return Err(End::Refused(Status::permission_denied(why)));
        }
        Ok(())
    }

    fn send(&self, message: Down) -> Result<(), End> {
        self.down.try_send(Ok(WatchDown { message: Some(message) })).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => End::Slow,
            mpsc::error::TrySendError::Closed(_) => End::Closed,
        })
    }
}

/// Proposes what one subscriber announces: the latest, until it is committed or refused for good.
struct Announcer {
    context: Arc<Context>,
    key: StreamKey,
    identity: SpiffeId,
}

impl Announcer {
    /// Ends when the stream does; answers the last session that may be in the log.
    async fn run(self, mut announced: watch::Receiver<Option<Box<Announcement>>>) -> Option<Session> {
        let mut last = None;
        let mut proposed: Option<Instant> = None;
        while announced.changed().await.is_ok() {
            let mut pause = RETRY_FIRST;
            loop {
                if let Some(before) = proposed {
                    // What is announced meanwhile is overtaken by what comes last.
                    tokio::time::sleep_until(before + ANNOUNCE_PACE).await;
                }
                proposed = Some(Instant::now());
                let Some(announcement) = announced.borrow_and_update().clone() else { break };
                last = Some(Session {
                    incarnation: announcement.incarnation,
                    sequence: announcement.sequence,
                    node: self.context.name.clone(),
                });
                let said = announcement.clone();
                let done = tokio::select! {
                    done = self.propose(announcement) => done,
                    // A newer announcement overtakes; the end of the stream ends it.
                    changed = announced.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return last,
                    },
                };
                if done {
                    break;
                }
                let again = Instant::now() + pause;
                pause = (pause * 2).min(RETRY_LONGEST);
                loop {
                    tokio::select! {
                        () = tokio::time::sleep_until(again) => break,
                        changed = announced.changed() => if changed.is_err() { return last },
                    }
                    // Who only says the same again has to wait: it was refused, or nobody leads.
                    if !announced.borrow().as_ref().is_some_and(|a| is_same(a, &said)) {
                        pause = RETRY_FIRST;
                        break;
                    }
                }
            }
        }
        last
    }

    async fn propose(&self, announcement: Box<Announcement>) -> bool {
        let command = Command::Announce {
            announcement,
            identity: self.identity.clone(),
            node: self.context.name.clone(),
        };
        match self.context.handle.propose(&self.identity.to_string(), command).await.map(|o| o.result) {
            Ok(Ok(_)) => {
                self.context.census.announced(&self.key, None);
                true
            }
            Ok(Err(refusal)) => {
                // Tried again, slowly: a registration may still be on its way.
                tracing::warn!(name = %self.key.name, identity = %self.identity, why = %refusal, "announcement refused");
                self.context.census.announced(&self.key, Some(refusal.to_string()));
                false
            }
            Err(error) => {
                tracing::warn!(name = %self.key.name, why = %error, "announcement not committed yet");
                false
            }
        }
    }
}

/// Whether two announcements say the same, whenever they say it.
fn is_same(one: &Announcement, other: &Announcement) -> bool {
    one.ready == other.ready && one.serves == other.serves && one.locality == other.locality
}

async fn withdraw_after_lease(context: Arc<Context>, key: StreamKey, last: Option<Session>) {
    let mut stop = context.stop.clone();
    tokio::select! {
        () = tokio::time::sleep(LEASE) => {}
        () = stopped(&mut stop) => return,
    }
    if let Some(session) = last {
        // A stream of the same name that has come since vouches for it now.
        if !context.census.is_latest(&key)
            || !withdraw(&context, &key.name, &session, || !context.census.is_latest(&key)).await
        {
            return;
        }
    }
    context.census.forget(&key);
}

/// Proposes a withdrawal until it has an outcome, the node stops, or `void` says that it is none any more.
async fn withdraw(context: &Context, name: &NodeName, session: &Session, void: impl Fn() -> bool) -> bool {
    let mut pause = RETRY_FIRST;
    let mut stop = context.stop.clone();
    while !void() {
        let command = Command::Withdraw { name: name.clone(), session: session.clone() };
        match context.handle.propose("", command).await {
            Ok(outcome) => {
                tracing::info!(%name, revision = outcome.revision, "withdrawn");
                return true;
            }
            Err(error) => tracing::warn!(%name, why = %error, "withdrawal not committed yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_LONGEST),
            () = stopped(&mut stop) => return false,
        }
    }
    false
}

/// Who vouches for what in a View: (name, session) of every endpoint and gateway, if it is one of these nodes.
fn vouched(state: &State, by: impl Fn(&NodeName) -> bool) -> Vec<(NodeName, Session)> {
    let endpoints = state.view.endpoints.values().map(|e| (&e.id, &e.session));
    let gateways = state.view.gateways.values().map(|g| (&g.name, &g.session));
    let all =
        endpoints.chain(gateways).filter(|(_, session)| !session.is_of_registration() && by(&session.node));
    all.map(|(name, session)| (name.clone(), session.clone())).collect()
}

/// How long this node vouches for a subscriber that has no stream here: it may come back.
pub const RETURN_TIME: Duration = Duration::from_secs(5);
/// How often that is looked at.
const OWN_SWEEP: Duration = Duration::from_millis(2500);
/// How long a node may be unheard before the leader withdraws what it vouched for.
pub const NODE_LEASE: Duration = Duration::from_secs(10);
/// How often the leader looks.
const SWEEP: Duration = Duration::from_secs(1);

/// What this node vouches for and has no stream of is withdrawn: after a start what nobody has come back for, and
/// later what reached the log when its stream had ended and its lease was over.
pub async fn sweep_own(context: Arc<Context>) {
    let mut stop = context.stop.clone();
    let mut tick = tokio::time::interval(OWN_SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut alone: BTreeMap<NodeName, (Session, Instant)> = BTreeMap::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stop) => return,
        }
        if context.handle.status().leader.is_none() {
            alone.clear();
            continue;
        }
        let now = Instant::now();
        let own = vouched(&context.handle.state(), |node| *node == context.name);
        let found = own.into_iter().filter(|(name, _)| !context.census.holds(name));
        let found = found.map(|(name, session)| {
            let before = alone.get(&name).filter(|(known, _)| *known == session).map(|(_, since)| *since);
            (name, (session, before.unwrap_or(now)))
        });
        alone = found.collect();
        for (name, (session, since)) in &alone {
            let came_back = || context.census.holds(name);
            if now.duration_since(*since) >= RETURN_TIME && !came_back() {
                withdraw(&context, name, session, came_back).await;
            }
        }
    }
}

/// On the leader: what a node vouched for that has not been heard for long, is withdrawn.
pub async fn sweep_silent_nodes(context: Arc<Context>) {
    let mut stop = context.stop.clone();
    let mut tick = tokio::time::interval(SWEEP);
    let mut unheard_since = std::collections::BTreeMap::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stop) => return,
        }
        let status = context.handle.status();
        if !status.is_leader {
            unheard_since.clear();
            continue;
        }
        let now = now();
        for (raft_id, _, heard) in &status.followers {
            if *heard || *raft_id == context.raft_id {
                unheard_since.remove(raft_id);
            } else {
                unheard_since.entry(*raft_id).or_insert(now);
            }
        }
        let state = context.handle.state();
        let gone: Vec<&NodeName> = unheard_since
            .iter()
            .filter(|(_, since)| now.since(**since) >= NODE_LEASE)
            .filter_map(|(raft_id, _)| state.private.nodes.get(raft_id).map(|n| &n.name))
            .collect();
        for (name, session) in vouched(&state, |node| gone.contains(&node)) {
            let led = || !context.handle.status().is_leader;
            withdraw(&context, &name, &session, led).await;
        }
    }
}
