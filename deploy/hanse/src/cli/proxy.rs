//! `hanse proxy` as declared: the role and its verbs.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use clap::{Args, Subcommand, ValueEnum};

use crate::capture::{Network, Ports};

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
    /// Turn this host's (or network namespace's) connections to the proxy, so that programs need know nothing of it
    #[command(subcommand)]
    Capture(CaptureCommand),
    /// What one proxy of this host has in force: listeners, policies, endpoints with their health, its certificate
    #[command(
        after_help = "Examples:\n  hanse proxy config 127.0.0.1:9902\n  hanse proxy config 127.0.0.1:9902 --type endpoints\n  hanse proxy config 127.0.0.1:9902 -o json\n\nThe address is the proxy's --admin, which is served on loopback only: ask on the proxy's host."
    )]
    Config {
        /// The proxy's admin endpoint, as in its --admin
        #[arg(value_name = "ADDRESS")]
        admin: SocketAddr,
        /// Which part
        #[arg(long = "type", value_enum, default_value_t)]
        part: ConfigPart,
    },
}

#[derive(Debug, Subcommand)]
pub enum CaptureCommand {
    /// Set the redirection, whole or not at all; again to change it. Needs CAP_NET_ADMIN, nft and ip
    Up(Box<CaptureUp>),
    /// Take it away again
    Down,
    /// What is set, and whether somebody has changed it since
    Show,
}

/// What `up` is to set.
#[derive(Debug, Args)]
pub struct CaptureUp {
    /// The user that the proxy runs as, by name or number: its own connections are spared
    #[arg(long, value_name = "USER", default_value = "hanse")]
    pub uid: String,
    /// A further user whose connections are spared, such as the agent's; repeatable
    #[arg(long = "exclude-uid", value_name = "USER")]
    pub exclude_uids: Vec<String>,
    /// The proxy's --capture-port, for connections that go out
    #[arg(long, value_name = "PORT")]
    pub capture_port: Option<NonZeroU16>,
    /// Which connections that go out are turned to the proxy
    #[arg(long, value_enum, default_value_t, requires = "capture_port")]
    pub outbound: OutboundScope,
    /// A destination port that is left alone: PORT or FIRST-LAST; repeatable
    #[arg(long = "exclude-port", value_name = "PORTS", requires = "capture_port")]
    pub exclude_ports: Vec<Ports>,
    /// A destination network that is left alone; repeatable
    #[arg(long = "exclude-cidr", value_name = "CIDR", requires = "capture_port")]
    pub exclude_networks: Vec<Network>,
    /// The proxy's --dns-port: what is asked of any name server on port 53 is asked of the proxy
    #[arg(long, value_name = "PORT")]
    pub dns_port: Option<NonZeroU16>,
    /// The port of the proxy's --inbound: who comes from another host for a port of --app-port gets there
    #[arg(long, value_name = "PORT", requires = "app_ports")]
    pub inbound_port: Option<NonZeroU16>,
    /// A port of the app that other hosts reach through the proxy only: PORT or FIRST-LAST; repeatable
    #[arg(long = "app-port", value_name = "PORTS", requires = "inbound_port")]
    pub app_ports: Vec<Ports>,
    /// Print what would be set, and set nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Which connections are captured on their way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutboundScope {
    /// All TCP but what is excluded and what stays on this host
    #[default]
    All,
    /// Those to virtual addresses
    Mesh,
}

/// `--type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ConfigPart {
    #[default]
    All,
    /// What it listens on, and for what
    Listeners,
    /// Policies that it knows
    Policy,
    /// Where requests would go, by what its workers know
    Endpoints,
    /// Its own certificate; never a private key
    Secrets,
}
