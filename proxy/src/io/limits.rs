//! The limits of one proxy: one table for all its workers, replaced when the View has changed, never locked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hanse_federation::policy::limit::{Asker, LimitTable, Limited};
use hanse_federation::{EndpointId, Revision, View};
use hanse_identity::{ServiceName, SpiffeId};
use http::Request;

use crate::headers;

use super::concurrency::Shared;

/// What the workers share.
pub struct Limits {
    table: ArcSwap<(Revision, Arc<LimitTable>)>,
    started: Instant,
    pub concurrency: Shared,
}

impl Default for Limits {
    fn default() -> Self {
        Self { table: ArcSwap::default(), started: Instant::now(), concurrency: Shared::default() }
    }
}

impl Limits {
    /// Takes the credit of one request.
    pub fn take<B>(
        &self,
        view: &View,
        own: &EndpointId,
        services: &BTreeSet<ServiceName>,
        caller: Option<&SpiffeId>,
        request: &Request<B>,
    ) -> Result<(), Limited> {
        let table = self.at(view, own, services);
        if table.is_empty() {
            return Ok(());
        }
        let header = |name: &str, tell: &mut dyn FnMut(&[u8])| headers::each_value(request, name, tell);
        table.take(&Asker { id: caller, header: &header }, self.started.elapsed())
    }

    /// The table at this View, or a later one that another worker has seen already.
    fn at(&self, view: &View, own: &EndpointId, services: &BTreeSet<ServiceName>) -> Arc<LimitTable> {
        loop {
            let held = self.table.load();
            if held.0 >= view.revision {
                return Arc::clone(&held.1);
            }
            let table = Arc::new(LimitTable::build(view, own, services, &held.1));
            let made = Arc::new((view.revision, Arc::clone(&table)));
            // Whoever comes second begins anew from the first one's: two must not count side by side.
            let before = self.table.compare_and_swap(&held, made);
            if Arc::ptr_eq(&before, &held) {
                return table;
            }
        }
    }
}

/// Whole seconds for `Retry-After`, rounded up.
pub fn retry_after(after: Duration) -> u64 {
    after.as_secs() + u64::from(after.subsec_nanos() > 0)
}
