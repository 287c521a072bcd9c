//! The shapes of what is asked of a caller: AccessPolicy, RequestAuthentication and RateLimit.

use super::text::{
    ANY_TEXT, CLUSTER, COUNT, DURATION, GROUP, HEADER_NAME, LABEL, PORT, endpoint_url, jwks, roots,
};
use super::{HEADER, PATH, Shape, authorizer, not_yet, optional, required};

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
pub(super) static ACCESS_TARGET: Shape = Shape::Object(&[
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

static ACCESS_WHEN: Shape = Shape::Object(&[
    optional("claims", &Shape::List { of: &ACCESS_CLAIM, at_least: 1, at_most: 16 }),
    optional("expression", &ANY_TEXT),
]);

static ACCESS_CLAIM: Shape = Shape::Object(&[
    required("name", &ANY_TEXT),
    required("values", &Shape::List { of: &ANY_TEXT, at_least: 1, at_most: 64 }),
]);

pub(super) static ACCESS_FROM: Shape = Shape::Object(&[
    optional("identities", &Shape::List { of: &ANY_TEXT, at_least: 1, at_most: 256 }),
    optional("clusters", &Shape::List { of: &CLUSTER, at_least: 1, at_most: 64 }),
    optional("namespaces", &Shape::List { of: &LABEL, at_least: 1, at_most: 64 }),
    optional("requestPrincipals", &Shape::List { of: &ANY_TEXT, at_least: 1, at_most: 256 }),
]);

pub(super) static ACCESS_TO: Shape = Shape::Object(&[
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
