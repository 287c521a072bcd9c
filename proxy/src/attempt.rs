//! Attempts: when a request may be tried again, and how often. Pure; the worker asks after every failed attempt.
//!
//! A request that was certainly not delivered may be sent elsewhere at no cost. One that may have been delivered is
//! repeated only if its method allows it, it has no body, and the budget has something left: retries must not turn a
//! fault into a storm.

use std::time::Duration;

use hanse_federation::choose::RetrySettings;
use hanse_federation::health::Observation;
use hanse_identity::Timestamp;
use http::Method;

/// Attempts that one request may make in all.
pub const MAX_ATTEMPTS: u32 = 8;
/// Retries allowed each second beside the share, so that rare requests can be retried too.
pub const BUDGET_PER_SECOND: f64 = 10.0;
/// How far back the budget looks.
const WINDOW_SECONDS: usize = 10;
/// Timeout of a whole request where no policy says.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of a repeatable request's first attempt where no policy says. Later ones have the request's: a slow app
/// must not be asked again and again.
pub const DEFAULT_FIRST_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or the connection took nothing of the request.
    Unsent,
    /// A proxy on the way answered that nobody is there; `undelivered` if it says that no app saw the request.
    NobodyThere {
        undelivered: bool,
    },
    /// The connection broke before there was a response.
    Broken,
    TimedOut,
    /// The proxy in front of the app has kept it from an app that has all that it can do.
    Shed,
    /// The app answered with a status that policy has tried again.
    Status,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Choose again; costs nothing.
    PickAgain,
    /// Choose again; the budget paid for it.
    Retry,
    /// Tell the app.
    GiveUp,
}

/// One request's attempts.
#[derive(Clone, Debug)]
pub struct Attempts {
    made: u32,
    /// Those that the budget paid for.
    retried: u32,
    /// The method allows repetition and there is no body.
    repeatable: bool,
    bodiless: bool,
    /// It has been shed before.
    shed: bool,
}

/// Retries that are left, per service and worker: a share of the requests of the last seconds, and some per second.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// (second, requests, retries), by second modulo the window.
    seconds: [(u64, u32, u32); WINDOW_SECONDS],
}

impl Failure {
    /// What health is told.
    pub fn observation(self) -> Observation {
        match self {
            Self::Unsent => Observation::ConnectFailure,
            Self::NobodyThere { .. } => Observation::NobodyThere,
            Self::Broken => Observation::Reset,
            Self::TimedOut => Observation::Timeout,
            Self::Shed | Self::Status => Observation::ServerError,
        }
    }

    /// Label of `hanse_retries_total`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unsent => "unsent",
            Self::NobodyThere { .. } => "nobody-there",
            Self::Broken => "connection-lost",
            Self::TimedOut => "timeout",
            Self::Shed => "shed",
            Self::Status => "status",
        }
    }
}

impl Attempts {
    pub fn new(method: &Method, has_body: bool) -> Self {
        // TRACE, PUT and DELETE are idempotent too (RFC 9110 §9.2.2).
        let idempotent = matches!(
            *method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
        );
        Self { made: 0, retried: 0, repeatable: idempotent && !has_body, bodiless: !has_body, shed: false }
    }

    /// Whether the request may be sent twice.
    pub fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// Whether what is sent has to be kept, because it may be needed again.
    pub fn keeps_request(&self) -> bool {
        self.bodiless
    }

    pub fn made(&self) -> u32 {
        self.made
    }

    /// Counts one more; call before each attempt.
    pub fn begin(&mut self) {
        self.made += 1;
    }

    /// How long the attempt that begins now may wait for a response; `None`: as long as the request.
    pub fn timeout(&self, configured: Option<Duration>) -> Option<Duration> {
        configured.or((self.repeatable && self.made <= 1).then_some(DEFAULT_FIRST_ATTEMPT_TIMEOUT))
    }

    /// What to do after a failure.
    pub fn after(
        &mut self,
        failure: Failure,
        settings: &RetrySettings,
        budget: &mut Budget,
        now: Timestamp,
    ) -> Verdict {
        if self.made >= MAX_ATTEMPTS {
            return Verdict::GiveUp;
        }
        let repeat = match failure {
            Failure::Unsent => return Verdict::PickAgain,
            Failure::NobodyThere { undelivered: true } => self.bodiless,
            Failure::NobodyThere { undelivered: false } => settings.on_unavailable && self.repeatable,
            Failure::Broken => settings.on_reset && self.repeatable,
            Failure::TimedOut => settings.on_timeout && self.repeatable,
            Failure::Status => self.repeatable,
            // Of two that have too much to do, a third would hear no better.
            Failure::Shed => {
                settings.on_unavailable && self.bodiless && !std::mem::replace(&mut self.shed, true)
            }
        };
        let left = settings.attempts.is_none_or(|most| self.retried < most);
        if !(repeat && left && budget.withdraw(settings.budget_share, now)) {
            return Verdict::GiveUp;
        }
        self.retried += 1;
        Verdict::Retry
    }
}

impl Budget {
    /// Counts a request.
    pub fn deposit(&mut self, now: Timestamp) {
        self.second(now).1 += 1;
    }

    /// Takes one retry, if there is one.
    pub fn withdraw(&mut self, share: f64, now: Timestamp) -> bool {
        let oldest = now.seconds().saturating_sub(WINDOW_SECONDS as u64 - 1);
        let in_window =
            self.seconds.iter().filter(|(second, ..)| *second >= oldest && *second <= now.seconds());
        let (requests, retries) = in_window.fold((0u64, 0u64), |(requests, retries), (_, q, r)| {
            (requests + u64::from(*q), retries + u64::from(*r))
        });
        let allowed = requests as f64 * share + BUDGET_PER_SECOND * WINDOW_SECONDS as f64;
        let granted = (retries as f64) < allowed;
        if granted {
            self.second(now).2 += 1;
        }
        granted
    }

    fn second(&mut self, now: Timestamp) -> &mut (u64, u32, u32) {
        let slot = &mut self.seconds[(now.seconds() % WINDOW_SECONDS as u64) as usize];
        if slot.0 != now.seconds() {
            *slot = (now.seconds(), 0, 0);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn verdict(method: Method, has_body: bool, failure: Failure) -> Verdict {
        let mut attempts = Attempts::new(&method, has_body);
        attempts.begin();
        attempts.after(failure, &RetrySettings::default(), &mut Budget::default(), NOW)
    }

    #[test]
    fn what_was_not_sent_goes_elsewhere_whatever_it_is() {
        for method in [Method::GET, Method::POST, Method::PATCH] {
            for has_body in [true, false] {
                assert_eq!(verdict(method.clone(), has_body, Failure::Unsent), Verdict::PickAgain);
            }
        }
    }

    #[test]
    fn what_may_have_been_delivered_is_repeated_only_if_that_is_harmless() {
        for failure in [Failure::Broken, Failure::TimedOut, Failure::NobodyThere { undelivered: false }] {
            assert_eq!(verdict(Method::GET, false, failure), Verdict::Retry);
            assert_eq!(verdict(Method::DELETE, false, failure), Verdict::Retry);
            assert_eq!(verdict(Method::PUT, true, failure), Verdict::GiveUp);
            assert_eq!(verdict(Method::GET, true, failure), Verdict::GiveUp);
            assert_eq!(verdict(Method::POST, false, failure), Verdict::GiveUp);
        }
        let undelivered = Failure::NobodyThere { undelivered: true };
        assert_eq!(verdict(Method::POST, false, undelivered), Verdict::Retry);
        assert_eq!(verdict(Method::POST, true, undelivered), Verdict::GiveUp);
    }

    #[test]
    fn what_was_shed_is_tried_once_more_by_the_budget() {
        for (method, has_body, expected) in [
            (Method::GET, false, Verdict::Retry),
            (Method::POST, false, Verdict::Retry),
            (Method::POST, true, Verdict::GiveUp),
        ] {
            assert_eq!(verdict(method, has_body, Failure::Shed), expected, "nothing was delivered");
        }
        let mut attempts = Attempts::new(&Method::GET, false);
        let (settings, mut budget) = (RetrySettings::default(), Budget::default());
        attempts.begin();
        assert_eq!(attempts.after(Failure::Shed, &settings, &mut budget, NOW), Verdict::Retry);
        attempts.begin();
        assert_eq!(attempts.after(Failure::Shed, &settings, &mut budget, NOW), Verdict::GiveUp);
        while budget.withdraw(0.0, NOW) {}
        let none = RetrySettings { budget_share: 0.0, ..RetrySettings::default() };
        let mut another = Attempts::new(&Method::GET, false);
        another.begin();
        assert_eq!(another.after(Failure::Shed, &none, &mut budget, NOW), Verdict::GiveUp);
    }

    #[test]
    fn attempts_end() {
        let mut attempts = Attempts::new(&Method::GET, false);
        (0..MAX_ATTEMPTS).for_each(|_| attempts.begin());
        let settings = RetrySettings::default();
        assert_eq!(attempts.after(Failure::Unsent, &settings, &mut Budget::default(), NOW), Verdict::GiveUp);
    }

    #[test]
    fn policy_says_what_is_tried_again_and_how_often() {
        let mut attempts = Attempts::new(&Method::GET, false);
        let settings = RetrySettings {
            attempts: Some(2),
            on_reset: false,
            on_timeout: false,
            ..RetrySettings::default()
        };
        let mut budget = Budget::default();
        let mut after = |failure| {
            attempts.begin();
            attempts.after(failure, &settings, &mut budget, NOW)
        };
        assert_eq!(after(Failure::Broken), Verdict::GiveUp);
        assert_eq!(after(Failure::TimedOut), Verdict::GiveUp);
        assert_eq!(after(Failure::Status), Verdict::Retry);
        assert_eq!(after(Failure::Unsent), Verdict::PickAgain, "costs nothing and counts for nothing");
        assert_eq!(after(Failure::NobodyThere { undelivered: true }), Verdict::Retry);
        assert_eq!(after(Failure::Status), Verdict::GiveUp, "that was two");
        let mut post = Attempts::new(&Method::POST, false);
        assert_eq!(post.after(Failure::Status, &settings, &mut budget, NOW), Verdict::GiveUp);
        let none = RetrySettings { attempts: Some(0), ..RetrySettings::default() };
        let mut once = Attempts::new(&Method::GET, false);
        assert_eq!(once.after(Failure::Broken, &none, &mut budget, NOW), Verdict::GiveUp);
    }

    #[test]
    fn only_the_first_attempt_has_the_default_timeout() {
        let mut attempts = Attempts::new(&Method::GET, false);
        attempts.begin();
        assert_eq!(attempts.timeout(None), Some(DEFAULT_FIRST_ATTEMPT_TIMEOUT));
        attempts.begin();
        assert_eq!(attempts.timeout(None), None);
        let configured = Some(Duration::from_millis(70));
        assert_eq!(attempts.timeout(configured), configured);
        let mut post = Attempts::new(&Method::POST, false);
        post.begin();
        assert_eq!(post.timeout(None), None);
    }

    #[test]
    fn the_budget_is_a_share_of_requests_and_some_per_second() {
        let mut budget = Budget::default();
        let base = BUDGET_PER_SECOND as usize * WINDOW_SECONDS;
        let taken = (0..10_000).filter(|_| budget.withdraw(0.2, NOW)).count();
        assert_eq!(taken, base, "without requests: the floor");
        (0..1000).for_each(|_| budget.deposit(NOW));
        let taken = (0..10_000).filter(|_| budget.withdraw(0.2, NOW)).count();
        assert_eq!(taken, 200, "20 % of 1000 on top");
        let later = NOW + Duration::from_secs(WINDOW_SECONDS as u64);
        let taken = (0..10_000).filter(|_| budget.withdraw(0.2, later)).count();
        assert_eq!(taken, base, "the window has passed");
    }
}
