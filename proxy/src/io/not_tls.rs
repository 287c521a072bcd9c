//! A connection that was taken for plain text because its client said nothing: TLS that begins on it after all is not carried.
//! What a gateway lets out of a tunnel begins so, and may have been kept waiting on its way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::plain::{Begins, LOOKED_AT, begins};

/// What is read from it is held back until it is told.
pub struct NotTls<'s, S> {
    stream: &'s mut S,
    held: Vec<u8>,
    told: bool,
}

impl<'s, S> NotTls<'s, S> {
    pub fn new(stream: &'s mut S) -> Self {
        Self { stream, held: Vec::new(), told: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NotTls<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.told {
            let mut room = [0; LOOKED_AT];
            let mut first = ReadBuf::new(&mut room[this.held.len()..]);
            ready!(Pin::new(&mut *this.stream).poll_read(cx, &mut first))?;
            let is_end = first.filled().is_empty();
            this.held.extend_from_slice(first.filled());
            match begins(&this.held) {
                Begins::Tls => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Begins::More if !is_end => {}
                Begins::More | Begins::Plain => this.told = true,
            }
        }
        if this.held.is_empty() {
            return Pin::new(&mut *this.stream).poll_read(cx, buf);
        }
        let fit = this.held.len().min(buf.remaining());
        buf.put_slice(&this.held[..fit]);
        this.held.drain(..fit);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NotTls<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What is read of these pieces.
    async fn read(pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
        let (mut client, mut server) = tokio::io::duplex(64);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let sending = tokio::spawn(async move {
            for piece in pieces {
                client.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut all = Vec::new();
        let read = NotTls::new(&mut server).read_to_end(&mut all).await;
        sending.await.unwrap();
        read.map(|_| all)
    }

    #[tokio::test]
    async fn tls_is_not_carried_and_all_else_is_whole() {
        let hello = [0x16, 3, 1, 0, 5, 1, b'\r', b'\n'];
        for at in 1..hello.len() {
            let (first, rest) = hello.split_at(at);
            assert_eq!(read(&[first, rest]).await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{at}");
        }
        for plain in [&b""[..], b"P", b"PING\r\nPING\r\n", &hello[..5], b"\x16\x03\x01\x00\x05\x02more"] {
            for at in 0..plain.len() {
                let (first, rest) = plain.split_at(at);
                assert_eq!(read(&[first, rest]).await.unwrap(), plain, "{at}");
            }
        }
    }
}
