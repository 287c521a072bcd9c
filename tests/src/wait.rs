//! Wait: tests wait for conditions, not for time.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

/// How long one look at a condition may take.
const LOOK: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PACE: Duration = Duration::from_millis(50);

/// Tries until it holds; after `limit`, the last reason why it did not.
pub async fn until(what: &str, limit: Duration, holds: impl AsyncFn() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    let end = started + limit;
    loop {
        match tokio::time::timeout(LOOK, holds()).await.context("no answer").flatten() {
            Ok(()) => {
                println!("{what}: {} ms", started.elapsed().as_millis());
                return Ok(());
            }
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("not within {limit:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(PACE).await,
        }
    }
}
