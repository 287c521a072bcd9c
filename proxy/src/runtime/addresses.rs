//! Which name has which virtual address: one table for all workers and the DNS, made anew when names come or go.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use hanse_federation::View;
use hanse_federation::addresses::Addresses;

use super::Plane;
use super::drain::Stop;

/// Holder of the newest table; readers load a pointer.
#[derive(Default)]
pub struct Directory(ArcSwapOption<Addresses>);

impl Directory {
    /// `None` until the first View.
    pub fn now(&self) -> Option<Arc<Addresses>> {
        self.0.load_full()
    }

    /// Takes in a View. Called from one task only: the next table continues the last one.
    pub fn update(&self, view: &View) {
        if let Some(next) = self.now().unwrap_or_default().next(view) {
            self.0.store(Some(Arc::new(next)));
        }
    }

    /// For the admin endpoint: every name that exists, with its addresses.
    pub fn describe(&self) -> serde_json::Value {
        let table = self.now().unwrap_or_default();
        let names = table.all().map(
            |(host, pair)| serde_json::json!({ "name": host.to_host(), "ipv4": pair.v4, "ipv6": pair.v6 }),
        );
        serde_json::json!({ "names": names.collect::<Vec<_>>() })
    }
}

/// Keeps the table up to date until the process ends.
pub async fn follow(directory: Arc<Directory>, plane: Arc<Plane>, mut stop: Stop) {
    let mut revisions = plane.knowledge.revisions();
    loop {
        revisions.borrow_and_update();
        if let Some(view) = plane.knowledge.view() {
            directory.update(&view);
        }
        tokio::select! {
            biased;
            () = stop.ended() => return,
            changed = revisions.changed() => if changed.is_err() { return },
        }
    }
}
