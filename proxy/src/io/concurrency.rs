//! The adaptive limit of one proxy: one for all its workers, replaced when the View says something else, never locked; and
//! the places that requests have in it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hanse_federation::policy::concurrency::Concurrency;
use hanse_federation::policy::document::concurrency::Priority;
use hanse_federation::{Revision, View};
use hanse_identity::ServiceName;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::concurrency::Limiter;
use crate::runtime::telemetry::{ShedLabels, Telemetry};
use crate::runtime::worker::Random;

/// What the workers share.
#[derive(Default)]
pub struct Shared {
    held: ArcSwap<(Revision, Option<Arc<Guarded>>)>,
}

/// One app's limit, and who goes first.
pub struct Guarded {
    pub rules: Concurrency,
    limiter: Arc<Limiter>,
    /// The beginning of the limiter's clock.
    started: Instant,
    limit: Gauge,
    under_way: Gauge,
    /// By priority.
    shed: [Counter; 3],
}

/// A request's place at the app: it counts from when all of the request is here, until the head of the answer is.
pub struct Place {
    guarded: Arc<Guarded>,
    counted: Cell<bool>,
    /// When the app had it.
    asked: Cell<Option<Duration>>,
    over: Cell<bool>,
}

/// Gives the place back, however the request ends.
pub struct Held(Rc<Place>);

const SHED_FIRST: [Priority; 3] = [Priority::BestEffort, Priority::Default, Priority::Critical];

impl Shared {
    /// What the policies say at this View, or at a later one that another worker has seen already.
    pub fn at(
        &self,
        view: &View,
        services: &BTreeSet<ServiceName>,
        telemetry: &Telemetry,
    ) -> Option<Arc<Guarded>> {
        loop {
            let held = self.held.load();
            if held.0 >= view.revision {
                return held.1.clone();
            }
            let guarded = Concurrency::of(view, services)
                .map(|rules| Arc::new(Guarded::new(rules, held.1.as_deref(), telemetry)));
            let made = Arc::new((view.revision, guarded.clone()));
            // Whoever comes second takes the first one's: two must not count side by side.
            let before = self.held.compare_and_swap(&held, made);
            if Arc::ptr_eq(&before, &held) {
                match &guarded {
                    Some(guarded) => guarded.tell(),
                    None => {
                        telemetry.concurrency_limit.set(0);
                        telemetry.concurrency_under_way.set(0);
                    }
                }
                return guarded;
            }
        }
    }
}

impl Guarded {
    /// What was found out stays, as long as the bounds are the same.
    fn new(rules: Concurrency, before: Option<&Self>, telemetry: &Telemetry) -> Self {
        let (limiter, started) = match before.filter(|before| before.rules.settings == rules.settings) {
            Some(before) => (Arc::clone(&before.limiter), before.started),
            None => {
                let seed = Random::from_entropy().next();
                (Arc::new(Limiter::new(rules.settings, Duration::ZERO, seed)), Instant::now())
            }
        };
        let shed = SHED_FIRST.map(|priority| {
            let labels = ShedLabels { policy: rules.policy.to_string(), priority: priority.as_str() };
            telemetry.shed.get_or_create(&labels).clone()
        });
        let (limit, under_way) =
            (telemetry.concurrency_limit.clone(), telemetry.concurrency_under_way.clone());
        Self { rules, limiter, started, limit, under_way, shed }
    }

    /// A place, if there is one for such a request; `None` for one that needs none. `whole`: nothing of it is still to come.
    /// `Err`: when it may be tried again.
    pub fn admit(self: Arc<Self>, priority: Priority, whole: bool) -> Result<Option<Held>, Duration> {
        let Some(index) = SHED_FIRST.iter().position(|other| *other == priority) else { return Ok(None) };
        self.limiter.admit(priority).inspect_err(|_| {
            self.shed[index].inc();
        })?;
        let (counted, asked, over) = (Cell::new(false), Cell::new(None), Cell::new(false));
        let place = Place { guarded: self, counted, asked, over };
        if whole {
            place.count();
        }
        Ok(Some(Held(Rc::new(place))))
    }

    fn tell(&self) {
        self.limit.set(i64::from(self.limiter.limit()));
        self.under_way.set(i64::from(self.limiter.under_way()));
    }
}

impl Place {
    fn count(&self) {
        if !self.counted.replace(true) {
            self.guarded.limiter.begin();
            self.guarded.tell();
        }
    }

    /// The app has all of the request now: from here on it is the app that takes its time.
    pub fn asked(&self) {
        if !self.over.get() && self.asked.get().is_none() {
            self.count();
            self.asked.set(Some(self.guarded.started.elapsed()));
        }
    }

    fn end(&self, good: bool) {
        if self.over.replace(true) {
            return;
        }
        let guarded = &self.guarded;
        if let Some(asked) = self.asked.get() {
            guarded.limiter.answered(asked, guarded.started.elapsed(), good);
        }
        if self.counted.get() {
            guarded.limiter.end();
            guarded.tell();
        }
    }
}

impl Held {
    pub fn place(&self) -> &Rc<Place> {
        &self.0
    }

    /// The head of an answer has come; `good`: of one that the app worked for.
    pub fn answered(self, good: bool) {
        self.0.end(good);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.end(false);
    }
}
