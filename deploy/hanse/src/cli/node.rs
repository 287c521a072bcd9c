//! `hanse node` as declared.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a control node's identity: its authority's key is born here and stays here
    #[command(
        after_help = "Example:\n  hanse node init --data-dir /var/lib/hanse --cluster east --trust-domain east.example \\\n    --name east-1 --raft-id 1 --advertise 10.0.1.11:7443\n\nUnder a root of your own:\n  hanse node init … --upstream-authority disk --upstream-cert root.pem --upstream-key root.key"
    )]
    Init(NodeInit),
    /// Make a credential for this command line, signed by this node's authority
    Credential(NodeCredential),
    /// Make a key to encrypt the private keys of nodes under: 32 random bytes in a new file, 0600
    #[command(
        after_help = "Example:\n  hanse node encryption-key --out /etc/hanse/keys.key\n  hanse node init … --key-encryption-file /etc/hanse/keys.key"
    )]
    EncryptionKey {
        /// File to write; it must not exist
        #[arg(long)]
        out: PathBuf,
    },
    /// Encrypt the private keys of a node that are still plain; the node must not be running
    #[command(
        after_help = "Example:\n  hanse node encrypt-keys --data-dir /var/lib/hanse --key-encryption-file /etc/hanse/keys.key"
    )]
    EncryptKeys {
        /// Data directory of the node
        #[arg(long)]
        data_dir: PathBuf,
        #[command(flatten)]
        keys: hanse_control::io::key_store::KeyFlags,
    },
    /// List the control nodes of the cluster
    List,
}

#[derive(Debug, Args)]
pub struct NodeInit {
    /// Directory for everything the node keeps; made with mode 0700
    #[arg(long)]
    pub data_dir: PathBuf,
    /// Name of the cluster
    #[arg(long)]
    pub cluster: hanse_identity::ClusterName,
    /// Trust domain of the cluster, such as east.example
    #[arg(long)]
    pub trust_domain: hanse_identity::TrustDomain,
    /// Name of the node, unique in its cluster
    #[arg(long)]
    pub name: hanse_identity::NodeName,
    /// Number of the node in its Raft group, unique in its cluster, from 1
    #[arg(long)]
    pub raft_id: u64,
    /// HOST:PORT where nodes, agents, proxies and administrators of this cluster reach it
    #[arg(long)]
    pub advertise: String,
    /// HOST:PORT where other clusters reach it [default: as --advertise]
    #[arg(long)]
    pub peer_advertise: Option<String>,
    /// Region of the node
    #[arg(long, default_value = "")]
    pub region: String,
    /// Zone of the node
    #[arg(long, default_value = "")]
    pub zone: String,
    /// Where the authority's certificate comes from [default: it signs its own]; disk: a root in two PEM files
    #[arg(long, value_enum, requires_all = ["upstream_cert", "upstream_key"])]
    pub upstream_authority: Option<UpstreamAuthority>,
    /// The root's certificate, PEM; this is what the cluster's bundle will hold
    #[arg(long, value_name = "FILE", requires = "upstream_authority")]
    pub upstream_cert: Option<PathBuf>,
    /// The root's private key, PEM, 0600; it signs once and is not kept
    #[arg(long, value_name = "FILE", requires = "upstream_authority")]
    pub upstream_key: Option<PathBuf>,
    #[command(flatten)]
    pub keys: hanse_control::io::key_store::KeyFlags,
}

/// What can stand above a node's authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UpstreamAuthority {
    /// A root of your own, in files
    Disk,
}

#[derive(Debug, Args)]
pub struct NodeCredential {
    /// Data directory of a node, made by node init
    #[arg(long)]
    pub data_dir: PathBuf,
    /// The cluster's nodes: a JSON array of what node init wrote to node.json
    #[arg(long)]
    pub initial_nodes: PathBuf,
    /// File to write, mode 0600
    #[arg(long)]
    pub out: PathBuf,
    /// Name in the credential's SPIFFE ID
    #[arg(long, default_value = "admin")]
    pub user: hanse_identity::NodeName,
    /// How long it is valid, at most 24h
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub ttl: Duration,
    #[command(flatten)]
    pub keys: hanse_control::io::key_store::KeyFlags,
}
