//! The demo's command line as declared.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::parse_duration;

#[derive(Debug, Subcommand)]
pub enum DemoCommand {
    /// Start two clusters on this machine, join them, and send steady load
    #[command(
        after_help = "Examples:\n  hanse demo up                              until Ctrl-C\n  hanse demo up -d && eval \"$(hanse demo env)\"\n  hanse demo up --verify                     run the whole story, exit 0 or 1\n  hanse demo up --wan-latency 20ms --rps 100\n\nState lives in a private directory under the temporary directory and is removed at the end."
    )]
    Up(UpArgs),
    /// List every process of the demo
    Status(Which),
    /// Print exports, so that every other command works against the demo's clusters
    #[command(after_help = "Example:\n  eval \"$(hanse demo env)\"\n  hanse node list --context demo-east")]
    Env(Which),
    /// Print what a process has logged
    Logs {
        /// NAME, NAME@CLUSTER or ROLE/NAME@CLUSTER
        name: String,
        /// Only the last lines
        #[arg(long, default_value_t = 200)]
        tail: usize,
        #[command(flatten)]
        which: Which,
    },
    /// Break something: kill or pause processes, cut the wire between clusters
    #[command(subcommand)]
    Break(BreakCommand),
    /// Start what was killed, let go on what was paused, open the wire
    Heal {
        /// NAME, NAME@CLUSTER or ROLE/NAME@CLUSTER [default: everything]
        names: Vec<String>,
        #[command(flatten)]
        which: Which,
    },
    /// Show what documents do: canary, header steering, mirroring, faults, breakers, limits, JWT, each with the command
    /// and what changed
    #[command(
        after_help = "Without a demo that runs one is started for it, and ended after it. Exit code 0 if every document changed what it says,\nmeasured before and after, else 1."
    )]
    Tour(Which),
    /// End the demo: no process and no file is left
    Down(Which),
    /// One of the demo's apps
    #[command(hide = true)]
    App(super::app::Config),
    /// The relays between the clusters
    #[command(hide = true)]
    Wire(super::wire::Config),
    /// Somebody who has stolen a workload's identity
    #[command(hide = true)]
    Thief(super::thief::Config),
    /// An Envoy that ends with the demo
    #[command(hide = true)]
    Envoy(super::envoy::Launch),
    /// Keep a demo that was started with -d
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        dir: PathBuf,
        /// JSON of what to build
        #[arg(long)]
        spec: String,
    },
}

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Leave it running in the background
    #[arg(short = 'd', long)]
    pub detach: bool,
    /// Run the story, a line per step, and end; exit code 0 if every step holds, else 1
    #[arg(long, conflicts_with = "detach")]
    pub verify: bool,
    /// With --verify: allow every figure this many times its target (a debug build, a machine with other work)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub slack: u32,
    /// With --verify: the Envoy executable that is a workload of the story [default: the one of the Python virtual
    /// environment that HANSE_INTEROP_ENVOY_VENV names, or envoy in the path; without one the step is skipped]
    #[arg(long, requires = "verify", value_name = "PATH")]
    pub envoy: Option<PathBuf>,
    /// Control nodes per cluster: 1, 3 or 5
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Names of the clusters, 2 to 5
    #[arg(long, value_delimiter = ',', default_value = "east,west")]
    pub clusters: Vec<String>,
    /// Round trip that the wire between clusters adds
    #[arg(long, default_value = "0ms", value_parser = parse_duration)]
    pub wan_latency: Duration,
    /// Requests per second of the steady load, in each cluster
    #[arg(long, default_value_t = 20)]
    pub rps: u32,
    /// Lifetime of the SVIDs of proxies and gateways [default: the clusters' own, 1h]
    #[arg(long, value_parser = parse_duration)]
    pub svid_lifetime: Option<Duration>,
}

/// Which demo, where several run.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// The demo's directory [default: the only one that runs]
    #[arg(long, env = "HANSE_DEMO_DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum BreakCommand {
    /// kill -9
    #[command(
        after_help = "WHAT is one of\n  NAME, NAME@CLUSTER, ROLE/NAME@CLUSTER    one process\n  leader CLUSTER                           the control node that leads\n  service SERVICE@CLUSTER                  every instance, app and proxy\n  gateway CLUSTER                          every gateway\n  control CLUSTER                          every control node"
    )]
    Kill {
        #[arg(required = true, num_args = 1..=2)]
        what: Vec<String>,
        #[command(flatten)]
        which: Which,
    },
    /// SIGSTOP
    #[command(after_help = "WHAT is a process as in break kill, or: cluster CLUSTER (every process of it)")]
    Pause {
        #[arg(required = true, num_args = 1..=2)]
        what: Vec<String>,
        #[command(flatten)]
        which: Which,
    },
    /// Cut the wire between two clusters
    #[command(
        after_help = "The wire knows the target of a connection, not who dials: in a demo of more than two clusters, a\npartition of A and B cuts both of them from every other cluster too."
    )]
    Partition {
        a: String,
        b: String,
        /// Nothing passes and nobody is told (the default)
        #[arg(long, conflicts_with = "reset")]
        silent: bool,
        /// Connections are reset, the live ones and every new one
        #[arg(long)]
        reset: bool,
        #[command(flatten)]
        which: Which,
    },
}
