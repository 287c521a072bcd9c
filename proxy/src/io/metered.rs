//! Metering: HTTP/2 frames are counted as their bytes pass, and a flood ends its connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use hanse_identity::frames::Frames;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::runtime::telemetry::Telemetry;

/// What `hanse_refused_total` counts a flood as.
pub const FLOOD: &str = "http2_flood";

/// An I/O object that HTTP/2 is spoken on.
pub struct Metered<S> {
    inner: S,
    frames: Frames,
    telemetry: Arc<Telemetry>,
}

impl<S> Metered<S> {
    pub fn new(inner: S, frames: Frames, telemetry: Arc<Telemetry>) -> Self {
        Self { inner, frames, telemetry }
    }

    fn wrote(&mut self, polled: &Poll<io::Result<usize>>, bufs: &[io::IoSlice<'_>]) {
        let Poll::Ready(Ok(mut left)) = *polled else { return };
        for buf in bufs {
            let n = left.min(buf.len());
            self.frames.sent(&buf[..n]);
            left -= n;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Err(flood) = self.frames.received(&buf.filled()[before..], Instant::now) {
            self.telemetry.refused(FLOOD);
            tracing::warn!(%flood, "connection closed");
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(&polled, &[io::IoSlice::new(buf)]);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(&polled, bufs);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
