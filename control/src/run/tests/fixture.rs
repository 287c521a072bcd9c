//! What the tests are made of: clusters on loopback, agents, proxies and gateways as a node sees them.

use super::*;

/// Nothing here takes longer unless it is broken.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Cluster {
    pub(super) nodes: Vec<Option<Started>>,
    pub(super) credential: Credential,
    pub(super) directories: Vec<tempfile::TempDir>,
}

/// Makes a node's identity in its directory.
pub(super) type MakeNode<'m> = &'m (dyn Fn(&Path, NewNode, &dyn KeyStore) -> NodeFile + Sync);

/// Founds a cluster and waits for its leader.
pub(super) async fn found(cluster: &str, size: usize) -> Cluster {
    found_by(cluster, size, &|directory, new, store| keys::init(directory, new, store, now()).unwrap()).await
}

/// The same, with identities made in another way.
pub(super) async fn found_by(cluster: &str, size: usize, make: MakeNode<'_>) -> Cluster {
    let mut listeners = Vec::new();
    for _ in 0..size {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let directories: Vec<_> = (0..size).map(|_| tempfile::tempdir().unwrap()).collect();
    let files: Vec<NodeFile> = directories
        .iter()
        .zip(&listeners)
        .enumerate()
        .map(|(n, (directory, listener))| init(directory.path(), cluster, n, listener, make))
        .collect();
    let (_, authority, _) = load(directories[0].path());
    let user = "ann".parse().unwrap();
    let credential =
        keys::mint_credential(&authority, &files, None, &user, keys::CREDENTIAL_LIFETIME, now()).unwrap();
    let mut nodes = Vec::new();
    for (directory, listener) in directories.iter().zip(listeners) {
        let (file, _, store) = load(directory.path());
        let options = Options::new(directory.path().to_owned(), file, files.clone());
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let lifetime = Duration::from_secs(3600);
        nodes.push(Some(start(options, store, lifetime, listener, admin).unwrap()));
    }
    let cluster = Cluster { nodes, credential, directories };
    cluster.until("a leader", |c| c.context.handle.status().leader.is_some()).await;
    cluster
}

fn init(
    directory: &Path,
    cluster: &str,
    number: usize,
    listener: &TcpListener,
    make: MakeNode<'_>,
) -> NodeFile {
    let address = listener.local_addr().unwrap().to_string();
    let new = NewNode {
        cluster: cluster.parse().unwrap(),
        trust_domain: format!("{cluster}.example").parse().unwrap(),
        name: format!("{cluster}-{}", number + 1).parse().unwrap(),
        raft_id: number as u64 + 1,
        address: address.clone(),
        peer_address: address,
        region: String::new(),
        zone: String::new(),
    };
    let store = FileKeyStore::new(directory, new.trust_domain.clone(), None);
    make(directory, new, &store)
}

pub(super) fn load(directory: &Path) -> (NodeFile, hanse_identity::Authority, Arc<dyn KeyStore>) {
    let file = keys::load_node(directory).unwrap();
    let store = FileKeyStore::new(directory, file.trust_domain.clone(), None);
    let authority = keys::first_authority(&file, &store).unwrap();
    (file, authority, Arc::new(store))
}

impl Cluster {
    pub(super) fn running(&self) -> impl Iterator<Item = &Started> {
        self.nodes.iter().flatten()
    }

    pub(super) fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|n| n.as_ref().is_some_and(|n| n.context.handle.status().is_leader))
    }

    pub(super) fn any(&self) -> &Started {
        self.running().next().unwrap()
    }

    /// Waits until it is so on every running node.
    pub(super) async fn until(&self, what: &str, so: impl Fn(&Started) -> bool) {
        eventually(what, || self.running().all(&so).then_some(())).await;
    }

    pub(super) async fn client(&self) -> Client {
        Client::connect(&self.credential).await.unwrap()
    }

    pub(super) fn bundle(&self) -> Bundle {
        let view = &self.any().context.handle.state().view;
        view.bundles[&view.trust_domain].clone()
    }

    /// Stops a node and starts it again on what its disk holds, at the same address.
    pub(super) async fn restart(&mut self, number: usize) {
        let node = self.nodes[number].take().unwrap();
        let address = node.listen;
        assert_eq!(node.stop().await, Ended::Stopped);
        self.start_again(number, address).await;
        self.until("a leader", |n| n.context.handle.status().leader.is_some()).await;
    }

    /// Stops every node, and starts them again on what becomes of their directories.
    pub(super) async fn stop_all_and_start_on(&mut self, moved: impl Fn(&Path) -> tempfile::TempDir) {
        let mut addresses = Vec::new();
        for node in &mut self.nodes {
            let node = node.take().unwrap();
            addresses.push(node.listen);
            assert_eq!(node.stop().await, Ended::Stopped);
        }
        self.directories = self.directories.iter().map(|directory| moved(directory.path())).collect();
        for (number, address) in addresses.into_iter().enumerate() {
            self.start_again(number, address).await;
        }
        self.until("a leader", |n| n.context.handle.status().leader.is_some()).await;
    }

    async fn start_again(&mut self, number: usize, address: std::net::SocketAddr) {
        // A task of the node that has stopped may hold it for a moment still.
        let free = || async move { TcpListener::bind(address).await.ok() };
        let listener = eventually_asked("the node's address is free again", free).await;
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let directory = self.directories[number].path();
        let file = keys::load_node(directory).unwrap();
        let store = Arc::new(FileKeyStore::new(directory, file.trust_domain.clone(), None));
        // The initial nodes matter on the first start only.
        let options = Options::new(directory.to_owned(), file, Vec::new());
        let lifetime = Duration::from_secs(3600);
        self.nodes[number] = Some(start(options, store, lifetime, listener, admin).unwrap());
    }

    pub(super) async fn stop(self) {
        for node in self.nodes.into_iter().flatten() {
            assert_eq!(node.stop().await, Ended::Stopped);
        }
    }
}

/// Waits for a condition, not for time.
pub(super) async fn eventually<R>(what: &str, mut look: impl FnMut() -> Option<R>) -> R {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The same for what has to be asked for.
pub(super) async fn eventually_asked<R, F>(what: &str, mut ask: impl FnMut() -> F) -> R
where
    F: Future<Output = Option<R>>,
{
    let began = Instant::now();
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Calls an rpc whose client stub this crate does not have.
pub(super) async fn unary<Q, A>(channel: Channel, path: &'static str, question: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let path = ::http::uri::PathAndQuery::from_static(path);
    grpc.unary(Request::new(question), path, codec).await.map(tonic::Response::into_inner)
}

/// An agent that has joined, or why it could not.
pub(super) async fn join_agent(cluster: &Cluster, name: &str, token: &JoinToken) -> Result<Svid, Status> {
    join_agent_of(&cluster.bundle().pins(), name, token).await
}

/// The same, of the cluster whose bundle has these pins.
pub(super) async fn join_agent_of(
    pins: &[hanse_identity::KeyId],
    name: &str,
    token: &JoinToken,
) -> Result<Svid, Status> {
    let tls = pinned_client_config(&token.trust_domain, &token.pins, ALPN_H2);
    let link = dial::connect(&token.endpoints[0], tls).await.unwrap();
    let (svid, bundle) = join_over(link, name, token).await?;
    assert_eq!(bundle.pins(), pins);
    Ok(svid)
}

/// The same over a connection that is there.
pub(super) async fn join_over(
    link: Dialled,
    name: &str,
    token: &JoinToken,
) -> Result<(Svid, Bundle), Status> {
    let key = new_key_pair().unwrap();
    let csr_der = certificate_request(&key).unwrap();
    let agent: NodeName = name.parse().unwrap();
    let proof = token.prove(&link.binding, &agent_join_request(&agent, &csr_der)).unwrap();
    let request = JoinAgentRequest { invite: token.invite.clone(), agent: name.to_owned(), csr_der, proof };
    let reply: JoinAgentReply = unary(link.channel, "/hanse.issue.v1.Issue/JoinAgent", request).await?;
    let bundle: Bundle = decode("bundle", &reply.bundle).unwrap();
    Ok((Svid::new(reply.chain_der, Zeroizing::new(key.serialize_der())).unwrap(), bundle))
}

pub(super) async fn agent_token(client: &Client, name: &str) -> JoinToken {
    let request = AgentTokenCreateRequest { agent: name.parse().unwrap(), ttl_seconds: 600 };
    client.call(&request).await.unwrap().token.parse().unwrap()
}

/// Dials a node as whoever the SVID is.
pub(super) async fn dial_as(cluster: &Cluster, svid: &Svid) -> Dialled {
    let trust = FixedTrust(Arc::new(Trust::new([&cluster.bundle()], Revocations::default())));
    let expect = Expect::Member(svid.facts.id.trust_domain().clone(), MemberRole::Node);
    let config = client_config(Arc::new(trust), Arc::new(FixedIdentity::new(svid).unwrap()), expect, ALPN_H2);
    dial::connect(&cluster.any().listen.to_string(), config).await.unwrap()
}

/// Registers an identity on an agent and fetches an SVID of it, as the agent would.
pub(super) async fn workload(
    cluster: &Cluster,
    client: &Client,
    agent: &Svid,
    id: &SpiffeId,
    services: &[&str],
) -> Svid {
    let (_, name) = agent.facts.id.as_member().unwrap();
    let agent_name: NodeName = name.parse().unwrap();
    let registration = Registration {
        services: services.iter().map(|s| s.parse().unwrap()).collect(),
        ..Registration::new(id.clone(), agent_name, ["unix:uid:1000".parse().unwrap()])
    };
    client.call(&WorkloadRegisterRequest { registration }).await.unwrap();
    issue_svid(cluster, agent, id, &["unix:uid:1000", "unix:gid:7"]).await.unwrap()
}

pub(super) async fn issue_svid(
    cluster: &Cluster,
    agent: &Svid,
    id: &SpiffeId,
    selectors: &[&str],
) -> Result<Svid, Status> {
    let key = new_key_pair().unwrap();
    let request = IssueSvidRequest {
        spiffe_id: id.to_string(),
        csr_der: certificate_request(&key).unwrap(),
        selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
    };
    let link = dial_as(cluster, agent).await;
    let reply: SvidReply = unary(link.channel, "/hanse.issue.v1.Issue/IssueSvid", request).await?;
    Ok(Svid::new(reply.chain_der, Zeroizing::new(key.serialize_der())).unwrap())
}

/// A proxy or gateway as a control node sees it.
pub(super) struct Subscriber {
    pub(super) up: mpsc::Sender<WatchUp>,
    pub(super) down: Streaming<WatchDown>,
    pub(super) view: View,
    pub(super) heard: Vec<Change>,
}

pub(super) async fn watch_as(
    cluster: &Cluster,
    svid: &Svid,
    name: &str,
    kind: &str,
) -> Result<Subscriber, Status> {
    let (up, mut down) = open_watch(cluster, svid, name, kind, 0).await?;
    let first = down.next().await.ok_or_else(|| Status::aborted("no snapshot"))??;
    let Some(Down::Snapshot(snapshot)) = first.message else {
        panic!("the first message is no snapshot: {first:?}")
    };
    let view: View = decode("view", &snapshot.view).unwrap();
    assert_eq!(view.revision.0, snapshot.revision);
    Ok(Subscriber { up, down, view, heard: Vec::new() })
}

pub(super) async fn open_watch(
    cluster: &Cluster,
    svid: &Svid,
    name: &str,
    kind: &str,
    from_revision: u64,
) -> Result<(mpsc::Sender<WatchUp>, Streaming<WatchDown>), Status> {
    let link = dial_as(cluster, svid).await;
    let mut grpc = tonic::client::Grpc::new(link.channel).max_decoding_message_size(64 << 20);
    grpc.ready().await.unwrap();
    let (up, ups) = mpsc::channel(16);
    let hello =
        Hello { name: name.to_owned(), kind: kind.to_owned(), from_revision, version: "test".to_owned() };
    up.send(WatchUp { message: Some(Up::Hello(hello)) }).await.unwrap();
    let codec = tonic_prost::ProstCodec::<WatchUp, WatchDown>::default();
    let path = ::http::uri::PathAndQuery::from_static("/hanse.watch.v1.Watch/Watch");
    let request = Request::new(ReceiverStream::new(ups));
    Ok((up, grpc.streaming(request, path, codec).await?.into_inner()))
}

impl Subscriber {
    pub(super) async fn say(&self, message: Up) {
        self.up.send(WatchUp { message: Some(message) }).await.unwrap();
    }

    pub(super) async fn announce(&self, announcement: &Announcement) {
        self.say(Up::Announce(Announce { announcement: encode(announcement) })).await;
    }

    /// Hears, applies and acknowledges until the View is so. Live queries are answered with `connections`.
    pub(super) async fn until(&mut self, what: &str, connections: u64, so: impl Fn(&View) -> bool) {
        let heard = async {
            while !so(&self.view) {
                let down = self.down.next().await.expect("the stream goes on").expect("the stream goes on");
                match down.message.unwrap() {
                    Down::Changes(changes) => self.apply(changes.revision, &changes.change).await,
                    Down::Live(query) => {
                        self.say(Up::Live(LiveReply { query: query.query, connections, others: Vec::new() }))
                            .await;
                    }
                    Down::Taps(_) => {}
                    Down::Snapshot(_) => panic!("a second snapshot"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("not heard: {what}"));
    }

    pub(super) async fn apply(&mut self, revision: u64, changes: &[Vec<u8>]) {
        let changes: Vec<Change> = changes.iter().map(|c| decode("change", c).unwrap()).collect();
        self.view.advance(hanse_federation::Revision(revision), &changes);
        self.heard.extend(changes);
        self.say(Up::Applied(Applied { revision: self.view.revision.0, closed: vec![], outgoing: vec![] }))
            .await;
    }
}

pub(super) fn serves(name: &str, services: &[&str], sequence: u64) -> Announcement {
    Announcement {
        name: name.parse().unwrap(),
        incarnation: 1,
        sequence,
        locality: Locality::default(),
        ready: true,
        serves: Serves::Services {
            services: services.iter().map(|s| s.parse().unwrap()).collect(),
            inbound: "127.0.0.1:9".parse().unwrap(),
            weight: 100,
        },
    }
}

/// Gives a cluster a gateway that does no more than to be reached: TLS as itself, and a watch stream.
pub(super) async fn gateway(
    cluster: &Cluster,
    client: &Client,
    agent: &Svid,
) -> (Subscriber, tokio::task::JoinHandle<()>) {
    let id =
        SpiffeId::member(agent.facts.id.trust_domain(), MemberRole::Gateway, &"gateway-1".parse().unwrap());
    let svid = workload(cluster, client, agent, &id, &[]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let trust = FixedTrust(Arc::new(Trust::new([&cluster.bundle()], Revocations::default())));
    let identity = FixedIdentity(Some(Arc::new(TlsIdentity::new(&svid).unwrap())));
    let config = server_config(Arc::new(trust), Arc::new(identity), ClientAuth::Required, ALPN_H2);
    let listening = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
            tokio::spawn(async move { acceptor.accept(tcp).await.map(drop) });
        }
    });
    let mut subscriber = watch_as(cluster, &svid, "gateway-1", "gateway").await.unwrap();
    let mut announcement = serves("gateway-1", &[], 1);
    announcement.serves = Serves::Gateway { passthrough: address, tunnel: address.to_string() };
    subscriber.announce(&announcement).await;
    subscriber.until("the gateway", 0, |view| !view.gateways.is_empty()).await;
    (subscriber, listening)
}
