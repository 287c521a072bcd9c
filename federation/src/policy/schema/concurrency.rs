//! The shape of an adaptive limit.

use super::access::{ACCESS_FROM, ACCESS_TO};
use super::text::{COUNT, DURATION, PERCENT};
use super::{Shape, not_yet, optional, required};

pub(super) static CONCURRENCY: Shape = Shape::Object(&[
    optional("minLimit", &COUNT),
    optional("maxLimit", &COUNT),
    optional("tolerance", &PERCENT),
    optional("remeasure", &DURATION),
    optional("priorities", &Shape::List { of: &PRIORITY_RULE, at_least: 1, at_most: 64 }),
    not_yet("percentile", "the median of the answers counts"),
]);

static PRIORITY_RULE: Shape = Shape::Object(&[
    required("priority", &Shape::OneOf(&["Exempt", "Critical", "Default", "BestEffort"])),
    optional("from", &ACCESS_FROM),
    optional("to", &ACCESS_TO),
    not_yet(
        "when",
        "claims decide access only; have RequestAuthentication write one into a header, and match on that",
    ),
]);
