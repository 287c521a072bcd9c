//! `hanse revoke` as declared.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  hanse revoke --identity spiffe://east.example/ns/shop/sa/ratings --hold\n  hanse revoke --serial 3f09a1… --reason key-compromise\n  hanse revoke --agent host-1 --reason key-compromise --close-connections 30s\n  hanse revoke --authority 9c41d0… --reason key-compromise\n  hanse revoke lift r-4231@east.example\n  hanse revoke show r-4231@east.example\n\nAgents that have what is revoked show it to proxies and gateways, here and in joined clusters: the receipt says who\nrefused it.\n\nThe exit code is 8 if the receipt is not complete in time, 9 if a cluster could not be asked, 1 if a revoked certificate\nwas believed somewhere that says it is in force."
)]
pub struct RevokeCommand {
    #[command(subcommand)]
    pub verb: Option<RevokeVerb>,
    #[command(flatten)]
    pub what: RevokeWhat,
}

#[derive(Debug, Default, Args)]
#[command(group(clap::ArgGroup::new("target").args(["serial", "cert", "identity", "key", "agent", "node", "authority", "trust_domain"])))]
pub struct RevokeWhat {
    /// Serial number of a certificate of this cluster's trust domain, in hex
    #[arg(long, value_name = "HEX")]
    pub serial: Option<String>,
    /// That certificate (PEM, leaf first), by its serial number
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// SPIFFE ID: every certificate it has, and none is issued any more
    #[arg(long, value_name = "SPIFFE-ID")]
    pub identity: Option<hanse_identity::SpiffeId>,
    /// Public key (SHA-256 of its SubjectPublicKeyInfo, 64 hex digits): every certificate over it, and any new one
    #[arg(long, value_name = "HEX")]
    pub key: Option<String>,
    /// A host's agent: its own identity, and all that was issued through it
    #[arg(long, value_name = "NAME")]
    pub agent: Option<hanse_identity::NodeName>,
    /// A control node: its own identity, and all that its authorities have signed
    #[arg(long, value_name = "NAME")]
    pub node: Option<hanse_identity::NodeName>,
    /// An authority of this cluster, by its key (64 hex digits): all below it is replaced, as by trust rotate, then it is
    /// dropped everywhere and never comes back. What it has signed is believed until then: revoke the --node to end that
    /// at once
    #[arg(long, value_name = "KEY")]
    pub authority: Option<hanse_identity::KeyId>,
    /// A joined cluster as a whole, by its trust domain: nothing of it is believed here
    #[arg(long = "cluster", value_name = "TRUST-DOMAIN")]
    pub trust_domain: Option<hanse_identity::TrustDomain>,
    /// For now: can be lifted again (not for a certificate)
    #[arg(long, conflicts_with_all = ["reason", "serial", "cert", "authority"])]
    pub hold: bool,
    /// Only what was issued until now is dead: new certificates are given (identities only)
    #[arg(long, requires = "identity")]
    pub reissue: bool,
    /// What becomes of live connections: now, never, or a time to finish in (of an authority: once all below it is
    /// replaced; never waits until there are none)
    #[arg(long, value_name = "now|30s|never", default_value = "now")]
    pub close_connections: String,
    /// unspecified, key-compromise, superseded, cessation
    #[arg(long, default_value = "unspecified")]
    pub reason: String,
    /// A sentence for those who read the list later
    #[arg(long, default_value = "")]
    pub note: String,
    /// Show what it would hit, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until it is enforced everywhere (of an authority: only until another one signs in its place)
    #[arg(long)]
    pub no_wait: bool,
    /// Wait until it is enforced everywhere, or --timeout (this is the default)
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum RevokeVerb {
    /// List revocations in force
    List,
    /// Show all that is known of a revocation: target, by whom, until when, who enforces it and who is behind
    #[command(
        after_help = "Examples:\n  hanse revoke show r-4231@east.example\n  hanse revoke show r-4231@east.example -o json"
    )]
    Show {
        /// r-NUMBER@TRUST-DOMAIN
        id: String,
    },
    /// Lift a hold
    Lift {
        /// r-NUMBER@TRUST-DOMAIN
        id: String,
    },
    /// Show who enforces a revocation and who is behind
    Status {
        /// r-NUMBER@TRUST-DOMAIN
        id: String,
    },
    /// Take revocations away, whatever they are: what they name is believed again
    #[command(
        after_help = "For a list that was made by mistake, or that has become too long. Holds are lifted with: hanse revoke lift\n\nExamples:\n  hanse revoke clear r-4231@east.example r-4240@east.example\n  hanse revoke clear --all\n  hanse revoke clear --all --include-compromised --yes"
    )]
    Clear {
        /// r-NUMBER@TRUST-DOMAIN (several may follow)
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// Every revocation that this cluster has ordered, but for those of compromised keys
        #[arg(long)]
        all: bool,
        /// Those of compromised keys too: whoever has such a key may use it again
        #[arg(long)]
        include_compromised: bool,
    },
    /// Write the published revocation lists, for software that is not of the mesh
    #[command(
        after_help = "There is one list for each authority, and a verifier needs all of them.\n\nExamples:\n  hanse revoke export --crl --out lists.pem\n  openssl verify -crl_check_all -CAfile bundle.pem -CRLfile lists.pem svid.pem\n  hanse revoke export --crl --encoding der --authority 3f09… --out list.der\n  hanse revoke export --crl -o json"
    )]
    Export {
        /// As certificate revocation lists (RFC 5280)
        #[arg(long, required = true)]
        crl: bool,
        /// pem: all lists one after another; der: one list
        #[arg(long, value_enum, default_value_t)]
        encoding: ListEncoding,
        /// Only the list of this authority: its key id, or the beginning of it
        #[arg(long, value_name = "HEX")]
        authority: Option<String>,
        /// Lists of a joined cluster's trust domain, as this cluster has been told them [default: the own]
        #[arg(long)]
        trust_domain: Option<hanse_identity::TrustDomain>,
        /// File to write [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// How a list is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ListEncoding {
    /// RFC 7468, `X509 CRL`
    #[default]
    Pem,
    /// The bytes that were signed
    Der,
}
