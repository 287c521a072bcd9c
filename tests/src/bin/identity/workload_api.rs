//! How soon a workload has its first SVID: connect to the socket, be attested, have a key made and signed, answered.
//! Of the slowest it is told for how long the processes that take part had work and no core: that is the machine's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hanse_tests::house::Demo;

use crate::scene;

#[derive(clap::Args)]
pub struct Arguments {
    /// Identities, each asked for once
    #[arg(long, default_value_t = 50)]
    times: usize,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let demo = Demo::up(["--rps", "0"])?;
    let client = Arc::new(scene::administrator(&demo, "east").await?);
    let endpoint = scene::endpoint(&demo, "east")?;
    let mut taking_part = vec![std::process::id(), demo.pid("east", "agent", "agent-1")?];
    for control in demo.all("control").filter(|process| process["cluster"] == "east") {
        taking_part.push(demo.pid("east", "control", control["name"].as_str().context("no name")?)?);
    }
    let mut slowest = (0.0, Duration::ZERO);
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for number in 0..arguments.times {
        let id = scene::identity("east", number)?;
        scene::register(&client, vec![scene::registration(&id, "agent-1", 0)?]).await?;
        // The agent has to have heard of the registration: before, it would answer "no registration".
        let (svid, took, waited) = tokio::time::timeout(scene::SOON, async {
            loop {
                let (started, before) = (Instant::now(), scene::waited_for_a_core(&taking_part)?);
                let api = spiffe::WorkloadApiClient::connect_to(&endpoint).await?;
                if let Ok(svid) = api.fetch_x509_svid().await {
                    let took = started.elapsed().as_secs_f64() * 1e3;
                    let waited = scene::waited_for_a_core(&taking_part)?.saturating_sub(before);
                    return anyhow::Ok((svid, took, waited));
                }
            }
        })
        .await
        .context("no SVID")??;
        anyhow::ensure!(
            svid.spiffe_id().to_string() == id.to_string(),
            "the SVID is of {}",
            svid.spiffe_id()
        );
        first.push(took);
        if took > slowest.0 {
            slowest = (took, waited);
        }
        let started = Instant::now();
        spiffe::WorkloadApiClient::connect_to(&endpoint).await?.fetch_x509_svid().await?;
        again.push(started.elapsed().as_secs_f64() * 1e3);
        scene::forget(&client, &id, "agent-1").await?;
        // Nor may it still hold this one when the next is registered: it would be given again.
        tokio::time::timeout(scene::SOON, async {
            while spiffe::WorkloadApiClient::connect_to(&endpoint).await?.fetch_x509_svid().await.is_ok() {}
            anyhow::Ok(())
        })
        .await
        .context("the agent does not forget")??;
    }
    println!("first SVID of an identity, connect to answer: {}", scene::spread(&mut first));
    let (took, waited) = (slowest.0, slowest.1.as_secs_f64() * 1e3);
    println!(
        "  in the slowest, {took:.1} ms, threads of the {} processes together waited {waited:.1} ms for a core",
        taking_part.len()
    );
    println!("the same identity again, new connection:      {}", scene::spread(&mut again));
    Ok(())
}
