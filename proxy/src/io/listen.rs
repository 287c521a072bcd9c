//! Listening: sockets that all workers share by SO_REUSEPORT, and the loop that accepts from one.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::runtime::drain::Stop;

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;
/// Connections that one worker serves on one listener at a time.
pub const MAX_CONNECTIONS: usize = 16_384;
/// Pause after an accept that failed for want of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Counts what is being worked on, and tells when it is over. One per worker.
#[derive(Clone, Default)]
pub struct InFlight(Rc<Counted>);

#[derive(Default)]
struct Counted {
    count: Cell<usize>,
    changed: Notify,
}

/// One thing in flight.
pub struct Flying(InFlight);

impl InFlight {
    pub fn begin(&self) -> Flying {
        self.0.count.set(self.0.count.get() + 1);
        Flying(self.clone())
    }

    pub fn count(&self) -> usize {
        self.0.count.get()
    }

    /// Resolves when nothing is in flight.
    pub async fn none(&self) {
        while self.count() > 0 {
            self.0.changed.notified().await;
        }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        let counted = &self.0.0;
        counted.count.set(counted.count.get() - 1);
        counted.changed.notify_one();
    }
}

/// Binds `address` once for each of `workers`; with several, the kernel spreads connections over them. Whether the
/// address is free is asked first, because SO_REUSEPORT would share it silently with another process of ours; a successor
/// that means to may `take_over`.
pub fn bind(address: SocketAddr, workers: usize) -> std::io::Result<Vec<std::net::TcpListener>> {
    let first = bind_one(address, false)?;
    if workers <= 1 {
        // For a successor, now that it is ours.
        SockRef::from(&first).set_reuse_port(true)?;
        return Ok(vec![first]);
    }
    let address = first.local_addr()?;
    drop(first);
    (0..workers).map(|_| bind_one(address, true)).collect()
}

/// Binds an address that another process of the same user may still listen on: until that one ends, the kernel spreads
/// connections over both.
pub fn take_over(address: SocketAddr, workers: usize) -> std::io::Result<Vec<std::net::TcpListener>> {
    (0..workers.max(1)).map(|_| bind_one(address, true)).collect()
}

/// `bind` or `take_over`.
pub type Bind = fn(SocketAddr, usize) -> std::io::Result<Vec<std::net::TcpListener>>;

/// Binds a port of both loopback addresses, each once for each worker; only of IPv4 where the host has no IPv6.
pub fn bind_loopback(
    bind: Bind,
    port: u16,
    workers: usize,
) -> std::io::Result<Vec<Vec<std::net::TcpListener>>> {
    let v4 = bind((Ipv4Addr::LOCALHOST, port).into(), workers)?;
    match bind((Ipv6Addr::LOCALHOST, port).into(), workers) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) if is_without_ipv6(&error) => {
            tracing::warn!(%error, port, "no IPv6 loopback: only IPv4 is listened to");
            Ok(vec![v4])
        }
        Err(error) => Err(error),
    }
}

/// Whether a socket could not be had because the host has no IPv6.
fn is_without_ipv6(error: &std::io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == std::io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn bind_one(address: SocketAddr, shared: bool) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until draining begins, and serves each connection as a local task that `in_flight` counts. Who has connected by
/// then is served too: the kernel resets those that wait at a listener when it is closed.
pub async fn accept_each<F>(
    listener: TcpListener,
    mut stop: Stop,
    in_flight: InFlight,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let here = InFlight::default();
    // Nothing has ended before everybody who waits here has been taken in.
    let _listening = in_flight.begin();
    let take = |stream: TcpStream, from: SocketAddr| {
        if here.count() >= MAX_CONNECTIONS {
            tracing::warn!(%from, "connection refused: this worker serves {MAX_CONNECTIONS} already");
            return;
        }
        let _ = stream.set_nodelay(true);
        let (counted, everywhere) = (here.begin(), in_flight.begin());
        let served = serve(stream, from);
        tokio::task::spawn_local(async move {
            served.await;
            drop((counted, everywhere));
        });
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => take(stream, from),
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..BACKLOG {
        let Ok((stream, from)) = listener.accept() else { return };
        match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            Ok(stream) => take(stream, from),
            Err(error) => tracing::warn!(%error, %from, "a connection that waited is lost"),
        }
    }
}
