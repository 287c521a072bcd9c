//! hanse-agent: the agent of a host.
//!
//! Proves the host to the control nodes once (by a join token, or a certificate of the host's own), then keeps its own SVID; attests local processes
//! through the kernel, makes their keys, has their SVIDs signed, and hands them out over Envoy's SDS and the
//! SPIFFE Workload API on one Unix socket. Workload keys are in this process's memory only.
//!
//! Pure: `secrets`, `subscription`. `attest` reads `/proc`. Everything that waits is below `io`.

pub mod attest;
pub mod client;
#[cfg(test)]
mod fixture;
pub mod io;
pub mod secrets;
pub mod subscription;
pub mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use hanse_identity::{NodeName, Timestamp, TrustDomain};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use io::control_link::{ControlLink, Membership};
use io::host::HostFiles;
use io::join::{JoinError, Proof};
use io::jwt::JwtDesk;
use io::rejoin::{ByHost, Wanted, another_token, new_proof};
use io::store::{Store, StoredIdentity, read_token};
use io::svids::Svids;
use io::telemetry::Metrics;
use io::{Shared, Streams, View, admin, join, now, reflection, sds, socket, stopped, workload_api};
use wire::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;

/// Worker threads: an agent does little, and little at a time.
const WORKERS: usize = 2;
/// How long streams and connections may take to end at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams of one local connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 128;
/// Bytes of a request's head, when decoded.
const MAX_HEAD_BYTES: u32 = 16 << 10;
/// Requests that a client took back before we had looked at them.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that we have to reset for what a client did on them, in the life of its connection (MadeYouReset).
const MAX_PROVOKED_RESETS: usize = 256;
/// Largest request of a local caller; Envoy's description of itself is about 60 KiB.
const MAX_REQUEST_BYTES: usize = 1 << 20;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// In the data directory: where a new join token is looked for if the command line names no file.
const TOKEN_FILE: &str = "join-token";

/// `hanse agent`
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Directory of the agent's own identity; made if it is not there, closed to other users.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Name of this agent in its cluster, as registrations name it [default, with --x509pop-cert: after its fingerprint]
    #[arg(long, value_name = "NAME", required_unless_present = "x509pop_cert")]
    pub name: Option<NodeName>,
    /// Unix socket on which local processes get their identities (Envoy SDS and SPIFFE Workload API).
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// File with a join token for this agent: needed on the first start, and looked at again, without a restart, whenever
    /// the agent's own SVID is not accepted any more [default, for that: DATA-DIR/join-token]
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// In place of a join token: PEM file with this host's own certificate, of a PKI that the cluster lets vouch for hosts
    /// (hanse agent trust-ca), and the authorities between. Read again whenever it is needed
    #[arg(long, value_name = "FILE", conflicts_with = "join_token_file",
          requires_all = ["x509pop_key", "trust_bundle", "trust_domain", "control"])]
    pub x509pop_cert: Option<PathBuf>,
    /// PEM file with the private key of that certificate, not encrypted
    #[arg(long, value_name = "FILE", requires = "x509pop_cert")]
    pub x509pop_key: Option<PathBuf>,
    /// The cluster's authorities, for the first join by a certificate: PEM or a SPIFFE bundle document, as hanse trust
    /// bundle show --format prints it
    #[arg(long, value_name = "FILE", requires = "x509pop_cert")]
    pub trust_bundle: Option<PathBuf>,
    /// The cluster's trust domain, for a join by a certificate
    #[arg(long, value_name = "NAME", requires = "x509pop_cert")]
    pub trust_domain: Option<TrustDomain>,
    /// Control node to try besides those that the token and the cluster name; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub control: Vec<String>,
    /// Loopback address for /healthz, /readyz, /metrics and /entries.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
}

/// Where the agent's own identity comes from.
enum Start {
    /// It may have expired meanwhile: then the agent proves its host anew.
    Stored(StoredIdentity),
    Proof(Proof),
}

impl Config {
    /// Where a new join token is looked for.
    fn token_file(&self) -> PathBuf {
        self.join_token_file.clone().unwrap_or_else(|| self.data_dir.join(TOKEN_FILE))
    }

    /// The host's own certificate, if it is to be joined by.
    fn host_files(&self) -> Option<HostFiles> {
        Some(HostFiles {
            certificate: self.x509pop_cert.clone()?,
            key: self.x509pop_key.clone()?,
            trust_bundle: self.trust_bundle.clone()?,
            trust_domain: self.trust_domain.clone()?,
        })
    }

    /// What it is to be called: as was said, or as it was when it joined, or after its host's certificate.
    fn agent_name(&self, store: &Store) -> anyhow::Result<NodeName> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        if let Some(stored) = store.identity()? {
            return Ok(stored.name.clone());
        }
        let files = self.host_files().context("the agent has no name: give --name")?;
        Ok(files.default_name()?)
    }
}

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    if let Some(admin) = config.admin {
        ensure!(admin.ip().is_loopback(), "--admin {admin} is not a loopback address");
    }
    let store = Store::open(&config.data_dir)?;
    let name = config.agent_name(&store)?;
    let start = start(&config, &name, &store, now())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let result = runtime.block_on(serve(config, name, store, start, stop_signal()));
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
}

/// Decides between the stored identity and a proof of the host.
fn start(config: &Config, name: &NodeName, store: &Store, now: Timestamp) -> anyhow::Result<Start> {
    if let Some(stored) = store.identity()? {
        ensure!(
            stored.name == *name,
            "{} belongs to agent {}, not {name}",
            config.data_dir.display(),
            stored.name,
        );
        let not_after = stored.svid().context("the agent's own SVID cannot be read")?.facts.not_after;
        if now < not_after && config.join_token_file.is_some() {
            tracing::info!("this agent has joined already, the join token is not used");
        }
        return Ok(Start::Stored(stored));
    }
    match (&config.join_token_file, config.host_files()) {
        (Some(path), _) => Ok(Start::Proof(Proof::Token(read_token(path, name, now)?))),
        (None, Some(files)) => Ok(Start::Proof(Proof::Host(files.read(None)?))),
        (None, None) => bail!(
            "this agent has not joined a cluster: make a join token for agent {name} and give it with --join-token-file"
        ),
    }
}

/// Runs every part of the agent until `stop_asked` returns or a part cannot go on.
async fn serve(
    config: Config,
    name: NodeName,
    store: Store,
    start: Start,
    stop_asked: impl Future<Output = anyhow::Result<&'static str>>,
) -> anyhow::Result<()> {
    let (listener, _socket_file) = socket::bind(&config.socket)?;
    let (stop, shutdown) = watch::channel(false);
    let (view_sender, view) = watch::channel(View::default());
    let (metrics, streams) = (Arc::new(Metrics::default()), Streams::default());
    let link = ControlLink::new(streams.clone(), Arc::clone(&metrics));
    let svids = Svids::new(
        name.clone(),
        Arc::clone(&link) as _,
        view.clone(),
        shutdown.clone(),
        Arc::clone(&metrics),
    );
    link.report_on(svids.clone());
    let jwt = JwtDesk::new(Arc::clone(&link) as _);
    let shared = Arc::new(Shared {
        name: name.clone(),
        view,
        svids,
        jwt,
        streams,
        metrics,
        shutdown: shutdown.clone(),
    });
    if let Some(address) = config.admin {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("admin address {address}"))?;
        let admin = admin::Admin { shared: Arc::clone(&shared), link: Arc::clone(&link) };
        tokio::spawn(admin::serve(Arc::new(admin), listener));
    }
    let mut server = tokio::spawn(serve_callers(Arc::clone(&shared), listener));
    tracing::info!(agent = %name, socket = %config.socket.display(), "agent started");
    let membership = be_member(config, name, store, start, link, view_sender, shutdown);
    let result = tokio::select! {
        reason = stop_asked => reason.map(|reason| tracing::info!(reason, "stopping")),
        ended = membership => ended,
        ended = &mut server => ended.context("the socket's server")?.context("the socket's server"),
    };
    stop.send_replace(true);
    if !server.is_finished() && tokio::time::timeout(SHUTDOWN_TIMEOUT, server).await.is_err() {
        tracing::warn!("some local streams did not end in time");
    }
    result
}

/// Joins if need be, then follows the control nodes; joins anew when its own SVID is of no use any more and there is a
/// new token, or a certificate of the host's own. What is held for local processes is not touched by that.
async fn be_member(
    config: Config,
    name: NodeName,
    store: Store,
    start: Start,
    link: Arc<ControlLink>,
    view: watch::Sender<View>,
    shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut stored = match start {
        Start::Stored(stored) => stored,
        Start::Proof(by) => {
            let stored = join::join(&by, &name, &config.control, &store).await?;
            tracing::info!(cluster = %stored.cluster, trust_domain = %stored.trust_domain, "joined the cluster");
            stored
        }
    };
    let (file, host, mut refused) = (config.token_file(), config.host_files(), String::new());
    let (mut host_refused, mut refusals) = (None, 0);
    loop {
        let svid = stored.svid().context("the agent's own SVID cannot be read")?;
        let (invite, trust_domain) = (stored.invite.clone(), stored.trust_domain.clone());
        let spent = [invite.as_str(), refused.as_str()];
        let wanted = Wanted { agent: &name, trust_domain: &trust_domain, file: &file, spent };
        let by_host = host.as_ref().map(|files| ByHost {
            files,
            store: &store,
            refused: host_refused.take(),
            refusals,
        });
        let membership = Membership::new(store.clone(), stored, config.control.clone());
        let by = tokio::select! {
            // First: it puts the own SVID in use, which the other is about.
            biased;
            ended = Arc::clone(&link).run(membership, svid, &view, shutdown.clone()) => {
                return ended.context("the agent's own SVID cannot be used");
            }
            by = new_proof(&link, &wanted, by_host) => by,
        };
        // A join goes on for as long as its token is valid and a node does not answer: a newer token ends it.
        let newer = Wanted { spent: [invite.as_str(), by.invite()], ..wanted };
        let joined = tokio::select! {
            joined = join::join(&by, &name, &config.control, &store) => joined,
            invite = another_token(&newer) => Err(JoinError::Overtaken(invite)),
        };
        stored = match joined {
            Ok(stored) => {
                link.rejoined();
                refusals = 0;
                tracing::info!(cluster = %stored.cluster, "joined the cluster anew");
                stored
            }
            Err(error) => {
                tracing::error!(invite = by.invite(), %error, "joining anew failed");
                match &by {
                    Proof::Token(token) => refused.clone_from(&token.invite),
                    Proof::Host(_) => (host_refused, refusals) = (Some(error.to_string()), refusals + 1),
                }
                store.identity()?.context("the agent's own identity is gone from its data directory")?
            }
        };
    }
}

/// Serves both protocols to local callers until shutdown.
pub async fn serve_callers(
    shared: Arc<Shared>,
    listener: UnixListener,
) -> Result<(), tonic::transport::Error> {
    let incoming = socket::connections(listener, Arc::clone(&shared.metrics), shared.shutdown.clone());
    let mut shutdown = shared.shutdown.clone();
    let sds = SecretDiscoveryServiceServer::new(sds::Sds(Arc::clone(&shared)));
    let workload_api = SpiffeWorkloadApiServer::new(workload_api::WorkloadApi(shared));
    let workload_api = workload_api.max_decoding_message_size(MAX_REQUEST_BYTES);
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(MAX_HEAD_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_PROVOKED_RESETS))
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .add_service(sds.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(InterceptedService::new(workload_api, workload_api::check_header))
        .add_service(InterceptedService::new(reflection::v1(), workload_api::check_header))
        .add_service(InterceptedService::new(reflection::v1alpha(), workload_api::check_header))
        .serve_with_incoming_shutdown(incoming, async move {
            stopped(&mut shutdown).await;
        })
        .await
}

/// Waits for SIGTERM or SIGINT and says which.
async fn stop_signal() -> anyhow::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

#[cfg(test)]
mod tests;
