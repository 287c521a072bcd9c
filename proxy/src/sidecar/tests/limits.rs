//! RateLimits through real sidecars: the example, and a limit in gRPC's words.

use hanse_federation::Change;
use hanse_federation::policy::{parse, validate};

use super::*;

fn apply(shop: &mut Shop, text: &str) {
    let documents = parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
    let findings = validate(&shop.view, "test", &documents);
    assert!(findings.is_empty(), "{findings:#?}");
    for (document, _) in documents {
        shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
    }
}

fn limit(one: &str) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: RateLimit\nmetadata: {{ name: l, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: reviews }}]\n  limits: [{one}]\n"
    )
}

fn tenant(name: &'static str) -> Request<Full<Bytes>> {
    let mut request = get(REVIEWS);
    request.headers_mut().insert("x-tenant", http::HeaderValue::from_static(name));
    request
}

#[test]
fn the_example_of_limits_refuses_who_asks_for_more() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let path = format!("{}/../deploy/examples/rate-limit.yaml", env!("CARGO_MANIFEST_DIR"));
        apply(&mut shop, &std::fs::read_to_string(path).unwrap());
        let mut statuses = Vec::new();
        for _ in 0..11 {
            statuses.push(shop.product.request(tenant("blue")).await.status.as_u16());
        }
        assert_eq!(statuses, [[200; 10].as_slice(), &[429]].concat(), "ten of a tenant");
        // The eleventh took nothing of its caller's credit, of which ten are left; a change elsewhere gives none back.
        shop.change(|_| {});
        for _ in 0..10 {
            assert_eq!(shop.product.request(tenant("green")).await.status, StatusCode::OK);
        }
        let refused = shop.product.request(tenant("red")).await;
        assert_eq!(
            (refused.status.as_u16(), refused.header("x-hanse-reason")),
            (429, "rate-limited"),
            "{refused:?}"
        );
        let seconds: u64 = refused.header("retry-after").parse().unwrap();
        assert!((1..=3).contains(&seconds), "20 in a minute: {seconds}");
        // Another workload has credit of its own.
        let other = plane_of(&shop.east.workload("other"), &shop.view);
        assert_eq!(call(&other, shop.reviews.inbound, "/").await.unwrap().status, StatusCode::OK);
        let metrics = shop.reviews.plane.telemetry.to_text();
        for line in
            ["limit=\"shop/reviews#tenant\"} 1", "limit=\"shop/reviews#caller\"} 1", "response_flags=\"RL\""]
        {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
    });
}

#[test]
fn the_example_of_a_shared_limit_is_kept_by_all_instances_together() {
    on_local_set(async {
        let mut three = balancing::Three::open().await;
        apply(&mut three.shop, &balancing::example("rate-limit-shared"));
        // As each finds itself in the View: by its own name.
        let own = |name: &str| {
            let mut view = three.shop.view.clone();
            let mut endpoint = view.endpoints.remove(&name.parse().unwrap()).unwrap();
            endpoint.id = "proxy-1".parse().unwrap();
            view.endpoints.insert(endpoint.id.clone(), endpoint);
            view
        };
        three.shop.reviews.publish(&own("reviews-1"));
        for ((_, sidecar), name) in three.others.iter().zip(["reviews-2", "reviews-3"]) {
            sidecar.publish(&own(name));
        }
        let mut answered = 0;
        for _ in 0..120 {
            answered += usize::from(three.shop.product.get(REVIEWS).await.status == StatusCode::OK);
        }
        // Parts are rounded down, and the balance may leave a little of one.
        assert!((36..=40).contains(&answered), "{answered} of 120");
    });
}

#[test]
fn a_call_of_grpc_above_the_limit_is_told_that_something_is_exhausted() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        apply(&mut shop, &limit("{ requests: 1, per: 1h }"));
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        let request =
            Request::post("/s/m").header("host", "reviews.shop").header("content-type", "application/grpc");
        let answer = shop.product.request(request.body(Full::default()).unwrap()).await;
        let told = (answer.status.as_u16(), answer.header("grpc-status"), answer.header("grpc-message"));
        assert_eq!(told, (200, "8", "rate-limited"));
        assert!(answer.header("retry-after").parse::<u64>().unwrap() > 3500);
    });
}

#[test]
fn a_limit_by_host_sees_the_authority() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        apply(&mut shop, &limit("{ by: Header, header: Host, requests: 1, per: 1h }"));
        let names = [
            ("reviews.shop", 200),
            ("Reviews.SHOP:80", 429),
            ("reviews.shop.svc.clusterset.local", 200),
            ("reviews.shop.svc.clusterset.local.", 429),
        ];
        for (host, status) in names {
            let request = Request::get("/").header("host", host).body(Full::default()).unwrap();
            assert_eq!(shop.product.request(request).await.status.as_u16(), status, "{host}");
        }
    });
}
