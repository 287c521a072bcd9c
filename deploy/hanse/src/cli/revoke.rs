//! The verbs of `hanse revoke`, as declared.

use std::path::PathBuf;

use clap::Subcommand;

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
