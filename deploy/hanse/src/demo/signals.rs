//! Being told to end: SIGTERM and SIGINT.

use tokio::signal::unix::{SignalKind, signal};

/// Returns at the first SIGTERM, SIGINT or SIGHUP.
pub async fn terminated() {
    let listen = |kind| signal(kind).expect("a tokio runtime with I/O can listen for signals");
    let mut terminate = listen(SignalKind::terminate());
    let mut interrupt = listen(SignalKind::interrupt());
    let mut hangup = listen(SignalKind::hangup());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
}
