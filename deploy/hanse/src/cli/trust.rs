//! `hanse trust rotate` and `hanse trust bundle` as declared.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Default, Args)]
#[command(
    after_help = "Five gates, each open only when the one before is true everywhere, measured on the data plane of this cluster and\nof every joined one:\n  prepare   every control node has made its next authority\n  spread    everybody believes the new ones beside the old ones\n  activate  the new ones sign; until no SVID in use is of an old one\n  drain     until no live connection was authenticated by an old one\n  retire    the old ones are taken out of the bundle\nWho does not answer keeps a gate shut, by name; no flag opens one.\n\nExamples:\n  hanse trust rotate --reissue-now     SVIDs are replaced at once\n  hanse trust rotate --no-wait         SVIDs are replaced as they would be anyway\n  hanse trust rotate --status\n  hanse trust rotate --abort"
)]
pub struct TrustRotate {
    /// Show what would be replaced, and change nothing
    #[arg(long, conflicts_with_all = ["status", "abort"])]
    pub plan: bool,
    /// Show the rotation that runs, or ran last, and what it waits for
    #[arg(long, conflicts_with = "abort")]
    pub status: bool,
    /// Take the rotation that runs back, until the old authorities have been taken out
    #[arg(long)]
    pub abort: bool,
    /// Replace SVIDs of the old authorities at once, not when they would be renewed anyway
    #[arg(long)]
    pub reissue_now: bool,
    /// Only the authority with this key (64 hex digits): see trust bundle show
    #[arg(long, value_name = "KEY")]
    pub authority: Option<hanse_identity::KeyId>,
    /// Do not wait until it is done, only until the new authorities sign: this command line has to know them
    #[arg(long)]
    pub no_wait: bool,
    /// Wait until it is done, or --timeout (this is the default)
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// The authorities that this cluster believes, its own and those of joined clusters
    Show {
        /// Only of this cluster
        #[arg(long)]
        cluster: Option<hanse_identity::ClusterName>,
        /// As certificates, or as a SPIFFE bundle document
        #[arg(long, value_enum)]
        format: Option<BundleFormat>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BundleFormat {
    Pem,
    SpiffeJwks,
}
