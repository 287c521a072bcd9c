//! Routes through real sidecars: the cases of Gateway API's conformance tests for HTTPRoute, and the documents of
//! `deploy/examples`.

use hanse_federation::Change;
use hanse_federation::policy::{parse, validate};

use super::*;

mod calls;
mod matches;
mod mirrors;

/// The shop, and three versions of its reviews as services of their own.
struct Versions {
    shop: Shop,
    versions: Vec<(App, Sidecar)>,
}

const VERSIONS: [&str; 3] = ["reviews-v1", "reviews-v2", "reviews-v3"];

impl Versions {
    async fn open() -> Self {
        let mut shop = Shop::open().await;
        let mut versions = Vec::new();
        for name in VERSIONS {
            let app = App::start(name).await;
            let service = format!("shop/{name}");
            let sidecar =
                Sidecar::start(Some(&shop.east.workload(name)), &[service.as_str()], Some(app.address));
            let id = shop.east.id(name);
            shop.change(|view| {
                add_service(view, &service, std::slice::from_ref(&id), None);
                add_endpoint(view, &format!("{name}-1"), &service, &id, sidecar.inbound);
            });
            versions.push((app, sidecar));
        }
        let opened = Self { shop, versions };
        opened.publish();
        opened
    }

    async fn with(rules: &str) -> Self {
        let mut opened = Self::open().await;
        opened.apply(&route("reviews", rules));
        opened
    }

    fn publish(&self) {
        self.versions.iter().for_each(|(_, sidecar)| sidecar.publish(&self.shop.view));
    }

    /// As `hanse policy apply` would, with no finding to tell.
    fn apply(&mut self, text: &str) {
        let documents = parse("test", text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"));
        let findings = validate(&self.shop.view, "test", &documents);
        assert!(findings.is_empty(), "{text}\n{findings:#?}");
        for (document, _) in documents {
            self.shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
        }
        self.publish();
    }

    /// `request`: method, path, and headers as `name:value`, separated by spaces.
    async fn ask(&self, request: &str) -> Answer {
        self.ask_at("reviews.shop.svc.clusterset.local", request).await
    }

    /// The same of another host.
    async fn ask_at(&self, host: &str, request: &str) -> Answer {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut asked = Request::builder().method(method).uri(path);
        asked = asked.header("host", host);
        for header in words {
            let (name, value) = header.split_once(':').unwrap();
            asked = asked.header(name, value);
        }
        self.shop.product.request(asked.body(Full::default()).unwrap()).await
    }

    /// Each request is answered by that app, or with that status.
    async fn each(&self, cases: &[(&str, &str)]) {
        for (request, expected) in cases {
            let answer = self.ask(request).await;
            let by = match answer.header("x-app") {
                "" => answer.status.as_u16().to_string(),
                app => app.to_owned(),
            };
            assert_eq!(by, *expected, "{request}: {answer:?}");
        }
    }
}

fn route(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec:\n  parentRefs: [{{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }}]\n  rules:\n{rules}\n"
    )
}

/// HTTPRouteMatching.
#[test]
fn http_route_matching() {
    on_local_set(async {
        let rules = "
  - matches: [{ path: { type: PathPrefix, value: / } }, { headers: [{ name: version, value: one }] }]
    backendRefs: [{ name: reviews-v1 }]
  - matches: [{ path: { type: PathPrefix, value: /v2 } }, { headers: [{ name: version, value: two }] }]
    backendRefs: [{ name: reviews-v2 }]";
        let cases = [
            ("GET /", "reviews-v1"),
            ("GET /example", "reviews-v1"),
            ("GET / version:one", "reviews-v1"),
            ("GET /v2", "reviews-v2"),
            ("GET /v2/", "reviews-v2"),
            ("GET /v2/example", "reviews-v2"),
            ("GET / version:two", "reviews-v2"),
            ("GET /v2example", "reviews-v1"),
            ("GET /foo/v2/example", "reviews-v1"),
        ];
        Versions::with(rules).await.each(&cases).await;
    });
}

/// HTTPRouteMatchingAcrossRoutes and HTTPRoutePathMatchOrder: precedence does not ask which route a match is in.
#[test]
fn http_route_precedence_within_and_across_routes() {
    on_local_set(async {
        let mut versions = Versions::with(
            "
  - { matches: [{ path: { type: PathPrefix, value: /match } }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ path: { type: Exact, value: /match/exact } }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ path: { type: PathPrefix, value: /match/prefix } }], backendRefs: [{ name: reviews-v2 }] }",
        )
        .await;
        versions.apply(&route(
            "another",
            "
  - { matches: [{ path: { type: Exact, value: /match/exact/one } }], backendRefs: [{ name: reviews-v3 }] }
  - { matches: [{ path: { type: PathPrefix, value: /match/prefix/one } }], backendRefs: [{ name: reviews-v3 }] }
  - { matches: [{ path: { value: / }, headers: [{ name: version, value: one }] }], backendRefs: [{ name: reviews-v3 }] }",
        ));
        let cases = [
            ("GET /match/exact/one", "reviews-v3"),
            ("GET /match/exact", "reviews-v2"),
            ("GET /match", "reviews-v1"),
            ("GET /match/prefix/one/any", "reviews-v3"),
            ("GET /match/prefix/any", "reviews-v2"),
            ("GET /match/any", "reviews-v1"),
            ("GET /match/any version:one", "reviews-v1"),
            ("GET /elsewhere version:one", "reviews-v3"),
            ("GET /elsewhere", "404"),
        ];
        versions.each(&cases).await;
    });
}

/// HTTPRouteHeaderMatching.
#[test]
fn http_route_header_matching() {
    on_local_set(async {
        let rules = "
  - { matches: [{ headers: [{ name: version, value: one }] }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ headers: [{ name: version, value: two }] }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ headers: [{ name: version, value: two }, { name: color, value: orange }] }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ headers: [{ name: color, value: blue }] }, { headers: [{ name: color, value: green }] }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ headers: [{ name: color, value: red }] }, { headers: [{ name: color, value: yellow }] }], backendRefs: [{ name: reviews-v2 }] }";
        let cases = [
            ("GET / version:one", "reviews-v1"),
            ("GET / version:two", "reviews-v2"),
            ("GET / version:two color:orange", "reviews-v1"),
            ("GET / VERSION:two", "reviews-v2"),
            ("GET / color:blue", "reviews-v1"),
            ("GET / color:green", "reviews-v1"),
            ("GET / color:red", "reviews-v2"),
            ("GET / color:yellow", "reviews-v2"),
            ("GET / color:orange", "404"),
            ("GET / color:Blue", "404"),
            ("GET / some-other-header:one", "404"),
            ("GET /", "404"),
        ];
        Versions::with(rules).await.each(&cases).await;
    });
}

/// HTTPRouteQueryParamMatching; the decoding of values is tested where the routes are compiled.
#[test]
fn http_route_query_param_matching() {
    on_local_set(async {
        let rules = "
  - { matches: [{ queryParams: [{ name: animal, value: whale }] }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ queryParams: [{ name: animal, value: dolphin }] }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ queryParams: [{ name: animal, value: dolphin }, { name: color, value: blue }] }], backendRefs: [{ name: reviews-v3 }] }
  - { matches: [{ path: { value: /path1 }, headers: [{ name: version, value: one }], queryParams: [{ name: animal, value: whale }] }], backendRefs: [{ name: reviews-v2 }] }";
        let cases = [
            ("GET /?animal=whale", "reviews-v1"),
            ("GET /?animal=dolphin", "reviews-v2"),
            ("GET /?animal=dolphin&color=yellow", "reviews-v2"),
            ("GET /?animal=dolphin&color=blue", "reviews-v3"),
            ("GET /path1?animal=whale version:one", "reviews-v2"),
            ("GET /path1?animal=whale", "reviews-v1"),
            ("GET /?color=blue", "404"),
            ("GET /?animal=horse", "404"),
            ("GET /", "404"),
        ];
        Versions::with(rules).await.each(&cases).await;
    });
}

/// HTTPRouteMethodMatching.
#[test]
fn http_route_method_matching() {
    on_local_set(async {
        let rules = "
  - { matches: [{ method: POST }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ method: GET }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ path: { value: /path1 }, method: GET }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ method: PUT, headers: [{ name: version, value: one }] }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ path: { value: /path2 }, method: POST, headers: [{ name: version, value: two }] }], backendRefs: [{ name: reviews-v3 }] }
  - { matches: [{ path: { value: /path3 }, method: PATCH }, { path: { value: /path4 }, method: DELETE, headers: [{ name: version, value: three }] }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ path: { value: /path5 } }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ path: { value: /path5 }, method: PATCH }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ path: { value: /path5 }, headers: [{ name: version, value: four }] }], backendRefs: [{ name: reviews-v3 }] }";
        let cases = [
            ("POST /", "reviews-v1"),
            ("GET /", "reviews-v2"),
            ("HEAD /", "404"),
            ("GET /path1", "reviews-v1"),
            ("PUT / version:one", "reviews-v2"),
            ("POST /path2 version:two", "reviews-v3"),
            ("PATCH /path3", "reviews-v1"),
            ("DELETE /path4 version:three", "reviews-v1"),
            ("PUT /", "404"),
            ("DELETE /path4", "404"),
            // A method goes before a header.
            ("PATCH /path5 version:four", "reviews-v2"),
            ("PUT /path5 version:four", "reviews-v3"),
            ("PUT /path5", "reviews-v1"),
        ];
        Versions::with(rules).await.each(&cases).await;
    });
}

/// HTTPRouteRewritePath and HTTPRouteRewriteHost.
#[test]
fn http_route_rewrite() {
    on_local_set(async {
        let rules = "
  - matches: [{ path: { type: PathPrefix, value: /prefix/one } }]
    filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /one } } }]
    backendRefs: [{ name: reviews-v1 }]
  - matches: [{ path: { type: PathPrefix, value: /strip-prefix } }]
    filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]
    backendRefs: [{ name: reviews-v1 }]
  - matches: [{ path: { type: PathPrefix, value: /full/one } }]
    filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /one } } }]
    backendRefs: [{ name: reviews-v1 }]
  - matches: [{ path: { type: PathPrefix, value: /host } }]
    filters: [{ type: URLRewrite, urlRewrite: { hostname: one.example.org } }]
    backendRefs: [{ name: reviews-v2 }]
  - matches: [{ path: { type: PathPrefix, value: /full/rewrite-path-and-modify-headers } }]
    filters:
    - { type: URLRewrite, urlRewrite: { hostname: test.example.org, path: { type: ReplaceFullPath, replaceFullPath: /test } } }
    - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-set, value: s }], add: [{ name: x-add, value: a }], remove: [x-gone] } }
    backendRefs: [{ name: reviews-v1 }]";
        let versions = Versions::with(rules).await;
        let own = "reviews.shop.svc.clusterset.local";
        for (request, uri, host) in [
            ("GET /prefix/one/two", "/one/two", own),
            ("GET /prefix/one?a=b%20c", "/one?a=b%20c", own),
            ("GET /strip-prefix/three", "/three", own),
            ("GET /strip-prefix", "/", own),
            ("GET /full/one/two", "/one", own),
            ("GET /full/one/two?q", "/one?q", own),
            ("GET /host/x?q", "/host/x?q", "one.example.org"),
            ("GET /full/rewrite-path-and-modify-headers/x x-gone:1 x-set:old", "/test", "test.example.org"),
        ] {
            let seen = versions.ask(request).await.seen();
            assert_eq!((seen["uri"].as_str(), seen["headers"]["host"].as_str()), (Some(uri), Some(host)));
            if uri == "/test" {
                assert_eq!(seen["headers"]["x-set"], "s");
                assert_eq!(seen["headers"]["x-add"], "a");
                assert!(seen["headers"]["x-gone"].is_null());
            }
        }
    });
}

/// HTTPRouteRedirectHostAndStatus, -Path, -Port, -Scheme.
#[test]
fn http_route_redirect() {
    on_local_set(async {
        let redirect = |prefix: &str, to: &str| {
            format!(
                "  - matches: [{{ path: {{ type: PathPrefix, value: {prefix} }} }}]\n    filters: [{{ type: \
                 RequestRedirect, requestRedirect: {{ {to} }} }}]\n"
            )
        };
        let rules = [
            redirect("/hostname-redirect", "hostname: example.org"),
            redirect("/host-and-status", "hostname: example.org, statusCode: 301"),
            redirect("/scheme", "scheme: https"),
            redirect("/port", "port: 8083"),
            redirect("/original-prefix", "path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }"),
            redirect(
                "/full",
                "path: { type: ReplaceFullPath, replaceFullPath: /full-path }, statusCode: 307",
            ),
            redirect("/see-other", "scheme: https, port: 8443, statusCode: 303"),
            redirect("/for-good", "scheme: http, hostname: example.org, port: 80, statusCode: 308"),
        ]
        .concat();
        let mut versions = Versions::with(&rules).await;
        let own = "http://reviews.shop.svc.clusterset.local";
        for (request, status, location) in [
            ("GET /hostname-redirect", 302, "http://example.org/hostname-redirect".to_owned()),
            ("GET /host-and-status?q=1", 301, "http://example.org/host-and-status?q=1".to_owned()),
            ("GET /scheme", 302, "https://reviews.shop.svc.clusterset.local/scheme".to_owned()),
            ("GET /port", 302, format!("{own}:8083/port")),
            ("GET /original-prefix/lemon", 302, format!("{own}/new/lemon")),
            ("POST /full/path/original", 307, format!("{own}/full-path")),
            ("POST /see-other", 303, "https://reviews.shop.svc.clusterset.local:8443/see-other".to_owned()),
            ("POST /for-good", 308, "http://example.org/for-good".to_owned()),
        ] {
            let answer = versions.ask(request).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("location")),
                (status, &*location),
                "{answer:?}"
            );
            assert_eq!(answer.header("x-hanse-answered-by"), "mesh");
            assert!(answer.body.is_empty());
            let logged = versions.shop.product.logged().await;
            assert_eq!((logged.response_code, &*logged.hanse_reason), (status, "redirect"));
        }
    });
}

/// HTTPRouteRequestHeaderModifier and HTTPRouteResponseHeaderModifier.
#[test]
fn http_route_header_modifiers() {
    on_local_set(async {
        let rules = "
  - filters:
    - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: X-Header-Set, value: set-overwrites }], add: [{ name: X-Header-Add, value: add-appends }], remove: [X-Header-Remove] } }
    - { type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: X-App, value: reviews-v1 }, { name: X-New, value: new }], remove: [content-type, x-hidden] } }
    backendRefs: [{ name: reviews-v2 }]";
        let versions = Versions::with(rules).await;
        let answer = versions.ask("GET / x-header-set:old x-header-remove:1 x-header-kept:k").await;
        assert_eq!((answer.header("x-app"), answer.header("x-new")), ("reviews-v1", "new"));
        let seen = answer.seen();
        assert_eq!(seen["app"], "reviews-v2", "it is the answer's header that was changed");
        assert_eq!(seen["headers"]["x-header-set"], "set-overwrites");
        assert_eq!(seen["headers"]["x-header-add"], "add-appends");
        assert_eq!(seen["headers"]["x-header-kept"], "k");
        assert!(seen["headers"]["x-header-remove"].is_null());
        assert_eq!(answer.header("x-hanse-cluster"), "east", "what the mesh says is still there");
    });
}

/// HTTPRouteTimeoutRequest and HTTPRouteTimeoutBackendRequest: each alone, and both.
#[test]
fn http_route_timeouts() {
    on_local_set(async {
        let silent = |limit: &str| {
            format!(
                "matches: [{{ path: {{ value: /silent }}, headers: [{{ name: x-limit, value: {limit} }}] }}]"
            )
        };
        let rules = format!(
            "
  - {{ {}, timeouts: {{ request: 300ms, backendRequest: 50ms }}, backendRefs: [{{ name: reviews-v1 }}] }}
  - {{ {}, timeouts: {{ request: 100ms }}, backendRefs: [{{ name: reviews-v2 }}] }}
  - {{ {}, timeouts: {{ backendRequest: 60ms }}, backendRefs: [{{ name: reviews-v3 }}] }}
  - {{ timeouts: {{ request: 0s }}, backendRefs: [{{ name: reviews-v2 }}] }}",
            silent("both"),
            silent("request"),
            silent("attempt")
        );
        let mut versions = Versions::with(&rules).await;
        // Who is late stays; and with nothing said of the whole request, it is tried once more only.
        for (name, retry) in [("reviews-v1", "{}"), ("reviews-v3", "{ attempts: 1 }")] {
            versions.apply(&format!(
                "apiVersion: hanse.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
                 spec:\n  targetRefs: [{{ kind: Service, name: {name} }}]\n  retry: {retry}\n  \
                 health: {{ outlier: {{ consecutive5xx: 100000, consecutiveGatewayErrors: 100000 }} }}\n"
            ));
        }
        // A POST is not repeated, so its one attempt's time is all that it has.
        let cases = [
            ("GET /silent x-limit:both", 2..=6, 300),
            ("POST /silent x-limit:both", 1..=1, 50),
            ("GET /silent x-limit:request", 1..=1, 100),
            ("GET /silent x-limit:attempt", 2..=2, 120),
            ("POST /silent x-limit:attempt", 1..=1, 60),
        ];
        for (request, _, least) in &cases {
            let begun = std::time::Instant::now();
            let answer = versions.ask(request).await;
            let took = begun.elapsed();
            let reason = (answer.status.as_u16(), answer.header("x-hanse-reason"));
            assert_eq!(reason, (504, "timeout"), "{request}: {answer:?}");
            // By default one attempt has 3 s, and a request 15 s.
            let in_time = Duration::from_millis(*least)..Duration::from_secs(2);
            assert!(in_time.contains(&took), "{request}: {took:?}");
        }
        for (request, attempts, _) in &cases {
            let logged = versions.shop.product.logged().await;
            assert!(attempts.contains(&logged.attempts), "{request}: {} attempts", logged.attempts);
            assert_eq!(logged.response_flags, "UT", "{request}");
        }
        versions.each(&[("GET /fast", "reviews-v2")]).await;
    });
}

/// HTTPRouteWeight: 70, 30, 0.
#[test]
fn http_route_weight() {
    on_local_set(async {
        let rules = "
  - backendRefs:
    - { name: reviews-v1, weight: 70 }
    - { name: reviews-v2, weight: 30 }
    - { name: reviews-v3, weight: 0 }";
        let versions = Versions::with(rules).await;
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..500 {
            *counts.entry(versions.ask("GET /").await.header("x-app").to_owned()).or_insert(0) += 1;
        }
        // Five standard deviations of 500 draws.
        assert!((300..=400).contains(&counts["reviews-v1"]), "{counts:?}");
        assert!((100..=200).contains(&counts["reviews-v2"]), "{counts:?}");
        assert_eq!(counts.len(), 2, "weight 0 gets nothing: {counts:?}");
    });
}

/// Every document of `deploy/examples` is good, and does what its first line says.
#[test]
fn the_examples_do_what_they_say() {
    on_local_set(async {
        let example = |name: &str| {
            let path = format!("{}/../deploy/examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(path).unwrap()
        };
        let mut versions = Versions::open().await;
        versions.apply(&example("http-route-matching"));
        let cases = [
            ("GET /", "reviews-v1"),
            ("GET /?preview=true", "reviews-v2"),
            ("GET / x-build:2026-rc1", "reviews-v2"),
            ("GET / x-build:2026-rc1-final", "reviews-v1"),
            ("GET /v2/x", "reviews-v2"),
            ("POST /reviews/7", "reviews-v2"),
            ("GET /reviews/7", "reviews-v1"),
        ];
        versions.each(&cases).await;
        versions.apply(&example("http-route-canary"));
        versions.each(&[("GET / x-beta:yes", "reviews-v2")]).await;
        versions.apply(&example("http-route-headers"));
        let answer = versions.ask("GET / x-debug:1").await;
        assert_eq!(answer.header("cache-control"), "no-store");
        let headers = &answer.seen()["headers"];
        assert_eq!(
            (headers["x-tenant"].as_str(), headers["x-seen-by"].as_str()),
            (Some("shop"), Some("mesh"))
        );
        assert!(headers["x-debug"].is_null());
        versions.apply(&example("http-route-redirect"));
        let answer = versions.ask("GET /old/a").await;
        assert_eq!(answer.header("location"), "http://reviews.shop.svc.clusterset.local/new/a");
        versions.each(&[("GET /new/a", "reviews-v1")]).await;
        versions.apply(&example("http-route-rewrite"));
        let seen = versions.ask("GET /api/v2/x").await.seen();
        assert_eq!(
            (seen["uri"].as_str(), seen["headers"]["host"].as_str()),
            (Some("/x"), Some("reviews.internal"))
        );
        versions.each(&[("GET /api/v1", "reviews-v1")]).await;
        versions.apply(&example("http-route-mirror"));
        versions.each(&[("GET /mirrored", "reviews-v1")]).await;
        let v2 = &mut versions.versions[1].1;
        while v2.logged().await.path != "/mirrored" {}
        versions.apply(&example("http-route-timeouts"));
        versions.each(&[("GET /", "reviews-v1"), ("GET /silent", "504")]).await;
        // A GRPCRoute decides alone from here on, so it comes last.
        let documents = parse("test", &example("grpc-route")).unwrap();
        let findings = validate(&versions.shop.view, "test", &documents);
        assert!(findings.len() == 1 && findings[0].code == "E4121", "beside the HTTPRoute: {findings:#?}");
        for (document, _) in documents {
            versions.shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
        }
        versions.publish();
        versions
            .each(&[("POST /shop.Reviews/Rate", "reviews-v2"), ("POST /shop.Reviews/List", "reviews-v1")])
            .await;
    });
}
