//! The streams of local callers that are open, and how far each has followed the state: so that the agent can say
//! honestly which revision is in force on its host, and who is behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use super::sds;
use crate::attest::Process;
use crate::subscription::Rejection;

/// Streams that one process may have open.
pub const MAX_STREAMS_PER_PROCESS: usize = 512;

/// The table.
#[derive(Clone)]
pub struct Streams {
    open: Arc<Mutex<BTreeMap<u64, OpenStream>>>,
    next: Arc<AtomicU64>,
    progress: Arc<watch::Sender<u64>>,
}

#[derive(Clone)]
struct OpenStream {
    kind: &'static str,
    process: Process,
    uid: u32,
    handled: u64,
    rejection: Option<Rejection>,
}

/// One open stream; it is closed when this is dropped.
pub struct StreamTicket {
    streams: Streams,
    number: u64,
}

/// A row for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRow {
    pub kind: &'static str,
    pub process: Process,
    pub uid: u32,
    /// The revision of which everything is in force at the client.
    pub revision: u64,
    pub rejection: Option<Rejection>,
}

/// How the SDS streams stand to one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SdsCount {
    pub subscribers: u32,
    /// Of these: who has put in force all that the revision means for it.
    pub acknowledged: u32,
    /// Of these: who has refused what it was sent last, and keeps what it had before.
    pub rejected: u32,
}

/// One process has as many streams as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process has {MAX_STREAMS_PER_PROCESS} streams open, more are not served")]
pub struct TooManyStreams;

impl Default for Streams {
    fn default() -> Self {
        Self { open: Arc::default(), next: Arc::default(), progress: Arc::new(watch::Sender::new(0)) }
    }
}

impl Streams {
    /// Registers a stream that has followed the state up to `revision`.
    pub fn open(
        &self,
        kind: &'static str,
        process: Process,
        uid: u32,
        revision: u64,
    ) -> Result<StreamTicket, TooManyStreams> {
        let mut open = self.lock();
        if open.values().filter(|s| s.process == process).count() >= MAX_STREAMS_PER_PROCESS {
            return Err(TooManyStreams);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(number, OpenStream { kind, process, uid, handled: revision, rejection: None });
        drop(open);
        self.progress.send_modify(|n| *n += 1);
        Ok(StreamTicket { streams: self.clone(), number })
    }

    /// The revision that is in force at every client, and how many streams there are.
    pub fn applied(&self, revision: u64) -> (u64, u32) {
        let open = self.lock();
        let slowest = open.values().map(|s| s.handled).min();
        (slowest.unwrap_or(revision).min(revision), count(open.len()))
    }

    /// The SDS streams, as they stand to `revision`.
    pub fn sds(&self, revision: u64) -> SdsCount {
        let open = self.lock();
        let sds = || open.values().filter(|s| s.kind == sds::KIND);
        SdsCount {
            subscribers: count(sds().count()),
            acknowledged: count(sds().filter(|s| s.handled >= revision).count()),
            rejected: count(sds().filter(|s| s.rejection.is_some()).count()),
        }
    }

    /// Changes whenever `applied` or `sds` may have.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    pub fn list(&self) -> Vec<StreamRow> {
        let row = |s: &OpenStream| StreamRow {
            kind: s.kind,
            process: s.process,
            uid: s.uid,
            revision: s.handled,
            rejection: s.rejection.clone(),
        };
        self.lock().values().map(row).collect()
    }

    pub fn count(&self, kind: &str) -> usize {
        self.lock().values().filter(|s| s.kind == kind).count()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, OpenStream>> {
        self.open.lock().expect("no holder of this lock panics")
    }

    /// Changes a stream; whether that is news is what `change` says.
    fn update(&self, number: u64, change: impl FnOnce(&mut OpenStream) -> bool) {
        let news = self.lock().get_mut(&number).is_some_and(change);
        if news {
            self.progress.send_modify(|n| *n += 1);
        }
    }
}

impl StreamTicket {
    /// Whatever `revision` changed for this stream is in force at its client, as far as its protocol tells.
    pub fn handled(&self, revision: u64) {
        self.streams.update(self.number, |s| std::mem::replace(&mut s.handled, revision) != revision);
    }

    /// What the client refused last, if it has accepted nothing newer since.
    pub fn rejected(&self, rejection: Option<&Rejection>) {
        self.streams.update(self.number, |s| {
            let news = s.rejection.as_ref() != rejection;
            if news {
                s.rejection = rejection.cloned();
            }
            news
        });
    }

    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for StreamTicket {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.number);
        self.streams.progress.send_modify(|n| *n += 1);
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
