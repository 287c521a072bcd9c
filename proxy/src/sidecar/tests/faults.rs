//! FaultInjection through real sidecars: the example, delays within a request's time, aborts in gRPC's words.

use hanse_federation::Change;
use hanse_federation::policy::{PolicyDocument, parse, validate};

use super::*;
use crate::runtime::now;

/// As `hanse policy apply` would, made now, without the findings of `allowed` codes.
fn apply(shop: &mut Shop, text: &str, allowed: &[&str]) -> Vec<PolicyDocument> {
    let documents = parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
    let findings = validate(&shop.view, "test", &documents);
    let unexpected: Vec<_> = findings.iter().filter(|f| !allowed.contains(&f.code.as_str())).collect();
    assert!(unexpected.is_empty(), "{text}\n{unexpected:#?}");
    let made: Vec<_> =
        documents.into_iter().map(|(document, _)| PolicyDocument { created: now(), ..document }).collect();
    for document in made.clone() {
        shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
    }
    made
}

/// A route of reviews to reviews, with a fault; `more` is put into its rule.
fn faulted(fault: &str, more: &str) -> String {
    format!(
        "apiVersion: hanse.dev/v1alpha1\nkind: FaultInjection\nmetadata: {{ name: f, namespace: shop }}\nspec: {fault}\n\
         ---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: reviews, namespace: shop }}\n\
         spec:\n  parentRefs: [{{ kind: Service, name: reviews }}]\n  rules:\n  - {{ backendRefs: [{{ name: reviews }}], \
         filters: [{{ type: ExtensionRef, extensionRef: {{ group: hanse.dev, kind: FaultInjection, name: f }} }}]{more} }}\n"
    )
}

#[test]
fn the_example_of_a_fault_hits_testers_only_and_ends_by_itself() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let id = shop.east.id("reviews");
        let (inbound, reviews) = (shop.reviews.inbound, std::slice::from_ref(&id).to_vec());
        // The example names reviews-v1; here the same workload serves it.
        shop.change(|view| {
            add_service(view, "shop/reviews-v1", &reviews, None);
            add_endpoint(view, "v1", "shop/reviews-v1", &id, inbound);
        });
        let path = format!("{}/../deploy/examples/fault-injection.yaml", env!("CARGO_MANIFEST_DIR"));
        let made = apply(&mut shop, &std::fs::read_to_string(path).unwrap(), &[]);
        let started = std::time::Instant::now();
        for _ in 0..3 {
            assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK);
        }
        assert!(started.elapsed() < Duration::from_secs(1), "who is no tester waits for nothing");
        let chaos = || {
            let mut request = get(REVIEWS);
            request.headers_mut().insert("x-chaos", "on".parse().unwrap());
            shop.product.request(request)
        };
        let started = std::time::Instant::now();
        let answers = futures_util::future::join_all((0..40).map(|_| chaos())).await;
        assert!(started.elapsed() >= Duration::from_secs(1));
        let aborted = answers.iter().filter(|answer| answer.status == 503).count();
        assert!((3..28).contains(&aborted), "a third of 40: {aborted}");
        for answer in answers.iter().filter(|answer| answer.status == 503) {
            assert_eq!(
                (answer.header("x-hanse-answered-by"), answer.header("x-hanse-reason")),
                ("mesh", "fault")
            );
        }
        let metrics = shop.product.plane.telemetry.to_text();
        for (fault, count) in [("DI", 40), ("FI", aborted)] {
            let line = format!(
                "hanse_faults_injected_total{{service=\"shop/reviews-v1\",fault=\"{fault}\"}} {count}"
            );
            assert!(metrics.contains(&line), "{line}: {metrics}");
        }
        assert!(metrics.contains("response_flags=\"DI,FI\"") && metrics.contains("response_flags=\"DI\""));

        // Nobody has removed it, and its time is over.
        let lasts = made[0].ends().unwrap().since(made[0].created);
        let ended = PolicyDocument { created: now() - lasts, ..made[0].clone() };
        shop.change(|view| view.apply(&Change::PolicyPut(Box::new(ended))));
        let started = std::time::Instant::now();
        for _ in 0..10 {
            let mut request = get(REVIEWS);
            request.headers_mut().insert("x-chaos", "on".parse().unwrap());
            assert_eq!(shop.product.request(request).await.status, StatusCode::OK);
        }
        assert!(started.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn a_delay_is_part_of_the_time_that_a_request_has() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let text =
            faulted("{ for: 1m, delay: { percent: 100, fixed: 30s } }", ", timeouts: { request: 100ms }");
        apply(&mut shop, &text, &["E4123"]);
        let answer = shop.product.get(REVIEWS).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (504, "timeout"));
    });
}

#[test]
fn a_call_of_grpc_is_aborted_in_its_own_words() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let called = async |shop: &Shop| {
            let request = Request::post("/s/m")
                .header("host", "reviews.shop")
                .header("content-type", "application/grpc");
            let answer = shop.product.request(request.body(Full::default()).unwrap()).await;
            (
                answer.status.as_u16(),
                answer.header("grpc-status").to_owned(),
                answer.header("grpc-message").to_owned(),
            )
        };
        let fault = (200, "9".to_owned(), "fault".to_owned());
        apply(&mut shop, &faulted("{ for: 1m, abort: { percent: 100, grpcStatus: 9 } }", ""), &["E4123"]);
        assert_eq!(called(&shop).await, fault);
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::OK, "and nobody else");
        apply(&mut shop, &faulted("{ for: 1m, abort: { percent: 100, httpStatus: 503 } }", ""), &["E4123"]);
        assert_eq!(called(&shop).await, (200, "14".to_owned(), "fault".to_owned()));
        assert_eq!(shop.product.get(REVIEWS).await.status, StatusCode::SERVICE_UNAVAILABLE);
    });
}

#[test]
fn the_example_of_a_fault_of_grpc_ends_calls_of_testers_and_nothing_else() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        // All of them, in place of half.
        let text = balancing::example("fault-injection-grpc").replace("percent: 50", "percent: 100");
        apply(&mut shop, &text, &[]);
        let asked = async |headers: &[(&str, &str)]| {
            let mut request = Request::post("/shop.Reviews/Get").header("host", "reviews.shop");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let answer = shop.product.request(request.body(Full::default()).unwrap()).await;
            format!("{} {}", answer.header("grpc-status"), answer.header("grpc-message"))
        };
        let (call, tester) = (("content-type", "application/grpc"), ("x-chaos", "on"));
        for _ in 0..3 {
            assert_eq!(asked(&[call, tester]).await, "14 fault");
            assert_eq!(asked(&[tester]).await, " ", "it is no call");
        }
        let others = asked(&[call]).await;
        assert!(!others.ends_with("fault"), "who is no tester: {others}");
        let metrics = shop.product.plane.telemetry.to_text();
        let line = "hanse_faults_injected_total{service=\"shop/reviews\",fault=\"FI\"} 3";
        assert!(metrics.contains(line), "{metrics}");
    });
}
