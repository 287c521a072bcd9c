//! Retries through real sidecars: what is tried again, how often and for how long, and what never is.

use std::cell::Cell;
use std::rc::Rc;

use balancing::example;

use super::*;

/// Where an app is, and how many requests it has got.
pub(super) type Counted = (SocketAddr, Rc<Cell<usize>>);

/// Nobody is left alone for failing.
const STAY: &str = "  health: { outlier: { consecutive5xx: 100000, consecutiveGatewayErrors: 100000 } }\n";

/// An app that answers 503 to everything.
pub(super) async fn ailing_app() -> Counted {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Rc::new(Cell::new(0)));
    let counted = Rc::clone(&asked);
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let counted = Rc::clone(&counted);
            let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                counted.set(counted.get() + 1);
                let answer = http::Response::builder().status(503).header("x-app", "ailing");
                std::future::ready(answer.body(Full::<Bytes>::default()))
            });
            let http = hyper::server::conn::http1::Builder::new();
            let served = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            tokio::task::spawn_local(async move { drop(served.await) });
        }
    });
    (address, asked)
}

/// An app that takes a request's head, and hangs up.
async fn leaving_app() -> Counted {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Rc::new(Cell::new(0)));
    let counted = Rc::clone(&asked);
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if upgrade::read_head(&mut stream).await.is_ok() {
                counted.set(counted.get() + 1);
            }
        }
    });
    (address, asked)
}

/// The shop with such apps in place of reviews' own, each behind a sidecar.
async fn shop_of(apps: &[SocketAddr]) -> (Shop, Vec<Sidecar>) {
    let mut shop = Shop::open().await;
    shop.change(|view| view.endpoints.clear());
    let names = ["reviews-2", "reviews-3"];
    let sidecars: Vec<_> = names.iter().zip(apps).map(|(name, app)| shop.another(name, *app)).collect();
    sidecars.iter().for_each(|sidecar| sidecar.publish(&shop.view));
    (shop, sidecars)
}

async fn ask(shop: &Shop, method: &str, path: &str, body: &'static str) -> Answer {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("host", "reviews.shop.svc.clusterset.local");
    shop.product.request(request.body(Full::from(body)).unwrap()).await
}

fn retries(shop: &Shop, reason: &str) -> usize {
    let series = format!("hanse_retries_total{{service=\"shop/reviews\",reason=\"{reason}\"}} ");
    let metrics = shop.product.plane.telemetry.to_text();
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn a_policy_has_a_status_tried_again_and_only_what_may_be_repeated() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let (ailing, _) = ailing_app().await;
        let _ailing = shop.second(ailing);
        let text = example("backend-policy-retry");
        let retry = text.find("  retry:").unwrap();
        shop.apply(&format!("{}{STAY}", &text[..retry]));
        let mut without = 0;
        for _ in 0..40 {
            without += usize::from(shop.product.get(REVIEWS).await.status == 503);
        }
        assert!(
            without > 5,
            "what the app says is passed on where no policy says otherwise: {without} of 40"
        );

        shop.apply(&format!("{text}{STAY}"));
        let mut passed_on = 0;
        for _ in 0..40 {
            passed_on += usize::from(shop.product.get(REVIEWS).await.status == 503);
        }
        assert!(passed_on < without / 2, "{passed_on} of 40 with two retries, {without} without");
        let mut refused = 0;
        for _ in 0..40 {
            let answer = ask(&shop, "POST", "/x", "").await;
            refused += usize::from(answer.status == 503);
            assert!(
                answer.status != 503 || answer.header("x-app") == "ailing",
                "the app's own words: {answer:?}"
            );
        }
        assert!(refused > 5, "a POST is sent once: {refused} of 40");
        assert!(retries(&shop, "status") > 0);
    });
}

/// Each request, and how often it reaches an app that fails them all with this status.
async fn arrivals(app: Counted, failed: u16) {
    let (address, asked) = app;
    let (mut shop, _failing) = shop_of(&[address]).await;
    shop.policy(&format!("  retry: {{ attempts: 2, on: [reset, 503] }}\n{STAY}"));
    let cases = [
        ("GET", "", 3),
        ("PUT", "", 3),
        ("DELETE", "", 3),
        ("POST", "", 1),
        ("GET", "body", 1),
        ("PUT", "body", 1),
        ("DELETE", "body", 1),
        ("POST", "body", 1),
    ];
    for (method, body, times) in cases {
        asked.set(0);
        let answer = ask(&shop, method, "/x", body).await;
        assert_eq!((answer.status.as_u16(), asked.get()), (failed, times), "{method} {body:?}: {answer:?}");
    }
    for (method, body, times) in cases {
        assert_eq!(shop.product.logged().await.attempts as usize, times, "{method} {body:?}");
    }
}

#[test]
fn what_has_a_body_is_sent_once_to_an_app_that_answers_503() {
    on_local_set(async { arrivals(ailing_app().await, 503).await });
}

#[test]
fn what_has_a_body_is_sent_once_to_an_app_that_hangs_up() {
    on_local_set(async { arrivals(leaving_app().await, 502).await });
}

#[test]
fn each_try_has_the_time_of_the_policy() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let text = example("backend-policy-retry");
        let shorter = text.replace("perTryTimeout: 300ms", "perTryTimeout: 80ms");
        assert_ne!(text, shorter);
        shop.apply(&format!("{shorter}{STAY}"));
        let cases = [("GET", 3u32), ("POST", 1)];
        for (method, tries) in cases {
            let begun = std::time::Instant::now();
            let answer = ask(&shop, method, "/silent", "").await;
            let took = begun.elapsed();
            let reason = (answer.status.as_u16(), answer.header("x-hanse-reason"));
            assert_eq!(reason, (504, "timeout"), "{method}: {answer:?}");
            // Without it, the first try alone has 3 s.
            let in_time = tries * Duration::from_millis(80)..Duration::from_secs(2);
            assert!(in_time.contains(&took), "{method}: {took:?}");
        }
        for (method, tries) in cases {
            assert_eq!(shop.product.logged().await.attempts, tries, "{method}");
        }
        assert_eq!(retries(&shop, "timeout"), 2);
    });
}

#[test]
fn the_budget_bounds_retries_to_a_share_of_requests() {
    on_local_set(async {
        let ((first, asked), (second, too)) = (ailing_app().await, ailing_app().await);
        let (mut shop, _ailing) = shop_of(&[first, second]).await;
        let policy = |percent: u32| {
            format!("  retry: {{ attempts: 1, on: [503], budget: {{ percent: {percent} }} }}\n{STAY}")
        };
        shop.policy(&policy(0));
        for _ in 0..120 {
            assert_eq!(ask(&shop, "GET", "/x", "").await.status, 503);
        }
        // What rare requests have beside any share: ten for each of the ten seconds that it looks back.
        let floor = 100;
        assert_eq!(retries(&shop, "status"), floor);
        assert_eq!(asked.get() + too.get(), 120 + floor);

        // Of the 120 that it remembers and those that come, half may be tried again.
        shop.policy(&policy(50));
        for _ in 0..20 {
            assert_eq!(ask(&shop, "GET", "/x", "").await.status, 503);
        }
        assert_eq!(retries(&shop, "status"), floor + 20);
        assert_eq!(asked.get() + too.get(), 120 + floor + 2 * 20);
    });
}
