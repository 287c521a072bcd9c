//! CORS filters through real sidecars, with the example.

use hanse_federation::policy::PolicyKind;

use super::*;
use access::policy;
use balancing::example;

fn page(method: Method, origin: &'static str, wants: Option<&'static str>) -> Request<Full<Bytes>> {
    let request =
        Request::builder().method(method).uri("/x").header("host", "reviews.shop.svc.clusterset.local");
    let request = request.header("origin", origin);
    let request = match wants {
        Some(method) => request
            .header("access-control-request-method", method)
            .header("access-control-request-headers", "content-type"),
        None => request,
    };
    request.body(Full::default()).unwrap()
}

#[test]
fn the_example_of_cors_answers_preflights_and_says_who_may_read() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        shop.apply(&example("http-route-cors"));
        let say = |answer: &Answer, names: [&str; 3]| names.map(|name| answer.header(name).to_owned());
        const WHO: [&str; 3] = [
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "access-control-expose-headers",
        ];
        const WHAT: [&str; 3] =
            ["access-control-allow-methods", "access-control-allow-headers", "access-control-max-age"];
        // The rule is for PUT: whether one may be sent is asked by OPTIONS.
        let leave =
            shop.product.request(page(Method::OPTIONS, "https://www.shop.example", Some("PUT"))).await;
        assert_eq!((leave.status.as_u16(), leave.header("x-hanse-answered-by")), (204, "mesh"), "{leave:?}");
        assert_eq!(say(&leave, WHO), ["https://www.shop.example", "true", "x-app"]);
        assert_eq!(say(&leave, WHAT), ["PUT", "content-type", "600"]);
        let logged = shop.product.logged().await;
        assert_eq!(
            (logged.response_code, logged.attempts, &*logged.hanse_reason),
            (204, 0, "cors-preflight")
        );
        let other = shop.product.request(page(Method::OPTIONS, "https://evil.example", Some("PUT"))).await;
        assert_eq!((other.status.as_u16(), say(&other, WHO)), (204, ["", "", ""].map(str::to_owned)));
        assert_eq!(shop.app.as_ref().unwrap().live(), 0, "the app has heard of none of it");

        let read = shop.product.request(page(Method::GET, "https://shop.example", None)).await;
        assert_eq!(
            (read.status, say(&read, WHO)),
            (StatusCode::OK, ["https://shop.example", "true", "x-app"].map(str::to_owned))
        );
        assert_eq!((read.header("vary"), read.header("x-app")), ("Origin", "reviews-v1"));
        let read = shop.product.request(page(Method::GET, "https://evil.example", None)).await;
        assert_eq!((read.status, say(&read, WHO)), (StatusCode::OK, ["", "", ""].map(str::to_owned)));
        // Without a word of another request it is one for the app.
        let plain = shop.product.request(page(Method::OPTIONS, "https://shop.example", None)).await;
        assert_eq!((plain.status, plain.seen()["method"].as_str()), (StatusCode::OK, Some("OPTIONS")));
        assert_eq!(say(&plain, WHO)[0], "https://shop.example");

        // A rule that is written for OPTIONS, and is more precise, gets them: its app is asked, and answers as it likes.
        let own = "  rules:\n  - matches: [{ method: OPTIONS, path: { value: /own } }]\n    \
                   backendRefs: [{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews, port: 9080 }]";
        shop.apply(&example("http-route-cors").replacen("  rules:", own, 1));
        let mut asks = page(Method::OPTIONS, "https://shop.example", Some("PUT"));
        *asks.uri_mut() = "/own".parse().unwrap();
        let answer = shop.product.request(asks).await;
        assert_eq!((answer.status, answer.seen()["method"].as_str()), (StatusCode::OK, Some("OPTIONS")));
        assert_eq!(say(&answer, WHO), ["", "", ""]);
        shop.apply(&example("http-route-cors"));

        // A preflight opens nothing: what it asked about is judged where it arrives, and the page may read why not.
        shop.apply(&policy("no-writes", "Deny", "[{ to: { methods: [PUT, OPTIONS] } }]"));
        let leave = shop.product.request(page(Method::OPTIONS, "https://shop.example", Some("PUT"))).await;
        assert_eq!((leave.status.as_u16(), say(&leave, WHAT)[0].as_str()), (204, "PUT"));
        let write = shop.product.request(page(Method::PUT, "https://shop.example", None)).await;
        assert_eq!((write.status.as_u16(), write.header("x-hanse-reason")), (403, "not-allowed"));
        assert_eq!(say(&write, WHO)[0], "https://shop.example");
        // Where no filter is, one is a request as others.
        shop.change(|view| view.policies.retain(|key, _| key.kind == PolicyKind::AccessPolicy));
        let other = shop.product.request(page(Method::OPTIONS, "https://shop.example", Some("PUT"))).await;
        assert_eq!((other.status.as_u16(), say(&other, WHO)[0].as_str()), (403, ""), "{other:?}");
    });
}
