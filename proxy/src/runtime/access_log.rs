//! The access log: one JSON object per request, one line each, written by a thread of its own.
//!
//! Workers hand whole batches over and never wait: when the writer is behind, batches are dropped and their lines counted.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hanse_identity::Timestamp;
use http::Method;
use prometheus_client::metrics::counter::Counter;
use serde::{Serialize, Serializer};

use super::telemetry::Telemetry;
use super::text::Text;
use crate::request_id::RequestId;
use crate::trace::{SpanId, TraceId};

/// One request. Istio's field names, then ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Entry {
    #[serde(serialize_with = "as_text")]
    pub start_time: Timestamp,
    pub direction: &'static str,
    #[serde(serialize_with = "as_text")]
    pub method: Method,
    /// Without the query: it may hold what is not ours to keep.
    pub path: String,
    pub protocol: &'static str,
    /// What it is, for metrics: `http` or `grpc`.
    #[serde(skip)]
    pub request_protocol: &'static str,
    pub authority: String,
    pub response_code: u16,
    pub response_flags: &'static str,
    /// More than the reason, where the mesh answered itself.
    pub response_code_details: String,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub duration: u64,
    /// Empty for what is not HTTP.
    pub request_id: RequestId,
    /// The service that was meant, `namespace/name`.
    pub upstream_cluster: Text,
    pub source_cluster: Text,
    pub destination_cluster: Text,
    pub source_spiffe: Text,
    pub destination_spiffe: Text,
    pub tier: &'static str,
    /// A nearer tier would have been asked first, had it been well.
    pub failover: bool,
    pub attempts: u32,
    pub policy: String,
    pub hanse_reason: String,
    /// Empty where there is no trace.
    pub trace_id: TraceId,
    /// This proxy's, where it records spans; else its caller's.
    pub span_id: SpanId,
}

/// Where batches of lines go.
#[derive(Clone)]
pub struct AccessLog {
    batches: SyncSender<Batch>,
    telemetry: Arc<Telemetry>,
}

/// One worker's lines that are not on their way yet. Dropped, it hands over what it has.
pub struct Lines {
    log: AccessLog,
    pending: RefCell<Batch>,
    /// Somebody will hand them over before long.
    due: Cell<bool>,
}

/// Whole lines.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
}

/// Bytes after which a batch is handed over at once.
const BATCH_BYTES: usize = 32 * 1024;
/// Batches that may wait for the writer.
const QUEUE: usize = 256;
/// Longest time that a line stays with its worker.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

fn as_text<T: ToString, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

impl AccessLog {
    /// Starts the writer. `-` is standard output; a file is appended to. The thread ends when every clone is gone.
    pub fn start(target: &str, telemetry: Arc<Telemetry>) -> std::io::Result<(Self, JoinHandle<()>)> {
        let sink: Box<dyn Write + Send> = match target {
            "-" => Box::new(std::io::stdout()),
            path => {
                let path = PathBuf::from(path);
                Box::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?)
            }
        };
        Self::start_with(sink, telemetry)
    }

    pub fn start_with(
        sink: Box<dyn Write + Send>,
        telemetry: Arc<Telemetry>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (batches, incoming) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new().name("access-log".to_owned());
        let dropped = telemetry.access_log_dropped.clone();
        let thread = writer.spawn(move || write_all(&incoming, sink, &dropped))?;
        Ok((Self { batches, telemetry }, thread))
    }
}

impl Lines {
    pub fn new(log: AccessLog) -> Rc<Self> {
        Rc::new(Self { log, pending: RefCell::default(), due: Cell::new(false) })
    }

    /// Never waits. Call it on the worker's `LocalSet`.
    pub fn record(self: &Rc<Self>, entry: &Entry) {
        let length = {
            let mut pending = self.pending.borrow_mut();
            let before = pending.text.len();
            if serde_json::to_writer(&mut pending.text, entry).is_err() {
                pending.text.truncate(before);
                return;
            }
            pending.text.push(b'\n');
            pending.lines += 1;
            pending.text.len()
        };
        if length >= BATCH_BYTES {
            self.hand_over();
        } else if !self.due.replace(true) {
            let lines = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                lines.due.set(false);
                lines.hand_over();
            });
        }
    }

    fn hand_over(&self) {
        let batch = self.pending.take();
        let lines = batch.lines;
        if lines > 0 && self.log.batches.try_send(batch).is_err() {
            self.log.telemetry.access_log_dropped.inc_by(lines);
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.hand_over();
    }
}

/// What cannot be written is counted and gone; the next batch is tried again, on a line of its own.
fn write_all(incoming: &Receiver<Batch>, mut sink: Box<dyn Write + Send>, dropped: &Counter) {
    let mut torn = false;
    for batch in incoming {
        let begun = if torn { sink.write_all(b"\n") } else { Ok(()) };
        let written = begun.and_then(|()| sink.write_all(&batch.text)).and_then(|()| sink.flush());
        match &written {
            Ok(()) if torn => tracing::info!("the access log can be written again"),
            Ok(()) => {}
            Err(error) => {
                dropped.inc_by(batch.lines);
                if !torn {
                    tracing::error!(%error, "the access log cannot be written");
                }
            }
        }
        torn = written.is_err();
    }
}
