//! Telemetry: the metrics of every data-plane role, in Prometheus text. Roles register families of their own.
//!
//! Names and labels are Istio's where they fit. A family is a lock: workers look a series up once and keep its handle
//! (see `SeriesCache`), so that a request only counts.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hanse_federation::traffic::BOUNDS as DURATION_BOUNDS;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

use super::ends::Ends;
use super::sizes::Sizes;
use super::traffic::Traffic;
use crate::staleness::Freshness;

/// `hanse_refused_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refused {
    pub reason: &'static str,
}

/// `hanse_connections_closed_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Closed {
    pub cause: &'static str,
}

/// `istio_requests_total`, `istio_request_bytes` and `istio_response_bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `source` (outbound) or `destination` (inbound).
    pub reporter: &'static str,
    /// `http` or `grpc`.
    pub request_protocol: &'static str,
    pub response_code: u32,
    pub response_flags: &'static str,
    #[prometheus(flatten)]
    pub ends: Ends,
}

/// `istio_request_duration_milliseconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DurationLabels {
    pub reporter: &'static str,
    pub source_cluster: String,
    pub destination_cluster: String,
    pub destination_service: String,
}

/// `hanse_requests_by_tier_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TierLabels {
    pub cluster: String,
    pub service: String,
    pub tier: &'static str,
    pub destination_cluster: String,
}

/// `hanse_retries_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RetryLabels {
    pub service: String,
    pub reason: &'static str,
}

/// `hanse_mirrored_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MirrorLabels {
    pub service: String,
    /// `sent`, `failed`, or `dropped`: too many were under way.
    pub outcome: &'static str,
}

/// `istio_tcp_connections_opened_total` and `_closed_total`, `istio_tcp_sent_bytes_total` and `_received_bytes_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TcpLabels {
    pub reporter: &'static str,
    pub request_protocol: &'static str,
    /// How it ended; `-` while it has not.
    pub response_flags: &'static str,
    #[prometheus(flatten)]
    pub ends: Ends,
}

/// `hanse_streams_open`: upgraded connections and plain TCP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabels {
    pub reporter: &'static str,
    /// What began it: `HTTP/1.1`, `HTTP/2`, or `TCP`.
    pub protocol: &'static str,
}

/// `hanse_overflows_total`: requests that a limit of BackendPolicy.limits stopped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OverflowLabels {
    pub service: String,
    pub destination_cluster: String,
    /// The field: `maxRequests` …
    pub limit: &'static str,
}

/// `hanse_app_checks_total`: active checks of the app behind this proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CheckLabels {
    /// `http`, `grpc` or `tcp`.
    pub kind: &'static str,
    /// `passed` or `failed`.
    pub outcome: &'static str,
}

/// `hanse_access_total`: requests that an AccessPolicy denied, or asked to be told of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AccessLabels {
    /// `namespace/name#rule`; empty where no policy allows the request.
    pub rule: String,
    /// `denied` or `audited`.
    pub decision: &'static str,
}

/// `hanse_external_authorizations_total`: questions to external authorizers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AuthorizationLabels {
    /// `namespace/name`.
    pub policy: String,
    /// `allowed`, `denied`, `failed` (and refused for it), or `failed-open`.
    pub decision: &'static str,
}

/// What callers in plain text are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PortLabels {
    /// As they dialled it; only ports that a PeerAuthentication opens.
    pub port: u32,
}

/// One open connection in plain text.
pub struct OpenPlaintext(Gauge);

/// `hanse_faults_injected_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FaultLabels {
    pub service: String,
    /// `DI`, a delay, or `FI`, an abort.
    pub fault: &'static str,
}

/// `hanse_rate_limited_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabels {
    /// `namespace/name#limit`.
    pub limit: String,
}

/// `hanse_shed_total`: requests that an app had no room for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ShedLabels {
    /// `namespace/name` of the BackendPolicy.
    pub policy: String,
    /// `BestEffort`, `Default` or `Critical`.
    pub priority: &'static str,
}

/// A histogram of request durations, in milliseconds. Atomic numbers, so that workers that count in the same series do
/// not wait for each other; a scrape may see a request in its bucket before it is in the sum.
#[derive(Clone, Debug, Default)]
pub struct Durations(Arc<DurationCounts>);

#[derive(Debug, Default)]
struct DurationCounts {
    /// Beside the bounds, what is above the last of them.
    buckets: [AtomicU64; DURATION_BOUNDS.len() + 1],
    /// Microseconds.
    sum: AtomicU64,
}

/// All families; registered once.
pub struct Telemetry {
    registry: Mutex<Registry>,
    /// What control nodes are told of it.
    pub traffic: Traffic,
    pub refused: Family<Refused, Counter>,
    pub closed: Family<Closed, Counter>,
    pub requests: Family<RequestLabels, Counter>,
    pub durations: Family<DurationLabels, Durations>,
    pub request_bytes: Family<RequestLabels, Sizes>,
    pub response_bytes: Family<RequestLabels, Sizes>,
    pub tiers: Family<TierLabels, Counter>,
    pub retries: Family<RetryLabels, Counter>,
    pub mirrored: Family<MirrorLabels, Counter>,
    pub access: Family<AccessLabels, Counter>,
    pub authorizations: Family<AuthorizationLabels, Counter>,
    pub faults: Family<FaultLabels, Counter>,
    pub limited: Family<LimitLabels, Counter>,
    pub shed: Family<ShedLabels, Counter>,
    pub concurrency_limit: Gauge,
    pub concurrency_under_way: Gauge,
    pub streams: Family<StreamLabels, Gauge>,
    pub overflows: Family<OverflowLabels, Counter>,
    pub checks: Family<CheckLabels, Counter>,
    pub app_ready: Gauge,
    pub tcp_opened: Family<TcpLabels, Counter>,
    pub tcp_closed: Family<TcpLabels, Counter>,
    pub tcp_sent: Family<TcpLabels, Counter>,
    pub tcp_received: Family<TcpLabels, Counter>,
    pub access_log_dropped: Counter,
    pub revision: Gauge,
    pub svid_not_after: Gauge,
    pub control_connected: Gauge,
    pub revocations_age: Gauge,
    pub revocations_stale: Gauge,
    pub app_exposed: Gauge,
    pub plaintext_connections: Family<PortLabels, Counter>,
    pub plaintext_open: Family<PortLabels, Gauge>,
    pub permissive_until: Family<PortLabels, Gauge>,
}

/// Series that one worker keeps handles of; above that, new ones go into the family's overflow series.
pub const MAX_SERIES: usize = 2_000;

impl Durations {
    pub fn observe(&self, duration: Duration) {
        let millis = duration.as_secs_f64() * 1000.0;
        let bucket = DURATION_BOUNDS.partition_point(|bound| *bound < millis);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.sum.fetch_add(micros, Ordering::Relaxed);
    }

    /// By bucket.
    pub fn counts(&self) -> [u64; DURATION_BOUNDS.len() + 1] {
        std::array::from_fn(|bucket| self.0.buckets[bucket].load(Ordering::Relaxed))
    }
}

impl TypedMetric for Durations {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let bounds = DURATION_BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum.load(Ordering::Relaxed) as f64 / 1000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        let new = Self {
            registry: Mutex::new(Registry::default()),
            traffic: Traffic::default(),
            refused: Family::default(),
            closed: Family::default(),
            requests: Family::default(),
            durations: Family::default(),
            request_bytes: Family::default(),
            response_bytes: Family::default(),
            tiers: Family::default(),
            retries: Family::default(),
            mirrored: Family::default(),
            access: Family::default(),
            authorizations: Family::default(),
            faults: Family::default(),
            limited: Family::default(),
            shed: Family::default(),
            concurrency_limit: Gauge::default(),
            concurrency_under_way: Gauge::default(),
            streams: Family::default(),
            overflows: Family::default(),
            checks: Family::default(),
            app_ready: Gauge::default(),
            tcp_opened: Family::default(),
            tcp_closed: Family::default(),
            tcp_sent: Family::default(),
            tcp_received: Family::default(),
            access_log_dropped: Counter::default(),
            revision: Gauge::default(),
            svid_not_after: Gauge::default(),
            control_connected: Gauge::default(),
            revocations_age: Gauge::default(),
            revocations_stale: Gauge::default(),
            app_exposed: Gauge::default(),
            plaintext_connections: Family::default(),
            plaintext_open: Family::default(),
            permissive_until: Family::default(),
        };
        new.register("hanse_refused", "Connections and requests refused, by reason", new.refused.clone());
        new.register(
            "hanse_connections_closed",
            "Live connections closed by us, by cause",
            new.closed.clone(),
        );
        new.register("istio_requests", "Requests, as the reporter saw them", new.requests.clone());
        new.register(
            "istio_request_duration_milliseconds",
            "Time from a request's head to the end of its response",
            new.durations.clone(),
        );
        new.register("istio_request_bytes", "Sizes of requests' bodies", new.request_bytes.clone());
        new.register("istio_response_bytes", "Sizes of responses' bodies", new.response_bytes.clone());
        new.register("hanse_requests_by_tier", "Outbound requests by tier of the ladder", new.tiers.clone());
        new.register("hanse_retries", "Attempts after the first that were sent", new.retries.clone());
        new.register("hanse_access", "Requests that AccessPolicies denied or audited", new.access.clone());
        new.register(
            "hanse_external_authorizations",
            "Questions to external authorizers",
            new.authorizations.clone(),
        );
        new.register("istio_tcp_connections_opened", "TCP connections opened", new.tcp_opened.clone());
        new.register(
            "istio_tcp_connections_closed",
            "TCP connections that have ended",
            new.tcp_closed.clone(),
        );
        new.register("istio_tcp_sent_bytes", "Bytes of answers, when it has ended", new.tcp_sent.clone());
        new.register(
            "istio_tcp_received_bytes",
            "Bytes of requests, when it has ended",
            new.tcp_received.clone(),
        );
        new.register("hanse_streams_open", "Upgraded and plain TCP connections", new.streams.clone());
        new.register("hanse_overflows", "Requests that a limit of a policy stopped", new.overflows.clone());
        new.register("hanse_app_checks", "Active checks of the app behind this proxy", new.checks.clone());
        new.register("hanse_app_ready", "1 while the app behind this proxy is well", new.app_ready.clone());
        new.register("hanse_mirrored", "Copies of requests for other services", new.mirrored.clone());
        new.register("hanse_rate_limited", "Requests that a RateLimit refused", new.limited.clone());
        new.register("hanse_shed", "Requests that the app had no room for, by priority", new.shed.clone());
        new.register(
            "hanse_concurrency_limit",
            "Requests that the app may work on at a time; 0 without such a policy",
            new.concurrency_limit.clone(),
        );
        new.register(
            "hanse_concurrency_under_way",
            "Requests that it works on, of those that count",
            new.concurrency_under_way.clone(),
        );
        new.register("hanse_faults_injected", "Delays and aborts by FaultInjections", new.faults.clone());
        new.register(
            "hanse_access_log_dropped",
            "Access log entries dropped because the writer was behind",
            new.access_log_dropped.clone(),
        );
        new.register("hanse_view_revision", "Revision of the View in force", new.revision.clone());
        new.register(
            "hanse_svid_not_after_timestamp_seconds",
            "When the SVID in use expires",
            new.svid_not_after.clone(),
        );
        new.register(
            "hanse_control_connected",
            "1 while a control node's Watch stream is open",
            new.control_connected.clone(),
        );
        new.register(
            "hanse_revocations_age_seconds",
            "Since a control node was last heard; -1 before the first",
            new.revocations_age.clone(),
        );
        new.register(
            "hanse_revocations_stale",
            "1 while that is longer than --revocation-staleness",
            new.revocations_stale.clone(),
        );
        new.register(
            "hanse_app_exposed",
            "1 where the app's port can be reached past the proxy",
            new.app_exposed.clone(),
        );
        new.register(
            "hanse_plaintext_connections",
            "Connections without mutual TLS that a permissive port took",
            new.plaintext_connections.clone(),
        );
        new.register("hanse_plaintext_connections_open", "Those that are open", new.plaintext_open.clone());
        new.register(
            "hanse_permissive_until_timestamp_seconds",
            "When a port that takes plain text stops doing so; none where all are strict",
            new.permissive_until.clone(),
        );
        new
    }
}

impl Telemetry {
    /// Adds a family of a role's own. `_total` is added to counters by the encoder.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry.lock().expect("no holder of the registry panics").register(name, help, metric);
    }

    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Refused { reason }).inc();
    }

    pub fn connection_closed(&self, cause: &'static str) {
        self.closed.get_or_create(&Closed { cause }).inc();
    }

    /// Counts a connection in plain text for as long as what is given back lives.
    pub fn plaintext(&self, port: u16) -> OpenPlaintext {
        let labels = PortLabels { port: port.into() };
        self.plaintext_connections.get_or_create(&labels).inc();
        let open = self.plaintext_open.get_or_create(&labels).clone();
        open.inc();
        OpenPlaintext(open)
    }

    /// How old what is known of revocations is.
    pub fn freshness(&self, freshness: &Freshness) {
        let age = freshness.age().map(|age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        self.revocations_age.set(age.unwrap_or(-1));
        self.revocations_stale.set(i64::from(freshness.is_stale()));
    }

    /// Prometheus text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("no holder of the registry panics");
        if encode(&mut text, &registry).is_err() {
            tracing::error!("the metrics could not be written");
        }
        text
    }
}

impl Drop for OpenPlaintext {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One worker's handles of a family's series.
pub struct SeriesCache<L, M> {
    handles: HashMap<L, M>,
    room: usize,
}

impl<L, M> Default for SeriesCache<L, M> {
    fn default() -> Self {
        Self::with_room(MAX_SERIES)
    }
}

impl<L, M> SeriesCache<L, M> {
    /// With a bound of its own, for series that are many lines each.
    pub fn with_room(room: usize) -> Self {
        Self { handles: HashMap::new(), room }
    }
}

impl<L: Clone + Eq + Hash, M: Clone> SeriesCache<L, M> {
    /// Whether these labels have a series of their own, or would get one.
    pub fn has_room(&self, labels: &L) -> bool {
        self.handles.len() < self.room || self.handles.contains_key(labels)
    }

    /// The series' handle; `overflow` gives the labels to use when this worker already holds too many.
    pub fn handle<C: MetricConstructor<M>>(
        &mut self,
        family: &Family<L, M, C>,
        labels: L,
        overflow: impl FnOnce(L) -> L,
    ) -> &M {
        let labels = if self.has_room(&labels) { labels } else { overflow(labels) };
        self.handles.entry(labels).or_insert_with_key(|labels| family.get_or_create(labels).clone())
    }
}
