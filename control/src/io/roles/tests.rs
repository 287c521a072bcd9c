//! The table against the `.proto` files, and every cell of role × rpc.

use std::collections::BTreeSet;

use hanse_federation::change::{Change, PeerRecord};
use hanse_identity::{Registration, Timestamp};

use super::*;
use crate::command::{Command, Proposal};

/// (service, rpc) of every rpc in a `.proto`.
fn rpcs(proto: &str) -> Vec<(String, String)> {
    let mut package = "";
    let mut service = String::new();
    let mut found = Vec::new();
    for line in proto.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("package ") {
            package = name.trim_end_matches(';');
        } else if let Some(rest) = line.strip_prefix("service ") {
            service = format!("{package}.{}", rest.trim_end_matches('{').trim());
        } else if let Some(rest) = line.strip_prefix("rpc ") {
            let name = rest.split('(').next().unwrap().trim().to_owned();
            found.push((service.clone(), name));
        }
    }
    found
}

fn every_rpc() -> Vec<(String, String)> {
    let protos = [
        include_str!("../../../proto/control.proto"),
        include_str!("../../../../identity/proto/issue.proto"),
        include_str!("../../../../federation/proto/watch.proto"),
    ];
    let all: Vec<_> = protos.into_iter().flat_map(rpcs).collect();
    assert!(all.len() > 30, "the protos were not read: {all:?}");
    all
}

/// Cluster east, joined with west; each role has one administrator and one workload of its name, and `everything` and
/// `nothing` have all and none.
fn state() -> State {
    let mut state = State::founded("east".parse().unwrap(), "east.example".parse().unwrap(), Vec::new());
    state.view.apply(&Change::PeerPut(PeerRecord {
        cluster: "west".parse().unwrap(),
        trust_domain: "west.example".parse().unwrap(),
        endpoints: vec![],
        invite: "i".to_owned(),
        joined: Timestamp(1),
    }));
    let mut index = 1;
    let mut run = |command| {
        index += 1;
        let actor = String::new();
        let proposal = Proposal { id: index, now: Timestamp(1), actor, certificate: None, command };
        state.apply(index, &proposal).0.result.unwrap();
    };
    for name in Role::ALL.map(Role::as_str).into_iter().chain(["everything"]) {
        let agent: hanse_identity::NodeName = "host-1".parse().unwrap();
        let selectors = ["unix:uid:1000".parse().unwrap()];
        let registration =
            Registration { admin: true, ..Registration::new(workload(name), agent, selectors) };
        run(Command::WorkloadRegister { registration });
    }
    for role in Role::ALL {
        for id in [admin(role.as_str()), workload(role.as_str())] {
            run(Command::RoleBind { id, roles: BTreeSet::from([role]) });
        }
    }
    run(Command::RoleBind { id: workload("everything"), roles: Role::ALL.into() });
    run(Command::RoleUnbind { id: admin("nothing"), roles: Role::ALL.into() });
    state
}

fn admin(name: &str) -> SpiffeId {
    format!("spiffe://east.example/hanse/admin/{name}").parse().unwrap()
}

fn workload(name: &str) -> SpiffeId {
    format!("spiffe://east.example/ns/ops/sa/{name}").parse().unwrap()
}

fn allowed(state: &State, service: &str, rpc: &str, id: &SpiffeId) -> bool {
    row(&format!("/{service}/{rpc}")).is_some_and(|who| admits(who, state, id))
}

#[test]
fn every_rpc_has_exactly_one_row_and_every_row_an_rpc() {
    let mut wanted = every_rpc();
    let mut listed: Vec<_> = ROLES.iter().map(|(s, r, _)| ((*s).to_owned(), (*r).to_owned())).collect();
    wanted.sort();
    listed.sort();
    assert_eq!(listed, wanted);
}

#[test]
fn only_join_and_greet_need_no_certificate() {
    let open: Vec<_> =
        ROLES.iter().filter(|(_, _, who)| *who == Who::Anyone).map(|(_, rpc, _)| *rpc).collect();
    assert_eq!(open, ["JoinAgent", "AttestAgent", "Join", "Greet"]);
}

#[test]
fn the_admin_service_needs_a_role_and_nothing_else_does() {
    for (service, rpc, who) in ROLES {
        let is_admin = *service == "hanse.control.v1.Admin";
        assert_eq!(matches!(who, Who::Has(_)), is_admin, "{service}/{rpc} is for {who:?}");
    }
}

/// What changes something is not for those who only read.
#[test]
fn viewers_change_nothing() {
    for (_, rpc, who) in ROLES {
        if *who == Who::Has(Role::Viewer) {
            assert!(crate::client::is_read(rpc), "{rpc} writes, and a viewer may call it");
        }
    }
}

/// Every cell: the rpcs of the `.proto` files by the identities that were given one role each.
#[test]
fn each_role_may_call_its_own_rows_and_those_of_viewers() {
    let state = state();
    let mut asked = 0;
    for (service, rpc) in every_rpc() {
        let who = row(&format!("/{service}/{rpc}")).unwrap();
        for role in Role::ALL {
            for id in [admin(role.as_str()), workload(role.as_str())] {
                let expected = match who {
                    Who::Anyone => true,
                    Who::Subscriber => is_workload(&id),
                    Who::Has(needed) => needed == role || needed == Role::Viewer,
                    Who::Node | Who::Agent | Who::Downstream | Who::PeerNode => false,
                };
                assert_eq!(allowed(&state, &service, &rpc, &id), expected, "{id} calling {service}/{rpc}");
                asked += 1;
            }
        }
        if let Who::Has(_) = who {
            for id in [admin("everything-by-default"), workload("everything")] {
                assert!(allowed(&state, &service, &rpc, &id), "{id} calling {rpc}");
            }
            for id in [admin("nothing"), workload("nothing")] {
                assert!(!allowed(&state, &service, &rpc, &id), "{id} calling {rpc}");
            }
        }
    }
    assert_eq!(asked, every_rpc().len() * Role::ALL.len() * 2);
}

#[test]
fn the_unlisted_is_denied_to_everyone() {
    assert_eq!(row("/hanse.control.v1.Admin/Nothing"), None);
    assert_eq!(row("hanse.control.v1.Admin/NodeList"), None);
    let state = state();
    let denied =
        decide("/grpc.reflection.v1.ServerReflection/Info", &state, &Trust::default(), None).unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    let unknown = decide("/hanse.control.v1.Admin/NodeList", &state, &Trust::default(), None).unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::Unauthenticated);
}

#[test]
fn members_are_told_apart_by_spiffe_id() {
    let state = state();
    let allowed = |who, id: &str| admits(who, &state, &id.parse().unwrap());
    let of_east = |path: &str| format!("spiffe://east.example{path}");
    let read = Who::Has(Role::Viewer);
    for (who, path) in [
        (Who::Node, "/hanse/node/east-1"),
        (read, "/hanse/admin/ann"),
        (read, "/hanse/node/east-1"),
        (Who::Agent, "/hanse/agent/host-1"),
        (Who::Subscriber, "/hanse/gateway/gateway-1"),
        (Who::Subscriber, "/ns/shop/sa/reviews"),
    ] {
        assert!(allowed(who, &of_east(path)), "{who:?} {path}");
        let elsewhere = format!("spiffe://west.example{path}");
        assert!(!allowed(who, &elsewhere), "{who:?} {elsewhere}");
    }
    assert!(!allowed(Who::Node, &of_east("/hanse/admin/ann")));
    assert!(!allowed(read, &of_east("/ns/shop/sa/reviews")));
    assert!(!allowed(read, &of_east("/hanse/agent/host-1")));
    assert!(!allowed(read, &of_east("/hanse/gateway/gateway-1")));
    assert!(!allowed(Who::Subscriber, &of_east("/hanse/agent/host-1")));
    assert!(!allowed(Who::Subscriber, &of_east("/ns/shop/sa/reviews/more")));
    assert!(allowed(Who::PeerNode, "spiffe://west.example/hanse/node/west-1"));
    assert!(!allowed(Who::PeerNode, "spiffe://west.example/hanse/admin/ann"));
    assert!(!allowed(Who::PeerNode, "spiffe://north.example/hanse/node/north-1"));
    assert!(!allowed(Who::PeerNode, &of_east("/hanse/node/east-1")));
}
