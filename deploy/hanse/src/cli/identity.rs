//! `hanse identity` as declared.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// List the SVIDs that live, those that end first first
    #[command(
        after_help = "NEXT RENEWAL is what the index tells: agents replace an SVID when 40 to 60 % of its life is over. Replaced: a newer\none of its identity has been given through the same agent; of several processes there, only the agent knows which.\n\nExamples:\n  hanse identity list --expiring 6h\n  hanse identity list --revoked -o json"
    )]
    List {
        /// Only those that end within this time, such as 30m, 6h
        #[arg(long, value_parser = parse_duration)]
        expiring: Option<Duration>,
        /// Only those that are revoked
        #[arg(long)]
        revoked: bool,
        /// At most this many
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        limit: u64,
    },
    /// Show what is in a certificate file, or what is known of the SVIDs of an identity, a proxy or an agent
    #[command(
        after_help = "What a control node knows of an SVID is its row in the issuance index; the chain itself is with the agent of its\nhost, and in no log. A workload that asks its own Workload API is shown the SVIDs that it is given. --pem prints\nthe certificates of a file or of those, and never a key.\n\nExamples:\n  hanse identity show ratings\n  hanse identity show spiffe://east.example/ns/shop/sa/ratings\n  hanse identity show svid.pem\n  hanse identity show unix:///run/hanse/agent.sock --pem\n  openssl s_client … | hanse identity show -"
    )]
    Show {
        /// A file of certificates in PEM, - for standard input, unix:///PATH of a SPIFFE Workload API, a SPIFFE ID or its
        /// last part, a serial number, or the name of a proxy, gateway or agent
        what: String,
        /// Print the chain of a file, or those that the Workload API gives, as PEM, leaf first, and nothing else
        #[arg(long)]
        pem: bool,
    },
    /// Ask the cluster whether it believes a chain: exit code 0 or 1
    #[command(after_help = "Example:\n  hanse identity verify svid.pem --at 2026-08-22T10:00:00Z")]
    Verify {
        /// Certificates in PEM, leaf first; - for standard input
        file: PathBuf,
        /// At another time than now (RFC 3339); bundles and revocations are those of now
        #[arg(long, value_parser = parse_time)]
        at: Option<hanse_identity::Timestamp>,
    },
}

/// RFC 3339, not before 1970.
fn parse_time(text: &str) -> Result<hanse_identity::Timestamp, String> {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::parse(text, format).map_err(|e| e.to_string())?;
    let seconds = u64::try_from(time.unix_timestamp()).map_err(|_| "before 1970".to_owned())?;
    Ok(hanse_identity::Timestamp::from_seconds(seconds))
}
