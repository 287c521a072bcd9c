//! What the tests of this crate have in common: authorities, states, callers, and an issuer in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hanse_identity::jwt::JwtIssueError;
use hanse_identity::svid::Svid;
use hanse_identity::wire::AgentState;
use hanse_identity::{
    Authority, Bundle, Evidence, JwtKey, NodeName, Reason, Registration, Revocation, RevocationId,
    RevocationTarget, Revocations, Selector, SpiffeId, Ticket, Timestamp, TrustDomain, grant, issue,
};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::attest::{Caller, Process};
use crate::io::svids::{IssueSvid, IssuerError, key_and_request};
use crate::io::{View, now, random};

pub const DAY: Duration = Duration::from_secs(24 * 3600);
pub const REVIEWS: &str = "spiffe://east.example/ns/shop/sa/reviews";
pub const RATINGS: &str = "spiffe://east.example/ns/shop/sa/ratings";

pub fn east() -> TrustDomain {
    "east.example".parse().unwrap()
}

pub fn west() -> TrustDomain {
    "west.example".parse().unwrap()
}

pub fn agent() -> NodeName {
    "host-1".parse().unwrap()
}

pub fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub fn serial() -> hanse_identity::Serial {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random().to_le_bytes());
    bytes[8..].copy_from_slice(&random().to_le_bytes());
    hanse_identity::Serial::from_random(bytes)
}

pub fn authority(trust_domain: &TrustDomain) -> Authority {
    let key = rcgen::KeyPair::generate().unwrap();
    let node = "node-1".parse().unwrap();
    Authority::create(trust_domain, &node, key, serial(), now() - DAY, 30 * DAY).unwrap()
}

pub fn bundle(authorities: &[&Authority]) -> Bundle {
    let trust_domain = authorities[0].trust_domain().clone();
    let authorities = authorities.iter().map(|a| a.certificate().clone()).collect();
    Bundle::new(trust_domain, 1, authorities)
}

pub fn registration(name: &str, selectors: impl IntoIterator<Item = Selector>) -> Registration {
    Registration { ttl_seconds: 3600, ..Registration::new(id(name), agent(), selectors) }
}

pub fn state(registrations: Vec<Registration>, bundles: Vec<Bundle>) -> AgentState {
    AgentState {
        revision: 1,
        registrations,
        bundles,
        crls: BTreeMap::new(),
        revocations: Revocations::default(),
        strangers: BTreeSet::new(),
        endpoints: vec!["127.0.0.1:1".to_owned()],
        doors: Vec::new(),
    }
}

pub fn revocation(number: u64, target: RevocationTarget) -> Revocation {
    Revocation::new(RevocationId { number, origin: east() }, target, Reason::KeyCompromise, now())
}

/// User that the tests run as.
pub fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

pub fn caller() -> Caller {
    let process = Process { pid: 100, started: 4711 };
    Caller {
        process,
        uid: 1000,
        gid: 1000,
        supplementary_gids: BTreeSet::new(),
        user: None,
        group: None,
        supplementary_groups: BTreeSet::new(),
        path: Some("/usr/bin/reviews".to_owned()),
        executable: None,
        unit: None,
    }
}

pub fn evidence(caller: &Caller) -> Evidence {
    Evidence { agent: agent(), selectors: caller.selectors() }
}

/// An SVID, the honest way: registration, ticket, request, signature.
pub fn svid(authority: &Authority, name: &str) -> Svid {
    let registrations = [registration(name, [Selector::Uid(1000)])];
    let evidence = evidence(&caller());
    let none = Revocations::default();
    let ticket = grant::grant(authority.trust_domain(), &registrations, &none, &evidence, &id(name)).unwrap();
    let (key, csr) = key_and_request().unwrap();
    let issued = issue(ticket, &csr, authority, serial(), now()).unwrap();
    Svid::new(issued.chain, key).unwrap()
}

/// Decides and signs as a control node does, from the state that the agent has too.
pub struct TestIssuer {
    pub authority: Mutex<Arc<Authority>>,
    pub view: watch::Receiver<View>,
    /// Requests that fail before the next one succeeds.
    pub failing: AtomicU32,
    pub asked: AtomicU32,
    /// How often each identity was issued.
    pub issued: Mutex<BTreeMap<SpiffeId, u32>>,
    /// What tokens are signed with.
    pub jwt: JwtKey,
    /// The own bundle as the control node has it: it may be ahead of the agent's.
    pub committed: Mutex<Bundle>,
}

impl TestIssuer {
    pub fn new(authority: Authority, view: watch::Receiver<View>) -> Arc<Self> {
        let jwt = JwtKey::new(&east(), rcgen::KeyPair::generate().unwrap().try_into().unwrap());
        let mut committed = bundle(&[&authority]);
        committed.jwt_authorities.push(jwt.authority(now() + DAY));
        Arc::new(Self {
            jwt,
            committed: Mutex::new(committed),
            authority: Mutex::new(Arc::new(authority)),
            view,
            failing: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            issued: Mutex::default(),
        })
    }

    fn ticket(&self, id: &SpiffeId, selectors: BTreeSet<Selector>) -> Result<Ticket, IssuerError> {
        let state = self.view.borrow().state.clone().unwrap();
        let evidence = Evidence { agent: agent(), selectors };
        grant::grant(&east(), &state.registrations, &state.revocations, &evidence, id)
            .map_err(|e| IssuerError::Refused(e.to_string()))
    }

    fn decide_jwt(
        &self,
        id: &SpiffeId,
        selectors: BTreeSet<Selector>,
        audience: &[String],
    ) -> Result<Zeroizing<String>, IssuerError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let ticket = self.ticket(id, selectors)?;
        let unreachable = |e: JwtIssueError| IssuerError::Unreachable(e.to_string());
        let bundle = self.committed.lock().unwrap().clone();
        Ok(self.jwt.issue(ticket, &bundle, audience, None, now()).map_err(unreachable)?.token)
    }

    fn decide(
        &self,
        id: &SpiffeId,
        csr: &[u8],
        selectors: BTreeSet<Selector>,
    ) -> Result<Vec<Vec<u8>>, IssuerError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let fails = self.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if fails.is_ok() {
            return Err(IssuerError::Unreachable("as the test wants it".to_owned()));
        }
        let refused = |e: String| IssuerError::Refused(e);
        let ticket = self.ticket(id, selectors)?;
        let authority = Arc::clone(&self.authority.lock().unwrap());
        let issued = issue(ticket, csr, &authority, serial(), now()).map_err(|e| refused(e.to_string()))?;
        *self.issued.lock().unwrap().entry(id.clone()).or_default() += 1;
        Ok(issued.chain)
    }
}

impl IssueSvid for TestIssuer {
    fn issue_svid(
        &self,
        id: SpiffeId,
        csr_der: Vec<u8>,
        selectors: BTreeSet<Selector>,
    ) -> BoxFuture<'_, Result<Vec<Vec<u8>>, IssuerError>> {
        Box::pin(async move { self.decide(&id, &csr_der, selectors) })
    }

    fn issue_jwt(
        &self,
        id: SpiffeId,
        selectors: BTreeSet<Selector>,
        audience: Vec<String>,
    ) -> BoxFuture<'_, Result<Zeroizing<String>, IssuerError>> {
        Box::pin(async move { self.decide_jwt(&id, selectors, &audience) })
    }
}

/// The end of an SVID that a test can compare.
pub fn later(at: Timestamp, seconds: u64) -> Timestamp {
    at + Duration::from_secs(seconds)
}
