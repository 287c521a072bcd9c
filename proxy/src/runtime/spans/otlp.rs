//! Finished requests in the form of OTLP, by OpenTelemetry's names where it has them and ours (`mesh.`) where not. Pure.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Finished;
use super::wire::{
    AnyValue, ExportTraceServiceRequest, InstrumentationScope, KeyValue, Resource, ResourceSpans, ScopeSpans,
    Span, SpanKind, Status, StatusCode, Value,
};
use crate::runtime::credentials::Credentials;
use crate::runtime::knowledge::Knowledge;
use crate::trace::SpanId;

/// Who exports.
pub struct Source {
    pub instance: String,
    pub credentials: Arc<Credentials>,
    pub knowledge: Arc<Knowledge>,
}

/// Methods that are told of by name: whoever makes up others makes up no names of spans (OpenTelemetry, HTTP spans).
const METHODS: [&str; 9] = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
const OTHER_METHOD: &str = "_OTHER";
/// Bit 0 of the flags, as in `traceparent`.
const SAMPLED: u32 = 1;

pub fn request(batch: &[Finished], source: &Source) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "hanse-proxy".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let spans = batch.iter().map(span).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource = Some(Resource { attributes: source.attributes() });
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { resource, scope_spans }] }
}

impl Source {
    /// The workload's name and namespace are those of its SPIFFE ID.
    fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = Attributes::default();
        let current = self.credentials.current();
        let id = current.as_ref().map(|current| &current.identity.facts.id);
        let (namespace, account) = id.and_then(|id| workload(id.path())).unwrap_or(("", &self.instance));
        attributes.text("service.name", account);
        attributes.text("service.namespace", namespace);
        attributes.text("service.instance.id", &self.instance);
        if let Some(view) = self.knowledge.view() {
            attributes.text("mesh.cluster", view.cluster.as_str());
        }
        attributes.0
    }
}

/// Namespace and account of `/ns/<namespace>/sa/<account>`.
pub fn workload(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/ns/")?.split_once("/sa/")
}

fn span(finished: &Finished) -> Span {
    let Finished { span, outbound, entry, end, duration } = finished;
    let method = METHODS.into_iter().find(|method| *method == entry.method.as_str());
    let mut attributes = Attributes::default();
    attributes.text("http.request.method", method.unwrap_or(OTHER_METHOD));
    if method.is_none() {
        attributes.text("http.request.method_original", entry.method.as_str());
    }
    attributes.text("url.path", &entry.path);
    attributes.text("url.scheme", "http");
    attributes.text("server.address", &entry.authority);
    attributes.text("network.protocol.name", "http");
    attributes.text("network.protocol.version", entry.protocol.trim_start_matches("HTTP/"));
    if entry.response_code > 0 {
        attributes.number("http.response.status_code", i64::from(entry.response_code));
    }
    let is_secured = !outbound || !entry.destination_spiffe.is_empty();
    if is_secured {
        attributes.text("tls.protocol.version", "1.3");
    }
    attributes.text("guid:x-request-id", entry.request_id.as_str());
    attributes.text("mesh.service", &entry.upstream_cluster);
    attributes.text("mesh.source.cluster", &entry.source_cluster);
    attributes.text("mesh.destination.cluster", &entry.destination_cluster);
    attributes.text("mesh.source.spiffe_id", &entry.source_spiffe);
    attributes.text("mesh.destination.spiffe_id", &entry.destination_spiffe);
    attributes.text("mesh.policy", &entry.policy);
    attributes.text("mesh.reason", &entry.hanse_reason);
    if entry.response_flags != "-" {
        attributes.text("mesh.response_flags", entry.response_flags);
    }
    if *outbound {
        attributes.text("mesh.tier", entry.tier);
        attributes.truth("mesh.failover", entry.failover);
        attributes.number("mesh.attempts", i64::from(entry.attempts));
    }
    // A client's mistake is no error of the server that says so (OpenTelemetry, HTTP spans, "Status").
    let fails_at = if *outbound { 400 } else { 500 };
    let status = (entry.response_code == 0 || entry.response_code >= fails_at).then(|| {
        let code = entry.response_code.to_string();
        attributes
            .text("error.type", if entry.hanse_reason.is_empty() { &code } else { &entry.hanse_reason });
        Status { code: StatusCode::Error.into(), message: entry.hanse_reason.clone() }
    });
    let nanos = |at: SystemTime| {
        u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
    };
    let kind = if *outbound { SpanKind::Client } else { SpanKind::Server };
    Span {
        trace_id: span.trace.0.to_vec(),
        span_id: span.id.0.to_vec(),
        parent_span_id: if span.parent == SpanId::default() { Vec::new() } else { span.parent.0.to_vec() },
        flags: if span.sampled { SAMPLED } else { 0 },
        name: format!("{} {}", method.unwrap_or("HTTP"), entry.upstream_cluster.as_str())
            .trim_end()
            .to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanos(end.checked_sub(*duration).unwrap_or(*end)),
        end_time_unix_nano: nanos(*end),
        attributes: attributes.0,
        status,
    }
}

#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    /// What is empty is left out.
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.push(key, Value::StringValue(value.to_owned()));
        }
    }

    fn number(&mut self, key: &str, value: i64) {
        self.push(key, Value::IntValue(value));
    }

    fn truth(&mut self, key: &str, value: bool) {
        self.push(key, Value::BoolValue(value));
    }

    fn push(&mut self, key: &str, value: Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.to_owned(), value });
    }
}
