//! A control node that is revoked while it runs: cut off by the others, left by its listeners, and said so.

use super::*;

/// An administrator's client of that node alone.
async fn at(cluster: &Cluster, number: usize) -> Client {
    let address = cluster.nodes[number].as_ref().unwrap().listen.to_string();
    Client::connect(&Credential { endpoints: vec![address], ..cluster.credential.clone() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_cut_off_within_a_second_and_the_others_go_on() {
    let east = found("east", 3).await;
    let leader = east.leader().unwrap();
    // Not the first: its authority has signed the administrator's credential.
    let victim = (1..3).find(|n| *n != leader).unwrap();
    let node = |n: usize| east.nodes[n].as_ref().unwrap();
    let (gone, name) = (node(victim), node(victim).context.name.clone());
    let client = at(&east, leader).await;
    let agent = join_agent(&east, "host-1", &agent_token(&client, "host-1").await).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/reviews".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &["shop/reviews"]).await;
    // A listener of the node that is going to be revoked.
    let trust = FixedTrust(Arc::new(Trust::new([&east.bundle()], Revocations::default())));
    let expect = Expect::Member(svid.facts.id.trust_domain().clone(), MemberRole::Node);
    let identity = Arc::new(FixedIdentity::new(&svid).unwrap());
    let tls = client_config(Arc::new(trust), identity, expect, ALPN_H2);
    let link = dial::connect(&gone.listen.to_string(), tls).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(link.channel).max_decoding_message_size(64 << 20);
    grpc.ready().await.unwrap();
    let (up, ups) = mpsc::channel(16);
    let hello =
        Hello { name: "reviews-1".into(), kind: "proxy".into(), from_revision: 0, version: "test".into() };
    up.send(WatchUp { message: Some(Up::Hello(hello)) }).await.unwrap();
    let codec = tonic_prost::ProstCodec::<WatchUp, WatchDown>::default();
    let path = ::http::uri::PathAndQuery::from_static("/hanse.watch.v1.Watch/Watch");
    let request = Request::new(ReceiverStream::new(ups));
    let mut down: Streaming<WatchDown> = grpc.streaming(request, path, codec).await.unwrap().into_inner();
    down.next().await.unwrap().unwrap();

    let linked = |other: usize| node(other).context.links.is_linked(gone.context.raft_id);
    let others: Vec<usize> = (0..3).filter(|n| *n != victim).collect();
    eventually("the others are linked with it", || others.iter().all(|n| linked(*n)).then_some(())).await;
    let revoke = RevokeRequest::new(RevocationTarget::Node(name.clone()), Reason::KeyCompromise);
    let revoked = client.call(&revoke).await.unwrap();
    let began = Instant::now();
    // It hears of it itself, and sends its listener elsewhere.
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(status) = down.next().await.expect("it says why") {
                return status;
            }
        }
    });
    let ended = ended.await.expect("the stream ends");
    assert!(ended.message().contains("revoked"), "{ended:?}");
    let sent_away = began.elapsed();
    eventually("no link to it is left", || others.iter().all(|n| !linked(*n)).then_some(())).await;
    let cut = began.elapsed();
    assert!(sent_away < Duration::from_secs(1) && cut < Duration::from_secs(1), "{sent_away:?} {cut:?}");

    // What is committed from now on it does not get, though it runs and dials.
    let told = gone.context.handle.state().view.revision.0;
    assert!(told >= revoked.revision, "it heard of its own revocation: {told}");
    let mut last = 0;
    for n in 0..5 {
        let request = AgentTokenCreateRequest { agent: format!("h-{n}").parse().unwrap(), ttl_seconds: 60 };
        client.call(&request).await.unwrap();
        last = node(leader).context.handle.state().view.revision.0;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(gone.context.handle.state().view.revision.0 < last, "it is told nothing more");
    let asked = node(leader).context.links.call_census(
        gone.context.raft_id,
        crate::wire::control::Document::default(),
        Duration::from_secs(1),
    );
    assert!(asked.await.is_err(), "nor is it asked anything");

    let nodes = client.call(&NodeListRequest {}).await.unwrap();
    let item = nodes.items.iter().find(|i| i.node == name).unwrap();
    assert_eq!((item.state, item.term), (NodeState::Revoked, 0));
    assert_eq!(nodes.quorum, Quorum { voters: 3, needed: 2, answering: 2, can_lose: 0 });
    assert!(!nodes.meta.partial, "{:?}", nodes.warnings);
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_hold_comes_back_when_the_hold_is_lifted() {
    let east = found("east", 3).await;
    let leader = east.leader().unwrap();
    let node = |n: usize| east.nodes[n].as_ref().unwrap();
    let (stays, held) = (node(leader), node((1..3).find(|n| *n != leader).unwrap()));
    let client = at(&east, leader).await;
    let name = held.context.name.clone();
    let hold = RevokeRequest::new(RevocationTarget::Node(name), Reason::Hold);
    let id = client.call(&hold).await.unwrap().id;
    let to = held.context.raft_id;
    eventually("the link is cut", || (!stays.context.links.is_linked(to)).then_some(())).await;
    let lift = RevokeLiftRequest { id };
    eventually_asked("the hold is lifted", || async { client.call(&lift).await.ok() }).await;
    eventually("it is linked again", || stays.context.links.is_linked(to).then_some(())).await;
    let revision = stays.context.handle.state().view.revision.0;
    eventually("it has caught up", || {
        (held.context.handle.state().view.revision.0 >= revision).then_some(())
    })
    .await;
    let nodes = client.call(&NodeListRequest {}).await.unwrap();
    assert_eq!(nodes.quorum.answering, 3, "{nodes:?}");
    east.stop().await;
}
