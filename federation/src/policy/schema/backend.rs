//! The shape of BackendPolicy.

use super::concurrency::CONCURRENCY;
use super::text::{
    CLUSTER, COUNT, DURATION, GROUP, GRPC_NAME, HEADER_NAME, LABEL, NEW_PATH, PERCENT, QUERY_NAME, REF_KIND,
    cluster,
};
use super::{Shape, not_yet, optional, required};

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
    optional("concurrency", &CONCURRENCY),
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
