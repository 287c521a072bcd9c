//! Benchmark of the data plane: what two sidecar hops cost in processor time per request, and what gateways add, beside
//! Envoy, haproxy, nginx and the bare bounds, in one run, rounds interleaved.
//!
//! `cargo run --release -p hanse-tests --bin bench -- [--peers] [--connections 1,16,64,256] [--latency] [--memory]`
//! `tests/bench/peers` installs the peers and runs it with all of them.
//! CPU is the kernel's accounting of each process; load generator and app are not counted. Read ratios, not absolutes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use hanse_tests::house::Demo;

use bare::Mode;
use certificates::Certificates;
use load::Target;
use peers::{Pair, Peer};
use process::{cpu_seconds, free_address, pin, resident_kib};

mod bare;
mod certificates;
mod load;
mod peers;
mod process;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Option<bare::Role>,
    /// Seconds that each scenario runs in each round
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keep-alive connections of the closed-loop load; several, one table each
    #[arg(long, default_value = "64", value_delimiter = ',')]
    connections: Vec<usize>,
    /// Bytes of the answer's body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Envoy, haproxy and nginx too, and the bounds of hyper
    #[arg(long)]
    peers: bool,
    /// Latency at a fixed rate too: half of what haproxy (without peers: we) did at most
    #[arg(long)]
    latency: bool,
    /// Memory of both hops too: at rest, and with this many idle connections
    #[arg(long, num_args = 0..=1, default_missing_value = "1000")]
    memory: Option<usize>,
    /// Only scenarios whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Leave the scheduler alone: else proxies run on one core, load and app on another
    #[arg(long)]
    no_pin: bool,
}

/// One thing that is measured: where the load goes, and whose CPU is counted.
struct Scenario {
    name: &'static str,
    target: Target,
    processes: Vec<(Part, u32)>,
}

/// Whose processor time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The caller's sidecar
    A,
    /// The target's
    B,
    OwnGateway,
    FarGateway,
}

#[derive(Default)]
struct Figures {
    requests_per_second: Vec<f64>,
    /// µs per request.
    cpu: BTreeMap<Part, Vec<f64>>,
}

const LOCAL: &str = "hanse";
const REMOTE: &str = "hanse, through gateways";
/// Where load and app run, and where what is measured does.
const LOAD_CORE: usize = 0;
const PROXY_CORE: usize = 1;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(role) => bare::serve(role),
        None => measure(&arguments),
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let demo = Demo::up(["--rps", "0"])?;
    let certificates = Certificates::make()?;
    let app: SocketAddr = demo.address("east", "app", "details-1", "app")?.parse()?;
    let mut pairs = Vec::new();
    let modes = if arguments.peers { &[Mode::Copy, Mode::Http1, Mode::Http2][..] } else { &[Mode::Copy] };
    for mode in modes {
        pairs.push((mode.name(), bound(*mode, app, &certificates)?));
    }
    for peer in Peer::ALL.into_iter().filter(|_| arguments.peers) {
        match peer.start(app, &certificates)? {
            Some(pair) => pairs.push((peer.name(), pair)),
            None => println!("{}: left out, it is not installed", peer.name()),
        }
    }
    let mut scenarios = ours(&demo, arguments.body)?;
    scenarios.extend(pairs.iter().map(|(name, pair)| Scenario {
        name,
        target: target(pair.address.to_string(), "bench", arguments.body),
        processes: vec![(Part::A, pair.client.pid()), (Part::B, pair.server.pid())],
    }));
    if let Some(only) = &arguments.only {
        scenarios.retain(|scenario| scenario.name.contains(only.as_str()));
    }
    let cores = std::thread::available_parallelism()?.get();
    if !arguments.no_pin && cores > PROXY_CORE {
        pin(0, LOAD_CORE)?;
        pin(demo.pid("east", "app", "details-1")?, LOAD_CORE)?;
        pin(demo.pid("west", "app", "ratings-1")?, LOAD_CORE)?;
        for (_, pid) in scenarios.iter().flat_map(|scenario| &scenario.processes) {
            pin(*pid, PROXY_CORE)?;
        }
    }
    if let Some(count) = arguments.memory {
        memory(&scenarios, count)?;
    }
    for scenario in &scenarios {
        load::run(load::closed(&scenario.target, 8, Duration::from_millis(500)))?;
    }
    let mut rate = None;
    for connections in &arguments.connections {
        let mut figures = throughput(arguments, &scenarios, *connections)?;
        rate = report(arguments, *connections, &scenarios, &mut figures).or(rate);
    }
    if let Some(rate) = rate.filter(|_| arguments.latency) {
        latency(arguments, &scenarios, rate)?;
    }
    Ok(())
}

fn bound(mode: Mode, app: SocketAddr, files: &Certificates) -> Result<Pair> {
    let (near, between) = (free_address()?, free_address()?);
    let server = bare::start("bare-server", mode, between, app, files.directory())?;
    let client = bare::start("bare-client", mode, near, between, files.directory())?;
    Ok(Pair { address: near, client, server })
}

fn target(address: String, host: &str, body: usize) -> Target {
    Target { address, host: host.to_owned(), path: format!("/bytes/{body}") }
}

fn ours(demo: &Demo, body: usize) -> Result<Vec<Scenario>> {
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
    let mut remote = vec![(Part::A, sidecar), (Part::B, demo.pid("west", "proxy", "ratings-1")?)];
    for (part, cluster) in [(Part::OwnGateway, "east"), (Part::FarGateway, "west")] {
        for name in ["gateway-1", "gateway-2"] {
            remote.push((part, demo.pid(cluster, "gateway", name)?));
        }
    }
    Ok(vec![
        Scenario {
            name: LOCAL,
            target: target(outbound.clone(), "details.shop.svc.cluster.local", body),
            processes: vec![(Part::A, sidecar), (Part::B, demo.pid("east", "proxy", "details-1")?)],
        },
        Scenario {
            name: REMOTE,
            target: target(outbound, "ratings.shop.svc.clusterset.local", body),
            processes: remote,
        },
    ])
}

fn throughput<'s>(
    arguments: &Arguments,
    scenarios: &'s [Scenario],
    connections: usize,
) -> Result<BTreeMap<&'s str, Figures>> {
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    for round in 0..arguments.rounds {
        for scenario in rotated(scenarios, round) {
            let before = spent(scenario)?;
            let started = Instant::now();
            let load = load::closed(&scenario.target, connections, Duration::from_secs(arguments.seconds));
            let done = load::run(load)?;
            ensure!(done > 0, "{}: no request succeeded", scenario.name);
            let into = figures.entry(scenario.name).or_default();
            into.requests_per_second.push(done as f64 / started.elapsed().as_secs_f64());
            for (part, after) in spent(scenario)? {
                let micros = (after - before[&part]) * 1e6 / done as f64;
                into.cpu.entry(part).or_default().push(micros);
            }
        }
    }
    Ok(figures)
}

/// Each round begins with another one: whoever comes first after a pause is not always the same.
fn rotated(scenarios: &[Scenario], by: usize) -> impl Iterator<Item = &Scenario> {
    let (front, back) = scenarios.split_at(by % scenarios.len().max(1));
    back.iter().chain(front)
}

/// Seconds of processor time so far, per part.
fn spent(scenario: &Scenario) -> Result<BTreeMap<Part, f64>> {
    let mut spent = BTreeMap::new();
    for (part, pid) in &scenario.processes {
        *spent.entry(*part).or_default() += cpu_seconds(*pid)?;
    }
    Ok(spent)
}

/// Prints a table; answers half of what haproxy did at most, or of what we did where it is not there.
fn report(
    arguments: &Arguments,
    connections: usize,
    scenarios: &[Scenario],
    figures: &mut BTreeMap<&str, Figures>,
) -> Option<f64> {
    println!(
        "\n{connections} connections, {} byte answers, HTTP/1.1 in, medians of {} rounds of {} s; CPU per request, µs",
        arguments.body, arguments.rounds, arguments.seconds
    );
    println!("{:<28} {:>10} {:>7} {:>7} {:>9} {:>8}", "", "requests/s", "A", "B", "two hops", "ours/it");
    let mut rows = BTreeMap::new();
    for (name, figures) in figures.iter_mut() {
        let cpu: BTreeMap<Part, f64> =
            figures.cpu.iter_mut().map(|(part, values)| (*part, median(values))).collect();
        rows.insert(*name, (median(&mut figures.requests_per_second), cpu));
    }
    let hops = |name: &str| rows.get(name).map(|(_, cpu)| cpu[&Part::A] + cpu[&Part::B]);
    let local = hops(LOCAL);
    for scenario in scenarios {
        let Some((rps, cpu)) = rows.get(scenario.name) else { continue };
        let two = cpu[&Part::A] + cpu[&Part::B];
        let ratio = match local.filter(|_| ![LOCAL, REMOTE].contains(&scenario.name)) {
            Some(local) => format!("{:.2}", local / two),
            None => String::new(),
        };
        let gateways = match (cpu.get(&Part::OwnGateway), cpu.get(&Part::FarGateway)) {
            (Some(own), Some(far)) => format!("  own gateway {own:.1}, peer's gateway {far:.1}"),
            _ => String::new(),
        };
        println!(
            "{:<28} {rps:>10.0} {:>7.1} {:>7.1} {two:>9.1} {ratio:>8}{gateways}",
            scenario.name,
            cpu[&Part::A],
            cpu[&Part::B]
        );
    }
    let saturation = rows.get(Peer::Haproxy.name()).or_else(|| rows.get(LOCAL));
    saturation.map(|(rps, _)| rps / 2.0)
}

fn latency(arguments: &Arguments, scenarios: &[Scenario], rate: f64) -> Result<()> {
    const CONNECTIONS: usize = 64;
    let mut measured: BTreeMap<&str, [Vec<f64>; 3]> = BTreeMap::new();
    for round in 0..arguments.rounds {
        for scenario in rotated(scenarios, round) {
            let time = Duration::from_secs(arguments.seconds);
            let sorted = load::run(load::open(&scenario.target, CONNECTIONS, rate, time))?;
            ensure!(!sorted.is_empty(), "{}: no request succeeded", scenario.name);
            let into = measured.entry(scenario.name).or_default();
            for (values, share) in into.iter_mut().zip([0.5, 0.99, 0.999]) {
                let at = ((sorted.len() as f64 * share) as usize).min(sorted.len() - 1);
                values.push(sorted[at].as_secs_f64() * 1e6);
            }
        }
    }
    println!(
        "\nlatency at {rate:.0} requests/s from when each was due, {CONNECTIONS} connections, medians of {} rounds of {} s, µs",
        arguments.rounds, arguments.seconds
    );
    println!("{:<28} {:>8} {:>8} {:>8}", "", "p50", "p99", "p99.9");
    for scenario in scenarios {
        let Some(values) = measured.get_mut(scenario.name) else { continue };
        let [p50, p99, p999] = values.each_mut().map(|values| median(values));
        println!("{:<28} {p50:>8.0} {p99:>8.0} {p999:>8.0}", scenario.name);
    }
    Ok(())
}

/// Before there was any load: what the processes of each have resident, and what idle connections add.
fn memory(scenarios: &[Scenario], count: usize) -> Result<()> {
    println!(
        "\nresident memory, KiB, of A and B: at rest, and with {count} idle keep-alive connections to A, used once"
    );
    for scenario in scenarios.iter().filter(|scenario| scenario.name != REMOTE) {
        let resident =
            || -> Result<Vec<u64>> { scenario.processes.iter().map(|(_, pid)| resident_kib(*pid)).collect() };
        let before = resident()?;
        let held = async {
            let held = load::idle(&scenario.target, count).await?;
            let during = resident()?;
            drop(held);
            Ok(during)
        };
        let during = load::run(held)?;
        let added = during.iter().sum::<u64>().saturating_sub(before.iter().sum());
        println!(
            "{:<28} {:>7} {:>7} -> {:>7} {:>7}, {:.1} KiB a connection",
            scenario.name,
            before[0],
            before[1],
            during[0],
            during[1],
            added as f64 / count as f64
        );
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
