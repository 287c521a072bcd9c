//! Faults of a rule, compiled: which request is delayed and which is aborted, until the fault has ended. Pure.

use std::time::Duration;

use hanse_identity::{ServiceName, Timestamp};

use super::super::document::fault::{ExtensionRef, FaultAbort, FaultInjection};
use super::super::document::{PolicyKey, PolicyKind, PolicySpec};
use super::HeaderTest;
use crate::view::View;

/// One FaultInjection.
#[derive(Debug)]
pub struct Fault {
    /// From then on it does nothing, whether or not it has been removed.
    ends: Timestamp,
    spec: FaultInjection,
    /// `spec.only`, compiled.
    only: Option<HeaderTest>,
}

/// The answer in the backend's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// A status of HTTP.
    Http(u16),
    /// A status of gRPC; for calls only.
    Grpc(u16),
}

/// What becomes of one request, the delay first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    pub delay: Option<Duration>,
    pub abort: Option<Abort>,
}

impl Fault {
    /// What the reference means at this View; nothing where there is no such fault (any more).
    pub(super) fn find(view: &View, reference: &ExtensionRef, namespace: &str) -> Option<Self> {
        let name = ServiceName::new(namespace, reference.name.as_str()).ok()?;
        let document = view.policies.get(&PolicyKey { kind: PolicyKind::FaultInjection, name })?;
        let PolicySpec::FaultInjection(fault) = &document.spec else { return None };
        let only = match &fault.only {
            // One that cannot be compiled is for nobody; validation has refused it.
            Some(only) => Some(HeaderTest::compile(&only.header)?),
            None => None,
        };
        Some(Self { ends: document.ends()?, spec: fault.clone(), only })
    }

    /// `header` gives the value of a (lower-case) header; `random` is uniform over u64.
    pub fn decide<'r>(
        &self,
        now: Timestamp,
        header: &dyn Fn(&str) -> Option<&'r str>,
        is_grpc: bool,
        mut random: impl FnMut() -> u64,
    ) -> Injected {
        let meant = self.only.as_ref().is_none_or(|only| only.is_true_of(header(&only.name)));
        if now >= self.ends || !meant {
            return Injected::default();
        }
        let mut hits = |percent: u32| match percent {
            0 => false,
            100.. => true,
            _ => (u128::from(random()) * 100) >> 64 < u128::from(percent),
        };
        let delay = self.spec.delay.filter(|delay| hits(delay.percent)).map(|delay| delay.fixed.get());
        let abort = self.spec.abort.and_then(|abort| Some((abort.percent, Abort::of(abort)?)));
        let fits = |abort: Abort| is_grpc || matches!(abort, Abort::Http(_));
        let abort = abort.filter(|(percent, abort)| fits(*abort) && hits(*percent)).map(|(_, abort)| abort);
        Injected { delay, abort }
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        // What is compiled follows from the rest.
        (self.ends, &self.spec) == (other.ends, &other.spec)
    }
}

impl Eq for Fault {}

impl Abort {
    fn of(abort: FaultAbort) -> Option<Self> {
        abort.http_status.map(Self::Http).or(abort.grpc_status.map(Self::Grpc))
    }
}

#[cfg(test)]
mod tests;
