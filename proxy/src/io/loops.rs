//! Loops: a connection that leaves here and is turned back to us by the kernel, because the redirection does not spare this
//! process. Each would make the next without end; so the two ends of one are recognised, and both are closed.
//!
//! A connection has the same source and destination on its way out and when it is captured. Whoever comes second, the one
//! who dialled or the one who accepted, finds the other.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Source and destination, as the one who dialled sees them.
type Ends = (SocketAddr, SocketAddr);

/// The connections that all workers pass through, by both their halves. Asked twice for each, never for what it carries.
#[derive(Default)]
pub struct Loops(Mutex<Halves>);

#[derive(Default)]
struct Halves {
    accepted: HashSet<Ends>,
    dialled: HashSet<Ends>,
}

#[derive(Clone, Copy)]
enum Half {
    Accepted,
    Dialled,
}

/// One half's entry, until it is dropped.
pub struct Entered {
    loops: Arc<Loops>,
    half: Half,
    ends: Ends,
}

impl Loops {
    /// Enters what was captured; `None`: it is one that this process has dialled.
    pub fn accepted(self: &Arc<Self>, from: SocketAddr, to: SocketAddr) -> Option<Entered> {
        self.enter(Half::Accepted, (canonical(from), canonical(to)))
    }

    /// Enters what was dialled; `None`: it has come back.
    pub fn dialled(self: &Arc<Self>, from: SocketAddr, to: SocketAddr) -> Option<Entered> {
        self.enter(Half::Dialled, (canonical(from), canonical(to)))
    }

    fn enter(self: &Arc<Self>, half: Half, ends: Ends) -> Option<Entered> {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, other) = halves.of(half);
        if other.contains(&ends) {
            return None;
        }
        own.insert(ends);
        Some(Entered { loops: Arc::clone(self), half, ends })
    }
}

impl Halves {
    fn of(&mut self, half: Half) -> (&mut HashSet<Ends>, &HashSet<Ends>) {
        match half {
            Half::Accepted => (&mut self.accepted, &self.dialled),
            Half::Dialled => (&mut self.dialled, &self.accepted),
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut halves = self.loops.0.lock().unwrap_or_else(PoisonError::into_inner);
        halves.of(self.half).0.remove(&self.ends);
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_second_finds_the_other() {
        let loops = Arc::new(Loops::default());
        let (from, to) = ("10.0.0.1:40000".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
        let other = "10.0.0.1:40001".parse().unwrap();
        let dialled = loops.dialled(from, to).unwrap();
        assert!(loops.accepted(from, to).is_none(), "it has come back");
        let _another = loops.accepted(other, to).unwrap();
        assert!(loops.dialled(other, to).is_none());
        drop(dialled);
        let _accepted = loops.accepted(from, to).unwrap();
        let mapped = "[::ffff:10.0.0.1]:40000".parse().unwrap();
        assert!(loops.dialled(mapped, to).is_none(), "the same in other clothes");
    }
}
