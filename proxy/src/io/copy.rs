//! A copy of a request's body for somebody else: fed as the frames pass, read at its own pace, cut when it falls behind.
//! Data is shared, not copied, and the writer never waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::Frame;

/// What a copy may have waiting for its reader; one that is further behind is cut.
pub const MAX_WAITING_BYTES: usize = 256 * 1024;
/// The same in frames: each costs something of its own.
const MAX_WAITING_FRAMES: usize = 1024;

/// The side that passes the frames on. Dropped before `complete`, it cuts the copy.
pub struct CopyWriter(Rc<RefCell<Waiting>>);

/// The side that is sent elsewhere.
pub struct CopyReader(Rc<RefCell<Waiting>>);

/// The copy ends before its original did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the copy was cut: its original broke off, or its reader was too slow")]
pub struct Cut;

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Frame<Bytes>>,
    bytes: usize,
    state: State,
    reader: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Complete,
    Cut,
}

/// A new copy, empty and open.
pub fn copy() -> (CopyWriter, CopyReader) {
    let waiting = Rc::default();
    (CopyWriter(Rc::clone(&waiting)), CopyReader(waiting))
}

impl CopyWriter {
    pub fn write(&self, frame: &Frame<Bytes>) {
        let mut waiting = self.0.borrow_mut();
        if waiting.state != State::Open {
            return;
        }
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if waiting.bytes + bytes > MAX_WAITING_BYTES || waiting.frames.len() >= MAX_WAITING_FRAMES {
            waiting.end(State::Cut);
            return;
        }
        let same = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Frame::data(data.clone()),
            (None, Some(trailers)) => Frame::trailers(trailers.clone()),
            (None, None) => return,
        };
        waiting.bytes += bytes;
        waiting.frames.push_back(same);
        waiting.wake();
    }

    /// The original has ended as it should.
    pub fn complete(self) {
        self.0.borrow_mut().end(State::Complete);
    }
}

impl Drop for CopyWriter {
    fn drop(&mut self) {
        self.0.borrow_mut().end(State::Cut);
    }
}

impl CopyReader {
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let mut waiting = self.0.borrow_mut();
        if let Some(frame) = waiting.frames.pop_front() {
            waiting.bytes -= frame.data_ref().map_or(0, Bytes::len);
            return Poll::Ready(Some(Ok(frame)));
        }
        match waiting.state {
            State::Complete => Poll::Ready(None),
            State::Cut => Poll::Ready(Some(Err(Cut))),
            State::Open => {
                waiting.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub fn is_at_end(&self) -> bool {
        let waiting = self.0.borrow();
        waiting.frames.is_empty() && waiting.state == State::Complete
    }
}

impl Drop for CopyReader {
    fn drop(&mut self) {
        self.0.borrow_mut().end(State::Cut);
    }
}

impl Waiting {
    /// The first end counts.
    fn end(&mut self, state: State) {
        if self.state != State::Open {
            return;
        }
        self.state = state;
        if state == State::Cut {
            self.frames.clear();
            self.bytes = 0;
        }
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut CopyReader) -> Poll<Option<Result<usize, Cut>>> {
        let mut cx = Context::from_waker(Waker::noop());
        reader.poll(&mut cx).map(|frame| frame.map(|frame| frame.map(|f| f.data_ref().map_or(0, Bytes::len))))
    }

    fn data(bytes: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![7; bytes]))
    }

    #[test]
    fn a_copy_has_what_its_original_had() {
        let (writer, mut reader) = copy();
        assert!(read(&mut reader).is_pending());
        writer.write(&data(3));
        writer.write(&Frame::trailers(http::HeaderMap::new()));
        writer.complete();
        assert!(!reader.is_at_end());
        assert_eq!(read(&mut reader), Poll::Ready(Some(Ok(3))));
        assert_eq!(read(&mut reader), Poll::Ready(Some(Ok(0))));
        assert!(reader.is_at_end());
        assert_eq!(read(&mut reader), Poll::Ready(None));
    }

    #[test]
    fn a_copy_that_falls_behind_is_cut_and_holds_nothing() {
        let (writer, mut reader) = copy();
        for _ in 0..5 {
            writer.write(&data(MAX_WAITING_BYTES / 4));
        }
        writer.complete();
        assert_eq!(read(&mut reader), Poll::Ready(Some(Err(Cut))), "and not: complete, but shorter");
        assert!(reader.0.borrow().frames.is_empty());
        let (writer, mut reader) = copy();
        (0..=MAX_WAITING_FRAMES).for_each(|_| writer.write(&data(0)));
        assert_eq!(read(&mut reader), Poll::Ready(Some(Err(Cut))));
        // One that is read goes on for ever.
        let (writer, mut reader) = copy();
        for _ in 0..100 {
            writer.write(&data(MAX_WAITING_BYTES));
            assert_eq!(read(&mut reader), Poll::Ready(Some(Ok(MAX_WAITING_BYTES))));
        }
    }

    #[test]
    fn an_original_that_breaks_off_is_no_complete_copy() {
        let (writer, mut reader) = copy();
        writer.write(&data(1));
        drop(writer);
        assert_eq!(read(&mut reader), Poll::Ready(Some(Err(Cut))));
        let (writer, reader) = copy();
        drop(reader);
        writer.write(&data(1));
        assert!(writer.0.borrow().frames.is_empty(), "nobody reads: nothing is kept");
    }
}
