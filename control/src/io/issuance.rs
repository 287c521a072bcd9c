//! Recording what is issued: every SVID is in the log's issuance index before it is handed out.
//!
//! Records gather while a batch is under way, so the cost of a write is shared by all that came meanwhile. Without a
//! quorum SVIDs are still given, as identities must outlive the control plane; they are recorded once there is one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::context::stopped;
use super::driver::Handle;
use super::keys::random_u64;
use crate::command::{Answer, Command, Proposal};
use crate::state::issuance::{IssuedRecord, MAX_ISSUED_BATCH};

/// Records that wait for the one batch that is under way.
const QUEUE: usize = 4096;
/// How long a batch may take before its SVIDs are handed out unrecorded.
const WITHIN: Duration = Duration::from_secs(1);
/// How often it is tried to make up for records that are missing.
const RETRY: Duration = Duration::from_millis(250);
/// Most records that are remembered while there is no quorum; the oldest go.
const MAX_OWED: usize = 65_536;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is in the index: hand the SVID out.
    Yes,
    /// There is no quorum: hand the SVID out, it will be recorded.
    Owed,
    /// It was revoked while it was being issued: it must not be handed out.
    Refused,
    /// Too many wait, or the node is stopping.
    Overloaded,
}

/// Where records are handed in.
pub struct Recorder {
    queue: mpsc::Sender<Waiting>,
    intake: Mutex<Option<mpsc::Receiver<Waiting>>>,
}

struct Waiting {
    record: IssuedRecord,
    reply: oneshot::Sender<Recorded>,
}

impl Default for Recorder {
    fn default() -> Self {
        let (queue, intake) = mpsc::channel(QUEUE);
        Self { queue, intake: Mutex::new(Some(intake)) }
    }
}

impl Recorder {
    /// Has a record committed, together with what else waits.
    pub async fn record(&self, record: IssuedRecord) -> Recorded {
        let (reply, verdict) = oneshot::channel();
        match self.queue.try_send(Waiting { record, reply }) {
            Ok(()) => verdict.await.unwrap_or(Recorded::Overloaded),
            Err(_) => Recorded::Overloaded,
        }
    }

    /// Commits what is handed in, until the node stops. To be run once.
    pub async fn run(&self, handle: Handle, mut stop: watch::Receiver<bool>) {
        let intake = self.intake.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut intake) = intake else { return };
        let mut owed = Owed::default();
        let mut retry = tokio::time::interval(RETRY);
        loop {
            tokio::select! {
                first = intake.recv() => {
                    let Some(first) = first else { return };
                    let mut batch = vec![first];
                    while batch.len() < MAX_ISSUED_BATCH && let Ok(next) = intake.try_recv() {
                        batch.push(next);
                    }
                    settle(&handle, batch, &mut owed).await;
                }
                _ = retry.tick(), if !owed.records.is_empty() => owed.make_up(&handle).await,
                () = stopped(&mut stop) => return,
            }
        }
    }
}

/// Commits one batch and tells each what became of it.
async fn settle(handle: &Handle, batch: Vec<Waiting>, owed: &mut Owed) {
    let records: Vec<IssuedRecord> = batch.iter().map(|waiting| waiting.record.clone()).collect();
    // What is owed comes first: whoever cannot write that cannot write this either, and nobody waits for it.
    let refused = match owed.records.is_empty() {
        true => propose(handle, records).await,
        false => None,
    };
    for Waiting { record, reply } in batch {
        let verdict = match &refused {
            Some(refused) if refused.contains(&record.svid.serial) => Recorded::Refused,
            Some(_) => Recorded::Yes,
            None => {
                owed.add(record);
                Recorded::Owed
            }
        };
        // Whoever asked may have gone.
        let _ = reply.send(verdict);
    }
}

/// Answers the serial numbers that were refused; `None`: no outcome.
async fn propose(
    handle: &Handle,
    records: Vec<IssuedRecord>,
) -> Option<std::collections::BTreeSet<hanse_identity::Serial>> {
    handle.status().leader?;
    let command = Command::Issued { records };
    let (actor, certificate) = (String::new(), None);
    let (id, now) = (random_u64(), handle.clock().agreed());
    let proposal = Arc::new(Proposal { id, now, actor, certificate, command });
    match handle.propose_until(proposal, WITHIN).await.map(|outcome| outcome.result) {
        Ok(Ok(Answer::Issued { refused })) => Some(refused),
        Ok(other) => {
            tracing::error!(?other, "records of issued SVIDs were not taken");
            None
        }
        Err(error) => {
            tracing::warn!(why = %error, "issued SVIDs could not be recorded yet");
            None
        }
    }
}

/// Records of SVIDs that have been handed out and are not in the index yet.
#[derive(Default)]
struct Owed {
    records: VecDeque<IssuedRecord>,
}

impl Owed {
    fn add(&mut self, record: IssuedRecord) {
        if self.records.len() >= MAX_OWED {
            let lost = self.records.pop_front();
            let serial = lost.map(|r| r.svid.serial.to_string()).unwrap_or_default();
            tracing::warn!(
                serial,
                "the record of an issued SVID is lost: there has been no quorum for too long"
            );
        }
        self.records.push_back(IssuedRecord { handed_out: true, ..record });
    }

    async fn make_up(&mut self, handle: &Handle) {
        let batch: Vec<IssuedRecord> = self.records.iter().take(MAX_ISSUED_BATCH).cloned().collect();
        let count = batch.len();
        if propose(handle, batch).await.is_some() {
            self.records.drain(..count);
            tracing::info!(count, left = self.records.len(), "SVIDs issued without a quorum are recorded");
        }
    }
}
