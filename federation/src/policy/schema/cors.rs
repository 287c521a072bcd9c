//! The shape of a CORS filter. Counts are those of Gateway API v1.

use super::text::HEADER_NAME;
use super::{Shape, optional};
use crate::policy::document::cors::ANY;
use crate::policy::route::Origin;

pub(super) static CORS: Shape = Shape::Object(&[
    optional("allowOrigins", &Shape::List { of: &Shape::Text(origin), at_least: 1, at_most: 64 }),
    optional("allowCredentials", &Shape::Truth),
    optional(
        "allowMethods",
        &Shape::List {
            of: &Shape::OneOf(&[
                "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*",
            ]),
            at_least: 1,
            at_most: 9,
        },
    ),
    // A star is a token, as names are.
    optional("allowHeaders", &Shape::List { of: &HEADER_NAME, at_least: 1, at_most: 64 }),
    optional("exposeHeaders", &Shape::List { of: &HEADER_NAME, at_least: 1, at_most: 64 }),
    optional("maxAge", &Shape::Integer { from: 1, to: i32::MAX as i128 }),
]);

fn origin(text: &str) -> Result<(), String> {
    if text == ANY { Ok(()) } else { Origin::parse(text).map(drop) }
}
