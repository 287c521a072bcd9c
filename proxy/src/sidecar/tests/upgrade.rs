//! Upgraded connections through real sidecars: WebSocket as its clients and servers write it, and what else may come.

use hanse_identity::Closing;
use tokio::net::TcpListener;

use super::*;

/// An app that agrees to upgrades and then gives back what it gets. By path: `/no` refuses, `/plain` answers without
/// upgrading, `/other` agrees to something else, `/greets` speaks first.
async fn upgrading_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::task::spawn_local(serve(stream));
        }
    });
    address
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let head = read_head(&mut stream).await?.to_ascii_lowercase();
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Hanse-Tier: forged\r\n\r\n";
    let answer = match head.split(' ').nth(1).unwrap_or_default() {
        _ if !head.contains("upgrade: websocket\r\n") => {
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\nno word".to_owned()
        }
        "/no" => "HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!".to_owned(),
        "/plain" => "HTTP/1.1 200 OK\r\nX-App: yes\r\nContent-Length: 5\r\n\r\nplain".to_owned(),
        "/other" => agreed.replace("websocket", "chat/2"),
        "/greets" => format!("{agreed}hello"),
        "/head" => format!("{agreed}{head}"),
        _ => agreed.to_owned(),
    };
    stream.write_all(answer.as_bytes()).await?;
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// Up to the empty line, and no byte more.
pub(super) async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head).unwrap())
}

/// The shop with an app that upgrades behind reviews.
pub(super) async fn upgrading_shop() -> (Shop, Sidecar) {
    let mut shop = Shop::open().await;
    let app = upgrading_app().await;
    let sidecar = Sidecar::start(Some(&shop.east.workload("reviews")), &["shop/reviews"], Some(app));
    let (id, inbound) = (shop.east.id("reviews"), sidecar.inbound);
    shop.change(|view| add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound));
    sidecar.publish(&shop.view);
    (shop, sidecar)
}

/// Asks for an upgrade by the product page's sidecar; what it answered, and the connection.
pub(super) async fn ask(outbound: SocketAddr, request: &str, fields: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(outbound).await.unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: reviews.shop\r\nConnection: keep-alive, Upgrade\r\n{fields}\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = read_head(&mut stream).await.unwrap();
    (answer.to_ascii_lowercase(), stream)
}

pub(super) const WEBSOCKET: &str = "Upgrade: websocket\r\n";

/// Sends it and waits until it comes back.
pub(super) async fn echoed(stream: &mut TcpStream, bytes: &[u8]) {
    let (mut read, mut write) = stream.split();
    let mut back = vec![0; bytes.len()];
    let (sent, received) = tokio::join!(write.write_all(bytes), read.read_exact(&mut back));
    sent.and(received.map(|_| ())).unwrap();
    assert!(back == bytes, "{} bytes came back changed", bytes.len());
}

#[test]
fn a_websocket_is_opened_carries_bytes_and_is_logged_when_it_ends() {
    on_local_set(async {
        let (mut shop, mut reviews) = upgrading_shop().await;
        let (answer, mut stream) = ask(shop.product.outbound, "GET /chat?room=1", WEBSOCKET).await;
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        for field in [
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
            "x-hanse-cluster: east",
            "x-hanse-tier: cluster",
        ] {
            assert!(answer.contains(&format!("\r\n{field}\r\n")), "{field} in {answer}");
        }
        assert!(!answer.contains("content-length") && !answer.contains("transfer-encoding"), "{answer}");
        echoed(&mut stream, b"first").await;
        // More than every window on the way.
        let much: Vec<u8> = (0..8u32 << 20).map(|n| (n / 7) as u8).collect();
        echoed(&mut stream, &much).await;
        let metrics = reviews.plane.telemetry.to_text();
        let open = "hanse_streams_open{reporter=\"destination\",protocol=\"HTTP/2\"} 1";
        assert!(metrics.contains(open), "{metrics}");

        // One end is done, and the other has the last word.
        stream.write_all(b"last").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
        let bytes = 5 + much.len() as u64 + 4;
        for sidecar in [&mut shop.product, &mut reviews] {
            let logged = sidecar.logged().await;
            assert_eq!((logged.method.as_str(), logged.path.as_str()), ("GET", "/chat"));
            assert_eq!((logged.bytes_received, logged.bytes_sent), (bytes, bytes));
            assert_eq!(logged.source_spiffe, shop.east.id("productpage").to_string());
        }
        let metrics = reviews.plane.telemetry.to_text();
        assert!(metrics.contains(&open.replace("} 1", "} 0")), "{metrics}");
    });
}

#[test]
fn the_app_hears_who_upgrades_and_may_speak_first_or_refuse() {
    on_local_set(async {
        let (shop, _reviews) = upgrading_shop().await;
        let outbound = shop.product.outbound;
        let (_, mut stream) = ask(outbound, "GET /greets", WEBSOCKET).await;
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");

        let forged =
            "Upgrade: websocket\r\nX-Forwarded-Client-Cert: URI=forged\r\nX-Hanse-Upgrade-Method: PUT\r\n";
        let (_, mut stream) = ask(outbound, "POST /head", forged).await;
        let seen = read_head(&mut stream).await.unwrap();
        assert!(seen.starts_with("post /head http/1.1\r\n"), "{seen}");
        let named = format!("uri={}\r\n", shop.east.id("productpage"));
        assert!(seen.contains(&named) && !seen.contains("forged") && !seen.contains("x-hanse"), "{seen}");

        let (answer, mut stream) = ask(outbound, "GET /no", WEBSOCKET).await;
        assert!(answer.starts_with("http/1.1 403 "), "{answer}");
        let mut body = [0; 3];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"no!");

        // A server may answer as if nobody had asked.
        let (answer, mut stream) = ask(outbound, "GET /plain", WEBSOCKET).await;
        assert!(answer.starts_with("http/1.1 200 ") && answer.contains("x-app: yes"), "{answer}");
        assert!(!answer.contains("x-hanse-upgrade"), "{answer}");
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"plain");

        let (answer, _) = ask(outbound, "GET /other", WEBSOCKET).await;
        assert!(answer.starts_with("http/1.1 502 ") && answer.contains("app-reset"), "{answer}");
    });
}

/// What is inside would be seen by no route and no policy (h2c smuggling); and what is not clearly an upgrade is none.
#[test]
fn other_forms_of_http_are_no_upgrades() {
    on_local_set(async {
        let (shop, _reviews) = upgrading_shop().await;
        for fields in [
            "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            "Upgrade: HTTP/2.0\r\n",
            "Upgrade: TLS/1.2\r\n",
            "Upgrade: websocket, h2c\r\n",
            "Upgrade: websocket\r\nUpgrade: h2c\r\n",
            "",
        ] {
            let (answer, _) = ask(shop.product.outbound, "GET /chat", fields).await;
            assert!(answer.starts_with("http/1.1 400 "), "the app was asked without it: {fields:?} {answer}");
        }
    });
}

#[test]
fn a_revocation_cuts_a_websocket() {
    on_local_set(async {
        let (mut shop, reviews) = upgrading_shop().await;
        let (_, mut stream) = ask(shop.product.outbound, "GET /chat", WEBSOCKET).await;
        echoed(&mut stream, b"first").await;
        assert_eq!(reviews.plane.connections.len(), 1);
        let revocation =
            hanse_identity::Revocation { closing: Closing::Now, ..revoke(&shop.east.id("productpage"), 9) };
        shop.view.revocations.insert(revocation.clone());
        shop.view.revision.0 += 1;
        reviews.plane.put_in_force(std::sync::Arc::new(shop.view.clone())).await;
        assert_eq!(reviews.plane.connections.closed(), [(revocation.id, 1)]);
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty(), "{ended:?}");
    });
}

#[test]
fn draining_gives_a_websocket_its_time_and_not_more() {
    on_local_set(async {
        let (shop, reviews) = upgrading_shop().await;
        let (_, mut stream) = ask(shop.product.outbound, "GET /chat", WEBSOCKET).await;
        echoed(&mut stream, b"first").await;
        reviews.drain.begin();
        shop.product.drain.begin();
        // Draining has begun at both ends, and it goes on.
        until("no new connections", async || TcpStream::connect(reviews.inbound).await.is_err()).await;
        echoed(&mut stream, b"second").await;
        assert!(!reviews.ended.is_finished() && !shop.product.ended.is_finished());
        stream.shutdown().await.unwrap();
        let in_time = tokio::time::timeout(crate::sidecar::DRAIN_WITHIN / 2, reviews.ended).await;
        in_time.expect("nothing is left to wait for").unwrap().unwrap();
    });
}

#[test]
fn policies_hold_for_upgrades() {
    on_local_set(async {
        let (mut shop, mut reviews) = upgrading_shop().await;
        let rules = "[{ to: { methods: [GET], paths: [{ value: /chat }] } }]";
        access::apply(&mut shop, &access::policy("chat", "Allow", rules));
        reviews.publish(&shop.view);
        let (answer, mut stream) = ask(shop.product.outbound, "GET /chat", WEBSOCKET).await;
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        echoed(&mut stream, b"allowed").await;
        for refused in ["POST /chat", "GET /other"] {
            let (answer, _) = ask(shop.product.outbound, refused, WEBSOCKET).await;
            assert!(answer.starts_with("http/1.1 403 "), "{refused}: {answer}");
            assert_eq!(reviews.logged().await.response_code, 403);
        }
        // And for those that are open: the rest of what the rules allow does not help this one.
        let rules = "[{ to: { methods: [GET], paths: [{ value: /other }] } }]";
        access::apply(&mut shop, &access::policy("chat", "Allow", rules));
        reviews.publish(&shop.view);
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty(), "{ended:?}");
        let logged = reviews.logged().await;
        assert_eq!((logged.response_code, logged.response_code_details.as_str()), (101, "no longer allowed"));
    });
}
