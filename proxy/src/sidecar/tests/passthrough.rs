//! Clients outside whose connections a Gateway passes on unread: TLS by its server name, and plain TCP, through a real proxy
//! that serves it and the sidecar behind. The service ends its clients' TLS itself.

use std::sync::Arc;

use hanse_federation::Change;
use hanse_federation::policy::{PolicyKind, parse, validate};
use hanse_identity::tls::outside::{web_client_config, web_server_config};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use super::balancing::example;
use super::ingress::{serve, write};
use super::outside::Web;
use super::tcp::{client_hello, is_reset};
use super::*;
use crate::runtime::Plane;
use crate::runtime::access_log::Entry;
use crate::runtime::certificates::Certificates;
use crate::runtime::drain::Drain;

const DB: &str = "db.shop.example";
const PORT: u16 = 6379;

/// A proxy that serves `shop/edge`, in front of a redis that has a certificate of its own.
struct Edge {
    east: Domain,
    plane: Arc<Plane>,
    redis: Sidecar,
    web: Web,
    view: View,
    log: mpsc::UnboundedReceiver<Entry>,
    /// For ports 443 and 6379.
    tls: SocketAddr,
    tcp: SocketAddr,
    _certificates: tempfile::TempDir,
    _drain: Drain,
}

/// A TLS server that says its name, and then gives back what it gets.
async fn server(web: &Web, says: &'static str) -> SocketAddr {
    let (chain, key) = web.issue(DB);
    let chain = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = web_server_config(vec![chain], key, &[]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let accepting = tokio_rustls::TlsAcceptor::from(Arc::clone(&config)).accept(tcp);
            tokio::task::spawn_local(async move {
                let Ok(mut tls) = accepting.await else { return };
                let _ = tls.write_all(says.as_bytes()).await;
                let (mut read, mut write) = tokio::io::split(&mut tls);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

impl Edge {
    async fn open() -> Self {
        let east = Domain::new("east.example");
        let (web, directory) = (Web::new(), tempfile::tempdir().unwrap());
        let (chain, key) = web.issue("www.shop.example");
        write(directory.path(), "www", &chain, &key, 0o600);
        let certificates = Arc::new(Certificates::open(directory.path()).unwrap());
        let ports = [(PORT, server(&web, "redis").await)];
        let app = Some("127.0.0.1:1".parse().unwrap());
        let redis = Sidecar::start_streaming(
            Some(&east.workload("redis")),
            &["shop/redis"],
            app,
            Default::default(),
            &ports,
            &[],
        );
        let mut view = view(&[&east]);
        add_service(&mut view, "shop/redis", &[east.id("redis")], None);
        add_endpoint(&mut view, "redis-1", "shop/redis", &east.id("redis"), redis.inbound);
        let plane = Arc::new(Plane::new("edge-1".parse().unwrap(), hanse_federation::Locality::default()));
        plane.credentials.install_svid(&east.workload("edge")).unwrap();
        let (access_log, log) = access_log(&plane);
        let gateway = "shop/edge".parse().unwrap();
        let (at, drain) = serve(&plane, &gateway, &[443, PORT], Some(certificates), Some(access_log));
        let (tls, tcp) = (at[0], at[1]);
        let mut edge =
            Self { east, plane, redis, web, view, log, tls, tcp, _certificates: directory, _drain: drain };
        edge.apply(&example("gateway-passthrough"));
        edge
    }

    fn change(&mut self, change: impl FnOnce(&mut View)) {
        change(&mut self.view);
        self.view.revision.0 += 1;
        self.plane.publish(Arc::new(self.view.clone()));
        self.redis.publish(&self.view);
    }

    /// As `hanse policy apply` would, with no finding to tell.
    fn apply(&mut self, text: &str) {
        let documents = parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
        let findings = validate(&self.view, "test", &documents);
        assert!(findings.is_empty(), "{text}\n{findings:#?}");
        for (document, _) in documents {
            self.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
        }
    }

    async fn connect(&self, to: SocketAddr, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let roots = [CertificateDer::from_pem_slice(self.web.root.as_bytes()).unwrap()];
        let config = web_client_config(&roots, &[]).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        tokio::time::timeout(Duration::from_secs(5), connector.connect(name, TcpStream::connect(to).await?))
            .await
            .expect("in time")
    }
}

async fn said(tls: &mut TlsStream<TcpStream>, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    let read = tokio::time::timeout(Duration::from_secs(5), tls.read_exact(&mut bytes)).await;
    read.expect("in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

#[test]
fn tls_is_passed_on_by_its_server_name_and_ends_at_the_service() {
    on_local_set(async {
        let mut edge = Edge::open().await;
        let me = edge.east.id("edge").to_string();
        for (to, authority, route) in [
            (edge.tls, "db.shop.example:443", "shop/db"),
            (edge.tcp, "edge.shop.svc.gateway.local:6379", "shop/redis"),
        ] {
            let mut tls = edge.connect(to, DB).await.unwrap();
            said(&mut tls, "redis").await;
            tls.write_all(b"PING").await.unwrap();
            said(&mut tls, "PING").await;
            assert_eq!(edge.redis.plane.connections.rows(9)[0].peer, me, "the gateway's own mutual TLS");
            tls.shutdown().await.unwrap();
            assert_eq!(tls.read_to_end(&mut Vec::new()).await.unwrap(), 0);
            let logged = next_line(&mut edge.log).await;
            assert_eq!((logged.protocol, logged.authority.as_str()), ("TCP", authority));
            assert_eq!((logged.policy.as_str(), logged.upstream_cluster.as_str()), (route, "shop/redis"));
            assert_eq!((logged.source_spiffe.as_str(), logged.response_code), (me.as_str(), 200));
            assert!(logged.bytes_received > 200 && logged.bytes_sent > 200, "{logged:?}");
            let behind = edge.redis.logged().await;
            assert_eq!((behind.source_spiffe.as_str(), behind.response_code), (me.as_str(), 200));
        }
        let metrics = edge.plane.telemetry.to_text();
        let opened = metrics.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total{"));
        assert!(opened.is_some_and(|line| line.ends_with(" 2") && line.contains(&me)), "{metrics}");
    });
}

#[test]
fn who_asks_for_nobody_here_is_told_so_and_gets_nowhere() {
    on_local_set(async {
        let mut edge = Edge::open().await;
        // A name of the listener's without a route, one of no listener, and none: an address is not sent as a name.
        for (name, alert) in [
            ("other.shop.example", "UnrecognisedName"),
            ("shop.example", "UnrecognisedName"),
            ("db.elsewhere.example", "UnrecognisedName"),
            ("127.0.0.1", "MissingExtension"),
        ] {
            let refused = edge.connect(edge.tls, name).await.expect_err(name).to_string();
            assert!(refused.contains(alert), "{name}: {refused}");
        }
        for _ in 0..3 {
            let logged = next_line(&mut edge.log).await;
            assert_eq!((logged.hanse_reason.as_str(), logged.upstream_cluster.as_str()), ("no-route", ""));
        }
        let count = |reason| edge.plane.telemetry.refused.get_or_create(&Refused { reason }).get();
        assert_eq!((count("no_route"), count("no_server_name")), (3, 1));
        // What is no TLS, and a ClientHello without end.
        let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff];
        endless.resize(20 << 10, 0);
        for first in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), endless] {
            let mut stream = TcpStream::connect(edge.tls).await.unwrap();
            let _ = stream.write_all(&first).await;
            assert!(is_reset(&mut stream).await);
        }
        assert_eq!(count("outside_handshake"), 2);
        assert_eq!(edge.redis.plane.connections.len(), 0, "nobody behind was asked");
        // In two parts it is one all the same.
        let mut stream = TcpStream::connect(edge.tls).await.unwrap();
        let hello = client_hello(DB);
        let (first, rest) = hello.split_at(hello.len() / 2);
        stream.write_all(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        stream.write_all(rest).await.unwrap();
        let mut answer = [0; 1];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [22], "a handshake goes on");
        // Who is still speaking is not waited for beyond some seconds, and costs nobody else anything.
        let mut slow = TcpStream::connect(edge.tls).await.unwrap();
        slow.write_all(first).await.unwrap();
        said(&mut edge.connect(edge.tls, DB).await.unwrap(), "redis").await;
        assert!(is_reset(&mut slow).await);
        assert_eq!(count("handshake_timeout"), 1);
    });
}

#[test]
fn one_port_ends_the_tls_of_some_names_and_passes_on_that_of_others() {
    on_local_set(async {
        let mut edge = Edge::open().await;
        let both = example("gateway-passthrough").replace(
            "    - { name: redis, port: 6379, protocol: TCP }",
            "    - { name: redis, port: 6379, protocol: TCP }\n    \
             - { name: www, port: 443, protocol: HTTPS, hostname: www.shop.example, tls: { certificateRefs: [{ name: www }] } }",
        );
        edge.apply(&both);
        let shown = |tls: &TlsStream<TcpStream>| tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let mut db = edge.connect(edge.tls, DB).await.unwrap();
        said(&mut db, "redis").await;
        let www = edge.connect(edge.tls, "www.shop.example").await.unwrap();
        assert_ne!(shown(&www), shown(&db));
        let mut sender = http1(www).await;
        let url = "https://www.shop.example/";
        let answer = Answer::of(sender.send_request(get(url)).await.unwrap()).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "there is a listener and no route: {answer:?}");
        // Who was shown that certificate gets nowhere near the other name.
        let answer = Answer::of(sender.send_request(get("https://db.shop.example/")).await.unwrap()).await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
    });
}

#[test]
fn the_service_decides_by_the_gateways_identity_and_a_closed_door_ends_what_is_open() {
    on_local_set(async {
        let mut edge = Edge::open().await;
        let me = edge.east.id("edge");
        let deny = access::policy("who", "Deny", &format!("[{{ from: {{ identities: [\"{me}\"] }} }}]"));
        let mut open = edge.connect(edge.tls, DB).await.unwrap();
        said(&mut open, "redis").await;
        edge.apply(&deny.replace("reviews", "redis"));
        let ended = tokio::time::timeout(Duration::from_secs(5), open.read(&mut [0; 1])).await;
        assert!(ended.is_ok_and(|read| read.is_err()), "cut, and not ended");
        assert!(edge.connect(edge.tls, DB).await.is_err());
        until("the refusal is logged", async || next_line(&mut edge.log).await.hanse_reason == "not-allowed")
            .await;
        edge.change(|view| view.policies.retain(|key, _| key.kind != PolicyKind::AccessPolicy));
        let mut open = edge.connect(edge.tls, DB).await.unwrap();
        said(&mut open, "redis").await;
        let mut other = TcpStream::connect(edge.tcp).await.unwrap();
        other.write_all(&client_hello(DB)).await.unwrap();
        other.read_exact(&mut [0; 1]).await.unwrap();
        // Its route is taken away; that of the other port stays.
        edge.change(|view| view.policies.retain(|key, _| key.kind != PolicyKind::TlsRoute));
        let ended = tokio::time::timeout(Duration::from_secs(5), open.read(&mut [0; 1])).await;
        assert!(ended.is_ok_and(|read| read.is_err()), "nobody is let in there any more");
        let refused = edge.connect(edge.tls, DB).await.err().unwrap().to_string();
        assert!(refused.contains("UnrecognisedName"), "{refused}");
        let mut still = edge.connect(edge.tcp, DB).await.unwrap();
        said(&mut still, "redis").await;
        // A Gateway that is gone has no ports.
        edge.change(|view| view.policies.clear());
        let mut stream = TcpStream::connect(edge.tcp).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    });
}

#[test]
fn what_a_gateway_has_led_into_another_namespace_ends_with_the_grant() {
    on_local_set(async {
        let mut edge = Edge::open().await;
        let ports = [(PORT, server(&edge.web, "trial").await)];
        let (svid, id) = (edge.east.workload("trial"), edge.east.id("trial"));
        let app = Some("127.0.0.1:1".parse().unwrap());
        let trial =
            Sidecar::start_streaming(Some(&svid), &["trial/redis"], app, Default::default(), &ports, &[]);
        edge.change(|view| {
            add_service(view, "trial/redis", std::slice::from_ref(&id), None);
            add_endpoint(view, "trial-1", "trial/redis", &id, trial.inbound);
        });
        let grant = "
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: { name: edge, namespace: trial }
spec:
  from: [{ group: gateway.networking.k8s.io, kind: TLSRoute, namespace: shop }]
  to: [{ group: '', kind: Service, name: redis }]
---
";
        let own = "{ group: multicluster.x-k8s.io, kind: ServiceImport, name: redis, port: 6379 }";
        let theirs = "{ name: redis, namespace: trial, port: 6379 }";
        let documents = example("gateway-passthrough");
        // That of the TLSRoute is the first.
        edge.apply(&format!("{grant}{}", documents.replacen(own, theirs, 1)));
        trial.publish(&edge.view);
        let mut open = edge.connect(edge.tls, DB).await.unwrap();
        said(&mut open, "trial").await;
        edge.change(|view| add_service(view, "shop/other", &[], None));
        open.write_all(b"PING").await.unwrap();
        said(&mut open, "PING").await;
        // The route leads elsewhere and the grant is gone, both at once: it would take the connection, and names nobody wrongly.
        let back = parse("test", &documents).unwrap();
        edge.change(|view| {
            view.policies.retain(|key, _| key.kind != PolicyKind::ReferenceGrant);
            back.iter().for_each(|(document, _)| view.apply(&Change::PolicyPut(Box::new(document.clone()))));
        });
        let ended = tokio::time::timeout(Duration::from_secs(5), open.read(&mut [0; 1])).await;
        assert!(ended.is_ok_and(|read| read.is_err()), "cut, and not ended");
        said(&mut edge.connect(edge.tls, DB).await.unwrap(), "redis").await;
    });
}
