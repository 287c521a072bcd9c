//! What one worker keeps of a service from View to View: its retry budget, its load, what is under way; and how a request
//! is let in by the limits of the policy.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use hanse_federation::choose::{Ask, Candidate, Choice, Ladder, NoChoice};
use hanse_federation::health::Target;
use hanse_federation::host::{Reach, ServiceHost};
use hanse_federation::load::Load;
use hanse_identity::{ClusterName, ServiceName};

use super::connect::key;
use super::{Outbound, Outgoing};
use crate::answer::Reason;
use crate::attempt::Budget;
use crate::breaker::{Breakers, Held, Limit};
use crate::io::record::Record;
use crate::runtime::now;

/// One service as this worker has it.
#[derive(Default)]
pub(super) struct Backend {
    pub budget: RefCell<Budget>,
    pub load: Rc<RefCell<Load>>,
    pub breakers: Breakers,
}

/// Whose a `Backend` is, by either name of a service. One outside may have the name of one inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Whose {
    pub service: ServiceName,
    pub outside: bool,
}

/// All that this worker has.
#[derive(Default)]
pub(super) struct Backends(RefCell<HashMap<Whose, Rc<Backend>>>);

/// A request on its way to a target, from the choice to the end of the response.
pub struct UnderWay {
    load: Rc<RefCell<Load>>,
    target: Target,
    _place: Held,
}

impl Backends {
    /// `remember`: who asks next gets the same.
    pub fn of(&self, host: &ServiceHost, remember: bool) -> Rc<Backend> {
        let whose = Whose { service: host.service.clone(), outside: host.reach == Reach::External };
        let mut backends = self.0.borrow_mut();
        match backends.get(&whose) {
            Some(backend) => Rc::clone(backend),
            None if remember => Rc::clone(backends.entry(whose).or_default()),
            None => Rc::default(),
        }
    }

    /// Lets go of services and targets that are gone.
    pub fn tidy(&self, is_known: impl Fn(&Whose) -> bool, is_there: impl Fn(&Target) -> bool) {
        let mut backends = self.0.borrow_mut();
        backends.retain(|whose, _| is_known(whose));
        backends.values().for_each(|backend| backend.load.borrow_mut().retain(&is_there));
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.load.borrow_mut().end(&self.target);
    }
}

impl Outbound {
    /// The ladder's choice, within the limit of connections: where that is reached, those that have one are left to
    /// choose from.
    pub(super) fn choose(&self, outgoing: &Outgoing<'_>) -> Result<Choice, Reason> {
        let mut ladder = outgoing.tables.ladder.borrow_mut();
        let (health, load) = (self.health.borrow(), outgoing.tables.backend.load.borrow());
        let ask = Ask {
            tried: &outgoing.tried,
            hash: outgoing.hash,
            session: outgoing.session.map(|held| held.target),
            ..Ask::new(now(), &health, &load, self.random.next())
        };
        let choice = ladder.choose(&ask)?;
        let Some(most) = outgoing.tables.limits.connections else { return Ok(choice) };
        let cluster = choice.candidate.cluster(&outgoing.view.cluster);
        let connected = |candidate: &Candidate| {
            candidate.cluster(&outgoing.view.cluster) == cluster
                && key(outgoing, candidate).is_some_and(|key| self.pool_for(outgoing.what).holds(&key))
        };
        if connected(&choice.candidate)
            || candidates(&ladder).filter(|candidate| connected(candidate)).count() < most as usize
        {
            return Ok(choice);
        }
        match ladder.choose(&Ask { only: Some(&connected), ..ask }) {
            // Those that have a connection are out: their connections make room for one that leads somewhere.
            Err(NoChoice::NobodyHealthy) => {
                for candidate in candidates(&ladder).filter(|candidate| connected(candidate)) {
                    let key = key(outgoing, candidate);
                    let held = key.map(|key| self.pool_for(outgoing.what).usable(&key)).unwrap_or_default();
                    held.iter().for_each(|connection| connection.retire());
                }
                Ok(choice)
            }
            among_them => Ok(among_them?),
        }
    }

    /// Lets a request go to a target, and keeps count of it for as long as `record` lives.
    pub(super) fn admit(
        &self,
        outgoing: &Outgoing<'_>,
        target: &Target,
        cluster: &ClusterName,
        record: &mut Record,
    ) -> Result<(), Reason> {
        // What the attempt before had is free again.
        record.under_way = None;
        let backend = &outgoing.tables.backend;
        let place = backend.breakers.of(cluster).take(Limit::Requests, &outgoing.tables.limits);
        let place = place.map_err(|limit| self.overflow(outgoing, cluster, limit, record))?;
        backend.load.borrow_mut().begin(target);
        let (load, target) = (Rc::clone(&backend.load), target.clone());
        record.under_way = Some(UnderWay { load, target, _place: place });
        Ok(())
    }

    /// A place among those that wait for a connection; `None` where there is one already.
    pub(super) fn wait_for_connection(
        &self,
        outgoing: &Outgoing<'_>,
        candidate: &Candidate,
        record: &mut Record,
    ) -> Result<Option<Held>, Reason> {
        if key(outgoing, candidate).is_some_and(|key| self.pool_for(outgoing.what).is_ready(&key)) {
            return Ok(None);
        }
        let cluster = candidate.cluster(&outgoing.view.cluster);
        let place =
            outgoing.tables.backend.breakers.of(cluster).take(Limit::Pending, &outgoing.tables.limits);
        place.map(Some).map_err(|limit| self.overflow(outgoing, cluster, limit, record))
    }

    /// A place among the retries to that cluster.
    pub(super) fn take_retry(
        &self,
        outgoing: &Outgoing<'_>,
        cluster: &ClusterName,
        record: &mut Record,
    ) -> Result<Held, Reason> {
        let place =
            outgoing.tables.backend.breakers.of(cluster).take(Limit::Retries, &outgoing.tables.limits);
        place.map_err(|limit| self.overflow(outgoing, cluster, limit, record))
    }

    fn overflow(
        &self,
        outgoing: &Outgoing<'_>,
        cluster: &ClusterName,
        limit: Limit,
        record: &mut Record,
    ) -> Reason {
        let service = outgoing.plan.backend.service.to_string();
        self.reporter.overflowed(&service, cluster.as_str(), limit.as_str());
        record.entry.response_code_details = format!("limits.{} of {service} in {cluster}", limit.as_str());
        Reason::Overflow
    }
}

fn candidates(ladder: &Ladder) -> impl Iterator<Item = &Candidate> {
    ladder.tiers.iter().flat_map(|tier| &tier.candidates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_one_by_either_name_and_one_outside_of_its_name_another() {
        let backends = Backends::default();
        let of = |reach| backends.of(&ServiceHost { service: "shop/reviews".parse().unwrap(), reach }, true);
        assert!(Rc::ptr_eq(&of(Reach::ClusterSet), &of(Reach::Cluster)));
        assert!(!Rc::ptr_eq(&of(Reach::Cluster), &of(Reach::External)));
        let (inside, outside) = (of(Reach::Cluster), of(Reach::External));
        backends.tidy(|whose| whose.outside, |_| true);
        assert!(Rc::ptr_eq(&outside, &of(Reach::External)) && !Rc::ptr_eq(&inside, &of(Reach::Cluster)));
    }
}
