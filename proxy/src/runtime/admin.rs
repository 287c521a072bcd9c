//! The admin endpoint: plain HTTP on loopback, read-only. Every role serves /healthz, /readyz, /metrics, /version,
//! /certs, /connections and /config_dump, and adds pages of its own. A private key is never shown: nothing here holds one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::drain::Stop;
use super::{Plane, now};

/// One named condition of readiness.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
}

/// Makes a JSON page when it is asked for.
pub type Page = Box<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

/// What the admin endpoint shows.
pub struct Admin {
    plane: Arc<Plane>,
    checks: Box<dyn Fn() -> Vec<Check> + Send + Sync>,
    pages: BTreeMap<&'static str, Page>,
}

/// Connections that are served at a time.
const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows that `/connections` shows.
const MAX_ROWS: usize = 1000;

impl Admin {
    /// `checks`: the role's own conditions, beside SVID and View.
    pub fn new(plane: Arc<Plane>, checks: impl Fn() -> Vec<Check> + Send + Sync + 'static) -> Self {
        Self { plane, checks: Box::new(checks), pages: BTreeMap::new() }
    }

    /// Adds a JSON page at `path` (with its leading slash).
    pub fn page<F>(mut self, path: &'static str, make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Value> + Send + 'static,
    {
        self.pages.insert(path, Box::new(move || Box::pin(make())));
        self
    }

    /// Every condition of readiness, named.
    pub fn readiness(&self) -> Vec<Check> {
        let svid = match self.plane.credentials.current() {
            Some(current) if now() < current.identity.facts.not_after => {
                Check { name: "svid", ok: true, detail: current.identity.facts.id.to_string() }
            }
            Some(_) => Check { name: "svid", ok: false, detail: "expired".to_owned() },
            None => Check { name: "svid", ok: false, detail: "none from the agent yet".to_owned() },
        };
        let known = self.plane.knowledge.now();
        let detail = match known.view {
            Some(_) => format!("revision {}", known.revision()),
            None => "none from a control node yet".to_owned(),
        };
        let freshness = self.plane.freshness(now());
        let revocations = Check {
            name: "revocations",
            ok: self.plane.staleness.admit(freshness).is_ok(),
            detail: freshness.to_string(),
        };
        let mut checks = vec![svid, Check { name: "view", ok: known.view.is_some(), detail }, revocations];
        checks.extend((self.checks)());
        checks
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
            "/readyz" | "/ready" => self.ready(request.uri().query().unwrap_or_default()),
            "/metrics" | "/stats/prometheus" => metrics(self.plane.telemetry.to_text()),
            "/version" => page(&json!({ "version": env!("CARGO_PKG_VERSION") })),
            "/certs" => page(&self.certs()),
            "/connections" => page(&self.connections()),
            "/config_dump" => page(&self.config()),
            path => match self.pages.get(path) {
                Some(make) => page(&make().await),
                None => text(StatusCode::NOT_FOUND, "no such page\n".to_owned()),
            },
        }
    }

    fn ready(&self, query: &str) -> Response<Full<Bytes>> {
        let checks = self.readiness();
        let ready = checks.iter().all(|c| c.ok);
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let verbose = query.split('&').any(|p| p == "verbose" || p.starts_with("verbose="));
        let line = |c: &Check| format!("[{}] {}: {}\n", if c.ok { "+" } else { "-" }, c.name, c.detail);
        let mut body: String = checks.iter().filter(|c| verbose || !c.ok).map(line).collect();
        body.push_str(if ready { "ready\n" } else { "not ready\n" });
        text(status, body)
    }

    fn certs(&self) -> Value {
        let current = self.plane.credentials.current();
        let facts = current.as_ref().map(|c| &c.identity.facts);
        json!({
            "spiffeId": facts.map(|f| f.id.to_string()),
            "serial": facts.map(|f| f.serial.to_string()),
            "notBefore": facts.map(|f| f.not_before.to_string()),
            "notAfter": facts.map(|f| f.not_after.to_string()),
            "revokedBy": self.plane.knowledge.now().own_revoked.as_ref().map(ToString::to_string),
            "chainPem": current.as_ref().map(|c| c.chain_pem.clone()),
            "bundlePem": self.bundle_pem(),
        })
    }

    /// What is believed: the View's bundles once there is one.
    fn bundle_pem(&self) -> String {
        match self.plane.knowledge.view() {
            Some(view) => view.bundles.values().map(hanse_identity::Bundle::to_pem).collect(),
            None => self.plane.credentials.bundle_pem(),
        }
    }

    fn connections(&self) -> Value {
        let closed = self.plane.connections.closed();
        let closed: BTreeMap<_, _> = closed.into_iter().map(|(id, n)| (id.to_string(), n)).collect();
        json!({
            "total": self.plane.connections.len(),
            "connections": self.plane.connections.rows(MAX_ROWS),
            "closedByRevocation": closed,
        })
    }

    fn config(&self) -> Value {
        let known = self.plane.knowledge.now();
        let link = self.plane.knowledge.link();
        json!({
            "name": self.plane.name,
            "cluster": known.view.as_ref().map(|v| v.cluster.clone()),
            "trustDomain": known.view.as_ref().map(|v| v.trust_domain.clone()),
            "revision": known.revision(),
            "controlNode": link.control_node,
            "connected": link.connected,
            "ageMillis": (link.heard.0 > 0).then(|| u64::try_from(now().since(link.heard).as_millis()).unwrap_or(u64::MAX)),
            "locality": self.plane.locality,
            "peers": known.view.as_ref().map(|v| v.peers.keys().cloned().collect::<Vec<_>>()),
            "policies": known.view.as_ref().map(|v| v.policies.keys().map(ToString::to_string).collect::<Vec<_>>()),
            "revocations": known.trust.revocations.len(),
        })
    }
}

/// Binds the admin address; not anywhere but on loopback.
pub fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    if !address.ip().is_loopback() {
        let refused = "the admin endpoint has no authentication and is served on loopback only";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, refused));
    }
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, mut stop: Stop) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.ended() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let admin = Arc::clone(&admin);
                async move { Ok::<_, Infallible>(admin.answer(&request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "admin connection");
            }
            drop(place);
        });
    }
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn metrics(body: String) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
}

fn page(value: &Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

#[cfg(test)]
mod tests;
