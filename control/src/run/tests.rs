//! Whole control nodes on loopback sockets, in one process: founding, election, clients, agents, watchers, joins.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use hanse_federation::catalog::{Announcement, Export, Locality, Serves};
use hanse_federation::lease::Link;
use hanse_federation::view::PeerState;
use hanse_federation::wire::watch::watch_down::Message as Down;
use hanse_federation::wire::watch::watch_up::Message as Up;
use hanse_federation::wire::watch::{Announce, Applied, Hello, LiveReply, WatchDown, WatchUp};
use hanse_federation::wire::{decode, encode};
use hanse_federation::{Change, View};
use hanse_identity::issue::certificate_request;
use hanse_identity::name::MemberRole;
use hanse_identity::tls::{
    ClientAuth, Expect, TlsIdentity, client_config, pinned_client_config, server_config,
};
use hanse_identity::token::{JoinToken, agent_join_request};
use hanse_identity::wire::issue::{IssueSvidRequest, JoinAgentReply, JoinAgentRequest, SvidReply};
use hanse_identity::{
    Bundle, NodeName, Reason, Registration, RevocationTarget, Revocations, SpiffeId, Svid, Trust,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use zeroize::Zeroizing;

use super::*;
use crate::admin::*;
use crate::client::{Client, ClientErrorKind, Credential};
use crate::io::context::now;
use crate::io::dial::{self, ALPN_H2, FixedIdentity, FixedTrust, Link as Dialled};
use crate::io::key_store::{FileKeyStore, KeyStore};
use crate::io::keys::{NewNode, new_key_pair};

mod agents;
mod bundles;
mod clocks;
mod downstream;
mod duties;
mod fixture;
mod hosts;
mod identities;
mod issuers;
mod jwt;
mod lists;
mod nodes;
mod proofs;
mod restored;
mod revocations;
mod rotation;
mod strangers;
mod tap;
mod traffic;
mod upstream;

use fixture::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_answer_and_survive_their_leader() {
    let mut east = found("east", 3).await;
    let client = east.client().await;
    let nodes = client.call(&NodeListRequest {}).await.unwrap();
    assert_eq!(nodes.items.len(), 3);
    assert_eq!(nodes.items.iter().filter(|n| n.state == NodeState::Leader).count(), 1);
    assert_eq!(nodes.quorum, Quorum { voters: 3, needed: 2, answering: 3, can_lose: 1 });
    assert!(nodes.items.iter().all(|n| n.certificate_not_after.is_some_and(|at| at > now())));
    assert!(!nodes.meta.partial, "{:?}", nodes.warnings);

    let token = agent_token(&client, "host-1").await;
    join_agent(&east, "host-1", &token).await.unwrap();
    let dead = east.leader().expect("a leader was found");
    east.nodes[dead].take().unwrap().stop().await;
    let began = Instant::now();
    let token = agent_token(&client, "host-2").await;
    assert_eq!(token.endpoints.len(), 3);
    assert!(began.elapsed() < Duration::from_secs(5), "writes took {:?}", began.elapsed());
    let nodes = client.call(&NodeListRequest {}).await.unwrap();
    assert_eq!(nodes.quorum, Quorum { voters: 3, needed: 2, answering: 2, can_lose: 0 });
    assert_eq!(nodes.items[dead].state, NodeState::Silent);
    assert!(nodes.meta.partial);
    let agents = client.call(&AgentListRequest::default()).await.unwrap();
    assert_eq!(agents.items.len(), 1, "no acknowledged write is lost");

    let other = (0..3).find(|n| *n != dead).unwrap();
    east.nodes[other].take().unwrap().stop().await;
    eventually("the last node knows that it is alone", || {
        east.any().context.handle.status().leader.is_none().then_some(())
    })
    .await;
    let lonely = Client::connect(&east.credential).await.unwrap();
    let request = AgentTokenCreateRequest { agent: "host-3".parse().unwrap(), ttl_seconds: 600 };
    assert_eq!(lonely.call(&request).await.unwrap_err().kind, ClientErrorKind::NoQuorum);
    let agents = lonely.call(&AgentListRequest::default()).await.unwrap();
    assert!(agents.meta.partial && !agents.warnings.is_empty(), "a stale read says so");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_admits_one_agent_and_that_agent_gets_what_is_registered() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let token = agent_token(&client, "host-1").await;
    let (one, other) = tokio::join!(join_agent(&east, "host-1", &token), join_agent(&east, "host-1", &token));
    let winners = [one, other];
    let won = winners.iter().filter(|r| r.is_ok()).count();
    assert_eq!(won, 1, "two requests with one token: {winners:?}");
    let lost = winners.iter().find_map(|r| r.as_ref().err()).unwrap();
    assert_eq!(lost.code(), Code::FailedPrecondition, "{lost:?}");
    let agent = winners.into_iter().find_map(Result::ok).unwrap();

    let mut forged = agent_token(&client, "host-2").await;
    forged.invite = token.invite.clone();
    let refused = join_agent(&east, "host-2", &forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let unregistered = issue_svid(&east, &agent, &id, &["unix:uid:1000"]).await.unwrap_err();
    assert_eq!(unregistered.code(), Code::PermissionDenied);
    let svid = workload(&east, &client, &agent, &id, &["shop/reviews"]).await;
    assert_eq!(svid.facts.id, id);
    // Both are in the log's index, with whom they came through and who signed them.
    let state = east.any().context.handle.state();
    for issued in [&agent.facts, &svid.facts] {
        let record = state.private.issued.get(&issued.serial).expect("it was recorded before it was given");
        assert_eq!((&record.id, record.key, record.not_after), (&issued.id, issued.key_id, issued.not_after));
        assert_eq!((record.agent.as_str(), record.node.as_str()), ("host-1", "east-1"));
    }
    let wrong = issue_svid(&east, &agent, &id, &["unix:uid:1001"]).await.unwrap_err();
    assert_eq!(wrong.code(), Code::PermissionDenied);

    // A workload is no agent and no administrator, and whoever is nobody is neither.
    let denied = issue_svid(&east, &svid, &id, &["unix:uid:1000"]).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let link = dial_as(&east, &svid).await;
    let list = crate::wire::control::Document { json: b"{}".to_vec() };
    let denied = unary::<_, crate::wire::control::Document>(
        link.channel,
        "/hanse.control.v1.Admin/NodeList",
        list.clone(),
    );
    assert_eq!(denied.await.unwrap_err().code(), Code::PermissionDenied);
    let tls = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
    let nobody = dial::connect(&token.endpoints[0], tls).await.unwrap();
    let denied =
        unary::<_, crate::wire::control::Document>(nobody.channel, "/hanse.control.v1.Admin/NodeList", list);
    assert_eq!(denied.await.unwrap_err().code(), Code::Unauthenticated);
    east.stop().await;
}

/// A node that is cut off from its cluster hears of no revocation: who listens to it is sent away, and who comes back
/// because there is nobody else is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_streams_end_and_who_comes_back_is_kept() {
    let mut east = found("east", 3).await;
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &["shop/reviews"]).await;
    let (_up, mut down) = open_watch(&east, &svid, "reviews-1", "proxy", 0).await.unwrap();
    down.next().await.unwrap().unwrap();
    // `any` is the first of the running.
    for number in [1, 2] {
        assert_eq!(east.nodes[number].take().unwrap().stop().await, Ended::Stopped);
    }
    let ended = tokio::time::timeout(fixture::PATIENCE, async {
        loop {
            if let Err(status) = down.next().await.expect("a stream ends with a word") {
                return status;
            }
        }
    });
    assert_eq!(ended.await.expect("it ends").code(), Code::Unavailable);

    let (_up, mut again) = open_watch(&east, &svid, "reviews-1", "proxy", 0).await.unwrap();
    let since = std::time::Instant::now();
    while since.elapsed() < crate::io::quorum::LEADERLESS + Duration::from_secs(2) {
        again.next().await.expect("it goes on").expect("it goes on");
    }
    assert!(east.any().context.handle.status().leader.is_none());
    // Static stability: an SVID is still renewed, and its record is owed.
    let renewed = issue_svid(&east, &agent, &id, &["unix:uid:1000"]).await.unwrap();
    assert!(east.any().context.handle.state().private.issued.get(&renewed.facts.serial).is_none());
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_hears_announces_acknowledges_and_is_cut_when_revoked() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let token = agent_token(&client, "host-1").await;
    let agent = join_agent(&east, "host-1", &token).await.unwrap();
    let reviews: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let web: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    let server = workload(&east, &client, &agent, &reviews, &["shop/reviews"]).await;
    let caller = workload(&east, &client, &agent, &web, &[]).await;
    let mut proxy = watch_as(&east, &server, "reviews-1", "proxy").await.unwrap();
    let mut other = watch_as(&east, &caller, "web-1", "proxy").await.unwrap();
    let denied = watch_as(&east, &caller, "gateway-1", "gateway").await.err().unwrap();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let taken = watch_as(&east, &caller, "reviews-1", "proxy").await.err().unwrap();
    assert_eq!(taken.code(), Code::AlreadyExists);

    proxy.announce(&serves("reviews-1", &["shop/reviews"], 1)).await;
    let name: NodeName = "reviews-1".parse().unwrap();
    for subscriber in [&mut proxy, &mut other] {
        subscriber.until("the endpoint", 0, |view| view.endpoints.contains_key(&name)).await;
    }
    let question = RevokePreviewRequest::new(RevocationTarget::Identity(reviews.clone()));
    let live = client.call(&question);
    let never = |view: &View| view.revision.0 == u64::MAX;
    let preview = tokio::select! {
        preview = live => preview.unwrap(),
        () = proxy.until("nothing", 3, never) => unreachable!("it listens until the question is answered"),
        () = other.until("nothing", 4, never) => unreachable!("it listens until the question is answered"),
    };
    assert_eq!(preview.reach[0].live_connections, 7);
    assert_eq!((preview.reach[0].answered, preview.reach[0].asked), (2, 2));
    assert_eq!(preview.holders, ["reviews-1"]);

    let revoked = client
        .call(&RevokeRequest::new(RevocationTarget::Identity(reviews.clone()), Reason::KeyCompromise))
        .await
        .unwrap();
    for subscriber in [&mut proxy, &mut other] {
        subscriber.until("the revocation", 0, |view| view.revocations.get(&revoked.id).is_some()).await;
    }
    let receipt = eventually_asked("a complete receipt", || async {
        let receipt = client.call(&RevokeStatusRequest { id: revoked.id.clone() }).await.unwrap();
        receipt.complete.then_some(receipt)
    })
    .await;
    assert_eq!(receipt.parts.len(), 1);
    assert_eq!(receipt.parts[0].revision, Some(revoked.revision));
    assert_eq!(receipt.parts[0].proxies.enforced, receipt.parts[0].proxies.total);
    // The revoked proxy's connection is cut with its stream, it may not come back, and nothing is issued any more.
    let cut = tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = proxy.down.next().await {} });
    cut.await.expect("the stream of a revoked proxy ends");
    assert!(watch_as(&east, &server, "reviews-2", "proxy").await.is_err());
    let refused = issue_svid(&east, &agent, &reviews, &["unix:uid:1000"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Its endpoint goes with its lease.
    other.until("the endpoint to be withdrawn", 0, |view| !view.endpoints.contains_key(&name)).await;
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_resumes_and_who_does_not_is_withdrawn() {
    let mut east = found("east", 1).await;
    let client = east.client().await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &["shop/reviews"]).await;
    let (one, two): (NodeName, NodeName) = ("reviews-1".parse().unwrap(), "reviews-2".parse().unwrap());
    let mut first = watch_as(&east, &svid, "reviews-1", "proxy").await.unwrap();
    let second = watch_as(&east, &svid, "reviews-2", "proxy").await.unwrap();
    let from = first.view.revision.0;
    first.announce(&serves("reviews-1", &["shop/reviews"], 1)).await;
    second.announce(&serves("reviews-2", &["shop/reviews"], 1)).await;
    let both = |view: &View| view.endpoints.contains_key(&one) && view.endpoints.contains_key(&two);
    first.until("both endpoints", 0, both).await;

    // Whoever knows a revision hears what came after it, and no snapshot.
    let (_up, mut resumed) = open_watch(&east, &svid, "reviews-3", "proxy", from).await.unwrap();
    let mut heard = 0;
    while heard < 2 {
        match resumed.next().await.unwrap().unwrap().message {
            Some(Down::Changes(changes)) if changes.change.is_empty() => {}
            Some(Down::Changes(changes)) => {
                assert!(changes.revision > from);
                heard += 1;
            }
            other => panic!("not a change: {other:?}"),
        }
    }

    // A node that starts again keeps what its disk holds, and withdraws whoever does not come back to it.
    drop((first, second, resumed));
    east.restart(0).await;
    east.until("both endpoints after the restart", |n| both(&n.context.handle.state().view)).await;
    let back = watch_as(&east, &svid, "reviews-1", "proxy").await.unwrap();
    back.announce(&serves("reviews-1", &["shop/reviews"], 2)).await;
    // One whose announcement reaches the log when its stream has ended and its lease is over.
    let announcement = Box::new(serves("reviews-3", &["shop/reviews"], 1));
    let late: NodeName = announcement.name.clone();
    let node = east.any().context.name.clone();
    let command = Command::Announce { announcement, identity: id.clone(), node };
    let outcome = east.any().context.handle.propose("", command).await.unwrap();
    assert_eq!(outcome.result, Ok(crate::command::Answer::Done));
    east.until("who did not come back is gone", |n| {
        let endpoints = &n.context.handle.state().view.endpoints;
        endpoints.keys().eq([&one]) && !endpoints.contains_key(&late)
    })
    .await;
    let proxies = east.client().await.call(&ProxyListRequest {}).await.unwrap();
    assert_eq!(proxies.items.len(), 1);
    assert!(proxies.items[0].connected);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_policy_changes_nothing() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let before = east.any().context.handle.state().view.policies.clone();
    let wrong = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  parentRefss: []\n";
    let apply = |text: &str, dry_run| PolicyApplyRequest {
        file: "r.yaml".to_owned(),
        text: text.to_owned(),
        dry_run,
        files: Default::default(),
    };
    let reply = client.call(&apply(wrong, false)).await.unwrap();
    assert!(!reply.applied);
    assert!(reply.diagnostics.iter().any(|d| d.file == "r.yaml" && d.line > 0), "{:?}", reply.diagnostics);
    assert_eq!(east.any().context.handle.state().view.policies, before);
    let missing = PolicyGetRequest { kind: None, name: Some("shop/r".parse().unwrap()) };
    assert_eq!(client.call(&missing).await.unwrap_err().kind, ClientErrorKind::NotFound);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_into_another_namespace_is_taken_and_told_until_that_grants_it() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let apply = async |text: String| {
        let (file, files) = ("r.yaml".to_owned(), Default::default());
        let reply = client.call(&PolicyApplyRequest { file, text, dry_run: false, files }).await.unwrap();
        let told = reply.diagnostics.into_iter().map(|d| d.code).collect::<Vec<_>>();
        let listed = client.call(&PolicyGetRequest::default()).await.unwrap().warnings;
        (reply.applied, told, listed.into_iter().map(|w| (w.code, w.message)).collect::<Vec<_>>())
    };
    let outside = |namespace: &str| {
        format!(
            "apiVersion: hanse.dev/v1alpha1\nkind: ExternalService\nmetadata: {{name: api, namespace: {namespace}}}\nspec: \
             {{hosts: [api.{namespace}.example], ports: [{{port: 80, protocol: HTTP}}]}}\n---\n"
        )
    };
    let gateway_api = "apiVersion: gateway.networking.k8s.io/v1\n";
    let route = format!(
        "{gateway_api}kind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: hanse.dev, kind: ExternalService, name: api}}]\n  \
         rules: [{{backendRefs: [{{group: hanse.dev, kind: ExternalService, name: api, namespace: trial}}]}}]\n"
    );
    let (applied, told, listed) = apply(format!("{}{}{route}", outside("shop"), outside("trial"))).await;
    assert!(applied && told == ["E4108"], "{told:?}");
    let [(code, message)] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!(code, "E4108");
    assert!(message.starts_with("HTTPRoute/shop/r: RefNotPermitted: "), "{message}");
    let grant = format!(
        "{gateway_api}kind: ReferenceGrant\nmetadata: {{name: shop, namespace: trial}}\nspec:\n  \
         from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}}]\n  \
         to: [{{group: hanse.dev, kind: ExternalService}}]\n"
    );
    let (applied, told, listed) = apply(grant).await;
    assert!(applied && told.is_empty() && listed.is_empty(), "{told:?} {listed:?}");
    east.stop().await;
}

async fn join_lines(client: &Client, token: String) -> Vec<JoinEvent> {
    let stream = client.join(&ClusterJoinRequest { token, dry_run: false }).await.unwrap();
    tokio::time::timeout(PATIENCE, stream.map(Result::unwrap).collect()).await.expect("a join ends")
}

async fn cluster_token(client: &Client, joiner: &str) -> String {
    let request = ClusterTokenCreateRequest { cluster: joiner.parse().unwrap(), ttl_seconds: 600 };
    client.call(&request).await.unwrap().token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_join_tell_revoke_and_leave() {
    let (east, west) = (found("east", 1).await, found("west", 1).await);
    let (at_east, at_west) = (east.client().await, west.client().await);
    let token = cluster_token(&at_east, "west").await;
    // Without gateways nothing is committed on either side.
    let events = join_lines(&at_west, token.clone()).await;
    assert!(matches!(events.last(), Some(JoinEvent::Done { joined: false, .. })), "{events:?}");
    for cluster in [&east, &west] {
        assert!(cluster.any().context.handle.state().view.peers.is_empty());
    }
    let east_agent = join_agent(&east, "host-1", &agent_token(&at_east, "host-1").await).await.unwrap();
    let west_agent = join_agent(&west, "host-1", &agent_token(&at_west, "host-1").await).await.unwrap();
    let (mut east_gateway, _listening) = gateway(&east, &at_east, &east_agent).await;
    let (mut west_gateway, _listening) = gateway(&west, &at_west, &west_agent).await;

    let events = join_lines(&at_west, token).await;
    assert!(matches!(events.last(), Some(JoinEvent::Done { joined: true, synced: true, .. })), "{events:?}");
    let names: Vec<&str> = events
        .iter()
        .filter_map(|e| match e {
            JoinEvent::Line(check) if check.ok => Some(check.name.as_str()),
            _ => None,
        })
        .collect();
    for wanted in ["token", "reach", "pin", "clocks", "names", "gateways", "agree", "sync"] {
        assert!(names.contains(&wanted), "no line {wanted}: {names:?}");
    }
    for (cluster, other) in [(&east, "west.example"), (&west, "east.example")] {
        let other = other.parse().unwrap();
        cluster.until("the other side's revocation list", |n| lists::lists(n, &other).len() == 1).await;
    }
    told_across(&east, &west, &at_east, &at_west, &east_agent).await;
    revoked_across(&at_east, &mut east_gateway, &mut west_gateway).await;

    let left = at_west.call(&ClusterLeaveRequest { cluster: "east".parse().unwrap() }).await.unwrap();
    assert!(left.other_side_told, "{left:?}");
    duties::joining_and_leaving_left_rows(&at_east, &at_west).await;
    for cluster in [&east, &west] {
        cluster.until("no peer", |n| n.context.handle.state().view.peers.is_empty()).await;
        cluster.until("one bundle", |n| n.context.handle.state().view.bundles.len() == 1).await;
    }
    east.stop().await;
    west.stop().await;
}

/// An export at east is known at west, and the link is seen from both sides.
async fn told_across(east: &Cluster, west: &Cluster, at_east: &Client, at_west: &Client, east_agent: &Svid) {
    let reviews: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let service = "shop/reviews".parse().unwrap();
    workload(east, at_east, east_agent, &reviews, &["shop/reviews"]).await;
    let export =
        ServiceExportRequest { service, to: Export::Only(BTreeSet::from(["west".parse().unwrap()])) };
    at_east.call(&export).await.unwrap();
    west.until("the export", |n| {
        let state = n.context.handle.state();
        let peer = state.view.peers.values().next();
        peer.is_some_and(|p| p.state == PeerState::Joined && p.services.contains_key(&export.service))
    })
    .await;
    for (client, other) in [(at_east, "west"), (at_west, "east")] {
        let item = eventually_asked("a connected link", || async {
            let clusters = client.call(&ClusterListRequest {}).await.unwrap();
            clusters.items.into_iter().find(|c| {
                c.cluster.as_str() == other && c.state == ClusterState::Connected && c.rtt_ms.is_some()
            })
        })
        .await;
        assert_eq!(item.link, Some(Link::Connected));
        assert_eq!(item.refused_imports, 0);
        let check = client.call(&ClusterCheckRequest { cluster: Some(item.cluster) }).await.unwrap();
        assert!(check.ok, "{check:?}");
    }
    let services = at_west.call(&ServiceListRequest {}).await.unwrap();
    assert_eq!(services.items[0].imported_from[0].cluster.as_str(), "east");
}

/// A revocation at east is committed at west, and the receipt counts both sides' gateways.
async fn revoked_across(at_east: &Client, east_gateway: &mut Subscriber, west_gateway: &mut Subscriber) {
    let target = RevocationTarget::Identity("spiffe://east.example/ns/shop/sa/reviews".parse().unwrap());
    let request = RevokeRequest::new(target, Reason::KeyCompromise);
    let revoked = at_east.call(&request).await.unwrap();
    for gateway in [east_gateway, west_gateway] {
        gateway.until("the revocation", 0, |view| view.revocations.get(&revoked.id).is_some()).await;
    }
    let receipt = eventually_asked("a complete receipt", || async {
        let receipt = at_east.call(&RevokeStatusRequest { id: revoked.id.clone() }).await.unwrap();
        receipt.complete.then_some(receipt)
    })
    .await;
    let clusters: Vec<&str> = receipt.parts.iter().map(|p| p.cluster.as_str()).collect();
    assert_eq!(clusters, ["east", "west"]);
    assert!(receipt.parts.iter().all(|p| p.gateways == Tally { enforced: 1, total: 1 }), "{receipt:?}");
    let listed = at_east.call(&RevokeListRequest {}).await.unwrap();
    assert_eq!(listed.items[0].revocation.id, revoked.id);
    assert!(!listed.items[0].can_be_lifted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_http_port_tells_health_and_metrics() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let east = found("east", 1).await;
    let address = east.any().admin;
    let get = |path: &'static str| async move {
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics").await;
    assert!(metrics.contains("\nhanse_raft_is_leader 1\n"), "{metrics}");
    assert!(metrics.contains("hanse_svid_issued_total 1\n"), "{metrics}");
    assert!(get("/status").await.contains("\"east.example\""));
    assert!(get("/else").await.starts_with("HTTP/1.1 404"));
    east.stop().await;
}

#[test]
fn a_lifetime_is_read_and_bounded() {
    assert_eq!(lifetime("24h"), Ok(Duration::from_secs(86_400)));
    assert_eq!(lifetime("90s"), Ok(Duration::from_secs(90)));
    for wrong in ["", "h", "10", "1d", "25h", "1s", "99999999999999999999h"] {
        assert!(lifetime(wrong).is_err(), "{wrong}");
    }
}
