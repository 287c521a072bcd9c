//! Benchmark of the data plane: CPU per request and requests per second of one and two sidecar hops and of the gateway
//! hops, against a bare tokio-rustls copy with the same certificates' key type, in one run, rounds interleaved.
//!
//! `cargo run --release -p hanse-tests --bin bench [-- --seconds 5 --rounds 3 --connections 64]`
//! CPU is the kernel's accounting of each process; load generator and app are not counted. Read ratios, not absolutes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use hanse_tests::house::Demo;
use hanse_tests::http::Connection;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Seconds that each scenario runs in each round
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keep-alive connections of the closed-loop load
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of the answer's body
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

/// The bare baseline runs as processes of this program.
#[derive(Subcommand)]
enum Role {
    /// Plaintext in, mutual TLS 1.3 out
    BareClient { listen: SocketAddr, to: SocketAddr, directory: String },
    /// Mutual TLS 1.3 in, plaintext out
    BareServer { listen: SocketAddr, to: SocketAddr, directory: String },
}

/// One thing that is measured: where the load goes, and whose CPU is counted.
struct Scenario {
    name: &'static str,
    address: String,
    host: String,
    path: String,
    processes: Vec<(&'static str, u32)>,
}

#[derive(Default)]
struct Figures {
    requests_per_second: Vec<f64>,
    /// µs per request, per counted process.
    cpu: BTreeMap<&'static str, Vec<f64>>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(Role::BareClient { listen, to, directory }) => bare(listen, to, &directory, true),
        Some(Role::BareServer { listen, to, directory }) => bare(listen, to, &directory, false),
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let demo = Demo::up(["--rps", "0"])?;
    let bare = Bare::start(&demo)?;
    let scenarios = scenarios(&demo, &bare, arguments.body)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    for scenario in &scenarios {
        runtime.block_on(load(scenario, arguments.connections.min(8), Duration::from_millis(500)))?;
    }
    for _ in 0..arguments.rounds {
        for scenario in &scenarios {
            let before: Vec<f64> =
                scenario.processes.iter().map(|(_, pid)| cpu_seconds(*pid)).collect::<Result<_>>()?;
            let started = Instant::now();
            let done = runtime.block_on(load(
                scenario,
                arguments.connections,
                Duration::from_secs(arguments.seconds),
            ))?;
            ensure!(done > 0, "{}: no request succeeded", scenario.name);
            let took = started.elapsed().as_secs_f64();
            let into = figures.entry(scenario.name).or_default();
            into.requests_per_second.push(done as f64 / took);
            for ((what, pid), before) in scenario.processes.iter().zip(before) {
                let micros = (cpu_seconds(*pid)? - before) * 1e6 / done as f64;
                into.cpu.entry(what).or_default().push(micros);
            }
        }
    }
    report(arguments, &scenarios, &mut figures);
    Ok(())
}

fn scenarios(demo: &Demo, bare: &Bare, body: usize) -> Result<Vec<Scenario>> {
    let path = format!("/bytes/{body}");
    let outbound = demo.address("east", "proxy", "load-1", "outbound")?;
    let sidecar = demo.pid("east", "proxy", "load-1")?;
    // ratings answers only from west, so that what is asked of it passes the gateways.
    let policy = "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: { name: ratings, namespace: shop }\n\
        spec:\n  targetRefs: [{ group: multicluster.x-k8s.io, kind: ServiceImport, name: ratings }]\n  \
        locality: { mode: Distribute, distribute: [{ from: east, to: { west: 100 } }] }\n";
    let file = demo.dir().join("bench-policy.yaml");
    std::fs::write(&file, policy)?;
    demo.run(
        ["policy", "apply", "--context", "demo-east", "-f"]
            .map(std::ffi::OsString::from)
            .into_iter()
            .chain([file.into()]),
    )?;
    let mut gateways = Vec::new();
    for (what, cluster, name) in [
        ("east gateway-1", "east", "gateway-1"),
        ("east gateway-2", "east", "gateway-2"),
        ("west gateway-1", "west", "gateway-1"),
        ("west gateway-2", "west", "gateway-2"),
    ] {
        gateways.push((what, demo.pid(cluster, "gateway", name)?));
    }
    let mut remote = vec![("sidecar A", sidecar), ("sidecar B", demo.pid("west", "proxy", "ratings-1")?)];
    remote.extend(gateways);
    Ok(vec![
        Scenario {
            name: "bare",
            address: bare.address.to_string(),
            host: "bare".into(),
            path: path.clone(),
            processes: vec![("sidecar A", bare.client.id()), ("sidecar B", bare.server.id())],
        },
        Scenario {
            name: "hanse local",
            address: outbound.clone(),
            host: "details.shop.svc.cluster.local".into(),
            path: path.clone(),
            processes: vec![("sidecar A", sidecar), ("sidecar B", demo.pid("east", "proxy", "details-1")?)],
        },
        Scenario {
            name: "hanse through gateways",
            address: outbound,
            host: "ratings.shop.svc.clusterset.local".into(),
            path,
            processes: remote,
        },
    ])
}

/// Closed loop: every connection asks again as soon as it was answered. Answers the number of 200s.
async fn load(scenario: &Scenario, connections: usize, time: Duration) -> Result<u64> {
    let done = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (address, host, path) = (scenario.address.clone(), scenario.host.clone(), scenario.path.clone());
        let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            while !stop.load(Ordering::Relaxed) {
                let answer = connection.get(&host, &path).await?;
                if answer.status != 200 {
                    bail!("status {} {:?}", answer.status, answer.headers);
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended?.with_context(|| scenario.name.to_owned())?;
    }
    Ok(done.load(Ordering::Relaxed))
}

fn report(arguments: &Arguments, scenarios: &[Scenario], figures: &mut BTreeMap<&str, Figures>) {
    println!(
        "{} connections, {} byte answers, HTTP/1.1 in, medians of {} rounds of {} s",
        arguments.connections, arguments.body, arguments.rounds, arguments.seconds
    );
    println!("{:<24} {:>10}  CPU per request, µs", "", "requests/s");
    let mut totals = BTreeMap::new();
    for scenario in scenarios {
        let Some(figures) = figures.get_mut(scenario.name) else { continue };
        let sum = |wanted: &dyn Fn(&str) -> bool, figures: &mut Figures| -> f64 {
            figures.cpu.iter_mut().filter(|(what, _)| wanted(what)).map(|(_, values)| median(values)).sum()
        };
        let rps = median(&mut figures.requests_per_second);
        let a = sum(&|what| what == "sidecar A", figures);
        let b = sum(&|what| what == "sidecar B", figures);
        let own = sum(&|what| what.starts_with("east gateway"), figures);
        let far = sum(&|what| what.starts_with("west gateway"), figures);
        let gateways = if far > 0.0 {
            format!("  own gateway {own:.1}  peer's gateway {far:.1}")
        } else {
            String::new()
        };
        println!(
            "{:<24} {rps:>10.0}  one hop (A) {a:.1}  (B) {b:.1}  two hops {:.1}{gateways}",
            scenario.name,
            a + b
        );
        totals.insert(scenario.name, a + b);
    }
    if let (Some(bare), Some(ours)) = (totals.get("bare"), totals.get("hanse local")) {
        println!("two hops, hanse local / bare tokio-rustls copy: {:.2}", ours / bare);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// On-CPU time of all threads of a process, from the scheduler, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanos = 0u64;
    for task in
        std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?
    {
        let path = task?.path().join("schedstat");
        let text = std::fs::read_to_string(path)?;
        nanos += text.split_whitespace().next().context("schedstat is empty")?.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e9)
}

/// The baseline's two processes.
struct Bare {
    client: Child,
    server: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Bare {
    /// In front of the same app that the local scenario asks.
    fn start(demo: &Demo) -> Result<Self> {
        let app: SocketAddr = demo.address("east", "app", "details-1", "app")?.parse()?;
        let directory = tempfile::tempdir()?;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = rcgen::CertificateParams::new(vec!["bare".to_owned()])?.self_signed(&key)?;
        std::fs::write(directory.path().join("certificate"), certificate.der())?;
        std::fs::write(directory.path().join("key"), key.serialize_der())?;
        let (address, between) = (free_address()?, free_address()?);
        let role = |role: &str, listen: SocketAddr, to: SocketAddr| -> Result<Child> {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([role, &listen.to_string(), &to.to_string()]).arg(directory.path());
            let child = command.stdin(Stdio::null()).spawn()?;
            let until = Instant::now() + Duration::from_secs(10);
            while std::net::TcpStream::connect(listen).is_err() {
                ensure!(Instant::now() < until, "{role} does not listen");
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(child)
        };
        let server = role("bare-server", between, app)?;
        let client = role("bare-client", address, between)?;
        Ok(Self { client, server, address, _directory: directory })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for child in [&mut self.client, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A bare copy with mutual TLS 1.3 on one side: no HTTP, no policy, no counters.
fn bare(listen: SocketAddr, to: SocketAddr, directory: &str, client: bool) -> Result<()> {
    let directory = std::path::Path::new(directory);
    let certificate = CertificateDer::from(std::fs::read(directory.join("certificate"))?);
    let key = || -> Result<PrivateKeyDer<'static>> {
        Ok(PrivatePkcs8KeyDer::from(std::fs::read(directory.join("key"))?).into())
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone())?;
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let connector = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(vec![certificate.clone()], key()?)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(connector));
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let acceptor = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key()?)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(acceptor));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (mut near, _) = listener.accept().await?;
            let (connector, acceptor) = (connector.clone(), acceptor.clone());
            tokio::spawn(async move {
                near.set_nodelay(true)?;
                if client {
                    let far = TcpStream::connect(to).await?;
                    far.set_nodelay(true)?;
                    let name = ServerName::try_from("bare").expect("a constant that is a DNS name");
                    let mut far = connector.connect(name, far).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                } else {
                    let mut near = acceptor.accept(near).await?;
                    let mut far = TcpStream::connect(to).await?;
                    far.set_nodelay(true)?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                }
            });
        }
    })
}
