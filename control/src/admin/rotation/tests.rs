//! What each gate waits for, by what nodes, subscribers and peers say.

use std::time::Duration;

use super::*;
use crate::io::census::{Outgoing, SdsReport};
use crate::state::issuance::{IssuedRecord, IssuedSvid};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn east() -> TrustDomain {
    "east.example".parse().unwrap()
}

fn subscriber(kind: SubscriberKind, name: &str, applied: u64) -> Subscriber {
    Subscriber {
        name: name.parse().unwrap(),
        kind,
        identity: format!("spiffe://east.example/ns/shop/sa/{name}").parse().unwrap(),
        node: "east-1".parse().unwrap(),
        applied,
        closed: BTreeMap::new(),
        connected: true,
        seen: NOW,
        version: String::new(),
        refused: None,
        sds: SdsReport::default(),
        outgoing: BTreeMap::new(),
        proofs: Vec::new(),
        remote: None,
        serial: None,
    }
}

fn part(subscribers: Vec<Subscriber>, trust: NodeTrust) -> BundlePart {
    let nodes = vec![("east-1".parse().unwrap(), trust)];
    BundlePart::new("east".parse().unwrap(), (&east(), true), Some(10), subscribers, nodes, BTreeSet::new())
}

fn in_force() -> NodeTrust {
    NodeTrust { applied: 10, ..NodeTrust::default() }
}

fn rotation(gate: Gate) -> Rotation {
    Rotation {
        id: 5,
        by: String::new(),
        reissue: true,
        gate,
        reached: BTreeMap::from([(Gate::Prepare, NOW)]),
        nodes: BTreeSet::new(),
        old: BTreeSet::from([KeyId([1; 32])]),
        new: BTreeMap::new(),
        revocation: None,
        closing: hanse_identity::Closing::Never,
        aborted: false,
    }
}

/// Who is waited for at that gate.
fn who(state: &State, gate: Gate, parts: &[BundlePart], agents: &[&str]) -> Vec<String> {
    let connected = agents.iter().map(|a| a.parse().unwrap()).collect();
    let waits = waits_for(state, &rotation(gate), parts, &connected, NOW);
    waits.into_iter().map(|w| format!("{} {}", w.cluster, w.who)).collect()
}

fn state() -> State {
    State::founded("east".parse().unwrap(), east(), Vec::new())
}

const AFTER_PREPARE: [Gate; 4] = [Gate::Spread, Gate::Activate, Gate::Drain, Gate::Retire];

#[test]
fn every_gate_waits_for_whoever_does_not_have_the_bundle_in_force() {
    let all = || vec![subscriber(SubscriberKind::Proxy, "reviews-1", 10)];
    let late = part(vec![subscriber(SubscriberKind::Proxy, "reviews-1", 9)], in_force());
    let old_news = part(all(), NodeTrust { applied: 9, ..in_force() });
    let mut silent = part(all(), in_force());
    silent.nodes_silent = vec!["east-3".parse().unwrap()];
    let west = || -> ClusterName { "west".parse().unwrap() };
    let unreachable = BundlePart::unreachable(west(), "refused".to_owned());
    let not_taken = BundlePart { cluster: west(), revision: None, ..part(Vec::new(), in_force()) };
    let good = part(all(), in_force());
    for gate in AFTER_PREPARE {
        assert!(who(&state(), gate, std::slice::from_ref(&good), &[]).is_empty(), "{gate}");
        for (part, waited) in [
            (&late, "east proxy reviews-1"),
            (&old_news, "east node east-1"),
            (&silent, "east node east-3"),
            (&unreachable, "west cluster"),
            (&not_taken, "west cluster"),
        ] {
            assert_eq!(who(&state(), gate, &[good.clone(), part.clone()], &[]), [waited], "{gate}");
        }
    }
}

#[test]
fn from_activation_on_it_waits_for_every_svid_and_node_of_the_old_ones() {
    let mut agent = subscriber(SubscriberKind::Agent, "host-1", 10);
    agent.sds.outgoing = 2;
    let mut proxy = subscriber(SubscriberKind::Proxy, "reviews-1", 10);
    proxy.outgoing.insert(east(), Outgoing { connections: 0, own_svid: true });
    let held = part(vec![agent, proxy], NodeTrust { own_svid: true, ..in_force() });
    assert_eq!(held.svids(), 4);
    let waited = ["east proxy reviews-1", "east agent host-1", "east node east-1"];
    assert!(who(&state(), Gate::Spread, std::slice::from_ref(&held), &["host-1"]).is_empty());
    assert_eq!(who(&state(), Gate::Activate, std::slice::from_ref(&held), &["host-1"]), waited);
    assert_eq!(who(&state(), Gate::Drain, std::slice::from_ref(&held), &["host-1"]), waited);
}

#[test]
fn the_drain_waits_for_every_live_connection_here_and_at_peers() {
    let mut proxy = subscriber(SubscriberKind::Proxy, "reviews-1", 10);
    proxy.outgoing.insert(east(), Outgoing { connections: 3, own_svid: false });
    proxy.outgoing.insert("north.example".parse().unwrap(), Outgoing { connections: 9, own_svid: false });
    let busy = part(vec![proxy.clone()], in_force());
    assert_eq!(busy.connections(), 3, "of other trust domains it is not asked");
    assert!(who(&state(), Gate::Activate, std::slice::from_ref(&busy), &[]).is_empty());
    assert_eq!(who(&state(), Gate::Drain, &[busy], &[]), ["east proxy reviews-1"]);

    let callers = NodeTrust { callers: BTreeMap::from([(east(), 1)]), ..in_force() };
    let west = BundlePart::new(
        "west".parse().unwrap(),
        (&east(), false),
        Some(10),
        vec![proxy],
        vec![("west-1".parse().unwrap(), callers)],
        BTreeSet::new(),
    );
    let waited = who(&state(), Gate::Drain, &[part(Vec::new(), in_force()), west], &[]);
    assert_eq!(waited, ["west proxy reviews-1", "west node west-1"]);
}

#[test]
fn a_host_that_is_not_heard_is_waited_for_as_long_as_its_svids_live() {
    let mut state = state();
    let svid = IssuedSvid {
        serial: hanse_identity::Serial::from_random([1; 16]),
        id: "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap(),
        key: KeyId([7; 32]),
        authority: KeyId([1; 32]),
        agent: "host-1".parse().unwrap(),
        node: "east-1".parse().unwrap(),
        issued: None,
        not_after: NOW + Duration::from_secs(60),
        downstream: false,
    };
    let records = vec![IssuedRecord { svid: svid.into(), granted: 1, handed_out: false }];
    let command = crate::command::Command::Issued { records };
    let (actor, certificate) = (String::new(), None);
    state.apply(2, &crate::command::Proposal { id: 2, actor, certificate, now: NOW, command });
    let good = [part(Vec::new(), in_force())];
    for gate in [Gate::Spread, Gate::Activate, Gate::Drain] {
        assert_eq!(who(&state, gate, &good, &[]), ["east agent host-1"], "{gate}");
        assert!(who(&state, gate, &good, &["host-1"]).is_empty(), "{gate}");
    }
    assert!(who(&state, Gate::Retire, &good, &[]).is_empty());
    let later = NOW + Duration::from_secs(60);
    let waits = waits_for(&state, &rotation(Gate::Drain), &good, &BTreeSet::new(), later);
    assert!(waits.is_empty(), "{waits:?}");
    // Without reissuing, what lives of the old ones is waited for even where it can be asked about.
    let slow = Rotation { reissue: false, ..rotation(Gate::Activate) };
    let connected = BTreeSet::from(["host-1".parse().unwrap()]);
    assert_eq!(waits_for(&state, &slow, &good, &connected, NOW).len(), 1);
    assert!(waits_for(&state, &slow, &good, &connected, later).is_empty());
}

#[test]
fn the_drain_of_a_revoked_authority_waits_for_connections_as_long_as_was_said_and_for_nothing_less() {
    use hanse_identity::Closing;
    let mut proxy = subscriber(SubscriberKind::Proxy, "reviews-1", 10);
    proxy.outgoing.insert(east(), Outgoing { connections: 3, own_svid: false });
    let connected = BTreeSet::new();
    let waits = |closing, later: u64, proxy: &Subscriber| {
        let mut rotation = Rotation { closing, ..rotation(Gate::Drain) };
        rotation.reached.insert(Gate::Drain, NOW);
        let parts = [part(vec![proxy.clone()], in_force())];
        let now = NOW + Duration::from_secs(later);
        waits_for(&state(), &rotation, &parts, &connected, now).len()
    };
    assert_eq!(waits(Closing::Never, 3600, &proxy), 1);
    assert_eq!((waits(Closing::After(30), 29, &proxy), waits(Closing::After(30), 30, &proxy)), (1, 0));
    assert_eq!(waits(Closing::Now, 0, &proxy), 0);
    // Who does not have the bundle in force, or shows an SVID below the authority, is waited for all the same.
    let behind = Subscriber { applied: 9, ..proxy.clone() };
    assert_eq!(waits(Closing::Now, 0, &behind), 1);
    proxy.outgoing.insert(east(), Outgoing { connections: 0, own_svid: true });
    assert_eq!(waits(Closing::Now, 0, &proxy), 1);
}

/// F-1: strangers cannot be asked, so what is new stands in the bundle for a while before it signs.
#[test]
fn f_1_where_strangers_fetch_the_bundle_nothing_new_signs_before_they_had_time_to() {
    let spread = |revocation| {
        let reached = BTreeMap::from([(Gate::Prepare, NOW), (Gate::Spread, NOW)]);
        Rotation { reached, revocation, ..rotation(Gate::Spread) }
    };
    let waits = |rotation: &Rotation, trust: NodeTrust, later: Duration| {
        waits_for(&state(), rotation, &[part(Vec::new(), trust)], &BTreeSet::new(), NOW + later)
    };
    let served = || NodeTrust { bundle_endpoint: true, ..in_force() };
    let just_before = OWN_OVERLAP - Duration::from_secs(1);
    assert!(waits(&spread(None), in_force(), Duration::ZERO).is_empty(), "nobody fetches it");
    let waiting = waits(&spread(None), served(), just_before);
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].who, "foreign trust domains");
    assert!(waiting[0].why.contains(&(NOW + OWN_OVERLAP).to_string()), "{:?}", waiting[0]);
    assert!(waits(&spread(None), served(), OWN_OVERLAP).is_empty());
    assert!(OWN_OVERLAP >= 3 * OWN_REFRESH_HINT, "Federation §4.1");
    // Where somebody else has the key, every minute counts.
    let revocation = hanse_identity::RevocationId { origin: east(), number: 4 };
    assert!(waits(&spread(Some(revocation)), served(), Duration::ZERO).is_empty());
    // What a joined cluster serves is its own bundle.
    let nodes = vec![("west-1".parse().unwrap(), served())];
    let (west, all) = ("west".parse().unwrap(), BTreeSet::new());
    let west = BundlePart::new(west, (&east(), false), Some(10), Vec::new(), nodes, all);
    let parts = [part(Vec::new(), in_force()), west];
    assert!(waits_for(&state(), &spread(None), &parts, &BTreeSet::new(), NOW).is_empty());
}

#[test]
fn a_nested_issuer_is_waited_for_by_name_and_its_agent_is_not() {
    let mut state = state();
    let (host, id): (NodeName, SpiffeId) =
        ("host-1".parse().unwrap(), "spiffe://east.example/ns/edge/sa/issuer".parse().unwrap());
    let by = SpiffeId::member(&east(), hanse_identity::name::MemberRole::Agent, &host);
    let agent = crate::state::AgentRecord::new(host.clone(), by, NOW);
    state.private.agents.insert(host.clone(), agent);
    let selector = "unix:uid:1000".parse().unwrap();
    let registration = hanse_identity::Registration {
        downstream: true,
        ..hanse_identity::Registration::new(id.clone(), host.clone(), [selector])
    };
    let svid = IssuedSvid {
        serial: hanse_identity::Serial::from_random([1; 16]),
        id,
        key: KeyId([7; 32]),
        authority: KeyId([1; 32]),
        agent: host,
        node: "east-1".parse().unwrap(),
        issued: None,
        not_after: NOW + Duration::from_secs(60),
        downstream: true,
    };
    let record = Box::new(IssuedRecord { svid: svid.into(), granted: 1, handed_out: false });
    let commands = [
        crate::command::Command::WorkloadRegister { registration },
        crate::command::Command::DownstreamIssued { record },
    ];
    for (index, command) in (2..).zip(commands) {
        let (actor, certificate) = (String::new(), None);
        let proposal = crate::command::Proposal { id: index, actor, certificate, now: NOW, command };
        state.apply(index, &proposal).0.result.unwrap();
    }
    let good = [part(Vec::new(), in_force())];
    let waited = ["east nested issuer spiffe://east.example/ns/edge/sa/issuer"];
    assert!(who(&state, Gate::Spread, &good, &[]).is_empty());
    assert_eq!(who(&state, Gate::Activate, &good, &[]), waited);
    assert_eq!(who(&state, Gate::Drain, &good, &[]), waited);
    let connected = BTreeSet::new();
    let waits = waits_for(&state, &rotation(Gate::Drain), &good, &connected, NOW);
    assert!(waits[0].why.contains("hanse revoke --serial"), "{}", waits[0].why);
    // Of what is to come, whoever plans a rotation is told the same.
    let planned = nested(&state, NOW);
    assert_eq!(planned.keys().collect::<Vec<_>>(), [&KeyId([1; 32])]);
    assert_eq!(planned[&KeyId([1; 32])][0].spiffe_id.to_string(), "spiffe://east.example/ns/edge/sa/issuer");
    let revoked = Rotation { revocation: Some("r-1@east.example".parse().unwrap()), ..rotation(Gate::Drain) };
    assert!(waits_for(&state, &revoked, &good, &connected, NOW).is_empty());
    let later = NOW + Duration::from_secs(60);
    assert!(waits_for(&state, &rotation(Gate::Drain), &good, &connected, later).is_empty());
    assert!(nested(&state, later).is_empty());
}
