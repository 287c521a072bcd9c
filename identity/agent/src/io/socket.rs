//! The agent's Unix socket: binding it, and attesting whoever connects before gRPC sees a byte.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hanse_identity::frames::Frames;
use nix::fcntl::OFlag;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::stopped;
use super::telemetry::Metrics;
use crate::attest::{AttestError, Attestor, Caller, Peer};

/// Local connections served at once; more are closed.
pub const MAX_CALLERS: usize = 4096;
/// Of these, how many one user may have.
pub const MAX_CALLERS_PER_USER: usize = MAX_CALLERS / 2;
/// Attested connections that wait for the server to take them.
const MAX_WAITING: usize = 64;
/// Callers that are looked at at once.
const MAX_ATTESTING: usize = 8;
/// How long attestation may take.
const ATTEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept (no descriptors left), so that it is not retried at full speed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What attestation found out; every request of the connection carries it.
#[derive(Clone, Debug)]
pub struct Attested(pub Result<Arc<Caller>, AttestError>);

/// One attested connection.
pub struct Connection {
    stream: UnixStream,
    frames: Frames,
    metrics: Arc<Metrics>,
    attested: Attested,
    _permit: OwnedSemaphorePermit,
    _share: Share,
}

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("another agent is listening on {}", .0.display())]
    Taken(PathBuf),
    #[error("{} is there and is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("socket {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The socket file; removed when dropped, if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Keeps the inode, so that its number cannot become another file's.
    file: File,
}

/// Listens on `path`. A socket that nobody listens on any more is replaced.
///
/// Anyone may connect (mode 0666): who gets something is decided by attestation, and the directory can be
/// closed to others where that is wanted.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory).map_err(failed)?;
            }
        }
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(e) => return Err(failed(e)),
            Ok(_) => return Err(BindError::Taken(path.to_owned())),
        },
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    let path_only = OFlag::O_PATH.bits() | OFlag::O_NOFOLLOW.bits();
    let file = OpenOptions::new().read(true).custom_flags(path_only).open(path).map_err(failed)?;
    Ok((listener, SocketFile { path: path.to_owned(), file }))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let identity = |meta: io::Result<Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        let there = identity(std::fs::symlink_metadata(&self.path));
        if there.is_some()
            && there == identity(self.file.metadata())
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket file could not be removed");
        }
    }
}

/// Accepts and attests until shutdown; the stream yields connections for the server.
pub fn connections(
    listener: UnixListener,
    metrics: Arc<Metrics>,
    mut shutdown: watch::Receiver<bool>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, incoming) = mpsc::channel(MAX_WAITING);
    let door = Arc::new(Door {
        callers: Arc::new(Semaphore::new(MAX_CALLERS)),
        users: Arc::default(),
        attesting: Arc::new(Semaphore::new(MAX_ATTESTING)),
        attestor: Arc::new(Attestor::default()),
        metrics,
    });
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut shutdown) => return,
                () = ready.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => door.admit(stream, &ready),
                    Err(error) => {
                        tracing::warn!(%error, "accepting a local connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    });
    ReceiverStream::new(incoming)
}

/// What accepting needs.
struct Door {
    callers: Arc<Semaphore>,
    users: Arc<Users>,
    attesting: Arc<Semaphore>,
    attestor: Arc<Attestor>,
    metrics: Arc<Metrics>,
}

/// How many connections each user has.
#[derive(Debug, Default)]
struct Users {
    held: Mutex<BTreeMap<u32, usize>>,
}

/// One connection of a user; given back when dropped.
#[derive(Debug)]
struct Share {
    users: Arc<Users>,
    uid: u32,
}

impl Users {
    /// `None` if that user has as many as it may.
    fn enter(self: &Arc<Self>, uid: u32) -> Option<Share> {
        let mut held = self.held.lock().expect("no holder of this lock panics");
        let count = held.entry(uid).or_default();
        if *count >= MAX_CALLERS_PER_USER {
            return None;
        }
        *count += 1;
        Some(Share { users: Arc::clone(self), uid })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.users.held.lock().expect("no holder of this lock panics");
        if let Some(count) = held.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.uid);
            }
        }
    }
}

impl Door {
    /// Attests in a task of its own: one slow look does not keep others waiting at the door.
    fn admit(self: &Arc<Self>, stream: UnixStream, ready: &mpsc::Sender<io::Result<Connection>>) {
        let Ok(permit) = Arc::clone(&self.callers).try_acquire_owned() else {
            self.metrics.connections_refused.inc();
            tracing::warn!(limit = MAX_CALLERS, "too many local connections, one is closed");
            return;
        };
        // Who cannot be named is refused by attestation; there is nobody to share with.
        let uid = stream.peer_cred().map_or(u32::MAX, |credentials| credentials.uid());
        let Some(share) = self.users.enter(uid) else {
            self.metrics.connections_refused.inc();
            tracing::debug!(
                uid,
                limit = MAX_CALLERS_PER_USER,
                "too many connections of one user, one is closed"
            );
            return;
        };
        let (door, ready) = (Arc::clone(self), ready.clone());
        tokio::spawn(async move {
            let attested = tokio::time::timeout(ATTEST_TIMEOUT, door.attest(&stream)).await;
            let attested = attested.unwrap_or(Err(AttestError::Timeout));
            if let Err(error) = &attested {
                door.metrics.attestation_failures.inc();
                tracing::warn!(%error, "a local caller was not attested");
            }
            let connection = Connection {
                stream,
                frames: Frames::of_client(),
                metrics: Arc::clone(&door.metrics),
                attested: Attested(attested.map(Arc::new)),
                _permit: permit,
                _share: share,
            };
            // Fails only when the server has stopped.
            let _ = ready.send(Ok(connection)).await;
        });
    }

    async fn attest(&self, stream: &UnixStream) -> Result<Caller, AttestError> {
        let peer = Peer::of(stream)?;
        let permit = Arc::clone(&self.attesting).acquire_owned().await.map_err(|_| AttestError::Timeout)?;
        let attestor = Arc::clone(&self.attestor);
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            attestor.attest(&peer)
        });
        work.await.map_err(|_| AttestError::Timeout)?
    }
}

impl Connected for Connection {
    type ConnectInfo = Attested;

    fn connect_info(&self) -> Attested {
        self.attested.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Err(flood) = self.frames.received(&buf.filled()[before..], Instant::now) {
            self.metrics.floods.inc();
            tracing::warn!(%flood, "a local connection is closed");
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            self.frames.sent(&buf[..written]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_does_not_take_the_places_of_all() {
        let users = Arc::new(Users::default());
        let mut shares: Vec<_> = (0..MAX_CALLERS_PER_USER).filter_map(|_| users.enter(1000)).collect();
        assert_eq!(shares.len(), MAX_CALLERS_PER_USER);
        assert!(users.enter(1000).is_none());
        assert!(users.enter(1001).is_some());
        shares.pop();
        assert!(users.enter(1000).is_some(), "a place that was given back is free");
        drop(shares);
        assert!(users.held.lock().unwrap().is_empty());
    }
}
