//! Tests of traces: what the app at the far end of two proxies is told, and what a collector gets.

use futures_util::future::BoxFuture;
use hanse_federation::Locality;
use tokio::sync::mpsc;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic_prost::ProstCodec;

use super::access::policy;
use super::world::*;
use super::{REVIEWS, Shop};
use crate::runtime::Plane;
use crate::runtime::access_log::Entry;
use crate::runtime::spans::wire::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, Span, SpanKind, Value,
};
use crate::runtime::spans::{Collector as At, Finished, Spans};
use crate::trace::{Sampling, Trace};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A shop whose proxies both record spans.
async fn traced_shop(sampling: &str) -> Shop {
    let mut shop = Shop::open().await;
    let plane = || Plane::new("traced".parse().unwrap(), Locality::default());
    let plane = || plane().with_sampling(Some(sampling.parse().unwrap()));
    let app = shop.app.as_ref().map(|app| app.address);
    let (product, reviews) = (shop.east.workload("productpage"), shop.east.workload("reviews"));
    shop.product = Sidecar::start_on(plane(), Some(&product), &[], None, &[], &[]);
    shop.reviews = Sidecar::start_on(plane(), Some(&reviews), &["shop/reviews"], app, &[], &[]);
    let (id, inbound) = (shop.east.id("reviews"), shop.reviews.inbound);
    shop.change(|view| {
        view.endpoints.clear();
        add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound);
    });
    shop
}

fn told(answer: &Answer, name: &str) -> String {
    answer.seen()["headers"][name].as_str().unwrap_or_default().to_owned()
}

#[test]
fn without_sampling_a_trace_is_passed_on_and_nonsense_is_not() {
    on_local_set(async {
        let mut shop = Shop::open().await;
        let mut request = get(REVIEWS);
        request.headers_mut().insert("traceparent", PARENT.parse().unwrap());
        request.headers_mut().insert("tracestate", "shop=1".parse().unwrap());
        request.headers_mut().insert("b3", "nonsense".parse().unwrap());
        let answer = shop.product.request(request).await;
        assert_eq!(told(&answer, "traceparent"), PARENT);
        assert_eq!((told(&answer, "tracestate"), told(&answer, "b3")), ("shop=1".to_owned(), String::new()));
        for sidecar in [&mut shop.product, &mut shop.reviews] {
            let logged = sidecar.logged().await;
            assert_eq!(logged.trace_id.to_string(), PARENT[3..35]);
            assert_eq!(logged.span_id.to_string(), PARENT[36..52]);
        }
        assert_eq!(told(&shop.product.get(REVIEWS).await, "traceparent"), "", "nothing begins");
        assert_eq!(shop.product.logged().await.trace_id, Default::default());
    });
}

#[test]
fn each_proxy_that_records_spans_is_the_parent_of_the_next() {
    on_local_set(async {
        let mut shop = traced_shop("100").await;
        let mut request = get(REVIEWS);
        request.headers_mut().insert("x-b3-traceid", PARENT[3..35].parse().unwrap());
        request.headers_mut().insert("x-b3-spanid", PARENT[36..52].parse().unwrap());
        let answer = shop.product.request(request).await;
        let (client, server) = (shop.product.logged().await, shop.reviews.logged().await);
        assert_eq!(client.trace_id.to_string(), PARENT[3..35]);
        assert_eq!(server.trace_id, client.trace_id);
        assert_ne!(server.span_id, client.span_id);
        let expected = format!("00-{}-{}-01", client.trace_id, server.span_id);
        assert_eq!(told(&answer, "traceparent"), expected);
        assert_eq!(told(&answer, "x-b3-spanid"), server.span_id.to_string());
        assert_eq!(told(&answer, "x-b3-parentspanid"), client.span_id.to_string());

        // Where there is none, one begins at the first proxy, and the second keeps to its decision.
        let answer = shop.product.get(REVIEWS).await;
        let (client, server) = (shop.product.logged().await, shop.reviews.logged().await);
        assert_ne!(client.trace_id, Default::default());
        assert_eq!(server.trace_id, client.trace_id);
        assert_eq!(told(&answer, "traceparent"), format!("00-{}-{}-01", client.trace_id, server.span_id));
    });
}

/// The smallest collector that there is.
#[derive(Clone)]
struct Collector(mpsc::UnboundedSender<Span>);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl tower::Service<http::Request<tonic::body::Body>> for Collector {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(this, request).await) })
    }
}

impl UnaryService<ExportTraceServiceRequest> for Collector {
    type Response = ExportTraceServiceResponse;
    type Future = std::future::Ready<Result<tonic::Response<Self::Response>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<ExportTraceServiceRequest>) -> Self::Future {
        for resource in request.into_inner().resource_spans {
            let named = resource.resource.unwrap_or_default().attributes;
            for mut span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                span.attributes.extend(named.clone());
                let _ = self.0.send(span);
            }
        }
        std::future::ready(Ok(tonic::Response::new(ExportTraceServiceResponse::default())))
    }
}

/// One that runs, where it is, and what it gets.
async fn collector() -> (At, mpsc::UnboundedReceiver<Span>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (spans, got) = mpsc::unbounded_channel();
    let collector = tonic::transport::Server::builder()
        .add_service(Collector(spans))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::task::spawn_local(collector);
    (at, got)
}

fn attribute<'s>(span: &'s Span, key: &str) -> &'s Value {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = found.unwrap_or_else(|| panic!("{key} is not among {:?}", span.attributes));
    value.value.as_ref().unwrap().value.as_ref().unwrap()
}

fn text(span: &Span, key: &str) -> String {
    match attribute(span, key) {
        Value::StringValue(text) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn a_collector_gets_the_spans_of_both_proxies_as_one_trace() {
    on_local_set(async {
        let (at, mut got) = collector().await;
        let mut shop = Shop::open().await;
        // No trace that begins here is sampled: what is exported, somebody else has asked for, or it has failed.
        let plane = |name: &str| {
            let plane = Plane::new(name.parse().unwrap(), Locality::default());
            let (spans, exporter) = Spans::start(&at, &plane).unwrap();
            (plane.with_sampling(Some("0".parse().unwrap())).with_spans(spans), exporter)
        };
        let app = shop.app.as_ref().map(|app| app.address);
        let (product, reviews) = (shop.east.workload("productpage"), shop.east.workload("reviews"));
        let (client_plane, _client_exporter) = plane("product-1");
        let (server_plane, _server_exporter) = plane("reviews-1");
        shop.product = Sidecar::start_on(client_plane, Some(&product), &[], None, &[], &[]);
        let services = &["shop/reviews"];
        shop.reviews = Sidecar::start_on(server_plane, Some(&reviews), services, app, &[], &[]);
        let (id, inbound) = (shop.east.id("reviews"), shop.reviews.inbound);
        shop.change(|view| {
            view.endpoints.clear();
            add_endpoint(view, "reviews-1", "shop/reviews", &id, inbound);
        });
        shop.apply(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: all, namespace: shop }\n\
             spec:\n  parentRefs: [{ kind: Service, name: reviews }]\n  rules:\n  \
             - { backendRefs: [{ group: multicluster.x-k8s.io, kind: ServiceImport, name: reviews }] }\n",
        );
        shop.apply(&policy("readers", "Allow", "[{ name: shop, from: { namespaces: [shop] } }]"));

        assert_eq!(shop.product.get(REVIEWS).await.status, http::StatusCode::OK);
        let mut request = get(REVIEWS);
        request.headers_mut().insert("traceparent", PARENT.parse().unwrap());
        assert_eq!(shop.product.request(request).await.status, http::StatusCode::OK);
        let mut both = [got.recv().await.unwrap(), got.recv().await.unwrap()];
        both.sort_by_key(|span| span.kind != i32::from(SpanKind::Client));
        let [client, server] = &both;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            (hex(&client.trace_id), hex(&client.parent_span_id)),
            (PARENT[3..35].into(), PARENT[36..52].into())
        );
        assert_eq!((&server.trace_id, &server.parent_span_id), (&client.trace_id, &client.span_id));
        assert_eq!(server.kind, i32::from(SpanKind::Server));
        assert!(client.start_time_unix_nano <= server.start_time_unix_nano);
        assert!(client.end_time_unix_nano > client.start_time_unix_nano);
        assert_eq!(text(client, "guid:x-request-id"), text(server, "guid:x-request-id"));
        for (span, name, instance) in [(client, "productpage", "product-1"), (server, "reviews", "reviews-1")]
        {
            assert_eq!(span.name, "GET shop/reviews");
            assert_eq!(
                (text(span, "service.name"), text(span, "service.instance.id")),
                (name.into(), instance.into())
            );
            assert_eq!(text(span, "url.path"), "/x", "without the query");
            assert_eq!(text(span, "mesh.source.spiffe_id"), shop.east.id("productpage").to_string());
            assert_eq!(text(span, "mesh.destination.spiffe_id"), shop.east.id("reviews").to_string());
            assert_eq!(
                (text(span, "mesh.source.cluster"), text(span, "mesh.destination.cluster")),
                ("east".into(), "east".into())
            );
            assert_eq!(text(span, "tls.protocol.version"), "1.3");
            assert_eq!(attribute(span, "http.response.status_code"), &Value::IntValue(200));
            assert_eq!(span.status, None);
        }
        // The route that led there, and the rule that let it in.
        assert_eq!(
            (text(client, "mesh.policy"), text(server, "mesh.policy")),
            ("shop/all".into(), "shop/readers#shop".into())
        );
        assert_eq!(attribute(client, "mesh.failover"), &Value::BoolValue(false));
        assert!(!text(client, "mesh.tier").is_empty());

        // One that fails is told of although nobody asked for it.
        shop.change(|view| view.endpoints.clear());
        assert_eq!(shop.product.get(REVIEWS).await.status, http::StatusCode::SERVICE_UNAVAILABLE);
        let failed = got.recv().await.unwrap();
        assert_eq!((failed.status.as_ref().map(|status| status.code), failed.flags), (Some(2), 0));
        assert_eq!(text(&failed, "mesh.reason"), "no-healthy-endpoint");
        assert_eq!(text(&failed, "mesh.response_flags"), "UH");
        // The collector has it before its answer has come back.
        let metrics = || shop.product.plane.telemetry.to_text();
        until("it is counted", async || metrics().contains("hanse_spans_exported_total 2")).await;
    });
}

/// A span that somebody wants.
fn finished() -> Finished {
    let trace = Trace::begin(&http::HeaderMap::new(), Some(Sampling::ALL), || 7);
    Finished {
        span: *trace.span().unwrap(),
        outbound: true,
        entry: Entry::default(),
        end: std::time::SystemTime::now(),
        duration: std::time::Duration::ZERO,
    }
}

#[test]
fn what_waits_when_the_proxy_ends_is_sent_first() {
    on_local_set(async {
        let (at, mut got) = collector().await;
        let plane = Plane::new("p".parse().unwrap(), Locality::default());
        let (spans, exporter) = Spans::start(&at, &plane).unwrap();
        (0..3).for_each(|_| spans.export(finished));
        until("they wait for others", async || spans.waiting() == 0).await;
        tokio::task::spawn_blocking(move || exporter.close()).await.unwrap();
        for _ in 0..3 {
            got.try_recv().unwrap();
        }
        assert!(plane.telemetry.to_text().contains("hanse_spans_exported_total 3"));
    });
}

#[test]
fn a_collector_that_is_away_costs_spans_and_no_request() {
    on_local_set(async {
        let plane = Plane::new("p".parse().unwrap(), Locality::default());
        let at = closed_port().await;
        let (spans, exporter) = Spans::start(&format!("http://{at}").parse().unwrap(), &plane).unwrap();
        let dropped = |reason: &str| {
            let line = format!("hanse_spans_dropped_total{{reason=\"{reason}\"}}");
            plane.telemetry.to_text().lines().any(|text| text.starts_with(&line))
        };
        let begun = std::time::Instant::now();
        for _ in 0..20_000 {
            spans.export(finished);
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "it waited");
        until("the queue is full", async || dropped("queue")).await;
        until("a batch is given up", async || dropped("collector")).await;
        exporter.close();
    });
}

/// An address of this host that nobody listens on.
async fn closed_port() -> std::net::SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
