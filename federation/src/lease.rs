//! Leases: what silence means. What a peer told us has an age; the link and the path are two facts.

use std::time::Duration;

use hanse_identity::Timestamp;
use serde::{Deserialize, Serialize};

/// How the control link to a peer is: is what we know fresh?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Link {
    /// Never heard since this process started.
    Unheard,
    Connected,
    /// Connected, but silent for longer than a few heartbeats.
    Silent,
    Lost,
}

/// A peer's lease as one control node sees it.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    heard: Option<Timestamp>,
    connected: bool,
}

/// The sender of a session says something at least this often.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// Silence after which a link counts as silent, and is torn down and dialled anew.
pub const SILENT_AFTER: Duration = Duration::from_millis(2500);

impl Lease {
    pub fn connected(&mut self, now: Timestamp) {
        self.connected = true;
        self.heard = Some(now);
    }

    pub fn heard(&mut self, now: Timestamp) {
        self.heard = Some(now);
    }

    pub fn lost(&mut self) {
        self.connected = false;
    }

    /// How old what we know is; `None` if nothing was heard.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        self.heard.map(|heard| now.since(heard))
    }

    pub fn link(&self, now: Timestamp) -> Link {
        match self.age(now) {
            None => Link::Unheard,
            Some(_) if !self.connected => Link::Lost,
            Some(age) if age > SILENT_AFTER => Link::Silent,
            Some(_) => Link::Connected,
        }
    }

    /// When the link will count as silent if nothing is heard.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.heard.filter(|_| self.connected).map(|heard| heard + SILENT_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_from_loss() {
        let mut lease = Lease::default();
        assert_eq!(lease.link(Timestamp(10)), Link::Unheard);
        lease.connected(Timestamp(1000));
        assert_eq!(lease.link(Timestamp(1000) + HEARTBEAT), Link::Connected);
        let late = lease.deadline().expect("a connected link has a deadline") + Duration::from_millis(1);
        assert_eq!(lease.link(late), Link::Silent);
        lease.lost();
        assert_eq!(lease.link(late), Link::Lost);
        assert_eq!(lease.age(late), Some(late.since(Timestamp(1000))));
    }
}
