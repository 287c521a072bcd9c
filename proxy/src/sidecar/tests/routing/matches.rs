//! Matches of HTTPRoute by regular expressions, and routes of several parents, through real sidecars.

use super::*;

/// HTTPRouteHeaderMatching and HTTPRouteQueryParamMatching with type RegularExpression: the whole value has to fit.
#[test]
fn http_route_matching_by_regular_expressions() {
    on_local_set(async {
        let rules = r#"
  - { matches: [{ headers: [{ type: RegularExpression, name: x-build, value: "20[0-9]{2}-(rc|beta)[0-9]+" }] }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ queryParams: [{ type: RegularExpression, name: page, value: "[0-9]{1,3}" }] }], backendRefs: [{ name: reviews-v3 }] }
  - { backendRefs: [{ name: reviews-v1 }] }"#;
        let cases = [
            ("GET / x-build:2026-rc1", "reviews-v2"),
            ("GET / X-Build:2026-beta12", "reviews-v2"),
            ("GET / x-build:a2026-rc1", "reviews-v1"),
            ("GET / x-build:2026-rc1x", "reviews-v1"),
            ("GET / x-build:2026-RC1", "reviews-v1"),
            ("GET / x-other:2026-rc1", "reviews-v1"),
            ("GET /?page=7", "reviews-v3"),
            ("GET /?page=%37", "reviews-v3"),
            ("GET /?page=1234", "reviews-v1"),
            ("GET /?PAGE=7", "reviews-v1"),
            ("GET /?page=", "reviews-v1"),
            // The first of that name decides.
            ("GET /?page=7&page=x", "reviews-v3"),
            ("GET /?page=x&page=7", "reviews-v1"),
            // A header goes before a query.
            ("GET /?page=7 x-build:2026-rc1", "reviews-v2"),
        ];
        Versions::with(rules).await.each(&cases).await;
    });
}

#[test]
fn a_route_is_for_each_of_its_parents() {
    on_local_set(async {
        let rules = "
  - { matches: [{ path: { value: /shared } }], backendRefs: [{ name: reviews-v2 }] }
  - { backendRefs: [{ name: reviews-v3 }] }";
        let alone = route("shared", rules);
        let both = alone.replace("name: reviews }]", "name: reviews }, { kind: Service, name: reviews-v1 }]");
        assert_ne!(alone, both);
        let mut versions = Versions::open().await;
        versions.apply(&both);
        for (host, request, expected) in [
            ("reviews.shop.svc.clusterset.local", "GET /shared", "reviews-v2"),
            ("reviews.shop.svc.clusterset.local", "GET /", "reviews-v3"),
            // A Service is a parent by both of its names.
            ("reviews-v1.shop.svc.clusterset.local", "GET /shared", "reviews-v2"),
            ("reviews-v1.shop.svc.cluster.local", "GET /", "reviews-v3"),
        ] {
            let answer = versions.ask_at(host, request).await;
            assert_eq!(answer.header("x-app"), expected, "{host} {request}: {answer:?}");
        }
        for _ in 0..4 {
            assert_eq!(versions.shop.product.logged().await.policy, "shop/shared");
        }
        let other = versions.ask_at("reviews-v2.shop.svc.clusterset.local", "GET /").await;
        assert_eq!(other.header("x-app"), "reviews-v2", "it is no parent: {other:?}");

        versions.apply(&alone);
        let left = versions.ask_at("reviews-v1.shop.svc.clusterset.local", "GET /shared").await;
        assert_eq!(left.header("x-app"), "reviews-v1", "it is a parent no more: {left:?}");
        versions.each(&[("GET /shared", "reviews-v2")]).await;
    });
}
