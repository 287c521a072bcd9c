//! Whether the app behind this proxy is well: that it takes connections, and what active checks say. Each proxy checks its
//! own app only; what it finds is announced as readiness, so that nobody else has to ask.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use hanse_federation::policy::document::active::ActiveCheck;
use hanse_identity::ServiceName;
use http::{Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::app::APP_CONNECT_TIMEOUT;
use crate::check::{Checked, wanted};
use crate::runtime::Plane;
use crate::runtime::drain::Stop;
use crate::runtime::telemetry::CheckLabels;

/// How often it is looked whether the app takes connections.
const APP_CHECK_EVERY: Duration = Duration::from_millis(500);
const USER_AGENT: &str = "hanse-health-check";
const GRPC_PATH: &str = "/grpc.health.v1.Health/Check";
/// `ServingStatus.SERVING`.
const SERVING: i32 = 1;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Looks after the app, and says when it becomes ready, or ceases to be. Nothing is ready before there is a View: only that
/// says what is to be checked.
pub async fn watch_app(
    address: SocketAddr,
    plane: Arc<Plane>,
    services: Arc<BTreeSet<ServiceName>>,
    ready: watch::Sender<bool>,
    mut stop: Stop,
) {
    let mut revisions = plane.knowledge.revisions();
    let mut checks: Vec<(Checked, Instant)> = Vec::new();
    loop {
        let connected = tokio::time::timeout(APP_CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let connected = matches!(connected, Ok(Ok(_)));
        let view = plane.knowledge.view();
        if let Some(view) = &view {
            let was_ready = *ready.borrow();
            let mut held = std::mem::take(&mut checks);
            checks = wanted(view, &services)
                .into_iter()
                .map(|check| match held.iter().position(|(held, _)| held.check == check) {
                    Some(index) => held.swap_remove(index),
                    None => (Checked::new(check, was_ready), Instant::now()),
                })
                .collect();
        }
        let due = checks.iter_mut().filter(|(_, next)| *next <= Instant::now());
        let run_all = join_all(due.map(|(checked, next)| async {
            run(&plane, address, checked).await;
            *next = Instant::now() + checked.pause(APP_CHECK_EVERY);
        }));
        tokio::select! {
            () = stop.ended() => return,
            _ = run_all => {}
        }
        let up = connected && view.is_some() && checks.iter().all(|(checked, _)| checked.is_up());
        plane.telemetry.app_ready.set(i64::from(up));
        ready.send_if_modified(|ready| std::mem::replace(ready, up) != up);
        let next = checks.iter().map(|(_, next)| *next).min();
        let wake =
            next.map_or(Instant::now() + APP_CHECK_EVERY, |next| next.min(Instant::now() + APP_CHECK_EVERY));
        tokio::select! {
            () = stop.ended() => return,
            () = tokio::time::sleep_until(wake) => {}
            Ok(()) = revisions.changed(), if view.is_none() => {}
        }
    }
}

async fn run(plane: &Plane, address: SocketAddr, checked: &mut Checked) {
    let (kind, timeout) = (kind(&checked.check), checked.timeout());
    let probed = tokio::time::timeout(timeout, probe(address, &checked.check)).await;
    let outcome = probed.unwrap_or_else(|_| Err(format!("no answer in {timeout:?}")));
    let passed = outcome.is_ok();
    let labels = CheckLabels { kind, outcome: if passed { "passed" } else { "failed" } };
    plane.telemetry.checks.get_or_create(&labels).inc();
    let turned = checked.saw(passed);
    match outcome {
        Ok(()) if turned => tracing::info!(kind, "the app passes its checks"),
        Ok(()) => {}
        Err(why) if turned => tracing::warn!(kind, "the app fails its checks: {why}"),
        Err(why) => tracing::debug!(kind, "a check of the app has failed: {why}"),
    }
}

fn kind(check: &ActiveCheck) -> &'static str {
    match (&check.http, &check.grpc) {
        (Some(_), _) => "http",
        (None, Some(_)) => "grpc",
        (None, None) => "tcp",
    }
}

/// One check; why it failed.
async fn probe(address: SocketAddr, check: &ActiveCheck) -> Result<(), String> {
    if let Some(http) = &check.http {
        return probe_http(address, &http.path).await;
    }
    if let Some(grpc) = &check.grpc {
        return probe_grpc(address, grpc.service.clone().unwrap_or_default()).await;
    }
    TcpStream::connect(address).await.map(drop).map_err(|e| e.to_string())
}

/// On a connection of its own, so that what is checked is not what happened to be open.
async fn probe_http(address: SocketAddr, path: &str) -> Result<(), String> {
    let path = if path.is_empty() { "/" } else { path };
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let tcp = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    // Ended with this future: the body is of no interest.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    match sender.send_request(request).await.map_err(|e| e.to_string())?.status() {
        status if status.is_success() || status.is_redirection() => Ok(()),
        status => Err(format!("it answered {status}")),
    }
}

async fn probe_grpc(address: SocketAddr, service: String) -> Result<(), String> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
    let channel = endpoint.map_err(|e| e.to_string())?.connect().await.map_err(|e| e.to_string())?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| e.to_string())?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let request = tonic::Request::new(HealthCheckRequest { service });
    let answer = client.unary(request, http::uri::PathAndQuery::from_static(GRPC_PATH), codec).await;
    match answer.map_err(|status| status.to_string())?.into_inner().status {
        SERVING => Ok(()),
        other => Err(format!("its status is {other}, not SERVING")),
    }
}
