//! Streams: bytes both ways between an app and the mesh for as long as both ends want, as upgraded HTTP and plain TCP
//! have them. How many there may be, how they are copied, and how they end.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::body::ByteCount;
use super::listen::{Flying, InFlight};
use super::peek::Pauses;
use super::record::Record;
use crate::server_name::{self, Hello, MAX_CLIENT_HELLO_BYTES, NoHello};

/// Streams that one worker has open at a time, each way.
pub const MAX_OPEN: usize = 16_384;
/// A stream on which nothing has passed for so long is closed.
pub const IDLE_AFTER: Duration = Duration::from_secs(3600);
/// Longest wait for the two ends of a stream that both have agreed to.
const JOIN_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for a ClientHello where a route goes by the name in it.
const HELLO_WITHIN: Duration = Duration::from_secs(3);
/// How long a client may take to hear why it is sent away.
const ALERT_WITHIN: Duration = Duration::from_secs(1);
/// A DATA frame of that many bytes and its header fill one TLS record.
const BUFFER_BYTES: usize = 16 * 1024 - 9;
/// What a direction begins with: most streams say little at a time.
const FIRST_BUFFER_BYTES: usize = 2 * 1024;

/// One worker's streams in one direction, and those of its draining.
pub struct Streams {
    open: InFlight,
    worker: InFlight,
    idle: Duration,
}

/// One stream's place.
pub struct Place {
    _open: Flying,
    _worker: Flying,
}

/// Why a client that has begun TLS is sent away (RFC 8446 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    /// It names no server.
    MissingExtension = 109,
    /// It names one that is not here.
    UnrecognizedName = 112,
}

/// How a stream ended.
#[derive(Debug)]
pub enum Ending {
    /// Both directions were ended by whoever wrote them.
    Complete,
    /// Nothing passed for too long.
    Idle,
    /// Whoever has it open would no longer be let in.
    Withdrawn,
    /// The end that had dialled broke it.
    Caller(io::Error),
    /// The end that was dialled broke it.
    Target(io::Error),
}

impl Streams {
    /// `worker` counts what draining waits for.
    pub fn new(worker: InFlight, idle: Duration) -> Self {
        Self { open: InFlight::default(), worker, idle }
    }

    /// `None`: there are too many.
    pub fn place(&self) -> Option<Place> {
        (self.open.count() < MAX_OPEN)
            .then(|| Place { _open: self.open.begin(), _worker: self.worker.begin() })
    }

    pub fn idle(&self) -> Duration {
        self.idle
    }
}

impl Ending {
    /// Envoy's response flag.
    pub fn flags(&self) -> &'static str {
        match self {
            Self::Complete | Self::Withdrawn => "-",
            Self::Idle => "SI",
            Self::Caller(_) => "DC",
            Self::Target(_) => "UC",
        }
    }
}

/// Both ends of an upgrade that was agreed to.
pub async fn joined(caller: OnUpgrade, target: OnUpgrade) -> Option<(TokioIo<Upgraded>, TokioIo<Upgraded>)> {
    let both = futures_util::future::try_join(caller, target);
    match tokio::time::timeout(JOIN_WITHIN, both).await {
        Ok(Ok((caller, target))) => Some((TokioIo::new(caller), TokioIo::new(target))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "an upgrade was agreed to and did not happen");
            None
        }
        Err(_) => None,
    }
}

/// The far end of a CONNECT that was answered with 200.
pub async fn taken(on: OnUpgrade) -> Option<TokioIo<Upgraded>> {
    let upgraded = tokio::time::timeout(JOIN_WITHIN, on).await.ok()?;
    upgraded
        .inspect_err(|error| tracing::debug!(%error, "a stream was opened and is gone"))
        .ok()
        .map(TokioIo::new)
}

/// The server name that a client asks for when it begins TLS, left where it is. `None`: it begins none, names none, or says
/// nothing in time, as one does whose server speaks first.
pub async fn server_name(client: &TcpStream) -> Option<String> {
    match hello(client).await {
        Some(Hello::Name(name)) => Some(name),
        Some(Hello::Refused(_) | Hello::More) | None => None,
    }
}

/// What a client says when it begins TLS, left where it is. `More`: it was not complete in time; `None`: the client has gone.
pub async fn hello(client: &TcpStream) -> Option<Hello> {
    let mut buffer = vec![0; MAX_CLIENT_HELLO_BYTES];
    let looked = async {
        let (mut seen, mut pauses) = (0, Pauses::default());
        loop {
            let there = client.peek(&mut buffer).await.ok().filter(|there| *there > 0)?;
            if there > seen {
                seen = there;
                match server_name::read(&buffer[..there]) {
                    Hello::More if there == buffer.len() => return Some(Hello::Refused(NoHello::TooLarge)),
                    Hello::More => {}
                    told => return Some(told),
                }
            }
            pauses.next().await;
        }
    };
    tokio::time::timeout(HELLO_WITHIN, looked).await.unwrap_or(Some(Hello::More))
}

/// Ends a connection on which nothing was read but looked at, with a fatal alert of TLS, so that its client knows why.
pub async fn alert(mut client: TcpStream, alert: Alert) {
    const FATAL: u8 = 2;
    let record = [21, 3, 3, 0, 2, FATAL, alert as u8];
    let told = async {
        client.write_all(&record).await?;
        client.shutdown().await?;
        // What is left unread would have the kernel reset the connection, and the alert with it.
        let (mut unread, mut buffer) = (2 * MAX_CLIENT_HELLO_BYTES, [0; 1024]);
        while unread > 0 {
            match client.read(&mut buffer).await? {
                0 => break,
                read => unread = unread.saturating_sub(read),
            }
        }
        Ok::<(), io::Error>(())
    };
    if !matches!(tokio::time::timeout(ALERT_WITHIN, told).await, Ok(Ok(()))) {
        tracing::debug!(?alert, "a client did not wait for its alert");
    }
}

/// Has the socket reset when it is dropped, so that nobody takes what broke off for complete.
pub fn reset(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Runs a stream to its end, and the record with it.
pub async fn carry<C, T>(caller: &mut C, target: &mut T, record: Record, idle: Duration) -> Ending
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    carry_while(caller, target, record, idle, std::future::pending()).await
}

/// The same, until `withdrawn` resolves at the latest.
pub async fn carry_while<C, T>(
    caller: &mut C,
    target: &mut T,
    mut record: Record,
    idle: Duration,
    withdrawn: impl Future<Output = ()>,
) -> Ending
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let sent = ByteCount::default();
    // Told even if the task that runs it is dropped.
    record.carries(sent.clone());
    let received = record.received.clone();
    let ending = tokio::select! {
        // Nothing more is passed on once it is known.
        biased;
        () = withdrawn => Ending::Withdrawn,
        ending = exchange(caller, target, &received, &sent, idle) => ending,
    };
    record.ended(&ending);
    ending
}

/// Copies both ways. An end of one direction is passed on, and the other goes on (half-close); nothing is read that
/// could not be written before (backpressure).
async fn exchange<C, T>(
    caller: &mut C,
    target: &mut T,
    received: &ByteCount,
    sent: &ByteCount,
    idle: Duration,
) -> Ending
where
    C: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let last = Cell::new(Instant::now());
    let ((caller_read, caller_write), (target_read, target_write)) = (split(caller), split(target));
    let there = async {
        let (read, written) = copy(caller_read, target_write, received, &last).await;
        read.map_err(Ending::Caller).and(written.map_err(Ending::Target))
    };
    let back = async {
        let (read, written) = copy(target_read, caller_write, sent, &last).await;
        read.map_err(Ending::Target).and(written.map_err(Ending::Caller))
    };
    tokio::select! {
        ended = futures_util::future::try_join(there, back) => ended.err().unwrap_or(Ending::Complete),
        () = silence(&last, idle) => Ending::Idle,
    }
}

/// One direction, to its end; what became of reading and of writing.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: &ByteCount,
    last: &Cell<Instant>,
) -> (io::Result<()>, io::Result<()>) {
    let mut buffer = vec![0; FIRST_BUFFER_BYTES];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) => return (Ok(()), to.shutdown().await),
            Ok(read) => read,
            Err(error) => return (Err(error), Ok(())),
        };
        if let Err(error) = to.write_all(&buffer[..read]).await {
            return (Ok(()), Err(error));
        }
        count.add_bytes(read);
        last.set(Instant::now());
        if read == buffer.len() && read < BUFFER_BYTES {
            buffer.resize(BUFFER_BYTES, 0);
        }
    }
}

/// Resolves when nothing has passed for `idle`.
async fn silence(last: &Cell<Instant>, idle: Duration) {
    loop {
        let over = last.get() + idle;
        if Instant::now() >= over {
            return;
        }
        tokio::time::sleep_until(over).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    const IDLE: Duration = Duration::from_millis(80);

    /// A stream under way between two ends that are given back, each with little room.
    fn started() -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<(Ending, u64, u64)>) {
        let ((mut caller, near), (mut target, far)) = (duplex(1 << 10), duplex(1 << 10));
        let ended = tokio::task::spawn_local(async move {
            let (received, sent) = (ByteCount::default(), ByteCount::default());
            let ending = exchange(&mut caller, &mut target, &received, &sent, IDLE).await;
            (ending, received.get(), sent.get())
        });
        (near, far, ended)
    }

    fn on_local_set<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn one_direction_outlives_the_other_and_traffic_keeps_a_stream() {
        on_local_set(async {
            let (mut near, mut far, ended) = started();
            near.write_all(b"question").await.unwrap();
            near.shutdown().await.unwrap();
            let mut question = String::new();
            far.read_to_string(&mut question).await.unwrap();
            assert_eq!(question, "question");
            let began = Instant::now();
            while began.elapsed() < IDLE * 3 {
                far.write_all(b"answer").await.unwrap();
                near.read_exact(&mut [0; 6]).await.unwrap();
                tokio::time::sleep(IDLE / 8).await;
            }
            far.shutdown().await.unwrap();
            assert_eq!(near.read(&mut [0; 6]).await.unwrap(), 0);
            let (ending, received, sent) = ended.await.unwrap();
            assert!(matches!(ending, Ending::Complete), "{ending:?}");
            assert_eq!((received, sent % 6), (8, 0));
        });
    }

    #[test]
    fn whoever_does_not_read_stops_whoever_writes_and_silence_ends_both() {
        on_local_set(async {
            let (mut near, far, ended) = started();
            let writing = near.write_all(&[7; 1 << 20]);
            let written = tokio::time::timeout(IDLE * 50, writing).await;
            assert!(written.is_ok_and(|written| written.is_err()), "it was cut while it waited");
            let (ending, received, _) = ended.await.unwrap();
            assert!(matches!(ending, Ending::Idle), "{ending:?}");
            assert!(received <= 2 << 10, "{received} bytes are nowhere");
            drop(far);
        });
    }

    #[test]
    fn it_is_known_which_end_broke() {
        on_local_set(async {
            let (mut near, far, ended) = started();
            drop(far);
            // The target's end of file is passed on; what is written to it then finds nobody.
            let _ = near.write_all(&[7; 4 << 10]).await;
            let (ending, ..) = ended.await.unwrap();
            assert_eq!((ending.flags(), matches!(ending, Ending::Target(_))), ("UC", true), "{ending:?}");
        });
    }
}
