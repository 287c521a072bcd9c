//! Clients that are let in and then behave badly: heads without end, requests that are reset as soon as they are sent.

use super::*;

/// A connection of the product page past its own sidecar.
async fn dialled(shop: &Shop) -> Http2<Full<Bytes>> {
    let product = plane_of(&shop.east.workload("productpage"), &shop.view);
    let tcp = TcpStream::connect(shop.reviews.inbound).await.unwrap();
    let about = About { side: Side::Outbound, service: None, cluster: None };
    http2(tls::dial(tcp, &product, Expect::Anyone, None, about).await.unwrap().stream).await
}

fn with(fields: &[(String, String)]) -> Request<Full<Bytes>> {
    let mut request = get("http://reviews.shop/x");
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

/// Small on the wire, large when decoded: one value, many names, one name that the table remembers many times.
#[test]
fn t13_heads_without_end_are_refused_and_reach_no_app() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let one = vec![("x-big".to_owned(), "a".repeat(70 << 10))];
        let many: Vec<_> = (0..2_500).map(|n| (format!("x-{n}"), "b".to_owned())).collect();
        let same: Vec<_> = (0..40).map(|_| ("cookie".to_owned(), "c".repeat(2_000))).collect();
        let small: Vec<_> = (0..200).map(|_| ("x".to_owned(), "y".to_owned())).collect();
        let heads =
            [("one value", one), ("many names", many), ("the same again", same), ("small ones", small)];
        for (what, fields) in heads {
            // Tunnelled, as from another proxy, and in plain HTTP/1, as from the app.
            let answer = dialled(&shop).await.send_request(with(&fields)).await;
            let refused = answer.as_ref().map(http::Response::status);
            assert!(
                matches!(refused, Err(_) | Ok(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)),
                "{what}: {refused:?}"
            );
            let mut app = http1(TcpStream::connect(shop.product.outbound).await.unwrap()).await;
            let answer = app.send_request(with(&fields)).await;
            let refused = answer.as_ref().map(http::Response::status);
            assert!(
                matches!(refused, Err(_) | Ok(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)),
                "{what}, from the app: {refused:?}"
            );
        }
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        let small = shop.reviews.logged().await;
        assert_eq!(
            (small.response_code, &*small.hanse_reason),
            (431, "head-too-large"),
            "HTTP/2 compresses them"
        );
        assert_eq!(shop.reviews.logged().await.response_code, 200, "the first that got through");
    });
}

/// Rapid Reset (CVE-2023-44487): what is reset is not worked on, and others are served meanwhile.
#[test]
fn t12_requests_that_are_reset_at_once_keep_nobody_else_out() {
    const RESETS: usize = 3_000;
    on_local_set(async {
        let shop = Shop::open().await;
        let (mut sent, mut cut_off) = (0, 0);
        while sent < RESETS {
            let mut attacker = dialled(&shop).await;
            while sent < RESETS && attacker.ready().await.is_ok() {
                let sending = attacker.send_request(get("http://reviews.shop/forever"));
                // Long enough for the head to leave, and for some to reach the app; then it is reset.
                let _ = tokio::time::timeout(Duration::from_micros(50), sending).await;
                sent += 1;
                if sent.is_multiple_of(300) {
                    let answer = shop.product.get(REVIEWS).await;
                    assert_eq!(answer.status, StatusCode::OK, "after {sent} resets");
                }
            }
            cut_off += 1;
        }
        println!("{sent} requests over {cut_off} connections");
        // The work that they made is given up: what is left are connections that wait to be used again.
        let app = shop.app.as_ref().unwrap();
        until("the app is left alone", async || app.live() <= 64).await;
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
    });
}
