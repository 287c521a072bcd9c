//! Traffic: what this proxy counted in the last minute, for the control nodes. Nothing is counted here: the series that
//! requests count in anyway are read now and then.
//!
//! A worker tells of a series before it first counts in it, if nobody else is at the table: it never waits, and tells the
//! next time. What nobody counts in is forgotten, and `epoch` has workers tell anew.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use hanse_federation::traffic::{BOUNDS, Counts, EdgeKey, LatencyKey, MAX_EDGES, Report, WINDOW_SECONDS};
use prometheus_client::metrics::counter::Counter;

use super::telemetry::{Durations, MAX_SERIES};

/// Series of requests, and when what was in them.
#[derive(Default)]
pub struct Traffic {
    table: Mutex<Table>,
    /// How often something was forgotten, and one.
    forgotten: AtomicU64,
}

/// The table, for one who need not wait for it.
pub struct Telling<'t>(MutexGuard<'t, Table>);

#[derive(Default)]
struct Table {
    requests: Rows<RequestsKey, Counter>,
    latencies: Rows<LatencyKey, Durations>,
    /// When samples were taken, oldest first.
    sampled: VecDeque<Instant>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct RequestsKey {
    edge: EdgeKey,
    /// Series of their own in metrics, added up for control nodes.
    protocol: &'static str,
    code: u16,
    flags: &'static str,
    is_failure: bool,
}

/// Series of one kind, `MAX_SERIES` at most.
struct Rows<K, S: Series> {
    known: HashSet<K>,
    rows: Vec<Row<K, S>>,
}

struct Row<K, S: Series> {
    key: K,
    series: S,
    /// What was in it when it was told of.
    first: S::Value,
    /// What was in it at the last so many times of `sampled`.
    samples: VecDeque<S::Value>,
    last: S::Value,
    changed: Instant,
}

/// What requests count in.
trait Series {
    type Value: Copy + PartialEq;
    fn value(&self) -> Self::Value;
}

impl Series for Counter {
    type Value = u64;

    fn value(&self) -> u64 {
        self.get()
    }
}

impl Series for Durations {
    type Value = [u64; BOUNDS.len() + 1];

    fn value(&self) -> Self::Value {
        self.counts()
    }
}

/// How often a report is due.
pub const REPORT_EVERY: Duration = Duration::from_secs(5);
/// What nobody has counted in for so long is forgotten: well above the window, so that it has no share in a report.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10 * 60);

impl Traffic {
    /// A worker that told of a series in another epoch, or in none, has to tell again. Never 0.
    pub fn epoch(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed) + 1
    }

    /// `None`: somebody else has the table just now.
    pub fn tell(&self) -> Option<Telling<'_>> {
        match self.table.try_lock() {
            Ok(table) => Some(Telling(table)),
            Err(TryLockError::Poisoned(poisoned)) => Some(Telling(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What was counted since about a minute ago, if there is something to tell and it is time.
    pub fn due(&self, now: Instant) -> Option<Report> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.sampled.back().is_some_and(|last| now.duration_since(*last) < REPORT_EVERY) {
            return None;
        }
        let Table { requests, latencies, sampled } = &mut *table;
        let window = Duration::from_secs(WINDOW_SECONDS);
        while sampled.front().is_some_and(|first| now.duration_since(*first) > window) {
            sampled.pop_front();
        }
        let since = sampled.front().copied();
        requests.sample(sampled.len(), now);
        latencies.sample(sampled.len(), now);
        let report = since.map(|since| table.report(now.duration_since(since).as_secs_f64()));
        table.sampled.push_back(now);
        if table.requests.forget(now) | table.latencies.forget(now) {
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        report.filter(|report| !report.edges.is_empty())
    }
}

impl Telling<'_> {
    /// A worker is about to count in a series. What goes into an overflow series is not told of.
    pub fn counts_in(
        &mut self,
        edge: EdgeKey,
        protocol: &'static str,
        code: u16,
        flags: &'static str,
        is_failure: bool,
        series: &Counter,
    ) {
        self.0.requests.add(RequestsKey { edge, protocol, code, flags, is_failure }, series);
    }

    pub fn takes_in(&mut self, key: LatencyKey, series: &Durations) {
        self.0.latencies.add(key, series);
    }
}

impl<K, S: Series> Default for Rows<K, S> {
    fn default() -> Self {
        Self { known: HashSet::new(), rows: Vec::new() }
    }
}

impl<K: Clone + Eq + Hash, S: Series + Clone> Rows<K, S> {
    fn add(&mut self, key: K, series: &S) {
        if self.rows.len() < MAX_SERIES && self.known.insert(key.clone()) {
            let (first, changed) = (series.value(), Instant::now());
            let samples = VecDeque::new();
            self.rows.push(Row { key, series: series.clone(), first, samples, last: first, changed });
        }
    }

    /// Reads all of them; of earlier samples `kept` are still of use.
    fn sample(&mut self, kept: usize, now: Instant) {
        for row in &mut self.rows {
            let value = row.series.value();
            if value != row.last {
                (row.last, row.changed) = (value, now);
            }
            while row.samples.len() > kept {
                row.samples.pop_front();
            }
            row.samples.push_back(value);
        }
    }

    /// Answers whether there was anything to forget.
    fn forget(&mut self, now: Instant) -> bool {
        let before = self.rows.len();
        let Self { known, rows } = self;
        rows.retain(|row| {
            let is_used = now.saturating_duration_since(row.changed) < FORGOTTEN_AFTER;
            if !is_used {
                known.remove(&row.key);
            }
            is_used
        });
        rows.len() < before
    }
}

impl<K, S: Series> Row<K, S> {
    /// What was in it `samples` samples ago, the one just taken included; before it was told of, as when it was.
    fn at_first_of(&self, samples: usize) -> S::Value {
        if self.samples.len() == samples { self.samples[0] } else { self.first }
    }
}

impl Table {
    /// Of the `seconds` since the first sample. The last one is in the rows and not yet in `sampled`.
    fn report(&self, seconds: f64) -> Report {
        let samples = self.sampled.len() + 1;
        let rate = |since: u64, until: u64| until.saturating_sub(since) as f64 / seconds;
        let mut edges: BTreeMap<EdgeKey, Counts> = BTreeMap::new();
        for row in &self.requests.rows {
            let requests = rate(row.at_first_of(samples), row.last);
            if requests > 0.0 {
                let counts = edges.entry(row.key.edge.clone()).or_default();
                counts.requests += requests;
                counts.failures += if row.key.is_failure { requests } else { 0.0 };
            }
        }
        let mut latencies = BTreeMap::new();
        for row in &self.latencies.rows {
            let buckets = row.at_first_of(samples).into_iter().zip(row.last);
            let buckets: Vec<f64> = buckets.map(|(since, until)| rate(since, until)).collect();
            if buckets.iter().any(|count| *count > 0.0) {
                latencies.insert(row.key.clone(), buckets);
            }
        }
        Report::new(edges, latencies, MAX_EDGES)
    }
}

#[cfg(test)]
mod tests {
    use hanse_federation::traffic::Seen;

    use super::*;

    fn edge(service: &str) -> EdgeKey {
        EdgeKey {
            seen: Seen::ByCaller,
            service: service.to_owned(),
            source: "spiffe://east.example/ns/shop/sa/productpage".to_owned(),
            source_cluster: "east".to_owned(),
            destination: String::new(),
            destination_cluster: "east".to_owned(),
        }
    }

    #[test]
    fn what_is_not_used_makes_room_and_is_told_of_again_when_it_is() {
        let traffic = Traffic::default();
        let (used, unused) = (Counter::default(), Counter::default());
        let tell = |service, series| {
            traffic.tell().unwrap().counts_in(edge(service), "http", 200, "-", false, series)
        };
        tell("shop/used", &used);
        tell("shop/unused", &unused);
        unused.inc_by(1000);
        let (begun, epoch) = (Instant::now(), traffic.epoch());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut seconds = 0;
        while traffic.epoch() == epoch {
            used.inc();
            traffic.due(at(seconds));
            seconds += 60;
            assert!(seconds < 3600);
        }
        let services = || {
            let table = traffic.tell().unwrap();
            table.0.requests.rows.iter().map(|row| row.key.edge.service.clone()).collect::<Vec<_>>()
        };
        assert_eq!(services(), ["shop/used"]);
        // What it had been told of already is not told again.
        tell("shop/unused", &unused);
        unused.inc_by(6);
        let report = traffic.due(at(seconds)).unwrap();
        let row = report.edges.iter().find(|edge| edge.key.service == "shop/unused").unwrap();
        assert_eq!((row.counts.requests * 60.0).round(), 6.0);
    }

    #[test]
    fn a_worker_does_not_wait_for_the_table() {
        let traffic = Traffic::default();
        let other = traffic.tell();
        assert!(other.is_some() && traffic.tell().is_none());
        drop(other);
        assert!(traffic.tell().is_some());
    }

    #[test]
    fn a_report_is_of_the_last_minute() {
        let traffic = Traffic::default();
        let key = edge("shop/reviews");
        let latency = LatencyKey {
            seen: Seen::ByCaller,
            service: key.service.clone(),
            source_cluster: "east".to_owned(),
            destination_cluster: "east".to_owned(),
        };
        let (good, calls, bad) = (Counter::default(), Counter::default(), Counter::default());
        let durations = Durations::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(traffic.due(at(0)), None);
        // Two workers count in the same series.
        for _ in 0..2 {
            let mut table = traffic.tell().unwrap();
            table.counts_in(key.clone(), "http", 200, "-", false, &good);
            table.counts_in(key.clone(), "grpc", 200, "-", false, &calls);
            table.counts_in(key.clone(), "http", 503, "UH", true, &bad);
            table.takes_in(latency.clone(), &durations);
        }
        // Calls of gRPC are added to them.
        good.inc_by(30);
        calls.inc_by(10);
        bad.inc_by(10);
        (0..50).for_each(|_| durations.observe(Duration::from_micros(1500)));
        assert_eq!(traffic.due(at(4)), None, "not yet");
        let report = traffic.due(at(10)).unwrap();
        assert_eq!(report.edges.len(), 1);
        assert_eq!(report.edges[0].counts, Counts { requests: 5.0, failures: 1.0 });
        assert_eq!(report.latencies[0].buckets[2], 5.0);
        good.inc_by(60);
        let requests = traffic.due(at(60)).unwrap().edges[0].counts.requests;
        assert_eq!((requests * 60.0).round(), 110.0);
        assert_eq!(
            traffic.due(at(70)).unwrap().edges[0].counts.requests,
            1.0,
            "the first ten seconds are over"
        );
        assert_eq!(traffic.due(at(125)), None, "nobody asked for a minute");
    }
}
