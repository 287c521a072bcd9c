//! The shape of ReferenceGrant. Groups and kinds are whatever they are: grants for what others carry out are let through.

use super::text::{LABEL, OBJECT_NAME, shown};
use super::{Shape, optional, required};
use crate::policy::value::Label;

/// Counts are those of Gateway API v1.
pub static REFERENCE_GRANT: Shape = Shape::Object(&[
    required("from", &Shape::List { of: &FROM, at_least: 1, at_most: 16 }),
    required("to", &Shape::List { of: &TO, at_least: 1, at_most: 16 }),
]);

static FROM: Shape = Shape::Object(&[
    required("group", &ANY_GROUP),
    required("kind", &ANY_KIND),
    required("namespace", &LABEL),
]);

static TO: Shape = Shape::Object(&[
    required("group", &ANY_GROUP),
    required("kind", &ANY_KIND),
    optional("name", &OBJECT_NAME),
]);

static ANY_GROUP: Shape = Shape::Text(group);
static ANY_KIND: Shape = Shape::Text(kind);

fn group(text: &str) -> Result<(), String> {
    let fits = text.len() <= 253 && text.split('.').all(|part| part.parse::<Label>().is_ok());
    if fits || text.is_empty() { Ok(()) } else { Err(format!("{:?} is no API group", shown(text))) }
}

fn kind(text: &str) -> Result<(), String> {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let inside = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let fits = begins && inside && !text.ends_with('-') && text.len() <= 63;
    if fits { Ok(()) } else { Err(format!("{:?} is not the name of a kind", shown(text))) }
}
