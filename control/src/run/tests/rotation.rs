//! Authorities are replaced on running nodes, and everything comes up again on the new ones.

use hanse_identity::AuthorityState;

use super::*;
use crate::io::key_store::KeyPurpose;
use crate::state::rotation::Gate;

fn authorities(cluster: &Cluster) -> Vec<hanse_identity::KeyId> {
    cluster.bundle().authorities.iter().map(|a| a.key_id).collect()
}

/// A credential as `hanse node credential` makes one on a node, from its files.
fn minted(cluster: &Cluster) -> Credential {
    let directory = cluster.directories[0].path();
    let file = keys::load_node(directory).unwrap();
    let store = FileKeyStore::new(directory, file.trust_domain.clone(), None);
    let authority = keys::signing_authority(directory, &file, &store).unwrap();
    let bundle = keys::load_bundle(directory).unwrap();
    let files: Vec<_> = cluster.directories.iter().map(|d| keys::load_node(d.path()).unwrap()).collect();
    let user = "ann".parse().unwrap();
    keys::mint_credential(&authority, &files, bundle.as_ref(), &user, keys::CREDENTIAL_LIFETIME, now())
        .unwrap()
}

/// Waits for that gate on every node.
async fn until(cluster: &Cluster, gate: Gate) {
    let at = |n: &Started| n.context.handle.state().private.rotation.as_ref().is_some_and(|r| r.gate >= gate);
    cluster.until(gate.as_str(), at).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_replaces_the_authorities_and_all_nodes_come_up_again_after_it() {
    let mut east = found("east", 3).await;
    let client = east.client().await;
    let old = authorities(&east);
    client.call(&TrustRotateRequest { authority: None, reissue: true }).await.unwrap();
    until(&east, Gate::Done).await;
    let new = authorities(&east);
    assert_eq!(new.len(), 3);
    assert!(new.iter().all(|key| !old.contains(key)));
    assert!(east.bundle().authorities.iter().all(|a| a.state == AuthorityState::Active));
    // The keys that went are on no disk any more, and the bundle beside them says what is there.
    for (directory, node) in east.directories.iter().zip(east.running()) {
        let held = || node.context.key_store.list(KeyPurpose::Authority).unwrap();
        eventually("one key, a new one", || (held().len() == 1 && new.contains(&held()[0])).then_some(()))
            .await;
        let written = || keys::load_bundle(directory.path()).unwrap();
        eventually("the bundle on disk", || (written()? == east.bundle()).then_some(())).await;
        let file = keys::load_node(directory.path()).unwrap();
        let own = keys::signing_authority(directory.path(), &file, node.context.key_store.as_ref()).unwrap();
        assert!(new.contains(&own.certificate().key_id));
    }
    let stale = Client::connect(&east.credential).await;
    assert!(stale.is_err(), "the old credential is nobody's any more");
    east.credential = minted(&east);
    assert_eq!(east.client().await.call(&NodeListRequest {}).await.unwrap().quorum.answering, 3);

    // All at once, as by kill -9 of everything.
    let mut addresses = Vec::new();
    for node in &mut east.nodes {
        let started = node.take().unwrap();
        addresses.push(started.listen);
        assert_eq!(started.stop().await, Ended::Stopped);
    }
    for (number, address) in addresses.into_iter().enumerate() {
        let free = || async move { TcpListener::bind(address).await.ok() };
        let listener = eventually_asked("the address is free again", free).await;
        let directory = east.directories[number].path();
        let file = keys::load_node(directory).unwrap();
        let store = Arc::new(FileKeyStore::new(directory, file.trust_domain.clone(), None));
        let options = Options::new(directory.to_owned(), file, Vec::new());
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let lifetime = Duration::from_secs(3600);
        east.nodes[number] = Some(start(options, store, lifetime, listener, admin).unwrap());
    }
    east.until("a leader", |n| n.context.handle.status().leader.is_some()).await;
    let client = east.client().await;
    let nodes = eventually_asked("all nodes", || async {
        let nodes = client.call(&NodeListRequest {}).await.ok()?;
        (nodes.quorum.answering == 3).then_some(nodes)
    })
    .await;
    assert!(!nodes.meta.partial, "{:?}", nodes.warnings);
    // And they issue, and rotate again.
    let token = agent_token(&client, "host-1").await;
    let agent = join_agent(&east, "host-1", &token).await.unwrap();
    let state = east.any().context.handle.state();
    let signer = state.private.issued.get(&agent.facts.serial).unwrap().authority;
    assert!(new.contains(&signer));
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_says_nothing_keeps_the_gate_shut_and_abort_is_the_way_out() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let token = agent_token(&client, "host-1").await;
    // It has joined, and has no stream: it cannot say what it has in force.
    join_agent(&east, "host-1", &token).await.unwrap();
    let before = east.bundle().authorities;
    client.call(&TrustRotateRequest { authority: None, reissue: true }).await.unwrap();
    until(&east, Gate::Spread).await;
    let status = eventually_asked("the agent, by name", || async {
        let status = client.call(&TrustStatusRequest {}).await.unwrap();
        status.waits_for.iter().any(|w| w.who == "agent host-1").then_some(status)
    })
    .await;
    assert_eq!(status.rotation.unwrap().gate, Gate::Spread);
    client.call(&TrustAbortRequest {}).await.unwrap();
    let bundle = east.bundle();
    assert_eq!(bundle.authorities, before);
    let store = &east.any().context.key_store;
    let one = || (store.list(KeyPurpose::Authority).unwrap().len() == 1).then_some(());
    eventually("the prepared key is forgotten", one).await;
    let refused = client.call(&TrustAbortRequest {}).await.unwrap_err();
    assert_eq!(refused.kind, ClientErrorKind::Precondition);
    let rows = client.call(&AuditListRequest::default()).await.unwrap();
    let kinds: Vec<&str> = rows.items.iter().map(|row| row.kind.as_str()).collect();
    assert!(kinds.contains(&"trust-rotate") && kinds.contains(&"trust-rotate-abort"), "{kinds:?}");
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_administrator_renews_its_own_credential_and_the_trail_has_it() {
    let east = found("east", 1).await;
    let client = east.client().await;
    let renewed = client.renew(&east.credential).await.unwrap();
    assert_ne!(renewed.key_pem, east.credential.key_pem, "a key of its own");
    let (before, after) = (east.credential.svid().unwrap().facts, renewed.svid().unwrap().facts);
    assert_eq!(after.id, before.id);
    let again = Client::connect(&renewed).await.unwrap();
    let rows = again.call(&AuditListRequest::default()).await.unwrap();
    let row = rows.items.iter().find(|row| row.kind == "credential-renew").expect("a row");
    assert_eq!(row.actor, before.id.to_string());
    assert!(row.target.contains(&after.serial.to_string()), "{row:?}");
    // A workload with a role may read, and is given no administrator's certificate.
    let token = agent_token(&client, "host-1").await;
    let agent = join_agent(&east, "host-1", &token).await.unwrap();
    let id: SpiffeId = "spiffe://east.example/ns/ops/sa/watcher".parse().unwrap();
    let svid = workload(&east, &client, &agent, &id, &[]).await;
    let roles = BTreeSet::from([crate::role::Role::Viewer]);
    client.call(&RoleBindRequest { id, roles }).await.unwrap();
    let theirs = Credential {
        chain_pem: svid.chain_pem(),
        key_pem: svid.key_pem().to_string(),
        ..east.credential.clone()
    };
    let watcher = Client::connect(&theirs).await.unwrap();
    assert_eq!(watcher.renew(&theirs).await.unwrap_err().kind, ClientErrorKind::NotAllowed);
    east.stop().await;
}
