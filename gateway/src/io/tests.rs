//! Tests of both doors over loopback sockets: real TLS, real HTTP/2 CONNECT, Views given by hand.

mod opening;
mod stale;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hanse_federation::catalog::{GatewaySummary, Session};
use hanse_federation::change::PeerRecord;
use hanse_federation::sni::Sni;
use hanse_federation::view::Peer;
use hanse_federation::{Endpoint, Export, Locality, Revision, Service, View};
use hanse_identity::grant::{Evidence, Registration, Selector, grant, grant_member};
use hanse_identity::issue::certificate_request;
use hanse_identity::name::MemberRole;
use hanse_identity::tls::Expect;
use hanse_identity::{
    Authority, Bundle, Reason, Revocation, RevocationId, RevocationTarget, Revocations, Serial, SpiffeId,
    Svid, Ticket, TrustDomain, issue,
};
use hanse_proxy::connections::{Live, Side};
use hanse_proxy::io::tls::{About, TlsRefusal, dial};
use hanse_proxy::runtime::drain::{Drain, drain};
use hanse_proxy::runtime::{Plane, now};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2::SendRequest;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::KeyPair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Gateway, passthrough, tunnel};
use crate::limit::Limits;
use crate::telemetry::GatewayTelemetry;

const SOON: Duration = Duration::from_secs(2);
const REVIEWS: &str = "reviews.shop.svc.cluster.local:80";
/// As TLS begins.
const HELLO: [u8; 6] = [0x16, 3, 1, 0, 200, 1];
const GREETING: &[u8] = b"+OK ";

/// One cluster's authority.
struct Domain {
    trust_domain: TrustDomain,
    authority: Authority,
}

impl Domain {
    fn new(trust_domain: &str) -> Self {
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let node = "node-1".parse().unwrap();
        let (key, day) = (KeyPair::generate().unwrap(), Duration::from_secs(86_400));
        let authority = Authority::create(&trust_domain, &node, key, serial(), now(), day).unwrap();
        Self { trust_domain, authority }
    }

    fn cluster(&self) -> hanse_identity::ClusterName {
        self.trust_domain.as_str().split('.').next().unwrap().parse().unwrap()
    }

    fn bundle(&self) -> Bundle {
        let authorities = vec![self.authority.certificate().clone()];
        Bundle::new(self.trust_domain.clone(), 1, authorities)
    }

    fn id(&self, account: &str) -> SpiffeId {
        SpiffeId::workload(&self.trust_domain, "shop", account).unwrap()
    }

    fn workload(&self, account: &str, ttl_seconds: u64) -> Svid {
        let selectors = BTreeSet::from([Selector::Uid(1)]);
        let agent: hanse_identity::NodeName = "host-1".parse().unwrap();
        let registration = Registration {
            ttl_seconds,
            ..Registration::new(self.id(account), agent.clone(), selectors.clone())
        };
        let evidence = Evidence { agent, selectors };
        let none = Revocations::default();
        self.sign(grant(&self.trust_domain, [&registration], &none, &evidence, &registration.id).unwrap())
    }

    fn gateway(&self) -> Svid {
        let id = SpiffeId::member(&self.trust_domain, MemberRole::Gateway, &"gateway-1".parse().unwrap());
        let hour = Duration::from_secs(3600);
        self.sign(grant_member(&self.trust_domain, &Revocations::default(), &id, hour).unwrap())
    }

    fn sign(&self, ticket: Ticket) -> Svid {
        let key = KeyPair::generate().unwrap();
        let request = certificate_request(&key).unwrap();
        let issued = issue(ticket, &request, &self.authority, serial(), now()).unwrap();
        Svid::new(issued.chain, key.serialize_der().into()).unwrap()
    }
}

fn serial() -> Serial {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [7; 16];
    bytes[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    Serial::from_random(bytes)
}

fn revoke(id: &SpiffeId) -> Revocation {
    Revocation::new(
        RevocationId { number: 9, origin: id.trust_domain().clone() },
        RevocationTarget::Identity(id.clone()),
        Reason::KeyCompromise,
        now(),
    )
}

/// A View of `own` that is joined with `peer`, whose one gateway is reached at `tunnel`.
fn view(own: &Domain, peer: &Domain, tunnel: Option<SocketAddr>) -> View {
    let mut view = View::new(own.cluster(), own.trust_domain.clone());
    view.revision = Revision(1);
    for domain in [own, peer] {
        view.bundles.insert(domain.trust_domain.clone(), domain.bundle());
    }
    let mut joined = Peer::new(PeerRecord {
        cluster: peer.cluster(),
        trust_domain: peer.trust_domain.clone(),
        endpoints: Vec::new(),
        invite: "i-1".to_owned(),
        joined: now(),
    });
    joined.gateways.extend(tunnel.map(|tunnel| GatewaySummary {
        name: "gateway-1".parse().unwrap(),
        identity: peer.gateway().facts.id,
        locality: Locality::default(),
        tunnel: tunnel.to_string(),
        ready: true,
    }));
    view.peers.insert(peer.cluster(), joined);
    view
}

fn add_service(view: &mut View, name: &str, export: Option<Export>, endpoint: SocketAddr) {
    let identity: SpiffeId = format!("spiffe://{}/ns/shop/sa/reviews", view.trust_domain).parse().unwrap();
    let service = Service { name: name.parse().unwrap(), identities: [identity.clone()].into(), export };
    let endpoint = Endpoint {
        id: format!("{}-1", service.name.name()).parse().unwrap(),
        services: [service.name.clone()].into(),
        identity,
        address: endpoint,
        locality: Locality::default(),
        weight: 100,
        ready: true,
        session: Session { incarnation: 1, sequence: 1, node: "node-1".parse().unwrap() },
    };
    view.services.insert(service.name.clone(), service);
    view.endpoints.insert(endpoint.id.clone(), endpoint);
}

/// Says a word of its own and then back what it hears; knows how many still talk to it, and what it has heard.
struct Echo {
    address: SocketAddr,
    talking: Arc<AtomicUsize>,
    heard: Arc<AtomicUsize>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, talking) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let heard = Arc::new(AtomicUsize::new(0));
        let counts = (Arc::clone(&talking), Arc::clone(&heard));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (count, heard) = counts.clone();
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = stream.write_all(GREETING).await;
                    let mut bytes = [0; 64];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        heard.fetch_add(read, Ordering::SeqCst);
                        let _ = stream.write_all(&bytes[..read]).await;
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, talking, heard }
    }

    fn talking(&self) -> usize {
        self.talking.load(Ordering::SeqCst)
    }

    fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

/// A gateway with both doors open.
struct Running {
    gateway: Arc<Gateway>,
    tunnel: SocketAddr,
    passthrough: SocketAddr,
    drain: Drain,
    doors: JoinSet<()>,
}

impl Running {
    async fn start(svid: &Svid, streams_per_cluster: usize) -> Self {
        Self::start_with(plane(svid), streams_per_cluster).await
    }

    async fn start_with(plane: Arc<Plane>, streams_per_cluster: usize) -> Self {
        let telemetry = GatewayTelemetry::register(&plane.telemetry);
        let gateway = Arc::new(Gateway {
            plane,
            limits: Limits::new(streams_per_cluster),
            connections: Limits::new(2),
            telemetry,
            #[cfg(target_os = "linux")]
            pipes: crate::io::pipe::Pipes::default(),
        });
        let tunnel_door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let passthrough_door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tunnel, passthrough) =
            (tunnel_door.local_addr().unwrap(), passthrough_door.local_addr().unwrap());
        let (drain, stop) = drain();
        let mut doors = JoinSet::new();
        doors.spawn(tunnel::serve(tunnel_door, Arc::clone(&gateway), stop.clone()));
        doors.spawn(passthrough::serve(passthrough_door, Arc::clone(&gateway), stop));
        Self { gateway, tunnel, passthrough, drain, doors }
    }

    fn plane(&self) -> &Plane {
        &self.gateway.plane
    }

    fn refused(&self, reason: &'static str) -> u64 {
        let label = hanse_proxy::runtime::telemetry::Refused { reason };
        self.plane().telemetry.refused.get_or_create(&label).get()
    }
}

fn plane(svid: &Svid) -> Arc<Plane> {
    let plane = Arc::new(Plane::new("gateway-1".parse().unwrap(), Locality::default()));
    plane.credentials.install_svid(svid).unwrap();
    plane
}

/// East exports shop/reviews to everyone; west calls through its own gateway.
struct World {
    east: Domain,
    west: Domain,
    echo: Echo,
    door: Running,
    out: Running,
    caller: Arc<Plane>,
    east_view: View,
}

impl World {
    async fn open(streams_per_cluster: usize, ttl_seconds: u64) -> Self {
        let (east, west) = (Domain::new("east.example"), Domain::new("west.example"));
        let echo = Echo::start().await;
        let door = Running::start(&east.gateway(), streams_per_cluster).await;
        let out = Running::start(&west.gateway(), streams_per_cluster).await;
        let caller = plane(&west.workload("product", ttl_seconds));
        let mut east_view = view(&east, &west, None);
        add_service(&mut east_view, "shop/reviews", Some(Export::Everyone), echo.address);
        add_service(&mut east_view, "shop/secret", None, echo.address);
        let west_view = Arc::new(view(&west, &east, Some(door.tunnel)));
        door.plane().publish(Arc::new(east_view.clone()));
        out.plane().publish(Arc::clone(&west_view));
        caller.publish(west_view);
        Self { east, west, echo, door, out, caller, east_view }
    }

    /// Through the passthrough door of west to the tunnel door of east.
    async fn tunnel(&self) -> Result<Tunnel, TlsRefusal> {
        let name = Sni::Gateway { gateway: "gateway-1".parse().unwrap(), cluster: self.east.cluster() };
        Tunnel::dial(&self.caller, self.out.passthrough, name.to_name(), &self.east).await
    }

    async fn put_in_force(&mut self, change: impl FnOnce(&mut View)) {
        change(&mut self.east_view);
        self.east_view.revision.0 += 1;
        self.door.plane().put_in_force(Arc::new(self.east_view.clone())).await;
    }
}

/// A caller's connection to a far gateway.
struct Tunnel {
    sender: SendRequest<Empty<Bytes>>,
    /// Ends when the socket does.
    connection: tokio::task::JoinHandle<()>,
    _live: Live,
}

impl Tunnel {
    async fn dial(
        plane: &Plane,
        to: SocketAddr,
        name: Option<String>,
        far: &Domain,
    ) -> Result<Self, TlsRefusal> {
        let tcp = TcpStream::connect(to).await.unwrap();
        let expect = Expect::Member(far.trust_domain.clone(), MemberRole::Gateway);
        let about = About { side: Side::Tunnel, service: None, cluster: None };
        let dialled = dial(tcp, plane, expect, name, about).await?;
        let io = TokioIo::new(dialled.stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, connection, _live: dialled.live })
    }

    /// The stream, or the status and the reason.
    async fn connect(&mut self, authority: &str) -> Result<TokioIo<Upgraded>, (u16, String)> {
        let request = Request::connect(authority).body(Empty::new()).unwrap();
        let answered = tokio::time::timeout(SOON, self.sender.send_request(request)).await;
        let response = answered.expect("the gateway answers").map_err(|e| (0, e.to_string()))?;
        let status = response.status();
        if status != StatusCode::OK {
            let header =
                |name: &str| response.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
            assert_eq!(header("x-hanse-answered-by"), "mesh");
            return Err((status.as_u16(), header("x-hanse-reason")));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
    }
}

/// A stream that has begun as TLS does, and has heard who is there.
async fn begun(tunnel: &mut Tunnel) -> TokioIo<Upgraded> {
    let mut stream = tunnel.connect(REVIEWS).await.unwrap();
    begins(&mut stream).await;
    stream
}

async fn begins(stream: &mut TokioIo<Upgraded>) {
    stream.write_all(&HELLO).await.unwrap();
    hears(stream, &[GREETING, &HELLO].concat()).await;
}

async fn echoes(stream: &mut TokioIo<Upgraded>) {
    stream.write_all(b"hello").await.unwrap();
    hears(stream, b"hello").await;
}

async fn hears(stream: &mut TokioIo<Upgraded>, what: &[u8]) {
    let mut heard = vec![0; what.len()];
    tokio::time::timeout(SOON, stream.read_exact(&mut heard)).await.expect("an echo").unwrap();
    assert_eq!(heard, what);
}

async fn is_cut(stream: &mut TokioIo<Upgraded>) {
    let mut heard = [0; 5];
    let read = tokio::time::timeout(SOON, stream.read(&mut heard)).await.expect("cut, not silent");
    assert!(matches!(read, Err(_) | Ok(0)), "{read:?}");
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let late = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < late, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn run<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn a_revocation_cuts_the_connection_and_every_stream_on_it() {
    run(async {
        let mut world = World::open(16, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(begun(&mut tunnel).await);
        }
        let product = world.west.id("product");
        assert_eq!(world.door.plane().connections.reach(&revoke(&product)).connections, 1);
        assert_eq!(world.echo.talking(), 3);

        // Only the far side hears of it: the caller's own proxy does not help.
        let revocation = revoke(&product);
        world.put_in_force(|view| view.revocations.insert(revocation.clone())).await;
        assert!(world.door.plane().connections.is_empty(), "in force means: gone");
        assert_eq!(world.door.plane().connections.closed(), [(revocation.id.clone(), 1)]);
        for stream in &mut streams {
            is_cut(stream).await;
        }
        tokio::time::timeout(SOON, &mut tunnel.connection).await.expect("the socket is closed").unwrap();
        let echo = &world.echo;
        until("the targets are let go", || echo.talking() == 0).await;

        let again = match world.tunnel().await {
            Ok(mut tunnel) => tunnel.connect(REVIEWS).await.map(|_| ()),
            Err(_) => Err((0, String::new())),
        };
        assert_eq!(again.map_err(|(status, _)| status), Err(0), "refused before any HTTP is answered");
        assert_eq!(world.door.plane().connections.closed(), [(revocation.id.clone(), 1)], "and not counted");

        // A hold that is lifted lets it in again.
        world.put_in_force(|view| drop(view.revocations.remove(&revocation.id))).await;
        let mut tunnel = world.tunnel().await.unwrap();
        begun(&mut tunnel).await;
    });
}

#[test]
fn a_gateway_that_is_revoked_itself_serves_nobody() {
    run(async {
        let mut world = World::open(16, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        let mut stream = begun(&mut tunnel).await;
        let revocation = revoke(&world.east.gateway().facts.id);
        world.put_in_force(|view| view.revocations.insert(revocation.clone())).await;
        is_cut(&mut stream).await;
        // The caller has not heard of it, and comes again.
        for _ in 0..3 {
            if let Ok(mut tunnel) = world.tunnel().await {
                assert!(tunnel.connect(REVIEWS).await.is_err(), "a revoked gateway opened a tunnel");
            }
        }
        assert_eq!(world.door.refused("own_revoked"), 3);
    });
}

#[test]
fn what_is_not_exported_is_not_reached() {
    run(async {
        let mut world = World::open(16, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        for (authority, status, reason) in [
            ("secret.shop.svc.cluster.local:80", 403, "not-exported"),
            ("nobody.shop.svc.cluster.local:80", 404, "unknown-service"),
            ("127.0.0.1:22", 404, "not-a-service"),
            ("www.example.com:443", 404, "not-a-service"),
        ] {
            let refused = tunnel.connect(authority).await.map(|_| ()).unwrap_err();
            assert_eq!(refused, (status, reason.to_owned()), "{authority}");
        }
        assert_eq!(world.echo.talking(), 0, "not a byte went anywhere");
        // On the same connection, once it is exported, and not any more when it is taken back.
        let secret: hanse_identity::ServiceName = "shop/secret".parse().unwrap();
        let name = secret.clone();
        world
            .put_in_force(|view| view.services.get_mut(&name).unwrap().export = Some(Export::Everyone))
            .await;
        begins(&mut tunnel.connect("secret.shop.svc.cluster.local:80").await.unwrap()).await;
        world.put_in_force(|view| view.services.get_mut(&secret).unwrap().export = None).await;
        let refused = tunnel.connect("secret.shop.svc.cluster.local:80").await.map(|_| ()).unwrap_err();
        assert_eq!(refused.0, 403);
        // Only CONNECT is spoken here.
        let get = Request::get("http://reviews.shop.svc.cluster.local/").body(Empty::new()).unwrap();
        assert_eq!(tunnel.sender.send_request(get).await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    });
}

#[test]
fn a_stream_ends_soon_after_its_service_is_no_longer_exported() {
    run(async {
        let mut world = World::open(16, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        let mut stream = begun(&mut tunnel).await;
        let name: hanse_identity::ServiceName = "shop/reviews".parse().unwrap();
        world.put_in_force(|view| view.services.get_mut(&name).unwrap().export = None).await;
        // What is under way may end.
        echoes(&mut stream).await;
        let mut heard = [0; 1];
        let read = tokio::time::timeout(tunnel::UNEXPORTED_FOR + SOON, stream.read(&mut heard)).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "cut, not silent: {read:?}");
        let echo = &world.echo;
        until("the target is let go", || echo.talking() == 0).await;
        // The connection itself is not to blame: another service may be exported.
        assert_eq!(tunnel.connect(REVIEWS).await.map(|_| ()).map_err(|(status, _)| status), Err(403));
    });
}

#[tokio::test(start_paused = true)]
async fn an_export_that_comes_back_in_time_ends_no_stream() {
    let (east, west) = (Domain::new("east.example"), Domain::new("west.example"));
    let plane = plane(&east.gateway());
    let telemetry = GatewayTelemetry::register(&plane.telemetry);
    let gateway = Gateway {
        plane,
        limits: Limits::new(1),
        connections: Limits::new(1),
        telemetry,
        #[cfg(target_os = "linux")]
        pipes: crate::io::pipe::Pipes::default(),
    };
    let mut revision = 0;
    let mut publish = |export| {
        let mut view = view(&east, &west, None);
        revision += 1;
        view.revision = Revision(revision);
        add_service(&mut view, "shop/reviews", export, "127.0.0.1:1".parse().unwrap());
        gateway.plane.publish(Arc::new(view));
    };
    publish(Some(Export::Everyone));
    let (caller, service) = (west.id("product"), "shop/reviews".parse().unwrap());
    let ended = tunnel::unexported(&gateway, &caller, &service);
    let mut ended = std::pin::pin!(ended);
    let mut ends_within = async |time| tokio::time::timeout(time, &mut ended).await.is_ok();
    assert!(!ends_within(tunnel::UNEXPORTED_FOR * 2).await);
    publish(None);
    assert!(!ends_within(tunnel::UNEXPORTED_FOR / 2).await);
    publish(Some(Export::Everyone));
    assert!(!ends_within(tunnel::UNEXPORTED_FOR * 2).await);
    publish(None);
    assert!(ends_within(tunnel::UNEXPORTED_FOR + Duration::from_millis(1)).await);
}

#[test]
fn strangers_are_refused_at_the_tunnel_and_led_nowhere_by_the_passthrough() {
    run(async {
        let world = World::open(16, 0).await;
        // A trust domain that nobody has joined, and a forger of west's names.
        for stranger in [Domain::new("south.example"), Domain::new("west.example")] {
            let outsider = plane(&stranger.workload("product", 0));
            outsider.publish(Arc::new(view(&stranger, &world.east, None)));
            if let Ok(mut tunnel) = Tunnel::dial(&outsider, world.door.tunnel, None, &world.east).await {
                assert!(tunnel.connect(REVIEWS).await.is_err(), "{} was served", stranger.trust_domain);
            }
        }
        let door = &world.door;
        until("both are counted", || door.refused("tls") == 2).await;
        assert!(door.plane().connections.is_empty());

        let not_exported =
            Sni::Service { service: "shop/secret".parse().unwrap(), cluster: world.east.cluster() };
        let unknown = Sni::Gateway { gateway: "gateway-9".parse().unwrap(), cluster: world.east.cluster() };
        let foreign =
            Sni::Service { service: "shop/reviews".parse().unwrap(), cluster: world.west.cluster() };
        let names = [not_exported.to_name(), unknown.to_name(), foreign.to_name()];
        for name in names.into_iter().chain([Some("www.example.com".to_owned()), None]) {
            let dialled = Tunnel::dial(&world.caller, door.passthrough, name.clone(), &world.east).await;
            assert!(dialled.is_err(), "{name:?} led somewhere");
        }
        assert_eq!(world.echo.talking(), 0);
    });
}

#[test]
fn one_cluster_fills_neither_the_streams_nor_the_connections() {
    run(async {
        let world = World::open(2, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        let mut first = begun(&mut tunnel).await;
        let second = begun(&mut tunnel).await;
        let refused = tunnel.connect(REVIEWS).await.map(|_| ()).unwrap_err();
        assert_eq!(refused, (503, "over-limit".to_owned()));
        echoes(&mut first).await;
        drop(second);
        let echo = &world.echo;
        until("its place is free", || echo.talking() == 1).await;
        let limits = &world.door.gateway.limits;
        until("its place is counted free", || limits.open().iter().all(|(_, open)| *open == 1)).await;
        let _second = begun(&mut tunnel).await;

        let mut other = world.tunnel().await.unwrap();
        assert_eq!(other.connect(REVIEWS).await.map(|_| ()).unwrap_err().0, 503, "the same cluster's places");
        let third = world.tunnel().await;
        let third = match third {
            Ok(mut tunnel) => tunnel.connect(REVIEWS).await.map(|_| ()).map_err(|(status, _)| status),
            Err(_) => Err(0),
        };
        assert_eq!(third, Err(0), "a third connection is not served");
        assert_eq!(world.door.refused("gateway-connections"), 1);
        // West is full; east's own are not.
        let home = plane(&world.east.workload("product", 0));
        home.publish(Arc::new(world.east_view.clone()));
        let mut tunnel = Tunnel::dial(&home, world.door.tunnel, None, &world.east).await.unwrap();
        begun(&mut tunnel).await;
    });
}

#[test]
fn draining_lets_streams_finish_and_takes_no_new_ones() {
    run(async {
        let mut world = World::open(16, 0).await;
        let mut tunnel = world.tunnel().await.unwrap();
        let mut stream = begun(&mut tunnel).await;
        world.door.drain.begin();
        let door = world.door.tunnel;
        until("the listener is closed", || std::net::TcpStream::connect(door).is_err()).await;
        echoes(&mut stream).await;
        let new = tokio::time::timeout(SOON, tunnel.connect(REVIEWS)).await.expect("an answer");
        assert!(new.is_err(), "a new stream while draining");
        echoes(&mut stream).await;
        drop(stream);
        let finished = async { while world.door.doors.join_next().await.is_some() {} };
        tokio::time::timeout(SOON, finished).await.expect("ends when its last stream has");
    });
}

#[test]
fn a_caller_whose_svid_is_about_to_expire_is_asked_to_leave_in_good_time() {
    run(async {
        let world = World::open(16, 60).await;
        let mut tunnel = world.tunnel().await.unwrap();
        let mut stream = begun(&mut tunnel).await;
        let facts = world.caller.credentials.current().unwrap().identity.facts.clone();
        let nearly = facts.not_after - Duration::from_secs(1);
        let plane = world.door.plane();
        plane.connections.sweep(&plane.knowledge.now().trust, None, nearly);
        // No new streams, and those that are there go on.
        let deadline = tokio::time::Instant::now() + SOON;
        while tunnel.connect(REVIEWS).await.is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "never asked to leave");
        }
        echoes(&mut stream).await;
        plane.connections.sweep(&plane.knowledge.now().trust, None, facts.not_after);
        is_cut(&mut stream).await;
    });
}

#[test]
fn half_a_dead_stream_does_not_keep_its_place() {
    run(async {
        let telemetry = GatewayTelemetry::default();
        let (near, dialler) = tokio::io::duplex(64);
        let (far, target) = tokio::io::duplex(64);
        let relayed = tokio::spawn(super::relay::relay(dialler, target, telemetry.open("east", "tunnel")));
        // The target has gone; the dialler keeps its half open for ever.
        drop(far);
        let ended =
            tokio::time::timeout(Duration::from_secs(20), relayed).await.expect("not for ever").unwrap();
        assert!(ended.is_err());
        drop(near);
    });
}
