//! Three nodes with real sockets and real mutual TLS in one process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use hanse_federation::policy::PolicyDocument;
use hanse_federation::policy::document::{HttpRoute, PolicySpec};
use hanse_identity::tls::{ClientAuth, TlsIdentity, server_config, session_binding, verified_peer};
use hanse_identity::{Authority, Revocations, Timestamp, Trust, Usage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::service::Parts;
use super::*;
use crate::command::{Answer, Command};
use crate::consensus::MemoryDisk;
use crate::io::driver::{self, Handle, Options, Running};
use crate::io::key_store::FileKeyStore;
use crate::io::keys::{self, NewNode, NodeFile};
use crate::io::server::ConnInfo;
use crate::wire::control::node_server::NodeServer;

fn outgoing(bytes: Vec<u8>, snapshot: bool) -> Outgoing {
    Outgoing { to: 2, bytes, snapshot }
}

#[test]
fn long_messages_come_out_as_they_went_in() {
    let messages: Vec<Vec<u8>> =
        [1, BATCH_BYTES, 3, 0, 3 * BATCH_BYTES + 5, BATCH_BYTES + 1, 2, 5 * BATCH_BYTES]
            .into_iter()
            .enumerate()
            .map(|(number, length)| vec![u8::try_from(number).unwrap(); length])
            .collect();
    let sent = batches(messages.iter().map(|m| outgoing(m.clone(), false)).collect());
    assert!(sent.iter().all(|b| b.message.iter().all(|m| m.len() <= BATCH_BYTES)));
    let mut parts = Parts::default();
    let received: Vec<Vec<u8>> = sent.into_iter().flat_map(|batch| parts.join(batch).unwrap()).collect();
    assert!(received == messages, "they differ");
}

#[test]
fn a_full_queue_loses_the_oldest_and_knows_of_lost_snapshots() {
    let mut queue = Queue::default();
    queue.push(vec![outgoing(vec![0], true)]);
    queue.push((0..LINK_QUEUE).map(|_| outgoing(vec![1], false)).collect());
    assert_eq!((queue.messages.len(), queue.bytes), (LINK_QUEUE, LINK_QUEUE));
    assert!(queue.lost_snapshot);
    let mut queue = Queue::default();
    queue.push(vec![outgoing(vec![1; 10], false), outgoing(vec![2; LINK_QUEUE_BYTES], true)]);
    assert_eq!(queue.messages.len(), 1, "the last one stays, however long");
    assert!(!queue.lost_snapshot);
    let some = queue.pop_some();
    assert_eq!((some.len(), queue.bytes), (1, 0));
}

/// A stream with what the server knows of it, as `io::server` has it.
struct Accepted(TlsStream<TcpStream>, ConnInfo);

impl Connected for Accepted {
    type ConnectInfo = ConnInfo;

    fn connect_info(&self) -> ConnInfo {
        self.1.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct EchoCensus;

#[tonic::async_trait]
impl CensusSource for EchoCensus {
    async fn census(&self, query: Document) -> Result<Document, Status> {
        Ok(query)
    }

    fn tap(&self, wanted: &Document) -> Result<TapStream, Status> {
        Ok(Box::pin(tokio_stream::once(Ok(wanted.clone()))))
    }
}

/// A node's identity and place, which outlive its process.
struct Place {
    file: NodeFile,
    authority: Authority,
    disk: MemoryDisk,
}

struct Live {
    handle: Handle,
    running: Running,
    links: Arc<NodeLinks>,
    server: JoinSet<()>,
}

struct Cluster {
    places: Vec<Place>,
    live: BTreeMap<u64, Live>,
}

impl Cluster {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self { places: Vec::new(), live: BTreeMap::new() };
        let mut listeners = Vec::new();
        for raft_id in 1..=3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let place = dir.path().join(raft_id.to_string());
            let new = NewNode {
                cluster: "east".parse().unwrap(),
                trust_domain: "east.example".parse().unwrap(),
                name: format!("east-{raft_id}").parse().unwrap(),
                raft_id,
                peer_address: address.clone(),
                address,
                region: String::new(),
                zone: String::new(),
            };
            let store = FileKeyStore::new(&place, new.trust_domain.clone(), None);
            let file = keys::init(&place, new, &store, keys::now()).unwrap();
            let authority = keys::first_authority(&file, &store).unwrap();
            cluster.places.push(Place { file, authority, disk: MemoryDisk::new() });
            listeners.push(listener);
        }
        for (raft_id, listener) in (1..).zip(listeners) {
            cluster.start(raft_id, listener);
        }
        cluster
    }

    fn start(&mut self, raft_id: u64, listener: TcpListener) {
        let nodes = self.places.iter().map(|p| p.file.clone()).collect();
        let place = &self.places[usize::try_from(raft_id).unwrap() - 1];
        let mut options = Options::new(PathBuf::new(), place.file.clone(), nodes);
        options.timing.tick = Duration::from_millis(20);
        options.snapshot_every = 20;
        options.snapshot_margin = 2;
        let opened = driver::open_on(Box::new(place.disk.clone()), &options).unwrap();
        let state = opened.state();
        let links = NodeLinks::new(raft_id, &state, opened.inbox());
        let (handle, running) = opened.start(links.clone()).unwrap();
        let trust = state.view.trust();
        let (trust, identity) = sources(&place.authority, &place.file, trust);
        links.connect(&trust, &identity, handle.states(), &watch::channel(0).1);
        let service = NodeService::new(handle.clone(), Arc::new(EchoCensus));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, service, trust, identity));
        self.live.insert(raft_id, Live { handle, running, links, server });
    }

    async fn kill(&mut self, raft_id: u64) {
        let mut live = self.live.remove(&raft_id).unwrap();
        live.running.kill();
        live.running.ended().await;
        live.links.close();
        live.server.shutdown().await;
    }

    async fn leader(&self) -> u64 {
        let any = self.live.values().next().unwrap();
        let mut status = any.handle.statuses();
        let found = status.wait_for(|s| s.leader.is_some_and(|l| self.live.contains_key(&l)));
        let found = tokio::time::timeout(Duration::from_secs(20), found).await.unwrap().unwrap();
        found.leader.unwrap()
    }
}

fn sources(
    authority: &Authority,
    file: &NodeFile,
    trust: Trust,
) -> (Arc<dyn TrustSource>, Arc<dyn IdentitySource>) {
    let (none, lifetime) = (Revocations::default(), keys::NODE_SVID_LIFETIME);
    let svid = keys::node_svid(authority, &file.record.name, &none, lifetime, keys::now()).unwrap();
    let identity = dial::FixedIdentity(Some(Arc::new(TlsIdentity::new(&svid).unwrap())));
    (Arc::new(dial::FixedTrust(Arc::new(trust))), Arc::new(identity))
}

async fn serve(
    listener: TcpListener,
    service: NodeService,
    trust: Arc<dyn TrustSource>,
    identity: Arc<dyn IdentitySource>,
) {
    let (accepted, incoming) = mpsc::channel(16);
    let server = tonic::transport::Server::builder()
        .add_service(NodeServer::new(service).max_decoding_message_size(MAX_NODE_MESSAGE_BYTES))
        .serve_with_incoming(ReceiverStream::new(incoming));
    let config = server_config(trust.clone(), identity, ClientAuth::Optional, ALPN_H2);
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let accept = async move {
        while let Ok((tcp, remote)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(tcp).await else { continue };
            let session = stream.get_ref().1;
            let caller = verified_peer(session, &trust.trust(), keys::now(), Usage::Client).unwrap();
            let info = ConnInfo {
                caller,
                binding: session_binding(session).unwrap(),
                remote,
                attested: Arc::default(),
            };
            accepted.send(Ok::<_, std::io::Error>(Accepted(stream, info))).await.unwrap();
        }
    };
    tokio::select! {
        ended = server => ended.unwrap(),
        () = accept => {}
    }
}

fn apply(number: usize) -> Command {
    let spec = PolicySpec::HttpRoute(HttpRoute::default());
    let document = |i: usize| PolicyDocument {
        name: format!("shop/policy-{number}-{i}").parse().unwrap(),
        created: Timestamp(0),
        spec: spec.clone(),
    };
    Command::PolicyApply { documents: (0..100).map(document).collect() }
}

async fn rebind(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let within = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => assert!(tokio::time::Instant::now() < within, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_agree_over_mutual_tls_and_survive_their_leader() {
    let mut cluster = Cluster::new().await;
    cluster.leader().await;
    for (number, live) in cluster.live.values().enumerate() {
        let outcome = live.handle.propose("me", apply(number)).await.unwrap();
        assert_eq!(outcome.result, Ok(Answer::Done));
    }
    let leader = cluster.leader().await;
    let census = cluster.live.values().find(|l| l.handle.raft_id() != leader).unwrap();
    // Longer than what the library takes by itself: what all proxies of a large cluster counted.
    let query = Document { json: vec![b' '; 5 << 20] };
    let answer = census.links.call_census(leader, query.clone(), Duration::from_secs(5)).await.unwrap();
    assert!(answer == query, "they differ");

    // The leader dies; the others go on, until it can only be brought back by a snapshot, in more than one part.
    cluster.kill(leader).await;
    let other = cluster.leader().await;
    let handle = cluster.live[&other].handle.clone();
    let mut last = 0;
    for number in 3..80 {
        let outcome = handle.propose("me", apply(number)).await.unwrap();
        assert_eq!(outcome.result, Ok(Answer::Done));
        last = outcome.revision;
    }
    let size = crate::state::snapshot::encode(&handle.state()).len();
    assert!(size > BATCH_BYTES / 2, "{size}");
    let address = cluster.places[usize::try_from(leader).unwrap() - 1].file.record.address.clone();
    cluster.start(leader, rebind(&address).await);
    let back = cluster.live[&leader].handle.clone();
    let mut states = back.states();
    let caught_up = states.wait_for(|s| s.view.revision.0 >= last);
    tokio::time::timeout(Duration::from_secs(20), caught_up).await.unwrap().unwrap();
    assert_eq!(back.read().await.unwrap().view.policies.len(), 80 * 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_nodes_of_the_cluster_are_heard() {
    let cluster = Cluster::new().await;
    let leader = cluster.leader().await;
    let place = &cluster.places[0];
    let config = |svid: Option<&hanse_identity::Svid>| {
        let trust = dial::FixedTrust(Arc::new(cluster.live[&leader].handle.state().view.trust()));
        let identity = dial::FixedIdentity(svid.map(|s| Arc::new(TlsIdentity::new(s).unwrap())));
        let expect = Expect::Member(place.file.trust_domain.clone(), MemberRole::Node);
        client_config(Arc::new(trust), Arc::new(identity), expect, ALPN_H2)
    };
    let nodes: Vec<NodeFile> = cluster.places.iter().map(|p| p.file.clone()).collect();
    let user = "operator".parse().unwrap();
    let lifetime = keys::CREDENTIAL_LIFETIME;
    let credential =
        keys::mint_credential(&place.authority, &nodes, None, &user, lifetime, keys::now()).unwrap();
    let operator = credential.svid().unwrap();
    let nobody = "east-9".parse().unwrap();
    let unknown =
        keys::node_svid(&place.authority, &nobody, &Revocations::default(), lifetime, keys::now()).unwrap();
    for svid in [None, Some(&operator), Some(&unknown)] {
        for node in &nodes {
            let link = dial::connect(&node.record.address, config(svid)).await.unwrap();
            let mut client = NodeClient::new(link.channel);
            let proposal = Proposal {
                id: 1,
                now: keys::now(),
                actor: "mallory".into(),
                certificate: None,
                command: apply(1),
            };
            let json = serde_json::to_vec(&proposal).unwrap();
            let refused = client.forward(Document { json }).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
            let refused = client.census(Document::default()).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
            let batch = RaftBatch { message: vec![Vec::new()], more: false };
            let refused = client.raft(tokio_stream::iter([batch])).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
        }
    }
    assert!(cluster.live[&leader].handle.state().view.policies.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_calls_go_by_the_newest_svid_also_if_it_came_while_there_was_no_stream() {
    let mut cluster = Cluster::new().await;
    cluster.kill(2).await;
    cluster.kill(3).await;
    let (live, place) = (&cluster.live[&1], &cluster.places[0]);
    let state = live.handle.state();
    let (trust, identity) = sources(&place.authority, &place.file, state.view.trust());
    let links = NodeLinks::new(1, &state, live.links.inbox.clone());
    let renewals = watch::Sender::new(0);
    links.connect(&trust, &identity, live.handle.states(), &renewals.subscribe());
    let channel = || links.peers[&2].channel.load_full().unwrap();
    let before = channel();
    renewals.send_replace(1);
    let within = tokio::time::Instant::now() + Duration::from_secs(20);
    while Arc::ptr_eq(&before, &channel()) {
        assert!(tokio::time::Instant::now() < within, "the connection with the older SVID is kept");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    links.close();
}
