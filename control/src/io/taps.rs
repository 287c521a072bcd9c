//! Taps: who looks at requests of this node's subscribers, and what these tell of them. Volatile, as a tap is: it lasts
//! for as long as somebody holds its other end, and for its time at most.
//!
//! The streams of proxies put in and never wait; what a slow reader leaves no room for is counted, and told with what
//! comes next. No proxy is believed to keep its rate, and each has a share of the room: one that says too much leaves that
//! of the others alone.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use hanse_federation::View;
use hanse_federation::tap::{MAX_ENCODED, MAX_TAPS, MAX_TIME, Meter, Request, Tap};
use hanse_identity::{NodeName, SpiffeId};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use crate::admin::TapPart;

/// Places for what proxies told and a slow reader has not taken yet; what was told at once takes one at least.
const PLACES: usize = 256;
/// Bytes in a place.
const PLACE_BYTES: usize = 32 * 1024;
/// Most places that what one stream told may take: some twice what a proxy tells at once. And what all streams of an
/// identity told, since a workload may have many.
const STREAM_PLACES: usize = 32;
const IDENTITY_PLACES: usize = 64;

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
    parts: mpsc::Sender<Waiting>,
    places: Arc<Semaphore>,
    identities: Mutex<BTreeMap<SpiffeId, Weak<Semaphore>>>,
}

/// What one stream tells of one tap: as much as was asked for, and in its share of the places.
pub struct Telling {
    open: Arc<Open>,
    meter: Meter,
    since: Instant,
    own: Arc<Semaphore>,
    identity: Arc<Semaphore>,
    left_out: u64,
}

/// What was told at once, with its places: of the tap, of the stream, of the identity.
struct Waiting {
    part: TapPart,
    _places: [OwnedSemaphorePermit; 3],
}

/// The end of it that is read. Dropped, the tap is over.
pub struct Tapping {
    taps: Arc<Taps>,
    open: Arc<Open>,
    parts: mpsc::Receiver<Waiting>,
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
        let (parts, told) = mpsc::channel(PLACES);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (places, identities) = (Arc::new(Semaphore::new(PLACES)), Mutex::default());
        let new = Arc::new(Open { id, tap, until, parts, places, identities });
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

    /// The places of all streams of that identity, for as long as one of them has any.
    fn places_of(&self, identity: &SpiffeId) -> Arc<Semaphore> {
        let mut identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = identities.get(identity).and_then(Weak::upgrade) {
            return places;
        }
        identities.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(IDENTITY_PLACES));
        identities.insert(identity.clone(), Arc::downgrade(&places));
        places
    }
}

impl Telling {
    pub fn new(open: Arc<Open>, identity: &SpiffeId) -> Self {
        let identity = open.places_of(identity);
        let own = Arc::new(Semaphore::new(STREAM_PLACES));
        // A proxy keeps the rate itself, and may tell late and at once of what it kept.
        let meter = Meter::new(open.tap.rate.saturating_mul(2));
        Self { open, meter, since: Instant::now(), own, identity, left_out: 0 }
    }

    pub fn id(&self) -> u64 {
        self.open.id
    }

    /// Whether a request that takes so many bytes on the wire is one more that was asked for; asked before it is read.
    pub fn takes(&self, bytes: usize) -> bool {
        bytes <= MAX_ENCODED && self.meter.take(self.since.elapsed())
    }

    /// So many more were left out, to be told of with what comes next.
    pub fn omit(&mut self, left_out: u64) {
        self.left_out = self.left_out.saturating_add(left_out);
    }

    /// The stream has told this, which took so many bytes on the wire.
    pub fn put(&mut self, mut part: TapPart, bytes: usize) {
        part.left_out = part.left_out.saturating_add(std::mem::take(&mut self.left_out));
        let shown = part.requests.len();
        let left_out = part.left_out.saturating_add(shown as u64);
        if left_out == 0 {
            return;
        }
        let bytes = bytes.saturating_add(shown * size_of::<Request>());
        let places = u32::try_from(bytes.div_ceil(PLACE_BYTES).max(1)).unwrap_or(u32::MAX);
        // What was taken already is given back where there is no room at the next.
        let take = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_many_owned(places).ok();
        let taken = || Some([take(&self.own)?, take(&self.identity)?, take(&self.open.places)?]);
        let put =
            taken().is_some_and(|places| self.open.parts.try_send(Waiting { part, _places: places }).is_ok());
        if !put {
            self.left_out = left_out;
        }
    }
}

impl Stream for Tapping {
    type Item = TapPart;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<TapPart>> {
        // First: whoever tells without an end does not keep it open.
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        self.parts.poll_recv(cx).map(|waiting| Some(waiting?.part))
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

    fn reviews() -> SpiffeId {
        "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap()
    }

    fn part(requests: usize) -> TapPart {
        TapPart {
            proxy: "reviews-1".parse().unwrap(),
            identity: reviews(),
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
        Telling::new(Arc::clone(&found[0]), &reviews()).put(part(1), 500);
        assert_eq!(short.next().await, Some(part(1)));
        assert_eq!(short.next().await, None, "its time is over");
        drop(short);
        assert!(taps.count() == 0 && changes.has_changed().unwrap());
    }

    fn looked_at() -> (Tapping, Arc<Open>) {
        let tapping = Arc::new(Taps::default()).open(Tap::new(Target::Everybody), MAX_TIME).unwrap();
        let open = Arc::clone(&tapping.open);
        (tapping, open)
    }

    #[tokio::test]
    async fn what_a_slow_reader_leaves_no_room_for_is_counted() {
        let (mut tapping, open) = looked_at();
        let mut telling = Telling::new(open, &reviews());
        for _ in 0..STREAM_PLACES + 3 {
            telling.put(part(2), 1000);
        }
        assert_eq!(tapping.next().await, Some(part(2)));
        telling.put(part(1), 500);
        for _ in 1..STREAM_PLACES {
            assert_eq!(tapping.next().await, Some(part(2)));
        }
        assert_eq!(tapping.next().await, Some(TapPart { left_out: 6, ..part(1) }));
    }

    #[tokio::test]
    async fn who_says_too_much_leaves_the_room_of_others_alone() {
        let (mut tapping, open) = looked_at();
        // Ten streams of one workload that say all they can.
        let mut loud: Vec<_> = (0..10).map(|_| Telling::new(Arc::clone(&open), &reviews())).collect();
        for telling in &mut loud {
            (0..PLACES).for_each(|_| telling.put(part(1), 500));
        }
        assert_eq!(open.places.available_permits(), PLACES - IDENTITY_PLACES);
        let other: SpiffeId = "spiffe://east.example/ns/shop/sa/ratings".parse().unwrap();
        let quiet = TapPart { identity: other.clone(), ..part(1) };
        Telling::new(Arc::clone(&open), &other).put(quiet.clone(), 500);
        for _ in 0..IDENTITY_PLACES {
            assert_eq!(tapping.next().await, Some(part(1)));
        }
        assert_eq!(tapping.next().await, Some(quiet));
        assert_eq!(open.places.available_permits(), PLACES, "what is read makes room");
        drop(loud);
        Telling::new(Arc::clone(&open), &other);
        assert_eq!(open.identities.lock().unwrap().len(), 1, "who has gone is forgotten");
    }

    #[tokio::test]
    async fn each_stream_has_its_rate_and_what_is_large_takes_more_room() {
        let (_tapping, open) = looked_at();
        let [one, mut other] = [(); 2].map(|()| Telling::new(Arc::clone(&open), &reviews()));
        let rate = open.tap.rate as usize;
        let taken = (0..10 * rate).filter(|_| one.takes(500)).count();
        assert!((2 * rate..3 * rate).contains(&taken), "{taken}");
        assert!(!other.takes(MAX_ENCODED + 1) && other.takes(MAX_ENCODED), "the others' rates are theirs");
        // No part of what is too long for a share is told.
        other.put(part(3), (STREAM_PLACES + 1) * PLACE_BYTES);
        assert_eq!((open.places.available_permits(), other.left_out), (PLACES, 3));
        other.put(part(1), 3 * PLACE_BYTES);
        assert_eq!((open.places.available_permits(), other.left_out), (PLACES - 4, 0));
    }
}
