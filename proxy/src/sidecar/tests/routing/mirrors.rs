//! Mirrors of HTTPRoute through real sidecars: who gets a copy, of what, and what that costs the request.

use super::*;

/// HTTPRouteRequestMirror and HTTPRouteRequestMultipleMirrors.
#[test]
fn http_route_mirrors_get_what_the_backend_gets() {
    on_local_set(async {
        let rules = "
  - filters:
    - { type: RequestMirror, requestMirror: { backendRef: { name: reviews-v2 } } }
    - { type: RequestMirror, requestMirror: { backendRef: { name: reviews-v3 }, percent: 100 } }
    - { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /copied } } }
    backendRefs: [{ name: reviews-v1 }]";
        let mut versions = Versions::with(rules).await;
        let body = Bytes::from(vec![7; 100_000]);
        let request = Request::post("/x").header("host", "reviews.shop.svc.clusterset.local");
        let answer = versions.shop.product.request(request.body(Full::new(body.clone())).unwrap()).await;
        assert_eq!(
            (answer.seen()["app"].as_str(), answer.seen()["bytes"].as_u64()),
            (Some("reviews-v1"), Some(100_000))
        );
        for (_, sidecar) in &mut versions.versions {
            let logged = sidecar.logged().await;
            assert_eq!(
                (logged.method.as_str(), &*logged.path, logged.response_code),
                ("POST", "/copied/x", 200)
            );
            assert_eq!(logged.bytes_received, body.len() as u64);
            assert_eq!(logged.source_spiffe, versions.shop.east.id("productpage").to_string());
        }
        let metrics = versions.shop.product.plane.telemetry.to_text();
        assert!(
            metrics.contains("hanse_mirrored_total{service=\"shop/reviews-v2\",outcome=\"sent\"} 1"),
            "{metrics}"
        );
    });
}

/// A mirror that answers nothing, reads nothing, or is not there is nobody's trouble.
#[test]
fn http_route_mirrors_never_delay_or_fail_a_request() {
    on_local_set(async {
        let rules = "
  - filters:
    - { type: RequestMirror, requestMirror: { backendRef: { name: reviews-v2 } } }
    - { type: RequestMirror, requestMirror: { backendRef: { name: reviews-v3 } } }
    backendRefs: [{ name: reviews-v1 }]";
        let mut versions = Versions::with(rules).await;
        let (app, gone) = versions.versions.remove(2);
        app.kill();
        gone.ended.abort();
        // Connections to it are made, and nothing is ever read.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let id = versions.shop.east.id("reviews-v2");
        let deaf = Sidecar::start(
            Some(&versions.shop.east.workload("reviews-v2")),
            &["shop/reviews-v2"],
            Some(mute.local_addr().unwrap()),
        );
        let inbound = deaf.inbound;
        versions.shop.change(|view| add_endpoint(view, "reviews-v2-1", "shop/reviews-v2", &id, inbound));
        deaf.publish(&versions.shop.view);
        versions.publish();
        let mirrored = versions.shop.product.plane.telemetry.mirrored.clone();
        for _ in 0..3 {
            let body = Full::new(Bytes::from(vec![7; 4 * 1024 * 1024]));
            let request = Request::post("/x").header("host", "reviews.shop.svc.clusterset.local");
            let asked = versions.shop.product.request(request.body(body).unwrap());
            let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("nobody waits");
            assert_eq!((answer.status, answer.header("x-app")), (StatusCode::OK, "reviews-v1"));
            assert_eq!(answer.seen()["bytes"], 4 * 1024 * 1024);
        }
        let failed = crate::runtime::telemetry::MirrorLabels {
            service: "shop/reviews-v3".to_owned(),
            outcome: "failed",
        };
        until("the copies for who is gone have failed", async || mirrored.get_or_create(&failed).get() == 3)
            .await;
    });
}

#[test]
fn http_route_mirrors_get_the_share_that_is_said() {
    on_local_set(async {
        let mirror = |name: &str, percent: u32| {
            format!(
                "{{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: {name} }}, percent: {percent} }} }}"
            )
        };
        let rules = format!(
            "
  - matches: [{{ path: {{ value: /last }} }}]
    filters: [{}, {}]
    backendRefs: [{{ name: reviews-v1 }}]
  - filters: [{}, {}]
    backendRefs: [{{ name: reviews-v1 }}]",
            mirror("reviews-v2", 100),
            mirror("reviews-v3", 100),
            mirror("reviews-v2", 0),
            mirror("reviews-v3", 50)
        );
        let mut versions = Versions::with(&rules).await;
        for _ in 0..200 {
            versions.each(&[("GET /x", "reviews-v1")]).await;
        }
        versions.each(&[("GET /last", "reviews-v1")]).await;
        let mut copies = [0, 0];
        for (copies, (_, sidecar)) in copies.iter_mut().zip(&mut versions.versions[1..]) {
            while sidecar.logged().await.path != "/last" {
                *copies += 1;
            }
        }
        let [none, half] = copies;
        assert_eq!(none, 0, "with percent: 0");
        // Five standard deviations of 200 draws.
        assert!((65..=135).contains(&half), "{half} of 200 with percent: 50");
    });
}
