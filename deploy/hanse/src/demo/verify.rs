//! `demo up --verify`: the story, a step at a time, every figure measured in this run.
//!
//! A step that fails does not end the story: what follows is still told where it makes sense.

mod basics;
mod control;
mod dark;
mod envoy;
mod failover;
mod kinds;
mod node;
mod policies;
mod revocation;
mod rotation;
mod split;
mod theft;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::process::Identity;
use super::spec::Role;
use super::up::Demo;
use crate::cli::Global;
use crate::commands::Outcome;
use crate::errors::Exit;
use crate::output;

/// Requests per second of the load under which things are broken.
const RATE: u32 = 200;
/// Longest that any one step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);
/// Warnings of a process that are shown when a step fails.
const SHOWN_WARNINGS: usize = 3;

/// What a step found.
pub struct Verdict {
    pub ok: bool,
    /// The figures that decide, for people.
    pub summary: String,
    pub evidence: Value,
    /// Not told, for want of what it is about.
    pub skipped: bool,
}

/// A step that has been told.
#[derive(Debug, Serialize)]
pub struct Step {
    pub name: String,
    pub ok: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    pub ms: u64,
    pub evidence: Value,
    #[serde(skip)]
    summary: String,
}

/// The clusters of the story: damage is done at home, and away takes over.
struct Story<'d> {
    demo: &'d Demo,
    home: String,
    away: String,
    /// How many times its target a figure may be.
    slack: u32,
    /// A stock Envoy, where one is installed.
    envoy: Option<PathBuf>,
}

impl Story<'_> {
    /// The longest that is still good, for a figure with that target.
    fn within(&self, target: Duration) -> Duration {
        target * self.slack
    }
}

impl Verdict {
    fn new(ok: bool, summary: impl Into<String>, evidence: Value) -> Self {
        Self { ok, summary: summary.into(), evidence, skipped: false }
    }

    fn skipped(why: &str) -> Self {
        Self { skipped: true, ..Self::new(true, format!("skipped: {why}"), json!({ "skipped": why })) }
    }
}

/// Runs every step but the last on a demo that runs.
pub async fn run(global: &Global, demo: &Arc<Demo>, slack: u32, envoy: Option<PathBuf>) -> Vec<Step> {
    let (home, away) = (demo.spec.clusters[0].clone(), demo.spec.clusters[1].clone());
    let story = Story { demo, home, away, slack, envoy };
    let mut steps = Vec::new();
    macro_rules! tell {
        ($($name:literal => $step:expr;)*) => {
            $(steps.push(told(global, demo, steps.len() + 1, $name, $step).await);)*
        };
    }
    tell! {
        "quorum in both clusters" => story.quorum();
        "join both ways" => story.joined();
        "every proxy holds an SVID that openssl verifies, one URI SAN" => story.svids();
        "plaintext, no certificate and a stranger's certificate are refused" => story.refusals();
        "local traffic stays local" => story.local();
        "80/20 split across clusters" => story.split();
        "kill -9 every local reviews instance" => story.kill_service();
        "the remote target saw the caller's own SPIFFE ID, through both sides' gateways" => story.crossing();
        "restart: traffic returns, no flap" => story.restart_service();
        "kill -9 the leader under load and writes" => story.kill_leader();
        "the wire falls silent; a whole cluster is paused" => story.dark();
        "revoke productpage while it holds live connections" => story.revoke();
        "revoke each kind under load" => story.revoke_each_kind();
        "a stock Envoy is a workload: called, calling, rotated, revoked" => story.envoy();
        "replace every authority of a cluster under load" => story.rotate();
        "kill -9 all control nodes of a cluster for 10 s" => story.kill_control();
    }
    steps
}

/// Ends the demo (the last step), reports, and decides.
pub async fn finish(global: &Global, demo: Arc<Demo>, mut steps: Vec<Step>) -> Outcome {
    let started = Instant::now();
    let processes: Vec<Identity> = demo
        .supervisor
        .status()
        .processes
        .iter()
        .filter_map(|p| Some(Identity { pid: p.pid?, start_time: p.start_time? }))
        .collect();
    let directory = demo.directory.clone();
    let steady = demo.load.counted();
    let ended = super::keep::end(demo).await?;
    let alive = processes.iter().filter(|p| p.is_alive()).count() + running_below(&directory);
    let files = directory.exists();
    let verdict = Verdict::new(
        alive == 0 && !files && ended.left.is_empty(),
        format!("{} processes ended, {alive} left, {} removed", processes.len(), directory.display()),
        json!({
            "processes": processes.len(), "processesLeft": alive, "directoryLeft": files,
            "killedAfterTimeout": ended.killed.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
    );
    steps.push(step(global, steps.len() + 1, "down: no process, no file left", started, verdict));
    let ok = steps.iter().all(|s| s.ok);
    let good = steps.iter().filter(|s| s.ok && !s.skipped).count();
    let skipped = match steps.iter().filter(|s| s.skipped).count() {
        0 => String::new(),
        n => format!(", {n} skipped"),
    };
    if global.output.is_json() {
        let report = json!({ "ok": ok, "steps": steps, "steadyLoad": steady });
        output::print(global.output, "DemoVerify", &report, "");
    } else {
        output::data(&format!(
            "{good} of {} steps hold{skipped}; steady load: {} ok, {} failed\n",
            steps.len(),
            steady.ok,
            steady.failed
        ));
    }
    Ok(if ok { Exit::Done } else { Exit::No })
}

/// Processes whose executable lies, or lay, below that directory.
fn running_below(directory: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let executables = entries.flatten().filter_map(|e| std::fs::read_link(e.path().join("exe")).ok());
    executables.filter(|exe| exe.starts_with(directory)).count()
}

/// Tells one step: whatever happens in it, it ends and is reported.
async fn told(
    global: &Global,
    demo: &Demo,
    number: usize,
    name: &str,
    step_body: impl Future<Output = anyhow::Result<Verdict>>,
) -> Step {
    let started = Instant::now();
    let verdict = match tokio::time::timeout(STEP_TIMEOUT, step_body).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => {
            let error = format!("{error:#}");
            Verdict::new(false, error.clone(), json!({ "error": error }))
        }
        Err(_) => {
            let error = format!("the step did not end within {STEP_TIMEOUT:?}");
            Verdict::new(false, error.clone(), json!({ "error": error }))
        }
    };
    let failed = !verdict.ok;
    let step = step(global, number, name, started, verdict);
    if failed {
        eprintln!("     evidence {}", step.evidence);
        show_warnings(demo);
        // What a step broke and did not mend would fail every later one.
        if let Err(error) = demo.heal(&[]).await {
            eprintln!("healing after a failed step: {error:#}");
        }
        let roles = [Role::Agent, Role::Gateway, Role::Proxy];
        if tokio::time::timeout(Duration::from_secs(20), demo.ready(&roles)).await.is_err() {
            eprintln!("not everything is ready again after a failed step");
        }
    }
    step
}

fn step(global: &Global, number: usize, name: &str, started: Instant, verdict: Verdict) -> Step {
    let step = Step {
        name: name.to_owned(),
        ok: verdict.ok,
        skipped: verdict.skipped,
        ms: started.elapsed().as_millis() as u64,
        evidence: verdict.evidence,
        summary: verdict.summary,
    };
    let mark = match (step.ok, step.skipped) {
        (_, true) => "–",
        (true, false) => "✓",
        (false, false) => "✗",
    };
    let line = format!(
        "{mark} {number:>2} {name}   {:.1} s\n     {}\n",
        started.elapsed().as_secs_f64(),
        step.summary
    );
    if global.output.is_json() {
        if !global.quiet {
            eprint!("{line}");
        }
    } else {
        output::data(&line);
    }
    step
}

/// The last warnings of every process, on stderr.
fn show_warnings(demo: &Demo) {
    for process in demo.supervisor.status().processes {
        let text = std::fs::read(&process.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let bad = |line: &&str| ["WARN", "ERROR", "panicked"].iter().any(|word| line.contains(word));
        let warnings: Vec<&str> = text.lines().filter(bad).collect();
        for line in &warnings[warnings.len().saturating_sub(SHOWN_WARNINGS)..] {
            eprintln!("     {}/{}@{}: {line}", process.role, process.name, process.cluster);
        }
    }
}

/// Whole milliseconds, for evidence.
fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// Three decimals at most, for evidence.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
