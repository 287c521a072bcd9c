//! Active checks, the pure part: which ones policies ask for, and what a row of outcomes means.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_federation::View;
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::policy::backend_policy;
use hanse_federation::policy::document::active::ActiveCheck;
use hanse_identity::ServiceName;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_FAIL_AFTER: u32 = 3;
const DEFAULT_PASS_AFTER: u32 = 2;

/// What the policies of the services that we serve ask to be checked; each once.
pub fn wanted(view: &View, services: &BTreeSet<ServiceName>) -> Vec<ActiveCheck> {
    let mut wanted = Vec::new();
    for service in services {
        let host = ServiceHost { service: service.clone(), reach: Reach::ClusterSet };
        let health = backend_policy(view, &host).and_then(|policy| policy.health.as_ref());
        if let Some(check) = health.and_then(|health| health.active.as_ref())
            && !wanted.contains(check)
        {
            wanted.push(check.clone());
        }
    }
    wanted
}

/// One check and what has become of it.
#[derive(Clone, Debug)]
pub struct Checked {
    pub check: ActiveCheck,
    up: bool,
    /// Outcomes in a row that speak against `up`.
    against: u32,
    /// Whether the app has ever been well by this check.
    began: bool,
}

impl Checked {
    /// A new check of an app that has been called ready, or not.
    pub fn new(check: ActiveCheck, up: bool) -> Self {
        Self { check, up, against: 0, began: up }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Takes in how one check ended; says whether that changed anything.
    pub fn saw(&mut self, passed: bool) -> bool {
        if passed == self.up {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let most = match passed {
            true => self.check.pass_after.unwrap_or(DEFAULT_PASS_AFTER),
            false => self.check.fail_after.unwrap_or(DEFAULT_FAIL_AFTER),
        };
        let turned = self.against >= most;
        if turned {
            (self.up, self.against) = (passed, 0);
            self.began |= passed;
        }
        turned
    }

    /// Pause before the next check. An app that starts is not kept waiting.
    pub fn pause(&self, at_start: Duration) -> Duration {
        let interval = self.check.interval.map_or(DEFAULT_INTERVAL, |interval| interval.get());
        if self.began { interval } else { interval.min(at_start) }
    }

    pub fn timeout(&self) -> Duration {
        self.check.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> ActiveCheck {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn it_takes_a_row_of_outcomes_to_turn() {
        let mut checked = Checked::new(check(r#"{ "tcp": {}, "failAfter": 3, "passAfter": 2 }"#), true);
        let outcomes = [
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ];
        for (index, (passed, up)) in outcomes.into_iter().enumerate() {
            checked.saw(passed);
            assert_eq!(checked.is_up(), up, "after {index}");
        }
    }

    #[test]
    fn an_app_that_starts_is_checked_more_often_until_it_is_well() {
        let soon = Duration::from_millis(500);
        let mut checked = Checked::new(check(r#"{ "tcp": {}, "interval": "10s", "passAfter": 1 }"#), false);
        assert_eq!(checked.pause(soon), soon);
        checked.saw(true);
        assert_eq!(checked.pause(soon), Duration::from_secs(10));
        for _ in 0..3 {
            checked.saw(false);
        }
        assert_eq!((checked.is_up(), checked.pause(soon)), (false, Duration::from_secs(10)));
    }
}
