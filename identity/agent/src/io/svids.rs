//! The SVIDs that this agent holds for local processes: made, renewed, dropped.
//!
//! One task per (identity, process): it makes the key, asks the issuer, renews at half-life, and ends when the
//! process has had no stream for a while or may not have the identity any more. Streams hold leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hanse_identity::svid::{Svid, SvidError, SvidFacts};
use hanse_identity::wire::AgentState;
use hanse_identity::{
    AuthorityState, Evidence, IssueError, NodeName, Revocations, Selector, SpiffeId, Timestamp, Trust, Usage,
    VerifyError, issue, renewal, verify,
};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::hashing::Hashing;
use super::telemetry::Metrics;
use super::{View, jitter, now, stopped};
use crate::attest::{Caller, Process};
use crate::secrets::{Denial, Standing, still_valid};

/// SVIDs held at once.
pub const MAX_HELD: usize = 4096;
/// Requests to the issuer at once.
pub const MAX_ISSUING: usize = 64;
/// How long an SVID is kept after its last stream closed, for a process that only reconnects.
pub const IDLE_GRACE: Duration = Duration::from_secs(30);
/// One request to the issuer, waiting for a connection included.
pub const ISSUE_TIMEOUT: Duration = Duration::from_secs(8);
/// Never renews more often than this, whatever validity the control node writes.
const MIN_REST: Duration = Duration::from_secs(1);
/// Longest sleep before the wall clock is read again: a suspended host wakes up late.
const MAX_NAP: Duration = Duration::from_secs(30);
/// Renewals because of an authority that is being withdrawn are spread over this.
const REPLACE_SPREAD: Duration = Duration::from_secs(2);

/// Where SVIDs come from.
pub trait IssueSvid: Send + Sync + 'static {
    /// A signed chain (DER, leaf first) for the CSR's key.
    fn issue_svid(
        &self,
        id: SpiffeId,
        csr_der: Vec<u8>,
        selectors: BTreeSet<Selector>,
    ) -> BoxFuture<'_, Result<Vec<Vec<u8>>, IssuerError>>;

    /// A signed JWT-SVID (JWS compact serialization) of that identity for these audiences.
    fn issue_jwt(
        &self,
        id: SpiffeId,
        selectors: BTreeSet<Selector>,
        audience: Vec<String>,
    ) -> BoxFuture<'_, Result<Zeroizing<String>, IssuerError>>;
}

/// Why the issuer did not answer with a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    #[error("no control node can be reached: {0}")]
    Unreachable(String),
    #[error("the control node refuses: {0}")]
    Refused(String),
}

/// Why there is no (new) SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MakeError {
    #[error("the key cannot be made: {0}")]
    Key(String),
    #[error(transparent)]
    Request(#[from] IssueError),
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    #[error("the control node did not answer within {} s", ISSUE_TIMEOUT.as_secs())]
    Timeout,
    #[error("the control node's answer is no SVID: {0}")]
    NotAnSvid(#[from] SvidError),
    #[error("the control node's answer does not verify: {0}")]
    NotVerified(#[from] VerifyError),
    #[error("the control node answered with {0}")]
    WrongIdentity(SpiffeId),
}

/// What a lease shows.
#[derive(Clone, Debug)]
pub enum Holding {
    /// Not there yet; why not, if it has been tried.
    Pending(Option<MakeError>),
    Ready(Arc<Svid>),
    /// Dropped for good: the process may not have it.
    Denied(Denial),
}

/// Every SVID that is held.
#[derive(Clone)]
pub struct Svids {
    inner: Arc<Inner>,
}

struct Inner {
    agent: NodeName,
    issuer: Arc<dyn IssueSvid>,
    view: watch::Receiver<View>,
    shutdown: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    hashing: Hashing,
    issuing: Semaphore,
    held: Mutex<BTreeMap<HeldKey, HeldEntry>>,
}

/// Each process has its own key and certificate, so that revoking one serial hits one process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldKey {
    pub id: SpiffeId,
    pub process: Process,
}

#[derive(Clone)]
struct HeldEntry {
    uid: u32,
    holding: watch::Receiver<Holding>,
    leases: Arc<watch::Sender<usize>>,
    renew: Arc<Notify>,
}

/// A stream's hold on an SVID.
pub struct Lease {
    holding: watch::Receiver<Holding>,
    leases: Arc<watch::Sender<usize>>,
}

/// One held SVID, for people.
#[derive(Clone, Debug)]
pub struct HeldRow {
    pub key: HeldKey,
    pub uid: u32,
    pub leases: usize,
    pub holding: Holding,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this agent holds {MAX_HELD} SVIDs and takes no more")]
pub struct Full;

impl Svids {
    pub fn new(
        agent: NodeName,
        issuer: Arc<dyn IssueSvid>,
        view: watch::Receiver<View>,
        shutdown: watch::Receiver<bool>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (hashing, issuing, held) = (Hashing::default(), Semaphore::new(MAX_ISSUING), Mutex::default());
        let inner = Inner { agent, issuer, view, shutdown, metrics, hashing, issuing, held };
        Self { inner: Arc::new(inner) }
    }

    /// Where the executables of callers are read.
    pub fn hashing(&self) -> &Hashing {
        &self.inner.hashing
    }

    /// A hold on the SVID of that identity for that process; it is made now if it is not there.
    /// Whoever asks has checked that the process may have it.
    pub fn hold(&self, id: &SpiffeId, caller: &Arc<Caller>) -> Result<Lease, Full> {
        let key = HeldKey { id: id.clone(), process: caller.process };
        let mut held = self.inner.lock();
        if let Some(entry) = held.get(&key) {
            return Ok(entry.lease());
        }
        if held.len() >= MAX_HELD {
            return Err(Full);
        }
        let (publish, holding) = watch::channel(Holding::Pending(None));
        let leases = Arc::new(watch::Sender::new(0));
        let entry = HeldEntry { uid: caller.uid, holding, leases, renew: Arc::default() };
        let lease = entry.lease();
        let keeper = Keeper {
            inner: Arc::clone(&self.inner),
            key: key.clone(),
            caller: Arc::clone(caller),
            hashed: false,
            publish,
            leases: entry.leases.subscribe(),
            renew: Arc::clone(&entry.renew),
            due: now(),
            failures: 0,
            unused_since: None,
        };
        held.insert(key, entry);
        drop(held);
        tokio::spawn(keeper.run());
        Ok(lease)
    }

    /// Renews a held SVID now, whenever it would be due. Says whether there was one.
    pub fn renew_now(&self, key: &HeldKey) -> bool {
        let entry = self.inner.lock().get(key).cloned();
        entry.as_ref().is_some_and(|entry| {
            entry.renew.notify_one();
            true
        })
    }

    /// How many of the held SVIDs an authority has signed that is on its way out.
    pub fn outgoing(&self, state: &AgentState) -> u32 {
        let held = self.inner.lock();
        let outgoing = held.values().filter(|entry| match &*entry.holding.borrow() {
            Holding::Ready(svid) => is_outgoing(state, &svid.facts),
            Holding::Pending(_) | Holding::Denied(_) => false,
        });
        u32::try_from(outgoing.count()).unwrap_or(u32::MAX)
    }

    /// The held SVIDs that a revocation hits: those that are about to be dropped.
    pub fn revoked(&self, revocations: &Revocations) -> Vec<Arc<Svid>> {
        let held = self.inner.lock();
        let hit = held.values().filter_map(|entry| match &*entry.holding.borrow() {
            Holding::Ready(svid) => revocations.check(&svid.facts).map(|_| Arc::clone(svid)),
            Holding::Pending(_) | Holding::Denied(_) => None,
        });
        hit.collect()
    }

    pub fn list(&self) -> Vec<HeldRow> {
        let row = |(key, entry): (&HeldKey, &HeldEntry)| HeldRow {
            key: key.clone(),
            uid: entry.uid,
            leases: *entry.leases.borrow(),
            holding: entry.holding.borrow().clone(),
        };
        self.inner.lock().iter().map(row).collect()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<HeldKey, HeldEntry>> {
        self.held.lock().expect("no holder of this lock panics")
    }
}

impl HeldEntry {
    fn lease(&self) -> Lease {
        self.leases.send_modify(|n| *n += 1);
        Lease { holding: self.holding.clone(), leases: Arc::clone(&self.leases) }
    }
}

impl Lease {
    pub fn holding(&self) -> Holding {
        self.holding.borrow().clone()
    }

    /// Returns when the holding has changed since it was last waited for.
    pub async fn changed(&mut self) {
        if self.holding.changed().await.is_err() {
            // The keeper has ended (shutdown): there will be no change.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.send_modify(|n| *n -= 1);
    }
}

/// The task of one held SVID.
struct Keeper {
    inner: Arc<Inner>,
    key: HeldKey,
    caller: Arc<Caller>,
    /// The caller's executable has been read for this task, or could not be.
    hashed: bool,
    publish: watch::Sender<Holding>,
    leases: watch::Receiver<usize>,
    renew: Arc<Notify>,
    due: Timestamp,
    failures: u32,
    unused_since: Option<Instant>,
}

impl Keeper {
    async fn run(mut self) {
        let mut view = self.inner.view.clone();
        let mut shutdown = self.inner.shutdown.clone();
        view.mark_changed();
        loop {
            let nap = self.due.left(now()).min(MAX_NAP);
            let let_go_at = self.let_go_at();
            tokio::select! {
                biased;
                () = stopped(&mut shutdown) => break,
                changed = view.changed() => {
                    let state = view.borrow_and_update().state.clone();
                    if changed.is_err() || self.follow(state).await.is_break() {
                        break;
                    }
                }
                () = tokio::time::sleep_until(let_go_at.unwrap_or_else(Instant::now)), if let_go_at.is_some() => {
                    if self.let_go() {
                        break;
                    }
                }
                changed = self.leases.changed() => if changed.is_err() {
                    break;
                },
                () = self.renew.notified() => self.due = now(),
                () = tokio::time::sleep(nap) => {}
            }
            if now() >= self.due {
                self.make().await;
            }
        }
        // Normally gone already; a task that ends in any other way must not leave a dead entry behind.
        self.forget();
    }

    /// Takes a new state in: drops the SVID if it may not be held, replaces it if its authority is going.
    async fn follow(&mut self, state: Option<Arc<AgentState>>) -> std::ops::ControlFlow<()> {
        let Some(state) = state else { return std::ops::ControlFlow::Continue(()) };
        let held = match &*self.publish.borrow() {
            Holding::Ready(svid) => Some(Arc::clone(svid)),
            _ => None,
        };
        let mut entitled = self.entitled(&state);
        // By a registration that has just come to ask for a digest.
        if !self.hashed && matches!(entitled, Err(Denial::NotRegistered { .. } | Denial::NotEntitled(_))) {
            self.hashed = self.inner.hashing.look(&state, &self.evidence(), &self.caller).await;
            entitled = self.entitled(&state);
        }
        let may_have = entitled.and_then(|()| held.as_ref().map_or(Ok(()), |svid| still_valid(&state, svid)));
        if let Err(denial) = may_have {
            tracing::info!(id = %self.key.id, pid = self.key.process.pid, %denial, "SVID dropped");
            self.inner.metrics.svids_dropped.inc();
            // First out of the table, then said: who is told and asks again gets a new one, or a refusal.
            self.forget();
            self.publish.send_replace(Holding::Denied(denial));
            return std::ops::ControlFlow::Break(());
        }
        if held.is_some_and(|svid| !signed_by_a_lasting_authority(&state, &svid)) {
            self.due = self.due.min(now() + REPLACE_SPREAD.mul_f64(jitter()));
        }
        std::ops::ControlFlow::Continue(())
    }

    fn evidence(&self) -> Evidence {
        Evidence { agent: self.inner.agent.clone(), selectors: self.caller.selectors() }
    }

    fn entitled(&self, state: &AgentState) -> Result<(), Denial> {
        let evidence = self.evidence();
        Standing::of(state, self.key.id.trust_domain(), &evidence)?.may_have(&self.key.id)
    }

    /// Makes a key, gets it signed, publishes the SVID; or plans the next attempt.
    async fn make(&mut self) {
        let made = match self.inner.issuing.acquire().await {
            Ok(_permit) => self.inner.make(&self.key.id, &self.caller.selectors()).await,
            Err(_closed) => Err(MakeError::Timeout),
        };
        match made {
            Ok(svid) => {
                let facts = &svid.facts;
                tracing::info!(id = %facts.id, serial = %facts.serial, not_after = %facts.not_after,
                    pid = self.key.process.pid, "SVID issued");
                self.inner.metrics.svids_issued.inc();
                self.failures = 0;
                self.due = renewal_due(facts);
                let state = self.inner.view.borrow().state.clone();
                if state.is_some_and(|state| !signed_by_a_lasting_authority(&state, &svid)) {
                    // Of a control node that has not heard yet what this agent has.
                    self.due = self.due.min(now() + REPLACE_SPREAD);
                }
                self.publish.send_replace(Holding::Ready(Arc::new(svid)));
            }
            Err(error) => {
                tracing::warn!(id = %self.key.id, pid = self.key.process.pid, %error, "no new SVID");
                self.inner.metrics.renew_failures.inc();
                self.due = now() + renewal::retry_after(self.failures, jitter());
                self.failures = self.failures.saturating_add(1);
                let usable =
                    matches!(&*self.publish.borrow(), Holding::Ready(svid) if svid.facts.not_after > now());
                if !usable {
                    self.publish.send_replace(Holding::Pending(Some(error)));
                }
            }
        }
    }

    /// When the SVID is dropped if nobody takes a lease before.
    fn let_go_at(&mut self) -> Option<Instant> {
        match *self.leases.borrow_and_update() {
            0 => Some(*self.unused_since.get_or_insert_with(Instant::now) + IDLE_GRACE),
            _ => {
                self.unused_since = None;
                None
            }
        }
    }

    /// Removes the entry if nobody holds it; checked under the lock, where leases are made.
    fn let_go(&mut self) -> bool {
        let mut held = self.inner.lock();
        let unused = *self.leases.borrow() == 0;
        if unused {
            held.remove(&self.key);
        }
        unused
    }

    /// Removes the entry if it is still this task's.
    fn forget(&self) {
        let mut held = self.inner.lock();
        if held.get(&self.key).is_some_and(|entry| Arc::ptr_eq(&entry.renew, &self.renew)) {
            held.remove(&self.key);
        }
    }
}

impl Inner {
    async fn make(&self, id: &SpiffeId, selectors: &BTreeSet<Selector>) -> Result<Svid, MakeError> {
        let (key, csr) = key_and_request()?;
        let asked = self.issuer.issue_svid(id.clone(), csr, selectors.clone());
        let chain = tokio::time::timeout(ISSUE_TIMEOUT, asked).await.map_err(|_| MakeError::Timeout)??;
        let svid = Svid::new(chain, key)?;
        if svid.facts.id != *id {
            return Err(MakeError::WrongIdentity(svid.facts.id));
        }
        // What others would refuse is not handed out: the issuer's bundle may be newer than this agent's.
        if let Some(state) = self.view.borrow().state.clone() {
            let trust = Trust::new(&state.bundles, state.revocations.clone());
            let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
            verify(&trust, &chain, now(), Usage::Client)?;
        }
        Ok(svid)
    }
}

/// A fresh P-256 key (PKCS#8 DER) and its certificate request.
pub fn key_and_request() -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), MakeError> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
    let key = key.map_err(|e| MakeError::Key(e.to_string()))?;
    let csr = issue::certificate_request(&key)?;
    Ok((Zeroizing::new(key.serialize_der()), csr))
}

/// When to renew an SVID that has just arrived: at half of the life that it has left. Its `not_before` lies
/// in the past to allow for clocks that are behind, and would make a short life look half over.
pub fn renewal_due(facts: &SvidFacts) -> Timestamp {
    renewal::renew_at(now(), facts.not_after, jitter()).max(now() + MIN_REST)
}

/// Whether an authority that is on its way out has signed it, by what it says itself.
fn is_outgoing(state: &AgentState, facts: &SvidFacts) -> bool {
    let signer = facts.authority_key_identifier.as_deref();
    let bundles = state.bundles.iter().filter(|b| b.trust_domain == *facts.id.trust_domain());
    let mut outgoing = bundles.flat_map(|b| &b.authorities).filter(|a| a.state == AuthorityState::Tainted);
    signer.is_some_and(|signer| outgoing.any(|a| a.key_id.prefix() == signer))
}

/// Whether the SVID verifies under the authorities that are not on their way out.
fn signed_by_a_lasting_authority(state: &AgentState, svid: &Svid) -> bool {
    let Some(bundle) = state.bundles.iter().find(|b| b.trust_domain == *svid.facts.id.trust_domain()) else {
        return false;
    };
    if bundle.authorities.iter().all(|a| a.state == AuthorityState::Active) {
        return verifies(bundle, svid);
    }
    let mut lasting = bundle.clone();
    lasting.authorities.retain(|a| matches!(a.state, AuthorityState::Prepared | AuthorityState::Active));
    verifies(&lasting, svid)
}

fn verifies(bundle: &hanse_identity::Bundle, svid: &Svid) -> bool {
    let trust = Trust::new([bundle], Revocations::default());
    let chain: Vec<&[u8]> = svid.chain.iter().map(Vec::as_slice).collect();
    // An SVID that is merely expired is renewed on its own account.
    matches!(verify(&trust, &chain, now(), Usage::Client), Ok(_) | Err(VerifyError::Expired))
}
