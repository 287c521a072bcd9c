//! The agent's admin HTTP: health, metrics, and what is held. Loopback only, never a key.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hanse_identity::crl::with_crls;
use hanse_identity::{KeyId, TrustDomain};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::control_link::ControlLink;
use super::svids::Holding;
use super::{Shared, View, now, sds, stopped, workload_api};

/// Admin connections at once.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What the pages are made from.
pub struct Admin {
    pub shared: Arc<Shared>,
    pub link: Arc<ControlLink>,
}

/// Serves until shutdown.
pub async fn serve(admin: Arc<Admin>, listener: TcpListener) {
    let mut shutdown = admin.shared.shutdown.clone();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut shutdown) => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = admin.answer(request.method(), request.uri().path());
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
        });
    }
}

impl Admin {
    /// One page.
    pub fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET {
            return page(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned());
        }
        match path {
            "/healthz" => page(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" => match self.not_ready() {
                None => page(StatusCode::OK, "text/plain", "ready\n".to_owned()),
                Some(why) => page(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{why}\n")),
            },
            "/metrics" => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                page(StatusCode::OK, kind, self.metrics())
            }
            "/entries" => page(StatusCode::OK, "application/json", format!("{:#}\n", self.entries())),
            _ => page(StatusCode::NOT_FOUND, "text/plain", "/healthz /readyz /metrics /entries\n".to_owned()),
        }
    }

    fn not_ready(&self) -> Option<String> {
        let view = self.shared.view.borrow();
        let why = if let Some(trouble) = self.link.trouble() {
            return Some(trouble);
        } else if self.link.own_revoked() {
            "the agent's own identity is revoked"
        } else if view.trust_domain.is_none() {
            "not joined"
        } else if view.state.is_none() {
            "no state from a control node yet"
        } else if self.link.own_not_after() <= now() {
            "the agent's own SVID has expired"
        } else {
            return None;
        };
        Some(why.to_owned())
    }

    fn metrics(&self) -> String {
        let metrics = &self.shared.metrics;
        let held = self.shared.svids.list();
        let ends = held.iter().filter_map(|row| match &row.holding {
            Holding::Ready(svid) => Some(svid.facts.not_after.seconds()),
            _ => None,
        });
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.min_not_after.set(ends.min().map_or(0, |end| i64::try_from(end).unwrap_or(i64::MAX)));
        metrics.svids_held.set(count(held.len()));
        metrics.sds_streams.set(count(self.shared.streams.count(sds::KIND)));
        let revision = self.shared.view.borrow().state.as_ref().map_or(0, |s| s.revision);
        let sds = self.shared.streams.sds(revision);
        metrics.sds_behind.set(i64::from(sds.subscribers - sds.acknowledged));
        metrics.sds_rejecting.set(i64::from(sds.rejected));
        metrics.workload_api_streams.set(count(self.shared.streams.count(workload_api::KIND)));
        metrics.must_join_anew.set(i64::from(self.link.trouble().is_some()));
        metrics.own_not_after.set(i64::try_from(self.link.own_not_after().seconds()).unwrap_or(i64::MAX));
        metrics.to_text()
    }

    fn entries(&self) -> serde_json::Value {
        let view = self.shared.view.borrow().clone();
        let held = self.shared.svids.list().into_iter().map(|row| {
            let (serial, not_after, problem) = match &row.holding {
                Holding::Ready(svid) => {
                    (Some(svid.facts.serial.to_string()), Some(svid.facts.not_after.to_string()), None)
                }
                Holding::Pending(error) => (None, None, error.as_ref().map(ToString::to_string)),
                Holding::Denied(denial) => (None, None, Some(denial.to_string())),
            };
            json!({
                "spiffeId": row.key.id, "pid": row.key.process.pid, "uid": row.uid, "streams": row.leases,
                "serial": serial, "notAfter": not_after, "problem": problem,
            })
        });
        let subscribers = self.shared.streams.list().into_iter().map(|row| {
            let rejected =
                row.rejection.map(|r| json!({ "names": r.names, "version": r.version, "why": r.detail }));
            json!({
                "kind": row.kind, "caller": format!("pid {} uid {}", row.process.pid, row.uid),
                "revision": row.revision, "rejected": rejected,
            })
        });
        let revision = view.state.as_ref().map(|s| s.revision);
        let sds = self.shared.streams.sds(revision.unwrap_or(0));
        json!({
            "agent": self.shared.name,
            "trustDomain": view.trust_domain,
            "revision": revision,
            "sds": {
                "subscribers": sds.subscribers, "acknowledged": sds.acknowledged, "rejected": sds.rejected,
            },
            "crlsWithheld": withheld(&view),
            "connected": self.link.connected(),
            "mustJoinAnew": self.link.trouble(),
            "ownNotAfter": self.link.own_not_after().to_string(),
            "registrations": view.state.as_ref().map(|s| s.registrations.clone()).unwrap_or_default(),
            "held": held.collect::<Vec<_>>(),
            "subscribers": subscribers.collect::<Vec<_>>(),
        })
    }
}

/// Trust domains whose revocation lists go to nobody, and the authorities whose missing list is the reason.
fn withheld(view: &View) -> BTreeMap<&TrustDomain, Vec<KeyId>> {
    let Some(state) = &view.state else { return BTreeMap::new() };
    let missing = state.bundles.iter().map(|bundle| {
        let trust_domain = &bundle.trust_domain;
        (trust_domain, with_crls(bundle, state.crls.get(trust_domain)).missing)
    });
    missing.filter(|(_, keys)| !keys.is_empty()).collect()
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
