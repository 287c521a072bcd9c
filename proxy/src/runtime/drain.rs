//! Drain: how a role ends. Signals are turned into phases; whoever holds a `Stop` can wait for them.

use tokio::sync::watch;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// No new connections; what is in flight is finished.
    Draining,
    /// Control links may go too.
    Ended,
}

/// The one who decides.
pub struct Drain {
    phase: watch::Sender<Phase>,
}

/// Those who wait. Cheap to clone.
#[derive(Clone)]
pub struct Stop {
    phase: watch::Receiver<Phase>,
}

/// A running process's pair.
pub fn drain() -> (Drain, Stop) {
    let (sender, receiver) = watch::channel(Phase::Running);
    (Drain { phase: sender }, Stop { phase: receiver })
}

impl Drain {
    pub fn begin(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    pub fn end(&self) {
        self.phase.send_replace(Phase::Ended);
    }
}

impl Stop {
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Resolves when draining has begun (or the decider is gone).
    pub async fn draining(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Draining).await;
    }

    /// Resolves when all is over.
    pub async fn ended(&mut self) {
        let _ = self.phase.wait_for(|phase| *phase >= Phase::Ended).await;
    }
}

/// Resolves on SIGTERM or SIGINT.
pub async fn terminated() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
