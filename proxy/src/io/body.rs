//! Bodies: passed on frame by frame, never copied or collected. What they carry beside frames is told when they end.

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hanse_federation::policy::body::BodyLimits;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::concurrency::Place;
use super::copy::{CopyReader, CopyWriter, Cut};
use super::guard::{Fate, Guard};
use crate::answer::Reason;
use crate::headers::{remove_as_read, strip_reserved};
use crate::request_id::REQUEST_ID;

/// A request's body on its way out.
pub enum RequestBody {
    Empty,
    /// `copies`: who is told of each frame as it passes; none of them is waited for.
    Streamed {
        body: Incoming,
        count: ByteCount,
        copies: Vec<CopyWriter>,
        /// Whether trailers are passed on.
        trailers: bool,
        guard: Option<Box<Guard>>,
        /// Told when all of it has passed.
        place: Option<Rc<Place>>,
    },
    /// A copy of another request's.
    Copied(CopyReader),
}

/// Why a request's body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the client's body broke off: {0}")]
    Client(#[from] hyper::Error),
    #[error(transparent)]
    Copy(#[from] Cut),
    #[error("it is cut here: {}", .0.as_str())]
    Cut(Reason),
}

/// Counts bytes for somebody else to read.
#[derive(Clone, Debug, Default)]
pub struct ByteCount(Rc<Cell<u64>>);

/// A response's body on its way back. `Keep` is told when it is over, whether it ran to its end or was dropped.
pub struct ResponseBody<Keep: OnEnd> {
    content: Content,
    count: ByteCount,
    ended: bool,
    /// In a box: a response is moved many times on its way out, and records are large.
    keep: Option<Box<Keep>>,
}

enum Content {
    Answer(AnswerBody),
    Whole(Option<Bytes>),
}

/// The body of a response as an attempt gives it back: what has been waited for, and the rest. Frames are held, not
/// copied.
pub struct AnswerBody {
    held: VecDeque<Frame<Bytes>>,
    rest: Option<Incoming>,
}

/// Largest body that is waited for before its head is passed on; only where its length was announced.
const MAX_HELD_BYTES: u64 = 16 * 1024;
/// Longest wait for it; what is slower than this is streamed.
const HOLD_FOR: Duration = Duration::from_millis(200);

impl AnswerBody {
    pub fn streamed(body: Incoming) -> Self {
        Self { held: VecDeque::new(), rest: Some(body) }
    }

    pub fn empty() -> Self {
        Self { held: VecDeque::new(), rest: None }
    }

    /// Reads what nobody wants to the end; how many bytes it was, and whether it ended well.
    pub async fn discard(mut self) -> (u64, bool) {
        let mut bytes = 0;
        loop {
            match std::future::poll_fn(|cx| self.poll(cx)).await {
                Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                Some(Err(_)) => return (bytes, false),
                None => return (bytes, true),
            }
        }
    }

    /// Waits a little for a small body to be complete, so that a target that dies between head and body does not spoil
    /// a request that may be tried again.
    pub async fn complete_if_small(body: Incoming) -> Result<Self, hyper::Error> {
        let mut answer = Self::streamed(body);
        let small = |b: &Incoming| b.size_hint().exact().is_some_and(|length| length <= MAX_HELD_BYTES);
        if !answer.rest.as_ref().is_some_and(|body| !body.is_end_stream() && small(body)) {
            return Ok(answer);
        }
        match tokio::time::timeout(HOLD_FOR, answer.hold()).await {
            Ok(held) => held.map(|()| answer),
            Err(_) => Ok(answer),
        }
    }

    /// Takes frames until the end. Dropped in between, it has lost none.
    async fn hold(&mut self) -> Result<(), hyper::Error> {
        while let Some(body) = &mut self.rest {
            match std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
                Some(frame) => self.held.push_back(frame?),
                None => self.rest = None,
            }
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match (self.held.pop_front(), &mut self.rest) {
            (Some(frame), _) => Poll::Ready(Some(Ok(frame))),
            (None, Some(body)) => Pin::new(body).poll_frame(cx),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_at_end(&self) -> bool {
        self.held.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn left(&self) -> SizeHint {
        let held: u64 = self.held.iter().map(|f| f.data_ref().map_or(0, |data| data.len() as u64)).sum();
        match self.rest.as_ref().map(Body::size_hint) {
            None => SizeHint::with_exact(held),
            Some(hint) => match hint.exact() {
                Some(rest) => SizeHint::with_exact(held + rest),
                None => SizeHint::new(),
            },
        }
    }
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

    pub fn add_bytes(&self, bytes: usize) {
        self.0.set(self.0.get() + bytes as u64);
    }

    fn add(&self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.add_bytes(data.len());
        }
    }
}

/// Whether no data is still to come: who has announced a length need not have ended the stream, and hyper does not ask for more
/// than that either.
pub fn is_all_here(body: &Incoming) -> bool {
    body.is_end_stream() || body.size_hint().exact() == Some(0)
}

impl RequestBody {
    pub fn new(body: Incoming, count: ByteCount) -> Self {
        if body.is_end_stream() {
            Self::Empty
        } else {
            Self::Streamed { body, count, copies: Vec::new(), trailers: true, guard: None, place: None }
        }
    }

    /// Holds it to limits. `Err`: it says itself that it is over them.
    pub fn limit(&mut self, limits: BodyLimits) -> Result<Fate, Reason> {
        let Self::Streamed { body, guard, .. } = self else { return Ok(Fate::default()) };
        if limits.most.is_some_and(|most| body.size_hint().lower() > most) {
            return Err(Reason::BodyTooLarge);
        }
        if limits.most.is_none() && limits.slow.is_none() {
            return Ok(Fate::default());
        }
        let fate = Fate::watched();
        *guard = Some(Box::new(Guard::new(limits, fate.clone())));
        Ok(fate)
    }

    /// Its request has that place at the app, which works for it once all of the body is there.
    pub fn occupies(&mut self, at: &Rc<Place>) {
        match self {
            Self::Streamed { body, place, .. } if !is_all_here(body) => *place = Some(Rc::clone(at)),
            Self::Empty | Self::Streamed { .. } | Self::Copied(_) => at.asked(),
        }
    }

    /// Its trailers end here.
    pub fn drop_trailers(&mut self) {
        if let Self::Streamed { trailers, .. } = self {
            *trailers = false;
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streamed { body, count, copies, trailers: passed, guard, place } => {
                let mut polled = Pin::new(&mut *body).poll_frame(cx);
                if let Some(guard) = guard {
                    let cut = match &polled {
                        Poll::Ready(Some(Ok(frame))) => guard.came(frame.data_ref().map_or(0, Bytes::len)),
                        Poll::Ready(_) => None,
                        Poll::Pending => guard.waits(cx),
                    };
                    if let Some(reason) = cut {
                        return Poll::Ready(Some(Err(BodyError::Cut(reason))));
                    }
                }
                if let Poll::Ready(Some(Ok(frame))) = &mut polled {
                    count.add(frame);
                    // Some servers fold trailers into the headers.
                    if let Some(trailers) = frame.trailers_mut() {
                        strip_reserved(trailers);
                        remove_as_read(trailers, REQUEST_ID.as_str());
                        if !*passed {
                            trailers.clear();
                        }
                    }
                    copies.iter().for_each(|copy| copy.write(frame));
                }
                // Who sends it does not ask again after the last frame.
                if matches!(polled, Poll::Ready(None)) || body.is_end_stream() {
                    copies.drain(..).for_each(CopyWriter::complete);
                }
                if (matches!(polled, Poll::Ready(None)) || is_all_here(body))
                    && let Some(place) = place.take()
                {
                    place.asked();
                }
                polled.map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Self::Copied(copy) => {
                copy.poll(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streamed { body, .. } => body.is_end_stream(),
            Self::Copied(copy) => copy.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streamed { body, .. } => body.size_hint(),
            Self::Copied(_) => SizeHint::new(),
        }
    }
}

impl<Keep: OnEnd> ResponseBody<Keep> {
    pub fn streamed(body: Incoming, keep: Keep) -> Self {
        Self {
            content: Content::Answer(AnswerBody::streamed(body)),
            count: ByteCount::default(),
            ended: false,
            keep: Some(Box::new(keep)),
        }
    }

    /// What an attempt gave back.
    pub fn answer(body: AnswerBody, keep: Keep) -> Self {
        Self {
            content: Content::Answer(body),
            count: ByteCount::default(),
            ended: false,
            keep: Some(Box::new(keep)),
        }
    }

    /// No body, and nobody to be told: what follows the head is not HTTP.
    pub fn none() -> Self {
        Self { content: Content::Whole(None), count: ByteCount::default(), ended: false, keep: None }
    }

    /// A short body of the mesh's own.
    pub fn whole(bytes: Bytes, keep: Keep) -> Self {
        let content = Content::Whole(Some(bytes).filter(|b| !b.is_empty()));
        Self { content, count: ByteCount::default(), ended: false, keep: Some(Box::new(keep)) }
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
        let mut polled = match &mut this.content {
            Content::Answer(body) => body.poll(cx),
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        };
        match &mut polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.count.add(frame);
                if let Some(trailers) = frame.trailers_mut() {
                    strip_reserved(trailers);
                }
            }
            Poll::Ready(None) => this.ended = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Answer(body) => body.is_at_end(),
            Content::Whole(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Answer(body) => body.left(),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
        }
    }
}

impl<Keep: OnEnd> Drop for ResponseBody<Keep> {
    fn drop(&mut self) {
        let complete = self.ended
            || match &self.content {
                Content::Answer(body) => body.is_at_end(),
                Content::Whole(bytes) => bytes.is_none(),
            };
        if let Some(keep) = self.keep.take() {
            keep.on_end(self.count.get(), complete);
        }
    }
}
