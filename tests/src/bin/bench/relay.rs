//! Bounds of a gateway that looks at nothing: bytes from one TCP connection to another, read and written, or moved by the
//! kernel through a pipe (splice(2)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::process::Process;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Means {
    Copy,
    Splice,
}

/// Most that is moved at a time: what a pipe holds unasked.
const PIPE_BYTES: usize = 64 * 1024;

impl Means {
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "bound: read and write",
            Self::Splice => "bound: splice",
        }
    }
}

/// The relay as a process.
pub fn start(means: Means, listen: SocketAddr, to: SocketAddr) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    let means = if means == Means::Copy { "copy" } else { "splice" };
    command.args(["bare-relay", means, &listen.to_string(), &to.to_string()]);
    Process::listening(command, listen)
}

/// What the process does; returns on an error only.
pub async fn serve(means: Means, listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (mut near, _) = listener.accept().await?;
        tokio::task::spawn_local(async move {
            near.set_nodelay(true)?;
            let mut far = TcpStream::connect(to).await?;
            far.set_nodelay(true)?;
            if means == Means::Copy {
                return tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop);
            }
            let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
            tokio::try_join!(through_pipe(near_read, far_write), through_pipe(far_read, near_write)).map(drop)
        });
    }
}

async fn through_pipe(from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
    let (out, into): (OwnedFd, OwnedFd) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    loop {
        let source = from.as_ref();
        let mut left = source.async_io(Interest::READABLE, || shift(source, &into, PIPE_BYTES)).await?;
        if left == 0 {
            return to.shutdown().await;
        }
        while left > 0 {
            let sink = to.as_ref();
            left -= sink.async_io(Interest::WRITABLE, || shift(&out, sink, left)).await?;
        }
    }
}

fn shift(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    loop {
        match splice(
            &from,
            None,
            &to,
            None,
            most,
            SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK,
        ) {
            Err(Errno::EINTR) => {}
            moved => return moved.map_err(io::Error::from),
        }
    }
}
