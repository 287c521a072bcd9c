//! Workloads without a proxy of ours: one that speaks SPIFFE mutual TLS itself (a stock Envoy, an app with a SPIFFE
//! library) is registered with its address, and its registration stands for the announcement that nobody makes.

use hanse_federation::Change;
use hanse_federation::catalog::{Endpoint, Locality, Session};
use hanse_identity::{AgentScope, NodeName, Registration, SpiffeId};

use super::{MAX_ENDPOINTS, State, bounded};
use crate::command::Refusal;

impl State {
    /// The endpoint that a registration stands for, if it has an address and services.
    pub(super) fn addressed(&self, registration: &Registration) -> Result<Option<Endpoint>, Refusal> {
        let Registration { id, agent, services, address, .. } = registration;
        let Some(address) = *address else { return Ok(None) };
        let Some(agent) = agent.name() else {
            return Err(Refusal::Invalid(
                "an address is one host's: the registration names every agent".into(),
            ));
        };
        if services.is_empty() {
            return Err(Refusal::Invalid("an address is of services: the registration names none".into()));
        }
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(Refusal::Invalid(format!("{address} is not an address that others can connect to")));
        }
        let name = endpoint_name(id, agent)?;
        match self.view.endpoints.get(&name) {
            None => bounded("endpoints", self.view.endpoints.len(), MAX_ENDPOINTS)?,
            Some(taken) if taken.identity == *id && taken.session.is_of_registration() => {}
            Some(taken) => {
                return Err(Refusal::Precondition(format!(
                    "the endpoint name {name} is taken by {}",
                    taken.identity
                )));
            }
        }
        Ok(Some(Endpoint {
            id: name,
            services: services.clone(),
            identity: id.clone(),
            address,
            locality: Locality::default(),
            weight: 1,
            // Nobody looks after its app: callers find out, and eject it.
            ready: true,
            session: Session::of_registration(agent.clone()),
        }))
    }

    /// What follows for the endpoint when the registration of `id` on `agent` now stands for `endpoint`, or for none.
    pub(super) fn readdressed(
        &self,
        id: &SpiffeId,
        agent: &AgentScope,
        endpoint: Option<Endpoint>,
    ) -> Option<Change> {
        let name = agent.name().and_then(|agent| endpoint_name(id, agent).ok());
        let known = name.and_then(|name| self.view.endpoints.get(&name));
        let known = known.filter(|e| e.identity == *id && e.session.is_of_registration());
        match (known, endpoint) {
            (_, Some(_)) if self.view.revocations.of_identity(id).is_some() => None,
            (Some(known), Some(endpoint)) if *known == endpoint => None,
            (_, Some(endpoint)) => Some(Change::EndpointPut(endpoint)),
            (Some(known), None) => Some(Change::EndpointGone(known.id.clone())),
            (None, None) => None,
        }
    }

    /// Endpoints that come back when the last revocation of `id` is gone: nobody announces them.
    pub(super) fn restored(&self, id: &SpiffeId) -> Vec<Change> {
        let endpoints = self.registrations_of(id).filter_map(|r| self.addressed(r).ok().flatten());
        endpoints.map(Change::EndpointPut).collect()
    }
}

/// `<last part of the SPIFFE ID>-<agent>`: the same account may be on several hosts.
fn endpoint_name(id: &SpiffeId, agent: &NodeName) -> Result<NodeName, Refusal> {
    let account = id.path().rsplit('/').next().unwrap_or_default();
    let name = format!("{account}-{agent}");
    name.parse().map_err(|why| {
        Refusal::Invalid(format!(
            "a workload with an address is named after its account and agent, and {name}: {why}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use hanse_federation::View;
    use hanse_federation::catalog::{Announcement, Serves};
    use hanse_identity::{Reason, RevocationTarget, Selector, Timestamp};

    use super::*;
    use crate::command::{Answer, Command, Proposal};

    struct Cluster {
        state: State,
        index: u64,
    }

    impl Cluster {
        fn new() -> Self {
            let state = State::founded("east".parse().unwrap(), "east.example".parse().unwrap(), Vec::new());
            Self { state, index: super::super::FOUNDING_INDEX }
        }

        /// Applies, and checks that folding the Changes elsewhere gives the same View.
        fn apply(&mut self, command: Command) -> Result<Answer, Refusal> {
            self.index += 1;
            let mut elsewhere: View = self.state.view.clone();
            let proposal = Proposal {
                id: self.index,
                actor: String::new(),
                now: Timestamp(1_000),
                certificate: None,
                command,
            };
            let (outcome, changes) = self.state.apply(self.index, &proposal);
            elsewhere.advance(hanse_federation::Revision(self.index), &changes);
            assert_eq!(elsewhere, self.state.view);
            outcome.result
        }

        fn endpoint(&self) -> Option<&Endpoint> {
            self.state.view.endpoints.get(&"envoy-host-1".parse().unwrap())
        }

        fn register(&mut self, services: &[&str], address: Option<&str>) -> Result<Answer, Refusal> {
            self.apply(Command::WorkloadRegister { registration: registration(services, address) })
        }

        fn delete(&mut self) -> Result<Answer, Refusal> {
            self.apply(Command::WorkloadDelete { id: id(), agent: "host-1".parse().unwrap() })
        }
    }

    fn id() -> SpiffeId {
        "spiffe://east.example/ns/shop/sa/envoy".parse().unwrap()
    }

    fn registration(services: &[&str], address: Option<&str>) -> Registration {
        let agent: NodeName = "host-1".parse().unwrap();
        Registration {
            services: services.iter().map(|s| s.parse().unwrap()).collect(),
            address: address.map(|a| a.parse().unwrap()),
            ..Registration::new(id(), agent, [Selector::Uid(1000)])
        }
    }

    #[test]
    fn a_registration_with_an_address_is_an_endpoint_as_long_as_it_lasts() {
        let mut cluster = Cluster::new();
        cluster.register(&["shop/envoy"], Some("127.0.0.1:7000")).unwrap();
        let endpoint = cluster.endpoint().unwrap();
        assert_eq!(endpoint.identity, id());
        assert_eq!(endpoint.address, "127.0.0.1:7000".parse().unwrap());
        assert_eq!((endpoint.weight, endpoint.ready), (1, true));
        assert_eq!(endpoint.session.node.as_str(), "host-1");
        assert_eq!(cluster.register(&["shop/envoy"], Some("127.0.0.1:7000")), Ok(Answer::Already));

        cluster.register(&["shop/envoy", "shop/other"], Some("127.0.0.1:7001")).unwrap();
        let endpoint = cluster.endpoint().unwrap();
        assert_eq!((endpoint.services.len(), endpoint.address.port()), (2, 7001));
        cluster.register(&["shop/other"], Some("127.0.0.1:7001")).unwrap();
        assert_eq!(cluster.endpoint().unwrap().services.len(), 1);
        assert!(!cluster.state.view.services.contains_key(&"shop/envoy".parse().unwrap()));

        cluster.register(&["shop/other"], None).unwrap();
        assert!(cluster.endpoint().is_none());
        assert!(cluster.state.view.services.contains_key(&"shop/other".parse().unwrap()));
        cluster.register(&["shop/other"], Some("127.0.0.1:7001")).unwrap();
        cluster.delete().unwrap();
        assert!(cluster.endpoint().is_none());
        assert!(cluster.state.view.services.is_empty());
    }

    #[test]
    fn an_address_goes_with_its_own_registration_though_another_host_has_the_same_identity() {
        let mut cluster = Cluster::new();
        cluster.register(&["shop/envoy"], Some("127.0.0.1:7000")).unwrap();
        let elsewhere = Registration {
            agent: "host-2".parse().unwrap(),
            ..registration(&["shop/envoy"], Some("127.0.0.2:7000"))
        };
        cluster.apply(Command::WorkloadRegister { registration: elsewhere }).unwrap();
        assert_eq!(cluster.state.view.endpoints.len(), 2);
        cluster.delete().unwrap();
        assert!(cluster.endpoint().is_none());
        assert_eq!(cluster.state.view.endpoints.len(), 1);
    }

    #[test]
    fn a_revoked_one_is_gone_until_the_hold_is_lifted() {
        let mut cluster = Cluster::new();
        cluster.register(&["shop/envoy"], Some("127.0.0.1:7000")).unwrap();
        let revoke = || Command::Revoke {
            target: RevocationTarget::Identity(id()),
            reason: Reason::Hold,
            note: String::new(),
            expires: None,
            reissue: false,
            closing: Default::default(),
        };
        let Answer::Revoked(first) = cluster.apply(revoke()).unwrap() else { panic!("no revocation") };
        assert!(cluster.endpoint().is_none());
        // A change of the registration does not bring it back.
        cluster.register(&["shop/envoy"], Some("127.0.0.1:7009")).unwrap();
        assert!(cluster.endpoint().is_none());
        cluster.apply(Command::Lift { id: first }).unwrap();
        assert_eq!(cluster.endpoint().unwrap().address.port(), 7009);
    }

    #[test]
    fn neither_a_withdrawal_nor_a_proxy_takes_its_name() {
        let mut cluster = Cluster::new();
        cluster.register(&["shop/envoy"], Some("127.0.0.1:7000")).unwrap();
        let session = Session { incarnation: 7, sequence: 1, node: "control-1".parse().unwrap() };
        cluster.apply(Command::Withdraw { name: "envoy-host-1".parse().unwrap(), session }).unwrap();
        let announcement = |name: &str, incarnation| Announcement {
            name: name.parse().unwrap(),
            incarnation,
            sequence: 1,
            locality: Locality::default(),
            ready: true,
            serves: Serves::Services {
                services: ["shop/envoy".parse().unwrap()].into(),
                inbound: "127.0.0.1:9".parse().unwrap(),
                weight: 1,
            },
        };
        let announce = |announcement: Announcement| Command::Announce {
            announcement: Box::new(announcement),
            identity: id(),
            node: "control-1".parse().unwrap(),
        };
        let refused = cluster.apply(announce(announcement("envoy-host-1", 7)));
        assert!(matches!(refused, Err(Refusal::NotAllowed(_))), "{refused:?}");
        assert_eq!(cluster.endpoint().unwrap().address.port(), 7000);
        // The mark of a registration's endpoint is not a proxy's to use.
        let refused = cluster.apply(announce(announcement("envoy-1", 0)));
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{refused:?}");
    }

    #[test]
    fn addresses_that_mean_nothing_are_refused() {
        let mut cluster = Cluster::new();
        for (services, address) in [
            (&[][..], "127.0.0.1:7000"),
            (&["shop/envoy"][..], "0.0.0.0:7000"),
            (&["shop/envoy"][..], "127.0.0.1:0"),
        ] {
            let refused = cluster.register(services, Some(address));
            assert!(matches!(refused, Err(Refusal::Invalid(_))), "{address}: {refused:?}");
        }
        assert!(cluster.state.private.registrations.is_empty());
    }
}
