//! What an agent does with what its control nodes say, and how it moves between them.

use super::*;

#[tokio::test]
async fn follows_the_state_gets_svids_and_moves_to_another_node() {
    let cluster = Cluster::new(vec![mine(REVIEWS)], DAY);
    let (mut one, mut two) = (Node::start(&cluster, "east-1"), Node::start(&cluster, "east-2"));
    let directory = tempfile::tempdir().unwrap();
    cluster.state.send_modify(|s| s.endpoints = vec![one.address.clone(), two.address.clone()]);
    let token = cluster.token(vec![one.address.clone()]);
    soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    let agent = Member::start(&directory);
    until(|| agent.link.connected()).await;
    assert_eq!(agent.page("/readyz").0, 200);
    until(|| cluster.applied() == 1).await;
    let known = || store(&directory).identity().unwrap().unwrap().endpoints.clone();
    until(|| known().len() == 2).await;

    let me = Arc::new(crate::attest::Caller { uid: own_uid(), ..crate::fixture::caller() });
    let mut lease = agent.shared.svids.hold(&id(REVIEWS), &me).unwrap();
    while !matches!(lease.holding(), Holding::Ready(_)) {
        soon(lease.changed()).await;
    }
    let (status, entries) = agent.page("/entries");
    let entries: serde_json::Value = serde_json::from_str(&entries).unwrap();
    assert_eq!((status, entries["held"][0]["spiffeId"].as_str()), (200, Some(REVIEWS)));
    assert!(entries["held"][0]["serial"].is_string());
    assert!(!entries.to_string().to_lowercase().contains("key"), "{entries}");
    assert!(agent.page("/metrics").1.contains("hanse_agent_svids_issued_total 1"));

    // Whichever node it is on dies: it goes on with the other.
    let first = if one.followed.load(Ordering::SeqCst) > 0 { &mut one } else { &mut two };
    first.kill();
    until(|| agent.shared.metrics.control_connections.get() == 2).await;
    cluster.change(|_| {});
    until(|| agent.revision() == 2).await;
    until(|| cluster.applied() == 2).await;
    let key = agent.shared.svids.list()[0].key.clone();
    agent.shared.svids.renew_now(&key);
    until(|| cluster.issued.load(Ordering::SeqCst) == 2).await;

    agent.stop().await;
}

#[tokio::test]
async fn t29_who_is_refused_by_a_node_that_signs_nothing_asks_another_one() {
    let cluster = Cluster::new(vec![mine(REVIEWS)], DAY);
    let nodes = [Node::start(&cluster, "east-1"), Node::start(&cluster, "east-2")];
    let directory = tempfile::tempdir().unwrap();
    let endpoints: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
    cluster.state.send_modify(|s| s.endpoints = endpoints.clone());
    nodes[0].signs.store(false, Ordering::SeqCst);
    let token = cluster.token(endpoints);
    soon(join(&Proof::Token(token), &agent(), &[], &store(&directory))).await.unwrap();
    let agent = Member::start(&directory);
    let (_lease, mut serial) = agent.workload().await;
    let key = agent.shared.svids.list()[0].key.clone();
    // Wherever it is, one of these turns is its node's.
    for which in [1, 0] {
        nodes[1 - which].signs.store(true, Ordering::SeqCst);
        nodes[which].signs.store(false, Ordering::SeqCst);
        let before = cluster.issued.load(Ordering::SeqCst);
        agent.shared.svids.renew_now(&key);
        until(|| cluster.issued.load(Ordering::SeqCst) > before).await;
        let held = || match &agent.shared.svids.list()[0].holding {
            Holding::Ready(svid) => svid.facts.serial.clone(),
            other => panic!("what it has stays until it is replaced: {other:?}"),
        };
        until(|| held() != serial).await;
        serial = held();
    }
    assert!(agent.shared.metrics.control_connections.get() >= 2, "it has moved");
    agent.stop().await;
}

#[tokio::test]
async fn what_the_agent_knows_never_goes_back() {
    let cluster = Cluster::new(vec![mine(REVIEWS)], DAY);
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    let token = cluster.token(vec![node.address.clone()]);
    let stored = soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    let membership = Arc::new(Membership::new(store(&directory), stored, Vec::new()));
    let link = ControlLink::new(Streams::default(), Arc::default());
    let view = watch::Sender::new(View::default());
    let state = |revision: u64| AgentState { revision, ..cluster.state.borrow().clone() };
    let accept = async |state: &AgentState| {
        link.accept(&membership, &view, &serde_json::to_vec(state).unwrap()).await.map_err(|e| e.to_string())
    };
    let known = || view.borrow().state.clone().unwrap();

    let mut revoking = state(10);
    revoking.revocations.insert(revocation(9, RevocationTarget::Identity(id(REVIEWS))));
    accept(&revoking).await.unwrap();
    accept(&state(4)).await.unwrap();
    assert_eq!(*known(), revoking);
    assert_eq!(link.trust().revocations.len(), 1);
    accept(&state(11)).await.unwrap();
    assert_eq!(known().revocations.len(), 0);

    let mut strange = state(12);
    strange.bundles.clear();
    assert!(accept(&strange).await.unwrap_err().contains("bundle"));
    assert!(link.accept(&membership, &view, b"{").await.is_err());
    assert_eq!(known().revision, 11);
}

#[tokio::test]
async fn the_own_svid_is_renewed_stored_and_used() {
    // So short a life that it is due at once.
    let cluster = Cluster::new(vec![], Duration::from_secs(10));
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    cluster.state.send_modify(|s| s.endpoints = vec![node.address.clone()]);
    let token = cluster.token(vec![node.address.clone()]);
    let stored = soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    let before = stored.svid().unwrap().facts;
    let agent = Member::start(&directory);
    until(|| agent.link.own_not_after() > later(before.not_after, 3600)).await;
    let after = store(&directory).identity().unwrap().unwrap().svid().unwrap().facts;
    assert_ne!((after.serial, after.key_id), (before.serial, before.key_id));
    // Joined, connected with the old one, connected with the new one.
    until(|| node.connections.load(Ordering::SeqCst) == 3).await;
    until(|| agent.link.connected()).await;
    assert_eq!(cluster.renewals.load(Ordering::SeqCst), 1);
    agent.stop().await;
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let cluster = Cluster::new(vec![], DAY);
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    cluster.state.send_modify(|s| s.endpoints = vec![node.address.clone()]);
    let token = cluster.token(vec![node.address.clone()]);
    soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    let agent = Member::start(&directory);
    assert_eq!(agent.page("/readyz").0, 503);
    assert_eq!(agent.page("/healthz").0, 200);
    assert_eq!(agent.page("/nothing").0, 404);
    until(|| agent.page("/readyz").0 == 200).await;
    let own = SpiffeId::member(&east(), MemberRole::Agent, &super::agent());
    cluster.change(|s| s.revocations.insert(revocation(3, RevocationTarget::Identity(own))));
    until(|| agent.not_ready_with("r-3@east.example")).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_whole_agent_from_token_to_certificate_to_shutdown() {
    let cluster = Cluster::new(vec![mine(REVIEWS)], DAY);
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    cluster.state.send_modify(|s| s.endpoints = vec![node.address.clone()]);
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, cluster.token(vec![node.address.clone()]).to_string()).unwrap();
    let config =
        crate::Config { admin: Some("127.0.0.1:0".parse().unwrap()), ..config(&directory, Some(token_file)) };
    // The second time without a token's use: it is spent, and the stored identity is enough.
    for _ in 0..2 {
        let start = crate::start(&config, &agent(), &store(&directory), now()).unwrap();
        let (stop, asked) = tokio::sync::oneshot::channel();
        let asked = async { Ok(asked.await?) };
        let serving = tokio::spawn(crate::serve(config.clone(), agent(), store(&directory), start, asked));
        *cluster.invite.lock().unwrap() = match store(&directory).identity().unwrap() {
            Some(_) => None,
            None => cluster.invite.lock().unwrap().take(),
        };
        until(|| config.socket.exists()).await;
        let mut client = SpiffeWorkloadApiClient::new(connect(&config.socket).await);
        let svid = loop {
            let mut request = Request::new(X509svidRequest {});
            request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
            match soon(client.fetch_x509svid(request)).await {
                Ok(mut stream) => break soon(stream.get_mut().message()).await.unwrap().unwrap(),
                Err(early) if early.code() == tonic::Code::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(status) => panic!("{status:?}"),
            }
        };
        assert_eq!(svid.svids[0].spiffe_id, REVIEWS);
        stop.send("asked by the test").unwrap();
        soon(serving).await.unwrap().unwrap();
        assert!(!config.socket.exists());
    }
}
