//! Cutting connections to whoever is not believed any more, for the two tables that hold them: what this node has
//! accepted (`server`) and what it has dialled (`node_link/believed`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use hanse_identity::tls::TrustSource;
use hanse_identity::{Timestamp, Trust, VerifiedCaller, VerifyError};
use tokio::sync::{oneshot, watch};

use crate::state::State;

/// How often every connection is asked about, besides on every change of trust.
const SWEEP: Duration = Duration::from_secs(1);
/// How often while some are in their farewell.
const FAREWELL_SWEEP: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection.
pub struct OtherEnd {
    pub verified: VerifiedCaller,
    unbelieved_since: Option<Timestamp>,
}

/// A table's end of a connection. One that is dropped cuts too.
pub struct Cutter(oneshot::Sender<()>);

/// The connection's own end.
pub struct Cut {
    told: oneshot::Receiver<()>,
    is_cut: bool,
}

/// Both ends of what cuts one connection.
pub fn cutter() -> (Cutter, Cut) {
    let (cutter, told) = oneshot::channel();
    (Cutter(cutter), Cut { told, is_cut: false })
}

/// Looks at a table on every change of trust and as time passes, for as long as the node runs. `look` cuts who must go
/// and answers whether somebody is in its farewell; the revision that it is told is never newer than the trust.
pub async fn sweep(
    trust: Arc<dyn TrustSource>,
    mut states: watch::Receiver<Arc<State>>,
    mut look: impl FnMut(u64, &Trust) -> bool,
) {
    let mut seen = trust.trust();
    let mut tick = tokio::time::interval(SWEEP);
    let mut leaving = false;
    loop {
        let timed = tokio::select! {
            _ = tick.tick() => true,
            () = tokio::time::sleep(FAREWELL_SWEEP), if leaving => true,
            changed = states.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
        };
        let revision = states.borrow().view.revision.0;
        let current = trust.trust();
        if timed || !Arc::ptr_eq(&current, &seen) {
            leaving = look(revision, &current);
            seen = current;
        }
    }
}

impl OtherEnd {
    pub fn new(verified: VerifiedCaller) -> Self {
        Self { verified, unbelieved_since: None }
    }

    /// Why the connection must end now, if it must: who is not believed any more has its farewell first.
    pub fn verdict(
        &mut self,
        trust: &Trust,
        now: Timestamp,
        farewell: impl FnOnce(&VerifiedCaller, &VerifyError) -> Duration,
    ) -> Option<VerifyError> {
        let Err(error) = self.verified.still_believed(trust, now) else {
            self.unbelieved_since = None;
            return None;
        };
        let since = *self.unbelieved_since.get_or_insert(now);
        (now.since(since) >= farewell(&self.verified, &error)).then_some(error)
    }

    /// Whether it is in its farewell.
    pub fn is_leaving(&self) -> bool {
        self.unbelieved_since.is_some()
    }
}

impl Cutter {
    pub fn cut(self) {
        // A connection that is gone already needs no cutting.
        let _ = self.0.send(());
    }
}

impl Cut {
    /// What reading fails with once the connection is cut; asked before every read.
    pub fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.is_cut {
            self.is_cut = Pin::new(&mut self.told).poll(cx).is_ready();
        }
        match self.is_cut {
            true => {
                let why = "the other end is not believed any more";
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, why))
            }
            false => Ok(()),
        }
    }
}
