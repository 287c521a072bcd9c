//! The runtime of every data-plane role: who we are, what we know, who is connected, what is counted.
//!
//! Sidecar and gateway share it. Nothing in here knows what a role does with a connection; nothing on the request
//! path waits for it. Neighbours: `credentials` (from the agent), `view` (from a control node), `connections`.

pub mod access_log;
pub mod addresses;
pub mod admin;
pub mod certificates;
pub mod credentials;
pub mod drain;
pub mod ends;
pub mod knowledge;
pub mod permissive;
pub mod resolve;
pub mod sizes;
pub mod spans;
pub mod taps;
pub mod telemetry;
pub mod text;
pub mod traffic;
pub mod view;
pub mod worker;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hanse_federation::{Locality, View};
use hanse_identity::{NodeName, Timestamp};

use crate::connections::{Connections, Sweep};
use crate::staleness::{Freshness, OnStale, Stale, Staleness};
use crate::trace::Sampling;
use credentials::Credentials;
use drain::Stop;
use knowledge::Knowledge;
use resolve::Resolved;
use spans::Spans;
use taps::Taps;
use telemetry::Telemetry;

/// What every data-plane role holds; shared by its control tasks and its workers.
pub struct Plane {
    pub name: NodeName,
    pub locality: Locality,
    pub credentials: Arc<Credentials>,
    pub knowledge: Arc<Knowledge>,
    pub connections: Arc<Connections>,
    pub telemetry: Arc<Telemetry>,
    /// Who looks at requests now.
    pub taps: Taps,
    /// What DNS says of names outside.
    pub resolved: Arc<Resolved>,
    /// What an old View means for new handshakes.
    pub staleness: Staleness,
    /// Which traces that begin here are recorded; `None`: we take no part in traces.
    pub sampling: Option<Sampling>,
    /// Where finished spans go, if anywhere.
    pub spans: Option<Spans>,
}

/// How often every live connection is asked whether its other end is still to be believed.
const BELIEF_CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long an acknowledgement waits for connections that were told to close.
const CLOSE_WITHIN: Duration = Duration::from_millis(250);

impl Plane {
    pub fn new(name: NodeName, locality: Locality) -> Self {
        let credentials = Arc::new(Credentials::default());
        let telemetry = Arc::new(Telemetry::default());
        Self {
            name,
            locality,
            knowledge: Arc::new(Knowledge::new(Arc::clone(&credentials))),
            connections: Arc::new(Connections::new(Arc::clone(&telemetry))),
            credentials,
            taps: Taps::new(&telemetry),
            telemetry,
            resolved: Arc::default(),
            staleness: Staleness::default(),
            sampling: None,
            spans: None,
        }
    }

    pub fn with_staleness(mut self, staleness: Staleness) -> Self {
        self.staleness = staleness;
        self
    }

    pub fn with_sampling(mut self, sampling: Option<Sampling>) -> Self {
        self.sampling = sampling;
        self
    }

    pub fn with_spans(mut self, spans: Spans) -> Self {
        self.spans = Some(spans);
        self
    }

    /// How old what is known of revocations is.
    pub fn freshness(&self, now: Timestamp) -> Freshness {
        self.staleness.judge(self.knowledge.link().heard, now)
    }

    /// Whether a new handshake is allowed, as far as the age of what is known goes.
    pub fn admits_new(&self, now: Timestamp) -> Result<(), Stale> {
        match self.staleness.on_stale {
            OnStale::Allow => Ok(()),
            OnStale::DenyNew => self.staleness.admit(self.freshness(now)),
        }
    }

    /// Puts a View in force: new handshakes and requests see it, and live connections have been asked again.
    /// Returns what is being closed because of it.
    pub fn publish(&self, view: Arc<View>) -> Sweep {
        let revision = i64::try_from(view.revision.0).unwrap_or(i64::MAX);
        let trust_changed = self.knowledge.publish(view);
        self.telemetry.revision.set(revision);
        // Most Views differ in endpoints only: nobody's standing has changed then.
        if trust_changed { self.enforce() } else { Sweep::default() }
    }

    /// Asks every live connection whether it may stay, by what is known now.
    pub fn enforce(&self) -> Sweep {
        let now = now();
        let known = self.knowledge.now();
        if let Some(current) = self.credentials.current() {
            let seconds = current.identity.facts.not_after.seconds();
            self.telemetry.svid_not_after.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        self.connections.sweep(&known.trust, known.own_revoked.as_ref(), now)
    }

    /// `publish`, and then waits (bounded) until the connections that have to go are gone.
    pub async fn put_in_force(&self, view: Arc<View>) {
        let sweep = self.publish(view);
        self.connections.gone(sweep, CLOSE_WITHIN).await;
    }
}

/// The clock, read at the edge and handed to pure code from there.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Asks all connections once a second, and at once when credentials change, until the process ends.
pub async fn keep_asking(plane: Arc<Plane>, mut stop: Stop) {
    let mut changes = plane.credentials.changes();
    loop {
        tokio::select! {
            () = stop.ended() => return,
            () = tokio::time::sleep(BELIEF_CHECK_EVERY) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        plane.knowledge.refresh();
        plane.enforce();
        plane.telemetry.freshness(&plane.freshness(now()));
    }
}
