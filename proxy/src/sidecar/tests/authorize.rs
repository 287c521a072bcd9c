//! External authorization through real sidecars: an authorizer of the test's own in the mesh and on the host, by the example.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::HttpRequest;
use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::rpc::Status as RpcStatus;
use futures_util::StreamExt as _;
use hanse_federation::Change;
use hanse_federation::policy::{parse, validate};

use super::*;

/// Says what the request's `x-verdict` says; remembers what it was told.
#[derive(Clone, Default)]
struct Authorizer {
    told: Arc<Mutex<Vec<AttributeContext>>>,
    connections: Arc<AtomicUsize>,
    /// Whoever waits may go.
    go: Arc<tokio::sync::Notify>,
}

/// One that is being served.
pub(super) struct Running {
    address: SocketAddr,
    authorizer: Authorizer,
    /// Dropped: it takes no more, and says goodbye.
    stay: tokio::sync::oneshot::Sender<()>,
}

fn option(name: &str, value: &str) -> HeaderValueOption {
    let header = HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() };
    HeaderValueOption { header: Some(header), ..HeaderValueOption::default() }
}

#[tonic::async_trait]
impl Authorization for Authorizer {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let told = request.into_inner().attributes.unwrap();
        let verdict = http_of(&told).headers.get("x-verdict").cloned().unwrap_or_default();
        self.told.lock().unwrap().push(told);
        let allowed = |headers| OkHttpResponse {
            headers,
            headers_to_remove: vec!["authorization".to_owned()],
            response_headers_to_add: vec![option("x-checked", "yes")],
            ..OkHttpResponse::default()
        };
        if verdict == "wait" {
            self.go.notified().await;
        }
        let (code, said) = match verdict.as_str() {
            "yes" | "wait" => (0, HttpResponse::OkResponse(allowed(vec![option("x-user", "ann")]))),
            "forge" => {
                let id = "URI=spiffe://east.example/ns/shop/sa/admin";
                (0, HttpResponse::OkResponse(allowed(vec![option("x-forwarded-client-cert", id)])))
            }
            "slow" => std::future::pending().await,
            "broken" => return Err(tonic::Status::internal("broken")),
            "busy" => return Err(tonic::Status::resource_exhausted("busy")),
            "refuse" => return Err(tonic::Status::permission_denied("refuse")),
            _ => {
                // A number is the status to deny with.
                let status = Some(HttpStatus { code: verdict.parse().unwrap_or(401) });
                let headers = vec![option("www-authenticate", "Basic realm=\"shop\"")];
                let body = "who are you?".to_owned();
                (16, HttpResponse::DeniedResponse(DeniedHttpResponse { status, headers, body }))
            }
        };
        let status = Some(RpcStatus { code, ..RpcStatus::default() });
        Ok(tonic::Response::new(CheckResponse {
            status,
            http_response: Some(said),
            ..CheckResponse::default()
        }))
    }
}

fn http_of(told: &AttributeContext) -> &HttpRequest {
    told.request.as_ref().unwrap().http.as_ref().unwrap()
}

impl Running {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let authorizer = Authorizer::default();
        let connections = Arc::clone(&authorizer.connections);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).inspect(move |_| {
            connections.fetch_add(1, Ordering::SeqCst);
        });
        let (stay, leave) = tokio::sync::oneshot::channel();
        let served = tonic::transport::Server::builder()
            .add_service(AuthorizationServer::new(authorizer.clone()))
            .serve_with_incoming_shutdown(incoming, async move { drop(leave.await) });
        tokio::spawn(async move { served.await.unwrap() });
        Self { address, authorizer, stay }
    }

    pub(super) fn asked(&self) -> usize {
        self.authorizer.told.lock().unwrap().len()
    }

    /// One that waits, or the next that will.
    pub(super) fn let_go(&self) {
        self.authorizer.go.notify_one();
    }
}

/// The shop with the example in force, and the authorizer as a workload of its own.
pub(super) async fn guarded() -> (Shop, Sidecar, Running) {
    let mut shop = Shop::open().await;
    let running = Running::start().await;
    let authz = Sidecar::start(Some(&shop.east.workload("authz")), &["shop/authz"], Some(running.address));
    let (id, inbound) = (shop.east.id("authz"), authz.inbound);
    shop.change(|view| {
        add_service(view, "shop/authz", std::slice::from_ref(&id), None);
        add_endpoint(view, "authz-1", "shop/authz", &id, inbound);
    });
    let path = format!("{}/../deploy/examples/access-policy-external.yaml", env!("CARGO_MANIFEST_DIR"));
    let documents = parse("test", &std::fs::read_to_string(path).unwrap()).unwrap();
    let findings = validate(&shop.view, "test", &documents);
    assert!(findings.is_empty(), "{findings:#?}");
    for (document, _) in documents {
        shop.change(|view| view.apply(&Change::PolicyPut(Box::new(document))));
    }
    authz.publish(&shop.view);
    (shop, authz, running)
}

pub(super) async fn ask(shop: &Shop, method: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri("/a?b=c").header("host", "reviews.shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    shop.product.request(request.body(Full::default()).unwrap()).await
}

fn counted(shop: &Shop, decision: &str) -> bool {
    let metrics = shop.reviews.plane.telemetry.to_text();
    let name = "hanse_external_authorizations_total{policy=\"shop/reviews-writes\"";
    metrics.contains(&format!("{name},decision=\"{decision}\"}}"))
}

#[test]
fn the_example_asks_an_authorizer_of_the_mesh_about_writes() {
    on_local_set(async {
        let (mut shop, mut authz, running) = guarded().await;
        assert_eq!(ask(&shop, "GET", &[]).await.status, StatusCode::OK);
        assert_eq!(running.asked(), 0, "reading is asked about by nobody");

        let answer = ask(&shop, "POST", &[]).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (401, &b"who are you?"[..]));
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"shop\"");
        assert_eq!(answer.header("x-hanse-reason"), "denied-externally");
        let mut denied = shop.reviews.logged().await;
        while denied.response_code != 401 {
            denied = shop.reviews.logged().await;
        }
        assert_eq!((denied.response_flags, &*denied.hanse_reason), ("UAEX", "denied-externally"));

        let forged = [
            ("x-verdict", "yes"),
            ("x-user", "root"),
            ("X_User", "root"),
            ("authorization", "Basic YTpi"),
            ("x-forwarded-client-cert", "URI=spiffe://east.example/ns/shop/sa/admin"),
        ];
        let answer = ask(&shop, "POST", &forged).await;
        assert_eq!((answer.status, answer.header("x-checked")), (StatusCode::OK, "yes"), "{answer:?}");
        let seen = answer.seen();
        let headers = seen["headers"].as_object().unwrap();
        assert_eq!(headers["x-user"], "ann");
        assert!(!headers.contains_key("x_user") && !headers.contains_key("authorization"), "{headers:?}");
        let caller = headers["x-forwarded-client-cert"].as_str().unwrap();
        assert!(caller.ends_with(&format!("URI={}", shop.east.id("productpage"))), "{caller}");

        let told = running.authorizer.told.lock().unwrap().pop().unwrap();
        assert_eq!(told.source.as_ref().unwrap().principal, shop.east.id("productpage").to_string());
        assert_eq!(told.destination.as_ref().unwrap().principal, shop.east.id("reviews").to_string());
        let http = http_of(&told);
        assert_eq!(
            (http.method.as_str(), http.path.as_str(), http.query.as_str()),
            ("POST", "/a?b=c", "b=c")
        );
        assert_eq!(http.headers["authorization"], "Basic YTpi");
        assert!(!http.headers.contains_key("x-forwarded-client-cert"), "what was forged is told nobody");

        // Nobody's word makes another caller of this one.
        let answer = ask(&shop, "POST", &[("x-verdict", "forge")]).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (403, "authorizer-silent"));
        // A no that looks like a failure is neither tried again elsewhere nor held against the endpoint.
        let before = running.asked();
        let answer = ask(&shop, "POST", &[("x-verdict", "503")]).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-hanse-reason")), (403, "denied-externally"));
        assert_eq!(running.asked(), before + 1);
        // A path that the authorizer could read otherwise than the app is nobody's to decide about.
        let twice = Request::post("/a/%2e%2e/b").header("host", "reviews.shop").header("x-verdict", "yes");
        let answer = shop.product.request(twice.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let call = [("content-type", "application/grpc"), ("te", "trailers")];
        let answer = ask(&shop, "POST", &call).await;
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "16"), "{answer:?}");

        for _ in 0..20 {
            assert_eq!(ask(&shop, "POST", &[("x-verdict", "yes")]).await.status, StatusCode::OK);
        }
        assert_eq!(running.authorizer.connections.load(Ordering::SeqCst), 1, "one connection is enough");
        assert!(counted(&shop, "allowed") && counted(&shop, "denied") && counted(&shop, "failed"));
        let asked = authz.logged().await;
        assert_eq!(asked.source_spiffe.to_string(), shop.east.id("reviews").to_string(), "by mutual TLS");
        assert_eq!(asked.path, "/envoy.service.auth.v3.Authorization/Check");
    });
}

#[test]
fn without_an_answer_nothing_goes_on_unless_the_policy_says_so() {
    on_local_set(async {
        let (mut shop, _authz, running) = guarded().await;
        let at = |address: SocketAddr, more: &str| {
            format!(
                "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: reviews-writes, namespace: shop }}\n\
                 spec:\n  targetRefs: [{{ kind: Service, name: reviews }}]\n  action: External\n  \
                 external: {{ address: \"{address}\", timeout: 2s{more} }}\n  rules: [{{}}]\n"
            )
        };
        shop.apply(&at(running.address, ""));
        for verdict in ["slow", "broken"] {
            let answer = ask(&shop, "GET", &[("x-verdict", verdict)]).await;
            let said = (answer.status.as_u16(), answer.header("x-hanse-reason"));
            assert_eq!(said, (403, "authorizer-silent"), "{verdict}");
        }
        assert_eq!(ask(&shop, "GET", &[("x-verdict", "yes")]).await.status, StatusCode::OK);

        // Only what it may be told.
        shop.apply(&at(running.address, ", allowedHeaders: [X-Verdict]"));
        assert_eq!(ask(&shop, "GET", &[("x-verdict", "yes"), ("x-other", "1")]).await.status, StatusCode::OK);
        let told = running.authorizer.told.lock().unwrap().pop().unwrap();
        assert_eq!(http_of(&told).headers.keys().collect::<Vec<_>>(), ["x-verdict"]);

        // Gone.
        shop.apply(&at(running.address, ""));
        let address = running.address;
        drop(running.stay);
        until("an authorizer that is gone lets nobody in", async || {
            ask(&shop, "GET", &[("x-verdict", "yes")]).await.status == StatusCode::FORBIDDEN
        })
        .await;
        assert!(counted(&shop, "failed") && !counted(&shop, "failed-open"));
        shop.apply(&at(address, ", failOpen: true"));
        let answer = ask(&shop, "GET", &[("x-user", "ann")]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(counted(&shop, "failed-open"));

        // One that is there and writes what it may not is not away.
        let again = Running::start().await;
        shop.apply(&at(again.address, ", failOpen: true"));
        assert_eq!(ask(&shop, "GET", &[("x-verdict", "forge")]).await.status, StatusCode::FORBIDDEN);
        // Nor is one that says no in words of gRPC, that it failed, or that it is asked too much: a request could bring that about.
        for verdict in ["broken", "busy", "refuse"] {
            let answer = ask(&shop, "GET", &[("x-verdict", verdict)]).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{verdict}");
        }
    });
}

/// An authorizer that takes every question and resets its stream.
async fn resetting() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = hyper::service::service_fn(|_: Request<hyper::body::Incoming>| async {
                Err::<http::Response<Full<Bytes>>, _>(std::io::Error::other("no"))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let served = hyper::server::conn::http2::Builder::new(crate::runtime::worker::LocalExecutor)
                .serve_connection(io, answer);
            tokio::task::spawn_local(async move { drop(served.await) });
        }
    });
    address
}

#[test]
fn one_that_resets_is_there_and_opens_nothing() {
    on_local_set(async {
        let (mut shop, _authz, _running) = guarded().await;
        let address = resetting().await;
        let behind = Sidecar::start(Some(&shop.east.workload("reset")), &["shop/reset"], Some(address));
        let (id, inbound) = (shop.east.id("reset"), behind.inbound);
        shop.change(|view| {
            add_service(view, "shop/reset", std::slice::from_ref(&id), None);
            add_endpoint(view, "reset-1", "shop/reset", &id, inbound);
        });
        behind.publish(&shop.view);
        for whom in [format!("address: \"{address}\""), "backendRef: { name: reset }".to_owned()] {
            shop.apply(&format!(
                "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{ name: reviews-writes, namespace: shop }}\n\
                 spec:\n  targetRefs: [{{ kind: Service, name: reviews }}]\n  action: External\n  \
                 external: {{ {whom}, timeout: 5s, failOpen: true }}\n  rules: [{{}}]\n"
            ));
            let answer = ask(&shop, "GET", &[]).await;
            let said = (answer.status.as_u16(), answer.header("x-hanse-reason"));
            assert_eq!(said, (403, "authorizer-silent"), "{whom}");
        }
        assert!(counted(&shop, "failed") && !counted(&shop, "failed-open"));
    });
}

#[test]
fn an_upgrade_is_asked_about_too() {
    on_local_set(async {
        let (shop, _authz, running) = guarded().await;
        let mut shop = shop;
        shop.apply(
            "apiVersion: hanse.dev/v1alpha1\nkind: AccessPolicy\nmetadata: { name: reviews-writes, namespace: shop }\n\
             spec:\n  targetRefs: [{ kind: Service, name: reviews }]\n  action: External\n  \
             external: { backendRef: { name: authz }, timeout: 5s }\n  rules: [{}]\n",
        );
        let before = running.asked();
        let mut stream = TcpStream::connect(shop.product.outbound).await.unwrap();
        let ask =
            "GET /x HTTP/1.1\r\nHost: reviews.shop\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = upgrade::read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
        assert_eq!(running.asked(), before + 1);
        // A no that is called 200 opens nothing.
        let mut stream = TcpStream::connect(shop.product.outbound).await.unwrap();
        let ask = ask.replace("Host", "X-Verdict: 200\r\nHost");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = upgrade::read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    });
}
