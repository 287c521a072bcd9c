//! An agent whose own SVID is of no use any more: it says so, keeps what it holds, and joins anew without a restart.

use super::*;

pub(super) const SHORT: Duration = Duration::from_secs(10);

fn still(lease: &crate::io::svids::Lease, serial: &hanse_identity::Serial) -> bool {
    matches!(lease.holding(), Holding::Ready(svid) if svid.facts.serial == *serial)
}

/// A cluster of one node whose agents' SVIDs live for ten seconds and are not renewed, and its agent.
async fn short_lived() -> (Arc<Cluster>, Node, tempfile::TempDir, Member) {
    let cluster = Cluster::new(vec![mine(REVIEWS)], SHORT);
    cluster.renews.store(false, Ordering::SeqCst);
    let node = Node::start(&cluster, "east-1");
    cluster.state.send_modify(|s| s.endpoints = vec![node.address.clone()]);
    let directory = tempfile::tempdir().unwrap();
    drop(store(&directory));
    let token = cluster.token_of("i-1", vec![node.address.clone()]);
    std::fs::write(directory.path().join("data/join-token"), token.to_string()).unwrap();
    let agent = Member::start(&directory);
    until(|| agent.page("/readyz").0 == 200).await;
    (cluster, node, directory, agent)
}

#[tokio::test]
async fn an_agent_whose_svid_has_expired_joins_anew_without_a_restart() {
    let (cluster, node, directory, agent) = short_lived().await;
    let (lease, serial) = agent.workload().await;
    until(|| agent.not_ready_with("own SVID expired at")).await;
    let (_, why) = agent.page("/readyz");
    let file = agent.token_file.display().to_string();
    assert!(why.contains("hanse agent token create host-1") && why.contains(&file), "{why}");
    assert!(why.contains("i-1 has been used"), "the spent token is not tried again: {why}");
    assert!(agent.page("/metrics").1.contains("hanse_agent_must_join_anew 1"));
    assert!(still(&lease, &serial), "what the workload has is valid and kept");

    let mut other = cluster.token_of("i-2", vec![node.address.clone()]);
    other.admits = Admits::Agent("host-2".parse().unwrap());
    agent.put(&other);
    until(|| agent.not_ready_with("is for agent host-2")).await;
    // A token that the cluster does not know: refused, said, not tried again.
    let unknown = cluster.token_of("i-3", vec![node.address.clone()]);
    *cluster.invite.lock().unwrap() = None;
    agent.put(&unknown);
    until(|| agent.not_ready_with("i-3 has been used or refused")).await;

    agent.put(&cluster.token_of("i-4", vec![node.address.clone()]));
    until(|| agent.page("/metrics").1.contains("hanse_agent_rejoins_total 1")).await;
    // Not before: this node answers on connections of before too, which a real one cuts.
    cluster.renews.store(true, Ordering::SeqCst);
    until(|| agent.page("/readyz").0 == 200).await;
    until(|| agent.link.own_not_after() > later(now(), 3600)).await;
    let metrics = agent.page("/metrics").1;
    assert!(metrics.contains("hanse_agent_must_join_anew 0"), "{metrics}");
    assert!(metrics.contains("hanse_agent_rejoins_total 1"), "{metrics}");
    assert!(still(&lease, &serial));
    assert_eq!(store(&directory).identity().unwrap().unwrap().invite, "i-4");
    cluster.change(|_| {});
    until(|| cluster.applied() == 2).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_was_evicted_says_so_and_joins_anew() {
    let (cluster, node, _directory, agent) = short_lived().await;
    let (lease, serial) = agent.workload().await;
    let own = agent.link.identity().unwrap().facts.serial.clone();
    cluster.change(|s| s.revocations.insert(revocation(3, RevocationTarget::Serial(own))));
    until(|| agent.not_ready_with("this agent was evicted (r-3@east.example)")).await;
    agent.put(&cluster.token_of("i-2", vec![node.address.clone()]));
    until(|| agent.page("/readyz").0 == 200).await;
    assert!(still(&lease, &serial));
    agent.stop().await;
}

/// Whether the ban has ended is not for it to know: the control nodes it cannot reach decide.
#[tokio::test]
async fn an_agent_that_was_banned_looks_for_a_token_too() {
    let (cluster, node, _directory, agent) = short_lived().await;
    cluster.change(|s| s.revocations.insert(revocation(3, RevocationTarget::Agent(super::agent()))));
    until(|| agent.not_ready_with("r-3@east.example")).await;
    until(|| agent.not_ready_with("hanse agent token create host-1")).await;
    agent.put(&cluster.token_of("i-2", vec![node.address.clone()]));
    until(|| agent.page("/metrics").1.contains("hanse_agent_rejoins_total 1")).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_host_that_was_off_for_days_starts_waits_and_joins() {
    let cluster = Cluster::new(vec![], DAY);
    let node = Node::start(&cluster, "east-1");
    cluster.state.send_modify(|s| s.endpoints = vec![node.address.clone()]);
    let directory = tempfile::tempdir().unwrap();
    let own = SpiffeId::member(&east(), MemberRole::Agent, &agent());
    let ticket = grant::grant_member(&east(), &Revocations::default(), &own, SHORT).unwrap();
    let (key, csr) = key_and_request().unwrap();
    let an_hour_ago = now() - Duration::from_secs(3600);
    let issued = issue(ticket, &csr, &cluster.authority, serial(), an_hour_ago).unwrap();
    let mut stored = StoredIdentity {
        name: agent(),
        cluster: "east".parse().unwrap(),
        trust_domain: east(),
        chain_pem: String::new(),
        key_pem: String::new(),
        bundle: bundle(&[&cluster.authority]),
        endpoints: vec![node.address.clone()],
        invite: "i-1".to_owned(),
        spare: None,
    };
    stored.set_svid(&Svid::new(issued.chain, key).unwrap());
    store(&directory).write_identity(&stored).unwrap();
    let agent = Member::start(&directory);
    until(|| agent.not_ready_with("own SVID expired at")).await;
    assert!(!agent.running.is_finished(), "it goes on running");
    agent.put(&cluster.token_of("i-2", vec![node.address.clone()]));
    until(|| agent.page("/readyz").0 == 200).await;
    agent.stop().await;
}
