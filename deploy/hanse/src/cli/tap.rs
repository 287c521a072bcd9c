//! `hanse tap` as declared.

use std::time::Duration;

use clap::{Args, ValueEnum};
use hanse_federation::tap::{DEFAULT_RATE, MAX_RATE, Status};
use hanse_identity::ClusterName;

#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  hanse tap service/shop/reviews                     what is asked of it, and what its proxies ask\n  hanse tap service/shop/reviews --status 5xx        only what fails\n  hanse tap proxy/productpage-1 --to shop/reviews    one proxy's calls of a service\n  hanse tap --to shop/reviews --cross-cluster        every caller in this cluster, calls of other clusters\n  hanse tap service/shop/reviews --max 20 -o jsonl   the next twenty, one JSON object each\n\nIt ends with Ctrl-C, after --max requests or after --for. Proxies of the CLI's own cluster are looked at; those of a joined\ncluster tell their own control nodes only: ask there (--context). Bodies, cookies, credentials and (without --query) queries\nare never shown. It takes the role operator, and is in hanse audit list."
)]
pub struct TapCommand {
    /// service/NAMESPACE/NAME (or service/NAME in the namespace of -n), or proxy/NAME; without one every proxy, for --to
    #[arg(value_name = "TARGET", required_unless_present = "to")]
    pub target: Option<String>,
    /// The cluster that is meant; it has to be the one that is asked
    #[arg(long)]
    pub cluster: Option<ClusterName>,
    /// Requests to that service
    #[arg(long, value_name = "SERVICE")]
    pub to: Option<String>,
    /// Requests of that caller: a SPIFFE ID, or NAMESPACE/ACCOUNT
    #[arg(long, value_name = "CALLER", value_parser = caller)]
    pub from: Option<String>,
    /// Requests that come to the target, or that it makes
    #[arg(long, value_enum)]
    pub direction: Option<TapDirection>,
    /// Requests whose path begins so
    #[arg(long, value_name = "PATH")]
    pub path_prefix: Option<String>,
    /// Requests with that method
    #[arg(long)]
    pub method: Option<String>,
    /// Requests with that status: 503, 5xx, or 0 for those that got no answer
    #[arg(long)]
    pub status: Option<Status>,
    /// Only what the mesh answered in the app's place
    #[arg(long)]
    pub refused: bool,
    /// Only what one cluster asks of another
    #[arg(long)]
    pub cross_cluster: bool,
    /// Show queries too, which may hold secrets
    #[arg(long)]
    pub query: bool,
    /// Requests per second that each proxy tells of at most; how many were left out is told
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    pub rate: u32,
    /// End after so many requests
    #[arg(long, value_name = "N")]
    pub max: Option<u64>,
    /// End after that time, ten minutes at most
    #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = super::parse_duration)]
    pub time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TapDirection {
    Inbound,
    Outbound,
}

fn caller(text: &str) -> Result<String, String> {
    hanse_federation::tap::caller(text).map_err(|e| e.to_string())
}
