//! What is measured: whose processor time, under which load, in interleaved rounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::Arguments;
use crate::load::{self, Target};
use crate::process::cpu_seconds;

/// One thing that is measured: where the load goes, and whose CPU is counted.
pub struct Scenario {
    pub name: &'static str,
    pub target: Target,
    /// Bytes only: nobody reads HTTP.
    pub copies: bool,
    pub processes: Vec<(Part, u32)>,
}

/// Whose processor time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The caller's sidecar
    A,
    /// The target's
    B,
    OwnGateway,
    FarGateway,
}

/// What is asked of them.
#[derive(Clone, Copy)]
pub enum Load {
    /// Connections that are used again and again, in a closed loop
    KeptAlive(usize),
    /// A connection for each request, so many at a time
    Fresh(usize),
    /// One connection that reads as fast as it can
    Bulk,
}

#[derive(Default)]
pub struct Figures {
    /// Requests, or bytes.
    pub per_second: Vec<f64>,
    /// Seconds of processor time for each of them.
    pub cpu: BTreeMap<Part, Vec<f64>>,
}

/// The medians of one scenario.
pub struct Row {
    pub per_second: f64,
    pub cpu: BTreeMap<Part, f64>,
}

impl Row {
    /// Of these parts together.
    pub fn of(&self, parts: &[Part]) -> f64 {
        parts.iter().filter_map(|part| self.cpu.get(part)).sum()
    }
}

/// All rounds of all scenarios, by name.
pub fn rounds(
    arguments: &Arguments,
    scenarios: &[Scenario],
    load: Load,
) -> Result<BTreeMap<&'static str, Row>> {
    let time = Duration::from_secs(arguments.seconds);
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    for round in 0..arguments.rounds {
        for scenario in rotated(scenarios, round) {
            let into = figures.entry(scenario.name).or_default();
            into.add(&scenario.processes, || match load {
                Load::KeptAlive(connections) => load::run(load::closed(&scenario.target, connections, time)),
                Load::Fresh(at_a_time) => load::run(load::fresh(&scenario.target, at_a_time, time)),
                Load::Bulk => load::run(load::bulk(&scenario.target, time)),
            })?;
        }
    }
    Ok(figures.into_iter().map(|(name, figures)| (name, figures.medians())).collect())
}

impl Figures {
    /// Has `load` run, which answers how much it did, and divides what that took by it.
    pub fn add(&mut self, processes: &[(Part, u32)], load: impl FnOnce() -> Result<u64>) -> Result<()> {
        let before = spent(processes)?;
        let started = Instant::now();
        let done = load()?;
        ensure!(done > 0, "no request succeeded");
        self.per_second.push(done as f64 / started.elapsed().as_secs_f64());
        for (part, after) in spent(processes)? {
            self.cpu.entry(part).or_default().push((after - before[&part]) / done as f64);
        }
        Ok(())
    }

    pub fn medians(mut self) -> Row {
        let cpu = self.cpu.iter_mut().map(|(part, values)| (*part, median(values))).collect();
        Row { per_second: median(&mut self.per_second), cpu }
    }
}

/// Each round begins with another one: whoever comes first after a pause is not always the same.
pub fn rotated<T>(all: &[T], by: usize) -> impl Iterator<Item = &T> {
    let (front, back) = all.split_at(by % all.len().max(1));
    back.iter().chain(front)
}

/// Seconds of processor time so far, per part.
fn spent(processes: &[(Part, u32)]) -> Result<BTreeMap<Part, f64>> {
    let mut spent = BTreeMap::new();
    for (part, pid) in processes {
        *spent.entry(*part).or_default() += cpu_seconds(*pid)?;
    }
    Ok(spent)
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `ours` as a ratio to `it`, where there is one.
pub fn ratio(ours: Option<f64>, it: f64) -> String {
    ours.map_or(String::new(), |ours| format!("{:.2}", ours / it))
}
