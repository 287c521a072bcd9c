//! Rotations step by step: what each gate demands of the State, and taking back at every one of them.

use std::time::Duration;

use hanse_federation::View;
use hanse_identity::{Authority, Crl, Reason, RevocationTarget, Serial};

use super::*;
use crate::command::Command;
use crate::state::issuance::{IssuedRecord, IssuedSvid};
use crate::state::{AgentRecord, NodeRecord};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

struct Cluster {
    state: State,
    index: u64,
    now: Timestamp,
    old: BTreeMap<NodeName, Authority>,
}

fn make(node: &NodeName) -> Authority {
    let key = rcgen::KeyPair::generate().unwrap();
    let number = node.as_str().bytes().last().unwrap();
    let serial = Serial::from_random([number; 16]);
    Authority::create(&"east.example".parse().unwrap(), node, key, serial, NOW, YEAR).unwrap()
}

fn node(number: u8) -> NodeName {
    format!("east-{number}").parse().unwrap()
}

impl Cluster {
    fn new() -> Self {
        let old: BTreeMap<NodeName, Authority> = (1..=3).map(|n| (node(n), make(&node(n)))).collect();
        let records = (1..=3).map(|n| NodeRecord {
            raft_id: u64::from(n),
            name: node(n),
            address: format!("127.0.0.1:{n}"),
            peer_address: format!("127.0.0.1:{n}"),
            authority: old[&node(n)].certificate().clone(),
            intermediate: None,
        });
        let (cluster, own) = ("east".parse().unwrap(), "east.example".parse().unwrap());
        let mut state = State::founded(cluster, own, records.collect());
        let name: NodeName = "host-1".parse().unwrap();
        let id = SpiffeId::member(&state.view.trust_domain, MemberRole::Agent, &name);
        state.private.agents.insert(name.clone(), AgentRecord::new(name, id, NOW));
        Self { state, index: 10, now: NOW, old }
    }

    /// Applies; folding the Changes elsewhere gives the same View, and writing it the same State.
    fn apply(&mut self, command: Command) -> Result<Answer, Refusal> {
        self.index += 1;
        let mut elsewhere: View = self.state.view.clone();
        let (actor, certificate) = (String::new(), None);
        let proposal = Proposal { id: self.index, actor, certificate, now: self.now, command };
        let (outcome, changes) = self.state.apply(self.index, &proposal);
        elsewhere.advance(hanse_federation::Revision(self.index), &changes);
        assert_eq!(elsewhere, self.state.view);
        let written = crate::state::snapshot::encode(&self.state);
        assert_eq!(crate::state::snapshot::decode(&written).unwrap(), self.state);
        outcome.result
    }

    fn done(&mut self, command: Command) {
        assert_eq!(self.apply(command), Ok(Answer::Done));
    }

    fn refused(&mut self, command: Command) -> String {
        let before = (self.state.private.rotation.clone(), self.state.view.bundles.clone());
        let refusal = self.apply(command).unwrap_err();
        assert_eq!(before, (self.state.private.rotation.clone(), self.state.view.bundles.clone()));
        refusal.to_string()
    }

    fn begin(&mut self, reissue: bool) -> u64 {
        self.done(Command::RotateBegin { authority: None, reissue });
        self.index
    }

    fn step(&mut self, to: Gate) -> Result<Answer, Refusal> {
        let id = self.rotation().id;
        self.apply(Command::RotateStep { id, to })
    }

    fn rotation(&self) -> &Rotation {
        self.state.private.rotation.as_ref().unwrap()
    }

    fn publish(&mut self, authority: &Authority, node: &NodeName) -> Result<Answer, Refusal> {
        let certificate =
            AuthorityCertificate { state: AuthorityState::Prepared, ..authority.certificate().clone() };
        self.apply(Command::AuthorityPublish { node: node.clone(), certificate, rotation: None })
    }

    /// All nodes do what they must until the rotation has come to `gate`.
    fn until(&mut self, gate: Gate) -> BTreeMap<NodeName, Authority> {
        let new: BTreeMap<NodeName, Authority> =
            self.state.unprepared(self.rotation()).map(|n| (n.clone(), make(n))).collect();
        for (node, authority) in &new {
            assert_eq!(self.publish(authority, node), Ok(Answer::Done));
            let crl = Crl::sign(authority, 1, &BTreeMap::new(), NOW).unwrap();
            self.done(Command::CrlPublish { crl });
        }
        for next in Gate::ALL.into_iter().chain([Gate::Done]).skip(1).filter(|next| *next <= gate) {
            assert_eq!(self.step(next), Ok(Answer::Done), "to {next}");
        }
        new
    }

    fn states(&self, of: &BTreeMap<NodeName, Authority>) -> Vec<Option<AuthorityState>> {
        let bundle = &self.state.view.bundles[&self.state.view.trust_domain];
        let state = |a: &Authority| {
            let found = bundle.authorities.iter().find(|b| b.key_id == a.certificate().key_id);
            found.map(|b| b.state)
        };
        of.values().map(state).collect()
    }

    fn old_states(&self) -> Vec<Option<AuthorityState>> {
        self.states(&self.old)
    }

    fn issued(&mut self, serial: u8, authority: &KeyId, handed_out: bool) -> BTreeSet<Serial> {
        let svid = IssuedSvid {
            serial: Serial::from_random([serial; 16]),
            id: "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap(),
            key: KeyId([serial; 32]),
            authority: *authority,
            agent: "host-1".parse().unwrap(),
            node: node(1),
            issued: Some(self.now),
            not_after: self.now + HOUR,
            downstream: false,
        };
        let record = IssuedRecord { svid: svid.into(), granted: self.state.view.revision.0, handed_out };
        match self.apply(Command::Issued { records: vec![record] }) {
            Ok(Answer::Issued { refused }) => refused,
            other => panic!("{other:?}"),
        }
    }
}

use AuthorityState::{Active, Prepared, Tainted};

#[test]
fn five_gates_replace_every_authority() {
    let mut east = Cluster::new();
    let id = east.begin(true);
    assert_eq!(east.rotation().id, id);
    assert!(east.refused(Command::RotateBegin { authority: None, reissue: true }).contains("runs"));
    assert!(east.rotation().wants(&node(2)));
    assert!(east.step(Gate::Spread).unwrap_err().to_string().contains("east-1 has not made"));
    assert!(east.step(Gate::Activate).unwrap_err().to_string().contains("spread comes before"));

    let new = east.until(Gate::Spread);
    assert_eq!(east.states(&new), [Some(Prepared); 3]);
    assert_eq!(east.old_states(), [Some(Active); 3]);
    assert_eq!(east.step(Gate::Activate), Ok(Answer::Done));
    assert_eq!((east.states(&new), east.old_states()), (vec![Some(Active); 3], vec![Some(Tainted); 3]));
    assert_eq!(east.step(Gate::Drain), Ok(Answer::Done));
    assert_eq!(east.step(Gate::Retire), Ok(Answer::Done));
    assert_eq!((east.states(&new), east.old_states()), (vec![Some(Active); 3], vec![None; 3]));
    assert_eq!(east.step(Gate::Done), Ok(Answer::Done));
    assert!(east.state.rotating().is_none());
    let reached: Vec<Gate> = east.rotation().reached.keys().copied().collect();
    assert_eq!(reached, Gate::ALL.into_iter().chain([Gate::Done]).collect::<Vec<_>>());
    east.begin(false);
}

#[test]
fn a_step_that_is_proposed_twice_or_for_another_rotation_changes_nothing() {
    let mut east = Cluster::new();
    let first = east.begin(true);
    east.until(Gate::Activate);
    let before = east.state.view.bundles.clone();
    // As by a leader that was deposed after it had proposed.
    for to in [Gate::Prepare, Gate::Spread, Gate::Activate] {
        assert_eq!(east.step(to), Ok(Answer::Already));
    }
    assert_eq!(east.state.view.bundles, before);
    for to in [Gate::Drain, Gate::Retire, Gate::Done] {
        assert_eq!(east.step(to), Ok(Answer::Done));
    }
    assert_eq!(east.step(Gate::Done), Ok(Answer::Already));
    east.begin(true);
    assert!(east.refused(Command::RotateStep { id: first, to: Gate::Spread }).contains("does not exist"));
}

#[test]
fn only_a_node_that_is_asked_may_prepare_and_only_its_own() {
    let mut east = Cluster::new();
    east.begin(true);
    let own = make(&node(1));
    let other = make(&node(2));
    assert!(east.publish(&other, &node(1)).unwrap_err().to_string().contains("not that of an authority"));
    let false_word = AuthorityCertificate { state: Prepared, not_after: NOW, ..own.certificate().clone() };
    east.refused(Command::AuthorityPublish { node: node(1), certificate: false_word, rotation: None });
    assert_eq!(east.publish(&own, &node(1)), Ok(Answer::Done));
    assert_eq!(east.publish(&own, &node(1)), Ok(Answer::Already));
    let second = make(&node(1));
    assert!(east.publish(&second, &node(1)).unwrap_err().to_string().contains("is wanted"));
}

#[test]
fn nothing_signs_before_it_has_a_revocation_list() {
    let mut east = Cluster::new();
    east.begin(true);
    for n in 1..=3 {
        let authority = make(&node(n));
        assert_eq!(east.publish(&authority, &node(n)), Ok(Answer::Done));
        if n != 2 {
            let crl = Crl::sign(&authority, 1, &BTreeMap::new(), NOW).unwrap();
            east.done(Command::CrlPublish { crl });
        }
    }
    assert_eq!(east.step(Gate::Spread), Ok(Answer::Done));
    assert!(
        east.step(Gate::Activate)
            .unwrap_err()
            .to_string()
            .contains("east-2 has published no revocation list")
    );
}

#[test]
fn taken_back_before_anything_was_signed_the_prepared_are_dropped() {
    for gate in [Gate::Prepare, Gate::Spread] {
        let mut east = Cluster::new();
        east.begin(true);
        let new = east.until(gate);
        let aborted = east.rotation().id;
        east.done(Command::RotateAbort {});
        assert_eq!(
            (east.states(&new), east.old_states()),
            (vec![None; 3], vec![Some(Active); 3]),
            "at {gate}"
        );
        assert!(east.rotation().aborted && !east.rotation().is_running());
        assert!(east.refused(Command::RotateAbort {}).contains("no rotation runs"));
        // What the old ones sign goes on to be taken.
        let key = east.old[&node(1)].certificate().key_id;
        assert!(east.issued(1, &key, false).is_empty());
        let next = east.begin(true);
        // What was still under way for the first comes now; its key has been forgotten.
        let late = make(&node(1));
        let certificate =
            AuthorityCertificate { state: AuthorityState::Prepared, ..late.certificate().clone() };
        let publish = |rotation| Command::AuthorityPublish {
            node: node(1),
            certificate: certificate.clone(),
            rotation: Some(rotation),
        };
        assert!(east.refused(publish(aborted)).contains("is over"));
        east.done(publish(next));
    }
}

#[test]
fn taken_back_after_that_it_turns_round_and_goes_through_the_gates_again() {
    for gate in [Gate::Activate, Gate::Drain] {
        let mut east = Cluster::new();
        east.begin(false);
        let new = east.until(gate);
        east.done(Command::RotateAbort {});
        assert_eq!(east.apply(Command::RotateAbort {}), Ok(Answer::Already));
        assert_eq!(east.rotation().gate, Gate::Activate, "from {gate}");
        assert_eq!((east.states(&new), east.old_states()), (vec![Some(Tainted); 3], vec![Some(Active); 3]));
        assert!(east.rotation().reissue && east.rotation().is_running());
        let back: BTreeSet<KeyId> = east.old.values().map(|a| a.certificate().key_id).collect();
        assert_eq!(east.rotation().new.values().copied().collect::<BTreeSet<_>>(), back);
        // Neither side is left yet.
        for key in back.iter().chain(&east.rotation().old.clone()) {
            assert!(!east.rotation().is_left(key));
        }
        for to in [Gate::Drain, Gate::Retire, Gate::Done] {
            assert_eq!(east.step(to), Ok(Answer::Done));
        }
        assert_eq!((east.states(&new), east.old_states()), (vec![None; 3], vec![Some(Active); 3]));
    }
}

#[test]
fn what_is_retired_is_not_taken_back() {
    for gate in [Gate::Retire, Gate::Done] {
        let mut east = Cluster::new();
        east.begin(true);
        east.until(gate);
        let why = east.refused(Command::RotateAbort {});
        assert!(why.contains("taken out") || why.contains("no rotation runs"), "{why}");
    }
}

#[test]
fn without_reissuing_the_drain_waits_for_the_last_svid_of_the_old_ones() {
    let mut east = Cluster::new();
    let key = east.old[&node(1)].certificate().key_id;
    assert!(east.issued(1, &key, false).is_empty());
    east.begin(false);
    let new = east.until(Gate::Activate);
    assert_eq!(east.old_states(), [Some(Active); 3], "they are believed, and nobody hurries");
    assert!(east.step(Gate::Drain).unwrap_err().to_string().contains("lives until"));
    east.now = NOW + HOUR;
    assert_eq!(east.step(Gate::Drain), Ok(Answer::Done));
    assert_eq!((east.states(&new), east.old_states()), (vec![Some(Active); 3], vec![Some(Tainted); 3]));
}

#[test]
fn an_svid_of_an_old_authority_that_comes_too_late_is_not_handed_out() {
    let mut east = Cluster::new();
    let key = east.old[&node(1)].certificate().key_id;
    east.begin(true);
    let new = east.until(Gate::Activate);
    assert!(east.issued(1, &key, false).is_empty(), "a node that is behind still may");
    assert_eq!(east.step(Gate::Drain), Ok(Answer::Done));
    assert_eq!(east.issued(2, &key, false).len(), 1);
    assert!(east.issued(3, &key, true).is_empty(), "it has been handed out already");
    assert!(east.issued(4, &new[&node(1)].certificate().key_id, false).is_empty());
    assert_eq!(east.state.unmoved(east.rotation(), east.now).count(), 2);
}

#[test]
fn one_authority_alone_may_be_replaced_and_that_of_a_revoked_node_dropped() {
    let mut east = Cluster::new();
    let target = RevocationTarget::Node(node(3));
    let (note, expires, reason) = (String::new(), None, Reason::KeyCompromise);
    let (reissue, closing) = (false, hanse_identity::Closing::Now);
    let revoke = Command::Revoke { target, reason, note, expires, reissue, closing };
    assert!(matches!(east.apply(revoke), Ok(Answer::Revoked(_))));
    let key = |east: &Cluster, n| east.old[&node(n)].certificate().key_id;
    let (theirs, mine) = (key(&east, 3), key(&east, 1));
    east.done(Command::RotateBegin { authority: Some(theirs), reissue: true });
    assert!(east.rotation().nodes.is_empty(), "who is revoked makes no other");
    east.until(Gate::Done);
    assert_eq!(east.old_states(), [Some(Active), Some(Active), None]);
    east.done(Command::RotateBegin { authority: Some(mine), reissue: true });
    let new = east.until(Gate::Done);
    assert_eq!(new.len(), 1);
    assert_eq!(east.old_states(), [None, Some(Active), None]);
    assert!(
        east.refused(Command::RotateBegin { authority: Some(mine), reissue: true })
            .contains("does not exist")
    );
}

/// A control node is put on hold, or revoked for good.
fn revoke_node(east: &mut Cluster, n: u8, reason: Reason) -> hanse_identity::RevocationId {
    let (target, closing) = (RevocationTarget::Node(node(n)), Closing::Now);
    let (note, expires) = (String::new(), None);
    let command = Command::Revoke { target, reason, note, expires, reissue: false, closing };
    match east.apply(command) {
        Ok(Answer::Revoked(id)) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_on_hold_keeps_its_authority_through_a_rotation_and_signs_again_when_it_is_lifted() {
    // On hold before it begins, or while it runs.
    for held_at in [None, Some(Gate::Prepare)] {
        let mut east = Cluster::new();
        let key = east.old[&node(3)].certificate().key_id;
        let held = held_at.is_none().then(|| revoke_node(&mut east, 3, Reason::Hold));
        east.begin(true);
        let held = held.unwrap_or_else(|| revoke_node(&mut east, 3, Reason::Hold));
        let new = east.until(Gate::Retire);
        assert!(!new.contains_key(&node(3)), "who is on hold makes no other");
        assert_eq!(east.old_states(), [None, None, Some(Active)], "{held_at:?}");
        let late = make(&node(3));
        assert!(east.publish(&late, &node(3)).is_err(), "nor after it");
        east.step(Gate::Done).unwrap();
        assert_eq!(east.issued(1, &key, false).len(), 1, "while it is on hold nothing of it is taken");
        assert!(
            east.refused(Command::RotateBegin { authority: Some(key), reissue: true }).contains("is on hold")
        );
        let target = RevocationTarget::Authority(key);
        let (note, expires, reason) = (String::new(), None, Reason::KeyCompromise);
        let closing = Closing::Now;
        let authority = Command::Revoke { target, reason, note, expires, reissue: false, closing };
        assert!(east.refused(authority).contains("is on hold"));
        east.done(Command::Lift { id: held });
        assert!(east.issued(2, &key, false).is_empty(), "it signs again");
    }
    // Revoked for good, it leaves nothing behind.
    let mut east = Cluster::new();
    revoke_node(&mut east, 3, Reason::KeyCompromise);
    east.begin(true);
    east.until(Gate::Done);
    assert_eq!(east.old_states(), [None; 3]);
}

#[test]
fn a_rotation_does_not_wait_for_the_list_of_a_node_that_was_revoked_meanwhile() {
    let mut east = Cluster::new();
    east.begin(true);
    let theirs = make(&node(3));
    assert_eq!(east.publish(&theirs, &node(3)), Ok(Answer::Done));
    let id = revoke_node(&mut east, 3, Reason::KeyCompromise);
    let revocation = east.state.view.revocations.get(&id).unwrap();
    assert!(revocation.authorities.contains(&theirs.certificate().key_id), "the new one too");
    assert_eq!(east.until(Gate::Done).len(), 2);
    assert_eq!(east.old_states(), [None; 3]);
}

/// The order to revoke the authority of a node, as the cluster was founded.
fn revoke_authority(east: &Cluster, n: u8) -> Command {
    let target = RevocationTarget::Authority(east.old[&node(n)].certificate().key_id);
    let (note, expires, reason) = (String::new(), None, Reason::KeyCompromise);
    Command::Revoke { target, reason, note, expires, reissue: false, closing: Closing::Now }
}

#[test]
fn a_revoked_authority_is_replaced_then_hit_and_never_comes_back() {
    let mut east = Cluster::new();
    let key = east.old[&node(1)].certificate().key_id;
    assert!(east.issued(1, &key, false).is_empty());
    let command = revoke_authority(&east, 1);
    let Ok(Answer::Revoked(id)) = east.apply(command.clone()) else { panic!("not revoked") };
    let entry = |east: &Cluster| east.state.view.revocations.get(&id).unwrap().clone();
    let own = east.state.view.trust_domain.clone();
    assert_eq!((id.number, east.rotation().id), (east.index, east.index));
    assert_eq!(east.rotation().nodes, BTreeSet::from([node(1)]));
    assert!(entry(&east).authorities.is_empty());
    let ends = east.old[&node(1)].certificate().not_after;
    assert!(entry(&east).expires.is_some_and(|at| at > ends), "it lapses with what it hits");
    assert_eq!(east.apply(command), Ok(Answer::Revoked(id.clone())), "the same again");
    let other = revoke_authority(&east, 2);
    assert!(east.refused(other).contains("runs and is at prepare"));
    assert!(east.refused(Command::RotateAbort {}).contains("clear that first"));
    // Nothing is hit before there is something in its place.
    let new = east.until(Gate::Spread);
    assert!(east.issued(2, &key, false).is_empty());
    assert!(east.state.view.revocations.of_authority(&own, key).is_none());
    assert_eq!(east.step(Gate::Activate), Ok(Answer::Done));
    assert_eq!((east.states(&new), east.old_states()[0]), (vec![Some(Active)], Some(Tainted)));
    assert_eq!(east.issued(3, &key, false).len(), 1, "from here it signs nothing that is handed out");
    let taken_back = east.old[&node(1)].certificate().clone();
    let publish = |certificate: &AuthorityCertificate| Command::AuthorityPublish {
        node: node(1),
        certificate: certificate.clone(),
        rotation: None,
    };
    assert!(east.refused(publish(&taken_back)).contains("is revoked by"), "not even to be active again");
    assert_eq!(east.step(Gate::Drain), Ok(Answer::Done));
    assert_eq!(east.step(Gate::Retire), Ok(Answer::Done));
    assert_eq!(entry(&east).authorities, BTreeSet::from([key]));
    assert_eq!(east.state.view.revocations.of_authority(&own, key).unwrap().id, id);
    assert_eq!(east.old_states(), [None, Some(Active), Some(Active)]);
    assert_eq!(east.step(Gate::Done), Ok(Answer::Done));
    assert!(east.refused(publish(&taken_back)).contains("is revoked by"));
    let command = revoke_authority(&east, 1);
    assert!(east.refused(command).contains("does not exist"));
    let command = revoke_authority(&east, 2);
    assert!(matches!(east.apply(command), Ok(Answer::Revoked(_))), "the next one");
}

#[test]
fn a_revocation_of_an_authority_that_was_a_mistake_is_cleared_and_then_taken_back() {
    for gate in [Gate::Spread, Gate::Activate, Gate::Drain] {
        let mut east = Cluster::new();
        let command = revoke_authority(&east, 1);
        let Ok(Answer::Revoked(id)) = east.apply(command) else { panic!("not revoked") };
        let new = east.until(gate);
        east.done(Command::RevocationsClear { ids: vec![id], compromised: true });
        east.done(Command::RotateAbort {});
        if east.rotation().is_running() {
            for to in [Gate::Drain, Gate::Retire, Gate::Done] {
                assert_eq!(east.step(to), Ok(Answer::Done));
            }
        }
        assert_eq!((east.states(&new), east.old_states()), (vec![None], vec![Some(Active); 3]), "at {gate}");
        assert!(east.state.view.revocations.is_empty());
    }
}

#[test]
fn an_authority_is_not_put_on_hold_and_none_below_a_root_of_ones_own_is_revoked() {
    let mut east = Cluster::new();
    let Command::Revoke { target, note, expires, reissue, closing, .. } = revoke_authority(&east, 1) else {
        panic!("another command")
    };
    let hold = Command::Revoke { target, reason: Reason::Hold, note, expires, reissue, closing };
    assert!(east.refused(hold).contains("for good"));
    let below = hanse_identity::Intermediate { der: vec![1], key_id: KeyId([9; 32]), not_after: NOW + YEAR };
    east.state.private.nodes.values_mut().for_each(|n| n.intermediate = Some(below.clone()));
    let command = revoke_authority(&east, 1);
    assert!(east.refused(command).contains("root of your own"));
    assert!(east.state.view.revocations.is_empty(), "what is refused changes nothing");
}

#[test]
fn a_full_bundle_or_a_root_of_ones_own_is_a_reason_to_refuse() {
    let mut east = Cluster::new();
    let full = (0..MAX_AUTHORITIES as u8 - 5).map(|n| AuthorityCertificate {
        der: vec![n],
        key_id: KeyId([n; 32]),
        subject: format!("CN=stranger-{n} 00"),
        not_after: NOW + YEAR,
        state: Active,
    });
    for certificate in full {
        east.done(Command::AuthorityPublish { node: node(1), certificate, rotation: None });
    }
    assert!(east.refused(Command::RotateBegin { authority: None, reissue: true }).contains("64 authorities"));

    let mut east = Cluster::new();
    let below = hanse_identity::Intermediate { der: vec![1], key_id: KeyId([9; 32]), not_after: NOW + YEAR };
    east.state.private.nodes.values_mut().for_each(|n| n.intermediate = Some(below.clone()));
    assert!(
        east.refused(Command::RotateBegin { authority: None, reissue: true }).contains("root of your own")
    );
}

/// An intermediate of that authority, held by a workload that is registered for it.
fn nested(east: &mut Cluster, serial: u8, authority: &KeyId) {
    let id: SpiffeId = "spiffe://east.example/ns/edge/sa/issuer".parse().unwrap();
    let host: NodeName = "host-1".parse().unwrap();
    let selector = "unix:uid:1000".parse().unwrap();
    let registration = hanse_identity::Registration {
        downstream: true,
        ..hanse_identity::Registration::new(id.clone(), host.clone(), [selector])
    };
    // The same again is the same.
    assert!(east.apply(Command::WorkloadRegister { registration }).is_ok());
    let svid = IssuedSvid {
        serial: Serial::from_random([serial; 16]),
        id,
        key: KeyId([serial; 32]),
        authority: *authority,
        agent: host,
        node: node(1),
        issued: Some(east.now),
        not_after: east.now + HOUR,
        downstream: true,
    };
    let record =
        Box::new(IssuedRecord { svid: svid.into(), granted: east.state.view.revision.0, handed_out: false });
    east.done(Command::DownstreamIssued { record });
}

#[test]
fn the_drain_waits_for_every_intermediate_of_an_old_authority_until_it_has_ended_or_is_revoked() {
    for reissue in [true, false] {
        let mut east = Cluster::new();
        let key = east.old[&node(1)].certificate().key_id;
        nested(&mut east, 1, &key);
        east.begin(reissue);
        let new = east.until(Gate::Activate);
        let refusal = east.step(Gate::Drain).unwrap_err().to_string();
        assert!(refusal.contains("/ns/edge/sa/issuer") && refusal.contains("lives until"), "{refusal}");
        assert_eq!(east.state.nested(east.rotation(), east.now).count(), 1);
        // What its holder is given meanwhile is of a new one, and is not waited for.
        nested(&mut east, 2, &new[&node(1)].certificate().key_id);
        assert_eq!(east.state.nested(east.rotation(), east.now).count(), 1);
        if reissue {
            let target = RevocationTarget::Serial(Serial::from_random([1; 16]));
            let (note, expires, reason) = (String::new(), None, Reason::Superseded);
            let (reissue, closing) = (false, Closing::Now);
            let revoke = Command::Revoke { target, reason, note, expires, reissue, closing };
            assert!(matches!(east.apply(revoke), Ok(Answer::Revoked(_))));
        } else {
            east.now = NOW + HOUR;
        }
        assert_eq!(east.step(Gate::Drain), Ok(Answer::Done));
        assert_eq!(east.step(Gate::Retire), Ok(Answer::Done));
    }
}

#[test]
fn taken_back_with_an_intermediate_of_either_side_it_waits_for_those_of_the_new_ones() {
    let mut east = Cluster::new();
    let key = east.old[&node(1)].certificate().key_id;
    nested(&mut east, 1, &key);
    east.begin(true);
    let new = east.until(Gate::Activate);
    east.done(Command::RotateAbort {});
    assert_eq!(east.state.nested(east.rotation(), east.now).count(), 0, "the old ones stay");
    nested(&mut east, 2, &new[&node(1)].certificate().key_id);
    assert!(east.step(Gate::Drain).is_err());
    east.now = NOW + HOUR;
    assert_eq!(east.step(Gate::Drain), Ok(Answer::Done));
}

#[test]
fn a_revoked_authority_takes_its_intermediates_along_and_signs_no_more_of_them() {
    let mut east = Cluster::new();
    let key = east.old[&node(1)].certificate().key_id;
    nested(&mut east, 1, &key);
    let command = revoke_authority(&east, 1);
    let Ok(Answer::Revoked(id)) = east.apply(command) else { panic!("it is not revoked") };
    let named = |east: &Cluster| {
        let revocation = east.state.view.revocations.get(&id).unwrap();
        east.state.downstream_hit(revocation, NOW).count()
    };
    assert_eq!(named(&east), 1, "it says from the start whom it will hit");
    east.until(Gate::Done);
    assert_eq!(named(&east), 1);
    let svid = IssuedSvid {
        serial: Serial::from_random([9; 16]),
        ..east.state.private.issued.downstream(NOW).next().unwrap().clone()
    };
    let record =
        Box::new(IssuedRecord { svid: svid.into(), granted: east.state.view.revision.0, handed_out: false });
    assert!(east.refused(Command::DownstreamIssued { record }).contains("revoked"));
}
