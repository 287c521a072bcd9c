//! `hanse cluster` as declared.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Join tokens for other clusters
    #[command(subcommand)]
    Token(ClusterTokenCommand),
    /// Join the cluster that made the token; both sides commit, or neither
    #[command(
        after_help = "Example:\n  hanse cluster token create --for west --context east | hanse cluster join --token-file - --context west"
    )]
    Join {
        /// File with the token; - is standard input
        #[arg(long)]
        token_file: PathBuf,
        /// Check everything, commit nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// List joined clusters
    List,
    /// Check the joined clusters, or one
    Check {
        /// Which one [default: all]
        name: Option<hanse_identity::ClusterName>,
    },
    /// Leave a joined cluster: both forget each other
    Leave { name: hanse_identity::ClusterName },
}

#[derive(Debug, Subcommand)]
pub enum ClusterTokenCommand {
    /// Make a token with which one cluster may join, once
    Create {
        /// The cluster that may join with it
        #[arg(long = "for")]
        for_cluster: hanse_identity::ClusterName,
        /// How long it is valid
        #[arg(long, default_value = "15m", value_parser = parse_duration)]
        ttl: Duration,
    },
}
