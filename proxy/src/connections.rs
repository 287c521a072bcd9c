//! The live-connection table: who is at the other end of every mesh connection, and whom to close.
//!
//! A connection enters *before* it is checked, so that no revocation can fall between; its guard leaves the table
//! when it is dropped. The table never closes a socket itself: it gives an order that the connection's task obeys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hanse_identity::tls::TlsIdentity;
use hanse_identity::{
    ClusterName, Revocation, RevocationId, ServiceName, SpiffeId, SvidFacts, Timestamp, Trust, TrustDomain,
    VerifiedCaller, VerifyError,
};
use tokio::sync::{Notify, watch};

use crate::runtime::telemetry::Telemetry;

/// What kind of connection it is, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// Somebody dialled us.
    Inbound,
    /// We dialled a workload: straight, or inside a tunnel.
    Outbound,
    /// To or from a gateway: the outer connection of a tunnel.
    Tunnel,
}

/// What a connection says of itself when it enters the table.
#[derive(Clone)]
pub struct Entrant {
    pub side: Side,
    /// The other end.
    pub peer: VerifiedCaller,
    /// The identity that we showed.
    pub own: Arc<TlsIdentity>,
    pub service: Option<ServiceName>,
    pub cluster: Option<ClusterName>,
}

/// Why a connection is closed by us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The other end's SVID or identity.
    Revoked(RevocationId),
    /// Our own.
    OwnIdentityRevoked(RevocationId),
    Expired,
    /// Its trust domain is no longer known: the peer has left.
    Untrusted,
    /// The authority that one of the two ends was authenticated by is on its way out.
    AuthorityOutgoing,
}

/// What a connection is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Stay,
    /// Finish what is in flight, take nothing new.
    Leave(Cause),
    /// At once.
    Close(Cause),
}

/// The table.
pub struct Connections {
    live: Mutex<BTreeMap<u64, Entry>>,
    next: AtomicU64,
    /// Connections that are really gone, by the revocation that closed them, since the start.
    closed: Mutex<BTreeMap<RevocationId, u64>>,
    departures: Notify,
    telemetry: Arc<Telemetry>,
}

struct Entry {
    entrant: Entrant,
    since: Timestamp,
    /// Since when the authority of one of the two ends is seen to be on its way out.
    outgoing_since: Option<Timestamp>,
    order: watch::Sender<Order>,
}

/// A connection's place in the table: dropped, the connection counts as gone.
pub struct Live {
    id: u64,
    table: Arc<Connections>,
    peer: VerifiedCaller,
    order: watch::Receiver<Order>,
}

/// The connections that one sweep ordered closed at once.
#[derive(Debug, Default)]
pub struct Sweep(BTreeSet<u64>);

/// One row for `/connections`.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub side: Side,
    pub peer: String,
    pub serial: String,
    pub own: String,
    pub service: Option<ServiceName>,
    pub cluster: Option<ClusterName>,
    pub since: String,
    pub not_after: String,
}

/// What a revocation would hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Live connections that have the target at either end.
    pub connections: u64,
    /// Who is at the other end of them, as far as they are counted.
    pub others: BTreeSet<SpiffeId>,
}

/// Most identities that are named as the other end.
pub const MAX_OTHERS: usize = 64;
/// Longest time before the end of an SVID at which its connections are asked to leave.
const LEAVE_BEFORE_EXPIRY: Duration = Duration::from_secs(30);
/// How long a connection below an outgoing authority stays: agents replace SVIDs meanwhile, and a new connection would
/// be no better than this one before they have.
const REPLACED_WITHIN: Duration = Duration::from_secs(3);
/// Over how long such connections then leave, so that not every pool is empty at the same time.
const LEAVE_SPREAD: Duration = Duration::from_secs(2);
/// In how many groups they do.
const LEAVE_GROUPS: u64 = 8;

impl Cause {
    /// Label of `hanse_connections_closed_total`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Revoked(_) => "revoked",
            Self::OwnIdentityRevoked(_) => "own_revoked",
            Self::Expired => "expired",
            Self::Untrusted => "untrusted",
            Self::AuthorityOutgoing => "authority_outgoing",
        }
    }

    fn revocation(&self) -> Option<&RevocationId> {
        match self {
            Self::Revoked(id) | Self::OwnIdentityRevoked(id) => Some(id),
            Self::Expired | Self::Untrusted | Self::AuthorityOutgoing => None,
        }
    }
}

impl Connections {
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        Self {
            live: Mutex::default(),
            next: AtomicU64::new(1),
            closed: Mutex::default(),
            departures: Notify::new(),
            telemetry,
        }
    }

    /// Takes a connection in. Then `Live::check` it; then serve.
    pub fn enter(self: &Arc<Self>, entrant: Entrant, now: Timestamp) -> Live {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (order, receiver) = watch::channel(Order::Stay);
        let peer = entrant.peer.clone();
        self.lock().insert(id, Entry { entrant, since: now, outgoing_since: None, order });
        Live { id, table: Arc::clone(self), peer, order: receiver }
    }

    /// Asks every connection whether it may stay. `own_revoked`: we ourselves are no longer believed.
    pub fn sweep(&self, trust: &Trust, own_revoked: Option<&RevocationId>, now: Timestamp) -> Sweep {
        let mut sweep = Sweep::default();
        for (id, entry) in self.lock().iter_mut() {
            entry.outgoing_since = match entry.is_outgoing(trust) {
                true => entry.outgoing_since.or(Some(now)),
                false => None,
            };
            let order = stricter(entry.judge(trust, own_revoked, now), entry.replaced(*id, now));
            if matches!(order, Order::Close(_)) {
                sweep.0.insert(*id);
            }
            entry.order.send_if_modified(|current| {
                let changes =
                    order != Order::Stay && !matches!(current, Order::Close(_)) && *current != order;
                if changes {
                    current.clone_from(&order);
                }
                changes
            });
        }
        sweep
    }

    /// Waits until all of a sweep have left the table, `within` at most.
    pub async fn gone(&self, sweep: Sweep, within: Duration) {
        let all_gone = async {
            loop {
                let mut departure = std::pin::pin!(self.departures.notified());
                departure.as_mut().enable();
                if !sweep.0.iter().any(|id| self.lock().contains_key(id)) {
                    return;
                }
                departure.await;
            }
        };
        // Late ones have been told to go and are counted when they do.
        let _ = tokio::time::timeout(within, all_gone).await;
    }

    /// What a revocation would hit here, were it in force.
    pub fn reach(&self, revocation: &Revocation) -> Reach {
        let mut reach = Reach::default();
        for entry in self.lock().values() {
            let (peer, own) = (&entry.entrant.peer, &entry.entrant.own.facts);
            let (theirs, ours) = (peer.is_hit_by(revocation), revocation.hits(own));
            if !theirs && !ours {
                continue;
            }
            reach.connections += 1;
            let other = if theirs { &own.id } else { peer.id() };
            if reach.others.len() < MAX_OTHERS {
                reach.others.insert(other.clone());
            }
        }
        reach
    }

    /// How many rest on an outgoing authority, by the other end's trust domain.
    pub fn outgoing(&self, trust: &Trust) -> BTreeMap<TrustDomain, u64> {
        let mut outgoing = BTreeMap::new();
        if trust.outgoing_domains().next().is_none() {
            return outgoing;
        }
        for entry in self.lock().values().filter(|entry| entry.entrant.peer.is_outgoing(trust)) {
            *outgoing.entry(entry.entrant.peer.id().trust_domain().clone()).or_default() += 1;
        }
        outgoing
    }

    /// Closed so far, by revocation.
    pub fn closed(&self) -> Vec<(RevocationId, u64)> {
        let closed = self.closed.lock().expect("no holder of the closed counts panics");
        closed.iter().map(|(id, count)| (id.clone(), *count)).collect()
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// For `/connections`, at most `limit` rows.
    pub fn rows(&self, limit: usize) -> Vec<Row> {
        self.lock().values().take(limit).map(Entry::row).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.live.lock().expect("no holder of the connection table panics")
    }
}

impl Entry {
    /// Whether either end showed an SVID of an outgoing authority. Ours counts too: who is told to go by the other end may
    /// hear of it late, and a tunnel lives for as long as there is a stream in it, with whatever SVID that was made.
    fn is_outgoing(&self, trust: &Trust) -> bool {
        self.entrant.peer.is_outgoing(trust) || trust.is_outgoing(&self.entrant.own.facts)
    }

    fn judge(&self, trust: &Trust, own_revoked: Option<&RevocationId>, now: Timestamp) -> Order {
        let (peer, own) = (&self.entrant.peer, &self.entrant.own.facts);
        let of_peer = strictest(peer.revocations(&trust.revocations), Cause::Revoked, now);
        let ourselves = own_revoked.and_then(|id| trust.revocations.get(id));
        let ours = trust.revocations.hitting(own, &[]).chain(ourselves);
        let revoked = stricter(of_peer, strictest(ours, Cause::OwnIdentityRevoked, now));
        if matches!(revoked, Order::Close(_)) {
            return revoked;
        }
        match peer.still_vouched(trust, now) {
            Ok(()) => {}
            Err(VerifyError::Expired) => return Order::Close(Cause::Expired),
            Err(_) => return Order::Close(Cause::Untrusted),
        }
        if revoked != Order::Stay {
            return revoked;
        }
        // For the same reason here: the other end cuts what we dialled when our SVID ends.
        let ending = [peer.facts(), own].into_iter().any(|facts| {
            let grace = (facts.not_after.since(facts.not_before) / 10).min(LEAVE_BEFORE_EXPIRY);
            facts.not_after.left(now) < grace
        });
        if ending { Order::Leave(Cause::Expired) } else { Order::Stay }
    }

    /// Asked to leave once the SVIDs below an outgoing authority have been replaced, each group in its turn.
    fn replaced(&self, id: u64, now: Timestamp) -> Order {
        let Some(since) = self.outgoing_since else { return Order::Stay };
        let turn = LEAVE_SPREAD.mul_f64((id % LEAVE_GROUPS) as f64 / LEAVE_GROUPS as f64);
        if now < since + REPLACED_WITHIN + turn {
            Order::Stay
        } else {
            Order::Leave(Cause::AuthorityOutgoing)
        }
    }

    fn row(&self) -> Row {
        let peer = self.entrant.peer.facts();
        Row {
            side: self.entrant.side,
            peer: peer.id.to_string(),
            serial: peer.serial.to_string(),
            own: self.entrant.own.facts.id.to_string(),
            service: self.entrant.service.clone(),
            cluster: self.entrant.cluster.clone(),
            since: self.since.to_string(),
            not_after: peer.not_after.to_string(),
        }
    }
}

/// What our own standing makes of a connection whose other end has none, and which is in no table therefore.
pub fn judge_own(trust: &Trust, own: &SvidFacts, now: Timestamp) -> Order {
    let revoked = strictest(trust.revocations.hitting(own, &[]), Cause::OwnIdentityRevoked, now);
    if own.not_after <= now { Order::Close(Cause::Expired) } else { revoked }
}

/// What the revocations that hit one end make of a connection.
fn strictest<'r>(
    revocations: impl Iterator<Item = &'r Revocation>,
    cause: impl Fn(RevocationId) -> Cause,
    now: Timestamp,
) -> Order {
    revocations.fold(Order::Stay, |order, revocation| {
        let next = match revocation.closing.left(revocation.at, now) {
            None => return order,
            Some(left) if left.is_zero() => Order::Close(cause(revocation.id.clone())),
            Some(_) => Order::Leave(cause(revocation.id.clone())),
        };
        stricter(order, next)
    })
}

/// The first of the two unless the second is stricter.
fn stricter(first: Order, second: Order) -> Order {
    match (&first, &second) {
        (Order::Close(_), _) | (Order::Leave(_), Order::Leave(_)) | (_, Order::Stay) => first,
        _ => second,
    }
}

impl Live {
    /// Asks once more, now that the table would see a change. Serve only after this.
    pub fn check(&self, trust: &Trust, now: Timestamp) -> Result<(), VerifyError> {
        self.peer.still_believed(trust, now)
    }

    pub fn peer(&self) -> &VerifiedCaller {
        &self.peer
    }

    pub fn order(&self) -> Order {
        self.order.borrow().clone()
    }

    /// Resolves with the next order after the one last returned; never with `Stay`.
    pub async fn ordered(&mut self) -> Order {
        loop {
            if self.order.changed().await.is_err() {
                // The table holds the sender for as long as this guard lives.
                std::future::pending::<()>().await;
            }
            let order = self.order.borrow_and_update().clone();
            if order != Order::Stay {
                return order;
            }
        }
    }

    /// Resolves when the connection is to be closed at once.
    pub async fn closing(&mut self) -> Cause {
        loop {
            if let Order::Close(cause) = self.ordered().await {
                return cause;
            }
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.table.lock().remove(&self.id);
        if let Order::Close(cause) | Order::Leave(cause) = &*self.order.borrow() {
            self.table.telemetry.connection_closed(cause.label());
            if let Some(id) = cause.revocation() {
                let mut closed = self.table.closed.lock().expect("no holder of the closed counts panics");
                *closed.entry(id.clone()).or_default() += 1;
            }
        }
        self.table.departures.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
