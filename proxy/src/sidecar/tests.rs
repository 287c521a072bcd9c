//! Tests of whole workers over loopback sockets: real TLS, real HTTP, Views given by hand.

mod access;
mod authorize;
mod balancing;
mod bodies;
mod closing;
mod cors;
mod egress;
mod faults;
mod flags;
mod framing;
mod grants;
mod grpc;
mod health;
mod hostile;
mod ingress;
mod limits;
mod live;
mod outside;
mod passthrough;
mod plaintext;
mod readers;
mod replaced;
mod restarts;
mod retries;
mod routing;
mod seen;
mod shedding;
mod tcp;
mod traces;
mod tunnelled;
mod upgrade;
mod users;
pub(crate) mod world;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hanse_federation::View;
use hanse_federation::catalog::Export;
use hanse_federation::change::PeerRecord;
use hanse_federation::view::Peer;
use hanse_identity::tls::Expect;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::connections::Side;
use crate::io::tls::{self, About};
use crate::runtime::telemetry::Refused;
use world::*;

/// A product page that calls reviews, both in east.
struct Shop {
    east: Domain,
    product: Sidecar,
    reviews: Sidecar,
    app: Option<App>,
    view: View,
}

const REVIEWS: &str = "http://reviews.shop.svc.clusterset.local/x?q=1";

impl Shop {
    async fn open() -> Self {
        let east = Domain::new("east.example");
        let app = App::start("reviews-v1").await;
        let product = Sidecar::start(Some(&east.workload("productpage")), &[], None);
        let reviews = Sidecar::start(Some(&east.workload("reviews")), &["shop/reviews"], Some(app.address));
        let mut view = view(&[&east]);
        add_service(&mut view, "shop/reviews", &[east.id("reviews")], None);
        add_endpoint(&mut view, "reviews-1", "shop/reviews", &east.id("reviews"), reviews.inbound);
        let shop = Self { east, product, reviews, app: Some(app), view };
        shop.publish();
        shop
    }

    fn publish(&self) {
        self.product.publish(&self.view);
        self.reviews.publish(&self.view);
    }

    fn change(&mut self, change: impl FnOnce(&mut View)) {
        change(&mut self.view);
        self.view.revision.0 += 1;
        self.publish();
    }

    /// A second instance of reviews.
    fn second(&mut self, app: SocketAddr) -> Sidecar {
        self.another("reviews-2", app)
    }

    fn another(&mut self, name: &str, app: SocketAddr) -> Sidecar {
        let second = Sidecar::start(Some(&self.east.workload("reviews")), &["shop/reviews"], Some(app));
        let (id, inbound) = (self.east.id("reviews"), second.inbound);
        self.change(|view| add_endpoint(view, name, "shop/reviews", &id, inbound));
        second.publish(&self.view);
        second
    }
}

#[test]
fn a_request_reaches_the_app_with_the_caller_named() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let mut request = get(REVIEWS);
        for forged in
            ["x-forwarded-client-cert", "X_Forwarded_Client_Cert", "x-hanse-cluster", "X-HANSE_anything"]
        {
            request.headers_mut().append(
                http::HeaderName::from_bytes(forged.as_bytes()).unwrap(),
                "URI=spiffe://east.example/ns/shop/sa/admin".parse().unwrap(),
            );
        }
        let answer = shop.product.request(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(answer.header("x-hanse-cluster"), "east");
        assert_ne!(answer.header("x-hanse-tier"), "forged");
        assert_eq!(answer.header("x-hanse-answered-by"), "", "the app cannot speak for the mesh");
        let seen = answer.seen();
        assert_eq!(seen["uri"], "/x?q=1");
        let headers = seen["headers"].as_object().unwrap();
        assert_eq!(headers["host"], "reviews.shop.svc.clusterset.local");
        let named: Vec<_> = headers.keys().filter(|name| crate::headers::is_reserved(name)).collect();
        assert_eq!(named, ["x-forwarded-client-cert"]);
        let chain = shop.product.plane.credentials.current().unwrap().chain_pem.clone();
        let leaf = <rustls_pki_types::CertificateDer<'_> as rustls_pki_types::pem::PemObject>::from_pem_slice(
            chain.as_bytes(),
        );
        let hash: String = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf.unwrap())
            .as_ref()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let expected =
            format!("By={};Hash={hash};URI={}", shop.east.id("reviews"), shop.east.id("productpage"));
        assert_eq!(headers["x-forwarded-client-cert"], expected);

        let logged = shop.product.logged().await;
        assert_eq!((logged.path.as_str(), logged.response_code, logged.attempts), ("/x", 200, 1));
        assert_eq!(logged.destination_spiffe, shop.east.id("reviews").to_string());
        assert_eq!((logged.source_cluster.as_str(), logged.destination_cluster.as_str()), ("east", "east"));
        assert_eq!(logged.bytes_sent, answer.body.len() as u64);
        let logged = shop.reviews.logged().await;
        assert_eq!(logged.source_spiffe, shop.east.id("productpage").to_string());
        let metrics = shop.product.plane.telemetry.to_text();
        assert!(metrics.contains("istio_requests_total{reporter=\"source\""), "{metrics}");
        assert!(metrics.contains("hanse_requests_by_tier_total{"), "{metrics}");
    });
}

#[test]
fn bodies_stream_both_ways_over_http1_and_http2() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let megabytes = Bytes::from(vec![7u8; 3 << 20]);
        let request = Request::post("/upload").header("host", "reviews.shop");
        let answer = shop.product.request(request.body(Full::new(megabytes.clone())).unwrap()).await;
        assert_eq!((answer.status, answer.seen()["bytes"].as_u64()), (StatusCode::OK, Some(3 << 20)));
        assert_eq!(shop.product.logged().await.bytes_received, 3 << 20);

        let mut sender = http2(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
        let request = Request::put("http://reviews.shop/again").body(Full::new(megabytes)).unwrap();
        let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
        assert_eq!(answer.seen()["bytes"].as_u64(), Some(3 << 20));
        assert_eq!(answer.seen()["headers"]["host"], "reviews.shop");
    });
}

#[test]
fn a_get_keeps_a_body_of_unknown_length() {
    on_local_set(async {
        let shop = Shop::open().await;
        let mut client = TcpStream::connect(shop.product.outbound).await.unwrap();
        let search = b"GET /search HTTP/1.1\r\nhost: reviews.shop\r\nconnection: close\r\n\
            transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
        client.write_all(search).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"bytes\":4"), "{answer}");
    });
}

#[test]
fn requests_that_can_be_read_in_two_ways_never_reach_the_app() {
    on_local_set(async {
        let shop = Shop::open().await;
        let product = plane_of(&shop.east.workload("productpage"), &shop.view);
        let tcp = TcpStream::connect(shop.reviews.inbound).await.unwrap();
        let about = About { side: Side::Outbound, service: None, cluster: None };
        let dialled = tls::dial(tcp, &product, Expect::Anyone, None, about).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(dialled.stream);
        let handshake = hyper::client::conn::http2::handshake(crate::runtime::worker::LocalExecutor, io);
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        let request = |fields: &[(&'static str, &'static str)], trailers: http::HeaderMap| {
            let body =
                Full::new(Bytes::from_static(b"body")).with_trailers(std::future::ready(Some(Ok(trailers))));
            // Mapped, it does not know its length any more.
            let body = body.map_frame(|frame| frame);
            let mut request = Request::post("http://reviews.shop/x").body(body.boxed_unsync()).unwrap();
            for (name, value) in fields {
                request.headers_mut().append(*name, value.parse().unwrap());
            }
            request
        };
        for fields in [
            &[("content-length", "4"), ("content-length", "4")][..],
            &[("host", "a.shop"), ("host", "b.shop")],
        ] {
            let response = sender.send_request(request(fields, http::HeaderMap::new())).await.unwrap();
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{fields:?}");
        }
        // The mesh's headers do not come in at the end either.
        let mut trailers = http::HeaderMap::new();
        trailers
            .insert("x-forwarded-client-cert", "URI=spiffe://east.example/ns/shop/sa/admin".parse().unwrap());
        trailers.insert("x-checksum", "1".parse().unwrap());
        let request = request(&[("trailer", "x-forwarded-client-cert, x-checksum")], trailers);
        let seen = Answer::of(sender.send_request(request).await.unwrap()).await.seen();
        assert_eq!(seen["trailers"], serde_json::json!(["x-checksum"]), "{seen}");
    });
}

#[test]
fn the_mesh_says_why_it_answers_itself() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        for (url, status, reason) in [
            ("http://www.example.com/", 404, "unknown-host"),
            ("http://nobody.shop.svc.clusterset.local/", 503, "no-such-service"),
        ] {
            let answer = shop.product.get(url).await;
            assert_eq!(answer.status.as_u16(), status, "{url}");
            assert_eq!(answer.header("x-hanse-reason"), reason);
            assert_eq!(answer.header("x-hanse-answered-by"), "mesh");
            assert_eq!(shop.product.logged().await.hanse_reason, reason);
        }
        let newcomer = Sidecar::start(None, &[], None);
        assert_eq!(newcomer.get(REVIEWS).await.header("x-hanse-reason"), "not-ready");
        newcomer.publish(&shop.view);
        assert_eq!(newcomer.get(REVIEWS).await.header("x-hanse-reason"), "not-ready", "a View, but no SVID");
        newcomer.plane.credentials.install_svid(&shop.east.workload("new")).unwrap();
        assert_eq!(newcomer.get(REVIEWS).await.status, StatusCode::OK);
    });
}

#[test]
fn strangers_and_plaintext_are_refused_at_the_door() {
    on_local_set(async {
        let shop = Shop::open().await;
        let refused = |reason| shop.reviews.plane.telemetry.refused.get_or_create(&Refused { reason }).get();

        let mut plain = TcpStream::connect(shop.reviews.inbound).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: reviews.shop\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/"), "plaintext got an answer");
        until("plaintext is counted", async || refused("not_tls") == 1).await;

        // Same names, another authority: the stranger believes in itself and in east.
        let stranger = Domain::new("east.example");
        let plane = plane_of(&stranger.workload("productpage"), &shop.view);
        assert!(call(&plane, shop.reviews.inbound, "/").await.is_none(), "a stranger was served");
        until("the stranger is counted", async || refused("unknown_root") == 1).await;

        // A trust domain that nobody has joined.
        let south = Domain::new("south.example");
        let plane = plane_of(&south.workload("productpage"), &shop.view);
        assert!(call(&plane, shop.reviews.inbound, "/").await.is_none(), "an unknown domain was served");
        assert!(shop.reviews.plane.connections.is_empty());

        // And an impostor among the endpoints: it has a good SVID, but not of the service.
        let mut shop = shop;
        let app = App::start("impostor").await;
        let impostor =
            Sidecar::start(Some(&shop.east.workload("evil")), &["shop/reviews"], Some(app.address));
        impostor.publish(&shop.view);
        let (id, address) = (shop.east.id("reviews"), impostor.inbound);
        shop.change(|view| {
            view.endpoints.clear();
            add_endpoint(view, "reviews-9", "shop/reviews", &id, address);
        });
        let answer = shop.product.get(REVIEWS).await;
        assert_eq!(
            (answer.status, answer.header("x-hanse-reason")),
            (StatusCode::SERVICE_UNAVAILABLE, "unreachable")
        );
    });
}

/// Calls an inbound listener directly with somebody's own identity.
async fn call(plane: &crate::runtime::Plane, to: SocketAddr, path: &str) -> Option<Answer> {
    let tcp = TcpStream::connect(to).await.unwrap();
    let about = About { side: Side::Outbound, service: None, cluster: None };
    let dialled = tls::dial(tcp, plane, Expect::Anyone, None, about).await.ok()?;
    let handshake = hyper::client::conn::http2::handshake(
        crate::runtime::worker::LocalExecutor,
        hyper_util::rt::TokioIo::new(dialled.stream),
    );
    let (mut sender, connection) = handshake.await.ok()?;
    tokio::task::spawn_local(async move { drop(connection.await) });
    let request = Request::get(format!("http://reviews.shop{path}")).body(Full::<Bytes>::default()).unwrap();
    Some(Answer::of(sender.send_request(request).await.ok()?).await)
}

fn add_peer(view: &mut View, cluster: &str, domain: &Domain) {
    let record = PeerRecord {
        cluster: cluster.parse().unwrap(),
        trust_domain: domain.trust_domain.clone(),
        endpoints: Vec::new(),
        invite: "i-1".to_owned(),
        joined: crate::runtime::now(),
    };
    view.peers.insert(record.cluster.clone(), Peer::new(record));
    view.bundles.insert(domain.trust_domain.clone(), domain.bundle());
}

#[test]
fn callers_from_abroad_need_an_export_and_lose_it_under_a_live_connection() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let west = Domain::new("west.example");
        shop.change(|view| add_peer(view, "west", &west));
        let plane = plane_of(&west.workload("productpage"), &shop.view);
        let denied = call(&plane, shop.reviews.inbound, "/").await.unwrap();
        assert_eq!((denied.status, denied.header("x-hanse-reason")), (StatusCode::FORBIDDEN, "not-allowed"));

        let identity = shop.east.id("reviews");
        let to_west = Export::Only(BTreeSet::from(["west".parse().unwrap()]));
        shop.change(|view| add_service(view, "shop/reviews", std::slice::from_ref(&identity), Some(to_west)));
        let allowed = call(&plane, shop.reviews.inbound, "/").await.unwrap();
        assert_eq!(allowed.status, StatusCode::OK);
        let seen = allowed.seen();
        let caller = seen["headers"]["x-forwarded-client-cert"].as_str().unwrap();
        assert!(caller.ends_with(&format!("URI={}", west.id("productpage"))), "{caller}");

        shop.change(|view| add_service(view, "shop/reviews", std::slice::from_ref(&identity), None));
        let denied = call(&plane, shop.reviews.inbound, "/").await.unwrap();
        assert_eq!(denied.status, StatusCode::FORBIDDEN);
    });
}

#[test]
fn a_revocation_closes_live_connections_and_refuses_new_ones() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let mut sender = http1(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
        let endless = sender.send_request(get("http://reviews.shop/forever")).await.unwrap();
        assert_eq!(endless.status(), StatusCode::OK);
        let mut body = endless.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), ".");
        assert_eq!(shop.reviews.plane.connections.len(), 1);
        let product = shop.east.id("productpage");
        let reach = shop.reviews.plane.connections.reach(&revoke(&product, 9));
        assert_eq!((reach.connections, reach.others), (1, [shop.east.id("reviews")].into()));
        let reach = shop.product.plane.connections.reach(&revoke(&product, 9));
        assert_eq!(
            (reach.connections, reach.others),
            (1, [shop.east.id("reviews")].into()),
            "our own end counts too"
        );

        // Only the server's side hears of it: the live stream is cut from there.
        let revocation = revoke(&product, 9);
        shop.view.revocations.insert(revocation.clone());
        shop.view.revision.0 += 1;
        let view = std::sync::Arc::new(shop.view.clone());
        shop.reviews.plane.put_in_force(view).await;
        assert!(shop.reviews.plane.connections.is_empty(), "put in force means: gone");
        assert_eq!(shop.reviews.plane.connections.closed(), [(revocation.id.clone(), 1)]);
        let cut = tokio::time::timeout(Duration::from_secs(1), body.frame()).await;
        assert!(matches!(cut, Ok(Some(Err(_)) | None)), "the stream ends at once: {cut:?}");

        // The revoked one does not know yet, and tries again.
        let answer = shop.product.get(REVIEWS).await;
        assert!(answer.status.is_server_error(), "{answer:?}");
        assert_eq!(answer.header("x-hanse-answered-by"), "mesh");
        assert!(shop.reviews.plane.connections.is_empty());

        // Now it knows, and does not even try.
        shop.product.publish(&shop.view);
        let answer = shop.product.get(REVIEWS).await;
        assert_eq!((answer.status, answer.header("x-hanse-reason")), (StatusCode::FORBIDDEN, "revoked"));
        let dialled = call(&shop.product.plane, shop.reviews.inbound, "/").await;
        assert!(
            dialled.is_none() && shop.product.plane.connections.is_empty(),
            "nothing is dialled in its name"
        );

        // A hold that is lifted gives it back.
        shop.change(|view| drop(view.revocations.remove(&revocation.id)));
        until("the lifted identity is served", async || {
            shop.product.get(REVIEWS).await.status == StatusCode::OK
        })
        .await;
    });
}

#[test]
fn a_revoked_server_is_cut_by_its_callers() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let mut sender = http1(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
        let endless = sender.send_request(get("http://reviews.shop/forever")).await.unwrap();
        let mut body = endless.into_body();
        assert!(body.frame().await.unwrap().is_ok());
        let revocation = revoke(&shop.east.id("reviews"), 10);
        shop.view.revocations.insert(revocation.clone());
        shop.view.revision.0 += 1;
        let view = std::sync::Arc::new(shop.view.clone());
        shop.product.plane.put_in_force(view).await;
        assert!(shop.product.plane.connections.is_empty(), "the socket itself is gone, streams and all");
        let cut = tokio::time::timeout(Duration::from_secs(1), body.frame()).await;
        assert!(matches!(cut, Ok(Some(Err(_)))), "the stream breaks at once: {cut:?}");
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::SERVICE_UNAVAILABLE);
    });
}

#[test]
fn a_dead_endpoint_is_passed_over_whatever_the_method() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let vacant = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let identity = shop.east.id("reviews");
        shop.change(|view| add_endpoint(view, "reviews-0", "shop/reviews", &identity, vacant));
        for turn in 0..30 {
            let method = if turn % 2 == 0 { Method::GET } else { Method::POST };
            let request = Request::builder().method(method).uri("/x").header("host", "reviews.shop");
            let answer = shop.product.request(request.body(Full::from("body")).unwrap()).await;
            assert_eq!(answer.status, StatusCode::OK, "turn {turn}: {answer:?}");
            assert_eq!(answer.seen()["bytes"], 4);
        }
    });
}

#[test]
fn an_app_that_dies_costs_no_idempotent_request() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let other = App::start("reviews-v2").await;
        let _second = shop.second(other.address);
        let mut apps = BTreeSet::new();
        for _ in 0..40 {
            apps.insert(shop.product.get(REVIEWS).await.header("x-app").to_owned());
        }
        assert_eq!(apps.len(), 2, "both serve: {apps:?}");

        shop.app.take().unwrap().kill();
        for turn in 0..60 {
            let answer = shop.product.get(REVIEWS).await;
            assert_eq!(
                (answer.status, answer.header("x-app")),
                (StatusCode::OK, "reviews-v2"),
                "turn {turn}"
            );
            // Without a body, even a POST that was certainly not delivered goes elsewhere.
            let post = Request::post("/x").header("host", "reviews.shop").body(Full::default()).unwrap();
            assert_eq!(shop.product.request(post).await.status, StatusCode::OK, "turn {turn}");
        }
        let metrics = shop.product.plane.telemetry.to_text();
        assert!(
            metrics.contains("hanse_retries_total{service=\"shop/reviews\",reason=\"nobody-there\"}"),
            "{metrics}"
        );
    });
}

#[test]
fn an_app_that_dies_between_head_and_body_costs_no_idempotent_request() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.app.take().unwrap().kill();
        let dying = dying_app().await;
        let _first = shop.second(dying);
        let app = App::start("reviews-v3").await;
        let _second = shop.another("reviews-3", app.address);
        for turn in 0..40 {
            let answer = shop.product.get(REVIEWS).await;
            assert_eq!(
                (answer.status, answer.header("x-app")),
                (StatusCode::OK, "reviews-v3"),
                "turn {turn}"
            );
            assert_eq!(answer.seen()["app"], "reviews-v3");
        }
        let metrics = shop.product.plane.telemetry.to_text();
        assert!(
            metrics.contains("hanse_retries_total{service=\"shop/reviews\",reason=\"connection-lost\"}"),
            "{metrics}"
        );
    });
}

/// Promises a body of 100 bytes, gives ten, and closes.
async fn dying_app() -> SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(async move {
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    let said = b"HTTP/1.1 200 OK\r\nx-app: dying\r\ncontent-length: 100\r\n\r\n0123456789";
                    drop(stream.write_all(said).await);
                }
            });
        }
    });
    address
}

#[test]
fn the_apps_own_errors_are_passed_on_as_they_are() {
    on_local_set(async {
        let shop = Shop::open().await;
        for code in [404, 500, 503] {
            let answer = shop.product.get(&format!("http://reviews.shop/status/{code}")).await;
            assert_eq!(answer.status.as_u16(), code);
            assert_eq!(answer.header("x-app"), "reviews-v1");
            assert_eq!(answer.header("x-hanse-answered-by"), "");
        }
    });
}

#[test]
fn an_app_that_comes_back_is_served_again() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        let app = shop.app.take().unwrap();
        let address = app.address;
        app.kill();
        let answer = shop.product.get(REVIEWS).await;
        assert_eq!(
            (answer.status, answer.header("x-hanse-reason")),
            (StatusCode::SERVICE_UNAVAILABLE, "app-unreachable")
        );
        assert_eq!(answer.header("x-hanse-answered-by"), "mesh");
        let _again = App::start_at("reviews-v1", address).await;
        until("served again", async || shop.product.get(REVIEWS).await.status == StatusCode::OK).await;
    });
}

#[test]
fn draining_finishes_what_is_in_flight_and_takes_nothing_new() {
    on_local_set(async {
        let shop = Shop::open().await;
        let mut sender = http2(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
        let request = || Request::get("http://reviews.shop/x").body(Full::<Bytes>::default()).unwrap();
        assert_eq!(sender.send_request(request()).await.unwrap().status(), StatusCode::OK);
        shop.reviews.drain.begin();
        tokio::time::timeout(Duration::from_secs(2), shop.reviews.ended)
            .await
            .expect("ends well before the limit")
            .unwrap()
            .unwrap();
        assert!(TcpStream::connect(shop.reviews.inbound).await.is_err(), "the listener is closed");
        let answer = Answer::of(sender.send_request(request()).await.unwrap()).await;
        assert_eq!(answer.header("x-hanse-reason"), "unreachable", "the caller's proxy is alive and says so");
    });
}

#[test]
fn renewed_credentials_serve_new_connections() {
    on_local_set(async {
        let shop = Shop::open().await;
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        let renewed = shop.east.workload("productpage");
        shop.product.plane.credentials.install_svid(&renewed).unwrap();
        shop.product.plane.knowledge.refresh();
        // The old serial is revoked: its connections go, and the newest SVID takes over without a failed request.
        let old = shop.product.plane.connections.rows(1);
        let mut revocation = revoke(&shop.east.id("productpage"), 11);
        revocation.target = hanse_identity::RevocationTarget::Serial(
            shop.reviews.plane.connections.rows(1)[0].serial.parse().unwrap(),
        );
        assert_eq!(old.len(), 1);
        let mut shop = shop;
        shop.change(|view| view.revocations.insert(revocation));
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        let rows = shop.reviews.plane.connections.rows(10);
        assert_eq!(
            rows.iter().map(|row| row.serial.clone()).collect::<Vec<_>>(),
            [renewed.facts.serial.to_string()]
        );
    });
}
