//! Severing: an I/O object that can be cut from outside.
//!
//! hyper's HTTP/2 client keeps the socket in a task of its own until its last stream ends; a revocation cannot wait for
//! that. A cut connection fails its next read or write, and everything on it with it.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// The knife.
#[derive(Clone, Default)]
pub struct Sever(Rc<State>);

#[derive(Default)]
struct State {
    cut: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    /// The I/O object has been dropped: the connection is really over.
    gone: Cell<bool>,
    departure: Notify,
}

/// The rope.
pub struct Severable<S> {
    inner: S,
    state: Sever,
}

impl Sever {
    pub fn wrap<S>(&self, inner: S) -> Severable<S> {
        Severable { inner, state: self.clone() }
    }

    pub fn cut(&self) {
        self.0.cut.set(true);
        if let Some(reader) = self.0.reader.take() {
            reader.wake();
        }
    }

    pub fn is_cut(&self) -> bool {
        self.0.cut.get()
    }

    /// Resolves when the wrapped I/O object has been dropped.
    pub async fn gone(&self) {
        while !self.0.gone.get() {
            self.0.departure.notified().await;
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.is_cut() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl<S> Drop for Severable<S> {
    fn drop(&mut self) {
        self.state.0.gone.set(true);
        self.state.0.departure.notify_one();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Severable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.state.check()?;
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_pending() {
            let mut reader = self.state.0.reader.borrow_mut();
            if !reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *reader = Some(cx.waker().clone());
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Severable<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.state.check()?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.state.check()?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.check()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.check()?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
