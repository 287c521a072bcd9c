//! More revocations than anybody should have, and a list that cannot be read: the agent's own SVID and its workloads' are
//! renewed all the same, and clearing is heard.

use hanse_identity::Crl;
use hanse_identity::crl::{LIFETIME, MAX_CRL_BYTES};

use super::*;

const MANY: u64 = 30_000;

#[tokio::test]
async fn a_huge_list_blocks_no_renewal_and_clearing_it_is_heard() {
    // So short a life that the agent's own SVID is due at once.
    let cluster = Cluster::new(vec![mine(REVIEWS)], Duration::from_secs(10));
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    cluster.change(|state| {
        state.endpoints = vec![node.address.clone()];
        for number in 0..MANY {
            state.revocations.insert(revocation(number + 10, RevocationTarget::Serial(serial())));
        }
        let authority = cluster.authority.certificate().key_id;
        let next_update = now() + LIFETIME;
        let crl = Crl { authority, number: 1, next_update, der: vec![0xff; MAX_CRL_BYTES].into() };
        state.crls.insert(east(), std::collections::BTreeMap::from([(authority, crl)]));
    });
    let token = cluster.token(vec![node.address.clone()]);
    let stored = soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    let before = stored.svid().unwrap().facts;
    let agent = Member::start(&directory);
    until(|| agent.link.own_not_after() > later(before.not_after, 3600)).await;
    until(|| agent.revision() == 2).await;
    assert_eq!(agent.link.trust().revocations.len(), MANY as usize);

    let me = Arc::new(crate::attest::Caller { uid: own_uid(), ..crate::fixture::caller() });
    let mut lease = agent.shared.svids.hold(&id(REVIEWS), &me).unwrap();
    while !matches!(lease.holding(), Holding::Ready(_)) {
        soon(lease.changed()).await;
    }
    let key = agent.shared.svids.list()[0].key.clone();
    assert!(agent.shared.svids.renew_now(&key));
    until(|| cluster.issued.load(Ordering::SeqCst) == 2).await;

    cluster.change(|state| {
        state.revocations = Revocations::default();
        state.crls.clear();
    });
    until(|| agent.revision() == 3 && agent.link.trust().revocations.is_empty()).await;
    until(|| cluster.applied() == 3).await;
    agent.stop().await;
}
