//! `hanse trust` as declared.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Federate with a foreign trust domain: fetch its bundle from its bundle endpoint, again and again
    #[command(
        after_help = "Examples:\n  hanse trust federate --trust-domain north.example --url https://bundles.north.example/ --profile https_web\n  hanse trust federate --trust-domain north.example --url https://10.0.9.1:8443/ --profile https_spiffe \\\n    --endpoint-spiffe-id spiffe://north.example/spire/server --bundle north.jwks\n\nNobody of that domain may call anything of the mesh because of it: workloads that are registered to federate with\nthe domain get its bundle, over the Workload API and SDS."
    )]
    Federate(TrustFederate),
    /// Replace this cluster's authorities, without a restart and without a failed request
    Rotate(TrustRotate),
    /// Which authorities are believed, and the bundles of foreign trust domains by hand
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Compare what every control node, agent, proxy and gateway has in force with this cluster's bundle
    Verify,
    /// Get an intermediate authority for a key of one's own, as a workload that issues SVIDs itself
    #[command(
        after_help = "A nested issuer's own command: it shows the SVID of the workload that runs it (--workload-api), and a registration of\nthat identity has to say --downstream on the agent that gave it. Of the request only the key is used. The certificate\nis that of an authority of the trust domain: it signs SVIDs of any workload, of no member of the mesh, and no other\nauthority. It lives as long as the registration's --ttl says; ask again, with the same key or another, when half of\nthat is over. It is in the issuance index, and revoked as an SVID is: hanse revoke --serial, --key, --identity, --agent\nor --node; then all that it has signed is refused and cut off.\n\nExamples:\n  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -subj / -out ca.csr\n  hanse trust downstream --csr ca.csr --workload-api unix:///run/hanse/agent.sock --control-node 10.0.0.1:7443\n  hanse trust downstream --csr ca.csr --bundle-out bundle.pem > ca.pem      # with HANSE_WORKLOAD_API and HANSE_CONTROL_NODES"
    )]
    Downstream(TrustDownstream),
    /// Foreign trust domains that are federated with
    #[command(subcommand)]
    Federation(FederationCommand),
}

#[derive(Debug, Args)]
pub struct TrustDownstream {
    /// A certificate request (PKCS#10) for an ECDSA P-256 key, PEM or DER; - is standard input
    #[arg(long, value_name = "FILE")]
    pub csr: PathBuf,
    /// Write the bundle there: what comes to standard output is then the chain alone
    #[arg(long, value_name = "FILE")]
    pub bundle_out: Option<PathBuf>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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

#[derive(Debug, Default, Args)]
#[command(
    after_help = "Five gates, each open only when the one before is true everywhere, measured on the data plane of this cluster and\nof every joined one:\n  prepare   every control node has made its next authority\n  spread    everybody believes the new ones beside the old ones; where a node has a bundle endpoint, foreign trust domains\n            get three minutes to fetch them\n  activate  the new ones sign; until no SVID in use is of an old one\n  drain     until no live connection was authenticated by an old one\n  retire    the old ones are taken out of the bundle\nWho does not answer keeps a gate shut, by name; no flag opens one.\n\nExamples:\n  hanse trust rotate --reissue-now     SVIDs are replaced at once\n  hanse trust rotate --no-wait         SVIDs are replaced as they would be anyway\n  hanse trust rotate --status\n  hanse trust rotate --abort"
)]
pub struct TrustRotate {
    /// Show what would be replaced, and change nothing
    #[arg(long, conflicts_with_all = ["status", "abort"])]
    pub plan: bool,
    /// Show the rotation that runs, or ran last, and what it waits for
    #[arg(long, conflicts_with = "abort")]
    pub status: bool,
    /// Take the rotation that runs back, until the old authorities have been taken out
    #[arg(long)]
    pub abort: bool,
    /// Replace SVIDs of the old authorities at once, not when they would be renewed anyway
    #[arg(long)]
    pub reissue_now: bool,
    /// Only the authority with this key (64 hex digits): see trust bundle show
    #[arg(long, value_name = "KEY")]
    pub authority: Option<hanse_identity::KeyId>,
    /// Do not wait until it is done, only until the new authorities sign: this command line has to know them
    #[arg(long)]
    pub no_wait: bool,
    /// Wait until it is done, or --timeout (this is the default). Where other trust domains fetch the bundle from an
    /// endpoint, they are given three minutes: --timeout 5m
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// The authorities that this cluster believes, its own and those of joined clusters
    #[command(
        after_help = "Examples:\n  hanse trust bundle show --cluster west\n  hanse trust bundle show --trust-domain north.example --format pem"
    )]
    Show {
        /// Only of this cluster
        #[arg(long, conflicts_with = "trust_domain")]
        cluster: Option<hanse_identity::ClusterName>,
        /// Only of this trust domain, which may be a foreign one
        #[arg(long)]
        trust_domain: Option<hanse_identity::TrustDomain>,
        /// As certificates, or as a SPIFFE bundle document
        #[arg(long, value_enum)]
        format: Option<BundleFormat>,
    },
    /// Set the bundle of a foreign trust domain by hand, or replace what has been fetched of it
    #[command(
        after_help = "For a trust domain that is no joined cluster's: of one without a bundle endpoint, or whose endpoint has lost the keys\nthat it is known by. The bundle is kept until it is set again, or a newer one is fetched. Like what is fetched it\nmakes nobody of that domain a caller: workloads that are registered to federate with the domain are given it.\n\nA bundle of a lower sequence than what is kept, or of the same with other keys, is refused unless that is said. PEM\nhas no sequence and no JWT authorities.\n\nExamples:\n  hanse trust bundle set --trust-domain north.example --file north.jwks\n  hanse trust bundle set --trust-domain north.example --file root.pem --dry-run\n  spire-server bundle show -format spiffe | hanse trust bundle set --trust-domain north.example --file -"
    )]
    Set(BundleSet),
    /// Delete the bundle of a foreign trust domain, and with it the relationship, if there is one
    #[command(
        after_help = "Workloads hear of it at once: the domain is taken out of what the Workload API and SDS send.\n\nExamples:\n  hanse trust bundle delete --trust-domain north.example\n  hanse trust bundle delete --trust-domain north.example --mode dissociate --yes"
    )]
    Delete {
        /// The foreign trust domain
        #[arg(long)]
        trust_domain: hanse_identity::TrustDomain,
        /// What becomes of registrations that federate with it
        #[arg(long, value_enum, default_value_t)]
        mode: RegistrationsMode,
    },
}

#[derive(Debug, Args)]
pub struct BundleSet {
    /// The foreign trust domain
    #[arg(long)]
    pub trust_domain: hanse_identity::TrustDomain,
    /// A SPIFFE bundle document, or certificates in PEM; - is standard input
    #[arg(short = 'f', long, value_name = "FILE")]
    pub file: PathBuf,
    /// Go back: it may have a lower sequence than what is kept, or the same and other keys
    #[arg(long)]
    pub allow_lower_sequence: bool,
    /// Say what would be kept, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The modes of `spire-server bundle delete`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RegistrationsMode {
    /// While there is one, nothing is deleted
    #[default]
    Restrict,
    /// They stay, and federate with it no more
    Dissociate,
    /// They are deleted
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BundleFormat {
    Pem,
    SpiffeJwks,
}
