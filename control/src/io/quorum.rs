//! Quorum: when a subscriber's stream ends because this node has nobody to follow, or an agent's because it signs nothing.
//!
//! A node that is cut off from its cluster hears of no revocation, and neither would those who go on listening to it:
//! they are sent away, to find one that is not cut off. Who finds none comes back and is kept longer, so that with no
//! quorum anywhere nobody is sent from door to door; what proxies and agents know, they go on serving on.

use std::time::{Duration, Instant};

/// How long a stream that has known a leader goes on without one: an election takes less.
pub const LEADERLESS: Duration = Duration::from_secs(3);
/// How long one that came while there was none is kept, before its subscriber is to look elsewhere once more.
pub const LEADERLESS_FROM_THE_START: Duration = Duration::from_secs(20);
/// What a stream ends with.
pub const NO_QUORUM: &str = "this node has no quorum: what it knows may be old";
/// What an agent's stream ends with at a node that signs nothing.
pub const CLOCK_CONTRADICTED: &str =
    "this node's clock is contradicted by the others: it signs nothing, use another one";

/// What a stream ends with at a node that is revoked.
pub const NODE_REVOKED: &str = "this node is revoked: use another one";

/// How much longer one stream may go on.
#[derive(Clone, Copy, Debug)]
pub struct Leash {
    /// When the node was fit to be listened to last, or the stream began.
    fit: Instant,
    within: Duration,
}

impl Leash {
    pub fn new(is_fit: bool, now: Instant) -> Self {
        Self { fit: now, within: if is_fit { LEADERLESS } else { LEADERLESS_FROM_THE_START } }
    }

    /// Takes in whether there is a leader, and nothing else against the node; says whether the stream has to end.
    pub fn is_over(&mut self, is_fit: bool, now: Instant) -> bool {
        if is_fit {
            *self = Self::new(true, now);
            return false;
        }
        now.duration_since(self.fit) >= self.within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_outlives_an_election_and_not_a_partition() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut leash = Leash::new(true, at(0));
        assert!(!leash.is_over(true, at(10_000)));
        assert!(!leash.is_over(false, at(12_900)), "an election");
        assert!(!leash.is_over(true, at(12_950)));
        assert!(!leash.is_over(false, at(13_000)));
        assert!(leash.is_over(false, at(15_950)));
    }

    #[test]
    fn who_found_nobody_elsewhere_is_kept_longer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut leash = Leash::new(false, at(0));
        assert!(!leash.is_over(false, at(19_999)));
        assert!(leash.is_over(false, at(20_000)));
        let mut found = Leash::new(false, at(0));
        assert!(!found.is_over(true, at(5_000)));
        assert!(found.is_over(false, at(8_000)), "from then on it is a stream like any other");
    }
}
