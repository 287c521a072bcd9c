//! Joining with a token.

use super::*;

#[tokio::test]
async fn joins_with_a_token_and_stores_what_it_was_given() {
    let cluster = Cluster::new(vec![], DAY);
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    // The first endpoint is dead: the second is tried.
    let token = cluster.token(vec!["127.0.0.1:9".to_owned(), node.address.clone()]);
    let stored = soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    let svid = stored.svid().unwrap();
    assert_eq!(svid.facts.id.to_string(), "spiffe://east.example/hanse/agent/host-1");
    let again = store(&directory).identity().unwrap().unwrap();
    assert_eq!(again.svid().unwrap().facts, svid.facts);
    assert_eq!(again.endpoints, token.endpoints);
    let files: Vec<_> = std::fs::read_dir(directory.path().join("data")).unwrap().collect();
    assert_eq!(files.len(), 1, "the begun join is over: {files:?}");
}

#[tokio::test]
async fn a_refused_join_says_why_and_keeps_its_request() {
    let cluster = Cluster::new(vec![], DAY);
    let node = Node::start(&cluster, "east-1");
    let directory = tempfile::tempdir().unwrap();
    let token = cluster.token(vec![node.address.clone()]);
    let unknown = cluster.invite.lock().unwrap().take();
    let refused =
        soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.err().unwrap();
    assert!(matches!(&refused, JoinError::Refused(why) if why.contains("no invite")), "{refused}");
    let begun = store(&directory).joining("i-1").unwrap().unwrap();
    assert!(store(&directory).joining("i-2").unwrap().is_none());

    // The same token later: the same request.
    *cluster.invite.lock().unwrap() = unknown;
    let stored = soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.unwrap();
    assert_eq!(*stored.svid().unwrap().key, begun.key);
}

#[tokio::test]
async fn an_impostor_with_another_authority_is_not_joined() {
    let (cluster, impostor) = (Cluster::new(vec![], DAY), Cluster::new(vec![], DAY));
    let node = Node::start(&impostor, "east-1");
    let directory = tempfile::tempdir().unwrap();
    let mut token = cluster.token(vec![node.address.clone()]);
    *impostor.invite.lock().unwrap() = cluster.invite.lock().unwrap().clone();
    token.expires = now();
    let failed =
        soon(join(&Proof::Token(token.clone()), &agent(), &[], &store(&directory))).await.err().unwrap();
    assert!(matches!(failed, JoinError::Expired(_)), "{failed}");
    assert_eq!(node.connections.load(Ordering::SeqCst), 0, "no handshake was finished");
}
