//! Relay: bytes both ways between two streams until both have ended, counted as they flow.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::telemetry::Open;

/// One TLS record and its header fit.
const BUFFER_BYTES: usize = 17 * 1024;

/// Copies until both directions have ended or one fails. `open` keeps the stream counted.
pub async fn relay(
    dialler: impl AsyncRead + AsyncWrite + Unpin,
    target: impl AsyncRead + AsyncWrite + Unpin,
    open: Open,
) -> io::Result<()> {
    let mut dialler = Counted { stream: dialler, read: open.inward.clone() };
    let mut target = Counted { stream: target, read: open.outward.clone() };
    tokio::io::copy_bidirectional_with_sizes(&mut dialler, &mut target, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}

/// A stream whose reads are counted at once, so that a long-lived stream shows while it lives.
struct Counted<S> {
    stream: S,
    read: Counter,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
