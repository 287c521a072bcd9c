//! The adaptive limit of one proxy: one for all its workers, replaced when the View says something else, never locked; and
//! the places that requests have in it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hanse_federation::policy::concurrency::Concurrency;
use hanse_federation::policy::document::concurrency::Priority;
use hanse_federation::{Revision, View};
use hanse_identity::ServiceName;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::concurrency::{Counted, Limiter, Outcome};
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
    kept: Arc<Kept>,
    limit: Gauge,
    under_way: Gauge,
    /// By priority.
    shed: [Counter; 3],
}

/// What stays while the bounds are the same.
struct Kept {
    limiter: Limiter,
    /// The beginning of the limiter's clock.
    started: Instant,
    /// By another one, or none: what ends under this one tells of no limit any more.
    replaced: AtomicBool,
}

/// A request's place at the app: it counts as coming, then from when all of the request is here until the head of the answer is.
pub struct Place {
    guarded: Arc<Guarded>,
    counted: Cell<Counted>,
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
                let kept = guarded.as_ref().map(|guarded| &guarded.kept);
                if let Some(before) = held.1.as_ref().map(|before| &before.kept)
                    && !kept.is_some_and(|kept| Arc::ptr_eq(kept, before))
                {
                    before.replaced.store(true, Ordering::Relaxed);
                }
                telemetry.concurrency_limit.set(kept.map_or(0, |kept| i64::from(kept.limiter.limit())));
                return guarded;
            }
        }
    }
}

impl Guarded {
    /// What was found out stays, as long as the bounds are the same.
    fn new(rules: Concurrency, before: Option<&Self>, telemetry: &Telemetry) -> Self {
        let kept = match before.filter(|before| before.rules.settings == rules.settings) {
            Some(before) => Arc::clone(&before.kept),
            None => {
                let seed = Random::from_entropy().next();
                let limiter = Limiter::new(rules.settings, Duration::ZERO, seed);
                Arc::new(Kept { limiter, started: Instant::now(), replaced: AtomicBool::default() })
            }
        };
        let shed = match before.filter(|before| before.rules.policy == rules.policy) {
            Some(before) => before.shed.clone(),
            None => SHED_FIRST.map(|priority| {
                let labels = ShedLabels { policy: rules.policy.to_string(), priority: priority.as_str() };
                telemetry.shed.get_or_create(&labels).clone()
            }),
        };
        let (limit, under_way) =
            (telemetry.concurrency_limit.clone(), telemetry.concurrency_under_way.clone());
        Self { rules, kept, limit, under_way, shed }
    }

    /// Whether there is a place for such a request now. None is taken. `Err`: when it may be tried again.
    pub fn check(&self, priority: Priority) -> Result<(), Duration> {
        self.told(priority, self.kept.limiter.check(priority, self.kept.started.elapsed()))
    }

    /// A place, if there is one for such a request; `None` for one that needs none. `whole`: nothing of it is still to come.
    /// `Err`: when it may be tried again.
    pub fn enter(self: Arc<Self>, priority: Priority, whole: bool) -> Result<Option<Held>, Duration> {
        let entered = self.kept.limiter.enter(priority, whole, self.kept.started.elapsed());
        let Some(counted) = self.told(priority, entered)? else { return Ok(None) };
        if counted == Counted::UnderWay {
            self.under_way.inc();
        }
        let (counted, asked, over) = (Cell::new(counted), Cell::new(None), Cell::new(false));
        Ok(Some(Held(Rc::new(Place { guarded: self, counted, asked, over }))))
    }

    fn told<T>(&self, priority: Priority, admission: Result<T, Duration>) -> Result<T, Duration> {
        admission.inspect_err(|_| {
            if let Some(index) = SHED_FIRST.iter().position(|other| *other == priority) {
                self.shed[index].inc();
            }
        })
    }
}

impl Place {
    /// The app has all of the request now: from here on it is the app that takes its time.
    pub fn asked(&self) {
        if self.over.get() || self.asked.get().is_some() {
            return;
        }
        let kept = &self.guarded.kept;
        let now = kept.started.elapsed();
        self.asked.set(Some(now));
        if self.counted.replace(kept.limiter.begin(self.counted.get(), now)) != Counted::UnderWay {
            self.guarded.under_way.inc();
        }
    }

    fn end(&self, outcome: Outcome) {
        if self.over.replace(true) {
            return;
        }
        let (guarded, kept) = (&self.guarded, &self.guarded.kept);
        if let Some(asked) = self.asked.get()
            && kept.limiter.answered(asked, kept.started.elapsed(), outcome)
            && !kept.replaced.load(Ordering::Relaxed)
        {
            guarded.limit.set(i64::from(kept.limiter.limit()));
        }
        if self.counted.get() == Counted::UnderWay {
            guarded.under_way.dec();
        }
        kept.limiter.end(self.counted.get());
    }
}

impl Held {
    pub fn place(&self) -> &Rc<Place> {
        &self.0
    }

    /// The head of an answer has come.
    pub fn answered(self, outcome: Outcome) {
        self.0.end(outcome);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.end(Outcome::Failed);
    }
}
