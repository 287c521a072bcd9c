//! The shapes of HTTPRoute and GRPCRoute, and of the FaultInjections that their filters name.

use super::cors::CORS;
use super::text::{
    ANY_TEXT, DURATION, GRPC_NAME, HEADER_NAME, HEADER_VALUE, HOST_NAME, LABEL, NEW_PATH, PORT,
    PRECISE_HOST_NAME, QUERY_NAME, RULE_NAME,
};
use super::{BACKEND, HEADER, MIRROR_BACKEND, PATH, Shape, gateway, not_yet, optional, required};

/// Counts are those of Gateway API v1.
pub static HTTP_ROUTE: Shape = Shape::Object(&[
    required("parentRefs", &Shape::List { of: &gateway::ROUTE_PARENT, at_least: 1, at_most: 32 }),
    optional("hostnames", &Shape::List { of: &HOST_NAME, at_least: 0, at_most: 16 }),
    required("rules", &Shape::List { of: &RULE, at_least: 1, at_most: 16 }),
    not_yet("useDefaultGateways", "name the services in parentRefs"),
]);

pub static GRPC_ROUTE: Shape = Shape::Object(&[
    required("parentRefs", &Shape::List { of: &gateway::ROUTE_PARENT, at_least: 1, at_most: 32 }),
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
            "CORS",
            "ExtensionRef",
        ]),
    ),
    optional("requestHeaderModifier", &MODIFIER),
    optional("responseHeaderModifier", &MODIFIER),
    optional("requestRedirect", &REDIRECT),
    optional("urlRewrite", &REWRITE),
    optional("requestMirror", &MIRROR),
    optional("cors", &CORS),
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

static FRACTION: Shape = Shape::Object(&[
    required("numerator", &Shape::Integer { from: 0, to: i32::MAX as i128 }),
    optional("denominator", &Shape::Integer { from: 1, to: i32::MAX as i128 }),
]);

static TIMEOUTS: Shape =
    Shape::Object(&[optional("request", &DURATION), optional("backendRequest", &DURATION)]);

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
