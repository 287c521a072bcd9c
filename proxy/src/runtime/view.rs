//! View: the Watch stream to a control node of our cluster. The View and its Changes come down; what we serve, what
//! we have applied and how many connections a target has go up.
//!
//! One task. It fails over between control nodes, and what is known stays in use while there is none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hanse_federation::catalog::Serves;
use hanse_federation::presence::Presence;
use hanse_federation::wire::watch::{self as pb, watch_down, watch_up};
use hanse_federation::wire::{decode, encode};
use hanse_federation::{Change, Revision, View};
use hanse_identity::name::MemberRole;
use hanse_identity::tls::{Expect, IdentitySource, TrustSource, client_config};
use hanse_identity::{Revocation, Trust};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::credentials::chain;
use super::drain::Stop;
use super::knowledge::Knowledge;
use super::worker::Random;
use super::{Plane, now};
use crate::wire::watch::watch_client::WatchClient;

/// What a role wants of the control plane.
pub struct Subscription {
    /// `proxy` or `gateway`.
    pub kind: &'static str,
    /// `host:port` of the cluster's control nodes; at least one.
    pub control: Vec<String>,
    /// What we serve; every change is announced.
    pub announce: watch::Receiver<Announce>,
}

/// What a role says of itself; name, locality and session are added here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    pub ready: bool,
    pub serves: Serves,
}

/// Why a session ended, or never began.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("refused or broke the stream: {}", chain(.0))]
    Stream(#[from] Status),
    #[error("does not answer")]
    Silent,
    #[error("sent what cannot be read: {0}")]
    Unreadable(#[from] hanse_federation::wire::WireError),
    #[error("sent the View of {0}, which is not our trust domain")]
    ForeignView(hanse_identity::TrustDomain),
    #[error("sent Changes before any View")]
    ChangesWithoutView,
}

/// Messages that may wait to go up.
const UP_QUEUE: usize = 64;
/// Messages that are folded into one View before it is put in force.
const BATCH: usize = 256;
/// Largest message from a control node: a View of 100 000 endpoints is about 60 MB of JSON.
const MAX_DOWN_BYTES: usize = 256 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_AT_MOST: Duration = Duration::from_secs(2);
/// How often it is looked whether there is something new to say of what is in force here.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// Longest time before an SVID's end at which its stream is replaced by one with the next SVID.
const REDIAL_BEFORE_EXPIRY: Duration = Duration::from_secs(30);
/// Where SNI does not matter: what is expected is an identity.
pub const INTERNAL_NAME: &str = "hanse.internal";

/// Keeps `plane.knowledge` current and announces what we serve, for as long as the process lives.
pub async fn follow(plane: Arc<Plane>, mut subscription: Subscription, mut stop: Stop) {
    let random = Random::from_entropy();
    let mut follower = Follower::new(plane);
    let mut which = random.next() as usize;
    let mut wait = RETRY_FIRST;
    loop {
        tokio::select! {
            () = stop.ended() => return,
            () = follower.identity_present() => {}
        }
        let node = subscription.control[which % subscription.control.len()].clone();
        let started = now();
        let outcome = tokio::select! {
            () = stop.ended() => return,
            outcome = follower.session(&node, which, &mut subscription) => outcome,
        };
        follower.plane.knowledge.set_link(|link| link.connected = false);
        follower.plane.telemetry.control_connected.set(0);
        // Nobody is left who could be told; who still looks says so on the next stream.
        follower.plane.taps.end();
        match outcome {
            Ok(()) => tracing::debug!(%node, "connecting anew, with the newest SVID"),
            Err(error) => {
                tracing::warn!(%node, "control node {error}");
                which = which.wrapping_add(1);
            }
        }
        if now().since(started) > RETRY_AT_MOST {
            wait = RETRY_FIRST;
        }
        let pause = wait.mul_f64(0.5 + random.fraction());
        wait = (wait * 2).min(RETRY_AT_MOST);
        tokio::select! {
            () = stop.ended() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Follower {
    plane: Arc<Plane>,
    presence: Presence,
    /// The beginning of the clock that `presence` goes by.
    started: Instant,
    /// What we hold could not be continued: ask for everything.
    resync: bool,
}

impl Follower {
    fn new(plane: Arc<Plane>) -> Self {
        Self { plane, presence: Presence::new(now()), started: Instant::now(), resync: false }
    }

    async fn identity_present(&self) {
        let mut changes = self.plane.credentials.changes();
        while !self.plane.credentials.is_valid(now()) {
            let _ = tokio::time::timeout(Duration::from_secs(1), changes.changed()).await;
        }
    }

    /// One stream with one control node. `Ok`: our SVID is about to expire, dial again with the next one.
    async fn session(
        &mut self,
        node: &str,
        attempt: usize,
        subscription: &mut Subscription,
    ) -> Result<(), SessionError> {
        let channel = self.dial(node, attempt).await?;
        let mut client = WatchClient::new(channel).max_decoding_message_size(MAX_DOWN_BYTES);
        let (up, outgoing) = mpsc::channel(UP_QUEUE);
        let from = if self.resync { 0 } else { self.plane.knowledge.now().revision().0 };
        let hello = pb::Hello {
            name: self.plane.name.to_string(),
            kind: subscription.kind.to_owned(),
            from_revision: from,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        send(&up, watch_up::Message::Hello(hello)).await?;
        self.announce(&up, subscription).await?;
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.watch(ReceiverStream::new(outgoing))).await;
        let mut down = opened.map_err(|_| SessionError::Silent)??.into_inner();
        tracing::info!(%node, from_revision = from, "following the control node");
        self.plane.telemetry.control_connected.set(1);
        self.plane.knowledge.set_link(|link| {
            link.control_node = node.to_owned();
            link.connected = true;
        });
        let mut redial = std::pin::pin!(succeeded(Arc::clone(&self.plane)));
        // This node has not heard from us what is in force already.
        let mut told = Vec::new();
        if from > 0 {
            let applied = self.applied(Revision(from));
            told.clone_from(&applied.outgoing);
            send(&up, watch_up::Message::Applied(applied)).await?;
        }
        let mut look = tokio::time::interval(REPORT_EVERY);
        loop {
            tokio::select! {
                () = redial.as_mut() => return Ok(()),
                _ = look.tick() => {
                    if let Some(report) = self.plane.telemetry.traffic.due(Instant::now()) {
                        let traffic = pb::Traffic { report: encode(&report) };
                        send(&up, watch_up::Message::Traffic(traffic)).await?;
                    }
                    self.plane.taps.tell(Instant::now(), |tapped| {
                        let message = watch_up::Message::Tapped(tapped);
                        up.try_send(pb::WatchUp { message: Some(message) }).is_ok()
                    });
                    let outgoing = self.outgoing();
                    if told != outgoing {
                        let revision = self.plane.knowledge.now().revision();
                        send(&up, watch_up::Message::Applied(self.applied(revision))).await?;
                        told = outgoing;
                    }
                    if self.is_displaced() {
                        tracing::warn!(name = %self.plane.name, "the cluster has not what we announced: saying it again");
                        self.announce(&up, subscription).await?;
                    }
                }
                changed = subscription.announce.changed() => match changed {
                    Ok(()) => self.announce(&up, subscription).await?,
                    Err(_) => std::future::pending().await,
                },
                message = down.next() => {
                    let message = message.ok_or(SessionError::Silent)??;
                    self.plane.knowledge.heard(now());
                    let outcome = self.take_in(message, &mut down, &up).await;
                    // A document that this version cannot read: ask for the whole View next time.
                    self.resync = matches!(outcome, Err(SessionError::Unreadable(_) | SessionError::ChangesWithoutView));
                    outcome?;
                }
            }
        }
    }

    /// Takes a message in, and those that are there already, and puts them in force together. What came before the end
    /// of the stream counts: a node that is revoked tells so, and ends it.
    async fn take_in(
        &self,
        first: pb::WatchDown,
        down: &mut Streaming<pb::WatchDown>,
        up: &mpsc::Sender<pb::WatchUp>,
    ) -> Result<(), SessionError> {
        let held = self.plane.knowledge.view();
        let before = held.as_ref().map_or(Revision(0), |view| view.revision);
        let mut fold = Fold { held, working: None };
        let mut folded = Ok(());
        let mut next = Some(Ok(first));
        for _ in 0..BATCH {
            let Some(message) = next.take() else { break };
            folded = match message {
                Ok(message) => self.fold(&mut fold, message, up).await,
                Err(status) => Err(SessionError::from(status)),
            };
            if folded.is_err() {
                break;
            }
            next = down.next().now_or_never().flatten();
        }
        let Some(view) = fold.working else { return folded };
        let revision = view.revision;
        if revision > before {
            self.plane.put_in_force(Arc::new(view)).await;
            let told = send(up, watch_up::Message::Applied(self.applied(revision))).await;
            folded = folded.and(told);
        }
        folded
    }

    async fn fold(
        &self,
        fold: &mut Fold,
        message: pb::WatchDown,
        up: &mpsc::Sender<pb::WatchUp>,
    ) -> Result<(), SessionError> {
        match message.message {
            Some(watch_down::Message::Snapshot(snapshot)) => fold.snapshot(&self.plane, &snapshot),
            Some(watch_down::Message::Changes(changes)) => fold.changes(&changes),
            Some(watch_down::Message::Live(query)) => {
                let revocation: Revocation = decode("live query", &query.revocation)?;
                let reach = self.plane.connections.reach(&revocation);
                let others = reach.others.iter().map(ToString::to_string).collect();
                let reply = pb::LiveReply { query: query.query, connections: reach.connections, others };
                send(up, watch_up::Message::Live(reply)).await
            }
            Some(watch_down::Message::Taps(taps)) => {
                self.plane.taps.begin(taps, Instant::now());
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn applied(&self, revision: Revision) -> pb::Applied {
        let closed = self.plane.connections.closed().into_iter();
        let closed =
            closed.map(|(id, connections)| pb::Closed { revocation: id.to_string(), connections }).collect();
        pb::Applied { revision: revision.0, closed, outgoing: self.outgoing() }
    }

    /// What rests on outgoing authorities here, as of now.
    fn outgoing(&self) -> Vec<pb::Outgoing> {
        let trust = self.plane.knowledge.trust();
        let connections = self.plane.connections.outgoing(&trust);
        let own = self.plane.credentials.current().map(|current| current.identity.facts.clone());
        let own = own.filter(|facts| trust.is_outgoing(facts));
        let own_domain = own.as_ref().map(|facts| facts.id.trust_domain());
        let domains: std::collections::BTreeSet<_> = connections.keys().chain(own_domain).collect();
        let outgoing = domains.into_iter().map(|trust_domain| pb::Outgoing {
            trust_domain: trust_domain.to_string(),
            connections: connections.get(trust_domain).copied().unwrap_or_default(),
            own_svid: own_domain == Some(trust_domain),
        });
        outgoing.collect()
    }

    /// Whether the View in force shows something else under our name than what we said last.
    fn is_displaced(&mut self) -> bool {
        let (Some(view), Some(own)) = (self.plane.knowledge.view(), self.plane.credentials.current()) else {
            return false;
        };
        self.presence.is_due(&view, &own.identity.facts.id, self.started.elapsed())
    }

    async fn announce(
        &mut self,
        up: &mpsc::Sender<pb::WatchUp>,
        subscription: &mut Subscription,
    ) -> Result<(), SessionError> {
        let what = subscription.announce.borrow_and_update().clone();
        let (name, locality, now) = (&self.plane.name, &self.plane.locality, self.started.elapsed());
        let announcement = encode(&self.presence.say(name, locality, what.ready, what.serves, now));
        send(up, watch_up::Message::Announce(pb::Announce { announcement })).await
    }

    async fn dial(&self, node: &str, attempt: usize) -> Result<Channel, SessionError> {
        let unreachable = |e: tonic::transport::Error| SessionError::Unreachable(chain(&e));
        let identity = self.plane.credentials.identity().ok_or(SessionError::Silent)?;
        let expect = Expect::Member(identity.facts.id.trust_domain().clone(), MemberRole::Node);
        let source: Arc<dyn IdentitySource> = Arc::clone(&self.plane.credentials) as _;
        let tls = client_config(control_trust(&self.plane, attempt), source, expect, &[b"h2"]);
        let connector = tokio_rustls::TlsConnector::from(tls);
        let address = node.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = rustls_pki_types::ServerName::try_from(INTERNAL_NAME)
                    .expect("the internal name is a DNS name");
                let stream = connector.connect(name, tcp).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://control.hanse.internal")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 * 1024 * 1024)
            .initial_connection_window_size(8 * 1024 * 1024);
        let dialled = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(connector)).await;
        dialled.map_err(|_| SessionError::Silent)?.map_err(unreachable)
    }
}

/// Resolves when the SVID in use now is near its end, or its authority on its way out, and there is a newer one. Without
/// a newer one the stream is left alone: a new stream would be no better.
async fn succeeded(plane: Arc<Plane>) {
    let Some(dialled_with) = plane.credentials.current() else { return };
    let facts = &dialled_with.identity.facts;
    let grace = (facts.not_after.since(facts.not_before) / 10).min(REDIAL_BEFORE_EXPIRY);
    let mut changes = plane.credentials.changes();
    let newer = || plane.credentials.current().is_some_and(|c| c.identity.facts.serial != facts.serial);
    while !newer() && changes.changed().await.is_ok() {}
    let mut revisions = plane.knowledge.revisions();
    let ending = tokio::time::sleep(facts.not_after.left(now()).saturating_sub(grace));
    let outgoing =
        async { while !plane.knowledge.trust().is_outgoing(facts) && revisions.changed().await.is_ok() {} };
    tokio::select! {
        () = ending => {}
        () = outgoing => {}
    }
}

/// A View being folded from messages; copied from the one in force only when something changes.
struct Fold {
    held: Option<Arc<View>>,
    working: Option<View>,
}

impl Fold {
    fn snapshot(&mut self, plane: &Plane, snapshot: &pb::Snapshot) -> Result<(), SessionError> {
        let view: View = decode("view", &snapshot.view)?;
        let ours = plane.credentials.current().map(|c| c.identity.facts.id.trust_domain().clone());
        if ours.is_some_and(|ours| ours != view.trust_domain) {
            return Err(SessionError::ForeignView(view.trust_domain));
        }
        // A View never goes back: a node that is behind catches up, and its older Changes are passed over.
        if self.revision().is_none_or(|held| view.revision > held) {
            self.working = Some(view);
        }
        Ok(())
    }

    fn changes(&mut self, changes: &pb::Changes) -> Result<(), SessionError> {
        let revision = Revision(changes.revision);
        if self.revision().is_some_and(|held| revision <= held) {
            return Ok(());
        }
        let decoded: Result<Vec<Change>, _> = changes.change.iter().map(|c| decode("change", c)).collect();
        let decoded = decoded?;
        if self.working.is_none() {
            self.working = self.held.as_ref().map(|view| (**view).clone());
        }
        let view = self.working.as_mut().ok_or(SessionError::ChangesWithoutView)?;
        view.advance(revision, &decoded);
        Ok(())
    }

    fn revision(&self) -> Option<Revision> {
        self.working.as_ref().or(self.held.as_deref()).map(|view| view.revision)
    }
}

async fn send(up: &mpsc::Sender<pb::WatchUp>, message: watch_up::Message) -> Result<(), SessionError> {
    up.send(pb::WatchUp { message: Some(message) }).await.map_err(|_| SessionError::Silent)
}

/// Whom to believe as a control node. Turn by turn the View's bundles and the agent's: whichever of the two missed a
/// rotation while we were cut off, the other gets us back in. Revocations hold either way.
fn control_trust(plane: &Plane, attempt: usize) -> Arc<dyn TrustSource> {
    let known = plane.knowledge.now();
    if known.view.is_none() || attempt.is_multiple_of(2) {
        return Arc::clone(&plane.knowledge) as Arc<Knowledge>;
    }
    let mut trust = (*plane.credentials.agent_trust()).clone();
    trust.revocations = known.trust.revocations.clone();
    Arc::new(FixedTrust(Arc::new(trust)))
}

struct FixedTrust(Arc<Trust>);

impl TrustSource for FixedTrust {
    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.0)
    }
}

#[cfg(test)]
mod tests;
