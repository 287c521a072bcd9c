//! What every service of a control node shares: who the node is, its State, its own SVID, whom it believes.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use hanse_federation::{Change, PeerFact, View};
use hanse_identity::name::MemberRole;
use hanse_identity::tls::{Expect, IdentitySource, TlsIdentity, TrustSource, client_config};
use hanse_identity::{
    Authority, Bundle, ClusterName, NodeName, RevocationId, SpiffeId, Timestamp, Trust, TrustDomain, renewal,
};
use tokio::sync::watch;

use super::authorities::{Authorities, signing_key};
use super::census::Census;
use super::dial::ALPN_H2;
use super::driver::Handle;
use super::http::Metrics;
use super::issuance::Recorder;
use super::issuers::IssuerLinks;
use super::joining::JoinRates;
use super::jwt::JwtKeys;
use super::key_store::KeyStore;
use super::keys;
use super::node_link::NodeLinks;
use super::peer_link::PeerLinks;
use super::strangers::StrangerLinks;
use super::taps::Taps;
use crate::state::State;

pub use super::keys::now;

/// The program's version, as nodes and clusters tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How soon a renewal of the own SVID is tried again after it failed.
const RENEWAL_RETRY: Duration = Duration::from_secs(10);

/// One control node, as its services see it.
pub struct Context {
    pub name: NodeName,
    pub raft_id: u64,
    pub cluster: ClusterName,
    pub trust_domain: TrustDomain,
    pub handle: Handle,
    /// What it signs X.509-SVIDs with.
    pub authorities: Authorities,
    /// Where further keys of this node are made and kept.
    pub key_store: Arc<dyn KeyStore>,
    /// What it signs JWT-SVIDs with.
    pub jwt: JwtKeys,
    pub trust: Arc<StateTrust>,
    pub own: Arc<OwnIdentity>,
    pub census: Census,
    pub taps: Arc<Taps>,
    pub recorder: Recorder,
    pub links: Arc<NodeLinks>,
    pub peers: PeerLinks,
    pub strangers: StrangerLinks,
    pub issuers: IssuerLinks,
    pub revisions: RevocationRevisions,
    pub bundle_revisions: BundleRevisions,
    /// Who is connected to this node below an outgoing authority.
    pub callers: OutgoingCallers,
    /// Whether its bundle endpoint is open.
    pub bundle_endpoint: AtomicBool,
    pub metrics: Metrics,
    /// How often it has been tried to join lately.
    pub joining: JoinRates,
    /// Lifetime of members' SVIDs that this node signs: its own and agents'.
    pub member_lifetime: Duration,
    /// True once the node is to stop.
    pub stop: watch::Receiver<bool>,
}

/// What the replicated View says is to be believed, prepared once per change of it.
pub struct StateTrust {
    states: watch::Receiver<Arc<State>>,
    cached: ArcSwap<CachedTrust>,
}

struct CachedTrust {
    revision: u64,
    bundles: BTreeMap<TrustDomain, Bundle>,
    trust: Arc<Trust>,
}

/// The node's own SVID, renewed in time.
#[derive(Default)]
pub struct OwnIdentity {
    current: ArcSwapOption<TlsIdentity>,
    /// How often it was renewed: long-lived connections are made anew then.
    renewals: watch::Sender<u64>,
}

/// The log index at which each revocation in force was committed here.
#[derive(Default)]
pub struct RevocationRevisions {
    known: Mutex<BTreeMap<RevocationId, u64>>,
}

/// The log index at which the bundle of each trust domain was committed here as it is.
#[derive(Debug, Default)]
pub struct BundleRevisions {
    known: Mutex<BTreeMap<TrustDomain, (u64, u64)>>,
}

impl BundleRevisions {
    /// Where our log committed the bundle with at least that sequence; `None`: it has not.
    pub fn of(&self, view: &View, trust_domain: &TrustDomain, sequence: u64) -> Option<u64> {
        let bundle = view.bundles.get(trust_domain).filter(|bundle| bundle.sequence >= sequence)?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = known.get(trust_domain).filter(|(noted, _)| *noted == bundle.sequence);
        // One that came in with a snapshot: whoever has our present revision has it for certain.
        Some(noted.map_or(view.revision.0, |(_, revision)| *revision))
    }

    /// Takes in the bundles of one revision.
    pub fn note(&self, revision: u64, changes: &[Change]) {
        for change in changes {
            if let Change::BundlePut(bundle) | Change::PeerFact(_, PeerFact::Bundle(bundle)) = change {
                self.put(bundle, revision);
            }
        }
    }

    /// All that the View holds are in force at its revision.
    pub fn note_all(&self, view: &View) {
        view.bundles.values().for_each(|bundle| self.put(bundle, view.revision.0));
    }

    fn put(&self, bundle: &Bundle, revision: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(bundle.trust_domain.clone()).or_insert((bundle.sequence, revision));
        // A retelling of the same does not make it newer.
        if entry.0 != bundle.sequence {
            *entry = (bundle.sequence, revision);
        }
    }
}

/// Who is connected to this node and was authenticated by an authority that is on its way out, as last counted.
#[derive(Default)]
pub struct OutgoingCallers {
    counted: Mutex<(u64, BTreeMap<TrustDomain, u64>)>,
}

impl OutgoingCallers {
    pub fn set(&self, revision: u64, callers: BTreeMap<TrustDomain, u64>) {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = (revision, callers);
    }

    /// The revision by which it was counted, and how many by trust domain.
    pub fn get(&self) -> (u64, BTreeMap<TrustDomain, u64>) {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl StateTrust {
    pub fn new(states: watch::Receiver<Arc<State>>) -> Self {
        let cached = ArcSwap::from_pointee(CachedTrust::of(&states.borrow().view));
        Self { states, cached }
    }

    /// The trust of the State as this node has applied it.
    pub fn current(&self) -> Arc<Trust> {
        let state = self.states.borrow().clone();
        let view = &state.view;
        let cached = self.cached.load();
        if cached.revision == view.revision.0 {
            return cached.trust.clone();
        }
        // Most revisions change neither bundles nor revocations: then the prepared anchors are kept.
        let same = cached.bundles == view.bundles && cached.trust.revocations == view.revocations;
        let next = if same {
            CachedTrust {
                revision: view.revision.0,
                bundles: cached.bundles.clone(),
                trust: cached.trust.clone(),
            }
        } else {
            CachedTrust::of(view)
        };
        let trust = next.trust.clone();
        self.cached.store(Arc::new(next));
        trust
    }
}

impl CachedTrust {
    fn of(view: &View) -> Self {
        Self { revision: view.revision.0, bundles: view.bundles.clone(), trust: Arc::new(view.trust()) }
    }
}

impl TrustSource for StateTrust {
    fn trust(&self) -> Arc<Trust> {
        self.current()
    }
}

impl OwnIdentity {
    pub fn set(&self, identity: TlsIdentity) {
        self.current.store(Some(Arc::new(identity)));
        self.renewals.send_modify(|n| *n += 1);
    }

    /// Changes with every renewal.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }
}

impl IdentitySource for OwnIdentity {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        self.current.load_full()
    }
}

impl RevocationRevisions {
    /// Where our log committed it; `None`: it is not in force here.
    pub fn of(&self, view: &View, id: &RevocationId) -> Option<u64> {
        view.revocations.get(id)?;
        if id.origin == view.trust_domain {
            return Some(id.number);
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // One that came in with a snapshot: whoever has our present revision has it for certain.
        Some(known.get(id).copied().unwrap_or(view.revision.0))
    }

    /// Takes in the revocations of one revision.
    pub fn note(&self, revision: u64, changes: &[Change]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Revoked(r) | Change::PeerFact(_, PeerFact::Revoked(r)) => {
                    // A retelling does not make it newer.
                    known.entry(r.id.clone()).or_insert(revision);
                }
                Change::Unrevoked(id) | Change::PeerFact(_, PeerFact::Unrevoked(id)) => {
                    known.remove(id);
                }
                _ => {}
            }
        }
    }

    /// All that the View holds are in force at its revision, wherever they came from.
    pub fn note_all(&self, view: &View) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, _| view.revocations.get(id).is_some());
        for revocation in view.revocations.iter() {
            known.entry(revocation.id.clone()).or_insert(view.revision.0);
        }
    }
}

impl Context {
    /// The TLS configuration for dialling control nodes of that trust domain.
    pub fn node_tls(&self, trust_domain: &TrustDomain) -> Arc<rustls::ClientConfig> {
        self.client_tls(Expect::Member(trust_domain.clone(), MemberRole::Node))
    }

    pub fn client_tls(&self, expect: Expect) -> Arc<rustls::ClientConfig> {
        client_config(self.trust.clone(), self.own.clone(), expect, ALPN_H2)
    }

    pub fn own_id(&self) -> SpiffeId {
        SpiffeId::member(&self.trust_domain, MemberRole::Node, &self.name)
    }

    /// What time it is by this node, or by the others if they contradict it: for what enters the log, and for what this node
    /// signs for itself.
    pub fn time(&self) -> Timestamp {
        self.handle.clock().agreed()
    }

    /// Whether this node itself is revoked: then nobody should listen to it, and those who do are to go elsewhere.
    pub fn is_revoked(&self) -> bool {
        self.handle.state().node_revocation(&self.name).is_some()
    }

    /// Makes a fresh SVID for this node and puts it in use; answers when the next one is due.
    pub fn renew_own(&self) -> Result<Timestamp, String> {
        let state = self.handle.state();
        let revocations = &state.view.revocations;
        let authority = self.own_authority(&state).ok_or("none of its authorities is in the bundle")?;
        let svid = keys::node_svid(&authority, &self.name, revocations, self.member_lifetime, self.time())
            .map_err(|e| e.to_string())?;
        let identity = TlsIdentity::new(&svid).map_err(|e| e.to_string())?;
        self.own.set(identity);
        self.metrics.svid_issued.inc();
        Ok(renewal::renew_at(svid.facts.not_before, svid.facts.not_after, jitter()))
    }

    /// What signs for others, by that State.
    pub fn signing_authority(&self, state: &State) -> Option<Arc<Authority>> {
        self.authorities.signing(state.view.bundles.get(&self.trust_domain)?)
    }

    /// What signs for this node itself.
    pub fn own_authority(&self, state: &State) -> Option<Arc<Authority>> {
        self.authorities.own(state.view.bundles.get(&self.trust_domain)?)
    }

    /// Whether the own SVID is of another authority than signs now.
    fn is_overtaken(&self) -> bool {
        let state = self.handle.state();
        let signing = self.own_authority(&state).map(|authority| signing_key(&authority).prefix());
        let own = self.own.identity().and_then(|own| own.facts.authority_key_identifier.clone());
        signing.is_some() && signing != own
    }

    /// Keeps the own SVID fresh until the node stops.
    pub async fn keep_renewing(self: Arc<Self>, mut due: Timestamp) {
        let (mut stop, mut states) = (self.stop.clone(), self.handle.states());
        loop {
            tokio::select! {
                () = tokio::time::sleep(due.left(self.time())) => {}
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if !self.is_overtaken() {
                        continue;
                    }
                }
                () = stopped(&mut stop) => return,
            }
            due = match self.renew_own() {
                Ok(due) => due,
                Err(why) => {
                    tracing::error!(why, "the node's own SVID cannot be renewed");
                    self.time() + RENEWAL_RETRY
                }
            };
        }
    }

    /// Notes at which revision each revocation and each bundle came, until the node stops.
    pub async fn keep_noting(self: Arc<Self>) {
        let (mut stop, mut feed) = (self.stop.clone(), self.handle.feed());
        let note_all = || {
            let state = self.handle.state();
            self.revisions.note_all(&state.view);
            self.bundle_revisions.note_all(&state.view);
        };
        note_all();
        loop {
            let received = tokio::select! {
                received = feed.recv() => received,
                () = stopped(&mut stop) => return,
            };
            match received {
                Ok(applied) if applied.reset => note_all(),
                Ok(applied) => {
                    self.revisions.note(applied.revision, &applied.changes);
                    self.bundle_revisions.note(applied.revision, &applied.changes);
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => note_all(),
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

/// Resolves once the node is to stop, or nobody is left who could say so.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Either way there is nothing to go on for.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Uniform in 0.0 to 1.0.
pub fn jitter() -> f64 {
    (keys::random_u64() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_identity::{Reason, Revocation, RevocationTarget};

    fn revocation(id: &str) -> Revocation {
        Revocation::new(
            id.parse().unwrap(),
            RevocationTarget::Identity("spiffe://west.example/ns/shop/sa/ratings".parse().unwrap()),
            Reason::Hold,
            Timestamp(1),
        )
    }

    #[test]
    fn a_peers_revocation_counts_from_where_our_log_took_it_in() {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let (own, theirs) = (revocation("r-7@east.example"), revocation("r-900@west.example"));
        let revisions = RevocationRevisions::default();
        assert_eq!(revisions.of(&view, &own.id), None);
        let west: ClusterName = "west".parse().unwrap();
        let taken_in = [Change::PeerFact(west, PeerFact::Revoked(theirs.clone()))];
        view.revocations.insert(own.clone());
        view.revocations.insert(theirs.clone());
        view.revision.0 = 50;
        assert_eq!(revisions.of(&view, &own.id), Some(7));
        assert_eq!(revisions.of(&view, &theirs.id), Some(50), "unknown origin: the present revision");
        revisions.note(31, &taken_in);
        revisions.note(40, &taken_in);
        assert_eq!(revisions.of(&view, &theirs.id), Some(31), "told again is not newer");
        view.revocations.remove(&theirs.id);
        assert_eq!(revisions.of(&view, &theirs.id), None);
    }
}
