//! Plain TCP through real sidecars: who speaks first, half-close, failover, policies, revocations, and CONNECT.

use std::cell::Cell;
use std::rc::Rc;

use hanse_federation::Change;
use hanse_federation::policy::{PolicyKind, parse, validate};
use hanse_identity::Closing;
use tokio::net::TcpListener;

use super::*;
use crate::staleness::Staleness;

const PORT: u16 = 6379;

/// A server that greets with its name, gives back what it gets, and when that has ended says goodbye.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    taken: Rc<Cell<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Rc::new(Cell::new(0));
        let count = Rc::clone(&taken);
        let task = tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.set(count.get() + 1);
                tokio::task::spawn_local(async move {
                    let (mut read, mut write) = stream.split();
                    write.write_all(name.as_bytes()).await?;
                    tokio::io::copy(&mut read, &mut write).await?;
                    write.write_all(b"goodbye").await?;
                    write.shutdown().await
                });
            }
        });
        Self { address, taken, task }
    }
}

/// A product page with a listener for `shop/redis:6379`, and redis in the same cluster.
struct Tcp {
    east: Domain,
    product: Sidecar,
    redis: Sidecar,
    server: Server,
    view: View,
}

impl Tcp {
    async fn open() -> Self {
        let east = Domain::new("east.example");
        let server = Server::start("hello").await;
        let upstreams = ["shop/redis:6379", "shop/redis:80"];
        let product = sidecar(&east.workload("productpage"), &[], &[], &upstreams);
        let redis = sidecar(&east.workload("redis"), &["shop/redis"], &[(PORT, server.address)], &[]);
        let mut view = view(&[&east]);
        add_service(&mut view, "shop/redis", &[east.id("redis")], None);
        add_endpoint(&mut view, "redis-1", "shop/redis", &east.id("redis"), redis.inbound);
        let opened = Self { east, product, redis, server, view };
        opened.publish();
        opened
    }

    fn publish(&self) {
        self.product.publish(&self.view);
        self.redis.publish(&self.view);
    }

    fn change(&mut self, change: impl FnOnce(&mut View)) {
        change(&mut self.view);
        self.view.revision.0 += 1;
        self.publish();
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.product.tcp[0]).await.unwrap()
    }
}

fn sidecar(
    svid: &hanse_identity::Svid,
    services: &[&str],
    ports: &[(u16, SocketAddr)],
    upstreams: &[&str],
) -> Sidecar {
    // Nothing of HTTP is behind them.
    let app = Some("127.0.0.1:1".parse().unwrap());
    Sidecar::start_streaming(Some(svid), services, app, Staleness::default(), ports, upstreams)
}

pub(super) async fn heard(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut bytes)).await;
    read.expect("in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

/// Whether the connection was reset, and not ended.
pub(super) async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{rest:?}");
    read.expect("in time").is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

#[test]
fn a_server_may_speak_first_and_either_end_may_be_done_first() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let mut stream = tcp.connect().await;
        heard(&mut stream, "hello").await;
        stream.write_all(b"PING").await.unwrap();
        heard(&mut stream, "PING").await;
        assert_eq!(tcp.redis.plane.connections.rows(9)[0].peer, tcp.east.id("productpage").to_string());
        // The client is done, and the server has the last word.
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "goodbye");
        for sidecar in [&mut tcp.product, &mut tcp.redis] {
            let logged = sidecar.logged().await;
            assert_eq!((logged.protocol, logged.upstream_cluster.as_str()), ("TCP", "shop/redis"));
            assert_eq!((logged.bytes_received, logged.bytes_sent, logged.response_code), (4, 16, 200));
            assert_eq!(logged.source_spiffe, tcp.east.id("productpage").to_string());
            assert_eq!(logged.destination_spiffe, tcp.east.id("redis").to_string());
            let metrics = sidecar.plane.telemetry.to_text();
            for family in ["connections_opened_total{", "connections_closed_total{", "sent_bytes_total{"] {
                assert!(metrics.contains(&format!("\nistio_tcp_{family}")), "{family} in {metrics}");
            }
            assert!(!metrics.contains("\nistio_requests_total{"), "{metrics}");
        }
    });
}

#[test]
fn two_hundred_at_once_are_more_than_one_connection_carries() {
    on_local_set(async {
        let tcp = Tcp::open().await;
        let opened = (0..200).map(|_| async {
            let mut stream = tcp.connect().await;
            heard(&mut stream, "hello").await;
            stream
        });
        let streams = futures_util::future::join_all(opened).await;
        let live = tcp.product.plane.connections.len();
        assert!((4..=5).contains(&live), "{} streams, 64 on one, over {live} connections", streams.len());
        assert_eq!(tcp.server.taken.get(), 200, "nobody was tried twice");
    });
}

#[test]
fn much_passes_both_ways_and_who_does_not_read_holds_up_nobody_else() {
    on_local_set(async {
        let tcp = Tcp::open().await;
        // More of them than connection windows would bear, were they shared with others.
        let mut stuck = Vec::new();
        let written = Rc::new(Cell::new(0));
        for _ in 0..10 {
            let mut stream = tcp.connect().await;
            heard(&mut stream, "hello").await;
            let (read, mut write) = stream.into_split();
            let count = Rc::clone(&written);
            tokio::task::spawn_local(async move {
                while let Ok(bytes) = write.write(&[7; 64 << 10]).await {
                    count.set(count.get() + bytes);
                }
            });
            stuck.push(read);
        }
        let mut before = 0;
        until("all that nobody reads is stuck", async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            std::mem::replace(&mut before, written.get()) == written.get()
        })
        .await;
        let mut stream = tcp.connect().await;
        heard(&mut stream, "hello").await;
        let much: Vec<u8> = (0..4u32 << 20).map(|n| (n / 3) as u8).collect();
        let (mut read, mut write) = stream.split();
        let mut back = vec![0; much.len()];
        let both = async { tokio::join!(write.write_all(&much), read.read_exact(&mut back)) };
        let (sent, received) = tokio::time::timeout(Duration::from_secs(20), both).await.expect("in time");
        sent.and(received.map(|_| ())).unwrap();
        assert!(back == much);
    });
}

#[test]
fn what_cannot_be_opened_is_tried_elsewhere_and_then_reset() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        // A second instance, whose server is gone; and a third, whose sidecar is.
        let dead = SocketAddr::from(([127, 0, 0, 1], 1));
        let second = sidecar(&tcp.east.workload("redis"), &["shop/redis"], &[(PORT, dead)], &[]);
        let id = tcp.east.id("redis");
        tcp.change(|view| {
            add_endpoint(view, "redis-2", "shop/redis", &id, second.inbound);
            add_endpoint(view, "redis-3", "shop/redis", &id, dead);
        });
        second.publish(&tcp.view);
        for _ in 0..12 {
            let mut stream = tcp.connect().await;
            heard(&mut stream, "hello").await;
        }
        assert_eq!(tcp.server.taken.get(), 12);

        tcp.server.task.abort();
        until("the server is gone", async || TcpStream::connect(tcp.server.address).await.is_err()).await;
        assert!(is_reset(&mut tcp.connect().await).await);
        // A port that nobody declared is none, though the service has it in common with nothing else.
        let mut other = TcpStream::connect(tcp.product.tcp[1]).await.unwrap();
        assert!(is_reset(&mut other).await);
        until("it is logged", async || {
            let logged = tcp.product.logged().await;
            logged.hanse_reason == "nothing-served" && logged.authority.ends_with(":80")
        })
        .await;
    });
}

#[test]
fn policies_decide_by_who_calls_and_those_that_read_requests_let_nobody_in() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let me = tcp.east.id("productpage");
        let mine = format!("from: {{ identities: [\"{me}\"] }}");
        for (action, rules, allowed) in [
            ("Allow", format!("[{{ {mine} }}]"), true),
            ("Allow", "[{ from: { clusters: [east] } }]".to_owned(), true),
            ("Allow", "[{ from: { namespaces: [bank] } }]".to_owned(), false),
            ("Allow", format!("[{{ {mine}, to: {{ methods: [GET] }} }}]"), false),
            ("Allow", format!("[{{ {mine}, to: {{ paths: [{{ value: / }}] }} }}]"), false),
            ("Allow", format!("[{{ {mine}, to: {{ ports: [{PORT}] }} }}]"), true),
            ("Allow", format!("[{{ {mine}, to: {{ ports: [6380] }} }}]"), false),
            ("Deny", "[{ to: { ports: [6380] } }]".to_owned(), true),
            ("Deny", format!("[{{ to: {{ ports: [{PORT}] }} }}]"), false),
            ("Deny", "[{ from: { namespaces: [bank] } }]".to_owned(), true),
            ("Deny", format!("[{{ {mine}, to: {{ methods: [DELETE] }} }}]"), false),
            ("Deny", format!("[{{ {mine} }}]"), false),
        ] {
            let text = access::policy("who", action, &rules).replace("reviews", "redis");
            let documents = parse("test", &text).unwrap();
            tcp.change(|view| {
                for (document, _) in documents {
                    view.apply(&Change::PolicyPut(Box::new(document)));
                }
            });
            let mut stream = tcp.connect().await;
            match allowed {
                true => heard(&mut stream, "hello").await,
                false => {
                    assert!(is_reset(&mut stream).await, "{action} {rules}");
                    assert_eq!(tcp.redis.logged().await.response_code, 403, "{action} {rules}");
                }
            }
            drop(stream);
            if allowed {
                tcp.redis.logged().await;
            }
        }
    });
}

#[test]
fn the_example_of_ports_lets_in_by_port_and_namespace() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let text = example("access-policy-ports");
        for (text, allowed) in [
            (text.clone(), true),
            (text.replace("ports: [6379]", "ports: [6381]"), false),
            (text.replace("namespaces: [shop]", "namespaces: [bank]"), false),
            // The port that is redis' own, and this is not redis.
            (text.replace("6379", "6381").replace("6380", "6379"), false),
        ] {
            apply(&mut tcp, &text);
            let mut stream = tcp.connect().await;
            match allowed {
                true => heard(&mut stream, "hello").await,
                false => assert!(is_reset(&mut stream).await, "{text}"),
            }
        }
    });
}

#[test]
fn a_revocation_resets_a_tcp_connection() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let mut stream = tcp.connect().await;
        heard(&mut stream, "hello").await;
        let revocation =
            hanse_identity::Revocation { closing: Closing::Now, ..revoke(&tcp.east.id("productpage"), 9) };
        tcp.view.revocations.insert(revocation.clone());
        tcp.view.revision.0 += 1;
        tcp.redis.plane.put_in_force(std::sync::Arc::new(tcp.view.clone())).await;
        assert_eq!(tcp.redis.plane.connections.closed(), [(revocation.id, 1)]);
        assert!(is_reset(&mut stream).await, "nobody takes it for the end of what was said");
    });
}

#[test]
fn a_connection_ends_when_its_caller_may_no_longer_call() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let mut stream = tcp.connect().await;
        heard(&mut stream, "hello").await;
        let deny = |from: &str| {
            access::policy("who", "Deny", &format!("[{{ from: {{ {from} }} }}]")).replace("reviews", "redis")
        };
        // What says nothing of it leaves it alone.
        apply(&mut tcp, &deny("namespaces: [bank]"));
        stream.write_all(b"PING").await.unwrap();
        heard(&mut stream, "PING").await;
        let me = tcp.east.id("productpage");
        apply(&mut tcp, &deny(&format!("identities: [\"{me}\"]")));
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty(), "no goodbye of the server's: {rest:?}");
        let logged = tcp.redis.logged().await;
        assert_eq!((logged.response_code, logged.bytes_received), (200, 4));
        assert_eq!(logged.response_code_details, "no longer allowed");
    });
}

#[test]
fn an_app_may_connect_through_its_own_proxy() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let connect = async |authority: &str| {
            let mut stream = TcpStream::connect(tcp.product.outbound).await.unwrap();
            let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let answer = upgrade::read_head(&mut stream).await.unwrap();
            (answer, stream)
        };
        let (answer, mut stream) = connect("redis.shop.svc.clusterset.local:6379").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        heard(&mut stream, "hello").await;
        stream.shutdown().await.unwrap();
        heard(&mut stream, "goodbye").await;
        for (elsewhere, status) in [
            ("redis.shop:80", 404),
            ("redis.shop", 404),
            ("www.example.com:443", 404),
            ("127.0.0.1:22", 404),
            ("nobody.shop:6379", 503),
        ] {
            let (answer, _) = connect(elsewhere).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{elsewhere}: {answer}");
        }
        assert_eq!(tcp.product.logged().await.bytes_sent, 12);
    });
}

/// As `hanse policy apply` would, with no finding to tell.
fn apply(tcp: &mut Tcp, text: &str) {
    let documents = parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
    let findings = validate(&tcp.view, "test", &documents);
    assert!(findings.is_empty(), "{text}\n{findings:#?}");
    for (document, _) in documents {
        tcp.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
    }
}

fn example(name: &str) -> String {
    let path = format!("{}/../deploy/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// The first that a client of TLS says.
pub(super) fn client_hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_examples_of_routes_send_connections_where_they_say() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let mut versions = Vec::new();
        for (name, greeting) in [("redis-v1", "one"), ("redis-v2", "two")] {
            let server = Server::start(greeting).await;
            let service = format!("shop/{name}");
            let started =
                sidecar(&tcp.east.workload(name), &[service.as_str()], &[(PORT, server.address)], &[]);
            let id = tcp.east.id(name);
            tcp.change(|view| {
                add_service(view, &service, std::slice::from_ref(&id), None);
                add_endpoint(view, &format!("{name}-1"), &service, &id, started.inbound);
            });
            versions.push((started, server));
        }
        apply(&mut tcp, &example("tcp-route"));
        versions.iter().for_each(|(sidecar, _)| sidecar.publish(&tcp.view));
        let mut news = 0;
        for _ in 0..60 {
            let mut greeting = [0; 3];
            tcp.connect().await.read_exact(&mut greeting).await.unwrap();
            news += usize::from(&greeting == b"two");
        }
        // Of sixty, six are expected; one in a thousand million has none, or twenty-five.
        assert!((1..25).contains(&news), "{news} of 60 went to the new one");
        assert_eq!(tcp.server.taken.get(), 0, "the service itself is none of the backends");

        apply(&mut tcp, &example("tls-route"));
        versions.iter().for_each(|(sidecar, _)| sidecar.publish(&tcp.view));
        for round in 0..8 {
            let mut stream = tcp.connect().await;
            let hello = client_hello("a.test.example.com");
            // It may come in two parts, and nothing of it may be lost.
            let (first, rest) = hello.split_at(hello.len() / 2);
            stream.write_all(first).await.unwrap();
            if round % 2 == 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stream.write_all(rest).await.unwrap();
            heard(&mut stream, "two").await;
            let mut back = vec![0; hello.len()];
            stream.read_exact(&mut back).await.unwrap();
            assert!(back == hello, "what was looked at is passed on");
        }
        // Only TLSRoutes: who asks for no name of theirs goes nowhere.
        tcp.change(|view| view.policies.retain(|key, _| key.kind == PolicyKind::TlsRoute));
        for begin in [client_hello("www.example.com"), b"PING\r\n".to_vec()] {
            let mut stream = tcp.connect().await;
            stream.write_all(&begin).await.unwrap();
            assert!(is_reset(&mut stream).await);
            until("it is logged", async || tcp.product.logged().await.hanse_reason == "no-route").await;
        }
    });
}

#[test]
fn a_connection_into_another_namespace_ends_with_its_grant() {
    on_local_set(async {
        let mut tcp = Tcp::open().await;
        let server = Server::start("trial").await;
        let ports = [(PORT, server.address)];
        let trial = sidecar(&tcp.east.workload("trial"), &["trial/redis"], &ports, &[]);
        let id = tcp.east.id("trial");
        tcp.change(|view| {
            add_service(view, "trial/redis", std::slice::from_ref(&id), None);
            add_endpoint(view, "trial-1", "trial/redis", &id, trial.inbound);
        });
        let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: { name: shop, namespace: trial }
spec:
  from: [{ group: gateway.networking.k8s.io, kind: TCPRoute, namespace: shop }]
  to: [{ group: '', kind: Service, name: redis }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: { name: redis, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: redis }]
  rules: [{ backendRefs: [{ name: redis, namespace: trial }] }]
";
        const ROUTE: &[PolicyKind] = &[PolicyKind::TcpRoute];
        const GRANT: &[PolicyKind] = &[PolicyKind::ReferenceGrant];
        const BOTH: &[PolicyKind] = &[PolicyKind::TcpRoute, PolicyKind::ReferenceGrant];
        // Both at once, the route before the grant, and the grant alone: what has led a connection is what counts.
        for steps in [&[BOTH][..], &[ROUTE, GRANT], &[GRANT]] {
            apply(&mut tcp, text);
            trial.publish(&tcp.view);
            let mut open = tcp.connect().await;
            heard(&mut open, "trial").await;
            // What else changes does not touch it.
            tcp.change(|view| add_service(view, "shop/other", &[], None));
            let (last, before) = steps.split_last().unwrap();
            for gone in before {
                tcp.change(|view| view.policies.retain(|key, _| !gone.contains(&key.kind)));
            }
            open.write_all(b"PING").await.unwrap();
            heard(&mut open, "PING").await;
            tcp.change(|view| view.policies.retain(|key, _| !last.contains(&key.kind)));
            assert!(is_reset(&mut open).await, "{steps:?}");
        }
        assert!(is_reset(&mut tcp.connect().await).await);
        until("it is logged", async || tcp.product.logged().await.hanse_reason == "ref-not-permitted").await;
        assert_eq!((server.taken.get(), tcp.server.taken.get()), (3, 0));
    });
}
