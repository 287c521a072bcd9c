//! The conversation with the control nodes: one connection, moved to another node when it fails.
//!
//! Owns the stream of `AgentState`, the renewal of the agent's own SVID, and the issuer that
//! `svids` asks. Keeps what it knows through any outage; a state never goes back to an older revision.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use hanse_identity::name::MemberRole;
use hanse_identity::svid::{Svid, SvidFacts};
use hanse_identity::tls::{self, Expect, IdentitySource, TlsIdentity, TrustSource};
use hanse_identity::wire::AgentState;
use hanse_identity::wire::issue::{AgentUp, IssueJwtRequest, IssueSvidRequest, RenewAgentRequest};
use hanse_identity::{RevocationId, Selector, SpiffeId, Trust, Usage, VerifyError, renewal, verify};
use rustls::AlertDescription;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::dial::{ALPN_H2, DialError, Dialed, dial};
use super::proof::Proofs;
use super::spare::Spare;
use super::store::{Store, StoreError, StoredIdentity};
use super::svids::{IssueSvid, IssuerError, MakeError, Svids, key_and_request, renewal_due};
use super::telemetry::Metrics;
use super::{Streams, View, jitter, now, stopped};
use crate::wire::issue::issue_client::IssueClient;

/// A control node that does not send the state by then is given up for the next one.
const FIRST_STATE_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const RPC_TIMEOUT: Duration = Duration::from_secs(4);
/// Largest state that is read.
const MAX_STATE_BYTES: usize = 64 << 20;
/// Reports that wait to be sent; only the newest matters.
const MAX_UNSENT_REPORTS: usize = 2;
/// Failed requests in a row after which the agent tries another control node: this one may be cut off from
/// its peers and still hold its connections.
const STRIKES: u32 = 2;
/// A connection that lived this long was good: the next failure is the first again.
const GOOD_AFTER: Duration = Duration::from_secs(10);
const MAX_NAP: Duration = Duration::from_secs(30);
/// How often it is looked whether there is something new to report.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// Over how long agents replace their own SVIDs when an authority is on its way out.
const REPLACE_SPREAD: Duration = Duration::from_secs(1);

/// Why a watched connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchEnd {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error("no state within {} s", FIRST_STATE_TIMEOUT.as_secs())]
    NoState,
    #[error("the control node closed the stream")]
    Closed,
    #[error("the state cannot be read: {0}")]
    BadState(String),
    #[error("another control node is to be used")]
    Moved,
    #[error("{end}; the control node does not accept the agent's SVID: TLS alert {alert:?}")]
    Alert { alert: AlertDescription, end: Box<Self> },
}

impl WatchEnd {
    /// Whether the control node was there and did not accept the agent's own SVID: in words, or by an alert of TLS.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Status(status) => matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated),
            Self::Dial(DialError::Refused(_)) | Self::Alert { .. } => true,
            _ => false,
        }
    }
}

/// Why the agent's own SVID was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The link. Made before the agent has joined, so that callers can be told to wait.
pub struct ControlLink {
    pub(super) identity: ArcSwapOption<TlsIdentity>,
    pub(super) trust: ArcSwap<Trust>,
    pub(super) spare: Spare,
    channel: watch::Sender<Option<Channel>>,
    /// Wakes the watching task: use another control node.
    moved: Notify,
    strikes: AtomicU32,
    own_revoked: AtomicBool,
    own_not_after: AtomicU64,
    /// The control node that was dialled last does not accept the own SVID.
    pub(super) refused: AtomicBool,
    /// Why the agent has to join anew, and what it waits for.
    trouble: ArcSwapOption<String>,
    /// Hits the own SVID.
    evicted_by: ArcSwapOption<RevocationId>,
    /// Wakes the renewal of the own SVID: its authority is on its way out, or it was the spare one.
    pub(super) replace_own: Notify,
    /// The SVIDs that are held for local processes, to report on; set once both are there.
    held: OnceLock<Svids>,
    /// What becomes of showing revoked ones of them.
    proofs: Proofs,
    streams: Streams,
    metrics: Arc<Metrics>,
}

/// What the link is from the moment the agent has joined.
pub struct Membership {
    store: Store,
    stored: Mutex<StoredIdentity>,
    pub(super) id: SpiffeId,
    /// From the command line: always tried too.
    extra_endpoints: Vec<String>,
}

impl Membership {
    pub fn new(store: Store, stored: StoredIdentity, extra_endpoints: Vec<String>) -> Self {
        let id = SpiffeId::member(&stored.trust_domain, MemberRole::Agent, &stored.name);
        Self { store, stored: Mutex::new(stored), id, extra_endpoints }
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, StoredIdentity> {
        self.stored.lock().expect("no holder of this lock panics")
    }

    /// Every known control node, each once; those that the cluster named last come first.
    pub(super) fn endpoints(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let stored = self.lock().endpoints.clone();
        stored.into_iter().chain(self.extra_endpoints.clone()).filter(|e| seen.insert(e.clone())).collect()
    }

    /// Changes what is stored, and the file with it; off the runtime, since it waits for the disk.
    pub(super) async fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&mut StoredIdentity) + Send + 'static,
    ) -> Result<(), StoreError> {
        let membership = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let mut stored = membership.lock();
            change(&mut stored);
            membership.store.write_identity(&stored)
        });
        written.await.unwrap_or(Ok(()))
    }
}

impl ControlLink {
    pub fn new(streams: Streams, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            identity: ArcSwapOption::empty(),
            trust: ArcSwap::default(),
            spare: Spare::default(),
            channel: watch::Sender::new(None),
            moved: Notify::new(),
            strikes: AtomicU32::new(0),
            own_revoked: AtomicBool::new(false),
            own_not_after: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            trouble: ArcSwapOption::empty(),
            evicted_by: ArcSwapOption::empty(),
            replace_own: Notify::new(),
            held: OnceLock::new(),
            proofs: Proofs::default(),
            streams,
            metrics,
        })
    }

    /// Which SVIDs the reports are about.
    pub fn report_on(&self, held: Svids) {
        // A second call would bring the same ones.
        let _ = self.held.set(held);
    }

    /// When the agent's own SVID ends; zero before it has joined.
    pub fn own_not_after(&self) -> hanse_identity::Timestamp {
        hanse_identity::Timestamp(self.own_not_after.load(Ordering::Acquire))
    }

    pub fn own_revoked(&self) -> bool {
        self.own_revoked.load(Ordering::Acquire)
    }

    pub fn connected(&self) -> bool {
        self.channel.borrow().is_some()
    }

    pub fn refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    /// Why the agent has to join anew, if it has to.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.load_full().map(|why| why.as_ref().clone())
    }

    /// Says, once, what is wrong and what is waited for; `None`: nothing any more.
    pub fn set_trouble(&self, why: Option<String>) {
        if self.trouble() == why {
            return;
        }
        match &why {
            Some(why) => tracing::error!(why, "this agent has to join anew"),
            None => tracing::info!("this agent's own SVID is accepted again"),
        }
        self.trouble.store(why.map(Arc::new));
    }

    /// The agent has joined with a new token.
    pub fn rejoined(&self) {
        self.metrics.rejoins.inc();
    }

    /// The revocation because of which the own SVID is dead: an eviction, or a ban.
    pub fn evicted_by(&self) -> Option<RevocationId> {
        self.evicted_by.load_full().map(|id| id.as_ref().clone())
    }

    /// Takes the agent's own identity on and runs until shutdown.
    pub async fn run(
        self: Arc<Self>,
        membership: Membership,
        svid: Svid,
        view: &watch::Sender<View>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), VerifyError> {
        let (bundle, trust_domain, spare) = {
            let stored = membership.lock();
            (stored.bundle.clone(), stored.trust_domain.clone(), stored.spare())
        };
        // Of an agent that joins anew, the revocations are known already.
        let revocations = self.trust.load().revocations.clone();
        self.trust.store(Arc::new(Trust::new([&bundle], revocations)));
        self.evicted_by.store(None);
        self.refused.store(false, Ordering::Release);
        self.take_identity(&svid)?;
        self.spare.put(spare);
        view.send_modify(|view| view.trust_domain = Some(trust_domain));
        let membership = Arc::new(membership);
        // Ends with this future: who joins anew runs again.
        let mut renewing = JoinSet::new();
        renewing.spawn(Arc::clone(&self).renew_own(Arc::clone(&membership), svid.facts));
        renewing.spawn(Arc::clone(&self).keep_spare(Arc::clone(&membership)));
        tokio::select! {
            () = stopped(&mut shutdown) => {}
            () = self.watch_forever(&membership, view) => {}
        }
        Ok(())
    }

    pub(super) fn take_identity(&self, svid: &Svid) -> Result<(), VerifyError> {
        self.identity.store(Some(Arc::new(TlsIdentity::new(svid)?)));
        self.own_not_after.store(svid.facts.not_after.0, Ordering::Release);
        Ok(())
    }

    /// Goes round the control nodes for ever.
    async fn watch_forever(self: &Arc<Self>, membership: &Arc<Membership>, view: &watch::Sender<View>) {
        let mut turn = usize::try_from(super::random() >> 1).unwrap_or(0);
        let mut failures = 0u32;
        loop {
            let endpoints = membership.endpoints();
            if endpoints.is_empty() {
                tracing::error!("no control node is known: give --control");
                tokio::time::sleep(MAX_NAP).await;
                continue;
            }
            let endpoint = &endpoints[turn % endpoints.len()];
            let started = Instant::now();
            let Err(end) = self.watch(membership, view, endpoint).await;
            self.channel.send_replace(None);
            turn = turn.wrapping_add(1);
            if matches!(end, WatchEnd::Moved) {
                tracing::info!(endpoint, "leaving this control node");
                continue;
            }
            self.metrics.control_failures.inc();
            if end.is_refusal() && self.spare.may_help() && self.use_spare(membership).await {
                tracing::warn!(endpoint, error = %end, "the agent goes on with its other SVID");
                continue;
            }
            self.refused.store(end.is_refusal(), Ordering::Release);
            if started.elapsed() >= GOOD_AFTER {
                failures = 0;
            }
            tracing::warn!(endpoint, error = %end, "no connection to this control node");
            // Every node is tried once before the first longer wait.
            let rounds = failures / u32::try_from(endpoints.len()).unwrap_or(1);
            failures = failures.saturating_add(1);
            let wait = match rounds {
                0 => Duration::from_millis(100).mul_f64(jitter()),
                rounds => renewal::retry_after(rounds - 1, jitter()),
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One connection: dial, then follow the state until it ends.
    async fn watch(
        self: &Arc<Self>,
        membership: &Arc<Membership>,
        view: &watch::Sender<View>,
        endpoint: &str,
    ) -> Result<std::convert::Infallible, WatchEnd> {
        let expect = Expect::Member(membership.id.trust_domain().clone(), MemberRole::Node);
        let config = tls::client_config(Arc::clone(self) as _, Arc::clone(self) as _, expect, ALPN_H2);
        let Dialed { channel, alert, .. } = dial(endpoint, config).await?;
        let Err(end) = self.follow(membership, view, endpoint, channel).await;
        Err(match alert.refusal() {
            Some(alert) => WatchEnd::Alert { alert, end: Box::new(end) },
            None => end,
        })
    }

    async fn follow(
        self: &Arc<Self>,
        membership: &Arc<Membership>,
        view: &watch::Sender<View>,
        endpoint: &str,
        channel: Channel,
    ) -> Result<std::convert::Infallible, WatchEnd> {
        let state_now = || view.borrow().state.clone();
        let revision_now = || state_now().map_or(0, |s| s.revision);
        let (report, reports) = mpsc::channel(MAX_UNSENT_REPORTS);
        let mut progress = self.streams.progress();
        let mut look = tokio::time::interval(REPORT_EVERY);
        let mut proved = self.proofs.changes();
        let mut reported = self.report(state_now().as_deref());
        // There is room: nothing has been sent.
        let _ = report.try_send(AgentUp { proofs: self.proved(&mut proved), ..reported.clone() });
        let mut client = IssueClient::new(channel.clone()).max_decoding_message_size(MAX_STATE_BYTES);
        let opened = timeout(FIRST_STATE_TIMEOUT, client.watch_agent(ReceiverStream::new(reports))).await;
        let mut states = opened.map_err(|_| WatchEnd::NoState)??.into_inner();
        let first = timeout(FIRST_STATE_TIMEOUT, states.message()).await.map_err(|_| WatchEnd::NoState)??;
        self.accept(membership, view, &first.ok_or(WatchEnd::Closed)?.state).await?;
        tracing::info!(endpoint, revision = revision_now(), "connected to a control node");
        self.metrics.control_connections.inc();
        self.refused.store(false, Ordering::Release);
        self.spare.connected(endpoint);
        self.strikes.store(0, Ordering::Relaxed);
        self.channel.send_replace(Some(channel));
        loop {
            let current = self.report(state_now().as_deref());
            // Never fails: the sender is in `self`.
            let news = proved.has_changed().unwrap_or_default();
            tokio::select! {
                biased;
                () = self.moved.notified() => return Err(WatchEnd::Moved),
                permit = report.reserve(), if current != reported || news => match permit {
                    Ok(permit) => {
                        let proofs = if news { self.proved(&mut proved) } else { Vec::new() };
                        self.metrics.applied_revision.set(i64::try_from(current.applied_revision).unwrap_or(i64::MAX));
                        permit.send(AgentUp { proofs, ..current.clone() });
                        reported = current;
                    }
                    Err(_) => return Err(WatchEnd::Closed),
                },
                down = states.message() => {
                    self.accept(membership, view, &down?.ok_or(WatchEnd::Closed)?.state).await?;
                }
                // These never fail: the senders are in `self`.
                _ = progress.changed() => {}
                _ = proved.changed(), if !news => proved.mark_changed(),
                // SVIDs are replaced without a sign.
                _ = look.tick() => {}
            }
        }
    }

    fn report(&self, state: Option<&AgentState>) -> AgentUp {
        let revision = state.map_or(0, |s| s.revision);
        let held = state.zip(self.held.get()).map_or(0, |(state, held)| held.outgoing(state));
        let own = u32::from(state.is_some() && self.own_must_go())
            + u32::from(state.is_some() && self.spare_must_go());
        let (applied_revision, subscribers) = self.streams.applied(revision);
        let sds = self.streams.sds(revision);
        AgentUp {
            applied_revision,
            subscribers,
            known_revision: revision,
            sds_subscribers: sds.subscribers,
            sds_acknowledged: sds.acknowledged,
            sds_rejected: sds.rejected,
            outgoing_svids: held.saturating_add(own),
            proofs: Vec::new(),
        }
    }

    /// All that showing revoked certificates has come to; seen with that.
    fn proved(&self, changes: &mut watch::Receiver<u64>) -> Vec<u8> {
        changes.mark_unchanged();
        let proofs = self.proofs.list();
        if proofs.is_empty() {
            return Vec::new();
        }
        serde_json::to_vec(&proofs).expect("a proof has string keys only")
    }

    /// Puts a state in force: trust first, then what is stored, then the streams.
    pub(super) async fn accept(
        &self,
        membership: &Arc<Membership>,
        view: &watch::Sender<View>,
        json: &[u8],
    ) -> Result<(), WatchEnd> {
        let state: AgentState =
            serde_json::from_slice(json).map_err(|e| WatchEnd::BadState(e.to_string()))?;
        let revision = view.borrow().state.as_ref().map_or(0, |s| s.revision);
        if state.revision < revision {
            // A node that lags behind the one before: what it says was true once. It will catch up.
            tracing::info!(theirs = state.revision, ours = revision, "an older state is ignored");
            return Ok(());
        }
        let own = state.bundles.iter().find(|b| b.trust_domain == *membership.id.trust_domain());
        let own =
            own.ok_or_else(|| WatchEnd::BadState("it has no bundle of the own trust domain".to_owned()))?;
        own.check().map_err(|e| WatchEnd::BadState(e.to_string()))?;
        let revoked = state.revocations.of_identity(&membership.id);
        if let Some(revocation) = revoked {
            tracing::error!(revocation = %revocation.id, "this agent's own identity is revoked");
        }
        self.own_revoked.store(revoked.is_some(), Ordering::Release);
        self.trust.store(Arc::new(Trust::new(&state.bundles, state.revocations.clone())));
        let own_facts = self.identity.load().as_ref().map(|own| own.facts.clone());
        let mut evicted = own_facts.and_then(|facts| state.revocations.check(&facts).map(|r| r.id.clone()));
        if let Some(revocation) = &evicted
            && revoked.is_none()
            && self.use_spare(membership).await
        {
            tracing::warn!(%revocation, "the agent's own SVID is revoked: it goes on with its other one");
            evicted = None;
            // The connection was made with the dead one.
            self.moved.notify_one();
        }
        // A ban as well: once it has ended a new token is what helps, and nobody but this agent sees that one is there.
        self.evicted_by.store(evicted.or_else(|| revoked.map(|r| r.id.clone())).map(Arc::new));
        if self.own_must_go() {
            self.replace_own.notify_one();
        }
        let (bundle, endpoints) = (own.clone(), state.endpoints.clone());
        // Before anybody can drop them, and told no later than that the revocation is in force.
        let revoked = self.held.get().map(|held| held.revoked(&state.revocations)).unwrap_or_default();
        let state = Arc::new(state);
        view.send_modify(|view| view.state = Some(Arc::clone(&state)));
        self.proofs.begin(&state, &revoked, &view.subscribe());
        let news = {
            let stored = membership.lock();
            stored.bundle != bundle || (!endpoints.is_empty() && stored.endpoints != endpoints)
        };
        if news {
            let change = move |stored: &mut StoredIdentity| {
                stored.bundle = bundle;
                if !endpoints.is_empty() {
                    stored.endpoints = endpoints;
                }
            };
            if let Err(error) = membership.change(change).await {
                tracing::error!(%error, "the cluster's bundle and endpoints could not be stored");
            }
        }
        Ok(())
    }

    /// Renews the agent's own SVID at half-life, for ever.
    async fn renew_own(self: Arc<Self>, membership: Arc<Membership>, facts: SvidFacts) {
        let mut due = renewal::renew_at(facts.not_before, facts.not_after, jitter());
        let mut failures = 0;
        loop {
            while now() < due {
                tokio::select! {
                    () = tokio::time::sleep(due.left(now()).min(MAX_NAP)) => {}
                    () = self.replace_own.notified() => if self.own_must_go() || self.spare.was_used() {
                        due = due.min(now() + REPLACE_SPREAD.mul_f64(jitter()));
                    }
                }
            }
            match self.renew_once(&membership).await {
                Ok(facts) => {
                    tracing::info!(serial = %facts.serial, not_after = %facts.not_after,
                        "the agent's own SVID is renewed");
                    (due, failures) = (renewal_due(&facts), 0);
                    if self.own_must_go() {
                        // Of a control node that has not heard yet what this agent has.
                        due = due.min(now() + REPLACE_SPREAD);
                    }
                    // The connection was made with the old one.
                    self.moved.notify_one();
                }
                Err(error) => {
                    self.metrics.renew_failures.inc();
                    tracing::warn!(%error, not_after = %self.own_not_after(), "the agent's own SVID is not renewed");
                    due = now() + renewal::retry_after(failures, jitter());
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Whether the own SVID was signed by an authority that is on its way out.
    fn own_must_go(&self) -> bool {
        let own = self.identity.load();
        own.as_ref().is_some_and(|own| self.trust.load().is_outgoing(&own.facts))
    }

    async fn renew_once(&self, membership: &Arc<Membership>) -> Result<SvidFacts, RenewError> {
        let (key, csr_der) = key_and_request()?;
        let mut client = self.client().await.map_err(MakeError::Issuer)?;
        let reply = timeout(RPC_TIMEOUT, client.renew_agent(RenewAgentRequest { csr_der })).await;
        let reply = self.judge(reply).map_err(MakeError::Issuer)?;
        let svid = Svid::new(reply.chain_der, key).map_err(MakeError::NotAnSvid)?;
        self.check_own(membership, &svid)?;
        let facts = svid.facts.clone();
        let kept = svid.clone();
        // Stored before it is used: after a crash the newest one counts.
        membership.change(move |stored| stored.set_svid(&kept)).await?;
        self.take_identity(&svid).map_err(MakeError::NotVerified)?;
        Ok(facts)
    }

    /// Whether it is an SVID of this agent that others believe, as far as is known here.
    pub(super) fn check_own(&self, membership: &Membership, svid: &Svid) -> Result<(), MakeError> {
        if svid.facts.id != membership.id {
            return Err(MakeError::WrongIdentity(svid.facts.id.clone()));
        }
        let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
        verify(&self.trust.load(), &chain, now(), Usage::Client).map_err(MakeError::NotVerified)?;
        Ok(())
    }

    /// A client on the connection of the moment; waits for one.
    async fn client(&self) -> Result<IssueClient<Channel>, IssuerError> {
        let mut channel = self.channel.subscribe();
        let connected = timeout(RPC_TIMEOUT, channel.wait_for(Option::is_some)).await;
        match connected {
            Ok(Ok(channel)) => Ok(IssueClient::new(channel.clone().expect("waited until it is there"))),
            _ => Err(IssuerError::Unreachable("not connected".to_owned())),
        }
    }

    /// Reads an answer, and moves on to another control node after too many failures.
    fn judge<T>(
        &self,
        reply: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, IssuerError> {
        let failure = match reply {
            Ok(Ok(reply)) => {
                self.strikes.store(0, Ordering::Relaxed);
                return Ok(reply.into_inner());
            }
            Ok(Err(status)) if decided(status.code()) => {
                return Err(IssuerError::Refused(status.message().to_owned()));
            }
            Ok(Err(status)) => format!("{:?}: {}", status.code(), status.message()),
            Err(_) => "no answer in time".to_owned(),
        };
        if self.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
            self.strikes.store(0, Ordering::Relaxed);
            self.moved.notify_one();
        }
        Err(IssuerError::Unreachable(failure))
    }
}

/// Whether the control node has decided, as opposed to not having been able to. `Unauthenticated` is none of
/// its decisions: it says that this connection is not believed any more, and another one may be.
fn decided(code: Code) -> bool {
    use Code::*;
    matches!(code, PermissionDenied | InvalidArgument | NotFound | FailedPrecondition | Unimplemented)
}

impl IssueSvid for ControlLink {
    fn issue_svid(
        &self,
        id: SpiffeId,
        csr_der: Vec<u8>,
        selectors: BTreeSet<Selector>,
    ) -> BoxFuture<'_, Result<Vec<Vec<u8>>, IssuerError>> {
        Box::pin(async move {
            let selectors = selectors.iter().map(Selector::to_string).collect();
            let request = IssueSvidRequest { spiffe_id: id.to_string(), csr_der, selectors };
            let mut client = self.client().await?;
            let reply = timeout(RPC_TIMEOUT, client.issue_svid(request)).await;
            Ok(self.judge(reply)?.chain_der)
        })
    }

    fn issue_jwt(
        &self,
        id: SpiffeId,
        selectors: BTreeSet<Selector>,
        audience: Vec<String>,
    ) -> BoxFuture<'_, Result<Zeroizing<String>, IssuerError>> {
        Box::pin(async move {
            let selectors = selectors.iter().map(Selector::to_string).collect();
            let request = IssueJwtRequest { spiffe_id: id.to_string(), selectors, audience, ttl_seconds: 0 };
            let mut client = self.client().await?;
            let reply = timeout(RPC_TIMEOUT, client.issue_jwt(request)).await;
            Ok(Zeroizing::new(self.judge(reply)?.token))
        })
    }
}

impl TrustSource for ControlLink {
    fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }
}

impl IdentitySource for ControlLink {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        self.identity.load_full()
    }
}
