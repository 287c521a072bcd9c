//! Circuit breakers as the request path asks them; where no policy speaks, there are none.

use std::time::Duration;

use crate::policy::document::balance::LimitsPolicy;

/// BackendPolicy.limits: the most that one proxy may have under way to the service in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub connections: Option<u32>,
    pub pending: Option<u32>,
    pub requests: Option<u32>,
    pub retries: Option<u32>,
    pub connect_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
}

impl Limits {
    pub(super) fn of(policy: &LimitsPolicy) -> Self {
        Self {
            connections: policy.max_connections,
            pending: policy.max_pending,
            requests: policy.max_requests,
            retries: policy.max_retries,
            connect_timeout: policy.connect_timeout.map(|limit| limit.get()),
            idle_timeout: policy.idle_timeout.map(|limit| limit.get()),
        }
    }

    /// What one of so many workers may have. Rounded up: several together may have a little more than was written,
    /// never less.
    pub fn share(&self, workers: u32) -> Self {
        let share = |limit: Option<u32>| limit.map(|limit| limit.div_ceil(workers.max(1)));
        Self {
            connections: share(self.connections),
            pending: share(self.pending),
            requests: share(self.requests),
            retries: share(self.retries),
            ..self.clone()
        }
    }
}
