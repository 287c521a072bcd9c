//! Relay: bytes both ways between two streams until both have ended, counted as they flow.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf, split};

use crate::telemetry::Open;

/// One TLS record and its header fit.
pub const BUFFER_BYTES: usize = 17 * 1024;

/// How long one direction may outlive the other. Nothing that is carried here half-closes, and somebody who keeps a
/// dead stream's other half open must not keep its place.
const HALF_OPEN_FOR: Duration = Duration::from_secs(5);

/// Copies until both directions have ended (the second soon after the first) or one fails. `open` keeps the stream
/// counted.
pub async fn relay(
    dialler: impl AsyncRead + AsyncWrite + Unpin,
    target: impl AsyncRead + AsyncWrite + Unpin,
    open: Open,
) -> io::Result<()> {
    let dialler = Counted { stream: dialler, read: open.inward.clone() };
    let target = Counted { stream: target, read: open.outward.clone() };
    let ((from_dialler, to_dialler), (from_target, to_target)) = (split(dialler), split(target));
    both(pin!(copy(from_dialler, to_target)), pin!(copy(from_target, to_dialler))).await
}

/// Both directions to their ends, the second soon after the first.
pub async fn both(
    mut there: Pin<&mut impl Future<Output = io::Result<()>>>,
    mut back: Pin<&mut impl Future<Output = io::Result<()>>>,
) -> io::Result<()> {
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    tokio::select! {
        first = there.as_mut() => {
            first?;
            tokio::time::timeout(HALF_OPEN_FOR, back).await.unwrap_or_else(late)
        }
        first = back.as_mut() => {
            first?;
            tokio::time::timeout(HALF_OPEN_FOR, there).await.unwrap_or_else(late)
        }
    }
}

async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    tokio::io::copy_buf(&mut BufReader::with_capacity(BUFFER_BYTES, from), &mut to).await?;
    to.shutdown().await
}

/// A stream whose reads are counted at once, so that a long-lived stream shows while it lives.
struct Counted<S> {
    stream: S,
    read: Counter,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.read.inc_by((buf.filled().len() - before) as u64);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
