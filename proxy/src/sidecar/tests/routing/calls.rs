//! GRPCRoute through real sidecars, with calls as clients of gRPC make them.

use super::*;
use crate::runtime::worker::LocalExecutor;

/// A gRPC server that succeeds with an empty answer, says its name, and of which tenant it was asked.
async fn calls_app(name: &'static str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    let (head, body) = request.into_parts();
                    drop(body.collect().await);
                    let answer = http::Response::builder().header("content-type", "application/grpc");
                    let mut answer = answer.header("grpc-status", "0").header("x-app", name);
                    if let Some(tenant) = head.headers.get("x-tenant") {
                        answer = answer.header("x-tenant", tenant);
                    }
                    Ok::<_, std::convert::Infallible>(answer.body(Full::<Bytes>::default()).unwrap())
                });
            let http = hyper::server::conn::http2::Builder::new(LocalExecutor);
            let served = http.serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            tokio::task::spawn_local(async move { drop(served.await) });
        }
    });
    address
}

/// The versions of reviews as gRPC servers, with this GRPCRoute.
async fn calls(rules: &str) -> Versions {
    let mut versions = Versions::open().await;
    for (index, name) in VERSIONS.into_iter().enumerate() {
        let (app, service) = (calls_app(name).await, format!("shop/{name}"));
        let identity = versions.shop.east.workload(name);
        let sidecar = Sidecar::start(Some(&identity), &[service.as_str()], Some(app));
        let (id, inbound) = (versions.shop.east.id(name), sidecar.inbound);
        versions.shop.change(|view| add_endpoint(view, &format!("{name}-1"), &service, &id, inbound));
        versions.versions[index].1 = sidecar;
    }
    versions.apply(&route("calls", rules).replace("kind: HTTPRoute", "kind: GRPCRoute"));
    versions
}

/// One call of `service/method`, over HTTP/2 and with one empty message.
async fn call(versions: &Versions, method: &str, headers: &[(&str, &str)]) -> Answer {
    let mut sender = http2(TcpStream::connect(versions.shop.product.outbound).await.unwrap()).await;
    let mut request = Request::post(format!("http://reviews.shop.svc.clusterset.local/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let message = Full::from(Bytes::from_static(&[0; 5]));
    Answer::of(sender.send_request(request.body(message).unwrap()).await.unwrap()).await
}

/// GRPCExactMethodMatching, GRPCRouteHeaderMatching, and methods by regular expressions.
#[test]
fn grpc_route_matching() {
    on_local_set(async {
        let rules = r"
  - { matches: [{ method: { service: shop.Reviews, method: Rate } }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ method: { service: shop.Reviews }, headers: [{ name: version, value: two }] }], backendRefs: [{ name: reviews-v2 }] }
  - { matches: [{ method: { service: shop.Reviews } }], backendRefs: [{ name: reviews-v1 }] }
  - { matches: [{ method: { type: RegularExpression, service: 'shop\.[A-Z][a-z]+', method: '(Get|List).*' } }], backendRefs: [{ name: reviews-v3 }] }
  - { matches: [{ headers: [{ type: RegularExpression, name: version, value: 'th(ree|ird)' }] }], backendRefs: [{ name: reviews-v3 }] }";
        let versions = calls(rules).await;
        const UNIMPLEMENTED: &str = "12";
        for (method, version, expected) in [
            ("shop.Reviews/Rate", "", "reviews-v2"),
            ("shop.Reviews/Delete", "", "reviews-v1"),
            ("shop.Reviews/Delete", "two", "reviews-v2"),
            // Whoever names the service goes before whoever names a header only.
            ("shop.Reviews/Delete", "three", "reviews-v1"),
            ("shop.Ratings/ListAll", "", "reviews-v3"),
            ("shop.Ratings/Delete", "", UNIMPLEMENTED),
            ("shop.ratings/ListAll", "", UNIMPLEMENTED),
            ("other.shop.Ratings/ListAll", "", UNIMPLEMENTED),
            ("shop.Ratings/Delete", "third", "reviews-v3"),
            ("shop.Ratings/Delete", "thirdly", UNIMPLEMENTED),
        ] {
            let answer = call(&versions, method, &[("version", version)]).await;
            let by = match answer.header("x-app") {
                "" => answer.header("grpc-status"),
                app => app,
            };
            assert_eq!((answer.status, by), (StatusCode::OK, expected), "{method} {version}: {answer:?}");
        }
    });
}

/// GRPCRouteWeight, and header modifiers of a GRPCRoute.
#[test]
fn grpc_route_weight_and_header_modifiers() {
    on_local_set(async {
        let rules = "
  - filters:
    - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-tenant, value: shop }] } }
    - { type: ResponseHeaderModifier, responseHeaderModifier: { add: [{ name: x-by, value: mesh }] } }
    backendRefs: [{ name: reviews-v1, weight: 3 }, { name: reviews-v2, weight: 0 }, { name: reviews-v3, weight: 1 }]";
        let versions = calls(rules).await;
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..160 {
            let answer = call(&versions, "shop.Reviews/Rate", &[("x-tenant", "forged")]).await;
            assert_eq!((answer.header("x-tenant"), answer.header("x-by")), ("shop", "mesh"), "{answer:?}");
            *counts.entry(answer.header("x-app").to_owned()).or_insert(0) += 1;
        }
        // Five standard deviations of 160 draws.
        assert!((12..=68).contains(&counts["reviews-v3"]), "{counts:?}");
        assert!(counts.len() == 2 && counts.contains_key("reviews-v1"), "{counts:?}");
    });
}
