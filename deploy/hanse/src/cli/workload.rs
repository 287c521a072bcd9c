//! `hanse workload` as declared.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::parse_duration;

#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Give an identity to whatever matches all selectors on an agent's host
    #[command(
        after_help = "Examples:\n  hanse workload register spiffe://east.example/ns/shop/sa/ratings --agent host-1 --agent host-2 \\\n    --selector unix:uid:1000 --selector unix:path:/usr/bin/hanse --service shop/ratings\n  hanse workload register spiffe://east.example/ns/ops/sa/backup --agent '*' \\\n    --selector systemd:unit:backup.service --selector unix:user:backup --ttl 10m --expires-in 24h\n  hanse workload register spiffe://east.example/ns/shop/sa/legacy --agent host-1 \\\n    --selector unix:path:/usr/local/bin/envoy --service shop/legacy --address 10.0.1.7:8443\n  hanse workload register spiffe://east.example/ns/edge/sa/issuer --agent edge-1 \\\n    --selector systemd:unit:nested-ca.service --selector unix:user:ca --ttl 12h --downstream"
    )]
    Register {
        /// SPIFFE ID to give
        id: hanse_identity::SpiffeId,
        /// Agent on whose host it runs (repeatable); '*' is every agent, those that join later too
        #[arg(long = "agent", required_unless_present = "parents")]
        agents: Vec<hanse_identity::AgentScope>,
        /// The same by the agent's SPIFFE ID, spiffe://TRUST-DOMAIN/hanse/agent/NAME (repeatable)
        #[arg(long = "parent", value_name = "SPIFFE-ID")]
        parents: Vec<hanse_identity::SpiffeId>,
        /// unix:uid:N, unix:gid:N, unix:supplementary-gid:N, unix:user:NAME, unix:group:NAME,
        /// unix:supplementary-group:NAME, unix:path:/ABSOLUTE, unix:sha256:HEX, systemd:unit:NAME.service
        /// (repeatable; all must hold)
        #[arg(long = "selector", required = true)]
        selectors: Vec<hanse_identity::Selector>,
        /// Service whose endpoints its proxy may announce, NAMESPACE/NAME (repeatable)
        #[arg(long = "service")]
        services: Vec<hanse_identity::ServiceName>,
        /// Lifetime of its certificates, 10s to 24h [default: the cluster's]
        #[arg(long, value_parser = parse_duration)]
        ttl: Option<Duration>,
        /// Trust domain of no joined cluster whose bundle it is given too (repeatable)
        #[arg(long)]
        federates_with: Vec<hanse_identity::TrustDomain>,
        /// How a workload with several identities tells them apart
        #[arg(long, default_value = "")]
        hint: String,
        /// How long the registration holds [default: until it is deleted]
        #[arg(long, value_parser = parse_duration)]
        expires_in: Option<Duration>,
        /// IP:PORT where it serves its services, if it speaks SPIFFE mutual TLS itself and has no Hanse proxy
        #[arg(long, requires = "services")]
        address: Option<std::net::SocketAddr>,
        /// Let its certificates be an administrator's credential, with the roles of hanse role bind and no others
        #[arg(long)]
        admin: bool,
        /// Let it be a nested issuer: have an intermediate authority for a key of its own (hanse trust downstream), by which
        /// it issues SVIDs of any workload of the trust domain itself. What it was given lives to its end (--ttl), or until
        /// it is revoked
        #[arg(long)]
        downstream: bool,
    },
    /// Make what the files say, all of it or nothing; what is there already stays
    #[command(
        after_help = "A document, or several with --- between them (YAML or JSON):\n  apiVersion: hanse.dev/v1alpha1\n  kind: Workload\n  spec:\n    id: spiffe://east.example/ns/shop/sa/ratings\n    agents: [host-1, host-2]          # or ['*'], every agent\n    selectors: [unix:uid:1000, unix:path:/usr/bin/hanse]\n    services: [shop/ratings]          # from here on each is optional\n    ttl: 10m\n    address: 10.0.1.7:8443\n    federatesWith: [north.example]\n    hint: internal\n    expires: 2027-01-31T12:00:00Z\n    admin: true                       # with the roles that hanse role bind gives it\n    downstream: true                  # a nested issuer: hanse trust downstream\n  agents can be named by their SPIFFE IDs too: parents: [spiffe://east.example/hanse/agent/host-1]\n\nAn unknown field is an error, with file, line and what may have been meant.\n\nExamples:\n  hanse workload apply -f workloads.yaml --dry-run\n  hanse workload show spiffe://east.example/ns/shop/sa/ratings -o yaml | hanse workload apply -f -\n  hanse --context old workload list -o json | hanse --context new workload apply -f -"
    )]
    Apply {
        /// File or directory; - is standard input (repeatable)
        #[arg(short = 'f', long = "file", required = true)]
        files: Vec<PathBuf>,
        /// Say what is wrong and what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// List registrations
    #[command(after_help = "Examples:\n  hanse workload list\n  hanse workload list --agent host-1 -o wide")]
    List {
        /// Only those that hold on this agent's host, the entries for every agent among them
        #[arg(long)]
        agent: Option<hanse_identity::NodeName>,
    },
    /// Show every registration of an identity; as YAML or JSON it can be applied again
    #[command(
        after_help = "Example:\n  hanse workload show spiffe://east.example/ns/shop/sa/ratings -o yaml"
    )]
    Show {
        /// SPIFFE ID
        id: hanse_identity::SpiffeId,
    },
    /// Delete a registration
    #[command(
        after_help = "Example:\n  hanse workload delete spiffe://east.example/ns/shop/sa/ratings --agent host-1"
    )]
    Delete {
        /// SPIFFE ID
        id: hanse_identity::SpiffeId,
        /// Agent that the registration names, or '*'
        #[arg(long)]
        agent: hanse_identity::AgentScope,
    },
}
