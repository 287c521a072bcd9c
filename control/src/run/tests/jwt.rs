//! JWT-SVIDs: each node's key is published before it signs, survives the node, and signs for what is granted.

use std::time::Duration;

use hanse_identity::jwt::{JwtError, validate};
use hanse_identity::wire::issue::{IssueJwtRequest, JwtReply};

use super::*;

const AUDIENCE: &str = "ledger";

async fn issue_jwt(
    cluster: &Cluster,
    caller: &Svid,
    id: &SpiffeId,
    audience: &[&str],
    ttl_seconds: u64,
) -> Result<JwtReply, Status> {
    let request = IssueJwtRequest {
        spiffe_id: id.to_string(),
        selectors: vec!["unix:uid:1000".to_owned()],
        audience: audience.iter().map(|a| (*a).to_owned()).collect(),
        ttl_seconds,
    };
    let link = dial_as(cluster, caller).await;
    unary(link.channel, "/hanse.issue.v1.Issue/IssueJwt", request).await
}

/// The JWT keys that a node's State has, by key id.
fn published(node: &Started) -> BTreeSet<String> {
    let state = node.context.handle.state();
    let bundle = &state.view.bundles[&state.view.trust_domain];
    bundle.jwt_authorities.iter().map(|a| a.key_id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_1_every_node_publishes_a_key_of_its_own() {
    let east = found("east", 3).await;
    east.until("a JWT key of every node", |n| published(n).len() == 3).await;
    east.until("leave to sign", |n| {
        let state = n.context.handle.state();
        let key = n.context.jwt.signing(&state.view.bundles[&state.view.trust_domain], now());
        key.is_some_and(|key| published(n).contains(key.key_id()))
    })
    .await;
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_signs_with_the_key_that_it_had() {
    let mut east = found("east", 1).await;
    east.until("a JWT key", |n| published(n).len() == 1).await;
    let before = published(east.any());
    east.restart(0).await;
    // Whatever it would do about its keys it does before this.
    assert!(!agent_token(&east.client().await, "host-1").await.invite.is_empty());
    let key = east.any().context.jwt.signing(&east.bundle(), now()).expect("its key is still there");
    assert_eq!(BTreeSet::from([key.key_id().to_owned()]), before);
    assert_eq!(published(east.any()), before);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_signed_for_what_a_registration_gives_and_nothing_else() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let code = |result: Result<JwtReply, Status>| result.unwrap_err().code();
    east.until("a JWT key", |n| published(n).len() == 1).await;
    assert_eq!(code(issue_jwt(&east, &agent, &id, &[AUDIENCE], 0).await), Code::PermissionDenied);

    let workload = workload(&east, &client, &agent, &id, &[]).await;
    let reply = issue_jwt(&east, &agent, &id, &[AUDIENCE, "other"], 0).await.unwrap();
    let bundle = east.bundle();
    let none = Revocations::default();
    let check = |audience: &str| validate(|_| Some(&bundle), &none, &reply.token, audience, now());
    let valid = check(AUDIENCE).unwrap();
    assert_eq!((valid.id, valid.expires.0), (id.clone(), reply.expires));
    assert_eq!(check("elsewhere"), Err(JwtError::Audience));
    let long = issue_jwt(&east, &agent, &id, &[AUDIENCE], 86_400).await.unwrap();
    assert!(long.expires <= (now() + Duration::from_secs(3600)).0, "an hour is the longest");

    assert_eq!(code(issue_jwt(&east, &agent, &id, &[], 0).await), Code::InvalidArgument);
    assert_eq!(code(issue_jwt(&east, &workload, &id, &[AUDIENCE], 0).await), Code::PermissionDenied);
    let request = RevokeRequest::new(RevocationTarget::Identity(id.clone()), Reason::KeyCompromise);
    client.call(&request).await.unwrap();
    assert_eq!(code(issue_jwt(&east, &agent, &id, &[AUDIENCE], 0).await), Code::PermissionDenied);
    east.stop().await;
}
