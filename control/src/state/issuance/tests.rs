//! Tests of the issuance index and of what revocations take from it.

use hanse_federation::View;
use hanse_identity::{Closing, Reason};

use super::*;
use crate::command::{Command, Proposal};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const REVIEWS: &str = "spiffe://east.example/ns/shop/sa/reviews";
const RATINGS: &str = "spiffe://east.example/ns/shop/sa/ratings";

struct Cluster {
    state: State,
    index: u64,
    now: Timestamp,
}

impl Cluster {
    fn new() -> Self {
        let authority = |n: u8| hanse_identity::AuthorityCertificate {
            der: vec![n],
            key_id: KeyId([n; 32]),
            subject: format!("CN=east-{n} 00,O=east.example"),
            not_after: NOW + 24 * HOUR,
            state: hanse_identity::AuthorityState::Active,
        };
        let node = |n: u8| crate::state::NodeRecord {
            raft_id: u64::from(n),
            name: format!("east-{n}").parse().unwrap(),
            address: format!("127.0.0.1:{n}"),
            peer_address: format!("127.0.0.1:{n}"),
            authority: authority(n),
            intermediate: None,
        };
        let nodes = (1..=3).map(node).collect();
        let mut state = State::founded("east".parse().unwrap(), "east.example".parse().unwrap(), nodes);
        for host in ["host-1", "host-2"] {
            let name: NodeName = host.parse().unwrap();
            let id = SpiffeId::member(&state.view.trust_domain, MemberRole::Agent, &name);
            let record = crate::state::AgentRecord::new(name.clone(), id, NOW);
            state.private.agents.insert(name, record);
        }
        Self { state, index: 10, now: NOW }
    }

    /// Applies, and checks that folding the Changes elsewhere gives the same View, and writing the same State.
    fn apply(&mut self, command: Command) -> Result<Answer, Refusal> {
        self.index += 1;
        let mut elsewhere: View = self.state.view.clone();
        let proposal =
            Proposal { id: self.index, actor: String::new(), certificate: None, now: self.now, command };
        let (outcome, changes) = self.state.apply(self.index, &proposal);
        elsewhere.advance(hanse_federation::Revision(self.index), &changes);
        assert_eq!(elsewhere, self.state.view);
        let written = crate::state::snapshot::encode(&self.state);
        assert_eq!(crate::state::snapshot::decode(&written).unwrap(), self.state);
        outcome.result
    }

    /// Answers the serial numbers that were refused.
    fn issue(&mut self, records: Vec<IssuedRecord>) -> Vec<u8> {
        let Answer::Issued { refused } = self.apply(Command::Issued { records }).unwrap() else { panic!() };
        refused.into_iter().map(|s| s.as_bytes()[0]).collect()
    }

    fn revoke(&mut self, target: RevocationTarget, reason: Reason, reissue: bool) -> Revocation {
        let (note, closing) = (String::new(), Closing::Now);
        let answer = self.apply(Command::Revoke { target, reason, note, expires: None, reissue, closing });
        let Ok(Answer::Revoked(id)) = answer else { panic!("{answer:?}") };
        self.state.view.revocations.get(&id).unwrap().clone()
    }

    /// Granted in the State as it is now.
    fn record(&self, number: u8, id: &str, host: &str) -> IssuedRecord {
        let svid = IssuedSvid {
            serial: serial(number),
            id: id.parse().unwrap(),
            key: KeyId([number; 32]),
            authority: KeyId([1; 32]),
            agent: host.parse().unwrap(),
            node: "east-1".parse().unwrap(),
            issued: Some(self.now),
            not_after: self.now + HOUR,
            downstream: false,
        };
        IssuedRecord { svid: svid.into(), granted: self.state.view.revision.0, handed_out: false }
    }
}

fn serial(number: u8) -> Serial {
    Serial::new(&[number]).unwrap()
}

fn serials(revocation: &Revocation) -> Vec<u8> {
    revocation.serials.iter().map(|s| s.as_bytes()[0]).collect()
}

fn agent(name: &str) -> RevocationTarget {
    RevocationTarget::Agent(name.parse().unwrap())
}

fn identity(id: &str) -> RevocationTarget {
    RevocationTarget::Identity(id.parse().unwrap())
}

#[test]
fn a_revocation_takes_in_what_lives() {
    let mut cluster = Cluster::new();
    let records = vec![
        cluster.record(1, REVIEWS, "host-1"),
        cluster.record(2, REVIEWS, "host-2"),
        cluster.record(3, RATINGS, "host-1"),
    ];
    assert_eq!(cluster.issue(records), [0u8; 0]);
    assert_eq!(serials(&cluster.revoke(identity(REVIEWS), Reason::Hold, false)), [1, 2]);
    let of_host = cluster.revoke(agent("host-1"), Reason::KeyCompromise, false);
    assert_eq!(serials(&of_host), [1, 3]);
    assert_eq!(of_host.expires, None);
    assert_eq!(cluster.state.live_certificates(&of_host, NOW), 2);
    let of_key = cluster.revoke(RevocationTarget::Key(KeyId([3; 32])), Reason::KeyCompromise, false);
    assert_eq!(serials(&of_key), [3]);
    assert!(of_key.expires.unwrap() > NOW + HOUR + hanse_identity::grant::MAX_LIFETIME);
    let node = RevocationTarget::Node("east-1".parse().unwrap());
    let of_node = cluster.revoke(node, Reason::KeyCompromise, false);
    assert_eq!(of_node.authorities, [KeyId([1; 32])].into());
    assert_eq!(cluster.state.live_certificates(&of_node, NOW), 3);
}

#[test]
fn what_was_granted_before_a_revocation_and_recorded_after_it_is_refused() {
    let mut cluster = Cluster::new();
    let early = [
        cluster.record(1, REVIEWS, "host-1"),
        cluster.record(2, RATINGS, "host-2"),
        cluster.record(3, RATINGS, "host-1"),
    ];
    cluster.revoke(identity(REVIEWS), Reason::Hold, false);
    cluster.revoke(agent("host-2"), Reason::Hold, false);
    let [one, two, three] = early;
    assert_eq!(cluster.issue(vec![one, two, three]), [1, 2]);
    assert_eq!(cluster.state.private.issued.len(), 1);
}

#[test]
fn after_a_reissue_only_what_was_granted_with_it_in_sight_is_let_through() {
    let mut cluster = Cluster::new();
    let early = cluster.record(1, REVIEWS, "host-1");
    let revocation = cluster.revoke(identity(REVIEWS), Reason::KeyCompromise, true);
    assert!(revocation.reissue && revocation.expires.is_some());
    let late = cluster.record(2, REVIEWS, "host-1");
    assert_eq!(cluster.issue(vec![early, late]), [1]);
    assert!(cluster.state.view.revocations.of_identity(&REVIEWS.parse().unwrap()).is_none());
    // Once more: a newer watermark is another revocation, and takes in what was given meanwhile.
    let again = cluster.revoke(identity(REVIEWS), Reason::KeyCompromise, true);
    assert_ne!(again.id, revocation.id);
    assert_eq!(serials(&again), [2]);
}

#[test]
fn what_was_handed_out_without_a_quorum_is_added_to_what_it_slipped_past() {
    let mut cluster = Cluster::new();
    let early: Vec<_> = [(1, "host-1"), (2, "host-2")]
        .map(|(n, host)| IssuedRecord { handed_out: true, ..cluster.record(n, REVIEWS, host) })
        .into();
    let of_host = cluster.revoke(agent("host-1"), Reason::KeyCompromise, false);
    assert_eq!(serials(&of_host), [0u8; 0]);
    assert_eq!(cluster.issue(early), [0u8; 0], "it is too late to refuse them");
    let grown = cluster.state.view.revocations.get(&of_host.id).unwrap();
    assert_eq!(serials(grown), [1]);
    assert_eq!(cluster.state.private.issued.len(), 2);
}

#[test]
fn records_are_forgotten_when_their_svids_have_ended() {
    let mut cluster = Cluster::new();
    let records = vec![cluster.record(1, REVIEWS, "host-1")];
    cluster.issue(records.clone());
    cluster.issue(records);
    assert_eq!(cluster.state.private.issued.len(), 1, "the same again is the same");
    cluster.now = NOW + HOUR + ISSUED_MARGIN;
    let next = vec![cluster.record(2, REVIEWS, "host-1")];
    cluster.issue(next);
    assert_eq!(cluster.state.private.issued.len(), 1);
    assert!(cluster.state.private.issued.get(&serial(1)).is_none());
    let too_many = vec![cluster.record(3, REVIEWS, "host-1"); MAX_ISSUED_BATCH + 1];
    assert!(matches!(cluster.apply(Command::Issued { records: too_many }), Err(Refusal::Invalid(_))));
}

#[test]
fn a_host_that_has_svids_issued_without_end_can_still_be_banned_with_all_of_them() {
    let mut cluster = Cluster::new();
    let one = cluster.record(1, REVIEWS, "host-1");
    for number in 0..MAX_SERIALS as u32 {
        let serial = Serial::new(&(number + 1).to_be_bytes()).unwrap();
        let svid = IssuedSvid { serial, ..IssuedSvid::clone(&one.svid) };
        cluster.state.private.issued.insert(Arc::new(svid));
    }
    let name: NodeName = "host-1".parse().unwrap();
    assert_eq!(cluster.state.private.issued.of_agent(&name), MAX_SERIALS);
    let numbered = |number: u8, record: IssuedRecord| {
        let serial = Serial::new(&[number; 8]).unwrap();
        let svid = Arc::new(IssuedSvid { serial, ..IssuedSvid::clone(&record.svid) });
        IssuedRecord { svid, ..record }
    };
    let elsewhere = numbered(9, cluster.record(1, REVIEWS, "host-2"));
    let refused = cluster.issue(vec![numbered(7, one), elsewhere]);
    assert_eq!(refused, [7], "the other host has nothing to do with it");
    let ban = cluster.revoke(agent("host-1"), Reason::KeyCompromise, false);
    assert_eq!(ban.serials.len(), MAX_SERIALS);
    // An identity is refused by its name, however many certificates it has.
    let of_name = cluster.revoke(identity(REVIEWS), Reason::KeyCompromise, false);
    assert_eq!(of_name.serials.len(), MAX_SERIALS);
    cluster.now = NOW + HOUR + ISSUED_MARGIN;
    cluster.issue(vec![]);
    assert_eq!(
        cluster.state.private.issued.of_agent(&name),
        0,
        "they are counted for as long as they are kept"
    );
}

#[test]
fn an_intermediate_is_in_a_list_that_is_full_whatever_else_the_identity_has() {
    let mut cluster = Cluster::new();
    let one = cluster.record(1, REVIEWS, "host-1").svid;
    for number in 0..=MAX_SERIALS as u32 {
        let serial = Serial::new(&(number + 1).to_be_bytes()).unwrap();
        let svid = IssuedSvid { serial, ..IssuedSvid::clone(&one) };
        cluster.state.private.issued.insert(Arc::new(svid));
    }
    let serial = Serial::new(&[9; 8]).unwrap();
    let (not_after, downstream) = (NOW + HOUR / 2, true);
    let svid = IssuedSvid::clone(&one);
    let intermediate = IssuedSvid { serial: serial.clone(), not_after, downstream, ..svid };
    cluster.state.private.issued.insert(Arc::new(intermediate));
    // It ends before all of the others, and they alone would fill the list.
    let of_name = cluster.revoke(identity(REVIEWS), Reason::KeyCompromise, false);
    assert_eq!(of_name.serials.len(), MAX_SERIALS);
    assert!(of_name.serials.contains(&serial));
}

#[test]
fn a_state_that_somebody_reads_is_not_copied_for_a_record() {
    let mut cluster = Cluster::new();
    for number in 0..=255 {
        let mut record = cluster.record(1, REVIEWS, "host-1");
        Arc::make_mut(&mut record.svid).serial = Serial::new(&[7, number]).unwrap();
        cluster.issue(vec![record]);
    }
    assert_eq!(cluster.state.private.issued.len(), 256);
    let read = cluster.state.clone();
    let records = [3, 9, 12].map(|n| cluster.record(n, REVIEWS, "host-1"));
    cluster.issue(records.into());
    let (old, new) = (&read.private, &cluster.state.private);
    let parts = old.issued.parts.iter().zip(&new.issued.parts);
    assert_eq!(parts.filter(|(old, new)| !old.is(new)).count(), 3, "of {PARTS}");
    assert!(old.registrations.is(&new.registrations) && old.remembered.is(&new.remembered));
    assert_eq!((old.issued.len(), new.issued.len()), (256, 259), "who reads sees what was");
    // Pruning where nothing has ended copies nothing either.
    let read = cluster.state.clone();
    cluster.issue(Vec::new());
    let parts = read.private.issued.parts.iter().zip(&cluster.state.private.issued.parts);
    assert!(parts.into_iter().all(|(old, new)| old.is(new)));
}

#[test]
fn where_the_index_is_full_those_that_end_first_go() {
    let cluster = Cluster::new();
    let mut issued = Issuance::default();
    for (number, minutes) in [(1, 50), (2, 10), (3, 40), (4, 30), (5, 20)] {
        let mut record = cluster.record(number, REVIEWS, "host-1");
        Arc::make_mut(&mut record.svid).not_after = NOW + Duration::from_secs(60 * minutes);
        issued.insert(record.svid);
    }
    issued.keep(3);
    let kept: Vec<u8> = issued.sorted().iter().map(|svid| svid.serial.as_bytes()[0]).collect();
    assert_eq!((issued.len(), kept), (3, vec![1, 3, 4]));
    issued.keep(0);
    assert_eq!(issued, Issuance::default());
}

#[test]
fn batches_of_records_do_not_push_out_remembered_answers() {
    let mut cluster = Cluster::new();
    cluster.revoke(identity(REVIEWS), Reason::Hold, false);
    let moved = cluster.state.private.moved;
    for number in 10..60 {
        let record = cluster.record(number, RATINGS, "host-1");
        cluster.issue(vec![record]);
    }
    assert_eq!(cluster.state.private.remembered.len(), 1);
    assert_eq!(cluster.state.private.moved, moved, "nobody has to look again");
}

#[test]
fn a_node_is_not_revoked_if_the_rest_could_decide_nothing() {
    let mut cluster = Cluster::new();
    let node = |n: u8| RevocationTarget::Node(format!("east-{n}").parse().unwrap());
    cluster.revoke(node(1), Reason::Hold, false);
    let (note, closing) = (String::new(), Closing::Now);
    let second = Command::Revoke {
        target: node(2),
        reason: Reason::Hold,
        note,
        expires: None,
        reissue: false,
        closing,
    };
    assert!(matches!(cluster.apply(second), Err(Refusal::Precondition(_))));
    let certificate = hanse_identity::AuthorityCertificate {
        der: vec![9],
        key_id: KeyId([9; 32]),
        subject: "CN=east-1 09,O=east.example".to_owned(),
        not_after: NOW + HOUR,
        state: hanse_identity::AuthorityState::Active,
    };
    let publish = Command::AuthorityPublish { node: "east-1".parse().unwrap(), certificate, rotation: None };
    assert!(matches!(cluster.apply(publish), Err(Refusal::NotAllowed(_))), "no way back by a new authority");
}

#[test]
fn clearing_takes_what_was_named_and_a_compromise_only_if_it_was_said() {
    let mut cluster = Cluster::new();
    let held = cluster.revoke(identity(REVIEWS), Reason::Hold, false).id;
    let stolen = cluster.revoke(RevocationTarget::Serial(serial(7)), Reason::KeyCompromise, false).id;
    let clear =
        |compromised| Command::RevocationsClear { ids: vec![held.clone(), stolen.clone()], compromised };
    assert!(matches!(cluster.apply(clear(false)), Err(Refusal::Precondition(_))));
    assert_eq!(cluster.state.view.revocations.len(), 2, "all or nothing");
    assert_eq!(cluster.apply(clear(true)), Ok(Answer::Done));
    assert!(cluster.state.view.revocations.is_empty());
    assert_eq!(cluster.apply(clear(true)), Ok(Answer::Already));
    let foreign = vec!["r-1@west.example".parse().unwrap()];
    let foreign = Command::RevocationsClear { ids: foreign, compromised: true };
    assert!(matches!(cluster.apply(foreign), Err(Refusal::NotAllowed(_))));
}

#[test]
fn orders_that_contradict_themselves_are_refused() {
    let mut cluster = Cluster::new();
    let order = |target, reason, reissue, closing| Command::Revoke {
        target,
        reason,
        note: String::new(),
        expires: None,
        reissue,
        closing,
    };
    let key = || RevocationTarget::Key(KeyId([1; 32]));
    for command in [
        order(key(), Reason::Hold, false, Closing::Now),
        order(identity(REVIEWS), Reason::Hold, true, Closing::Now),
        order(agent("host-1"), Reason::KeyCompromise, true, Closing::Now),
        order(key(), Reason::KeyCompromise, false, Closing::After(1_000_000)),
        order(RevocationTarget::Cluster("east.example".parse().unwrap()), Reason::Hold, false, Closing::Now),
    ] {
        assert!(matches!(cluster.apply(command.clone()), Err(Refusal::Invalid(_))), "{command:?}");
    }
    for target in [
        agent("host-9"),
        RevocationTarget::Node("east-9".parse().unwrap()),
        RevocationTarget::Cluster("north.example".parse().unwrap()),
    ] {
        let command = order(target, Reason::Hold, false, Closing::Now);
        assert!(matches!(cluster.apply(command.clone()), Err(Refusal::NotFound { .. })), "{command:?}");
    }
}
