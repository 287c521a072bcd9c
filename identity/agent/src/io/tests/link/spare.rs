//! A control node is revoked, and with it the SVID of an agent that it has signed.

use super::*;

/// Everything that the first authority has signed.
fn of_the_first(cluster: &Cluster) -> hanse_identity::Revocation {
    let target = RevocationTarget::Node("node-1".parse().unwrap());
    let authorities = [cluster.authority.certificate().key_id].into();
    hanse_identity::Revocation { authorities, ..revocation(9, target) }
}

fn signer(svid: &Svid) -> Option<String> {
    svid.facts.authority_key_identifier.clone()
}

/// An agent that has joined at the first of two nodes and has been given a spare by the second.
async fn with_a_spare(cluster: &Arc<Cluster>, one: &Node, two: &Node) -> (tempfile::TempDir, Member) {
    let directory = tempfile::tempdir().unwrap();
    cluster.state.send_modify(|s| s.endpoints = vec![one.address.clone(), two.address.clone()]);
    let token = cluster.token(vec![one.address.clone()]);
    soon(join(&Proof::Token(token), &agent(), &[], &store(&directory))).await.unwrap();
    let member = Member::start(&directory);
    until(|| store(&directory).identity().unwrap().unwrap().spare.is_some()).await;
    let stored = store(&directory).identity().unwrap().unwrap();
    let second = cluster.second.as_ref().unwrap().certificate().key_id.prefix();
    assert_eq!(signer(&stored.svid().unwrap()), Some(cluster.authority.certificate().key_id.prefix()));
    assert_eq!(signer(&stored.spare().unwrap()), Some(second));
    assert_ne!(stored.spare().unwrap().facts.key_id, stored.svid().unwrap().facts.key_id);
    (directory, member)
}

#[tokio::test]
async fn an_agent_goes_on_when_the_node_that_signed_its_svid_is_revoked() {
    let cluster = Cluster::of_two_authorities(vec![mine(REVIEWS)]);
    let one = Node::start(&cluster, "node-1");
    let two = Node::start_second(&cluster, "node-2", Revocations::default());
    let (directory, member) = with_a_spare(&cluster, &one, &two).await;
    let (mut lease, before) = member.workload().await;
    let second = cluster.second.as_ref().unwrap().certificate().key_id.prefix();
    let by_second = |svid: &Svid| signer(svid).as_deref() == Some(&second);
    let held_by_second = matches!(lease.holding(), Holding::Ready(svid) if by_second(&svid));

    cluster.change(|s| s.revocations.insert(of_the_first(&cluster)));
    until(|| store(&directory).identity().unwrap().unwrap().svid().is_ok_and(|svid| by_second(&svid))).await;
    until(|| member.link.connected() && member.page("/readyz").0 == 200).await;
    assert_eq!(member.link.trouble(), None, "nobody has to let it in anew");
    // What it holds for workloads is replaced without it being asked to join.
    if !held_by_second {
        while !matches!(lease.holding(), Holding::Denied(_)) {
            soon(lease.changed()).await;
        }
        let (_next, after) = member.workload().await;
        assert_ne!(before, after);
    }
    member.stop().await;
}

#[tokio::test]
async fn an_agent_that_was_off_meanwhile_comes_back_by_its_other_svid() {
    let cluster = Cluster::of_two_authorities(vec![]);
    let one = Node::start(&cluster, "node-1");
    let two = Node::start_second(&cluster, "node-2", Revocations::default());
    let (directory, member) = with_a_spare(&cluster, &one, &two).await;
    member.stop().await;
    drop((one, two));

    // The second node, and what it believes by now.
    let mut revocations = Revocations::default();
    revocations.insert(of_the_first(&cluster));
    cluster.change(|s| s.revocations = revocations.clone());
    let two = Node::start_second(&cluster, "node-2", revocations);
    let mut stored = store(&directory).identity().unwrap().unwrap();
    stored.endpoints = vec![two.address.clone()];
    store(&directory).write_identity(&stored).unwrap();
    cluster.state.send_modify(|s| s.endpoints = vec![two.address.clone()]);
    let member = Member::start(&directory);
    until(|| member.link.connected()).await;
    assert!(two.failed.load(Ordering::SeqCst) >= 1, "its first SVID was refused");
    until(|| member.page("/readyz").0 == 200).await;
    assert_eq!(member.link.trouble(), None);
    member.stop().await;
}
