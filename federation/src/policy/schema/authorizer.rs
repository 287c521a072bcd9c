//! The shape of an external authorizer.

use std::net::SocketAddr;

use super::text::{DURATION, HEADER_NAME};
use super::{MIRROR_BACKEND, Shape, not_yet, optional};

pub(super) static AUTHORIZER: Shape = Shape::Object(&[
    optional("backendRef", &MIRROR_BACKEND),
    optional("address", &Shape::Text(address)),
    optional("timeout", &DURATION),
    optional("failOpen", &Shape::Truth),
    optional("allowedHeaders", &Shape::List { of: &HEADER_NAME, at_least: 1, at_most: 64 }),
    not_yet("protocol", "it is gRPC"),
    not_yet("forwardBody", "only heads are asked about"),
]);

fn address(text: &str) -> Result<(), String> {
    let shown = || text.chars().take(80).collect::<String>();
    text.parse::<SocketAddr>().map(drop).map_err(|_| format!("{:?} is not like 127.0.0.1:9191", shown()))
}
