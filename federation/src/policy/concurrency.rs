//! BackendPolicy.limits.concurrency as the proxy in front of the app asks it: within which bounds the limit moves, and which
//! requests go first.

use std::collections::BTreeSet;
use std::time::Duration;

use hanse_identity::{ClusterName, ServiceName};

use super::access::{Asked, Caller, Rule};
use super::document::access::AccessRule;
use super::document::concurrency::{ConcurrencyPolicy, Priority};
use super::value::{Percent, PolicyDuration};
use super::winner;
use crate::host::{Reach, ServiceHost};
use crate::view::View;

pub const DEFAULT_MAX_LIMIT: u32 = 1000;
const DEFAULT_TOLERANCE_PERMILLE: u32 = 500;
const DEFAULT_REMEASURE: Duration = Duration::from_secs(60);

/// Within which bounds the limit moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencySettings {
    pub min: u32,
    pub max: u32,
    /// In permille of the undisturbed latency.
    pub tolerance: u32,
    pub remeasure: Duration,
}

/// The adaptive limit of one workload.
#[derive(Debug)]
pub struct Concurrency {
    /// `namespace/name` of the policy.
    pub policy: ServiceName,
    pub settings: ConcurrencySettings,
    priorities: Vec<(Priority, Rule)>,
}

impl Concurrency {
    /// Of the first of these services, by name, whose policy has one: a workload is one app, and has one limit.
    pub fn of(view: &View, services: &BTreeSet<ServiceName>) -> Option<Self> {
        services
            .iter()
            .map(|service| ServiceHost { service: service.clone(), reach: Reach::ClusterSet })
            .filter_map(|host| winner(view.policies.values(), &host))
            .find_map(|(document, policy)| {
                let concurrency = policy.limits.as_ref()?.concurrency.as_ref()?;
                Some(Self::compile(&document.name, concurrency))
            })
    }

    fn compile(name: &ServiceName, policy: &ConcurrencyPolicy) -> Self {
        // What cannot be compiled is refused when it is applied; should it be here, it lifts nobody up.
        let compiled = policy.priorities.iter().enumerate().filter_map(|(index, rule)| {
            let (from, to) = (rule.from.clone(), rule.to.clone());
            let access = AccessRule { from, to, ..AccessRule::default() };
            Some((rule.priority, Rule::compile(&access, index, name)?))
        });
        Self {
            policy: name.clone(),
            settings: ConcurrencySettings::of(policy),
            priorities: compiled.collect(),
        }
    }

    /// Of one request.
    pub fn priority(&self, caller: &Caller<'_>, own: &ClusterName, asked: &Asked<'_>) -> Priority {
        let first = self.priorities.iter().find(|(_, rule)| rule.is_met(caller, own, asked));
        first.map_or(Priority::Default, |(priority, _)| *priority)
    }
}

impl ConcurrencySettings {
    fn of(policy: &ConcurrencyPolicy) -> Self {
        let most = policy.max_limit.unwrap_or(DEFAULT_MAX_LIMIT).max(1);
        let min = policy.min_limit.unwrap_or(1).max(1);
        Self {
            min,
            max: most.max(min),
            tolerance: policy.tolerance.map_or(DEFAULT_TOLERANCE_PERMILLE, Percent::permille),
            remeasure: policy.remeasure.map_or(DEFAULT_REMEASURE, PolicyDuration::get),
        }
    }
}

impl Default for ConcurrencySettings {
    fn default() -> Self {
        Self::of(&ConcurrencyPolicy::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::policy::parse;

    fn view_with(limits: &str) -> View {
        let mut view = View::new("east".parse().unwrap(), "east.example".parse().unwrap());
        let text = format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{ name: b, namespace: shop }}\n\
             spec: {{ targetRefs: [{{ kind: Service, name: b }}], limits: {{ {limits} }} }}\n"
        );
        for (document, _) in parse("test", &text).unwrap() {
            view.apply(&Change::PolicyPut(Box::new(document)));
        }
        view
    }

    #[test]
    fn one_service_with_a_limit_is_enough_and_the_first_rule_that_matches_counts() {
        let services = BTreeSet::from(["shop/a".parse().unwrap(), "shop/b".parse().unwrap()]);
        assert!(Concurrency::of(&view_with("maxRequests: 2"), &services).is_none());
        let rules = "concurrency: { maxLimit: 2, tolerance: 20%, remeasure: 10s, priorities: [\
             { priority: Exempt, to: { paths: [{ type: Exact, value: /poll }] } }, \
             { priority: Critical, from: { identities: ['spiffe://east.example/ns/shop/sa/till'] } }, \
             { priority: BestEffort, to: { headers: [{ name: X-Purpose, value: prefetch }] } }] }";
        let limit = Concurrency::of(&view_with(rules), &services).unwrap();
        let wanted =
            ConcurrencySettings { min: 1, max: 2, tolerance: 200, remeasure: Duration::from_secs(10) };
        assert_eq!(limit.settings, wanted);
        let own = "east".parse().unwrap();
        let till: hanse_identity::SpiffeId = "spiffe://east.example/ns/shop/sa/till".parse().unwrap();
        let other = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
        let priority = |id, path: &str, purpose: &[&str]| {
            let header = |name: &str, tell: &mut dyn FnMut(&[u8])| {
                purpose.iter().filter(|_| name == "x-purpose").for_each(|value| tell(value.as_bytes()));
            };
            let caller = Caller { id: Some(id), cluster: Some(&own), user: None };
            limit.priority(&caller, &own, &Asked { method: "GET", path, header: &header })
        };
        assert_eq!(priority(&other, "/", &[]), Priority::Default);
        assert_eq!(priority(&other, "/", &["prefetch"]), Priority::BestEffort);
        assert_eq!(
            priority(&other, "/", &["prefetch", "other"]),
            Priority::Default,
            "all values have to match"
        );
        assert_eq!(priority(&till, "/", &["prefetch"]), Priority::Critical);
        assert_eq!(priority(&till, "/poll", &[]), Priority::Exempt);
    }
}
