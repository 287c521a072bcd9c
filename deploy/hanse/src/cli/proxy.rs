//! `hanse proxy` as declared: the role and its verbs.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct ProxyCommand {
    #[command(subcommand)]
    pub verb: Option<ProxyVerb>,
    #[command(flatten)]
    pub config: Option<hanse_proxy::Config>,
}

#[derive(Debug, Subcommand)]
pub enum ProxyVerb {
    /// List proxies and gateways, and what they have applied
    List,
}
