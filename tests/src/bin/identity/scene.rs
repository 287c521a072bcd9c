//! What the benchmarks have in common: a demo, its administrator, registrations of this very process, percentiles.

use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hanse_control::admin::{WorkloadDeleteRequest, WorkloadRegisterRequest};
use hanse_control::client::{Client, Credential};
use hanse_identity::{Registration, SpiffeId};
use hanse_tests::house::Demo;
use serde_json::json;
use tokio::task::JoinSet;

/// The longest that anything here may take that is not a measurement's own length.
pub const SOON: Duration = Duration::from_secs(60);
/// Administrative calls under way at a time.
const CALLS: usize = 16;

pub fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}

/// The administrator of one of the demo's clusters.
pub async fn administrator(demo: &Demo, cluster: &str) -> Result<Client> {
    let credential = Credential::read(&demo.dir().join("credentials").join(format!("{cluster}.json")))?;
    Ok(Client::connect(&credential).await?.with_deadline(SOON))
}

/// The agent's socket as the Workload API's clients want it.
pub fn endpoint(demo: &Demo, cluster: &str) -> Result<String> {
    Ok(format!("unix://{}", demo.address(cluster, "agent", "agent-1", "socket")?))
}

/// An identity of the bench's own in a cluster.
pub fn identity(cluster: &str, number: usize) -> Result<SpiffeId> {
    Ok(format!("spiffe://{cluster}.example/ns/bench/sa/w-{number}").parse()?)
}

/// A registration by which an agent gives that identity to this process.
pub fn registration(id: &SpiffeId, agent: &str, ttl_seconds: u64) -> Result<Registration> {
    let executable = std::env::current_exe()?.canonicalize()?;
    let uid = std::fs::metadata("/proc/self")?.uid();
    let selectors = [format!("unix:uid:{uid}"), format!("unix:path:{}", executable.display())];
    let document = json!({ "id": id, "agent": agent, "selectors": selectors, "ttlSeconds": ttl_seconds, "ttl_seconds": ttl_seconds });
    Ok(serde_json::from_value(document)?)
}

/// Registers them all, some at a time.
pub async fn register(client: &std::sync::Arc<Client>, registrations: Vec<Registration>) -> Result<()> {
    let mut calls = JoinSet::new();
    for registration in registrations {
        if calls.len() >= CALLS {
            calls.join_next().await.context("there are calls")???;
        }
        let client = std::sync::Arc::clone(client);
        calls.spawn(async move {
            client.call(&WorkloadRegisterRequest { registration }).await?;
            anyhow::Ok(())
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}

/// Takes one registration away again.
pub async fn forget(client: &Client, id: &SpiffeId, agent: &str) -> Result<()> {
    client.call(&WorkloadDeleteRequest { id: id.clone(), agent: agent.parse()? }).await?;
    Ok(())
}

/// Resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

/// For how long threads of these processes, those that live now, have had work and no core to do it on.
pub fn waited_for_a_core(pids: &[u32]) -> Result<Duration> {
    let mut nanoseconds = 0;
    for pid in pids {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that has ended meanwhile waits for nothing.
            let Ok(times) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let waited = times.split_ascii_whitespace().nth(1).context("no time in schedstat")?;
            nanoseconds += waited.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// `p` of 0 to 1; the values are sorted for it.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * p).round() as usize).copied().unwrap_or(f64::NAN)
}

/// p50, p99 and the largest, in milliseconds.
pub fn spread(values: &mut [f64]) -> String {
    let [half, most, all] = [0.5, 0.99, 1.0].map(|p| percentile(values, p));
    format!("p50 {half:.1} ms, p99 {most:.1} ms, max {all:.1} ms (of {})", values.len())
}
