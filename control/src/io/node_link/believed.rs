//! Connections that this node has dialled to others of its cluster, and their end once the other end is no longer
//! believed: what was opened before a revocation must not outlive it. Incoming connections are `server`'s.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hanse_identity::tls::{TrustSource, verified_peer};
use hanse_identity::{SpiffeId, Timestamp, Trust, Usage, VerifyError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use crate::io::cut::{self, Cut, Cutter, OtherEnd, cutter};
use crate::io::dial::{self, DialError, FIXED_SERVER_NAME};
use crate::io::keys::now;
use crate::state::State;

/// How long a node that has just been revoked is still told of what is committed: long enough to hear of its own
/// revocation, and to send its listeners elsewhere. Nothing that it says is heard any more.
pub const NODE_FAREWELL: Duration = Duration::from_millis(300);

/// The table of what was dialled.
pub struct Believed {
    trust: Arc<dyn TrustSource>,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

struct Open {
    server: OtherEnd,
    cut: Cutter,
}

/// One connection. Reading from it fails once it has been cut.
pub struct Guarded {
    stream: TlsStream<TcpStream>,
    cut: Cut,
    id: u64,
    table: Arc<Believed>,
}

impl Believed {
    pub fn new(trust: Arc<dyn TrustSource>) -> Arc<Self> {
        Arc::new(Self { trust, next: AtomicU64::new(0), open: Mutex::default() })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing of that node is believed.
    pub fn is_revoked(&self, node: &SpiffeId) -> bool {
        self.trust.trust().revocations.of_identity(node).is_some()
    }

    /// Whether a connection to that node is open.
    pub fn is_open(&self, node: &SpiffeId) -> bool {
        self.open().values().any(|connection| connection.server.verified.id() == node)
    }

    /// Dials, and keeps an eye on what comes of it.
    pub async fn dial(
        self: Arc<Self>,
        address: &str,
        config: Arc<rustls::ClientConfig>,
    ) -> Result<Guarded, DialError> {
        let stream = dial::tls(address, FIXED_SERVER_NAME, config).await?;
        let unbelieved = |why: String| DialError::Tls { address: address.to_owned(), why };
        let server = verified_peer(stream.get_ref().1, &self.trust.trust(), now(), Usage::Server)
            .map_err(|e| unbelieved(e.to_string()))?
            .ok_or_else(|| unbelieved("it shows no certificate".to_owned()))?;
        let (cutter, cut) = cutter();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open().insert(id, Open { server: OtherEnd::new(server), cut: cutter });
        Ok(Guarded { stream, cut, id, table: self })
    }

    /// Cuts what is no longer believed, for as long as the node runs.
    pub async fn keep(self: Arc<Self>, states: watch::Receiver<Arc<State>>) {
        cut::sweep(self.trust.clone(), states, |_, trust| self.cut_unbelieved(trust, now())).await;
    }

    /// Answers whether somebody is in its farewell.
    fn cut_unbelieved(&self, trust: &Trust, now: Timestamp) -> bool {
        let mut open = self.open();
        let mut over = Vec::new();
        for (id, connection) in &mut *open {
            let farewell = |error: &VerifyError| match error {
                VerifyError::Revoked { .. } => NODE_FAREWELL,
                _ => Duration::ZERO,
            };
            if let Some(why) = connection.server.verdict(trust, now, |_, error| farewell(error)) {
                tracing::info!(node = %connection.server.verified.id(), %why, "link cut");
                over.push(*id);
            }
        }
        over.iter().filter_map(|id| open.remove(id)).for_each(|connection| connection.cut.cut());
        open.values().any(|connection| connection.server.is_leaving())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.table.open().remove(&self.id);
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Err(cut) = self.cut.check(cx) {
            return Poll::Ready(Err(cut));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
