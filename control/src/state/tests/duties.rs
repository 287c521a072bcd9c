//! Roles and the audit trail: who may be given what, what naming an administrator means, what a row says.

use super::*;
use crate::role::Role;
use crate::state::audit::AuditOutcome;

const ANN: &str = "spiffe://east.example/hanse/admin/ann";
const DEPLOYER: &str = "spiffe://east.example/ns/ops/sa/deployer";

fn bind(identity: &str, roles: &[Role]) -> Command {
    Command::RoleBind { id: id(identity), roles: roles.iter().copied().collect() }
}

fn unbind(identity: &str, roles: &[Role]) -> Command {
    Command::RoleUnbind { id: id(identity), roles: roles.iter().copied().collect() }
}

/// A registration by which the workload may act as an administrator.
fn admin_on(host: &str) -> Command {
    Command::WorkloadRegister {
        registration: Registration { admin: true, ..registration(DEPLOYER, host, &[]) },
    }
}

fn roles(log: &Log, identity: &str) -> Vec<Role> {
    log.state.roles_of(&id(identity)).into_iter().collect()
}

/// The same log, as somebody else.
fn as_actor(log: &mut Log, actor: &str, command: Command) -> Result<Answer, Refusal> {
    log.index += 1;
    let id = 1_000 + log.index;
    let proposal = Proposal { id, now: log.now, actor: actor.into(), certificate: None, command };
    log.state.apply(log.index, &proposal).0.result
}

#[test]
fn an_administrator_has_every_role_until_it_is_named() {
    let mut log = Log::new();
    assert_eq!(roles(&log, ANN), Role::ALL);
    log.done(bind(ANN, &[Role::Viewer]));
    assert_eq!(roles(&log, ANN), [Role::Viewer]);
    log.done(bind(ANN, &[Role::Operator]));
    assert_eq!(roles(&log, ANN), [Role::Viewer, Role::Operator]);
    log.already(bind(ANN, &[Role::Operator]));
    log.done(unbind(ANN, &Role::ALL));
    assert_eq!(roles(&log, ANN), [], "what was taken away does not come back as everything");
    log.already(unbind(ANN, &[Role::Viewer]));
    log.done(bind(ANN, &Role::ALL));
    assert_eq!(roles(&log, ANN), Role::ALL);

    let bob = "spiffe://east.example/hanse/admin/bob";
    log.done(unbind(bob, &[Role::CaAdmin]));
    assert_eq!(roles(&log, bob), [Role::Viewer, Role::Operator, Role::FederationAdmin]);
}

#[test]
fn a_workload_has_what_it_was_given_and_others_can_be_given_nothing() {
    let mut log = Log::new();
    assert_eq!(roles(&log, DEPLOYER), []);
    assert!(log.not_found(unbind(DEPLOYER, &[Role::Viewer])).contains("deployer"));
    log.done(bind(DEPLOYER, &[Role::Operator]));
    assert_eq!(roles(&log, DEPLOYER), [], "no registration says that it is an administrator");
    log.done(admin_on("host-1"));
    assert_eq!(roles(&log, DEPLOYER), [Role::Operator]);
    log.done(unbind(DEPLOYER, &[Role::Operator]));
    assert_eq!(
        roles(&log, DEPLOYER),
        [],
        "an administrator that nobody named has every role, a workload none"
    );
    assert!(log.state.private.roles.is_empty(), "nothing is kept of a workload that holds nothing");

    log.not_allowed(bind("spiffe://west.example/hanse/admin/ann", &[Role::Viewer]));
    log.not_allowed(bind("spiffe://west.example/ns/ops/sa/deployer", &[Role::Viewer]));
    log.not_allowed(bind("spiffe://east.example/hanse/agent/host-1", &[Role::Viewer]));
    log.not_allowed(bind("spiffe://east.example/hanse/gateway/gateway-1", &[Role::Viewer]));
    log.not_allowed(unbind("spiffe://east.example/hanse/node/east-1", &[Role::Viewer]));
    log.invalid(bind("spiffe://east.example", &[Role::Viewer]));
    log.invalid(bind("spiffe://east.example/hanse/other/x", &[Role::Viewer]));
    log.invalid(bind(&format!("spiffe://east.example/{}", "x".repeat(500)), &[Role::Viewer]));
    log.invalid(bind(ANN, &[]));
    for number in 0..roles::MAX_BINDINGS {
        log.done(bind(&format!("spiffe://east.example/ns/ops/sa/w{number}"), &[Role::Viewer]));
    }
    log.limit(bind(DEPLOYER, &[Role::Viewer]));
}

#[test]
fn a_workload_is_an_administrator_for_as_long_as_a_registration_says_so() {
    let mut log = Log::new();
    log.done(bind(DEPLOYER, &[Role::Operator, Role::Viewer]));
    log.done(register(DEPLOYER, "host-2", &[]));
    assert_eq!(roles(&log, DEPLOYER), []);
    let mut soon = admin_on("host-1");
    if let Command::WorkloadRegister { registration } = &mut soon {
        registration.expires = Some(NOW + Duration::from_secs(60));
    }
    log.done(soon);
    assert_eq!(roles(&log, DEPLOYER), [Role::Viewer, Role::Operator]);
    let actor = as_actor(&mut log, DEPLOYER, register(RATINGS, "host-1", &[]));
    assert_eq!(actor, Ok(Answer::Done));
    // It lapses, and so do the roles, though its certificate may live.
    log.now = NOW + Duration::from_secs(60);
    let keys = log.state.lapsed_registrations(log.now);
    assert_eq!(keys.len(), 1);
    log.done(Command::WorkloadLapse { keys });
    assert_eq!(roles(&log, DEPLOYER), []);
    log.done(admin_on("host-2"));
    assert_eq!(roles(&log, DEPLOYER), [Role::Viewer, Role::Operator]);
    log.done(register(DEPLOYER, "host-2", &[]));
    assert_eq!(roles(&log, DEPLOYER), [], "and when it says so no more");
    let agent = hanse_identity::AgentScope::Any;
    let anywhere = Registration { admin: true, agent, ..registration(DEPLOYER, "host-1", &[]) };
    log.invalid(Command::WorkloadRegister { registration: anywhere });
    let gateway = "spiffe://east.example/hanse/gateway/gateway-1";
    let gateway = Registration { admin: true, ..registration(gateway, "host-1", &[]) };
    log.invalid(Command::WorkloadRegister { registration: gateway });
}

/// Otherwise an operator could hand itself the identity of whoever may do more.
#[test]
fn who_hands_out_an_identity_with_roles_has_to_be_a_ca_admin() {
    let mut log = Log::new();
    let operator = "spiffe://east.example/hanse/admin/operator";
    log.done(bind(operator, &[Role::Operator]));
    let on = |host: &str| register(DEPLOYER, host, &[]);
    assert_eq!(as_actor(&mut log, operator, on("host-1")), Ok(Answer::Done), "it holds nothing yet");
    let refused = as_actor(&mut log, operator, admin_on("host-1")).unwrap_err();
    assert!(matches!(refused, Refusal::NotAllowed(_)), "nor may it be made one that can: {refused:?}");
    log.done(bind(DEPLOYER, &[Role::CaAdmin]));

    let refused = as_actor(&mut log, operator, on("host-2")).unwrap_err();
    assert!(matches!(refused, Refusal::NotAllowed(_)), "{refused:?}");
    let token =
        |id: &str, host: &str| Command::InviteCreate { invite: invite(id, Admits::Agent(name(host))) };
    let refused = as_actor(&mut log, operator, token("i-1", "host-1")).unwrap_err();
    assert!(matches!(refused, Refusal::NotAllowed(_)), "{refused:?}");
    assert_eq!(as_actor(&mut log, operator, token("i-2", "host-3")), Ok(Answer::Done));

    assert_eq!(as_actor(&mut log, ANN, on("host-2")), Ok(Answer::Done));
    assert_eq!(as_actor(&mut log, ANN, token("i-3", "host-1")), Ok(Answer::Done));
}

#[test]
fn a_row_says_who_what_when_and_what_came_of_it() {
    let mut log = Log::new();
    let command = revoke_identity(REVIEWS, Reason::KeyCompromise);
    let serial = Serial::new(&[7, 7]);
    for index in [2, 3] {
        let actor = ANN.to_owned();
        let proposal =
            Proposal { id: index, now: NOW, actor, certificate: serial.clone(), command: command.clone() };
        log.state.apply(index, &proposal).0.result.unwrap();
        // A retry is answered, and leaves no second row.
        log.state.apply(index, &proposal).0.result.unwrap();
    }
    log.index = 3;
    log.not_found(Command::Unexport { service: service("shop/nothing") });
    let rows: Vec<_> = log.state.private.audit.newest().cloned().collect();
    assert_eq!(rows.len(), 3);
    assert!(
        matches!(&rows[0].outcome, AuditOutcome::Refused(why) if why.contains("shop/nothing")),
        "{rows:?}"
    );
    assert_eq!((rows[1].revision, &rows[1].outcome), (3, &AuditOutcome::Already));
    let row = &rows[2];
    assert_eq!((row.revision, row.at, row.actor.as_str()), (2, NOW, ANN));
    assert_eq!(row.certificate, serial);
    assert_eq!((row.kind.as_str(), row.note.as_str()), ("revoke", "test"));
    assert_eq!(row.target, format!("{REVIEWS} ({})", Reason::KeyCompromise));
    assert_eq!(row.outcome, AuditOutcome::Done);
}

#[test]
fn the_trail_and_the_roles_are_in_a_snapshot() {
    let mut log = Log::new();
    log.done(admin_on("host-1"));
    log.done(bind(DEPLOYER, &[Role::Operator]));
    log.not_found(Command::Unexport { service: service("shop/nothing") });
    let read = snapshot::decode(&snapshot::encode(&log.state)).unwrap();
    assert_eq!(read, log.state);
    assert_eq!(read.private.audit.len(), 3);
    assert_eq!(roles(&log, DEPLOYER), [Role::Operator]);
}
