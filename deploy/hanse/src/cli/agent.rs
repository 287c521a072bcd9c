//! `hanse agent` as declared: the role and its verbs.

use std::path::PathBuf;
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
    /// Which authorities of a PKI of your own may vouch for hosts, in place of join tokens
    #[command(subcommand)]
    TrustCa(TrustCaCommand),
    /// List the hosts' agents
    List,
    /// Show one agent: its certificate, where it is connected, what it serves
    #[command(after_help = "Example:\n  hanse agent show host-1")]
    Show {
        /// Name of the agent
        name: hanse_identity::NodeName,
    },
    /// Put an agent out: its certificate is revoked; with a new join token, or allowed, it may come back
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
    /// Let an agent that was put out, or whose host was made anew, join once more by its host's certificate
    #[command(
        after_help = "For agents that join by a certificate of a PKI of your own: what was put out comes back by no certificate until this\nis said. A join token lets it in too: hanse agent token create.\n\nExample:\n  hanse agent evict web-1 --note 'reinstalled'\n  hanse agent allow web-1"
    )]
    Allow {
        /// Name of the agent
        name: hanse_identity::NodeName,
        /// For how long it may come
        #[arg(long, default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
    },
    /// Let a banned agent join again, with a new join token or allowed; what it had before stays dead
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

#[derive(Debug, Subcommand)]
pub enum TrustCaCommand {
    /// Let these authorities vouch for hosts, in place of those that could before
    #[command(
        after_help = "An agent is named after the fingerprint of its host's certificate (x509pop-…), or with --dns-domain after the one label\nthat the certificate's DNS name has below that domain. Whoever these authorities give such a certificate joins as that\nagent: name the one that signs for hosts alone, rather than the root above it.\n\nExample:\n  hanse agent trust-ca set hosts-ca.pem --dns-domain corp.example\n  hanse trust bundle show --cluster east --format pem > east.pem\n  # on web-1.corp.example:\n  hanse agent --name web-1 --data-dir … --socket … --control 10.0.0.1:7000 --trust-domain east.example \\\n    --trust-bundle east.pem --x509pop-cert /etc/pki/host.pem --x509pop-key /etc/pki/host.key"
    )]
    Set {
        /// PEM file with their certificates; - is standard input
        file: PathBuf,
        /// Name agents after the DNS names of their hosts, which are one label below this domain
        #[arg(long, value_name = "DOMAIN")]
        dns_domain: Option<String>,
    },
    /// Show which authorities may vouch for hosts
    Show,
    /// Let no certificate attest a host any more; agents that have joined stay
    #[command(after_help = "Example:\n  hanse agent trust-ca delete --yes")]
    Delete,
}
