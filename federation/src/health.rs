//! Health by observed failures, per (service, target): a target is one of our endpoints or a whole peer cluster.
//!
//! Never per gateway address: one bad service must not eject a whole cluster. The data path to a peer is a
//! separate fact (`path_lost`, `path_alive`): it closes every service's tier in that cluster at once.
//! Pure: `now` and randomness come in. One per worker; nothing here is shared.
//!
//! The life of a target: *well* (nothing is remembered of it) → failures are counted → *ejected* until a moment →
//! *on trial*: one more failure ejects it for twice as long, a success makes it well. How often it was ejected is
//! forgotten only after lasting success.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use hanse_identity::{ClusterName, ServiceName, Timestamp};

use crate::catalog::EndpointId;

/// Whose health it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Endpoint(EndpointId),
    Cluster(ClusterName),
    /// Outside the mesh.
    Address(IpAddr),
}

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Any answer of the app's own, 5xx of its own included unless `ServerError`.
    Success,
    /// The app answered 5xx.
    ServerError,
    /// The far proxy or gateway says that nobody is there (502, 503, 504 of the mesh's own).
    NobodyThere,
    /// No connection could be made.
    ConnectFailure,
    /// The connection broke under the request.
    Reset,
    /// Nothing came in time.
    Timeout,
}

/// When a target is taken out, and for how long (BackendPolicy.health.outlier).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierSettings {
    /// 0 = the app's own 5xx never eject.
    pub consecutive_5xx: u32,
    /// 0 = errors on the way to the app have no row of their own; they still count among the 5xx.
    pub consecutive_gateway_errors: u32,
    pub eject_for: Duration,
    /// Longest ejection, however often it is repeated.
    pub eject_for_at_most: Duration,
}

/// How a target stands at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Well,
    /// Its ejection is over, but it has not succeeded since.
    OnTrial,
    /// Taken out, and by which kind of failure.
    Ejected(Observation),
    /// No traffic passes to its cluster.
    PathLost,
}

/// What one worker has seen.
#[derive(Debug, Default)]
pub struct Health {
    /// Two levels, so that a look-up needs no key of its own making. A target that is well has no entry.
    entries: HashMap<ServiceName, HashMap<Target, Entry>>,
    /// Entries in all services together.
    count: usize,
    /// Clusters to which no traffic passes, since when.
    lost: HashMap<ClusterName, Timestamp>,
    /// Grows whenever an observation changes what `is_healthy` would say.
    version: u64,
}

/// Most targets that are remembered at a time; beyond it the oldest healthy ones are forgotten first.
pub const MAX_ENTRIES: usize = 8192;
/// Success has to last this long, and at least as long as the last ejection, for earlier ejections to be forgotten.
pub const SUSTAINED_SUCCESS: Duration = Duration::from_secs(10);
/// By how much clocks of one process may disagree before an ejection counts as from another time.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// What is remembered of a target that has failed.
#[derive(Clone, Debug)]
struct Entry {
    server_errors: u32,
    gateway_errors: u32,
    /// Ejections since the last lasting success.
    ejections: u32,
    /// Length of the last ejection.
    lasts: Duration,
    phase: Phase,
    /// Last observation, for forgetting the oldest.
    seen: Timestamp,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Takes requests; since when all of them succeed.
    Admitted { well_since: Option<Timestamp> },
    /// Taken out until then; on trial from then on.
    Ejected { until: Timestamp, cause: Observation },
}

/// What to do about a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Ejects when there have been enough in a row.
    Count,
    /// Ejects at once.
    Eject,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_errors: 3,
            eject_for: Duration::from_secs(1),
            eject_for_at_most: Duration::from_secs(30),
        }
    }
}

impl Health {
    /// Takes in how an attempt ended. A connect failure ejects at once; a success ends an ejection.
    pub fn observe(
        &mut self,
        now: Timestamp,
        service: &ServiceName,
        target: &Target,
        observation: Observation,
        settings: &OutlierSettings,
    ) {
        let verdict = verdict(target, observation, settings);
        if verdict == Verdict::Fine {
            return self.succeeded(now, service, target);
        }
        let known = self.entries.get(service).is_some_and(|targets| targets.contains_key(target));
        if !known {
            self.make_room(now);
            self.entries.entry(service.clone()).or_default().insert(target.clone(), Entry::new(now));
            self.count += 1;
        }
        let entry = self.entries.get_mut(service).and_then(|targets| targets.get_mut(target));
        let entry = entry.expect("the entry was there or has just been made");
        if entry.failed(now, observation, verdict, settings) {
            self.version += 1;
        }
    }

    /// Whether the target may be chosen: not ejected, or due for one trial (which this call does not consume).
    pub fn is_healthy(&self, now: Timestamp, service: &ServiceName, target: &Target) -> bool {
        matches!(self.standing(now, service, target), Standing::Well | Standing::OnTrial)
    }

    /// The same with the reason.
    pub fn standing(&self, now: Timestamp, service: &ServiceName, target: &Target) -> Standing {
        if let Target::Cluster(cluster) = target
            && self.is_lost(cluster)
        {
            return Standing::PathLost;
        }
        if self.entries.is_empty() {
            return Standing::Well;
        }
        match self.entries.get(service).and_then(|targets| targets.get(target)) {
            Some(entry) => entry.standing(now),
            None => Standing::Well,
        }
    }

    /// Whether every target of the service is well without looking at each.
    pub fn is_quiet(&self, service: &ServiceName) -> bool {
        self.lost.is_empty() && !self.entries.contains_key(service)
    }

    /// Grows whenever an observation changes what `is_healthy` would say; the passing of time does not count.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// No traffic passes to that cluster: probes or connections die.
    pub fn path_lost(&mut self, now: Timestamp, cluster: &ClusterName) {
        if !self.lost.contains_key(cluster) {
            self.lost.insert(cluster.clone(), now);
            self.version += 1;
        }
    }

    /// A probe or a connection to that cluster succeeded. What was ejected there because the path was dead is on
    /// trial from now on; what answered with errors of its own stays out.
    pub fn path_alive(&mut self, now: Timestamp, cluster: &ClusterName) {
        if self.lost.remove(cluster).is_none() {
            return;
        }
        self.version += 1;
        let entries = self.entries.values_mut().flatten();
        for (_, entry) in entries.filter(|(target, _)| matches!(target, Target::Cluster(c) if c == cluster)) {
            entry.path_alive(now);
        }
    }

    /// Whether the path to that cluster is lost.
    pub fn is_lost(&self, cluster: &ClusterName) -> bool {
        !self.lost.is_empty() && self.lost.contains_key(cluster)
    }

    /// Clusters whose path is lost, and since when: those that the shell must probe.
    pub fn lost_paths(&self) -> Vec<(ClusterName, Timestamp)> {
        let mut lost: Vec<_> = self.lost.iter().map(|(cluster, since)| (cluster.clone(), *since)).collect();
        lost.sort();
        lost
    }

    /// Ejections in force, for `/clusters` and the CLI: (service, target, until).
    pub fn ejected(&self, now: Timestamp) -> Vec<(ServiceName, Target, Timestamp)> {
        let mut ejected = Vec::new();
        for (service, targets) in &self.entries {
            for (target, entry) in targets {
                if let Some(until) = entry.ejected_until(now) {
                    ejected.push((service.clone(), target.clone(), until));
                }
            }
        }
        ejected.sort();
        ejected
    }

    /// Forgets what no View names any more.
    pub fn retain(&mut self, keep: impl Fn(&ServiceName, &Target) -> bool) {
        self.retain_entries(|service, target, _| keep(service, target));
    }

    /// Forgets the lost paths to clusters that no View names any more, so that nobody probes them for ever.
    pub fn retain_paths(&mut self, keep: impl Fn(&ClusterName) -> bool) {
        let before = self.lost.len();
        self.lost.retain(|cluster, _| keep(cluster));
        if self.lost.len() != before {
            self.version += 1;
        }
    }

    fn succeeded(&mut self, now: Timestamp, service: &ServiceName, target: &Target) {
        let Some(targets) = self.entries.get_mut(service) else { return };
        let Some(entry) = targets.get_mut(target) else { return };
        if entry.succeeded(now) {
            self.version += 1;
        }
        if entry.is_blank() {
            targets.remove(target);
            self.count -= 1;
            if targets.is_empty() {
                self.entries.remove(service);
            }
        }
    }

    /// When full, forgets an eighth at once, so that the search for the oldest is paid for rarely: first those
    /// that are healthy, the longest unheard of first, then those whose ejection is the oldest.
    fn make_room(&mut self, now: Timestamp) {
        if self.count < MAX_ENTRIES {
            return;
        }
        let age = |entry: &Entry| (entry.ejected_until(now).is_some(), entry.seen);
        let mut ages: Vec<_> = self.entries.values().flat_map(|targets| targets.values().map(age)).collect();
        let (older, limit, _) = ages.select_nth_unstable(MAX_ENTRIES / 8 - 1);
        // Many may be exactly as old as the last that has to go.
        let mut of_that_age = MAX_ENTRIES / 8 - older.iter().filter(|age| *age < limit).count();
        let limit = *limit;
        self.retain_entries(|_, _, entry| match age(entry).cmp(&limit) {
            Ordering::Less => false,
            Ordering::Equal if of_that_age > 0 => {
                of_that_age -= 1;
                false
            }
            Ordering::Equal | Ordering::Greater => true,
        });
    }

    fn retain_entries(&mut self, mut keep: impl FnMut(&ServiceName, &Target, &Entry) -> bool) {
        let before = self.count;
        self.entries.retain(|service, targets| {
            targets.retain(|target, entry| keep(service, target, entry));
            !targets.is_empty()
        });
        self.count = self.entries.values().map(HashMap::len).sum();
        if self.count != before {
            self.version += 1;
        }
    }
}

impl Entry {
    fn new(now: Timestamp) -> Self {
        Self {
            server_errors: 0,
            gateway_errors: 0,
            ejections: 0,
            lasts: Duration::ZERO,
            phase: Phase::Admitted { well_since: None },
            seen: now,
        }
    }

    fn standing(&self, now: Timestamp) -> Standing {
        match self.phase {
            Phase::Admitted { .. } => Standing::Well,
            Phase::Ejected { cause, .. } if self.ejected_until(now).is_some() => Standing::Ejected(cause),
            Phase::Ejected { .. } => Standing::OnTrial,
        }
    }

    /// The end of the ejection, if it is in force. One that would last longer than it was made for comes from a
    /// clock that has been set back since.
    fn ejected_until(&self, now: Timestamp) -> Option<Timestamp> {
        match self.phase {
            Phase::Ejected { until, .. } if now < until && until.since(now) <= self.lasts + CLOCK_SLACK => {
                Some(until)
            }
            _ => None,
        }
    }

    /// Whether there is nothing left to remember.
    fn is_blank(&self) -> bool {
        self.ejections == 0 && self.server_errors == 0 && self.gateway_errors == 0
    }

    /// Returns whether its standing changed.
    fn succeeded(&mut self, now: Timestamp) -> bool {
        (self.server_errors, self.gateway_errors, self.seen) = (0, 0, now);
        let Phase::Admitted { well_since } = &mut self.phase else {
            self.phase = Phase::Admitted { well_since: Some(now) };
            return true;
        };
        well_since.get_or_insert(now);
        self.forget_if_sustained(now);
        false
    }

    /// Returns whether its standing changed.
    fn failed(
        &mut self,
        now: Timestamp,
        observation: Observation,
        verdict: Verdict,
        settings: &OutlierSettings,
    ) -> bool {
        self.seen = now;
        let due = match self.standing(now) {
            // Requests that were under way when it was taken out say nothing new.
            Standing::Ejected(_) | Standing::PathLost => return false,
            Standing::OnTrial => true,
            Standing::Well => {
                self.forget_if_sustained(now);
                self.phase = Phase::Admitted { well_since: None };
                self.count(observation);
                let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
                verdict == Verdict::Eject
                    || reached(self.server_errors, settings.consecutive_5xx)
                    || reached(self.gateway_errors, settings.consecutive_gateway_errors)
            }
        };
        if due {
            self.eject(now, observation, settings);
        }
        due
    }

    /// An error between us and the app is a 5xx for its caller: it counts in both rows. A 5xx of the app's own
    /// shows that the way to it is good.
    fn count(&mut self, observation: Observation) {
        self.server_errors = self.server_errors.saturating_add(1);
        self.gateway_errors = match observation {
            Observation::ServerError => 0,
            _ => self.gateway_errors.saturating_add(1),
        };
    }

    fn eject(&mut self, now: Timestamp, cause: Observation, settings: &OutlierSettings) {
        let most = settings.eject_for_at_most.max(settings.eject_for);
        let doubled =
            1u32.checked_shl(self.ejections).and_then(|factor| settings.eject_for.checked_mul(factor));
        self.lasts = doubled.unwrap_or(most).min(most);
        self.ejections = self.ejections.saturating_add(1);
        (self.server_errors, self.gateway_errors) = (0, 0);
        self.phase = Phase::Ejected { until: now + self.lasts, cause };
    }

    fn forget_if_sustained(&mut self, now: Timestamp) {
        let lasting = SUSTAINED_SUCCESS.max(self.lasts);
        if let Phase::Admitted { well_since: Some(since) } = self.phase
            && now.since(since) >= lasting
        {
            self.ejections = 0;
        }
    }

    fn path_alive(&mut self, now: Timestamp) {
        if let Phase::Ejected { until, cause } = &mut self.phase
            && matches!(cause, Observation::ConnectFailure | Observation::Reset | Observation::Timeout)
        {
            *until = (*until).min(now);
        }
    }
}

fn verdict(target: &Target, observation: Observation, settings: &OutlierSettings) -> Verdict {
    match observation {
        Observation::Success => Verdict::Fine,
        // Switched off, an answer is an answer.
        Observation::ServerError if settings.consecutive_5xx == 0 => Verdict::Fine,
        Observation::ConnectFailure => Verdict::Eject,
        // The far mesh knows whether it has anybody: no need to ask again.
        Observation::NobodyThere if matches!(target, Target::Cluster(_)) => Verdict::Eject,
        Observation::ServerError | Observation::NobodyThere | Observation::Reset | Observation::Timeout => {
            Verdict::Count
        }
    }
}

#[cfg(test)]
mod tests;
