//! Bodies of requests that are too large or too slow, through real sidecars, with the example of limits.

use super::*;

const EXAMPLE_BYTES: usize = 1024 * 1024;

/// What the sidecar answers to these bytes, sent one after another; `pause` before each but the first.
async fn told(shop: &Shop, parts: &[&[u8]], pause: Duration) -> String {
    let mut app = TcpStream::connect(shop.product.outbound).await.unwrap();
    let mut answer = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            tokio::time::sleep(pause).await;
        }
        // It may have been answered already, and the connection closed.
        if app.write_all(part).await.is_err() {
            break;
        }
    }
    let mut chunk = [0; 4096];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match tokio::time::timeout(Duration::from_secs(20), app.read(&mut chunk)).await.expect("an answer") {
            Ok(n) if n > 0 => answer.extend_from_slice(&chunk[..n]),
            _ => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

fn head(length: &str) -> String {
    format!("POST /x HTTP/1.1\r\nhost: reviews.shop.svc.clusterset.local\r\n{length}\r\n\r\n")
}

fn is(answer: &str, status: u16, reason: &str) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
        && answer.contains(&format!("x-hanse-reason: {reason}\r\n"))
}

#[test]
fn a_body_over_the_limit_ends_with_413_however_its_length_is_told() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.apply(&balancing::example("backend-policy-limits"));
        let body = |bytes: usize| {
            Request::post("/x").header("host", "reviews.shop").body(Full::from(vec![b'a'; bytes]))
        };
        let at_most = shop.product.request(body(EXAMPLE_BYTES).unwrap()).await;
        assert_eq!(at_most.seen()["bytes"], EXAMPLE_BYTES);
        assert_eq!(shop.reviews.logged().await.response_code, 200);
        // Said up front: nothing of it is waited for, and the app hears of nothing.
        let live = shop.app.as_ref().unwrap().live();
        let begin = head(&format!("content-length: {}", EXAMPLE_BYTES + 1));
        let answer = told(&shop, &[begin.as_bytes()], Duration::ZERO).await;
        assert!(is(&answer, 413, "body-too-large"), "{answer}");
        assert_eq!(shop.app.as_ref().unwrap().live(), live);
        // In chunks: it is cut where it goes too far.
        let chunk = [b"8000\r\n".as_slice(), &[b'a'; 0x8000], b"\r\n"].concat();
        let begin = head("transfer-encoding: chunked");
        let mut parts = vec![begin.as_bytes()];
        parts.extend(std::iter::repeat_n(chunk.as_slice(), EXAMPLE_BYTES / 0x8000 + 1));
        let answer = told(&shop, &parts, Duration::ZERO).await;
        assert!(is(&answer, 413, "body-too-large"), "{answer}");
        for _ in 0..2 {
            let logged = shop.reviews.logged().await;
            assert_eq!((logged.response_code, &*logged.hanse_reason), (413, "body-too-large"));
        }
        // Whatever host it names, and whoever brings it: the proxy of the app decides.
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        let metrics = shop.reviews.plane.telemetry.to_text();
        assert!(metrics.contains("response_code=\"413\""), "{metrics}");
    });
}

#[test]
fn a_body_that_hardly_comes_ends_with_408_and_gives_its_place_back() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { slowRequestTimeout: 300ms }");
        // A byte now and then is as good as none. How fast bytes come is what is measured, so they come by the clock.
        let begin = head("content-length: 100");
        let mut parts = vec![begin.as_bytes()];
        parts.extend([b"a".as_slice(); 20]);
        let answer = told(&shop, &parts, Duration::from_millis(50)).await;
        assert!(is(&answer, 408, "body-too-slow"), "{answer}");
        let logged = shop.reviews.logged().await;
        assert_eq!((logged.response_code, &*logged.hanse_reason), (408, "body-too-slow"));
        assert!(shop.reviews.plane.telemetry.to_text().contains("response_flags=\"SI\""));
        until("the app is left alone", async || shop.app.as_ref().unwrap().live() == 0).await;
        // Who keeps up is not hurried, though the whole takes longer.
        let part = [b'a'; 16 * 1024];
        let begin = head(&format!("content-length: {}", 8 * part.len()));
        let mut parts = vec![begin.as_bytes()];
        parts.extend([part.as_slice(); 8]);
        let answer = told(&shop, &parts, Duration::from_millis(60)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

#[test]
fn a_body_may_take_its_time_once_it_is_answered() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.policy("  limits: { slowRequestTimeout: 100ms }");
        let mut app = TcpStream::connect(shop.product.outbound).await.unwrap();
        // The app begins to answer before it has read the body.
        let begin = head("content-length: 4").replace("/x", "/forever");
        app.write_all(begin.as_bytes()).await.unwrap();
        let mut answer = [0; 15];
        app.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        assert_eq!(shop.app.as_ref().unwrap().live(), 2);
        tokio::time::pause();
        tokio::time::advance(Duration::from_millis(400)).await;
        tokio::time::resume();
        app.write_all(b"rest").await.unwrap();
        // Whoever was to be cut by then has been.
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        assert_eq!(shop.app.as_ref().unwrap().live(), 2, "the answer goes on");
    });
}
