//! Gateways: TLS that is passed through unread, between two bare ends. Ours, haproxy's and nginx's by the server name, and
//! the bounds, which look at nothing. And mutual TLS that ends at the gateway: our tunnel's, and that of peers, who begin it anew.

use std::net::SocketAddr;

use anyhow::Result;

use crate::bare::{self, Mode};
use crate::measure::{Load, Part, Row, Scenario, ratio, rounds};
use crate::mesh::BARE_NAME;
use crate::peers::{Passthrough, Peer};
use crate::process::{Process, free_address};
use crate::relay::{self, Means};
use crate::{Arguments, FRESH_AT_A_TIME, House, REMOTE, ours, ready, target};

const OURS: &str = "hanse, passthrough";
const NONE: &str = "no gateway";
const CONNECTIONS: usize = 64;

pub fn run(arguments: &Arguments, house: &House) -> Result<()> {
    let files = &house.certificates;
    let server_at = house.bare_server;
    let server = bare::start(bare::SERVER, Mode::Copy, server_at, house.app_address, files.directory())?;
    let mut doors: Vec<(&'static str, SocketAddr, Option<u32>)> = vec![
        (NONE, server_at, None),
        (
            OURS,
            house.demo.address("east", "gateway", "gateway-1", "passthrough")?.parse()?,
            Some(house.demo.pid("east", "gateway", "gateway-1")?),
        ),
    ];
    let mut running = vec![server];
    let mut add = |name, process: Process, at: SocketAddr| {
        doors.push((name, at, Some(process.pid())));
        running.push(process);
    };
    for means in [Means::Copy, Means::Splice] {
        let at = free_address()?;
        add(means.name(), relay::start(means, at, server_at)?, at);
    }
    for peer in Passthrough::ALL.into_iter().filter(|_| arguments.peers) {
        let at = free_address()?;
        match peer.start(at, server_at, BARE_NAME, files)? {
            Some(process) => add(peer.name(), process, at),
            None => println!("{}: left out, it is not installed", peer.name()),
        }
    }
    let mut scenarios = Vec::new();
    for (name, door, gateway) in &doors {
        let at = free_address()?;
        let client = bare::start_client(BARE_NAME, at, *door, files.directory())?;
        let mut processes = vec![(Part::A, client.pid()), (Part::B, running[0].pid())];
        processes.extend(gateway.map(|pid| (Part::OwnGateway, pid)));
        scenarios.push(Scenario {
            name,
            target: target(at, "bench", arguments.body),
            copies: true,
            processes,
        });
        running.push(client);
    }
    ready(arguments, &scenarios)?;
    let requests = rounds(arguments, &scenarios, Load::KeptAlive(CONNECTIONS))?;
    let fresh = rounds(arguments, &scenarios, Load::Fresh(FRESH_AT_A_TIME))?;
    let bulk = rounds(arguments, &scenarios, Load::Bulk)?;
    println!(
        "\ngateways that pass TLS through, between two bare ends, medians of {} rounds of {} s; CPU is the gateway's own",
        arguments.rounds, arguments.seconds
    );
    println!(
        "{:<28} {:>10} {:>8} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "µs/request", "ours/it", "µs/connect.", "ours/it", "GB/s", "ours/it", "s per GB", "ours/it"
    );
    for scenario in &scenarios {
        let rows = [&requests, &fresh, &bulk].map(|rows| (&rows[scenario.name], &rows[OURS]));
        let cpu = |(it, ours): (&Row, &Row), unit: f64| {
            let of = |row: &Row| row.of(&[Part::OwnGateway]);
            match scenario.name {
                NONE => Default::default(),
                OURS => (format!("{:.2}", of(ours) * unit), String::new()),
                _ => (format!("{:.2}", of(it) * unit), ratio(Some(of(ours)), of(it))),
            }
        };
        let [(request, a), (connection, b), (per_gb, d)] =
            [cpu(rows[0], 1e6), cpu(rows[1], 1e6), cpu(rows[2], 1e9)];
        let speed = rows[2].0.per_second;
        let c = ratio((scenario.name != OURS).then_some(rows[2].1.per_second), speed);
        println!(
            "{:<28} {request:>10} {a:>8} {connection:>11} {b:>8} {:>8.3} {c:>8} {per_gb:>8} {d:>8}",
            scenario.name,
            speed / 1e9
        );
    }
    Ok(())
}

/// Gateways at which mutual TLS ends. What peers pass on is in TLS of their own, ours in that of the two sidecars.
pub fn ending(arguments: &Arguments, house: &House) -> Result<()> {
    let files = &house.certificates;
    let mut scenarios: Vec<Scenario> =
        ours(house, arguments.body)?.into_iter().filter(|scenario| scenario.name == REMOTE).collect();
    let mut running = Vec::new();
    let peers = Peer::ALL.into_iter().filter(|peer| arguments.peers && *peer != Peer::EnvoyMesh);
    for peer in peers {
        let (near, at, far) = (free_address()?, free_address()?, free_address()?);
        let mode = match peer {
            Peer::EnvoyHttp2 => Mode::Http2,
            peer if peer.copies() => Mode::Copy,
            _ => Mode::Http1,
        };
        let server = bare::start(bare::SERVER, mode, far, house.app_address, files.directory())?;
        let Some(gateway) = peer.between(at, far, files)? else {
            println!("{}: left out, it is not installed", peer.name());
            continue;
        };
        let client = bare::start(bare::CLIENT, mode, near, at, files.directory())?;
        scenarios.push(Scenario {
            name: peer.name(),
            target: target(near, "bench", arguments.body),
            copies: peer.copies(),
            processes: vec![
                (Part::A, client.pid()),
                (Part::FarGateway, gateway.pid()),
                (Part::B, server.pid()),
            ],
        });
        running.extend([server, gateway, client]);
    }
    ready(arguments, &scenarios)?;
    let rows = rounds(arguments, &scenarios, Load::KeptAlive(CONNECTIONS))?;
    println!(
        "\ngateways at which mutual TLS ends, {CONNECTIONS} callers, medians of {} rounds of {} s; CPU of all that cluster's gateways",
        arguments.rounds, arguments.seconds
    );
    println!(
        "ours: the callers' requests in at most two tunnels, decrypted once, what is inside is passed on as it is"
    );
    println!("peers: decrypted and encrypted; HTTP/2 in few connections, the others in one for each caller");
    println!("{:<28} {:>10} {:>8}", "", "µs/request", "ours/it");
    let own = |name: &str| rows.get(name).map(|row| row.of(&[Part::FarGateway]));
    for scenario in &scenarios {
        let Some(it) = own(scenario.name) else { continue };
        let of_it = ratio(own(REMOTE).filter(|_| scenario.name != REMOTE), it);
        println!("{:<28} {:>10.2} {of_it:>8}", scenario.name, it * 1e6);
    }
    Ok(())
}
