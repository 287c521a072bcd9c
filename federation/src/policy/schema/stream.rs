//! The shapes of TCPRoute and TLSRoute.

use super::gateway::ROUTE_PARENT;
use super::text::RULE_NAME;
use super::{BACKEND, Shape, not_yet, optional, required};
use crate::policy::stream::check_server_name;

/// One rule: connections are told apart by nothing that a second one could be for.
pub static TCP_ROUTE: Shape = Shape::Object(&[
    required("parentRefs", &Shape::List { of: &ROUTE_PARENT, at_least: 1, at_most: 32 }),
    required("rules", &Shape::List { of: &STREAM_RULE, at_least: 1, at_most: 1 }),
    not_yet("useDefaultGateways", "name the services in parentRefs"),
]);

pub static TLS_ROUTE: Shape = Shape::Object(&[
    required("parentRefs", &Shape::List { of: &ROUTE_PARENT, at_least: 1, at_most: 32 }),
    required("hostnames", &Shape::List { of: &SERVER_NAME, at_least: 1, at_most: 16 }),
    required("rules", &Shape::List { of: &STREAM_RULE, at_least: 1, at_most: 1 }),
    not_yet("useDefaultGateways", "name the services in parentRefs"),
]);

static STREAM_RULE: Shape = Shape::Object(&[
    optional("name", &RULE_NAME),
    required("backendRefs", &Shape::List { of: &BACKEND, at_least: 1, at_most: 16 }),
]);

static SERVER_NAME: Shape = Shape::Text(check_server_name);
