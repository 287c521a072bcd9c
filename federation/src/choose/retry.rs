//! What may be tried again, as the request path asks it; where no policy speaks, the defaults.

use std::time::Duration;

use crate::policy::document::retry::{RetryCondition, RetryPolicy, RetryWord};

/// Retries allowed per request where no policy says, over the budget's window.
pub const BUDGET_SHARE: f64 = 0.2;

/// BackendPolicy.retry in the form that is asked after an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySettings {
    /// Attempts after the first, of requests that may have been delivered; `None`: as many as there may be.
    pub attempts: Option<u32>,
    pub on_reset: bool,
    pub on_timeout: bool,
    /// A proxy on the way says that nobody is there.
    pub on_unavailable: bool,
    /// Statuses of the app's own that are tried again.
    pub statuses: Vec<u16>,
    /// Of one attempt, where no route says.
    pub per_try: Option<Duration>,
    /// Retries allowed per request, 0.0 to 1.0.
    pub budget_share: f64,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts: None,
            on_reset: true,
            on_timeout: true,
            on_unavailable: true,
            statuses: Vec::new(),
            per_try: None,
            budget_share: BUDGET_SHARE,
        }
    }
}

impl RetrySettings {
    pub(super) fn of(policy: &RetryPolicy) -> Self {
        let mut settings = Self { attempts: policy.attempts, ..Self::default() };
        settings.per_try = policy.per_try_timeout.map(|limit| limit.get()).filter(|limit| !limit.is_zero());
        if let Some(budget) = policy.budget {
            settings.budget_share = f64::from(budget.percent) / 100.0;
        }
        let Some(on) = &policy.on else { return settings };
        let named = |word| on.contains(&RetryCondition::Word(word));
        settings.on_reset = named(RetryWord::Reset);
        settings.on_timeout = named(RetryWord::Timeout);
        for condition in on {
            match condition {
                RetryCondition::Status(status) => settings.statuses.push(*status),
                RetryCondition::Word(RetryWord::GatewayError) => settings.statuses.extend([502, 503, 504]),
                RetryCondition::Word(RetryWord::ServerError) => settings.statuses.extend(500..600),
                RetryCondition::Word(_) => {}
            }
        }
        settings.on_unavailable = settings.statuses.contains(&503);
        settings
    }
}
