//! Registrations through the log: several hosts, several at once, and their end.

use std::time::Duration;

use hanse_federation::{Revision, View};
use hanse_identity::{NodeName, Selector};

use super::*;
use crate::command::{Command, Proposal};

const NOW: Timestamp = Timestamp(1_000_000);

struct Cluster {
    state: State,
    index: u64,
    now: Timestamp,
}

impl Cluster {
    fn new() -> Self {
        let state = State::founded("east".parse().unwrap(), "east.example".parse().unwrap(), Vec::new());
        Self { state, index: super::super::FOUNDING_INDEX, now: NOW }
    }

    /// Applies, and checks that folding the Changes elsewhere gives the same View.
    fn apply(&mut self, command: Command) -> Result<Answer, Refusal> {
        self.index += 1;
        let mut elsewhere: View = self.state.view.clone();
        let proposal =
            Proposal { id: self.index, actor: String::new(), certificate: None, now: self.now, command };
        let (outcome, changes) = self.state.apply(self.index, &proposal);
        elsewhere.advance(Revision(self.index), &changes);
        assert_eq!(elsewhere, self.state.view);
        outcome.result
    }

    fn keys(&self) -> Vec<&str> {
        self.state.private.registrations.keys().map(String::as_str).collect()
    }

    fn identities(&self, service: &str) -> usize {
        self.state.view.services.get(&service.parse().unwrap()).map_or(0, |s| s.identities.len())
    }
}

fn registration(account: &str, agent: &str, services: &[&str]) -> Registration {
    let agent: AgentScope = agent.parse().unwrap();
    let id = format!("spiffe://east.example/ns/shop/sa/{account}").parse().unwrap();
    Registration {
        services: services.iter().map(|s| s.parse().unwrap()).collect(),
        ..Registration::new(id, agent, [Selector::Uid(1000)])
    }
}

#[test]
fn several_are_registered_together_or_not_at_all() {
    let mut cluster = Cluster::new();
    cluster
        .apply(Command::WorkloadRegister { registration: registration("a", "host-1", &["shop/a"]) })
        .unwrap();
    let before = cluster.state.clone();
    let good = vec![
        registration("a", "host-1", &["shop/b"]),
        registration("b", "host-2", &["shop/b", "shop/c"]),
        registration("c", "*", &[]),
    ];
    for (spoilt, why) in [
        (Registration { ttl_seconds: 5, ..registration("d", "host-1", &[]) }, "10 s to 24 h"),
        (registration("b", "host-2", &[]), "there twice"),
        (Registration { id: "spiffe://west.example/x".parse().unwrap(), ..good[0].clone() }, "west.example"),
    ] {
        let mut all = good.clone();
        all.push(spoilt);
        let refusal = cluster.apply(Command::WorkloadApply { registrations: all }).unwrap_err();
        assert!(refusal.to_string().contains(why), "{refusal}");
        assert_eq!(cluster.state.private.registrations, before.private.registrations);
        assert_eq!(cluster.state.view.services, before.view.services);
    }
    assert_eq!(cluster.apply(Command::WorkloadApply { registrations: good.clone() }), Ok(Answer::Done));
    assert_eq!(cluster.keys().len(), 3);
    assert_eq!(
        (cluster.identities("shop/a"), cluster.identities("shop/b"), cluster.identities("shop/c")),
        (0, 2, 1)
    );
    assert_eq!(cluster.apply(Command::WorkloadApply { registrations: good }), Ok(Answer::Already));
    let many = (0..=MAX_REGISTRATIONS_AT_ONCE).map(|n| registration(&format!("n-{n}"), "*", &[])).collect();
    let refusal = cluster.apply(Command::WorkloadApply { registrations: many }).unwrap_err();
    assert!(matches!(refusal, Refusal::Limit(_)), "{refusal}");
}

#[test]
fn a_registration_for_every_agent_is_one_entry_and_has_no_address() {
    let mut cluster = Cluster::new();
    let everywhere = registration("a", "*", &["shop/a"]);
    cluster.apply(Command::WorkloadRegister { registration: everywhere.clone() }).unwrap();
    assert_eq!(cluster.keys(), ["spiffe://east.example/ns/shop/sa/a *"]);
    let id = everywhere.id.clone();
    assert_eq!(cluster.state.registrations_of(&id).count(), 1);
    let agent: NodeName = "host-7".parse().unwrap();
    assert!(everywhere.agent.covers(&agent));
    let addressed = Registration { address: Some("10.0.0.1:80".parse().unwrap()), ..everywhere };
    let refusal = cluster.apply(Command::WorkloadRegister { registration: addressed }).unwrap_err();
    assert!(refusal.to_string().contains("every agent"), "{refusal}");
    cluster.apply(Command::WorkloadDelete { id, agent: AgentScope::Any }).unwrap();
    assert!(cluster.keys().is_empty());
    assert_eq!(cluster.identities("shop/a"), 0);
}

#[test]
fn registrations_lapse_when_their_end_has_come_and_not_before() {
    let mut cluster = Cluster::new();
    let short =
        Registration { expires: Some(NOW + Duration::from_secs(60)), ..registration("a", "*", &["shop/a"]) };
    let long =
        Registration { expires: Some(NOW + Duration::from_secs(600)), ..registration("b", "*", &["shop/a"]) };
    let for_ever = registration("c", "*", &["shop/a"]);
    let all = vec![short.clone(), long, for_ever];
    cluster.apply(Command::WorkloadApply { registrations: all }).unwrap();
    assert!(cluster.state.lapsed_registrations(NOW + Duration::from_secs(59)).is_empty());
    let keys: Vec<_> =
        cluster.state.private.registrations.values().map(|r| (r.id.clone(), r.agent.clone())).collect();
    cluster.now = NOW + Duration::from_secs(59);
    cluster.apply(Command::WorkloadLapse { keys: keys.clone() }).unwrap();
    assert_eq!(cluster.keys().len(), 3, "whoever proposes it, the entries say when");
    cluster.now = NOW + Duration::from_secs(60);
    assert_eq!(cluster.state.lapsed_registrations(cluster.now), [(short.id, AgentScope::Any)]);
    cluster.apply(Command::WorkloadLapse { keys }).unwrap();
    assert_eq!(cluster.keys().len(), 2);
    assert_eq!(cluster.identities("shop/a"), 2);
}
