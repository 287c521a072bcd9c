//! `hanse audit` as declared.

use std::time::Duration;

use clap::Subcommand;

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List what was asked of the cluster, newest first: what was done, what was so already, what was refused
    #[command(
        after_help = "Examples:\n  hanse audit list --since 24h --kind revoke\n  hanse audit list --actor admin/ann -o json"
    )]
    List {
        /// Only what is not older than this, such as 30m, 24h
        #[arg(long, value_parser = parse_duration)]
        since: Option<Duration>,
        /// Only what this actor asked: a SPIFFE ID or a part of one
        #[arg(long)]
        actor: Option<String>,
        /// Only this kind, such as revoke, workload-register, or the beginning of one: workload
        #[arg(long)]
        kind: Option<String>,
        /// At most this many rows
        #[arg(long, default_value_t = 50, value_parser = rows)]
        limit: usize,
    },
}

/// At least one, and no more than the trail can have.
fn rows(text: &str) -> Result<usize, String> {
    const MOST: usize = 12_000;
    let rows = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (1..=MOST).contains(&rows) { Ok(rows) } else { Err(format!("between 1 and {MOST} rows can be shown")) }
}
