//! Relay between two TCP connections whose bytes nobody looks at. Small messages are read and written; a direction that has
//! become a stream is moved inside the kernel, through a pipe (splice(2)), until it trickles again: for a small message the
//! pipe costs more than the copy that it saves.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::relay::{BUFFER_BYTES, both};
use crate::telemetry::Open;

/// Pipes of a gateway at a time, two files each; where there are no more, bytes are copied.
const MAX_PIPES: usize = 256;
/// Of these, how many are kept when nobody needs them.
const MAX_IDLE_PIPES: usize = 16;
/// Room that is asked for in a pipe; the kernel gives what it can.
const PIPE_BYTES: usize = 256 * 1024;
/// What a pipe has unasked; with less it is not used.
const LEAST_PIPE_BYTES: i32 = 64 * 1024;
/// Reads that filled the buffer, more than those that did not, after which a direction is a stream.
const STREAM_AFTER: u32 = 16;
/// Moves in a row of less than `BUFFER_BYTES`, after which it is none any more.
const TRICKLE_AFTER: u32 = 16;

/// The pipes of one gateway.
pub struct Pipes {
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Pipe>>,
}

/// A pipe that never blocks. Whoever fills it empties it before the next time, so that "would block" is always the
/// socket's word.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    _place: OwnedSemaphorePermit,
}

/// How a time in the kernel ended. The pipe is empty.
#[derive(Debug, PartialEq, Eq)]
enum Moved {
    /// The sender has ended.
    End,
    /// Little comes at a time.
    Trickle,
    /// This kernel does not do it for these two.
    Unable,
}

impl Default for Pipes {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_PIPES)), idle: Mutex::default() }
    }
}

impl Pipes {
    fn take(&self) -> Option<Pipe> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // Without one (no more places, no more files) it goes on as it was.
        idle.or_else(|| Pipe::new(Arc::clone(&self.places).try_acquire_owned().ok()?).ok())
    }

    /// Takes back an empty one.
    fn give_back(&self, pipe: Pipe) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_PIPES {
            idle.push(pipe);
        }
    }
}

impl Pipe {
    fn new(place: OwnedSemaphorePermit) -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let bytes = i32::try_from(PIPE_BYTES).expect("a constant of some kilobytes");
        // Above its user's limit (pipe-user-pages-soft) a pipe has two pages: then copying is cheaper.
        if fcntl(&write, FcntlArg::F_SETPIPE_SZ(bytes)).is_err()
            && fcntl(&write, FcntlArg::F_GETPIPE_SZ)? < LEAST_PIPE_BYTES
        {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { read, write, _place: place })
    }
}

/// As `relay`, for two TCP connections.
pub async fn relay_tcp(
    mut dialler: TcpStream,
    mut target: TcpStream,
    open: Open,
    pipes: &Pipes,
) -> io::Result<()> {
    let ((from_dialler, to_dialler), (from_target, to_target)) = (dialler.split(), target.split());
    let there = pin!(carry(from_dialler, to_target, &open.inward, pipes));
    let back = pin!(carry(from_target, to_dialler, &open.outward, pipes));
    both(there, back).await
}

/// One direction to its end.
async fn carry(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    count: &Counter,
    pipes: &Pipes,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut full, mut able) = (0, true);
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        count.inc_by(read as u64);
        to.write_all(&buffer[..read]).await?;
        // Who writes blocks that a few reads take leaves one of these half full.
        full = if read == buffer.len() { full + 1 } else { u32::saturating_sub(full, 1) };
        if full < STREAM_AFTER || !able {
            continue;
        }
        full = 0;
        let Some(pipe) = pipes.take() else { continue };
        // Dropped on the way, or broken, it may have something in it: then it is not given back.
        let moved = stream(from.as_ref(), to.as_ref(), &pipe, count).await?;
        pipes.give_back(pipe);
        match moved {
            Moved::End => return to.shutdown().await,
            Moved::Trickle => {}
            Moved::Unable => able = false,
        }
    }
}

/// Moves until the end, or until little comes at a time.
async fn stream(from: &TcpStream, to: &TcpStream, pipe: &Pipe, count: &Counter) -> io::Result<Moved> {
    let mut small = 0;
    while small < TRICKLE_AFTER {
        let moved = from.async_io(Interest::READABLE, || shift(from, &pipe.write, PIPE_BYTES)).await;
        let mut left = match moved {
            Ok(0) => return Ok(Moved::End),
            Ok(moved) => moved,
            // EINVAL and ENOSYS: nothing has been taken yet.
            Err(error) if is_unable(&error) => return Ok(Moved::Unable),
            Err(error) => return Err(error),
        };
        small = if left < BUFFER_BYTES { small + 1 } else { 0 };
        count.inc_by(left as u64);
        while left > 0 {
            let gone = to.async_io(Interest::WRITABLE, || shift(&pipe.read, to, left)).await?;
            if gone == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            left -= gone;
        }
    }
    Ok(Moved::Trickle)
}

fn is_unable(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::ENOSYS))
}

fn shift(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(&from, None, &to, None, most, flags) {
            Err(Errno::EINTR) => {}
            moved => return moved.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests;
