//! The access log: one JSON object per request, one line each, written by a thread of its own.
//!
//! Workers hand entries over and never wait: when the writer is behind, entries are dropped and counted.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::telemetry::Telemetry;

/// One request. Istio's field names, then ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Entry {
    pub start_time: String,
    pub direction: &'static str,
    pub method: String,
    /// Without the query: it may hold what is not ours to keep.
    pub path: String,
    pub protocol: &'static str,
    pub authority: String,
    pub response_code: u16,
    pub response_flags: &'static str,
    /// More than the reason, where the mesh answered itself.
    pub response_code_details: String,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub duration: u64,
    /// The service that was meant, `namespace/name`.
    pub upstream_cluster: String,
    pub source_cluster: String,
    pub destination_cluster: String,
    pub source_spiffe: String,
    pub destination_spiffe: String,
    pub tier: &'static str,
    pub attempts: u32,
    pub policy: String,
    pub hanse_reason: String,
}

/// Where entries go.
#[derive(Clone)]
pub struct AccessLog {
    entries: SyncSender<Box<Entry>>,
    telemetry: Arc<Telemetry>,
}

/// Entries that may wait for the writer.
const QUEUE: usize = 8192;
/// Longest time that an entry stays in the buffer while nothing follows it.
const FLUSH_AFTER: Duration = Duration::from_millis(100);

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
        let (entries, incoming) = sync_channel(QUEUE);
        let writer = std::thread::Builder::new().name("access-log".to_owned());
        let thread = writer.spawn(move || {
            if let Err(error) = write_all(&incoming, sink) {
                tracing::error!(%error, "the access log can no longer be written");
            }
        })?;
        Ok((Self { entries, telemetry }, thread))
    }

    /// Never waits.
    pub fn record(&self, entry: Entry) {
        if self.entries.try_send(Box::new(entry)).is_err() {
            self.telemetry.access_log_dropped.inc();
        }
    }
}

fn write_all(incoming: &Receiver<Box<Entry>>, sink: Box<dyn Write + Send>) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::with_capacity(64 * 1024, sink);
    loop {
        match incoming.recv_timeout(FLUSH_AFTER) {
            Ok(entry) => {
                serde_json::to_writer(&mut out, &*entry)?;
                out.write_all(b"\n")?;
            }
            Err(RecvTimeoutError::Timeout) => {
                out.flush()?;
                // Nothing to do until there is something: no need to wake up again and again.
                let Ok(entry) = incoming.recv() else { return out.flush() };
                serde_json::to_writer(&mut out, &*entry)?;
                out.write_all(b"\n")?;
            }
            Err(RecvTimeoutError::Disconnected) => return out.flush(),
        }
    }
}
