//! The tables of two hops: requests, connections and bytes, latency, memory.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::measure::{Load, Part, Scenario, median, ratio, rotated, rounds};
use crate::peers::Peer;
use crate::process::resident_kib;
use crate::{Arguments, BYTES, LOCAL, REMOTE, load};

const HOPS: [Part; 2] = [Part::A, Part::B];

/// CPU per request; answers half of what haproxy did at most, or of what we did where it is not there.
pub fn throughput(arguments: &Arguments, load: Load, scenarios: &[Scenario]) -> Result<Option<f64>> {
    let rows = rounds(arguments, scenarios, load)?;
    let load = match load {
        Load::KeptAlive(connections) => format!("{connections} connections"),
        Load::Fresh(at_a_time) => format!("a connection for each request, {at_a_time} at a time"),
        Load::Bulk => "one connection".to_owned(),
    };
    println!(
        "\n{load}, {} byte answers, HTTP/1.1 in, medians of {} rounds of {} s; CPU per request, µs",
        arguments.body, arguments.rounds, arguments.seconds
    );
    println!(
        "{:<28} {:>10} {:>7} {:>7} {:>9} {:>8} {:>8}",
        "", "requests/s", "A", "B", "two hops", "ours/it", "L4/it"
    );
    let hops = |name: &str| rows.get(name).map(|row| row.of(&HOPS));
    let (local, bytes) = (hops(LOCAL), hops(BYTES));
    for scenario in scenarios {
        let Some(row) = rows.get(scenario.name) else { continue };
        let two = row.of(&HOPS);
        let is_ours = [LOCAL, REMOTE, BYTES].contains(&scenario.name);
        let of_requests = ratio(local.filter(|_| !is_ours), two);
        let of_bytes = ratio(bytes.filter(|_| !is_ours && scenario.copies), two);
        let micros = |part| row.of(&[part]) * 1e6;
        let gateways = match scenario.name {
            REMOTE => format!(
                "  own gateway {:.1}, peer's gateway {:.1}",
                micros(Part::OwnGateway),
                micros(Part::FarGateway)
            ),
            _ => String::new(),
        };
        println!(
            "{:<28} {:>10.0} {:>7.1} {:>7.1} {:>9.1} {of_requests:>8} {of_bytes:>8}{gateways}",
            scenario.name,
            row.per_second,
            micros(Part::A),
            micros(Part::B),
            two * 1e6,
        );
    }
    let saturation = rows.get(Peer::Haproxy.name()).or_else(|| rows.get(LOCAL));
    Ok(saturation.map(|row| row.per_second / 2.0))
}

/// One connection that reads as fast as it can, through two hops that look at nothing.
pub fn bulk(arguments: &Arguments, scenarios: &[Scenario]) -> Result<()> {
    let rows = rounds(arguments, scenarios, Load::Bulk)?;
    println!(
        "\none connection read as fast as it goes, medians of {} rounds of {} s",
        arguments.rounds, arguments.seconds
    );
    println!("{:<28} {:>8} {:>12} {:>8} {:>8}", "", "GB/s", "CPU s per GB", "GB/s", "CPU");
    let ours = rows.get(BYTES);
    for scenario in scenarios {
        let Some(row) = rows.get(scenario.name) else { continue };
        let ours = ours.filter(|_| scenario.name != BYTES);
        println!(
            "{:<28} {:>8.3} {:>12.2} {:>8} {:>8}",
            scenario.name,
            row.per_second / 1e9,
            row.of(&HOPS) * 1e9,
            ratio(ours.map(|ours| ours.per_second), row.per_second),
            ratio(ours.map(|ours| ours.of(&HOPS)), row.of(&HOPS)),
        );
    }
    Ok(())
}

pub fn latency(arguments: &Arguments, scenarios: &[Scenario], rate: f64) -> Result<()> {
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
pub fn memory(scenarios: &[Scenario], count: usize) -> Result<()> {
    println!(
        "\nresident memory, KiB, of A and B: at rest, and with {count} idle keep-alive connections to A, used once"
    );
    // Those have their processes in common with the first.
    for scenario in scenarios.iter().filter(|scenario| ![REMOTE, BYTES].contains(&scenario.name)) {
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
