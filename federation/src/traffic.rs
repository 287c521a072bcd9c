//! Traffic: what proxies counted in the last minute, as they tell it and as it is added up. Pure.
//!
//! Each request is counted twice, by the caller's proxy and by the target's; the two are kept apart. Nothing of it is in
//! the log: a control node that starts knows nothing until its subscribers have spoken.

use std::collections::{BTreeMap, BTreeSet};

use hanse_identity::{ClusterName, ServiceName, SpiffeId};
use serde::{Deserialize, Serialize};

/// How far back a report looks, in seconds.
pub const WINDOW_SECONDS: u64 = 60;
/// Edges, and latencies, that one report has; those with the fewest requests are left out.
pub const MAX_EDGES: usize = 256;
/// The same of what a control node adds up.
pub const MAX_SUMMED: usize = 4096;
/// Upper bounds of the buckets of a latency, in milliseconds; one more is above them.
pub const BOUNDS: [f64; 15] =
    [0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0];
/// Most that a report of one proxy takes in memory: 256 rows of each kind, with names of a usual length.
pub const MAX_REPORT_BYTES: usize = 160 << 10;
/// Most requests per second that a row may say: more than any one proxy serves. Sums of these are numbers still; what is
/// none is no JSON.
const MAX_RATE: f64 = 1e7;

/// Which end of a request counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen {
    /// The caller's proxy.
    ByCaller,
    /// The target's proxy.
    ByTarget,
}

/// Who called whom for what. Names are empty where the one who counted does not know them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeKey {
    pub seen: Seen,
    /// `namespace/name`.
    pub service: String,
    pub source: String,
    pub source_cluster: String,
    pub destination: String,
    pub destination_cluster: String,
}

impl EdgeKey {
    /// Who tells of it.
    pub fn teller(&self) -> &str {
        match self.seen {
            Seen::ByCaller => &self.source,
            Seen::ByTarget => &self.destination,
        }
    }

    /// The latency that its requests are in.
    fn latency(&self) -> LatencyOf<'_> {
        (self.seen, &self.service, &self.source_cluster, &self.destination_cluster)
    }

    /// Empty names are those that are not known.
    fn has_names(&self) -> bool {
        let cluster = |name: &str| name.is_empty() || name.parse::<ClusterName>().is_ok();
        let identity = |name: &str| name.is_empty() || name.parse::<SpiffeId>().is_ok();
        (self.service.is_empty() || self.service.parse::<ServiceName>().is_ok())
            && [&self.source_cluster, &self.destination_cluster].into_iter().all(|name| cluster(name))
            && [&self.source, &self.destination].into_iter().all(|name| identity(name))
    }

    fn bytes(&self) -> usize {
        let names =
            [&self.service, &self.source, &self.source_cluster, &self.destination, &self.destination_cluster];
        names.into_iter().map(String::len).sum()
    }
}

/// The names of a `LatencyKey`.
type LatencyOf<'k> = (Seen, &'k str, &'k str, &'k str);

/// What a latency is of: a service in a cluster, as one end saw it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyKey {
    pub seen: Seen,
    pub service: String,
    pub source_cluster: String,
    pub destination_cluster: String,
}

impl LatencyKey {
    fn names(&self) -> LatencyOf<'_> {
        (self.seen, &self.service, &self.source_cluster, &self.destination_cluster)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub requests: f64,
    /// Answers of 5xx, the mesh's own included, and requests that got none.
    pub failures: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    #[serde(flatten)]
    pub key: EdgeKey,
    #[serde(flatten)]
    pub counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    #[serde(flatten)]
    pub key: LatencyKey,
    /// Requests per second by bucket: of `BOUNDS`, and one more.
    pub buckets: Vec<f64>,
}

/// Requests per second, of one proxy or of many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub edges: Vec<Edge>,
    pub latencies: Vec<Latency>,
    /// Something was left out for its length.
    #[serde(default)]
    pub cut: bool,
}

impl Report {
    /// What one proxy counted, `seconds` long: the busiest first.
    pub fn new(
        edges: BTreeMap<EdgeKey, Counts>,
        latencies: BTreeMap<LatencyKey, Vec<f64>>,
        most: usize,
    ) -> Self {
        let mut report = Self {
            edges: edges.into_iter().map(|(key, counts)| Edge { key, counts }).collect(),
            latencies: latencies.into_iter().map(|(key, buckets)| Latency { key, buckets }).collect(),
            cut: false,
        };
        report.cut = report.edges.len() > most || report.latencies.len() > most;
        report.edges.sort_by(|a, b| b.counts.requests.total_cmp(&a.counts.requests));
        report.edges.truncate(most);
        let total = |latency: &Latency| latency.buckets.iter().sum::<f64>();
        report.latencies.sort_by(|a, b| total(b).total_cmp(&total(a)));
        report.latencies.truncate(most);
        report
    }

    /// As far as its sender may say it: of requests that it made or served itself, in numbers whose sums are numbers too, and
    /// in names that are some.
    pub fn of(mut self, sender: &SpiffeId) -> Self {
        let sender = sender.to_string();
        let sane = |number: f64| (0.0..=MAX_RATE).contains(&number);
        self.edges.truncate(MAX_EDGES);
        self.edges.retain(|Edge { key, counts }| {
            key.teller() == sender && sane(counts.requests) && sane(counts.failures) && key.has_names()
        });
        self.latencies.truncate(MAX_EDGES);
        self.latencies.retain(|Latency { buckets, .. }| {
            buckets.len() == BOUNDS.len() + 1 && buckets.iter().all(|count| sane(*count))
        });
        self.drop_foreign_latencies();
        self
    }

    /// As much of it as fits, the rows that have come first: what was left out is told.
    pub fn within(mut self, bytes: usize) -> Self {
        let (edges, latencies) = (self.edges.len(), self.latencies.len());
        let mut left = bytes;
        let mut fits = |row: usize| left.checked_sub(row).map(|rest| left = rest).is_some();
        // Latencies of edges that have no room have none either: the edges go first.
        let kept = self.edges.iter().take_while(|edge| fits(edge.bytes())).count();
        self.edges.truncate(kept);
        self.drop_foreign_latencies();
        let kept = self.latencies.iter().take_while(|latency| fits(latency.bytes())).count();
        self.latencies.truncate(kept);
        self.cut |= self.edges.len() < edges || self.latencies.len() < latencies;
        self.edges.shrink_to_fit();
        self.latencies.shrink_to_fit();
        self
    }

    /// What its rows take in memory, nearly.
    pub fn bytes(&self) -> usize {
        let edges: usize = self.edges.iter().map(Edge::bytes).sum();
        edges + self.latencies.iter().map(Latency::bytes).sum::<usize>()
    }

    /// Nobody is slow by hearsay: latencies are of edges that are told of.
    fn drop_foreign_latencies(&mut self) {
        let told: BTreeSet<LatencyOf<'_>> = self.edges.iter().map(|edge| edge.key.latency()).collect();
        self.latencies.retain(|latency| told.contains(&latency.key.names()));
    }

    /// Adds up what several told. Where that is more than is kept, each identity that told of something has its share of the
    /// places, and keeps the busiest of its own: no figure of its making takes another's.
    pub fn sum<'r>(reports: impl IntoIterator<Item = &'r Self>) -> Self {
        let (mut edges, mut latencies) =
            (BTreeMap::<&EdgeKey, Counts>::new(), BTreeMap::<&LatencyKey, Vec<f64>>::new());
        let mut cut = false;
        for report in reports {
            cut |= report.cut;
            for edge in &report.edges {
                edges.entry(&edge.key).or_default().add(edge.counts);
            }
            for latency in &report.latencies {
                let sum = latencies.entry(&latency.key).or_insert_with(|| vec![0.0; BOUNDS.len() + 1]);
                sum.iter_mut().zip(&latency.buckets).for_each(|(sum, count)| *sum += count);
            }
        }
        let mut edges: Vec<(&EdgeKey, Counts)> = edges.into_iter().collect();
        if edges.len() > MAX_SUMMED {
            edges = shared_out(edges);
            let told: BTreeSet<LatencyOf<'_>> = edges.iter().map(|(key, _)| key.latency()).collect();
            latencies.retain(|key, _| told.contains(&key.names()));
            cut = true;
        }
        let edges = edges.into_iter().map(|(key, counts)| (key.clone(), counts)).collect();
        let latencies = latencies.into_iter().map(|(key, buckets)| (key.clone(), buckets)).collect();
        let sum = Self::new(edges, latencies, MAX_SUMMED);
        Self { cut: cut || sum.cut, ..sum }
    }

    /// Who calls whom: by the caller's proxy where it told of it, else by the target's.
    pub fn graph(&self) -> Vec<&Edge> {
        let ends = |edge: &Edge| {
            let key = &edge.key;
            (key.source.clone(), key.destination.clone(), key.service.clone())
        };
        let by_caller: BTreeSet<_> =
            self.edges.iter().filter(|edge| edge.key.seen == Seen::ByCaller).map(ends).collect();
        let shown = |edge: &&Edge| edge.key.seen == Seen::ByCaller || !by_caller.contains(&ends(edge));
        self.edges.iter().filter(shown).collect()
    }

    /// By service and the cluster that served it, as one end saw it.
    pub fn services(&self, seen: Seen) -> Vec<ServiceTraffic> {
        let mut services: BTreeMap<(String, String), ServiceTraffic> = BTreeMap::new();
        let empty = |service: &str, cluster: &str| ServiceTraffic {
            service: service.to_owned(),
            cluster: cluster.to_owned(),
            counts: Counts::default(),
            buckets: vec![0.0; BOUNDS.len() + 1],
        };
        for Edge { key, counts } in self.edges.iter().filter(|edge| edge.key.seen == seen) {
            let (service, cluster) = (&key.service, &key.destination_cluster);
            let row = services.entry((service.clone(), cluster.clone()));
            row.or_insert_with(|| empty(service, cluster)).counts.add(*counts);
        }
        for Latency { key, buckets } in self.latencies.iter().filter(|latency| latency.key.seen == seen) {
            if let Some(row) = services.get_mut(&(key.service.clone(), key.destination_cluster.clone())) {
                row.buckets.iter_mut().zip(buckets).for_each(|(sum, count)| *sum += count);
            }
        }
        services.into_values().collect()
    }
}

/// As many as are kept: the busiest of every teller, then the second of each, and so on.
fn shared_out(mut edges: Vec<(&EdgeKey, Counts)>) -> Vec<(&EdgeKey, Counts)> {
    edges.sort_by(|(_, a), (_, b)| b.requests.total_cmp(&a.requests));
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, (&EdgeKey, Counts))> = edges
        .into_iter()
        .map(|edge| {
            let before = told.entry(edge.0.teller()).or_default();
            *before += 1;
            (*before, edge)
        })
        .collect();
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().take(MAX_SUMMED).map(|(_, edge)| edge).collect()
}

impl Edge {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.key.bytes()
    }
}

impl Latency {
    fn bytes(&self) -> usize {
        let LatencyKey { service, source_cluster, destination_cluster, .. } = &self.key;
        let names = service.len() + source_cluster.len() + destination_cluster.len();
        size_of::<Self>() + size_of_val(self.buckets.as_slice()) + names
    }
}

/// One service's requests per second.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceTraffic {
    pub service: String,
    /// The cluster that served; empty: none did.
    pub cluster: String,
    pub counts: Counts,
    pub buckets: Vec<f64>,
}

impl ServiceTraffic {
    /// Milliseconds within which that share of the requests was answered, as far as the buckets tell: the bound above.
    /// `None`: nothing was, or it is above all bounds.
    pub fn within(&self, share: f64) -> Option<f64> {
        let total: f64 = self.buckets.iter().sum();
        let mut below = 0.0;
        for (count, bound) in self.buckets.iter().zip(BOUNDS) {
            below += count;
            if total > 0.0 && below >= total * share {
                return Some(bound);
            }
        }
        None
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failures += other.failures;
    }

    /// Share of requests that did not fail; `None` where there were none.
    pub fn success(&self) -> Option<f64> {
        (self.requests > 0.0).then(|| 1.0 - (self.failures / self.requests).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCT: &str = "spiffe://west.example/ns/shop/sa/productpage";
    const REVIEWS: &str = "spiffe://east.example/ns/shop/sa/reviews";

    fn edge(seen: Seen, requests: f64, failures: f64) -> Edge {
        let key = EdgeKey {
            seen,
            service: "shop/reviews".to_owned(),
            source: PRODUCT.to_owned(),
            source_cluster: "west".to_owned(),
            destination: REVIEWS.to_owned(),
            destination_cluster: "east".to_owned(),
        };
        Edge { key, counts: Counts { requests, failures } }
    }

    fn latency(seen: Seen, bucket: usize, count: f64) -> Latency {
        let key = LatencyKey {
            seen,
            service: "shop/reviews".to_owned(),
            source_cluster: "west".to_owned(),
            destination_cluster: "east".to_owned(),
        };
        let mut buckets = vec![0.0; BOUNDS.len() + 1];
        buckets[bucket] = count;
        Latency { key, buckets }
    }

    #[test]
    fn reports_of_many_add_up_by_service() {
        let one = Report {
            edges: vec![edge(Seen::ByCaller, 9.0, 1.0)],
            latencies: vec![latency(Seen::ByCaller, 2, 9.0)],
            cut: false,
        };
        let other = Report {
            edges: vec![edge(Seen::ByCaller, 1.0, 0.0), edge(Seen::ByTarget, 7.0, 0.0)],
            latencies: vec![latency(Seen::ByCaller, 15, 1.0)],
            cut: true,
        };
        let sum = Report::sum([&one, &other]);
        assert!(sum.cut);
        let services = sum.services(Seen::ByCaller);
        let [reviews] = &services[..] else { panic!("{services:?}") };
        assert_eq!((reviews.service.as_str(), reviews.cluster.as_str()), ("shop/reviews", "east"));
        assert_eq!((reviews.counts.requests, reviews.counts.success()), (10.0, Some(0.9)));
        assert_eq!(
            (reviews.within(0.5), reviews.within(0.9), reviews.within(0.99)),
            (Some(2.0), Some(2.0), None)
        );
        assert_eq!(sum.services(Seen::ByTarget)[0].counts.requests, 7.0);
        // Told of by both ends, it is one edge.
        assert_eq!(sum.graph(), [&edge(Seen::ByCaller, 10.0, 1.0)]);
        let target_only =
            Report::sum([&Report { edges: vec![edge(Seen::ByTarget, 7.0, 0.0)], ..Report::default() }]);
        assert_eq!(target_only.graph().len(), 1, "whose proxy is not ours, or who has none");
    }

    #[test]
    fn nobody_tells_of_others_and_nobody_tells_too_much() {
        let wrong =
            Edge { counts: Counts { requests: f64::NAN, failures: 0.0 }, ..edge(Seen::ByCaller, 1.0, 0.0) };
        let edges = vec![edge(Seen::ByCaller, 1.0, 0.0), edge(Seen::ByTarget, 1.0, 0.0), wrong];
        let short = Latency { buckets: vec![1.0], ..latency(Seen::ByCaller, 0, 1.0) };
        let report = Report { edges, latencies: vec![short, latency(Seen::ByCaller, 0, 1.0)], cut: false };
        let told = |by: &str| report.clone().of(&by.parse().unwrap());
        assert_eq!(told(PRODUCT).edges, [edge(Seen::ByCaller, 1.0, 0.0)]);
        assert_eq!(told(REVIEWS).edges, [edge(Seen::ByTarget, 1.0, 0.0)]);
        assert_eq!(told(PRODUCT).latencies.len(), 1);
        let elsewhere = Latency {
            key: LatencyKey { service: "shop/ratings".to_owned(), ..latency(Seen::ByCaller, 0, 1.0).key },
            ..latency(Seen::ByCaller, 0, 1.0)
        };
        let said = Edge {
            key: EdgeKey { service: "\u{1b}]52;c;x\u{7}".to_owned(), ..edge(Seen::ByCaller, 1.0, 0.0).key },
            ..edge(Seen::ByCaller, 1.0, 0.0)
        };
        let long = |cluster: &str, destination: &str| {
            let (source_cluster, destination) = (cluster.to_owned(), destination.to_owned());
            let key = EdgeKey { source_cluster, destination, ..edge(Seen::ByCaller, 1.0, 0.0).key };
            Edge { key, ..edge(Seen::ByCaller, 1.0, 0.0) }
        };
        let longest = "c".repeat(63);
        assert_eq!(
            Report { edges: vec![long(&longest, "")], ..Report::default() }
                .of(&PRODUCT.parse().unwrap())
                .edges
                .len(),
            1
        );
        let (cluster, nobody) = (long(&"c".repeat(64), REVIEWS), long("west", "nobody"));
        let edges = vec![edge(Seen::ByCaller, 1e8, 0.0), said, cluster, nobody];
        let report = Report { edges, latencies: vec![elsewhere], cut: false }.of(&PRODUCT.parse().unwrap());
        assert_eq!(
            report,
            Report::default(),
            "no proxy serves that much, no terminal is written to, names are names, nobody is slow by hearsay"
        );
        let many = (0..MAX_EDGES + 1).map(|n| {
            let EdgeKey { seen, source, .. } = edge(Seen::ByCaller, 0.0, 0.0).key;
            let key = EdgeKey { service: format!("shop/s{n}"), seen, source, ..edge(seen, 0.0, 0.0).key };
            (key, Counts { requests: n as f64, failures: 0.0 })
        });
        let report = Report::new(many.collect(), BTreeMap::new(), MAX_EDGES);
        assert!(report.cut && report.edges.len() == MAX_EDGES);
        assert_eq!(report.edges[0].counts.requests, MAX_EDGES as f64, "the busiest stay");
        let text = crate::wire::encode(&report);
        assert_eq!(crate::wire::decode::<Report>("report", &text).unwrap(), report);
    }

    /// A report of that many edges, busier than any other, with their latencies.
    fn invented(edges: usize, first: usize) -> Report {
        let thief = "spiffe://west.example/ns/shop/sa/thief";
        let key = |n: usize| EdgeKey {
            service: format!("made/up{}", first + n),
            source: thief.to_owned(),
            ..edge(Seen::ByCaller, 0.0, 0.0).key
        };
        let counts = Counts { requests: MAX_RATE, failures: MAX_RATE };
        let slow = |n: usize| {
            let key = LatencyKey { service: key(n).service, ..latency(Seen::ByCaller, 0, 1.0).key };
            Latency { key, ..latency(Seen::ByCaller, 15, MAX_RATE) }
        };
        Report {
            edges: (0..edges).map(|n| Edge { key: key(n), counts }).collect(),
            latencies: (0..edges).map(slow).collect(),
            cut: false,
        }
        .of(&thief.parse().unwrap())
    }

    #[test]
    fn whoever_makes_up_calls_takes_nobodys_place() {
        let honest = Report {
            edges: vec![edge(Seen::ByCaller, 3.0, 0.0), edge(Seen::ByTarget, 3.0, 0.0)],
            latencies: vec![latency(Seen::ByCaller, 2, 3.0)],
            cut: false,
        };
        let made_up: Vec<Report> =
            (0..=MAX_SUMMED / MAX_EDGES).map(|n| invented(MAX_EDGES, n * MAX_EDGES)).collect();
        let on_a_node = Report::sum(made_up.iter().chain([&honest]));
        assert!(on_a_node.cut && on_a_node.edges.len() == MAX_SUMMED);
        // And again where the sums of nodes are added up.
        for sum in [&on_a_node, &Report::sum([&on_a_node, &Report::sum(&made_up)])] {
            for told in &honest.edges {
                assert!(sum.edges.contains(told), "{:?}", told.key);
            }
            let reviews = sum.services(Seen::ByCaller).into_iter().find(|row| row.service == "shop/reviews");
            assert_eq!(reviews.unwrap().within(0.99), Some(2.0));
        }
    }

    #[test]
    fn a_report_is_cut_to_what_it_may_take() {
        let report = invented(MAX_EDGES, 0);
        assert_eq!(report.clone().within(MAX_REPORT_BYTES), report, "of names of a usual length all is kept");
        for bytes in [0, 1000, report.bytes() / 2, report.bytes() - 1] {
            let cut = report.clone().within(bytes);
            assert!(cut.cut && cut.bytes() <= bytes, "{bytes}: {}", cut.bytes());
            assert_eq!(cut.edges, report.edges[..cut.edges.len()], "the busiest stay");
        }
    }
}
