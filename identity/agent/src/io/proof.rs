//! Proof by a handshake: when a revocation hits an SVID that this agent holds, the agent keeps it just long enough to show
//! it to listeners of the mesh, and says whether they refused it. The key leaves this process for nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hanse_identity::proof::{Attempt, Door, DoorKind, HandshakeOutcome, HeldProof, MAX_PROOFS, shortened};
use hanse_identity::svid::Svid;
use hanse_identity::tls::{self, Expect, IdentitySource, TlsIdentity, TrustSource};
use hanse_identity::wire::AgentState;
use hanse_identity::{ClusterName, RevocationId, Serial, Trust};
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::dial::ALPN_H2;
use super::{View, now};

/// Certificates of one revocation that are shown: one says as much as a hundred.
const MAX_SHOWN: usize = 4;
/// One handshake, and the listener's first word after it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it is tried to reach a listener; a receipt waits for as long.
const REACH_WITHIN: Duration = Duration::from_millis(1500);
/// How long a listener that accepts is asked again: it may be about to hear of the revocation. The key is kept for as long.
const REFUSE_WITHIN: Duration = Duration::from_secs(60);
/// Pauses between attempts: the first, doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// How long the listener is left to speak first: bytes on their way to one that refuses can cost its alert.
const LISTEN_FIRST: Duration = Duration::from_millis(100);
/// What an HTTP/2 client says first (RFC 9113 §3.4): the preface, and SETTINGS without any.
const HTTP2_HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What became of all attempts; shared by the tasks that make them.
#[derive(Clone)]
pub struct Proofs {
    table: Arc<Mutex<Vec<Entry>>>,
    changes: Arc<watch::Sender<u64>>,
}

/// What is known of one revocation.
struct Entry {
    revocation: RevocationId,
    /// Certificates that it hits and whose keys were held.
    held: BTreeSet<Serial>,
    attempts: Vec<Attempt>,
}

/// One certificate for one kind of listener of one cluster.
struct Showing {
    proofs: Proofs,
    revocation: RevocationId,
    svid: Arc<Svid>,
    identity: Arc<TlsIdentity>,
    cluster: ClusterName,
    kind: DoorKind,
    view: watch::Receiver<View>,
}

/// What one handshake asks for: who shows what, and whom it believes.
struct Fixed {
    trust: Arc<Trust>,
    identity: Arc<TlsIdentity>,
}

impl TrustSource for Fixed {
    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust)
    }
}

impl IdentitySource for Fixed {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        Some(Arc::clone(&self.identity))
    }
}

impl Default for Proofs {
    fn default() -> Self {
        Self { table: Arc::default(), changes: Arc::new(watch::Sender::new(0)) }
    }
}

impl Proofs {
    /// Changes with every word that there is to tell.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All that has been found out, and where it is found out still.
    pub fn list(&self) -> Vec<HeldProof> {
        let told = |entry: &Entry| HeldProof {
            revocation: entry.revocation.clone(),
            held: u32::try_from(entry.held.len()).unwrap_or(u32::MAX),
            attempts: entry.attempts.clone(),
        };
        self.lock().iter().map(told).collect()
    }

    /// Shows these SVIDs, which `state` says are revoked; each once, however often this is called. What is under way is in
    /// `list` when this returns.
    pub fn begin(&self, state: &AgentState, revoked: &[Arc<Svid>], view: &watch::Receiver<View>) {
        for svid in revoked {
            let hitting: BTreeSet<&RevocationId> =
                state.revocations.hitting(&svid.facts, &[]).map(|r| &r.id).collect();
            for revocation in hitting {
                for showing in self.showings(state, revocation, svid, view) {
                    tokio::spawn(showing.run());
                }
            }
        }
    }

    fn showings(
        &self,
        state: &AgentState,
        revocation: &RevocationId,
        svid: &Arc<Svid>,
        view: &watch::Receiver<View>,
    ) -> Vec<Showing> {
        // Its key fits: it was in use.
        let Ok(identity) = TlsIdentity::new(svid).map(Arc::new) else { return Vec::new() };
        let mut table = self.lock();
        let position = table.iter().position(|p| p.revocation == *revocation).unwrap_or_else(|| {
            if table.len() >= MAX_PROOFS {
                table.remove(0);
            }
            table.push(Entry { revocation: revocation.clone(), held: BTreeSet::new(), attempts: Vec::new() });
            table.len() - 1
        });
        let proof = &mut table[position];
        if !proof.held.insert(svid.facts.serial.clone()) || proof.held.len() > MAX_SHOWN {
            return Vec::new();
        }
        let mut places: BTreeMap<(&ClusterName, DoorKind), &Door> = BTreeMap::new();
        for door in &state.doors {
            places.entry((&door.cluster, door.kind)).or_insert(door);
        }
        let mut showings = Vec::new();
        for ((cluster, kind), door) in places {
            proof.attempts.push(Attempt {
                serial: svid.facts.serial.clone(),
                id: svid.facts.id.clone(),
                cluster: cluster.clone(),
                kind,
                door: door.name.clone(),
                at: now(),
                outcome: HandshakeOutcome::UnderWay,
            });
            showings.push(Showing {
                proofs: self.clone(),
                revocation: revocation.clone(),
                svid: Arc::clone(svid),
                identity: Arc::clone(&identity),
                cluster: cluster.clone(),
                kind,
                view: view.clone(),
            });
        }
        drop(table);
        self.changes.send_modify(|n| *n += 1);
        showings
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.table.lock().expect("no holder of this lock panics")
    }
}

impl Showing {
    /// Until it is refused, nobody answers, or it has been accepted for too long.
    async fn run(self) {
        let (began, mut pause) = (Instant::now(), PAUSE_FIRST);
        for turn in 0.. {
            let Some(state) = self.view.borrow().state.clone() else { return self.forget() };
            let in_force = state.revocations.hitting(&self.svid.facts, &[]).any(|r| r.id == self.revocation);
            if !in_force {
                // Lifted or cleared meanwhile: whoever accepts it now is right to.
                return self.forget();
            }
            let doors: Vec<&Door> =
                state.doors.iter().filter(|d| d.cluster == self.cluster && d.kind == self.kind).collect();
            let mut outcome = HandshakeOutcome::NoAnswer { why: "no such listener is known any more".into() };
            let mut name = None;
            if !doors.is_empty() {
                let door = doors[turn % doors.len()];
                outcome = self.show(&state, door).await;
                name = Some(door.name.clone());
            }
            let over = match &outcome {
                HandshakeOutcome::Refused { .. } => true,
                HandshakeOutcome::Accepted => began.elapsed() >= REFUSE_WITHIN,
                HandshakeOutcome::NoAnswer { .. } => began.elapsed() >= REACH_WITHIN,
                HandshakeOutcome::UnderWay => false,
            };
            // An answer that may still come is waited for; one that has been accepted is told at once.
            if over || outcome == HandshakeOutcome::Accepted {
                self.tell(outcome, name);
            }
            if over {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }

    async fn show(&self, state: &AgentState, door: &Door) -> HandshakeOutcome {
        let trust = Arc::new(Trust::new(&state.bundles, state.revocations.clone()));
        let fixed = Arc::new(Fixed { trust, identity: Arc::clone(&self.identity) });
        match timeout(ATTEMPT_TIMEOUT, handshake(fixed, door)).await {
            Ok(outcome) => outcome,
            Err(_) => no_answer(&format!("no answer within {} s", ATTEMPT_TIMEOUT.as_secs())),
        }
    }

    fn tell(&self, outcome: HandshakeOutcome, door: Option<hanse_identity::NodeName>) {
        tracing::info!(revocation = %self.revocation, serial = %self.svid.facts.serial, cluster = %self.cluster,
            door = door.as_ref().map(|d| d.as_str()), ?outcome, "a revoked certificate was shown");
        self.change(|attempts, position| {
            let attempt = &mut attempts[position];
            attempt.outcome = outcome;
            attempt.at = now();
            if let Some(door) = door {
                attempt.door = door;
            }
        });
    }

    /// Nothing is to be said of it.
    fn forget(&self) {
        self.change(|attempts, position| drop(attempts.remove(position)));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Attempt>, usize)) {
        let mut table = self.proofs.lock();
        let Some(proof) = table.iter_mut().find(|p| p.revocation == self.revocation) else { return };
        let mine = |a: &Attempt| {
            a.serial == self.svid.facts.serial && a.cluster == self.cluster && a.kind == self.kind
        };
        let Some(position) = proof.attempts.iter().position(mine) else { return };
        change(&mut proof.attempts, position);
        drop(table);
        self.proofs.changes.send_modify(|n| *n += 1);
    }
}

/// One handshake as a client. In TLS 1.3 the client is done before the server has looked at its certificate: so the
/// server's next word is waited for, an alert or anything else.
async fn handshake(fixed: Arc<Fixed>, door: &Door) -> HandshakeOutcome {
    let expect = Expect::Identities(Arc::new(BTreeSet::from([door.identity.clone()])));
    let config = tls::client_config(Arc::clone(&fixed) as _, fixed, expect, ALPN_H2);
    let Ok(name) = ServerName::try_from(door.server_name.clone()) else {
        return no_answer("its server name is none");
    };
    let tcp = match TcpStream::connect(&door.address).await {
        Ok(tcp) => tcp,
        Err(error) => return no_answer(&error.to_string()),
    };
    let mut stream = match tokio_rustls::TlsConnector::from(config).connect(name, tcp).await {
        Ok(stream) => stream,
        Err(error) => return read_error(&error),
    };
    let mut byte = [0; 1];
    let read = match timeout(LISTEN_FIRST, stream.read(&mut byte)).await {
        Ok(read) => read,
        Err(_) => {
            if let Err(error) = stream.write_all(HTTP2_HELLO).await {
                return read_error(&error);
            }
            if let Err(error) = stream.flush().await {
                return read_error(&error);
            }
            stream.read(&mut byte).await
        }
    };
    match read {
        Ok(0) => no_answer("it closed the connection without a word"),
        Ok(_) => HandshakeOutcome::Accepted,
        Err(error) => read_error(&error),
    }
}

/// An alert about the certificate is a refusal; anything else says nothing.
fn read_error(error: &io::Error) -> HandshakeOutcome {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRevoked, CertificateUnknown, UnknownCA,
    };
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(
            alert @ (AccessDenied | BadCertificate | CertificateExpired | CertificateRevoked
            | CertificateUnknown | UnknownCA),
        )) => HandshakeOutcome::Refused { alert: format!("{alert:?}") },
        _ => no_answer(&error.to_string()),
    }
}

fn no_answer(why: &str) -> HandshakeOutcome {
    HandshakeOutcome::NoAnswer { why: shortened(why) }
}
