//! Envoy's response flags, as the proxies log how requests ended: answered by the mesh, broken off, cut.

use tokio::sync::mpsc;

use super::*;

/// The sidecar of reviews in front of another app.
fn in_front_of(shop: &mut Shop, app: SocketAddr) -> Sidecar {
    let sidecar = Sidecar::start(Some(&shop.east.workload("reviews")), &["shop/reviews"], Some(app));
    let (id, inbound) = (shop.east.id("reviews"), sidecar.inbound);
    shop.change(|view| add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound));
    sidecar.publish(&shop.view);
    sidecar
}

#[test]
fn what_the_mesh_answers_itself_is_flagged() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.apply(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: reviews, namespace: shop }\n\
             spec:\n  parentRefs: [{ kind: Service, name: reviews }]\n  rules:\n  \
             - { matches: [{ path: { value: /x } }], backendRefs: [{ name: reviews }] }\n  \
             - { matches: [{ path: { value: /silent } }], timeouts: { request: 80ms }, backendRefs: [{ name: reviews }] }\n",
        );
        let cases = [
            ("http://reviews.shop/x", 200, "", "-"),
            ("http://reviews.shop/elsewhere", 404, "no-route", "NR"),
            ("http://www.example.com/x", 404, "unknown-host", "NR"),
            ("http://nothing.shop/x", 503, "no-such-service", "NC"),
            ("http://reviews.shop/silent", 504, "timeout", "UT"),
        ];
        for (url, status, ..) in cases {
            assert_eq!(shop.product.get(url).await.status.as_u16(), status, "{url}");
        }
        // Nothing listens where the app should be. What has a body is sent once.
        let mut gone = in_front_of(&mut shop, "127.0.0.1:1".parse().unwrap());
        let request = Request::post("/x").header("host", "reviews.shop").body(Full::from("body")).unwrap();
        assert_eq!(shop.product.request(request).await.status, 503);

        for (url, status, reason, flags) in cases {
            let logged = shop.product.logged().await;
            let told = (logged.response_code, &*logged.hanse_reason, logged.response_flags);
            assert_eq!(told, (status, reason, flags), "{url}");
        }
        for logged in [shop.product.logged().await, gone.logged().await] {
            let told = (logged.response_code, &*logged.hanse_reason, logged.response_flags);
            assert_eq!(told, (503, "app-unreachable", "UF"));
        }
    });
}

/// An app that takes what it is asked and never answers; it tells of each request.
async fn mute_app() -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, got) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let asked = asked.clone();
            tokio::task::spawn_local(async move {
                while upgrade::read_head(&mut stream).await.is_ok() {
                    let _ = asked.send(());
                }
            });
        }
    });
    (address, got)
}

#[test]
fn who_broke_off_is_flagged() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let (address, mut got) = mute_app().await;
        let mut mute = in_front_of(&mut shop, address);

        // The client leaves while the app is at it: it has had no answer, and no status.
        let mut client = TcpStream::connect(shop.product.outbound).await.unwrap();
        client.write_all(b"GET /x HTTP/1.1\r\nhost: reviews.shop\r\n\r\n").await.unwrap();
        got.recv().await.unwrap();
        drop(client);
        for logged in [shop.product.logged().await, mute.logged().await] {
            assert_eq!((logged.response_code, logged.response_flags), (0, "DC"));
        }

        // The connection between the proxies is cut under a request that may not be sent twice.
        let outbound = shop.product.outbound;
        let asked = tokio::task::spawn_local(async move {
            let mut sender = http1(TcpStream::connect(outbound).await.unwrap()).await;
            let request = Request::post("/x").header("host", "reviews.shop").body(Full::default()).unwrap();
            Answer::of(sender.send_request(request).await.unwrap()).await
        });
        got.recv().await.unwrap();
        shop.view.revocations.insert(revoke(&shop.east.id("productpage"), 9));
        shop.view.revision.0 += 1;
        mute.plane.put_in_force(std::sync::Arc::new(shop.view.clone())).await;
        let answer = asked.await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (502, "connection-lost"));
        let logged = shop.product.logged().await;
        assert_eq!((logged.response_code, logged.response_flags), (502, "UC"));
        let logged = mute.logged().await;
        assert_eq!((logged.response_code, logged.response_flags), (0, "DC"));
    });
}

/// The time to drain is over, and the process ends with a stream open.
#[test]
fn a_stream_that_the_mesh_cuts_is_flagged() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    let (mut logs, _stream) = tasks.block_on(&runtime, async {
        let (shop, reviews) = upgrade::upgrading_shop().await;
        let (_, mut stream) = upgrade::ask(shop.product.outbound, "GET /chat", upgrade::WEBSOCKET).await;
        upgrade::echoed(&mut stream, b"first").await;
        ([shop.product.log, reviews.log], stream)
    });
    let _entered = runtime.enter();
    drop(tasks);
    for log in &mut logs {
        let logged = runtime.block_on(next_line(log));
        assert_eq!((logged.response_code, logged.response_flags, &*logged.path), (101, "LR", "/chat"));
    }
}
