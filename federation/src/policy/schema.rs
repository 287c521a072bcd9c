//! The shape of the documents as data: which fields there are, which are needed, which this version lacks.
//!
//! One walk over a document's tree finds everything that is wrong with its shape, each with its place. Serde then
//! reads what has passed; a test holds the two against each other.

use super::document::MAX_WEIGHT;
use super::tree::Place;
use text::{ANY_TEXT, GROUP, HEADER_NAME, LABEL, MIRROR_KIND, PORT, REF_KIND};

pub mod edge;
pub mod gateway;
pub mod grant;
pub mod peer;
pub mod stream;

mod access;
mod authorizer;
mod backend;
mod check;
mod concurrency;
mod cors;
mod route;
mod text;

pub use access::{ACCESS_POLICY, RATE_LIMIT, REQUEST_AUTHENTICATION};
pub use backend::BACKEND_POLICY;
pub use check::check;
pub use route::{FAULT_INJECTION, GRPC_ROUTE, HTTP_ROUTE};

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

static MIRROR_BACKEND: Shape = Shape::Object(&[
    optional("group", &GROUP),
    optional("kind", &MIRROR_KIND),
    required("name", &LABEL),
    optional("namespace", &LABEL),
    optional("port", &PORT),
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

static BACKEND: Shape = Shape::Object(&[
    optional("group", &GROUP),
    optional("kind", &REF_KIND),
    required("name", &LABEL),
    optional("namespace", &LABEL),
    optional("port", &PORT),
    optional("weight", &Shape::Integer { from: 0, to: MAX_WEIGHT as i128 }),
    not_yet("filters", "headers have to be changed by the app"),
]);
