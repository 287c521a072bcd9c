//! Benchmark of the data plane: what two sidecar hops cost in processor time per request, per connection and per byte, and
//! what gateways add, beside Envoy, haproxy, nginx and the bare bounds, in one run, rounds interleaved.
//!
//! `cargo run --release -p hanse-tests --bin bench -- [--peers] [--connections 1,16,64,256] [--all]`
//! `tests/bench/peers` installs the peers and runs it with all of them; `-- --instructions` counts in place of measuring (valgrind).
//! CPU is the kernel's accounting of each process; load generator and app are not counted. Read ratios, not absolutes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use hanse_tests::house::Demo;

use bare::Mode;
use certificates::Certificates;
use load::Target;
use measure::{Load, Part, Scenario};
use mesh::Mesh;
use peers::{Pair, Peer};
use process::{Process, free_address, pin};

mod app;
mod bare;
mod certificates;
mod gateways;
mod handshakes;
mod instructions;
mod load;
mod measure;
mod mesh;
mod peers;
mod process;
mod relay;
mod tables;

#[derive(Parser)]
pub struct Arguments {
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
    /// All of the tables below
    #[arg(long)]
    all: bool,
    /// Latency at a fixed rate too: half of what haproxy (without peers: we) did at most
    #[arg(long)]
    latency: bool,
    /// Memory of both hops too: at rest, and with this many idle connections
    #[arg(long, num_args = 0..=1, default_missing_value = "1000")]
    memory: Option<usize>,
    /// What carries bytes only, too: a connection for each request, and one connection that reads as fast as it can
    #[arg(long)]
    bytes: bool,
    /// Handshakes too: mutual TLS 1.3, opened and closed, straight to the target's sidecar
    #[arg(long)]
    handshakes: bool,
    /// Gateways too: TLS that is passed through, per request, per connection and per byte, and TLS that ends there
    #[arg(long)]
    gateways: bool,
    /// Instructions per request instead, by callgrind: repeatable where times are not
    #[arg(long)]
    instructions: bool,
    /// Only scenarios whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Leave the scheduler alone: else proxies run on one core, load and app on another
    #[arg(long)]
    no_pin: bool,
}

const LOCAL: &str = "hanse";
const REMOTE: &str = "hanse, through gateways";
const BYTES: &str = "hanse, L4";
/// Where load and app run, and where what is measured does.
const LOAD_CORE: usize = 0;
const PROXY_CORE: usize = 1;
/// Connections at a time where each is for one request or one handshake.
const FRESH_AT_A_TIME: usize = 16;
/// Idle connections where nobody said how many.
const IDLE: usize = 1000;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.role {
        Some(role) => bare::serve(role),
        None => measure(&arguments),
    }
}

/// Everything that runs; what needs the demo ends before it.
struct House {
    mesh: Mesh,
    demo: Demo,
    app: Process,
    app_address: SocketAddr,
    /// Where a bare server is to take what a gateway passes through.
    bare_server: SocketAddr,
    certificates: Certificates,
}

fn measure(arguments: &Arguments) -> Result<()> {
    let app_address = free_address()?;
    let app = app::start(app_address)?;
    let demo = Demo::up(["--rps", "0"])?;
    let mesh = Mesh::start(&demo, app_address)?;
    let (bare_server, certificates) = (free_address()?, Certificates::make()?);
    Mesh::register_loader(&demo, bare_server)?;
    let house = House { demo, mesh, app, app_address, bare_server, certificates };
    if arguments.instructions {
        return instructions::run(arguments, &house);
    }
    let mut pairs = Vec::new();
    let modes = if arguments.peers { &[Mode::Copy, Mode::Http1, Mode::Http2][..] } else { &[Mode::Copy] };
    for mode in modes {
        pairs.push((mode.name(), *mode == Mode::Copy, bound(*mode, &house)?));
    }
    for peer in Peer::ALL.into_iter().filter(|_| arguments.peers) {
        match peer.start(app_address, &house.certificates)? {
            Some(pair) => pairs.push((peer.name(), peer.copies(), pair)),
            None => println!("{}: left out, it is not installed", peer.name()),
        }
    }
    let mut scenarios = ours(&house, arguments.body)?;
    scenarios.extend(pairs.iter().map(|(name, copies, pair)| Scenario {
        name,
        target: target(pair.address, "bench", arguments.body),
        copies: *copies,
        processes: vec![(Part::A, pair.client.pid()), (Part::B, pair.server.pid())],
    }));
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    scenarios.retain(|scenario| wanted(scenario.name));
    if !arguments.no_pin {
        pin(0, LOAD_CORE)?;
        pin(house.app.pid(), LOAD_CORE)?;
    }
    ready(arguments, &scenarios)?;
    if let Some(count) = arguments.memory.or(arguments.all.then_some(IDLE)) {
        tables::memory(&scenarios, count)?;
    }
    for scenario in &scenarios {
        load::run(load::closed(&scenario.target, 8, Duration::from_millis(500)))?;
    }
    let mut rate = None;
    for connections in &arguments.connections {
        rate = tables::throughput(arguments, Load::KeptAlive(*connections), &scenarios)?.or(rate);
    }
    if let Some(rate) = rate.filter(|_| arguments.latency || arguments.all) {
        tables::latency(arguments, &scenarios, rate)?;
    }
    if arguments.bytes || arguments.all {
        let copying: Vec<Scenario> = scenarios.into_iter().filter(|scenario| scenario.copies).collect();
        tables::throughput(arguments, Load::Fresh(FRESH_AT_A_TIME), &copying)?;
        tables::bulk(arguments, &copying)?;
    }
    if arguments.handshakes || arguments.all {
        handshakes::run(arguments, &house, &pairs)?;
    }
    if arguments.gateways || arguments.all {
        gateways::run(arguments, &house)?;
        gateways::ending(arguments, &house)?;
    }
    Ok(())
}

/// Waits until each scenario answers, and has all of them run where they are measured.
fn ready(arguments: &Arguments, scenarios: &[Scenario]) -> Result<()> {
    for (_, pid) in scenarios.iter().flat_map(|scenario| &scenario.processes) {
        if !arguments.no_pin {
            pin(*pid, PROXY_CORE)?;
        }
    }
    scenarios.iter().try_for_each(|scenario| load::run(load::answers(&scenario.target)))
}

fn bound(mode: Mode, house: &House) -> Result<Pair> {
    let (near, between) = (free_address()?, free_address()?);
    let files = house.certificates.directory();
    let server = bare::start(bare::SERVER, mode, between, house.app_address, files)?;
    let client = bare::start(bare::CLIENT, mode, near, between, files)?;
    Ok(Pair { address: near, inbound: between, client, server })
}

fn target(address: SocketAddr, host: &str, body: usize) -> Target {
    Target { address: address.to_string(), host: host.to_owned(), path: format!("/bytes/{body}") }
}

fn ours(house: &House, body: usize) -> Result<Vec<Scenario>> {
    let House { demo, mesh, .. } = house;
    let near = vec![(Part::A, mesh.caller.pid()), (Part::B, mesh.target.pid())];
    let mut far = vec![(Part::A, mesh.caller.pid()), (Part::B, mesh.far_target.pid())];
    for (part, cluster) in [(Part::OwnGateway, "east"), (Part::FarGateway, "west")] {
        for name in ["gateway-1", "gateway-2"] {
            far.push((part, demo.pid(cluster, "gateway", name)?));
        }
    }
    let local = target(mesh.outbound, mesh::NEAR_HOST, body);
    let remote = target(mesh.outbound, mesh::FAR_HOST, body);
    let bytes = target(mesh.bytes, "bench", body);
    Ok(vec![
        Scenario { name: LOCAL, target: local, copies: false, processes: near.clone() },
        Scenario { name: REMOTE, target: remote, copies: false, processes: far },
        Scenario { name: BYTES, target: bytes, copies: true, processes: near },
    ])
}
