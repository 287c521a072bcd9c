//! One JSON line there, one JSON line back, over a Unix socket: how the demo's processes are told what to do.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Longest that an answer may take: healing a whole cluster is the slowest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends `request` and reads the answer.
pub async fn ask<Answer: DeserializeOwned>(path: &Path, request: &impl Serialize) -> anyhow::Result<Answer> {
    let conversation = async {
        let stream = UnixStream::connect(path)
            .await
            .with_context(|| format!("nobody listens at {}", path.display()))?;
        let (read, mut write) = stream.into_split();
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        write.write_all(&line).await?;
        let answer = BufReader::new(read).lines().next_line().await?.context("the other end closed")?;
        Ok(serde_json::from_str(&answer)?)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, conversation).await.context("no answer in time")?
}
