//! Callers in plain text through real sidecars: the example of PeerAuthentication, who they are to policies, and their end.

use hanse_federation::Change;
use hanse_federation::policy::document::peer::MAX_PERMISSIVE;
use hanse_federation::policy::{PolicyDocument, PolicyKey, PolicyKind, in_time, parse, validate};
use hanse_identity::{Closing, Timestamp};

use super::*;
use crate::runtime::now;
use crate::staleness::Staleness;

/// The example's document for that port and end, as if it had been applied now.
fn example(view: &View, service: &str, port: u16, until: Timestamp) -> Change {
    let path = format!("{}/../deploy/examples/peer-authentication.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("name: reviews }", &format!("name: {service} }}"));
    let text = text.replace("9080", &port.to_string()).replace("2027-01-31T00:00:00Z", &until.to_string());
    let documents = parse("test", &text).unwrap();
    assert!(validate(view, "test", &documents).is_empty());
    let told: Vec<_> = in_time("test", &documents, now()).into_iter().map(|d| d.code).collect();
    assert_eq!(told, ["E4142"], "it is told of");
    let (document, _) = documents.into_iter().next().unwrap();
    Change::PolicyPut(Box::new(PolicyDocument { created: now(), ..document }))
}

fn open(shop: &mut Shop) {
    let change = example(&shop.view, "reviews", shop.reviews.inbound.port(), now() + HOUR);
    shop.change(|view| view.apply(&change));
}

/// Has the example be as old as no document may become, in a moment.
fn nearly_over(shop: &mut Shop) {
    let change = example(&shop.view, "reviews", shop.reviews.inbound.port(), now() + HOUR);
    let Change::PolicyPut(mut document) = change else { panic!("the example is a document") };
    document.created = now() + Duration::from_millis(300) - MAX_PERMISSIVE;
    shop.change(|view| view.apply(&Change::PolicyPut(document)));
}

/// A caller in plain text whose answer has begun and never ends.
async fn held(shop: &Shop) -> TcpStream {
    let mut client = TcpStream::connect(shop.reviews.inbound).await.unwrap();
    client.write_all(b"GET /forever HTTP/1.1\r\nhost: reviews.shop\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    client
}

/// It is cut, and not taken for complete.
async fn is_ended(mut client: TcpStream) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await;
    let _ = read.expect("it is cut");
    assert!(!rest.ends_with(b"0\r\n\r\n"));
}

fn refused(sidecar: &Sidecar, reason: &'static str) -> u64 {
    sidecar.plane.telemetry.refused.get_or_create(&Refused { reason }).get()
}

fn closed(sidecar: &Sidecar, cause: &str) -> bool {
    let metrics = sidecar.plane.telemetry.to_text();
    metrics.contains(&format!("hanse_connections_closed_total{{cause=\"{cause}\"}} 1"))
}

/// Asks the inbound port as a program does that knows of no mesh; `None`: it got no answer.
async fn plainly(shop: &Shop, request: Request<Full<Bytes>>) -> Option<Answer> {
    let mut sender = http1(TcpStream::connect(shop.reviews.inbound).await.unwrap()).await;
    Some(Answer::of(sender.send_request(request).await.ok()?).await)
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn the_example_lets_callers_without_identity_in_and_tells_of_them() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let asked = || {
            let mut request = get(REVIEWS);
            for name in [
                "x-forwarded-client-cert",
                "X_Forwarded_Client_Cert",
                "x-hanse-cluster",
                "x-request-id",
                "X_Request_Id",
            ] {
                let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                request
                    .headers_mut()
                    .append(name, "URI=spiffe://east.example/ns/shop/sa/admin".parse().unwrap());
            }
            request
        };
        assert!(plainly(&shop, asked()).await.is_none(), "strict is what it is without a word");
        open(&mut shop);
        let answer = plainly(&shop, asked()).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let seen = answer.seen();
        let named: Vec<_> = seen["headers"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|name| crate::headers::is_reserved(name))
            .collect();
        assert!(named.is_empty(), "nobody's word tells the app who calls: {named:?}");
        let request_id = seen["headers"]["x-request-id"].as_str().unwrap();
        assert!(!request_id.contains("admin") && seen["headers"]["x_request_id"].is_null(), "{seen}");
        let logged = shop.reviews.logged().await;
        assert_eq!((logged.response_code, logged.source_spiffe.as_str()), (200, ""));
        assert_eq!((logged.source_cluster.as_str(), logged.destination_cluster.as_str()), ("", "east"));

        // HTTP/2 too, and who has an identity still has one.
        let mut sender = http2(TcpStream::connect(shop.reviews.inbound).await.unwrap()).await;
        let request = Request::get("http://reviews.shop/h2").body(Full::default()).unwrap();
        assert_eq!(Answer::of(sender.send_request(request).await.unwrap()).await.seen()["uri"], "/h2");
        let answer = shop.product.get(REVIEWS).await;
        assert!(
            answer.seen()["headers"]["x-forwarded-client-cert"].as_str().unwrap().contains("productpage")
        );
        let metrics = shop.reviews.plane.telemetry.to_text();
        let port = shop.reviews.inbound.port();
        assert!(
            metrics.contains(&format!("hanse_plaintext_connections_total{{port=\"{port}\"}} 2")),
            "{metrics}"
        );
        for policy in ["none", "mutual_tls"] {
            assert!(
                metrics.contains(&format!("connection_security_policy=\"{policy}\"")),
                "{policy}: {metrics}"
            );
        }
        // What is no request is not carried.
        let mut client = TcpStream::connect(shop.reviews.inbound).await.unwrap();
        client
            .write_all(b"CONNECT reviews.shop:6379 HTTP/1.1\r\nhost: reviews.shop:6379\r\n\r\n")
            .await
            .unwrap();
        let mut head = [0; 12];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 400");
    });
}

#[test]
fn nobody_is_meant_by_a_rule_that_asks_for_an_identity() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        open(&mut shop);
        for (action, rule, expected) in [
            ("Allow", "{ from: { identities: [\"spiffe://**\"] } }", 403),
            ("Allow", "{ from: { namespaces: [shop] } }", 403),
            ("Allow", "{ from: { clusters: [east] } }", 403),
            ("Allow", "{ to: { methods: [GET] } }", 200),
            ("Allow", "{ to: { methods: [POST] } }", 403),
            ("Deny", "{ from: { identities: [\"spiffe://east.example/ns/shop/sa/bot\"] } }", 200),
            ("Deny", "{ to: { methods: [GET] } }", 403),
        ] {
            let rule = rule.replace("spiffe://**", "spiffe://east.example/**");
            access::apply(&mut shop, &access::policy("who", action, &format!("[{rule}]")));
            let answer = plainly(&shop, get(REVIEWS)).await.unwrap();
            assert_eq!(answer.status.as_u16(), expected, "{action} {rule}");
        }
    });
}

#[test]
fn a_port_closes_by_the_clock_and_by_the_view_and_cuts_who_is_there() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        // Nobody takes it away: the proxy's clock does.
        open(&mut shop);
        let client = held(&shop).await;
        nearly_over(&mut shop);
        is_ended(client).await;
        assert!(closed(&shop.reviews, "strict"));
        assert!(plainly(&shop, get(REVIEWS)).await.is_none());

        open(&mut shop);
        let client = held(&shop).await;
        let key =
            PolicyKey { kind: PolicyKind::PeerAuthentication, name: "shop/reviews-moving".parse().unwrap() };
        shop.change(|view| view.apply(&Change::PolicyGone(key)));
        is_ended(client).await;
        assert!(plainly(&shop, get(REVIEWS)).await.is_none());
        let metrics = shop.reviews.plane.telemetry.to_text();
        let port = shop.reviews.inbound.port();
        assert!(
            metrics.contains(&format!("hanse_plaintext_connections_open{{port=\"{port}\"}} 0")),
            "{metrics}"
        );
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_by_a_plain_caller() {
    on_local_set(async {
        let east = Domain::new("east.example");
        let server = tcp::Server::start("hello").await;
        let redis = Sidecar::start_streaming(
            Some(&east.workload("redis")),
            &["shop/redis"],
            None,
            Staleness::default(),
            &[(0, server.address)],
            &[],
        );
        let mut view = view(&[&east]);
        add_service(&mut view, "shop/redis", &[east.id("redis")], None);
        let port = redis.inbound.port();
        view.apply(&example(&view, "redis", port, now() + HOUR));
        redis.publish(&view);
        let mut client = TcpStream::connect(redis.inbound).await.unwrap();
        tcp::heard(&mut client, "hello").await;
        client.write_all(b"PING").await.unwrap();
        tcp::heard(&mut client, "PING").await;
        // A Deny cuts who has waited and who has spoken.
        let mut other = TcpStream::connect(redis.inbound).await.unwrap();
        other.write_all(b"PING").await.unwrap();
        tcp::heard(&mut other, "helloPING").await;
        let deny = access::policy("closed", "Deny", &format!("[{{ to: {{ ports: [{port}] }} }}]"));
        let (document, _) =
            parse("test", &deny.replace("name: reviews }", "name: redis }")).unwrap().remove(0);
        view.apply(&Change::PolicyPut(Box::new(document)));
        view.revision.0 += 1;
        redis.publish(&view);
        for client in [&mut client, &mut other] {
            assert!(tcp::is_reset(client).await);
        }
    });
}

#[test]
fn who_is_revoked_serves_nobody_in_plain_text_either() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        open(&mut shop);
        let client = held(&shop).await;
        let mut revocation = revoke(&shop.east.id("reviews"), 1);
        revocation.closing = Closing::Never;
        shop.change(|view| view.revocations.insert(revocation.clone()));
        assert!(plainly(&shop, get(REVIEWS)).await.is_none());
        assert_eq!(refused(&shop.reviews, "own_revoked"), 1);
        // What has come before is read first.
        let left_alone = async {
            loop {
                client.readable().await.unwrap();
                match client.try_read(&mut [0; 1 << 16]) {
                    Ok(0) => panic!("it has ended"),
                    Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => panic!("{error}"),
                    _ => {}
                }
            }
        };
        let still: Result<std::convert::Infallible, _> =
            tokio::time::timeout(Duration::from_millis(50), left_alone).await;
        assert!(still.is_err());
        revocation.closing = Closing::Now;
        shop.change(|view| view.revocations.insert(revocation.clone()));
        is_ended(client).await;
        assert!(closed(&shop.reviews, "own_revoked"));
        shop.change(|view| drop(view.revocations.remove(&revocation.id)));
        assert_eq!(plainly(&shop, get(REVIEWS)).await.unwrap().status, StatusCode::OK);
    });
}

#[test]
fn callers_without_identity_leave_room_for_the_mesh() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        open(&mut shop);
        // As many as there may be, in its own tests: one with the requests that all may have, and three that say nothing.
        let mut sender = http2(TcpStream::connect(shop.reviews.inbound).await.unwrap()).await;
        let mut answers = Vec::new();
        for _ in 0..6 {
            let request = Request::get("http://reviews.shop/forever").body(Full::default()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            answers.push(answer);
        }
        let request = Request::get("http://reviews.shop/x").body(Full::default()).unwrap();
        let answer = Answer::of(sender.send_request(request).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (503, "overload"));
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK, "the mesh has room");

        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(TcpStream::connect(shop.reviews.inbound).await.unwrap());
        }
        assert!(plainly(&shop, get(REVIEWS)).await.is_none(), "a fifth");
        assert_eq!(refused(&shop.reviews, "plaintext_connections"), 1);
        let second = Sidecar::start(Some(&shop.east.workload("productpage")), &[], None);
        second.publish(&shop.view);
        assert_eq!(second.get(REVIEWS).await.status, StatusCode::OK, "who begins TLS is let in");
        silent.pop();
        drop(answers);
        until("there is room again", async || {
            let answer = plainly(&shop, get(REVIEWS)).await;
            answer.is_some_and(|answer| answer.status == StatusCode::OK)
        })
        .await;
    });
}
