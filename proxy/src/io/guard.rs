//! What a request's body may not be: larger than the app's policy takes, or so slow that it holds a place for nothing. It is
//! counted as it passes, frame by frame; nothing is held.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hanse_federation::policy::body::BodyLimits;
use tokio::time::{Instant, Sleep};

use crate::answer::Reason;

/// Watches one body.
pub struct Guard {
    limits: BodyLimits,
    total: u64,
    /// Since the last `BodyLimits::EACH` bytes: how many came, and how long was waited for them.
    brought: u64,
    waited: Duration,
    /// Since when the client is waited for.
    waiting: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    fate: Fate,
}

/// What has become of a request, for those who send its body and those who wait for its answer. Of one whose body nobody
/// watches, nothing is told.
#[derive(Clone, Default)]
pub struct Fate(Option<Rc<Cell<Told>>>);

#[derive(Clone, Copy, Default)]
enum Told {
    #[default]
    Nothing,
    Answered,
    Cut(Reason),
}

impl Fate {
    pub fn watched() -> Self {
        Self(Some(Rc::default()))
    }

    /// The answer has begun: from here on a slow body is a conversation.
    pub fn answered(&self) {
        self.tell(Told::Answered);
    }

    /// Why the body was cut before there was an answer.
    pub fn cut(&self) -> Option<Reason> {
        match self.told() {
            Told::Cut(reason) => Some(reason),
            Told::Nothing | Told::Answered => None,
        }
    }

    fn is_answered(&self) -> bool {
        matches!(self.told(), Told::Answered)
    }

    fn told(&self) -> Told {
        self.0.as_ref().map(|told| told.get()).unwrap_or_default()
    }

    fn tell(&self, what: Told) {
        if let Some(told) = &self.0 {
            told.set(what);
        }
    }
}

impl Guard {
    pub fn new(limits: BodyLimits, fate: Fate) -> Self {
        let (brought, waited) = (0, Duration::ZERO);
        Self { limits, total: 0, brought, waited, waiting: None, alarm: None, fate }
    }

    /// So many bytes have come. `Some`: the body ends here.
    pub fn came(&mut self, bytes: usize) -> Option<Reason> {
        if let Some(since) = self.waiting.take() {
            self.waited += since.elapsed();
        }
        self.total += bytes as u64;
        self.brought += bytes as u64;
        if self.brought >= BodyLimits::EACH {
            (self.brought, self.waited) = (0, Duration::ZERO);
        }
        let over = self.limits.most.is_some_and(|most| self.total > most);
        over.then(|| self.end(Reason::BodyTooLarge))
    }

    /// Nothing has come yet. Only this time counts: what the app takes to read is not the client's.
    pub fn waits(&mut self, cx: &mut Context<'_>) -> Option<Reason> {
        let slow = self.limits.slow.filter(|_| !self.fate.is_answered())?;
        if self.waiting.is_none() {
            let now = Instant::now();
            let until = now + slow.saturating_sub(self.waited);
            match &mut self.alarm {
                Some(alarm) => alarm.as_mut().reset(until),
                None => self.alarm = Some(Box::pin(tokio::time::sleep_until(until))),
            }
            self.waiting = Some(now);
        }
        let rings = self.alarm.as_mut().is_some_and(|alarm| alarm.as_mut().poll(cx) == Poll::Ready(()));
        rings.then(|| self.end(Reason::BodyTooSlow))
    }

    fn end(&self, reason: Reason) -> Reason {
        if !self.fate.is_answered() {
            self.fate.tell(Told::Cut(reason));
        }
        reason
    }
}
