//! `hanse stat`, `hanse edges` and `hanse top` as declared.

use std::time::Duration;

use clap::{Args, ValueEnum};

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  hanse stat                        every service, as its callers saw it\n  hanse stat shop/reviews -o json\n  hanse stat --by-target            as the services' own proxies saw it"
)]
pub struct StatCommand {
    /// One service: NAMESPACE/NAME, or NAME in the namespace of -n
    pub service: Option<String>,
    /// As the proxies of the services saw it, calls from other clusters among it; else as proxies of callers did
    #[arg(long)]
    pub by_target: bool,
}

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  hanse edges                       who calls whom\n  hanse edges shop/reviews -o wide  with the whole identities"
)]
pub struct EdgesCommand {
    /// Calls to one service: NAMESPACE/NAME, or NAME in the namespace of -n
    pub service: Option<String>,
}

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  hanse top                         drawn anew every two seconds, until Ctrl-C\n  hanse top --sort failures\n  hanse top --once -o json"
)]
pub struct TopCommand {
    /// Print once, which is also what happens where nobody looks at a terminal
    #[arg(long)]
    pub once: bool,
    /// How often it is drawn anew
    #[arg(long, default_value = "2s", value_parser = super::parse_duration)]
    pub every: Duration,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    pub sort: TopSort,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopSort {
    /// Most requests
    #[default]
    Rps,
    /// Most failures
    Failures,
    /// Slowest
    P99,
}
