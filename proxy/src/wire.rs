//! The wire of the data plane: the client stub of the Watch conversation. prost types stop here and in `runtime`.

/// Client stub of `federation/proto/watch.proto`.
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
pub mod watch {
    include!("wire/hanse.watch.v1.rs");
}
