//! Envoy: a stock one that a test starts and ends. What it is told is the demo's (`hanse::demo::envoy`).

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
pub use hanse::demo::envoy::{Config, SEEN, find, is_elf};
use hanse::demo::ports::Ports;
use serde_json::Value;

/// How long Envoy may take to come back to its agent after a refusal: its longest backoff, and some.
pub const BACKOFF: Duration = Duration::from_secs(90);
/// What it answers in tests.
pub const ANSWER: &str = "an Envoy answers\n";

/// A running Envoy; ended with the value.
pub struct Envoy {
    child: Child,
    log: PathBuf,
    pub egress: SocketAddr,
    pub admin: SocketAddr,
}

/// A loopback address that nobody listens on now, and that no outgoing connection is given.
pub fn free_address() -> Result<SocketAddr> {
    Ports::new().reserve()
}

impl Envoy {
    /// Starts it, with its bootstrap and its log in `dir`; it is not ready yet.
    pub fn start(binary: &Path, dir: &Path, config: &Config<'_>) -> Result<Self> {
        let bootstrap = dir.join("envoy.json");
        std::fs::write(&bootstrap, serde_json::to_vec_pretty(&config.bootstrap())?)?;
        let log = dir.join("envoy.log");
        let output = File::create(&log)?;
        let child = Command::new(binary)
            .args(hanse::demo::envoy::arguments(&bootstrap))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} cannot be run", binary.display()))?;
        Ok(Self { child, log, egress: config.egress, admin: config.admin })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log, for a failed assertion.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// One of Envoy's own counters.
    pub async fn counter(&self, name: &str) -> Result<u64> {
        let path = format!("/stats?filter=^{}$", name.replace('.', "\\."));
        let answer = crate::http::get(&self.admin.to_string(), "admin", &path).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let value = text.split(": ").nth(1).with_context(|| format!("no counter {name}: {text:?}"))?;
        Ok(value.trim().parse()?)
    }

    /// What Envoy says of the certificates that it uses.
    pub async fn certificates(&self) -> Result<Value> {
        let answer = crate::http::get(&self.admin.to_string(), "admin", "/certs").await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("Envoy (pid {}) did not end: {error}", self.child.id());
        }
    }
}
