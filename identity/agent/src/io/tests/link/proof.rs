//! Proof by a handshake, over real TLS: what listeners do with a revoked certificate, and when that is told.

use arc_swap::ArcSwap;
use hanse_identity::proof::{Attempt, Door, DoorKind, HandshakeOutcome, HeldProof};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::io::proof::Proofs;

/// A listener that speaks first when it believes who is there, as an HTTP/2 server does.
struct Listener {
    address: String,
    tls: Arc<ListenerTls>,
    identity: SpiffeId,
}

struct ListenerTls {
    trust: ArcSwap<Trust>,
    identity: Arc<TlsIdentity>,
}

impl TrustSource for ListenerTls {
    fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }
}

impl IdentitySource for ListenerTls {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        Some(Arc::clone(&self.identity))
    }
}

impl Listener {
    async fn start(cluster: &Cluster, name: &str, speaks_first: bool) -> Self {
        let (key, csr) = key_and_request().unwrap();
        let chain = cluster.sign_member(MemberRole::Gateway, &name.parse().unwrap(), &csr, DAY);
        let svid = Svid::new(chain, key).unwrap();
        let trust =
            ArcSwap::from_pointee(Trust::new([&bundle(&[&cluster.authority])], Revocations::default()));
        let tls = Arc::new(ListenerTls { trust, identity: Arc::new(TlsIdentity::new(&svid).unwrap()) });
        let config =
            tls::server_config(Arc::clone(&tls) as _, Arc::clone(&tls) as _, ClientAuth::Required, &[b"h2"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
                    // The client's preface, of which the first letters are enough here.
                    if !speaks_first && stream.read_exact(&mut [0; 4]).await.is_err() {
                        return;
                    }
                    let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
                    let _ = stream.read(&mut [0; 64]).await;
                });
            }
        });
        Self { address, tls, identity: svid.facts.id }
    }

    fn learn(&self, cluster: &Cluster) {
        let revocations = cluster.state.borrow().revocations.clone();
        self.tls.trust.store(Arc::new(Trust::new([&bundle(&[&cluster.authority])], revocations)));
    }

    fn door(&self, cluster: &str) -> Door {
        door(cluster, &self.identity, &self.address)
    }
}

fn door(cluster: &str, identity: &SpiffeId, address: &str) -> Door {
    Door {
        cluster: cluster.parse().unwrap(),
        kind: DoorKind::Gateway,
        name: identity.as_member().unwrap().1.parse().unwrap(),
        identity: identity.clone(),
        address: address.to_owned(),
        server_name: "hanse.internal".to_owned(),
    }
}

fn refused() -> HandshakeOutcome {
    HandshakeOutcome::Refused { alert: "CertificateRevoked".to_owned() }
}

/// What an agent has told, as a control node has it: the latest that was not empty.
fn told(reports: &[AgentUp]) -> Vec<HeldProof> {
    let last = reports.iter().rev().find(|up| !up.proofs.is_empty());
    last.map(|up| serde_json::from_slice(&up.proofs).unwrap()).unwrap_or_default()
}

fn at<'a>(proofs: &'a [HeldProof], cluster: &str) -> Option<&'a Attempt> {
    proofs.iter().flat_map(|proof| &proof.attempts).find(|a| a.cluster.as_str() == cluster)
}

#[tokio::test]
async fn a_revoked_svid_is_shown_to_listeners_and_told_no_later_than_its_revocation() {
    let cluster = Cluster::new(vec![mine(REVIEWS)], DAY);
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    cluster.state.send_modify(|s| s.endpoints = vec![node.address.clone()]);
    let token = cluster.token(vec![node.address.clone()]);
    soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    let agent = Member::start(&directory);
    agent.link.report_on(agent.shared.svids.clone());
    let (lease, _) = agent.workload().await;
    let Holding::Ready(svid) = lease.holding() else { panic!("it was ready") };
    let (knows, behind) = (
        Listener::start(&cluster, "gateway-1", true).await,
        Listener::start(&cluster, "gateway-2", true).await,
    );
    cluster.change(|state| {
        state.revocations.insert(revocation(7, RevocationTarget::Serial(svid.facts.serial.clone())));
        state.doors = vec![knows.door("east"), behind.door("west")];
    });
    // It may be shown before this one has heard, and is shown again.
    knows.learn(&cluster);
    let proofs = || told(&cluster.reports.lock().unwrap());
    let outcome = |cluster: &str| at(&proofs(), cluster).map(|attempt| attempt.outcome.clone());
    until(|| outcome("east") == Some(refused())).await;
    until(|| outcome("west") == Some(HandshakeOutcome::Accepted)).await;
    behind.learn(&cluster);
    until(|| outcome("west") == Some(refused())).await;
    let proofs = proofs();
    assert_eq!((proofs.len(), proofs[0].held, proofs[0].attempts.len()), (1, 1, 2));
    let attempt = at(&proofs, "west").unwrap();
    assert_eq!((&attempt.serial, attempt.door.as_str()), (&svid.facts.serial, "gateway-2"));
    // Whoever reads that the revocation is in force has been told that there is something to wait for.
    let revision = cluster.state.borrow().revision;
    let reports = cluster.reports.lock().unwrap().clone();
    let in_force = reports.iter().position(|up| up.applied_revision >= revision).unwrap();
    assert!(!told(&reports[..=in_force]).is_empty(), "{:?}", reports[in_force]);
    let key = svid.key_pem();
    let body: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let said: Vec<u8> = reports.iter().flat_map(|up| up.proofs.clone()).collect();
    assert!(!String::from_utf8(said).unwrap().contains(body[0]), "no key is told");
    agent.stop().await;
}

/// An agent's SVID and a state in which it is revoked, with these doors.
fn revoked(cluster: &Cluster, doors: Vec<Door>) -> (Arc<Svid>, watch::Sender<View>, Arc<AgentState>) {
    let svid = Arc::new(crate::fixture::svid(&cluster.authority, REVIEWS));
    cluster.change(|state| {
        state.revocations.insert(revocation(7, RevocationTarget::Serial(svid.facts.serial.clone())));
        state.doors = doors;
    });
    let state = Arc::new(cluster.state.borrow().clone());
    let view = View { trust_domain: Some(east()), state: Some(Arc::clone(&state)) };
    (svid, watch::Sender::new(view), state)
}

#[tokio::test]
async fn what_is_no_refusal_by_whom_it_is_asked_of_proves_nothing() {
    let cluster = Cluster::new(vec![mine(REVIEWS)], DAY);
    let other = Listener::start(&cluster, "gateway-9", true).await;
    let expected = SpiffeId::member(&east(), MemberRole::Gateway, &"gateway-1".parse().unwrap());
    let doors = vec![door("east", &expected, "127.0.0.1:9"), door("west", &expected, &other.address)];
    let (svid, view, state) = revoked(&cluster, doors);
    other.learn(&cluster);
    let proofs = Proofs::default();
    proofs.begin(&state, std::slice::from_ref(&svid), &view.subscribe());
    assert_eq!(at(&proofs.list(), "east").unwrap().outcome, HandshakeOutcome::UnderWay, "there at once");
    let no_answer = |cluster: &str| {
        let outcome = at(&proofs.list(), cluster).map(|a| a.outcome.clone());
        matches!(outcome, Some(HandshakeOutcome::NoAnswer { .. }))
    };
    until(|| no_answer("east") && no_answer("west")).await;
    proofs.begin(&state, &[svid], &view.subscribe());
    assert_eq!(proofs.list()[0].held, 1, "each is shown once");
}

#[tokio::test]
async fn nothing_is_said_of_a_revocation_that_is_gone() {
    let cluster = Cluster::new(vec![mine(REVIEWS)], DAY);
    // It never hears of the revocation, and waits for the client's first word.
    let listener = Listener::start(&cluster, "gateway-1", false).await;
    let (svid, view, state) = revoked(&cluster, vec![listener.door("east")]);
    let proofs = Proofs::default();
    proofs.begin(&state, &[svid], &view.subscribe());
    let outcome = || at(&proofs.list(), "east").map(|attempt| attempt.outcome.clone());
    until(|| outcome() == Some(HandshakeOutcome::Accepted)).await;
    cluster.change(|state| state.revocations = Revocations::default());
    view.send_modify(|view| view.state = Some(Arc::new(cluster.state.borrow().clone())));
    until(|| outcome().is_none()).await;
}
