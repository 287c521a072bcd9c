//! Rotation under load, within a cluster and across. First SVIDs: every proxy, every gateway and a process with many
//! identities rotate every few seconds for a while. Then authorities, in `authorities`. Counted: rotations, and requests
//! that failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use hanse_tests::house::Demo;
use hanse_tests::http::{self, Connection};
use serde_json::Value;

use crate::{authorities, scene};

#[derive(clap::Args)]
pub struct Arguments {
    /// Lifetime of SVIDs, seconds
    #[arg(long, default_value_t = 10)]
    lifetime: u64,
    /// How long SVIDs are rotated, seconds; 0: not at all
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Identities that this process holds besides
    #[arg(long, default_value_t = 80)]
    identities: usize,
    /// Requests per second, in each cluster
    #[arg(long, default_value_t = 100)]
    rps: u32,
    /// How often every authority of both clusters is replaced afterwards
    #[arg(long, default_value_t = 3)]
    rotations: u32,
    /// kill -9 the leader of the cluster in every one of these, each time at another gate
    #[arg(long, conflicts_with = "stop_agent")]
    kill_leader: bool,
    /// Stop the agent of the cluster (SIGSTOP) in every one of these, for some seconds
    #[arg(long)]
    stop_agent: bool,
}

#[derive(Default)]
pub struct Counted {
    requests: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

/// Requests in both clusters, to the own one and to the other.
pub struct Load(tokio::task::JoinSet<Result<()>>);

impl Counted {
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Load {
    pub fn start(demo: &Demo, rps: u32, counted: &Arc<Counted>) -> Result<Self> {
        let mut load = tokio::task::JoinSet::new();
        for cluster in ["east", "west"] {
            let outbound = demo.address(cluster, "proxy", "load-1", "outbound")?;
            for host in
                ["productpage.shop.svc.clusterset.local", "productpage-east.shop.svc.clusterset.local"]
            {
                load.spawn(requests(outbound.clone(), host, rps.div_ceil(2), Arc::clone(counted)));
            }
        }
        Ok(Self(load))
    }

    /// How many were made, and how many failed.
    pub async fn finish(mut self, counted: &Counted) -> Result<(u64, u64)> {
        counted.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.0.join_next().await {
            ended??;
        }
        Ok((counted.requests.load(Ordering::Relaxed), counted.failed()))
    }
}

pub async fn run(arguments: Arguments) -> Result<()> {
    if arguments.seconds > 0 {
        svids(&arguments).await?;
    }
    if arguments.rotations > 0 {
        let damage = match (arguments.kill_leader, arguments.stop_agent) {
            (true, _) => authorities::Damage::KillLeader,
            (false, true) => authorities::Damage::StopAgent,
            (false, false) => authorities::Damage::None,
        };
        authorities::run(arguments.rotations, damage, arguments.rps).await?;
    }
    Ok(())
}

async fn svids(arguments: &Arguments) -> Result<()> {
    let demo = Demo::up(["--rps", "0", "--svid-lifetime", &format!("{}s", arguments.lifetime)])?;
    let client = Arc::new(scene::administrator(&demo, "east").await?);
    let ids: Result<Vec<_>> = (0..arguments.identities).map(|n| scene::identity("east", n)).collect();
    let registrations: Result<Vec<_>> =
        ids?.iter().map(|id| scene::registration(id, "agent-1", arguments.lifetime)).collect();
    scene::register(&client, registrations?).await?;

    let counted = Arc::new(Counted::default());
    let load = Load::start(&demo, arguments.rps, &counted)?;
    let ours = tokio::spawn(stream(scene::endpoint(&demo, "east")?, Arc::clone(&counted)));

    let started = Instant::now();
    let mut serials: BTreeMap<String, String> = BTreeMap::new();
    let mut theirs = 0u64;
    while started.elapsed() < Duration::from_secs(arguments.seconds) {
        for process in demo.all("proxy").chain(demo.all("gateway")) {
            let admin = process["addresses"]["admin"].as_str().context("no admin address")?;
            let certs: Value = serde_json::from_slice(&http::get(admin, "admin", "/certs").await?.body)?;
            let serial = certs["serial"].as_str().context("no serial number")?.to_owned();
            let name = format!("{}/{}", process["cluster"], process["name"]);
            if serials.insert(name, serial.clone()).is_some_and(|before| before != serial) {
                theirs += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (requests, failed) = load.finish(&counted).await?;
    let ours = ours.await??;
    println!(
        "SVIDs of {} s for {} s: {} rotations ({theirs} in {} proxies and gateways, {ours} in a process with {} identities), {failed} of {requests} requests failed",
        arguments.lifetime,
        arguments.seconds,
        theirs + ours,
        serials.len(),
        arguments.identities,
    );
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

/// Requests at a steady pace over one keep-alive connection; a broken connection is a failed request.
async fn requests(outbound: String, host: &'static str, rps: u32, counted: Arc<Counted>) -> Result<()> {
    let mut pace = tokio::time::interval(Duration::from_secs(1) / rps.max(1));
    let mut connection = None;
    while !counted.stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(&outbound).await?,
        };
        counted.requests.fetch_add(1, Ordering::Relaxed);
        match open.get(host, "/").await {
            Ok(answer) if answer.status == 200 => connection = Some(open),
            Ok(answer) => {
                eprintln!("{host}: {} {:?}", answer.status, answer.headers.get("x-hanse-reason"));
                counted.failed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                eprintln!("{host}: {error:#}");
                counted.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Follows the Workload API and counts SVIDs that have taken the place of another.
async fn stream(endpoint: String, counted: Arc<Counted>) -> Result<u64> {
    let api = spiffe::WorkloadApiClient::connect_to(&endpoint).await?;
    let mut updates = api.stream_x509_contexts().await?;
    let (mut serials, mut rotations) = (BTreeMap::new(), 0);
    while !counted.stop.load(Ordering::Relaxed) {
        let next = tokio::time::timeout(Duration::from_secs(1), updates.next()).await;
        let Ok(Some(context)) = next else { continue };
        for svid in context?.svids() {
            let leaf = svid.leaf().as_bytes().to_vec();
            let before = serials.insert(svid.spiffe_id().to_string(), leaf.clone());
            rotations += u64::from(before.is_some_and(|before| before != leaf));
        }
    }
    Ok(rotations)
}
