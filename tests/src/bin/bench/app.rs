//! The app behind everything that is measured: `/bytes/N` is answered with so many bytes, however many.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::process::Process;

/// What a body is made of.
static BLOCK: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// The app as a process.
pub fn start(listen: SocketAddr) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["app", &listen.to_string()]);
    Process::listening(command, listen)
}

/// What the process does; returns on an error only.
pub async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(async move {
            let answer = service_fn(async |request| Ok::<_, Infallible>(answer(&request)));
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
        });
    }
}

fn answer(request: &Request<Incoming>) -> Response<Bulk> {
    let wanted = request.uri().path().strip_prefix("/bytes/").and_then(|number| number.parse().ok());
    let mut response = Response::new(Bulk { left: wanted.unwrap_or_default() });
    if wanted.is_none() {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}

/// A body of so many bytes.
struct Bulk {
    left: u64,
}

impl Body for Bulk {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(BLOCK.len());
        self.left -= take as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&BLOCK[..take])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
