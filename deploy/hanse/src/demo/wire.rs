//! The wire: TCP relays that whatever crosses from one cluster to another passes through.
//!
//! It can add latency, fall silent, or reset. The product knows nothing of it: control nodes and gateways
//! advertise a relay's address to their peers as they would advertise a load balancer's. One relay per target;
//! who dials is not known, so cutting a pair of clusters cuts both of them from every other.
//!
//! Silence is what TCP makes of a network that drops packets: bytes, closings and new connections are held, not
//! acknowledged further than the kernel's buffers, and pass after the heal if both ends still care.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Chunks on their way per direction and connection.
const CHUNKS_IN_FLIGHT: usize = 64;
/// Largest chunk.
const CHUNK_BYTES: usize = 32 * 1024;
/// How long the far end may take to accept.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Flags of the wire's process.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// JSON file with the relays
    #[arg(long)]
    pub relays: PathBuf,
    /// Unix socket on which modes are set and asked
    #[arg(long)]
    pub control: PathBuf,
    /// Round trip that the wire adds, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
}

/// One relay: `listen` stands for `target`, which belongs to `cluster`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Relay {
    pub cluster: String,
    pub name: String,
    pub listen: SocketAddr,
    pub target: SocketAddr,
}

/// What the wire does to a cluster's relays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Open,
    /// Nothing passes and nobody is told.
    Silent,
    /// Connections are reset, the live ones and every new one.
    Reset,
}

/// A request on the control socket, one JSON line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    Set { clusters: Vec<String>, mode: Mode },
    Status,
}

/// The answer, one JSON line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub modes: BTreeMap<String, Mode>,
    /// By relay name.
    pub relays: BTreeMap<String, RelayStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayStatus {
    pub connections: u64,
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug)]
struct Wire {
    modes: BTreeMap<String, watch::Sender<Mode>>,
    counters: BTreeMap<String, Arc<Counters>>,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    let relays: Vec<Relay> = serde_json::from_slice(&std::fs::read(&config.relays)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            served = serve(relays, &config.control, Duration::from_millis(config.latency_ms)) => served,
            () = super::signals::terminated() => Ok(()),
        }
    })
}

/// Relays until dropped. `latency` is the round trip to add: half of it in each direction.
pub async fn serve(relays: Vec<Relay>, control: &Path, latency: Duration) -> anyhow::Result<()> {
    let mut wire = Wire { modes: BTreeMap::new(), counters: BTreeMap::new() };
    let mut tasks = tokio::task::JoinSet::new();
    for relay in relays {
        let mode = wire
            .modes
            .entry(relay.cluster.clone())
            .or_insert_with(|| watch::Sender::new(Mode::Open))
            .subscribe();
        let counters = wire.counters.entry(relay.name.clone()).or_default().clone();
        let listener = TcpListener::bind(relay.listen)
            .await
            .map_err(|e| anyhow::anyhow!("relay {} cannot listen on {}: {e}", relay.name, relay.listen))?;
        tasks.spawn(accept(listener, relay.target, mode, counters, latency / 2));
    }
    let _ = std::fs::remove_file(control);
    let socket = UnixListener::bind(control)?;
    tracing::info!(relays = wire.counters.len(), ?latency, "wire serves");
    let wire = Arc::new(wire);
    loop {
        let (stream, _) = socket.accept().await?;
        tokio::spawn(converse(wire.clone(), stream));
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    mode: watch::Receiver<Mode>,
    counters: Arc<Counters>,
    delay: Duration,
) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        counters.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(relay(near, target, mode.clone(), counters.clone(), delay));
    }
}

/// One connection: waits out silence, dials, carries both ways, and is reset when the wire resets.
async fn relay(
    near: TcpStream,
    target: SocketAddr,
    mut mode: watch::Receiver<Mode>,
    counters: Arc<Counters>,
    delay: Duration,
) {
    if !passes(&mut mode).await {
        return reset(&near);
    }
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(target)).await;
    let Ok(Ok(far)) = dialled else { return reset(&near) };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let mut resets = mode.clone();
    let reset_both = {
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let there = carry(near_read, far_write, mode.clone(), counters.clone(), delay);
        let back = carry(far_read, near_write, mode, counters, delay);
        tokio::pin!(there, back);
        tokio::select! {
            biased;
            _ = resets.wait_for(|m| *m == Mode::Reset) => true,
            () = async { let _ = tokio::join!(&mut there, &mut back); } => false,
        }
        // Both halves are dropped here; `carry` set them to reset when the mode says so.
    };
    if reset_both {
        tracing::debug!(%target, "connection reset");
    }
}

/// Waits until the wire is open; `false` when it resets.
async fn passes(mode: &mut watch::Receiver<Mode>) -> bool {
    match mode.wait_for(|m| *m != Mode::Silent).await {
        Ok(mode) => *mode == Mode::Open,
        Err(_) => false,
    }
}

fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Resets its socket, if the wire resets when it is dropped, instead of closing it politely.
struct ResetOnDrop {
    /// There until the drop.
    write: Option<tokio::net::tcp::OwnedWriteHalf>,
    mode: watch::Receiver<Mode>,
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(write) = self.write.take()
            && *self.mode.borrow() == Mode::Reset
        {
            reset(write.as_ref());
            // Dropped as a half, it would send a closing first.
            write.forget();
        }
    }
}

impl ResetOnDrop {
    fn write(&mut self) -> &mut tokio::net::tcp::OwnedWriteHalf {
        self.write.as_mut().expect("the half is taken by the drop only")
    }
}

/// One direction. Reading stops when the queue is full, so that silence is felt as back pressure.
async fn carry(
    mut read: tokio::net::tcp::OwnedReadHalf,
    write: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    counters: Arc<Counters>,
    delay: Duration,
) {
    let (sender, mut queue) = mpsc::channel::<(Instant, Bytes)>(CHUNKS_IN_FLIGHT);
    let mut write = ResetOnDrop { write: Some(write), mode: mode.clone() };
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let due = Instant::now() + delay;
            if sender.send((due, buffer.split().freeze())).await.is_err() {
                break;
            }
        }
        // The closing travels like the bytes before it: the writer sees the queue end after the last of them.
    };
    let writing = async move {
        while let Some((due, chunk)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            if !passes(&mut mode).await || write.write().write_all(&chunk).await.is_err() {
                return;
            }
            counters.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        if passes(&mut mode).await {
            let _ = write.write().shutdown().await;
        }
    };
    tokio::join!(reading, writing);
}

async fn converse(wire: Arc<Wire>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut status = match serde_json::from_str::<Request>(&line) {
            Ok(request) => perform(&wire, request),
            Err(error) => Status { error: Some(error.to_string()), ..Status::default() },
        };
        for (name, counters) in &wire.counters {
            let connections = counters.connections.load(Ordering::Relaxed);
            let bytes = counters.bytes.load(Ordering::Relaxed);
            status.relays.insert(name.clone(), RelayStatus { connections, bytes });
        }
        status.modes = wire.modes.iter().map(|(c, m)| (c.clone(), *m.borrow())).collect();
        let mut answer = serde_json::to_vec(&status).expect("a Status has string keys only");
        answer.push(b'\n');
        if write.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn perform(wire: &Wire, request: Request) -> Status {
    let mut status = Status::default();
    if let Request::Set { clusters, mode } = request {
        for cluster in clusters {
            match wire.modes.get(&cluster) {
                Some(sender) => {
                    sender.send_replace(mode);
                }
                None => status.error = Some(format!("no relay leads to cluster {cluster}")),
            }
        }
        tracing::info!(?mode, "wire set");
    }
    status
}

/// Sends one request to the wire at `control`.
pub async fn ask(control: &Path, request: &Request) -> anyhow::Result<Status> {
    let status: Status = super::socket::ask(control, request).await?;
    match status.error {
        Some(error) => anyhow::bail!("the wire: {error}"),
        None => Ok(status),
    }
}

#[cfg(test)]
mod tests;
