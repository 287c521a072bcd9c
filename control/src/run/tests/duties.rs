//! Roles and the audit trail over the wire: who may call what, and that every write leaves a row.

use super::hosts::Company;
use super::*;
use crate::io::roles::ROLES;
use crate::role::Role;
use crate::state::audit::AuditOutcome;
use crate::wire::control::Document;

/// A request for every rpc of the Admin service that writes, with the kind of its row; in an order in which they work.
const WRITES: &[(&str, &str, &str)] = &[
    ("ClusterTokenCreate", r#"{"for":"west","ttlSeconds":600}"#, "cluster-token-create"),
    ("AgentTokenCreate", r#"{"agent":"host-1","ttlSeconds":600}"#, "agent-token-create"),
    ("AgentEvict", r#"{"agent":"host-1","note":"gone"}"#, "agent-evict"),
    ("AgentUnban", r#"{"agent":"host-1"}"#, "agent-unban"),
    ("HostTrustSet", r#"{"pem":"COMPANY","naming":"fingerprint"}"#, "host-trust-set"),
    ("AgentAllow", r#"{"agent":"host-1","ttlSeconds":600}"#, "agent-allow"),
    ("HostTrustDelete", "{}", "host-trust-delete"),
    (
        "WorkloadRegister",
        r#"{"registration":{"id":"spiffe://east.example/ns/shop/sa/reviews","agent":"host-1",
            "selectors":["unix:uid:1000"],"services":["shop/reviews"],"ttl_seconds":0}}"#,
        "workload-register",
    ),
    (
        "WorkloadApply",
        r#"{"registrations":[{"id":"spiffe://east.example/ns/shop/sa/ratings","agent":"host-1",
            "selectors":["unix:uid:1001"]}]}"#,
        "workload-apply",
    ),
    ("ServiceExport", r#"{"service":"shop/reviews","to":"everyone"}"#, "service-export"),
    ("ServiceUnexport", r#"{"service":"shop/reviews"}"#, "service-unexport"),
    ("PolicyApply", r#"{"file":"-","text":"POLICY"}"#, "policy-apply"),
    ("PolicyDelete", r#"{"keys":[{"kind":"HTTPRoute","name":"shop/none"}]}"#, "policy-delete"),
    ("Revoke", r#"{"target":{"serial":"01ab"},"reason":"key-compromise","note":"lost"}"#, "revoke"),
    ("RevokeLift", r#"{"id":"r-1@east.example"}"#, "revoke-lift"),
    ("RevokeClear", r#"{"all":true,"includeCompromised":true}"#, "revoke-clear"),
    (
        "WorkloadDelete",
        r#"{"id":"spiffe://east.example/ns/shop/sa/reviews","agent":"host-1"}"#,
        "workload-delete",
    ),
    (
        "FederationPut",
        r#"{"federation":{"trustDomain":"north.example","url":"https://127.0.0.1:1/","profile":{"https_web":{}}}}"#,
        "federation-put",
    ),
    ("FederationDelete", r#"{"trustDomain":"north.example"}"#, "federation-delete"),
    ("TrustBundleSet", r#"{"trustDomain":"north.example","bundle":"NORTH"}"#, "bundle-set"),
    ("TrustBundleDelete", r#"{"trustDomain":"north.example","registrations":"dissociate"}"#, "bundle-delete"),
    ("RoleBind", r#"{"id":"spiffe://east.example/ns/ops/sa/x","roles":["viewer"]}"#, "role-bind"),
    ("RoleUnbind", r#"{"id":"spiffe://east.example/ns/ops/sa/x","roles":["viewer"]}"#, "role-unbind"),
    ("TrustRotate", r#"{"reissue":true}"#, "trust-rotate"),
    ("TrustAbort", "{}", "trust-rotate-abort"),
];
/// Writes that need a second cluster, or a proxy: `clusters_join_tell_revoke_and_leave`, the tests of strangers and those of
/// taps look at their rows.
const WITH_OTHERS: [&str; 4] = ["ClusterJoin", "ClusterLeave", "FederationRefresh", "Tap"];
const POLICY: &str = "apiVersion: gateway.networking.k8s.io/v1\\nkind: HTTPRoute\\nmetadata: {name: r, namespace: shop}\\nspec:\\n  parentRefs: [{group: '', kind: Service, name: reviews}]\\n  rules:\\n  - backendRefs: [{name: reviews, port: 80}]\\n";

fn admin_path(rpc: &str) -> &'static str {
    Box::leak(format!("/hanse.control.v1.Admin/{rpc}").into_boxed_str())
}

/// The mesh leaves rows of its own, whenever it comes to it: a node publishes its JWT key.
fn by_ann() -> AuditListRequest {
    AuditListRequest { actor: Some("admin/ann".to_owned()), ..Default::default() }
}

async fn rows(client: &Client, request: AuditListRequest) -> AuditList {
    client.call(&request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_of_an_administrator_leaves_a_row() {
    let writing = ROLES.iter().filter(|(service, rpc, _)| {
        *service == "hanse.control.v1.Admin" && !crate::client::is_read(rpc) && !WITH_OTHERS.contains(rpc)
    });
    let mut wanted: Vec<_> = writing.map(|(_, rpc, _)| *rpc).collect();
    let mut given: Vec<_> = WRITES.iter().map(|(rpc, _, _)| *rpc).collect();
    wanted.sort_unstable();
    given.sort_unstable();
    assert_eq!(given, wanted, "an rpc that writes has no request here");

    let east = found("east", 1).await;
    let client = east.client().await;
    let svid = east.credential.svid().unwrap();
    let link = dial_as(&east, &svid).await;
    let company = Company::new().root_pem.replace('\n', "\\n");
    let north = super::bundles::authority_pem("north.example").replace('\n', "\\n");
    for (rpc, json, kind) in WRITES {
        let json = json.replace("POLICY", POLICY).replace("COMPANY", &company).replace("NORTH", &north);
        let json = json.into_bytes();
        let answer = unary::<_, Document>(link.channel.clone(), admin_path(rpc), Document { json }).await;
        let page = rows(&client, AuditListRequest { limit: Some(1), ..by_ann() }).await;
        let row = page.items.first().unwrap_or_else(|| panic!("{rpc} left no row: {answer:?}"));
        assert_eq!(row.kind, *kind, "the row of {rpc}: {row:?}, it answered {answer:?}");
        assert_eq!(row.actor, svid.facts.id.to_string());
        assert_eq!(row.certificate.as_ref(), Some(&svid.facts.serial));
        assert_eq!(
            matches!(row.outcome, AuditOutcome::Refused(_)),
            answer.is_err(),
            "{rpc}: {row:?} {answer:?}"
        );
    }
    // Reading leaves none, and pages are bounded and joined without a gap.
    let all = rows(&client, by_ann()).await;
    assert_eq!(all.items.len(), WRITES.len());
    assert_eq!((all.next, all.forgotten), (None, 0));
    let mut paged = Vec::new();
    let mut before = None;
    loop {
        let page = rows(&client, AuditListRequest { limit: Some(5), before, ..by_ann() }).await;
        assert!(page.items.len() <= 5);
        paged.extend(page.items);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(paged, all.items);
    let of = |kind: &str| AuditListRequest { kind: Some(kind.to_owned()), ..Default::default() };
    assert_eq!(rows(&client, of("workload")).await.items.len(), 3);
    assert_eq!(rows(&client, of("work")).await.items.len(), 0);
    assert_eq!(rows(&client, of("revoke")).await.items.len(), 3);
    let by = |actor: &str| AuditListRequest { actor: Some(actor.to_owned()), ..Default::default() };
    assert_eq!(rows(&client, by("admin/ann")).await.items.len(), WRITES.len());
    assert_eq!(rows(&client, by("admin/bob")).await.items.len(), 0);
    let later = AuditListRequest { since: Some(now() + Duration::from_secs(60)), ..Default::default() };
    assert_eq!(rows(&client, later).await.items.len(), 0);
    east.stop().await;
}

/// After west has joined east, and has left again.
pub(super) async fn joining_and_leaving_left_rows(at_east: &Client, at_west: &Client) {
    let ann = "spiffe://west.example/hanse/admin/ann";
    for (client, kind, actor) in [
        (at_west, "cluster-join", ann),
        (at_west, "cluster-leave", ann),
        (at_east, "cluster-accept", ""),
        (at_east, "cluster-leave", "spiffe://west.example/hanse/node/west-1"),
    ] {
        let of_kind = AuditListRequest { kind: Some(kind.to_owned()), ..Default::default() };
        let items = rows(client, of_kind).await.items;
        let done = items.iter().find(|row| row.outcome == AuditOutcome::Done);
        assert_eq!(done.map(|row| row.actor.as_str()), Some(actor), "{kind}: {items:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_admits_to_its_rpcs_and_to_no_others() {
    let east = found("east", 1).await;
    let ann = east.client().await;
    let token = agent_token(&ann, "host-1").await;
    let agent = join_agent(&east, "host-1", &token).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/ops/sa/deployer".parse().unwrap();
    let svid = workload(&east, &ann, &agent, &id, &[]).await;
    let link = dial_as(&east, &svid).await;
    let asks = async |rpc: &'static str, json: &str| {
        let document = Document { json: json.as_bytes().to_vec() };
        unary::<_, Document>(link.channel.clone(), admin_path(rpc), document).await.map_err(|e| e.code())
    };
    let token = r#"{"agent":"host-9","ttlSeconds":600}"#;
    let revoke = r#"{"target":{"serial":"01ab"},"reason":"key-compromise"}"#;
    assert_eq!(asks("NodeList", "{}").await, Err(Code::PermissionDenied));
    let roles = |role| BTreeSet::from([role]);
    ann.call(&RoleBindRequest { id: id.clone(), roles: roles(Role::Viewer) }).await.unwrap();
    assert_eq!(asks("NodeList", "{}").await, Err(Code::PermissionDenied), "no registration says admin");
    assert!(ann.call(&RoleListRequest {}).await.unwrap().items[0].dormant);
    let host: NodeName = "host-1".parse().unwrap();
    let registration = Registration {
        admin: true,
        ..Registration::new(id.clone(), host.clone(), ["unix:uid:1000".parse().unwrap()])
    };
    ann.call(&WorkloadRegisterRequest { registration: registration.clone() }).await.unwrap();
    // On the very same connection: roles are asked for each request.
    assert!(asks("NodeList", "{}").await.is_ok());
    assert_eq!(asks("AgentTokenCreate", token).await, Err(Code::PermissionDenied));
    ann.call(&RoleBindRequest { id: id.clone(), roles: roles(Role::Operator) }).await.unwrap();
    assert!(asks("AgentTokenCreate", token).await.is_ok());
    assert_eq!(asks("Revoke", revoke).await, Err(Code::PermissionDenied));
    assert_eq!(asks("RoleBind", "{}").await, Err(Code::PermissionDenied));
    // The row names the workload: who did it is no secret of the agent's.
    let rows =
        rows(&ann, AuditListRequest { actor: Some("sa/deployer".to_owned()), ..Default::default() }).await;
    assert_eq!(rows.items.iter().map(|row| row.kind.as_str()).collect::<Vec<_>>(), ["agent-token-create"]);
    // Without the registration its certificate, which lives, is worth nothing here.
    let gone = WorkloadDeleteRequest { id: id.clone(), agent: host.into() };
    ann.call(&gone).await.unwrap();
    assert_eq!(asks("NodeList", "{}").await, Err(Code::PermissionDenied));
    ann.call(&WorkloadRegisterRequest { registration }).await.unwrap();
    assert!(asks("NodeList", "{}").await.is_ok());
    ann.call(&RoleUnbindRequest { id: id.clone(), roles: Role::ALL.into() }).await.unwrap();
    assert_eq!(asks("NodeList", "{}").await, Err(Code::PermissionDenied));
    // A revoked identity is nobody's.
    ann.call(&RoleBindRequest { id: id.clone(), roles: roles(Role::Viewer) }).await.unwrap();
    assert!(asks("NodeList", "{}").await.is_ok());
    let revoke = RevokeRequest::new(RevocationTarget::Identity(id.clone()), Reason::KeyCompromise);
    ann.call(&revoke).await.unwrap();
    assert!(asks("NodeList", "{}").await.is_err());
    ann.call(&RoleUnbindRequest { id: id.clone(), roles: Role::ALL.into() }).await.unwrap();
    assert_eq!(ann.call(&RoleListRequest {}).await.unwrap().items, []);

    // An administrator takes a role away from itself, and it is gone at once.
    let own = east.credential.svid().unwrap().facts.id;
    ann.call(&RoleUnbindRequest { id: own.clone(), roles: roles(Role::CaAdmin) }).await.unwrap();
    let denied = ann.call(&RoleBindRequest { id: own, roles: roles(Role::CaAdmin) }).await.unwrap_err();
    assert_eq!(denied.kind, ClientErrorKind::NotAllowed);
    assert!(denied.why.contains("ca-admin"), "{denied}");
    east.stop().await;
}
