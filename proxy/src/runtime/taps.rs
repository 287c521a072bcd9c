//! Taps: who looks at this proxy's requests now, and what waits to be told of them.
//!
//! Nobody looks at most proxies at most times: then a request costs one relaxed load. What is looked at goes into a bounded
//! queue, and no worker waits: what does not fit, or is above the tap's rate, is left out, and how much that was is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hanse_federation::tap::{self, Direction, MAX_TAPS, Meter, Sight, Tap, cut};
use hanse_federation::wire::watch as pb;
use hanse_federation::wire::{decode, encode};
use hanse_identity::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc;

use super::access_log::Entry;
use super::now;
use super::telemetry::Telemetry;
use crate::request_id::{REQUEST_ID, RequestId};
use crate::trace::{Trace, TraceId};

/// The taps of one proxy.
pub struct Taps {
    /// Whether there are any: what every request asks.
    any: AtomicBool,
    running: ArcSwap<Vec<Arc<Running>>>,
    open: Gauge,
    told: Counter,
    left_out: Counter,
}

struct Running {
    id: u64,
    tap: Tap,
    meter: Meter,
    since: Instant,
    until: Instant,
    queue: mpsc::Sender<Box<tap::Request>>,
    /// For who tells, alone.
    waiting: Mutex<mpsc::Receiver<Box<tap::Request>>>,
    left_out: AtomicU64,
}

/// How a request began, kept until it is over.
pub struct Head {
    start_time: Timestamp,
    path: String,
    query: Option<String>,
    authority: String,
    trace_id: TraceId,
    headers: BTreeMap<String, String>,
}

/// How it ended.
pub struct Outcome<'r> {
    pub outbound: bool,
    pub entry: &'r Entry,
    pub received: u64,
    pub sent: u64,
    pub duration: Duration,
}

/// Requests of one tap that wait to be told.
const QUEUE: usize = 512;
/// Most bytes of requests in one message; a control node takes 1 MiB.
const BATCH_BYTES: usize = 256 * 1024;

impl Taps {
    pub fn new(telemetry: &Telemetry) -> Self {
        let new = Self {
            any: AtomicBool::new(false),
            running: ArcSwap::default(),
            open: Gauge::default(),
            told: Counter::default(),
            left_out: Counter::default(),
        };
        telemetry.register("hanse_taps_open", "Who looks at requests of this proxy now", new.open.clone());
        telemetry.register("hanse_tapped_requests", "Requests that were told to them", new.told.clone());
        let help = "Requests that they asked for and were not told of";
        telemetry.register("hanse_tap_left_out", help, new.left_out.clone());
        new
    }

    /// What is to be kept of a request until it is over; `None`: nobody looks.
    pub fn head<B>(&self, request: &http::Request<B>, trace: &Trace, id: &RequestId) -> Option<Box<Head>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let query = self.running.load().iter().any(|running| running.tap.query);
        Some(Box::new(Head::of(request, trace, id, query)))
    }

    /// A request that somebody looked at is over.
    pub fn offer(&self, head: Head, outcome: &Outcome<'_>) {
        let sight = outcome.sight(&head);
        let running = self.running.load();
        for running in running.iter().filter(|running| running.tap.admits(&sight)) {
            running.offer(|| outcome.told(&head, running.tap.query), &self.left_out);
        }
    }

    /// These taps and no others. Those that are known go on.
    pub fn begin(&self, wanted: pb::Taps, at: Instant) {
        let known = self.running.load();
        let begun = |wanted: &pb::Tap| {
            if let Some(same) = known.iter().find(|running| running.id == wanted.id) {
                return Some(Arc::clone(same));
            }
            // One that cannot be read is of another version: this proxy tells nothing then.
            let tap: Tap = decode("tap", &wanted.tap).ok()?;
            tap.check().ok()?;
            let left = Duration::from_millis(wanted.left_millis).min(tap::MAX_TIME);
            Some(Arc::new(Running::new(wanted.id, tap, at, left)))
        };
        self.set(wanted.tap.iter().take(MAX_TAPS).filter_map(begun).collect());
    }

    /// All of them are over.
    pub fn end(&self) {
        self.set(Vec::new());
    }

    fn set(&self, running: Vec<Arc<Running>>) {
        self.open.set(i64::try_from(running.len()).unwrap_or(i64::MAX));
        self.any.store(!running.is_empty(), Ordering::Relaxed);
        self.running.store(Arc::new(running));
    }

    /// Tells what waits, one message for each tap that has something; `send` says whether it took it. Ends what has run for
    /// its time.
    pub fn tell(&self, at: Instant, mut send: impl FnMut(pb::Tapped) -> bool) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let running = self.running.load_full();
        for running in running.iter() {
            let Some(tapped) = running.due() else { continue };
            let (requests, left_out) = (tapped.request.len() as u64, tapped.left_out);
            if send(tapped) {
                self.told.inc_by(requests);
            } else {
                running.left_out.fetch_add(requests + left_out, Ordering::Relaxed);
                self.left_out.inc_by(requests);
            }
        }
        if running.iter().any(|running| running.until <= at) {
            self.set(running.iter().filter(|running| running.until > at).cloned().collect());
        }
    }
}

impl Running {
    fn new(id: u64, tap: Tap, since: Instant, left: Duration) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let meter = Meter::new(tap.rate);
        let until = since + left;
        let waiting = Mutex::new(waiting);
        Self { id, tap, meter, since, until, queue, waiting, left_out: AtomicU64::new(0) }
    }

    fn offer(&self, told: impl FnOnce() -> tap::Request, left_out: &Counter) {
        let place = match self.meter.take(self.since.elapsed()) {
            true => self.queue.try_reserve().ok(),
            false => None,
        };
        match place {
            Some(place) => place.send(Box::new(told())),
            None => {
                self.left_out.fetch_add(1, Ordering::Relaxed);
                left_out.inc();
            }
        }
    }

    fn due(&self) -> Option<pb::Tapped> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tapped = pb::Tapped { tap: self.id, ..pb::Tapped::default() };
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Ok(request) = waiting.try_recv()
        {
            let request = encode(&*request);
            bytes += request.len();
            tapped.request.push(request);
        }
        tapped.left_out = self.left_out.swap(0, Ordering::Relaxed);
        (!tapped.request.is_empty() || tapped.left_out > 0).then_some(tapped)
    }
}

impl Head {
    fn of<B>(request: &http::Request<B>, trace: &Trace, id: &RequestId, query: bool) -> Self {
        let authority = crate::headers::authority(request).ok().flatten().unwrap_or_default();
        let value = |name: &str| request.headers().get(name)?.to_str().ok();
        let header = |name: &&'static str| Some(((*name).to_owned(), cut(value(name)?, tap::MAX_TEXT)));
        let query = request.uri().query().filter(|_| query);
        let mut headers: BTreeMap<String, String> = tap::HEADERS.iter().filter_map(header).collect();
        if let Some(made) = id.made() {
            headers.insert(REQUEST_ID.to_string(), made.to_owned());
        }
        Self {
            start_time: now(),
            path: cut(request.uri().path(), tap::MAX_PATH),
            query: query.map(|query| cut(query, tap::MAX_PATH)),
            authority: cut(authority, tap::MAX_PATH),
            trace_id: trace.ids().0,
            headers,
        }
    }
}

impl Outcome<'_> {
    fn direction(&self) -> Direction {
        if self.outbound { Direction::Outbound } else { Direction::Inbound }
    }

    fn sight<'s>(&'s self, head: &'s Head) -> Sight<'s> {
        let entry = self.entry;
        Sight {
            direction: self.direction(),
            method: entry.method.as_str(),
            path: &head.path,
            code: entry.response_code,
            service: &entry.upstream_cluster,
            source: &entry.source_spiffe,
            source_cluster: &entry.source_cluster,
            destination_cluster: &entry.destination_cluster,
            refused: !entry.hanse_reason.is_empty(),
        }
    }

    fn told(&self, head: &Head, query: bool) -> tap::Request {
        let entry = self.entry;
        let trace_id = Some(head.trace_id).filter(|id| *id != TraceId::default());
        tap::Request {
            start_time: head.start_time,
            direction: self.direction(),
            method: entry.method.to_string(),
            path: head.path.clone(),
            query: head.query.clone().filter(|_| query),
            authority: head.authority.clone(),
            protocol: entry.protocol.to_owned(),
            response_code: entry.response_code,
            response_flags: entry.response_flags.to_owned(),
            response_code_details: cut(&entry.response_code_details, tap::MAX_PATH),
            reason: entry.hanse_reason.clone(),
            duration_micros: u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX),
            bytes_received: self.received,
            bytes_sent: self.sent,
            service: entry.upstream_cluster.to_string(),
            source: entry.source_spiffe.to_string(),
            source_cluster: entry.source_cluster.to_string(),
            destination: entry.destination_spiffe.to_string(),
            destination_cluster: entry.destination_cluster.to_string(),
            tier: entry.tier.to_owned(),
            failover: entry.failover,
            attempts: entry.attempts,
            policy: entry.policy.clone(),
            trace_id: trace_id.map(|id| id.to_string()).unwrap_or_default(),
            headers: head.headers.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use hanse_federation::tap::Target;

    use super::*;

    fn wanted(id: u64, tap: &Tap) -> pb::Tap {
        pb::Tap { id, tap: encode(tap), left_millis: 60_000 }
    }

    fn request(taps: &Taps, path: &str) {
        let request = http::Request::get(path).header("cookie", "a=b").header("user-agent", "curl").body(());
        let head = taps.head(&request.unwrap(), &Trace::default(), &RequestId::default());
        let entry = Entry { response_code: 200, response_flags: "-", ..Entry::default() };
        let outcome = Outcome {
            outbound: true,
            entry: &entry,
            received: 1,
            sent: 2,
            duration: Duration::from_millis(3),
        };
        if let Some(head) = head {
            taps.offer(*head, &outcome);
        }
    }

    fn told(taps: &Taps, at: Instant) -> Vec<pb::Tapped> {
        let mut all = Vec::new();
        taps.tell(at, |tapped| {
            all.push(tapped);
            true
        });
        all
    }

    #[test]
    fn only_what_is_asked_for_is_told_and_what_is_left_out_is_counted() {
        let taps = Taps::new(&Telemetry::default());
        request(&taps, "/before");
        let start = Instant::now();
        let slow = Tap { rate: 2, ..Tap::new(Target::Everybody) };
        let mut narrow = Tap { query: true, ..Tap::new(Target::Everybody) };
        narrow.filter.path_prefix = Some("/r/".to_owned());
        taps.begin(pb::Taps { tap: vec![wanted(1, &slow), wanted(2, &narrow)] }, start);
        for path in ["/r/1?secret=1", "/x", "/r/2"] {
            request(&taps, path);
        }
        let messages = told(&taps, start);
        let count = |n: usize| (messages[n].tap, messages[n].request.len(), messages[n].left_out);
        assert_eq!((count(0), count(1)), ((1, 2, 1), (2, 2, 0)));
        let read = |bytes: &Vec<u8>| decode::<tap::Request>("request", bytes).unwrap();
        let (plain, queried) = (read(&messages[0].request[0]), read(&messages[1].request[0]));
        assert_eq!((plain.path.as_str(), plain.query, plain.response_code), ("/r/1", None, 200));
        assert_eq!(queried.query.as_deref(), Some("secret=1"));
        assert_eq!(plain.headers, BTreeMap::from([("user-agent".to_owned(), "curl".to_owned())]));
        assert_eq!((plain.bytes_received, plain.bytes_sent, plain.duration_micros), (1, 2, 3000));
        assert!(told(&taps, start).is_empty());
        assert_eq!((taps.open.get(), taps.told.get(), taps.left_out.get()), (2, 4, 1));
    }

    #[test]
    fn a_queue_that_nobody_empties_is_bounded_and_what_cannot_be_sent_is_counted() {
        let taps = Taps::new(&Telemetry::default());
        let start = Instant::now();
        let tap = Tap { rate: tap::MAX_RATE, ..Tap::new(Target::Everybody) };
        taps.begin(pb::Taps { tap: vec![wanted(1, &tap)] }, start);
        for _ in 0..QUEUE + 10 {
            request(&taps, "/");
        }
        taps.tell(start, |_| false);
        let messages = told(&taps, start);
        let (shown, left_out): (usize, u64) =
            messages.iter().fold((0, 0), |sum, m| (sum.0 + m.request.len(), sum.1 + m.left_out));
        assert!(left_out > 10, "those that were not sent are among them: {left_out}");
        assert_eq!(shown as u64 + left_out, QUEUE as u64 + 10);
    }

    #[test]
    fn a_tap_ends_with_its_time_its_order_or_its_stream() {
        let taps = Taps::new(&Telemetry::default());
        let start = Instant::now();
        let tap = Tap::new(Target::Everybody);
        let short = pb::Tap { left_millis: 1000, ..wanted(1, &tap) };
        taps.begin(pb::Taps { tap: vec![short.clone(), wanted(2, &tap)] }, start);
        // The same again does not begin anew.
        taps.begin(pb::Taps { tap: vec![short, wanted(2, &tap)] }, start + Duration::from_millis(900));
        told(&taps, start + Duration::from_secs(1));
        assert_eq!(taps.open.get(), 1);
        let unreadable = pb::Tap { id: 3, tap: b"{".to_vec(), left_millis: 1 };
        let too_fast = wanted(4, &Tap { rate: 0, ..tap });
        taps.begin(pb::Taps { tap: vec![unreadable, too_fast] }, start);
        assert!(taps.open.get() == 0 && !taps.any.load(Ordering::Relaxed));
        request(&taps, "/after");
        assert!(told(&taps, start).is_empty());
    }
}
