//! What comes out of a tunnel has to begin TLS: a port that takes plain text for a while takes it from its own network, and no
//! joined cluster's caller may come to it as nobody.
//!
//! The port tells by first bytes, and takes silence for a client whose server speaks first. So these bytes are read here, and
//! judged as there; until they are whole nothing goes either way, and they come to a connection that is younger than that silence.
//! (Where they come later all the same, the port resets what begins TLS after it.)

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use hanse_proxy::plain::{Begins, begins};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::CONNECT_TIMEOUT;
use super::relay::relay;
use crate::telemetry::Open;

/// How old a connection to an endpoint may be when it hears its first bytes: half of what a port that is plain TCP waits for them.
const YOUNG_FOR: Duration = Duration::from_millis(500);
/// Longest wait for the bytes that begin TLS: by then the caller's proxy has given its handshake up.
const BEGINS_WITHIN: Duration = Duration::from_millis(1500);
/// Room for a ClientHello.
const FIRST_BYTES: usize = 2 * 1024;

/// An endpoint's connection, on which nothing has been said.
pub struct Target {
    stream: TcpStream,
    address: SocketAddr,
    /// When it was dialled: its other end has not taken it before.
    since: Instant,
}

/// How a stream came to its end.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("it does not begin TLS")]
    NotTls,
    #[error("it says nothing")]
    Silent,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Target {
    pub async fn dial(address: SocketAddr) -> io::Result<Self> {
        // Before it: the other end may have taken it long before this task is woken.
        let since = Instant::now();
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        let _ = stream.set_nodelay(true);
        Ok(Self { stream, address, since })
    }

    fn is_young(&self) -> bool {
        self.since.elapsed() < YOUNG_FOR
    }
}

/// Carries a stream to its end, if it begins TLS.
pub async fn carry(
    mut dialler: impl AsyncRead + AsyncWrite + Unpin,
    target: Target,
    open: Open,
) -> Result<(), Ended> {
    let (address, since) = (target.address, target.since);
    let mut first = Vec::with_capacity(FIRST_BYTES);
    let young = {
        let mut reading = pin!(read_first(&mut dialler, &mut first));
        match timeout_at(since + YOUNG_FOR, reading.as_mut()).await {
            Ok(read) => read.map(|()| Some(target))?,
            Err(_) => {
                drop(target);
                timeout_at(since + BEGINS_WITHIN, reading).await.map_err(|_| Ended::Silent)??;
                None
            }
        }
    };
    // Asked once more: this task may have been kept waiting itself.
    let mut target = match young.filter(Target::is_young) {
        Some(target) => target,
        None => Target::dial(address).await?,
    };
    open.inward.inc_by(first.len() as u64);
    target.stream.write_all(&first).await?;
    drop(first);
    Ok(relay(dialler, target.stream, open).await?)
}

/// Reads until it is told whether it is TLS.
async fn read_first(dialler: &mut (impl AsyncRead + Unpin), first: &mut Vec<u8>) -> Result<(), Ended> {
    loop {
        if dialler.read_buf(first).await? == 0 {
            return Err(Ended::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        match begins(first) {
            Begins::Tls => return Ok(()),
            Begins::Plain => return Err(Ended::NotTls),
            Begins::More => {}
        }
    }
}
