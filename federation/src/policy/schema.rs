//! The shape of the documents as data: which fields there are, which are needed, which this version lacks.
//!
//! One walk over a document's tree finds everything that is wrong with its shape, each with its place. Serde then
//! reads what has passed; a test holds the two against each other.

use super::document::MAX_WEIGHT;
use super::tree::{Content, Entry, Node, Place};
use super::value::{Label, Percent, PolicyDuration, near};
use crate::stranger::{EndpointUrl, MAX_ROOTS_BYTES};
use hanse_identity::ClusterName;

pub mod edge;
pub mod gateway;
pub mod stream;

mod authorizer;

/// What a value has to look like.
pub enum Shape {
    Object(&'static [Field]),
    /// Names chosen by the writer, all with the same shape.
    Map {
        key: TextCheck,
        of: &'static Shape,
    },
    List {
        of: &'static Shape,
        at_least: usize,
        at_most: usize,
    },
    Text(TextCheck),
    OneOf(&'static [&'static str]),
    /// true or false.
    Truth,
    Integer {
        from: i128,
        to: i128,
    },
    /// One or the other, told apart by how it is written.
    TextOrInteger {
        text: &'static Shape,
        integer: &'static Shape,
    },
    /// Whatever is written here is of no concern to us.
    Any,
}

/// `Err`: what is wrong with the text, as a sentence with the fix in it.
pub type TextCheck = fn(&str) -> Result<(), String>;

pub struct Field {
    pub name: &'static str,
    pub need: Need,
    pub shape: &'static Shape,
}

pub enum Need {
    Required,
    Optional,
    /// A field of the standard or of the plan that this version does not carry out, and what to do instead.
    NotYet(&'static str),
}

/// One thing that is wrong, with no file yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub code: &'static str,
    pub place: Place,
    pub path: String,
    pub message: String,
    pub fix: String,
}

const fn required(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, need: Need::Required, shape }
}

const fn optional(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, need: Need::Optional, shape }
}

const fn not_yet(name: &'static str, instead: &'static str) -> Field {
    Field { name, need: Need::NotYet(instead), shape: &Shape::Any }
}

/// The document as a whole; `spec` is checked by kind.
pub static DOCUMENT: Shape = Shape::Object(&[
    required("apiVersion", &ANY_TEXT),
    required("kind", &ANY_TEXT),
    required("metadata", &METADATA),
    required("spec", &Shape::Any),
    optional("status", &Shape::Any),
]);

/// What Kubernetes itself writes into metadata is let through, so that what was read there can be applied here.
pub static METADATA: Shape = Shape::Object(&[
    required("name", &LABEL),
    optional("namespace", &LABEL),
    optional("labels", &Shape::Any),
    optional("annotations", &Shape::Any),
    optional("creationTimestamp", &Shape::Any),
    optional("finalizers", &Shape::Any),
    optional("generation", &Shape::Any),
    optional("managedFields", &Shape::Any),
    optional("ownerReferences", &Shape::Any),
    optional("resourceVersion", &Shape::Any),
    optional("uid", &Shape::Any),
]);

/// Counts are those of Gateway API v1.
pub static HTTP_ROUTE: Shape = Shape::Object(&[
    required("parentRefs", &Shape::List { of: &gateway::HTTP_PARENT, at_least: 1, at_most: 32 }),
    optional("hostnames", &Shape::List { of: &HOST_NAME, at_least: 0, at_most: 16 }),
    required("rules", &Shape::List { of: &RULE, at_least: 1, at_most: 16 }),
    not_yet("useDefaultGateways", "name the services in parentRefs"),
]);

pub static GRPC_ROUTE: Shape = Shape::Object(&[
    required("parentRefs", &Shape::List { of: &gateway::HTTP_PARENT, at_least: 1, at_most: 32 }),
    optional("hostnames", &Shape::List { of: &HOST_NAME, at_least: 0, at_most: 16 }),
    required("rules", &Shape::List { of: &GRPC_RULE, at_least: 1, at_most: 16 }),
    not_yet("useDefaultGateways", "name the services in parentRefs"),
]);

static GRPC_RULE: Shape = Shape::Object(&[
    optional("name", &RULE_NAME),
    optional("matches", &Shape::List { of: &GRPC_MATCH, at_least: 0, at_most: 64 }),
    optional("filters", &Shape::List { of: &GRPC_FILTER, at_least: 0, at_most: 16 }),
    optional("backendRefs", &Shape::List { of: &BACKEND, at_least: 0, at_most: 16 }),
    not_yet("sessionPersistence", "write sessionPersistence into the BackendPolicy of the backend"),
]);

static GRPC_MATCH: Shape = Shape::Object(&[
    optional("method", &GRPC_METHOD),
    optional("headers", &Shape::List { of: &HEADER, at_least: 0, at_most: 16 }),
]);

static GRPC_METHOD: Shape = Shape::Object(&[
    optional("type", &Shape::OneOf(&["Exact", "RegularExpression"])),
    optional("service", &GRPC_NAME),
    optional("method", &GRPC_NAME),
]);

static GRPC_FILTER: Shape = Shape::Object(&[
    required(
        "type",
        &Shape::OneOf(&["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef"]),
    ),
    optional("requestHeaderModifier", &MODIFIER),
    optional("responseHeaderModifier", &MODIFIER),
    optional("requestMirror", &MIRROR),
    optional("extensionRef", &EXTENSION),
]);

static PARENT: Shape = Shape::Object(&[
    optional("group", &GROUP),
    required("kind", &REF_KIND),
    required("name", &LABEL),
    optional("namespace", &LABEL),
    optional("port", &PORT),
    not_yet("sectionName", "name the port; HTTP has one, leave it out there"),
]);

static RULE: Shape = Shape::Object(&[
    optional("name", &RULE_NAME),
    optional("matches", &Shape::List { of: &MATCH, at_least: 0, at_most: 64 }),
    optional("filters", &Shape::List { of: &FILTER, at_least: 0, at_most: 16 }),
    optional("timeouts", &TIMEOUTS),
    optional("backendRefs", &Shape::List { of: &BACKEND, at_least: 0, at_most: 16 }),
    not_yet("retry", "idempotent requests are retried within a budget of 20 % without it"),
    not_yet("sessionPersistence", "write sessionPersistence into the BackendPolicy of the backend"),
]);

static MATCH: Shape = Shape::Object(&[
    optional("path", &PATH),
    optional("headers", &Shape::List { of: &HEADER, at_least: 0, at_most: 16 }),
    optional(
        "method",
        &Shape::OneOf(&["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]),
    ),
    optional("queryParams", &Shape::List { of: &QUERY, at_least: 0, at_most: 16 }),
]);

static QUERY: Shape = Shape::Object(&[
    optional("type", &Shape::OneOf(&["Exact", "RegularExpression"])),
    required("name", &QUERY_NAME),
    required("value", &ANY_TEXT),
]);

static FILTER: Shape = Shape::Object(&[
    required(
        "type",
        &Shape::OneOf(&[
            "RequestHeaderModifier",
            "ResponseHeaderModifier",
            "RequestRedirect",
            "URLRewrite",
            "RequestMirror",
            "ExtensionRef",
        ]),
    ),
    optional("requestHeaderModifier", &MODIFIER),
    optional("responseHeaderModifier", &MODIFIER),
    optional("requestRedirect", &REDIRECT),
    optional("urlRewrite", &REWRITE),
    optional("requestMirror", &MIRROR),
    not_yet("cors", "let the app answer preflight requests"),
    not_yet("externalAuth", "let the app decide"),
    optional("extensionRef", &EXTENSION),
]);

static MODIFIER: Shape = Shape::Object(&[
    optional("set", &Shape::List { of: &HEADER_FIELD, at_least: 0, at_most: 16 }),
    optional("add", &Shape::List { of: &HEADER_FIELD, at_least: 0, at_most: 16 }),
    optional("remove", &Shape::List { of: &HEADER_NAME, at_least: 0, at_most: 16 }),
]);

static HEADER_FIELD: Shape =
    Shape::Object(&[required("name", &HEADER_NAME), required("value", &HEADER_VALUE)]);

static REDIRECT: Shape = Shape::Object(&[
    optional("scheme", &Shape::OneOf(&["http", "https"])),
    optional("hostname", &PRECISE_HOST_NAME),
    optional("path", &PATH_MODIFIER),
    optional("port", &PORT),
    optional("statusCode", &Shape::Integer { from: 301, to: 308 }),
]);

static REWRITE: Shape =
    Shape::Object(&[optional("hostname", &PRECISE_HOST_NAME), optional("path", &PATH_MODIFIER)]);

static PATH_MODIFIER: Shape = Shape::Object(&[
    required("type", &Shape::OneOf(&["ReplaceFullPath", "ReplacePrefixMatch"])),
    optional("replaceFullPath", &NEW_PATH),
    optional("replacePrefixMatch", &NEW_PATH),
]);

static EXTENSION: Shape = Shape::Object(&[
    required("group", &Shape::OneOf(&["hanse.dev"])),
    required("kind", &Shape::OneOf(&["FaultInjection"])),
    required("name", &LABEL),
]);

static MIRROR: Shape = Shape::Object(&[
    required("backendRef", &MIRROR_BACKEND),
    optional("percent", &Shape::Integer { from: 0, to: 100 }),
    optional("fraction", &FRACTION),
]);

static MIRROR_BACKEND: Shape = Shape::Object(&[
    optional("group", &GROUP),
    optional("kind", &MIRROR_KIND),
    required("name", &LABEL),
    optional("namespace", &LABEL),
    optional("port", &PORT),
]);

static FRACTION: Shape = Shape::Object(&[
    required("numerator", &Shape::Integer { from: 0, to: i32::MAX as i128 }),
    optional("denominator", &Shape::Integer { from: 1, to: i32::MAX as i128 }),
]);

static PATH: Shape = Shape::Object(&[
    optional("type", &Shape::OneOf(&["Exact", "PathPrefix", "RegularExpression"])),
    optional("value", &ANY_TEXT),
]);

static HEADER: Shape = Shape::Object(&[
    optional("type", &Shape::OneOf(&["Exact", "RegularExpression"])),
    required("name", &HEADER_NAME),
    required("value", &ANY_TEXT),
]);

static TIMEOUTS: Shape =
    Shape::Object(&[optional("request", &DURATION), optional("backendRequest", &DURATION)]);

static BACKEND: Shape = Shape::Object(&[
    optional("group", &GROUP),
    optional("kind", &REF_KIND),
    required("name", &LABEL),
    optional("namespace", &LABEL),
    optional("port", &PORT),
    optional("weight", &Shape::Integer { from: 0, to: MAX_WEIGHT as i128 }),
    not_yet("filters", "headers have to be changed by the app"),
]);

pub static BACKEND_POLICY: Shape = Shape::Object(&[
    optional("scope", &Shape::OneOf(&["Cluster", "Federation"])),
    required("targetRefs", &Shape::List { of: &TARGET, at_least: 1, at_most: 16 }),
    optional("locality", &LOCALITY),
    optional("health", &HEALTH),
    optional("retry", &RETRY),
    optional("loadBalancing", &LOAD_BALANCING),
    optional("limits", &LIMITS),
    optional("sessionPersistence", &SESSION_PERSISTENCE),
]);

pub static FAULT_INJECTION: Shape = Shape::Object(&[
    // Its absence is told by `validate`: a fault without end.
    optional("for", &DURATION),
    optional("only", &Shape::Object(&[required("header", &HEADER)])),
    optional("delay", &Shape::Object(&[required("percent", &PERCENTAGE), required("fixed", &DURATION)])),
    optional(
        "abort",
        &Shape::Object(&[
            required("percent", &PERCENTAGE),
            optional("httpStatus", &Shape::Integer { from: 400, to: 599 }),
            optional("grpcStatus", &Shape::Integer { from: 1, to: 16 }),
        ]),
    ),
]);

/// A share as a bare number, as Gateway API writes it.
static PERCENTAGE: Shape = Shape::Integer { from: 0, to: 100 };

pub static RATE_LIMIT: Shape = Shape::Object(&[
    required("targetRefs", &Shape::List { of: &ACCESS_TARGET, at_least: 1, at_most: 16 }),
    required("limits", &Shape::List { of: &REQUEST_LIMIT, at_least: 1, at_most: 16 }),
    not_yet(
        "scope",
        "apply the document in each cluster: a limit is kept there; with across: Cluster by its instances together",
    ),
]);

static REQUEST_LIMIT: Shape = Shape::Object(&[
    optional("name", &ANY_TEXT),
    optional("by", &Shape::OneOf(&["Service", "Identity", "Header"])),
    optional("header", &HEADER_NAME),
    optional("across", &Shape::OneOf(&["Proxy", "Cluster"])),
    required("requests", &COUNT),
    required("per", &DURATION),
    optional("burst", &COUNT),
]);

pub static REQUEST_AUTHENTICATION: Shape = Shape::Object(&[
    required("targetRefs", &Shape::List { of: &ACCESS_TARGET, at_least: 1, at_most: 16 }),
    required("jwtRules", &Shape::List { of: &JWT_RULE, at_least: 1, at_most: 16 }),
    not_yet("scope", "apply the document in each cluster: the destination's decides"),
]);

static JWT_RULE: Shape = Shape::Object(&[
    required("issuer", &ANY_TEXT),
    optional("audiences", &Shape::List { of: &ANY_TEXT, at_least: 1, at_most: 16 }),
    optional("jwks", &Shape::Text(jwks)),
    optional("jwksUri", &Shape::Text(endpoint_url)),
    optional("jwksFile", &ANY_TEXT),
    optional("jwksRoots", &Shape::Text(roots)),
    optional("jwksRefresh", &DURATION),
    optional("fromHeaders", &Shape::List { of: &JWT_HEADER, at_least: 1, at_most: 8 }),
    not_yet("fromParams", "tokens in a URL are in everybody's logs; use a header"),
    not_yet("fromCookies", "use a header"),
    optional("forwardOriginalToken", &Shape::Truth),
    optional("outputClaimToHeaders", &Shape::List { of: &CLAIM_TO_HEADER, at_least: 1, at_most: 16 }),
]);

static JWT_HEADER: Shape = Shape::Object(&[required("name", &HEADER_NAME), optional("prefix", &ANY_TEXT)]);

static CLAIM_TO_HEADER: Shape =
    Shape::Object(&[required("header", &HEADER_NAME), required("claim", &ANY_TEXT)]);

pub static ACCESS_POLICY: Shape = Shape::Object(&[
    required("targetRefs", &Shape::List { of: &ACCESS_TARGET, at_least: 1, at_most: 16 }),
    required("action", &Shape::OneOf(&["Allow", "Deny", "Audit", "External"])),
    optional("rules", &Shape::List { of: &ACCESS_RULE, at_least: 0, at_most: 64 }),
    optional("external", &authorizer::AUTHORIZER),
    not_yet("scope", "apply the document in each cluster: the destination's decides"),
]);

/// The cluster of the service decides who may call it, so an import is none of its targets.
static ACCESS_TARGET: Shape = Shape::Object(&[
    optional("group", &GROUP),
    required("kind", &Shape::OneOf(&["Service"])),
    required("name", &LABEL),
    optional("namespace", &LABEL),
]);

static ACCESS_RULE: Shape = Shape::Object(&[
    optional("name", &ANY_TEXT),
    optional("from", &ACCESS_FROM),
    optional("to", &ACCESS_TO),
    optional("when", &ACCESS_WHEN),
]);

static ACCESS_WHEN: Shape =
    Shape::Object(&[required("claims", &Shape::List { of: &ACCESS_CLAIM, at_least: 1, at_most: 16 })]);

static ACCESS_CLAIM: Shape = Shape::Object(&[
    required("name", &ANY_TEXT),
    required("values", &Shape::List { of: &ANY_TEXT, at_least: 1, at_most: 64 }),
]);

static ACCESS_FROM: Shape = Shape::Object(&[
    optional("identities", &Shape::List { of: &ANY_TEXT, at_least: 1, at_most: 256 }),
    optional("clusters", &Shape::List { of: &CLUSTER, at_least: 1, at_most: 64 }),
    optional("namespaces", &Shape::List { of: &LABEL, at_least: 1, at_most: 64 }),
    optional("requestPrincipals", &Shape::List { of: &ANY_TEXT, at_least: 1, at_most: 256 }),
]);

static ACCESS_TO: Shape = Shape::Object(&[
    optional(
        "methods",
        &Shape::List {
            of: &Shape::OneOf(&["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"]),
            at_least: 1,
            at_most: 16,
        },
    ),
    optional("paths", &Shape::List { of: &PATH, at_least: 1, at_most: 64 }),
    optional("headers", &Shape::List { of: &HEADER, at_least: 1, at_most: 16 }),
    optional("ports", &Shape::List { of: &PORT, at_least: 1, at_most: 16 }),
]);

static TARGET: Shape = Shape::Object(&[
    optional("group", &GROUP),
    required("kind", &REF_KIND),
    required("name", &LABEL),
    optional("namespace", &LABEL),
]);

static LOCALITY: Shape = Shape::Object(&[
    optional("mode", &Shape::OneOf(&["Failover", "Distribute", "LocalOnly", "Ignore"])),
    optional(
        "prefer",
        &Shape::List { of: &Shape::OneOf(&["zone", "region", "cluster"]), at_least: 1, at_most: 3 },
    ),
    optional("failover", &Shape::List { of: &FAILOVER, at_least: 0, at_most: 64 }),
    optional("openNextTierBelow", &PERCENT),
    optional("returnAfter", &DURATION),
    optional("distribute", &Shape::List { of: &DISTRIBUTE, at_least: 0, at_most: 64 }),
]);

static FAILOVER: Shape = Shape::Object(&[
    required("from", &CLUSTER),
    required("to", &Shape::List { of: &CLUSTER, at_least: 1, at_most: 64 }),
]);

static DISTRIBUTE: Shape = Shape::Object(&[
    required("from", &CLUSTER),
    required("to", &Shape::Map { key: cluster, of: &Shape::Integer { from: 0, to: 100 } }),
]);

static HEALTH: Shape = Shape::Object(&[
    optional("outlier", &OUTLIER),
    optional("panicBelow", &PERCENT),
    optional("active", &ACTIVE),
]);

static LOAD_BALANCING: Shape = Shape::Object(&[
    optional("algorithm", &Shape::OneOf(&["LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"])),
    optional("hashOn", &HASH_ON),
    optional("warmup", &DURATION),
]);

static SESSION_PERSISTENCE: Shape = Shape::Object(&[
    optional("type", &Shape::OneOf(&["Cookie", "Header"])),
    optional("sessionName", &HEADER_NAME),
    optional("absoluteTimeout", &DURATION),
    optional("idleTimeout", &DURATION),
    optional("cookieConfig", &COOKIE_CONFIG),
]);

static COOKIE_CONFIG: Shape =
    Shape::Object(&[optional("lifetimeType", &Shape::OneOf(&["Session", "Permanent"]))]);

static HASH_ON: Shape = Shape::Object(&[
    optional("header", &HEADER_NAME),
    optional("cookie", &HEADER_NAME),
    optional("query", &QUERY_NAME),
    optional("sourceIdentity", &Shape::Truth),
]);

static LIMITS: Shape = Shape::Object(&[
    optional("maxConnections", &COUNT),
    optional("maxPending", &COUNT),
    optional("maxRequests", &COUNT),
    optional("maxRetries", &Shape::Integer { from: 0, to: 1_000_000 }),
    optional("connectTimeout", &DURATION),
    optional("idleTimeout", &DURATION),
    optional("maxRequestBytes", &Shape::Integer { from: 0, to: MAX_REQUEST_BYTES }),
    optional("slowRequestTimeout", &DURATION),
]);

/// 1 PiB: what a body of any sense does not reach, and every tool's numbers do.
const MAX_REQUEST_BYTES: i128 = 1 << 50;

static ACTIVE: Shape = Shape::Object(&[
    optional("http", &Shape::Object(&[required("path", &NEW_PATH)])),
    optional("grpc", &Shape::Object(&[optional("service", &GRPC_NAME)])),
    optional("tcp", &Shape::Object(&[])),
    optional("interval", &DURATION),
    optional("timeout", &DURATION),
    optional("failAfter", &COUNT),
    optional("passAfter", &COUNT),
]);

static RETRY: Shape = Shape::Object(&[
    optional("attempts", &Shape::Integer { from: 0, to: 7 }),
    optional("on", &Shape::List { of: &RETRY_CONDITION, at_least: 1, at_most: 16 }),
    optional("perTryTimeout", &DURATION),
    optional("budget", &RETRY_BUDGET),
]);

static RETRY_CONDITION: Shape = Shape::TextOrInteger {
    text: &Shape::OneOf(&["connect-failure", "reset", "timeout", "gateway-error", "5xx"]),
    integer: &Shape::Integer { from: 500, to: 599 },
};

static RETRY_BUDGET: Shape = Shape::Object(&[
    required("percent", &Shape::Integer { from: 0, to: 100 }),
    not_yet("interval", "the budget looks back ten seconds"),
]);

static OUTLIER: Shape = Shape::Object(&[
    optional("consecutive5xx", &COUNT),
    optional("consecutiveGatewayErrors", &COUNT),
    optional("interval", &DURATION),
    optional("ejectFor", &DURATION),
    optional("maxEjected", &PERCENT),
]);

static ANY_TEXT: Shape = Shape::Text(any_text);
static LABEL: Shape = Shape::Text(label);
static CLUSTER: Shape = Shape::Text(cluster);
static GROUP: Shape = Shape::OneOf(&["", "core", "multicluster.x-k8s.io", "hanse.dev"]);
static REF_KIND: Shape = Shape::OneOf(&["Service", "ServiceImport", "ExternalService"]);
/// Copies stay in the mesh.
static MIRROR_KIND: Shape = Shape::OneOf(&["Service", "ServiceImport"]);
static PORT: Shape = Shape::Integer { from: 1, to: 65_535 };
static COUNT: Shape = Shape::Integer { from: 1, to: 1_000_000 };
static DURATION: Shape = Shape::Text(duration);
static PERCENT: Shape = Shape::Text(percent);
static HEADER_NAME: Shape = Shape::Text(header_name);
static GRPC_NAME: Shape = Shape::Text(grpc_name);
static HEADER_VALUE: Shape = Shape::Text(header_value);
static QUERY_NAME: Shape = Shape::Text(query_name);
static NEW_PATH: Shape = Shape::Text(new_path);
static HOST_NAME: Shape = Shape::Text(host_name);
static PRECISE_HOST_NAME: Shape = Shape::Text(precise_host_name);
static RULE_NAME: Shape = Shape::Text(rule_name);

/// Longest text that a document may say in one field.
const MAX_FIELD_BYTES: usize = 4096;

fn any_text(text: &str) -> Result<(), String> {
    let fits = text.len() <= MAX_FIELD_BYTES;
    if fits { Ok(()) } else { Err(format!("it is longer than {MAX_FIELD_BYTES} bytes")) }
}

fn jwks(text: &str) -> Result<(), String> {
    let fits = text.len() <= hanse_identity::jwt::user::MAX_JWKS_BYTES;
    if fits { Ok(()) } else { Err("it is larger than any key set that is read".to_owned()) }
}

fn endpoint_url(text: &str) -> Result<(), String> {
    text.parse::<EndpointUrl>().map(drop).map_err(|e| e.to_string())
}

fn roots(text: &str) -> Result<(), String> {
    let fits = text.len() <= MAX_ROOTS_BYTES;
    if fits { Ok(()) } else { Err(format!("it is larger than {MAX_ROOTS_BYTES} bytes")) }
}

fn label(text: &str) -> Result<(), String> {
    text.parse::<Label>().map(drop).map_err(|e| e.to_string())
}

fn cluster(text: &str) -> Result<(), String> {
    text.parse::<ClusterName>().map(drop).map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<(), String> {
    text.parse::<PolicyDuration>().map(drop).map_err(|e| e.to_string())
}

fn percent(text: &str) -> Result<(), String> {
    text.parse::<Percent>().map(drop).map_err(|e| e.to_string())
}

/// RFC 9110 §5.1: a token.
fn header_name(text: &str) -> Result<(), String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !text.is_empty() && text.len() <= 256 && text.bytes().all(token) {
        Ok(())
    } else {
        Err(format!("{:?} is not the name of a header", text.chars().take(80).collect::<String>()))
    }
}

/// RFC 9110 §5.5: visible ASCII, with spaces and tabs inside.
fn header_value(text: &str) -> Result<(), String> {
    let inside = |b: u8| b == b'\t' || (b' '..=b'~').contains(&b);
    if text.len() > MAX_FIELD_BYTES {
        return Err(format!("it is longer than {MAX_FIELD_BYTES} bytes"));
    }
    if text.bytes().all(inside) && text.trim() == text {
        return Ok(());
    }
    Err("a header's value has visible ASCII only, and no space at its ends".to_owned())
}

fn query_name(text: &str) -> Result<(), String> {
    let fits = !text.is_empty() && text.len() <= 256;
    if fits { Ok(()) } else { Err("the name of a parameter has 1 to 256 bytes".to_owned()) }
}

/// The name of a service or method, or a pattern of one.
fn grpc_name(text: &str) -> Result<(), String> {
    if text.len() > 1024 {
        return Err("it is longer than 1024 bytes".to_owned());
    }
    if text.contains('/') { Err("service and method are two fields, without /".to_owned()) } else { Ok(()) }
}

/// What may stand for a path or the beginning of one: as it is sent, so percent-encoded where it has to be.
fn new_path(text: &str) -> Result<(), String> {
    let sent = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b);
    if text.len() > 1024 {
        return Err("it is longer than 1024 bytes".to_owned());
    }
    match (text.is_empty() || text.starts_with('/'), text.bytes().all(sent)) {
        (true, true) => Ok(()),
        (false, _) => Err("a path starts with /".to_owned()),
        (true, false) => {
            Err("a path has no query and no fragment, and what is not allowed in it is percent-encoded"
                .to_owned())
        }
    }
}

/// One host, no wildcard.
fn precise_host_name(text: &str) -> Result<(), String> {
    if text.starts_with("*.") {
        return Err("one host is needed here, without *".to_owned());
    }
    host_name(text)
}

fn host_name(text: &str) -> Result<(), String> {
    let bare = text.strip_prefix("*.").unwrap_or(text);
    if bare.len() <= 253 && bare.split('.').all(|part| label(part).is_ok()) {
        Ok(())
    } else {
        Err(format!("{:?} is not a host name", text.chars().take(80).collect::<String>()))
    }
}

/// Rule names may have several labels (Gateway API SectionName).
fn rule_name(text: &str) -> Result<(), String> {
    if text.len() <= 253 && text.split('.').all(|part| label(part).is_ok()) {
        Ok(())
    } else {
        Err(format!("{:?} is not a name for a rule", text.chars().take(80).collect::<String>()))
    }
}

/// Everything that is wrong with the shape of `node`, which is at `path`.
pub fn check(shape: &Shape, node: &Node, path: &str, problems: &mut Vec<Problem>) {
    let mut report = |code, message: String, fix: String| {
        problems.push(Problem { code, place: node.place, path: path.to_owned(), message, fix });
    };
    match (shape, &node.content) {
        (Shape::Any, _) | (Shape::Truth, Content::Bool(_)) => {}
        (Shape::Object(fields), Content::Object(entries)) => {
            check_object(fields, node, entries, path, problems)
        }
        (Shape::Map { key, of }, Content::Object(entries)) => {
            for entry in entries {
                let path = format!("{path}.{}", entry.key);
                if let Err(message) = key(&entry.key) {
                    let place = entry.key_place;
                    problems.push(Problem {
                        code: "E4005",
                        place,
                        path: path.clone(),
                        message,
                        fix: String::new(),
                    });
                }
                check(of, &entry.value, &path, problems);
            }
        }
        (Shape::List { of, at_least, at_most }, Content::List(items)) => {
            if items.len() < *at_least {
                report("E4004", format!("{} needs at least {at_least}", last(path)), String::new());
            }
            if items.len() > *at_most {
                let message = format!("{} has {}; at most {at_most} are allowed", last(path), items.len());
                report("E4005", message, "split it into several documents".to_owned());
                return;
            }
            for (index, item) in items.iter().enumerate() {
                check(of, item, &format!("{path}[{index}]"), problems);
            }
        }
        (Shape::Text(test), Content::Text(text)) => {
            if let Err(message) = test(text) {
                report("E4005", format!("{}: {message}", last(path)), String::new());
            }
        }
        (Shape::TextOrInteger { integer, .. }, Content::Integer(_)) => check(integer, node, path, problems),
        (Shape::TextOrInteger { text, .. }, _) => check(text, node, path, problems),
        (Shape::OneOf(known), Content::Text(text)) if known.contains(&text.as_str()) => {}
        (Shape::OneOf(known), Content::Text(text)) => {
            let fix = match near(text, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("write one of: {}", quote_empty(known)),
            };
            report("E4005", format!("{} cannot be {:?}", last(path), shortened(text)), fix);
        }
        (Shape::Integer { from, to }, Content::Integer(number)) => {
            if number < from || number > to {
                report(
                    "E4005",
                    format!("{} is {number}; it has to be {from} to {to}", last(path)),
                    String::new(),
                );
            }
        }
        (wanted, _) => {
            let (wanted, fix) = wanted.describe(node);
            report("E4002", format!("{} has to be {wanted}, found {}", last(path), node.what()), fix);
        }
    }
}

fn check_object(fields: &[Field], node: &Node, entries: &[Entry], path: &str, problems: &mut Vec<Problem>) {
    let inside = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for entry in entries {
        let path = inside(&entry.key);
        let Some(field) = fields.iter().find(|field| field.name == entry.key) else {
            problems.push(unknown(fields, entry, path));
            continue;
        };
        if let Need::NotYet(instead) = field.need {
            problems.push(Problem {
                code: "E4125",
                place: entry.key_place,
                path,
                message: format!("{} is not supported by this version", entry.key),
                fix: instead.to_owned(),
            });
        } else if !entry.value.is_null() {
            check(field.shape, &entry.value, &path, problems);
        }
    }
    // A slip of the pen is one mistake, not an unknown field and a missing one.
    let misspelt = |name: &str| entries.iter().any(|entry| suggestion(fields, &entry.key) == Some(name));
    for field in fields.iter().filter(|field| matches!(field.need, Need::Required)) {
        if node.get(field.name).is_none_or(Node::is_null) && !misspelt(field.name) {
            problems.push(Problem {
                code: "E4004",
                place: node.place,
                path: inside(field.name),
                message: match path {
                    "" => format!("the document has no {}", field.name),
                    _ => format!("{} has no {}", last(path), field.name),
                },
                fix: format!("add {}", field.name),
            });
        }
    }
}

fn suggestion(fields: &[Field], key: &str) -> Option<&'static str> {
    near(key, fields.iter().map(|field| field.name))
}

fn unknown(fields: &[Field], entry: &Entry, path: String) -> Problem {
    let known = || fields.iter().filter(|f| !matches!(f.need, Need::NotYet(_))).map(|f| f.name);
    let fix = match suggestion(fields, &entry.key) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known here: {}", known().collect::<Vec<_>>().join(", ")),
    };
    let message = format!("unknown field {:?}", shortened(&entry.key));
    Problem { code: "E4001", place: entry.key_place, path, message, fix }
}

impl Shape {
    /// What is wanted, and how to mend `node` where that is plain to see.
    fn describe(&self, node: &Node) -> (&'static str, String) {
        let scalar = match &node.content {
            Content::Bool(value) => Some(value.to_string()),
            Content::Integer(number) => Some(number.to_string()),
            Content::Float(number) => Some(number.to_string()),
            _ => None,
        };
        let quoted = scalar.map(|text| format!("put it in quotes: \"{text}\"")).unwrap_or_default();
        match self {
            Self::Object(_) | Self::Map { .. } => ("an object", String::new()),
            Self::List { .. } => ("a list", "put a - before it".to_owned()),
            Self::Text(test) if test(&probe(node, "%")).is_ok() && test(&probe(node, "")).is_err() => {
                ("a percentage", format!("write {}", probe(node, "%")))
            }
            Self::Text(test) if test(&probe(node, "s")).is_ok() && test(&probe(node, "")).is_err() => {
                ("a duration", format!("write {}, or with another unit: ms, m, h", probe(node, "s")))
            }
            Self::Text(_) | Self::OneOf(_) | Self::TextOrInteger { .. } => ("a text", quoted),
            Self::Integer { .. } => ("a whole number", String::new()),
            Self::Truth => ("true or false", String::new()),
            Self::Any => ("anything", String::new()),
        }
    }
}

/// A number with a unit behind it, to see whether only the unit is missing.
fn probe(node: &Node, unit: &str) -> String {
    match &node.content {
        Content::Integer(number) => format!("{number}{unit}"),
        _ => String::new(),
    }
}

fn last(path: &str) -> &str {
    match path.rsplit('.').next() {
        Some("") | None => "the document",
        Some(field) => field,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn quote_empty(known: &[&str]) -> String {
    known.iter().map(|k| if k.is_empty() { "\"\"" } else { k }).collect::<Vec<_>>().join(", ")
}
