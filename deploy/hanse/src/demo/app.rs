//! The demo's app: one small HTTP server that is productpage, reviews, ratings or details, as its flags say.
//!
//! It calls the services it depends on through its own proxy's outbound listener and answers JSON that says
//! which instance, version and cluster served each part, and whom each part saw as its caller. Any path is
//! answered alike; `/health`, `/slow?ms=`, `/stream?seconds=` and `/status/<code>` are for tests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::client::Client;

/// How long an app waits for one of the services it depends on.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest `/slow` and `/stream`.
const MAX_SECONDS: u64 = 600;
/// Pace of `/stream`.
const STREAM_PACE: Duration = Duration::from_millis(100);

/// One instance of one of the demo's services.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Name of the service, such as reviews
    #[arg(long)]
    pub service: String,
    /// Name of this instance, such as reviews-v1-1
    #[arg(long)]
    pub instance: String,
    /// Version that this instance says it is
    #[arg(long, default_value = "v1")]
    pub version: String,
    /// Cluster that this instance says it is in
    #[arg(long)]
    pub cluster: String,
    /// Address to listen on
    #[arg(long)]
    pub listen: SocketAddr,
    /// Outbound listener of the proxy beside this app
    #[arg(long)]
    pub outbound: SocketAddr,
    /// Service of namespace shop that this app calls for every request (repeatable)
    #[arg(long = "call")]
    pub calls: Vec<String>,
}

/// What one instance answers, its own dependencies nested.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    pub service: String,
    pub instance: String,
    pub version: String,
    pub cluster: String,
    /// SPIFFE ID of the caller, from `x-forwarded-client-cert` as the proxy beside this app wrote it.
    #[serde(default)]
    pub caller_seen: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Services that could not be had, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl Part {
    /// Whether everything below is there too.
    pub fn complete(&self) -> bool {
        self.missing.is_empty() && self.parts.iter().all(Part::complete)
    }

    /// The part of that service, here or below.
    pub fn find(&self, service: &str) -> Option<&Part> {
        if self.service == service {
            return Some(self);
        }
        self.parts.iter().find_map(|p| p.find(service))
    }
}

type Body = BoxBody<Bytes, Infallible>;

/// Runs until SIGTERM or SIGINT.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            served = serve(config) => served,
            () = super::signals::terminated() => Ok(()),
        }
    })
}

/// Accepts and answers until dropped.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.listen).await?;
    tracing::info!(instance = config.instance, listen = %config.listen, "app serves");
    let config = std::sync::Arc::new(config);
    let client = Client::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors: the others need a moment to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (config, client) = (config.clone(), client.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let (config, client) = (config.clone(), client.clone());
                async move { Ok::<_, Infallible>(answer(&config, &client, request).await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(config: &Config, client: &Client, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let number = |name: &str| query_number(request.uri().query().unwrap_or_default(), name);
    if path == "/health" {
        return text(StatusCode::OK, "ok\n");
    }
    if path == "/slow" {
        let wait = Duration::from_millis(number("ms").unwrap_or(1000).min(MAX_SECONDS * 1000));
        tokio::time::sleep(wait).await;
    }
    if path == "/stream" {
        return stream(config, number("seconds").unwrap_or(10).min(MAX_SECONDS));
    }
    if let Some(code) = path.strip_prefix("/status/") {
        let code = code.parse().ok().and_then(|c| StatusCode::from_u16(c).ok());
        return text(code.unwrap_or(StatusCode::BAD_REQUEST), "as asked\n");
    }
    let part = compose(config, client, &request).await;
    let json = serde_json::to_vec(&part).expect("a Part has string keys only");
    let mut response = Response::new(Full::new(Bytes::from(json)).boxed());
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Calls what this app depends on, all at once, and puts the answers together.
async fn compose(config: &Config, client: &Client, request: &Request<Incoming>) -> Part {
    let seen = request.headers().get("x-forwarded-client-cert").and_then(|v| v.to_str().ok());
    let mut part = Part {
        service: config.service.clone(),
        instance: config.instance.clone(),
        version: config.version.clone(),
        cluster: config.cluster.clone(),
        caller_seen: seen.map(caller_uri).unwrap_or_default(),
        ..Part::default()
    };
    let calls = config.calls.iter().map(|service| call(config, client, service));
    for (service, result) in config.calls.iter().zip(futures_util::future::join_all(calls).await) {
        match result {
            Ok(below) => part.parts.push(below),
            Err(why) => part.missing.push(format!("{service}: {why}")),
        }
    }
    part
}

async fn call(config: &Config, client: &Client, service: &str) -> Result<Part, String> {
    let host = super::spec::host(service);
    let answer = client.get(config.outbound, &host, "/", CALL_TIMEOUT).await.map_err(|e| e.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("{} {}", answer.status.as_u16(), answer.header("x-hanse-reason")));
    }
    serde_json::from_slice(&answer.body).map_err(|e| format!("unreadable answer: {e}"))
}

/// A body that trickles: a line every 100 ms, for as long as was asked.
fn stream(config: &Config, seconds: u64) -> Response<Body> {
    let lines = seconds * 1000 / STREAM_PACE.as_millis() as u64;
    let instance = config.instance.clone();
    let body = futures_util::stream::iter(0..lines).then(move |n| {
        let line = format!("{n} {instance}\n");
        async move {
            tokio::time::sleep(STREAM_PACE).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
        }
    });
    Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(body)))))
}

/// `BoxBody` wants Sync, which a stream of futures that only one task polls need not be by itself.
struct SyncStream<S>(std::pin::Pin<Box<S>>);

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *response.status_mut() = status;
    response
}

fn query_number(query: &str, name: &str) -> Option<u64> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).and_then(|v| v.parse().ok())
}

/// The `URI=` of Envoy's header; the last element is the nearest caller.
pub fn caller_uri(header: &str) -> String {
    let nearest = header.rsplit(',').next().unwrap_or_default();
    let uri = nearest.split(';').find_map(|field| field.trim().strip_prefix("URI="));
    uri.unwrap_or_default().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_caller_is_read() {
        let header = "By=spiffe://e/a;Hash=00;URI=spiffe://e/far,By=spiffe://e/b;Hash=11;URI=spiffe://e/near";
        assert_eq!(caller_uri(header), "spiffe://e/near");
        assert_eq!(caller_uri("By=spiffe://e/a"), "");
    }

    #[test]
    fn a_missing_part_far_below_is_noticed() {
        let ratings = Part { missing: vec!["x".into()], service: "ratings".into(), ..Part::default() };
        let page = Part {
            service: "productpage".into(),
            parts: vec![Part { service: "reviews".into(), parts: vec![ratings], ..Part::default() }],
            ..Part::default()
        };
        assert!(!page.complete());
        assert_eq!(page.find("ratings").map(|p| p.missing.len()), Some(1));
        assert!(page.find("details").is_none());
    }

    #[test]
    fn query_numbers_are_found_by_their_whole_name() {
        assert_eq!(query_number("a=1&ms=250", "ms"), Some(250));
        assert_eq!(query_number("items=3", "ms"), None);
    }
}
