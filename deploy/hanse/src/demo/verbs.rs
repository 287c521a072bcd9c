//! What `hanse demo …` does: starts, shows, breaks, heals and ends demos.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::cli::{BreakCommand, DemoCommand, UpArgs, Which};
use super::damage::{Damage, What};
use super::envoy;
use super::find;
use super::keep::{self, Keeper, Request};
use super::process::DemoFile;
use super::spec::{Key, Spec};
use super::up::{Demo, log_tail};
use super::wire::Mode;
use crate::cli::Global;
use crate::commands::{Outcome, talk};
use crate::errors::{Exit, Failure};
use crate::output::{self, Format, Listing};

/// How long `demo down` waits for the supervisor to end before it ends it.
const DOWN_TIMEOUT: Duration = Duration::from_secs(20);

pub async fn run(global: &Global, command: DemoCommand) -> Outcome {
    match command {
        DemoCommand::Up(up) => start(global, up).await,
        DemoCommand::Status(which) => status(global, &find::find(&which)?.data_dir).await,
        DemoCommand::Env(which) => env(global, &find::find(&which)?),
        DemoCommand::Logs { name, tail, which } => logs(&find::find(&which)?, &name, tail),
        DemoCommand::Break(command) => damage(global, command).await,
        DemoCommand::Heal { names, which } => {
            request(global, &which, Request::Heal { names }, "nothing had to be healed").await
        }
        DemoCommand::Down(which) => down(global, &which).await,
        DemoCommand::Tour(which) => super::tour::run(global, &which).await,
        DemoCommand::Supervise { dir, spec } => {
            let spec: Spec = serde_json::from_str(&spec).map_err(|e| Failure::usage(e.to_string()))?;
            keep::supervise(dir, spec).await?;
            Ok(Exit::Done)
        }
        DemoCommand::App(_) | DemoCommand::Wire(_) | DemoCommand::Thief(_) | DemoCommand::Envoy(_) => {
            unreachable!("the roles of the demo are started before this runtime")
        }
    }
}

async fn start(global: &Global, up: UpArgs) -> Outcome {
    let spec = Spec {
        clusters: up.clusters.clone(),
        nodes: up.nodes,
        wan_latency_ms: up.wan_latency.as_millis() as u64,
        svid_lifetime_seconds: up.svid_lifetime.map_or(0, |lifetime| lifetime.as_secs()),
        rps: up.rps,
    };
    spec.check().map_err(Failure::usage)?;
    let envoy = match &up.envoy {
        Some(path) if !envoy::is_elf(path) => {
            return Err(Failure::usage(format!(
                "--envoy {}: it is no executable (a script is not attested)",
                path.display()
            )));
        }
        Some(path) => Some(path.canonicalize().map_err(|e| Failure::unreadable(path, e))?),
        None => envoy::installed(),
    };
    let directory = super::prepare::directory()?;
    let result = start_in(global, &up, spec, &directory, envoy).await;
    if result.is_err() {
        find::remove(&directory)?;
    }
    result
}

async fn start_in(
    global: &Global,
    up: &UpArgs,
    spec: Spec,
    directory: &Path,
    envoy: Option<PathBuf>,
) -> Outcome {
    let table = !global.output.is_json() && !up.verify;
    let say = move |line: &str| {
        if table {
            output::data(&format!("{line}\n"));
        } else if !global.quiet {
            eprintln!("{line}");
        }
    };
    if up.detach {
        keep::detach(directory, &spec, &say).await?;
        if global.output.is_json() {
            return status(global, directory).await;
        }
        say(&hints(directory, "hanse demo down"));
        return Ok(Exit::Done);
    }
    let executable = std::env::current_exe().map_err(anyhow::Error::from)?;
    let demo = Arc::new(Demo::start(directory, spec, &executable, &say).await?);
    let mut keeper = Keeper::listen(&demo)?;
    if up.verify {
        let report = tokio::select! {
            report = super::verify::run(global, &demo, up.slack, envoy) => Some(report),
            () = super::signals::terminated() => None,
        };
        keeper.close().await;
        return match report {
            Some(report) => super::verify::finish(global, demo, report).await,
            None => {
                keep::end(demo).await?;
                Err(Failure::new(Exit::Interrupted, "E1008", "interrupted"))
            }
        };
    }
    say(&hints(directory, "Ctrl-C"));
    tokio::select! {
        () = keeper.end_requested() => {}
        () = super::signals::terminated() => {}
    }
    keeper.close().await;
    let counted = demo.load.counted();
    let ended = keep::end(demo).await?;
    say(&format!("\n  load   {} ok, {} failed", counted.ok, counted.failed));
    say(&format!("  ended  no process left, {} removed", ended.directory.display()));
    Ok(Exit::Done)
}

fn hints(directory: &Path, stop: &str) -> String {
    format!(
        "\n  shell  eval \"$(hanse demo env)\"       then: hanse cluster list --context demo-east\n  next   hanse demo status      hanse demo break kill service reviews@east      hanse demo heal\n  stop   {stop}   (state lives in {} and is removed)",
        directory.display()
    )
}

async fn status(global: &Global, directory: &Path) -> Outcome {
    let reply = keep::ask(directory, &Request::Status).await?;
    let status = reply
        .status
        .ok_or_else(|| Failure::new(Exit::Bug, "E9001", "the supervisor answered a status without one"))?;
    let titles = ["NAME", "ROLE", "CLUSTER", "PID", "STATE", "STARTS", "ADDRESSES", "+EXIT", "+LOG"];
    let load = status.meta["load"].clone();
    Listing::of("DemoStatus", &status.meta, &status.items, &titles, |item| {
        let addresses: Vec<String> = item.addresses.iter().map(|(p, a)| format!("{p}={a}")).collect();
        [
            item.name.clone(),
            item.role.to_string(),
            item.cluster.clone(),
            item.pid.map(|p| p.to_string()).unwrap_or_default(),
            serde_json::to_value(item.state).unwrap_or_default().as_str().unwrap_or_default().to_owned(),
            item.starts.to_string(),
            addresses.join(" "),
            item.exit.clone().unwrap_or_default(),
            item.log.display().to_string(),
        ]
    })
    .note(format!("{}   load {} ok, {} failed", directory.display(), load["ok"], load["failed"]))
    .print(global.output);
    Ok(Exit::Done)
}

fn env(global: &Global, demo: &DemoFile) -> Outcome {
    let variables = [
        ("HANSE_CONFIG", super::prepare::configuration_path(&demo.data_dir)),
        ("HANSE_DEMO_DIR", demo.data_dir.clone()),
    ];
    let body: serde_json::Map<_, _> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    // Single quotes: the directory is of our making, but TMPDIR is not.
    let quoted = |value: &Path| value.display().to_string().replace('\'', "'\\''");
    let mut text: String =
        variables.iter().map(|(name, value)| format!("export {name}='{}'\n", quoted(value))).collect();
    for cluster in &demo.spec.clusters {
        text.push_str(&format!("# --context {}\n", super::prepare::context_name(cluster)));
    }
    output::print(global.output, "DemoEnv", &body, &text);
    Ok(Exit::Done)
}

fn logs(demo: &DemoFile, name: &str, tail: usize) -> Outcome {
    let key = |p: &super::process::ProcessStatus| Key {
        cluster: p.cluster.clone(),
        role: p.role,
        name: p.name.clone(),
    };
    let meant: Vec<_> = demo.processes.iter().filter(|p| key(p).is_meant_by(name)).collect();
    if meant.is_empty() {
        return Err(Failure::new(Exit::NotFound, "E1004", format!("no process is called {name}"))
            .fix("hanse demo status lists them"));
    }
    for process in &meant {
        let prefix = if meant.len() > 1 { format!("{}  ", key(process)) } else { String::new() };
        for line in log_tail(&process.log, tail).lines() {
            output::data(&format!("{prefix}{line}\n"));
        }
    }
    Ok(Exit::Done)
}

async fn damage(global: &Global, command: BreakCommand) -> Outcome {
    let parse = |words: &[String]| What::parse(words).map_err(Failure::usage);
    let (damage, which) = match command {
        BreakCommand::Kill { what, which } => (Damage::Kill(parse(&what)?), which),
        BreakCommand::Pause { what, which } => (Damage::Pause(parse(&what)?), which),
        BreakCommand::Partition { a, b, silent: _, reset, which } => {
            let mode = if reset { Mode::Reset } else { Mode::Silent };
            (Damage::Partition { a, b, mode }, which)
        }
    };
    request(global, &which, Request::Break(damage), "nothing was hit").await?;
    talk(global, "undo: hanse demo heal");
    Ok(Exit::Done)
}

async fn request(global: &Global, which: &Which, request: Request, nothing: &str) -> Outcome {
    let demo = find::find(which)?;
    let reply = keep::ask(&demo.data_dir, &request).await?;
    let text = if reply.done.is_empty() { nothing.to_owned() } else { reply.done.join("\n") };
    output::print(global.output, "DemoDone", &json!({ "done": reply.done }), &format!("{text}\n"));
    Ok(Exit::Done)
}

/// Ends the demo that is meant; without one that runs, removes what dead ones have left.
async fn down(global: &Global, which: &Which) -> Outcome {
    let demo = match find::find(which) {
        Ok(demo) => demo,
        Err(failure) if failure.exit == Exit::NotFound => return sweep(global, which, failure),
        Err(failure) => return Err(failure),
    };
    let started = Instant::now();
    if keep::ask(&demo.data_dir, &Request::Down).await.is_err() {
        // It starts still, or hangs: it is told the plain way.
        demo.supervisor.signal(nix::sys::signal::Signal::SIGTERM);
    }
    while demo.supervisor.is_alive() && started.elapsed() < DOWN_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if demo.supervisor.is_alive() || demo.data_dir.exists() {
        demo.supervisor.signal(nix::sys::signal::Signal::SIGKILL);
        find::sweep(&demo)?;
    }
    removed(global, &[demo.data_dir]);
    Ok(Exit::Done)
}

fn sweep(global: &Global, which: &Which, failure: Failure) -> Outcome {
    let dead =
        |d: &DemoFile| !d.supervisor.is_alive() && which.dir.as_ref().is_none_or(|dir| *dir == d.data_dir);
    let dead: Vec<DemoFile> = find::all().into_iter().filter(dead).collect();
    if dead.is_empty() {
        return Err(failure);
    }
    for demo in &dead {
        find::sweep(demo)?;
    }
    let directories: Vec<_> = dead.into_iter().map(|d| d.data_dir).collect();
    removed(global, &directories);
    Ok(Exit::Done)
}

fn removed(global: &Global, directories: &[std::path::PathBuf]) {
    let text: String =
        directories.iter().map(|d| format!("ended: no process left, {} removed\n", d.display())).collect();
    let format = if global.output == Format::Jsonl { Format::Json } else { global.output };
    output::print(format, "DemoDown", &json!({ "removed": directories }), &text);
}
