//! The command line as declared: nouns, verbs, flags and their help. What was typed; nothing is looked up here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;

mod revoke;
mod trust;

pub use revoke::{ListEncoding, RevokeVerb};
pub use trust::{BundleCommand, BundleFormat, TrustRotate};

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
    /// Trust: foreign trust domains
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

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Join tokens for other clusters
    #[command(subcommand)]
    Token(ClusterTokenCommand),
    /// Join the cluster that made the token; both sides commit, or neither
    #[command(
        after_help = "Example:\n  hanse cluster token create --for west --context east | hanse cluster join --token-file - --context west"
    )]
    Join {
        /// File with the token; - is standard input
        #[arg(long)]
        token_file: PathBuf,
        /// Check everything, commit nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// List joined clusters
    List,
    /// Check the joined clusters, or one
    Check {
        /// Which one [default: all]
        name: Option<hanse_identity::ClusterName>,
    },
    /// Leave a joined cluster: both forget each other
    Leave { name: hanse_identity::ClusterName },
}

#[derive(Debug, Subcommand)]
pub enum ClusterTokenCommand {
    /// Make a token with which one cluster may join, once
    Create {
        /// The cluster that may join with it
        #[arg(long = "for")]
        for_cluster: hanse_identity::ClusterName,
        /// How long it is valid
        #[arg(long, default_value = "15m", value_parser = parse_duration)]
        ttl: Duration,
    },
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services, of this cluster and imported
    List,
    /// Show the failover ladder of a service
    Endpoints {
        /// NAMESPACE/NAME, or NAME with -n
        name: String,
        /// REGION/ZONE of the caller
        #[arg(long, default_value = "")]
        from: String,
    },
    /// Offer a service to joined clusters
    Export {
        /// NAMESPACE/NAME, or NAME with -n
        name: String,
        /// Only to these clusters [default: all]
        #[arg(long, value_delimiter = ',')]
        to: Vec<hanse_identity::ClusterName>,
    },
    /// Offer it no longer
    Unexport {
        /// NAMESPACE/NAME, or NAME with -n
        name: String,
    },
}

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
        /// HTTPRoute or BackendPolicy
        kind: Option<hanse_federation::policy::PolicyKind>,
        /// NAMESPACE/NAME, or NAME with -n
        name: Option<String>,
    },
    /// Delete policies
    Delete {
        /// HTTPRoute or BackendPolicy
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

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  hanse revoke --identity spiffe://east.example/ns/shop/sa/ratings --hold\n  hanse revoke --serial 3f09a1… --reason key-compromise\n  hanse revoke --agent host-1 --reason key-compromise --close-connections 30s\n  hanse revoke lift r-4231@east.example\n  hanse revoke show r-4231@east.example\n\nThe exit code is 8 if the receipt is not complete in time, 9 if a cluster could not be asked."
)]
pub struct RevokeCommand {
    #[command(subcommand)]
    pub verb: Option<RevokeVerb>,
    #[command(flatten)]
    pub what: RevokeWhat,
}

#[derive(Debug, Default, Args)]
#[command(group(clap::ArgGroup::new("target").args(["serial", "cert", "identity", "key", "agent", "node", "trust_domain"])))]
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
    /// A joined cluster as a whole, by its trust domain: nothing of it is believed here
    #[arg(long = "cluster", value_name = "TRUST-DOMAIN")]
    pub trust_domain: Option<hanse_identity::TrustDomain>,
    /// For now: can be lifted again (not for a certificate)
    #[arg(long, conflicts_with_all = ["reason", "serial", "cert"])]
    pub hold: bool,
    /// Only what was issued until now is dead: new certificates are given (identities only)
    #[arg(long, requires = "identity")]
    pub reissue: bool,
    /// What becomes of live connections: now, never, or a time to finish in
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
    /// Do not wait until it is enforced everywhere
    #[arg(long)]
    pub no_wait: bool,
    /// Wait until it is enforced everywhere, or --timeout (this is the default)
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Give an identity to whatever matches all selectors on an agent's host
    #[command(
        after_help = "Examples:\n  hanse workload register spiffe://east.example/ns/shop/sa/ratings --agent host-1 --agent host-2 \\\n    --selector unix:uid:1000 --selector unix:path:/usr/bin/hanse --service shop/ratings\n  hanse workload register spiffe://east.example/ns/ops/sa/backup --agent '*' \\\n    --selector systemd:unit:backup.service --selector unix:user:backup --ttl 10m --expires-in 24h\n  hanse workload register spiffe://east.example/ns/shop/sa/legacy --agent host-1 \\\n    --selector unix:path:/usr/local/bin/envoy --service shop/legacy --address 10.0.1.7:8443"
    )]
    Register {
        /// SPIFFE ID to give
        id: hanse_identity::SpiffeId,
        /// Agent on whose host it runs (repeatable); '*' is every agent, those that join later too
        #[arg(long = "agent", required = true)]
        agents: Vec<hanse_identity::AgentScope>,
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
    },
    /// Make what the files say, all of it or nothing; what is there already stays
    #[command(
        after_help = "A document, or several with --- between them (YAML or JSON):\n  apiVersion: hanse.dev/v1alpha1\n  kind: Workload\n  spec:\n    id: spiffe://east.example/ns/shop/sa/ratings\n    agents: [host-1, host-2]          # or ['*'], every agent\n    selectors: [unix:uid:1000, unix:path:/usr/bin/hanse]\n    services: [shop/ratings]          # from here on each is optional\n    ttl: 10m\n    address: 10.0.1.7:8443\n    federatesWith: [north.example]\n    hint: internal\n    expires: 2027-01-31T12:00:00Z\n\nAn unknown field is an error, with file, line and what may have been meant.\n\nExamples:\n  hanse workload apply -f workloads.yaml --dry-run\n  hanse workload show spiffe://east.example/ns/shop/sa/ratings -o yaml | hanse workload apply -f -"
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
    /// Show every registration of an identity; as YAML it can be applied again
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

#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Federate with a foreign trust domain: fetch its bundle from its bundle endpoint, again and again
    #[command(
        after_help = "Examples:\n  hanse trust federate --trust-domain north.example --url https://bundles.north.example/ --profile https_web\n  hanse trust federate --trust-domain north.example --url https://10.0.9.1:8443/ --profile https_spiffe \\\n    --endpoint-spiffe-id spiffe://north.example/spire/server --bundle north.jwks\n\nNobody of that domain may call anything of the mesh because of it: workloads that are registered to federate with\nthe domain get its bundle, over the Workload API and SDS."
    )]
    Federate(TrustFederate),
    /// Replace this cluster's authorities, without a restart and without a failed request
    Rotate(TrustRotate),
    /// Which authorities are believed
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Compare what every control node, agent, proxy and gateway has in force with this cluster's bundle
    Verify,
    /// Foreign trust domains that are federated with
    #[command(subcommand)]
    Federation(FederationCommand),
}

#[derive(Debug, Args)]
pub struct TrustFederate {
    /// The foreign trust domain
    #[arg(long)]
    pub trust_domain: hanse_identity::TrustDomain,
    /// URL of its bundle endpoint, https://…
    #[arg(long)]
    pub url: hanse_federation::stranger::EndpointUrl,
    /// How the endpoint is authenticated
    #[arg(long, value_enum)]
    pub profile: EndpointProfile,
    /// For https_spiffe: SPIFFE ID of the endpoint
    #[arg(long)]
    pub endpoint_spiffe_id: Option<hanse_identity::SpiffeId>,
    /// The domain's bundle as a SPIFFE bundle document; - is standard input. https_spiffe needs it for the first fetch
    #[arg(long)]
    pub bundle: Option<PathBuf>,
    /// For https_web: PEM file with roots to believe in place of the system's
    #[arg(long)]
    pub web_roots: Option<PathBuf>,
}

/// SPIFFE Federation §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EndpointProfile {
    /// A certificate of the web, for the host of the URL
    #[value(name = "https_web")]
    HttpsWeb,
    /// An X509-SVID of the given SPIFFE ID
    #[value(name = "https_spiffe")]
    HttpsSpiffe,
}

#[derive(Debug, Subcommand)]
pub enum FederationCommand {
    /// List foreign trust domains, and how old what is kept of them is
    List,
    /// Show one, with its keys
    Show { trust_domain: hanse_identity::TrustDomain },
    /// Fetch its bundle now
    #[command(after_help = "Example:\n  hanse trust federation refresh north.example")]
    Refresh { trust_domain: hanse_identity::TrustDomain },
    /// End it: its bundle is deleted everywhere and fetched no more
    #[command(after_help = "Example:\n  hanse trust federation delete north.example --yes")]
    Delete { trust_domain: hanse_identity::TrustDomain },
}

#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// List the SVIDs that live, those that end first first
    #[command(
        after_help = "Examples:\n  hanse identity list --expiring 6h\n  hanse identity list --revoked -o json"
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
        after_help = "Examples:\n  hanse identity show ratings\n  hanse identity show spiffe://east.example/ns/shop/sa/ratings\n  hanse identity show svid.pem\n  openssl s_client … | hanse identity show -"
    )]
    Show {
        /// A file of certificates in PEM, - for standard input, a SPIFFE ID or its last part, a serial number, or the
        /// name of a proxy, gateway or agent
        what: String,
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

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List what was asked of the cluster, newest first: what was done, what was so already, what was refused
    #[command(
        after_help = "Examples:\n  hanse audit list --since 24h --kind revoke\n  hanse audit list --actor admin/ann -o json"
    )]
    List {
        /// Only what is not older than this, such as 30m, 24h
        #[arg(long, value_parser = parse_duration)]
        since: Option<Duration>,
        /// Only what this actor asked: a SPIFFE ID or a part of one
        #[arg(long)]
        actor: Option<String>,
        /// Only this kind, such as revoke, workload-register, or the beginning of one: workload
        #[arg(long)]
        kind: Option<String>,
        /// At most this many rows
        #[arg(long, default_value_t = 50, value_parser = rows)]
        limit: usize,
    },
}

/// At least one, and no more than the trail can have.
fn rows(text: &str) -> Result<usize, String> {
    const MOST: usize = 12_000;
    let rows = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (1..=MOST).contains(&rows) { Ok(rows) } else { Err(format!("between 1 and {MOST} rows can be shown")) }
}

#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Give an identity roles; an administrator that is named for the first time then has these and no others
    #[command(
        after_help = "Roles:\n  viewer            lists, shows, checks (whoever has another role may read too)\n  operator          services, policies, workloads, agents\n  ca-admin          revocations, trust, roles\n  federation-admin  other clusters, foreign trust domains\n\nExamples:\n  hanse role bind spiffe://east.example/hanse/admin/ann operator federation-admin\n  hanse role bind spiffe://east.example/ns/ops/sa/deployer operator"
    )]
    Bind {
        /// SPIFFE ID of an administrator or a workload of this cluster
        id: hanse_identity::SpiffeId,
        /// viewer, operator, ca-admin, federation-admin
        #[arg(required = true)]
        roles: Vec<hanse_control::role::Role>,
    },
    /// Take roles away; an administrator that was never named keeps every other
    #[command(after_help = "Example:\n  hanse role unbind spiffe://east.example/hanse/admin/ann ca-admin")]
    Unbind {
        /// SPIFFE ID
        id: hanse_identity::SpiffeId,
        /// viewer, operator, ca-admin, federation-admin
        #[arg(required = true)]
        roles: Vec<hanse_control::role::Role>,
    },
    /// List who was given which roles
    List,
}

#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List contexts
    List,
}

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
