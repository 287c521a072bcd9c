//! The wire of the control node: generated messages and stubs. prost types stop here and in `io`.

/// `control/proto/control.proto`: node, admin and peer conversations.
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
pub mod control {
    include!("wire/hanse.control.v1.rs");
}

/// Server stubs of `identity/proto/issue.proto`.
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
pub mod issue {
    include!("wire/hanse.issue.v1.rs");
}

/// Server stubs of `federation/proto/watch.proto`.
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
pub mod watch {
    include!("wire/hanse.watch.v1.rs");
}
