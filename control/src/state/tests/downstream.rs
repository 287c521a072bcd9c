//! Nested issuers in the log: who may make one, when an intermediate is recorded, and what revocations are expanded to.

use super::*;
use crate::role::Role;
use crate::state::downstream::MAX_DOWNSTREAM;
use crate::state::issuance::{IssuedRecord, IssuedSvid};

const ISSUER: &str = "spiffe://east.example/ns/edge/sa/issuer";
const ANN: &str = "spiffe://east.example/hanse/admin/ann";
const HOUR: Duration = Duration::from_secs(3600);

fn issuer_on(host: &str) -> Command {
    let registration = Registration { downstream: true, ..registration(ISSUER, host, &[]) };
    Command::WorkloadRegister { registration }
}

/// A log with two hosts, of which the first may have a nested issuer.
fn log() -> Log {
    let mut log = Log::new();
    for host in ["host-1", "host-2"] {
        let id = SpiffeId::member(&td("east.example"), MemberRole::Agent, &name(host));
        log.state.private.agents.insert(name(host), AgentRecord::new(name(host), id, NOW));
    }
    log.done(issuer_on("host-1"));
    log
}

/// The record of an intermediate, as a node would propose it now.
fn record(log: &Log, number: u8, host: &str) -> IssuedRecord {
    let svid = IssuedSvid {
        serial: Serial::new(&[number]).unwrap(),
        id: id(ISSUER),
        key: KeyId([number; 32]),
        authority: KeyId([1; 32]),
        agent: name(host),
        node: name("east-1"),
        issued: Some(log.now),
        not_after: log.now + HOUR,
        downstream: true,
    };
    IssuedRecord { svid: svid.into(), granted: log.state.view.revision.0, handed_out: false }
}

fn issued(record: IssuedRecord) -> Command {
    Command::DownstreamIssued { record: Box::new(record) }
}

fn revoke(target: RevocationTarget, reissue: bool) -> Command {
    let (reason, note, closing) = (Reason::KeyCompromise, String::new(), Default::default());
    Command::Revoke { target, reason, note, expires: None, reissue, closing }
}

/// Who writes as whom.
fn as_actor(log: &mut Log, actor: &str, command: Command) -> Result<Answer, Refusal> {
    log.index += 1;
    let id = 1_000 + log.index;
    let proposal = Proposal { id, now: log.now, actor: actor.into(), certificate: None, command };
    log.state.apply(log.index, &proposal).0.result
}

#[test]
fn an_intermediate_is_recorded_for_whom_a_registration_says_downstream_where_its_svid_came_from() {
    let mut log = log();
    let good = record(&log, 1, "host-1");
    log.done(issued(good.clone()));
    let rows: Vec<_> = log.state.private.issued.downstream(NOW).collect();
    assert_eq!(rows, [&*good.svid]);
    assert_eq!(snapshot::decode(&snapshot::encode(&log.state)).unwrap(), log.state);
    let row = log.state.private.audit.newest().next().unwrap();
    assert_eq!(row.kind, "downstream-issue");
    assert!(row.target.contains(ISSUER) && row.target.contains("host-1"), "{}", row.target);

    let elsewhere = record(&log, 2, "host-2");
    log.not_allowed(issued(elsewhere));
    let mut of_another = record(&log, 2, "host-1");
    Arc::make_mut(&mut of_another.svid).id = id(REVIEWS);
    log.not_allowed(issued(of_another));
    // It is no SVID, and an SVID is not this.
    let mut plain = record(&log, 2, "host-1");
    Arc::make_mut(&mut plain.svid).downstream = false;
    log.invalid(issued(plain));
    let batch = Command::Issued { records: vec![record(&log, 2, "host-1")] };
    log.invalid(batch);
    let slipped = IssuedRecord { handed_out: true, ..record(&log, 2, "host-1") };
    log.invalid(issued(slipped));
    // The word is taken back: nothing more, and what was given lives on to its end.
    log.done(register(ISSUER, "host-1", &[]));
    let late = record(&log, 3, "host-1");
    log.not_allowed(issued(late));
    assert_eq!(log.state.private.issued.downstream(NOW).count(), 1);
    assert_eq!(log.state.private.issued.downstream(NOW + HOUR).count(), 0);
}

#[test]
fn who_may_be_a_nested_issuer_a_ca_admin_says_and_no_operator_gets_there_another_way() {
    let mut log = log();
    let operator = "spiffe://east.example/hanse/admin/operator";
    log.done(Command::RoleBind { id: id(operator), roles: BTreeSet::from([Role::Operator]) });
    let may_not = |log: &mut Log, command| {
        let refused = as_actor(log, operator, command).unwrap_err();
        assert!(matches!(refused, Refusal::NotAllowed(_)), "{refused:?}");
    };
    may_not(&mut log, issuer_on("host-2"));
    // With other selectors on the same host, on every host, or by putting a host of its own in the place of that one.
    may_not(&mut log, register(ISSUER, "host-1", &[]));
    let agent = hanse_identity::AgentScope::Any;
    let registration = Registration { agent, ..registration(ISSUER, "host-1", &[]) };
    may_not(&mut log, Command::WorkloadRegister { registration });
    may_not(&mut log, Command::InviteCreate { invite: invite("i-1", Admits::Agent(name("host-1"))) });
    let other = Command::InviteCreate { invite: invite("i-2", Admits::Agent(name("host-2"))) };
    assert_eq!(as_actor(&mut log, operator, other), Ok(Answer::Done));
    assert_eq!(as_actor(&mut log, ANN, issuer_on("host-2")), Ok(Answer::Done));

    let agent = hanse_identity::AgentScope::Any;
    let anywhere = Registration { agent, downstream: true, ..self::registration(RATINGS, "host-1", &[]) };
    log.invalid(Command::WorkloadRegister { registration: anywhere });
    let gateway = "spiffe://east.example/hanse/gateway/gateway-1";
    let gateway = Registration { downstream: true, ..self::registration(gateway, "host-1", &[]) };
    log.invalid(Command::WorkloadRegister { registration: gateway });
}

#[test]
fn revocations_are_expanded_to_intermediates_and_name_them() {
    let serial = Serial::new(&[1]).unwrap();
    let by_list = [
        (RevocationTarget::Identity(id(ISSUER)), false),
        (RevocationTarget::Identity(id(ISSUER)), true),
        (RevocationTarget::Agent(name("host-1")), false),
        (RevocationTarget::Key(KeyId([1; 32])), false),
    ];
    for (target, reissue) in by_list {
        let mut log = log();
        let first = record(&log, 1, "host-1");
        log.done(issued(first));
        let (result, _) = log.run(revoke(target.clone(), reissue));
        assert_eq!(result, Ok(Answer::Revoked(own_revocation(log.index))));
        let revocation = log.state.view.revocations.get(&own_revocation(log.index)).unwrap();
        assert_eq!(revocation.serials, [serial.clone()].into(), "{target}");
        let named: Vec<_> = log.state.downstream_hit(revocation, NOW).map(|s| &s.serial).collect();
        assert_eq!(named, [&serial], "{target}");
        assert_eq!(log.state.live_certificates(revocation, NOW), 1);
    }
    let node = RevocationTarget::Node(name("east-1"));
    for target in [RevocationTarget::Serial(serial.clone()), node] {
        let mut log = log();
        let first = record(&log, 1, "host-1");
        log.done(issued(first));
        log.run(revoke(target.clone(), false)).0.unwrap();
        let revocation = log.state.view.revocations.get(&own_revocation(log.index)).unwrap();
        assert_eq!(log.state.downstream_hit(revocation, NOW).count(), 1, "{target}");
    }
    // That of somebody else names nobody.
    let mut log = log();
    let first = record(&log, 1, "host-1");
    log.done(issued(first));
    for target in [RevocationTarget::Identity(id(REVIEWS)), RevocationTarget::Agent(name("host-2"))] {
        log.run(revoke(target, false)).0.unwrap();
        let revocation = log.state.view.revocations.get(&own_revocation(log.index)).unwrap();
        assert_eq!(log.state.downstream_hit(revocation, NOW).count(), 0);
    }
}

#[test]
fn what_was_revoked_while_it_was_being_issued_is_not_handed_out() {
    let targets = [
        RevocationTarget::Identity(id(ISSUER)),
        RevocationTarget::Agent(name("host-1")),
        RevocationTarget::Key(KeyId([1; 32])),
        RevocationTarget::Node(name("east-1")),
    ];
    for target in targets {
        let mut log = log();
        let early = record(&log, 1, "host-1");
        log.run(revoke(target.clone(), false)).0.unwrap();
        log.refused(issued(early));
        assert_eq!(log.state.private.issued.downstream(NOW).count(), 0, "{target}");
    }
    let mut log = log();
    let early = record(&log, 1, "host-1");
    log.run(revoke(RevocationTarget::Identity(id(ISSUER)), true)).0.unwrap();
    log.precondition(issued(early));
    let again = record(&log, 1, "host-1");
    log.done(issued(again));
}

#[test]
fn one_workload_does_not_fill_the_index() {
    let mut log = log();
    for number in 0..MAX_DOWNSTREAM {
        let mut next = record(&log, 1, "host-1");
        Arc::make_mut(&mut next.svid).serial = Serial::new(&[1, (number >> 8) as u8, number as u8]).unwrap();
        log.done(issued(next));
    }
    let more = record(&log, 2, "host-1");
    log.limit(issued(more));
    log.now = NOW + HOUR;
    let more = record(&log, 2, "host-1");
    log.done(issued(more));
}
