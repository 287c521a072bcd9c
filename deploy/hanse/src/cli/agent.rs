//! `hanse agent` as declared: the role and its verbs.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;

#[derive(Debug, Args)]
pub struct AgentCommand {
    #[command(subcommand)]
    pub verb: Option<AgentVerb>,
    #[command(flatten)]
    pub config: Option<hanse_agent::Config>,
}

#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// Join tokens for hosts
    #[command(subcommand)]
    Token(AgentTokenCommand),
    /// List the hosts' agents
    List,
    /// Show one agent: its certificate, where it is connected, what it serves
    #[command(after_help = "Example:\n  hanse agent show host-1")]
    Show {
        /// Name of the agent
        name: hanse_identity::NodeName,
    },
    /// Put an agent out: its certificate is revoked; with a new join token it may come back
    #[command(
        after_help = "What its workloads hold stays valid; nothing new is given through it until it has joined anew.\n\nExample:\n  hanse agent evict host-1 --note 'reinstalled'\n  hanse agent token create host-1"
    )]
    Evict {
        /// Name of the agent
        name: hanse_identity::NodeName,
        /// A sentence for those who read the list later
        #[arg(long, default_value = "")]
        note: String,
        /// Do not wait until it is enforced everywhere
        #[arg(long)]
        no_wait: bool,
    },
    /// Refuse an agent's name, its certificate and all that was issued through it, until unban
    #[command(
        after_help = "This is hanse revoke --agent: the same receipt, the same exit codes.\n\nExample:\n  hanse agent ban host-1 --reason key-compromise --note 'found on a foreign network'"
    )]
    Ban {
        /// Name of the agent
        name: hanse_identity::NodeName,
        /// unspecified, key-compromise, superseded, cessation
        #[arg(long, default_value = "unspecified")]
        reason: String,
        /// A sentence for those who read the list later
        #[arg(long, default_value = "")]
        note: String,
        /// Show what it would hit, and stop
        #[arg(long)]
        dry_run: bool,
        /// Do not wait until it is enforced everywhere
        #[arg(long)]
        no_wait: bool,
    },
    /// Let a banned agent join again, with a new join token; what it had before stays dead
    #[command(after_help = "Example:\n  hanse agent unban host-1\n  hanse agent token create host-1")]
    Unban {
        /// Name of the agent
        name: hanse_identity::NodeName,
    },
}

#[derive(Debug, Subcommand)]
pub enum AgentTokenCommand {
    /// Make a token with which one host's agent may join, once
    Create {
        /// Name of the agent that may join with it
        name: hanse_identity::NodeName,
        /// How long it is valid
        #[arg(long, default_value = "10m", value_parser = parse_duration)]
        ttl: Duration,
    },
}
