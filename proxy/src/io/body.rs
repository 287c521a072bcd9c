//! Bodies: passed on frame by frame, never copied or collected. What they carry beside frames is told when they end.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// A request's body on its way out.
pub enum RequestBody {
    Empty,
    Streamed { body: Incoming, count: ByteCount },
}

/// Counts bytes for somebody else to read.
#[derive(Clone, Debug, Default)]
pub struct ByteCount(Rc<Cell<u64>>);

/// A response's body on its way back. `Keep` is told when it is over, whether it ran to its end or was dropped.
pub struct ResponseBody<Keep: OnEnd> {
    content: Content,
    count: ByteCount,
    ended: bool,
    keep: Option<Keep>,
}

enum Content {
    Streamed(Incoming),
    Whole(Option<Bytes>),
}

/// Told once, when a body is over.
pub trait OnEnd {
    /// `complete`: every frame was passed on.
    fn on_end(self, bytes: u64, complete: bool);
}

impl ByteCount {
    pub fn get(&self) -> u64 {
        self.0.get()
    }

    fn add(&self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.0.set(self.0.get() + data.len() as u64);
        }
    }
}

impl RequestBody {
    pub fn new(body: Incoming, count: ByteCount) -> Self {
        if body.is_end_stream() { Self::Empty } else { Self::Streamed { body, count } }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streamed { body, count } => {
                let polled = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &polled {
                    count.add(frame);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streamed { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streamed { body, .. } => body.size_hint(),
        }
    }
}

impl<Keep: OnEnd> ResponseBody<Keep> {
    pub fn streamed(body: Incoming, keep: Keep) -> Self {
        Self { content: Content::Streamed(body), count: ByteCount::default(), ended: false, keep: Some(keep) }
    }

    /// A short body of the mesh's own.
    pub fn whole(bytes: Bytes, keep: Keep) -> Self {
        let content = Content::Whole(Some(bytes).filter(|b| !b.is_empty()));
        Self { content, count: ByteCount::default(), ended: false, keep: Some(keep) }
    }
}

impl<Keep: OnEnd + Unpin> Body for ResponseBody<Keep> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = match &mut this.content {
            Content::Streamed(body) => Pin::new(body).poll_frame(cx),
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => this.count.add(frame),
            Poll::Ready(None) => this.ended = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Streamed(body) => body.is_end_stream(),
            Content::Whole(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Streamed(body) => body.size_hint(),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
        }
    }
}

impl<Keep: OnEnd> Drop for ResponseBody<Keep> {
    fn drop(&mut self) {
        let complete = self.ended
            || match &self.content {
                Content::Streamed(body) => body.is_end_stream(),
                Content::Whole(bytes) => bytes.is_none(),
            };
        if let Some(keep) = self.keep.take() {
            keep.on_end(self.count.get(), complete);
        }
    }
}
