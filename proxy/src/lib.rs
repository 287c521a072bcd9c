//! hanse-proxy: the sidecar, and the data-plane runtime that the gateway reuses.
//!
//! `outbound`, `inbound`, `attempt`, `concurrency`, `headers` and `answer` decide and know no socket; `connections` knows who is live;
//! `runtime` is what every data-plane role needs (credentials, View, admin, telemetry, workers); `io` has the sockets;
//! `sidecar` is one worker. Nothing on the request path calls the control plane or waits for another core.

pub mod answer;
pub mod attempt;
pub mod breaker;
pub mod capture;
pub mod check;
pub mod concurrency;
pub mod config;
pub mod connections;
pub mod dns;
pub mod exposed;
pub mod external;
pub mod headers;
pub mod inbound;
pub mod io;
pub mod outbound;
pub mod plain;
pub mod request_id;
pub mod runtime;
pub mod server_name;
pub mod session;
pub mod sidecar;
pub mod staleness;
pub mod trace;
pub mod wire;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use hanse_federation::Locality;
use hanse_federation::catalog::Serves;
use tokio::sync::{mpsc, oneshot, watch};

pub use config::Config;

use io::check::watch_app;
use io::dns::Dns;
use io::forward::captured::Capture;
use io::ingress::Gate;
use runtime::access_log::AccessLog;
use runtime::addresses::{self, Directory};
use runtime::admin::{self, Admin, Check};
use runtime::certificates::{self, Certificates};
use runtime::drain::{self, Stop};
use runtime::spans::Spans;
use runtime::view::{self, Announce, Subscription};
use runtime::{Plane, credentials, keep_asking, permissive, resolve, worker};
use sidecar::{DRAIN_WITHIN, INSPECT_QUEUE, Inspect, Listeners, Settings};

/// Between saying that we are no longer ready and taking no more connections: time for the word to get around.
const LAME_DUCK: Duration = Duration::from_millis(300);
/// How long a worker may take to answer the admin endpoint.
const INSPECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Sockets and facts, before anything runs.
struct Bound {
    workers: Vec<Listeners>,
    inbound: Option<SocketAddr>,
    admin: std::net::TcpListener,
    dns: Vec<io::dns::Sockets>,
    certificates: Option<Arc<Certificates>>,
}

/// How long the access log may take to write what it still has.
const LOG_FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// A worker thread and the way to ask it.
struct Worker {
    thread: JoinHandle<Result<()>>,
    inspect: mpsc::Sender<Inspect>,
}

/// Runs the sidecar until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<()> {
    config.check()?;
    let bound = bind(&config)?;
    let locality = Locality { region: config.region.clone(), zone: config.zone.clone() };
    let plane = Plane::new(config.name.clone(), locality).with_staleness(config.staleness());
    let (plane, exporter) = match &config.otlp_endpoint {
        Some(collector) => {
            let started = Spans::start(collector, &plane);
            let (spans, exporter) = started.context("the exporter of spans cannot be started")?;
            (plane.with_sampling(Some(config.trace_sampling)).with_spans(spans), Some(exporter))
        }
        None => (plane, None),
    };
    let plane = Arc::new(plane);
    let (access_log, writer) = match &config.access_log {
        Some(target) => {
            let started = AccessLog::start(target, Arc::clone(&plane.telemetry));
            let (log, writer) =
                started.with_context(|| format!("the access log {target} cannot be opened"))?;
            (Some(log), Some(writer))
        }
        None => (None, None),
    };
    // Control tasks have a runtime of their own, so that they and the workers cannot starve each other.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(supervise(config, bound, plane, access_log));
    runtime.shutdown_background();
    if let Some(exporter) = exporter {
        exporter.close();
    }
    if let Some(writer) = writer {
        let late = Instant::now() + LOG_FLUSH_WITHIN;
        while !writer.is_finished() && Instant::now() < late {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    outcome
}

fn bind(config: &Config) -> Result<Bound> {
    let count = config.workers.map_or_else(worker::default_count, usize::from);
    let mut workers: Vec<Listeners> = (0..count).map(|_| Listeners::default()).collect();
    let bind: io::listen::Bind = if config.take_over { io::listen::take_over } else { io::listen::bind };
    let listen = |what: &str, address: SocketAddr| {
        bind(address, count).with_context(|| format!("cannot listen on {address} ({what})"))
    };
    let mut inbound = None;
    if let Some(address) = config.inbound {
        let listeners = listen("--inbound", address)?;
        inbound = listeners.first().map(std::net::TcpListener::local_addr).transpose()?;
        for (worker, listener) in workers.iter_mut().zip(listeners) {
            worker.inbound = Some(listener);
        }
    }
    let upstreams = config.upstreams.iter().map(|u| (Some(Arc::new(u.host.clone())), "--upstream", u.listen));
    let outbound = config.outbound.map(|address| (None, "--outbound", address));
    for (host, what, address) in outbound.into_iter().chain(upstreams) {
        for (worker, listener) in workers.iter_mut().zip(listen(what, address)?) {
            worker.outbound.push((host.clone(), listener));
        }
    }
    if let Some(port) = config.capture_port {
        for addresses in io::listen::bind_loopback(bind, port.get(), count)
            .with_context(|| format!("cannot listen on port {port} of loopback (--capture-port)"))?
        {
            for (worker, listener) in workers.iter_mut().zip(addresses) {
                worker.captured.push(listener);
            }
        }
    }
    for upstream in &config.tcp_upstreams {
        let target = Arc::new(upstream.target.clone());
        for (worker, listener) in workers.iter_mut().zip(listen("--tcp-upstream", upstream.listen)?) {
            worker.tcp.push((Arc::clone(&target), listener));
        }
    }
    let certificates = match &config.certificates {
        Some(directory) => {
            let opened = Certificates::open(directory).map_err(|e| anyhow!("--certificates: {e}"))?;
            Some(Arc::new(opened))
        }
        None => None,
    };
    if let Some(gateway) = &config.gateway {
        for gate in &config.gateway_listen {
            let (port, certificates) = (gate.port.get(), certificates.clone());
            let served = Arc::new(Gate { gateway: gateway.clone(), port, certificates });
            for (worker, listener) in workers.iter_mut().zip(listen("--gateway-listen", gate.listen)?) {
                worker.gates.push((Arc::clone(&served), listener));
            }
        }
    }
    let admin =
        admin::bind(config.admin).with_context(|| format!("cannot listen on {} (--admin)", config.admin))?;
    let dns = match config.dns_port {
        Some(port) => io::dns::bind(port.get())
            .with_context(|| format!("cannot listen on port {port} of loopback (--dns-port)"))?,
        None => Vec::new(),
    };
    Ok(Bound { workers, inbound, admin, dns, certificates })
}

async fn supervise(
    config: Config,
    bound: Bound,
    plane: Arc<Plane>,
    access_log: Option<AccessLog>,
) -> Result<()> {
    let (drain, stop) = drain::drain();
    let services: Arc<BTreeSet<_>> = Arc::new(config.services.iter().cloned().collect());
    let serves = serves(&config, bound.inbound, &services);
    let (app_ready, app) = watch::channel(config.app.is_none());
    // An instance that is still starting is not lost capacity: it is announced when its app has first been seen.
    let at_first = if config.app.is_none() { serves.clone() } else { Serves::Nothing };
    let (announce, announced) = watch::channel(Announce { ready: config.app.is_none(), serves: at_first });

    tokio::spawn(credentials::follow(config.socket.clone(), Arc::clone(&plane), stop.clone()));
    let subscription = Subscription { kind: "proxy", control: config.control.clone(), announce: announced };
    tokio::spawn(view::follow(Arc::clone(&plane), subscription, stop.clone()));
    tokio::spawn(keep_asking(Arc::clone(&plane), stop.clone()));
    tokio::spawn(permissive::follow(Arc::clone(&plane), Arc::clone(&services), stop.clone()));
    tokio::spawn(resolve::follow(Arc::clone(&plane.resolved), config.dns_servers.clone(), stop.clone()));
    if let Some(certificates) = bound.certificates {
        tokio::spawn(certificates::follow(certificates, stop.clone()));
    }
    if let Some(address) = config.app {
        let watched = watch_app(address, Arc::clone(&plane), Arc::clone(&services), app_ready, stop.clone());
        tokio::spawn(watched);
    }
    let exposure = Exposure { app: config.app, inbound: bound.inbound, plane: Arc::clone(&plane) };
    tokio::spawn(announce_readiness(app, serves, announce.clone(), exposure, stop.clone()));

    let directory = Arc::new(Directory::default());
    if config.capture_port.is_some() || config.dns_port.is_some() {
        tokio::spawn(addresses::follow(Arc::clone(&directory), Arc::clone(&plane), stop.clone()));
    }
    if let Some(port) = config.dns_port {
        let dns = Dns::new(Arc::clone(&directory), &config.dns_servers, port.get(), &plane.telemetry);
        tokio::spawn(Arc::new(dns).serve(bound.dns, stop.clone()));
    }
    let capture = config
        .capture_port
        .map(|_| Arc::new(Capture::new(Arc::clone(&directory), config.opaque_ports(), &plane.telemetry)));
    let workers = u32::try_from(bound.workers.len()).unwrap_or(u32::MAX);
    let tcp_ports = config.tcp_ports.iter().map(|tcp| (tcp.port.get(), tcp.app)).collect();
    let settings = Settings {
        plane: Arc::clone(&plane),
        services,
        app: config.app,
        tcp_ports: Arc::new(tcp_ports),
        access_log,
        limits: Arc::default(),
        workers,
        capture,
    };
    let (exits, mut exited) = mpsc::channel(1);
    let workers = start_workers(bound.workers, &settings, &exits, &stop)?;
    drop(settings);
    let inspect: Vec<_> = workers.iter().map(|worker| worker.inspect.clone()).collect();
    let listening = || vec![Check { name: "listeners", ok: true, detail: "bound".to_owned() }];
    let listeners = describe_listeners(&config, bound.inbound);
    let admin = Admin::new(Arc::clone(&plane), listening)
        .page("/clusters", move || ladders(inspect.clone()))
        .page("/addresses", move || std::future::ready(directory.describe()))
        .page("/listeners", move || std::future::ready(listeners.clone()));
    let listener = tokio::net::TcpListener::from_std(bound.admin)?;
    tokio::spawn(admin::serve(listener, Arc::new(admin), stop.clone()));
    tracing::info!(name = %config.name, admin = %config.admin, inbound = ?bound.inbound, "proxy started");

    let unexpected = tokio::select! {
        signal = drain::terminated() => signal.map(|()| false)?,
        _ = exited.recv() => true,
    };
    tracing::info!("draining");
    announce.send_modify(|announce| announce.ready = false);
    if plane.knowledge.link().connected && !unexpected {
        tokio::time::sleep(LAME_DUCK).await;
    }
    drain.begin();
    let outcome = join(workers).await;
    drain.end();
    match (unexpected, outcome) {
        (true, Ok(())) => Err(anyhow!("a worker ended although nobody asked it to")),
        (_, outcome) => outcome,
    }
}

fn serves(
    config: &Config,
    bound: Option<SocketAddr>,
    services: &BTreeSet<hanse_identity::ServiceName>,
) -> Serves {
    match config.advertise_inbound.or(bound) {
        Some(inbound) if !services.is_empty() => {
            Serves::Services { services: services.clone(), inbound, weight: config.weight }
        }
        _ => Serves::Nothing,
    }
}

fn start_workers(
    listeners: Vec<Listeners>,
    settings: &Settings,
    exits: &mpsc::Sender<()>,
    stop: &Stop,
) -> Result<Vec<Worker>> {
    let mut workers = Vec::new();
    for (index, listeners) in listeners.into_iter().enumerate() {
        let (inspect, inspections) = mpsc::channel(INSPECT_QUEUE);
        let (settings, stop, notice) = (settings.clone(), stop.clone(), ExitNotice(exits.clone()));
        let main = move || async move {
            let _notice = notice;
            sidecar::work(settings, listeners, inspections, stop).await
        };
        let thread =
            worker::spawn(format!("worker-{index}"), main).context("a worker thread cannot be started")?;
        workers.push(Worker { thread, inspect });
    }
    Ok(workers)
}

/// Says that a worker has ended, however it did.
struct ExitNotice(mpsc::Sender<()>);

impl Drop for ExitNotice {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

async fn join(workers: Vec<Worker>) -> Result<()> {
    let threads: Vec<_> = workers.into_iter().map(|worker| worker.thread).collect();
    let all = tokio::task::spawn_blocking(move || {
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a worker panicked"))?)
    });
    match tokio::time::timeout(DRAIN_WITHIN + Duration::from_secs(1), all).await {
        Ok(joined) => joined?,
        Err(_) => {
            tracing::warn!("a worker did not end in time");
            Ok(())
        }
    }
}

/// What it takes to see whether the app can be reached past us.
struct Exposure {
    app: Option<SocketAddr>,
    inbound: Option<SocketAddr>,
    plane: Arc<Plane>,
}

impl Exposure {
    /// Looks at what the app listens on, which it does only once it is up.
    fn look(&self) {
        let Some(app) = self.app else { return };
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        let tables = read("/proc/net/tcp") + &read("/proc/net/tcp6");
        let own: Vec<_> = self.inbound.into_iter().collect();
        let at = exposed::listening_beyond_loopback(app.port(), &tables, &own);
        self.plane.telemetry.app_exposed.set(i64::from(!at.is_empty()));
        if !at.is_empty() {
            tracing::warn!(
                ?at,
                "the app's port can be reached past this proxy, without mutual TLS and policies: \
                 have the app listen on 127.0.0.1 only, or close the port by a firewall"
            );
        }
    }
}

/// Announces what the app does, until draining begins.
async fn announce_readiness(
    mut app: watch::Receiver<bool>,
    serves: Serves,
    announce: watch::Sender<Announce>,
    exposure: Exposure,
    mut stop: Stop,
) {
    loop {
        tokio::select! {
            biased;
            () = stop.draining() => return,
            changed = app.changed() => if changed.is_err() { return },
        }
        let up = *app.borrow_and_update();
        if up {
            exposure.look();
        }
        tracing::info!(up, "the app {}", if up { "takes connections" } else { "takes no connections" });
        announce.send_modify(|announce| {
            announce.ready = up;
            if up {
                announce.serves.clone_from(&serves);
            }
        });
    }
}

/// `/listeners`: what is listened on, and for what.
fn describe_listeners(config: &Config, inbound: Option<SocketAddr>) -> serde_json::Value {
    let listener = |kind: &str, address: SocketAddr, serves: String| serde_json::json!({ "kind": kind, "address": address, "for": serves });
    let services = config.services.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut listeners: Vec<_> = inbound.map(|at| listener("inbound", at, services)).into_iter().collect();
    listeners.extend(config.outbound.map(|at| listener("outbound", at, "any service".to_owned())));
    let upstreams = config.upstreams.iter();
    listeners.extend(upstreams.map(|u| listener("upstream", u.listen, u.host.service.to_string())));
    let upstreams = config.tcp_upstreams.iter().map(|u| (u.listen, &u.target));
    listeners.extend(upstreams.map(|(at, target)| {
        listener("tcp-upstream", at, format!("{}:{}", target.host.service, target.port))
    }));
    listeners.push(listener("admin", config.admin, "this host".to_owned()));
    let tcp_ports = config.tcp_ports.iter();
    let tcp_ports: Vec<_> =
        tcp_ports.map(|tcp| serde_json::json!({ "port": tcp.port, "app": tcp.app })).collect();
    serde_json::json!({ "app": config.app, "listeners": listeners, "tcpPorts": tcp_ports })
}

/// `/clusters`: every worker's ladders.
async fn ladders(inspect: Vec<mpsc::Sender<Inspect>>) -> serde_json::Value {
    let mut workers = Vec::new();
    for worker in inspect {
        let (answer, answered) = oneshot::channel();
        let asked = worker.try_send(answer).is_ok();
        let described = match asked {
            true => tokio::time::timeout(INSPECT_TIMEOUT, answered).await.ok().and_then(Result::ok),
            false => None,
        };
        workers.push(described.unwrap_or(serde_json::Value::Null));
    }
    serde_json::json!({ "workers": workers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_instance_is_announced_when_its_app_is_first_seen_and_stays_when_it_goes() {
        let serves = Serves::Services {
            services: BTreeSet::from(["shop/reviews".parse().unwrap()]),
            inbound: "127.0.0.1:1".parse().unwrap(),
            weight: 1,
        };
        let (app_ready, app) = watch::channel(false);
        let (announce, mut announced) = watch::channel(Announce { ready: false, serves: Serves::Nothing });
        let (_drain, stop) = drain::drain();
        let everywhere = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let plane = Arc::new(Plane::new("proxy-1".parse().unwrap(), Locality::default()));
        let address = Some(everywhere.local_addr().unwrap());
        let exposure = Exposure { app: address, inbound: None, plane: Arc::clone(&plane) };
        tokio::spawn(announce_readiness(app, serves.clone(), announce, exposure, stop));
        for up in [true, false] {
            app_ready.send(up).unwrap();
            let said = announced.wait_for(|announce| announce.ready == up).await.unwrap().clone();
            assert_eq!(said, Announce { ready: up, serves: serves.clone() });
            assert_eq!(plane.telemetry.app_exposed.get(), 1, "it listens everywhere");
        }
    }
}
