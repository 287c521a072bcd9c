//! The node's plain HTTP port, for loopback: health, readiness, metrics, status. No secret and no write is here.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use hanse_identity::Timestamp;
use hanse_identity::tls::IdentitySource as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::context::{Context, VERSION, now, stopped};

/// Connections at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may last.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// What this process has counted since it started.
#[derive(Default)]
pub struct Metrics {
    pub svid_issued: Counter,
    pub jwt_issued: Counter,
    pub signings_refused: Counter,
    pub denied: Counter,
    pub handshakes_failed: Counter,
    pub floods: Counter,
    pub connections_cut: Counter,
    pub bundles_served: Counter,
    pub stranger_fetches_failed: Counter,
    pub issuer_fetches_failed: Counter,
}

/// Serves until the node stops.
pub async fn serve(context: Arc<Context>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut stop = context.stop.clone();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let context = context.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&context, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(tcp), service);
            // How a client ends its connection is its own business.
            let _ = tokio::time::timeout(CONNECTION_LIFETIME, connection).await;
            drop(place);
        });
    }
}

fn answer(context: &Context, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match unready(context) {
            None => text(StatusCode::OK, "ok\n".to_owned()),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => metrics(context),
        "/status" => status(context),
        _ => text(StatusCode::NOT_FOUND, "known: /healthz /readyz /metrics /status\n".to_owned()),
    }
}

/// Why the node is not ready, if it is not.
pub fn unready(context: &Context) -> Option<String> {
    if context.handle.status().leader.is_none() {
        return Some("the cluster has no leader that this node knows of".to_owned());
    }
    if let Some(why) = context.handle.clock().contradiction() {
        return Some(format!("{why}: this node signs nothing"));
    }
    match context.own.identity() {
        Some(own) if own.facts.not_after > now() => None,
        _ => Some("the node has no valid SVID".to_owned()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn status(context: &Context) -> Response<Full<Bytes>> {
    let state = context.handle.state();
    let now = now();
    let body = json!({
        "cluster": context.cluster,
        "trustDomain": context.trust_domain,
        "node": context.name,
        "version": VERSION,
        "raft": context.handle.status(),
        "revision": state.view.revision,
        "svidNotAfter": context.own.identity().map(|own| own.facts.not_after),
        "ready": unready(context).is_none(),
        "subscribers": context.census.subscribers(now),
        "peers": context.peers.reports(now),
        "services": state.view.services.len(),
        "endpoints": state.view.endpoints.len(),
        "gateways": state.view.gateways.len(),
        "policies": state.view.policies.len(),
        "issuers": context.issuers.reports(),
        "revocations": state.view.revocations.len(),
    });
    respond(StatusCode::OK, "application/json", format!("{body:#}\n"))
}

fn metrics(context: &Context) -> Response<Full<Bytes>> {
    let mut registry = Registry::with_prefix("hanse");
    raft_metrics(context, &mut registry);
    registry_metrics(context, &mut registry);
    let counters = &context.metrics;
    registry.register("svid_issued", "SVIDs signed by this node", counters.svid_issued.clone());
    registry.register("jwt_issued", "JWT-SVIDs signed by this node", counters.jwt_issued.clone());
    registry.register(
        "signings_refused",
        "Certificates and tokens that were not signed because this node's clock is contradicted",
        counters.signings_refused.clone(),
    );
    registry.register("joins_refused", "Joins that were tried too often", context.joining.refused.clone());
    registry.register("requests_denied", "Requests that the role table denied", counters.denied.clone());
    registry.register("handshakes_failed", "TLS handshakes that failed", counters.handshakes_failed.clone());
    registry.register(
        "http2_floods",
        "Connections closed for flooding HTTP/2 frames",
        counters.floods.clone(),
    );
    registry.register(
        "connections_cut",
        "Connections whose caller was no longer believed",
        counters.connections_cut.clone(),
    );
    registry.register(
        "bundles_served",
        "Own bundles that the bundle endpoint handed out",
        counters.bundles_served.clone(),
    );
    registry.register(
        "foreign_bundle_fetches_failed",
        "Fetches of foreign trust domains' bundles that came to nothing",
        counters.stranger_fetches_failed.clone(),
    );
    registry.register(
        "issuer_key_fetches_failed",
        "Fetches of end users' issuers' keys that came to nothing",
        counters.issuer_fetches_failed.clone(),
    );
    let mut body = String::new();
    match encode(&mut body, &registry) {
        Ok(()) => respond(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<u64, AtomicU64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn raft_metrics(context: &Context, registry: &mut Registry) {
    let raft = context.handle.status();
    for (name, help, value) in [
        ("raft_is_leader", "Whether this node leads", u64::from(raft.is_leader)),
        ("raft_has_leader", "Whether this node knows a leader", u64::from(raft.leader.is_some())),
        ("raft_term", "Raft term", raft.term),
        ("raft_commit_index", "Highest committed log index known", raft.commit),
        ("raft_applied_index", "Highest applied log index", raft.applied),
        ("raft_first_index", "Lowest log index kept", raft.first_index),
        ("raft_snapshot_index", "Log index of the newest snapshot", raft.snapshot_index),
        (
            "raft_followers_heard",
            "On the leader: followers heard recently",
            raft.followers.iter().filter(|(_, _, heard)| *heard).count() as u64,
        ),
    ] {
        gauge(registry, name, help, value);
    }
}

/// How long ago the last fetch was that went well, of the set where that is longest, or the first one where none did; 0
/// where nothing is fetched.
fn oldest_keys(context: &Context, now: Timestamp) -> u64 {
    if !context.handle.status().is_leader {
        return 0;
    }
    context.issuers.oldest(now).as_secs()
}

fn registry_metrics(context: &Context, registry: &mut Registry) {
    let state = context.handle.state();
    let view = &state.view;
    let now = now();
    let subscribers = context.census.subscribers(now);
    let links = context.peers.reports(now);
    let connected = links.iter().filter(|l| l.link == hanse_federation::lease::Link::Connected).count();
    let left = context.own.identity().map_or(0, |own| own.facts.not_after.left(now).as_secs());
    for (name, help, value) in [
        ("view_revision", "Revision of the View", view.revision.0),
        ("services", "Services of this cluster", view.services.len() as u64),
        ("endpoints", "Endpoints of this cluster", view.endpoints.len() as u64),
        ("endpoints_ready", "Ready endpoints", view.endpoints.values().filter(|e| e.ready).count() as u64),
        ("gateways", "Gateways of this cluster", view.gateways.len() as u64),
        ("policies", "Policy documents", view.policies.len() as u64),
        (
            "issuer_key_sets",
            "Key sets of end users' issuers that were fetched",
            view.issuer_keys.len() as u64,
        ),
        (
            "issuer_keys_age_seconds",
            "Since the oldest key set of an issuer was last confirmed, or first tried, on the node that fetches",
            oldest_keys(context, now),
        ),
        ("revocations", "Revocations in force", view.revocations.len() as u64),
        ("registrations", "Workload registrations", state.private.registrations.len() as u64),
        ("agents", "Agents that have joined", state.private.agents.len() as u64),
        (
            "subscribers",
            "Subscribers with a stream to this node",
            subscribers.iter().filter(|s| s.connected).count() as u64,
        ),
        ("foreign_trust_domains", "Foreign trust domains", state.private.strangers.len() as u64),
        ("peers", "Joined clusters", view.peers.len() as u64),
        ("peers_connected", "Joined clusters that this node hears", connected as u64),
        (
            "import_refusals",
            "Facts of peers that the import filter refused since start",
            context.peers.refused(),
        ),
        ("own_svid_seconds_left", "Seconds until this node's own SVID ends", left),
        (
            "clocks_known",
            "Other nodes whose clocks are compared with this one",
            context.handle.clock().known() as u64,
        ),
        (
            "clock_skew_milliseconds",
            "Difference from the other node's clock that differs most",
            u64::try_from(context.handle.clock().skew().as_millis()).unwrap_or(u64::MAX),
        ),
        (
            "clock_contradicted",
            "Whether more than half of the nodes contradict this node's clock: it signs nothing then",
            u64::from(context.handle.clock().contradiction().is_some()),
        ),
    ] {
        gauge(registry, name, help, value);
    }
}
