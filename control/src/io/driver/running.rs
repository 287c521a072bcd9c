//! The loop itself, on its own thread, and its end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hanse_identity::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{Applied, Ask, BATCH, Queues, Ring, Status, Transport};
use crate::command::Outcome;
use crate::consensus::{Disk, Outgoing, ProposeRefusal};
use crate::node::{Input, Node, Output, SnapshotJob};
use crate::state::State;

/// How long an orderly end tries to hand over the lead.
const RESIGN_WITHIN: Duration = Duration::from_millis(500);
/// Callers that may wait for a proposal's outcome, or for a read.
const MAX_WAITING: usize = 8192;
/// Warnings of one kind are logged this often, every other one is counted only.
const WARN_EVERY: u64 = 1000;

/// A running loop. Dropping it ends the loop without handing over the lead.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    ended: watch::Receiver<Option<Ended>>,
}

/// How the loop ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("stopped as asked")]
    Stopped,
    /// The process must end: its disk or its log is not what it has to be.
    #[error("{0}")]
    Failed(String),
}

/// Where the loop shows what it has done.
pub(super) struct Publisher {
    pub(super) state: watch::Sender<Arc<State>>,
    pub(super) status: watch::Sender<Status>,
    pub(super) feed: broadcast::Sender<Arc<Applied>>,
    pub(super) ring: Arc<Mutex<Ring>>,
}

struct Loop {
    node: Node,
    disk: Box<dyn Disk>,
    transport: Arc<dyn Transport>,
    publisher: Publisher,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Outcome, ProposeRefusal>>>,
    reads: BTreeMap<u64, oneshot::Sender<()>>,
    next_read: u64,
    /// Where finished snapshots come back.
    made: mpsc::Sender<Input>,
    dropped: u64,
    /// The node's time: milliseconds since here. Wall clocks jump.
    started: Instant,
}

pub(super) fn start(
    node: Node,
    disk: Box<dyn Disk>,
    queues: Queues,
    transport: Arc<dyn Transport>,
    publisher: Publisher,
) -> std::io::Result<Running> {
    let (stop, stopped) = oneshot::channel();
    let (ended_in, ended) = watch::channel(None);
    // Its own small runtime: timers and queues, while a synced write may block it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("control-loop".into()).spawn(move || {
        let run = || runtime.block_on(run(node, disk, queues, transport, publisher, stopped));
        // raft-rs panics when what it is told contradicts what it knows: that must end the process, in words.
        let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let end = end.unwrap_or_else(|_| Ended::Failed("the loop panicked".into()));
        if let Ended::Failed(why) = &end {
            tracing::error!(why, "the control loop has ended; this node does nothing any more");
        }
        // Nobody may be waiting any more.
        let _ = ended_in.send(Some(end));
    })?;
    Ok(Running { stop: Some(stop), ended })
}

impl Running {
    /// Resolves when the loop has ended, by itself or because it was stopped.
    pub async fn ended(&mut self) -> Ended {
        match self.ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ended::Stopped),
            Err(_) => Ended::Failed("the loop's thread is gone".into()),
        }
    }

    /// Ends the loop as it is: what a crash would leave, but for what was under way.
    pub fn kill(&mut self) {
        self.stop = None;
    }

    /// Hands over the lead, writes what is left and ends the loop.
    pub async fn stop(mut self) -> Ended {
        if let Some(stop) = self.stop.take() {
            // Already gone: `ended` says why.
            let _ = stop.send(());
        }
        self.ended().await
    }
}

async fn run(
    node: Node,
    disk: Box<dyn Disk>,
    mut queues: Queues,
    transport: Arc<dyn Transport>,
    publisher: Publisher,
    mut stop: oneshot::Receiver<()>,
) -> Ended {
    let (made, mut snapshots) = mpsc::channel(1);
    let mut this = Loop {
        node,
        disk,
        transport,
        publisher,
        waiting: BTreeMap::new(),
        reads: BTreeMap::new(),
        next_read: 0,
        made,
        dropped: 0,
        started: Instant::now(),
    };
    let mut resign_until: Option<Instant> = None;
    let mut inputs = Vec::with_capacity(BATCH);
    loop {
        // The first time round there is nothing but entries that were committed before the last end.
        if let Err(end) = this.handle(std::mem::take(&mut inputs)) {
            return end;
        }
        if resign_until.is_some_and(|until| Instant::now() >= until || !this.node.status().is_leader) {
            return this.finish();
        }
        let tick = this.next_tick();
        tokio::select! {
            biased;
            asked = &mut stop, if resign_until.is_none() => match asked {
                Ok(()) => {
                    resign_until = Some(Instant::now() + RESIGN_WITHIN);
                    inputs.push(Input::Resign);
                }
                // `Running` was dropped, or killed.
                Err(_) => return Ended::Stopped,
            },
            () = tokio::time::sleep_until(tick) => inputs.push(this.tick()),
            Some(report) = queues.reports.recv() => inputs.push(report),
            Some(snapshot) = snapshots.recv() => inputs.push(snapshot),
            Some(message) = queues.messages.recv() => inputs.push(message),
            Some(ask) = queues.proposals.recv() => inputs.extend(this.ask(ask)),
            Some(reader) = queues.reads.recv() => inputs.extend(this.reader(reader)),
        }
        this.take_more(&mut queues, &mut inputs);
    }
}

impl Loop {
    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn next_tick(&self) -> Instant {
        self.started + Duration::from_millis(self.node.deadline().0)
    }

    fn tick(&mut self) -> Input {
        // Who has given up is not remembered.
        self.waiting.retain(|_, reply| !reply.is_closed());
        self.reads.retain(|_, reply| !reply.is_closed());
        Input::Tick
    }

    fn ask(&mut self, Ask { proposal, reply }: Ask) -> Option<Input> {
        if self.waiting.len() >= MAX_WAITING {
            // The caller may be gone, then nobody minds.
            let _ = reply.send(Err(ProposeRefusal::Full));
            return None;
        }
        self.waiting.insert(proposal.id, reply);
        Some(Input::Propose(proposal))
    }

    fn reader(&mut self, reply: oneshot::Sender<()>) -> Option<Input> {
        // One that is turned away sees its channel closed.
        (self.reads.len() < MAX_WAITING).then(|| {
            self.next_read += 1;
            self.reads.insert(self.next_read, reply);
            Input::Read { id: self.next_read }
        })
    }

    /// What else is there already goes into the same batch, up to a bound.
    fn take_more(&mut self, queues: &mut Queues, inputs: &mut Vec<Input>) {
        while inputs.len() < BATCH {
            let before = inputs.len();
            inputs.extend(queues.reports.try_recv());
            inputs.extend(queues.messages.try_recv());
            inputs.extend(queues.proposals.try_recv().ok().and_then(|ask| self.ask(ask)));
            inputs.extend(queues.reads.try_recv().ok().and_then(|reader| self.reader(reader)));
            if inputs.len() == before {
                break;
            }
        }
    }

    /// One step: what came in goes through the node, what comes out is performed in its order.
    fn handle(&mut self, inputs: Vec<Input>) -> Result<(), Ended> {
        let now = self.now();
        let mut sends: BTreeMap<u64, Vec<Outgoing>> = BTreeMap::new();
        for output in self.node.handle_all(now, inputs) {
            match output {
                Output::Store(batch) => self.disk.write(&batch).map_err(|e| Ended::Failed(e.to_string()))?,
                Output::Send(message) => sends.entry(message.to).or_default().push(message),
                other => {
                    self.send(&mut sends);
                    self.perform(other)?;
                }
            }
        }
        self.send(&mut sends);
        let status = self.node.status();
        self.publisher.status.send_if_modified(|known| {
            let changed = *known != status;
            *known = status;
            changed
        });
        Ok(())
    }

    fn send(&self, sends: &mut BTreeMap<u64, Vec<Outgoing>>) {
        for (to, messages) in std::mem::take(sends) {
            self.transport.send(to, messages);
        }
    }

    fn perform(&mut self, output: Output) -> Result<(), Ended> {
        match output {
            Output::Reply { id, outcome } => {
                if let Some(reply) = self.waiting.remove(&id) {
                    // The caller may have given up.
                    let _ = reply.send(Ok(outcome));
                }
            }
            Output::Refused { id, why } => {
                if let Some(reply) = self.waiting.remove(&id) {
                    let _ = reply.send(Err(why));
                }
            }
            Output::ReadReady { ids } => {
                for reply in ids.iter().filter_map(|id| self.reads.remove(id)) {
                    let _ = reply.send(());
                }
            }
            Output::Publish { state, applied } => self.publisher.publish(state, applied),
            Output::MakeSnapshot(job) => self.make_snapshot(job)?,
            Output::Dropped { from, why } => {
                if self.dropped.is_multiple_of(WARN_EVERY) {
                    tracing::warn!(from, why, dropped = self.dropped, "a message from a node was not taken");
                }
                self.dropped += 1;
            }
            Output::Stop { why } => return Err(Ended::Failed(why)),
            Output::Store(_) | Output::Send(_) => {}
        }
        Ok(())
    }

    /// On a thread of its own: writing a large State takes longer than a heartbeat may.
    fn make_snapshot(&self, job: SnapshotJob) -> Result<(), Ended> {
        let made = self.made.clone();
        let run = move || {
            // The loop has ended: the snapshot is not needed.
            let _ = made.blocking_send(job.run());
        };
        let thread = std::thread::Builder::new().name("control-snapshot".into()).spawn(run);
        thread.map(drop).map_err(|e| Ended::Failed(format!("the snapshot thread cannot be started: {e}")))
    }

    fn finish(&mut self) -> Ended {
        let remainder = self.node.remainder();
        match self.disk.write(&remainder) {
            Ok(()) => Ended::Stopped,
            Err(e) => Ended::Failed(e.to_string()),
        }
    }
}

impl Publisher {
    /// The ring and the State first, so that whoever is woken by the feed finds both.
    fn publish(&self, state: Arc<State>, applied: Vec<Arc<Applied>>) {
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            applied.iter().for_each(|one| ring.push(one.clone()));
        }
        // The older State goes here, so that the node finds its other copy free.
        drop(self.state.send_replace(state));
        for one in applied {
            // Nobody subscribes at the moment.
            let _ = self.feed.send(one);
        }
    }
}
