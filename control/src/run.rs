//! `hanse control`: one control node, from its data directory to its end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hanse_identity::Timestamp;
use hanse_identity::tls::{IdentitySource, TrustSource};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::command::{Command, Outcome};
use crate::io::authorities::Authorities;
use crate::io::bundle_endpoint::{self, Shown};
use crate::io::census::Census;
use crate::io::context::{Context, OwnIdentity, StateTrust, stopped};
use crate::io::driver::{self, Ended, Options, Running};
use crate::io::http::{self, Metrics};
use crate::io::jwt::{self, JwtKeys};
use crate::io::key_store::{KeyFlags, KeyStore};
use crate::io::keys::{self, NodeFile};
use crate::io::node_link::NodeLinks;
use crate::io::{
    authorities, clock, crl, issuers, peer_link, rotation, server, strangers, watch as watching,
};

/// How long requests under way may take to end once the node is to stop, while it may still lead.
const DRAIN: Duration = Duration::from_millis(200);
/// How long they may take after that; what they would write is refused then.
const DRAIN_REST: Duration = Duration::from_secs(1);
/// How often the leader looks for revocations that have lapsed.
const LAPSE_EVERY: Duration = Duration::from_secs(10);
/// How often the leader looks for registrations whose end has come.
const END_EVERY: Duration = Duration::from_secs(1);

/// One control node.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The node's directory, as `hanse node init` made it.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// JSON array of the node.json of every initial node; matters on the first start only.
    #[arg(long, value_name = "FILE")]
    pub initial_nodes: Option<PathBuf>,
    /// Address of the gRPC port (mutual TLS), for nodes, agents, proxies, administrators and joined clusters.
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address of the plain HTTP port (/healthz /readyz /metrics /status); keep it on loopback.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
    /// Log entries between snapshots.
    #[arg(long, value_name = "ENTRIES", default_value_t = 1000)]
    pub snapshot_every: u64,
    /// Lifetime of the SVIDs of this node and of agents, such as 24h or 90s.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    pub svid_lifetime: Duration,
    #[command(flatten)]
    pub keys: KeyFlags,
    #[command(flatten)]
    pub endpoint: EndpointFlags,
}

/// The endpoint where foreign trust domains fetch this cluster's bundle.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EndpointFlags {
    /// Address of the SPIFFE bundle endpoint (HTTPS, no client certificate), for foreign trust domains [default: none].
    #[arg(long, value_name = "ADDR")]
    pub bundle_endpoint: Option<SocketAddr>,
    /// How whoever asks there authenticates it: https_spiffe (as spiffe://TRUST-DOMAIN/hanse/endpoint/bundle) or https_web.
    #[arg(long, value_name = "PROFILE", value_enum, default_value_t, requires = "bundle_endpoint")]
    pub bundle_endpoint_profile: EndpointProfile,
    /// For https_web: PEM file with the certificate and what is between it and a root; read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        requires = "bundle_endpoint_key",
        required_if_eq("bundle_endpoint_profile", "https_web")
    )]
    pub bundle_endpoint_cert: Option<PathBuf>,
    /// For https_web: PEM file with its private key, not readable by others.
    #[arg(long, value_name = "FILE", requires = "bundle_endpoint_cert")]
    pub bundle_endpoint_key: Option<PathBuf>,
}

/// SPIFFE Federation §5.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EndpointProfile {
    #[default]
    #[value(name = "https_spiffe")]
    HttpsSpiffe,
    #[value(name = "https_web")]
    HttpsWeb,
}

impl EndpointFlags {
    /// What the endpoint shows; an error if the flags do not fit each other.
    fn shown(&self) -> anyhow::Result<Shown> {
        match (self.bundle_endpoint_profile, &self.bundle_endpoint_cert, &self.bundle_endpoint_key) {
            (EndpointProfile::HttpsSpiffe, None, None) => Ok(Shown::Svid),
            (EndpointProfile::HttpsWeb, Some(certificate), Some(key)) => {
                Ok(Shown::Files { certificate: certificate.clone(), key: key.clone() })
            }
            (EndpointProfile::HttpsSpiffe, ..) => Err(anyhow::anyhow!(
                "--bundle-endpoint-cert and --bundle-endpoint-key are for --bundle-endpoint-profile https_web"
            )),
            (EndpointProfile::HttpsWeb, ..) => Err(anyhow::anyhow!(
                "https_web needs --bundle-endpoint-cert FILE and --bundle-endpoint-key FILE"
            )),
        }
    }
}

/// `24h`, `30m`, `90s`: between the shortest and the longest lifetime that is granted.
fn lifetime(text: &str) -> Result<Duration, String> {
    use hanse_identity::grant::{MAX_LIFETIME, MIN_LIFETIME};
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is not a time such as 24h, 30m or 90s"))?;
    let seconds = match unit {
        "h" => number.checked_mul(3600),
        "m" => number.checked_mul(60),
        "s" => Some(number),
        _ => None,
    };
    let time = Duration::from_secs(
        seconds.ok_or_else(|| format!("{text:?} is not a time such as 24h, 30m or 90s"))?,
    );
    if (MIN_LIFETIME..=MAX_LIFETIME).contains(&time) {
        Ok(time)
    } else {
        Err(format!("{text:?} is not between {MIN_LIFETIME:?} and {MAX_LIFETIME:?}"))
    }
}

/// Runs the node until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("tokio runtime")?;
    let ended = runtime.block_on(async {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let admin = TcpListener::bind(config.admin)
            .await
            .with_context(|| format!("cannot listen on {}", config.admin))?;
        let file = keys::load_node(&config.data_dir)?;
        let store = config.keys.open(&config.data_dir, &file.trust_domain)?;
        let endpoint = match config.endpoint.bundle_endpoint {
            Some(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address}"))?;
                Some((listener, config.endpoint.shown()?))
            }
            None => None,
        };
        let initial_nodes = match &config.initial_nodes {
            Some(path) => keys::load_nodes(path)?,
            None => Vec::new(),
        };
        let mut options = Options::new(config.data_dir.clone(), file, initial_nodes);
        options.snapshot_every = config.snapshot_every;
        let mut node = start(options, store, config.svid_lifetime, listener, admin)?;
        let mut endpoint = match endpoint {
            Some((listener, shown)) => {
                tokio::spawn(bundle_endpoint::serve(node.context.clone(), listener, shown))
            }
            None => tokio::spawn(std::future::pending()),
        };
        let asked = tokio::select! {
            asked = stop_asked() => asked,
            ended = node.running.ended() => Err(anyhow::anyhow!("the node's loop has ended: {ended}")),
            served = &mut node.serving => match served {
                Ok(Ok(())) => Err(anyhow::anyhow!("the node's server has ended")),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error.into()),
            },
            served = &mut endpoint => match served {
                Ok(Ok(())) => Err(anyhow::anyhow!("the bundle endpoint has ended")),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error.into()),
            },
        };
        node.stop().await;
        endpoint.abort();
        asked
    });
    // What is left blocks nobody: the disk is written, the lead handed over.
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

async fn stop_asked() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let which = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(which, "stopping");
    Ok(())
}

/// A node whose services run.
pub struct Started {
    pub context: Arc<Context>,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    running: Running,
    serving: JoinHandle<anyhow::Result<()>>,
    stop: watch::Sender<bool>,
}

/// Opens the node's store and starts its services on this runtime.
pub fn start(
    options: Options,
    store: Arc<dyn KeyStore>,
    member_lifetime: Duration,
    listener: TcpListener,
    admin: TcpListener,
) -> anyhow::Result<Started> {
    let file = options.node.clone();
    let opened = driver::open(&options)?;
    let state = opened.state();
    let trust = Arc::new(StateTrust::new(opened.states()));
    let own = Arc::new(OwnIdentity::default());
    let links = NodeLinks::new(file.record.raft_id, &state, opened.inbox());
    let (handle, running) = opened.start(links.clone())?;
    let (stop, stopped) = watch::channel(false);
    let jwt = JwtKeys::open(store.as_ref(), &file.trust_domain)?;
    let bundle = state.view.bundles.get(&file.trust_domain);
    let authorities = Authorities::open(&options.data_dir, &file, store.as_ref(), bundle)?;
    let keys = NodeKeys { store, authorities, jwt };
    let context = Arc::new(context(&file, keys, member_lifetime, handle, trust, own, links, stopped));
    // Without an SVID of its own the node can neither be dialled nor dial: no use in going on.
    let due =
        context.renew_own().map_err(|why| anyhow::anyhow!("the node cannot sign its own SVID: {why}"))?;
    let trust: Arc<dyn TrustSource> = context.trust.clone();
    let identity: Arc<dyn IdentitySource> = context.own.clone();
    context.links.connect(&trust, &identity, context.handle.states(), &context.own.renewals());
    let (listen, admin_address) = (listener.local_addr()?, admin.local_addr()?);
    let serving = tokio::spawn(server::serve(context.clone(), listener));
    spawn_tasks(&context, due, admin);
    tracing::info!(node = %context.name, cluster = %context.cluster, %listen, admin = %admin_address, "control node started");
    Ok(Started { context, listen, admin: admin_address, running, serving, stop })
}

/// What a node signs with.
struct NodeKeys {
    store: Arc<dyn KeyStore>,
    authorities: Authorities,
    jwt: JwtKeys,
}

#[allow(clippy::too_many_arguments)]
fn context(
    file: &NodeFile,
    keys: NodeKeys,
    member_lifetime: Duration,
    handle: driver::Handle,
    trust: Arc<StateTrust>,
    own: Arc<OwnIdentity>,
    links: Arc<NodeLinks>,
    stop: watch::Receiver<bool>,
) -> Context {
    Context {
        name: file.record.name.clone(),
        raft_id: file.record.raft_id,
        cluster: file.cluster.clone(),
        trust_domain: file.trust_domain.clone(),
        handle,
        authorities: keys.authorities,
        key_store: keys.store,
        jwt: keys.jwt,
        trust,
        own,
        census: Census::new(file.record.name.clone()),
        taps: Default::default(),
        recorder: Default::default(),
        links,
        peers: peer_link::PeerLinks::default(),
        strangers: strangers::StrangerLinks::default(),
        issuers: Default::default(),
        revisions: Default::default(),
        bundle_revisions: Default::default(),
        callers: Default::default(),
        bundle_endpoint: Default::default(),
        metrics: Metrics::default(),
        joining: Default::default(),
        member_lifetime,
        stop,
    }
}

fn spawn_tasks(context: &Arc<Context>, renewal_due: Timestamp, admin: TcpListener) {
    tokio::spawn(context.clone().keep_renewing(renewal_due));
    tokio::spawn(context.clone().keep_noting());
    tokio::spawn(clock::keep_comparing(context.clone()));
    tokio::spawn(peer_link::supervise(context.clone()));
    tokio::spawn(strangers::supervise(context.clone()));
    tokio::spawn(issuers::supervise(context.clone()));
    tokio::spawn(watching::sweep_own(context.clone()));
    tokio::spawn(watching::sweep_silent_nodes(context.clone()));
    tokio::spawn(keep_lapsing(context.clone()));
    let recording = context.clone();
    tokio::spawn(async move {
        recording.recorder.run(recording.handle.clone(), recording.stop.clone()).await;
    });
    tokio::spawn(crl::keep_publishing(context.clone()));
    tokio::spawn(keep_ending(context.clone()));
    tokio::spawn(jwt::keep(context.clone()));
    tokio::spawn(authorities::keep(context.clone()));
    tokio::spawn(rotation::keep(context.clone()));
    tokio::spawn(http::serve(context.clone(), admin));
}

/// On the leader: revocations that no valid certificate can match any more are dropped.
async fn keep_lapsing(context: Arc<Context>) {
    let mut stop = context.stop.clone();
    let mut tick = tokio::time::interval(LAPSE_EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stop) => return,
        }
        let ids = context.handle.state().view.revocations.lapsed(context.time());
        if !context.handle.status().is_leader || ids.is_empty() {
            continue;
        }
        let count = ids.len();
        match context.handle.propose("", Command::Lapse { ids }).await {
            Ok(outcome) => tracing::info!(count, revision = outcome.revision, "revocations lapsed"),
            // The next look will find them again.
            Err(error) => tracing::warn!(why = %error, "revocations could not lapse yet"),
        }
    }
}

/// On the leader: registrations and documents whose end has come are deleted. No SVID of a registration is valid any
/// longer than it, and no fault is injected any longer, whether or not this has been done yet.
async fn keep_ending(context: Arc<Context>) {
    let mut stop = context.stop.clone();
    let mut tick = tokio::time::interval(END_EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stop) => return,
        }
        if !context.handle.status().is_leader {
            continue;
        }
        let (state, now) = (context.handle.state(), context.time());
        let (keys, policies) = (state.lapsed_registrations(now), state.lapsed_policies(now));
        drop(state);
        let (registrations, documents) = (keys.len(), policies.len());
        if registrations > 0 {
            let outcome = context.handle.propose("", Command::WorkloadLapse { keys }).await;
            lapsed(registrations, "registrations", outcome);
        }
        if documents > 0 {
            let outcome = context.handle.propose("", Command::PolicyLapse { keys: policies }).await;
            lapsed(documents, "policies", outcome);
        }
    }
}

fn lapsed(count: usize, what: &str, outcome: Result<Outcome, impl std::fmt::Display>) {
    match outcome {
        Ok(outcome) => tracing::info!(count, revision = outcome.revision, "{what} lapsed"),
        // The next look will find them again.
        Err(error) => tracing::warn!(why = %error, "{what} could not lapse yet"),
    }
}

impl Started {
    /// Stops the services, hands over the lead, writes what is left.
    pub async fn stop(self) -> Ended {
        // Nobody listening any more is as good as told.
        let _ = self.stop.send(true);
        let mut serving = self.serving;
        let drained = tokio::time::timeout(DRAIN, &mut serving).await.is_ok();
        // The lead goes before the streams of the other nodes do, so that they need no election.
        let ended = self.running.stop().await;
        if !drained && tokio::time::timeout(DRAIN_REST, &mut serving).await.is_err() {
            serving.abort();
        }
        self.context.links.close();
        ended
    }
}

#[cfg(test)]
mod tests;
