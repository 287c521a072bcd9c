//! Taps: who looks at requests of this node's subscribers, and what these tell of them. Volatile, as a tap is: it lasts
//! for as long as somebody holds its other end, and for its time at most.
//!
//! The streams of proxies put in and never wait; what a slow reader leaves no room for is counted, and told with what
//! comes next.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use hanse_federation::View;
use hanse_federation::tap::{MAX_TAPS, MAX_TIME, Tap};
use hanse_identity::NodeName;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use crate::admin::TapPart;

/// What proxies told at once, that waits for a slow reader.
const QUEUE: usize = 256;

/// The taps that are open on one node.
pub struct Taps {
    next: AtomicU64,
    open: watch::Sender<Vec<Arc<Open>>>,
}

/// One of them.
pub struct Open {
    pub id: u64,
    pub tap: Tap,
    until: Instant,
    parts: mpsc::Sender<TapPart>,
    left_out: AtomicU64,
}

/// The end of it that is read. Dropped, the tap is over.
pub struct Tapping {
    taps: Arc<Taps>,
    open: Arc<Open>,
    parts: mpsc::Receiver<TapPart>,
    end: Pin<Box<Sleep>>,
}

/// What one node asks another for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    pub tap: Tap,
    pub left_millis: u64,
}

/// Too many are open here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{MAX_TAPS} taps run in this cluster already; each ends when its reader goes away, or after its time"
)]
pub struct TooMany;

impl Default for Taps {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: watch::Sender::new(Vec::new()) }
    }
}

impl Taps {
    /// Begins to look. The subscribers that it is for hear of it by `changes`.
    pub fn open(self: &Arc<Self>, tap: Tap, time: Duration) -> Result<Tapping, TooMany> {
        let time = time.min(MAX_TIME);
        let until = Instant::now() + time;
        let (parts, told) = mpsc::channel(QUEUE);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let new = Arc::new(Open { id, tap, until, parts, left_out: AtomicU64::new(0) });
        let taken = self.open.send_if_modified(|open| {
            let room = open.len() < MAX_TAPS;
            if room {
                open.push(Arc::clone(&new));
            }
            room
        });
        if !taken {
            return Err(TooMany);
        }
        let end = Box::pin(tokio::time::sleep(time));
        Ok(Tapping { taps: Arc::clone(self), open: new, parts: told, end })
    }

    /// Changes whenever one begins or ends.
    pub fn changes(&self) -> watch::Receiver<Vec<Arc<Open>>> {
        self.open.subscribe()
    }

    /// Those that a proxy is to tell of requests, by what it serves in that View.
    pub fn of(&self, proxy: &NodeName, view: &View) -> Vec<Arc<Open>> {
        let open = self.open.borrow();
        open.iter().filter(|open| open.tap.target.includes(proxy, view)).cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open.borrow().len()
    }
}

impl Open {
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A proxy has told something.
    pub fn put(&self, mut part: TapPart) {
        part.left_out = part.left_out.saturating_add(self.left_out.swap(0, Ordering::Relaxed));
        let lost = (part.requests.len() as u64).saturating_add(part.left_out);
        if self.parts.try_send(part).is_err() {
            self.left_out.fetch_add(lost, Ordering::Relaxed);
        }
    }
}

impl Stream for Tapping {
    type Item = TapPart;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<TapPart>> {
        match self.parts.poll_recv(cx) {
            Poll::Pending if self.end.as_mut().poll(cx).is_ready() => Poll::Ready(None),
            next => next,
        }
    }
}

impl Drop for Tapping {
    fn drop(&mut self) {
        let id = self.open.id;
        self.taps.open.send_modify(|open| open.retain(|open| open.id != id));
    }
}

#[cfg(test)]
mod tests {
    use hanse_federation::tap::{Request, Target};
    use tokio_stream::StreamExt as _;

    use super::*;

    fn part(requests: usize) -> TapPart {
        TapPart {
            proxy: "reviews-1".parse().unwrap(),
            identity: "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap(),
            requests: vec![Request::default(); requests],
            left_out: 0,
        }
    }

    #[tokio::test]
    async fn a_tap_lasts_as_long_as_its_reader_and_its_time() {
        let taps = Arc::new(Taps::default());
        let tap = Tap::new(Target::Proxy("reviews-1".parse().unwrap()));
        let view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let open = |time| taps.open(tap.clone(), time);
        let mut short = open(Duration::from_millis(50)).unwrap();
        let others: Vec<_> = (1..MAX_TAPS).map(|_| open(MAX_TIME * 2).unwrap()).collect();
        assert!(others[0].open.left() <= MAX_TIME);
        assert!(matches!(open(MAX_TIME), Err(TooMany)));
        let mut changes = taps.changes();
        drop(others);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let found = taps.of(&"reviews-1".parse().unwrap(), &view);
        assert!(taps.of(&"reviews-2".parse().unwrap(), &view).is_empty());
        found[0].put(part(1));
        assert_eq!(short.next().await, Some(part(1)));
        assert_eq!(short.next().await, None, "its time is over");
        drop(short);
        assert!(taps.count() == 0 && changes.has_changed().unwrap());
    }

    #[tokio::test]
    async fn what_a_slow_reader_leaves_no_room_for_is_counted() {
        let taps = Arc::new(Taps::default());
        let mut tapping = taps.open(Tap::new(Target::Everybody), Duration::from_secs(60)).unwrap();
        for _ in 0..QUEUE + 3 {
            tapping.open.put(part(2));
        }
        assert_eq!(tapping.next().await, Some(part(2)));
        tapping.open.put(part(1));
        for _ in 1..QUEUE {
            assert_eq!(tapping.next().await, Some(part(2)));
        }
        assert_eq!(tapping.next().await, Some(TapPart { left_out: 6, ..part(1) }));
    }
}
