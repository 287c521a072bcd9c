//! Every authority of both clusters replaced under load, several times in one run: how long each gate took, what failed,
//! who was restarted. On demand with a leader that is killed between the gates, or an agent that stands still.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hanse::commands::trust;
use hanse::context::Connection;
use hanse_control::admin::{NodeListRequest, NodeState, TrustStatus};
use hanse_control::state::rotation::{Gate, Rotation};
use hanse_tests::house::Demo;

use crate::rotation::{Counted, Load};
use crate::scene;

/// Pace of asking how far a rotation is.
const POLL: Duration = Duration::from_millis(50);
/// Longest wait for one rotation.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long an agent stands still once a gate has named it.
const STANDSTILL: Duration = Duration::from_secs(3);
/// Load before the first and after the last rotation.
const AROUND: Duration = Duration::from_secs(2);
const CLUSTERS: [&str; 2] = ["east", "west"];

/// What goes wrong on purpose in every rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    None,
    /// kill -9 of the leader, each time at another gate, until the rotation says that it waits for it.
    KillLeader,
    /// SIGSTOP of the agent, from the second gate until the rotation says that it waits for it, and some seconds.
    StopAgent,
}

/// The processes of a demo by name, and their ids.
type Pids = BTreeMap<String, u64>;

pub async fn run(rotations: u32, damage: Damage, rps: u32) -> Result<()> {
    let mut demo = Demo::up(["--rps", "0"])?;
    let before = pids(&mut demo)?;
    let mut killed = Vec::new();
    let counted = Arc::new(Counted::default());
    let load = Load::start(&demo, rps, &counted)?;
    tokio::time::sleep(AROUND).await;
    let mut gate = Gate::ALL.into_iter().cycle();
    for round in 1..=rotations {
        for cluster in CLUSTERS {
            let failed = counted.failed();
            let at = gate.next().context("a cycle has no end")?;
            let (status, took, story) = one(&demo, cluster, damage, at).await?;
            let rotation = status.rotation.context("a rotation was begun")?;
            println!(
                "rotation {round} of {cluster}: {} authorities in {} ms ({}), {} requests failed{}",
                rotation.new.len(),
                took.as_millis(),
                gates(&rotation),
                counted.failed() - failed,
                story.iter().map(|line| format!("; {line}")).collect::<String>(),
            );
            ensure!(rotation.gate == Gate::Done && !rotation.aborted, "it did not come to its end");
            ensure!(rotation.new.len() == rotation.nodes.len(), "a node has no new authority");
            if damage == Damage::KillLeader {
                killed.extend(story);
            }
        }
    }
    tokio::time::sleep(AROUND).await;
    let (requests, failed) = load.finish(&counted).await?;
    let after = pids(&mut demo)?;
    let restarted: Vec<&String> =
        before.iter().filter(|(name, pid)| after.get(*name) != Some(pid)).map(|(name, _)| name).collect();
    let others = restarted.iter().filter(|name| !killed.iter().any(|line| line.contains(name.as_str())));
    let others: Vec<_> = others.collect();
    println!(
        "{rotations} rotations of every authority of {} clusters: {failed} of {requests} requests failed, {} restarts but for what was killed{}",
        CLUSTERS.len(),
        others.len(),
        if others.is_empty() { String::new() } else { format!(": {others:?}") },
    );
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(others.is_empty(), "restarted: {others:?}");
    Ok(())
}

/// One rotation to its end; what was done to it meanwhile.
async fn one(
    demo: &Demo,
    cluster: &str,
    damage: Damage,
    at: Gate,
) -> Result<(TrustStatus, Duration, Vec<String>)> {
    let credential = demo.dir().join("credentials").join(format!("{cluster}.json"));
    let connection = Connection::with_credential_file(cluster, &credential, scene::SOON)?;
    let began = Instant::now();
    let id = trust::begin(&connection, None, true).await?;
    let mut story = Vec::new();
    let mut victim: Option<(String, Instant)> = None;
    let mut named: Option<Instant> = None;
    let mut mended = false;
    loop {
        ensure!(began.elapsed() < PATIENCE, "not over within {PATIENCE:?}: {:?}", story);
        tokio::time::sleep(POLL).await;
        // While there is no leader there is no answer: it is asked again.
        let Ok(status) = trust::status(&connection).await else { continue };
        let rotation = status.rotation.clone().filter(|r| r.id == id).context("another rotation runs")?;
        match &victim {
            None if damage == Damage::KillLeader && rotation.is_running() && rotation.gate >= at => {
                let name = leader(&connection).await?;
                demo.run(["demo", "break", "kill", &format!("control/{name}@{cluster}")])?;
                story.push(format!("control/{name}@{cluster} killed at {}", rotation.gate));
                victim = Some((format!("node {name}"), Instant::now()));
            }
            None if damage == Damage::StopAgent && rotation.is_running() => {
                demo.run(["demo", "break", "pause", &format!("agent/agent-1@{cluster}")])?;
                story.push(format!("agent-1 stopped at {}", rotation.gate));
                victim = Some(("agent agent-1".to_owned(), Instant::now()));
            }
            Some((who, since)) if !mended => {
                let waits = status.waits_for.iter().find(|w| w.who == *who && w.cluster.as_str() == cluster);
                if let (Some(waits), None) = (waits, named) {
                    let took = since.elapsed().as_millis();
                    story.push(format!("named by {} after {took} ms ({})", rotation.gate, waits.why));
                    named = Some(Instant::now());
                }
                let standstill = if damage == Damage::StopAgent { STANDSTILL } else { Duration::ZERO };
                let over = !rotation.is_running();
                if over && named.is_none() {
                    // The last gate may have been passed before anybody was missing.
                    ensure!(at == Gate::Retire, "it came to its end without {who}");
                    story.push("it was over before anybody was missed".to_owned());
                }
                if over || named.is_some_and(|at| at.elapsed() >= standstill) {
                    demo.run(["demo", "heal"])?;
                    mended = true;
                }
            }
            _ => {}
        }
        if !rotation.is_running() {
            return Ok((status, began.elapsed(), story));
        }
    }
}

async fn leader(connection: &Connection) -> Result<String> {
    for _ in 0..100 {
        if let Ok(nodes) = connection.call(&NodeListRequest {}).await
            && let Some(node) = nodes.items.iter().find(|node| node.state == NodeState::Leader)
        {
            return Ok(node.node.to_string());
        }
        tokio::time::sleep(POLL).await;
    }
    anyhow::bail!("{} has no leader", connection.name)
}

fn gates(rotation: &Rotation) -> String {
    let times = Gate::ALL.iter().map(|gate| {
        let (at, next) = (rotation.reached.get(gate), rotation.reached.get(&gate.next()));
        match at.zip(next) {
            Some((at, next)) => format!("{gate} {} ms", next.since(*at).as_millis()),
            None => format!("{gate} -"),
        }
    });
    times.collect::<Vec<_>>().join(", ")
}

fn pids(demo: &mut Demo) -> Result<Pids> {
    demo.refresh()?;
    let named = demo.processes().iter().map(|process| {
        let text = |field: &str| process[field].as_str().unwrap_or_default().to_owned();
        let name = format!("{}/{}@{}", text("role"), text("name"), text("cluster"));
        (name, process["pid"].as_u64().unwrap_or_default())
    });
    Ok(named.collect())
}
