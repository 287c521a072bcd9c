//! The proxy's DNS: UDP and TCP on a port of loopback. Names of the mesh are answered here, the rest is asked of the name
//! servers that this host is configured with. What may be under way is bounded, and nobody but this host can ask.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::addresses::{V4_NETWORK, V4_PREFIX, V6_NETWORK, V6_PREFIX};
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Resolver, TokioResolver};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::listen::{self, bind_loopback};
use crate::dns::{Decision, decide, forwarded, refusal, to_datagram};
use crate::runtime::addresses::Directory;
use crate::runtime::drain::Stop;
use crate::runtime::telemetry::Telemetry;

/// Sockets of one loopback address; bound before anything runs.
pub struct Sockets {
    datagrams: std::net::UdpSocket,
    connections: std::net::TcpListener,
}

/// What all sockets have in common.
pub struct Dns {
    directory: Arc<Directory>,
    resolver: Option<TokioResolver>,
    /// Places for questions that others are asked.
    places: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    queries: Family<QueryLabels, Counter>,
}

/// `hanse_dns_queries_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    /// `mesh`, `no_data`, `no_such_name`: by us; `forwarded`; `failed`: nobody answered; `overload`; `refused`, `malformed`.
    pub answer: &'static str,
}

/// Questions that others are being asked.
const MAX_FORWARDED: usize = 512;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a question: a name has 255, and the rest is little.
const MAX_QUESTION: usize = 4096;
/// Longest wait for all name servers together, and for one.
const FORWARD_WITHIN: Duration = Duration::from_secs(8);
const ASK_WITHIN: Duration = Duration::from_secs(2);
/// Longest wait for a question on a connection, and for its answer to be taken.
const CONNECTION_IDLE: Duration = Duration::from_secs(5);
/// Answers of others that are kept for as long as they say.
const CACHED: u64 = 4096;
/// Pause after a socket that failed for want of resources.
const PAUSE: Duration = Duration::from_millis(20);

/// Binds a port of both loopback addresses; only of IPv4 where the host has no IPv6.
pub fn bind(port: u16) -> io::Result<Vec<Sockets>> {
    let connections = bind_loopback(listen::bind, port, 1)?.into_iter().flatten();
    connections
        .map(|connections| {
            let datagrams = std::net::UdpSocket::bind(connections.local_addr()?)?;
            datagrams.set_nonblocking(true)?;
            Ok(Sockets { datagrams, connections })
        })
        .collect()
}

impl Dns {
    /// `upstreams`: whom to ask; those of /etc/resolv.conf where none is given. `own`: our port, which is not asked.
    pub fn new(directory: Arc<Directory>, upstreams: &[SocketAddr], own: u16, telemetry: &Telemetry) -> Self {
        let resolver = resolver(upstreams, own)
            .inspect_err(|error| {
                tracing::warn!(%error, "no name server to forward to: only names of the mesh are answered");
            })
            .ok();
        let queries = Family::default();
        telemetry.register("hanse_dns_queries", "Questions to the proxy's DNS, by answer", queries.clone());
        Self {
            directory,
            resolver,
            places: Arc::new(Semaphore::new(MAX_FORWARDED)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            queries,
        }
    }

    /// Answers until all is over.
    pub async fn serve(self: Arc<Self>, sockets: Vec<Sockets>, mut stop: Stop) -> io::Result<()> {
        for Sockets { datagrams, connections } in sockets {
            let datagrams = Arc::new(UdpSocket::from_std(datagrams)?);
            let connections = TcpListener::from_std(connections)?;
            let (dns, mut ends) = (Arc::clone(&self), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = ends.ended() => {}
                    () = dns.clone().answer_datagrams(datagrams) => {}
                    () = dns.clone().answer_connections(connections) => {}
                }
            });
        }
        stop.ended().await;
        Ok(())
    }

    async fn answer_datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; MAX_QUESTION];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "DNS socket");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(request) = Message::from_vec(&buffer[..length]) else {
                self.count("malformed");
                continue;
            };
            let query = match decide(&request, self.directory.now().as_deref()) {
                Decision::Ignore => continue,
                Decision::Answer(answer, label) => {
                    self.count(label);
                    send(&socket, from, &request, &answer).await;
                    continue;
                }
                Decision::Forward(query) => query,
            };
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                self.count("overload");
                send(&socket, from, &request, &refusal(&request, ResponseCode::ServFail)).await;
                continue;
            };
            let (dns, socket) = (Arc::clone(&self), Arc::clone(&socket));
            tokio::spawn(async move {
                let answer = dns.forward(&request, query).await;
                send(&socket, from, &request, &answer).await;
                drop(place);
            });
        }
    }

    async fn answer_connections(self: Arc<Self>, listener: TcpListener) {
        loop {
            // Who comes when there is no place waits in the kernel until there is one.
            let place = Arc::clone(&self.connections).acquire_owned().await;
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::debug!(%error, "DNS listener");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let dns = Arc::clone(&self);
            tokio::spawn(async move {
                let _place = place;
                if let Err(error) = dns.answer_connection(connection).await {
                    tracing::debug!(%error, "DNS connection");
                }
            });
        }
    }

    /// One question after the other (RFC 7766 §6.2.1.1 allows more, and asks for no more of a server).
    async fn answer_connection(&self, mut connection: TcpStream) -> io::Result<()> {
        loop {
            let length = match timeout(CONNECTION_IDLE, connection.read_u16()).await {
                Ok(Ok(length)) => usize::from(length),
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            if length > MAX_QUESTION {
                self.count("malformed");
                return Ok(());
            }
            let mut question = vec![0; length];
            timeout(CONNECTION_IDLE, connection.read_exact(&mut question)).await??;
            let Ok(request) = Message::from_vec(&question) else {
                self.count("malformed");
                return Ok(());
            };
            let answer = match decide(&request, self.directory.now().as_deref()) {
                Decision::Ignore => return Ok(()),
                Decision::Answer(answer, label) => {
                    self.count(label);
                    *answer
                }
                Decision::Forward(query) => match self.places.try_acquire() {
                    Ok(_place) => self.forward(&request, query).await,
                    Err(_) => {
                        self.count("overload");
                        refusal(&request, ResponseCode::ServFail)
                    }
                },
            };
            let bytes = answer.to_vec().map_err(io::Error::other)?;
            let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &bytes].concat();
            timeout(CONNECTION_IDLE, connection.write_all(&framed)).await??;
        }
    }

    async fn forward(&self, request: &Message, query: Query) -> Message {
        let outcome = match &self.resolver {
            Some(resolver) => {
                let asked = resolver.lookup(query.name().clone(), query.query_type());
                timeout(FORWARD_WITHIN, asked).await.unwrap_or(Err(NetError::Timeout))
            }
            None => Err(NetError::NoConnections),
        };
        if let Err(error) = &outcome {
            tracing::debug!(name = %query.name(), %error, "a name that others were asked for");
        }
        let (answer, label) = forwarded(request, outcome);
        self.count(label);
        answer
    }

    fn count(&self, answer: &'static str) {
        self.queries.get_or_create(&QueryLabels { answer }).inc();
    }
}

async fn send(socket: &UdpSocket, to: SocketAddr, request: &Message, answer: &Message) {
    let Some(bytes) = to_datagram(request, answer) else { return };
    if let Err(error) = socket.send_to(&bytes, to).await {
        tracing::debug!(%error, "an answer of the DNS");
    }
}

fn resolver(upstreams: &[SocketAddr], own: u16) -> Result<TokioResolver, NetError> {
    let servers = match upstreams {
        [] => read_system_conf()?.0.name_servers().to_vec(),
        given => given.iter().map(|address| name_server(*address)).collect(),
    };
    let is_ours = |server: &NameServerConfig| {
        let is_here = server.ip.is_loopback() || server.ip.is_unspecified();
        is_here && server.connections.iter().any(|connection| connection.port == own)
    };
    let servers: Vec<_> = servers.into_iter().filter(|server| !is_ours(server)).collect();
    if servers.is_empty() {
        return Err(NetError::NoConnections);
    }
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options()).build()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

fn options() -> ResolverOpts {
    let network = |address: IpAddr, prefix: u8| {
        format!("{address}/{prefix}").parse().expect("an address and its prefix are a network")
    };
    let mut options = ResolverOpts::default();
    options.timeout = ASK_WITHIN;
    options.cache_size = CACHED;
    options.max_active_requests = MAX_FORWARDED;
    // Whoever asks has looked there.
    options.use_hosts_file = ResolveHosts::Never;
    options.case_randomization = true;
    // A name outside that leads to a service of the mesh is somebody's attempt to have a program call it (rebinding).
    options.deny_answers = vec![network(V4_NETWORK.into(), V4_PREFIX), network(V6_NETWORK.into(), V6_PREFIX)];
    options
}
