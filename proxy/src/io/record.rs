//! The record of one request: what is counted and logged when it is over, however it ends.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hanse_federation::policy::access::Denied;
use hanse_federation::traffic::Seen;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use hyper::ext::Protocol;
use prometheus_client::metrics::counter::Counter;

use super::body::{ByteCount, OnEnd};
use super::stream::Ending;
use crate::answer::Reason;
use crate::headers;
use crate::io::forward::UnderWay;
use crate::request_id::RequestId;
use crate::runtime::access_log::{AccessLog, Entry, Lines};
use crate::runtime::ends::OVERFLOW;
use crate::runtime::sizes::{MAX_SIZED, Sizes};
use crate::runtime::spans::Finished;
use crate::runtime::taps::{Head, Outcome};
use crate::runtime::telemetry::{
    AccessLabels, DurationLabels, Durations, FaultLabels, LimitLabels, MirrorLabels, OverflowLabels,
    RequestLabels, RetryLabels, SeriesCache, StreamLabels, TcpLabels, TierLabels,
};
use crate::runtime::text::Text;
use crate::runtime::worker::Random;
use crate::runtime::{Plane, now};
use crate::trace::Trace;

mod series;

use series::Measured;

/// One worker's way to metrics and access log.
pub struct Reporter {
    pub plane: Arc<Plane>,
    log: Option<Rc<Lines>>,
    /// Those that requests of the same kind count in, found without building their labels.
    series: RefCell<HashMap<SeriesKey, Rc<Series>>>,
    /// The one counted in last: the next request is mostly of the same kind.
    last: RefCell<Option<(SeriesKey, Rc<Series>)>>,
    requests: RefCell<SeriesCache<RequestLabels, Counter>>,
    durations: RefCell<SeriesCache<DurationLabels, Durations>>,
    sizes: RefCell<SizeSeries>,
    tiers: RefCell<SeriesCache<TierLabels, Counter>>,
    retries: RefCell<SeriesCache<RetryLabels, Counter>>,
    mirrored: RefCell<SeriesCache<MirrorLabels, Counter>>,
    access: RefCell<SeriesCache<AccessLabels, Counter>>,
    tcp: RefCell<TcpSeries>,
    faults: RefCell<SeriesCache<FaultLabels, Counter>>,
    limited: RefCell<SeriesCache<LimitLabels, Counter>>,
    overflows: RefCell<SeriesCache<OverflowLabels, Counter>>,
    /// For IDs of spans.
    random: Random,
}

/// The families of TCP connections.
#[derive(Default)]
struct TcpSeries {
    opened: SeriesCache<TcpLabels, Counter>,
    closed: SeriesCache<TcpLabels, Counter>,
    received: SeriesCache<TcpLabels, Counter>,
    sent: SeriesCache<TcpLabels, Counter>,
}

/// The families of bodies' sizes.
struct SizeSeries {
    received: SeriesCache<RequestLabels, Sizes>,
    sent: SeriesCache<RequestLabels, Sizes>,
}

enum TcpEvent {
    Opened,
    Closed { received: u64, sent: u64 },
}

/// What requests of one kind count in.
struct Series {
    requests: Counter,
    durations: Durations,
    received: Sizes,
    sent: Sizes,
    tier: Option<Counter>,
    /// They are of these names alone, and of no overflow.
    is_own: bool,
    /// In which epoch the control nodes' report was told of it.
    told: Cell<u64>,
    /// Their keys stay taken for as long as they are part of a `SeriesKey`.
    _names: [Text; NAMES],
}

/// A kind of request, told apart without a look at the letters of its names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct SeriesKey {
    direction: Direction,
    request_protocol: &'static str,
    response_code: u16,
    response_flags: &'static str,
    tier: &'static str,
    names: [usize; NAMES],
}

/// Names that are labels.
const NAMES: usize = 5;

/// Which way a request went, seen from the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// One request's record. Dropped before it was finished, the client has gone.
pub struct Record {
    reporter: Rc<Reporter>,
    started: Instant,
    direction: Direction,
    finished: bool,
    pub received: ByteCount,
    /// What a stream has sent back so far, where it is one.
    sent: Option<ByteCount>,
    /// It was a stream, or was one until it ended.
    carried: bool,
    pub entry: Entry,
    pub trace: Trace,
    /// How the request began, where somebody looks at requests.
    tapped: Option<Box<Head>>,
    /// Counts among what is under way to a target until the record is over.
    pub under_way: Option<UnderWay>,
}

/// The protocol of a connection that is not read.
pub const TCP: &str = "TCP";
/// Code of a request that got no response because its client left, as Envoy counts it.
const CLIENT_LEFT: u16 = 0;
/// Envoy's flag for it.
const CLIENT_LEFT_FLAG: &str = "DC";
/// Envoy's flag for a stream that the mesh itself cut.
const CUT_FLAG: &str = "LR";
/// What the log and spans tell of a path or a host: more is the caller's to send and nobody's to keep.
const MAX_SHOWN: usize = 2048;

fn shown(text: &str) -> String {
    let end = (0..=text.len().min(MAX_SHOWN)).rev().find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or_default()].to_owned()
}

impl Default for SizeSeries {
    fn default() -> Self {
        Self { received: SeriesCache::with_room(MAX_SIZED), sent: SeriesCache::with_room(MAX_SIZED) }
    }
}

impl Direction {
    fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound => "source",
        }
    }

    fn security_policy(self, entry: &Entry) -> &'static str {
        match self {
            // Only where a port takes plain text is there a caller without a name.
            Self::Inbound if entry.source_spiffe.is_empty() => "none",
            Self::Inbound => "mutual_tls",
            Self::Outbound => "unknown",
        }
    }

    fn seen(self) -> Seen {
        match self {
            Self::Inbound => Seen::ByTarget,
            Self::Outbound => Seen::ByCaller,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Reporter {
    pub fn new(plane: Arc<Plane>, access_log: Option<AccessLog>) -> Self {
        Self {
            plane,
            log: access_log.map(Lines::new),
            series: RefCell::default(),
            last: RefCell::default(),
            requests: RefCell::default(),
            durations: RefCell::default(),
            sizes: RefCell::default(),
            tiers: RefCell::default(),
            retries: RefCell::default(),
            mirrored: RefCell::default(),
            access: RefCell::default(),
            tcp: RefCell::default(),
            faults: RefCell::default(),
            limited: RefCell::default(),
            overflows: RefCell::default(),
            random: Random::from_entropy(),
        }
    }

    /// Counts a retry.
    pub fn retried(&self, service: &str, reason: &'static str) {
        let labels = RetryLabels { service: service.to_owned(), reason };
        let overflow = |labels| RetryLabels { service: OVERFLOW.to_owned(), ..labels };
        self.retries.borrow_mut().handle(&self.plane.telemetry.retries, labels, overflow).inc();
    }

    /// Counts the streams that are open, by one more or less.
    fn stream(&self, direction: Direction, protocol: &'static str, change: i64) {
        let labels = StreamLabels { reporter: direction.reporter(), protocol };
        self.plane.telemetry.streams.get_or_create(&labels).inc_by(change);
    }

    /// Counts a copy of a request for another service.
    pub fn mirrored(&self, service: &str, outcome: &'static str) {
        let labels = MirrorLabels { service: service.to_owned(), outcome };
        let overflow = |labels| MirrorLabels { service: OVERFLOW.to_owned(), ..labels };
        self.mirrored.borrow_mut().handle(&self.plane.telemetry.mirrored, labels, overflow).inc();
    }

    fn injected(&self, service: &str, fault: &'static str) {
        let labels = FaultLabels { service: service.to_owned(), fault };
        let overflow = |labels| FaultLabels { service: OVERFLOW.to_owned(), ..labels };
        self.faults.borrow_mut().handle(&self.plane.telemetry.faults, labels, overflow).inc();
    }

    /// Counts a request that a limit of its service's policy stopped.
    pub fn overflowed(&self, service: &str, cluster: &str, limit: &'static str) {
        let (service, destination_cluster) = (service.to_owned(), cluster.to_owned());
        let labels = OverflowLabels { service, destination_cluster, limit };
        let overflow = |labels| OverflowLabels { service: OVERFLOW.to_owned(), ..labels };
        self.overflows.borrow_mut().handle(&self.plane.telemetry.overflows, labels, overflow).inc();
    }

    fn access(&self, rule: &str, decision: &'static str) {
        let labels = AccessLabels { rule: rule.to_owned(), decision };
        let overflow = |labels| AccessLabels { rule: OVERFLOW.to_owned(), ..labels };
        self.access.borrow_mut().handle(&self.plane.telemetry.access, labels, overflow).inc();
    }
}

impl Record {
    pub fn begin<B>(reporter: &Rc<Reporter>, direction: Direction, request: &Request<B>) -> Self {
        let mut entry = Entry {
            direction: direction.label(),
            method: request.method().clone(),
            protocol: protocol(request.version()),
            response_flags: "-",
            ..Entry::default()
        };
        // A stream of TCP has no headers.
        let is_tcp = *request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_none();
        let trace = match is_tcp {
            true => Trace::default(),
            false => Trace::begin(request.headers(), reporter.plane.sampling, || reporter.random.next()),
        };
        entry.request_protocol = if headers::is_grpc(request.headers()) { "grpc" } else { "http" };
        let told = reporter.log.is_some() || reporter.plane.spans.is_some();
        if !is_tcp {
            entry.request_id = RequestId::begin(request.headers(), told, || reporter.random.next());
        }
        let tapped = reporter.plane.taps.head(request, &trace, &entry.request_id);
        if reporter.log.is_some() {
            (entry.trace_id, entry.span_id) = trace.ids();
            entry.start_time = now();
        }
        if told {
            entry.path = shown(request.uri().path());
            if let Ok(Some(authority)) = headers::authority(request) {
                entry.authority = shown(authority);
            }
        }
        Self {
            reporter: Rc::clone(reporter),
            started: Instant::now(),
            direction,
            finished: false,
            received: ByteCount::default(),
            sent: None,
            carried: false,
            entry,
            trace,
            tapped,
            under_way: None,
        }
    }

    /// Has the request tell the next one of its trace and its ID.
    pub fn put(&self, headers: &mut HeaderMap) {
        self.trace.put(headers);
        self.entry.request_id.put(headers);
    }

    /// An Audit rule wants to be told.
    pub fn audited(&mut self, rule: &str) {
        self.reporter.access(rule, "audited");
        let policy = &mut self.entry.policy;
        if !policy.is_empty() {
            policy.push(' ');
        }
        policy.push_str("audit:");
        policy.push_str(rule);
    }

    /// A fault was injected: Envoy's flag for a delay (`DI`) or an abort (`FI`).
    pub fn injected(&mut self, flag: &'static str) {
        self.reporter.injected(&self.entry.upstream_cluster, flag);
        self.entry.response_flags = if self.entry.response_flags == "DI" { "DI,FI" } else { flag };
    }

    /// A RateLimit is reached.
    pub fn limited(&mut self, limit: &str) {
        limit.clone_into(&mut self.entry.policy);
        let labels = LimitLabels { limit: limit.to_owned() };
        let overflow = |_| LimitLabels { limit: OVERFLOW.to_owned() };
        let reporter = &self.reporter;
        reporter.limited.borrow_mut().handle(&reporter.plane.telemetry.limited, labels, overflow).inc();
    }

    /// The policies let nobody through.
    pub fn denied(&mut self, denied: &Denied) {
        let rule = match denied {
            Denied::By(rule) => rule.as_ref(),
            Denied::NotAllowed | Denied::Path(_) => "",
        };
        rule.clone_into(&mut self.entry.policy);
        self.reporter.access(rule, "denied");
    }

    /// The mesh answers in the app's place.
    pub fn refused(&mut self, reason: Reason) {
        self.entry.response_code = reason.status().as_u16();
        self.entry.response_flags = reason.flags();
        reason.as_str().clone_into(&mut self.entry.hanse_reason);
        if matches!(
            reason,
            Reason::Revoked
                | Reason::NotAllowed
                | Reason::Unauthenticated
                | Reason::UnknownHost
                | Reason::NoRoute
        ) {
            self.reporter.plane.telemetry.refused(match reason {
                Reason::Revoked => "revoked",
                Reason::NotAllowed => "policy",
                Reason::Unauthenticated => "unauthenticated",
                _ => "no_route",
            });
        }
    }

    pub fn answered(&mut self, status: StatusCode) {
        self.entry.response_code = status.as_u16();
    }

    /// A stream follows: it is over when it ends, or when the record is dropped.
    pub fn carries(&mut self, sent: ByteCount) {
        self.reporter.stream(self.direction, self.entry.protocol, 1);
        if self.entry.protocol == TCP {
            self.reporter.count_tcp(self.direction, &self.entry, &TcpEvent::Opened);
        }
        self.sent = Some(sent);
        self.carried = true;
    }

    /// The stream has ended.
    pub fn ended(mut self, ending: &Ending) {
        self.entry.response_flags = ending.flags();
        if matches!(ending, Ending::Withdrawn) {
            self.entry.response_code_details = "no longer allowed".to_owned();
        }
        self.finish_stream();
    }

    fn finish_stream(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.reporter.stream(self.direction, self.entry.protocol, -1);
            if self.entry.protocol == TCP {
                let bytes = TcpEvent::Closed { received: self.received.get(), sent: sent.get() };
                self.reporter.count_tcp(self.direction, &self.entry, &bytes);
            }
            self.finish(sent.get());
        }
    }

    /// Worth a span even where the trace is not recorded: no answer, an error, or a word of the mesh about it.
    fn has_failed(&self) -> bool {
        self.entry.response_code >= 500 || !matches!(self.entry.response_flags, "-" | "DI" | CLIENT_LEFT_FLAG)
    }

    fn finish(&mut self, bytes: u64) {
        self.finished = true;
        let elapsed = self.started.elapsed();
        match self.entry.protocol {
            TCP if self.carried => {}
            TCP => {
                let nothing = TcpEvent::Closed { received: 0, sent: 0 };
                self.reporter.count_tcp(self.direction, &self.entry, &TcpEvent::Opened);
                self.reporter.count_tcp(self.direction, &self.entry, &nothing);
            }
            _ => {
                let measured = Measured { duration: elapsed, received: self.received.get(), sent: bytes };
                self.reporter.count(self.direction, &self.entry, &measured);
            }
        }
        if let (Some(spans), Some(span)) = (&self.reporter.plane.spans, self.trace.span())
            && (span.sampled || self.has_failed())
        {
            spans.export(|| Finished {
                span: *span,
                outbound: self.direction == Direction::Outbound,
                entry: self.entry.clone(),
                end: SystemTime::now(),
                duration: elapsed,
            });
        }
        if let Some(head) = self.tapped.take() {
            let outcome = Outcome {
                outbound: self.direction == Direction::Outbound,
                entry: &self.entry,
                received: self.received.get(),
                sent: bytes,
                duration: elapsed,
            };
            self.reporter.plane.taps.offer(*head, &outcome);
        }
        if let Some(log) = &self.reporter.log {
            self.entry.bytes_received = self.received.get();
            self.entry.bytes_sent = bytes;
            self.entry.duration = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            log.record(&self.entry);
        }
    }
}

impl OnEnd for Record {
    fn on_end(mut self, bytes: u64, complete: bool) {
        if !complete && self.entry.response_flags == "-" {
            // The response's head was passed on, its body was not, or not all of it.
            self.entry.response_flags = CLIENT_LEFT_FLAG;
        }
        self.finish(bytes);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.sent.is_some() {
            // Draining, or an order, did not wait for its end.
            self.entry.response_flags = CUT_FLAG;
            self.finish_stream();
        } else if !self.finished {
            self.entry.response_code = CLIENT_LEFT;
            self.entry.response_flags = CLIENT_LEFT_FLAG;
            self.finish(0);
        }
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
