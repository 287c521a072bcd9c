//! hanse-gateway: the east-west door of a cluster.
//!
//! *Tunnel*: proxies of other clusters open mutual TLS to it and HTTP/2 CONNECT streams inside; it knows who calls
//! before a byte reaches the target. *Passthrough*: proxies of its own cluster reach other clusters' gateways through
//! it by server name, without being decrypted. It holds no workload's key. `route`, `limit` and `server_name` decide
//! and are pure; `io` does.

pub mod io;
pub mod limit;
pub mod route;
pub mod server_name;
pub mod telemetry;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hanse_federation::Locality;
use hanse_federation::catalog::Serves;
use hanse_identity::NodeName;
use hanse_proxy::runtime::admin::{self, Admin, Check};
use hanse_proxy::runtime::view::{Announce, Subscription};
use hanse_proxy::runtime::{Plane, credentials, drain, keep_asking, view};
use hanse_proxy::staleness::{self, Staleness};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::io::Gateway;
use crate::limit::Limits;
use crate::telemetry::GatewayTelemetry;

/// Flags of `hanse gateway`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Name of this gateway, unique in its cluster; its identity is spiffe://<trust domain>/hanse/gateway/<name>
    #[arg(long)]
    pub name: NodeName,
    /// Unix socket of this host's agent
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Control node of this cluster, host:port (repeatable)
    #[arg(long, required = true, value_name = "HOST:PORT")]
    pub control: Vec<String>,
    /// Where proxies of other clusters come in: mutual TLS and HTTP/2 CONNECT
    #[arg(long, value_name = "ADDR")]
    pub tunnel: SocketAddr,
    /// Where proxies of this cluster go out: routed by server name, not decrypted
    #[arg(long, value_name = "ADDR")]
    pub passthrough: SocketAddr,
    /// How other clusters reach the tunnel listener [default: the tunnel address]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Admin HTTP endpoint, loopback only: /healthz /readyz /metrics /connections
    #[arg(long, value_name = "ADDR")]
    pub admin: SocketAddr,
    /// Region this gateway runs in
    #[arg(long, default_value = "")]
    pub region: String,
    /// Zone this gateway runs in
    #[arg(long, default_value = "")]
    pub zone: String,
    /// Streams that one source cluster may have open at a time
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub max_streams_per_cluster: usize,
    /// What is known of revocations is stale when no control node has been heard for this long: 30s, 5m; at least 5s
    #[arg(long, value_name = "DURATION", default_value = staleness::DEFAULT_BOUND)]
    pub revocation_staleness: staleness::Bound,
    /// What becomes of new handshakes when it is stale; live connections stay
    #[arg(long, value_enum, default_value_t)]
    pub on_stale: staleness::OnStale,
}

/// How long streams in flight may take to end after SIGTERM.
const DRAIN_FOR: Duration = Duration::from_secs(5);

/// Runs the gateway until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let bound = |what: &str, address: SocketAddr| format!("the {what} address {address} cannot be bound");
    let tunnel =
        tokio::net::TcpListener::bind(config.tunnel).await.with_context(|| bound("tunnel", config.tunnel))?;
    let passthrough = tokio::net::TcpListener::bind(config.passthrough)
        .await
        .with_context(|| bound("passthrough", config.passthrough))?;
    let admin_listener = admin::bind(config.admin).with_context(|| bound("admin", config.admin))?;
    let serves = Serves::Gateway {
        passthrough: passthrough.local_addr()?,
        tunnel: match config.advertise {
            Some(advertised) => advertised,
            None => tunnel.local_addr()?.to_string(),
        },
    };

    let locality = Locality { region: config.region, zone: config.zone };
    let staleness = Staleness { bound: config.revocation_staleness.0, on_stale: config.on_stale };
    let plane = Arc::new(Plane::new(config.name, locality).with_staleness(staleness));
    let telemetry = GatewayTelemetry::register(&plane.telemetry);
    let gateway = Arc::new(Gateway {
        plane: Arc::clone(&plane),
        limits: Limits::new(config.max_streams_per_cluster),
        connections: Limits::new(io::tunnel::MAX_CONNECTIONS_PER_CLUSTER),
        telemetry,
        #[cfg(target_os = "linux")]
        pipes: io::pipe::Pipes::default(),
    });
    let (drain, stop) = drain::drain();
    let (announce, announced) = watch::channel(Announce { ready: true, serves: serves.clone() });
    let subscription = Subscription { kind: "gateway", control: config.control, announce: announced };

    let listeners_bound = || vec![Check { name: "listeners", ok: true, detail: "bound".to_owned() }];
    let pages = Arc::new(Admin::new(Arc::clone(&plane), listeners_bound));
    let admin_listener = tokio::net::TcpListener::from_std(admin_listener)?;
    let mut control_tasks = JoinSet::new();
    control_tasks.spawn(credentials::follow(config.socket, Arc::clone(&plane), stop.clone()));
    control_tasks.spawn(view::follow(Arc::clone(&plane), subscription, stop.clone()));
    control_tasks.spawn(keep_asking(Arc::clone(&plane), stop.clone()));
    control_tasks.spawn(admin::serve(admin_listener, pages, stop.clone()));
    let mut doors = JoinSet::new();
    doors.spawn(io::tunnel::serve(tunnel, Arc::clone(&gateway), stop.clone()));
    doors.spawn(io::passthrough::serve(passthrough, gateway, stop));

    drain::terminated().await?;
    tracing::info!("draining");
    announce.send_replace(Announce { ready: false, serves });
    drain.begin();
    let finished = async { while doors.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_FOR, finished).await.is_err() {
        tracing::warn!("streams still open after {DRAIN_FOR:?} are cut");
    }
    drain.end();
    Ok(())
}
