//! Joining, following and moving between control nodes, over real TLS: the control nodes made for it, and the agent.

use std::pin::Pin;
use std::task::{Context, Poll};

use hanse_identity::name::MemberRole;
use hanse_identity::tls::{self, ClientAuth, IdentitySource, TlsIdentity, TrustSource};
use hanse_identity::token::{Admits, Invite, JoinToken, agent_join_request};
use hanse_identity::wire::issue::{
    AgentDown, AgentUp, AttestAgentRequest, DownstreamReply, DownstreamRequest, IssueJwtRequest,
    IssueSvidRequest, JoinAgentReply, JoinAgentRequest, JwtReply, RenewAgentRequest, SvidReply,
};
use hanse_identity::{
    Evidence, HostTrust, NodeName, RevocationTarget, Revocations, SpiffeId, Trust, grant, issue, verify_host,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::fixture::{DAY, REVIEWS, id, later, revocation, serial};
use crate::io::admin::Admin;
use crate::io::control_link::{ControlLink, Membership};
use crate::io::join::{JoinError, Proof, join};
use crate::io::store::{Store, StoredIdentity};
use crate::io::svids::{Holding, key_and_request};
use crate::wire::workload::X509svidRequest;
use crate::wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;

/// The control node's own generated stubs: this crate is only ever the client.
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
mod stubs {
    include!("../../../../../control/src/wire/hanse.issue.v1.rs");
}

use stubs::issue_server::{Issue, IssueServer};

mod following;
mod host;
mod huge;
mod joining;
mod proof;
mod refused;
mod rejoin;
mod spare;

/// A cluster: its authorities, what it knows, and what its agents said.
struct Cluster {
    authority: Authority,
    /// The authority of a second node, if it has one of its own.
    second: Option<Authority>,
    state: watch::Sender<AgentState>,
    invite: Mutex<Option<Invite>>,
    /// Whose certificates make agents.
    hosts: Mutex<Option<HostTrust>>,
    agent_lifetime: Duration,
    renews: AtomicBool,
    renewals: AtomicU64,
    issued: AtomicU64,
    reports: Mutex<Vec<AgentUp>>,
}

impl Cluster {
    fn new(registrations: Vec<Registration>, agent_lifetime: Duration) -> Arc<Self> {
        Self::with(registrations, agent_lifetime, None)
    }

    /// One whose second node signs with an authority of its own.
    fn of_two_authorities(registrations: Vec<Registration>) -> Arc<Self> {
        let key = rcgen::KeyPair::generate().unwrap();
        let node = "node-2".parse().unwrap();
        let second = Authority::create(&east(), &node, key, serial(), now() - DAY, 30 * DAY).unwrap();
        Self::with(registrations, DAY, Some(second))
    }

    fn with(
        registrations: Vec<Registration>,
        agent_lifetime: Duration,
        second: Option<Authority>,
    ) -> Arc<Self> {
        let authority = authority(&east());
        let own = bundle(&[&authority].into_iter().chain(&second).collect::<Vec<_>>());
        let state = watch::Sender::new(state(registrations, vec![own]));
        let (renewals, issued) = (AtomicU64::new(0), AtomicU64::new(0));
        let (invite, hosts, reports) = (Mutex::default(), Mutex::default(), Mutex::default());
        let renews = AtomicBool::new(true);
        Arc::new(Self {
            authority,
            second,
            state,
            invite,
            hosts,
            agent_lifetime,
            renews,
            renewals,
            issued,
            reports,
        })
    }

    fn sign_member(&self, role: MemberRole, name: &NodeName, csr: &[u8], lifetime: Duration) -> Vec<Vec<u8>> {
        Self::sign_by(&self.authority, role, name, csr, lifetime)
    }

    fn sign_by(
        authority: &Authority,
        role: MemberRole,
        name: &NodeName,
        csr: &[u8],
        lifetime: Duration,
    ) -> Vec<Vec<u8>> {
        let id = SpiffeId::member(&east(), role, name);
        let ticket = grant::grant_member(&east(), &Revocations::default(), &id, lifetime).unwrap();
        issue(ticket, csr, authority, serial(), now()).unwrap().chain
    }

    fn bundle(&self) -> hanse_identity::Bundle {
        bundle(&[&self.authority].into_iter().chain(&self.second).collect::<Vec<_>>())
    }

    fn admit(&self, name: &NodeName, csr_der: &[u8]) -> JoinAgentReply {
        JoinAgentReply {
            cluster: "east".into(),
            trust_domain: east().to_string(),
            chain_der: self.sign_member(MemberRole::Agent, name, csr_der, self.agent_lifetime),
            bundle: serde_json::to_vec(&self.bundle()).unwrap(),
        }
    }

    /// A token for this cluster's agent.
    fn token(&self, endpoints: Vec<String>) -> JoinToken {
        self.token_of("i-1", endpoints)
    }

    /// The same with that invite, the only one that is open from now on.
    fn token_of(&self, invite: &str, endpoints: Vec<String>) -> JoinToken {
        let key = rcgen::KeyPair::generate().unwrap();
        let pins = bundle(&[&self.authority]).pins();
        let admits = Admits::Agent(agent());
        let cluster = "east".parse().unwrap();
        let expires = later(now(), 60);
        let (token, invite) =
            JoinToken::create(invite.into(), admits, cluster, east(), endpoints, pins, &key, now(), expires);
        *self.invite.lock().unwrap() = Some(invite);
        token
    }

    fn change(&self, change: impl FnOnce(&mut AgentState)) {
        self.state.send_modify(|state| {
            state.revision += 1;
            change(state);
        });
    }

    fn applied(&self) -> u64 {
        self.reports.lock().unwrap().last().map_or(0, |up| up.applied_revision)
    }
}

/// One control node of the cluster.
struct Node {
    address: String,
    connections: Arc<AtomicU64>,
    /// Streams of the state that were opened.
    followed: Arc<AtomicU64>,
    /// Handshakes that came to nothing.
    failed: Arc<AtomicU64>,
    /// Whether it signs: one whose clock the others contradict does not.
    signs: Arc<AtomicBool>,
    /// Its own, so that all of it can die at once.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What a control node's TLS needs.
struct NodeTls {
    trust: Arc<Trust>,
    identity: Arc<TlsIdentity>,
}

impl TrustSource for NodeTls {
    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust)
    }
}

impl IdentitySource for NodeTls {
    fn identity(&self) -> Option<Arc<TlsIdentity>> {
        Some(Arc::clone(&self.identity))
    }
}

impl Node {
    fn start(cluster: &Arc<Cluster>, name: &str) -> Self {
        Self::start_believing(cluster, name, Revocations::default())
    }

    /// One whose TLS believes nothing that is revoked.
    fn start_believing(cluster: &Arc<Cluster>, name: &str, revocations: Revocations) -> Self {
        Self::start_with(cluster, name, revocations, false)
    }

    /// The one that has the cluster's second authority.
    fn start_second(cluster: &Arc<Cluster>, name: &str, revocations: Revocations) -> Self {
        Self::start_with(cluster, name, revocations, true)
    }

    fn start_with(cluster: &Arc<Cluster>, name: &str, revocations: Revocations, second: bool) -> Self {
        let (key, csr) = key_and_request().unwrap();
        let (followed, signs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(true)));
        let node = IssueNode {
            cluster: Arc::clone(cluster),
            signs: Arc::clone(&signs),
            second,
            followed: Arc::clone(&followed),
        };
        let mut chain =
            Cluster::sign_by(node.authority(), MemberRole::Node, &name.parse().unwrap(), &csr, DAY);
        chain.push(node.authority().certificate().der.clone());
        let identity = Arc::new(TlsIdentity::new(&Svid::new(chain, key).unwrap()).unwrap());
        let trust = Arc::new(Trust::new([&cluster.bundle()], revocations));
        let node_tls = Arc::new(NodeTls { trust, identity });
        let config = tls::server_config(Arc::clone(&node_tls) as _, node_tls, ClientAuth::Optional, &[b"h2"]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        let (ready, incoming) = mpsc::channel(8);
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        let failed = Arc::new(AtomicU64::new(0));
        let failures = Arc::clone(&failed);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let listener = TcpListener::from_std(listener).unwrap();
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let handshake = acceptor.accept(tcp).into_fallible().await;
                if let Err((_, mut tcp)) = handshake {
                    failures.fetch_add(1, Ordering::SeqCst);
                    // Kept until the other end goes, so that it can read the alert.
                    tokio::spawn(async move { tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await });
                } else if let Ok(stream) = handshake {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let binding = tls::session_binding(stream.get_ref().1).unwrap();
                    let named = stream.get_ref().1.peer_certificates().is_some();
                    let peer = Peer { binding, named };
                    if ready.send(Ok::<_, std::io::Error>(TlsConnection { stream, peer })).await.is_err() {
                        return;
                    }
                }
            }
        });
        let service = IssueServer::new(node);
        runtime.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(ReceiverStream::new(incoming)).await.unwrap();
        });
        drop(inside);
        Self { address, connections, followed, failed, signs, runtime: Some(runtime) }
    }

    /// Dies as a process does: every connection is gone.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

struct TlsConnection {
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    peer: Peer,
}

#[derive(Clone)]
struct Peer {
    binding: [u8; 32],
    named: bool,
}

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct IssueNode {
    cluster: Arc<Cluster>,
    signs: Arc<AtomicBool>,
    /// Has the second authority.
    second: bool,
    followed: Arc<AtomicU64>,
}

impl IssueNode {
    fn authority(&self) -> &Authority {
        self.cluster.second.as_ref().filter(|_| self.second).unwrap_or(&self.cluster.authority)
    }

    fn named<T>(request: &Request<T>) -> Result<(), Status> {
        match request.extensions().get::<Peer>().unwrap().named {
            true => Ok(()),
            false => Err(Status::unauthenticated("no certificate")),
        }
    }

    fn signing(&self) -> Result<(), Status> {
        match self.signs.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(Status::unavailable("this node signs nothing, ask another one")),
        }
    }
}

#[tonic::async_trait]
impl Issue for IssueNode {
    type WatchAgentStream = ReceiverStream<Result<AgentDown, Status>>;

    async fn join_agent(
        &self,
        request: Request<JoinAgentRequest>,
    ) -> Result<Response<JoinAgentReply>, Status> {
        self.signing()?;
        let binding = request.extensions().get::<Peer>().unwrap().binding;
        let request = request.into_inner();
        let name: NodeName = request.agent.parse().unwrap();
        let invite = self.cluster.invite.lock().unwrap().clone();
        let invite = invite
            .filter(|i| i.id == request.invite)
            .ok_or_else(|| Status::permission_denied("no invite"))?;
        invite
            .check(&binding, &agent_join_request(&name, &request.csr_der), &request.proof, now())
            .map_err(|e| Status::permission_denied(e.to_string()))?;
        Ok(Response::new(self.cluster.admit(&name, &request.csr_der)))
    }

    async fn attest_agent(
        &self,
        request: Request<AttestAgentRequest>,
    ) -> Result<Response<JoinAgentReply>, Status> {
        let binding = request.extensions().get::<Peer>().unwrap().binding;
        let request = request.into_inner();
        let name: NodeName = request.agent.parse().unwrap();
        let hosts = self.cluster.hosts.lock().unwrap().clone();
        let hosts = hosts.ok_or_else(|| Status::failed_precondition("agent host-1 was put out"))?;
        let chain: Vec<&[u8]> = request.chain_der.iter().map(Vec::as_slice).collect();
        verify_host(&hosts, &east(), &Revocations::default(), &chain, now())
            .and_then(|host| host.possesses(&east(), &binding, &name, &request.csr_der, &request.signature))
            .map_err(|e| Status::permission_denied(e.to_string()))?;
        Ok(Response::new(self.cluster.admit(&name, &request.csr_der)))
    }

    async fn renew_agent(&self, request: Request<RenewAgentRequest>) -> Result<Response<SvidReply>, Status> {
        Self::named(&request)?;
        if !self.cluster.renews.load(Ordering::SeqCst) {
            return Err(Status::unavailable("as the test wants it"));
        }
        self.cluster.renewals.fetch_add(1, Ordering::SeqCst);
        let csr = request.into_inner().csr_der;
        let chain_der = Cluster::sign_by(self.authority(), MemberRole::Agent, &agent(), &csr, DAY);
        Ok(Response::new(SvidReply { chain_der }))
    }

    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<SvidReply>, Status> {
        Self::named(&request)?;
        self.signing()?;
        let request = request.into_inner();
        let selectors = request.selectors.iter().map(|s| s.parse().unwrap()).collect();
        let state = self.cluster.state.borrow().clone();
        let evidence = Evidence { agent: agent(), selectors };
        let id: SpiffeId = request.spiffe_id.parse().unwrap();
        let ticket = grant::grant(&east(), &state.registrations, &state.revocations, &evidence, &id)
            .map_err(|e| Status::permission_denied(e.to_string()))?;
        let issued = issue(ticket, &request.csr_der, self.authority(), serial(), now()).unwrap();
        self.cluster.issued.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(SvidReply { chain_der: issued.chain }))
    }

    async fn issue_jwt(&self, _request: Request<IssueJwtRequest>) -> Result<Response<JwtReply>, Status> {
        Err(Status::unavailable("this node has no JWT key"))
    }

    async fn issue_downstream(
        &self,
        _request: Request<DownstreamRequest>,
    ) -> Result<Response<DownstreamReply>, Status> {
        Err(Status::permission_denied("agents do not ask for this"))
    }

    async fn watch_agent(
        &self,
        request: Request<Streaming<AgentUp>>,
    ) -> Result<Response<Self::WatchAgentStream>, Status> {
        Self::named(&request)?;
        self.followed.fetch_add(1, Ordering::SeqCst);
        let (down, messages) = mpsc::channel(4);
        let cluster = Arc::clone(&self.cluster);
        let mut states = cluster.state.subscribe();
        states.mark_changed();
        let mut ups = request.into_inner();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = states.changed() => {
                        let json = serde_json::to_vec(&*states.borrow_and_update()).unwrap();
                        if changed.is_err() || down.send(Ok(AgentDown { state: json })).await.is_err() {
                            return;
                        }
                    }
                    up = ups.message() => match up {
                        Ok(Some(up)) => cluster.reports.lock().unwrap().push(up),
                        _ => return,
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// A whole agent but for its socket, as `serve` runs it.
struct Member {
    link: Arc<ControlLink>,
    shared: Arc<Shared>,
    token_file: std::path::PathBuf,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

impl Member {
    /// Starts on what the data directory holds, or with the token in its file there.
    fn start(directory: &tempfile::TempDir) -> Self {
        let token_file = directory.path().join("data/join-token");
        Self::start_with(directory, config(directory, token_file.exists().then_some(token_file)))
    }

    fn start_with(directory: &tempfile::TempDir, config: crate::Config) -> Self {
        let (store, token_file) = (store(directory), config.token_file());
        let (stop, shutdown) = watch::channel(false);
        let (view_sender, view) = watch::channel(View::default());
        let (metrics, streams) = (Arc::new(Metrics::default()), Streams::default());
        let link = ControlLink::new(streams.clone(), Arc::clone(&metrics));
        let jwt = JwtDesk::new(Arc::clone(&link) as _);
        let issuer = Arc::clone(&link) as _;
        let svids = Svids::new(agent(), issuer, view.clone(), shutdown.clone(), Arc::clone(&metrics));
        let shared = Shared { name: agent(), view, svids, jwt, streams, metrics, shutdown: shutdown.clone() };
        let start = crate::start(&config, &agent(), &store, now()).unwrap();
        let member =
            crate::be_member(config, agent(), store, start, Arc::clone(&link), view_sender, shutdown);
        let running = tokio::spawn(async move { member.await.unwrap() });
        Self { link, shared: Arc::new(shared), token_file, stop, running }
    }

    fn revision(&self) -> u64 {
        self.shared.view.borrow().state.as_ref().map_or(0, |s| s.revision)
    }

    fn page(&self, path: &str) -> (u16, String) {
        let admin = Admin { shared: Arc::clone(&self.shared), link: Arc::clone(&self.link) };
        let response = admin.answer(&http::Method::GET, path);
        let status = response.status().as_u16();
        let body =
            futures_util::FutureExt::now_or_never(http_body_util::BodyExt::collect(response.into_body()));
        (status, String::from_utf8(body.unwrap().unwrap().to_bytes().to_vec()).unwrap())
    }

    fn put(&self, token: &JoinToken) {
        std::fs::write(&self.token_file, token.to_string()).unwrap();
    }

    fn not_ready_with(&self, text: &str) -> bool {
        let (status, why) = self.page("/readyz");
        status == 503 && why.contains(text)
    }

    /// A local process holds an SVID; its serial number.
    async fn workload(&self) -> (crate::io::svids::Lease, hanse_identity::Serial) {
        let me = Arc::new(crate::attest::Caller { uid: own_uid(), ..crate::fixture::caller() });
        let mut lease = self.shared.svids.hold(&id(REVIEWS), &me).unwrap();
        loop {
            if let Holding::Ready(svid) = lease.holding() {
                return (lease, svid.facts.serial.clone());
            }
            soon(lease.changed()).await;
        }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        soon(self.running).await.unwrap();
    }
}

/// The command line of an agent that has its files in the directory.
fn config(directory: &tempfile::TempDir, join_token_file: Option<std::path::PathBuf>) -> crate::Config {
    crate::Config {
        data_dir: directory.path().join("data"),
        name: Some(agent()),
        socket: directory.path().join("agent.sock"),
        join_token_file,
        x509pop_cert: None,
        x509pop_key: None,
        trust_bundle: None,
        trust_domain: None,
        control: Vec::new(),
        admin: None,
    }
}

fn store(directory: &tempfile::TempDir) -> Store {
    Store::open(&directory.path().join("data")).unwrap()
}
