//! What subscribers counted last, as they told it: by stream, for as long as it means something, and so much of each identity.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hanse_federation::traffic::{MAX_REPORT_BYTES, Report};
use hanse_identity::{SpiffeId, Timestamp};

/// How long what a proxy counted is told of after it has said so last.
pub const TRAFFIC_REMEMBERED: Duration = Duration::from_secs(20);
/// What the rows of one identity's reports take in memory on one node, under however many names it is connected: what does
/// not fit is left out, and that is told.
pub const MAX_IDENTITY_BYTES: usize = 4 << 20;
/// How often reports that mean nothing any more are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The reports of a node's subscribers.
#[derive(Default)]
pub struct Told {
    reports: HashMap<u64, Entry>,
    /// What an identity's reports take.
    bytes: HashMap<SpiffeId, usize>,
    swept: Timestamp,
}

struct Entry {
    identity: SpiffeId,
    said: Timestamp,
    bytes: usize,
    report: Arc<Report>,
}

impl Told {
    /// In place of what the same stream said before. `report`: as far as that identity may say it.
    pub fn put(&mut self, stream: u64, identity: &SpiffeId, report: Report, now: Timestamp) {
        self.drop(stream);
        if now.since(self.swept) >= SWEEP_EVERY || now < self.swept {
            self.sweep(now);
        }
        let held = self.bytes.get(identity).copied().unwrap_or_default();
        let left = MAX_IDENTITY_BYTES.saturating_sub(held);
        let report = report.within(left.min(MAX_REPORT_BYTES));
        let bytes = report.bytes();
        *self.bytes.entry(identity.clone()).or_default() += bytes;
        let entry = Entry { identity: identity.clone(), said: now, bytes, report: Arc::new(report) };
        self.reports.insert(stream, entry);
    }

    /// The stream has ended.
    pub fn drop(&mut self, stream: u64) {
        let Some(entry) = self.reports.remove(&stream) else { return };
        if let Some(held) = self.bytes.get_mut(&entry.identity) {
            *held = held.saturating_sub(entry.bytes);
            if *held == 0 {
                self.bytes.remove(&entry.identity);
            }
        }
    }

    /// What was said a while ago is no news.
    pub fn sweep(&mut self, now: Timestamp) {
        self.swept = now;
        let old = self.reports.iter().filter(|(_, entry)| now.since(entry.said) >= TRAFFIC_REMEMBERED);
        let old: Vec<u64> = old.map(|(stream, _)| *stream).collect();
        old.into_iter().for_each(|stream| self.drop(stream));
    }

    pub fn reports(&self) -> Vec<Arc<Report>> {
        self.reports.values().map(|entry| Arc::clone(&entry.report)).collect()
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.reports.values().map(|entry| entry.bytes).sum()
    }
}
