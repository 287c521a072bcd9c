//! The command line as declared: nouns, verbs, flags and their help, each noun in a module of its own. What was typed;
//! nothing is looked up here.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

mod agent;
mod audit;
mod cluster;
mod context;
mod identity;
mod node;
mod policy;
mod proxy;
mod revoke;
mod role;
mod service;
mod tap;
mod traffic;
mod trust;
mod workload;

pub use agent::{AgentCommand, AgentTokenCommand, AgentVerb, TrustCaCommand};
pub use audit::AuditCommand;
pub use cluster::{ClusterCommand, ClusterTokenCommand};
pub use context::ContextCommand;
pub use identity::IdentityCommand;
pub use node::{NodeCommand, NodeCredential, NodeInit, UpstreamAuthority};
pub use policy::PolicyCommand;
pub use proxy::{CaptureCommand, CaptureUp, ConfigPart, OutboundScope, ProxyCommand, ProxyVerb};
pub use revoke::{ListEncoding, RevokeCommand, RevokeVerb, RevokeWhat};
pub use role::RoleCommand;
pub use service::ServiceCommand;
pub use tap::{TapCommand, TapDirection};
pub use traffic::{EdgesCommand, StatCommand, TopCommand, TopSort};
pub use trust::{
    BundleCommand, BundleFormat, BundleSet, EndpointProfile, FederationCommand, RegistrationsMode,
    TrustCommand, TrustDownstream, TrustFederate, TrustRotate,
};
pub use workload::WorkloadCommand;

/// Multi-cluster service mesh with SPIFFE identity.
#[derive(Debug, Parser)]
#[command(
    name = "hanse",
    version,
    about,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "First steps:\n  hanse demo up                       two clusters on this machine, joined, under load\n  eval \"$(hanse demo env)\"            contexts demo-east and demo-west for every other command\n  hanse cluster list --context demo-east\n\nExit codes: hanse help exit-codes"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// How to print the answer
    #[arg(short = 'o', long, global = true, value_enum, default_value_t)]
    pub output: Format,
    /// Which cluster to talk to: a name from the configuration file (see hanse context list)
    #[arg(long, global = true, env = "HANSE_CONTEXT")]
    pub context: Option<String>,
    /// Ask as the workload that this command line runs as, with its SVID from this SPIFFE Workload API, such as
    /// unix:///run/hanse/agent.sock, and no credential file: it needs a registration with --admin, and roles (or with
    /// --downstream, for trust downstream)
    #[arg(long, global = true, env = "HANSE_WORKLOAD_API", value_name = "URI", requires = "control_node")]
    pub workload_api: Option<hanse_agent::client::WorkloadApi>,
    /// HOST:PORT of a control node, for --workload-api (repeatable)
    #[arg(long, global = true, env = "HANSE_CONTROL_NODES", value_name = "HOST:PORT", value_delimiter = ',')]
    pub control_node: Vec<String>,
    /// How long to wait for an answer, or for what is waited for, such as 500ms, 30s, 2m
    #[arg(long, global = true, default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Do not ask for confirmation
    #[arg(short = 'y', long, global = true)]
    pub yes: bool,
    /// Never prompt: where confirmation would be asked for, fail
    #[arg(long, global = true)]
    pub no_input: bool,
    /// Say nothing on stderr but errors
    #[arg(short = 'q', long, global = true)]
    pub quiet: bool,
    /// Log more (repeatable); roles log by RUST_LOG
    #[arg(short = 'v', long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Namespace of services and policies that are named without one
    #[arg(short = 'n', long, global = true, default_value = "default", env = "HANSE_NAMESPACE")]
    pub namespace: String,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Two clusters on this machine: start, look, break, heal, verify
    #[command(subcommand)]
    Demo(Box<crate::demo::cli::DemoCommand>),
    /// Members of one cluster's control plane
    #[command(subcommand)]
    Node(NodeCommand),
    /// Clusters that trust one another: tokens, joining, checking, leaving
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Services: where they run and to whom they are exported
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Requests, success and latency of each service in the last minute
    Stat(StatCommand),
    /// Who calls whom, with which identities
    Edges(EdgesCommand),
    /// The busiest services, drawn anew
    Top(TopCommand),
    /// Live requests of a service or a proxy, one line each when it is over
    Tap(TapCommand),
    /// Routes and backend policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Cut off an identity or a certificate, everywhere, and prove it
    Revoke(RevokeCommand),
    /// SVIDs: which live, what is in one, whether it is believed
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Which executables get which identity
    #[command(subcommand)]
    Workload(WorkloadCommand),
    /// Trust: authorities and their rotation, bundles, foreign trust domains
    #[command(subcommand)]
    Trust(TrustCommand),
    /// Who did what, when, as whom, and what came of it
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Who may ask what of the control nodes
    #[command(subcommand)]
    Role(RoleCommand),
    /// Clusters that this command line can talk to
    #[command(subcommand)]
    Context(ContextCommand),
    /// Run a control node
    Control(Box<hanse_control::run::Config>),
    /// Run a host's agent, or manage agents
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Agent(Box<AgentCommand>),
    /// Run a sidecar proxy, or list proxies
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Proxy(Box<ProxyCommand>),
    /// Run an east-west gateway
    Gateway(Box<hanse_gateway::Config>),
    /// Print the version
    Version,
    /// Print help on a topic: exit-codes
    Help {
        /// A command, or exit-codes
        topic: Vec<String>,
    },
}

/// `500ms`, `30s`, `15m`, `24h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is not a time such as 500ms, 30s, 15m or 24h");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(wrong);
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declaration_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("30").is_err());
        assert!(parse_duration("s").is_err());
        assert!(parse_duration("99999999999999999999h").is_err());
    }

    #[test]
    fn nouns_that_are_roles_too_have_their_verbs() {
        let verbs = |line: &[&str]| Cli::try_parse_from(line).map(|cli| cli.command);
        assert!(matches!(verbs(&["hanse", "agent", "list"]), Ok(Command::Agent(a)) if a.verb.is_some()));
        assert!(matches!(verbs(&["hanse", "proxy", "list"]), Ok(Command::Proxy(p)) if p.verb.is_some()));
        assert!(verbs(&["hanse", "agent", "token", "create", "host-1"]).is_ok());
        let proxy =
            "hanse proxy --name p --socket s --control 127.0.0.1:1 --admin 127.0.0.1:0 --on-stale deny-new";
        let proxy: Vec<&str> = proxy.split(' ').collect();
        assert!(matches!(verbs(&proxy), Ok(Command::Proxy(p)) if p.config.is_some()));
        assert!(
            verbs(&["hanse", "agent"]).is_err()
                || matches!(verbs(&["hanse", "agent"]), Ok(Command::Agent(a)) if a.config.is_none())
        );
    }

    #[test]
    fn a_revocation_is_of_one_thing_for_one_reason() {
        let parses = |line: &[&str]| Cli::try_parse_from(line).is_ok();
        assert!(parses(&["hanse", "revoke", "--identity", "spiffe://e/a", "--hold"]));
        assert!(parses(&["hanse", "revoke", "list"]));
        assert!(parses(&["hanse", "revoke", "lift", "r-1@e"]));
        assert!(!parses(&["hanse", "revoke", "--identity", "spiffe://e/a", "--serial", "01"]));
        assert!(!parses(&["hanse", "revoke", "--serial", "01", "--hold"]));
    }
}
