//! Traffic: what this proxy counted in the last minute, for the control nodes. Nothing is counted here: the series that
//! requests count in anyway are read now and then.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hanse_federation::traffic::{BOUNDS, Counts, EdgeKey, LatencyKey, MAX_EDGES, Report, WINDOW_SECONDS};
use prometheus_client::metrics::counter::Counter;

use super::telemetry::{Durations, MAX_SERIES};

/// Series of requests, and when what was in them.
#[derive(Default)]
pub struct Traffic(Mutex<Table>);

#[derive(Default)]
struct Table {
    known: HashSet<(EdgeKey, u16, &'static str)>,
    /// With whether they are failures.
    requests: Vec<(EdgeKey, bool, Counter)>,
    known_latencies: HashSet<LatencyKey>,
    latencies: Vec<(LatencyKey, Durations)>,
    /// Oldest first.
    samples: VecDeque<Sample>,
}

/// What was in the series; those that came later were empty.
struct Sample {
    at: Instant,
    requests: Vec<u64>,
    latencies: Vec<[u64; BOUNDS.len() + 1]>,
}

/// How often a report is due.
pub const REPORT_EVERY: Duration = Duration::from_secs(5);

impl Traffic {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has begun to count in a series. What has gone into an overflow series is not told of.
    pub fn counts_in(
        &self,
        key: EdgeKey,
        code: u16,
        flags: &'static str,
        is_failure: bool,
        series: &Counter,
    ) {
        let mut table = self.table();
        if table.requests.len() < MAX_SERIES && table.known.insert((key.clone(), code, flags)) {
            table.requests.push((key, is_failure, series.clone()));
        }
    }

    pub fn takes_in(&self, key: LatencyKey, series: &Durations) {
        let mut table = self.table();
        if table.latencies.len() < MAX_SERIES && table.known_latencies.insert(key.clone()) {
            table.latencies.push((key, series.clone()));
        }
    }

    /// What was counted since about a minute ago, if there is something to tell and it is time.
    pub fn due(&self, now: Instant) -> Option<Report> {
        let mut table = self.table();
        if table.samples.back().is_some_and(|last| now.duration_since(last.at) < REPORT_EVERY) {
            return None;
        }
        let sample = Sample {
            at: now,
            requests: table.requests.iter().map(|(_, _, series)| series.get()).collect(),
            latencies: table.latencies.iter().map(|(_, series)| series.counts()).collect(),
        };
        let window = Duration::from_secs(WINDOW_SECONDS);
        while table.samples.front().is_some_and(|first| now.duration_since(first.at) > window) {
            table.samples.pop_front();
        }
        let report = table.samples.front().map(|since| table.report(since, &sample));
        table.samples.push_back(sample);
        report.filter(|report| !report.edges.is_empty())
    }
}

impl Table {
    fn report(&self, since: &Sample, until: &Sample) -> Report {
        let seconds = until.at.duration_since(since.at).as_secs_f64();
        let rate = |until: u64, since: Option<&u64>| {
            until.saturating_sub(since.copied().unwrap_or_default()) as f64 / seconds
        };
        let mut edges: BTreeMap<EdgeKey, Counts> = BTreeMap::new();
        for (n, (key, is_failure, _)) in self.requests.iter().enumerate() {
            let requests = rate(until.requests[n], since.requests.get(n));
            if requests > 0.0 {
                let counts = edges.entry(key.clone()).or_default();
                counts.requests += requests;
                counts.failures += if *is_failure { requests } else { 0.0 };
            }
        }
        let mut latencies = BTreeMap::new();
        for (n, (key, _)) in self.latencies.iter().enumerate() {
            let before = since.latencies.get(n);
            let buckets = until.latencies[n].iter().enumerate();
            let buckets: Vec<f64> =
                buckets.map(|(b, count)| rate(*count, before.map(|before| &before[b]))).collect();
            if buckets.iter().any(|count| *count > 0.0) {
                latencies.insert(key.clone(), buckets);
            }
        }
        Report::new(edges, latencies, MAX_EDGES)
    }
}

#[cfg(test)]
mod tests {
    use hanse_federation::traffic::Seen;

    use super::*;

    #[test]
    fn a_report_is_of_the_last_minute() {
        let traffic = Traffic::default();
        let key = EdgeKey {
            seen: Seen::ByCaller,
            service: "shop/reviews".to_owned(),
            source: "spiffe://east.example/ns/shop/sa/productpage".to_owned(),
            source_cluster: "east".to_owned(),
            destination: String::new(),
            destination_cluster: "east".to_owned(),
        };
        let latency = LatencyKey {
            seen: Seen::ByCaller,
            service: key.service.clone(),
            source_cluster: "east".to_owned(),
            destination_cluster: "east".to_owned(),
        };
        let (good, bad, durations) = (Counter::default(), Counter::default(), Durations::default());
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(traffic.due(at(0)), None);
        // Two workers count in the same series.
        for _ in 0..2 {
            traffic.counts_in(key.clone(), 200, "-", false, &good);
            traffic.counts_in(key.clone(), 503, "UH", true, &bad);
            traffic.takes_in(latency.clone(), &durations);
        }
        good.inc_by(40);
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
