//! Short-lived SVIDs under load: every proxy, every gateway and a process with many identities rotate every few
//! seconds for a while; requests go on, within a cluster and across. Counted: rotations, and requests that failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use hanse_tests::house::Demo;
use hanse_tests::http::{self, Connection};
use serde_json::Value;

use crate::scene;

#[derive(clap::Args)]
pub struct Arguments {
    /// Lifetime of SVIDs, seconds
    #[arg(long, default_value_t = 10)]
    lifetime: u64,
    /// How long, seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Identities that this process holds besides
    #[arg(long, default_value_t = 80)]
    identities: usize,
    /// Requests per second, in each cluster
    #[arg(long, default_value_t = 100)]
    rps: u32,
}

#[derive(Default)]
struct Counted {
    requests: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let demo = Demo::up(["--rps", "0", "--svid-lifetime", &format!("{}s", arguments.lifetime)])?;
    let client = Arc::new(scene::administrator(&demo, "east").await?);
    let ids: Result<Vec<_>> = (0..arguments.identities).map(|n| scene::identity("east", n)).collect();
    let registrations: Result<Vec<_>> =
        ids?.iter().map(|id| scene::registration(id, "agent-1", arguments.lifetime)).collect();
    scene::register(&client, registrations?).await?;

    let counted = Arc::new(Counted::default());
    let mut load = tokio::task::JoinSet::new();
    for cluster in ["east", "west"] {
        let outbound = demo.address(cluster, "proxy", "load-1", "outbound")?;
        for host in ["productpage.shop.svc.clusterset.local", "productpage-east.shop.svc.clusterset.local"] {
            load.spawn(requests(outbound.clone(), host, arguments.rps / 2, Arc::clone(&counted)));
        }
    }
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
    counted.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    let ours = ours.await??;
    let (requests, failed) =
        (counted.requests.load(Ordering::Relaxed), counted.failed.load(Ordering::Relaxed));
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
