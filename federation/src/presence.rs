//! Presence: what a proxy or gateway says of itself, and when it has to say it again.
//!
//! Announcements travel through control nodes that come and go, so one of an earlier life of a process may reach the
//! log after those of the present one, and somebody may withdraw what still lives. Only the process itself knows which
//! life it is in: it compares what its View shows under its name with what it said last. Lives are ordered by
//! their incarnations, which are moments of the host's clock; a life that finds a later one in its own place (the clock
//! was set back) takes the number after that.

use std::time::Duration;

use hanse_identity::{NodeName, SpiffeId, Timestamp};

use crate::View;
use crate::catalog::{Announcement, Locality, Serves, Session};

/// First and longest pause before the same is said again.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Two processes of one name would displace each other for ever: pauses grow until one has stood for so long.
const STEADY: Duration = Duration::from_secs(60);

/// One life of a process. `now` is always of a clock of the caller's that never goes back.
#[derive(Debug)]
pub struct Presence {
    incarnation: u64,
    sequence: u64,
    said: Option<Announcement>,
    said_at: Duration,
    pause: Duration,
    stands_since: Option<Duration>,
}

impl Presence {
    /// A life that begins at `start`.
    pub fn new(start: Timestamp) -> Self {
        let incarnation = start.0.max(Session::REGISTERED + 1);
        let (said, said_at, stands_since) = (None, Duration::ZERO, None);
        Self { incarnation, sequence: 0, said, said_at, pause: FIRST, stands_since }
    }

    /// What is to be announced now, later than everything that was before.
    pub fn say(
        &mut self,
        name: &NodeName,
        locality: &Locality,
        ready: bool,
        serves: Serves,
        now: Duration,
    ) -> Announcement {
        self.sequence += 1;
        self.said_at = now;
        let (incarnation, sequence) = (self.incarnation, self.sequence);
        let (name, locality) = (name.clone(), locality.clone());
        let said = Announcement { name, incarnation, sequence, locality, ready, serves };
        self.said.insert(said).clone()
    }

    /// Whether a View has what `identity` said last, all of it.
    pub fn stands(&self, view: &View, identity: &SpiffeId) -> bool {
        self.said.as_ref().is_none_or(|said| is_shown(said, identity, view))
    }

    /// Whether it is to be said again, as `identity`: the View shows something else, or nothing, and has had time.
    pub fn is_due(&mut self, view: &View, identity: &SpiffeId, now: Duration) -> bool {
        if self.stands(view, identity) {
            let since = *self.stands_since.get_or_insert(now);
            if now.saturating_sub(since) >= STEADY {
                self.pause = FIRST;
            }
            return false;
        }
        self.stands_since = None;
        // Nobody listens to who is revoked: it is said when that is over.
        if view.revocations.of_identity(identity).is_some() || now < self.said_at + self.pause {
            return false;
        }
        self.pause = (self.pause * 2).min(LONGEST);
        let later = |s: &&Session| (s.incarnation, s.sequence) > (self.incarnation, self.sequence);
        let name = self.said.as_ref().map(|said| &said.name);
        if let Some(other) = name.and_then(|name| shown(name, identity, view)).filter(later) {
            self.incarnation = other.incarnation.saturating_add(1);
        }
        true
    }
}

/// The session under which a View has `identity` by that name.
fn shown<'v>(name: &NodeName, identity: &SpiffeId, view: &'v View) -> Option<&'v Session> {
    let endpoint = view.endpoints.get(name).map(|e| (&e.identity, &e.session));
    let gateway = view.gateways.get(name).map(|g| (&g.identity, &g.session));
    endpoint.into_iter().chain(gateway).find(|(whose, _)| *whose == identity).map(|(_, session)| session)
}

fn is_shown(said: &Announcement, identity: &SpiffeId, view: &View) -> bool {
    let session = |s: &Session| (s.incarnation, s.sequence) == (said.incarnation, said.sequence);
    match &said.serves {
        Serves::Nothing => true,
        Serves::Services { services, .. } if services.is_empty() => true,
        Serves::Services { services, .. } => view
            .endpoints
            .get(&said.name)
            .is_some_and(|e| e.identity == *identity && session(&e.session) && e.services == *services),
        Serves::Gateway { .. } => {
            view.gateways.get(&said.name).is_some_and(|g| g.identity == *identity && session(&g.session))
        }
    }
}

#[cfg(test)]
mod tests;
