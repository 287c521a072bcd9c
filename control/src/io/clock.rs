//! The node's clock: read, compared with those of the other nodes, and what it is put down to when they contradict it.
//! The verdict is `crate::clock`'s.
//!
//! What the node signs for others is refused then; they ask another node. What enters the log, and what it signs for
//! itself (its own SVID, its revocation lists), is dated by the others' clocks: revocations are neither late nor lapse
//! early, and the node stays one of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hanse_identity::Timestamp;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tonic::Status;

use super::census::{Part, Query, gather};
use super::context::{Context, stopped};
use super::keys;
use crate::clock::{Clocks, Contradiction};

/// How often the other nodes are asked what time it is.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// Counts while the host is asleep too.
#[cfg(target_os = "linux")]
const SINCE_BOOT: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(target_os = "linux"))]
const SINCE_BOOT: ClockId = ClockId::CLOCK_MONOTONIC;
/// They are not asked more often than that, however often something is to be signed and is not.
const PAUSE: Duration = Duration::from_millis(500);

/// One node's clock.
#[derive(Debug, Default)]
pub struct NodeClock {
    clocks: Mutex<Clocks>,
    /// Something was refused because of an old comparison, perhaps: compare now.
    doubt: Notify,
    #[cfg(test)]
    set: std::sync::atomic::AtomicI64,
}

impl NodeClock {
    /// What time it is by this node.
    #[cfg(not(test))]
    pub fn now(&self) -> Timestamp {
        keys::now()
    }

    /// What time it is by this node; tests set its clock.
    #[cfg(test)]
    pub fn now(&self) -> Timestamp {
        let set = self.set.load(std::sync::atomic::Ordering::Relaxed);
        Timestamp(keys::now().0.checked_add_signed(set).unwrap())
    }

    /// Sets the clock, in milliseconds from what is right.
    #[cfg(test)]
    pub fn set(&self, milliseconds: i64) {
        self.set.store(milliseconds, std::sync::atomic::Ordering::Relaxed);
    }

    /// Of how many other nodes it is known what time they have.
    pub fn known(&self) -> usize {
        self.lock().known()
    }

    /// How far it is from the other node's clock that differs most, as they were heard last.
    pub fn skew(&self) -> Duration {
        self.lock().skew(self.now(), since_boot())
    }

    /// Has the clocks compared now: what was heard last may be old.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// What more than half of the nodes say of this clock, if they contradict it.
    pub fn contradiction(&self) -> Option<Contradiction> {
        self.lock().contradiction(self.now(), since_boot())
    }

    /// What time it is: by this node, unless it is contradicted.
    pub fn agreed(&self) -> Timestamp {
        self.contradiction().map_or_else(|| self.now(), |contradiction| contradiction.theirs)
    }

    /// The clock by which something is signed for others; an error names what its node is to be asked instead.
    pub fn to_sign_by(&self) -> Result<Timestamp, Status> {
        match self.contradiction() {
            None => Ok(self.now()),
            Some(contradiction) => {
                self.doubt();
                Err(Status::unavailable(format!("{contradiction}: this node signs nothing, ask another one")))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Clocks> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn since_boot() -> Duration {
    clock_gettime(SINCE_BOOT).expect("every kernel that we run on has this clock").into()
}

/// Compares this node's clock with the others' until the node stops.
pub async fn keep_comparing(context: Arc<Context>) {
    let (mut stop, clock) = (context.stop.clone(), context.handle.clock());
    let mut tick = tokio::time::interval(COMPARE_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = clock.doubt.notified() => {}
            () = stopped(&mut stop) => return,
        }
        compare(&context).await;
        let contradiction = clock.contradiction();
        if contradiction.is_some() != told {
            told = contradiction.is_some();
            match contradiction {
                Some(why) => tracing::error!(%why, "this node signs nothing until its clock is right"),
                None => tracing::info!("this node's clock agrees with the others' again: it signs"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn compare(context: &Context) {
    let asked = since_boot();
    let gathered = gather(context, &Query::Node).await;
    let clocks = gathered.parts.into_iter().filter_map(|(node, part)| match part {
        Part::Node(report) if node != context.name => Some((node, report.clock?)),
        _ => None,
    });
    // One that is revoked says nothing, and is counted: the others have to be more than half of all.
    let state = context.handle.state();
    let nodes: BTreeSet<_> = state.private.nodes.values().map(|node| node.name.clone()).collect();
    context.handle.clock().lock().heard(clocks, asked, &nodes);
}
