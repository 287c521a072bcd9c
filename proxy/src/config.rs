//! The sidecar's command line.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use hanse_federation::host::{Reach, ServiceHost};
use hanse_identity::{NodeName, ServiceName};

use crate::capture::OPAQUE_PORTS;
use crate::io::forward::tcp::TcpTarget;
use crate::runtime::spans::Collector;
use crate::staleness::{self, Staleness};
use crate::trace::Sampling;

/// Flags of `hanse proxy`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Name of this proxy, one DNS label, unique in its cluster.
    #[arg(long)]
    pub name: NodeName,
    /// The agent's Unix socket, where the SVID comes from.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// A control node of this cluster, host:port; repeat for each.
    #[arg(long, value_name = "HOST:PORT", required = true)]
    pub control: Vec<String>,
    /// A service that the app serves, <namespace>/<name>; repeatable. The registration must allow it.
    #[arg(long = "service", value_name = "NAMESPACE/NAME")]
    pub services: Vec<ServiceName>,
    /// The app behind this proxy.
    #[arg(long, value_name = "ADDRESS")]
    pub app: Option<SocketAddr>,
    /// In place of an app: send requests out of the mesh, to the ExternalServices that name a --service of this proxy (via).
    #[arg(long, conflicts_with_all = ["app", "tcp_ports"], requires = "services")]
    pub egress: bool,
    /// Where the mesh reaches this proxy: mutual TLS.
    #[arg(long, value_name = "ADDRESS")]
    pub inbound: Option<SocketAddr>,
    /// The address to announce for --inbound, if it is another one.
    #[arg(long, value_name = "ADDRESS")]
    pub advertise_inbound: Option<SocketAddr>,
    /// Where the app sends its requests: plain HTTP/1.1 or HTTP/2; the Host names the service.
    #[arg(long, value_name = "ADDRESS")]
    pub outbound: Option<SocketAddr>,
    /// A plain HTTP listener for one service, whatever the Host says: <namespace>/<name>=ADDRESS; repeatable.
    #[arg(long = "upstream", value_name = "SERVICE=ADDRESS")]
    pub upstreams: Vec<Upstream>,
    /// A plain TCP listener for one port of a service: <namespace>/<name>:PORT=ADDRESS; repeatable.
    #[arg(long = "tcp-upstream", value_name = "SERVICE:PORT=ADDRESS")]
    pub tcp_upstreams: Vec<TcpUpstream>,
    /// A port of the services that is plain TCP, and where the app takes it: PORT=ADDRESS; repeatable.
    #[arg(long = "tcp-port", value_name = "PORT=ADDRESS")]
    pub tcp_ports: Vec<TcpPort>,
    /// A port of loopback for connections that hanse proxy capture turns to this proxy: by their destination they go to a
    /// service, or pass through
    #[arg(long, value_name = "PORT")]
    pub capture_port: Option<NonZeroU16>,
    /// A port that is plain TCP on captured connections, and whose clients may wait for the server to speak; repeatable, beside
    /// 21, 22, 25, 110, 143, 587, 3306 and 4444
    #[arg(long = "opaque-port", value_name = "PORT", requires = "capture_port")]
    pub opaque: Vec<NonZeroU16>,
    /// A port of loopback for DNS: names of the mesh are answered with virtual addresses, the rest is forwarded
    #[arg(long, value_name = "PORT")]
    pub dns_port: Option<NonZeroU16>,
    /// Listens where another proxy of the same user still does, to be its successor: a --name and --admin of its own, then
    /// the old one is ended, and nobody is refused meanwhile
    #[arg(long, conflicts_with = "dns_port")]
    pub take_over: bool,
    /// The admin endpoint; loopback only.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: SocketAddr,
    /// Region that this proxy is in.
    #[arg(long, default_value = "")]
    pub region: String,
    /// Zone that this proxy is in.
    #[arg(long, default_value = "")]
    pub zone: String,
    /// Access log, one JSON object per line: a file, or - for standard output. None if not given.
    #[arg(long, value_name = "FILE|-")]
    pub access_log: Option<String>,
    /// A collector of spans (OTLP over gRPC, plain text) on this host. Without it, trace headers of callers are passed
    /// on and no trace begins here
    #[arg(long, value_name = "http://HOST:PORT")]
    pub otlp_endpoint: Option<Collector>,
    /// How many percent of the traces that begin here are recorded; requests that fail always are
    #[arg(long, value_name = "PERCENT", default_value = "1", requires = "otlp_endpoint")]
    pub trace_sampling: Sampling,
    /// Worker threads; default: one per core.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// The Gateway that this proxy serves for clients outside, <namespace>/<name>.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "gateway_listen")]
    pub gateway: Option<ServiceName>,
    /// A port of the Gateway and where it is served: PORT=ADDRESS; repeatable.
    #[arg(long, value_name = "PORT=ADDRESS", requires = "gateway")]
    pub gateway_listen: Vec<GatePort>,
    /// Certificates for the Gateway: NAME.crt and NAME.key (PEM), read again when they change.
    #[arg(long, value_name = "DIRECTORY", requires = "gateway")]
    pub certificates: Option<PathBuf>,
    /// A DNS server for what is no name of the mesh, in place of those of /etc/resolv.conf: hosts of ExternalServices, and
    /// what --dns-port forwards; repeatable
    #[arg(long = "dns-server", value_name = "ADDRESS")]
    pub dns_servers: Vec<SocketAddr>,
    /// Share of traffic among the service's endpoints, 1 to 1000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub weight: u32,
    /// What is known of revocations is stale when no control node has been heard for this long: 30s, 5m; at least 5s
    #[arg(long, value_name = "DURATION", default_value = staleness::DEFAULT_BOUND)]
    pub revocation_staleness: staleness::Bound,
    /// What becomes of new handshakes when it is stale; live connections stay
    #[arg(long, value_enum, default_value_t)]
    pub on_stale: staleness::OnStale,
}

/// A listener that is bound to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub host: ServiceHost,
    pub listen: SocketAddr,
}

/// A listener for plain TCP, that is bound to one port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpUpstream {
    pub target: TcpTarget,
    pub listen: SocketAddr,
}

/// A port that the app takes plain TCP on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpPort {
    /// As the mesh names it.
    pub port: NonZeroU16,
    pub app: SocketAddr,
}

impl FromStr for TcpUpstream {
    type Err = String;

    /// `shop/redis:6379=127.0.0.1:6379`, or a host name of the mesh in place of `shop/redis`.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "is not of the form <namespace>/<name>:PORT=ADDRESS";
        let (named, listen) = text.split_once('=').ok_or(FORM)?;
        let (service, port) = named.rsplit_once(':').ok_or(FORM)?;
        let port: NonZeroU16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        let Upstream { host, listen } = format!("{service}={listen}").parse()?;
        Ok(Self { target: TcpTarget { host, port: port.get() }, listen })
    }
}

impl FromStr for TcpPort {
    type Err = String;

    /// `6379=127.0.0.1:6379`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (port, app) = text.split_once('=').ok_or("is not of the form PORT=ADDRESS")?;
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        let app = app.parse().map_err(|_| format!("{app:?} is not an address and port"))?;
        Ok(Self { port, app })
    }
}

/// A port of a Gateway, and where clients reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatePort {
    pub port: NonZeroU16,
    pub listen: SocketAddr,
}

impl FromStr for GatePort {
    type Err = String;

    /// `443=192.0.2.1:8443`.
    fn from_str(text: &str) -> Result<Self, String> {
        let TcpPort { port, app } = text.parse()?;
        Ok(Self { port, listen: app })
    }
}

impl FromStr for Upstream {
    type Err = String;

    /// `shop/ratings=127.0.0.1:9001`, or a host name of the mesh in place of `shop/ratings`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (service, listen) =
            text.split_once('=').ok_or_else(|| "is not of the form <namespace>/<name>=ADDRESS".to_owned())?;
        let listen = listen.parse().map_err(|_| format!("{listen:?} is not an address and port"))?;
        let host = match service.parse() {
            Ok(service) => ServiceHost { service, reach: Reach::ClusterSet },
            Err(error) => ServiceHost::parse(service).ok_or_else(|| format!("{error}"))?,
        };
        Ok(Self { host, listen })
    }
}

impl Config {
    pub fn staleness(&self) -> Staleness {
        Staleness { bound: self.revocation_staleness.0, on_stale: self.on_stale }
    }

    /// Ports that are carried without a look.
    pub fn opaque_ports(&self) -> BTreeSet<u16> {
        OPAQUE_PORTS.into_iter().chain(self.opaque.iter().map(|port| port.get())).collect()
    }

    /// What the flags' own parsers cannot see.
    pub fn check(&self) -> Result<()> {
        let is_served = self.app.is_some() || self.egress;
        if !self.services.is_empty() && (self.inbound.is_none() || !is_served) {
            bail!(
                "--service needs --inbound (where the mesh reaches it) and --app (who serves it) or --egress"
            );
        }
        if self.inbound.is_some() && self.services.is_empty() {
            bail!("--inbound needs at least one --service");
        }
        if !self.tcp_ports.is_empty() && self.services.is_empty() {
            bail!("--tcp-port needs at least one --service");
        }
        let ports = self.tcp_ports.iter().map(|tcp| tcp.port).collect::<BTreeSet<_>>();
        if ports.len() != self.tcp_ports.len() {
            bail!("--tcp-port names a port twice");
        }
        let announced = self.advertise_inbound.or(self.inbound);
        if announced.is_some_and(|address| address.ip().is_unspecified()) {
            bail!("--inbound is on all addresses: say with --advertise-inbound which one others reach");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        config: Config,
    }

    fn parse(flags: &str) -> Result<Config, clap::Error> {
        let always = "proxy --name p --socket s --control 127.0.0.1:1 --admin 127.0.0.1:0";
        <Program as clap::Parser>::try_parse_from(always.split(' ').chain(flags.split_whitespace()))
            .map(|program| program.config)
    }

    #[test]
    fn flags_are_read_and_held_against_each_other() {
        let config = parse(
            "--service shop/reviews --app 127.0.0.1:9080 --inbound 127.0.0.1:0 --workers 2 \
             --upstream shop/ratings=127.0.0.1:9001 --upstream a.shop.svc.cluster.local=127.0.0.1:9002",
        )
        .unwrap();
        config.check().unwrap();
        assert_eq!(config.workers, Some(2));
        assert_eq!(config.weight, 100);
        assert_eq!(config.staleness(), Staleness::default());
        assert_eq!(config.otlp_endpoint, None);
        assert!(
            parse("--otlp-endpoint http://127.0.0.1:4317 --trace-sampling 0.5")
                .unwrap()
                .otlp_endpoint
                .is_some()
        );
        let egress = "--service shop/egress --inbound 127.0.0.1:0";
        parse(&format!("{egress} --egress")).unwrap().check().unwrap();
        assert!(parse(egress).unwrap().check().unwrap_err().to_string().contains("or --egress"));
        assert!(parse(&format!("{egress} --egress --app 127.0.0.1:9080")).is_err(), "an app has its own");
        assert!(parse("--egress").is_err(), "of which service");
        let strict = parse("--revocation-staleness 2m --on-stale deny-new").unwrap().staleness();
        assert_eq!(strict.bound, std::time::Duration::from_secs(120));
        assert_eq!(strict.on_stale, staleness::OnStale::DenyNew);
        let reaches: Vec<_> = config.upstreams.iter().map(|u| u.host.reach).collect();
        assert_eq!(reaches, [Reach::ClusterSet, Reach::Cluster]);

        assert!(parse("--service shop/reviews").unwrap().check().is_err());
        assert!(parse("--inbound 127.0.0.1:0").unwrap().check().is_err());
        let everywhere = "--service shop/reviews --app 127.0.0.1:9080 --inbound 0.0.0.0:0";
        assert!(parse(everywhere).unwrap().check().is_err());
        let tcp = parse("--tcp-upstream shop/redis:6379=127.0.0.1:9003").unwrap().tcp_upstreams.remove(0);
        assert_eq!((tcp.target.host.service.to_string(), tcp.target.port), ("shop/redis".to_owned(), 6379));
        let served =
            "--service shop/redis --app 127.0.0.1:6379 --inbound 127.0.0.1:0 --tcp-port 6379=127.0.0.1:6379";
        parse(served).unwrap().check().unwrap();
        assert!(parse(&format!("{served} --tcp-port 6379=127.0.0.1:6380")).unwrap().check().is_err());
        assert!(parse("--tcp-port 6379=127.0.0.1:6379").unwrap().check().is_err());
        for bad in [
            "--tcp-upstream shop/redis=127.0.0.1:1",
            "--tcp-upstream shop/redis:0=127.0.0.1:1",
            "--tcp-port 6379",
            "--tcp-port 0=127.0.0.1:1",
            "--upstream shop/ratings",
            "--upstream x=127.0.0.1:1",
            "--weight 0",
            "--workers 0",
            "--revocation-staleness 1s",
            "--trace-sampling 101",
            "--otlp-endpoint 127.0.0.1:4317",
            "--otlp-endpoint http://127.0.0.1",
            "--otlp-endpoint https://127.0.0.1:4317",
            "--otlp-endpoint http://127.0.0.1:4317/v1/traces",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
