//! `hanse policy` as declared.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Apply every document of the files, all or nothing
    Apply {
        /// File or directory; - is standard input (repeatable)
        #[arg(short = 'f', long = "file", required = true)]
        files: Vec<PathBuf>,
        /// Validate and say what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Print policies, of a kind, or one
    Get {
        /// HTTPRoute, GRPCRoute, TCPRoute, TLSRoute, BackendPolicy, AccessPolicy, FaultInjection, RateLimit, RequestAuthentication,
        /// ExternalService, BackendTLSPolicy, MeshConfig, Gateway, PeerAuthentication or ReferenceGrant
        kind: Option<hanse_federation::policy::PolicyKind>,
        /// NAMESPACE/NAME, or NAME with -n
        name: Option<String>,
    },
    /// Delete policies
    Delete {
        /// HTTPRoute, GRPCRoute, TCPRoute, TLSRoute, BackendPolicy, AccessPolicy, FaultInjection, RateLimit, RequestAuthentication,
        /// ExternalService, BackendTLSPolicy, MeshConfig, Gateway, PeerAuthentication or ReferenceGrant
        kind: hanse_federation::policy::PolicyKind,
        /// NAMESPACE/NAME, or NAME with -n
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Say what is wrong with files, with line and fix; exit code 1 if anything is
    Validate {
        /// File or directory; - is standard input (repeatable)
        #[arg(short = 'f', long = "file", required = true)]
        files: Vec<PathBuf>,
        /// Read the files only: do not ask the cluster whether parents and backends exist
        #[arg(long)]
        offline: bool,
    },
}
