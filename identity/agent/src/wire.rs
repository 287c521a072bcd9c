//! The wire of the agent: generated stubs of the two protocols that it speaks. prost types stop here and in `io`.

/// Client stubs of `identity/proto/issue.proto`.
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
pub mod issue {
    include!("wire/hanse.issue.v1.rs");
}

/// The SPIFFE Workload API (`identity/agent/proto/workload.proto`; the protocol has no package).
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
pub mod workload {
    include!("wire/workload.rs");
}
