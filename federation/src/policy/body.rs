//! BackendPolicy.limits as the proxy in front of the app asks them: how large a request's body may be, and how slow.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_identity::ServiceName;

use super::backend_policy;
use super::document::balance::LimitsPolicy;
use crate::host::{Reach, ServiceHost};
use crate::view::View;

/// Longest wait for `EACH` bytes where no policy speaks. Whoever sends less than 550 bytes a second holds a place for nothing.
const DEFAULT_SLOW: Duration = Duration::from_secs(30);

/// What one request's body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    pub most: Option<u64>,
    /// Longest wait for each `EACH` bytes; `None`: for ever.
    pub slow: Option<Duration>,
}

impl BodyLimits {
    /// Bytes that a body has to bring in each `slow`.
    pub const EACH: u64 = 16 * 1024;

    /// The strictest of what is said of the services of one workload: a request may name any of them.
    pub fn of(view: &View, services: &BTreeSet<ServiceName>) -> Self {
        let policies: Vec<&LimitsPolicy> = services
            .iter()
            .map(|service| ServiceHost { service: service.clone(), reach: Reach::ClusterSet })
            .filter_map(|host| backend_policy(view, &host)?.limits.as_ref())
            .collect();
        let slow: Vec<Duration> =
            policies.iter().filter_map(|policy| policy.slow_request_timeout).map(|slow| slow.get()).collect();
        Self {
            most: policies.iter().filter_map(|policy| policy.max_request_bytes).min(),
            slow: match slow.is_empty() {
                true => Some(DEFAULT_SLOW),
                false => slow.into_iter().filter(|slow| !slow.is_zero()).min(),
            },
        }
    }
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { most: None, slow: Some(DEFAULT_SLOW) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::policy::parse;

    #[test]
    fn the_strictest_of_all_services_counts_and_silence_is_the_default() {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let services = BTreeSet::from(["shop/a".parse().unwrap(), "shop/b".parse().unwrap()]);
        assert_eq!(BodyLimits::of(&view, &services), BodyLimits { most: None, slow: Some(DEFAULT_SLOW) });
        let mut say = |service: &str, limits: &str| {
            let text = format!(
                "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{ name: {service}, namespace: shop }}\n\
                 spec: {{ targetRefs: [{{ kind: Service, name: {service} }}], limits: {{ {limits} }} }}\n"
            );
            for (document, _) in parse("test", &text).unwrap() {
                view.apply(&Change::PolicyPut(Box::new(document)));
            }
            BodyLimits::of(&view, &services)
        };
        assert_eq!(say("a", "slowRequestTimeout: 0s"), BodyLimits { most: None, slow: None });
        let minute = Some(Duration::from_secs(60));
        let both = say("b", "maxRequestBytes: 10, slowRequestTimeout: 1m");
        assert_eq!(both, BodyLimits { most: Some(10), slow: minute });
        assert_eq!(say("a", "maxRequestBytes: 0"), BodyLimits { most: Some(0), slow: minute });
        assert_eq!(say("other", "maxRequestBytes: 0").most, Some(0));
    }
}
