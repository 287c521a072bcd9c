//! Spans on their way to a collector: OTLP over gRPC, by a thread of its own.
//!
//! Workers put what is to be exported into a bounded queue and never wait: where the collector is behind or away, spans
//! are dropped and counted. It is asked in plain text, so it belongs on this host.

mod otlp;
pub mod wire;

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use super::Plane;
use super::access_log::Entry;
use super::telemetry::Telemetry;
use crate::trace::Span;

/// One finished request of a trace.
pub struct Finished {
    pub span: Span,
    /// The app's own request, so a client's span; else a server's.
    pub outbound: bool,
    pub entry: Entry,
    pub end: SystemTime,
    pub duration: Duration,
}

/// Where finished spans go.
#[derive(Clone)]
pub struct Spans {
    queue: mpsc::Sender<Box<Finished>>,
    counts: Counts,
}

/// Ends the exporter.
pub struct Exporter {
    close: watch::Sender<bool>,
    /// Nothing is ever sent: it is closed when the thread ends.
    ended: std::sync::mpsc::Receiver<()>,
}

/// A collector: `http://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(String);

/// `hanse_spans_dropped_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    /// `queue`: the collector is behind; `collector`: it cannot be reached; `rejected`: it does not want them.
    reason: &'static str,
}

#[derive(Clone, Default)]
struct Counts {
    exported: Counter,
    dropped: Family<Dropped, Counter>,
}

/// Spans that may wait for the exporter.
const QUEUE: usize = 4096;
/// Spans that go in one message.
const BATCH: usize = 512;
/// Longest time that a span waits for others.
const BATCH_WITHIN: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses before a batch is sent again; after the last it is dropped.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// How long what is left at the end may take.
pub const FLUSH_WITHIN: Duration = Duration::from_secs(1);

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|_| "is not of the form http://HOST:PORT")?;
        if uri.scheme_str() == Some("https") {
            return Err(
                "is https, which is not spoken to collectors: run one on this host, which goes on by TLS"
                    .to_owned(),
            );
        }
        let whole =
            uri.scheme_str() == Some("http") && uri.port_u16().is_some() && matches!(uri.path(), "" | "/");
        if !whole || uri.query().is_some() {
            return Err("is not of the form http://HOST:PORT".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl Spans {
    /// Starts the exporter for what `plane`'s workers finish.
    pub fn start(collector: &Collector, plane: &Plane) -> anyhow::Result<(Self, Exporter)> {
        let endpoint = Endpoint::from_shared(collector.0.clone())?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(EXPORT_TIMEOUT);
        let (queue, finished) = mpsc::channel(QUEUE);
        let (close, closing) = watch::channel(false);
        let counts = Counts::default();
        counts.register(&plane.telemetry);
        let source = otlp::Source {
            instance: plane.name.to_string(),
            credentials: Arc::clone(&plane.credentials),
            knowledge: Arc::clone(&plane.knowledge),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exporting = export_all(endpoint, finished, closing, source, counts.clone());
        let thread = std::thread::Builder::new().name("spans".to_owned());
        let (ending, ended) = std::sync::mpsc::channel();
        thread.spawn(move || {
            let _ending = ending;
            runtime.block_on(exporting);
        })?;
        Ok((Self { queue, counts }, Exporter { close, ended }))
    }

    /// Never waits; `finished` is made only if there is a place for it.
    pub fn export(&self, finished: impl FnOnce() -> Finished) {
        match self.queue.try_reserve() {
            Ok(place) => place.send(Box::new(finished())),
            Err(_) => self.counts.dropped("queue", 1),
        }
    }

    /// Spans that the exporter has not taken yet.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        QUEUE - self.queue.capacity()
    }
}

impl Exporter {
    /// Has what is left sent, within bounds.
    pub fn close(self) {
        let _ = self.close.send(true);
        let _ = self.ended.recv_timeout(FLUSH_WITHIN + Duration::from_millis(200));
    }
}

impl Counts {
    fn register(&self, telemetry: &Telemetry) {
        telemetry.register("hanse_spans_exported", "Spans that the collector took", self.exported.clone());
        telemetry.register(
            "hanse_spans_dropped",
            "Spans that it did not get, by reason",
            self.dropped.clone(),
        );
    }

    fn dropped(&self, reason: &'static str, spans: u64) {
        self.dropped.get_or_create(&Dropped { reason }).inc_by(spans);
    }
}

async fn export_all(
    endpoint: Endpoint,
    mut finished: mpsc::Receiver<Box<Finished>>,
    mut closing: watch::Receiver<bool>,
    source: otlp::Source,
    counts: Counts,
) {
    let channel = endpoint.connect_lazy();
    let mut reachable = true;
    let mut batch = Vec::with_capacity(BATCH);
    let mut late = None;
    while late.is_none() {
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => break,
            gathered = gather(&mut finished, &mut batch) => if !gathered { break },
        }
        {
            let mut sending = std::pin::pin!(send(&channel, &batch, &source, &counts));
            let sent = tokio::select! {
                sent = &mut sending => Some(sent),
                _ = closing.wait_for(|closing| *closing) => None,
            };
            let sent = match sent {
                Some(sent) => Some(sent),
                None => {
                    let late = *late.insert(Instant::now() + FLUSH_WITHIN);
                    tokio::time::timeout_at(late, sending).await.ok()
                }
            };
            sent_or_dropped(sent, &mut reachable, &batch, &counts);
        }
        batch.clear();
    }
    // What was gathered before it was closed, and what waits.
    let late = late.unwrap_or_else(|| Instant::now() + FLUSH_WITHIN);
    loop {
        while batch.len() < BATCH
            && let Ok(span) = finished.try_recv()
        {
            batch.push(*span);
        }
        if batch.is_empty() {
            return;
        }
        let sent = tokio::time::timeout_at(late, send(&channel, &batch, &source, &counts)).await.ok();
        sent_or_dropped(sent, &mut reachable, &batch, &counts);
        batch.clear();
    }
}

/// `None`: there was no time left for it.
fn sent_or_dropped(
    sent: Option<Result<(), tonic::Status>>,
    reachable: &mut bool,
    batch: &[Finished],
    counts: &Counts,
) {
    match sent {
        Some(sent) => tell(reachable, sent),
        None => counts.dropped("collector", batch.len() as u64),
    }
}

/// Fills the batch; `false`: there will be no more.
async fn gather(finished: &mut mpsc::Receiver<Box<Finished>>, batch: &mut Vec<Finished>) -> bool {
    match finished.recv().await {
        Some(first) => batch.push(*first),
        None => return false,
    }
    let more = async {
        while batch.len() < BATCH {
            match finished.recv().await {
                Some(span) => batch.push(*span),
                None => break,
            }
        }
    };
    let _ = tokio::time::timeout(BATCH_WITHIN, more).await;
    true
}

async fn send(
    channel: &Channel,
    batch: &[Finished],
    source: &otlp::Source,
    counts: &Counts,
) -> Result<(), tonic::Status> {
    let request = otlp::request(batch, source);
    let spans = batch.len() as u64;
    let mut pauses = AGAIN_AFTER.into_iter();
    loop {
        match wire::export(channel, request.clone()).await {
            Ok(answer) => {
                let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
                let rejected = u64::try_from(rejected).unwrap_or(0).min(spans);
                counts.exported.inc_by(spans - rejected);
                if rejected > 0 {
                    counts.dropped("rejected", rejected);
                }
                return Ok(());
            }
            Err(status) => match pauses.next().filter(|_| may_try_again(&status)) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    counts.dropped("collector", spans);
                    return Err(status);
                }
            },
        }
    }
}

/// OTLP, "Failures": what is worth another try.
fn may_try_again(status: &tonic::Status) -> bool {
    use tonic::Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, Unavailable};
    matches!(status.code(), Cancelled | DeadlineExceeded | Aborted | OutOfRange | Unavailable | DataLoss)
}

/// Once when it goes and once when it is back.
fn tell(reachable: &mut bool, sent: Result<(), tonic::Status>) {
    match (&sent, *reachable) {
        (Err(error), true) => {
            tracing::warn!(%error, "the collector takes no spans; they are dropped until it does")
        }
        (Ok(()), false) => tracing::info!("the collector takes spans again"),
        _ => {}
    }
    *reachable = sent.is_ok();
}
